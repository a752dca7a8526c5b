//! What an operator says about the store and the dead letters.

use std::path::PathBuf;
use std::time::Duration;

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
            commit_interval: Duration::from_secs(1),
            dead_letters: DeadLetterSettings::default(),
        }
    }
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
