//! What was received: one integer `next` for each (agent, epoch, stream), and the counts beside it. Pure.
//!
//! For every stream `next - 1 = received + missing`: what is missing was declared as a gap, or is a hole that nobody
//! explained. What a batch changes is a function of the batch and these books alone, so a journal of batches, played
//! again, gives the same books and the same files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::batch::{Batch, Record};
use crate::few;
use crate::stream::Epoch;
use crate::wire::{self, Previous};

/// The reason of a hole that no gap declares.
pub(super) const UNEXPLAINED: &str = "unexplained";

/// The books of one stream of one epoch of one agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamBooks {
    /// The agent's id.
    pub agent: String,
    /// The epoch of the numbers.
    pub epoch: Epoch,
    /// The name of the stream.
    pub stream: String,
    /// The number wanted next; all before it are settled.
    pub next: u64,
    /// Records written.
    pub received: u64,
    /// Records dropped because they were received before. Not durable: a crash may forget a few.
    pub repeats: u64,
    /// Numbers missing: declared as gaps, or unexplained.
    pub gaps: u64,
    /// Of `gaps`, those that nobody explained.
    pub unexplained: u64,
}

/// The books of all streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    streams: BTreeMap<Key, StreamBooks>,
}

type Key = (String, Epoch, String);

impl Books {
    pub(super) fn from_streams(streams: Vec<StreamBooks>) -> Self {
        let keyed = |books: StreamBooks| ((books.agent.clone(), books.epoch, books.stream.clone()), books);
        Self { streams: few::map(streams.into_iter().map(keyed)) }
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = &StreamBooks> {
        self.streams.values()
    }

    /// The number wanted next, if the stream is known.
    pub(super) fn next(&self, agent: &str, epoch: Epoch, stream: &str) -> Option<u64> {
        // The key is built anew for each batch, not for each record.
        self.streams.get(&(agent.to_owned(), epoch, stream.to_owned())).map(|books| books.next)
    }

    /// What is new in `batch`. Nothing changes yet.
    pub(super) fn news<'b>(&self, batch: &'b Batch) -> News<'b> {
        let wanted = self.next(&batch.agent, batch.epoch, &batch.stream).unwrap_or(1);
        let known = batch.records.partition_point(|record| record.seq < wanted);
        let hole = (batch.first > wanted).then(|| Missing {
            first: wanted,
            last: batch.first - 1,
            reason: UNEXPLAINED,
        });
        let declared = batch.gaps.iter().filter(|gap| gap.last >= wanted).map(|gap| Missing {
            first: gap.first.max(wanted),
            last: gap.last,
            reason: &gap.reason,
        });
        News {
            records: &batch.records[known..],
            repeats: count(known),
            missing: hole.into_iter().chain(declared).collect(),
            next: wanted.max(batch.last + 1),
        }
    }

    /// Enters what [`Books::news`] found.
    pub(super) fn enter(&mut self, batch: &Batch, news: &News<'_>) {
        let key = (batch.agent.clone(), batch.epoch, batch.stream.clone());
        let books = self.streams.entry(key).or_insert_with(|| StreamBooks {
            agent: batch.agent.clone(),
            epoch: batch.epoch,
            stream: batch.stream.clone(),
            next: 1,
            received: 0,
            repeats: 0,
            gaps: 0,
            unexplained: 0,
        });
        books.next = news.next;
        books.received += count(news.records.len());
        books.repeats += news.repeats;
        for missing in &news.missing {
            books.gaps += missing.count();
            if missing.reason == UNEXPLAINED {
                books.unexplained += missing.count();
            }
        }
    }

    /// How many numbers of the epoch before `batch`'s never came, if it names one of which we miss some.
    ///
    /// Only told, not entered: the one before may go on (a cloned card begins a new epoch, its original does not).
    pub(super) fn left_behind(&self, batch: &Batch) -> Option<u64> {
        let Previous { epoch, next } = batch.previous.as_ref()?;
        let ours = self.next(&batch.agent, *epoch, &batch.stream).unwrap_or(1);
        next.checked_sub(ours).filter(|missing| *missing > 0)
    }
}

/// What is new in a batch.
#[derive(Debug)]
pub(super) struct News<'b> {
    /// The records not received before: always the batch's last ones.
    pub(super) records: &'b [Record],
    /// How many of its records were received before.
    pub(super) repeats: u64,
    /// The numbers that will never come, in order.
    pub(super) missing: Vec<Missing<'b>>,
    /// The number wanted after it.
    pub(super) next: u64,
}

impl News<'_> {
    /// True if the batch says nothing that is not known.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.missing.is_empty()
    }

    /// Appends the new records to `out`, a line each, exactly as they were sent.
    pub(super) fn write_records(&self, batch: &Batch, out: &mut Vec<u8>) {
        for record in self.records {
            let text = batch.text(record);
            let is_break = |byte: u8| matches!(byte, b'\n' | b'\r');
            // JSON allows line breaks between its tokens (within strings they are escaped); NDJSON does not.
            if text.contains(&b'\n') || text.contains(&b'\r') {
                out.extend(text.iter().map(|byte| if is_break(*byte) { b' ' } else { *byte }));
            } else {
                out.extend_from_slice(text);
            }
            out.push(b'\n');
        }
    }

    /// Appends a line for each run of missing numbers to `out`.
    pub(super) fn write_missing(&self, batch: &Batch, out: &mut Vec<u8>) {
        for Missing { first, last, reason } in &self.missing {
            let Batch { epoch, stream, .. } = batch;
            out.extend_from_slice(
                format!("{{\"epoch\":\"{epoch}\",\"stream\":\"{stream}\",\"first\":{first},\"last\":{last},\"reason\":")
                    .as_bytes(),
            );
            wire::write_text(reason, out);
            out.extend_from_slice(b"}\n");
        }
    }
}

/// A run of numbers that will never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing<'b> {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) reason: &'b str,
}

impl Missing<'_> {
    fn count(&self) -> u64 {
        self.last - self.first + 1
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}
