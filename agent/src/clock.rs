//! Wall and monotonic time: the only module that asks the operating system.
//!
//! Everything that decides takes time as an argument. Rooms ask a [`Clock`]; monotonic time is tokio's, so that tests
//! can pause it. The wall clock may jump, and it may never have been set; what is received is therefore stamped by a line that
//! never goes back (`clock/line.rs`), and whether the wall clock is right is asked of the kernel (`clock/kernel.rs`).

mod kernel;
mod line;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

pub use self::line::Stamp;
use self::line::{Line, Seen};
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

/// The stamps of this process: one line, whatever was configured anew meanwhile.
static LINE: LazyLock<Mutex<Line>> = LazyLock::new(|| Mutex::new(Line::new(kernel::boot_id())));

/// Where rooms get the time from. Cheap to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock(Host);

/// Who says whether the wall clock is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// The kernel, which knows whether something synchronises it.
    #[default]
    Kernel,
    /// The operator: it is kept right by means that the kernel does not know of.
    #[serde(rename = "trusted")]
    Operator,
}

/// Whom a [`Clock`] asks for the wall time. Monotonic time is always tokio's.
#[derive(Clone, Copy, Debug)]
enum Host {
    System(Trust),
    Simulated(&'static SimulatedWall),
}

impl Default for Host {
    fn default() -> Self {
        Self::System(Trust::Operator)
    }
}

/// A wall clock of tests and simulations: it runs with tokio's time, which they pause, and jumps when it is told to. It has a
/// boot of its own, which begins with it.
#[derive(Debug)]
pub struct SimulatedWall {
    started: Instant,
    /// What it showed at `started`, as of the last jump; microseconds since the Unix epoch.
    shown: AtomicI64,
    synced: AtomicBool,
    line: Mutex<Line>,
}

impl SimulatedWall {
    /// A clock that shows `wall` now and is synchronised. Two that first showed the same time have the same boot.
    #[must_use]
    pub fn showing(wall: Timestamp) -> Self {
        let boot = Uuid::from_u128(u128::from(wall.0.unsigned_abs()) + 1);
        Self {
            started: Instant::now(),
            shown: AtomicI64::new(wall.0),
            synced: AtomicBool::new(true),
            line: Mutex::new(Line::new(boot)),
        }
    }

    /// Jumps by so many microseconds, back if negative.
    pub fn jump(&self, micros: i64) {
        self.shown.fetch_add(micros, Relaxed);
    }

    /// What the kernel says of it from now on.
    pub fn set_state(&self, state: ClockState) {
        self.synced.store(state == ClockState::Synced, Relaxed);
    }

    fn uptime_micros(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.shown.load(Relaxed).saturating_add(self.uptime_micros()))
    }
}

impl Clock {
    /// The clock of this machine, taken to be right unless it shows a time before this version was written.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock whose wall time is `wall`'s.
    #[must_use]
    pub fn simulated(wall: &'static SimulatedWall) -> Self {
        Self(Host::Simulated(wall))
    }

    /// The same clock, with `trust` to say whether it is right; a simulated one knows that itself.
    #[must_use]
    pub fn trusting(self, trust: Trust) -> Self {
        match self.0 {
            Host::System(_) => Self(Host::System(trust)),
            Host::Simulated(_) => self,
        }
    }

    /// The wall clock; it may jump.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn wall(&self) -> Timestamp {
        let wall = match self.0 {
            Host::Simulated(wall) => wall.wall(),
            Host::System(_) => Timestamp(match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
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

    /// Whether the wall clock is synchronised: whoever is trusted says so, and what it shows is not before this version was
    /// written, as on a board without a battery, which begins its day in 1970. The kernel is asked once a second at most.
    #[must_use]
    pub fn state(&self) -> ClockState {
        self.state_of(self.wall())
    }

    fn state_of(&self, wall: Timestamp) -> ClockState {
        let is_synced = match self.0 {
            Host::System(Trust::Operator) => true,
            Host::System(Trust::Kernel) => kernel::is_synced(self.uptime_micros()),
            Host::Simulated(wall) => wall.synced.load(Relaxed),
        };
        if is_synced && Self::is_plausible(wall) { ClockState::Synced } else { ClockState::Unsynced }
    }

    /// Who says whether this clock is right.
    #[must_use]
    pub fn trust(&self) -> Trust {
        match self.0 {
            Host::System(trust) => trust,
            Host::Simulated(_) => Trust::Kernel,
        }
    }

    /// When something is received: never before an earlier stamp, whatever the wall clock does.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let mut line = self.line();
        // Under the lock: who asks later must not have looked earlier.
        let seen = self.look();
        line.stamp(seen)
    }

    /// Stamps begin no earlier than `newest`, the newest of an earlier run.
    pub fn resume(&self, newest: Timestamp) {
        let mut line = self.line();
        let seen = self.look();
        line.resume(newest, seen);
    }

    /// How far stamps are ahead of the wall clock, which went back; nearly always zero.
    #[must_use]
    pub fn ahead(&self) -> Duration {
        let line = self.line();
        let seen = self.look();
        Duration::from_micros(line.ahead(seen).unsigned_abs())
    }

    /// This boot of the machine; nil if it cannot be told.
    #[must_use]
    pub fn boot(&self) -> Uuid {
        self.line().boot()
    }

    /// The wall time at which the machine was started, by the clock as it is now: microseconds since the Unix epoch.
    #[must_use]
    pub fn booted_at(&self) -> i64 {
        let seen = self.look();
        seen.wall.0.saturating_sub(seen.uptime_micros)
    }

    /// False for a time of receipt that only a clock that was not set yet can have shown.
    #[must_use]
    pub fn is_plausible(received: Timestamp) -> bool {
        received >= WRITTEN
    }

    fn look(&self) -> Seen {
        let wall = self.wall();
        Seen { wall, uptime_micros: self.uptime_micros(), state: self.state_of(wall) }
    }

    /// Since the machine was started, sleep included.
    fn uptime_micros(&self) -> i64 {
        match self.0 {
            Host::System(_) => kernel::uptime_micros(),
            Host::Simulated(wall) => wall.uptime_micros(),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        let line = match self.0 {
            Host::System(_) => &*LINE,
            Host::Simulated(wall) => &wall.line,
        };
        // What it holds is whole at every moment.
        line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
