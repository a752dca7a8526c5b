//! What stays of devices that gave way: the end of the last window that was emitted for them.
//!
//! A device that returns may not emit those windows anew, or a revision would go out twice. This memory is bounded too:
//! after [`MAX_SEALED`] others, the device that gave way first is taken for a new one. Should it return with times that it
//! had sent before, those windows begin again at revision 0: the one case in which that can happen, and the price of
//! names without end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::devices::{Identity, stable_hash};
use super::state::{Key, SealedRow};
use crate::store::Checkpoint;

/// Devices of one window that are remembered after they gave way: about 4 MB.
pub(crate) const MAX_SEALED: usize = 50_000;

/// The ends, by a hash of the device. Two devices of one hash would only be held to the later end of the two.
#[derive(Debug, Default)]
pub(crate) struct Sealed {
    ends: HashMap<u64, SealedRow>,
    /// Hashes in the order in which the devices gave way.
    by_order: BTreeMap<u64, u64>,
    /// Hashes whose rows differ from the last checkpoint.
    touched: BTreeSet<u64>,
}

impl Sealed {
    /// Up to where the windows of this device were emitted before it gave way.
    pub(crate) fn end(&self, device: &dyn Identity) -> Option<i64> {
        if self.ends.is_empty() {
            return None;
        }
        self.ends.get(&stable_hash(device)).map(|row| row.end)
    }

    /// Remembers a device that gives way.
    pub(crate) fn insert(&mut self, hash: u64, end: i64) {
        let before = self.take(hash).map_or(i64::MIN, |row| row.end);
        if self.ends.len() >= MAX_SEALED
            && let Some((_, oldest)) = self.by_order.pop_first()
        {
            self.ends.remove(&oldest);
            self.touched.insert(oldest);
        }
        // Restored rows have the orders they had; emptied, it starts again, and no row is left to collide with.
        let order = self.by_order.last_key_value().map_or(0, |(last, _)| last + 1);
        self.ends.insert(hash, SealedRow { end: end.max(before), order });
        self.by_order.insert(order, hash);
        self.touched.insert(hash);
    }

    /// Forgets a device, because it has a state again.
    pub(crate) fn remove(&mut self, device: &dyn Identity) {
        if !self.ends.is_empty() {
            self.take(stable_hash(device));
        }
    }

    /// Adds what changed since the checkpoint before.
    pub(crate) fn save(&mut self, window: &str, checkpoint: &mut Checkpoint) {
        for hash in std::mem::take(&mut self.touched) {
            let key = Key::sealed(window, hash);
            match self.ends.get(&hash) {
                Some(row) => checkpoint.changed.push((key, row.to_bytes())),
                None => checkpoint.removed.push(key),
            }
        }
    }

    pub(crate) fn restore(&mut self, rows: Vec<(u64, SealedRow)>) {
        for (hash, row) in rows {
            self.by_order.insert(row.order, hash);
            self.ends.insert(hash, row);
        }
    }

    fn take(&mut self, hash: u64) -> Option<SealedRow> {
        let row = self.ends.remove(&hash)?;
        self.by_order.remove(&row.order);
        self.touched.insert(hash);
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_devices_that_gave_way_is_bounded() {
        let mut sealed = Sealed::default();
        for hash in 0..MAX_SEALED as u64 + 10 {
            sealed.insert(hash, 7);
        }
        assert_eq!(sealed.ends.len(), MAX_SEALED);
        assert_eq!(sealed.by_order.len(), MAX_SEALED);
        let mut checkpoint = Checkpoint::default();
        sealed.save("w", &mut checkpoint);
        assert_eq!((checkpoint.changed.len(), checkpoint.removed.len()), (MAX_SEALED, 10));
    }

    #[test]
    fn an_end_never_moves_back() {
        let mut sealed = Sealed::default();
        sealed.insert(1, 7);
        sealed.insert(1, 5);
        assert_eq!(sealed.ends[&1].end, 7);
    }
}
