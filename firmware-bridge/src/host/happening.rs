//! What a host gives out: records, gaps, and where they stand.

use std::sync::Arc;

use crate::frame::{Level, SampleSeq};
use crate::value::{Value, Values};

use super::Node;

/// A record of a node, and with it all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The node's name.
    pub node: Arc<str>,
    /// Which life of the node.
    pub boot: u32,
    /// The number of the record.
    pub seq: SampleSeq,
    /// When it was taken, by the node's clock.
    pub uptime_ms: u64,
    /// When it was taken, by our wall clock: microseconds since the Unix epoch. What follows is not placed before it. Of
    /// records that will not come: that of the one before them, 0 if there is none.
    pub wall_us: i64,
    /// Which life as the host counts them; 0 for one that was stored.
    pub(super) life: u32,
}

impl Position {
    /// One that was stored.
    #[must_use]
    pub fn stored(node: Arc<str>, boot: u32, seq: SampleSeq, uptime_ms: u64, wall_us: i64) -> Self {
        Self { node, boot, seq, uptime_ms, wall_us, life: 0 }
    }
}

/// What a node measured at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Which record it is, and when it was measured.
    pub position: Position,
    /// One value for each channel of the node.
    pub values: Values,
}

/// Something that happened at a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeEvent {
    /// Which record it is, and when it happened.
    pub position: Position,
    /// What.
    pub name: Arc<str>,
    /// What goes with it.
    pub value: Value,
}

/// Records that will never come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first one.
    pub first: SampleSeq,
    /// The last one; durable like a record when the gap is stored.
    pub position: Position,
    /// Why.
    pub reason: GapReason,
}

impl Gap {
    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.position.seq.0.saturating_sub(self.first.0).saturating_add(1)
    }
}

/// Why records will never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The node had no room for them, and says so.
    Dropped,
    /// The line lost them, and the node only transmits.
    Lost,
    /// They are of a kind that this version does not know.
    Unreadable,
}

/// What happened on the line.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are samples, and an allocation for each costs more"
)]
pub enum Happening<'h> {
    /// A node said who it is: the first time, after a reset, with another schema, or instead of another one.
    Hello(Arc<Node>),
    /// A sample; never one that came before.
    Sample(Sample),
    /// An event; never one that came before.
    Event(NodeEvent),
    /// Records that will never come.
    Gap(Gap),
    /// A line for people.
    Log {
        /// How much it matters.
        level: Level,
        /// Milliseconds since the node's reset.
        uptime_ms: u64,
        /// What it says.
        text: &'h str,
    },
}
