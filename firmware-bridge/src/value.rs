//! The values of a sample, and how they are packed.
//!
//! A sample carries its values without names, types or count, because the [`Hello`](crate::frame::Hello) said them: one
//! bit for each channel without a value, then the values in the order of the channels.

use core::fmt;

use postcard::take_from_bytes;
use serde::Deserialize;

use crate::bounded::List;
use crate::frame::{Channel, MAX_CHANNELS};
use crate::wire::{Bytes, Sink, Write};

/// The largest content of a sample: the missing ones (a varint of 16 bits), and as many whole numbers, each a varint of 64.
pub const MAX_CONTENT_BYTES: usize = 3 + MAX_CHANNELS * 10;

/// The values of one sample: one for each channel of the schema, in its order.
pub type Values = List<Value, MAX_CHANNELS>;

/// Which values a channel has.
///
/// One byte on the wire. Its upper half says how long a value is, so that a host can skip values of a kind that it does
/// not know: 0 is one byte, 1 a varint, 2 four bytes, 3 eight bytes, 4 a length (varint) and as many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(from = "u8")]
#[cfg_attr(test, serde(into = "u8"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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
    /// One that came after this version; its values arrive as [`Value::Missing`].
    Other(u8),
}

impl From<u8> for Kind {
    fn from(code: u8) -> Self {
        match code {
            0x00 => Self::Bool,
            0x10 => Self::Int,
            0x20 => Self::Single,
            0x30 => Self::Double,
            other => Self::Other(other),
        }
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Bool => 0x00,
            Kind::Int => 0x10,
            Kind::Single => 0x20,
            Kind::Double => 0x30,
            Kind::Other(code) => code,
        }
    }
}

/// One value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Value {
    /// The sensor could not be read this time, or was not asked.
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

macro_rules! from {
    ($($number:ty => $variant:ident),+) => {
        $(impl From<$number> for Value {
            fn from(value: $number) -> Self {
                Self::$variant(value.into())
            }
        })+
    };
}

from!(bool => Bool, u8 => Int, u16 => Int, u32 => Int, i16 => Int, i32 => Int, i64 => Int, f32 => Single, f64 => Double);

/// Values that are not those of the schema: a mistake in the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Mismatch {
    /// There are more or fewer values than channels.
    Count {
        /// How many there are.
        values: usize,
        /// How many there ought to be.
        channels: usize,
    },
    /// A value is of another kind than its channel.
    Kind {
        /// The place of the channel in the schema, from 0.
        channel: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { values, channels } => write!(f, "{values} values for {channels} channels"),
            Self::Kind { channel } => write!(f, "the value of channel {channel} is not of its kind"),
        }
    }
}

impl core::error::Error for Mismatch {}

/// These bytes are not values of that schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not values of the node's schema")
    }
}

impl core::error::Error for Unreadable {}

/// Packs `values` to the beginning of `out`; returns how many bytes they take.
///
/// # Errors
/// If they are not those of `channels`.
pub fn pack(
    channels: &[Channel<'_>],
    values: &[Value],
    out: &mut [u8; MAX_CONTENT_BYTES],
) -> Result<usize, Mismatch> {
    let count = Mismatch::Count { values: values.len(), channels: channels.len() };
    if values.len() != channels.len() || values.len() > MAX_CHANNELS {
        return Err(count);
    }
    let wrong = channels.iter().zip(values).position(|(channel, value)| !value.is_of(channel.kind));
    if let Some(channel) = wrong {
        return Err(Mismatch::Kind { channel });
    }
    let mut packed = Bytes::new(out);
    write(values, &mut packed);
    // Cannot fail: `MAX_CONTENT_BYTES` is enough for the longest values of the most channels.
    packed.finish().ok_or(count)
}

/// Appends the missing ones and the values, as postcard would.
fn write(values: &[Value], packed: &mut impl Sink) {
    let mut missing = 0_u16;
    for value in values.iter().rev() {
        missing = (missing << 1) | u16::from(matches!(value, Value::Missing));
    }
    packed.varint(missing.into());
    for value in values {
        match value {
            Value::Missing => {}
            Value::Bool(value) => packed.byte((*value).into()),
            Value::Int(value) => packed.zigzag(*value),
            Value::Single(value) => packed.bytes(&value.to_le_bytes()),
            Value::Double(value) => packed.bytes(&value.to_le_bytes()),
        }
    }
}

/// What [`pack`] packed. Bytes behind the values are left alone.
///
/// # Errors
/// If the bytes end too early, or a channel has values of which not even the length is known.
pub fn unpack<'k>(kinds: impl IntoIterator<Item = &'k Kind>, bytes: &[u8]) -> Result<Values, Unreadable> {
    let (mut missing, mut rest) = take_from_bytes::<u16>(bytes).map_err(|_| Unreadable)?;
    let mut values = Values::new();
    for kind in kinds {
        let value = if missing & 1 == 1 { Value::Missing } else { take(*kind, &mut rest)? };
        values.push(value).map_err(|_| Unreadable)?;
        missing >>= 1;
    }
    Ok(values)
}

/// Takes a value off the beginning of `bytes`.
fn take(kind: Kind, bytes: &mut &[u8]) -> Result<Value, Unreadable> {
    match kind {
        Kind::Bool => next(bytes).map(Value::Bool),
        Kind::Int => next(bytes).map(Value::Int),
        Kind::Single => next(bytes).map(Value::Single),
        Kind::Double => next(bytes).map(Value::Double),
        Kind::Other(code) => skip(code, bytes).map(|()| Value::Missing),
    }
}

/// Leaves out a value of a kind that is not known here.
fn skip(code: u8, bytes: &mut &[u8]) -> Result<(), Unreadable> {
    match code >> 4 {
        0 => next::<u8>(bytes).map(drop),
        1 => next::<u64>(bytes).map(drop),
        2 => next::<[u8; 4]>(bytes).map(drop),
        3 => next::<[u8; 8]>(bytes).map(drop),
        4 => next::<&[u8]>(bytes).map(drop),
        _ => Err(Unreadable),
    }
}

/// Takes a `T` off the beginning of `bytes`.
fn next<'b, T: Deserialize<'b>>(bytes: &mut &'b [u8]) -> Result<T, Unreadable> {
    let (value, rest) = take_from_bytes(bytes).map_err(|_| Unreadable)?;
    *bytes = rest;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bounded::Text;

    fn channel(kind: Kind) -> Channel<'static> {
        Channel { name: Text::new("x").unwrap(), unit: Text::default(), kind }
    }

    /// Through bytes and back; returns how many they were.
    fn check(kinds: &[Kind], values: &[Value]) -> usize {
        let channels: std::vec::Vec<_> = kinds.iter().map(|kind| channel(*kind)).collect();
        let mut out = [0; MAX_CONTENT_BYTES];
        let length = pack(&channels, values, &mut out).unwrap();
        assert_eq!(unpack(kinds, &out[..length]).unwrap().as_slice(), values);
        for cut in 0..length {
            assert_eq!(unpack(kinds, &out[..cut]), Err(Unreadable), "{cut} of {length} bytes");
        }
        length
    }

    #[test]
    fn values_come_back_as_they_went() {
        use Kind::{Bool, Double, Int, Single};
        assert_eq!(check(&[Single, Single], &[Value::Single(21.5), Value::Single(-0.0)]), 9);
        assert_eq!(check(&[Single, Int, Bool], &[Value::Missing, Value::Int(-3), Value::Bool(true)]), 3);
        assert_eq!(check(&[Double], &[Value::Double(1e300)]), 9);
        assert_eq!(check(&[], &[]), 1);
        let widest = [Value::Int(i64::MIN); MAX_CHANNELS];
        assert_eq!(check(&[Int; MAX_CHANNELS], &widest), MAX_CONTENT_BYTES - 2);
        let gone = [Value::Missing; MAX_CHANNELS];
        assert_eq!(check(&[Int; MAX_CHANNELS], &gone), 3, "the longest list of missing ones");
    }

    #[test]
    fn values_that_are_not_of_the_schema_are_refused() {
        let channels = [channel(Kind::Int), channel(Kind::Bool)];
        let mut out = [0; MAX_CONTENT_BYTES];
        assert_eq!(
            pack(&channels, &[Value::Int(1)], &mut out),
            Err(Mismatch::Count { values: 1, channels: 2 })
        );
        assert_eq!(
            pack(&channels, &[Value::Int(1), Value::Int(1)], &mut out),
            Err(Mismatch::Kind { channel: 1 })
        );
    }

    #[test]
    fn a_kind_of_a_later_version_is_left_out() {
        let skipped = |code: u8, bytes: &[u8]| {
            let mut packed = std::vec![0_u8];
            packed.extend_from_slice(bytes);
            packed.push(1);
            let values = unpack(&[Kind::from(code), Kind::Bool], &packed);
            values.map(|values| values.as_slice() == [Value::Missing, Value::Bool(true)])
        };
        assert_eq!(skipped(0x07, &[9]), Ok(true));
        assert_eq!(skipped(0x11, &[0x80, 0x80, 1]), Ok(true));
        assert_eq!(skipped(0x21, &[0; 4]), Ok(true));
        assert_eq!(skipped(0x31, &[0; 8]), Ok(true));
        assert_eq!(skipped(0x40, &[3, 7, 7, 7]), Ok(true));
        assert_eq!(skipped(0x50, &[0]), Err(Unreadable));
        assert_eq!(skipped(0x40, &[9, 7]), Err(Unreadable));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(codes in prop::collection::vec(any::<u8>(), 0..20), bytes: std::vec::Vec<u8>) {
            let kinds: std::vec::Vec<Kind> = codes.into_iter().map(Kind::from).collect();
            if let Ok(values) = unpack(&kinds, &bytes) {
                prop_assert_eq!(values.as_slice().len(), kinds.len());
            }
        }
    }
}
