//! What one commit is about to make true: the books after it, and the rows that hold it.

use super::chunk::{self, Packed};
use super::damage::Before;
use super::ledger::Books;
use super::note::Note;
use super::recent::Change;
use super::retention;
use super::salvage::Slice;
use super::work::{Group, LedgerChange, LedgerEvent, Letter};
use super::{DeadLetter, WindowsUpdate, codec};
use crate::reading::{Reading, Timestamp, WindowRecord};
use crate::stream::{GapReason, Seq, SeqRange, Stream};

/// No more readings than this go into one chunk, however small they are.
const MAX_CHUNK_READINGS: usize = 1 << 16;
/// Window results that go into one chunk. One takes 60 to 100 bytes, so this stays below the size at which redb wastes least.
const CHUNK_WINDOWS: usize = 512;

/// Readings of a damaged file that are packed together: some may be packed twice if they do not fit.
const SALVAGED_READINGS: usize = 4_096;

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
    /// The time that ages are reckoned by: what is replayed ages from here on.
    pub(super) ages_by: Timestamp,
    /// Dead letters are kept cut at this.
    max_payload_bytes: usize,
    pub(super) rows: Vec<Row>,
    pub(super) recent: Vec<Change>,
    pub(super) letters: Vec<DeadLetter>,
    /// What the note is expected to add to the bytes on disk of its row.
    note_disk_bytes: u64,
    last_row_bytes: Option<u64>,
    /// Bytes on disk of the readings.
    pub(super) readings_bytes: u64,
}

/// Bytes that a note with `recent` is expected to take.
fn note_estimate(recent: &[Change]) -> usize {
    1_024 + recent.iter().map(|change| 16 + change.messages.len() * 11).sum::<usize>()
}

/// How many of `left` readings go into the next chunk at most: the last one should leave room for the note, so that both
/// together stay below the size at which redb wastes least.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an estimate"
)]
fn room_for(left: usize, note_bytes: usize, bytes_per_reading: f64) -> usize {
    let bytes = (left as f64 * bytes_per_reading) as usize;
    let is_last = bytes < chunk::MAX_BYTES;
    if is_last && bytes + note_bytes > chunk::MAX_BYTES && note_bytes < chunk::MAX_BYTES / 2 {
        left.div_ceil(2)
    } else {
        left
    }
}

impl Draft {
    /// The commit after the one that left `books`.
    pub(super) fn after(books: &Books, wall: Timestamp, max_payload_bytes: usize) -> Self {
        let mut books = books.clone();
        books.commit += 1;
        Self {
            books,
            wall,
            ages_by: wall,
            max_payload_bytes,
            rows: Vec::new(),
            recent: Vec::new(),
            letters: Vec::new(),
            note_disk_bytes: 0,
            last_row_bytes: None,
            readings_bytes: 0,
        }
    }

    pub(super) fn add_group(&mut self, group: &Group, bytes_per_reading: &mut f64) {
        for (source, counts) in &group.counts {
            self.books.sources.entry(source.clone()).or_default().add(counts);
        }
        for change in &group.nodes {
            self.books.nodes.apply(change, self.books.commit);
        }
        self.recent.extend_from_slice(&group.recent);
        self.books.boots.await_for(&group.readings);
        for letter in &group.rejected {
            self.add_letter(letter, None);
        }
        let note_bytes = note_estimate(&group.recent);
        let mut rest = group.readings.as_slice();
        while !rest.is_empty() {
            let room = room_for(rest.len(), note_bytes, *bytes_per_reading);
            let (taken, row) = self.pack_readings(&rest[..room], bytes_per_reading);
            rest = &rest[taken..];
            self.rows.push(row);
        }
        self.expect_note(note_bytes);
    }

    /// Counts what a note of so many bytes is expected to add to the last row of readings, so that the limits are looked at with
    /// it; instead of what was expected before.
    fn expect_note(&mut self, note_bytes: usize) {
        let Some(row) = self.rows.iter().rfind(|row| row.stream == Stream::Readings) else { return };
        let plain = retention::disk_bytes(row.packed.chunk_bytes());
        let with_note = retention::disk_bytes(row.packed.chunk_bytes() + note_bytes);
        let (before, added) = (self.note_disk_bytes, with_note - plain);
        let held_bytes = &mut self.books.streams[Stream::Readings.index()].held_bytes;
        *held_bytes = *held_bytes + added - before;
        self.readings_bytes = self.readings_bytes + added - before;
        self.note_disk_bytes = added;
        self.last_row_bytes = Some(with_note);
    }

    /// Appends replayed records, in chunks of their own.
    pub(super) fn append_replayed(
        &mut self,
        readings: &[Reading],
        windows: &[WindowRecord],
        bytes_per_reading: &mut f64,
    ) {
        let mut rest = readings;
        while !rest.is_empty() {
            let (taken, mut row) = self.pack_readings(rest, bytes_per_reading);
            rest = &rest[taken..];
            // Their age counts from now: they were kept for people, and those have spoken.
            row.newest = row.newest.max(self.ages_by);
            self.rows.push(row);
        }
        if !readings.is_empty() {
            self.expect_note(note_estimate(&self.recent));
        }
        let position = self.books.checkpoint.position.0;
        for records in windows.chunks(CHUNK_WINDOWS) {
            let mut body = Vec::new();
            codec::encode_windows(position, &[], records, &mut body);
            let row = self.row(Stream::Windows, records.len(), self.wall, Packed::new(body));
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

    /// Takes over what was read of a damaged file. Each sink that need not get a record any more is told why.
    pub(super) fn add_salvaged(&mut self, slice: &Slice, before: &Before, bytes_per_reading: &mut f64) {
        let Some(place) = self.books.damage.files.iter().position(|file| file.name == slice.name) else {
            return;
        };
        let mut rest = slice.readings.as_slice();
        while !rest.is_empty() {
            let most = rest.len().min(SALVAGED_READINGS);
            let readings: Vec<Reading> = rest[..most].iter().map(|(_, reading)| reading.clone()).collect();
            let (taken, row) = self.pack_readings(&readings, bytes_per_reading);
            self.settle(Stream::Readings, row.first, &rest[..taken], before);
            self.last_row_bytes = Some(retention::disk_bytes(row.packed.chunk_bytes()));
            self.rows.push(row);
            rest = &rest[taken..];
        }
        for part in slice.windows.chunks(CHUNK_WINDOWS) {
            let records: Vec<WindowRecord> = part.iter().map(|(_, record)| record.clone()).collect();
            let mut body = Vec::new();
            codec::encode_windows(0, &[], &records, &mut body);
            let row = self.row(Stream::Windows, records.len(), self.wall, Packed::new(body));
            self.settle(Stream::Windows, row.first, part, before);
            self.rows.push(row);
        }
        if !slice.readings.is_empty() {
            let next = self.books.stream(Stream::Readings).next;
            self.books.boots.keep_until(next);
        }
        let damage = &mut self.books.damage;
        let file = &mut damage.files[place];
        file.done = slice.done;
        let saved = [slice.readings.len() as u64, slice.windows.len() as u64, 0];
        for (nth, count) in saved.into_iter().enumerate() {
            file.saved[nth] += count;
            damage.saved[nth] += count;
        }
        for (all, more) in damage.lost.iter_mut().zip(slice.lost) {
            *all += more;
        }
        if slice.end.is_some() {
            damage.files.remove(place);
        }
    }

    /// `records`, which had other numbers before, were appended from `first` on.
    fn settle<T>(&mut self, stream: Stream, first: Seq, records: &[(Seq, T)], before: &Before) {
        for (name, sink) in &mut self.books.sinks {
            let Some(ledger) = sink.streams.get_mut(&stream) else { continue };
            let mut run: Option<(SeqRange, GapReason)> = None;
            for (seq, (old, _)) in (first.0..).map(Seq).zip(records) {
                let reason = before.settled_by(name, stream, *old);
                match (&mut run, reason) {
                    (Some((range, of)), Some(reason)) if *of == reason => range.last = seq,
                    (_, reason) => {
                        let next = reason.map(|reason| (SeqRange { first: seq, last: seq }, reason));
                        if let Some((range, reason)) = std::mem::replace(&mut run, next) {
                            ledger.settle(range, reason);
                        }
                    }
                }
            }
            if let Some((range, reason)) = run {
                ledger.settle(range, reason);
            }
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

    /// Bytes on disk of the last row of readings, if this commit writes any.
    pub(super) fn last_row_bytes(&self) -> Option<u64> {
        self.last_row_bytes
    }

    /// The note of this commit. Its own bytes are in the books that it holds, so it is written until both agree.
    pub(super) fn note(&mut self, recent: Vec<Change>) -> Vec<u8> {
        let mut note = Note { books: self.books.clone(), recent };
        let last = self.rows.iter().rfind(|row| row.stream == Stream::Readings && row.count > 0);
        let Some(chunk_bytes) = last.map(|row| row.packed.chunk_bytes()) else { return note.encode() };
        let index = Stream::Readings.index();
        let counted = retention::disk_bytes(chunk_bytes) + self.note_disk_bytes;
        let without_note = self.books.streams[index].held_bytes.saturating_sub(counted);
        note.books.streams[index].held_bytes = 0;
        loop {
            let bytes = note.encode();
            let held_bytes = without_note + retention::disk_bytes(chunk_bytes + bytes.len());
            if held_bytes <= note.books.streams[index].held_bytes {
                self.books.streams[index].held_bytes = note.books.streams[index].held_bytes;
                return bytes;
            }
            note.books.streams[index].held_bytes = held_bytes;
        }
    }

    /// Gives the next `count` numbers of `stream` to `packed`.
    fn row(&mut self, stream: Stream, count: usize, newest: Timestamp, packed: Packed) -> Row {
        let books = &mut self.books.streams[stream.index()];
        let first = books.next;
        books.next = first.plus(count as u64);
        // The last row of the readings will be longer by the note; `write_rows` counts that.
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
        let head = self.books.stream(change.stream).next;
        if change.epoch != self.books.epoch {
            self.late_answer(change, head);
            return;
        }
        let sink = self.books.sinks.entry(change.sink.clone()).or_default();
        let ledger = sink.streams.entry(change.stream).or_default();
        match &change.event {
            LedgerEvent::Advance(next) => ledger.advance(*next, head),
            LedgerEvent::Pin(lasts, corrections) => {
                let lasts: Vec<Seq> = lasts.iter().copied().filter(|last| *last < head).collect();
                ledger.pin_with(&lasts, *corrections);
            }
            LedgerEvent::Split => ledger.split_first_pin(),
            LedgerEvent::DeadLetter(seq, letter) => {
                if ledger.dead_letter(*seq) {
                    self.add_letter(letter, Some(*seq));
                }
            }
        }
    }

    /// An answer from the epoch before, to a batch that was on its way when this one began: numbers inside have not changed.
    fn late_answer(&mut self, change: &LedgerChange, head: Seq) {
        let is_previous = self.books.previous.is_some_and(|previous| previous.epoch == change.epoch);
        let sink = self.books.sinks.get_mut(&change.sink);
        let ledger = sink.and_then(|sink| sink.streams.get_mut(&change.stream));
        if let (true, Some(ledger), LedgerEvent::Advance(next)) = (is_previous, ledger, &change.event) {
            ledger.had_before((*next).min(head));
        }
    }

    fn add_letter(&mut self, letter: &Letter, record: Option<Seq>) {
        let books = &mut self.books.dead_letters;
        books.last_id += 1;
        self.letters.push(DeadLetter {
            id: books.last_id,
            time: letter.time,
            origin: letter.origin.clone(),
            reason: letter.reason.clone(),
            record,
            payload: letter.payload[..letter.payload.len().min(self.max_payload_bytes)].to_vec(),
            payload_bytes: letter.payload_bytes,
            payload_hash: letter.payload_hash,
        });
    }
}
