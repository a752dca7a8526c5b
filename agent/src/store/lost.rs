//! Damage met while the store is at work: a chunk that cannot be read is declared lost, and its row goes.
//!
//! Readers say which number they could not read; here, in a write transaction, it is looked at once more. A row that is not there
//! at all says that the tree above the rows is damaged: that is an error, and after some more of them the whole store is moved
//! aside (`writer.rs`), because its bytes hold more than its tree still leads to.

use redb::{ReadableTable, WriteTransaction};
use tracing::{debug, error};

use super::chunk::Header;
use super::damage;
use super::file::{self, Error};
use super::ledger::Books;
use super::reader::read_piece;
use super::retention;
use super::work::SinkSpec;
use crate::stream::{GapReason, Seq, SeqRange, Stream};

/// Declares what cannot be read around `seq`, if it should be there and is not. `head` is the number after the last record that
/// the rows hold so far; `books` may be further already.
pub(super) fn declare(
    transaction: &WriteTransaction,
    books: &mut Books,
    head: Seq,
    sinks: &[SinkSpec],
    stream: Stream,
    seq: Seq,
) -> Result<(), Error> {
    let of_stream = *books.stream(stream);
    let is_hole = books.holes[stream.index()].iter().any(|hole| hole.contains(seq));
    if seq < of_stream.oldest || seq >= head || is_hole {
        return Ok(());
    }
    let mut table = transaction.open_table(file::table(stream))?;
    let (range, row_bytes) = {
        let row = table.range(..=seq.0)?.next_back().transpose()?;
        let Some((key, value)) = row else { return Err(misplaced(stream, seq)) };
        let (key, bytes) = (Seq(key.value()), value.value());
        match readable(stream, key, bytes) {
            Some(held) if held.contains(seq) => {
                debug!(%stream, %seq, "what could not be read can be read now");
                return Ok(());
            }
            // No row is there that could have held it: not a chunk is damaged but the tree above.
            Some(_) => return Err(misplaced(stream, seq)),
            None => {}
        }
        let after = table.range(key.next().0..head.0)?.next().transpose()?;
        let end = after.map_or(head, |(key, _)| Seq(key.value()));
        // Its header may be believed where it fits. What is missing behind it has other reasons.
        let said = Header::parse(bytes).ok().and_then(|header| header.range());
        let said = said.filter(|range| range.first == key && range.last < end);
        (said.unwrap_or(SeqRange { first: key, last: Seq(end.0 - 1) }), bytes.len())
    };
    if !range.contains(seq) {
        return Err(misplaced(stream, seq));
    }
    table.remove(range.first.0)?;
    let held = &mut books.streams[stream.index()];
    held.held_bytes = held.held_bytes.saturating_sub(retention::disk_bytes(row_bytes));
    held.held_chunks = held.held_chunks.saturating_sub(1);
    let takes = |name: &str| sinks.iter().any(|sink| sink.name == name && sink.streams.contains(&stream));
    // Without a sink all waits for the first one.
    let has_taker = sinks.iter().any(|sink| sink.streams.contains(&stream));
    let mut wanted = if has_taker { Vec::new() } else { vec![range] };
    for (name, sink) in &mut books.sinks {
        if let Some(ledger) = sink.streams.get_mut(&stream) {
            if takes(name) {
                wanted.extend(ledger.wanted_of(range));
            }
            ledger.miss(range, GapReason::Damage);
        }
    }
    let lost: u64 = damage::united(wanted).iter().map(|range| range.count()).sum();
    if range.first <= of_stream.oldest {
        books.streams[stream.index()].oldest = range.last.next();
    } else {
        books.add_hole(stream, range);
    }
    if lost > 0 {
        books.damage.lost[stream.index()] += lost;
        error!(
            %stream, first = %books.stream(stream).outside(range.first), last = %books.stream(stream).outside(range.last),
            "the store is damaged: these records cannot be read; they are lost, and declared to every sink that misses them"
        );
    }
    Ok(())
}

/// The rows are not where they belong: nothing that is read of such a file can be trusted, but the chunks in it.
fn misplaced(stream: Stream, seq: Seq) -> Error {
    Error::Damaged { what: format!("{stream} {seq} is not where it belongs") }
}

/// The numbers of a row that can be read, down to its records: what no reader understands holds up every sink all the same.
fn readable(stream: Stream, key: Seq, bytes: &[u8]) -> Option<SeqRange> {
    read_piece(stream, key, bytes, Seq::FIRST).ok()??.range()
}
