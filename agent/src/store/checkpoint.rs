//! The windows' checkpoint in the store: rows of state, marks, and what was emitted since. All of it is opaque here.

use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};
use tracing::warn;

use super::file::{Error, File, SERIES, STATE, WINDOWS};
use super::ledger::Books;
use super::{CheckpointBase, Emitted, LASTING_ROWS, WindowsSnapshot, WindowsUpdate, chunk, codec};
use crate::causes::chain;
use crate::stream::{Seq, Stream};

/// Rows of `state` with notes of updates that appended nothing in which they could ride, by commit; gone with the next checkpoint.
pub(super) const MARKS: std::ops::Range<&str> = "mark/".."mark0";

/// Keeps the note of an update that appends nothing in which it could ride.
pub(super) fn write_mark(
    transaction: &WriteTransaction,
    update: &WindowsUpdate,
    commit: u64,
) -> Result<(), Error> {
    if update.note.is_empty() || !update.records.is_empty() || update.checkpoint.is_some() {
        return Ok(());
    }
    let row = postcard::to_stdvec(&(update.position, &update.note)).expect("a Vec takes any bytes");
    transaction.open_table(STATE)?.insert(format!("mark/{commit:020}").as_str(), row.as_slice())?;
    Ok(())
}

pub(super) fn write_checkpoint(transaction: &WriteTransaction, update: &WindowsUpdate) -> Result<(), Error> {
    let Some(checkpoint) = &update.checkpoint else { return Ok(()) };
    if checkpoint.base == CheckpointBase::Empty {
        transaction.delete_table(SERIES)?;
    }
    transaction.open_table(STATE)?.retain_in(MARKS, |_, _| false)?;
    let mut series = transaction.open_table(SERIES)?;
    for key in &checkpoint.removed {
        series.remove(key.as_slice())?;
    }
    for (key, row) in &checkpoint.changed {
        series.insert(key.as_slice(), row.as_slice())?;
    }
    Ok(())
}

/// How many rows the checkpoint has.
pub(super) fn rows(file: &File) -> Result<u64, Error> {
    file.read(|transaction| Ok(transaction.open_table(SERIES)?.len()?))
}

/// Removes the checkpoint of windows that are configured no more: it would be wrong when they return.
pub(super) fn forget_windows(file: &File) -> Result<(), Error> {
    let lasts = |key: &[u8]| key.first() == Some(&LASTING_ROWS);
    let is_forgotten = file.read(|transaction| {
        let series = transaction.open_table(SERIES)?;
        for row in series.iter()? {
            if !lasts(row?.0.value()) {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    if is_forgotten {
        return Ok(());
    }
    file.write(|transaction| {
        transaction.open_table(STATE)?.retain_in(MARKS, |_, _| false)?;
        Ok(transaction.open_table(SERIES)?.retain(|key, _| lasts(key))?)
    })
}

/// Reads the windows' checkpoint and what was emitted since.
pub(super) fn windows_snapshot(file: &File, books: &Books) -> Result<WindowsSnapshot, Error> {
    file.read(|transaction| {
        let series = transaction.open_table(SERIES)?;
        let rows = series
            .iter()?
            .map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
            .collect::<Result<_, _>>()?;
        let mut emitted = Vec::new();
        let table = transaction.open_table(WINDOWS)?;
        for row in table.range(books.checkpoint.windows_next.0..)? {
            let (key, value) = row?;
            let seq = Seq(key.value());
            let of_chunk = |source| Error::Chunk { stream: Stream::Windows, seq, source };
            let read = || {
                let chunk = chunk::Chunk::parse(value.value())?;
                codec::decode_windows(&chunk.body()?)
                    .map_err(|source| chunk::Error::Body { first: seq, source })
            };
            let (position, note, mut records) = match read() {
                Ok(read) => read,
                // Its results come out of the replay once more, and under new numbers: so they are not lost.
                Err(source) => {
                    let error = of_chunk(source);
                    warn!(%seq, error = %chain(&error), "results of windows cannot be read; they are computed again");
                    continue;
                }
            };
            // What is replayed, or was saved of a damaged store, is none of what these windows emitted.
            // What was saved of one whose epoch is not known says only that: it has no position.
            records.retain(|record| position >= Seq::FIRST.0 && !record.is_replayed());
            if !records.is_empty() || !note.is_empty() {
                emitted.push(Emitted { position: Seq(position), records, note });
            }
        }
        for row in transaction.open_table(STATE)?.range(MARKS)? {
            let (_, value) = row?;
            let (position, note) = postcard::from_bytes(value.value())
                .map_err(|_| Error::unreadable("a mark of the windows"))?;
            emitted.push(Emitted { position, records: Vec::new(), note });
        }
        emitted.sort_by_cached_key(|update| update.position.0);
        Ok(WindowsSnapshot { position: books.checkpoint.position, rows, emitted })
    })
}
