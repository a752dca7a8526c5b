//! What the store says of itself beside its books.

use std::time::Duration;

/// The state of the store, as the status names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All is written as it comes.
    #[default]
    Ok,
    /// Full: the oldest is given up, by rule.
    Shedding,
    /// Full: nothing more is taken until there is room.
    Blocked,
    /// The disk does not take what is written; retrying.
    Failing,
}

/// Upper bounds of the commit-time buckets, in seconds: from a fast SSD to a dying SD card.
pub const COMMIT_BUCKETS_S: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// What the store publishes.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its state.
    pub state: State,
    /// What went wrong last, for people; `None` when all is well.
    pub last_error: Option<String>,
    /// Commits since start.
    pub commits: u64,
    /// How many commits took at most [`COMMIT_BUCKETS_S`]; not cumulative. Slower ones are only in `commits`.
    pub commit_buckets: [u64; 10],
    /// How long all commits took together.
    pub commit_time: Duration,
}

impl Report {
    pub(super) fn committed(&mut self, took: Duration) {
        self.commits += 1;
        self.commit_time += took;
        let seconds = took.as_secs_f64();
        if let Some(bucket) = COMMIT_BUCKETS_S.iter().position(|bound| seconds <= *bound) {
            self.commit_buckets[bucket] += 1;
        }
    }
}
