//! When to commit: what a commit costs in flash against how long senders wait for their acks.
//!
//! A commit has a fixed price whatever it holds, so readings wait for others, at most `commit_interval`. But senders
//! keep only so many messages in flight: when they have sent those, nothing more comes until we commit, and waiting
//! out the interval would throttle them. We cannot see their windows; we can see that the inflow stops for clearly
//! longer than its own rhythm while acks are owed. A flood that stops has hit its window; a sensor that speaks each
//! 20 ms has not.
//!
//! The rhythm is the mean gap between messages and its mean deviation, both smoothed exponentially, as TCP estimates its round
//! trip (Jacobson, "Congestion Avoidance and Control", 1988). A pause that ends just after acks were released was our doing,
//! not the senders' rhythm: it is left out, and taken as evidence that somebody waits. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// No silence shorter than this is called a pause: messages of one burst are this far apart on a slow network.
const MIN_PAUSE: Duration = Duration::from_millis(2);
/// A message that comes this soon after acks were released was waiting for them.
const ANSWER_WITHIN: Duration = Duration::from_millis(5);
/// Weight of one gap in the means.
const GAIN: f64 = 1.0 / 16.0;
/// Gaps of zero that one batch adds at most; more would change nothing.
const BURST: usize = 64;

/// The rhythm of the inflow, all sources together.
#[derive(Clone, Debug)]
pub(super) struct Rhythm {
    /// Mean gap and mean deviation, in seconds; `None` before the first gap.
    gap: Option<(f64, f64)>,
    last_arrival: Option<Instant>,
    /// When acks were released into a pause, if nothing came since.
    released: Option<Instant>,
    /// Whether the last such release was followed at once by more: somebody waits for his acks.
    is_waited_for: bool,
}

impl Rhythm {
    /// No rhythm yet.
    #[must_use]
    pub(super) fn new() -> Self {
        Self { gap: None, last_arrival: None, released: None, is_waited_for: false }
    }

    /// `count` messages came together.
    pub(super) fn arrived(&mut self, now: Instant, count: usize) {
        let gap = self.last_arrival.map(|last| now.duration_since(last));
        self.last_arrival = Some(now);
        match self.released.take().map(|released| now.duration_since(released)) {
            Some(after) if after <= ANSWER_WITHIN => self.is_waited_for = true,
            Some(_) => {
                self.is_waited_for = false;
                self.learn(gap);
            }
            None => self.learn(gap),
        }
        for _ in 1..count.min(BURST) {
            self.learn(Some(Duration::ZERO));
        }
    }

    /// Acks were released: who waited for them may go on. Says something only if the inflow had paused before.
    pub(super) fn released(&mut self, now: Instant, interval: Duration) {
        let silence = self.last_arrival.map(|last| now.duration_since(last));
        self.released = silence.filter(|silence| *silence >= self.pause(interval)).map(|_| now);
    }

    /// How long a silence must last to be called a pause, if readings may wait for `interval` at most.
    #[must_use]
    pub(super) fn pause(&self, interval: Duration) -> Duration {
        let Some((mean, deviation)) = self.gap else { return MIN_PAUSE.min(interval) };
        if self.is_waited_for || self.is_sparse(interval) {
            return MIN_PAUSE.min(interval);
        }
        // For messages at random (exponential gaps), twelve deviations make one false pause in ten thousand gaps.
        let pause = (4.0 * mean).max(mean + 12.0 * deviation);
        Duration::from_secs_f64(pause.min(interval.as_secs_f64())).max(MIN_PAUSE.min(interval))
    }

    /// True if on average less than one message comes in `interval`: waiting would gather nothing.
    #[must_use]
    pub(super) fn is_sparse(&self, interval: Duration) -> bool {
        self.gap.is_none_or(|(mean, _)| mean >= interval.as_secs_f64())
    }

    /// When the last message came.
    #[must_use]
    pub(super) fn last_arrival(&self) -> Option<Instant> {
        self.last_arrival
    }

    fn learn(&mut self, gap: Option<Duration>) {
        let Some(gap) = gap.map(|gap| gap.as_secs_f64()) else { return };
        self.gap = Some(match self.gap {
            None => (gap, gap / 2.0),
            Some((mean, deviation)) => {
                let error = gap - mean;
                (mean + GAIN * error, deviation + GAIN * (error.abs() - deviation))
            }
        });
    }
}

impl Default for Rhythm {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    /// Commits as the room does, and returns how many it made, for messages at these times (ms), all acknowledged.
    fn commits(arrivals_ms: impl IntoIterator<Item = f64>) -> usize {
        let start = Instant::now();
        let mut rhythm = Rhythm::new();
        let mut since: Option<Instant> = None;
        let mut made = 0;
        for at in arrivals_ms {
            let now = start + Duration::from_secs_f64(at / 1_000.0);
            if let Some(first) = since {
                let due = (first + INTERVAL).min(rhythm.last_arrival().unwrap() + rhythm.pause(INTERVAL));
                if due <= now {
                    made += 1;
                    rhythm.released(due, INTERVAL);
                    since = None;
                }
            }
            rhythm.arrived(now, 1);
            since.get_or_insert(now);
        }
        made + usize::from(since.is_some())
    }

    #[test]
    fn a_sensor_each_20_ms_costs_a_commit_a_second() {
        let made = commits((0..3_000).map(|i| f64::from(i) * 20.0));
        assert!((58..=64).contains(&made), "{made} commits in 60 s");
    }

    #[test]
    fn fifty_random_messages_a_second_cost_little_more() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut at = 0.0;
        let made = commits((0..3_000).map(|_| {
            at += -20.0 * (1.0 - random.f64()).ln();
            at
        }));
        assert!((55..=75).contains(&made), "{made} commits in 60 s");
    }

    #[test]
    fn small_bursts_are_gathered_too() {
        let made = commits((0..3_000).map(|i| f64::from(i / 5) * 100.0 + f64::from(i % 5) * 0.05));
        assert!((55..=70).contains(&made), "{made} commits in 60 s");
    }

    #[test]
    fn a_flood_behind_a_window_of_twenty_is_not_throttled() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new();
        let mut now = start;
        // First a quiet regime of 50 messages a second, then the flood.
        for _ in 0..500 {
            now += Duration::from_millis(20);
            rhythm.arrived(now, 1);
        }
        let mut waited = Duration::ZERO;
        for _ in 0..100 {
            for _ in 0..20 {
                now += Duration::from_micros(30);
                rhythm.arrived(now, 1);
            }
            let pause = rhythm.pause(INTERVAL);
            waited += pause;
            now += pause;
            rhythm.released(now, INTERVAL);
            now += Duration::from_micros(500);
        }
        assert!(waited < Duration::from_secs(1), "waited {waited:?} for 100 windows");
    }

    #[test]
    fn a_sender_that_waits_for_each_ack_is_served_at_once() {
        let mut rhythm = Rhythm::new();
        let mut now = Instant::now();
        for _ in 0..10 {
            rhythm.arrived(now, 1);
            assert!(rhythm.pause(INTERVAL) <= MIN_PAUSE);
            now += MIN_PAUSE;
            rhythm.released(now, INTERVAL);
            now += Duration::from_micros(300);
        }
    }

    #[test]
    fn a_message_that_comes_seldom_is_committed_at_once() {
        let mut rhythm = Rhythm::new();
        let start = Instant::now();
        for seconds in [0, 10, 20, 30] {
            rhythm.arrived(start + Duration::from_secs(seconds), 1);
        }
        assert_eq!(rhythm.pause(INTERVAL), MIN_PAUSE);
        assert!(rhythm.is_sparse(INTERVAL));
    }
}
