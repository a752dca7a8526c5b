//! Every chunk of a stream, one after the other.

use redb::ReadTransaction;

use super::findings::{Finding, Findings, Kind};
use super::runs;
use crate::causes::chain;
use crate::reading::Reading;
use crate::store::chunk::{self, Chunk, Header};
use crate::store::codec;
use crate::store::file::{self, Error};
use crate::store::ledger::Books;
use crate::store::note::Note;
use crate::store::retention;
use crate::stream::{Seq, SeqRange, Stream};

/// What the rows of a stream hold.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Chunks that hold records, readable or not.
    pub(super) chunks: u64,
    /// Their bytes on disk.
    pub(super) bytes: u64,
    /// Records that can be read.
    pub(super) records: u64,
    /// Their numbers.
    pub(super) readable: Vec<SeqRange>,
    /// Numbers in chunks that cannot be read.
    pub(super) unreadable: Vec<SeqRange>,
    /// How many such chunks there are.
    pub(super) unreadable_chunks: u64,
    /// The books that the last row carries; readings only.
    pub(super) books: Option<Books>,
    /// The last row with no records in it.
    empty: Option<Seq>,
    /// The number after the last row.
    end: Option<Seq>,
    /// A chunk that cannot be read and does not say how many records it has.
    open: Option<Seq>,
    commit: u64,
}

/// Reads all rows of `stream`; `read` hears how many bytes each has. What was found until an error is in `walked`.
pub(super) fn walk(
    transaction: &ReadTransaction,
    stream: Stream,
    walked: &mut Walked,
    findings: &mut Findings,
    read: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let table = transaction.open_table(file::table(stream))?;
    let mut before = None;
    for row in table.range(0_u64..)? {
        let (key, value) = row?;
        let key = Seq(key.value());
        // A damaged tree may lead round in a circle.
        if before.is_some_and(|before| key <= before) {
            let what = format!("the row {key} comes after the row {}", before.unwrap_or(key));
            findings.add(Finding::new(Kind::Table, what).of(stream));
            break;
        }
        before = Some(key);
        walked.row(stream, key, value.value(), findings);
        read(value.value().len() as u64);
    }
    Ok(())
}

impl Walked {
    fn row(&mut self, stream: Stream, key: Seq, bytes: &[u8], findings: &mut Findings) {
        if let Some(first) = self.open.take() {
            self.unreadable.extend(runs::run(first, key));
        }
        if let Some(empty) = self.empty.take() {
            let what = "a row without records lies before others".to_owned();
            findings
                .add(Finding::new(Kind::Order, what).of(stream).at(SeqRange { first: empty, last: empty }));
        }
        if let Some(end) = self.end.filter(|end| key < *end) {
            let range = SeqRange { first: key, last: Seq(end.0 - 1) };
            let what = "the chunk before holds these, too".to_owned();
            findings.add(Finding::new(Kind::Order, what).of(stream).at(range));
        }
        self.books = None;
        match checked(stream, key, bytes) {
            Ok((header, note)) => {
                self.readable(stream, header, bytes, findings);
                self.note(stream, key, note, findings);
            }
            Err(Unreadable(what)) => self.unreadable(stream, key, bytes, what, findings),
        }
    }

    fn readable(&mut self, stream: Stream, header: Header, bytes: &[u8], findings: &mut Findings) {
        let Some(range) = header.range() else {
            self.empty = Some(header.first);
            if stream != Stream::Readings {
                let at = SeqRange { first: header.first, last: header.first };
                findings.add(Finding::new(Kind::Order, "a row without records").of(stream).at(at));
            }
            return;
        };
        self.count(bytes);
        self.records += range.count();
        self.end = Some(range.last.next());
        match self.readable.last_mut() {
            Some(last) if range.first <= last.last => last.last = last.last.max(range.last),
            _ => runs::append(&mut self.readable, range),
        }
    }

    fn unreadable(&mut self, stream: Stream, key: Seq, bytes: &[u8], what: String, findings: &mut Findings) {
        self.unreadable_chunks += 1;
        let finding = Finding::new(Kind::Chunk, what).of(stream);
        // As retention takes it: a header at the right place is believed, else it holds what lies before the next row.
        match Header::parse(bytes).ok().filter(|header| header.first == key) {
            Some(header) => {
                let range = header.range();
                if let Some(range) = range {
                    self.count(bytes);
                    self.end = Some(range.last.next());
                    self.unreadable.push(range);
                }
                findings.add(finding.at(range.unwrap_or(SeqRange { first: key, last: key })));
            }
            None => {
                self.count(bytes);
                self.end = None;
                self.open = Some(key);
                findings.add(finding.at(SeqRange { first: key, last: key }));
            }
        }
    }

    fn note(&mut self, stream: Stream, key: Seq, note: &[u8], findings: &mut Findings) {
        if note.is_empty() {
            return;
        }
        let at = SeqRange { first: key, last: key };
        let mut off = |kind, what: String| findings.add(Finding::new(kind, what).of(stream).at(at));
        match Note::decode(note) {
            Ok(_) if stream != Stream::Readings => {
                off(Kind::Order, "a chunk of this stream carries the state of the store".to_owned());
            }
            Ok(note) if note.books.commit <= self.commit => {
                off(Kind::Order, format!("commit {} comes after commit {}", note.books.commit, self.commit));
            }
            Ok(note) => {
                self.commit = note.books.commit;
                self.books = Some(note.books);
            }
            Err(error) => off(Kind::Note, format!("the state behind its records cannot be read: {error}")),
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.chunks += 1;
        self.bytes += retention::disk_bytes(bytes.len());
    }

    /// All rows were read; `next` is the number that the next record gets, if that is known.
    pub(super) fn end(&mut self, stream: Stream, next: Option<Seq>, findings: &mut Findings) {
        if let Some(first) = self.open.take() {
            self.unreadable.extend(runs::run(first, next.unwrap_or(Seq(first.0.saturating_add(1)))));
        }
        if let (Some(empty), Some(next)) = (self.empty, next)
            && empty != next
        {
            let what = format!("the row of a commit without readings lies here and not at {next}");
            let at = SeqRange { first: empty, last: empty };
            findings.add(Finding::new(Kind::Order, what).of(stream).at(at));
        }
        self.unreadable = runs::set(std::mem::take(&mut self.unreadable));
        self.readable = runs::without(&self.readable, &self.unreadable);
    }
}

/// Why a chunk is none.
struct Unreadable(String);

/// The header and the note of a chunk that was looked at from all sides.
fn checked(stream: Stream, key: Seq, bytes: &[u8]) -> Result<(Header, &[u8]), Unreadable> {
    let of_chunk = |error: chunk::Error| Unreadable(chain(&error));
    let chunk = Chunk::parse(bytes).map_err(of_chunk)?;
    let header = chunk.header;
    if (header.stream, header.first) != (stream, key) {
        return Err(Unreadable(format!("the chunk of {} {} lies here", header.stream, header.first)));
    }
    if header.count == 0 {
        return Ok((header, chunk.note));
    }
    let body = chunk.body().map_err(of_chunk)?;
    let of_body = |source| of_chunk(chunk::Error::Body { first: key, source });
    let (records, newest) = match stream {
        Stream::Readings => {
            let readings = codec::decode_readings(&body).map_err(of_body)?;
            let newest = readings.iter().map(|reading| reading.received).max();
            // The age of replayed readings counts from the replay, which only the header knows.
            let is_replayed = readings.iter().all(Reading::is_replayed);
            (readings.len(), newest.max(is_replayed.then_some(header.newest_received)))
        }
        // A result counts as received when it was committed, which only the header knows.
        Stream::Windows | Stream::Alerts => {
            (codec::decode_windows(&body).map_err(of_body)?.2.len(), Some(header.newest_received))
        }
    };
    if records as u64 != u64::from(header.count) {
        return Err(Unreadable(format!("{} records are announced, {records} are there", header.count)));
    }
    if newest != Some(header.newest_received) {
        return Err(Unreadable("the newest time of receipt is not that of its records".to_owned()));
    }
    Ok((header, chunk.note))
}
