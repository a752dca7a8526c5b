//! Shared words: what a sensor said.
//!
//! A [`Reading`] is one decoded message. What rarely changes between two messages of a device (who
//! sent it, the names of its fields) is shared behind an `Arc`, so that a reading costs few
//! allocations: an [`Origin`] and a [`Shape`] are made once per topic and reused.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A point in time: microseconds since the Unix epoch, UTC. May lie before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// 0000-01-01T00:00:00Z: the oldest time that RFC 3339 can write.
    pub const MIN: Self = Self(-62_167_219_200_000_000);
    /// 9999-12-31T23:59:59.999999Z: the newest time that RFC 3339 can write.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// Microseconds from `earlier` to `self`; negative if `earlier` is later.
    #[must_use]
    pub fn micros_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Appends `2026-11-20T04:15:12.123000Z`: RFC 3339, UTC, always six digits, so that the text sorts as the times do.
    ///
    /// Days to civil date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    pub fn write_rfc3339(self, out: &mut Vec<u8>) {
        let micros = self.0.clamp(Self::MIN.0, Self::MAX.0);
        let day_seconds = micros.div_euclid(1_000_000).rem_euclid(86_400);
        let fraction = micros.rem_euclid(1_000_000);
        let days = micros.div_euclid(86_400_000_000);

        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);

        let mut text = *b"0000-00-00T00:00:00.000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], day_seconds / 3_600);
        digits(&mut text[14..16], day_seconds / 60 % 60);
        digits(&mut text[17..19], day_seconds % 60);
        digits(&mut text[20..26], fraction);
        out.extend_from_slice(&text);
    }
}

/// Writes `value` (not negative) into `to` as decimal digits, leading zeros included.
fn digits(to: &mut [u8], mut value: i64) {
    for place in to.iter_mut().rev() {
        *place = b'0' + u8::try_from(value % 10).expect("a digit fits a byte");
        value /= 10;
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(27);
        self.write_rfc3339(&mut text);
        f.write_str(std::str::from_utf8(&text).expect("digits and separators are ASCII"))
    }
}

/// Name/value pairs that say more about a device, sorted by name, names unique.
pub type Tags = Vec<(Box<str>, Box<str>)>;

/// Who said it: what the readings of one device on one topic have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The configured name of the source.
    pub source: Box<str>,
    /// The device's own name, from the topic, the payload, or the source's name.
    pub device: Box<str>,
    /// Further captures of the topic template.
    pub tags: Tags,
}

/// The names of a reading's fields, in the order of its values. Names are unique; nested leaves are joined by ".".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The field names.
    pub names: Vec<Box<str>>,
}

/// One value of a field. Floats are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// A whole number that fits 64 bits with sign.
    Int(i64),
    /// A whole number above `i64::MAX`.
    Uint(u64),
    /// Any other number; finite.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A string.
    Text(Box<str>),
}

impl Value {
    /// The value as a number for windows, or `None` for booleans and text. Large integers round to the nearest float.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "aggregates are floats by contract")]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Uint(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Bool(_) | Self::Text(_) => None,
        }
    }
}

/// What is known of the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockState {
    /// It is synchronised.
    #[default]
    Synced,
    /// Nobody vouches for what it shows.
    Unsynced,
}

/// How stamps of a clock that was not right went with the time since the machine was started. Once it is known when that was,
/// they can be corrected. All readings stamped without a step between share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClockLine {
    /// The boot of the machine.
    pub boot: uuid::Uuid,
    /// A point of the line: this stamp...
    pub stamp: Timestamp,
    /// ...was given this long after the machine was started.
    pub uptime_micros: i64,
    /// How fast stamps went.
    pub pace: Pace,
}

/// How fast stamps go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pace {
    /// As time does.
    Full,
    /// Half as fast: the wall clock went back and is to catch up.
    Half,
}

impl ClockLine {
    /// The line of a reading that was stamped at `stamp` by a clock that was not right, nobody knows any more by which.
    #[must_use]
    pub fn unknown(stamp: Timestamp) -> Self {
        Self { boot: uuid::Uuid::nil(), stamp, uptime_micros: 0, pace: Pace::Full }
    }

    /// The stamp that is given `uptime_micros` after the start of the machine.
    #[must_use]
    pub fn stamp_at(&self, uptime_micros: i64) -> Timestamp {
        let since = uptime_micros.saturating_sub(self.uptime_micros);
        Timestamp(self.stamp.0.saturating_add(match self.pace {
            Pace::Full => since,
            Pace::Half => since / 2,
        }))
    }

    /// The true time of `stamp`, if the machine was started at `booted_at` (microseconds since the Unix epoch).
    #[must_use]
    pub fn corrected(&self, stamp: Timestamp, booted_at: i64) -> Timestamp {
        let since = stamp.micros_since(self.stamp);
        let since = match self.pace {
            Pace::Full => since,
            Pace::Half => since.saturating_mul(2),
        };
        let time = booted_at.saturating_add(self.uptime_micros).saturating_add(since);
        Timestamp(time.clamp(Timestamp::MIN.0, Timestamp::MAX.0))
    }
}

/// One decoded message.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// When it was measured (event time): the device's word, else the time of receipt.
    pub time: Timestamp,
    /// When it was received: as the wall clock shows, but never before what was received earlier.
    pub received: Timestamp,
    /// By which line it was stamped, if the wall clock was not right then.
    pub line: Option<Arc<ClockLine>>,
    /// Who said it.
    pub origin: Arc<Origin>,
    /// The names of `values`.
    pub shape: Arc<Shape>,
    /// One value per name of `shape`; never empty.
    pub values: Vec<Value>,
    /// What else is to be said; `None` for nearly all.
    pub remarks: Option<Box<Remarks>>,
}

/// What few readings carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remarks {
    /// The device's own time where it lay too far in the future and was replaced by the time of receipt.
    pub original_time: Option<Timestamp>,
    /// The record of which this is a replay, if its first number is known.
    pub replay_of: Option<ReplayOf>,
    /// True for a replayed reading, also when its first number is not known: no window sees it.
    pub replayed: bool,
    /// True for a replayed reading whose times had been corrected when it was sent first.
    pub corrected: bool,
}

/// The number a replayed record had before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayOf {
    /// The epoch in which it had it.
    pub epoch: crate::stream::Epoch,
    /// Its sequence number there.
    pub seq: crate::stream::Seq,
}

impl Reading {
    /// True if windows must not see it: a replayed dead letter was seen by them before, or never could be.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.remarks.as_ref().is_some_and(|remarks| remarks.replayed)
    }

    /// Roughly the bytes it takes in memory, for bounding queues and caches.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let text: usize =
            self.values.iter().map(|v| if let Value::Text(text) = v { text.len() } else { 0 }).sum();
        size_of::<Self>() + self.values.len() * size_of::<Value>() + text
    }
}

/// One result of a window: a record of the stream `windows`.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowRecord {
    /// The configured name of the window.
    pub window: Arc<str>,
    /// The device's name.
    pub device: Arc<str>,
    /// The device's tags.
    pub tags: Arc<Tags>,
    /// The field that was aggregated.
    pub field: Arc<str>,
    /// First moment of the span, inclusive.
    pub start: Timestamp,
    /// End of the span, exclusive.
    pub end: Timestamp,
    /// 0 for the first result of this span, then one more each time it is emitted anew.
    pub revision: u32,
    /// Name and value of each aggregate, in the order of the configuration, `count` always there.
    pub aggregates: Vec<(Arc<str>, AggregateValue)>,
    /// The number it had when it was emitted, if this is a replay: nothing was computed for it.
    pub replay_of: Option<Box<ReplayOf>>,
}

impl WindowRecord {
    /// True if no window emitted it under its number: it is a dead letter sent anew.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.replay_of.is_some()
    }
}

/// The value of one aggregate. A count stays a whole number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum AggregateValue {
    /// How many values there were.
    Count(u64),
    /// Any other aggregate; finite.
    Number(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_six_digits_and_sort() {
        let check = |micros: i64, text: &str| assert_eq!(Timestamp(micros).to_string(), text);
        check(0, "1970-01-01T00:00:00.000000Z");
        check(1_795_148_112_123_000, "2026-11-20T04:15:12.123000Z");
        check(951_782_400_000_001, "2000-02-29T00:00:00.000001Z");
        check(-1, "1969-12-31T23:59:59.999999Z");
        check(Timestamp::MIN.0, "0000-01-01T00:00:00.000000Z");
        check(Timestamp::MAX.0, "9999-12-31T23:59:59.999999Z");
        check(i64::MAX, "9999-12-31T23:59:59.999999Z");
    }
}
