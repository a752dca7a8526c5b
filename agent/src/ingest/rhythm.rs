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
//! not the senders' rhythm: it is left out, and taken as evidence that somebody waits.
//!
//! That evidence can deceive. A broker that has not set TCP_NODELAY (mosquitto's default) keeps a message back until the one
//! before is acknowledged by TCP, and our kernel delays that by 40 to 200 ms, unless we send something: a steady flow stops until we
//! commit and acknowledge, and then goes on at once, as if its window had been full. Measured at 3 000 messages a second: 226
//! commits a second. So now and then a pause is waited out, as a probe. If the flow goes on without acks, it is patient:
//! from then on only long silences are pauses, and short ones when about as much is owed as at the long silence before: that
//! was the window. Who is really waiting pays for a probe with a quarter of a second, ever more seldom.
//!
//! ```text
//!                ┌──── many pauses ────► probing ──── goes on ────┐
//!            impatient ◄─── silent ─────────┘                     ▼
//!                ▲                                             patient ◄─┐ long silence, answered, much owed:
//!                └──── the same, little owed ─────────────────────┘ └────┘ that is the window
//! ```
//!
//! Pure.

use std::time::Duration;

use tokio::time::Instant;

/// No silence shorter than this is called a pause: messages of one burst are this far apart on a slow network.
const MIN_PAUSE: Duration = Duration::from_millis(2);
/// A message that comes this soon after acks were released was waiting for them.
const ANSWER_WITHIN: Duration = Duration::from_millis(5);
/// Weight of one gap in the means.
const GAIN: f64 = 1.0 / 16.0;
/// A silence that is longer than TCP delays its acknowledgements: 40 ms in Linux at first, doubled up to 200 ms while it
/// waits in vain for something to send along.
const LONG_PAUSE: Duration = Duration::from_millis(250);
/// A window smaller than this is served best by a commit at each pause.
const SMALL_WINDOW: usize = 128;
/// So many commits at pauses call for a probe: fewer cost little.
const PROBE_AFTER_PAUSES: u32 = 32;
/// Between probes, at first; doubled each time that a probe finds somebody waiting.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Between probes, at most.
const PROBE_EVERY_MAX: Duration = Duration::from_secs(64);
/// A flow that was patient for this long has been judged rightly.
const PROVEN_AFTER: Duration = Duration::from_secs(10);
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
    /// Messages gathered for the next commit.
    owed: usize,
    /// The commit on its way, or the last one.
    commit: Commit,
    /// How many were owed when a long silence was ended by a commit, if nothing came since.
    stopped_at: Option<usize>,
    /// Whether the last such release was followed at once by more: somebody waits for his acks.
    is_waited_for: bool,
    patience: Patience,
    /// No probe begins before this.
    probe_at: Option<Instant>,
    probe_every: Duration,
}

/// A commit, as far as the rhythm goes.
#[derive(Clone, Copy, Debug, Default)]
struct Commit {
    messages: usize,
    /// What was a pause when it began.
    pause: Duration,
}

/// Whether the senders go on without acks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// As far as we know they do not: each pause is a reason to commit.
    Impatient {
        /// Commits at pauses since the last probe.
        pauses: u32,
    },
    /// This pause is waited out.
    Probing,
    /// They do.
    Patient {
        /// When that was found.
        since: Instant,
        /// Until so many are owed, if that is known.
        window: Option<usize>,
    },
}

impl Rhythm {
    /// No rhythm yet.
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            gap: None,
            last_arrival: None,
            released: None,
            owed: 0,
            commit: Commit::default(),
            stopped_at: None,
            is_waited_for: false,
            patience: Patience::Impatient { pauses: 0 },
            probe_at: None,
            probe_every: PROBE_EVERY,
        }
    }

    /// `count` messages came together.
    pub(super) fn arrived(&mut self, now: Instant, count: usize) {
        let gap = self.last_arrival.map(|last| now.duration_since(last));
        self.last_arrival = Some(now);
        self.owed += count;
        let released = self.released.take();
        self.judge(now, gap, released);
        match released.map(|released| now.duration_since(released)) {
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

    /// A commit takes what was gathered.
    pub(super) fn committing(&mut self, interval: Duration) {
        self.commit = Commit { messages: self.owed, pause: self.pause(interval) };
        self.owed = 0;
    }

    /// What an arrival says of the senders' patience.
    fn judge(&mut self, now: Instant, gap: Option<Duration>, released: Option<Instant>) {
        let is_answer = released.is_some_and(|released| now.duration_since(released) <= ANSWER_WITHIN);
        let stopped_at = self.stopped_at.take().filter(|_| is_answer);
        let short = self.short_pause();
        match &mut self.patience {
            Patience::Probing if released.is_none() && gap.is_some_and(|gap| gap > short) => {
                self.patience = Patience::Patient { since: now, window: None };
            }
            Patience::Patient { since, window } => {
                if window.is_some_and(|window| self.owed > window + window / 8) {
                    *window = None;
                }
                match stopped_at {
                    Some(owed) if owed >= SMALL_WINDOW => *window = Some(owed),
                    Some(_) => {
                        let was_right = now.duration_since(*since) >= PROVEN_AFTER;
                        self.probe_every = if was_right { PROBE_EVERY } else { self.probe_every };
                        self.found_waiting(now);
                    }
                    None => {}
                }
            }
            Patience::Probing | Patience::Impatient { .. } => {}
        }
    }

    /// Somebody waits for his acks: asked again only after a while.
    fn found_waiting(&mut self, now: Instant) {
        self.patience = Patience::Impatient { pauses: 0 };
        self.probe_at = Some(now + self.probe_every);
        self.probe_every = (2 * self.probe_every).min(PROBE_EVERY_MAX);
    }

    /// Acks were released: who waited for them may go on. Says something only if the inflow had paused before; if it went on
    /// while the commit was made, it does so without acks. In a fast inflow something always follows a release at once, so
    /// without this a single hiccup would be taken for waiting senders for ever.
    pub(super) fn released(&mut self, now: Instant) {
        let silence = self.last_arrival.map(|last| now.duration_since(last));
        self.released = silence.filter(|silence| *silence >= self.commit.pause).map(|_| now);
        self.is_waited_for &= self.released.is_some();
        let was_long = silence.is_some_and(|silence| silence >= LONG_PAUSE);
        self.stopped_at = self.released.filter(|_| was_long).map(|_| self.commit.messages);
        match &mut self.patience {
            Patience::Impatient { pauses } if self.released.is_some() => {
                *pauses += 1;
                let probe_at = *self.probe_at.get_or_insert(now + PROBE_EVERY);
                if *pauses >= PROBE_AFTER_PAUSES && now >= probe_at {
                    self.patience = Patience::Probing;
                }
            }
            Patience::Probing if self.released.is_some() => self.found_waiting(now),
            Patience::Impatient { .. } | Patience::Probing | Patience::Patient { .. } => {}
        }
    }

    /// How long a silence must last to be called a pause, if readings may wait for `interval` at most.
    #[must_use]
    pub(super) fn pause(&self, interval: Duration) -> Duration {
        let pause = if self.is_sparse(interval) { MIN_PAUSE } else { self.short_pause() };
        let is_long = match self.patience {
            Patience::Impatient { .. } => false,
            Patience::Probing => true,
            Patience::Patient { window, .. } => window.is_none_or(|window| self.owed < window - window / 8),
        };
        let is_long = is_long && !self.is_sparse(interval);
        if is_long { pause.max(LONG_PAUSE).min(interval) } else { pause.min(interval) }
    }

    /// What is a pause among impatient senders.
    fn short_pause(&self) -> Duration {
        let Some((mean, deviation)) = self.gap.filter(|_| !self.is_waited_for) else { return MIN_PAUSE };
        // For messages at random (exponential gaps), twelve deviations make one false pause in ten thousand gaps.
        let pause = (4.0 * mean).max(mean + 12.0 * deviation);
        Duration::from_secs_f64(pause).max(MIN_PAUSE)
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
                    rhythm.committing(INTERVAL);
                    rhythm.released(due);
                    since = None;
                }
            }
            rhythm.arrived(now, 1);
            since.get_or_insert(now);
        }
        made + usize::from(since.is_some())
    }

    /// The same with commits that take so long.
    fn commits_that_take(took: Duration, arrivals_ms: impl IntoIterator<Item = f64>) -> usize {
        let start = Instant::now();
        let mut rhythm = Rhythm::new();
        let (mut since, mut committing): (Option<Instant>, Option<Instant>) = (None, None);
        let mut made = 0;
        for at in arrivals_ms {
            let now = start + Duration::from_secs_f64(at / 1_000.0);
            loop {
                if let Some(end) = committing.take_if(|end| *end <= now) {
                    rhythm.released(end);
                    continue;
                }
                let due = since.filter(|_| committing.is_none()).map(|first| {
                    (first + INTERVAL).min(rhythm.last_arrival().unwrap() + rhythm.pause(INTERVAL))
                });
                let Some(due) = due.filter(|due| *due <= now) else { break };
                made += 1;
                rhythm.committing(INTERVAL);
                since = None;
                committing = Some(due + took);
            }
            rhythm.arrived(now, 1);
            since.get_or_insert(now);
        }
        made
    }

    #[test]
    fn a_hiccup_of_a_fast_inflow_does_not_make_it_look_like_waiting_senders() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut at = 0.0;
        let made = commits_that_take(
            Duration::from_millis(3),
            (0..60_000).map(|number| {
                at += -(1.0 - random.f64()).ln() / 3.0;
                // The machine is busy elsewhere for a moment, each second.
                at += if number % 3_000 == 0 { 15.0 * random.f64() } else { 0.0 };
                at
            }),
        );
        assert!(made <= 60, "{made} commits in 20 s of 3000 messages a second");
    }

    /// Commits as the room does, for senders that answer to acks: `next` says when the next message comes and how things
    /// stand with them then, by how they stand, the time, and when acks were released last. Returns the number of commits
    /// and of messages in a minute.
    fn minute<S: Copy>(
        mut senders: S,
        next: impl Fn(S, Instant, Option<Instant>) -> Option<(Instant, S)>,
    ) -> (u32, u32) {
        let took = Duration::from_millis(2);
        let start = Instant::now();
        let mut rhythm = Rhythm::new();
        let (mut now, mut released, mut since) = (start, None, None);
        let (mut commits, mut messages) = (0, 0);
        while now < start + Duration::from_secs(60) {
            let due = since.map(|since: Instant| {
                (since + INTERVAL).min(rhythm.last_arrival().unwrap() + rhythm.pause(INTERVAL))
            });
            match (next(senders, now, released), due) {
                (Some((at, after)), due) if due.is_none_or(|due| at <= due) => {
                    (now, senders) = (at, after);
                    rhythm.arrived(now, 1);
                    messages += 1;
                    since.get_or_insert(now);
                }
                (_, Some(due)) => {
                    now = due + took;
                    rhythm.committing(INTERVAL);
                    rhythm.released(now);
                    (released, since) = (Some(now), None);
                    commits += 1;
                }
                (None, None) => panic!("the senders wait for acks that nobody owes"),
                (Some(_), None) => unreachable!("nothing is due, so the message is taken"),
            }
        }
        (commits, messages)
    }

    #[test]
    fn a_flow_that_tcp_holds_back_is_found_to_be_patient() {
        // 3 000 a second, in lumps: the next goes out with our acks, or when the kernel acknowledges the last, after 200 ms.
        // Behind a window of 1 000.
        let (commits, messages) = minute((Instant::now(), 0, 0, None), |state, now, released| {
            let (lump, left, sent, answered) = state;
            let (sent, answered) = if released == answered { (sent, answered) } else { (0, released) };
            if sent == 1_000 {
                return None;
            }
            if left > 0 {
                return Some((now + Duration::from_micros(5), (lump, left - 1, sent + 1, answered)));
            }
            let delayed = lump + Duration::from_millis(200);
            let at = released.filter(|at| *at > lump).map_or(delayed, |at| at.min(delayed)).max(now);
            let waiting = at.duration_since(lump).as_micros() / 333;
            Some((at, (at, waiting.saturating_sub(1), sent + 1, answered)))
        });
        assert!(commits < 600, "{commits} commits for {messages} messages");
    }

    #[test]
    fn who_waits_for_acks_pays_little_for_the_probes() {
        // A window of 20: sent at once, then nothing until the acks are out; two commits' time each.
        let (commits, messages) = minute((0, None), |(sent, answered), now, released| {
            let soon = now + Duration::from_micros(30);
            match sent {
                20 if released == answered => None,
                20 => Some((soon, (1, released))),
                _ => Some((soon, (sent + 1, answered))),
            }
        });
        assert!(commits > 12_500, "{commits} commits for {messages} messages");
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
            rhythm.committing(INTERVAL);
            rhythm.released(now);
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
            rhythm.committing(INTERVAL);
            rhythm.released(now);
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
