//! What one commit is about to make true: the books after it, and the rows that hold it.

use super::chunk::{self, Packed};
use super::ledger::Books;
use super::recent::Change;
use super::retention;
use super::work::{Group, LedgerChange, LedgerEvent, Letter};
use super::{DeadLetter, WindowsUpdate, codec};
use crate::reading::{Reading, Timestamp};
use crate::stream::{Seq, Stream};

/// No more readings than this go into one chunk, however small they are.
const MAX_CHUNK_READINGS: usize = 1 << 16;
/// Window results that go into one chunk. One takes 60 to 100 bytes, so this stays below the size at which redb wastes least.
const CHUNK_WINDOWS: usize = 512;

/// A row on its way into the table of its stream.
pub(super) struct Row {
    pub(super) stream: Stream,
    pub(super) first: Seq,
    pub(super) count: u32,
    pub(super) newest: Timestamp,
    pub(super) packed: Packed,
}

/// What one commit is about to make true.
pub(super) struct Draft {
    pub(super) books: Books,
    /// The time of the commit: results count as received then.
    wall: Timestamp,
    pub(super) rows: Vec<Row>,
    pub(super) recent: Vec<Change>,
    pub(super) letters: Vec<DeadLetter>,
    /// Bytes on disk of the readings.
    pub(super) readings_bytes: u64,
}

impl Draft {
    /// The commit after the one that left `books`.
    pub(super) fn after(books: &Books, wall: Timestamp) -> Self {
        let mut books = books.clone();
        books.commit += 1;
        Self { books, wall, rows: Vec::new(), recent: Vec::new(), letters: Vec::new(), readings_bytes: 0 }
    }

    pub(super) fn add_group(&mut self, group: &Group, bytes_per_reading: &mut f64) {
        for (source, counts) in &group.counts {
            self.books.sources.entry(source.clone()).or_default().add(counts);
        }
        self.recent.extend_from_slice(&group.recent);
        for letter in &group.rejected {
            self.add_letter(letter);
        }
        let mut rest = group.readings.as_slice();
        while !rest.is_empty() {
            let (taken, row) = self.pack_readings(rest, bytes_per_reading);
            rest = &rest[taken..];
            self.rows.push(row);
        }
    }

    /// As many of `readings` as make one chunk of the best size.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate of a small positive number"
    )]
    fn pack_readings(&mut self, readings: &[Reading], bytes_per_reading: &mut f64) -> (usize, Row) {
        let estimate = (chunk::MAX_BYTES as f64 * 0.94 / *bytes_per_reading) as usize;
        let mut count = readings.len().min(estimate.clamp(1, MAX_CHUNK_READINGS));
        loop {
            let taken = &readings[..count];
            let mut body = Vec::with_capacity(count * 64);
            codec::encode_readings(taken, &mut body);
            let packed = Packed::new(body);
            if packed.chunk_bytes() > chunk::MAX_BYTES - 4_096 && count > 1 {
                count = count * 9 / 10;
                *bytes_per_reading *= 1.1;
                continue;
            }
            if count > 64 {
                let seen = packed.chunk_bytes() as f64 / count as f64;
                *bytes_per_reading += (seen - *bytes_per_reading) * 0.25;
            }
            let newest = taken.iter().map(|reading| reading.received).max().unwrap_or_default();
            return (count, self.row(Stream::Readings, count, newest, packed));
        }
    }

    pub(super) fn add_windows(&mut self, update: &WindowsUpdate) {
        let mut note = update.note.as_slice();
        let mut rest = update.records.as_slice();
        while !rest.is_empty() {
            let (records, later) = rest.split_at(rest.len().min(CHUNK_WINDOWS));
            let mut body = Vec::new();
            codec::encode_windows(update.position.0, note, records, &mut body);
            let row = self.row(Stream::Windows, records.len(), self.wall, Packed::new(body));
            self.rows.push(row);
            note = &[];
            rest = later;
        }
        if update.checkpoint.is_some() {
            self.books.checkpoint.position = update.position;
            self.books.checkpoint.windows_next = self.books.stream(Stream::Windows).next;
        }
    }

    /// Gives the next `count` numbers of `stream` to `packed`.
    fn row(&mut self, stream: Stream, count: usize, newest: Timestamp, packed: Packed) -> Row {
        let books = &mut self.books.streams[stream.index()];
        let first = books.next;
        books.next = first.plus(count as u64);
        let disk_bytes = retention::disk_bytes(packed.chunk_bytes());
        books.held_bytes += disk_bytes;
        if stream == Stream::Readings {
            self.readings_bytes += disk_bytes;
        }
        books.held_chunks += 1;
        let count = u32::try_from(count).expect("a chunk holds far fewer than 2^32 records");
        Row { stream, first, count, newest, packed }
    }

    pub(super) fn change_ledger(&mut self, change: &LedgerChange) {
        if change.epoch != self.books.epoch {
            return;
        }
        let head = self.books.stream(change.stream).next;
        let sink = self.books.sinks.entry(change.sink.clone()).or_default();
        let ledger = sink.streams.entry(change.stream).or_default();
        match &change.event {
            LedgerEvent::Advance(next) => ledger.advance(*next, head),
            LedgerEvent::Pin(lasts) => {
                let lasts: Vec<Seq> = lasts.iter().copied().filter(|last| *last < head).collect();
                ledger.pin(&lasts);
            }
            LedgerEvent::Split => ledger.split_first_pin(),
            LedgerEvent::DeadLetter(seq, letter) => {
                if ledger.dead_letter(*seq) {
                    self.add_letter(letter);
                }
            }
        }
    }

    fn add_letter(&mut self, letter: &Letter) {
        let books = &mut self.books.dead_letters;
        books.last_id += 1;
        self.letters.push(DeadLetter {
            id: books.last_id,
            time: letter.time,
            origin: letter.origin.clone(),
            reason: letter.reason.clone(),
            payload: letter.payload.clone(),
            payload_bytes: letter.payload_bytes,
            payload_hash: letter.payload_hash,
        });
    }
}
