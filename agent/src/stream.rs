//! Shared words: the ordered logs, their numbers, and the holes in them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An ordered log of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// What sensors said.
    Readings,
    /// Results of windows.
    Windows,
    /// Reserved; empty for now.
    Alerts,
}

impl Stream {
    /// All streams, in the order in which they are stored.
    pub const ALL: [Self; 3] = [Self::Readings, Self::Windows, Self::Alerts];

    /// Its name in configuration, on the wire and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Readings => "readings",
            Self::Windows => "windows",
            Self::Alerts => "alerts",
        }
    }

    /// The stream of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.name() == name)
    }

    /// Its place in [`Stream::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Readings => 0,
            Self::Windows => 1,
            Self::Alerts => 2,
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The number of a record in its stream; gapless from 1 within (agent, epoch, stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The first number of every stream.
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The number `count` further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.checked_add(count).expect("a stream ends long after 2^64 records would fill any disk"))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers from `first` to `last`, both included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeqRange {
    /// The lowest number.
    pub first: Seq,
    /// The highest number; not below `first`.
    pub last: Seq,
}

impl SeqRange {
    /// How many numbers it spans.
    #[must_use]
    pub fn count(self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// True if `seq` lies within.
    #[must_use]
    pub fn contains(self, seq: Seq) -> bool {
        self.first <= seq && seq <= self.last
    }
}

/// The birth of a store: a UUID. Sequence numbers mean something only within one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub uuid::Uuid);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Why numbers are missing from what a sink gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GapReason {
    /// Given up because the store was full.
    ShedSize,
    /// Given up because it was older than `max_age`.
    ShedAge,
    /// Refused for good by this sink; kept among the dead letters.
    DeadLetter,
    /// Older than the sink itself.
    BeforeSink,
    /// Trimmed while the sink was not configured.
    Removed,
    /// Delivered under another number before.
    Replay,
    /// Stored, and lost because the disk returned something else.
    Damage,
}

impl GapReason {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ShedSize => "shed:size",
            Self::ShedAge => "shed:age",
            Self::DeadLetter => "dead-letter",
            Self::BeforeSink => "before-sink",
            Self::Removed => "removed",
            Self::Replay => "replay",
            Self::Damage => "lost:damage",
        }
    }
}

/// Numbers that a sink will never get, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The missing numbers.
    pub range: SeqRange,
    /// Why they are missing.
    pub reason: GapReason,
}
