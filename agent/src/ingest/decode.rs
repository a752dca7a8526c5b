//! Room 2: payload bytes become readings, or a rejection with its reason.
//!
//! In: topic and payload of one message. Out: a [`Decoded`]. Promised: a message is taken whole or rejected whole; no
//! input panics; nothing is guessed (a configured time or device that is missing rejects the message, so that it can
//! be replayed once the configuration is right, instead of being stored under a wrong time); memory is bounded
//! whatever comes. What is read, and how, is said at [`Decoder::decode`].

mod assemble;
mod csv;
mod huge;
mod json;
mod keys;
mod names;
mod parts;
mod pattern;
mod plan;
mod rejection;
mod route;
mod time;
mod value;

use std::sync::Arc;

use regex_lite::CaptureLocations;

use self::assemble::Assembly;
use self::json::{Document, Scratch};
use self::plan::Plan;
pub use self::rejection::Rejection;
use self::route::{Memory, Sender};
use super::settings::{Delimiter, Pattern, Payload, Subscription};
use crate::reading::{ClockLine, Reading, Timestamp};

/// A device's name, and each tag: they are keys everywhere behind us, and no name that people give is longer.
pub(crate) const MAX_DEVICE_BYTES: usize = 256;
/// The name of a field, nested names joined. A deep tree of long names comes nowhere near.
pub(crate) const MAX_FIELD_NAME_BYTES: usize = 1_024;
/// Fields of one reading: a whole PLC image fits, an attack does not.
pub(crate) const MAX_FIELDS: usize = 4_096;
/// Readings of one message: as readings, small objects take up to thirty times the memory of their text.
const MAX_READINGS: usize = 1 << 16;
/// Arrays and objects within one another: what the JSON reader bears, which recurses.
const MAX_DEPTH: usize = 127;

/// What a payload turned out to be.
#[derive(Debug, PartialEq)]
#[must_use]
pub enum Decoded {
    /// One reading.
    Reading(Reading),
    /// An array of objects, or several records: as many readings, at least one.
    Readings(Vec<Reading>),
    /// Well-formed, but no value is left (only nulls, non-finite numbers, nested emptiness): skipped.
    Nothing,
    /// It cannot be decoded.
    Rejected(Rejection),
}

/// Decodes the payloads of one connection; remembers what topics and payloads have in common.
#[derive(Debug)]
pub struct Decoder {
    source: Arc<str>,
    subscriptions: Arc<[Subscription]>,
    /// One per subscription.
    plans: Box<[Plan]>,
    /// Where the groups of each subscription's pattern were found, used for every message anew.
    locations: Box<[Option<CaptureLocations>]>,
    memory: Memory,
    scratch: Scratch,
}

impl Decoder {
    /// A decoder for messages of `source`.
    #[must_use]
    pub fn new(source: &Arc<str>, subscriptions: Arc<[Subscription]>) -> Self {
        let plans = subscriptions.iter().map(Plan::new).collect();
        let locations =
            subscriptions.iter().map(|one| one.payload.pattern().map(Pattern::locations)).collect();
        let (memory, scratch) = (Memory::new(), Scratch::default());
        Self { source: Arc::clone(source), subscriptions, plans, locations, memory, scratch }
    }

    /// The subscription that takes `topic`: the first that matches, in the order of the configuration.
    pub fn route(&mut self, topic: &str) -> Option<&Subscription> {
        let at = self.memory.find(topic, &self.source, &self.subscriptions);
        let (route, ..) = self.memory.route(at);
        route.taken.as_ref().map(|taken| &self.subscriptions[taken.subscription])
    }

    /// Decodes the payload of a message on `topic`, received at `received`; by which line, if the clock was not right.
    ///
    /// - Blanks around a payload, a byte order mark before it and one NUL behind it are no part of it; if nothing
    ///   remains (a retained message was cleared), it is [`Decoded::Nothing`].
    /// - JSON: every leaf is a field; nested names are joined by ".", array elements by their index. An array at the
    ///   top is one reading for each of its objects. `null` says nothing, wherever it stands.
    /// - Bare values: a number as JSON writes it, `true` or `false`, `nan` and `inf` (dropped), else text. The field is
    ///   named by the topic's `{field}`, else "value".
    /// - CSV: a line is a record, and each record with a value a reading; more in `csv.rs`. A first line that says
    ///   the names of the columns is no record.
    /// - A pattern: the named groups of its first match are the fields.
    /// - Device: the topic's `{device}`, else the subscription's fixed name, else what stands at the device pointer,
    ///   else the source's name. All other captures but `{field}` become tags.
    /// - Time: what stands at the time pointer, where one is configured; else `received`.
    pub fn decode(
        &mut self,
        topic: &str,
        payload: &[u8],
        received: Timestamp,
        line: Option<&Arc<ClockLine>>,
    ) -> Decoded {
        let decoded = self.try_decode(topic, payload, received, line);
        self.memory.keep_bounds();
        decoded.unwrap_or_else(Decoded::Rejected)
    }

    fn try_decode(
        &mut self,
        topic: &str,
        payload: &[u8],
        received: Timestamp,
        line: Option<&Arc<ClockLine>>,
    ) -> Result<Decoded, Rejection> {
        let at = self.memory.find(topic, &self.source, &self.subscriptions);
        let (route, shapes, held) = self.memory.route(at);
        let taken = route.taken.as_mut().ok_or(Rejection::NoSubscription)?;
        let index = taken.subscription;
        let (subscription, plan) = (&self.subscriptions[index], &self.plans[index]);
        let text = trimmed(payload, subscription.payload.delimiter())?;
        if text.is_empty() {
            return Ok(Decoded::Nothing);
        }
        if let Sender::Rejected(reason) = &taken.sender {
            return Err(reason.clone());
        }

        let (source, zone) = (&*self.source, &subscription.timezone.0);
        let mut assembly = Assembly { source, plan, zone, received, line, taken, shapes, held };
        match &subscription.payload {
            Payload::Json => {
                json::read(text, &mut self.scratch, &mut assembly).map(|document| match document {
                    Document::Object(Some(reading)) => Decoded::Reading(reading),
                    Document::Array(readings) if !readings.is_empty() => Decoded::Readings(readings),
                    Document::Object(None) | Document::Array(_) | Document::Null => Decoded::Nothing,
                })
            }
            Payload::Value => {
                let reading = assembly.bare_value(text, &mut self.scratch.object)?;
                Ok(reading.map_or(Decoded::Nothing, Decoded::Reading))
            }
            Payload::Csv(_, delimiter) => csv::read(text, *delimiter, &mut self.scratch, &mut assembly),
            Payload::Regex(pattern) => {
                let locations = &mut self.locations[index];
                let reading = pattern::read(text, pattern, locations, &mut self.scratch, &mut assembly)?;
                Ok(reading.map_or(Decoded::Nothing, Decoded::Reading))
            }
        }
    }
}

/// The text of `payload` without what is not part of it. Where a blank separates values, it is.
fn trimmed(payload: &[u8], delimiter: Option<Delimiter>) -> Result<&str, Rejection> {
    let text =
        std::str::from_utf8(payload).map_err(|error| Rejection::NotUtf8 { at: error.valid_up_to() })?;
    let is_blank = |char: char| {
        char.is_ascii_whitespace() && delimiter.is_none_or(|delimiter| char != char::from(delimiter.byte()))
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_matches(is_blank);
    // Firmware in C that sends the terminator too.
    Ok(text.strip_suffix('\0').map_or(text, |text| text.trim_end_matches(is_blank)))
}

#[cfg(test)]
mod tests;
