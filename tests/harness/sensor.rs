//! A sensor: a minimal MQTT 3.1.1 client that does by the book what client libraries often do not.
//!
//! It keeps what was not acknowledged, sends it again after a reconnection with the same packet id and DUP = 1, insists that
//! acknowledgements come in order (MQTT-4.6.0-2), and uses few packet ids, so that each is soon used anew.

use std::collections::VecDeque;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{DEADLINE, Journal, wait_for};

/// Readings carry times from here on, a second apart: 2026-11-20T04:00:00Z.
pub const START_MS: u64 = 1_795_147_200_000;
/// Messages in flight at once, as a typical client has them.
const WINDOW: usize = 20;
/// Packet ids used: few, so that they come round often.
const PACKET_IDS: u16 = 50;

/// What an agent that is stopping answers to a CONNECT of 3.1.1; sensors come again.
const UNAVAILABLE: u8 = 3;
/// The last word of QoS 2.
const PUBCOMP: u8 = 0x70;

/// One sensor with its session.
#[derive(Debug)]
pub struct Sensor {
    device: String,
    client_id: String,
    port: u16,
    journal: Journal,
    line: Option<BufStream<TcpStream>>,
    last_id: u16,
    qos: Qos,
    in_flight: VecDeque<InFlight>,
    /// Received, said the other side (QoS 2); to be released.
    to_release: VecDeque<u16>,
}

/// What is asked of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qos {
    AtLeastOnce,
    ExactlyOnce,
}

#[derive(Debug)]
struct InFlight {
    id: u16,
    n: u64,
    payload: Vec<u8>,
}

/// The DUP flag.
#[derive(Clone, Copy)]
enum Dup {
    First,
    Again,
}

impl Sensor {
    /// A sensor called `device`, which publishes to `sensors/<device>/telemetry` at the port.
    #[must_use]
    pub fn new(device: &str, port: u16, journal: &Journal) -> Self {
        Self {
            device: device.to_owned(),
            client_id: device.to_owned(),
            port,
            journal: journal.clone(),
            line: None,
            last_id: 0,
            qos: Qos::AtLeastOnce,
            in_flight: VecDeque::new(),
            to_release: VecDeque::new(),
        }
    }

    /// The same, but connecting as this client; by default it is called as the device is.
    #[must_use]
    pub fn with_client_id(mut self, client_id: &str) -> Self {
        client_id.clone_into(&mut self.client_id);
        self
    }

    /// The same, but publishing with QoS 2.
    #[must_use]
    pub fn exactly_once(mut self) -> Self {
        self.qos = Qos::ExactlyOnce;
        self
    }

    /// The payload of the reading `n`.
    #[must_use]
    pub fn payload(n: u64) -> Vec<u8> {
        let ts = START_MS + n * 1_000;
        format!("{{\"ts\":{ts},\"n\":{n},\"temperature\":{}.5}}", n % 40).into_bytes()
    }

    /// Publishes the readings with these numbers, and returns when all that was ever published is acknowledged. Connects as
    /// often as it takes.
    ///
    /// # Panics
    /// If the acknowledgements do not come, or come out of order.
    pub async fn publish(&mut self, numbers: impl IntoIterator<Item = u64>) {
        self.publish_payloads(numbers.into_iter().map(|n| (n, Self::payload(n)))).await;
    }

    /// The same with payloads of one's own; each has its number in the field `n`.
    ///
    /// # Panics
    /// If the acknowledgements do not come, or come out of order.
    pub async fn publish_payloads(&mut self, readings: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        let mut readings = readings.into_iter();
        loop {
            match self.go_on(&mut readings).await {
                Ok(()) => return,
                Err(_) => self.cut(),
            }
        }
    }

    /// Publishes the reading `n` and does not wait for the acknowledgement.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn send(&mut self, n: u64) -> io::Result<()> {
        self.connect().await?;
        self.put(n, Self::payload(n)).await?;
        self.line().flush().await
    }

    /// Drops the connection without a word; what was not acknowledged is sent again.
    pub fn cut(&mut self) {
        self.line = None;
    }

    /// Messages not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    async fn go_on(&mut self, readings: &mut impl Iterator<Item = (u64, Vec<u8>)>) -> io::Result<()> {
        self.connect().await?;
        loop {
            while self.in_flight.len() + self.to_release.len() < WINDOW {
                let Some((n, payload)) = readings.next() else { break };
                self.put(n, payload).await?;
            }
            self.line().flush().await?;
            if self.in_flight.is_empty() && self.to_release.is_empty() {
                return Ok(());
            }
            self.acknowledged().await?;
        }
    }

    async fn put(&mut self, n: u64, payload: Vec<u8>) -> io::Result<()> {
        self.last_id = self.last_id % PACKET_IDS + 1;
        self.journal.sent((self.device.clone(), n));
        // In flight before it is written: half a message may have been sent when the connection breaks.
        self.in_flight.push_back(InFlight { id: self.last_id, n, payload });
        self.write(self.in_flight.len() - 1, Dup::First).await
    }

    async fn write(&mut self, place: usize, dup: Dup) -> io::Result<()> {
        let topic = format!("sensors/{}/telemetry", self.device);
        let InFlight { id, payload, .. } = &self.in_flight[place];
        let mut body = text(&topic);
        body.extend_from_slice(&id.to_be_bytes());
        body.extend_from_slice(payload);
        let qos = match self.qos {
            Qos::AtLeastOnce => 0x32,
            Qos::ExactlyOnce => 0x34,
        };
        let first = match dup {
            Dup::First => qos,
            Dup::Again => qos | 0x08,
        };
        let packet = packet(first, &body);
        self.line().write_all(&packet).await
    }

    /// Takes one PUBACK, PUBREC or PUBCOMP.
    async fn acknowledged(&mut self) -> io::Result<()> {
        let mut ack = [0; 4];
        let read = timeout(2 * DEADLINE, self.line().read_exact(&mut ack)).await;
        read.unwrap_or_else(|_| panic!("no acknowledgement for {}", self.device))?;
        if ack[0] == PUBCOMP {
            let id = self.to_release.pop_front().expect("something is released").to_be_bytes();
            assert_eq!(ack, [PUBCOMP, 2, id[0], id[1]], "a completion out of order");
            return Ok(());
        }
        let first = self.in_flight.pop_front().expect("something is in flight");
        let id = first.id.to_be_bytes();
        let kind = match self.qos {
            Qos::AtLeastOnce => 0x40,
            Qos::ExactlyOnce => 0x50,
        };
        assert_eq!(ack, [kind, 2, id[0], id[1]], "an acknowledgement out of order");
        self.journal.acked((self.device.clone(), first.n));
        if self.qos == Qos::ExactlyOnce {
            self.to_release.push_back(first.id);
            self.release(first.id).await?;
            self.line().flush().await?;
        }
        Ok(())
    }

    async fn release(&mut self, id: u16) -> io::Result<()> {
        let id = id.to_be_bytes();
        self.line().write_all(&[0x62, 2, id[0], id[1]]).await
    }

    /// Connects if need be, and sends again what was not acknowledged.
    async fn connect(&mut self) -> io::Result<()> {
        if self.line.is_some() {
            return Ok(());
        }
        let port = self.port;
        let stream = wait_for("a connection for a sensor", 2 * DEADLINE, || async move {
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        stream.set_nodelay(true)?;
        self.line = Some(BufStream::new(stream));
        // Protocol 4, persistent session, keep-alive off.
        let mut body = text("MQTT");
        body.extend_from_slice(&[4, 0, 0, 0]);
        body.extend(text(&self.client_id));
        self.line().write_all(&packet(0x10, &body)).await?;
        self.line().flush().await?;
        let mut answer = [0; 4];
        self.line().read_exact(&mut answer).await?;
        if answer[3] == UNAVAILABLE {
            return Err(io::Error::other("it is stopping"));
        }
        assert_eq!((answer[0], answer[3]), (0x20, 0), "the connection is refused");
        for id in self.to_release.clone() {
            self.release(id).await?;
        }
        for place in 0..self.in_flight.len() {
            self.write(place, Dup::Again).await?;
        }
        self.line().flush().await
    }

    fn line(&mut self) -> &mut BufStream<TcpStream> {
        self.line.as_mut().expect("it is connected")
    }
}

/// A text with its length before it.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A packet: first byte, remaining length, the rest.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let low = u8::try_from(length % 128).unwrap();
        length /= 128;
        packet.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}
