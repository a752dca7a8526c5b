//! The devices that some window knows: found by name and tags, once per reading for all windows together.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::series::{Device, DeviceState};
use crate::reading::{Origin, Tags};

/// Where a device is in [`Devices`]; given to another one when it is gone.
pub(crate) type Slot = u32;

/// All devices that have a state in some window.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    by_identity: HashMap<Device, Slot, BuildHasherDefault<Mixer>>,
    slots: Vec<Option<Entry>>,
    free: Vec<Slot>,
}

#[derive(Debug)]
struct Entry {
    device: Device,
    /// Its state in each window definition. Boxed: few devices are in all.
    states: Box<[Option<Box<DeviceState>>]>,
}

impl Devices {
    /// Where the device that sent a reading is.
    pub(crate) fn find(&self, origin: &Origin) -> Option<Slot> {
        self.by_identity.get(origin as &dyn Identity).copied()
    }

    /// Where `device` is.
    pub(crate) fn find_device(&self, device: &Device) -> Option<Slot> {
        self.by_identity.get(device).copied()
    }

    /// A place for a device that has none, with states in none of `windows` definitions.
    pub(crate) fn insert(&mut self, device: Device, windows: usize) -> Slot {
        let entry = Entry { device: device.clone(), states: (0..windows).map(|_| None).collect() };
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(entry);
            slot
        } else {
            self.slots.push(Some(entry));
            Slot::try_from(self.slots.len() - 1).expect("2^32 devices do not fit in memory")
        };
        self.by_identity.insert(device, slot);
        slot
    }

    /// The device in a slot.
    pub(crate) fn device(&self, slot: Slot) -> Option<&Device> {
        Some(&self.slots.get(slot as usize)?.as_ref()?.device)
    }

    /// The device in a slot, with its state in one window.
    pub(crate) fn get_mut(&mut self, slot: Slot, window: usize) -> Option<(&Device, &mut DeviceState)> {
        let Entry { device, states } = self.slots.get_mut(slot as usize)?.as_mut()?;
        Some((device, states.get_mut(window)?.as_deref_mut()?))
    }

    /// Takes a state out, to be put back by [`put`](Self::put) or given up by [`forget`](Self::forget).
    pub(crate) fn take(&mut self, slot: Slot, window: usize) -> Option<Box<DeviceState>> {
        self.slots.get_mut(slot as usize)?.as_mut()?.states.get_mut(window)?.take()
    }

    /// Puts a state in.
    pub(crate) fn put(&mut self, slot: Slot, window: usize, state: Box<DeviceState>) {
        if let Some(Some(entry)) = self.slots.get_mut(slot as usize) {
            entry.states[window] = Some(state);
        }
    }

    /// Frees the slot if no window has a state there.
    pub(crate) fn forget(&mut self, slot: Slot) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        if let Some(entry) = place.take_if(|entry| entry.states.iter().all(Option::is_none)) {
            self.by_identity.remove(&entry.device);
            self.free.push(slot);
        }
    }
}

/// A hash of a device's name and tags that does not change between runs and versions.
pub(crate) fn stable_hash(identity: &dyn Identity) -> u64 {
    let mut hasher = Mixer::default();
    identity.hash(&mut hasher);
    hasher.finish()
}

/// A device's name and tags, whoever holds them: lets a reading's origin be looked up without a copy.
pub(crate) trait Identity {
    fn name(&self) -> &str;
    fn tags(&self) -> &Tags;
}

impl Identity for Device {
    fn name(&self) -> &str {
        &self.name
    }

    fn tags(&self) -> &Tags {
        &self.tags
    }
}

impl Identity for Origin {
    fn name(&self) -> &str {
        &self.device
    }

    fn tags(&self) -> &Tags {
        &self.tags
    }
}

impl Hash for dyn Identity + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(xxh3_64(self.name().as_bytes()));
        for (name, value) in self.tags() {
            state.write_u64(xxh3_64(name.as_bytes()));
            state.write_u64(xxh3_64(value.as_bytes()));
        }
    }
}

impl PartialEq for dyn Identity + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.tags() == other.tags()
    }
}

impl Eq for dyn Identity + '_ {}

impl<'a> Borrow<dyn Identity + 'a> for Device {
    fn borrow(&self) -> &(dyn Identity + 'a) {
        self
    }
}

impl Hash for Device {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self as &dyn Identity).hash(state);
    }
}

/// Joins hashes that are good already; the map wants no more.
#[derive(Debug, Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        self.write_u64(xxh3_64(bytes));
    }

    fn write_u64(&mut self, hash: u64) {
        // An odd constant near 2^64 / golden ratio: the order of the parts matters, and no bit is lost.
        self.0 = (self.0.rotate_left(29) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Names that many series share, each kept once.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: HashSet<Arc<str>>,
    /// At this many, those that nobody else holds are dropped: names come from payloads, so they may be without end.
    sweep_at: usize,
}

impl Names {
    /// The shared copy of `name`.
    pub(crate) fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(shared) = self.names.get(name) {
            return Arc::clone(shared);
        }
        if self.names.len() >= self.sweep_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = (self.names.len() * 2).max(64);
        }
        let shared: Arc<str> = name.into();
        self.names.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(device: &str, tags: &[(&str, &str)]) -> Origin {
        let tags = tags.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Origin { source: "plant".into(), device: device.into(), tags }
    }

    fn device(origin: &Origin) -> Device {
        Device { name: (*origin.device).into(), tags: Arc::new(origin.tags.clone()) }
    }

    #[test]
    fn a_device_is_its_name_and_its_tags() {
        let mut devices = Devices::default();
        let (a, b) = (origin("d", &[("line", "a")]), origin("d", &[("line", "b")]));
        let slot = devices.insert(device(&a), 1);
        assert_eq!(devices.find(&a), Some(slot));
        assert_eq!(devices.find_device(&device(&a)), Some(slot));
        assert_eq!(devices.find(&b), None);
        assert_eq!(devices.find(&Origin { source: "other".into(), ..a.clone() }), Some(slot));
    }

    #[test]
    fn a_slot_is_used_again_once_no_window_needs_it() {
        let mut devices = Devices::default();
        let (a, b) = (origin("a", &[]), origin("b", &[]));
        let slot = devices.insert(device(&a), 2);
        devices.put(slot, 1, Box::new(DeviceState::new(None)));
        devices.forget(slot);
        assert_eq!(devices.find(&a), Some(slot));
        assert!(devices.take(slot, 1).is_some());
        devices.forget(slot);
        assert_eq!(devices.find(&a), None);
        assert_eq!(devices.insert(device(&b), 2), slot);
    }

    #[test]
    fn names_nobody_uses_are_dropped() {
        let mut names = Names::default();
        let kept = names.get("kept");
        for index in 0..1_000 {
            names.get(&index.to_string());
        }
        assert!(names.names.len() < 100);
        assert!(Arc::ptr_eq(&kept, &names.get("kept")));
    }
}
