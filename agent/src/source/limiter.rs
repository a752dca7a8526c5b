//! No more than so many of something in a time. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Allows a few at once, and then one more each time a while has passed: for lines in a log that somebody else writes.
#[derive(Debug)]
pub(super) struct Limiter {
    burst: u32,
    /// How long one more takes.
    every: Duration,
    left: u32,
    refilled_at: Option<Instant>,
    suppressed: u64,
    told_at: Option<Instant>,
}

/// How often it is told that something was left out.
const TELL_EVERY: Duration = Duration::from_secs(60);

impl Limiter {
    /// Allows `burst` at once, and one more each `every`.
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: burst, refilled_at: None, suppressed: 0, told_at: None }
    }

    /// True if one more is allowed now; one that is not is counted as left out.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let is_allowed = self.has_room(now);
        if is_allowed {
            self.left -= 1;
        } else {
            self.leave_out();
        }
        is_allowed
    }

    /// True if one more would be allowed now.
    pub(super) fn has_room(&mut self, now: Instant) -> bool {
        let at = *self.refilled_at.get_or_insert(now);
        let since = now.saturating_duration_since(at).as_millis();
        let more = u32::try_from(since / self.every.as_millis().max(1)).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.burst);
            // The part of a while that has passed counts for the next one, unless it would be one too many.
            let counted = self.every.saturating_mul(more);
            self.refilled_at = Some(if self.left < self.burst { at + counted } else { now });
        }
        self.left > 0
    }

    /// Something was left out for another reason.
    pub(super) fn leave_out(&mut self) {
        self.suppressed = self.suppressed.saturating_add(1);
    }

    /// How many were left out since this was asked last; `None` if none was.
    pub(super) fn take_suppressed(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.suppressed)).filter(|count| *count > 0)
    }

    /// The same, now and then: somebody should be told.
    pub(super) fn take_suppressed_when_due(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        if self.suppressed == 0 || !is_due {
            return None;
        }
        self.told_at = Some(now);
        self.take_suppressed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_at_once_then_one_a_second() {
        let start = Instant::now();
        let mut limiter = Limiter::new(2, Duration::from_secs(1));
        assert_eq!([0; 3].map(|_| limiter.allows(start)), [true, true, false]);
        assert_eq!(limiter.take_suppressed_when_due(start), Some(1));
        assert_eq!(limiter.take_suppressed_when_due(start), None);
        let later = start + Duration::from_millis(1_500);
        assert_eq!([0; 2].map(|_| limiter.allows(later)), [true, false]);
        assert_eq!(limiter.take_suppressed_when_due(later), None, "that was told a moment ago");
        assert_eq!(limiter.take_suppressed_when_due(start + TELL_EVERY), Some(1));
        assert!(limiter.allows(start + Duration::from_secs(2)), "the half second before counts");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_saved_up_to_a_few() {
        let start = Instant::now();
        let mut limiter = Limiter::new(2, Duration::from_secs(30));
        let mut allowed = 0;
        for second in 0..3_600 {
            allowed += u32::from(limiter.allows(start + Duration::from_secs(second)));
        }
        assert_eq!(allowed, 2 + 119);
        let later = start + Duration::from_secs(100_000);
        assert_eq!([0; 3].map(|_| limiter.allows(later)), [true, true, false]);
    }
}
