//! What an operator says about the store and the dead letters.

use std::path::PathBuf;
use std::time::Duration;

use crate::stream::Stream;

/// Settings of the store: checked values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The folder of `store.redb`.
    pub data_dir: PathBuf,
    /// Bytes on disk of what is held, all streams together.
    pub max_size_bytes: u64,
    /// Since receipt.
    pub max_age: Duration,
    /// What happens at either limit.
    pub when_full: WhenFull,
    /// What single streams may hold within that, in the order of [`Stream::ALL`].
    pub streams: [StreamLimits; 3],
    /// The longest that a reading waits for its commit.
    pub commit_interval: Duration,
    /// Limits of the dead letters.
    pub dead_letters: DeadLetterSettings,
}

impl Settings {
    /// The defaults, in `data_dir`.
    #[must_use]
    pub fn in_dir(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            max_size_bytes: 1 << 30,
            max_age: Duration::from_secs(30 * 24 * 3_600),
            when_full: WhenFull::Shed,
            streams: Default::default(),
            commit_interval: Duration::from_secs(1),
            dead_letters: DeadLetterSettings::default(),
        }
    }

    /// The bytes that `stream` may hold by a limit of its own.
    #[must_use]
    pub fn own_max_size(&self, stream: Stream) -> Option<u64> {
        self.streams[stream.index()].max_size_bytes
    }

    /// The bytes that `stream` may hold if it has the store for itself.
    #[must_use]
    pub fn max_size_of(&self, stream: Stream) -> u64 {
        self.own_max_size(stream).map_or(self.max_size_bytes, |own| own.min(self.max_size_bytes))
    }

    /// How old records of `stream` may become.
    #[must_use]
    pub fn max_age_of(&self, stream: Stream) -> Duration {
        self.streams[stream.index()].max_age.map_or(self.max_age, |own| own.min(self.max_age))
    }
}

/// Limits of one stream, within those of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamLimits {
    /// Bytes on disk of what is held of it; `None`: only the store's limit counts.
    pub max_size_bytes: Option<u64>,
    /// Since receipt; `None`: only the store's limit counts.
    pub max_age: Option<Duration>,
}

/// What happens when the store is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest readings go first, then windows, then alerts; each is declared to the sinks that miss it.
    #[default]
    Shed,
    /// Nothing more is acknowledged until there is room.
    Block,
}

/// Limits of the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterSettings {
    /// The oldest are purged above this, counted.
    pub max_size_bytes: u64,
    /// Longer payloads are kept cut.
    pub max_payload_bytes: usize,
}

impl Default for DeadLetterSettings {
    fn default() -> Self {
        Self { max_size_bytes: 16 << 20, max_payload_bytes: 64 << 10 }
    }
}
