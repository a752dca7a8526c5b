//! When rounds begin. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Rounds at whole intervals from the first, however long each takes.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    next: Instant,
}

impl Schedule {
    /// The first round is due at `first`.
    pub(super) fn new(first: Instant, interval: Duration) -> Self {
        Self { interval, next: first }
    }

    /// When the next round is due, or the one under way was.
    pub(super) fn due(&self) -> Instant {
        self.next
    }

    /// The round under way has ended. Returns how many are left out because they should have begun meanwhile.
    pub(super) fn ended(&mut self, now: Instant) -> u32 {
        let took = now.saturating_duration_since(self.next).as_nanos();
        let intervals = took.div_ceil(self.interval.as_nanos().max(1)).max(1);
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.next += self.interval.saturating_mul(intervals);
        intervals - 1
    }
}

/// Whether rounds take longer than the interval, so that the log says once when that begins and once when it ends.
#[derive(Debug, Default)]
pub(super) struct Overload {
    is_on: bool,
    /// Rounds in a row that were as they should be.
    calm: u32,
}

/// What is to be said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Rounds begin to take too long.
    Begins,
    /// They fit again.
    Ends,
}

/// So many rounds in a row must fit before it is said that they do.
const CALM_ROUNDS: u32 = 10;

impl Overload {
    /// A round ended in which every device answered, and this many after it are left out.
    pub(super) fn round(&mut self, skipped: u32) -> Option<News> {
        self.calm = if skipped == 0 { self.calm.saturating_add(1) } else { 0 };
        match self.is_on {
            false if skipped > 0 => {
                self.is_on = true;
                Some(News::Begins)
            }
            true if self.calm >= CALM_ROUNDS => {
                self.is_on = false;
                Some(News::Ends)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rounds_begin_at_whole_intervals_and_late_ones_are_left_out() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND);
        let mut check = |took_ms: u64, skipped: u32, next_s: u32| {
            let now = schedule.due() + Duration::from_millis(took_ms);
            assert_eq!(schedule.ended(now), skipped, "{took_ms}");
            assert_eq!(schedule.due(), start + SECOND * next_s, "{took_ms}");
        };
        check(0, 0, 1);
        check(999, 0, 2);
        check(1_000, 0, 3);
        check(1_001, 1, 5);
        check(3_500, 3, 9);
    }

    #[test]
    fn overload_is_said_once_and_ends_when_rounds_fit_for_good() {
        let mut overload = Overload::default();
        assert_eq!(overload.round(0), None);
        assert_eq!(overload.round(1), Some(News::Begins));
        for _ in 0..3 {
            assert_eq!(overload.round(0), None);
            assert_eq!(overload.round(2), None);
        }
        let said: Vec<_> = (0..12).filter_map(|_| overload.round(0)).collect();
        assert_eq!(said, [News::Ends]);
    }
}
