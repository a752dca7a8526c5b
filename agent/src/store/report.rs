//! What the store says of itself. What it holds is not here: that is durable and lives in the books.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The state of the store, as the status names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It takes what comes, or is still being opened (see [`Report::recovering`]).
    #[default]
    Ok,
    /// A limit is reached: the oldest records are given up and declared.
    Shedding,
    /// A limit is reached: nothing more is taken until there is room.
    Blocked,
    /// The disk does not take writes: nothing more is taken until it does.
    Failing,
}

impl State {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Shedding, Self::Blocked, Self::Failing];

    /// Its name in the status and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Shedding => "shedding",
            Self::Blocked => "blocked",
            Self::Failing => "failing",
        }
    }
}

/// What the store says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Bytes on disk of what is held, all streams together; what `max_size` limits.
    pub bytes: u64,
    /// The configured limit of `bytes`.
    pub max_bytes: u64,
    /// The limits of single streams, in the order of [`crate::stream::Stream::ALL`]; `None`: only `max_bytes` counts.
    pub max_stream_bytes: [Option<u64>; 3],
    /// What the file takes on the disk, with all that is beside what `bytes` counts.
    pub file_bytes: u64,
    /// Its state.
    pub state: State,
    /// What went wrong last, for people; `None` when all is well.
    pub last_error: Option<String>,
    /// Durable commits since start.
    pub commits: u64,
    /// How long each of them took.
    pub commit_seconds: Histogram,
    /// How far the reading of the file has come after an unclean stop; `None` once the store is open.
    pub recovering: Option<Recovering>,
}

/// How far an opening has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovering {
    /// Bytes read.
    pub done_bytes: u64,
    /// Bytes to read in all.
    pub total_bytes: u64,
}

/// Upper bounds of the buckets of a [`Histogram`], inclusive, in seconds: from a fast SSD to an SD card that stalls.
pub const BUCKETS_S: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// How often durations fell into which of [`BUCKETS_S`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Per bucket of [`BUCKETS_S`], not cumulative; the last counts what was longer.
    pub counts: [u64; BUCKETS_S.len() + 1],
    /// The sum of all durations in seconds.
    pub sum_s: f64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS_S.len());
        self.counts[bucket] += 1;
        self.sum_s += seconds;
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        for millis in [0, 1, 3, 5_000, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.counts, [2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum_s - 65.004).abs() < 1e-9);
    }
}
