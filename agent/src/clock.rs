//! Wall and monotonic time: the only file that asks the operating system.
//!
//! Everything that decides takes time as an argument. Rooms ask a [`Clock`]; monotonic time is tokio's, so that tests
//! can pause it.

use std::time::SystemTime;

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

/// Where rooms get the time from. Cheap to clone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The wall clock; it may jump.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn wall(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Timestamp(micros.clamp(Timestamp::MIN.0, Timestamp::MAX.0))
    }

    /// The wall clock as the standard library has it, for what is reckoned in its type.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn system(&self) -> SystemTime {
        SystemTime::now()
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
        if Self::is_plausible(self.wall()) { ClockState::Synced } else { ClockState::Unsynced }
    }

    /// False for a time of receipt that only a clock that was not set yet can have shown.
    #[must_use]
    pub fn is_plausible(received: Timestamp) -> bool {
        received >= WRITTEN
    }
}
