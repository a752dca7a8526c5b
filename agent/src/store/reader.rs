//! Reading back: from memory what was appended a moment ago, from the file what is older.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tracing::debug;

use super::chunk::{self, Chunk};
use super::file::{self, Error, File};
use super::{DeadLetter, codec};
use crate::causes::chain;
use crate::reading::{Reading, WindowRecord};
use crate::stream::{Seq, SeqRange, Stream};

/// Bytes of readings kept in memory for readers that are close behind; they then cost no decoding.
const TAIL_BYTES: usize = 2 << 20;

/// So many numbers wait to be looked at, at most; who cannot read the others will say so again.
const SUSPECTS: usize = 1_000;

/// Records that were stored together.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Readings, numbered from the first on.
    Readings(Seq, Arc<[Reading]>),
    /// Window results, numbered from the first on.
    Windows(Seq, Arc<[WindowRecord]>),
}

impl Piece {
    /// The numbers it holds, or `None` if it is empty.
    #[must_use]
    pub fn range(&self) -> Option<SeqRange> {
        let (first, count) = match self {
            Self::Readings(first, records) => (*first, records.len()),
            Self::Windows(first, records) => (*first, records.len()),
        };
        let last = first.0 + (count as u64).checked_sub(1)?;
        Some(SeqRange { first, last: Seq(last) })
    }

    /// True if `seq` is among them.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.range().is_some_and(|range| range.contains(seq))
    }

    /// The stream they belong to.
    #[must_use]
    pub fn stream(&self) -> Stream {
        match self {
            Self::Readings(..) => Stream::Readings,
            Self::Windows(..) => Stream::Windows,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Readings(_, records) => records.iter().map(Reading::memory_bytes).sum(),
            Self::Windows(_, records) => records.len() * 400,
        }
    }
}

/// Reads records. Cheap to clone. Everything here blocks: call it from a blocking task.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) file: Arc<File>,
    tail: Arc<Mutex<Tail>>,
    suspects: Arc<Suspects>,
}

/// Numbers that could not be read, until the writer looks at them.
#[derive(Debug, Default)]
struct Suspects {
    numbers: Mutex<BTreeSet<(Stream, Seq)>>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Tail {
    pieces: VecDeque<(Piece, usize)>,
    bytes: usize,
}

impl Reader {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self { file, tail: Arc::default(), suspects: Arc::default() }
    }

    /// `seq` could not be read: the writer is to look.
    pub(super) fn suspect(&self, stream: Stream, seq: Seq) {
        let mut numbers = self.suspects.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if numbers.len() < SUSPECTS && numbers.insert((stream, seq)) {
            self.suspects.added.notify_one();
        }
    }

    /// Waits until something could not be read. Cancel-safe.
    pub(super) async fn suspected(&self) {
        self.suspects.added.notified().await;
    }

    /// What could not be read since this was asked last.
    pub(super) fn take_suspects(&self) -> Vec<(Stream, Seq)> {
        let mut numbers = self.suspects.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *numbers).into_iter().collect()
    }

    /// Keeps what was just stored at hand.
    pub(super) fn keep(&self, piece: Piece) {
        let bytes = piece.memory_bytes();
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.pieces.push_back((piece, bytes));
        tail.bytes += bytes;
        while tail.bytes > TAIL_BYTES {
            let Some((_, bytes)) = tail.pieces.pop_front() else { break };
            tail.bytes -= bytes;
        }
    }

    /// The records stored together with `seq`; if `seq` is held no more, the first that are after it; `None` if there are none.
    ///
    /// # Errors
    /// If the disk fails or what is on it is damaged.
    pub fn piece(&self, stream: Stream, seq: Seq) -> Result<Option<Piece>, Error> {
        if let Some(piece) = self.recent(stream, seq) {
            return Ok(Some(piece));
        }
        let piece = self.file.read(|transaction| {
            let table = transaction.open_table(file::table(stream))?;
            let mut before = table.range(..=seq.0)?;
            for row in before.next_back().into_iter().chain(table.range(seq.next().0..)?) {
                let (key, value) = row?;
                match read_piece(stream, Seq(key.value()), value.value(), seq) {
                    Ok(None) => {}
                    Ok(Some(piece)) => return Ok(Some(piece)),
                    Err(error) => self.damaged(stream, Seq(key.value()), &error),
                }
            }
            Ok(None)
        });
        if piece.as_ref().is_err_and(Error::is_damage) {
            self.suspect(stream, seq);
        }
        piece
    }

    /// At most `limit` dead letters with ids above `after`, oldest first.
    ///
    /// # Errors
    /// If the disk fails or what is on it is damaged.
    pub fn dead_letters(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        self.file.read(|transaction| {
            let table = transaction.open_table(file::DEAD_LETTERS)?;
            let rows = table.range(after.saturating_add(1)..)?.take(limit);
            rows.map(|row| {
                let (id, bytes) = row?;
                read_letter(id.value(), bytes.value())
            })
            .collect()
        })
    }

    /// The dead letter of that id, if there is one.
    ///
    /// # Errors
    /// If the disk fails or what is on it is damaged.
    pub fn dead_letter(&self, id: u64) -> Result<Option<DeadLetter>, Error> {
        self.file.read(|transaction| {
            let row = transaction.open_table(file::DEAD_LETTERS)?.get(id)?;
            row.map(|row| read_letter(id, row.value())).transpose()
        })
    }

    /// A chunk cannot be read: the writer is told, and what follows it is read instead.
    fn damaged(&self, stream: Stream, seq: Seq, error: &Error) {
        debug!(%stream, %seq, error = %chain(error), "the records of one chunk cannot be read");
        self.suspect(stream, seq);
    }

    /// As [`Reader::piece`], but only if the records are in memory. Does not block.
    #[must_use]
    pub fn recent(&self, stream: Stream, seq: Seq) -> Option<Piece> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |piece: &Piece| {
            piece.stream() == stream && piece.range().is_some_and(|range| range.contains(seq))
        };
        tail.pieces.iter().rev().map(|(piece, _)| piece).find(|piece| holds(piece)).cloned()
    }
}

fn read_letter(id: u64, bytes: &[u8]) -> Result<DeadLetter, Error> {
    postcard::from_bytes(bytes)
        .map_err(|_| Error::Damaged { what: format!("dead letter {id} cannot be read") })
}

/// The records of a row, unless it has none at or after `from`.
pub(super) fn read_piece(stream: Stream, key: Seq, bytes: &[u8], from: Seq) -> Result<Option<Piece>, Error> {
    let of_chunk = |source| Error::Chunk { stream, seq: key, source };
    let chunk = Chunk::parse(bytes).map_err(of_chunk)?;
    if chunk.header.range().is_none_or(|range| range.last < from) {
        return Ok(None);
    }
    if chunk.header.first != key {
        return Err(of_chunk(chunk::Error::NotAChunk));
    }
    let body = chunk.body().map_err(of_chunk)?;
    let unreadable = |source| of_chunk(chunk::Error::Body { first: key, source });
    let first = chunk.header.first;
    Ok(Some(match stream {
        Stream::Readings => Piece::Readings(first, codec::decode_readings(&body).map_err(unreadable)?.into()),
        Stream::Windows | Stream::Alerts => {
            Piece::Windows(first, codec::decode_windows(&body).map_err(unreadable)?.2.into())
        }
    }))
}
