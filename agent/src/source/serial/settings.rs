//! What an operator says of a serial source: checked values.

use std::sync::Arc;
use std::time::Duration;

use crate::ingest::Subscription;
use crate::source::port;

/// A serial source.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configured name.
    pub name: String,
    /// Where the port is, and how it is set.
    pub port: port::Settings,
    /// What is spoken there.
    pub protocol: Protocol,
    /// No more messages a second are read: a node that went mad must not cost the gateway its processor and its flash.
    pub max_rate: u32,
    /// After so long without a message the line is called silent; zero: never.
    pub silent_after: Duration,
    /// Longer lines become dead letters.
    pub max_payload_bytes: usize,
}

/// What is spoken on a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    /// The frames of `firmware-bridge`: acknowledged once they are durable.
    Bridge {
        /// The device that readings are of; `None`: the node's own name.
        device: Option<Arc<str>>,
    },
    /// A reading a line. Nobody would send one again.
    Lines(Box<Subscription>),
}

impl Settings {
    /// `max_rate` where the operator does not say: more than a line of 921 600 baud can carry in lines of six characters.
    pub const DEFAULT_MAX_RATE: u32 = 20_000;
    /// `silent_after` of a node: it is asked for the time every 30 s, so it has no reason to be silent for longer than three times that.
    pub const DEFAULT_SILENT_NODE: Duration = Duration::from_secs(90);
    /// `silent_after` of lines: nobody knows how often they come, but most do so more often.
    pub const DEFAULT_SILENT_LINES: Duration = Duration::from_secs(600);
    /// The longest line, where the operator does not say.
    pub const DEFAULT_MAX_PAYLOAD_BYTES: usize = 64 << 10;
}
