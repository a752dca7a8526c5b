//! Room 8: the ack moves the cursor. What pins, answers, dead letters and sheds do to a [`Ledger`]. Pure.
//!
//! Every function here keeps the equation of the books; all of them are applied inside the transaction that makes them
//! durable.

use super::ledger::{Ledger, Pin};
use crate::stream::{Gap, GapReason, Seq, SeqRange};

impl Ledger {
    /// Fixes the boundaries of batches that end at each of `lasts` (ascending). The first begins at the first number not pinned
    /// yet. Numbers already pinned are left as they are.
    pub fn pin(&mut self, lasts: &[Seq]) {
        self.pin_with(lasts, 0);
    }

    /// As [`Self::pin`]; the times in these batches are corrected by so many of the [`super::boots::Boots`], now and at every retry.
    pub fn pin_with(&mut self, lasts: &[Seq], corrections: u32) {
        for &last in lasts {
            if last < self.unpinned() {
                continue;
            }
            let (within, beyond) = split_gaps(std::mem::take(&mut self.ahead), last);
            self.ahead = beyond;
            self.pins.push_back(Pin { last, gaps: within, corrections });
        }
    }

    /// The numbers of the first pinned batch.
    #[must_use]
    pub fn first_pin(&self) -> Option<(SeqRange, &Pin)> {
        let pin = self.pins.front()?;
        Some((SeqRange { first: self.cursor, last: pin.last }, pin))
    }

    /// The sink has everything before `next`: the cursor moves there. `head` is the stream's next number, beyond which a
    /// cursor never moves. An older `next` changes nothing.
    pub fn advance(&mut self, next: Seq, head: Seq) {
        let next = next.min(head);
        if next <= self.cursor {
            return;
        }
        let mut settled_before = 0;
        // Pins that are answered whole go; one answered in part keeps its rest, which is then a batch of its own.
        while let Some(pin) = self.pins.front_mut() {
            let (within, beyond) = split_gaps(std::mem::take(&mut pin.gaps), Seq(next.0 - 1));
            settled_before += count(&within);
            if pin.last < next {
                self.pins.pop_front();
            } else {
                pin.gaps = beyond;
                break;
            }
        }
        let (within, beyond) = split_gaps(std::mem::take(&mut self.ahead), Seq(next.0 - 1));
        settled_before += count(&within);
        self.ahead = beyond;
        self.delivered += next.0 - self.cursor.0 - settled_before;
        self.cursor = next;
    }

    /// The first pinned batch was refused as a whole: it becomes two halves. Nothing happens if it has a single record.
    ///
    /// It is halved by records, not by numbers: half a batch of gaps alone would hold nothing that could be refused, and
    /// a receiver that refuses everything would never come to the records behind it.
    pub fn split_first_pin(&mut self) {
        let Some((range, pin)) = self.first_pin() else { return };
        let runs = uncovered(range, &pin.gaps);
        let records: u64 = runs.iter().map(|run| run.count()).sum();
        let Some(middle) = nth_number(&runs, records / 2) else { return };
        let pin = self.pins.front_mut().expect("there is a first pin");
        let (first, second) = split_gaps(std::mem::take(&mut pin.gaps), middle);
        pin.gaps = second;
        let corrections = pin.corrections;
        self.pins.push_front(Pin { last: middle, gaps: first, corrections });
    }

    /// The record `seq`, which is the only one of the first pinned batch, was refused for good: it is a dead letter and
    /// from now on a gap, declared at the head of what follows. False if the books say otherwise; nothing changes then.
    #[must_use]
    pub fn dead_letter(&mut self, seq: Seq) -> bool {
        let Some((range, pin)) = self.first_pin() else { return false };
        let is_alone = range.contains(seq) && range.count() - count(&pin.gaps) == 1;
        if !is_alone || pin.gaps.iter().any(|gap| gap.range.contains(seq)) {
            return false;
        }
        let mut pin = self.pins.pop_front().expect("there is a first pin");
        let gap = Gap { range: SeqRange { first: seq, last: seq }, reason: GapReason::DeadLetter };
        let at = pin.gaps.partition_point(|other| other.range.first < seq);
        pin.gaps.insert(at, gap);
        // The next batch has not been sent yet (one is in flight at a time), so it may still begin earlier.
        let following = self.pins.front_mut().map_or(&mut self.ahead, |next| &mut next.gaps);
        pin.gaps.append(following);
        *following = pin.gaps;
        self.dead_lettered += 1;
        self.add_missed(gap.range);
        true
    }

    /// How many records the sink refused for good since it last took anything: their gaps still wait at the cursor.
    #[must_use]
    pub fn refused_in_a_row(&self) -> u64 {
        let mut next = self.cursor;
        let mut refused = 0;
        for gap in self.pins.iter().flat_map(|pin| &pin.gaps).chain(&self.ahead) {
            if gap.range.first != next {
                break;
            }
            if gap.reason == GapReason::DeadLetter {
                refused += gap.range.count();
            }
            next = gap.range.last.next();
        }
        refused
    }

    /// No batch is fixed any more; the gaps that were fixed with them are declared by whatever follows.
    pub fn unpin(&mut self) {
        let mut gaps: Vec<Gap> = self.pins.drain(..).flat_map(|pin| pin.gaps).collect();
        gaps.append(&mut self.ahead);
        self.ahead = gaps;
        merge(&mut self.ahead);
    }

    /// `range` is held no more, and was given up while this sink was not asked. A batch that was to hold some of it cannot be
    /// sent; what is pinned is fixed anew then.
    pub fn miss(&mut self, range: SeqRange, reason: GapReason) {
        let pinned = SeqRange { first: range.first.max(self.cursor), last: range.last };
        let is_needed = pinned.first <= pinned.last && self.is_pinned(pinned) && {
            let until = SeqRange { last: pinned.last.min(Seq(self.unpinned().0 - 1)), ..pinned };
            !self.is_settled(until)
        };
        if is_needed {
            self.unpin();
        }
        self.shed(range, reason);
    }

    /// `range` is given up for this sink. What is settled already, or pinned, is left out. Returns how many numbers that were.
    pub fn shed(&mut self, range: SeqRange, reason: GapReason) -> u64 {
        let first = range.first.max(self.unpinned());
        if first > range.last {
            return 0;
        }
        let holes = uncovered(SeqRange { first, last: range.last }, &self.ahead);
        let shed = holes.iter().map(|hole| hole.count()).sum();
        if reason != GapReason::Replay {
            holes.iter().for_each(|hole| self.add_missed(*hole));
        }
        self.ahead.extend(holes.into_iter().map(|range| Gap { range, reason }));
        self.ahead.sort_by_cached_key(|gap| gap.range.first.0);
        merge(&mut self.ahead);
        self.shed += shed;
        shed
    }

    /// The sink had everything before `next` in the epoch before: what no batch of this one is fixed to hold is declared as
    /// `replay` and counts as delivered.
    pub fn had_before(&mut self, next: Seq) {
        let first = self.unpinned();
        if next > first {
            self.settle(SeqRange { first, last: Seq(next.0 - 1) }, GapReason::Replay);
        }
    }

    /// No batch is fixed to hold `range`, and this sink need not get it, for `reason`: it counts as what the reason says.
    pub fn settle(&mut self, range: SeqRange, reason: GapReason) {
        let before = self.shed;
        let settled = self.shed(range, reason);
        match reason {
            GapReason::Replay => (self.shed, self.delivered) = (before, self.delivered + settled),
            GapReason::DeadLetter => (self.shed, self.dead_lettered) = (before, self.dead_lettered + settled),
            GapReason::ShedSize
            | GapReason::ShedAge
            | GapReason::BeforeSink
            | GapReason::Removed
            | GapReason::Damage => {}
        }
    }

    /// Why this sink need not get `seq`; `None` if it still has to be sent.
    #[must_use]
    pub fn settled_by(&self, seq: Seq) -> Option<GapReason> {
        if seq < self.cursor {
            return Some(GapReason::Replay);
        }
        let gaps = self.pins.iter().flat_map(|pin| &pin.gaps).chain(&self.ahead);
        gaps.filter(|gap| gap.range.contains(seq)).map(|gap| gap.reason).next()
    }

    /// What of the stream before `head` this sink still has to be sent, in order.
    #[must_use]
    pub fn wanted(&self, head: Seq) -> Vec<SeqRange> {
        if head <= self.cursor {
            return Vec::new();
        }
        self.wanted_of(SeqRange { first: self.cursor, last: Seq(head.0 - 1) })
    }

    /// What of `range` this sink still has to be sent, in order.
    #[must_use]
    pub fn wanted_of(&self, range: SeqRange) -> Vec<SeqRange> {
        if range.last < self.cursor {
            return Vec::new();
        }
        let rest = SeqRange { first: range.first.max(self.cursor), last: range.last };
        let gaps: Vec<Gap> = self.pins.iter().flat_map(|pin| &pin.gaps).chain(&self.ahead).copied().collect();
        uncovered(rest, &gaps)
    }

    /// True if `range` holds nothing that this sink still has to be sent.
    #[must_use]
    pub fn is_settled(&self, range: SeqRange) -> bool {
        self.wanted_of(range).is_empty()
    }

    /// True if a pinned batch needs a record of `range`.
    #[must_use]
    pub fn is_pinned(&self, range: SeqRange) -> bool {
        !self.pins.is_empty() && range.first < self.unpinned() && range.last >= self.cursor
    }
}

fn count(gaps: &[Gap]) -> u64 {
    gaps.iter().map(|gap| gap.range.count()).sum()
}

/// What of `gaps` lies up to `last`, and what beyond; a gap over the boundary is cut in two.
fn split_gaps(gaps: Vec<Gap>, last: Seq) -> (Vec<Gap>, Vec<Gap>) {
    let (mut within, mut beyond) = (Vec::new(), Vec::new());
    for gap in gaps {
        if gap.range.last <= last {
            within.push(gap);
        } else if gap.range.first > last {
            beyond.push(gap);
        } else {
            within.push(Gap { range: SeqRange { last, ..gap.range }, ..gap });
            beyond.push(Gap { range: SeqRange { first: last.next(), ..gap.range }, ..gap });
        }
    }
    (within, beyond)
}

/// The parts of `range` that no gap covers; `gaps` are in order.
fn uncovered(range: SeqRange, gaps: &[Gap]) -> Vec<SeqRange> {
    let mut holes = Vec::new();
    let mut first = range.first;
    for gap in gaps {
        if gap.range.last < first {
            continue;
        }
        if gap.range.first > range.last {
            break;
        }
        if gap.range.first > first {
            holes.push(SeqRange { first, last: Seq(gap.range.first.0 - 1) });
        }
        first = gap.range.last.next();
    }
    if first <= range.last {
        holes.push(SeqRange { first, last: range.last });
    }
    holes
}

/// The `nth` number of `runs`, counted from 1.
fn nth_number(runs: &[SeqRange], nth: u64) -> Option<Seq> {
    let mut left = nth.checked_sub(1)?;
    for run in runs {
        if left < run.count() {
            return Some(run.first.plus(left));
        }
        left -= run.count();
    }
    None
}

/// Joins neighbours of the same reason, so that a long outage does not make a long list.
fn merge(gaps: &mut Vec<Gap>) {
    gaps.dedup_by(|later, earlier| {
        let joins = earlier.reason == later.reason && earlier.range.last.next() == later.range.first;
        if joins {
            earlier.range.last = later.range.last;
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use proptest::collection;
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};

    use super::*;

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange { first: Seq(first), last: Seq(last) }
    }

    fn balance(ledger: &Ledger, head: Seq) {
        let appended = head.0 - 1;
        let settled = ledger.delivered + ledger.dead_lettered + ledger.shed;
        assert_eq!(appended, settled + ledger.pending(head), "{ledger:?}");
    }

    #[test]
    fn a_delivered_batch_moves_the_cursor_past_it() {
        let mut ledger = Ledger::new();
        ledger.pin(&[Seq(10), Seq(20)]);
        ledger.advance(Seq(11), Seq(31));
        assert_eq!((ledger.cursor, ledger.delivered, ledger.pending(Seq(31))), (Seq(11), 10, 20));
        assert_eq!(ledger.first_pin().unwrap().0, range(11, 20));
    }

    #[test]
    fn a_refused_record_ends_as_a_gap_of_the_next_batch() {
        let mut ledger = Ledger::new();
        ledger.pin(&[Seq(4)]);
        ledger.split_first_pin();
        assert_eq!(ledger.first_pin().unwrap().0, range(1, 2));
        ledger.split_first_pin();
        assert!(ledger.dead_letter(Seq(1)));
        let (next, pin) = ledger.first_pin().unwrap();
        assert_eq!((next, pin.gaps.len()), (range(1, 2), 1));
        ledger.advance(Seq(5), Seq(5));
        assert_eq!((ledger.delivered, ledger.dead_lettered), (3, 1));
        balance(&ledger, Seq(5));
    }

    #[test]
    fn each_half_of_a_batch_has_a_record_whatever_its_gaps() {
        let gap = |first, last| Gap { range: range(first, last), reason: GapReason::DeadLetter };
        let mut ledger = Ledger::new();
        ledger.pins.push_back(Pin { last: Seq(9), gaps: vec![gap(1, 6), gap(8, 8)], corrections: 2 });
        ledger.split_first_pin();
        assert_eq!(ledger.first_pin().unwrap().0, range(1, 7));
        assert_eq!(ledger.pins[0].gaps, [gap(1, 6)]);
        assert_eq!(ledger.pins[1], Pin { last: Seq(9), gaps: vec![gap(8, 8)], corrections: 2 });
        // One record alone is not halved any more.
        ledger.split_first_pin();
        assert_eq!((ledger.pins.len(), ledger.first_pin().unwrap().0), (2, range(1, 7)));
    }

    #[test]
    fn the_last_refused_record_waits_as_a_gap_ahead() {
        let mut ledger = Ledger::new();
        ledger.pin(&[Seq(1)]);
        assert!(ledger.dead_letter(Seq(1)));
        assert!(!ledger.dead_letter(Seq(1)), "only once");
        assert_eq!((ledger.pending(Seq(2)), ledger.ahead.len()), (0, 1));
        ledger.pin(&[Seq(3)]);
        assert_eq!(ledger.first_pin().unwrap().1.gaps.len(), 1);
    }

    #[test]
    fn the_ledger_knows_how_many_records_were_refused_in_a_row() {
        let mut ledger = Ledger::new();
        ledger.pin(&[Seq(1), Seq(2), Seq(3), Seq(9)]);
        assert_eq!(ledger.refused_in_a_row(), 0);
        assert!(ledger.dead_letter(Seq(1)) && ledger.dead_letter(Seq(2)));
        assert_eq!(ledger.refused_in_a_row(), 2);
        ledger.advance(Seq(4), Seq(20));
        assert_eq!(ledger.refused_in_a_row(), 0, "something was taken since");
    }

    #[test]
    fn shedding_spares_what_is_pinned_and_counts_once() {
        let mut ledger = Ledger::new();
        ledger.pin(&[Seq(5)]);
        assert_eq!(ledger.shed(range(1, 10), GapReason::ShedSize), 5);
        assert_eq!(ledger.shed(range(1, 12), GapReason::ShedSize), 2);
        assert_eq!(ledger.ahead, [Gap { range: range(6, 12), reason: GapReason::ShedSize }]);
        assert!(ledger.is_settled(range(6, 12)) && !ledger.is_settled(range(5, 12)));
        balance(&ledger, Seq(21));
    }

    #[test]
    fn a_pinned_batch_stays_unless_it_needs_what_is_gone() {
        let mut ledger = Ledger::new();
        ledger.shed(range(1, 9), GapReason::ShedSize);
        ledger.pin(&[Seq(20)]);
        let before = ledger.clone();
        ledger.miss(range(1, 9), GapReason::Removed);
        assert_eq!(ledger, before, "its gap was declared with the batch");
        ledger.miss(range(1, 12), GapReason::Removed);
        assert_eq!((ledger.pins.len(), ledger.shed), (0, 12));
        balance(&ledger, Seq(31));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(u64),
        Pin(u64),
        Answer(u64),
        Refuse,
        Shed(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..20_u64).prop_map(Step::Append),
            (1..20_u64).prop_map(Step::Pin),
            (0..30_u64).prop_map(Step::Answer),
            any::<()>().prop_map(|()| Step::Refuse),
            (0..40_u64, 1..20_u64).prop_map(|(at, count)| Step::Shed(at, count)),
        ];
        collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn the_books_balance_whatever_happens(steps in steps()) {
            let mut ledger = Ledger::new();
            let mut head = Seq::FIRST;
            for step in steps {
                match step {
                    Step::Append(count) => head = head.plus(count),
                    Step::Pin(count) => {
                        let last = Seq((ledger.unpinned().0 + count).min(head.0) - 1);
                        ledger.pin(&[last]);
                    }
                    Step::Answer(further) => ledger.advance(ledger.cursor.plus(further), head),
                    Step::Refuse => match ledger.first_pin().map(|(range, pin)| (range, pin.gaps.clone())) {
                        Some((range, gaps)) if range.count() - count(&gaps) == 1 => {
                            let alone = uncovered(range, &gaps)[0].first;
                            assert!(ledger.dead_letter(alone));
                        }
                        Some(_) => ledger.split_first_pin(),
                        None => {}
                    },
                    Step::Shed(at, count) => {
                        let last = Seq((at + count).min(head.0 - 1));
                        if last.0 > at {
                            ledger.shed(range(at + 1, last.0), GapReason::ShedAge);
                        }
                    }
                }
                balance(&ledger, head);
            }
        }
    }
}
