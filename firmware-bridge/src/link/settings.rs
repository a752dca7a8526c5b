//! What a link is told at the beginning, and what it says of its work.

use core::fmt;

use crate::bounded::{Text, TooLong};
use crate::frame::{Channel, Flow, MAX_CHANNELS, MAX_FIRMWARE_BYTES, NodeId, SampleSeq};
use crate::ring::TooLarge;
use crate::value::Mismatch;

/// Who a node is; all of it in flash, but for the boot.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Identity<'a> {
    /// Its name; unique among the nodes of an agent.
    pub node: NodeId<'a>,
    /// The version of its firmware.
    pub firmware: Text<'a, MAX_FIRMWARE_BYTES>,
    /// Another one after each reset: a counter in EEPROM, or else a random number. With one that was used before, a host
    /// that has not noticed the reset would take new samples for old ones.
    pub boot: u32,
    /// What it measures.
    pub channels: &'a [Channel<'a>],
}

impl<'a> Identity<'a> {
    /// Checks what is checked once.
    ///
    /// # Errors
    /// If the name or the version is too long, or there are more than [`MAX_CHANNELS`].
    pub fn new(
        node: &'a str,
        firmware: &'a str,
        boot: u32,
        channels: &'a [Channel<'a>],
    ) -> Result<Self, TooLong> {
        if channels.len() > MAX_CHANNELS {
            return Err(TooLong { max: MAX_CHANNELS });
        }
        Ok(Self { node: Text::new(node)?, firmware: Text::new(firmware)?, boot, channels })
    }
}

/// How the link behaves. All times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Settings {
    /// Whether we hear the host.
    pub flow: Flow,
    /// The pause after the first [`Hello`](crate::frame::Hello); it doubles with each that is not answered. Default 1 s.
    pub hello_after_ms: u32,
    /// The longest pause between two; on a one-way link the pause, as soon as it is reached. Default 30 s.
    pub hello_at_most_ms: u32,
    /// How long an acknowledgement may take: longer than the host gathers before it writes to its disk. Doubles with
    /// each time-out. Default 3 s.
    pub resend_after_ms: u32,
    /// The longest that it grows to. Default 30 s.
    pub resend_at_most_ms: u32,
}

impl Settings {
    /// What suits nearly everyone.
    pub const DEFAULT: Self = Self {
        flow: Flow::TwoWay,
        hello_after_ms: 1_000,
        hello_at_most_ms: 30_000,
        resend_after_ms: 3_000,
        resend_at_most_ms: 30_000,
    };
    /// For a board without a receive line.
    pub const ONE_WAY: Self = Self { flow: Flow::OneWay, ..Self::DEFAULT };
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A record was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use = "records may have been dropped for it"]
pub struct Taken {
    /// The number that it got.
    pub seq: SampleSeq,
    /// How many of the oldest were dropped for it; the host will be told.
    pub dropped: u32,
}

/// Why a sample or an event was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum NotTaken {
    /// Its values are not those of the schema.
    Mismatch(Mismatch),
    /// It is larger than the whole ring.
    TooLarge(TooLarge),
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch(cause) => cause.fmt(f),
            Self::TooLarge(cause) => cause.fmt(f),
        }
    }
}

impl core::error::Error for NotTaken {}

/// The schema stays, because the host has yet to confirm records of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Unconfirmed {
    /// How many.
    pub records: u64,
}

impl fmt::Display for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of the schema are not confirmed yet", self.records)
    }
}

impl core::error::Error for Unconfirmed {}

/// What became of it all, since the reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Counts {
    /// Records dropped because the ring was full.
    pub dropped: u64,
    /// Times that records were sent again.
    pub resends: u32,
    /// Received pieces that were no frame.
    pub garbage: u32,
    /// Received frames that we do not know, or that are not for us.
    pub unusable: u32,
}
