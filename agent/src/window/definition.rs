//! One configured window over all its devices: who is let in, who gives way, what is saved.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use super::aggregate::Plan;
use super::devices::{Devices, Names, Slot, stable_hash};
use super::sealed::Sealed;
use super::series::{Device, DeviceState, Emission, Idle, Missed, Seen, Spans};
use super::settings::Settings;
use super::state::{DeviceRow, Key, Saved, SeenRow, WindowRow, fingerprint};
use super::windows::{Counts, Hearing};
use crate::reading::{Reading, Timestamp, WindowRecord};
use crate::store::Checkpoint;
use crate::stream::Seq;

/// One window definition.
#[derive(Debug)]
pub(crate) struct Definition {
    name: Arc<str>,
    spans: Spans,
    plan: Plan,
    sources: Option<Vec<String>>,
    /// For each source known by now, whether it is among `sources`.
    takes_source: Vec<bool>,
    fields: Option<Vec<String>>,
    /// `max_series` as configured, and as it is in force.
    configured_max_series: usize,
    max_series: usize,
    fingerprint: u64,
    /// The first reading it sees.
    from: Seq,
    late: u64,
    refused: u64,
    /// The weight of all devices together.
    series: usize,
    /// Idle devices by the number of their last reading: the first is silent for the longest.
    idle: BTreeMap<u64, Slot>,
    sealed: Sealed,
    /// Devices that spoke, by a number that their last reading has or had. An entry counts only if it is the one that the
    /// device's state names, so nothing is touched when a device speaks.
    queue: BinaryHeap<Reverse<(u64, Slot)>>,
    /// Devices taken out of the queue, with their numbers in it, because their source was away.
    unsure: Vec<(u64, Slot)>,
    /// Devices that differ from the last checkpoint.
    changed: Vec<Slot>,
    /// Rows of devices that gave way since.
    removed: BTreeSet<Vec<u8>>,
    saved_row: Option<WindowRow>,
    /// What went out under this name.
    seen: Seen,
    saved_seen: Option<SeenRow>,
}

/// What all definitions share while a reading is added.
pub(crate) struct Entrance<'a> {
    /// The index of the definition among `windows`.
    pub(crate) window: usize,
    pub(crate) windows: usize,
    pub(crate) devices: &'a mut Devices,
    pub(crate) names: &'a mut Names,
    pub(crate) records: &'a mut Vec<WindowRecord>,
}

impl Definition {
    pub(crate) fn new(settings: &Settings, from: Seq) -> Self {
        let size = micros(settings.size).max(1);
        let spans = Spans {
            size,
            slide: micros(settings.slide).clamp(1, size),
            lateness: micros(settings.lateness),
            allowed_lateness: micros(settings.allowed_lateness),
            before: Seen::default(),
        };
        let plan = Plan::new(&settings.aggregates);
        let fingerprint = fingerprint(settings, &spans, &plan);
        Self {
            name: settings.name.as_str().into(),
            spans,
            plan,
            sources: settings.sources.clone(),
            takes_source: Vec::new(),
            fields: settings.fields.clone(),
            configured_max_series: settings.max_series,
            max_series: settings.max_series,
            fingerprint,
            from,
            late: 0,
            refused: 0,
            series: 0,
            idle: BTreeMap::new(),
            sealed: Sealed::default(),
            queue: BinaryHeap::new(),
            unsure: Vec::new(),
            changed: Vec::new(),
            removed: BTreeSet::new(),
            saved_row: None,
            seen: Seen::default(),
            saved_seen: None,
        }
    }

    /// It begins after others of its name, or after itself before it was removed: what they emitted has had its revisions.
    pub(crate) fn follow(&mut self, seen: Seen) {
        self.spans.before.join(seen);
        self.seen.join(seen);
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn from(&self) -> Seq {
        self.from
    }

    /// True if the saved window is this one.
    pub(crate) fn continues(&self, saved: &Saved) -> bool {
        saved.window.as_ref().is_some_and(|row| row.fingerprint == self.fingerprint)
    }

    /// True if a reading or mark at `position` concerns it.
    pub(crate) fn has_begun(&self, position: Seq) -> bool {
        self.from <= position
    }

    pub(crate) fn is_listening(&self) -> bool {
        !self.queue.is_empty() || !self.unsure.is_empty()
    }

    /// Those of whom nobody could be sure are looked at again.
    pub(crate) fn look_again(&mut self) {
        self.queue.extend(self.unsure.drain(..).map(Reverse));
    }

    /// Puts the configured limit in force; true if it is another than before.
    pub(crate) fn adopt_settings(&mut self) -> bool {
        let differs = self.max_series != self.configured_max_series;
        self.max_series = self.configured_max_series;
        differs
    }

    pub(crate) fn learn_source(&mut self, name: &str) {
        let takes = self.sources.as_ref().is_none_or(|sources| sources.iter().any(|source| source == name));
        self.takes_source.push(takes);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            window: Arc::clone(&self.name),
            late: self.late,
            series: self.series,
            max_series: self.max_series,
            refused: self.refused,
        }
    }

    /// Adds a reading; `slot` is where its device is, if it is known. Gives back where it is now.
    pub(crate) fn add(
        &mut self,
        slot: Option<Slot>,
        seq: Seq,
        reading: &Reading,
        source: u32,
        entrance: &mut Entrance<'_>,
    ) -> Option<Slot> {
        if seq < self.from || !self.takes_source[source as usize] {
            return slot;
        }
        // Taken out, so that it cannot be the one that gives way.
        let known = slot.and_then(|slot| entrance.devices.take(slot, entrance.window));
        if let Some(state) = &known {
            self.series -= state.weight();
            if state.idle == Idle::Yes {
                self.idle.remove(&state.last_seq);
            }
        }
        let Some(mut state) = self.place(known, reading, entrance) else { return slot };
        state.newest = state.newest.max(time_of(reading).0);
        state.last_seq = seq.0;
        state.source = source;
        state.idle = Idle::No;

        let slot = slot.unwrap_or_else(|| {
            let device =
                Device { name: (*reading.origin.device).into(), tags: Arc::new(reading.origin.tags.clone()) };
            entrance.devices.insert(device, entrance.windows)
        });
        if state.queued == DeviceState::NOT_QUEUED {
            state.queued = seq.0;
            self.queue.push(Reverse((seq.0, slot)));
        }
        if !state.changed {
            state.changed = true;
            self.changed.push(slot);
        }
        if state.is_due(&self.spans)
            && let Some(device) = entrance.devices.device(slot)
        {
            let (window, plan, seen) = (&self.name, &self.plan, &mut self.seen);
            let mut emission = Emission { window, plan, seen, records: &mut *entrance.records };
            state.close(device, &self.spans, &mut emission);
        }
        self.series += state.weight();
        entrance.devices.put(slot, entrance.window, state);
        Some(slot)
    }

    /// Puts the values of a reading into the windows of their series. Without a state for the device, one is made if
    /// there is a value to keep and room for it.
    fn place(
        &mut self,
        mut state: Option<Box<DeviceState>>,
        reading: &Reading,
        entrance: &mut Entrance<'_>,
    ) -> Option<Box<DeviceState>> {
        let at = time_of(reading);
        let sealed = if state.is_none() { self.sealed.end(&*reading.origin) } else { None };
        let gone = state.as_ref().map(|state| state.gone(&self.spans)).or(sealed);
        let starts = self.spans.starts(at.0, gone);
        let mut is_late = false;
        let mut expected = 0;
        for (field, value) in reading.shape.names.iter().zip(&reading.values) {
            let Some(value) = value.as_f64().filter(|value| value.is_finite()) else { continue };
            let found = state.as_ref().and_then(|state| state.find(field, expected));
            if found.is_none() && !self.takes_field(field) {
                continue;
            }
            is_late |= starts.missed == Missed::Some;
            if starts.is_empty() {
                break;
            }
            let index = match found {
                Some(index) => index,
                None => {
                    let weight = state.as_ref().map_or(0, |state| state.series.len()) + 1;
                    if !self.make_room(weight, entrance) {
                        self.refused += 1;
                        continue;
                    }
                    let state = state.get_or_insert_with(|| {
                        self.sealed.remove(&*reading.origin);
                        Box::new(DeviceState::new(sealed))
                    });
                    state.insert(entrance.names.get(field), expected)
                }
            };
            if let Some(state) = &mut state {
                state.add(index, at, value, starts, &self.spans, &self.plan);
            }
            expected = index + 1;
        }
        self.late += u64::from(is_late);
        state
    }

    fn takes_field(&self, field: &str) -> bool {
        self.fields.as_ref().is_none_or(|fields| fields.iter().any(|taken| taken == field))
    }

    /// True if a device of `weight` fits, if need be after idle ones gave way.
    fn make_room(&mut self, weight: usize, entrance: &mut Entrance<'_>) -> bool {
        while self.series + weight > self.max_series {
            let Some((_, slot)) = self.idle.pop_first() else { return false };
            self.evict(slot, entrance);
        }
        true
    }

    fn evict(&mut self, slot: Slot, entrance: &mut Entrance<'_>) {
        let Some(state) = entrance.devices.take(slot, entrance.window) else { return };
        if let Some(device) = entrance.devices.device(slot) {
            self.sealed.insert(stable_hash(device), state.last_end(&self.spans));
            self.removed.insert(Key::device(&self.name, device));
        }
        self.series -= state.weight();
        entrance.devices.forget(slot);
    }

    /// Finds the devices that were not heard since the reading `before` and emits their windows, those of the longest
    /// silent one first.
    pub(crate) fn find_silent(
        &mut self,
        window: usize,
        before: Seq,
        mut hearing: impl FnMut(u32) -> Hearing,
        devices: &mut Devices,
        records: &mut Vec<WindowRecord>,
    ) -> Vec<Device> {
        let mut silent: BTreeMap<u64, Slot> = BTreeMap::new();
        while let Some(Reverse((queued, slot))) = self.queue.peek().copied()
            && queued < before.0
        {
            self.queue.pop();
            let Some((_, state)) = devices.get_mut(slot, window) else { continue };
            if state.queued != queued || state.idle == Idle::Yes {
                continue;
            }
            let heard = if state.last_seq >= before.0 {
                state.last_seq
            } else {
                match hearing(state.source) {
                    Hearing::Silent => {
                        silent.insert(state.last_seq, slot);
                        continue;
                    }
                    Hearing::Unsure => {
                        self.unsure.push((queued, slot));
                        continue;
                    }
                }
            };
            state.queued = heard;
            self.queue.push(Reverse((heard, slot)));
        }
        for slot in silent.values() {
            self.mark_idle(window, *slot, devices, records);
        }
        silent.values().filter_map(|slot| devices.device(*slot).cloned()).collect()
    }

    /// Emits the open windows of a device provisionally; it may give way from now on.
    pub(crate) fn mark_idle(
        &mut self,
        window: usize,
        slot: Slot,
        devices: &mut Devices,
        records: &mut Vec<WindowRecord>,
    ) {
        let Some((device, state)) = devices.get_mut(slot, window) else { return };
        let mut emission = Emission { window: &self.name, plan: &self.plan, seen: &mut self.seen, records };
        state.emit_open(device, &self.spans, &mut emission);
        state.idle = Idle::Yes;
        state.queued = DeviceState::NOT_QUEUED;
        self.idle.insert(state.last_seq, slot);
        if !state.changed {
            state.changed = true;
            self.changed.push(slot);
        }
    }

    /// Adds what changed since the checkpoint before.
    pub(crate) fn save(
        &mut self,
        window: usize,
        devices: &mut Devices,
        sources: &[Arc<str>],
        checkpoint: &mut Checkpoint,
    ) {
        let row = WindowRow {
            fingerprint: self.fingerprint,
            from: self.from,
            max_series: self.max_series,
            late: self.late,
            refused: self.refused,
        };
        if self.saved_row.as_ref() != Some(&row) {
            checkpoint.changed.push((Key::window(&self.name), row.to_bytes()));
            self.saved_row = Some(row);
        }
        let seen = SeenRow { before: self.spans.before, now: self.seen };
        if seen != SeenRow::default() && self.saved_seen.as_ref() != Some(&seen) {
            checkpoint.changed.push((Key::seen(&self.name), seen.to_bytes()));
            self.saved_seen = Some(seen);
        }
        for slot in self.changed.drain(..) {
            let Some((device, state)) = devices.get_mut(slot, window) else { continue };
            if std::mem::replace(&mut state.changed, false) {
                let key = Key::device(&self.name, device);
                self.removed.remove(&key);
                checkpoint.changed.push((key, DeviceRow::bytes_of(state, sources)));
            }
        }
        checkpoint.removed.extend(std::mem::take(&mut self.removed));
        self.sealed.save(&self.name, checkpoint);
    }

    pub(crate) fn restore_counts(&mut self, saved: &Saved) {
        if let Some(row) = &saved.window {
            self.from = row.from;
            self.max_series = row.max_series;
            self.late = row.late;
            self.refused = row.refused;
            self.saved_row = Some(row.clone());
        }
        if let Some(seen) = &saved.seen {
            (self.spans.before, self.seen) = (seen.before, seen.now);
            self.saved_seen = Some(seen.clone());
        }
    }

    pub(crate) fn restore_device(&mut self, slot: Slot, state: &mut DeviceState) {
        self.series += state.weight();
        match state.idle {
            Idle::Yes => {
                self.idle.insert(state.last_seq, slot);
            }
            Idle::No => {
                state.queued = state.last_seq;
                self.queue.push(Reverse((state.last_seq, slot)));
            }
        }
    }

    pub(crate) fn restore_sealed(&mut self, rows: Vec<(u64, super::state::SealedRow)>) {
        self.sealed.restore(rows);
    }
}

/// The event time that windows go by, held within what can be written.
fn time_of(reading: &Reading) -> Timestamp {
    reading.time.clamp(Timestamp::MIN, Timestamp::MAX)
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
