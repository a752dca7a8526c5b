//! The receiver's folder: what is on disk, and in which order it gets there.
//!
//! ```text
//! DIR/<agent>/<stream>.ndjson   one record a line, exactly as sent
//! DIR/<agent>/gaps.ndjson       one run of missing numbers a line, with its reason
//! DIR/@receive/journal          new batches since the last checkpoint, as they arrived
//! DIR/@receive/state.json       the books at the last checkpoint
//! DIR/@receive/lock             held by the one process that writes here
//! ```
//!
//! A batch is (1) appended to the journal and synced, (2) written to the NDJSON files, (3) answered. So what is answered
//! is durable for the price of one `fdatasync` of a few compressed KiB, and the files need none: after a crash each is cut
//! back to where the journal's first entry for it began, and the journal is played again. Every batch is in whole, or not at all.
//! A checkpoint (now and then, at the start, at a clean stop) syncs the files, then replaces `state.json` by a rename, then
//! starts the journal anew; a crash between any two of these leaves either the old state with the old journal or the new state
//! with a journal of an older generation, which is not read.
//!
//! Deriving `next` from the last line of each file would save the journal, but lines carry no epoch, a batch's gaps live
//! in another file, and after a power cut a torn append may have a hole before a good last line. Recording file lengths
//! in `state.json` with each batch would cost two syncs more.
//!
//! An NDJSON file may be moved away at any time (it is opened for each batch); best after a clean stop.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::Error;
use super::batch::{Batch, Encoding};
use super::books::{Books, Missing, News, StreamBooks, UNEXPLAINED};
use super::journal::{Entry, Journal};

/// `@` cannot occur in an agent's id, so no agent's folder collides with this one.
const OWN_FOLDER: &str = "@receive";

/// A journal longer than this is followed by a checkpoint: some hundred batches, played again in well under a second.
const CHECKPOINT_BYTES: u64 = 8 << 20;

/// The version of `state.json`.
const STATE_FORMAT: u32 = 1;

/// A folder that this process alone writes.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Held for its lock.
    _lock: File,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Open(Archive),
    /// The disk failed in the middle of something: what is in memory may not be what is on disk. The next batch
    /// begins with a recovery, as a start does.
    Failed,
    /// Stopped cleanly.
    Closed,
}

impl Folder {
    /// Opens `root`, making it if needed, and recovers what a crash may have left.
    ///
    /// # Errors
    /// If another process has it, or the disk does not let us.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let own = root.join(OWN_FOLDER);
        std::fs::create_dir_all(&own).map_err(at("make the folder", &own))?;
        let lock = lock(&own.join("lock"), root)?;
        let archive = Archive::recover(root)?;
        Ok(Self { root: root.to_owned(), _lock: lock, phase: Phase::Open(archive) })
    }

    /// Takes what is new in `batch`, which arrived as `raw`; returns the number wanted next. Then all of it is durable.
    ///
    /// # Errors
    /// If the disk does not let us; the batch is then to be sent again.
    pub(super) fn take(&mut self, batch: &Batch, raw: &Bytes, encoding: Encoding) -> Result<u64, Error> {
        let taken = self.archive().and_then(|archive| archive.take(batch, raw, encoding));
        self.fail_on_error(taken)
    }

    /// The books.
    ///
    /// # Errors
    /// If the disk failed and does so still.
    pub(super) fn books(&mut self) -> Result<Vec<StreamBooks>, Error> {
        let books = self.archive().map(|archive| archive.books.streams().cloned().collect());
        self.fail_on_error(books)
    }

    /// Makes everything durable in its final place; nothing is taken any more.
    ///
    /// # Errors
    /// If the disk does not let us. Nothing is lost: the next start recovers.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Open(mut archive) => archive.checkpoint(),
            Phase::Failed | Phase::Closed => Ok(()),
        }
    }

    /// What is in memory may not be what is on disk: recover before the next batch.
    pub(super) fn distrust(&mut self) {
        if matches!(self.phase, Phase::Open(_)) {
            self.phase = Phase::Failed;
        }
    }

    fn archive(&mut self) -> Result<&mut Archive, Error> {
        if matches!(self.phase, Phase::Failed) {
            self.phase = Phase::Open(Archive::recover(&self.root)?);
            info!(folder = %self.root.display(), "the data folder can be written again");
        }
        match &mut self.phase {
            Phase::Open(archive) => Ok(archive),
            Phase::Failed | Phase::Closed => Err(Error::Closed),
        }
    }

    fn fail_on_error<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let (Err(error), Phase::Open(_)) = (&result, &self.phase) {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            warn!(%error, cause, "the data folder cannot be written; batches are answered 503 until it can");
            self.phase = Phase::Failed;
        }
        result
    }
}

/// What is open while the disk is well.
#[derive(Debug)]
struct Archive {
    root: PathBuf,
    books: Books,
    journal: Journal,
    /// Files written since the last checkpoint.
    unsynced: BTreeSet<PathBuf>,
}

impl Archive {
    fn recover(root: &Path) -> Result<Self, Error> {
        let own = root.join(OWN_FOLDER);
        let state = State::read(&own.join("state.json"))?;
        let path = own.join("journal");
        let journal = Journal::open(&path, state.generation).map_err(at("open the journal", &path))?;
        let books = Books::from_streams(state.streams);
        let mut archive = Self { root: root.to_owned(), books, journal, unsynced: BTreeSet::new() };
        archive.replay(&path)?;
        archive.checkpoint()?;
        Ok(archive)
    }

    fn replay(&mut self, path: &Path) -> Result<(), Error> {
        let mut replayed = 0_u64;
        // The closure borrows the rest of `self`.
        let Self { root, books, journal, unsynced } = self;
        let mut each = |entry: Entry| {
            let batch = Batch::read(&entry.body, entry.encoding).map_err(io::Error::other)?;
            let news = books.news(&batch);
            let files = Files::of(root, &batch);
            files.cut(&entry)?;
            files.append(&batch, &news, unsynced)?;
            books.enter(&batch, &news);
            replayed += 1;
            Ok(())
        };
        journal.replay(&mut each).map_err(at("recover from the journal", path))?;
        if replayed > 0 {
            info!(batches = replayed, folder = %root.display(), "recovered batches after an unclean stop");
        }
        Ok(())
    }

    fn take(&mut self, batch: &Batch, raw: &Bytes, encoding: Encoding) -> Result<u64, Error> {
        let news = self.books.news(batch);
        if news.is_empty() {
            // All of it is durable already.
            self.books.enter(batch, &news);
            return Ok(news.next);
        }
        self.tell(batch, &news);
        let files = Files::of(&self.root, batch);
        let entry = Entry {
            records_start: files.records_bytes()?,
            gaps_start: files.gaps_bytes()?,
            encoding,
            body: raw.clone(),
        };
        self.journal.append(&entry).map_err(at("append to the journal in", &self.root))?;
        files
            .append(batch, &news, &mut self.unsynced)
            .map_err(at("append to the files in", &files.folder))?;
        self.books.enter(batch, &news);
        if self.journal.length() >= CHECKPOINT_BYTES {
            self.checkpoint()?;
        }
        Ok(news.next)
    }

    fn tell(&self, batch: &Batch, news: &News<'_>) {
        let Batch { agent, stream, epoch, .. } = batch;
        for &Missing { first, last, reason } in &news.missing {
            if reason == UNEXPLAINED {
                warn!(agent, stream, %epoch, first, last, "a hole that nobody explains");
            } else {
                info!(agent, stream, %epoch, first, last, reason, "a gap");
            }
        }
        if batch.previous.is_some() && self.books.next(agent, *epoch, stream).is_none() {
            let missing = self.books.left_behind(batch).unwrap_or(0);
            info!(agent, stream, %epoch, missing, "a new epoch; missing is what never came of the one before");
        }
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        let mut folders = BTreeSet::new();
        for path in &self.unsynced {
            match File::open(path).and_then(|file| file.sync_data()) {
                Ok(()) => folders.extend(path.parent().map(Path::to_owned)),
                // Somebody moved it away, with what was in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at("sync", path)(error)),
            }
        }
        folders.insert(self.root.clone());
        for folder in &folders {
            sync_folder(folder)?;
        }
        self.unsynced.clear();

        let own = self.root.join(OWN_FOLDER);
        let generation = self.journal.generation() + 1;
        State { format: STATE_FORMAT, generation, streams: self.books.streams().cloned().collect() }
            .write(&own)?;
        self.journal.restart(generation, 2 * CHECKPOINT_BYTES).map_err(at("start the journal anew in", &own))
    }
}

/// The two files that a batch is appended to.
struct Files {
    folder: PathBuf,
    records: PathBuf,
    gaps: PathBuf,
}

impl Files {
    fn of(root: &Path, batch: &Batch) -> Self {
        let folder = root.join(&batch.agent);
        let records = folder.join(format!("{}.ndjson", batch.stream));
        let gaps = folder.join("gaps.ndjson");
        Self { folder, records, gaps }
    }

    fn records_bytes(&self) -> Result<u64, Error> {
        file_bytes(&self.records)
    }

    fn gaps_bytes(&self) -> Result<u64, Error> {
        file_bytes(&self.gaps)
    }

    /// Cuts off what was written of `entry`'s batch, and of those after it. A file that is shorter was moved away.
    fn cut(&self, entry: &Entry) -> io::Result<()> {
        for (path, start) in [(&self.records, entry.records_start), (&self.gaps, entry.gaps_start)] {
            match OpenOptions::new().write(true).open(path) {
                Ok(file) if file.metadata()?.len() > start => file.set_len(start)?,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn append(&self, batch: &Batch, news: &News<'_>, unsynced: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut lines = Vec::new();
        news.write_records(batch, &mut lines);
        append(&self.records, &lines, unsynced)?;
        lines.clear();
        news.write_missing(batch, &mut lines);
        append(&self.gaps, &lines, unsynced)
    }
}

fn append(path: &Path, lines: &[u8], unsynced: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    if !unsynced.contains(path) {
        unsynced.insert(path.to_owned());
    }
    OpenOptions::new().append(true).create(true).open(path)?.write_all(lines)
}

/// What `state.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    format: u32,
    generation: u64,
    streams: Vec<StreamBooks>,
}

impl State {
    fn read(path: &Path) -> Result<Self, Error> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { format: STATE_FORMAT, generation: 1, streams: Vec::new() });
            }
            Err(error) => return Err(at("read", path)(error)),
        };
        let state: Self = serde_json::from_slice(&bytes)
            .map_err(|source| Error::StateDamaged { path: path.to_owned(), source })?;
        if state.format != STATE_FORMAT {
            return Err(Error::StateFormat { path: path.to_owned(), format: state.format });
        }
        Ok(state)
    }

    /// Replaces `state.json` in `folder`; it is the old one or the new one at any moment.
    fn write(&self, folder: &Path) -> Result<(), Error> {
        let (temporary, path) = (folder.join("state.json.tmp"), folder.join("state.json"));
        let written = serde_json::to_vec_pretty(self).map_err(io::Error::from).and_then(|bytes| {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(at("write", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(at("replace", &path))?;
        sync_folder(folder)
    }
}

/// Takes the lock on `root`, for as long as the file is open.
fn lock(path: &Path, root: &Path) -> Result<File, Error> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(at("open the lock file", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { folder: root.to_owned() }),
        Err(error) => Err(at("lock", path)(error.into())),
    }
}

/// Makes the names in `folder` durable.
fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(at("sync the folder", folder))
}

fn file_bytes(path: &Path) -> Result<u64, Error> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(at("look at", path)(error)),
    }
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { doing, path, source }
}
