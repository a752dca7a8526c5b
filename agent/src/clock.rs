//! Wall and monotonic time: the only file that asks the operating system.
//!
//! Everything that decides takes time as an argument. Rooms ask a [`Clock`]; monotonic time is tokio's, so that tests
//! can pause it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::reading::{ClockState, Timestamp};

/// Waits until `at`, or for ever if there is nothing to wait for.
pub async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// 2026-11-01T00:00:00Z: this version was written later, so no clock that is right shows an earlier time.
const WRITTEN: Timestamp = Timestamp(1_793_491_200_000_000);

/// Where rooms get the time from. Cheap to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock(Host);

/// Whom a [`Clock`] asks for the wall time. Monotonic time is always tokio's.
#[derive(Clone, Copy, Debug, Default)]
enum Host {
    #[default]
    System,
    Simulated(&'static SimulatedWall),
}

/// A wall clock of tests and simulations: it runs with tokio's time, which they pause, and jumps when it is told to.
#[derive(Debug)]
pub struct SimulatedWall {
    started: Instant,
    /// What it showed at `started`, as of the last jump; microseconds since the Unix epoch.
    shown: AtomicI64,
    synced: AtomicBool,
}

impl SimulatedWall {
    /// A clock that shows `wall` now and is synchronised.
    #[must_use]
    pub fn showing(wall: Timestamp) -> Self {
        Self { started: Instant::now(), shown: AtomicI64::new(wall.0), synced: AtomicBool::new(true) }
    }

    /// Jumps by so many microseconds, back if negative.
    pub fn jump(&self, micros: i64) {
        self.shown.fetch_add(micros, Relaxed);
    }

    /// What the kernel says of it from now on.
    pub fn set_state(&self, state: ClockState) {
        self.synced.store(state == ClockState::Synced, Relaxed);
    }

    fn wall(&self) -> Timestamp {
        let elapsed = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        Timestamp(self.shown.load(Relaxed).saturating_add(elapsed))
    }
}

impl Clock {
    /// The clock of this machine.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock whose wall time is `wall`'s.
    #[must_use]
    pub fn simulated(wall: &'static SimulatedWall) -> Self {
        Self(Host::Simulated(wall))
    }

    /// The wall clock; it may jump.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn wall(&self) -> Timestamp {
        let wall = match self.0 {
            Host::Simulated(wall) => wall.wall(),
            Host::System => Timestamp(match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
                Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
                Err(before) => {
                    i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
                }
            }),
        };
        Timestamp(wall.0.clamp(Timestamp::MIN.0, Timestamp::MAX.0))
    }

    /// The wall clock as the standard library has it, for what is reckoned in its type.
    #[must_use]
    pub fn as_system_time(&self) -> SystemTime {
        let wall = self.wall().0;
        let distance = Duration::from_micros(wall.unsigned_abs());
        if wall < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
    }

    /// The monotonic clock.
    #[must_use]
    pub fn monotonic(&self) -> Instant {
        Instant::now()
    }

    /// Whether the wall clock is synchronised, as far as can be told from what it shows: a board without a battery begins
    /// its day in 1970. Whether a plausible clock is synchronised the kernel would know (adjtimex); it is not asked yet.
    #[must_use]
    pub fn state(&self) -> ClockState {
        let is_synced = match self.0 {
            Host::System => true,
            Host::Simulated(wall) => wall.synced.load(Relaxed),
        };
        if is_synced && Self::is_plausible(self.wall()) { ClockState::Synced } else { ClockState::Unsynced }
    }

    /// False for a time of receipt that only a clock that was not set yet can have shown.
    #[must_use]
    pub fn is_plausible(received: Timestamp) -> bool {
        received >= WRITTEN
    }
}
