//! The wire format (contract, section 5): what a batch looks like in JSON. Shared by the HTTP sink and the receiver.
//!
//! Encoding appends to a buffer without going through a tree; the same records always give the same bytes, so a retried
//! batch is identical to the first attempt. Decoding borrows from the body and leaves the records as they were written.

mod record;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::record::{Unreadable, read_reading, read_window};

use crate::reading::{AggregateValue, Reading, ReplayOf, Tags, Timestamp, Value, WindowRecord};
use crate::stream::{Epoch, Gap, Seq, SeqRange, Stream};

/// The version of the format, in the key `format`.
pub const FORMAT: u32 = 1;

/// What stands at the head of a batch.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// The agent's id.
    pub agent: &'a str,
    /// The epoch of the numbers.
    pub epoch: Epoch,
    /// The stream.
    pub stream: Stream,
    /// The numbers it spans.
    pub range: SeqRange,
    /// The numbers in it that are not records.
    pub gaps: &'a [Gap],
    /// The epoch before, and the number after its last, in the first batch of an epoch.
    pub previous: Option<(Epoch, Seq)>,
}

impl Head<'_> {
    /// The value of the header `Idempotency-Key`: `<agent>/<epoch>/<stream>/<first>-<last>`.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        let Self { agent, epoch, stream, range, .. } = self;
        format!("{agent}/{epoch}/{stream}/{}-{}", range.first, range.last)
    }

    /// Appends the batch up to its first record; records follow, separated by commas, then [`write_end`].
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"format\":1,\"agent\":");
        write_text(self.agent, out);
        out.extend_from_slice(
            format!(",\"epoch\":\"{}\",\"stream\":\"{}\"", self.epoch, self.stream).as_bytes(),
        );
        write_number(",\"first\":", self.range.first.0, out);
        write_number(",\"last\":", self.range.last.0, out);
        if let Some((epoch, next)) = self.previous {
            out.extend_from_slice(
                format!(",\"previous\":{{\"epoch\":\"{epoch}\",\"next\":{next}}}").as_bytes(),
            );
        }
        out.extend_from_slice(b",\"gaps\":[");
        for (index, gap) in self.gaps.iter().enumerate() {
            write_number(if index == 0 { "{\"first\":" } else { ",{\"first\":" }, gap.range.first.0, out);
            write_number(",\"last\":", gap.range.last.0, out);
            out.extend_from_slice(b",\"reason\":\"");
            out.extend_from_slice(gap.reason.name().as_bytes());
            out.extend_from_slice(b"\"}");
        }
        out.extend_from_slice(b"],\"records\":[");
    }
}

/// Ends what [`Head::write`] began.
pub fn write_end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"]}");
}

/// Appends one record of the stream `readings`, its times as they were stamped.
pub fn write_reading(seq: Seq, reading: &Reading, out: &mut Vec<u8>) {
    write_corrected(seq, reading, None, out);
}

/// As [`write_reading`]; a reading that was stamped by a clock that was not right gets its true time, if it is known when the
/// machine was started (microseconds since the Unix epoch). A time that the device told stands.
pub fn write_corrected(seq: Seq, reading: &Reading, booted_at: Option<i64>, out: &mut Vec<u8>) {
    let (mut time, mut received, mut mark) = (reading.time, reading.received, "");
    if let Some(line) = &reading.line {
        mark = ",\"clock\":\"unsynced\"";
        if let Some(booted_at) = booted_at {
            mark = ",\"clock\":\"corrected\"";
            received = line.corrected(reading.received, booted_at);
            time = if reading.time == reading.received { received } else { time };
        }
    } else if reading.remarks.as_ref().is_some_and(|remarks| remarks.corrected) {
        mark = ",\"clock\":\"corrected\"";
    }
    write_number("{\"seq\":", seq.0, out);
    write_time(",\"time\":\"", time, out);
    write_time(",\"received\":\"", received, out);
    out.extend_from_slice(b",\"source\":");
    write_text(&reading.origin.source, out);
    out.extend_from_slice(b",\"device\":");
    write_text(&reading.origin.device, out);
    write_tags(&reading.origin.tags, out);
    out.extend_from_slice(b",\"fields\":{");
    for (index, (name, value)) in reading.shape.names.iter().zip(&reading.values).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(name, out);
        out.push(b':');
        write_value(value, out);
    }
    out.push(b'}');
    out.extend_from_slice(mark.as_bytes());
    if let Some(remarks) = &reading.remarks {
        if let Some(time) = remarks.original_time {
            write_time(",\"original_time\":\"", time, out);
        }
        write_replay_of(remarks.replay_of.as_ref(), out);
    }
    out.push(b'}');
}

fn write_replay_of(of: Option<&ReplayOf>, out: &mut Vec<u8>) {
    if let Some(of) = of {
        let text = format!(",\"replay_of\":{{\"epoch\":\"{}\",\"seq\":{}}}", of.epoch, of.seq);
        out.extend_from_slice(text.as_bytes());
    }
}

/// Appends one record of the stream `windows`.
pub fn write_window(seq: Seq, record: &WindowRecord, out: &mut Vec<u8>) {
    write_number("{\"seq\":", seq.0, out);
    out.extend_from_slice(b",\"window\":");
    write_text(&record.window, out);
    out.extend_from_slice(b",\"device\":");
    write_text(&record.device, out);
    write_tags(&record.tags, out);
    out.extend_from_slice(b",\"field\":");
    write_text(&record.field, out);
    write_time(",\"start\":\"", record.start, out);
    write_time(",\"end\":\"", record.end, out);
    write_number(",\"revision\":", record.revision.into(), out);
    out.extend_from_slice(b",\"aggregates\":{");
    for (index, (name, value)) in record.aggregates.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(name, out);
        out.push(b':');
        match value {
            AggregateValue::Count(count) => write_number("", *count, out),
            AggregateValue::Number(number) => write_float(*number, out),
        }
    }
    out.push(b'}');
    write_replay_of(record.replay_of.as_deref(), out);
    out.push(b'}');
}

/// No fewer bytes than [`write_reading`] appends, the comma before it included. Cheap: numbers are taken at their longest.
#[must_use]
pub fn reading_bound(reading: &Reading) -> usize {
    let names: usize = reading.shape.names.iter().map(|name| text_bound(name)).sum();
    let values: usize = reading
        .values
        .iter()
        .map(|value| match value {
            Value::Int(_) | Value::Uint(_) => 21,
            Value::Float(_) => 26,
            Value::Bool(_) => 6,
            Value::Text(text) => text_bound(text) + 1,
        })
        .sum();
    let remarks = if reading.remarks.is_some() { 160 } else { 0 };
    let clock = if reading.line.is_some() { 22 } else { 0 };
    let origin = &reading.origin;
    180 + text_bound(&origin.source)
        + text_bound(&origin.device)
        + tags_bound(&origin.tags)
        + names
        + reading.values.len()
        + values
        + remarks
        + clock
}

/// No fewer bytes than [`write_window`] appends, the comma before it included.
#[must_use]
pub fn window_bound(record: &WindowRecord) -> usize {
    let aggregates: usize = record.aggregates.iter().map(|(name, _)| text_bound(name) + 28).sum();
    let names = text_bound(&record.window) + text_bound(&record.device) + text_bound(&record.field);
    let replay_of = if record.replay_of.is_some() { 100 } else { 0 };
    260 + names + tags_bound(&record.tags) + aggregates + replay_of
}

fn tags_bound(tags: &Tags) -> usize {
    tags.iter().map(|(name, value)| text_bound(name) + text_bound(value) + 2).sum()
}

/// The bytes of a JSON string, quotes included.
fn text_bound(text: &str) -> usize {
    2 + text
        .bytes()
        .map(|byte| {
            if byte < 0x20 {
                6
            } else if matches!(byte, b'"' | b'\\') {
                2
            } else {
                1
            }
        })
        .sum::<usize>()
}

fn write_tags(tags: &Tags, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"tags\":{");
    for (index, (name, value)) in tags.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(name, out);
        out.push(b':');
        write_text(value, out);
    }
    out.push(b'}');
}

fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Int(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
        Value::Uint(number) => write_number("", *number, out),
        Value::Float(number) => write_float(*number, out),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Text(text) => write_text(text, out),
    }
}

/// Shortest text that reads back as the same float, always with a point or an exponent, so that it stays a float.
fn write_float(number: f64, out: &mut Vec<u8>) {
    debug_assert!(number.is_finite(), "non-finite values are dropped at decoding");
    out.extend_from_slice(zmij::Buffer::new().format_finite(number).as_bytes());
}

fn write_number(key: &str, number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// `key` ends with the opening quote.
fn write_time(key: &str, time: Timestamp, out: &mut Vec<u8>) {
    out.extend_from_slice(key.as_bytes());
    time.write_rfc3339(out);
    out.push(b'"');
}

/// A JSON string (RFC 8259, section 7).
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut written = 0;
    for (index, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[written..index]);
        written = index + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => out.extend_from_slice(format!("\\u{other:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&text.as_bytes()[written..]);
    out.push(b'"');
}

/// A batch as a receiver reads it. Unknown keys are ignored.
#[derive(Debug, Deserialize)]
pub struct Batch<'a> {
    /// [`FORMAT`].
    pub format: u32,
    /// The agent's id.
    pub agent: String,
    /// The epoch of the numbers.
    pub epoch: Epoch,
    /// The name of the stream.
    pub stream: String,
    /// The first number it speaks of.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// The epoch before.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// The numbers in it that are not records.
    #[serde(default)]
    pub gaps: Vec<BatchGap>,
    /// The records, as they were written.
    #[serde(borrow, default)]
    pub records: Vec<&'a RawValue>,
}

/// The epoch before this one, and the number after its last.
#[derive(Clone, Debug, Deserialize)]
pub struct Previous {
    /// The epoch.
    pub epoch: Epoch,
    /// The number after its last record.
    pub next: u64,
}

/// A gap as a receiver reads it.
#[derive(Clone, Debug, Deserialize)]
pub struct BatchGap {
    /// The first missing number.
    pub first: u64,
    /// The last missing number.
    pub last: u64,
    /// Why.
    pub reason: String,
}

/// What is read of a record to tell whether it is new.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct RecordHead {
    /// Its number.
    pub seq: u64,
}

/// The answer to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Answer {
    /// The number that the receiver wants next.
    pub next: u64,
}
