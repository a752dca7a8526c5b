//! A running source, with the ingest room in the hands of the test.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::super::{Client, Pace, Protocol, Settings, SubscriptionMemory};
use crate::backoff;
use crate::clock::Clock;
use crate::ingest::inlet::{Batch, Outcome};
use crate::ingest::topic::Template;
use crate::ingest::{Delivery, Intake, Resent, SourceSpec, Subscription};
use crate::source::{Report, Rooms, State};

/// Nothing here takes this long unless it is broken.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// As in life, but faster.
const PACE: Pace = Pace {
    retry: backoff::Settings { initial: Duration::from_millis(100), max: Duration::from_secs(1) },
    drain_wait: Duration::from_millis(500),
};

/// Runs a case in both versions of the protocol.
pub(super) async fn in_both<C: Future<Output = ()>>(case: impl Fn(Protocol) -> C) {
    tokio::join!(case(Protocol::V311), case(Protocol::V5));
}

/// Remembers subscriptions in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<Vec<String>>>);

impl SubscriptionMemory for Memory {
    fn previous(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
    async fn remember(&self, filters: Vec<String>) {
        *self.0.lock().unwrap() = filters;
    }
}

pub(super) fn settings(port: u16, protocol: Protocol, topics: &[&str]) -> Settings {
    let subscription = |topic: &&str| Subscription::new(Template::parse(topic).unwrap());
    Settings {
        name: "plant".to_owned(),
        host: "127.0.0.1".to_owned(),
        port,
        tls: None,
        username: None,
        password: None,
        client_id: "holdfast-test-plant".to_owned(),
        protocol,
        keep_alive: Settings::DEFAULT_KEEP_ALIVE,
        max_payload_bytes: Settings::DEFAULT_MAX_PAYLOAD_BYTES,
        subscriptions: topics.iter().map(subscription).collect(),
    }
}

/// A message as it reached the ingest room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) hash: u64,
    pub(super) delivery: Delivery,
}

impl Seen {
    pub(super) fn packet_id(self) -> u16 {
        match self.delivery {
            Delivery::Acknowledged { packet_id, .. } => packet_id,
            Delivery::AtMostOnce | Delivery::Numbered => 0,
        }
    }

    pub(super) fn is_resent(self) -> bool {
        matches!(self.delivery, Delivery::Acknowledged { resent: Resent::Perhaps, .. })
    }
}

/// What the inlet's hash of a message is.
pub(super) fn hash(topic: &str, payload: &str) -> u64 {
    xxh3_64(format!("{topic}\0{payload}").as_bytes())
}

/// A running source, and the ingest room in the hands of the test.
pub(super) struct Source {
    pub(super) report: watch::Receiver<Report>,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
    pub(super) batches: mpsc::Receiver<Batch>,
    /// Batches that were taken and not declared durable.
    pub(super) held: Vec<Batch>,
    pub(super) sessions_lost: usize,
}

impl Source {
    pub(super) fn start(settings: Settings, memory: &Memory) -> Self {
        let spec = Arc::new(SourceSpec {
            in_flight: 1_000,
            name: settings.name.as_str().into(),
            subscriptions: settings.subscriptions.clone().into(),
            max_payload_bytes: settings.max_payload_bytes,
            kept_payload_bytes: 1 << 10,
        });
        let (intake, batches) = Intake::new(Clock::system());
        let (sender, report) = watch::channel(Report::default());
        let stop = CancellationToken::new();
        let clock = Clock::system();
        let rooms = Rooms { source: spec, intake, report: sender, stop: stop.clone(), clock };
        let mut client = Client::new(settings, memory.clone(), rooms);
        client.pace = PACE;
        let task = tokio::spawn(client.run());
        Self { report, stop, task, batches, held: Vec::new(), sessions_lost: 0 }
    }

    /// A source that is connected and subscribed.
    pub(super) async fn connected(settings: Settings, memory: &Memory) -> Self {
        let mut source = Self::start(settings, memory);
        source.reaches(State::Connected).await;
        source
    }

    pub(super) async fn reaches(&mut self, state: State) -> Report {
        let reached = timeout(DEADLINE, self.report.wait_for(|report| report.state == state)).await;
        let reached = reached.map(|report| report.unwrap().clone());
        reached.unwrap_or_else(|_| panic!("not {state:?} but {:?}", self.report.borrow()))
    }

    /// The next `count` messages, none of which is durable yet.
    pub(super) async fn takes(&mut self, count: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let batch = timeout(DEADLINE, self.batches.recv()).await.expect("no message comes").unwrap();
            for item in &batch.items {
                if let Outcome::SessionLost = item.outcome {
                    self.sessions_lost += 1;
                } else {
                    seen.push(Seen { hash: item.hash, delivery: item.delivery });
                }
            }
            self.held.push(batch);
        }
        assert_eq!(seen.len(), count, "more came than were asked for");
        seen
    }

    /// Declares all that was taken durable.
    pub(super) fn settle(&mut self) {
        for mut batch in self.held.drain(..) {
            batch.permits.take();
            batch.durable.send_replace(batch.up_to);
        }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.task).await.expect("it does not stop").unwrap();
    }
}

pub(super) fn hashes(seen: &[Seen]) -> Vec<u64> {
    seen.iter().map(|seen| seen.hash).collect()
}
