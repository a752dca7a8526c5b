//! From text to a table, and from the TOML parser's errors to faults.
//!
//! The parser goes on after an error, so that one broken line does not hide what is wrong elsewhere. Where it would lose
//! its way, it is helped: see [`Readable`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::{DeTable, Error};

use super::fault::{Place, Problem};
use super::lines::Lines;
use super::report::{Report, clip};

/// What the parser says of a line without "=".
const NO_VALUE: &str = "key with no value";
/// So often is a text parsed anew without its broken lines; beyond that, some faults wait for the next check.
const ROUNDS: usize = 16;
/// What the parser says of a key or table that is there twice; all else in the file is as it should be.
const DUPLICATE: &str = "duplicate key";

/// Keys whose values are never secret, so that a syntax error may show them.
const PLAIN_KEYS: [&str; 42] = [
    "id",
    "data_dir",
    "listen",
    "socket",
    "open",
    "level",
    "format",
    "max_size",
    "max_age",
    "when_full",
    "commit_interval",
    "max_payload",
    "type",
    "protocol",
    "keep_alive",
    "client_id",
    "topic",
    "qos",
    "payload",
    "time",
    "timezone",
    "device",
    "retained",
    "fields",
    "max_future",
    "max_clients",
    "size",
    "slide",
    "lateness",
    "allowed_lateness",
    "idle",
    "max_series",
    "aggregates",
    "sources",
    "streams",
    "compression",
    "timeout",
    "required",
    "bus",
    "interval",
    "driver",
    "range",
];

/// A text that the parser can be given, and the errors found in lines that it is not given any more.
pub(super) struct Readable<'t> {
    text: Cow<'t, str>,
    errors: Vec<Found>,
}

/// An error of the parser.
struct Found {
    span: Range<usize>,
    message: String,
}

impl<'t> Readable<'t> {
    /// Blanks lines without "=", after which the parser would forget what follows. Every byte stays in its place.
    pub(super) fn of(text: &'t str) -> Self {
        let mut readable = Self { text: Cow::Borrowed(text), errors: Vec::new() };
        for _ in 0..ROUNDS {
            let (_, errors) = DeTable::parse_recoverable(&readable.text);
            let lost: Vec<Found> = errors
                .iter()
                .filter(|error| error.message().starts_with(NO_VALUE))
                .map(|error| Found::of(error, text))
                .collect();
            if lost.is_empty() {
                break;
            }
            readable.text = Cow::Owned(blanked(&readable.text, &lost));
            readable.errors.extend(lost);
        }
        readable
    }

    /// Its table; what is wrong with the text is reported. `None` if a broken header or an open bracket or quote makes
    /// whole lines belong to something else, so that the table is not worth checking.
    pub(super) fn table<'r>(&'r self, report: &Report<'_>) -> Option<toml::Spanned<DeTable<'r>>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let mut all: BTreeMap<usize, &str> = BTreeMap::new();
        let found: Vec<Found> = errors.iter().map(|error| Found::of(error, &self.text)).collect();
        let mut errors: Vec<&Found> = self.errors.iter().chain(&found).collect();
        errors.sort_by_cached_key(|error| error.span.start);
        errors.retain(|error| all.insert(error.span.start, &error.message).is_none());
        drop_what_follows_an_open_bracket(&mut errors);
        let broken = errors.iter().map(|error| report.lines.position(error.span.start).line).collect();
        for error in &errors {
            let place = Place { key: String::new(), span: error.span.clone() };
            report.fault(&place, problem(report, error, &broken));
        }
        errors.iter().all(|error| error.leaves_the_rest_alone(&report.lines)).then_some(table)
    }
}

/// `text` with spaces for the lines of `errors`.
fn blanked(text: &str, errors: &[Found]) -> String {
    let lines = Lines::of(text);
    let broken: BTreeSet<usize> =
        errors.iter().map(|error| lines.position(error.span.start.saturating_sub(1)).line).collect();
    let mut blanked = String::with_capacity(text.len());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if broken.contains(&(index + 1)) {
            blanked.extend(
                line.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { char::from(byte) } else { ' ' }),
            );
        } else {
            blanked.push_str(line);
        }
    }
    blanked
}

/// After an open bracket nothing is as it should be: the first complaint is near the place, and the last names it.
fn drop_what_follows_an_open_bracket(errors: &mut Vec<&Found>) {
    let is_open = |error: &Found| error.message.starts_with("unclosed");
    let follows =
        |error: &Found| error.message.starts_with("missing comma") || error.message.starts_with("unexpected");
    if errors.iter().any(|error| is_open(error))
        && let Some(first) = errors.iter().position(|error| follows(error))
    {
        let mut index = 0;
        errors.retain(|error| {
            index += 1;
            index <= first + 1 || is_open(error)
        });
    }
}

impl Found {
    fn of(error: &Error, text: &str) -> Self {
        Self { span: error.span().unwrap_or(text.len()..text.len()), message: error.message().to_owned() }
    }

    fn leaves_the_rest_alone(&self, lines: &Lines<'_>) -> bool {
        let (line, _) = lines.line_at(self.span.start);
        let moves_lines = line.trim_start().starts_with('[')
            || self.message.contains("unclosed")
            || self.message.contains("multi-line");
        self.message == DUPLICATE || !moves_lines
    }
}

/// What the operator is told of `error`; other errors are in the lines `broken`.
fn problem(report: &Report<'_>, error: &Found, broken: &BTreeSet<usize>) -> Problem {
    let message = error.message.as_str();
    let (line, before) = report.lines.line_at(error.span.start);
    if message == DUPLICATE {
        let is_header = line.trim_start().starts_with('[');
        let text =
            if is_header { line.trim() } else { report.text.get(error.span.clone()).unwrap_or_default() };
        return Problem::Twice { text: clip(text) };
    }
    let value = before.contains('=').then(|| line.split_once('=')).flatten().map(|(key, value)| {
        let value = value.split(" #").next().unwrap_or_default().trim();
        (key.trim(), value)
    });
    let is_bare = message.starts_with("string values must be quoted")
        || ["invalid float", "invalid integer", "invalid number", "invalid date", "invalid time"]
            .iter()
            .any(|kind| message.starts_with(kind));
    match value {
        Some((_, "")) if is_bare => {
            Problem::Syntax { message: "the value is missing; expected one after `=`".to_owned(), text: None }
        }
        Some((key, value)) if is_bare && PLAIN_KEYS.contains(&key) => {
            Problem::Unquoted { text: Some(clip(value)) }
        }
        Some(_) | None if is_bare => Problem::Unquoted { text: None },
        Some(_) | None => {
            let message =
                if message.ends_with("string, expected `\"`") || message.ends_with("string, expected `'`") {
                    "the closing quote is missing".to_owned()
                } else {
                    message.to_owned()
                };
            let text = shown(report, error.span.clone(), broken).map(|text| format!("`{text}`"));
            Problem::Syntax { message, text }
        }
    }
}

/// What an error stumbled on, if it cannot be a secret: a key, or the value of a key that holds none. After a broken
/// line, what looks like a key may be the rest of a value.
fn shown(report: &Report<'_>, span: Range<usize>, broken: &BTreeSet<usize>) -> Option<String> {
    let (line, before) = report.lines.line_at(span.start);
    let follows = broken.contains(&(report.lines.position(span.start).line - 1));
    let text = report.text.get(span).filter(|text| !text.is_empty())?;
    let key = line.split_once('=').map_or("", |(key, _)| key).trim();
    let in_key = !before.contains('=') && line.contains('=');
    ((in_key && !follows) || PLAIN_KEYS.contains(&key)).then(|| clip(text))
}

#[cfg(test)]
mod tests {
    use crate::config::parse;
    use crate::config::tests::Bench;

    /// The faults of `text`, without the file's name.
    fn check(text: &str, expected: &[&str]) {
        let faults = parse(text, "h", &Bench::named()).unwrap_err().to_string();
        let faults: Vec<&str> = faults.lines().map(|line| line.strip_prefix("h:").unwrap()).collect();
        assert_eq!(faults, expected);
    }

    #[test]
    fn every_broken_line_is_said_and_none_hides_another() {
        check(
            "[admin]\nlisten = 127.0.0.1:1 # here\n[store]\nmax_size 1GiB\nmax_age = \"30d\nwhen_full =\ncommit_interval = 1s\n\
             [dead_letters]\nmax_size = \"1GB\"\n",
            &[
                "2:15: 127.0.0.1:1 needs quotes; a string is written \"127.0.0.1:1\"",
                "4:10: key with no value, expected `=`",
                "5:15: the closing quote is missing",
                "6:12: the value is missing; expected one after `=`",
                "7:19: 1s needs quotes; a string is written \"1s\"",
                "9:12: dead_letters.max_size: \"1GB\" is not understood; did you mean \"1GiB\"? expected a size such as \
                 \"512B\", \"64KiB\", \"16MiB\" or \"1GiB\" (powers of 1024 alone)",
            ],
        );
    }

    #[test]
    fn an_open_bracket_is_said_where_it_is_felt_and_not_once_a_line() {
        check(
            "[sinks.c]\nstreams = [\"windows\"\nurl = \"http://h\"\ntype = 3\n",
            &["3:1: missing comma between array elements, expected `,`", "4:9: unclosed array, expected `]`"],
        );
    }

    #[test]
    fn a_second_table_of_one_name_hides_nothing() {
        check(
            "[log]\nlevel = 1\n[log]\nformat = 2\n",
            &[
                "2:9: log.level: 1 is a number; expected a level (error, warn, info, debug, trace, off) or a filter such as \
                 \"info,holdfast::forward=debug\"",
                "3:2: [log] stands here twice; expected each once",
                "4:10: log.format: 2 is a number; expected \"text\" or \"json\"",
            ],
        );
    }
}
