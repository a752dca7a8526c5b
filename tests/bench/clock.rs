//! Wall and monotonic time, and pauses: a measurement has to ask for them.
#![expect(clippy::disallowed_methods, reason = "the agent's clock is not this program's")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() * 1_000 + u64::from(since.subsec_millis())
}

pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Sleeps until `at`, if that is still to come.
pub(crate) fn pause_until(at: Instant) {
    let left = at.saturating_duration_since(now());
    if !left.is_zero() {
        pause(left);
    }
}

/// Asks `done` every `every` until it gives something.
pub(crate) fn wait<T>(
    what: &str,
    every: Duration,
    limit: Duration,
    mut done: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let start = now();
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        pause(every);
    }
}

/// A number out of a text of the system's.
pub(crate) fn number(text: &str) -> anyhow::Result<u64> {
    text.trim().parse().with_context(|| format!("{text:?} is no number"))
}
