//! What waits for the next commit, and what rooms may ask for.

use std::time::Duration;

use tokio::time::Instant;

use super::boots::Boot;
use super::ledger::{Identity, SourceCounts};
use super::letters::LettersChange;
use super::nodes::NodeChange;
use super::recent::Change;
use super::salvage::Slice;
use super::{DeadLetterOrigin, WindowsUpdate};
use crate::reading::{Reading, Timestamp};
use crate::stream::{Epoch, Seq, Stream};

/// What the ingest room gathered: one group, stored together.
#[derive(Debug, Default)]
pub struct Group {
    /// The readings, in the order of arrival.
    pub readings: Vec<Reading>,
    /// What could not be decoded.
    pub rejected: Vec<Letter>,
    /// What is to be added to each source's counts.
    pub counts: Vec<(String, SourceCounts)>,
    /// What the peers sent.
    pub recent: Vec<Change>,
    /// How far the records of sensor nodes are durable with it; each node once.
    pub nodes: Vec<NodeChange>,
    /// When the oldest reading of the group arrived.
    pub since: Option<Instant>,
    /// How readings come.
    pub pace: Pace,
}

/// How readings come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// More are expected soon.
    #[default]
    Steady,
    /// So slowly that the next is not expected while a batch would wait for it.
    Sparse,
}

/// A dead letter before it has an id.
#[derive(Clone, Debug)]
pub struct Letter {
    /// When it was refused.
    pub time: Timestamp,
    /// Where it comes from.
    pub origin: DeadLetterOrigin,
    /// Why it was refused.
    pub reason: String,
    /// The payload or record, perhaps cut.
    pub payload: Vec<u8>,
    /// Its length before the cut.
    pub payload_bytes: u64,
    /// xxh3-64 of all of it.
    pub payload_hash: u64,
}

/// A change of one sink's ledger of one stream.
#[derive(Debug)]
pub struct LedgerChange {
    /// The sink.
    pub sink: String,
    /// The stream.
    pub stream: Stream,
    /// The epoch whose numbers are meant; in another the change is void.
    pub epoch: Epoch,
    /// What happened.
    pub event: LedgerEvent,
}

/// What happened between a sink and the store.
#[derive(Debug)]
pub enum LedgerEvent {
    /// It has everything before this number.
    Advance(Seq),
    /// Batches shall end at these numbers; times are corrected by so many of the boots.
    Pin(Vec<Seq>, u32),
    /// The first pinned batch was refused as a whole.
    Split,
    /// The only record of the first pinned batch was refused for good.
    DeadLetter(Seq, Box<Letter>),
}

/// How much goes into one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// At most this many records.
    pub records: u64,
    /// At most this many bytes of body before compression, unless a single record is larger.
    pub bytes: usize,
    /// How long the oldest record waits for others.
    pub wait: Duration,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { records: 1_000, bytes: 256 << 10, wait: Duration::from_secs(1) }
    }
}

/// Whether a sink may hold up the others' intake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Required {
    /// With `when_full = "block"`, intake waits for this sink.
    #[default]
    Yes,
    /// It never holds anything up.
    No,
}

/// A sink, as far as the store has to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkSpec {
    /// The configured name.
    pub name: String,
    /// The streams it takes.
    pub streams: Vec<Stream>,
    /// How batches are cut.
    pub batch: BatchLimits,
    /// Whether it may stop intake.
    pub required: Required,
}

/// Everything that waits for one commit. Kept until that commit is durable.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) group: Option<Group>,
    pub(super) windows: Option<WindowsUpdate>,
    pub(super) ledger: Vec<LedgerChange>,
    pub(super) remember: Vec<(String, Vec<u8>)>,
    pub(super) sinks: Option<Vec<SinkSpec>>,
    /// What people want of the dead letters.
    pub(super) letters: Option<LettersChange>,
    /// When the machine was started.
    pub(super) boot: Option<Boot>,
    /// A new epoch, and whose the store is from then on.
    pub(super) epoch: Option<(Epoch, Identity)>,
    /// What was read of a damaged file.
    pub(super) salvaged: Option<Slice>,
    /// Numbers that could not be read.
    pub(super) suspects: Vec<(Stream, Seq)>,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.group.is_none()
            && self.windows.is_none()
            && self.ledger.is_empty()
            && self.remember.is_empty()
            && self.sinks.is_none()
            && self.letters.is_none()
            && self.boot.is_none()
            && self.epoch.is_none()
            && self.salvaged.is_none()
            && self.suspects.is_empty()
    }
}
