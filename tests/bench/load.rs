//! Publishers that hardly cost anything: MQTT 3.1.1, QoS 1, on plain blocking sockets, many messages to a system call.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::clock::{now, pause, pause_until, unix_ms};
use crate::payload::{DEVICES, Device, Payload};

/// Connections, each with its share of the devices.
pub(crate) const CONNECTIONS: usize = 8;
/// Nobody answers for so long: something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// A load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Where the broker or the listener is.
    pub(crate) port: u16,
    /// How many messages in all.
    pub(crate) messages: u64,
    /// What is in them.
    pub(crate) payload: Payload,
}

/// What a load was, as its senders saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) started: Instant,
    /// Until the last acknowledgement.
    pub(crate) took: Duration,
    pub(crate) messages: u64,
    pub(crate) payload_bytes: u64,
}

impl Load {
    /// As fast as it goes, `in_flight` messages not yet acknowledged on each connection.
    pub(crate) fn saturate(self, in_flight: u64) -> anyhow::Result<Sent> {
        let started = now();
        let bytes = std::thread::scope(|scope| {
            let connections: Vec<_> = (0..CONNECTIONS)
                .map(|number| scope.spawn(move || self.saturate_one(number, in_flight)))
                .collect();
            let ended = connections.into_iter().map(|one| match one.join() {
                Ok(bytes) => bytes,
                Err(_) => bail!("a publisher panicked"),
            });
            ended.sum::<anyhow::Result<u64>>()
        })?;
        Ok(Sent { started, took: started.elapsed(), messages: self.messages, payload_bytes: bytes })
    }

    fn saturate_one(self, number: usize, in_flight: u64) -> anyhow::Result<u64> {
        let share = self.messages / CONNECTIONS as u64
            + u64::from((number as u64) < self.messages % CONNECTIONS as u64);
        let mut publisher = Publisher::connect(self.port, number)?;
        publisher.stream.set_read_timeout(Some(PATIENCE))?;
        while publisher.acknowledged < share {
            let now_ms = unix_ms();
            while publisher.sent < share && publisher.sent - publisher.acknowledged < in_flight {
                publisher.push(now_ms, self.payload);
            }
            publisher.flush()?;
            publisher.read_acks()?;
        }
        publisher.leave()
    }

    /// So many a second, evenly spaced, the connections in turn.
    pub(crate) fn pace(self, per_second: u32) -> anyhow::Result<Sent> {
        let mut publishers = (0..CONNECTIONS)
            .map(|number| Publisher::connect(self.port, number))
            .collect::<Result<Vec<_>, _>>()?;
        for publisher in &publishers {
            publisher.stream.set_nonblocking(true)?;
        }
        let step = Duration::from_secs(1) / per_second;
        let started = now();
        for message in 0..self.messages {
            let index = u32::try_from(message).context("too many messages")?;
            pause_until(started + step * index);
            let turn = usize::try_from(message)? % CONNECTIONS;
            let publisher = &mut publishers[turn];
            publisher.push(unix_ms(), self.payload);
            publisher.flush()?;
            if publisher.sent.is_multiple_of(64) {
                publisher.read_acks()?;
            }
        }
        let mut bytes = 0;
        for mut publisher in publishers {
            let since = now();
            while publisher.acknowledged < publisher.sent {
                ensure!(since.elapsed() < PATIENCE, "no acknowledgements");
                publisher.read_acks()?;
                pause(Duration::from_millis(1));
            }
            bytes += publisher.leave()?;
        }
        Ok(Sent { started, took: started.elapsed(), messages: self.messages, payload_bytes: bytes })
    }
}

struct Publisher {
    stream: TcpStream,
    devices: Vec<Device>,
    turn: usize,
    sent: u64,
    acknowledged: u64,
    payload_bytes: u64,
    packet_id: u16,
    out: Vec<u8>,
    payload: Vec<u8>,
    /// Bytes of a PUBACK that has come in part.
    part: usize,
}

impl Publisher {
    fn connect(port: u16, number: usize) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect the publishers")?;
        stream.set_nodelay(true)?;
        let client_id = format!("bench-{number}");
        let mut connect = vec![0x10];
        connect.push(u8::try_from(12 + client_id.len())?);
        connect.extend_from_slice(&[0, 4, b'M', b'Q', b'T', b'T', 4, 0x02, 0, 0]);
        connect.extend_from_slice(&u16::try_from(client_id.len())?.to_be_bytes());
        connect.extend_from_slice(client_id.as_bytes());
        stream.write_all(&connect)?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack)?;
        ensure!(connack[..2] == [0x20, 2] && connack[3] == 0, "refused: {connack:?}");
        let devices = (number..DEVICES).step_by(CONNECTIONS).map(Device::new).collect();
        Ok(Self {
            stream,
            devices,
            turn: 0,
            sent: 0,
            acknowledged: 0,
            payload_bytes: 0,
            packet_id: 0,
            out: Vec::new(),
            payload: Vec::new(),
            part: 0,
        })
    }

    /// Appends the next message to what [`flush`](Self::flush) sends.
    fn push(&mut self, now_ms: u64, kind: Payload) {
        let next = (self.turn + 1) % self.devices.len();
        let device = &mut self.devices[std::mem::replace(&mut self.turn, next)];
        self.payload.clear();
        device.write(now_ms, kind, &mut self.payload);
        self.packet_id = if self.packet_id == u16::MAX { 1 } else { self.packet_id + 1 };
        let topic = device.topic.as_bytes();
        let mut rest = 2 + topic.len() + 2 + self.payload.len();
        self.out.push(0x32);
        loop {
            let more = if rest > 127 { 0x80 } else { 0 };
            self.out.push(u8::try_from(rest & 127).unwrap_or(0) | more);
            rest >>= 7;
            if rest == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&[0, u8::try_from(topic.len()).unwrap_or(0)]);
        self.out.extend_from_slice(topic);
        self.out.extend_from_slice(&self.packet_id.to_be_bytes());
        self.out.extend_from_slice(&self.payload);
        self.payload_bytes += self.payload.len() as u64;
        self.sent += 1;
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.out).context("cannot publish")?;
        self.out.clear();
        Ok(())
    }

    /// Counts the PUBACKs that are there; waits for one if the socket blocks.
    fn read_acks(&mut self) -> anyhow::Result<()> {
        let mut bytes = [0; 8_192];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the connection was closed"),
            Ok(count) => {
                self.part += count;
                self.acknowledged += (self.part / 4) as u64;
                self.part %= 4;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && self.part == 0 => {
                // Either nothing is there (paced), or nothing came for too long.
                ensure!(self.stream.read_timeout()?.is_none(), "no acknowledgement within {PATIENCE:?}");
                Ok(())
            }
            Err(error) => Err(error).context("cannot read acknowledgements"),
        }
    }

    fn leave(mut self) -> anyhow::Result<u64> {
        ensure!(self.acknowledged == self.sent, "more acknowledgements than messages");
        self.stream.set_nonblocking(false)?;
        self.stream.write_all(&[0xE0, 0])?;
        Ok(self.payload_bytes)
    }
}
