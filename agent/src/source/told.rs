//! What the log was told of a source, so that it is told once: which trouble it is in, and that it is held back.
//!
//! A trouble is logged when it begins and when it ends. One that comes and goes all the time, because a device has a loose contact or
//! means harm, is logged a few times at once and then once a minute, with the number of those that were left out; if the last one stays,
//! it is logged as soon as it may be. The status shows all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::State;
use super::limiter::Limiter;
use crate::clock::Clock;

/// So many troubles are logged at once, and so many for each device beside.
const AT_ONCE: u32 = 10;
/// And then one each so long.
const EVERY: Duration = Duration::from_secs(60);

/// Remembers what was logged of one source.
#[derive(Debug)]
pub(super) struct Told {
    source: String,
    clock: Clock,
    own: Standing,
    devices: BTreeMap<Arc<str>, Standing>,
    troubles: Limiter,
    blocked: Blocked,
    blocks: Limiter,
}

/// Where the log stands.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// The trouble that was logged and has not ended, as far as the log says.
    logged: Option<State>,
    /// The one there is now, if the log does not have it.
    left_out: Option<State>,
}

/// Whether messages wait because the store takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    No,
    /// And the log has it.
    Logged,
    LeftOut,
}

/// What to do with a trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It is to be logged. So many that came before were not.
    New {
        /// `None` if none was left out.
        left_out: Option<u64>,
    },
    /// The log has it, or has had enough of its kind: at most a word for who looks closely.
    Known,
}

impl Told {
    /// Nothing was told of the source `name`, which has so many devices.
    pub(super) fn nothing_of(name: &str, devices: usize, clock: Clock) -> Self {
        let more = u32::try_from(devices).unwrap_or(u32::MAX);
        Self {
            source: name.to_owned(),
            clock,
            own: Standing::default(),
            devices: BTreeMap::new(),
            troubles: Limiter::new(AT_ONCE.saturating_add(more), EVERY),
            blocked: Blocked::No,
            blocks: Limiter::new(AT_ONCE, EVERY),
        }
    }

    /// The source's name.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The source is in that trouble.
    pub(super) fn is_in(&mut self, trouble: State) -> Word {
        self.own.is_in(trouble, &mut self.troubles, self.clock)
    }

    /// True if the source is in a trouble that was left out, and may be logged by now.
    pub(super) fn is_due(&mut self) -> bool {
        self.own.left_out.is_some() && self.troubles.has_room(self.clock.monotonic())
    }

    /// The source is in no trouble. Returns the one that the log has of it.
    pub(super) fn is_well(&mut self) -> Option<State> {
        std::mem::take(&mut self.own).logged
    }

    /// That device is in trouble.
    pub(super) fn device_fails(&mut self, device: &Arc<str>) -> Word {
        let standing = self.devices.entry(Arc::clone(device)).or_default();
        standing.is_in(State::DeviceErrors, &mut self.troubles, self.clock)
    }

    /// That device is in no trouble. True if the log has one of it.
    pub(super) fn device_is_well(&mut self, device: &str) -> bool {
        self.devices.remove(device).is_some_and(|standing| standing.logged.is_some())
    }

    /// Messages wait because the store takes no more; `aside` is what else that means here. True if this is news.
    pub(super) fn blocked(&mut self, aside: &str) -> bool {
        if self.is_blocked() {
            return false;
        }
        self.blocked = if self.blocks.allows(self.clock.monotonic()) {
            let left_out = self.blocks.take_suppressed();
            warn!(source = %self.source, left_out, "held back: the store takes no more at the moment{aside}");
            Blocked::Logged
        } else {
            debug!(source = %self.source, "held back");
            Blocked::LeftOut
        };
        true
    }

    /// The store takes messages again. True if this is news.
    pub(super) fn unblocked(&mut self) -> bool {
        match std::mem::replace(&mut self.blocked, Blocked::No) {
            Blocked::No => return false,
            Blocked::Logged => info!(source = %self.source, "no longer held back"),
            Blocked::LeftOut => debug!(source = %self.source, "no longer held back"),
        }
        true
    }

    /// What waited is gone, and a trouble that says so is logged: there is no more to be said of the other.
    pub(super) fn forget_blocked(&mut self) {
        self.blocked = Blocked::No;
    }

    /// Whether messages wait because the store takes no more.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked != Blocked::No
    }
}

impl Standing {
    fn is_in(&mut self, trouble: State, limiter: &mut Limiter, clock: Clock) -> Word {
        if self.logged == Some(trouble) {
            self.left_out = None;
            return Word::Known;
        }
        if !limiter.has_room(clock.monotonic()) {
            if self.left_out.replace(trouble) != Some(trouble) {
                limiter.leave_out();
            }
            return Word::Known;
        }
        // What comes late is logged after all.
        let comes_late = self.left_out == Some(trouble);
        *self = Self { logged: Some(trouble), left_out: None };
        limiter.allows(clock.monotonic());
        let left_out = limiter.take_suppressed().map(|count| count - u64::from(comes_late));
        Word::New { left_out: left_out.filter(|count| *count > 0) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn told() -> Told {
        Told::nothing_of("press", 0, Clock::system())
    }

    const NEW: Word = Word::New { left_out: None };

    #[tokio::test(start_paused = true)]
    async fn a_trouble_is_told_when_it_begins_and_when_it_ends() {
        let mut told = told();
        assert_eq!(told.is_well(), None);
        assert_eq!([0; 3].map(|_| told.is_in(State::Busy)), [NEW, Word::Known, Word::Known]);
        assert_eq!(told.is_in(State::Unplugged), NEW, "another one");
        assert_eq!([told.is_well(), told.is_well()], [Some(State::Unplugged), None]);
        assert_eq!(told.is_in(State::Busy), NEW);
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_that_comes_and_goes_costs_a_few_lines_and_then_two_a_minute() {
        let mut told = told();
        let (mut lines, mut left_out_in_all) = (0, 0);
        for _ in 0..3_600 {
            if let Word::New { left_out } = told.is_in(State::Garbage) {
                left_out_in_all += left_out.unwrap_or(0);
                lines += 1;
            }
            lines += u32::from(told.is_well().is_some());
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!((lines, left_out_in_all), (2 * (10 + 59), 3_600 - 69 - 59));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trouble_that_was_left_out_and_stays_is_told_later() {
        let mut told = told();
        for _ in 0..AT_ONCE + 5 {
            told.is_in(State::Garbage);
            told.is_well();
        }
        assert_eq!(told.is_in(State::Silent), Word::Known);
        assert!(!told.is_due());
        advance(EVERY).await;
        assert!(told.is_due());
        assert_eq!(told.is_in(State::Silent), Word::New { left_out: Some(5) });
        assert!(!told.is_due());
        assert_eq!(told.is_well(), Some(State::Silent));
    }

    #[tokio::test(start_paused = true)]
    async fn each_device_has_its_own_troubles_and_all_may_fail_at_once() {
        let mut told = Told::nothing_of("rack", 90, Clock::system());
        let devices: Vec<Arc<str>> = (0..100).map(|n| format!("d{n}").into()).collect();
        assert!(devices.iter().all(|device| told.device_fails(device) == NEW));
        assert!(devices.iter().all(|device| told.device_fails(device) == Word::Known));
        assert!(told.device_is_well("d7") && !told.device_is_well("d7"));
        assert_eq!(told.device_fails(&devices[7]), Word::Known, "once too often");
        assert!(!told.device_is_well("d7"), "so its end is no news");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_back_says_so_once() {
        let mut told = told();
        assert_eq!([told.unblocked(), told.blocked(""), told.blocked("")], [false, true, false]);
        assert!(told.is_blocked());
        assert_eq!([told.unblocked(), told.unblocked()], [true, false]);
        told.blocked("");
        told.forget_blocked();
        assert!(!told.is_blocked() && !told.unblocked());
    }
}
