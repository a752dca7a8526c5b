//! What a sink says of itself.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The state of a sink, as the status names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Batches are taken, or there was nothing to send yet.
    #[default]
    Up,
    /// Not reachable, or not able to take batches now; retrying with backoff.
    Retrying,
    /// It refuses our credentials: 401, 403, 407.
    Unauthorized,
    /// It answers what no retry will mend: a redirect, 404, ...
    Misconfigured,
    /// It refuses record after record: nothing more is dead-lettered.
    Refusing,
}

impl State {
    /// All states.
    pub const ALL: [Self; 5] =
        [Self::Up, Self::Retrying, Self::Unauthorized, Self::Misconfigured, Self::Refusing];

    /// Its name in the status and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Retrying => "retrying",
            Self::Unauthorized => "unauthorized",
            Self::Misconfigured => "misconfigured",
            Self::Refusing => "refusing",
        }
    }
}

/// What a sink says of itself. Counts of records are durable and live in the store's books.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its state.
    pub state: State,
    /// What went wrong last, for people; `None` when all is well.
    pub last_error: Option<String>,
    /// When the next attempt is due, if one is waiting.
    pub next_attempt: Option<Instant>,
    /// Bytes of request bodies sent (compressed), since start.
    pub sent_bytes: u64,
    /// Requests sent, since start.
    pub requests: u64,
}
