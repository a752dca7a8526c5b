//! Rooms 4 and 8: what is on disk.
//!
//! In: groups of readings, window results, cursor moves, pins, dead letters. Out: durable transactions, and records
//! read back. Promised: what is reported durable survives any crash; one transaction holds all that was waiting; the
//! books change in the transaction that makes them true. Table names stay in here.

mod ageing;
mod ballast;
pub mod boots;
mod checkpoint;
mod chunk;
mod codec;
mod compaction;
mod cursor;
mod damage;
mod draft;
mod epoch;
mod file;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handle;
pub mod ledger;
pub mod letters;
mod log;
mod lost;
mod missed;
pub mod nodes;
mod note;
pub mod offline;
mod pins;
mod reader;
pub mod recent;
pub mod report;
mod retention;
mod salvage;
mod scan;
pub mod settings;
mod sinks;
pub mod work;
mod writer;

pub use chunk::Error as ChunkError;
pub use codec::Error as CodecError;
pub use file::{Error, Medium, OpenBackend, make_dir};
pub use handle::{Closed, Opened, Published, Store};
pub use ledger::Books;
pub use log::WindowsPresence;
pub use reader::{Piece, Reader};
pub use report::Report;
pub use settings::Settings;
pub use writer::Writer;

use crate::reading::{Reading, WindowRecord};
use crate::stream::{Seq, SeqRange};

/// Readings as stored, in sequence.
#[derive(Clone, Debug)]
pub struct Readings {
    /// The number of the first.
    pub first: Seq,
    /// The readings, numbered from `first` on.
    pub readings: std::sync::Arc<[Reading]>,
}

/// What the windows room asks the store to keep, all of it in one transaction.
#[derive(Clone, Debug, Default)]
pub struct WindowsUpdate {
    /// Readings before this have been seen when `records` were emitted.
    pub position: Seq,
    /// Results to append to the stream `windows`.
    pub records: Vec<WindowRecord>,
    /// What a replay of the readings cannot know by itself (idle emissions), kept with `records`; opaque here.
    pub note: Vec<u8>,
    /// State to save, now and then.
    pub checkpoint: Option<Checkpoint>,
}

/// The windows' state, as rows that changed since the checkpoint before.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Whether rows not named here stay.
    pub base: CheckpointBase,
    /// Rows to write: key and state, opaque here.
    pub changed: Vec<(Vec<u8>, Vec<u8>)>,
    /// Rows to remove.
    pub removed: Vec<Vec<u8>>,
}

/// Rows of a checkpoint whose key begins with this stay when no window is configured any more.
pub const LASTING_ROWS: u8 = 4;

/// What a checkpoint builds upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckpointBase {
    /// The rows of the one before.
    #[default]
    Previous,
    /// Nothing: rows of the one before are removed first.
    Empty,
}

/// What the windows room needs to begin where it was: the checkpoint, and what was emitted since.
#[derive(Clone, Debug, Default)]
pub struct WindowsSnapshot {
    /// Readings before this are in `rows`; the ones from here on are to be replayed.
    pub position: Seq,
    /// The checkpoint's rows.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// What was appended to the stream `windows` since, in order: the same emissions come out of the replay and must not be
    /// appended again.
    pub emitted: Vec<Emitted>,
}

/// One update's results, read back.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// [`WindowsUpdate::position`].
    pub position: Seq,
    /// [`WindowsUpdate::records`].
    pub records: Vec<WindowRecord>,
    /// [`WindowsUpdate::note`].
    pub note: Vec<u8>,
}

impl Default for Seq {
    fn default() -> Self {
        Self::FIRST
    }
}

/// A dead letter, as listed.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DeadLetter {
    /// Its id; counts up.
    pub id: u64,
    /// When it was refused (microseconds since the epoch).
    pub time: crate::reading::Timestamp,
    /// Where it comes from.
    pub origin: DeadLetterOrigin,
    /// Why it was refused.
    pub reason: String,
    /// The record's number in this store, where it goes on from epoch to epoch; `None` for a payload.
    pub record: Option<Seq>,
    /// The payload or record, perhaps cut.
    pub payload: Vec<u8>,
    /// The payload's full length in bytes.
    pub payload_bytes: u64,
    /// xxh3-64 of the full payload.
    pub payload_hash: u64,
}

/// Where a dead letter comes from.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum DeadLetterOrigin {
    /// A payload that could not be decoded.
    Source {
        /// The source.
        source: String,
        /// The topic.
        topic: String,
    },
    /// A record that a sink refused.
    Sink {
        /// The sink.
        sink: String,
        /// The stream.
        stream: crate::stream::Stream,
        /// The epoch of the record's number.
        epoch: crate::stream::Epoch,
        /// The record's number, as the sink counts.
        range: SeqRange,
        /// The status of the answer.
        status: u16,
    },
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use codec::tests as codec_tests;
#[cfg(test)]
pub(crate) use tests::disk::Disk as FailingDisk;
