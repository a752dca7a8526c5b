//! A source's end of the ingest room.
//!
//! Every connection of a source has an [`Inlet`] of its own: it decodes in the connection's task (so several
//! connections decode in parallel), gathers what was decoded, and hands it over in batches. Memory is bounded by a
//! budget of bytes that all inlets share: who finds it used up waits, and with him the broker or the sensor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, watch};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::decode::{Decoded, Decoder, Rejection};
use super::settings::{Retained, Subscription};
use crate::clock::{Clock, Stamp};
use crate::reading::{Origin, Reading, Shape, Timestamp, Value};
use crate::store::nodes::{Missed, NodeChange, NodeId, NodePosition};

/// Batches that may wait between the inlets and the room. Bytes are bounded by the budget; this bounds the rest.
const BATCHES_WAITING: usize = 1_024;
/// Messages handed over in one batch: large enough that the hand-over costs little per message.
const BATCH_MESSAGES: usize = 256;
/// Bytes that all inlets together may have on the way to the disk. Larger buys no throughput: a group commit takes
/// far less.
pub(super) const BUDGET_BYTES: usize = 4 << 20;
/// What a message costs in memory beside its readings.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// What the inlets of one source have in common.
#[derive(Debug)]
pub struct SourceSpec {
    /// The configured name.
    pub name: Arc<str>,
    /// What is accepted, and how it is read.
    pub subscriptions: Arc<[Subscription]>,
    /// Longer payloads become dead letters.
    pub max_payload_bytes: usize,
    /// So many messages a peer may have in flight: as many are recognised when they come again.
    pub in_flight: u16,
    /// Of a rejected payload, this much is kept.
    pub kept_payload_bytes: usize,
}

/// Who sends, as far as redeliveries are concerned: the session at a broker, or a client id at our listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(pub Option<Arc<str>>);

impl Peer {
    /// A peer whose resends cannot be recognised, because it has no name.
    pub const NAMELESS: Self = Self(None);

    /// The peer of `source` that calls itself `client_id`.
    #[must_use]
    pub fn named(source: &str, client_id: &str) -> Self {
        if client_id.is_empty() { Self::NAMELESS } else { Self(Some(format!("{source}/{client_id}").into())) }
    }
}

/// How a message was sent to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// QoS 0: nobody waits for an ack, nothing protects it on its way here.
    AtMostOnce,
    /// QoS 1 or 2: sent until we acknowledge.
    Acknowledged {
        /// The packet identifier.
        packet_id: u16,
        /// Whether the sender says that it may have sent it before.
        resent: Resent,
    },
    /// A record of a sensor node that keeps it until we acknowledge it. What comes again was recognised by its number.
    Numbered,
}

/// The DUP flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resent {
    /// DUP = 0: certainly the first attempt.
    No,
    /// DUP = 1: perhaps we know it already.
    Perhaps,
}

/// Whether a message came with the retain flag set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It is fresh.
    No,
    /// The broker replays what it retained, at a (re)subscription.
    FromRetained,
}

/// A message as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The payload.
    pub payload: Bytes,
    /// How it was sent.
    pub delivery: Delivery,
    /// Whether it is a retained message that the broker replays.
    pub replayed: Replayed,
}

/// A reading that the source decoded itself.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Who measured it.
    pub origin: Arc<Origin>,
    /// The names of `values`.
    pub shape: Arc<Shape>,
    /// One for each name. If there is none, there is nothing to store, and it counts as skipped.
    pub values: Vec<Value>,
    /// When; `None`: the time of receipt.
    pub time: Option<Timestamp>,
    /// How it came.
    pub delivery: Delivery,
    /// For the record of a node, where it stands.
    pub node: Option<(NodeId, NodePosition)>,
}

/// What became of a message at the inlet. Nothing is durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Some subscription takes its topic.
    Routed,
    /// No subscription takes its topic: it is counted as rejected.
    Unrouted,
}

/// One message on its way to the store.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) delivery: Delivery,
    /// xxh3-64 of topic and payload.
    pub(crate) hash: u64,
    /// What it settles of a sensor node.
    pub(crate) node: Option<Box<NodeChange>>,
    pub(crate) outcome: Outcome,
}

/// What is to be stored of a message.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// One reading: the usual case, without an allocation of its own.
    Reading(Reading),
    /// An array of objects: as many readings.
    Readings(Vec<Reading>),
    /// It cannot be decoded.
    Rejected(Box<Rejected>),
    /// There is nothing in it to store, or it is retained and to be skipped.
    Skipped,
    /// Not a message: the session is gone, and with it every packet id of this peer.
    SessionLost,
    /// Not a message: records of a node that will never come.
    Missed,
    /// So many records of a node came again that were settled before.
    Repeated(u64),
}

/// A message that cannot be decoded, as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Rejected {
    pub(crate) topic: String,
    /// The payload, cut at the configured length.
    pub(crate) payload: Bytes,
    /// Its length before the cut.
    pub(crate) payload_bytes: u64,
    /// xxh3-64 of all of it.
    pub(crate) payload_hash: u64,
    pub(crate) reason: Rejection,
}

/// What an inlet hands over.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) source: Arc<SourceSpec>,
    pub(crate) peer: Peer,
    /// Where to say how many messages of this inlet are durable.
    pub(crate) durable: watch::Sender<u64>,
    /// The number of messages pushed into this inlet up to and including this batch.
    pub(crate) up_to: u64,
    pub(crate) items: Vec<Item>,
    /// Given back to the budget when the batch is durable.
    pub(crate) permits: Option<OwnedSemaphorePermit>,
}

/// The ingest room has ended; nothing more can be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is stopping and takes no more messages")]
pub struct Closed;

/// Where inlets come from. Cheap to clone; the room ends when the last intake and inlet are gone.
#[derive(Clone, Debug)]
pub struct Intake {
    batches: mpsc::Sender<Batch>,
    budget: Arc<Semaphore>,
    clock: Clock,
    opened: Arc<AtomicU64>,
}

impl Intake {
    /// An intake, and the end from which the room takes batches.
    pub(crate) fn new(clock: Clock) -> (Self, mpsc::Receiver<Batch>) {
        let (batches, waiting) = mpsc::channel(BATCHES_WAITING);
        let budget = Arc::new(Semaphore::new(BUDGET_BYTES));
        (Self { batches, budget, clock, opened: Arc::new(AtomicU64::new(0)) }, waiting)
    }

    /// A new inlet for one connection of `source` with `peer`.
    #[must_use]
    pub fn open(&self, source: &Arc<SourceSpec>, peer: Peer) -> Inlet {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Inlet {
            intake: self.clone(),
            decoder: Decoder::new(&source.name, Arc::clone(&source.subscriptions)),
            source: Arc::clone(source),
            peer,
            durable: watch::Sender::new(0),
            pushed: 0,
            received: None,
            gathered: Vec::new(),
            gathered_bytes: 0,
        }
    }
}

/// One connection's way in.
#[derive(Debug)]
pub struct Inlet {
    intake: Intake,
    source: Arc<SourceSpec>,
    peer: Peer,
    decoder: Decoder,
    durable: watch::Sender<u64>,
    pushed: u64,
    /// When the messages gathered now were received. One stamp for all that came in one read: that is the truth, and it
    /// costs fewer bytes on disk and on the wire than a clock that moves between them.
    received: Option<Stamp>,
    gathered: Vec<Item>,
    gathered_bytes: usize,
}

impl Inlet {
    /// Decodes one message and gathers it for the next [`flush`](Self::flush). Never waits.
    ///
    /// The nth message pushed is durable as soon as [`durable`](Self::durable) shows n or more.
    pub fn push(&mut self, arrival: &Arrival<'_>) -> Pushed {
        let mut hasher = Xxh3::new();
        hasher.update(arrival.topic.as_bytes());
        hasher.update(&[0]);
        hasher.update(&arrival.payload);

        let (outcome, pushed) = self.outcome(arrival);
        self.gather(Item { delivery: arrival.delivery, hash: hasher.digest(), node: None, outcome });
        pushed
    }

    /// The broker has no session of ours: packet ids of the old one mean nothing any more. Not counted as a message.
    pub fn session_lost(&mut self) {
        let outcome = Outcome::SessionLost;
        self.gathered.push(Item { delivery: Delivery::AtMostOnce, hash: 0, node: None, outcome });
    }

    /// Gathers a reading that the source decoded itself. Counts like a message pushed: see [`push`](Self::push).
    pub fn push_measured(&mut self, measured: Measured) {
        let Measured { origin, shape, values, time, delivery, node } = measured;
        let node =
            node.map(|(id, position)| Box::new(NodeChange { id, position, missed: Missed::default() }));
        let outcome = if values.is_empty() {
            Outcome::Skipped
        } else {
            let Stamp { time: received, line } = self.stamp();
            let time = time.unwrap_or(received);
            Outcome::Reading(Reading { time, received, line, origin, shape, values, remarks: None })
        };
        self.gather(Item { delivery, hash: 0, node, outcome });
    }

    /// Gathers that records of a node, up to this position, will never come. Made durable like a message, and pushed like one,
    /// but none.
    pub fn push_missed(&mut self, id: NodeId, position: NodePosition, missed: Missed) {
        let node = Some(Box::new(NodeChange { id, position, missed }));
        self.gather(Item { delivery: Delivery::Numbered, hash: 0, node, outcome: Outcome::Missed });
    }

    /// Counts records of a node that came again.
    pub fn push_repeated(&mut self, records: u64) {
        let outcome = Outcome::Repeated(records);
        self.gather(Item { delivery: Delivery::Numbered, hash: 0, node: None, outcome });
    }

    fn gather(&mut self, item: Item) {
        self.gathered_bytes += MESSAGE_OVERHEAD_BYTES + item.outcome.memory_bytes();
        self.gathered.push(item);
        self.pushed += 1;
    }

    /// The stamp of what was received since the last flush.
    fn stamp(&mut self) -> Stamp {
        let clock = self.intake.clock;
        self.received.get_or_insert_with(|| clock.stamp()).clone()
    }

    /// How many messages were pushed so far.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// True once enough is gathered that it should be flushed even if more is at hand.
    #[must_use]
    pub fn is_batch_full(&self) -> bool {
        self.gathered.len() >= BATCH_MESSAGES || self.gathered_bytes >= BUDGET_BYTES / 16
    }

    /// Hands over what was gathered if there is room now; what does not fit stays. Never waits.
    ///
    /// # Errors
    /// If the room has ended.
    pub fn flush(&mut self) -> Result<Flushed, Closed> {
        self.received = None;
        if self.gathered.is_empty() {
            return Ok(Flushed::All);
        }
        let permits = match Arc::clone(&self.intake.budget).try_acquire_many_owned(self.price()) {
            Ok(permits) => permits,
            Err(TryAcquireError::NoPermits) => return Ok(Flushed::NoRoom),
            Err(TryAcquireError::Closed) => return Err(Closed),
        };
        match self.intake.batches.clone().try_reserve_owned() {
            Ok(place) => {
                let batch = self.take_batch(permits);
                place.send(batch);
                Ok(Flushed::All)
            }
            Err(mpsc::error::TrySendError::Full(_)) => Ok(Flushed::NoRoom),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Closed),
        }
    }

    /// Hands over what was gathered, waiting for room. Cancel-safe: what was not handed over stays gathered.
    ///
    /// # Errors
    /// If the room has ended.
    pub async fn flushed(&mut self) -> Result<(), Closed> {
        self.received = None;
        if self.gathered.is_empty() {
            return Ok(());
        }
        let budget = Arc::clone(&self.intake.budget);
        let permits = budget.acquire_many_owned(self.price()).await.map_err(|_| Closed)?;
        let place = self.intake.batches.clone().reserve_owned().await.map_err(|_| Closed)?;
        let batch = self.take_batch(permits);
        place.send(batch);
        Ok(())
    }

    /// Shows how many of the messages pushed into this inlet are durable, in order.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    fn outcome(&mut self, arrival: &Arrival<'_>) -> (Outcome, Pushed) {
        let Some(subscription) = self.decoder.route(arrival.topic) else {
            return (self.rejected(arrival, Rejection::NoSubscription), Pushed::Unrouted);
        };
        let skip = arrival.replayed == Replayed::FromRetained && subscription.retained == Retained::Skip;
        if skip {
            return (Outcome::Skipped, Pushed::Routed);
        }
        if arrival.payload.len() > self.source.max_payload_bytes {
            let limit_bytes = self.source.max_payload_bytes;
            return (self.rejected(arrival, Rejection::PayloadTooLarge { limit_bytes }), Pushed::Routed);
        }
        let Stamp { time, line } = self.stamp();
        let outcome = match self.decoder.decode(arrival.topic, &arrival.payload, time, line.as_ref()) {
            Decoded::Reading(reading) => Outcome::Reading(reading),
            Decoded::Readings(readings) => Outcome::Readings(readings),
            Decoded::Nothing => Outcome::Skipped,
            Decoded::Rejected(reason) => self.rejected(arrival, reason),
        };
        (outcome, Pushed::Routed)
    }

    fn rejected(&self, arrival: &Arrival<'_>, reason: Rejection) -> Outcome {
        let kept_bytes = arrival.payload.len().min(self.source.kept_payload_bytes);
        Outcome::Rejected(Box::new(Rejected {
            topic: arrival.topic.to_owned(),
            // A copy: a slice would keep the network buffer of the whole payload alive.
            payload: Bytes::copy_from_slice(&arrival.payload[..kept_bytes]),
            payload_bytes: arrival.payload.len() as u64,
            payload_hash: xxh3_64(&arrival.payload),
            reason,
        }))
    }

    /// What the gathered messages cost of the budget; at most all of it, so that one giant batch still passes.
    fn price(&self) -> u32 {
        u32::try_from(self.gathered_bytes.min(BUDGET_BYTES)).expect("the budget fits 32 bits")
    }

    fn take_batch(&mut self, permits: OwnedSemaphorePermit) -> Batch {
        self.gathered_bytes = 0;
        Batch {
            source: Arc::clone(&self.source),
            peer: self.peer.clone(),
            durable: self.durable.clone(),
            up_to: self.pushed,
            items: std::mem::take(&mut self.gathered),
            permits: Some(permits),
        }
    }
}

/// What [`Inlet::flush`] could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything was handed over.
    All,
    /// There is no room now; all stays gathered. Stop reading and await [`Inlet::flushed`].
    NoRoom,
}

impl Outcome {
    fn memory_bytes(&self) -> usize {
        match self {
            Self::Reading(reading) => reading.memory_bytes(),
            Self::Readings(readings) => readings.iter().map(Reading::memory_bytes).sum(),
            Self::Rejected(rejected) => rejected.topic.len() + rejected.payload.len(),
            Self::Skipped | Self::SessionLost | Self::Missed | Self::Repeated(_) => 0,
        }
    }
}
