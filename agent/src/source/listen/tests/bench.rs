//! A listener with nothing behind it, and a client that speaks bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::{QoS, v4};
use rumqttc::v5::mqttbytes::{QoS as QoS5, v5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::{SessionMemory, Settings, run};
use crate::clock::Clock;
use crate::ingest::inlet::Batch;
use crate::ingest::topic::Template;
use crate::ingest::{Delivery, Intake, Peer, SourceSpec, Subscription};
use crate::source::{Report, Rooms};

/// Nothing in these tests takes so long, on any machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Whom the store remembers from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    OfNobody,
    OfEverybody,
}

impl SessionMemory for Memory {
    fn knows(&self, _peer: &Peer) -> bool {
        *self == Self::OfEverybody
    }
}

pub(super) struct Bench {
    pub(super) address: SocketAddr,
    pub(super) report: watch::Receiver<Report>,
    batches: mpsc::Receiver<Batch>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

pub(super) fn settings() -> Settings {
    Settings {
        name: "direct".to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        users_file: None,
        max_clients: 10,
        max_payload_bytes: Settings::DEFAULT_MAX_PAYLOAD_BYTES,
        subscriptions: vec![Subscription::new(Template::parse("#").unwrap())],
    }
}

impl Bench {
    /// A listener at its defaults, that takes every topic and knows nobody from before.
    pub(super) async fn new() -> Self {
        Self::with(settings(), Memory::OfNobody).await
    }

    pub(super) async fn with(settings: Settings, memory: Memory) -> Self {
        let mut bench = Self::unbound(settings, memory);
        let report = bench.report.wait_for(|report| report.address.is_some());
        bench.address = within("listening", report).await.unwrap().address.unwrap();
        bench
    }

    /// Does not wait until it listens.
    pub(super) fn unbound(settings: Settings, memory: Memory) -> Self {
        let clock = Clock::system();
        let (intake, batches) = Intake::new(clock);
        let (sender, report) = watch::channel(Report::default());
        let stop = CancellationToken::new();
        let source = SourceSpec {
            in_flight: 1_000,
            name: settings.name.as_str().into(),
            subscriptions: settings.subscriptions.clone().into(),
            max_payload_bytes: settings.max_payload_bytes,
            kept_payload_bytes: 1 << 10,
        };
        let rooms = Rooms { source: Arc::new(source), intake, report: sender, stop: stop.clone(), clock };
        let address = settings.listen;
        Self { address, report, batches, stop, running: tokio::spawn(run(settings, Arc::new(memory), rooms)) }
    }

    /// The next batch; nothing of it is durable yet.
    pub(super) async fn batch(&mut self) -> Batch {
        within("a batch", self.batches.recv()).await.expect("the listener runs")
    }

    /// Takes `count` messages, each durable at once, and says how they came.
    pub(super) async fn store(&mut self, count: usize) -> Vec<Delivery> {
        self.store_hashed(count).await.into_iter().map(|(delivery, _)| delivery).collect()
    }

    /// As [`store`](Self::store), with the hashes of topic and payload.
    pub(super) async fn store_hashed(&mut self, count: usize) -> Vec<(Delivery, u64)> {
        let mut stored = Vec::new();
        while stored.len() < count {
            let batch = self.batch().await;
            batch.durable.send_replace(batch.up_to);
            stored.extend(batch.items.iter().map(|item| (item.delivery, item.hash)));
        }
        stored
    }

    /// No message waits to be taken. Only after something that comes later has been seen.
    pub(super) fn assert_nothing_more(&mut self) {
        if let Ok(batch) = self.batches.try_recv() {
            panic!("unexpected: {batch:?}");
        }
    }

    pub(super) async fn clients(&mut self, count: usize) {
        let report = self.report.wait_for(|report| report.clients == Some(count));
        within("that many clients", report).await.unwrap();
    }

    /// Says stop; await [`stopped`](Self::stopped).
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) async fn stopped(self) {
        self.stop.cancel();
        within("the listener to stop", self.running).await.unwrap();
    }
}

/// The hash that the inlet gives a message.
pub(super) fn hash(topic: &str, payload: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&[topic.as_bytes(), &[0], payload].concat())
}

pub(super) const PAYLOAD: &str = "{\"v\":1}";

pub(super) fn connect_v4(id: &str) -> v4::Connect {
    let mut connect = v4::Connect::new(id);
    connect.keep_alive = 60;
    connect
}

pub(super) fn connect_v5(id: &str) -> v5::Connect {
    v5::Connect { keep_alive: 60, client_id: id.to_owned(), clean_start: true, properties: None }
}

pub(super) fn publish_v4(qos: QoS, packet_id: u16) -> v4::Packet {
    let mut publish = v4::Publish::new("a/b", qos, PAYLOAD);
    publish.pkid = packet_id;
    v4::Packet::Publish(publish)
}

pub(super) fn publish_v5(qos: QoS5, packet_id: u16) -> v5::Packet {
    let mut publish = v5::Publish::new("a/b", qos, PAYLOAD, None);
    publish.pkid = packet_id;
    v5::Packet::Publish(publish)
}

/// A client that speaks bytes.
pub(super) struct Raw {
    pub(super) socket: TcpStream,
    inbox: BytesMut,
}

impl Raw {
    pub(super) async fn open(bench: &Bench) -> Self {
        let socket = within("a connection", TcpStream::connect(bench.address)).await.unwrap();
        Self { socket, inbox: BytesMut::new() }
    }

    /// A client of MQTT 3.1.1 that is let in; also whether the session was present.
    pub(super) async fn v4(bench: &Bench, connect: v4::Connect) -> (Self, bool) {
        let mut raw = Self::open(bench).await;
        raw.send4(&v4::Packet::Connect(connect)).await;
        match raw.read4().await {
            Some(v4::Packet::ConnAck(ack)) if ack.code == v4::ConnectReturnCode::Success => {
                (raw, ack.session_present)
            }
            other => panic!("not let in: {other:?}"),
        }
    }

    /// A client of MQTT 5 that is let in, and what it was told.
    pub(super) async fn v5(
        bench: &Bench,
        connect: v5::Connect,
        will: Option<v5::LastWill>,
    ) -> (Self, v5::ConnAck) {
        let mut raw = Self::open(bench).await;
        raw.send5(&v5::Packet::Connect(connect, will, None)).await;
        match raw.read5().await {
            Some(v5::Packet::ConnAck(ack)) if ack.code == v5::ConnectReturnCode::Success => (raw, ack),
            other => panic!("not let in: {other:?}"),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        within("a write", self.socket.write_all(bytes)).await.unwrap();
    }

    pub(super) async fn send4(&mut self, packet: &v4::Packet) {
        let mut out = BytesMut::new();
        packet.write(&mut out, 1 << 24).unwrap();
        self.send(&out).await;
    }

    pub(super) async fn send5(&mut self, packet: &v5::Packet) {
        let mut out = BytesMut::new();
        packet.write(&mut out, None).unwrap();
        self.send(&out).await;
    }

    /// The next packet, or `None` if the listener closed the connection.
    pub(super) async fn read4(&mut self) -> Option<v4::Packet> {
        loop {
            match v4::Packet::read(&mut self.inbox, 1 << 24) {
                Ok(packet) => return Some(packet),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// As [`read4`](Self::read4).
    pub(super) async fn read5(&mut self) -> Option<v5::Packet> {
        loop {
            match v5::Packet::read(&mut self.inbox, None) {
                Ok(packet) => return Some(packet),
                Err(rumqttc::v5::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The reason of the DISCONNECT that is next.
    pub(super) async fn reason5(&mut self) -> v5::DisconnectReasonCode {
        match self.read5().await {
            Some(v5::Packet::Disconnect(disconnect)) => disconnect.reason_code,
            other => panic!("no DISCONNECT: {other:?}"),
        }
    }

    async fn fill(&mut self) -> bool {
        // A connection reset is as closed as any.
        within("an answer", self.socket.read_buf(&mut self.inbox)).await.is_ok_and(|count| count > 0)
    }
}

/// Runs `program` in `dir` for a while, and gives its exit code. Its words go where the test's go.
pub(super) fn child(dir: &std::path::Path, program: &str, arguments: &[&str]) -> JoinHandle<Option<i32>> {
    let mut command = std::process::Command::new("timeout");
    command.arg("20").arg(program).args(arguments).current_dir(dir);
    tokio::task::spawn_blocking(move || command.status().unwrap().code())
}
