//! When a device counts as silent: the only part of the room that knows how late it is.
//!
//! Devices do not have timers. The room remembers, for each window, how far the log had been read at a few moments of the
//! last idle time; a device whose last reading is older than how far it had been read one idle time ago has been silent for
//! that long. So a reading costs nothing here, and a thousand devices cost no more than one.
//!
//! Silence counts only while the source was connected all the time, and only from the moment at which the log had been
//! read to its end. A source that is not listed is not configured any more: nothing will come from it, so its devices are
//! silent too.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::windows::Hearing;
use crate::stream::Seq;

/// Moments remembered per idle time: a device is found silent at most this part of its idle time too late.
const MOMENTS: u32 = 16;
/// The longest between two looks.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The shortest between two looks.
const MIN_PAUSE: Duration = Duration::from_millis(20);

/// How far the log had been read when, and since when which source is connected.
#[derive(Debug)]
pub(crate) struct Silence {
    windows: Vec<Moments>,
    sources: BTreeMap<String, Connection>,
}

#[derive(Debug)]
struct Moments {
    idle: Duration,
    /// Oldest first; all but the first are younger than `idle`.
    moments: VecDeque<(Instant, Seq)>,
    /// The source that was connected last of those that have been so for `idle`, as of the last look: since when it was.
    settled: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Connection {
    Down,
    Up { since: Instant },
}

impl Silence {
    /// Windows with these idle times.
    pub(crate) fn new(idle: impl Iterator<Item = Duration>) -> Self {
        let windows = idle.map(|idle| Moments { idle, moments: VecDeque::new(), settled: None }).collect();
        Self { windows, sources: BTreeMap::new() }
    }

    /// The log has been read up to `position`, to its end.
    pub(crate) fn note(&mut self, now: Instant, position: Seq) {
        for window in &mut self.windows {
            window.note(now, position);
        }
    }

    /// Takes note of which sources are connected.
    pub(crate) fn note_sources(&mut self, now: Instant, connected: &BTreeMap<String, bool>) {
        self.sources.retain(|name, _| connected.contains_key(name));
        for (name, is_up) in connected {
            let before = self.sources.get(name).copied();
            let connection = match (before, is_up) {
                (Some(up @ Connection::Up { .. }), true) => up,
                (Some(Connection::Down) | None, true) => Connection::Up { since: now },
                (_, false) => Connection::Down,
            };
            self.sources.insert(name.clone(), connection);
        }
    }

    /// How far the log had been read one idle time of the nth window ago, if it was being watched by then.
    pub(crate) fn heard_before(&self, nth: usize, now: Instant) -> Option<Seq> {
        let window = self.windows.get(nth)?;
        let (at, position) = window.moments.front()?;
        (now.duration_since(*at) >= window.idle).then_some(*position)
    }

    /// Whether a device of `source` that was not heard for an idle time of the nth window is silent.
    pub(crate) fn hearing(&self, nth: usize, now: Instant, source: &str) -> Hearing {
        let idle = self.windows.get(nth).map_or(Duration::MAX, |window| window.idle);
        match self.sources.get(source) {
            None => Hearing::Silent,
            Some(Connection::Up { since }) if now.duration_since(*since) >= idle => Hearing::Silent,
            Some(Connection::Up { .. } | Connection::Down) => Hearing::Unsure,
        }
    }

    /// True once when a source has been connected for an idle time of the nth window: its devices may be silent, although
    /// nothing was heard since.
    pub(crate) fn has_settled(&mut self, nth: usize, now: Instant) -> bool {
        let Some(window) = self.windows.get_mut(nth) else { return false };
        let since = |connection: &Connection| match connection {
            Connection::Up { since } => Some(*since),
            Connection::Down => None,
        };
        let all = self.sources.values().filter_map(since);
        let settled = all.filter(|since| now.duration_since(*since) >= window.idle).max();
        let is_news = settled > window.settled;
        window.settled = settled.max(window.settled);
        is_news
    }

    /// How long to wait before the next look.
    pub(crate) fn pause(&self) -> Duration {
        let shortest = self.windows.iter().map(|window| window.idle).min().unwrap_or(MAX_PAUSE);
        (shortest / MOMENTS).clamp(MIN_PAUSE, MAX_PAUSE)
    }
}

impl Moments {
    fn note(&mut self, now: Instant, position: Seq) {
        let is_due = self.moments.back().is_none_or(|(at, _)| now.duration_since(*at) >= self.idle / MOMENTS);
        if is_due {
            self.moments.push_back((now, position));
        }
        while self.moments.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= self.idle) {
            self.moments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn what_was_read_an_idle_time_ago_is_remembered() {
        let start = Clock::system().monotonic();
        let mut silence = Silence::new([seconds(16)].into_iter());
        for second in 0..100 {
            silence.note(start + seconds(second), Seq(second + 1));
            let expected = (second >= 16).then(|| Seq(second - 16 + 1));
            assert_eq!(silence.heard_before(0, start + seconds(second)), expected);
        }
        assert!(silence.windows[0].moments.len() <= 18);
    }

    #[test]
    fn silence_counts_only_while_the_source_is_connected() {
        let start = Clock::system().monotonic();
        let mut silence = Silence::new([seconds(10)].into_iter());
        let plant = |is_up| BTreeMap::from([("plant".to_owned(), is_up)]);
        let check = |silence: &Silence, second, expected| {
            assert_eq!(silence.hearing(0, start + seconds(second), "plant"), expected, "{second}");
        };
        silence.note_sources(start, &plant(true));
        check(&silence, 9, Hearing::Unsure);
        check(&silence, 10, Hearing::Silent);
        silence.note_sources(start + seconds(11), &plant(false));
        check(&silence, 30, Hearing::Unsure);
        silence.note_sources(start + seconds(30), &plant(true));
        silence.note_sources(start + seconds(35), &plant(true));
        check(&silence, 39, Hearing::Unsure);
        check(&silence, 40, Hearing::Silent);
        silence.note_sources(start + seconds(41), &BTreeMap::new());
        check(&silence, 41, Hearing::Silent);
    }

    #[test]
    fn a_source_that_came_back_is_news_once_when_it_has_settled() {
        let start = Clock::system().monotonic();
        let mut silence = Silence::new([seconds(10)].into_iter());
        let plant = |is_up| BTreeMap::from([("plant".to_owned(), is_up)]);
        silence.note_sources(start, &plant(true));
        let news = |silence: &mut Silence, second| silence.has_settled(0, start + seconds(second));
        assert!(!news(&mut silence, 9) && news(&mut silence, 10) && !news(&mut silence, 11));
        silence.note_sources(start + seconds(12), &plant(false));
        assert!(!news(&mut silence, 30));
        silence.note_sources(start + seconds(31), &plant(true));
        assert!(!news(&mut silence, 40) && news(&mut silence, 41) && !news(&mut silence, 42));
    }
}
