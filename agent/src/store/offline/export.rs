//! Records as they would go over the wire, one JSON object per line.
//!
//! Times are corrected as far as it is known by now when the machine was started. Numbers are those that sinks see in the current epoch. Records of earlier epochs that still lie in the store are left out
//! and counted: every sink had them under other numbers.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use redb::ReadTransaction;

use super::{Looking, Phase, Progress, newest_books};
use crate::reading::{Reading, Timestamp};
use crate::store::Piece;
use crate::store::boots::Boots;
use crate::store::file::{self, Error as StoreError};
use crate::store::ledger::StreamBooks;
use crate::store::reader::read_piece;
use crate::stream::{Seq, Stream};
use crate::wire;

/// Written at once.
const BUFFER_BYTES: usize = 64 << 10;

/// What is to be exported.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// The stream.
    pub stream: Stream,
    /// Where it begins.
    pub from: Option<Edge>,
    /// Where it ends.
    pub to: Option<Edge>,
}

/// Where a selection begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// A number as sinks see it; both ends are included.
    Number(u64),
    /// A time: of a reading its own, of a window result its start. The beginning is included, the end is not.
    Time(Timestamp),
}

/// What was exported.
#[derive(Debug, Default)]
pub struct Exported {
    /// Records written.
    pub records: u64,
    /// Records of earlier epochs that were left out.
    pub earlier: u64,
    /// Chunks that could not be read.
    pub damaged: u64,
}

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It does not say how sinks count.
    #[error(
        "the state of the store cannot be read, so nobody knows the numbers of its records; start the agent, or see: holdfast store verify"
    )]
    NoBooks,
    /// Who takes the records does so no more.
    #[error("cannot write the records")]
    Output(#[source] io::Error),
}

impl Selection {
    /// Whether a record with this number, as sinks see it, is wanted, going by numbers alone.
    fn has_number(&self, seq: u64) -> bool {
        let from = matches!(self.from, Some(Edge::Number(from)) if seq < from);
        let to = matches!(self.to, Some(Edge::Number(to)) if seq > to);
        !from && !to
    }

    /// Whether a record of this time is wanted, going by times alone.
    fn has_time(&self, time: Timestamp) -> bool {
        let from = matches!(self.from, Some(Edge::Time(from)) if time < from);
        let to = matches!(self.to, Some(Edge::Time(to)) if time >= to);
        !from && !to
    }

    /// The stored number to begin at.
    fn first(&self, books: &StreamBooks) -> Seq {
        match self.from {
            Some(Edge::Number(from)) => Seq(from.saturating_add(books.base)),
            Some(Edge::Time(_)) | None => Seq(0),
        }
    }

    /// The last stored number that may be wanted.
    fn last(&self, books: &StreamBooks) -> Seq {
        match self.to {
            Some(Edge::Number(to)) => Seq(to.saturating_add(books.base)),
            Some(Edge::Time(_)) | None => Seq(u64::MAX),
        }
    }
}

/// Writes what `selection` says of the store in `dir` to `out`, changing nothing in the store. `damaged` hears of each chunk that
/// cannot be read; the export goes on behind it.
///
/// # Errors
/// If there is no store, if it is in use or cannot be read any further, or if `out` takes no more.
pub fn export(
    dir: &Path,
    selection: &Selection,
    out: &mut dyn Write,
    damaged: &mut dyn FnMut(&StoreError),
    progress: &Progress,
) -> Result<Exported, Error> {
    let looking = Looking::at(dir, progress)?;
    let books = newest_books(&looking.file)?.ok_or(Error::NoBooks)?;
    let mut export = Export {
        selection,
        books: *books.stream(selection.stream),
        boots: &books.boots,
        lines: Vec::with_capacity(BUFFER_BYTES * 2),
        out,
        exported: Exported::default(),
    };
    // An error of `out` has to come through redb's edge.
    let mut broken = None;
    let read = looking
        .file
        .read(|transaction| export.rows(transaction, damaged, progress).map(|ended| broken = ended.err()));
    let Export { lines, out, exported, .. } = export;
    if broken.is_none() {
        broken = out.write_all(&lines).and_then(|()| out.flush()).err();
    }
    looking.file.close();
    match broken {
        Some(error) => Err(Error::Output(error)),
        None => read.map(|()| exported).map_err(Error::Store),
    }
}

struct Export<'a> {
    selection: &'a Selection,
    books: StreamBooks,
    boots: &'a Boots,
    lines: Vec<u8>,
    out: &'a mut dyn Write,
    exported: Exported,
}

impl Export<'_> {
    fn rows(
        &mut self,
        transaction: &ReadTransaction,
        damaged: &mut dyn FnMut(&StoreError),
        progress: &Progress,
    ) -> Result<io::Result<()>, StoreError> {
        let stream = self.selection.stream;
        let table = transaction.open_table(file::table(stream))?;
        let (first, last) = (self.selection.first(&self.books), self.selection.last(&self.books));
        let before = table.range(..first.0)?.next_back().transpose()?.map(|(key, _)| key.value());
        let from = before.unwrap_or(first.0);
        if from > last.0 {
            return Ok(Ok(()));
        }
        let end = self.books.next.0.min(last.0);
        let mut previous = None;
        for row in table.range(from..=last.0)? {
            let (key, value) = row?;
            let key = Seq(key.value());
            if previous.is_some_and(|previous| key <= previous) {
                return Err(StoreError::Damaged { what: format!("the rows of {stream} lead back to {key}") });
            }
            previous = Some(key);
            progress.tell(Phase::Records, key.0.saturating_sub(from), end.saturating_sub(from));
            match read_piece(stream, key, value.value(), first) {
                Ok(None) => {}
                Ok(Some(piece)) => {
                    if let ControlFlow::Break(error) = self.piece(&piece) {
                        return Ok(Err(error));
                    }
                }
                Err(error) => {
                    self.exported.damaged += 1;
                    damaged(&error);
                }
            }
        }
        Ok(Ok(()))
    }

    fn piece(&mut self, piece: &Piece) -> ControlFlow<io::Error> {
        match piece {
            Piece::Readings(first, readings) => {
                let boots = self.boots;
                let booted_at = |r: &Reading| r.line.as_ref().and_then(|l| boots.at(l.boot, u32::MAX));
                let time = |r: &Reading| match (&r.line, booted_at(r)) {
                    (Some(line), Some(at)) if r.time == r.received => line.corrected(r.received, at),
                    _ => r.time,
                };
                let write =
                    |seq, r: &Reading, out: &mut Vec<u8>| wire::write_corrected(seq, r, booted_at(r), out);
                self.records(*first, readings, time, write)
            }
            Piece::Windows(first, records) => self.records(*first, records, |r| r.start, wire::write_window),
        }
    }

    fn records<T>(
        &mut self,
        first: Seq,
        records: &[T],
        time: impl Fn(&T) -> Timestamp,
        write: impl Fn(Seq, &T, &mut Vec<u8>),
    ) -> ControlFlow<io::Error> {
        for (seq, record) in (first.0..).map(Seq).zip(records) {
            let outside = self.books.outside(seq);
            if !self.selection.has_time(time(record)) {
                continue;
            }
            if seq < self.books.first() {
                self.exported.earlier += 1;
                continue;
            }
            if !self.selection.has_number(outside.0) {
                continue;
            }
            write(outside, record, &mut self.lines);
            self.lines.push(b'\n');
            self.exported.records += 1;
            if self.lines.len() >= BUFFER_BYTES {
                if let Err(error) = self.out.write_all(&self.lines) {
                    return ControlFlow::Break(error);
                }
                self.lines.clear();
            }
        }
        ControlFlow::Continue(())
    }
}
