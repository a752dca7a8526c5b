//! Wall and monotonic time: the only file that asks the operating system.
//!
//! Everything that decides takes time as an argument. Rooms ask a [`Clock`]; monotonic time is tokio's, so that tests
//! can pause it.

use std::time::SystemTime;

use tokio::time::Instant;

use crate::reading::{ClockState, Timestamp};

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

    /// Whether the wall clock is synchronised.
    #[must_use]
    pub fn state(&self) -> ClockState {
        ClockState::Synced
    }
}
