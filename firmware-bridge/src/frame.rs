//! What travels between a sensor node and the agent, its units and its bounds.
//!
//! ```text
//!   node ── Hello: who I am, what I measure ──────────►  host
//!        ◄─ Welcome: this session, the time, how much ──
//!        ── Sample 1 · Sample 2 · Sample 3 ───────────►        stored, durable
//!        ◄─ Ack: up to 3 ───────────────────────────────
//! ```
//!
//! A sample is acknowledged only when it is durable at the host; until then it is the node's to keep. The host recognises a
//! sample that comes again by (node id, boot, sequence).
//!
//! The types derive serde's traits and are meant for [postcard](https://postcard.jamesmunns.com/wire-format): fields in the
//! order below, no names, integers as varints. So the order of fields and variants is the format: new variants go to
//! the end, and whatever else changes raises [`VERSION`].

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};

/// The version of everything in here; said in every [`Hello`] and [`Welcome`].
pub const VERSION: u8 = 1;
/// A node's name: long enough for a UUID or a serial number with a prefix.
pub const MAX_NODE_ID_BYTES: usize = 40;
/// The firmware's version: a tag and an abbreviated commit.
pub const MAX_FIRMWARE_BYTES: usize = 24;
/// Channels of one node: what a multi-sensor board has, at a schema that a small microcontroller can hold.
pub const MAX_CHANNELS: usize = 16;
/// A channel's name; it becomes the name of a field.
pub const MAX_CHANNEL_NAME_BYTES: usize = 20;
/// A unit as people write it, such as `°C` or `m/s²`.
pub const MAX_UNIT_BYTES: usize = 8;
/// The largest frame in postcard, which is the largest [`Hello`]; without delimiters and checksum.
///
/// Tag, version; id and firmware with their lengths; boot counter (a varint of at most 5); the number of channels; and each
/// channel: name and unit with their lengths, kind.
pub const MAX_FRAME_BYTES: usize = 2
    + (1 + MAX_NODE_ID_BYTES)
    + (1 + MAX_FIRMWARE_BYTES)
    + 5
    + 1
    + MAX_CHANNELS * (1 + MAX_CHANNEL_NAME_BYTES + 1 + MAX_UNIT_BYTES + 1);

/// The name of a node.
pub type NodeId<'a> = Text<'a, MAX_NODE_ID_BYTES>;

/// Where the sample of that number stands among those of one boot: gapless from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SampleSeq(pub u32);

/// What a node sends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is no allocator, and a frame lives for one call")]
pub enum FromNode<'a> {
    /// Who it is and what it measures.
    #[serde(borrow)]
    Hello(Hello<'a>),
    /// What it measured.
    Sample(Sample),
}

/// What the host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHost {
    /// The answer to a [`Hello`].
    Welcome(Welcome),
    /// Samples are durable.
    Ack(Ack),
}

/// Who a node is and what it measures: sent after a reset, and when the schema changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// [`VERSION`], as the node knows it. First, so that it can be read whatever follows.
    pub version: u8,
    /// Its name; unique among the nodes of an agent.
    #[serde(borrow)]
    pub node: NodeId<'a>,
    /// The version of its firmware, for people.
    pub firmware: Text<'a, MAX_FIRMWARE_BYTES>,
    /// Counts its resets: sample numbers begin anew with each.
    pub boot: u32,
    /// What it measures: the nth value of a [`Sample`] belongs to the nth channel.
    pub channels: List<Channel<'a>, MAX_CHANNELS>,
}

/// One thing that a node measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel<'a> {
    /// Its name, such as `temperature`.
    #[serde(borrow)]
    pub name: Text<'a, MAX_CHANNEL_NAME_BYTES>,
    /// The unit of its values, such as `°C`; empty if they have none.
    pub unit: Text<'a, MAX_UNIT_BYTES>,
    /// Which [`Value`]s to expect.
    pub kind: Kind,
}

/// Which values a channel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// [`Value::Bool`].
    Bool,
    /// [`Value::Int`].
    Int,
    /// [`Value::Single`].
    #[default]
    Single,
    /// [`Value::Double`].
    Double,
}

/// What a node measured at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Its number.
    pub seq: SampleSeq,
    /// When: milliseconds since the node's reset, by its monotonic clock.
    pub uptime_ms: u64,
    /// One value for each channel of the schema, in its order.
    pub values: List<Value, MAX_CHANNELS>,
}

/// One value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// The sensor could not be read this time.
    #[default]
    Missing,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number as most sensors give it.
    Single(f32),
    /// A number that needs more digits.
    Double(f64),
}

impl Value {
    /// True if a channel of that kind may have it.
    #[must_use]
    pub fn is_of(&self, kind: Kind) -> bool {
        match self {
            Self::Missing => true,
            Self::Bool(_) => kind == Kind::Bool,
            Self::Int(_) => kind == Kind::Int,
            Self::Single(_) => kind == Kind::Single,
            Self::Double(_) => kind == Kind::Double,
        }
    }
}

/// The host knows the node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`], as the host knows it. First, so that it can be read whatever follows.
    pub version: u8,
    /// Tells this session from the ones before.
    pub session: u32,
    /// The host's time: microseconds since the Unix epoch, UTC; `None` while its own clock is not synchronised.
    pub wall_us: Option<i64>,
    /// Samples that the node may have sent and not yet seen acknowledged.
    pub window: u16,
    /// The host has all samples of this boot up to here; `None` if it has none.
    pub acked: Option<SampleSeq>,
}

/// Everything up to a sample is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The last one of which that is true.
    pub up_to: SampleSeq,
}

#[cfg(test)]
mod tests {
    use core::fmt::Debug;

    use super::*;

    /// Through bytes and back; returns how many they were.
    fn check<'a, T: Serialize + Deserialize<'a> + PartialEq + Debug>(
        frame: &T,
        buffer: &'a mut [u8; MAX_FRAME_BYTES],
    ) -> usize {
        let bytes = postcard::to_slice(frame, buffer).unwrap();
        let length = bytes.len();
        assert_eq!(postcard::from_bytes::<T>(bytes).unwrap(), *frame);
        length
    }

    fn buffer() -> [u8; MAX_FRAME_BYTES] {
        [0; MAX_FRAME_BYTES]
    }

    fn channel<'a>(name: &'a str, unit: &'a str, kind: Kind) -> Channel<'a> {
        Channel { name: Text::new(name).unwrap(), unit: Text::new(unit).unwrap(), kind }
    }

    fn sample() -> Sample {
        let values = [Value::Single(21.5), Value::Missing, Value::Int(-3), Value::Bool(true)];
        Sample { seq: SampleSeq(300), uptime_ms: 1_000, values: List::from_slice(&values).unwrap() }
    }

    #[test]
    fn every_frame_comes_back_as_it_went() {
        let channels =
            [channel("temperature", "°C", Kind::Single), channel("door", "", Kind::Bool), Channel::default()];
        let hello = Hello {
            version: VERSION,
            node: Text::new("press-7").unwrap(),
            firmware: Text::new("1.4.0").unwrap(),
            boot: 12,
            channels: List::from_slice(&channels).unwrap(),
        };
        check(&FromNode::Hello(hello), &mut buffer());
        check(&FromNode::Sample(sample()), &mut buffer());
        let welcome =
            Welcome { version: VERSION, session: 7, wall_us: None, window: 32, acked: Some(SampleSeq(299)) };
        check(&FromHost::Welcome(welcome), &mut buffer());
        check(&FromHost::Welcome(Welcome { wall_us: Some(-1), acked: None, ..welcome }), &mut buffer());
        check(&FromHost::Ack(Ack { up_to: SampleSeq(u32::MAX) }), &mut buffer());
    }

    #[test]
    fn the_largest_frames_fit_the_bound() {
        let letters = [b'x'; MAX_NODE_ID_BYTES];
        let text = |length: usize| core::str::from_utf8(&letters[..length]).unwrap();
        let widest = channel(text(MAX_CHANNEL_NAME_BYTES), text(MAX_UNIT_BYTES), Kind::Double);
        let hello = Hello {
            version: u8::MAX,
            node: Text::new(text(MAX_NODE_ID_BYTES)).unwrap(),
            firmware: Text::new(text(MAX_FIRMWARE_BYTES)).unwrap(),
            boot: u32::MAX,
            channels: List::from_slice(&[widest; MAX_CHANNELS]).unwrap(),
        };
        assert_eq!(check(&FromNode::Hello(hello), &mut buffer()), MAX_FRAME_BYTES);
        let values = List::from_slice(&[Value::Int(i64::MIN); MAX_CHANNELS]).unwrap();
        let sample = Sample { seq: SampleSeq(u32::MAX), uptime_ms: u64::MAX, values };
        assert!(check(&FromNode::Sample(sample), &mut buffer()) < MAX_FRAME_BYTES);
    }

    /// These bytes are on nodes that will not be updated: whoever has to change them raises [`VERSION`].
    #[test]
    fn version_1_is_written_as_it_always_was() {
        let mut buffer = buffer();
        let bytes = postcard::to_slice(&FromNode::Sample(sample()), &mut buffer).unwrap();
        assert_eq!(
            bytes,
            [1, 0xac, 2, 0xe8, 7, 4, 3, 0, 0, 0xac, 0x41, 0, 2, 5, 1, 1],
            "tag, seq, uptime, values: 21.5, missing, -3, true"
        );
        let bytes = postcard::to_slice(&FromHost::Ack(Ack { up_to: SampleSeq(300) }), &mut buffer).unwrap();
        assert_eq!(bytes, [1, 0xac, 2]);
    }

    #[test]
    fn more_channels_than_there_may_be_are_refused() {
        let mut buffer = buffer();
        let bytes = postcard::to_slice(&FromNode::Sample(sample()), &mut buffer).unwrap();
        bytes[5] = u8::try_from(MAX_CHANNELS + 1).unwrap();
        let mut long = [0; 64];
        long[..bytes.len()].copy_from_slice(bytes);
        assert!(postcard::from_bytes::<FromNode<'_>>(&long).is_err());
    }

    #[test]
    fn cut_off_bytes_are_no_frame() {
        let mut buffer = buffer();
        let bytes = postcard::to_slice(&FromNode::Sample(sample()), &mut buffer).unwrap();
        for length in 0..bytes.len() {
            assert!(postcard::from_bytes::<FromNode<'_>>(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_value_is_of_the_kind_that_its_channel_says() {
        assert!(Value::Int(1).is_of(Kind::Int) && !Value::Int(1).is_of(Kind::Single));
        assert!(Value::Missing.is_of(Kind::Bool) && Value::Missing.is_of(Kind::Double));
    }
}
