//! What the monitor sees, as a line for people or as JSON.
//!
//! All of it comes from a wire, so whatever could steer a terminal is escaped, in both.

use std::fmt::{self, Write as _};

use firmware_bridge::frame::Level;
use firmware_bridge::host::GapReason;
use firmware_bridge::value::{Kind, Value};
use serde::{Serialize, Serializer};

use crate::reading::Timestamp;
use crate::status::text::{is_odd, shown};

/// A sample that was measured longer ago than this shows when.
const RECENT_US: i64 = 2_000_000;
/// So many bytes of garbage are shown.
pub(super) const EXCERPT_BYTES: usize = 24;

/// One thing that was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "seen", rename_all = "kebab-case")]
pub(super) enum Seen {
    /// The port is open.
    Open { port: String, sends: bool },
    /// It cannot be opened yet, or was lost.
    Waiting { reason: String },
    /// It turned out what is spoken.
    Speaks { protocol: Understood },
    /// A node said who it is.
    Hello {
        node: String,
        firmware: String,
        link: u8,
        boot: u32,
        transmits_only: bool,
        channels: Vec<Channel>,
    },
    /// A node measured.
    Sample {
        #[serde(flatten)]
        record: Record,
        #[serde(serialize_with = "by_name")]
        values: Vec<Named>,
    },
    /// Something happened at a node.
    Event {
        #[serde(flatten)]
        record: Record,
        event: String,
        value: Shown,
    },
    /// Records that will never come.
    Gap { node: String, first: u64, last: u64, reason: &'static str },
    /// A line of a node's log.
    Log { node: String, level: &'static str, uptime_ms: u64, text: String },
    /// A line of text; one that has not ended was waited for.
    Line { text: String, has_ended: bool },
    /// Bytes that are nothing.
    Garbage { bytes: u64, hex: String, ascii: String, advice: String },
    /// Records that nobody can read who has not heard the node's hello.
    Unreadable { records: u64, advice: &'static str },
    /// Frames that no node of this version sends.
    Unusable { frames: u64 },
    /// Nothing comes.
    Silent { seconds: u64, advice: &'static str },
    /// The end.
    End(Totals),
}

/// What is spoken on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Understood {
    Bridge,
    Lines,
}

/// One thing that a node measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Channel {
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) kind: &'static str,
}

/// Which record, of which node, of when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Record {
    pub(super) node: String,
    pub(super) n: u64,
    #[serde(serialize_with = "as_text")]
    pub(super) time: Timestamp,
    pub(super) uptime_ms: u64,
}

/// A value and its channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) value: Shown,
}

/// A value; in JSON as it reads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Shown {
    Missing,
    Bool(bool),
    Int(i64),
    Single(f32),
    Double(f64),
}

/// What it came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Totals {
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) frames: u64,
    pub(super) samples: u64,
    pub(super) events: u64,
    pub(super) missing: u64,
    /// Records that came again, since nobody confirms them here.
    pub(super) repeated: u64,
    pub(super) unreadable: u64,
    pub(super) lines: u64,
    pub(super) garbage_bytes: u64,
}

impl From<&Value> for Shown {
    fn from(value: &Value) -> Self {
        match value {
            Value::Missing => Self::Missing,
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(value) => Self::Int(*value),
            Value::Single(value) => Self::Single(*value),
            Value::Double(value) => Self::Double(*value),
        }
    }
}

pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "bool",
        Kind::Int => "int",
        Kind::Single => "single",
        Kind::Double => "double",
        Kind::Other(_) => "unknown",
    }
}

pub(super) fn reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Dropped => "dropped",
        GapReason::Lost => "lost",
        GapReason::Unreadable => "unreadable",
    }
}

pub(super) fn level(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    }
}

fn by_name<S: Serializer>(values: &[Named], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(values.iter().map(|of| (&of.name, of.value)))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn as_text<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

impl Seen {
    /// As one object of JSON, seen at `at`.
    pub(super) fn json(&self, at: Timestamp) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Stamped<'s> {
            #[serde(serialize_with = "as_text")]
            at: Timestamp,
            #[serde(flatten)]
            seen: &'s Seen,
        }
        let json = serde_json::to_string(&Stamped { at, seen: self })?;
        if !json.contains(is_odd) {
            return Ok(json);
        }
        let mut out = String::with_capacity(json.len() + 16);
        for c in json.chars() {
            // Only texts have such characters, and all of them have four digits.
            if is_odd(c) { write!(out, "\\u{:04x}", u32::from(c)).unwrap_or_default() } else { out.push(c) }
        }
        Ok(out)
    }

    /// As a line for people, seen at `at`.
    pub(super) fn line(&self, at: Timestamp) -> String {
        let mut out = clock(at);
        out.push_str("  ");
        // Cannot fail: it is a text.
        self.describe(at, &mut out).unwrap_or_default();
        out
    }

    fn describe(&self, at: Timestamp, out: &mut String) -> fmt::Result {
        match self {
            Self::Open { port, sends } => {
                let sends = if *sends { "" } else { "; nothing is sent" };
                write!(out, "-- {} is open{sends}", shown(port))
            }
            Self::Waiting { reason } => write!(out, "-- {}", shown(reason)),
            Self::Speaks { protocol: Understood::Bridge } => {
                write!(out, "-- a node speaks: frames of firmware-bridge")
            }
            Self::Speaks { protocol: Understood::Lines } => write!(out, "-- lines of text come"),
            Self::Hello { node, firmware, link, boot, transmits_only, channels } => {
                let flow = if *transmits_only { ", transmits only" } else { "" };
                let (node, firmware) = (shown(node), shown(firmware));
                write!(out, "{node}  hello: firmware {firmware}, link {link}, boot {boot}{flow}; channels:")?;
                for (nth, Channel { name, unit, kind }) in channels.iter().enumerate() {
                    let comma = if nth == 0 { "" } else { "," };
                    let unit = if unit.is_empty() { String::new() } else { format!(" [{}]", shown(unit)) };
                    write!(out, "{comma} {}{unit} {kind}", shown(name))?;
                }
                Ok(())
            }
            Self::Sample { record, values } => {
                record.describe(at, out)?;
                for Named { name, unit, value } in values {
                    write!(out, " {}={value}", shown(name))?;
                    if !unit.is_empty() {
                        write!(out, " {}", shown(unit))?;
                    }
                }
                Ok(())
            }
            Self::Event { record, event, value } => {
                record.describe(at, out)?;
                write!(out, " event {}", shown(event))?;
                if *value == Shown::Missing { Ok(()) } else { write!(out, "={value}") }
            }
            Self::Gap { node, first, last, reason } => {
                let why = match *reason {
                    "dropped" => "the node had no room for them, and gave them up",
                    "lost" => "the line lost them, and the node only transmits",
                    _ => "of a kind that this version does not know",
                };
                write!(out, "{}  n={first}..{last} will never come: {why}", shown(node))
            }
            Self::Log { node, level, uptime_ms, text } => {
                write!(out, "{}  {level} {}: {}", shown(node), seconds(*uptime_ms), shown(text))
            }
            Self::Line { text, has_ended } => {
                let end = if *has_ended { "" } else { "  (without an end so far)" };
                write!(out, "{}{end}", shown(text))
            }
            Self::Garbage { bytes, hex, ascii, advice } => {
                write!(out, "-- garbage: {bytes} bytes, such as {hex} \"{ascii}\"{advice}")
            }
            Self::Unreadable { records, advice } => {
                write!(out, "-- {records} records of a node whose hello was not heard; {advice}")
            }
            Self::Unusable { frames } => write!(
                out,
                "-- {frames} frames that no node of this version sends: an echo of our own (do TX and RX touch?), or a newer firmware"
            ),
            Self::Silent { seconds, advice } => write!(out, "-- nothing for {seconds} s: {advice}"),
            Self::End(totals) => totals.describe(out),
        }
    }
}

impl Record {
    fn describe(&self, at: Timestamp, out: &mut String) -> fmt::Result {
        write!(out, "{}  n={}", shown(&self.node), self.n)?;
        if at.micros_since(self.time) > RECENT_US {
            write!(out, " (of {})", clock(self.time))?;
        }
        Ok(())
    }
}

impl Totals {
    fn describe(&self, out: &mut String) -> fmt::Result {
        let Self {
            seconds,
            bytes,
            frames,
            samples,
            events,
            missing,
            repeated,
            unreadable,
            lines,
            garbage_bytes,
        } = self;
        write!(out, "-- {bytes} bytes in {seconds:.1} s: ")?;
        write!(
            out,
            "{frames} frames, {samples} samples, {events} events, {lines} lines, {garbage_bytes} bytes of garbage"
        )?;
        for (count, what) in [
            (missing, "records given up"),
            (repeated, "sent again, since nothing is acknowledged here"),
            (unreadable, "of a node whose hello was not heard"),
        ] {
            if *count > 0 {
                write!(out, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("?"),
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Single(value) => value.fmt(f),
            Self::Double(value) => value.fmt(f),
        }
    }
}

/// The beginning of `bytes` in hex, and as text.
pub(super) fn excerpt(bytes: &[u8]) -> (String, String) {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let ascii = bytes
        .iter()
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' });
    (hex.join(" "), ascii.collect())
}

/// The time of the day, UTC, to the millisecond.
fn clock(at: Timestamp) -> String {
    at.to_string().get(11..23).unwrap_or_default().to_owned()
}

fn seconds(uptime_ms: u64) -> String {
    format!("{}.{:03} s", uptime_ms / 1_000, uptime_ms % 1_000)
}
