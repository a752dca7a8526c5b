//! What a node keeps until it is acknowledged: a ring of bytes, the oldest record goes when there is no room.
//!
//! A record is its tag, the length of its content (a byte each), its time (six bytes: 8 900 years in milliseconds), its
//! content. Their numbers follow one another, so none is stored.

use crate::codec::copy;
use crate::frame::{SampleSeq, Tag};

/// What a record takes beside its content.
pub const RECORD_HEAD_BYTES: usize = 8;
/// Of which so many are the time.
const TIME_BYTES: usize = 6;

/// A record that could never fit the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooLarge;

impl core::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the record is larger than the whole ring")
    }
}

impl core::error::Error for TooLarge {}

/// A record as it lies in the ring; its content may go over the edge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Kept<'r> {
    pub(crate) tag: Tag,
    pub(crate) uptime_ms: u64,
    pub(crate) content: [&'r [u8]; 2],
}

/// Where a reader stands. Stays right as long as its record is kept, and also when it stands behind the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The number of the record.
    pub(crate) seq: SampleSeq,
    at: usize,
}

/// The records from `first` on.
#[derive(Debug)]
pub(crate) struct Ring<const BYTES: usize> {
    bytes: [u8; BYTES],
    start: usize,
    used: usize,
    first: SampleSeq,
    count: u32,
}

impl<const BYTES: usize> Ring<BYTES> {
    pub(crate) const fn new() -> Self {
        const { assert!(BYTES > RECORD_HEAD_BYTES, "a ring that cannot hold one record") }
        Self { bytes: [0; BYTES], start: 0, used: 0, first: SampleSeq(1), count: 0 }
    }

    /// The oldest record that is kept; that of the next one if there is none.
    pub(crate) const fn first(&self) -> SampleSeq {
        self.first
    }

    /// The number of the next record.
    pub(crate) const fn next(&self) -> SampleSeq {
        // A `u32` always fits.
        self.first.plus(self.count as u64)
    }

    /// Appends a record; returns how many had to go for it.
    pub(crate) fn push(&mut self, tag: Tag, uptime_ms: u64, content: &[u8]) -> Result<u32, TooLarge> {
        let needed = content.len().wrapping_add(RECORD_HEAD_BYTES);
        let length = u8::try_from(content.len()).map_err(|_| TooLarge)?;
        if needed > BYTES {
            return Err(TooLarge);
        }
        let before = self.count;
        while BYTES.saturating_sub(self.used) < needed {
            self.pop();
        }
        let [a, b, c, d, e, f, ..] = uptime_ms.to_le_bytes();
        let at = wrapped::<BYTES>(self.start, self.used);
        self.write(at, &[tag.0, length, a, b, c, d, e, f]);
        self.write(wrapped::<BYTES>(at, RECORD_HEAD_BYTES), content);
        self.used = self.used.wrapping_add(needed);
        let dropped = before.saturating_sub(self.count);
        self.count = self.count.wrapping_add(1);
        Ok(dropped)
    }

    /// Forgets the oldest record.
    fn pop(&mut self) {
        if self.count == 0 {
            self.used = 0;
            return;
        }
        let length = self.length_at(self.start);
        self.start = wrapped::<BYTES>(self.start, length);
        self.used = self.used.saturating_sub(length);
        self.first = self.first.next();
        self.count = self.count.saturating_sub(1);
    }

    /// Forgets every record up to `seq`.
    pub(crate) fn forget(&mut self, up_to: SampleSeq) {
        while self.first <= up_to && self.count > 0 {
            self.pop();
        }
    }

    /// The record under `cursor`, if there is one.
    pub(crate) fn get(&self, cursor: Cursor) -> Option<Kept<'_>> {
        if cursor.seq < self.first || cursor.seq >= self.next() {
            return None;
        }
        let mut head = [0; RECORD_HEAD_BYTES];
        self.read(cursor.at, &mut head);
        let [tag, length, a, b, c, d, e, f] = head;
        let content = self.slices(wrapped::<BYTES>(cursor.at, RECORD_HEAD_BYTES), usize::from(length));
        Some(Kept { tag: Tag(tag), uptime_ms: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), content })
    }

    /// The place of record `seq`, or the nearest one that is kept or comes next.
    pub(crate) fn locate(&self, seq: SampleSeq) -> Cursor {
        let mut cursor = Cursor { seq: self.first, at: self.start };
        while cursor.seq < seq && cursor.seq < self.next() {
            cursor = self.behind(cursor);
        }
        cursor
    }

    /// The place behind the record under `cursor`.
    pub(crate) fn behind(&self, cursor: Cursor) -> Cursor {
        Cursor { seq: cursor.seq.next(), at: wrapped::<BYTES>(cursor.at, self.length_at(cursor.at)) }
    }

    /// How long the record at `at` is, its head included.
    fn length_at(&self, at: usize) -> usize {
        let mut head = [0; 2];
        self.read(at, &mut head);
        usize::from(head[1]).wrapping_add(RECORD_HEAD_BYTES)
    }

    /// What lies at `at`: up to the edge, and from the beginning on.
    fn slices(&self, at: usize, length: usize) -> [&[u8]; 2] {
        let here = length.min(BYTES.saturating_sub(at));
        let over = length.saturating_sub(here);
        let end = at.wrapping_add(here);
        [self.bytes.get(at..end).unwrap_or_default(), self.bytes.get(..over).unwrap_or_default()]
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        let [here, over] = self.slices(at, out.len());
        let (to_here, to_over) = out.split_at_mut(here.len().min(out.len()));
        copy(to_here, here);
        copy(to_over, over);
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let (here, over) = bytes.split_at(bytes.len().min(BYTES.saturating_sub(at)));
        let end = at.wrapping_add(here.len());
        if let Some(place) = self.bytes.get_mut(at..end) {
            copy(place, here);
        }
        if let Some(place) = self.bytes.get_mut(..over.len()) {
            copy(place, over);
        }
    }
}

/// `distance` bytes behind `at`, which is at most one round.
const fn wrapped<const BYTES: usize>(at: usize, distance: usize) -> usize {
    let to = at.wrapping_add(distance);
    if to >= BYTES { to.saturating_sub(BYTES) } else { to }
}

// The time of a record has as many bytes as its head leaves beside tag and length.
const _: () = assert!(RECORD_HEAD_BYTES == 2 + TIME_BYTES);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn content(ring: &Ring<64>, seq: u64) -> Option<Vec<u8>> {
        ring.get(ring.locate(SampleSeq(seq))).map(|kept| kept.content.concat())
    }

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let mut ring = Ring::<64>::new();
        assert_eq!(ring.push(Tag::SAMPLE, 1, &[1; 20]), Ok(0));
        assert_eq!(ring.push(Tag::SAMPLE, 2, &[2; 20]), Ok(0));
        assert_eq!(ring.push(Tag::SAMPLE, 3, &[3; 1]), Ok(1), "56 are used, 9 needed");
        assert_eq!(ring.push(Tag::EVENT, 4, &[4; 56]), Ok(2));
        assert_eq!((ring.first(), ring.next()), (SampleSeq(4), SampleSeq(5)));
        assert_eq!(content(&ring, 4), Some(vec![4; 56]));
        assert_eq!(ring.push(Tag::SAMPLE, 5, &[0; 57]), Err(TooLarge));
    }

    proptest! {
        #[test]
        fn it_holds_what_a_queue_would(steps in prop::collection::vec((0..50_usize, 0..4_u64), 1..200)) {
            let mut ring = Ring::<64>::new();
            let mut model: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
            let mut sender = ring.locate(SampleSeq(1));
            for (step, (length, forget)) in steps.into_iter().enumerate() {
                let seq = step as u64 + 1;
                let bytes = vec![seq.to_le_bytes()[0]; length];
                let dropped = ring.push(Tag::SAMPLE, seq * 1_000_000_000, &bytes).unwrap();
                model.push_back((seq, bytes));
                model.drain(..dropped as usize);
                let used: usize = model.iter().map(|(_, bytes)| bytes.len() + RECORD_HEAD_BYTES).sum();
                prop_assert!(used <= 64);
                if sender.seq < ring.first() {
                    sender = ring.locate(ring.first());
                }
                while let Some(kept) = ring.get(sender) {
                    prop_assert_eq!(kept.uptime_ms, sender.seq.0 * 1_000_000_000);
                    sender = ring.behind(sender);
                }
                prop_assert_eq!(sender.seq, SampleSeq(seq + 1));
                prop_assert_eq!(sender, ring.locate(sender.seq));
                ring.forget(SampleSeq(ring.first().0 + forget).before());
                model.retain(|(seq, _)| *seq >= ring.first().0);
                prop_assert_eq!(ring.next(), SampleSeq(seq + 1));
                for (seq, bytes) in &model {
                    prop_assert_eq!(content(&ring, *seq), Some(bytes.clone()));
                }
                prop_assert_eq!(model.len() as u64, ring.next().0 - ring.first().0);
            }
        }
    }
}
