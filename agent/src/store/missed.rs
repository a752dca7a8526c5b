//! Which records a sink never gets under the numbers they have: refused by it, shed, or older than the sink.
//!
//! Needed when a dead letter is replayed: the record goes to those who lack it, all others are told that they have it already. Kept
//! short, because it rides in every commit: beyond a bound the two ranges closest to one another become one. What lay between them
//! is then sent to the sink twice, with `replay_of`, rather than never. Pure.

use super::ledger::{Books, Ledger};
use crate::stream::{Seq, SeqRange, Stream};

/// Ranges kept for each sink and stream, some ten bytes each.
const MAX_RANGES: usize = 32;

impl Ledger {
    /// True if the sink never gets the record under this number.
    #[must_use]
    pub fn lacks(&self, seq: Seq) -> bool {
        let at = self.missed.partition_point(|range| range.last < seq);
        self.missed.get(at).is_some_and(|range| range.contains(seq))
    }

    /// The sink never gets `range`.
    pub(super) fn add_missed(&mut self, range: SeqRange) {
        let begin = self.missed.partition_point(|other| other.last.next() < range.first);
        let end = self.missed.partition_point(|other| other.first <= range.last.next());
        let mut joined = range;
        for other in &self.missed[begin..end] {
            joined.first = joined.first.min(other.first);
            joined.last = joined.last.max(other.last);
        }
        self.missed.splice(begin..end, [joined]);
        self.bound_missed();
    }

    /// The sink gets the record `seq` after all, under another number.
    pub(super) fn gets_anew(&mut self, seq: Seq) {
        let at = self.missed.partition_point(|range| range.last < seq);
        let Some(range) = self.missed.get(at).copied().filter(|range| range.contains(seq)) else { return };
        let before = (range.first < seq).then(|| SeqRange { last: Seq(seq.0 - 1), ..range });
        let after = (seq < range.last).then(|| SeqRange { first: seq.next(), ..range });
        self.missed.splice(at..=at, before.into_iter().chain(after));
        self.bound_missed();
    }

    fn bound_missed(&mut self) {
        while self.missed.len() > MAX_RANGES {
            let distance = |at: usize| self.missed[at + 1].first.0 - self.missed[at].last.0;
            let Some(closest) = (0..self.missed.len() - 1).min_by_key(|at| distance(*at)) else { return };
            self.missed[closest].last = self.missed[closest + 1].last;
            self.missed.remove(closest + 1);
        }
    }
}

impl Books {
    /// Forgets what nobody can ask for any more: without a dead letter, what is not held can never become one.
    pub(super) fn forget_missed(&mut self) {
        if self.dead_letters.kept > 0 {
            return;
        }
        for sink in self.sinks.values_mut() {
            for (stream, ledger) in &mut sink.streams {
                let oldest = self.streams[stream.index()].oldest;
                ledger.missed.retain(|range| range.last >= oldest);
            }
        }
    }

    /// True if some configured sink lacks the record.
    #[must_use]
    pub fn is_lacked(&self, stream: Stream, seq: Seq) -> bool {
        let configured = self.sinks.values().filter(|sink| sink.is_configured());
        configured.filter_map(|sink| sink.streams.get(&stream)).any(|ledger| ledger.lacks(seq))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection;
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};

    use super::*;
    use crate::store::ledger::Pin;
    use crate::stream::GapReason;

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange { first: Seq(first), last: Seq(last) }
    }

    #[test]
    fn neighbours_become_one_range_and_a_record_sent_anew_leaves_it() {
        let mut ledger = Ledger::new();
        for (first, last) in [(5, 6), (9, 9), (7, 8), (20, 20)] {
            ledger.add_missed(range(first, last));
        }
        assert_eq!(ledger.missed, [range(5, 9), range(20, 20)]);
        ledger.gets_anew(Seq(7));
        ledger.gets_anew(Seq(20));
        ledger.gets_anew(Seq(21));
        assert_eq!(ledger.missed, [range(5, 6), range(8, 9)]);
    }

    #[test]
    fn everything_a_sink_is_not_given_is_missed_but_not_what_it_has() {
        let mut ledger = Ledger::starting_at(Seq(11));
        ledger.pins.push_back(Pin { last: Seq(11), gaps: Vec::new(), corrections: 0 });
        assert!(ledger.dead_letter(Seq(11)));
        ledger.advance(Seq(16), Seq(100));
        ledger.shed(range(20, 29), GapReason::ShedAge);
        ledger.settle(range(50, 59), GapReason::Replay);
        ledger.had_before(Seq(70));
        assert_eq!(ledger.missed, [range(1, 11), range(20, 29)]);
        ledger.advance(Seq(100), Seq(100));
        assert_eq!(ledger.missed, [range(1, 11), range(20, 29)], "the cursor has passed them");
    }

    #[test]
    fn without_dead_letters_what_is_not_held_is_forgotten() {
        let mut books = Books::default();
        books.streams[0].oldest = Seq(10);
        let mut ledger = Ledger::new();
        ledger.add_missed(range(1, 9));
        ledger.add_missed(range(11, 12));
        books.sinks.entry("cloud".into()).or_default().streams.insert(Stream::Readings, ledger);
        books.dead_letters.kept = 1;
        books.forget_missed();
        assert!(books.is_lacked(Stream::Readings, Seq(9)));
        books.dead_letters.kept = 0;
        books.forget_missed();
        assert!(!books.is_lacked(Stream::Readings, Seq(9)) && books.is_lacked(Stream::Readings, Seq(12)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Missed(u64, u64),
        Anew(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..400_u64, 0..4_u64).prop_map(|(first, more)| Step::Missed(first, first + more)),
            (any::<u64>()).prop_map(|seq| Step::Anew(1 + seq % 400)),
        ];
        collection::vec(step, 0..150)
    }

    proptest! {
        #[test]
        fn nothing_missed_is_ever_taken_for_had(steps in steps()) {
            let (mut ledger, mut model) = (Ledger::new(), BTreeSet::new());
            let mut was_full = false;
            for step in steps {
                match step {
                    Step::Missed(first, last) => {
                        ledger.add_missed(range(first, last));
                        model.extend(first..=last);
                    }
                    Step::Anew(seq) => {
                        ledger.gets_anew(Seq(seq));
                        model.remove(&seq);
                    }
                }
                was_full |= ledger.missed.len() == MAX_RANGES;
                assert!(ledger.missed.len() <= MAX_RANGES);
                assert!(ledger.missed.is_sorted_by(|a, b| a.last.next() < b.first));
                for seq in 1..=404 {
                    let lacks = ledger.lacks(Seq(seq));
                    assert!(lacks || !model.contains(&seq), "{seq} is lost");
                    assert!(was_full || lacks == model.contains(&seq), "{seq}");
                }
            }
        }
    }
}
