//! The writer on a disk that is damaged or full: what it does between commits.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::error;

use super::Writer;
use crate::blocking::blocking;
use crate::store::ballast::Ballast;
use crate::store::damage;
use crate::store::log::State;
use crate::store::salvage::{Salvager, Step};
use crate::store::work::Work;

/// Reading a damaged file takes no more than a quarter of the time, and never without pauses.
const SALVAGE_PART: u32 = 3;
const SALVAGE_PAUSE: Duration = Duration::from_millis(10);
/// How often is looked whether a full disk has room again.
const STARVED_PAUSE: Duration = Duration::from_secs(5);
/// So much less held than when the disk was full is room for readings inside the file.
const STARVED_ROOM_BYTES: u64 = 512 << 10;
/// What is saved of a damaged file fills no more of any limit than this.
const SALVAGE_FILLS_PERCENT: u64 = 75;
/// How often is looked whether there is room for what a damaged file holds.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// On a full disk, once the ballast is given back: sinks go on, readings wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Starved {
    /// When to look for room again.
    pub(super) look_at: Instant,
    /// What was held when readings were taken last; with clearly less, the file itself has room.
    held_bytes: u64,
    readings: Taken,
}

/// Whether readings are taken while the ballast is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    No,
    /// The file seems to have room for them.
    Yes,
}

/// A step of reading a damaged file that is under way.
pub(super) type Salvaging = Pin<Box<dyn Future<Output = (Box<Salvager>, Step)> + Send>>;

impl Writer {
    /// Goes on reading a damaged file, if there is one, and room for what it holds. Returns when to look again.
    pub(super) fn start_salvage(&mut self, now: Instant) -> Option<Instant> {
        let state = self.state.as_ref()?;
        let file = state.books.damage.files.first()?;
        if self.salvaging.is_some() || self.work.salvaged.is_some() {
            return None;
        }
        if now < self.salvage_at {
            return Some(self.salvage_at);
        }
        // What comes now goes before what was saved, and must not be shed for it.
        if self.is_full() || state.books.fills(SALVAGE_FILLS_PERCENT, &state.settings) {
            self.salvage_at = now + ROOM_PAUSE;
            return Some(self.salvage_at);
        }
        let of_file = self.salvager.take().filter(|salvager| salvager.name() == file.name);
        let before = if of_file.is_some() { None } else { state.before.clone() };
        let dir = state.settings.data_dir.clone();
        let (store, damaged, saved) = (Arc::clone(&self.ends.reader.file), file.clone(), file.saved);
        self.salvaging = Some(Box::pin(blocking(move || {
            let begin = || {
                // If the store cannot say what the file was, the file can.
                let before = before.or_else(|| damage::kept_before(&store, &damaged.name).ok().flatten());
                Box::new(Salvager::new(&dir, &damaged, before))
            };
            let mut salvager = of_file.unwrap_or_else(begin);
            let step = salvager.step(saved);
            (salvager, step)
        })));
        None
    }

    /// A step that began at `since` is done.
    pub(super) fn take_salvaged(&mut self, since: Instant, step: Step) {
        let now = self.clock.monotonic();
        self.salvage_at = now + (now.duration_since(since) * SALVAGE_PART).clamp(SALVAGE_PAUSE, ROOM_PAUSE);
        match step {
            Step::Searching => {}
            Step::Surveyed(before) => {
                let Some(state) = &mut self.state else { return };
                let Some(file) = state.books.damage.files.first() else { return };
                self.work.remember.push(before.row(&file.name));
                state.before = Some(*before);
                self.due = Some(now);
            }
            Step::Slice(slice) => {
                self.work.salvaged = Some(slice);
                self.due = Some(now);
            }
        }
    }

    /// The disk is full: what can be given back is, and for it goes on what sinks need. Readings wait until there is room again: what
    /// was given back is not for them. Without ballast all waits.
    pub(super) async fn starve(&mut self, state: &State) {
        let dir = state.settings.data_dir.clone();
        let is_freed = blocking(move || damage::make_room(&dir) | Ballast::in_dir(&dir).free()).await;
        if !is_freed && self.starved.is_none() {
            return;
        }
        let look_at = self.clock.monotonic() + STARVED_PAUSE;
        self.starved = Some(Starved { look_at, held_bytes: state.books.held_bytes(), readings: Taken::No });
    }

    /// Takes the group out of what is committed next, while readings have to wait for room.
    pub(super) fn hold_if_starved(&mut self, work: &mut Work) {
        if !self.is_starved() {
            return;
        }
        if let (Some(group), Some(done)) = (work.group.take(), self.group_waiting.take()) {
            self.held = Some((group, done));
        }
    }

    /// Takes readings again once the disk has room for the ballast, or the file for readings.
    pub(super) async fn look_for_room(&mut self, now: Instant) {
        let Some(starved) = self.starved.filter(|starved| starved.look_at <= now) else { return };
        let Some(state) = &self.state else { return };
        let dir = state.settings.data_dir.clone();
        let has_room = state.books.held_bytes() + STARVED_ROOM_BYTES <= starved.held_bytes;
        let is_made = blocking(move || Ballast::in_dir(&dir).make()).await;
        let look_at = now + STARVED_PAUSE;
        self.starved = match starved.readings {
            _ if is_made => None,
            Taken::No if has_room => Some(Starved { look_at, readings: Taken::Yes, ..starved }),
            Taken::No | Taken::Yes => Some(Starved { look_at, ..starved }),
        };
        if starved.readings == Taken::No && !self.is_starved() {
            self.due = Some(now);
            self.release_held();
        }
    }

    pub(super) fn is_starved(&self) -> bool {
        self.starved.is_some_and(|starved| starved.readings == Taken::No)
    }

    /// A damaged file was read to its end, and all that could be read of it is durable.
    pub(super) async fn salvaged(&mut self, state: &State, name: &str, lost: [u64; 3]) {
        let damage = &state.books.damage;
        let salvager = self.salvager.take();
        let [saved_readings, saved_windows, _] =
            salvager.as_ref().map_or([0; 3], |salvager| salvager.saved());
        let [lost_readings, lost_windows, _] = lost;
        let is_known = salvager.is_some_and(|salvager| salvager.knows_books());
        let lost_dead_letters = damage.lost_letters;
        let (dir, name, max) =
            (state.settings.data_dir.clone(), name.to_owned(), state.settings.max_size_bytes);
        let waiting = damage.files.clone();
        // People look for the file by the name that is logged.
        let name = blocking(move || {
            let name = damage::file_away(&dir, &name);
            damage::tidy(&dir, &waiting, max);
            name
        })
        .await;
        if is_known {
            error!(
                file = name,
                saved_readings,
                saved_windows,
                lost_readings,
                lost_windows,
                lost_dead_letters,
                "the store was damaged: what could be read of it is saved under new numbers, the rest is lost"
            );
        } else {
            error!(
                file = name,
                saved_readings,
                saved_windows,
                "the store was damaged: what could be read of it is saved under new numbers; what else it held cannot be told"
            );
        }
    }
}
