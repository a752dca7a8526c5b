//! Records to bytes and back: the body of a chunk (postcard), one format per stream.
//!
//! Names repeat from record to record, so a chunk has a dictionary: every string once, every origin and every shape
//! once, and records that point at them. Times are differences. A typical reading takes 25 to 40 bytes before
//! compression.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::reading::{
    AggregateValue, ClockLine, Origin, Reading, Remarks, ReplayOf, Shape, Tags, Timestamp, Value,
    WindowRecord,
};

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no postcard of the expected type.
    #[error("the body of a chunk cannot be decoded")]
    Postcard(#[from] postcard::Error),
    /// A record points at a name that is not in the dictionary.
    #[error("a record of a chunk points outside the chunk's dictionary")]
    Dangling,
}

type Hashed<K> = HashMap<K, u32, BuildHasherDefault<Xxh3Default>>;

/// The dictionary while a chunk is written.
#[derive(Default)]
struct Dictionary<'a> {
    strings: Vec<&'a str>,
    string_index: Hashed<&'a str>,
}

impl<'a> Dictionary<'a> {
    fn string(&mut self, text: &'a str) -> u32 {
        intern(&mut self.string_index, &mut self.strings, text, text)
    }

    fn tags(&mut self, tags: &'a [(Box<str>, Box<str>)]) -> Vec<(u32, u32)> {
        tags.iter().map(|(name, value)| (self.string(name), self.string(value))).collect()
    }
}

/// The place of `key` in `rows`; `row` is appended if the key is new.
fn intern<K: Eq + Hash, R, S: BuildHasher>(
    index: &mut HashMap<K, u32, S>,
    rows: &mut Vec<R>,
    key: K,
    row: R,
) -> u32 {
    *index.entry(key).or_insert_with(|| {
        rows.push(row);
        u32::try_from(rows.len() - 1).expect("a chunk is far smaller than 2^32 names")
    })
}

#[derive(Serialize, Deserialize)]
struct OriginRow {
    source: u32,
    device: u32,
    tags: Vec<(u32, u32)>,
}

#[derive(Serialize, Deserialize)]
struct ReadingRow<'a> {
    origin: u32,
    shape: u32,
    /// Microseconds after the record before (the first: after the epoch).
    received: i64,
    /// Microseconds after `received`; mostly zero or slightly negative.
    time: i64,
    remarks: Option<RemarksRow>,
    #[serde(borrow)]
    values: Vec<ValueRow<'a>>,
}

#[derive(Serialize, Deserialize)]
struct RemarksRow(Remarks);

#[derive(Serialize, Deserialize)]
enum ValueRow<'a> {
    Int(i64),
    Uint(u64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
}

#[derive(Serialize, Deserialize)]
struct ReadingsBody<'a> {
    #[serde(borrow)]
    strings: Vec<&'a str>,
    origins: Vec<OriginRow>,
    shapes: Vec<Vec<u32>>,
    #[serde(borrow)]
    records: Vec<ReadingRow<'a>>,
    lines: Lines,
}

/// Which readings were stamped by which line. Neighbours have the same one, and mostly none.
#[derive(Default, Serialize, Deserialize)]
struct Lines {
    lines: Vec<ClockLine>,
    /// In order: how many readings, and the place of their line in `lines` plus one, zero for none. Empty if all have none.
    runs: Vec<(u32, u32)>,
}

impl Lines {
    fn of(readings: &[Reading]) -> Self {
        let mut all = Self::default();
        if readings.iter().all(|reading| reading.line.is_none()) {
            return all;
        }
        let same = |a: &Reading, b: &Reading| a.line == b.line;
        for run in readings.chunk_by(same) {
            let place = run[0].line.as_ref().map_or(0, |line| {
                let known = all.lines.iter().position(|known| *known == **line);
                let place = known.unwrap_or_else(|| {
                    all.lines.push((**line).clone());
                    all.lines.len() - 1
                });
                small(place + 1)
            });
            all.runs.push((small(run.len()), place));
        }
        all
    }

    /// Gives each of `readings` its line.
    fn give_to(self, readings: &mut [Reading]) -> Result<(), Error> {
        let lines: Vec<Arc<ClockLine>> = self.lines.into_iter().map(Arc::new).collect();
        let mut rest = readings;
        for (count, place) in self.runs {
            let count = usize::try_from(count).map_err(|_| Error::Dangling)?;
            let (run, later) = rest.split_at_mut_checked(count).ok_or(Error::Dangling)?;
            if let Some(place) = place.checked_sub(1) {
                let line = at(&lines, place)?;
                run.iter_mut().for_each(|reading| reading.line = Some(Arc::clone(line)));
            }
            rest = later;
        }
        Ok(())
    }
}

/// Appends the body of a chunk of `readings` to `out`.
pub(super) fn encode_readings(readings: &[Reading], out: &mut Vec<u8>) {
    let mut dictionary = Dictionary::default();
    let mut origins = Vec::new();
    let mut origin_index: Hashed<usize> = HashMap::default();
    let mut shapes = Vec::new();
    let mut shape_index: Hashed<usize> = HashMap::default();
    let mut records = Vec::with_capacity(readings.len());
    let mut before = 0;

    for reading in readings {
        // By address: origins and shapes are shared behind an Arc, so equal ones are mostly the same one.
        let origin = *origin_index.entry(Arc::as_ptr(&reading.origin).addr()).or_insert_with(|| {
            let Origin { source, device, tags } = &*reading.origin;
            let row = OriginRow {
                source: dictionary.string(source),
                device: dictionary.string(device),
                tags: dictionary.tags(tags),
            };
            origins.push(row);
            index_of_last(&origins)
        });
        let shape = *shape_index.entry(Arc::as_ptr(&reading.shape).addr()).or_insert_with(|| {
            let row: Vec<u32> = reading.shape.names.iter().map(|name| dictionary.string(name)).collect();
            shapes.push(row);
            index_of_last(&shapes)
        });
        records.push(ReadingRow {
            origin,
            shape,
            received: reading.received.0.wrapping_sub(before),
            time: reading.time.0.wrapping_sub(reading.received.0),
            remarks: reading.remarks.as_ref().map(|remarks| RemarksRow((**remarks).clone())),
            values: reading.values.iter().map(ValueRow::from).collect(),
        });
        before = reading.received.0;
    }
    let lines = Lines::of(readings);
    write(&ReadingsBody { strings: dictionary.strings, origins, shapes, records, lines }, out);
}

/// Reads what [`encode_readings`] wrote.
///
/// # Errors
/// If the bytes are anything else.
pub(super) fn decode_readings(body: &[u8]) -> Result<Vec<Reading>, Error> {
    let body: ReadingsBody<'_> = postcard::from_bytes(body)?;
    let string = |index: u32| at(&body.strings, index).copied();
    let origins: Vec<Arc<Origin>> = body
        .origins
        .iter()
        .map(|row| {
            Ok(Arc::new(Origin {
                source: string(row.source)?.into(),
                device: string(row.device)?.into(),
                tags: read_tags(&row.tags, &body.strings)?,
            }))
        })
        .collect::<Result<_, Error>>()?;
    let shapes: Vec<Arc<Shape>> = body
        .shapes
        .iter()
        .map(|names| {
            let names = names.iter().map(|name| Ok(string(*name)?.into())).collect::<Result<_, Error>>()?;
            Ok(Arc::new(Shape { names }))
        })
        .collect::<Result<_, Error>>()?;

    let mut before: i64 = 0;
    let mut readings: Vec<Reading> = body
        .records
        .into_iter()
        .map(|row| {
            let received = before.wrapping_add(row.received);
            before = received;
            let shape = Arc::clone(at(&shapes, row.shape)?);
            if shape.names.len() != row.values.len() {
                return Err(Error::Dangling);
            }
            Ok(Reading {
                time: Timestamp(received.wrapping_add(row.time)),
                received: Timestamp(received),
                line: None,
                origin: Arc::clone(at(&origins, row.origin)?),
                shape,
                values: row.values.into_iter().map(Value::from).collect(),
                remarks: row.remarks.map(|remarks| Box::new(remarks.0)),
            })
        })
        .collect::<Result<_, Error>>()?;
    body.lines.give_to(&mut readings)?;
    Ok(readings)
}

#[derive(Serialize, Deserialize)]
struct WindowRow {
    window: u32,
    device: u32,
    tags: Vec<(u32, u32)>,
    field: u32,
    start: i64,
    /// Microseconds.
    size: i64,
    revision: u32,
    aggregates: Vec<(u32, AggregateValue)>,
    replay_of: Option<Box<ReplayOf>>,
}

#[derive(Serialize, Deserialize)]
struct WindowsBody<'a> {
    /// See [`super::WindowsUpdate`].
    position: u64,
    note: &'a [u8],
    #[serde(borrow)]
    strings: Vec<&'a str>,
    records: Vec<WindowRow>,
}

/// Appends the body of a chunk of `records` to `out`.
pub(super) fn encode_windows(position: u64, note: &[u8], records: &[WindowRecord], out: &mut Vec<u8>) {
    let mut dictionary = Dictionary::default();
    let rows = records
        .iter()
        .map(|record| WindowRow {
            window: dictionary.string(&record.window),
            device: dictionary.string(&record.device),
            tags: dictionary.tags(&record.tags),
            field: dictionary.string(&record.field),
            start: record.start.0,
            size: record.end.micros_since(record.start),
            revision: record.revision,
            aggregates: record
                .aggregates
                .iter()
                .map(|(name, value)| (dictionary.string(name), *value))
                .collect(),
            replay_of: record.replay_of.clone(),
        })
        .collect();
    write(&WindowsBody { position, note, strings: dictionary.strings, records: rows }, out);
}

/// What [`encode_windows`] wrote: position, note, records.
///
/// # Errors
/// If the bytes are anything else.
pub(super) fn decode_windows(body: &[u8]) -> Result<(u64, Vec<u8>, Vec<WindowRecord>), Error> {
    let body: WindowsBody<'_> = postcard::from_bytes(body)?;
    let shared: Vec<Arc<str>> = body.strings.iter().map(|text| Arc::from(*text)).collect();
    let string = |index: u32| at(&shared, index).cloned();
    let records = body
        .records
        .iter()
        .map(|row| {
            Ok(WindowRecord {
                window: string(row.window)?,
                device: string(row.device)?,
                tags: Arc::new(read_tags(&row.tags, &body.strings)?),
                field: string(row.field)?,
                start: Timestamp(row.start),
                end: Timestamp(row.start.wrapping_add(row.size)),
                revision: row.revision,
                aggregates: row
                    .aggregates
                    .iter()
                    .map(|(name, value)| Ok((string(*name)?, *value)))
                    .collect::<Result<_, Error>>()?,
                replay_of: row.replay_of.clone(),
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok((body.position, body.note.to_vec(), records))
}

fn write<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    let taken = std::mem::take(out);
    *out = postcard::to_extend(body, taken).expect("a Vec takes any bytes, and no length here is unknown");
}

fn at<T>(rows: &[T], index: u32) -> Result<&T, Error> {
    usize::try_from(index).ok().and_then(|index| rows.get(index)).ok_or(Error::Dangling)
}

fn index_of_last<T>(rows: &[T]) -> u32 {
    small(rows.len() - 1)
}

fn small(count: usize) -> u32 {
    u32::try_from(count).expect("a chunk is far smaller than 2^32 names")
}

fn read_tags(rows: &[(u32, u32)], strings: &[&str]) -> Result<Tags, Error> {
    rows.iter()
        .map(|(name, value)| Ok(((*at(strings, *name)?).into(), (*at(strings, *value)?).into())))
        .collect()
}

impl<'a> From<&'a Value> for ValueRow<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Int(number) => Self::Int(*number),
            Value::Uint(number) => Self::Uint(*number),
            Value::Float(number) => Self::Float(*number),
            Value::Bool(flag) => Self::Bool(*flag),
            Value::Text(text) => Self::Text(text),
        }
    }
}

impl From<ValueRow<'_>> for Value {
    fn from(row: ValueRow<'_>) -> Self {
        match row {
            ValueRow::Int(number) => Self::Int(number),
            ValueRow::Uint(number) => Self::Uint(number),
            ValueRow::Float(number) => Self::Float(number),
            ValueRow::Bool(flag) => Self::Bool(flag),
            ValueRow::Text(text) => Self::Text(text.into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
    use proptest::{collection, option};

    use super::*;
    use crate::reading::Pace;

    fn values() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(Value::Uint),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::Float),
            any::<bool>().prop_map(Value::Bool),
            ".{0,12}".prop_map(|text| Value::Text(text.into())),
        ]
    }

    /// Any readings, few or none.
    pub(crate) fn readings() -> impl Strategy<Value = Vec<Reading>> {
        let origin = ("[a-z]{1,3}", ".{0,8}", collection::vec(("[a-z]{1,3}", ".{0,5}"), 0..3));
        let remarks =
            option::of(option::of(any::<i64>()).prop_map(|time| {
                Box::new(Remarks { original_time: time.map(Timestamp), ..Remarks::default() })
            }));
        let fields = collection::vec((".{1,6}", values()), 1..5);
        let line = option::of((0..3_u128, any::<i64>(), any::<bool>()).prop_map(|(boot, stamp, is_full)| {
            let pace = if is_full { Pace::Full } else { Pace::Half };
            let boot = uuid::Uuid::from_u128(boot);
            Arc::new(ClockLine { boot, stamp: Timestamp(stamp), uptime_micros: 7, pace })
        }));
        let reading = (any::<i64>(), any::<i64>(), line, origin, fields, remarks).prop_map(
            |(time, received, line, (source, device, tags), fields, remarks)| Reading {
                time: Timestamp(time),
                received: Timestamp(received),
                line,
                origin: Arc::new(Origin {
                    source: source.into(),
                    device: device.into(),
                    tags: tags.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
                }),
                shape: Arc::new(Shape {
                    names: fields.iter().map(|(name, _)| name.as_str().into()).collect(),
                }),
                values: fields.into_iter().map(|(_, value)| value).collect(),
                remarks,
            },
        );
        prop_oneof![Just(Vec::new()), collection::vec(reading, 1..20)]
    }

    proptest! {
        #[test]
        fn readings_come_back_as_they_went_in(readings in readings()) {
            let mut body = Vec::new();
            encode_readings(&readings, &mut body);
            assert_eq!(decode_readings(&body).unwrap(), readings);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in collection::vec(any::<u8>(), 0..200)) {
            drop(decode_readings(&bytes));
            drop(decode_windows(&bytes));
        }
    }

    #[test]
    fn window_records_come_back_as_they_went_in() {
        let record = WindowRecord {
            window: "minute".into(),
            device: "d1".into(),
            tags: Arc::new(vec![("line".into(), "a".into())]),
            field: "t".into(),
            start: Timestamp(60_000_000),
            end: Timestamp(120_000_000),
            revision: 3,
            aggregates: vec![
                ("count".into(), AggregateValue::Count(60)),
                ("mean".into(), AggregateValue::Number(21.5)),
            ],
            replay_of: Some(Box::new(ReplayOf {
                epoch: crate::stream::Epoch(uuid::Uuid::from_u128(7)),
                seq: crate::stream::Seq(9),
            })),
        };
        let mut body = Vec::new();
        encode_windows(17, b"note", std::slice::from_ref(&record), &mut body);
        assert_eq!(decode_windows(&body).unwrap(), (17, b"note".to_vec(), vec![record]));
    }
}
