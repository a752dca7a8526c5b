//! No more than so many of something a second. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Allows a few at once, and one more each second: for lines in a log that somebody else writes.
#[derive(Debug)]
pub(super) struct Limiter {
    burst: u32,
    left: u32,
    refilled_at: Option<Instant>,
    suppressed: u64,
    told_at: Option<Instant>,
}

/// How often it is told that something was left out.
const TELL_EVERY: Duration = Duration::from_secs(60);

impl Limiter {
    pub(super) fn new(burst: u32) -> Self {
        Self { burst, left: burst, refilled_at: None, suppressed: 0, told_at: None }
    }

    /// True if one more is allowed now.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let at = *self.refilled_at.get_or_insert(now);
        let seconds = now.saturating_duration_since(at).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(more).min(self.burst);
            self.refilled_at = Some(at + Duration::from_secs(seconds));
        }
        let is_allowed = self.left > 0;
        if is_allowed {
            self.left -= 1;
        } else {
            self.suppressed += 1;
        }
        is_allowed
    }

    /// True now and then while some are left out: somebody should be told.
    pub(super) fn take_suppressed(&mut self, now: Instant) -> bool {
        let is_due = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        let is_told = self.suppressed > 0 && is_due;
        if is_told {
            (self.suppressed, self.told_at) = (0, Some(now));
        }
        is_told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_at_once_then_one_a_second() {
        let start = Instant::now();
        let mut limiter = Limiter::new(2);
        assert_eq!([0; 3].map(|_| limiter.allows(start)), [true, true, false]);
        assert!(limiter.take_suppressed(start) && !limiter.take_suppressed(start));
        let later = start + Duration::from_millis(1_500);
        assert_eq!([0; 2].map(|_| limiter.allows(later)), [true, false]);
        assert!(!limiter.take_suppressed(later), "that was told a moment ago");
        assert!(limiter.take_suppressed(start + TELL_EVERY));
    }
}
