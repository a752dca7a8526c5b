//! When the machine was started, as far as readings need it: what was stamped by a clock that was not right is corrected by
//! it, once it is known. Pure.
//!
//! A batch that was fixed before stays as it was, also after a restart: each pin says how many boots were known then, and
//! none is forgotten or changed while such a pin may need it. A machine whose clock is always right has nothing in here.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ledger::Books;
use crate::reading::Reading;
use crate::stream::{Seq, Stream};

/// No more boots than this are remembered: they ride in every commit.
const MOST: usize = 16;
/// A boot is learned anew if the clock differs from what it showed then by more than this.
const CLOSE_MICROS: u64 = 1_000_000;

/// One start of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Its id, as the kernel names it.
    pub id: Uuid,
    /// When it was, by a clock that is right: microseconds since the Unix epoch.
    pub at: i64,
}

/// The boots that are known, numbered in the order in which they were learned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boots {
    /// How many were forgotten: the first of `known` is the next.
    forgotten: u32,
    known: Vec<Known>,
    /// The boot in which readings were last stamped by a clock that was not right.
    awaited: Option<Uuid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    boot: Boot,
    /// Readings from here on do not need it: the next one was known by then.
    until: Option<Seq>,
}

impl Boots {
    /// How many were learned so far.
    #[must_use]
    pub fn known(&self) -> u32 {
        self.forgotten.saturating_add(u32::try_from(self.known.len()).unwrap_or(u32::MAX))
    }

    /// When the machine was started for the boot `id`, by the first `corrections` that were learned.
    #[must_use]
    pub fn at(&self, id: Uuid, corrections: u32) -> Option<i64> {
        let usable = usize::try_from(corrections.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        let known = &self.known[..usable.min(self.known.len())];
        known.iter().rev().find(|known| known.boot.id == id).map(|known| known.boot.at)
    }

    /// Whether readings wait for `boot` to be learned, or to be learned better.
    #[must_use]
    pub fn wants(&self, boot: Boot) -> bool {
        let is_near = |at: i64| at.abs_diff(boot.at) <= CLOSE_MICROS;
        self.awaited == Some(boot.id) && !self.at(boot.id, u32::MAX).is_some_and(is_near)
    }

    /// Readings before `next` may be of any boot: some were saved of a damaged store, where they had other numbers.
    pub(super) fn keep_until(&mut self, next: Seq) {
        for until in self.known.iter_mut().filter_map(|known| known.until.as_mut()) {
            *until = (*until).max(next);
        }
    }

    /// `readings` are appended.
    pub(super) fn await_for(&mut self, readings: &[Reading]) {
        let line = readings.iter().rev().find_map(|reading| reading.line.as_ref());
        if let Some(line) = line.filter(|line| !line.boot.is_nil()) {
            self.awaited = Some(line.boot);
        }
    }
}

impl Books {
    /// It is known now when the machine was started.
    pub(super) fn learn_boot(&mut self, boot: Boot) {
        let readings = *self.stream(Stream::Readings);
        if let Some(last) = self.boots.known.last_mut() {
            last.until.get_or_insert(readings.next);
        }
        // Below this, no pinned batch needs anything.
        let ledgers = self.sinks.values().filter_map(|sink| sink.streams.get(&Stream::Readings));
        let fixed = ledgers.filter(|ledger| !ledger.pins.is_empty()).map(|ledger| ledger.cursor).min();
        while let Some(first) = self.boots.known.first() {
            let ends_by = |seq: Seq| first.until.is_some_and(|until| until <= seq);
            let is_full = self.boots.known.len() >= MOST;
            // What is still to be saved of a damaged store had other numbers, and may need any of them.
            let is_gone = self.damage.files.is_empty() && ends_by(readings.oldest);
            let is_spare = is_gone || (is_full && fixed.is_none_or(ends_by));
            if is_spare {
                self.boots.known.remove(0);
                self.boots.forgotten = self.boots.forgotten.saturating_add(1);
            } else if is_full {
                // Readings of this boot stay as they were stamped, and say so.
                return;
            } else {
                break;
            }
        }
        self.boots.known.push(Known { boot, until: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::Ledger;

    fn boot(id: u128, at: i64) -> Boot {
        Boot { id: Uuid::from_u128(id), at }
    }

    fn books() -> Books {
        let mut books = Books::default();
        books.streams[Stream::Readings.index()].next = Seq(11);
        books
    }

    #[test]
    fn what_was_fixed_before_a_boot_was_known_is_not_corrected_by_it() {
        let mut books = books();
        books.learn_boot(boot(1, 100));
        let before = books.boots.known();
        books.learn_boot(boot(2, 200));
        books.learn_boot(boot(1, 900));
        let at = |id: u128, corrections| books.boots.at(Uuid::from_u128(id), corrections);
        assert_eq!((at(1, 0), at(1, before), at(2, before)), (None, Some(100), None));
        assert_eq!((at(1, 3), at(2, 3), at(3, 3)), (Some(900), Some(200), None), "the newest counts");
    }

    #[test]
    fn boots_are_forgotten_when_their_readings_are_gone() {
        let mut books = books();
        books.learn_boot(boot(1, 100));
        books.learn_boot(boot(2, 200));
        assert_eq!(books.boots.known.len(), 2, "readings of the first may still be held");
        books.streams[Stream::Readings.index()].oldest = Seq(11);
        books.learn_boot(boot(3, 300));
        assert_eq!((books.boots.known.len(), books.boots.known()), (1, 3));
        let third = |corrections| books.boots.at(Uuid::from_u128(3), corrections);
        assert_eq!((third(3), third(2)), (Some(300), None), "numbers stay");
    }

    #[test]
    fn no_boot_is_forgotten_that_readings_of_a_damaged_store_may_need() {
        let mut books = books();
        books.learn_boot(boot(1, 100));
        books.learn_boot(boot(2, 200));
        // A damaged store was replaced: what is saved of it is stored behind the head.
        books.streams[Stream::Readings.index()].oldest = Seq(11);
        books.damage.files.push(crate::store::ledger::DamagedFile::default());
        books.learn_boot(boot(3, 300));
        let first = |books: &Books| books.boots.at(Uuid::from_u128(1), u32::MAX);
        assert_eq!(first(&books), Some(100));
        books.streams[Stream::Readings.index()].next = Seq(21);
        books.boots.keep_until(Seq(21));
        books.damage.files.clear();
        books.learn_boot(boot(4, 400));
        assert_eq!(first(&books), Some(100), "its readings were saved");
        books.streams[Stream::Readings.index()].oldest = Seq(21);
        books.learn_boot(boot(5, 500));
        assert_eq!(first(&books), None);
    }

    #[test]
    fn no_boot_is_forgotten_that_a_pinned_batch_needs() {
        let mut books = books();
        let mut ledger = Ledger::new();
        ledger.pin_with(&[Seq(10)], 1);
        books.sinks.entry("cloud".to_owned()).or_default().streams.insert(Stream::Readings, ledger);
        for id in 1..100 {
            books.learn_boot(boot(id, 100));
        }
        assert_eq!(books.boots.known.len(), MOST);
        assert_eq!(books.boots.at(Uuid::from_u128(1), 1), Some(100));
        let sink = books.sinks.get_mut("cloud").unwrap();
        sink.streams.get_mut(&Stream::Readings).unwrap().advance(Seq(11), Seq(11));
        books.learn_boot(boot(200, 100));
        assert_eq!((books.boots.known.len(), books.boots.at(Uuid::from_u128(1), 1)), (MOST, None));
        assert_eq!(books.boots.at(Uuid::from_u128(200), books.boots.known()), Some(100));
    }
}
