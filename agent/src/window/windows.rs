//! The windows themselves: pure, without clock, channel or disk.
//!
//! In: readings in the order of their sequence, and the moments at which a device was found silent. Out: records. What
//! comes out, and the state afterwards, depend on nothing else; that is what lets a crash be undone by reading again.
//!
//! Memory is bounded by `max_series` per window. A closed window is dropped at once, or after the allowed lateness. A silent
//! device keeps its last window, because a reading that belongs there may come however late. When a new series needs room,
//! the device that has been idle for the longest gives way: its results are out, and of it stays only up to where they go,
//! so that no window is emitted anew from revision 0 should it return; readings of those windows are late from then on. If
//! no device is idle, the new series is refused, and counted. So below the limit the last revisions depend on the readings
//! alone; beyond it, also on who was silent.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::definition::{Definition, Entrance};
use super::devices::{Devices, Names};
use super::series::{Device, Seen};
use super::settings::Settings;
use super::state::{Key, Saved, SavedWindows};
use crate::reading::{Reading, WindowRecord};
use crate::store::{Checkpoint, CheckpointBase, Emitted};
use crate::stream::Seq;

/// All configured windows, and what is known of every device.
#[derive(Debug)]
pub struct Windows {
    definitions: Vec<Definition>,
    devices: Devices,
    names: Names,
    /// The sources that readings came from so far.
    sources: Vec<Arc<str>>,
    /// Rows of the last checkpoint that mean nothing any more.
    stale: Vec<Vec<u8>>,
    /// Whether the last checkpoint knows these windows by other settings, or not at all.
    unsaved: Unsaved,
    /// Rows of windows that are gone, to be saved.
    gone: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the next checkpoint builds upon: where nothing was saved, on nothing.
    base: CheckpointBase,
}

/// Whether the definitions differ from the ones of the last checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsaved {
    No,
    Yes,
}

/// A device found silent: the one thing that the readings do not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleMark {
    /// All readings before this had been seen.
    pub position: Seq,
    /// The window whose idle time was over.
    pub(crate) window: Arc<str>,
    /// The device.
    pub(crate) device: Device,
}

/// What is known of the source of a device that has not been heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// It was connected all the time: the device is silent.
    Silent,
    /// It was not: the device is left alone until [`Windows::look_again`].
    Unsure,
}

/// What one window says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Its configured name.
    pub window: Arc<str>,
    /// Readings that came too late for a window they belong to.
    pub late: u64,
    /// Series held: fields of devices. A device between two fields counts as one.
    pub series: usize,
    /// The most it will hold.
    pub max_series: usize,
    /// Values not aggregated because there were `max_series` already.
    pub refused: u64,
}

impl Counts {
    /// True if new series are refused, unless an idle device gives way.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.series >= self.max_series
    }
}

impl Windows {
    /// Windows that begin with the reading `from`.
    #[must_use]
    pub fn new(settings: &[Settings], from: Seq) -> Self {
        Self::restore(settings, from, Vec::new())
    }

    /// Windows as a checkpoint left them. Those that it does not know, or knows by other settings, begin at `head`.
    ///
    /// Until [`adopt_settings`](Self::adopt_settings), limits are the ones of the checkpoint: what is replayed must come out
    /// as it did.
    #[must_use]
    pub fn restore(settings: &[Settings], head: Seq, rows: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self::restore_after(settings, head, rows, &[])
    }

    /// As [`restore`](Self::restore), where `emitted` was emitted since that checkpoint.
    #[must_use]
    pub fn restore_after(
        settings: &[Settings],
        head: Seq,
        rows: Vec<(Vec<u8>, Vec<u8>)>,
        emitted: &[Emitted],
    ) -> Self {
        let base = if rows.is_empty() { CheckpointBase::Empty } else { CheckpointBase::Previous };
        let mut saved = SavedWindows::read(rows);
        let mut windows = Self {
            definitions: settings.iter().map(|settings| Definition::new(settings, head)).collect(),
            devices: Devices::default(),
            names: Names::default(),
            sources: Vec::new(),
            stale: Vec::new(),
            gone: Vec::new(),
            unsaved: Unsaved::No,
            base,
        };
        for index in 0..windows.definitions.len() {
            let name = Arc::clone(windows.definitions[index].name());
            match saved.take(&name) {
                Some(saved) if windows.definitions[index].continues(&saved) => {
                    windows.restore_window(index, saved);
                }
                Some(other) => {
                    windows.unsaved = Unsaved::Yes;
                    windows.definitions[index].follow(other.seen.clone().unwrap_or_default().now);
                    windows.stale.extend(other.into_keys_but_window());
                }
                None => windows.unsaved = Unsaved::Yes,
            }
        }
        windows.remember_emitted(emitted, head, &saved);
        windows.stale.extend(saved.into_keys());
        windows
    }

    /// Windows that go on emit this again from what is read; those that begin, and those that are gone, learn here what went out
    /// under their names.
    fn remember_emitted(&mut self, emitted: &[Emitted], head: Seq, saved: &SavedWindows) {
        let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
        for record in emitted.iter().flat_map(|update| &update.records) {
            seen.entry(&record.window).or_default().add(record.end.0, record.revision);
        }
        for (name, seen) in seen {
            match self.definitions.iter_mut().find(|definition| **definition.name() == *name) {
                Some(definition) if definition.from() == head => definition.follow(seen),
                Some(_) => {}
                None => {
                    let mut row = saved.seen(name).cloned().unwrap_or_default();
                    row.now.join(seen);
                    self.gone.push((Key::seen(name), row.to_bytes()));
                }
            }
        }
    }

    /// True if no window is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.definitions.is_empty()
    }

    /// The first reading that any window sees; `None` without windows.
    #[must_use]
    pub fn first_wanted(&self) -> Option<Seq> {
        self.definitions.iter().map(Definition::from).min()
    }

    /// True if windows came, went or changed since the checkpoint they were restored from. It must be followed by another
    /// one before any reading from the head on is added.
    #[must_use]
    pub fn needs_checkpoint(&self) -> bool {
        self.unsaved == Unsaved::Yes || !self.stale.is_empty() || !self.gone.is_empty()
    }

    /// Puts limits that were configured anew in force; to be called when everything before the head is added.
    pub fn adopt_settings(&mut self) {
        for definition in &mut self.definitions {
            if definition.adopt_settings() {
                self.unsaved = Unsaved::Yes;
            }
        }
    }

    /// Adds the reading with the number `seq` to its windows, and appends what that emits to `records`.
    pub fn add(&mut self, seq: Seq, reading: &Reading, records: &mut Vec<WindowRecord>) {
        if reading.is_replayed() {
            return;
        }
        let source = self.source(&reading.origin.source);
        let mut slot = self.devices.find(&reading.origin);
        let windows = self.definitions.len();
        for (window, definition) in self.definitions.iter_mut().enumerate() {
            let (devices, names) = (&mut self.devices, &mut self.names);
            let mut entrance = Entrance { window, windows, devices, names, records };
            slot = definition.add(slot, seq, reading, source, &mut entrance);
        }
    }

    /// How many windows are configured.
    #[must_use]
    pub fn len(&self) -> usize {
        self.definitions.len()
    }

    /// True if some device may fall silent.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.definitions.iter().any(Definition::is_listening)
    }

    /// Finds the devices of the nth window that were not heard since the reading `before`, emits their windows
    /// provisionally, and says which they were. All readings before `position` have been added.
    pub fn find_silent(
        &mut self,
        nth: usize,
        before: Seq,
        position: Seq,
        mut hearing: impl FnMut(&str) -> Hearing,
        records: &mut Vec<WindowRecord>,
    ) -> Vec<IdleMark> {
        let Some(definition) = self.definitions.get_mut(nth) else { return Vec::new() };
        let sources = &self.sources;
        let hearing = |source: u32| match sources.get(source as usize) {
            Some(name) => hearing(name),
            None => Hearing::Silent,
        };
        let silent = definition.find_silent(nth, before, hearing, &mut self.devices, records);
        let window = definition.name();
        silent.into_iter().map(|device| IdleMark { position, window: Arc::clone(window), device }).collect()
    }

    /// Devices of the nth window of which nobody could be sure are looked at again.
    pub fn look_again(&mut self, nth: usize) {
        if let Some(definition) = self.definitions.get_mut(nth) {
            definition.look_again();
        }
    }

    /// Does again what [`find_silent`](Self::find_silent) did with one device.
    pub fn replay_idle(&mut self, mark: &IdleMark, records: &mut Vec<WindowRecord>) {
        let found = self.definitions.iter_mut().enumerate().find(|(_, one)| **one.name() == *mark.window);
        let (Some((window, definition)), Some(slot)) = (found, self.devices.find_device(&mark.device)) else {
            return;
        };
        if definition.has_begun(mark.position) {
            definition.mark_idle(window, slot, &mut self.devices, records);
        }
    }

    /// What changed since the checkpoint before.
    pub fn checkpoint(&mut self) -> Checkpoint {
        let mut checkpoint = Checkpoint { base: std::mem::take(&mut self.base), ..Checkpoint::default() };
        for (window, definition) in self.definitions.iter_mut().enumerate() {
            definition.save(window, &mut self.devices, &self.sources, &mut checkpoint);
        }
        checkpoint.removed.append(&mut self.stale);
        checkpoint.changed.append(&mut self.gone);
        self.unsaved = Unsaved::No;
        checkpoint
    }

    /// What each window says of itself, in the order of the configuration.
    #[must_use]
    pub fn counts(&self) -> Vec<Counts> {
        self.definitions.iter().map(Definition::counts).collect()
    }

    fn restore_window(&mut self, window: usize, saved: Saved) {
        let windows = self.definitions.len();
        self.definitions[window].restore_counts(&saved);
        for (device, row) in saved.devices {
            let slot = match self.devices.find_device(&device) {
                Some(slot) => slot,
                None => self.devices.insert(device, windows),
            };
            let source = self.source(&row.source);
            let mut state = row.into_state(source, &mut self.names);
            self.definitions[window].restore_device(slot, &mut state);
            self.devices.put(slot, window, Box::new(state));
        }
        self.definitions[window].restore_sealed(saved.sealed);
    }

    /// The index of a source's name. There are few, so a scan is the fastest look-up.
    fn source(&mut self, name: &str) -> u32 {
        let found = self.sources.iter().position(|known| **known == *name);
        let index = found.unwrap_or_else(|| {
            self.sources.push(name.into());
            self.definitions.iter_mut().for_each(|definition| definition.learn_source(name));
            self.sources.len() - 1
        });
        u32::try_from(index).expect("2^32 sources cannot be configured")
    }
}

impl IdleMark {
    /// The mark as bytes: its position, then the key of the device's row.
    pub(crate) fn key(&self) -> Vec<u8> {
        Key::device(&self.window, &self.device)
    }
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
