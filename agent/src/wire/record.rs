//! One record read back: the inverse of [`super::write_reading`] and [`super::write_window`].
//!
//! A record that a sink refused is kept as it was sent; to send it anew it is read here. Nothing is guessed: numbers stay whole
//! or floats as they were written, names keep their order, and what is no record of ours is refused.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::reading::{
    AggregateValue, ClockLine, Origin, Reading, Remarks, ReplayOf, Shape, Tags, Timestamp, Value,
    WindowRecord,
};
use crate::stream::{Epoch, Seq};

/// Why a record cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is not JSON, or not with the keys of a record.
    #[error("it is no record of this format")]
    Shape(#[from] serde_json::Error),
    /// A time is written in another way.
    #[error("{text:?} is no time of this format")]
    Time {
        /// What stands there.
        text: String,
    },
    /// A value is none that we write.
    #[error("the value of {name:?} is none of this format")]
    Value {
        /// The name of the field or aggregate.
        name: String,
    },
    /// There is no field in it.
    #[error("it has no fields")]
    Empty,
}

#[derive(Deserialize)]
struct ReadingRow<'a> {
    seq: Seq,
    time: &'a str,
    received: &'a str,
    source: String,
    device: String,
    tags: Pairs<Box<str>>,
    #[serde(borrow)]
    fields: Pairs<&'a RawValue>,
    #[serde(default)]
    original_time: Option<&'a str>,
    #[serde(default)]
    clock: Option<&'a str>,
    #[serde(default)]
    replay_of: Option<ReplayOfRow>,
}

#[derive(Deserialize)]
struct WindowRow<'a> {
    seq: Seq,
    window: Arc<str>,
    device: Arc<str>,
    tags: Pairs<Box<str>>,
    field: Arc<str>,
    start: &'a str,
    end: &'a str,
    revision: u32,
    #[serde(borrow)]
    aggregates: Pairs<&'a RawValue>,
    #[serde(default)]
    replay_of: Option<ReplayOfRow>,
}

#[derive(Deserialize)]
struct ReplayOfRow {
    epoch: Epoch,
    seq: Seq,
}

/// Reads what [`super::write_reading`] wrote.
///
/// # Errors
/// If it is anything else.
pub fn read_reading(json: &[u8]) -> Result<(Seq, Reading), Unreadable> {
    let row: ReadingRow<'_> = serde_json::from_slice(json)?;
    if row.fields.0.is_empty() {
        return Err(Unreadable::Empty);
    }
    let mut values = Vec::with_capacity(row.fields.0.len());
    let mut names = Vec::with_capacity(row.fields.0.len());
    for (name, text) in row.fields.0 {
        values.push(read_value(text.get()).ok_or_else(|| Unreadable::Value { name: name.to_string() })?);
        names.push(name);
    }
    let received = read_time(row.received)?;
    let (line, corrected) = match row.clock {
        None => (None, false),
        Some("unsynced") => (Some(Arc::new(ClockLine::unknown(received))), false),
        Some("corrected") => (None, true),
        Some(_) => return Err(Unreadable::Value { name: "clock".to_owned() }),
    };
    let remarks = Remarks {
        original_time: row.original_time.map(read_time).transpose()?,
        corrected,
        replayed: row.replay_of.is_some(),
        replay_of: row.replay_of.map(ReplayOf::from),
    };
    let origin =
        Origin { source: row.source.into(), device: row.device.into(), tags: Tags::from(row.tags.0) };
    let reading = Reading {
        time: read_time(row.time)?,
        received,
        line,
        origin: Arc::new(origin),
        shape: Arc::new(Shape { names }),
        values,
        remarks: (remarks != Remarks::default()).then(|| Box::new(remarks)),
    };
    Ok((row.seq, reading))
}

/// Reads what [`super::write_window`] wrote.
///
/// # Errors
/// If it is anything else.
pub fn read_window(json: &[u8]) -> Result<(Seq, WindowRecord), Unreadable> {
    let row: WindowRow<'_> = serde_json::from_slice(json)?;
    let aggregate = |(name, text): (Box<str>, &RawValue)| {
        let value = match read_value(text.get()) {
            Some(Value::Float(number)) => AggregateValue::Number(number),
            Some(Value::Int(number)) if number >= 0 => AggregateValue::Count(number.cast_unsigned()),
            Some(Value::Uint(number)) => AggregateValue::Count(number),
            Some(Value::Int(_) | Value::Bool(_) | Value::Text(_)) | None => {
                return Err(Unreadable::Value { name: name.into() });
            }
        };
        Ok((Arc::from(name), value))
    };
    let record = WindowRecord {
        window: row.window,
        device: row.device,
        tags: Arc::new(row.tags.0),
        field: row.field,
        start: read_time(row.start)?,
        end: read_time(row.end)?,
        revision: row.revision,
        aggregates: row.aggregates.0.into_iter().map(aggregate).collect::<Result<_, _>>()?,
        replay_of: row.replay_of.map(|of| Box::new(of.into())),
    };
    Ok((row.seq, record))
}

impl From<ReplayOfRow> for ReplayOf {
    fn from(row: ReplayOfRow) -> Self {
        Self { epoch: row.epoch, seq: row.seq }
    }
}

/// A value as JSON; `None` for null, arrays, objects, and numbers beyond 64 bits.
fn read_value(json: &str) -> Option<Value> {
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str::<Box<str>>(json).ok().map(Value::Text),
        b't' => Some(Value::Bool(true)),
        b'f' => Some(Value::Bool(false)),
        b'-' | b'0'..=b'9' if json.contains(['.', 'e', 'E']) => {
            json.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::Float)
        }
        b'-' | b'0'..=b'9' => json.parse().map(Value::Int).or_else(|_| json.parse().map(Value::Uint)).ok(),
        _ => None,
    }
}

/// The inverse of [`Timestamp::write_rfc3339`].
fn read_time(text: &str) -> Result<Timestamp, Unreadable> {
    let unreadable = || Unreadable::Time { text: text.to_owned() };
    // As a civil time: a point in time in jiff's sense ends a day before the last one that we write.
    let civil: jiff::civil::DateTime =
        text.strip_suffix('Z').ok_or_else(unreadable)?.parse().map_err(|_| unreadable())?;
    let since = civil.duration_since(jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0));
    i64::try_from(since.as_micros()).map(Timestamp).map_err(|_| unreadable())
}

/// A JSON object whose members keep their order.
struct Pairs<T>(Vec<(Box<str>, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, proptest};
    use proptest::{collection, option};

    use super::*;
    use crate::store::codec_tests::readings;
    use crate::wire::{write_reading, write_window};

    fn back(reading: &Reading) -> (Seq, Reading) {
        let mut json = Vec::new();
        write_reading(Seq(7), reading, &mut json);
        read_reading(&json).unwrap()
    }

    fn replay_of() -> impl Strategy<Value = ReplayOf> {
        (any::<u128>(), any::<u64>())
            .prop_map(|(epoch, seq)| ReplayOf { epoch: Epoch(uuid::Uuid::from_u128(epoch)), seq: Seq(seq) })
    }

    #[test]
    fn what_was_corrected_says_so_again() {
        let line = br#"{"seq":7,"time":"2026-11-20T04:15:12.123000Z","received":"2026-11-20T04:15:12.140211Z","source":"plant","device":"d","tags":{},"fields":{"t":1},"clock":"corrected"}"#;
        let (seq, reading) = read_reading(line).unwrap();
        let mut again = Vec::new();
        write_reading(seq, &reading, &mut again);
        assert_eq!(String::from_utf8(again).unwrap(), String::from_utf8(line.to_vec()).unwrap());
    }

    proptest! {
        #[test]
        fn readings_come_back_as_they_were_written(readings in readings(), of in option::of(replay_of())) {
            for mut reading in readings {
                // Beyond these no time can be written.
                let clamp = |time: Timestamp| time.clamp(Timestamp::MIN, Timestamp::MAX);
                (reading.time, reading.received) = (clamp(reading.time), clamp(reading.received));
                if let Some(remarks) = &mut reading.remarks {
                    remarks.original_time = remarks.original_time.map(clamp);
                    remarks.replayed = of.is_some();
                    remarks.replay_of.clone_from(&of);
                }
                reading.remarks = reading.remarks.filter(|remarks| **remarks != Remarks::default());
                // By which clock is not written, only that it was not right.
                let unknown = |_| Arc::new(ClockLine::unknown(reading.received));
                reading.line = reading.line.take().map(unknown);
                // A whole number above what fits with sign is written as it is read: without.
                for value in &mut reading.values {
                    if let Value::Uint(number) = *value && let Ok(number) = i64::try_from(number) {
                        *value = Value::Int(number);
                    }
                }
                assert_eq!(back(&reading), (Seq(7), reading));
            }
        }

        #[test]
        fn windows_come_back_as_they_were_written(
            names in collection::vec(".{0,9}", 4),
            times in (any::<i64>(), any::<i64>()),
            numbers in collection::vec((".{1,5}", any::<f64>()), 0..5),
            count in any::<u64>(),
            of in option::of(replay_of()),
        ) {
            let clamp = |time: i64| Timestamp(time).clamp(Timestamp::MIN, Timestamp::MAX);
            let numbers = numbers.into_iter().filter(|(_, number)| number.is_finite());
            let mut aggregates: Vec<(Arc<str>, AggregateValue)> =
                numbers.map(|(name, number)| (name.into(), AggregateValue::Number(number))).collect();
            aggregates.insert(0, ("count".into(), AggregateValue::Count(count)));
            let record = WindowRecord {
                window: names[0].as_str().into(),
                device: names[1].as_str().into(),
                tags: Arc::new(vec![(names[2].as_str().into(), "\u{0}\"".into())]),
                field: names[3].as_str().into(),
                start: clamp(times.0),
                end: clamp(times.1),
                revision: 3,
                aggregates,
                replay_of: of.map(Box::new),
            };
            let mut json = Vec::new();
            write_window(Seq(7), &record, &mut json);
            assert!(json.len() < crate::wire::window_bound(&record));
            assert_eq!(read_window(&json).unwrap(), (Seq(7), record));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in collection::vec(any::<u8>(), 0..200)) {
            drop(read_reading(&bytes));
            drop(read_window(&bytes));
        }
    }

    #[test]
    fn what_is_no_record_of_ours_is_refused() {
        let whole = r#"{"seq":1,"time":"2026-11-20T04:15:12.123000Z","received":"2026-11-20T04:15:12.123000Z",
            "source":"s","device":"d","tags":{},"fields":{"a":1}}"#;
        assert!(read_reading(whole.as_bytes()).is_ok());
        for (from, to) in [
            ("\"a\":1", ""),
            ("\"a\":1", "\"a\":null"),
            ("\"a\":1", "\"a\":[1]"),
            ("\"a\":1", "\"a\":1e999"),
            ("\"a\":1", "\"a\":18446744073709551616"),
            ("\"seq\":1", "\"seq\":-1"),
            ("12.123000Z", "12.123000"),
            ("2026-11-20T", "yesterday"),
            ("\"fields\"", "\"fiel"),
        ] {
            let other = whole.replacen(from, to, 1);
            assert!(read_reading(other.as_bytes()).is_err(), "{other}");
        }
    }
}
