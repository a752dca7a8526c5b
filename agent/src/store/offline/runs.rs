//! Sets of numbers as runs: in order, not overlapping. Pure.

use crate::stream::{Seq, SeqRange};

/// The run from `first` up to, and not with, `end`; `None` if that is empty.
pub(super) fn run(first: Seq, end: Seq) -> Option<SeqRange> {
    (first < end).then(|| SeqRange { first, last: Seq(end.0 - 1) })
}

/// Appends `range`, which lies behind all of `runs`; joined with the last if it follows at once.
pub(super) fn append(runs: &mut Vec<SeqRange>, range: SeqRange) {
    match runs.last_mut() {
        Some(last) if last.last.0.checked_add(1) == Some(range.first.0) => last.last = range.last,
        _ => runs.push(range),
    }
}

/// The numbers of `runs` that are not in `others`.
pub(super) fn without(runs: &[SeqRange], others: &[SeqRange]) -> Vec<SeqRange> {
    let mut left = Vec::new();
    let mut others = others.iter().copied().peekable();
    for run in runs {
        let mut first = run.first;
        let mut is_used_up = false;
        while let Some(other) = others.peek().copied() {
            if other.first > run.last {
                break;
            }
            if other.last >= first {
                if other.first > first {
                    left.push(SeqRange { first, last: Seq(other.first.0 - 1) });
                }
                if other.last >= run.last {
                    is_used_up = true;
                    break;
                }
                first = Seq(other.last.0 + 1);
            }
            others.next();
        }
        if !is_used_up && first <= run.last {
            left.push(SeqRange { first, last: run.last });
        }
    }
    left
}

/// The numbers that are in both.
pub(super) fn both(runs: &[SeqRange], others: &[SeqRange]) -> Vec<SeqRange> {
    without(runs, &without(runs, others))
}

/// How many numbers there are.
pub(super) fn count(runs: &[SeqRange]) -> u64 {
    runs.iter().map(|run| run.count()).sum()
}

/// Runs in any order, overlapping or not, as a set.
pub(super) fn set(ranges: impl IntoIterator<Item = SeqRange>) -> Vec<SeqRange> {
    let mut sorted: Vec<SeqRange> = ranges.into_iter().filter(|range| range.first <= range.last).collect();
    sorted.sort_by_cached_key(|range| range.first.0);
    let mut runs: Vec<SeqRange> = Vec::new();
    for range in sorted {
        match runs.last_mut() {
            Some(last) if range.first <= last.last => last.last = last.last.max(range.last),
            _ => append(&mut runs, range),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection;
    use proptest::prelude::{Strategy, proptest};

    use super::*;

    fn sets() -> impl Strategy<Value = BTreeSet<u64>> {
        collection::btree_set(1..40_u64, 0..30)
    }

    fn runs(numbers: &BTreeSet<u64>) -> Vec<SeqRange> {
        set(numbers.iter().map(|n| SeqRange { first: Seq(*n), last: Seq(*n) }))
    }

    fn numbers(runs: &[SeqRange]) -> BTreeSet<u64> {
        runs.iter().flat_map(|run| run.first.0..=run.last.0).collect()
    }

    proptest! {
        #[test]
        fn runs_are_sets(a in sets(), b in sets()) {
            let (left, right) = (runs(&a), runs(&b));
            assert_eq!(numbers(&left), a);
            assert_eq!(numbers(&without(&left, &right)), &a - &b);
            assert_eq!(numbers(&both(&left, &right)), &a & &b);
            assert_eq!(count(&left), a.len() as u64);
        }
    }
}
