//! The books: who has what, and where the rest went.
//!
//! For every stream and sink, at every moment: `appended = delivered + pending + dead_lettered + shed`. All of it is
//! written in the transaction that makes it true, so it holds again after any crash. Pure: no disk, no clock.
//!
//! ```text
//!            settled                 pending (less the gaps ahead)
//!   1 ─────────────────── cursor ─────┬────────┬─────────────────── next
//!   delivered, dead, shed        pin  │  pin   │  not yet in a batch
//! ```

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::boots::Boots;
use super::nodes::Nodes;
use crate::reading::Timestamp;
use crate::stream::{Epoch, Gap, Seq, SeqRange, Stream};

/// Everything the store knows about its own contents but the contents. Small: it rides in every commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Books {
    /// The number of the commit that wrote this; gapless from 1.
    pub commit: u64,
    /// The epoch of the numbers.
    pub epoch: Epoch,
    /// The epoch before this one, if there was one.
    pub previous: Option<Previous>,
    /// The streams, in the order of [`Stream::ALL`].
    pub streams: [StreamBooks; 3],
    /// Numbers after each stream's oldest that are held no more: what was given up behind a pinned batch. In order.
    pub holes: [Vec<SeqRange>; 3],
    /// What each source's messages came to, by configured name; sources no longer configured stay.
    pub sources: BTreeMap<String, SourceCounts>,
    /// What each sink has, by configured name; sinks no longer configured stay, frozen.
    pub sinks: BTreeMap<String, SinkBooks>,
    /// How far the windows' durable checkpoint has come.
    pub checkpoint: CheckpointBooks,
    /// What the dead letters hold.
    pub dead_letters: DeadLetterBooks,
    /// When the machine was started, as far as readings need it.
    pub boots: Boots,
    /// What a damaged disk cost.
    pub damage: DamageBooks,
    /// How far the records of each sensor node are durable. Beside the rest in the note, since older stores lack it.
    #[serde(skip)]
    pub nodes: Nodes,
}

/// The epoch before, and where this one goes on: the number that its first record had in the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The epoch.
    pub epoch: Epoch,
    /// Per stream, in the order of [`Stream::ALL`], as receivers count.
    pub next: [Seq; 3],
}

/// One stream.
///
/// Inside, numbers go on from epoch to epoch, so that nothing stored has to be rewritten; what leaves the house is less
/// `base`, so that it begins at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamBooks {
    /// Numbers up to this belong to earlier epochs.
    pub base: u64,
    /// The number that the next record gets.
    pub next: Seq,
    /// The oldest record held; equal to `next` if none is.
    pub oldest: Seq,
    /// Bytes of the chunks held.
    pub held_bytes: u64,
    /// Chunks held.
    pub held_chunks: u64,
}

/// What the messages of one source came to. `received = stored + rejected + redelivered + skipped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Messages whose outcome is durable.
    pub received: u64,
    /// Messages stored as one or more readings.
    pub stored: u64,
    /// Messages that could not be decoded, or that no subscription takes.
    pub rejected: u64,
    /// Messages sent again that were stored (or otherwise settled) before.
    pub redelivered: u64,
    /// Messages with nothing in them to store, and retained ones not to be taken.
    pub skipped: u64,
    /// Of the received, those sent with QoS 0: nothing protected them on their way here.
    pub unprotected: u64,
    /// Readings stored; an array of objects is one message and many readings.
    pub readings: u64,
}

/// One sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkBooks {
    /// Whether the configuration still names it.
    pub presence: Presence,
    /// Its streams.
    pub streams: BTreeMap<Stream, Ledger>,
}

/// Whether a sink is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It is, and holds data back until it has it.
    #[default]
    Configured,
    /// It was: its ledger stays visible, frozen, and it holds nothing back.
    Removed,
}

/// What one sink has of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The next number to deliver: all before it are settled.
    pub cursor: Seq,
    /// Records that the sink has.
    pub delivered: u64,
    /// Records that it refused for good.
    pub dead_lettered: u64,
    /// Records it will never get, by rule.
    pub shed: u64,
    /// Gaps at or after the cursor that no batch has declared to the sink yet, in order, not overlapping.
    pub ahead: Vec<Gap>,
    /// Batches whose boundaries and gaps are fixed, in order, from the cursor on.
    pub pins: VecDeque<Pin>,
    /// What it never gets under the numbers it had, as far as somebody may want to know; in order, a few ranges at most.
    pub missed: Vec<SeqRange>,
}

/// A batch's boundaries and gaps, fixed durably before it is first sent. It begins where the one before it ends, the
/// first at the cursor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The last number of the batch.
    pub last: Seq,
    /// The numbers in it that are not records.
    pub gaps: Vec<Gap>,
    /// The times of readings are corrected by so many of the [`Boots`]: by those known when it was fixed.
    pub corrections: u32,
}

/// How far the windows' durable checkpoint has come. Nothing from here on is trimmed or shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointBooks {
    /// Readings before this are in the checkpoint.
    pub position: Seq,
    /// Window records before this were emitted by readings before `position`.
    pub windows_next: Seq,
}

/// What the dead letters hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterBooks {
    /// The id that the next one gets, less one.
    pub last_id: u64,
    /// How many are kept.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// How many were purged because of the quota.
    pub purged: u64,
    /// How many were purged by people.
    pub purged_by_hand: u64,
    /// How many were replayed. `last_id = kept + purged + purged_by_hand + replayed`, and those lost to damage.
    pub replayed: u64,
}

impl SinkBooks {
    /// Whether the configuration still names it.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.presence == Presence::Configured
    }
}

/// What a damaged disk cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageBooks {
    /// How often a damaged store was moved aside.
    pub moved_aside: u64,
    /// When that was last.
    pub last: Option<Timestamp>,
    /// Records that some sink still wanted and that are lost, by stream, in the order of [`Stream::ALL`].
    pub lost: [u64; 3],
    /// Records read from damaged files and stored anew.
    pub saved: [u64; 3],
    /// Dead letters that are lost.
    pub lost_letters: u64,
    /// Damaged files that are still being read, the oldest first.
    pub files: Vec<DamagedFile>,
    /// The rows of the windows' checkpoint were lost while the windows ran on: what changes is not enough to begin from.
    pub is_checkpoint_void: bool,
}

/// A damaged file that is being read, and how far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedFile {
    /// Its name in the data directory.
    pub name: String,
    /// What it held before these numbers is stored anew, or lost; by stream, in its own numbers.
    pub done: [Seq; 3],
    /// Records saved from it, by stream.
    pub saved: [u64; 3],
}

/// Whose a store is. When either differs at start (a cloned card, a renamed agent), a new epoch begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The agent it belongs to.
    pub agent: String,
    /// The machine it was born on.
    pub machine: String,
}

impl Default for Books {
    fn default() -> Self {
        let empty =
            StreamBooks { base: 0, next: Seq::FIRST, oldest: Seq::FIRST, held_bytes: 0, held_chunks: 0 };
        Self {
            commit: 0,
            epoch: Epoch(uuid::Uuid::nil()),
            previous: None,
            streams: [empty; 3],
            holes: Default::default(),
            sources: BTreeMap::new(),
            sinks: BTreeMap::new(),
            checkpoint: CheckpointBooks { position: Seq::FIRST, windows_next: Seq::FIRST },
            dead_letters: DeadLetterBooks::default(),
            boots: Boots::default(),
            damage: DamageBooks::default(),
            nodes: Nodes::default(),
        }
    }
}

impl Books {
    /// The books of `stream`.
    #[must_use]
    pub fn stream(&self, stream: Stream) -> &StreamBooks {
        &self.streams[stream.index()]
    }

    /// What `sink` still has to get of `stream`, if it takes that stream.
    #[must_use]
    pub fn pending(&self, sink: &str, stream: Stream) -> Option<u64> {
        let ledger = self.sinks.get(sink)?.streams.get(&stream)?;
        Some(ledger.pending(self.stream(stream).next))
    }
}

impl SourceCounts {
    /// Adds `more`.
    pub fn add(&mut self, more: &Self) {
        self.received += more.received;
        self.stored += more.stored;
        self.rejected += more.rejected;
        self.redelivered += more.redelivered;
        self.skipped += more.skipped;
        self.unprotected += more.unprotected;
        self.readings += more.readings;
    }
}

impl StreamBooks {
    /// How many records were appended in this epoch.
    #[must_use]
    pub fn appended(&self) -> u64 {
        self.next.0 - self.first().0
    }

    /// The first number of this epoch.
    #[must_use]
    pub fn first(&self) -> Seq {
        Seq(self.base + 1)
    }

    /// A number as it leaves the house.
    #[must_use]
    pub fn outside(&self, seq: Seq) -> Seq {
        Seq(seq.0.saturating_sub(self.base))
    }
}

impl Ledger {
    /// A ledger of a sink that has nothing of the stream yet.
    #[must_use]
    pub fn new() -> Self {
        Self::starting_at(Seq::FIRST)
    }

    /// A ledger of a sink that has nothing yet of a stream whose first number is `first`.
    #[must_use]
    pub fn starting_at(first: Seq) -> Self {
        let before = (first > Seq::FIRST).then(|| SeqRange { first: Seq::FIRST, last: Seq(first.0 - 1) });
        Self {
            cursor: first,
            delivered: 0,
            dead_lettered: 0,
            shed: 0,
            ahead: Vec::new(),
            pins: VecDeque::new(),
            missed: before.into_iter().collect(),
        }
    }

    /// How many records are still to be delivered, if `next` is the number of the next record of the stream.
    #[must_use]
    pub fn pending(&self, next: Seq) -> u64 {
        let open = next.0.saturating_sub(self.cursor.0);
        let settled_ahead: u64 =
            self.ahead.iter().chain(self.pinned_gaps()).map(|gap| gap.range.count()).sum();
        // Books that are off must show, not stop the agent.
        open.saturating_sub(settled_ahead)
    }

    /// The first number that no pin covers.
    #[must_use]
    pub fn unpinned(&self) -> Seq {
        self.pins.back().map_or(self.cursor, |pin| pin.last.next())
    }

    fn pinned_gaps(&self) -> impl Iterator<Item = &Gap> {
        self.pins.iter().flat_map(|pin| &pin.gaps)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}
