//! How a host behaves, and what it counts.

/// How the host behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first session; another number at each start, so that nodes are not misled by what was said before.
    pub session: u32,
    /// Records that a node may have on their way; at most [`MAX_WINDOW`](crate::frame::MAX_WINDOW).
    pub window: u16,
    /// How often a node is asked for its time, in microseconds.
    pub time_every_us: u64,
    /// How long an answer to a question may take before it is asked again, in microseconds.
    pub ask_again_us: u64,
    /// So many nodes are remembered; the one that was silent for longest is forgotten first, but never one whose records are on
    /// their way to the disk: rather than that, another one is not welcomed before they are there.
    pub max_nodes: usize,
    /// Whether records are confirmed.
    pub confirm: Confirm,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            session: 1,
            window: 1_024,
            time_every_us: 30_000_000,
            ask_again_us: 1_000_000,
            max_nodes: 64,
            confirm: Confirm::Durable,
        }
    }
}

/// Whether a host confirms records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// Once they are durable.
    Durable,
    /// Never: it looks at what comes, and a node keeps all of it for another host.
    Never,
}

/// Whether a record that comes again is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognition {
    /// It is.
    Certain,
    /// The node is none of those that are remembered: a new one, or one that was forgotten.
    Doubtful {
        /// So many records it has not been told to be durable: those that it may have sent before.
        unconfirmed: u64,
    },
}

/// What went over the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames whose checksum was right.
    pub frames: u64,
    /// Pieces that were no frame.
    pub garbage: u64,
    /// The bytes of those.
    pub garbage_bytes: u64,
    /// Frames of a later version, echoes of our own, and malformed ones.
    pub unusable: u64,
    /// Records that we had already.
    pub repeated: u64,
    /// Records that came while earlier ones were missing.
    pub early: u64,
    /// Records of a node or a schema that we do not know.
    pub strange: u64,
    /// Nodes that are not remembered any more.
    pub forgotten: u64,
    /// Hellos that were not answered, because what too many nodes sent is not durable yet.
    pub refused: u64,
}
