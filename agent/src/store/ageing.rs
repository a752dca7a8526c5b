//! By which time records age: never faster than time passes, whatever the wall clock does. Pure.
//!
//! A clock that steps from 1970 to today, or by mistake a year ahead, must not make everything too old at once. So the time
//! that ages are reckoned by runs with the monotonic clock. It follows the wall clock back at once, which only keeps records
//! longer, and ahead when a synchronised clock has shown the later time for a while. Where nothing synchronises the clock it
//! counts the time that the agent runs; how long it was off is then not counted.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::reading::{ClockState, Timestamp};

/// A synchronised clock that is ahead by no more than this was slewed, or we looked seldom.
const CLOSE: Duration = Duration::from_secs(60);
/// A synchronised clock that stepped further ahead is believed after this long.
const SETTLED: Duration = Duration::from_secs(600);

/// The time that ages are reckoned by.
#[derive(Debug)]
pub(super) struct Ageing {
    reckoned: Timestamp,
    at: Instant,
    /// Since when the wall clock is ahead, and by how many microseconds.
    ahead: Option<(Instant, i64)>,
}

impl Ageing {
    /// At start, of a store whose newest reading was received at `newest`.
    pub(super) fn new(newest: Option<Timestamp>, now: Instant, wall: Timestamp) -> Self {
        let reckoned = match newest {
            Some(newest) if Clock::is_plausible(wall) => newest.min(wall),
            Some(newest) => newest,
            None => wall,
        };
        Self { reckoned, at: now, ahead: None }
    }

    /// What it is now. To be asked at least every minute or so.
    pub(super) fn look(&mut self, now: Instant, wall: Timestamp, state: ClockState) -> Timestamp {
        let run = Timestamp(self.reckoned.0.saturating_add(micros(now.duration_since(self.at))));
        let step = wall.micros_since(run);
        self.at = now;
        self.reckoned = match state {
            _ if step <= 0 => {
                self.ahead = None;
                if Clock::is_plausible(wall) { wall } else { run }
            }
            ClockState::Synced if step <= micros(CLOSE) => wall,
            ClockState::Synced => match self.ahead {
                Some((since, by)) if step.saturating_sub(by).abs() <= micros(CLOSE) => {
                    if now.duration_since(since) >= SETTLED { wall } else { run }
                }
                _ => {
                    self.ahead = Some((now, step));
                    run
                }
            },
            ClockState::Unsynced => {
                self.ahead = None;
                run
            }
        };
        self.reckoned
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Timestamp = Timestamp(1_800_000_000_000_000);
    const YEAR: i64 = 365 * 86_400_000_000;

    struct Case {
        ageing: Ageing,
        now: Instant,
    }

    impl Case {
        fn new(newest: Option<Timestamp>, wall: Timestamp) -> Self {
            let now = Clock::system().monotonic();
            Self { ageing: Ageing::new(newest, now, wall), now }
        }

        /// What it is `seconds` later.
        fn after(&mut self, seconds: u64, wall: Timestamp, state: ClockState) -> Timestamp {
            self.now += Duration::from_secs(seconds);
            self.ageing.look(self.now, wall, state)
        }
    }

    fn plus(seconds: i64) -> Timestamp {
        Timestamp(TODAY.0 + seconds * 1_000_000)
    }

    #[test]
    fn a_step_ahead_ages_nothing_unless_it_lasts() {
        let mut case = Case::new(Some(TODAY), TODAY);
        let wrong = |seconds| Timestamp(plus(seconds).0 + YEAR);
        assert_eq!(case.after(30, plus(30), ClockState::Synced), plus(30));
        assert_eq!(case.after(30, wrong(60), ClockState::Synced), plus(60));
        assert_eq!(case.after(500, wrong(560), ClockState::Synced), plus(560));
        assert_eq!(case.after(40, plus(600), ClockState::Synced), plus(600), "it was a mistake");
        for minute in 1..=10 {
            let seconds = 600 + minute * 60;
            assert_eq!(case.after(60, wrong(seconds), ClockState::Synced), plus(seconds));
        }
        assert_eq!(case.after(60, wrong(1_260), ClockState::Synced), wrong(1_260), "it stays");
    }

    #[test]
    fn a_step_back_is_followed_at_once() {
        let mut case = Case::new(Some(TODAY), TODAY);
        assert_eq!(case.after(1, plus(-3_600), ClockState::Synced), plus(-3_600));
    }

    #[test]
    fn an_unset_clock_counts_the_time_that_passes() {
        let mut case = Case::new(Some(TODAY), Timestamp(0));
        assert_eq!(case.after(60, Timestamp(60_000_000), ClockState::Unsynced), plus(60));
        // The step to today.
        assert_eq!(case.after(60, plus(9_000), ClockState::Synced), plus(120));
    }

    #[test]
    fn a_clock_that_nobody_vouches_for_never_skips_ahead() {
        let mut case = Case::new(Some(TODAY), plus(86_400));
        for second in 1..2_000 {
            assert_eq!(case.after(1, plus(86_400 + second), ClockState::Unsynced), plus(second));
        }
    }
}
