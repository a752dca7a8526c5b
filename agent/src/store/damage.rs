//! A store that cannot be used any more: it is moved aside, and a new one takes its place at once.
//!
//! ```text
//!   store.redb ── rename ──► store.redb.damaged-<time> ── survey ──► store.redb.new ── rename ──► store.redb
//!                                    │                                                               ▲
//!                                    └── salvage, in the background (`salvage.rs`) ──────────────────┘
//!                                    then store.redb.salvaged-<time>, and in the end removed
//! ```
//!
//! A crash after the first rename leaves a damaged file and no store: the next start goes on from there. The new store is whole
//! before it gets its name: it holds the books of a new epoch, what the peers sent last, and which file is still to be read.
//!
//! Numbers inside go on where they were, so that rooms which are at work keep their positions; what leaves the house begins at 1.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use redb::WriteTransaction;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::chunk::{self, Chunk};
use super::file::{self, Error, File, STATE};
use super::format;
use super::ledger::{Books, DamageBooks, DamagedFile, DeadLetterBooks, Identity, Ledger, Presence, Previous};
use super::log::{State, WindowsPresence};
use super::note::Note;
use super::recent::{Change, Recent};
use super::scan::{Pass, Scan};
use super::settings::Settings;
use super::work::Work;
use crate::causes::chain;
use crate::reading::Timestamp;
use crate::stream::{Epoch, GapReason, Seq, SeqRange, Stream};

/// Begins the name of a damaged file that is still to be read, or that nobody could make use of.
const DAMAGED: &str = "store.redb.damaged-";
/// Begins the name of a damaged file of which everything readable was saved.
const SALVAGED: &str = "store.redb.salvaged-";
/// Files that were read are kept for people who want to look: so many...
const KEPT_FILES: usize = 2;
/// ...and all together no larger than this part of `max_size`.
const KEPT_PART: u64 = 4;
/// So many damaged files wait to be read at most; a disk that damages one after the other is past help.
const WAITING_FILES: usize = 4;
/// Messages that are remembered from the notes of a damaged file: the last ones are those that come again.
const SURVEYED_MESSAGES: usize = 1 << 18;
/// How often the progress of reading a damaged file is told.
const PROGRESS_BYTES: u64 = 64 << 20;
/// The row of `state` with the books that a damaged file had ends with the file's name.
const BOOKS_ROW: &str = "damaged/";

impl Error {
    /// True if what is on the disk makes no sense, and opening it again will not help. What the disk does not return at all counts,
    /// too: a sector that cannot be read today cannot be read tomorrow. What a person or time can mend does not.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Chunk { source, .. } => !matches!(source, chunk::Error::Newer { .. }),
            Self::Io(error) => match &**error {
                redb::Error::Corrupted(_)
                | redb::Error::UpgradeRequired(_)
                | redb::Error::RepairAborted
                | redb::Error::TableDoesNotExist(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::TableIsNotMultimap(_)
                | redb::Error::TypeDefinitionChanged { .. } => true,
                redb::Error::Io(error) => is_unreadable(error),
                _ => false,
            },
            Self::InUse { .. }
            | Self::NoStore { .. }
            | Self::Directory { .. }
            | Self::Full
            | Self::Newer { .. } => false,
        }
    }
}

/// EIO is the disk's word for a sector that it cannot return; the other two are redb's for a file that is too short or no database.
fn is_unreadable(error: &io::Error) -> bool {
    let is_bad_sector = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    is_bad_sector || matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
}

/// What a store was when it was damaged, as far as that is known. Kept in the new store until the file is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Before {
    /// The books of its last commit that can be read.
    pub(super) books: Option<Books>,
    /// The number after the last record found, by stream.
    pub(super) head: [Seq; 3],
}

impl Before {
    /// A store with these books, all of which are known.
    pub(super) fn of(books: &Books) -> Self {
        Self { books: Some(books.clone()), head: Stream::ALL.map(|stream| books.stream(stream).next) }
    }

    /// A store of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self { books: None, head: [Seq::FIRST; 3] }
    }

    /// How many records of `stream` from `first` on and before `end` some sink still wanted.
    pub(super) fn wanted_between(&self, stream: Stream, first: Seq, end: Seq) -> u64 {
        let within = |range: SeqRange| range.last.next().min(end).0.saturating_sub(range.first.max(first).0);
        self.wanted(stream).into_iter().map(within).sum()
    }

    /// What of `stream` some sink still wanted; without any sink, all that was held.
    pub(super) fn wanted(&self, stream: Stream) -> Vec<SeqRange> {
        let head = self.head[stream.index()];
        let all = |first: Seq| {
            (first < head).then(|| SeqRange { first, last: Seq(head.0 - 1) }).into_iter().collect()
        };
        let Some(books) = &self.books else { return all(Seq::FIRST) };
        let mut takers = self.ledgers(stream, Some(Presence::Configured)).peekable();
        if takers.peek().is_none() {
            return all(books.stream(stream).oldest);
        }
        united(takers.flat_map(|(_, ledger)| ledger.wanted(head)).collect())
    }

    /// Why `sink` need not get what had the number `seq`; `None` if it still wanted it, or is not known.
    pub(super) fn settled_by(&self, sink: &str, stream: Stream, seq: Seq) -> Option<GapReason> {
        self.books.as_ref()?.sinks.get(sink)?.streams.get(&stream)?.settled_by(seq)
    }

    /// A sink says that it has everything before `next`, in the numbers and the epoch of this store.
    pub(super) fn advance(&mut self, sink: &str, stream: Stream, epoch: Epoch, next: Seq) -> bool {
        let head = self.head[stream.index()];
        let books = self.books.as_mut().filter(|books| books.epoch == epoch);
        let sink = books.and_then(|books| books.sinks.get_mut(sink));
        let ledger = sink.and_then(|sink| sink.streams.get_mut(&stream));
        ledger.map(|ledger| ledger.advance(next, head)).is_some()
    }

    fn ledgers(
        &self,
        stream: Stream,
        presence: Option<Presence>,
    ) -> impl Iterator<Item = (&String, &Ledger)> {
        let sinks = self.books.iter().flat_map(|books| &books.sinks);
        sinks
            .filter(move |(_, sink)| presence.is_none_or(|presence| sink.presence == presence))
            .filter_map(move |(name, sink)| Some((name, sink.streams.get(&stream)?)))
    }

    /// The row of `state` that keeps this.
    pub(super) fn row(&self, name: &str) -> (String, Vec<u8>) {
        (row_key(name), postcard::to_stdvec(self).expect("a Vec takes any bytes"))
    }

    /// The books that a new store begins with; their epoch is still to be given.
    fn successor(&self, name: String, wall: Timestamp) -> Books {
        let mut books = Books::default();
        let before = self.books.clone().unwrap_or_default();
        for stream in Stream::ALL {
            let head = self.head[stream.index()].max(before.stream(stream).next);
            let of_stream = &mut books.streams[stream.index()];
            (of_stream.base, of_stream.next, of_stream.oldest) = (head.0 - 1, head, head);
        }
        if self.books.is_some() {
            let next = Stream::ALL.map(|stream| before.stream(stream).outside(self.head[stream.index()]));
            books.previous = Some(Previous { epoch: before.epoch, next });
        }
        books.commit = before.commit;
        books.sources = before.sources;
        books.sinks = before.sinks;
        for sink in books.sinks.values_mut() {
            for (stream, ledger) in &mut sink.streams {
                *ledger = Ledger::starting_at(books.streams[stream.index()].next);
            }
        }
        books.checkpoint.position = books.stream(Stream::Readings).next;
        books.checkpoint.windows_next = books.stream(Stream::Windows).next;
        books.damage = before.damage;
        books.damage.moved_aside += 1;
        books.damage.last = Some(wall);
        books.damage.lost_letters += before.dead_letters.kept;
        books.dead_letters = DeadLetterBooks { kept: 0, kept_bytes: 0, ..before.dead_letters };
        // What was stamped by a clock that was not right may still be corrected.
        books.boots = before.boots;
        books.nodes = before.nodes;
        books.damage.files.push(DamagedFile { name, ..DamagedFile::default() });
        books
    }
}

/// Every number of `ranges` once, in order.
pub(super) fn united(mut ranges: Vec<SeqRange>) -> Vec<SeqRange> {
    ranges.sort_by_cached_key(|range| range.first.0);
    ranges.dedup_by(|later, earlier| {
        let touches = later.first <= earlier.last.next();
        if touches {
            earlier.last = earlier.last.max(later.last);
        }
        touches
    });
    ranges
}

/// The key of the row of `state` with what the file `name` was.
pub(super) fn row_key(name: &str) -> String {
    format!("{BOOKS_ROW}{name}")
}

/// What one pass over a damaged file tells of it.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) before: Before,
    /// Chunks found.
    pub(super) chunks: u64,
    /// What the peers sent, by the row that told it and the commit that wrote that row.
    recent: BTreeMap<Seq, (u64, Vec<Change>)>,
    messages: usize,
}

impl Survey {
    /// Reads the file through. `progress` hears how far it has come, from 0 to 1.
    pub(super) fn of(path: &Path, progress: &dyn Fn(f64)) -> io::Result<Self> {
        let mut surveying = Surveying::open(path)?;
        let mut told = 0;
        while surveying.step() == Pass::GoesOn {
            let scan = &surveying.scan;
            if scan.position() >= told + PROGRESS_BYTES {
                told = scan.position();
                progress(share(told, scan.length()));
            }
        }
        Ok(surveying.into_survey())
    }

    fn visit(&mut self, chunk: &Chunk<'_>) {
        self.chunks += 1;
        if let Some(range) = chunk.header.range() {
            let head = &mut self.before.head[chunk.header.stream.index()];
            *head = (*head).max(range.last.next());
        }
        if chunk.note.is_empty() || chunk.header.stream != Stream::Readings {
            return;
        }
        let Ok(Note { books, recent }) = Note::decode(chunk.note) else { return };
        let commit = books.commit;
        let age = |books: &Books| (books.commit, books.stream(Stream::Readings).next);
        if self.before.books.as_ref().is_none_or(|best| age(best) < age(&books)) {
            for stream in Stream::ALL {
                let head = &mut self.before.head[stream.index()];
                *head = (*head).max(books.stream(stream).next);
            }
            self.before.books = Some(books);
        }
        // A row was written again under its key as long as it had no records.
        let known = self.recent.get(&chunk.header.first);
        if !recent.is_empty() && known.is_none_or(|(before, _)| *before < commit) {
            self.messages += messages(&recent);
            if let Some((_, before)) = self.recent.insert(chunk.header.first, (commit, recent)) {
                self.messages -= messages(&before);
            }
            while self.messages > SURVEYED_MESSAGES && self.recent.len() > 1 {
                let Some((_, (_, oldest))) = self.recent.pop_first() else { break };
                self.messages -= messages(&oldest);
            }
        }
    }

    /// What the peers sent last, as far as notes tell.
    fn recent(&self) -> Recent {
        let mut recent = Recent::default();
        for change in self.recent.values().flat_map(|(_, changes)| changes) {
            recent.apply(change);
        }
        recent
    }
}

/// A survey under way.
#[derive(Debug)]
pub(super) struct Surveying {
    survey: Survey,
    scan: Scan,
}

impl Surveying {
    /// Begins with the first byte of the file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let survey = Survey { before: Before::unknown(), chunks: 0, recent: BTreeMap::new(), messages: 0 };
        Ok(Self { survey, scan: Scan::open(path)? })
    }

    /// Looks through a little more.
    pub(super) fn step(&mut self) -> Pass {
        let survey = &mut self.survey;
        self.scan.step(|_, chunk| survey.visit(chunk))
    }

    /// What was found so far.
    pub(super) fn into_survey(self) -> Survey {
        self.survey
    }
}

/// What is known of damaged stores without reading them.
#[derive(Debug)]
pub(super) struct Known {
    /// The one that is given up now.
    pub(super) before: Before,
    /// What the peers sent last.
    pub(super) recent: Recent,
    /// The damaged file that was being read into it.
    pub(super) reading: Option<Before>,
}

fn messages(changes: &[Change]) -> usize {
    changes.iter().map(|change| change.messages.len() + 1).sum()
}

#[expect(clippy::cast_precision_loss, reason = "a progress bar, not a count")]
fn share(done: u64, all: u64) -> f64 {
    done as f64 / all.max(1) as f64
}

/// What opening a store needs to know.
pub(super) struct Opening<'a> {
    pub(super) settings: &'a Settings,
    pub(super) windows: WindowsPresence,
    pub(super) identity: &'a Identity,
    pub(super) now: Instant,
    pub(super) wall: Timestamp,
}

impl Opening<'_> {
    /// Moves the damaged store aside and makes a new one. Nothing of the old one must be open. `known` is what is known of it
    /// without reading; if nothing is, the file is read through.
    ///
    /// # Errors
    /// If the folder cannot be written to. Nothing is lost then: the next attempt goes on.
    pub(super) fn begin_anew(&self, known: Option<Known>, progress: &dyn Fn(f64)) -> Result<(), Error> {
        let dir = &self.settings.data_dir;
        let aside = if dir.join(file::FILE_NAME).exists() {
            move_aside(dir, self.wall)?
        } else {
            left_aside(dir).ok_or_else(|| Error::unreadable("the store"))?
        };
        let path = dir.join(&aside);
        let is_running = known.is_some();
        let mut remember = vec![format::row()];
        let (before, recent, chunks) = match known {
            Some(Known { before, recent, reading }) => {
                let file = before.books.as_ref().and_then(|books| books.damage.files.first());
                remember.extend(reading.zip(file).map(|(reading, file)| reading.row(&file.name)));
                (before, recent, 1)
            }
            None => match Survey::of(&path, progress) {
                Ok(survey) => {
                    let recent = survey.recent();
                    (survey.before, recent, survey.chunks)
                }
                Err(error) => {
                    warn!(file = aside, %error, "the damaged store cannot be read at all");
                    (Before::unknown(), Recent::default(), 0)
                }
            },
        };
        warn!(
            file = %path.display(), chunks, epoch_known = before.books.is_some(),
            "the store is damaged: it is moved aside and a new epoch begins; what can be read is saved in the background"
        );
        remember.push(before.row(&aside));
        let mut books = before.successor(aside, self.wall);
        give_up_oldest(dir, &mut books.damage);
        // The windows go on in memory, and from now on save only what changes.
        books.damage.is_checkpoint_void = is_running && self.windows == WindowsPresence::Configured;
        let epoch = Epoch(uuid::Uuid::new_v4());
        let work = Work { epoch: Some((epoch, self.identity.clone())), remember, ..Work::default() };
        let mut state = State::beginning(books, recent, self.settings.clone(), self.windows);
        file::create(&dir.join(file::FILE_NAME), |file| {
            state.commit(file, &work, self.now, self.wall).map(|_pressure| ())
        })
    }
}

/// Of the damaged files only so many wait. What others held is lost, and counted as such: for that they are read through.
fn give_up_oldest(dir: &Path, damage: &mut DamageBooks) {
    let too_many = damage.files.len().saturating_sub(WAITING_FILES);
    for given_up in damage.files.drain(..too_many) {
        let before = Survey::of(&dir.join(&given_up.name), &|_| {}).map(|survey| survey.before);
        let before = before.ok().filter(|before| before.books.is_some());
        let lost = Stream::ALL.map(|stream| {
            let nth = stream.index();
            before
                .as_ref()
                .map_or(0, |before| before.wanted_between(stream, given_up.done[nth], before.head[nth]))
        });
        for (all, more) in damage.lost.iter_mut().zip(lost) {
            *all += more;
        }
        let [lost_readings, lost_windows, _] = lost;
        error!(
            file = given_up.name,
            lost_readings,
            lost_windows,
            "damaged files are more than can be read: the oldest is given up, and what it held is lost"
        );
    }
}

/// Gives the damaged file a name that says so.
fn move_aside(dir: &Path, wall: Timestamp) -> Result<String, Error> {
    let time: String = wall.to_string().chars().filter(|c| c.is_ascii_alphanumeric()).take(15).collect();
    let names =
        (1..).map(|n| if n == 1 { format!("{DAMAGED}{time}Z") } else { format!("{DAMAGED}{time}Z-{n}") });
    let name = names.into_iter().find(|name| !dir.join(name).exists()).expect("some name is free");
    rename(dir, file::FILE_NAME, &name)?;
    Ok(name)
}

/// The newest damaged file of which nobody knows whether it was read: a crash came between its renaming and a new store.
pub(super) fn left_aside(dir: &Path) -> Option<String> {
    aside(dir, DAMAGED).pop()
}

/// Names in `dir` that begin with `prefix`, the oldest first.
fn aside(dir: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort_unstable();
    names
}

/// The damaged file `name` was read to its end. Losing this step costs nothing. Answers what the file is called now.
pub(super) fn file_away(dir: &Path, name: &str) -> String {
    let Some(time) = name.strip_prefix(DAMAGED) else { return name.to_owned() };
    let salvaged = format!("{SALVAGED}{time}");
    match rename(dir, name, &salvaged) {
        Ok(()) => salvaged,
        Err(error) => {
            warn!(file = name, error = %chain(&error), "the damaged file cannot be renamed");
            name.to_owned()
        }
    }
}

/// Removes what was kept of earlier damage beyond the bounds. `waiting` are the files still to be read.
pub(super) fn tidy(dir: &Path, waiting: &[DamagedFile], max_size_bytes: u64) {
    let waiting: HashSet<&str> = waiting.iter().map(|file| file.name.as_str()).collect();
    for name in aside(dir, DAMAGED).iter().filter(|name| !waiting.contains(name.as_str())) {
        file_away(dir, name);
    }
    let mut kept = 0;
    let mut left = max_size_bytes / KEPT_PART;
    let mut names = aside(dir, DAMAGED);
    names.append(&mut aside(dir, SALVAGED));
    names.sort_unstable_by(|a, b| time_of(b).cmp(time_of(a)));
    for name in names.iter().filter(|name| !waiting.contains(name.as_str())) {
        let path = dir.join(name);
        let bytes = bytes_of(&path);
        if kept < KEPT_FILES && bytes <= left {
            (kept, left) = (kept + 1, left - bytes);
            continue;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => {
                info!(file = %path.display(), bytes, "a damaged file that was read is removed to save space")
            }
            Err(error) => warn!(file = %path.display(), %error, "a damaged file cannot be removed"),
        }
    }
}

/// Removes every damaged file that was read: the disk is full. True if there was any.
pub(super) fn make_room(dir: &Path) -> bool {
    let names = aside(dir, SALVAGED);
    names.iter().filter(|name| std::fs::remove_file(dir.join(name)).is_ok()).count() > 0
}

fn time_of(name: &str) -> &str {
    name.rsplit_once("ed-").map_or(name, |(_, time)| time)
}

/// Bytes that a file takes on the disk: it may be sparse.
fn bytes_of(path: &PathBuf) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |file| file.blocks() * 512)
}

fn rename(dir: &Path, from: &str, to: &str) -> Result<(), Error> {
    let io = |source| Error::Directory { path: dir.join(from), source };
    std::fs::rename(dir.join(from), dir.join(to)).map_err(io)?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

/// What the damaged file `name` was, if this store remembers: one that took the place of another, itself damaged, does not.
pub(super) fn kept_before(file: &File, name: &str) -> Result<Option<Before>, Error> {
    let row = file.read(|transaction| {
        let state = transaction.open_table(STATE)?;
        Ok(state.get(row_key(name).as_str())?.map(|row| row.value().to_vec()))
    })?;
    Ok(row.and_then(|row| postcard::from_bytes(&row).ok()))
}

/// Keeps what late answers say of the damaged file that is being read.
pub(super) fn write_before(
    transaction: &WriteTransaction,
    damage: &DamageBooks,
    before: Option<&Before>,
) -> Result<(), Error> {
    if let (Some(damaged), Some(before)) = (damage.files.first(), before) {
        let (key, row) = before.row(&damaged.name);
        transaction.open_table(STATE)?.insert(key.as_str(), row.as_slice())?;
    }
    Ok(())
}
