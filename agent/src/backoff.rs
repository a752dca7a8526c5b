//! Growing pauses between attempts: exponential with full jitter. Pure; chance is passed in.
//!
//! "Full jitter" after Marc Brooker, "Exponential Backoff And Jitter": the pause is drawn evenly between zero and the
//! current ceiling, which doubles with each failure. Of the variants compared there it makes the least load.

use std::time::Duration;

/// How long pauses start and how long they may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first ceiling.
    pub initial: Duration,
    /// No ceiling grows above this.
    pub max: Duration,
}

/// The state of one series of attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    settings: Settings,
    failures: u32,
}

impl Backoff {
    /// A series with no failure yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, failures: 0 }
    }

    /// The pause after one more failure. `chance` is evenly drawn from 0..1.
    ///
    /// Never below a tenth of the ceiling: a pause of nothing after a failure is a busy loop.
    #[must_use]
    pub fn after_failure(&mut self, chance: f64) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(chance.clamp(0.1, 1.0))
    }

    /// The attempt succeeded: the next series starts small again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How often it failed since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn ceiling(&self) -> Duration {
        let factor = 2_u32.saturating_pow(self.failures.min(20));
        self.settings.initial.saturating_mul(factor).min(self.settings.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_max_and_falls_back_on_success() {
        let settings = Settings { initial: Duration::from_millis(500), max: Duration::from_secs(3) };
        let mut backoff = Backoff::new(settings);
        let pauses: Vec<u128> = (0..5).map(|_| backoff.after_failure(1.0).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 3000, 3000]);
        backoff.succeeded();
        assert_eq!(backoff.after_failure(1.0).as_millis(), 500);
    }

    #[test]
    fn a_pause_is_never_nothing() {
        let settings = Settings { initial: Duration::from_secs(1), max: Duration::from_secs(1) };
        assert_eq!(Backoff::new(settings).after_failure(0.0).as_millis(), 100);
    }
}
