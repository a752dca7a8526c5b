//! Dead letters at the word of people: sent anew, or purged. One durable transaction for each request.
//!
//! A replay appends the records under new numbers and removes the letters in the same transaction, so that after any crash
//! there is one or the other. A sink that lacks the original gets the record; one that has it is told so with a gap, and the
//! record counts as delivered.

use redb::{ReadableTable, WriteTransaction};
use tracing::error;

use super::draft::Draft;
use super::file::{DEAD_LETTERS, Error, File};
use super::ledger::DeadLetterBooks;
use super::{DeadLetter, DeadLetterOrigin};
use crate::reading::{Reading, WindowRecord};
use crate::stream::{GapReason, Seq, SeqRange, Stream};

/// What is to happen to dead letters.
#[derive(Clone, Debug)]
pub enum LettersChange {
    /// These are appended anew.
    Replay(Vec<Replay>),
    /// These go.
    Purge(Which),
}

/// Which dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those with these ids.
    These(Vec<u64>),
    /// All with an id above the first and not above the second.
    Between(u64, u64),
}

/// A dead letter that is replayed.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Its id.
    pub id: u64,
    /// What it comes to; marked as replayed.
    pub records: Records,
}

/// Records of one stream.
#[derive(Clone, Debug)]
pub enum Records {
    /// As many readings as the payload holds, at least one.
    Readings(Vec<Reading>),
    /// A result of a window.
    Window(Box<WindowRecord>),
}

/// What became of a [`LettersChange`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LettersDone {
    /// Letters that were appended anew. A letter that was purged meanwhile is not among them.
    pub replayed: u64,
    /// Letters that were purged by this change.
    pub purged: u64,
}

impl LettersDone {
    /// What lies between two states of the books.
    pub(super) fn between(before: DeadLetterBooks, after: DeadLetterBooks) -> Self {
        Self {
            replayed: after.replayed.saturating_sub(before.replayed),
            purged: after.purged_by_hand.saturating_sub(before.purged_by_hand),
        }
    }
}

/// A letter that is there, and what it comes to.
pub(super) struct Found<'a> {
    id: u64,
    /// The number that the record had, if sinks know it by one.
    record: Option<(Stream, Seq)>,
    records: &'a Records,
}

/// Those of the letters to be replayed that are there. The writer alone removes letters, so they stay until it commits.
pub(super) fn find<'a>(file: &File, change: Option<&'a LettersChange>) -> Result<Vec<Found<'a>>, Error> {
    let Some(LettersChange::Replay(letters)) = change else { return Ok(Vec::new()) };
    file.read(|transaction| {
        let table = transaction.open_table(DEAD_LETTERS)?;
        let mut found = Vec::with_capacity(letters.len());
        for Replay { id, records } in letters {
            let Some(row) = table.get(id)? else { continue };
            let Ok(letter) = postcard::from_bytes::<DeadLetter>(row.value()) else {
                error!(id, "the store is damaged: a dead letter cannot be read");
                continue;
            };
            let record = match letter.origin {
                DeadLetterOrigin::Sink { stream, .. } => letter.record.map(|seq| (stream, seq)),
                DeadLetterOrigin::Source { .. } => None,
            };
            found.push(Found { id: *id, record, records });
        }
        Ok(found)
    })
}

/// Appends to `draft` what the letters come to, and tells the sinks that have it already.
pub(super) fn replay(draft: &mut Draft, letters: &[Found<'_>], bytes_per_reading: &mut f64) {
    let (mut readings, mut windows) = (Vec::new(), Vec::new());
    let first = |draft: &Draft, stream| draft.books.stream(stream).next;
    let (first_reading, first_window) = (first(draft, Stream::Readings), first(draft, Stream::Windows));
    for letter in letters {
        let (stream, next, count) = match letter.records {
            Records::Readings(records) => {
                (Stream::Readings, first_reading.plus(readings.len() as u64), records.len() as u64)
            }
            Records::Window(_) => (Stream::Windows, first_window.plus(windows.len() as u64), 1),
        };
        let Some(last) = count.checked_sub(1) else { continue };
        let range = SeqRange { first: next, last: next.plus(last) };
        if !draft.offer(letter.record, stream, range) {
            continue;
        }
        match letter.records {
            Records::Readings(records) => readings.extend_from_slice(records),
            Records::Window(record) => windows.push((**record).clone()),
        }
    }
    draft.append_replayed(&readings, &windows, bytes_per_reading);
}

impl Draft {
    /// Tells every sink of the records `range`, of which `record` was the number before. False if nobody lacks it any more: then
    /// nothing is to be appended.
    fn offer(&mut self, record: Option<(Stream, Seq)>, stream: Stream, range: SeqRange) -> bool {
        let Some((_, seq)) = record.filter(|(of, _)| *of == stream) else {
            // No sink can have it: nobody could decode it before.
            return true;
        };
        let ledgers = self.books.sinks.values_mut().filter_map(|sink| sink.streams.get_mut(&stream));
        let (lacking, having): (Vec<_>, Vec<_>) = ledgers.partition(|ledger| ledger.lacks(seq));
        if lacking.is_empty() {
            return false;
        }
        having.into_iter().for_each(|ledger| ledger.settle(range, GapReason::Replay));
        lacking.into_iter().for_each(|ledger| ledger.gets_anew(seq));
        true
    }
}

/// Takes the letters out of their table.
pub(super) fn remove(
    transaction: &WriteTransaction,
    books: &mut DeadLetterBooks,
    change: &LettersChange,
    found: &[Found<'_>],
) -> Result<(), Error> {
    let mut table = transaction.open_table(DEAD_LETTERS)?;
    match change {
        LettersChange::Replay(_) => {
            for letter in found {
                if let Some(row) = table.remove(letter.id)? {
                    books.forget(row.value().len());
                    books.replayed += 1;
                }
            }
        }
        LettersChange::Purge(Which::These(ids)) => {
            for id in ids {
                if let Some(row) = table.remove(id)? {
                    books.forget(row.value().len());
                    books.purged_by_hand += 1;
                }
            }
        }
        LettersChange::Purge(Which::Between(after, up_to)) => {
            let Some(first) = after.checked_add(1).filter(|first| first <= up_to) else { return Ok(()) };
            table.retain_in(first..=*up_to, |_, row| {
                books.forget(row.len());
                books.purged_by_hand += 1;
                false
            })?;
            if table.first()?.is_none() {
                // Whatever was counted wrong before is right again.
                (books.kept, books.kept_bytes) = (0, 0);
            }
        }
    }
    Ok(())
}

impl DeadLetterBooks {
    /// One that takes so many bytes is kept no more.
    pub(super) fn forget(&mut self, bytes: usize) {
        self.kept = self.kept.saturating_sub(1);
        self.kept_bytes = self.kept_bytes.saturating_sub(bytes as u64);
    }
}
