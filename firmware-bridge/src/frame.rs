//! What travels between a sensor node and the host, its units and its bounds.
//!
//! ```text
//!   node ── Hello: who I am, what I measure ───────────────►  host
//!        ◄─ Welcome: this session, the time, how much ──────
//!        ── Sample 1 · Next 2 · Next 3 ────────────────────►        stored, durable
//!        ◄─ Ack: up to 3 ───────────────────────────────────
//! ```
//!
//! A frame on the wire is a body and its CRC-32C (little-endian), COBS-encoded, ended by a zero byte. A body is a tag (one
//! byte, [`Tag`]), then a struct of this file in [postcard](https://postcard.jamesmunns.com/wire-format)'s format: fields in the
//! order below, no names, integers as varints, except where a field is an array of bytes.
//!
//! **Evolution.** What is here stays as it is. A later version may
//! - append fields to a message: who does not know them ignores what follows what he knows; who misses them (the other
//!   side is older, as its `version` says) takes a default;
//! - add a tag: who does not know it ignores the frame and counts it. Tags from `0x10` to `0x1F` are numbered records
//!   ([`Record`]), which an old host can thus declare as unreadable instead of waiting for them for ever;
//! - add a [`Kind`] of values, whose length an old host can tell.
//!
//! Anything else would be another protocol. Frames of every version are kept in `tests/frames.rs`.

use serde::Deserialize;

use crate::bounded::{List, Text};
use crate::crc::{CRC_BYTES, crc_of};
use crate::value::{Kind, MAX_CONTENT_BYTES, Value};

/// The version of everything in here; said in every [`Hello`] and [`Welcome`].
pub const VERSION: u8 = 1;
/// A node's name: long enough for a UUID or a serial number with a prefix.
pub const MAX_NODE_ID_BYTES: usize = 40;
/// The firmware's version: a tag and an abbreviated commit.
pub const MAX_FIRMWARE_BYTES: usize = 24;
/// Channels of one node: what a multi-sensor board has, at a schema that a small microcontroller can hold.
pub const MAX_CHANNELS: usize = 16;
/// The name of a channel or an event; it becomes the name of a field.
pub const MAX_CHANNEL_NAME_BYTES: usize = 20;
/// A unit as people write it, such as `°C` or `m/s²`.
pub const MAX_UNIT_BYTES: usize = 8;
/// One line of a log.
pub const MAX_LOG_BYTES: usize = 96;
/// So many records a node may have on their way: [`Next`] names a record by the lower half of 32 bits, and stays clear
/// with a quarter of that.
pub const MAX_WINDOW: u16 = 1 << 14;

/// The largest body that a node sends, which is the largest [`Hello`].
///
/// Tag, version; id and firmware with their lengths; boot (a varint of at most 5), flow; uptime, acked and next (10 each);
/// schema (5); the number of channels; and each channel: name and unit with their lengths, kind.
pub const MAX_NODE_BODY_BYTES: usize = 2
    + (1 + MAX_NODE_ID_BYTES)
    + (1 + MAX_FIRMWARE_BYTES)
    + 5
    + 1
    + 3 * 10
    + 5
    + 1
    + MAX_CHANNELS * (1 + MAX_CHANNEL_NAME_BYTES + 1 + MAX_UNIT_BYTES + 1);
/// The largest body that a host sends. A [`Welcome`] has up to 35 bytes; the rest is for later versions, because nodes
/// that cannot be updated have buffers of this size.
pub const MAX_HOST_BODY_BYTES: usize = 60;
/// The largest frame on the wire that a node sends: what its transmit buffer has to hold.
pub const MAX_NODE_WIRE_BYTES: usize = wire_bytes(MAX_NODE_BODY_BYTES);
/// The largest frame on the wire that a host sends.
pub const MAX_HOST_WIRE_BYTES: usize = wire_bytes(MAX_HOST_BODY_BYTES);

/// The most bytes on the wire that a body of so many takes: with the checksum, what COBS adds, and a delimiter on
/// either side (the first one only where the line may have been silent or disturbed).
#[must_use]
#[cfg_attr(
    not(test),
    expect(clippy::arithmetic_side_effects, reason = "of constants, checked when it is compiled")
)]
pub const fn wire_bytes(body_bytes: usize) -> usize {
    let with_crc = body_bytes + CRC_BYTES;
    with_crc + with_crc / 254 + 1 + 2
}

/// The name of a node.
pub type NodeId<'a> = Text<'a, MAX_NODE_ID_BYTES>;
/// The channels of a node, as a host receives them.
pub type Channels<'a> = List<Channel<'a>, MAX_CHANNELS>;

/// The first byte of a body. Those of a host have the highest bit, so that an echo is not taken for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u8);

impl Tag {
    /// [`Hello`].
    pub const HELLO: Self = Self(0x01);
    /// [`Dropped`].
    pub const DROPPED: Self = Self(0x02);
    /// [`Clock`].
    pub const CLOCK: Self = Self(0x03);
    /// [`Log`].
    pub const LOG: Self = Self(0x04);
    /// [`Record`] whose content are packed values.
    pub const SAMPLE: Self = Self(0x10);
    /// [`Record`] whose content is an [`Event`].
    pub const EVENT: Self = Self(0x11);
    /// [`Next`].
    pub const NEXT: Self = Self(0x20);
    /// [`Welcome`].
    pub const WELCOME: Self = Self(0x81);
    /// [`Ack`].
    pub const ACK: Self = Self(0x82);
    /// [`Time`].
    pub const TIME: Self = Self(0x83);
    /// [`Resend`].
    pub const RESEND: Self = Self(0x84);
    /// Nothing follows: who are you?
    pub const REQUEST_HELLO: Self = Self(0x85);

    /// True for a [`Record`], also of a tag that is not known here.
    #[must_use]
    pub const fn is_record(self) -> bool {
        self.0 >> 4 == 1
    }
}

/// The number of a record among those of one boot: gapless from 1. Samples and events share the numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(transparent)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SampleSeq(pub u64);

impl SampleSeq {
    /// The highest number of a record. What is above it stands for the number after the last one, and never comes.
    pub const LAST: Self = Self(u64::MAX - 1);

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The number `count` further on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        // 2^64 records take longer than anything lasts, but a node may claim them.
        Self(self.0.saturating_add(count))
    }

    /// The number before this one; 0 stays 0, which is no record's number.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// Stands for (node id, boot, schema): samples are understood only by who knows all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(transparent)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Context(pub [u8; 4]);

impl Context {
    /// The one of these three.
    #[must_use]
    pub fn of(node: &str, boot: u32, schema: u32) -> Self {
        Self(crc_of(&[node.as_bytes(), &boot.to_le_bytes(), &schema.to_le_bytes()]).to_le_bytes())
    }
}

impl Context {
    /// Stands for record `seq` where the host knows all but its lower 16 bits: these, little-endian, exclusive-or'ed with the
    /// first bytes of the context. So a record of another node is not taken for the next one only because both began to count
    /// at the same time.
    #[must_use]
    pub const fn mark(&self, seq: SampleSeq) -> [u8; 2] {
        let [low, high, ..] = seq.0.to_le_bytes();
        let [first, second, ..] = self.0;
        [low ^ first, high ^ second]
    }
}

/// The hash of a schema: it changes when a channel is added, removed, moved, renamed, or gets another unit or kind.
#[must_use]
pub fn schema_hash(channels: &[Channel<'_>]) -> u32 {
    channels.iter().fold(0, |before: u32, channel| {
        // 0xFF is in no UTF-8 text, so no two schemas run together.
        let (name, unit) = (channel.name.as_str().as_bytes(), channel.unit.as_str().as_bytes());
        crc_of(&[&before.to_le_bytes(), name, &[0xFF], unit, &[0xFF, channel.kind.into()]])
    })
}

/// Whether the node hears the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(from = "u8")]
#[cfg_attr(test, serde(into = "u8"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Flow {
    /// It does: samples are acknowledged, and sent again until they are.
    #[default]
    TwoWay,
    /// It only transmits: every record is sent once, and whatever the line swallows is lost.
    OneWay,
}

impl From<u8> for Flow {
    fn from(code: u8) -> Self {
        if code == 0 { Self::TwoWay } else { Self::OneWay }
    }
}

impl From<Flow> for u8 {
    fn from(flow: Flow) -> Self {
        match flow {
            Flow::TwoWay => 0,
            Flow::OneWay => 1,
        }
    }
}

/// Who a node is and what it measures: sent after a reset, when the schema changes, when the host asks, and when it is silent.
///
/// A node has its channels in flash: `C` is then `&[Channel]`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(bound(deserialize = "C: Deserialize<'de>"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Hello<'a, C = Channels<'a>> {
    /// [`VERSION`], as the node knows it.
    pub version: u8,
    /// Its name; unique among the nodes of an agent.
    #[serde(borrow)]
    pub node: NodeId<'a>,
    /// The version of its firmware, for people.
    pub firmware: Text<'a, MAX_FIRMWARE_BYTES>,
    /// Another one after each reset: a counter, or else a random number. Record numbers begin anew with it.
    pub boot: u32,
    /// Whether it hears us.
    pub flow: Flow,
    /// Milliseconds since its reset, now.
    pub uptime_ms: u64,
    /// Some host has acknowledged the records up to here; 0 if none has.
    pub acked: SampleSeq,
    /// The number that its next record will get.
    pub next: SampleSeq,
    /// [`schema_hash`] of `channels`.
    pub schema: u32,
    /// What it measures: the nth value of a sample belongs to the nth channel.
    pub channels: C,
}

/// One thing that a node measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Channel<'a> {
    /// Its name, such as `temperature`.
    #[serde(borrow)]
    pub name: Text<'a, MAX_CHANNEL_NAME_BYTES>,
    /// The unit of its values, such as `°C`; empty if they have none.
    pub unit: Text<'a, MAX_UNIT_BYTES>,
    /// Which values to expect.
    pub kind: Kind,
}

impl<'a> Channel<'a> {
    /// A channel, for schemas in constants.
    ///
    /// # Panics
    /// If the name or the unit is too long: when the firmware is compiled, if it is in a constant.
    #[must_use]
    #[expect(clippy::panic, reason = "schemas are constants: this stops the compiler, not the node")]
    pub const fn new(name: &'a str, unit: &'a str, kind: Kind) -> Self {
        match (Text::new(name), Text::new(unit)) {
            (Ok(name), Ok(unit)) => Self { name, unit, kind },
            _ => panic!("the name or the unit of a channel is too long"),
        }
    }
}

/// Something that is kept until it is acknowledged: the head of a sample or an event. Its content follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Record {
    /// Which node, boot and schema.
    pub context: Context,
    /// Its number.
    pub seq: SampleSeq,
    /// When it was taken: milliseconds since the node's reset, by its monotonic clock.
    pub uptime_ms: u64,
}

/// A sample right after the record before it, in few bytes. Its content follows.
///
/// Only a host that has seen the record before can tell what it is; so a node sends the first one after anything
/// unusual as a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Next {
    /// [`Context::mark`] of its number.
    pub mark: [u8; 2],
    /// Milliseconds after the record before.
    pub after_ms: u32,
}

/// Something that happened, beside the schema.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Event<'a> {
    /// What, such as `door` or `brown_out`.
    #[serde(borrow)]
    pub name: Text<'a, MAX_CHANNEL_NAME_BYTES>,
    /// What goes with it.
    pub value: Value,
}

/// Records that will never come, because the ring was full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Dropped {
    /// Which node, boot and schema.
    pub context: Context,
    /// Those up to here that the host does not have.
    pub up_to: SampleSeq,
    /// How many the node has dropped since its reset. Some may have arrived before they were.
    pub total: u64,
}

/// The answer to [`Time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Clock {
    /// The one of the question.
    pub stamp: u32,
    /// Milliseconds since the node's reset when the question came.
    pub uptime_ms: u64,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(from = "u8")]
#[cfg_attr(test, serde(into = "u8"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Level {
    /// Something is lost, or a person is needed.
    Error,
    /// Unexpected, nothing lost.
    Warn,
    /// Worth knowing.
    Info,
    /// For whoever looks for a fault.
    Debug,
}

impl From<u8> for Level {
    fn from(code: u8) -> Self {
        match code {
            0 => Self::Error,
            1 => Self::Warn,
            2 => Self::Info,
            _ => Self::Debug,
        }
    }
}

impl From<Level> for u8 {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => 0,
            Level::Warn => 1,
            Level::Info => 2,
            Level::Debug => 3,
        }
    }
}

/// A line for people. It is sent once and not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Log<'a> {
    /// How much it matters.
    pub level: Level,
    /// Milliseconds since the node's reset.
    pub uptime_ms: u64,
    /// What it says.
    #[serde(borrow)]
    pub text: Text<'a, MAX_LOG_BYTES>,
}

/// The host knows the node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Welcome {
    /// [`VERSION`], as the host knows it.
    pub version: u8,
    /// Tells what this host says from what another one said, or it itself before it was started again.
    pub session: u32,
    /// To whom this is said.
    pub context: Context,
    /// The host's time: microseconds since the Unix epoch, UTC; `None` while its own clock is not synchronised.
    pub wall_us: Option<i64>,
    /// Records that the node may have sent and not yet seen acknowledged.
    pub window: u16,
    /// The host has all records of this boot up to here, durably; 0 if it has none.
    pub acked: SampleSeq,
}

/// Everything up to a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Ack {
    /// The one of the [`Welcome`].
    pub session: u32,
    /// The last record of which that is true.
    pub up_to: SampleSeq,
}

/// What time it is, and how late is it where you are?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Time {
    /// Comes back in the answer.
    pub stamp: u32,
    /// The host's time, as in [`Welcome`].
    pub wall_us: Option<i64>,
}

/// A record did not arrive: go on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Resend {
    /// The one of the [`Welcome`].
    pub session: u32,
    /// The record that the host waits for.
    pub from: SampleSeq,
}

/// What a host receives.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is no allocator, and a frame lives for one call")]
pub enum FromNode<'a> {
    /// Who it is and what it measures.
    Hello(Hello<'a>),
    /// A sample, an event, or what later versions number; and its content.
    Record(Tag, Record, &'a [u8]),
    /// A sample in short; and its packed values.
    Next(Next, &'a [u8]),
    /// Records that will never come.
    Dropped(Dropped),
    /// The answer to [`Time`].
    Clock(Clock),
    /// A line for people.
    Log(Log<'a>),
}

/// What a node receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromHost {
    /// The answer to a [`Hello`].
    Welcome(Welcome),
    /// Records are durable.
    Ack(Ack),
    /// What time it is.
    Time(Time),
    /// A record did not arrive.
    Resend(Resend),
    /// Who are you?
    RequestHello,
}

/// Why a body whose checksum is right is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Unusable {
    /// Its tag is not known here: a later version, or our own echo.
    Unknown(u8),
    /// It is not what its tag says.
    Malformed(u8),
}

/// The `T` at the beginning of `bytes`, and what follows it.
fn take<'a, T: Deserialize<'a>>(tag: u8, bytes: &'a [u8]) -> Result<(T, &'a [u8]), Unusable> {
    postcard::take_from_bytes(bytes).map_err(|_| Unusable::Malformed(tag))
}

impl<'a> FromNode<'a> {
    /// What a body says.
    ///
    /// # Errors
    /// If it is nothing that a node says, as far as this version knows.
    pub fn parse(body: &'a [u8]) -> Result<Self, Unusable> {
        let (tag, bytes) = body.split_first().ok_or(Unusable::Malformed(0))?;
        match Tag(*tag) {
            Tag::HELLO => take(*tag, bytes).map(|(hello, _)| Self::Hello(hello)),
            Tag::DROPPED => take(*tag, bytes).map(|(dropped, _)| Self::Dropped(dropped)),
            Tag::CLOCK => take(*tag, bytes).map(|(clock, _)| Self::Clock(clock)),
            Tag::LOG => take(*tag, bytes).map(|(log, _)| Self::Log(log)),
            Tag::NEXT => take(*tag, bytes).map(|(next, content)| Self::Next(next, content)),
            tag if tag.is_record() => {
                take(tag.0, bytes).map(|(record, content)| Self::Record(tag, record, content))
            }
            Tag(tag) => Err(Unusable::Unknown(tag)),
        }
    }
}

impl FromHost {
    /// What a body says.
    ///
    /// # Errors
    /// If it is nothing that a host says, as far as this version knows.
    pub fn parse(body: &[u8]) -> Result<Self, Unusable> {
        let (tag, bytes) = body.split_first().ok_or(Unusable::Malformed(0))?;
        match Tag(*tag) {
            Tag::WELCOME => take(*tag, bytes).map(|(welcome, _)| Self::Welcome(welcome)),
            Tag::ACK => take(*tag, bytes).map(|(ack, _)| Self::Ack(ack)),
            Tag::TIME => take(*tag, bytes).map(|(time, _)| Self::Time(time)),
            Tag::RESEND => take(*tag, bytes).map(|(resend, _)| Self::Resend(resend)),
            Tag::REQUEST_HELLO => Ok(Self::RequestHello),
            Tag(tag) => Err(Unusable::Unknown(tag)),
        }
    }
}

const _: () = assert!(
    MAX_CONTENT_BYTES + 1 + 4 + 10 + 10 <= MAX_NODE_BODY_BYTES,
    "no record is larger than the largest Hello"
);
