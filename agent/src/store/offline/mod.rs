//! What may be done with a store that no agent has open: verify, export, compact, begin a new epoch.
//!
//! In: the data directory. Out: a [`Report`], records as NDJSON, a smaller file, a mark in it. Promised: [`verify()`] and [`export()`] change not
//! one byte of the file (see `overlay.rs`), also where redb has to recover after an unclean stop; memory does not follow the
//! size of the store; a damaged page ends in a finding or an error, never in a panic.

mod compact;
mod export;
mod findings;
mod ledgers;
mod new_epoch;
mod overlay;
mod rows;
mod runs;
mod scan;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use compact::{Compacted, compact};
pub use export::{Edge, Error as ExportError, Exported, Selection, export};
pub use findings::{Finding, Kind};
pub use new_epoch::new_epoch;
pub use scan::Scanned;
pub use verify::{LedgerReport, Report, StreamReport, verify};

use super::chunk;
use super::file::{Error, FILE_NAME, File, Medium, READINGS};
use super::format;
use super::ledger::Books;
use super::note::Note;

/// How far some work has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is being done.
    pub phase: Phase,
    /// How much of `total` is done.
    pub done: u64,
    /// How much there is; a guess where nobody can know.
    pub total: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opening; after an unclean stop the whole file is read. In bytes.
    Opening,
    /// Checking the pages of redb. In bytes.
    Pages,
    /// Reading every chunk. In bytes.
    Chunks,
    /// Looking through the bytes of a file that does not open. In bytes.
    Scanning,
    /// Writing records. In records.
    Records,
    /// Moving pages to the front. There is no saying how far it has come.
    Compacting,
}

impl Phase {
    /// What is being done, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Pages => "checking pages",
            Self::Chunks => "reading chunks",
            Self::Scanning => "looking for chunks",
            Self::Records => "exporting",
            Self::Compacting => "compacting",
        }
    }
}

/// Hears how far the work has come.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Step) + Send + Sync>);

impl Progress {
    /// Calls `hear` now and then, from any thread.
    #[must_use]
    pub fn new(hear: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Nobody listens.
    #[must_use]
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    fn tell(&self, phase: Phase, done: u64, total: u64) {
        (self.0)(Step { phase, done: done.min(total), total });
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// A store that was opened without touching it.
#[derive(Debug)]
struct Looking {
    file: File,
    /// Bytes of the file.
    bytes: u64,
    closed: Closed,
    meter: overlay::Meter,
}

/// How the store was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    Cleanly,
    /// redb had to recover, which for once happened in memory.
    Uncleanly,
}

impl Looking {
    /// Opens the store in `dir` over an [`overlay`].
    fn at(dir: &Path, progress: &Progress) -> Result<Self, Error> {
        let path = dir.join(FILE_NAME);
        let bytes = existing(&path)?;
        if bytes == 0 {
            // redb would make a new database of it.
            return Err(Error::Damaged { what: "the file is empty".to_owned() });
        }
        let meter = overlay::Meter::new(progress.clone());
        meter.begin(Phase::Opening, bytes);
        let was_recovered = Arc::new(AtomicBool::new(false));
        let (heard, medium) = (Arc::clone(&was_recovered), overlay::medium(path.clone(), meter.clone()));
        let file = File::on(medium, move |_| heard.store(true, Ordering::Relaxed));
        let file = file.map_err(|error| match error {
            Error::InUse { .. } => Error::InUse { path },
            Error::Directory { source, .. } => Error::Directory { path, source },
            other => other,
        })?;
        // One that does not even say so is for who looks closer.
        if let Err(error @ Error::Newer { .. }) = format::refuse_newer(&file) {
            return Err(error);
        }
        let closed = if was_recovered.load(Ordering::Relaxed) { Closed::Uncleanly } else { Closed::Cleanly };
        Ok(Self { file, bytes, closed, meter })
    }
}

/// The length of the store's file.
fn existing(path: &Path) -> Result<u64, Error> {
    match std::fs::metadata(path) {
        Ok(file) => Ok(file.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::NoStore { path: path.to_owned() })
        }
        Err(source) => Err(Error::Directory { path: path.to_owned(), source }),
    }
}

/// The newest books that can be read, and whether they are those of the last commit.
fn newest_books(file: &File) -> Result<Option<Books>, Error> {
    file.read(|transaction| {
        for row in transaction.open_table(READINGS)?.range(0_u64..)?.rev() {
            let (_, value) = row?;
            let note = chunk::Chunk::parse(value.value()).ok().map(|chunk| Note::decode(chunk.note));
            if let Some(Ok(note)) = note {
                return Ok(Some(note.books));
            }
        }
        Ok(None)
    })
}
