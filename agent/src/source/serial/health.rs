//! How a line is: whether what comes makes sense, comes at all, or comes too fast. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// So many bytes without any sense between them: the speed is wrong, or the protocol. More than the banner of a boot loader, which
/// many boards print at a speed of its own.
const SENSELESS_BYTES: u64 = 1_024;
/// So many messages in a row that make sense are no chance: at a wrong speed a short line may look like text.
pub(super) const CONVINCING: u64 = 3;
/// A line that flooded is well again after so long within its rate.
const CALM: Duration = Duration::from_secs(5);

/// How a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// As it should be.
    Fine,
    /// Nothing comes.
    Silent,
    /// More comes than may.
    Flooding,
    /// What comes makes no sense.
    Garbage,
}

/// Watches one line, and says how much more of it may be read.
#[derive(Debug)]
pub(super) struct Health {
    /// Messages a second that are read.
    max_rate: f64,
    silent_after: Duration,
    /// When something came last that made sense, or the port was opened.
    sense_at: Instant,
    /// Since there was sense enough.
    senseless_bytes: u64,
    /// Messages that made sense, in a row.
    sense_run: u64,
    /// Messages that may be read at once.
    credit: f64,
    credit_at: Instant,
    flooded_at: Option<Instant>,
}

impl Health {
    pub(super) fn new(max_rate: u32, silent_after: Duration, now: Instant) -> Self {
        let max_rate = f64::from(max_rate.max(1));
        Self {
            max_rate,
            silent_after,
            sense_at: now,
            senseless_bytes: 0,
            sense_run: 0,
            credit: max_rate,
            credit_at: now,
            flooded_at: None,
        }
    }

    /// The port was opened.
    pub(super) fn begin(&mut self, now: Instant) {
        self.sense_at = now;
        self.senseless_bytes = 0;
    }

    /// So many messages came: so many bytes of them made no sense, and so many messages after those did.
    pub(super) fn heard(&mut self, now: Instant, messages: u64, sense: u64, senseless_bytes: u64) {
        if sense > 0 {
            self.sense_at = now;
        }
        if senseless_bytes > 0 {
            self.sense_run = 0;
            self.senseless_bytes = self.senseless_bytes.saturating_add(senseless_bytes);
        }
        self.sense_run = self.sense_run.saturating_add(sense);
        if self.sense_run >= CONVINCING {
            self.senseless_bytes = 0;
        }
        self.refill(now);
        #[expect(clippy::cast_precision_loss, reason = "what one read brings is a small number")]
        let spent = messages as f64;
        self.credit -= spent;
        if self.credit < 0.0 {
            self.flooded_at = Some(now);
        }
    }

    /// Nothing should be read before then.
    pub(super) fn read_again_at(&self) -> Option<Instant> {
        (self.credit < 0.0).then(|| self.credit_at + Duration::from_secs_f64(-self.credit / self.max_rate))
    }

    /// How the line is now.
    pub(super) fn condition(&self, now: Instant) -> Condition {
        let flooded_lately = || self.flooded_at.is_some_and(|at| now.saturating_duration_since(at) < CALM);
        // What waits unread for long is not silence, and not calm either.
        let is_unread = || self.read_again_at().is_some_and(|at| now < at);
        if self.senseless_bytes >= SENSELESS_BYTES {
            Condition::Garbage
        } else if flooded_lately() || is_unread() {
            Condition::Flooding
        } else if !self.silent_after.is_zero() && self.silence(now) >= self.silent_after {
            Condition::Silent
        } else {
            Condition::Fine
        }
    }

    /// For how long nothing has come that made sense.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.sense_at)
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.credit_at).as_secs_f64();
        // What was not used is saved up for one second: nodes send what they gathered in one go.
        self.credit = (self.credit + since * self.max_rate).min(self.max_rate);
        self.credit_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_read_no_faster_than_it_may_be() {
        let start = Instant::now();
        let mut health = Health::new(100, Duration::ZERO, start);
        health.heard(start, 100, 100, 0);
        assert_eq!((health.read_again_at(), health.condition(start)), (None, Condition::Fine));
        health.heard(start, 50, 50, 0);
        assert_eq!(health.read_again_at(), Some(start + Duration::from_millis(500)));
        assert_eq!(health.condition(start), Condition::Flooding);
        let later = start + Duration::from_millis(500);
        health.heard(later, 0, 0, 0);
        assert_eq!((health.read_again_at(), health.condition(later)), (None, Condition::Flooding));
        assert_eq!(health.condition(start + CALM), Condition::Fine);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_floods_for_as_long_as_it_is_not_read() {
        let start = Instant::now();
        let mut health = Health::new(10, Duration::from_secs(60), start);
        health.heard(start, 2_010, 2_010, 0);
        let again = start + Duration::from_secs(200);
        assert_eq!(health.read_again_at(), Some(again));
        for after in [10, 100, 199].map(Duration::from_secs) {
            assert_eq!(health.condition(start + after), Condition::Flooding, "{after:?}");
        }
        health.heard(again, 1, 1, 0);
        assert_eq!(health.condition(again), Condition::Flooding, "more was waiting");
        assert_eq!(health.condition(again + CALM), Condition::Fine);
    }

    #[tokio::test(start_paused = true)]
    async fn senseless_bytes_are_garbage_until_something_makes_sense() {
        let start = Instant::now();
        let mut health = Health::new(100, Duration::from_secs(10), start);
        health.heard(start, 0, 0, SENSELESS_BYTES - 1);
        assert_eq!(health.condition(start), Condition::Fine);
        health.heard(start, 0, 0, 1);
        assert_eq!(health.condition(start), Condition::Garbage);
        health.heard(start, 1, 1, 0);
        assert_eq!(health.condition(start), Condition::Garbage, "that may be chance");
        health.heard(start, 2, 2, 0);
        assert_eq!(health.condition(start), Condition::Fine);
        let late = start + Duration::from_secs(10);
        assert_eq!(health.condition(late), Condition::Silent);
        health.begin(late);
        assert_eq!(health.condition(late), Condition::Fine);
    }
}
