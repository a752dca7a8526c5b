//! CSV payloads: records of values, one a line.
//!
//! - Lines end with a line feed, a carriage return or both. Those with nothing but blanks are none.
//! - A value in quotes (RFC 4180) may hold delimiters, line ends and, doubled, quotes. Blanks around a value are no part
//!   of it, unless they are the delimiter; blanks within quotes are. Quotes elsewhere stand for themselves.
//! - Values are read as bare ones, also in quotes: numbers, booleans, else text; one that is empty or not finite is
//!   dropped.
//! - A record has one value for each column, else it is rejected: which one is missing, nobody knows.
//! - A first line that says the names of the columns, as devices print when they start, is no record.

use super::assemble::Assembly;
use super::json::Scratch;
use super::parts::Part;
use super::rejection::Rejection;
use super::{Decoded, MAX_READINGS};
use crate::ingest::settings::Delimiter;
use crate::reading::Reading;

/// So many records a payload may have, however short they are; more only if they are as long, on the average, as the
/// shortest object of an array. Else a payload of the same length could take four times the memory that an array can.
const SHORT_RECORDS: usize = 8_192;
/// What that object takes: `{"a":1},`.
const SHORTEST_OBJECT_BYTES: usize = 8;

/// Reads the records in `text`, which begins and ends with no blank but the delimiter.
pub(super) fn read(
    text: &str,
    delimiter: Delimiter,
    scratch: &mut Scratch,
    assembly: &mut Assembly<'_>,
) -> Result<Decoded, Rejection> {
    let mut lines = Cursor { rest: text, delimiter: delimiter.byte() };
    let mut number = 0_usize;
    if let Some(behind) = behind_header(lines, &assembly.plan.parts, &mut scratch.unescaped) {
        lines = behind;
        number = 1;
    }
    let limit = (text.len() / SHORTEST_OBJECT_BYTES).clamp(SHORT_RECORDS, MAX_READINGS);
    let mut found = Found::default();
    let mut outcome = Ok(());
    while outcome.is_ok() && lines.seek_record() {
        number += 1;
        outcome = record(&mut lines, scratch, assembly).and_then(|reading| found.add(reading, limit));
    }
    scratch.shrink();
    match outcome {
        Ok(()) => Ok(found.into_decoded()),
        Err(reason) if text.contains(['\n', '\r']) => {
            Err(Rejection::Record { number, reason: Box::new(reason) })
        }
        Err(reason) => Err(reason),
    }
}

/// Reads the record that begins at `cursor`.
fn record(
    cursor: &mut Cursor<'_>,
    scratch: &mut Scratch,
    assembly: &mut Assembly<'_>,
) -> Result<Option<Reading>, Rejection> {
    let (plan, zone) = (assembly.plan, assembly.zone);
    let Scratch { unescaped, object, .. } = scratch;
    object.begin(assembly);
    let mut count = 0;
    // A value more or less puts the others into wrong columns, so what is wrong with those is not the reason.
    let mut fault = None;
    loop {
        let (text, end) = cursor.value(unescaped).map_err(|fault| fault.of_value(count + 1))?;
        if fault.is_none()
            && let Some(part) = plan.parts.get(count)
        {
            fault = part.take(text, zone, object).err();
        }
        count += 1;
        if end != End::OfValue {
            break;
        }
    }
    if count != plan.parts.len() {
        return Err(Rejection::ValueCount { found: count, columns: plan.parts.len() });
    }
    match fault {
        Some(reason) => Err(reason),
        None => assembly.reading(object),
    }
}

/// What follows the first line, if that says the names of all columns that have one.
fn behind_header<'t>(mut cursor: Cursor<'t>, parts: &[Part], unescaped: &mut String) -> Option<Cursor<'t>> {
    let last = parts.len().checked_sub(1)?;
    for (index, part) in parts.iter().enumerate() {
        let (text, end) = cursor.value(unescaped).ok()?;
        let is_named_so = part.name.is_empty() || *part.name == *text;
        if !is_named_so || (end == End::OfValue) == (index == last) {
            return None;
        }
    }
    Some(cursor)
}

/// The readings so far. Most payloads have one, which takes no allocation to gather.
#[derive(Default)]
struct Found {
    one: Option<Reading>,
    /// All of them, once there are two.
    many: Vec<Reading>,
}

impl Found {
    fn add(&mut self, reading: Option<Reading>, limit: usize) -> Result<(), Rejection> {
        let Some(reading) = reading else { return Ok(()) };
        if self.many.len() == limit {
            return Err(Rejection::TooManyRecords { limit });
        }
        if let Some(one) = self.one.take() {
            self.many.extend([one, reading]);
        } else if self.many.is_empty() {
            self.one = Some(reading);
        } else {
            self.many.push(reading);
        }
        Ok(())
    }

    fn into_decoded(self) -> Decoded {
        match self.one {
            Some(one) => Decoded::Reading(one),
            None if self.many.is_empty() => Decoded::Nothing,
            None => Decoded::Readings(self.many),
        }
    }
}

/// A place in the text: the beginning of a value, or its end.
#[derive(Clone, Copy)]
struct Cursor<'t> {
    rest: &'t str,
    delimiter: u8,
}

/// What a value is the end of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Itself: another value follows.
    OfValue,
    /// Its record.
    OfRecord,
}

/// What is wrong with quotes.
#[derive(Clone, Copy)]
enum QuoteFault {
    Open,
    /// Something follows the closing one.
    Followed {
        by: char,
    },
}

impl QuoteFault {
    fn of_value(self, number: usize) -> Rejection {
        match self {
            Self::Open => Rejection::QuoteOpen { number },
            Self::Followed { by } => Rejection::QuoteFollowed { number, by },
        }
    }
}

impl<'t> Cursor<'t> {
    /// Goes to the next record; false if there is none.
    fn seek_record(&mut self) -> bool {
        let delimiter = char::from(self.delimiter);
        self.rest = self.rest.trim_start_matches(|c: char| c.is_ascii_whitespace() && c != delimiter);
        !self.rest.is_empty()
    }

    /// Takes the value that begins here, and what ends it. `unescaped` lends its memory.
    fn value<'v>(&mut self, unescaped: &'v mut String) -> Result<(&'v str, End), QuoteFault>
    where
        't: 'v,
    {
        match self.behind_blanks().strip_prefix('"') {
            Some(quoted) => self.quoted(quoted, unescaped),
            None => Ok(self.plain()),
        }
    }

    fn plain(&mut self) -> (&'t str, End) {
        let is_end = |byte: u8| byte == self.delimiter || matches!(byte, b'\n' | b'\r');
        let length = self.rest.bytes().position(is_end).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        // What ends it was looked for, so it is there.
        (text.trim_ascii(), self.end().unwrap_or(End::OfRecord))
    }

    fn quoted<'v>(&mut self, quoted: &'t str, unescaped: &'v mut String) -> Result<(&'v str, End), QuoteFault>
    where
        't: 'v,
    {
        let (mut text, mut rest): (&'v str, &'t str) = quoted.split_once('"').ok_or(QuoteFault::Open)?;
        if rest.starts_with('"') {
            unescaped.clear();
            unescaped.push_str(text);
            while let Some(after) = rest.strip_prefix('"') {
                let (more, next) = after.split_once('"').ok_or(QuoteFault::Open)?;
                unescaped.push('"');
                unescaped.push_str(more);
                rest = next;
            }
            text = unescaped;
        }
        self.rest = rest;
        self.rest = self.behind_blanks();
        match self.end() {
            Some(end) => Ok((text, end)),
            None => Err(QuoteFault::Followed { by: self.rest.chars().next().unwrap_or_default() }),
        }
    }

    fn behind_blanks(&self) -> &'t str {
        let delimiter = char::from(self.delimiter);
        self.rest.trim_start_matches(|c| matches!(c, ' ' | '\t') && c != delimiter)
    }

    /// Steps over what ends a value; `None` if something else stands here.
    fn end(&mut self) -> Option<End> {
        let (length, end) = match self.rest.as_bytes() {
            [] => (0, End::OfRecord),
            [b'\r', b'\n', ..] => (2, End::OfRecord),
            [b'\r' | b'\n', ..] => (1, End::OfRecord),
            [byte, ..] if *byte == self.delimiter => (1, End::OfValue),
            _ => return None,
        };
        self.rest = self.rest.split_at(length).1;
        Some(end)
    }
}
