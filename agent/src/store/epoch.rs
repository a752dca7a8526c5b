//! A new epoch: the numbers begin anew, and nothing that is stored is touched.
//!
//! A store that finds itself on another machine, or under another agent's name, or whose receiver knows more numbers
//! than it ever gave, is a copy or was set back. Going on with the same numbers would make different records look like
//! repeats. So a new epoch begins at the oldest record that some sink still has to get; what another sink had
//! already is declared to it as a gap and counted as delivered. Pure.

use super::ledger::{Books, Ledger, Presence, Previous};
use crate::stream::{Epoch, Gap, GapReason, Seq, SeqRange, Stream};

impl Books {
    /// Begins `epoch`.
    pub(super) fn begin_epoch(&mut self, epoch: Epoch) {
        if self.epoch.0.is_nil() {
            self.epoch = epoch;
            return;
        }
        let mut next = [Seq::FIRST; 3];
        for stream in Stream::ALL {
            let books = *self.stream(stream);
            let is_configured = |presence: Presence| presence == Presence::Configured;
            let cursors = self.sinks.values().filter(|sink| is_configured(sink.presence));
            let oldest_wanted =
                cursors.filter_map(|sink| sink.streams.get(&stream)).map(|ledger| ledger.cursor).min();
            let first = oldest_wanted.unwrap_or(books.oldest);
            next[stream.index()] = books.outside(first);
            self.streams[stream.index()].base = first.0 - 1;
            for ledger in self.sinks.values_mut().filter_map(|sink| sink.streams.get_mut(&stream)) {
                ledger.begin_at(first);
            }
        }
        self.previous = Some(Previous { epoch: self.epoch, next });
        self.epoch = epoch;
    }
}

impl Ledger {
    /// Counts anew from `first` on. Batches that were fixed are so no more: their numbers have changed.
    fn begin_at(&mut self, first: Seq) {
        self.unpin();
        self.ahead.retain_mut(|gap| {
            gap.range.first = gap.range.first.max(first);
            gap.range.first <= gap.range.last
        });
        if self.cursor > first {
            let range = SeqRange { first, last: Seq(self.cursor.0 - 1) };
            self.ahead.insert(0, Gap { range, reason: GapReason::Replay });
        }
        if self.cursor < first {
            // A sink that was removed: what it did not get is not offered to it under the new numbers.
            self.add_missed(SeqRange { first: self.cursor, last: Seq(first.0 - 1) });
        }
        self.cursor = first;
        let count = |counts: &dyn Fn(GapReason) -> bool| {
            self.ahead.iter().filter(|gap| counts(gap.reason)).map(|gap| gap.range.count()).sum()
        };
        let delivered = count(&|reason| reason == GapReason::Replay);
        let dead_lettered = count(&|reason| reason == GapReason::DeadLetter);
        self.shed = count(&|reason| !matches!(reason, GapReason::Replay | GapReason::DeadLetter));
        self.delivered = delivered;
        self.dead_lettered = dead_lettered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(cursors: &[(&str, u64)]) -> Books {
        let mut books = Books::default();
        books.begin_epoch(Epoch(uuid::Uuid::from_u128(1)));
        books.streams[0].next = Seq(101);
        for (name, cursor) in cursors {
            let mut ledger = Ledger::new();
            ledger.pin(&[Seq(100)]);
            ledger.advance(Seq(*cursor), Seq(101));
            let sink = books.sinks.entry((*name).to_owned()).or_default();
            sink.streams.insert(Stream::Readings, ledger);
        }
        books
    }

    #[test]
    fn numbers_begin_anew_at_the_oldest_record_that_is_wanted() {
        let mut books = books(&[("fast", 91), ("slow", 51)]);
        books.begin_epoch(Epoch(uuid::Uuid::from_u128(2)));
        let stream = *books.stream(Stream::Readings);
        assert_eq!((stream.base, stream.appended(), stream.outside(Seq(51))), (50, 50, Seq(1)));
        assert_eq!(
            books.previous.unwrap().next[0],
            Seq(51),
            "what came before was delivered under the old numbers"
        );
        for (name, delivered, pending) in [("fast", 40, 10), ("slow", 0, 50)] {
            let ledger = &books.sinks[name].streams[&Stream::Readings];
            assert_eq!((ledger.delivered, ledger.pending(stream.next)), (delivered, pending), "{name}");
            assert_eq!(ledger.cursor, stream.first());
        }
    }

    #[test]
    fn a_sink_that_was_removed_lacks_what_it_is_not_offered_any_more() {
        let mut books = books(&[("there", 51), ("gone", 21)]);
        books.sinks.get_mut("gone").unwrap().presence = Presence::Removed;
        books.begin_epoch(Epoch(uuid::Uuid::from_u128(2)));
        let lacking = |sink: &str| {
            let ledger = &books.sinks[sink].streams[&Stream::Readings];
            (1..=100).filter(|seq| ledger.lacks(Seq(*seq))).collect::<Vec<u64>>()
        };
        assert_eq!(lacking("gone"), (21..=50).collect::<Vec<_>>());
        assert_eq!(lacking("there"), [0; 0]);
    }
}
