//! What an operator says about a sink.

use std::time::Duration;

use crate::backoff;
use crate::secret::Secret;
pub use crate::store::work::{BatchLimits, Required};
use crate::stream::Stream;
use crate::tls;

/// Settings of one `http` sink: checked values.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configured name.
    pub name: String,
    /// Where batches are posted.
    pub url: String,
    /// Which streams, in order of priority.
    pub streams: Vec<Stream>,
    /// How bodies are compressed.
    pub compression: Compression,
    /// How much goes into one request.
    pub batch: BatchLimits,
    /// Pauses between attempts.
    pub retry: backoff::Settings,
    /// How long one request may take.
    pub timeout: Duration,
    /// Whether a 2xx counts only with a body `{"next": N}`.
    pub ack: AckRule,
    /// Whether this sink may make `when_full = "block"` stop intake.
    pub required: Required,
    /// Further headers of each request.
    pub headers: Vec<(String, Secret)>,
    /// Whom to trust and who we are.
    pub tls: tls::ClientSettings,
}

impl Settings {
    /// `retry` where the operator does not say.
    pub const DEFAULT_RETRY: backoff::Settings =
        backoff::Settings { initial: Duration::from_millis(500), max: Duration::from_secs(300) };
    /// `timeout` where the operator does not say.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
    /// `streams` where the operator does not say: what is small and fresh first.
    pub const DEFAULT_STREAMS: [Stream; 3] = [Stream::Alerts, Stream::Windows, Stream::Readings];
}

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard (RFC 8878).
    #[default]
    Zstd,
    /// gzip (RFC 1952).
    Gzip,
    /// Not at all.
    None,
}

/// What a 2xx must say to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckRule {
    /// A complete 2xx is enough.
    #[default]
    Status,
    /// Only with a body `{"next": N}`.
    Body,
}
