//! Pinning what is ready to be sent in the commit that stores it, so that no commit has to be made for it.
//!
//! A batch must be fixed durably before it is first sent. In the steady flow a sink is close behind: what a commit
//! appends is its next batch, and the same commit can pin it. Only a backlog is cut into batches by the sink itself.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::Books;
use super::letters::{LettersChange, Records};
use super::work::{BatchLimits, Pace, SinkSpec, Work};
use crate::stream::{Seq, Stream};
use crate::wire;

/// A commit is made each `commit_interval`; one that comes a little early should not make a batch wait for the next.
const EARLY: Duration = Duration::from_millis(50);

/// What a batch takes beside its records: its head, and a gap or two.
const HEAD_BYTES: usize = 512;

/// What would be in the next batch of each sink and stream, while nothing of it is pinned.
#[derive(Clone, Debug, Default)]
pub(super) struct NextBatches(HashMap<(String, Stream), Unpinned>);

/// What a sink's next batch would hold, while nothing of it is pinned. Known only for what was appended since start.
#[derive(Clone, Copy, Debug)]
struct Unpinned {
    first: Seq,
    end: Seq,
    bytes: usize,
    since: Instant,
}

impl NextBatches {
    /// Pins in `books` what is ready after appending `work` to what was there `before`; returns what is not.
    #[must_use]
    pub(super) fn pin(
        &self,
        before: &Books,
        books: &mut Books,
        sinks: &[SinkSpec],
        work: &Work,
        now: Instant,
    ) -> Self {
        // How long the records of a damaged file are is not known here: the sinks cut them themselves.
        if work.salvaged.is_some() {
            return Self::default();
        }
        let mut all = HashMap::new();
        let corrections = books.boots.known();
        for stream in Stream::ALL {
            let (from, to) = (before.stream(stream).next, books.stream(stream).next);
            let (bytes, since, pace) = appended(stream, work, now);
            for sink in sinks.iter().filter(|sink| sink.streams.contains(&stream)) {
                let Some(ledger) = books.sinks.get_mut(&sink.name).and_then(|s| s.streams.get_mut(&stream))
                else {
                    continue;
                };
                let key = (sink.name.clone(), stream);
                let only_this = Unpinned { first: from, end: from, bytes: 0, since };
                let known =
                    self.0.get(&key).filter(|known| known.end == from && known.first == ledger.unpinned());
                // Not known: something was pinned meanwhile, or there is a backlog, which the sink cuts itself.
                let mut waiting = known.copied().unwrap_or(only_this);
                waiting.end = to;
                waiting.bytes += bytes;
                let is_next = ledger.unpinned() == waiting.first && ledger.pins.is_empty();
                if is_next && waiting.is_ready(&sink.batch, now, pace) {
                    ledger.pin_with(&[Seq(waiting.end.0 - 1)], corrections);
                } else if waiting.end > waiting.first {
                    all.insert(key, waiting);
                }
            }
        }
        Self(all)
    }
}

impl Unpinned {
    /// Whether a batch of this may be pinned now: within the limits, and either full, old enough, or with nothing to
    /// wait for.
    fn is_ready(&self, limits: &BatchLimits, now: Instant, pace: Pace) -> bool {
        let records = self.end.0 - self.first.0;
        let fits = records > 0 && records <= limits.records && self.bytes + HEAD_BYTES <= limits.bytes;
        let waited = now.duration_since(self.since) + EARLY >= limits.wait;
        fits && (records == limits.records || waited || pace == Pace::Sparse)
    }
}

/// An upper bound of the bytes that what this commit appends to `stream` takes in a batch; since when the oldest of it waits;
/// whether more is expected soon.
fn appended(stream: Stream, work: &Work, now: Instant) -> (usize, Instant, Pace) {
    let (bytes, since, pace) = appended_by_rooms(stream, work, now);
    (bytes + replayed_bytes(stream, work), since, pace)
}

/// The same of what dead letters come to.
fn replayed_bytes(stream: Stream, work: &Work) -> usize {
    let Some(LettersChange::Replay(letters)) = &work.letters else { return 0 };
    let bytes = letters.iter().map(|letter| match &letter.records {
        Records::Readings(records) if stream == Stream::Readings => {
            records.iter().map(wire::reading_bound).sum()
        }
        Records::Window(record) if stream == Stream::Windows => wire::window_bound(record),
        Records::Readings(_) | Records::Window(_) => 0,
    });
    bytes.sum()
}

fn appended_by_rooms(stream: Stream, work: &Work, now: Instant) -> (usize, Instant, Pace) {
    match stream {
        Stream::Readings => work.group.as_ref().map_or((0, now, Pace::Steady), |group| {
            let bytes = group.readings.iter().map(wire::reading_bound).sum();
            (bytes, group.since.unwrap_or(now), group.pace)
        }),
        Stream::Windows => work.windows.as_ref().map_or((0, now, Pace::Steady), |update| {
            (update.records.iter().map(wire::window_bound).sum(), now, Pace::Steady)
        }),
        Stream::Alerts => (0, now, Pace::Steady),
    }
}
