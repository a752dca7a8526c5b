//! Saving what can be read of a damaged file into the store that took its place, slowly, while everything else goes on.
//!
//! ```text
//!   pass over the file ──► index: the lowest numbers that somebody wants ──► slices, in order ──► commits
//!        ▲                                                                       │
//!        └─────────── as long as the index did not hold them all ◄───────────────┘
//! ```
//!
//! Where nobody remembers what the file was, a pass before all others finds that out.
//!
//! Promised: a record that a sink has (as far as the old books can be read) does not go to it again; what no sink wants any more is
//! left; of several copies of a number one is taken. How far it has come is written in the transaction that stores the slice, so
//! a crash repeats nothing. Memory is bounded by the index, whatever the file's size; a file with more chunks is read more
//! than once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tracing::warn;

use super::chunk::{Chunk, Header};
use super::codec;
use super::damage::{Before, Surveying};
use super::ledger::DamagedFile;
use super::scan::{self, Pass, Scan};
use crate::reading::{Reading, ReplayOf, Timestamp, WindowRecord};
use crate::stream::{Epoch, Seq, SeqRange, Stream};

/// Chunks in the index: some 4 MB.
const INDEX_CHUNKS: usize = 32_768;
/// A slice holds no more than this, unless a single chunk does: one more chunk in a commit.
const SLICE_BYTES: usize = 96 << 10;
/// Results of windows first: they are few, and cannot be computed anew.
const ORDER: [Stream; 3] = [Stream::Windows, Stream::Alerts, Stream::Readings];

/// Reads one damaged file.
#[derive(Debug)]
pub(super) struct Salvager {
    path: PathBuf,
    name: String,
    before: Before,
    /// What some sink still wants, by stream.
    wanted: [Vec<SeqRange>; 3],
    done: [Seq; 3],
    /// What was wanted before these numbers, and not saved, is counted as lost.
    counted: [Seq; 3],
    /// Lost since this began.
    lost: [u64; 3],
    /// As of the last step.
    saved: [u64; 3],
    phase: Phase,
    index: BTreeMap<Place, Found>,
    /// From here on the index does not hold all.
    beyond: Option<Place>,
}

#[derive(Debug)]
enum Phase {
    /// Nobody remembers what the file was.
    Unknown,
    Survey(Box<Surveying>),
    Start,
    Search(Scan),
    Read(std::fs::File),
}

/// Where a chunk belongs: the order of its stream, and its first number.
type Place = (usize, Seq);

#[derive(Clone, Copy, Debug)]
struct Found {
    offset: u64,
    bytes: usize,
    last: Seq,
    newest: Timestamp,
}

/// What a step gives.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing to store yet.
    Searching,
    /// It is known again what the file was.
    Surveyed(Box<Before>),
    /// Something to store.
    Slice(Slice),
}

/// What one commit takes over from a damaged file.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// The file.
    pub(super) name: String,
    /// How far it will have come.
    pub(super) done: [Seq; 3],
    /// Readings, each behind the number it had.
    pub(super) readings: Vec<(Seq, Reading)>,
    /// Results of windows, likewise.
    pub(super) windows: Vec<(Seq, WindowRecord)>,
    /// What was wanted and is not in the file, by stream: of what lies before `done`, less what earlier slices said.
    pub(super) lost: [u64; 3],
    /// All that is lost of the file, once it was read to its end.
    pub(super) end: Option<[u64; 3]>,
}

impl Salvager {
    /// Goes on with `file`, which was this, as far as is remembered.
    pub(super) fn new(dir: &std::path::Path, file: &DamagedFile, before: Option<Before>) -> Self {
        let phase = if before.is_some() { Phase::Start } else { Phase::Unknown };
        let before = before.unwrap_or_else(Before::unknown);
        Self {
            path: dir.join(&file.name),
            name: file.name.clone(),
            wanted: Stream::ALL.map(|stream| before.wanted(stream)),
            before,
            done: file.done,
            counted: file.done,
            lost: [0; 3],
            saved: file.saved,
            phase,
            index: BTreeMap::new(),
            beyond: None,
        }
    }

    /// The name of the file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Records saved of it, by stream.
    pub(super) fn saved(&self) -> [u64; 3] {
        self.saved
    }

    /// Whether the books of what it was could be read.
    pub(super) fn knows_books(&self) -> bool {
        self.before.books.is_some()
    }

    /// Does a little: some milliseconds of reading, or one slice. `saved` tells what was saved of this file so far. Blocks.
    pub(super) fn step(&mut self, saved: [u64; 3]) -> Step {
        self.saved = saved;
        match std::mem::replace(&mut self.phase, Phase::Start) {
            Phase::Unknown => match Surveying::open(&self.path) {
                Ok(surveying) => {
                    self.phase = Phase::Survey(Box::new(surveying));
                    Step::Searching
                }
                // Whoever looks for its records will say so.
                Err(_) => self.surveyed(Before::unknown()),
            },
            Phase::Survey(mut surveying) => match surveying.step() {
                Pass::GoesOn => {
                    self.phase = Phase::Survey(surveying);
                    Step::Searching
                }
                Pass::Over => self.surveyed(surveying.into_survey().before),
            },
            Phase::Start => match Scan::open(&self.path) {
                Ok(scan) if self.wanted.iter().any(|ranges| !ranges.is_empty()) => {
                    self.phase = Phase::Search(scan);
                    Step::Searching
                }
                Ok(_) => Step::Slice(self.end()),
                Err(error) => {
                    warn!(file = %self.path.display(), %error, "the damaged file cannot be opened any more; what it held is lost");
                    Step::Slice(self.end())
                }
            },
            Phase::Search(mut scan) => {
                if scan.step(|offset, chunk| self.visit(offset, &chunk.header, chunk.bytes())) == Pass::GoesOn
                {
                    self.phase = Phase::Search(scan);
                } else {
                    self.phase = Phase::Read(scan.into_file());
                }
                Step::Searching
            }
            Phase::Read(file) => {
                let slice = self.slice(&file);
                if !self.index.is_empty() {
                    self.phase = Phase::Read(file);
                } else if slice.is_none() && self.beyond.is_none() {
                    return Step::Slice(self.end());
                } else if let Some((order, first)) = self.beyond.take() {
                    // Another pass, from what the index did not hold on.
                    for (stream, nth) in ORDER.into_iter().zip(0..) {
                        let reached = match nth {
                            nth if nth < order => self.before.head[stream.index()],
                            nth if nth == order => first,
                            _ => continue,
                        };
                        self.done[stream.index()] = self.done[stream.index()].max(reached);
                    }
                } else {
                    // The next step finds nothing more, and ends.
                    self.phase = Phase::Read(file);
                }
                slice.map_or(Step::Searching, Step::Slice)
            }
        }
    }

    fn surveyed(&mut self, before: Before) -> Step {
        self.wanted = Stream::ALL.map(|stream| before.wanted(stream));
        self.before = before.clone();
        Step::Surveyed(Box::new(before))
    }

    /// Enters a chunk into the index, if somebody wants some of it.
    fn visit(&mut self, offset: u64, header: &Header, bytes: usize) {
        let Some(range) = header.range() else { return };
        let stream = header.stream.index();
        if range.first < self.done[stream] || !self.is_wanted(header.stream, range) {
            return;
        }
        let order = ORDER.iter().position(|ordered| *ordered == header.stream).unwrap_or(ORDER.len());
        let place = (order, range.first);
        if self.beyond.is_some_and(|beyond| place >= beyond) {
            return;
        }
        let found = Found { offset, bytes, last: range.last, newest: header.newest_received };
        // Two that differ: a commit that never became durable, and the one that got its numbers later.
        let known = self.index.entry(place).or_insert(found);
        if known.newest < found.newest {
            *known = found;
        }
        if self.index.len() > INDEX_CHUNKS {
            self.beyond = self.index.pop_last().map(|(place, _)| place);
        }
    }

    fn is_wanted(&self, stream: Stream, range: SeqRange) -> bool {
        let ranges = &self.wanted[stream.index()];
        let at = ranges.partition_point(|wanted| wanted.last < range.first);
        ranges.get(at).is_some_and(|wanted| wanted.first <= range.last)
    }

    /// The next chunks of the index, whole ones; `None` if it is empty.
    fn slice(&mut self, file: &std::fs::File) -> Option<Slice> {
        let mut slice = Slice { name: self.name.clone(), ..Slice::default() };
        let (mut bytes, mut any) = (0, false);
        while let Some(entry) = self.index.first_entry() {
            if any && bytes + entry.get().bytes > SLICE_BYTES {
                break;
            }
            let ((order, first), found) = entry.remove_entry();
            let stream = ORDER[order];
            any = true;
            bytes += found.bytes;
            // What overlaps with what came before is of a commit that never was.
            if first < self.done[stream.index()] {
                continue;
            }
            let chunk = scan::chunk_at(file, found.offset, found.bytes);
            if self.take(stream, &chunk, &mut slice) {
                self.done[stream.index()] = found.last.next();
            }
        }
        slice.done = self.done;
        slice.lost = self.count_lost([slice.readings.len() as u64, slice.windows.len() as u64, 0]);
        any.then_some(slice)
    }

    /// Takes of a chunk what is wanted; false if it cannot be read.
    fn take(&self, stream: Stream, bytes: &[u8], slice: &mut Slice) -> bool {
        let Ok(chunk) = Chunk::parse(bytes) else { return false };
        let Ok(body) = chunk.body() else { return false };
        let first = chunk.header.first;
        let one = |seq: Seq| self.is_wanted(stream, SeqRange { first: seq, last: seq });
        match stream {
            Stream::Readings => {
                let Ok(readings) = codec::decode_readings(&body) else { return false };
                for (mut reading, seq) in readings.into_iter().zip((first.0..).map(Seq)) {
                    if one(seq) {
                        let remarks = reading.remarks.get_or_insert_default();
                        remarks.replayed = true;
                        remarks.replay_of = remarks.replay_of.take().or_else(|| self.replay_of(stream, seq));
                        slice.readings.push((seq, reading));
                    }
                }
            }
            Stream::Windows => {
                let Ok((_, _, records)) = codec::decode_windows(&body) else { return false };
                for (mut record, seq) in records.into_iter().zip((first.0..).map(Seq)) {
                    if one(seq) {
                        record.replay_of =
                            record.replay_of.take().or_else(|| self.replay_of(stream, seq).map(Box::new));
                        slice.windows.push((seq, record));
                    }
                }
            }
            // Nothing writes them yet.
            Stream::Alerts => {}
        }
        true
    }

    /// The number that the receivers knew, if the epoch is known.
    fn replay_of(&self, stream: Stream, seq: Seq) -> Option<ReplayOf> {
        let books = self.before.books.as_ref()?;
        let outside = books.stream(stream).outside(seq);
        let epoch: Epoch = books.epoch;
        (outside >= Seq::FIRST).then_some(ReplayOf { epoch, seq: outside })
    }

    /// What was wanted of that which lies before `done` and was not counted yet, but for the `saved`.
    fn count_lost(&mut self, saved: [u64; 3]) -> [u64; 3] {
        // Without its books nobody knows what it held.
        if self.before.books.is_none() {
            return [0; 3];
        }
        let mut lost = [0; 3];
        for (stream, saved) in Stream::ALL.into_iter().zip(saved) {
            let nth = stream.index();
            let wanted = self.before.wanted_between(stream, self.counted[nth], self.done[nth]);
            lost[nth] = wanted.saturating_sub(saved);
            self.lost[nth] += lost[nth];
        }
        self.counted = self.done;
        lost
    }

    fn end(&mut self) -> Slice {
        for stream in Stream::ALL {
            let done = &mut self.done[stream.index()];
            *done = (*done).max(self.before.head[stream.index()]);
        }
        let lost = self.count_lost([0; 3]);
        // Of what was passed over before a restart only the books know; of late answers that came since, only we.
        let all = Stream::ALL.map(|stream| {
            let nth = stream.index();
            let wanted: u64 = self.wanted[nth].iter().map(|range| range.count()).sum();
            let is_known = self.before.books.is_some();
            self.lost[nth].max(if is_known { wanted.saturating_sub(self.saved[nth]) } else { 0 })
        });
        Slice { name: self.name.clone(), done: self.done, lost, end: Some(all), ..Slice::default() }
    }
}
