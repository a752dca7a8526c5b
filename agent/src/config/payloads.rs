//! How payloads are read: the keys that a subscription of an MQTT source and a serial source that reads lines share.

use std::time::Duration;

use super::fault::Problem;
use super::nearest::nearest;
use super::node::LONGEST;
use super::reader::{Given, Section, invalid, value_or};
use super::report::{Report, clip};
use crate::ingest::Subscription;
use crate::ingest::decode::MAX_DEVICE_BYTES;
use crate::ingest::settings::{ColumnFault, Columns, Delimiter, Pattern, Payload, Pointer, Timezone};
use crate::ingest::topic::Template;

const POINTER_FORM: &str = "a JSON pointer such as \"/ts\" or \"/meta/time\"";
const COLUMNS_FORM: &str = "a list of the names of the values in their order, such as columns = [\"time\", \"temperature\"], with \"\" for one to skip";
const PATTERN_FORM: &str = "a pattern with named groups such as pattern = 'T=(?<temperature>[-0-9.]+)'";

/// What the key `device` may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceKey {
    /// Where the payload names it: a JSON pointer.
    Pointer,
    /// That, if it begins with a slash; else the name itself, for all payloads.
    NameOrPointer,
}

/// How payloads are read, checked.
#[derive(Debug)]
pub(super) struct PayloadSettings {
    pub(super) payload: Payload,
    time: Option<Pointer>,
    timezone: Timezone,
    device: Option<Pointer>,
    device_name: Option<Box<str>>,
    fields: Option<Vec<Pointer>>,
    max_future: Duration,
}

impl PayloadSettings {
    /// The subscription that reads payloads on `topic` so, with everything else at its default.
    pub(super) fn on(self, topic: Template) -> Subscription {
        let Self { payload, time, timezone, device, device_name, fields, max_future } = self;
        Subscription {
            payload,
            time,
            timezone,
            device,
            device_name,
            fields,
            max_future,
            ..Subscription::new(topic)
        }
    }
}

/// The values of `payload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Value,
    Csv,
    Regex,
}

/// Reads the keys `payload`, `columns`, `delimiter`, `pattern`, `time`, `timezone`, `device`, `fields` and `max_future` of
/// `section`. `None` if what is configured is not enough to read anything, which is then a fault already.
pub(super) fn payload_settings(section: &Section<'_, '_>, device: DeviceKey) -> Option<PayloadSettings> {
    let kind = kind(section);
    let columns = columns(section);
    let delimiter = delimiter(section);
    let pattern = pattern(section);
    let time = pointer(section, "time");
    let timezone = timezone(section);
    let (device, device_name) = device_of(section, device);
    let fields = fields(section);
    let max_future = section.duration("max_future", Duration::ZERO..=LONGEST);

    let kind = kind?;
    check_pointless(section, kind, device.as_ref());
    let payload = match kind {
        Kind::Json => Payload::Json,
        Kind::Value => Payload::Value,
        Kind::Csv => {
            section.require("columns", COLUMNS_FORM);
            Payload::Csv(columns?, value_or(delimiter, Delimiter::COMMA))
        }
        Kind::Regex => {
            section.require("pattern", PATTERN_FORM);
            Payload::Regex(pattern?)
        }
    };
    if matches!(kind, Kind::Csv | Kind::Regex) {
        let pointers = time.iter().chain(&device).chain(fields.iter().flatten());
        pointers.for_each(|pointer| check_part(section.report, pointer, payload.parts(), kind));
    }
    let plain = |pointer: Given<Pointer>| pointer.value;
    Some(PayloadSettings {
        payload,
        time: time.map(plain),
        timezone: timezone.unwrap_or_else(Timezone::utc),
        device: device.map(plain),
        device_name,
        fields: fields.map(|fields| fields.into_iter().map(plain).collect()),
        max_future: value_or(max_future, Subscription::DEFAULT_MAX_FUTURE),
    })
}

/// How payloads are read, or what was probably meant, so that the rest can be checked too.
fn kind(section: &Section<'_, '_>) -> Option<Kind> {
    const FORM: &str = "\"json\", \"value\", \"csv\" or \"regex\"";
    const KINDS: [(&str, Kind); 4] =
        [("json", Kind::Json), ("value", Kind::Value), ("csv", Kind::Csv), ("regex", Kind::Regex)];
    if !section.has("payload") {
        return Some(Kind::Json);
    }
    section.choice_or_meant("payload", FORM, &KINDS)
}

fn columns(section: &Section<'_, '_>) -> Option<Columns> {
    let given = section.texts("columns", COLUMNS_FORM)?;
    let names = || given.value.iter().map(|name| name.value);
    match Columns::new(names()) {
        Ok(columns) => Some(columns),
        Err(fault) => {
            let (at, text) = match fault {
                ColumnFault::Twice { index } => (given.value.get(index), names().nth(index)),
                ColumnFault::TooLong { index } => (given.value.get(index), None),
                ColumnFault::NoneNamed | ColumnFault::TooMany => (None, None),
            };
            let place = at.map_or(&given.place, |name| &name.place);
            match text {
                Some(name) => {
                    let text = format!("the column {:?}", clip(name));
                    section.report.fault(place, Problem::Twice { text });
                }
                None => invalid(section.report, place, None, format!("{COLUMNS_FORM} ({fault})")),
            }
            None
        }
    }
}

fn delimiter(section: &Section<'_, '_>) -> Option<Given<Delimiter>> {
    const FORM: &str = "one character that stands in no number, name or quotes: \",\", \";\", \"\\t\", \" \", \"|\" and the like";
    let Given { value: text, place } = section.text("delimiter", FORM)?;
    let delimiter = Delimiter::new(text);
    if delimiter.is_none() {
        let meant = match text.to_lowercase().as_str() {
            "tab" | "tabulator" | "\\t" => Some("\t"),
            "comma" => Some(","),
            "semicolon" => Some(";"),
            "space" | "blank" => Some(" "),
            _ => None,
        };
        invalid(section.report, &place, meant.map(str::to_owned), FORM);
    }
    delimiter.map(|value| Given { value, place })
}

fn pattern(section: &Section<'_, '_>) -> Option<Pattern> {
    let given = section.text("pattern", PATTERN_FORM)?;
    match Pattern::new(given.value) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            invalid(section.report, &given.place, None, format!("{PATTERN_FORM} ({error})"));
            None
        }
    }
}

/// Reports keys that mean nothing to payloads of this kind.
fn check_pointless(section: &Section<'_, '_>, kind: Kind, device: Option<&Given<Pointer>>) {
    const CSV: &str = "only payload = \"csv\" has columns; write that, or remove this";
    const REGEX: &str = "only payload = \"regex\" has a pattern; write that, or remove this";
    const VALUE: &str =
        "payload = \"value\" is a bare value, without parts that a JSON pointer could name; remove this";
    let report = |key, why| {
        if let Some(item) = section.item(key) {
            section.report.fault(&item.place, Problem::Pointless { key, why });
        }
    };
    if kind != Kind::Csv {
        report("columns", CSV);
        report("delimiter", CSV);
    }
    if kind != Kind::Regex {
        report("pattern", REGEX);
    }
    if kind == Kind::Value {
        report("time", VALUE);
        report("fields", VALUE);
        // A name that the operator wrote here, on the other hand, does.
        if device.is_some() {
            report("device", VALUE);
        }
    }
}

/// Reports a pointer that leads to none of the columns or groups, `parts`.
fn check_part(report: &Report<'_>, pointer: &Given<Pointer>, parts: &[Box<str>], kind: Kind) {
    /// More are not listed.
    const LISTED: usize = 20;
    let parts = || parts.iter().filter(|name| !name.is_empty()).map(|name| Pointer::to_member(name));
    if parts().any(|part| part == pointer.value) {
        return;
    }
    let written: Vec<String> = parts().map(|part| part.to_string()).collect();
    // A slash within a name that was not written "~1" makes two tokens of it.
    let unescaped = Pointer::to_member(&pointer.value.tokens().join("/"));
    let near = parts().find(|part| *part == unescaped).map(|part| part.to_string());
    let near = near.or_else(|| nearest(&pointer.value.to_string(), written.iter().map(String::as_str)));
    let mut list: Vec<String> = written.iter().take(LISTED).map(|part| format!("{:?}", clip(part))).collect();
    if written.len() > LISTED {
        list.push("…".to_owned());
    }
    let what = if kind == Kind::Csv { "column" } else { "named group" };
    invalid(
        report,
        &pointer.place,
        near,
        format!("the JSON pointer to a {what}, one of {}", list.join(", ")),
    );
}

fn pointer(section: &Section<'_, '_>, key: &'static str) -> Option<Given<Pointer>> {
    parse_pointer(section.report, &section.text(key, POINTER_FORM)?)
}

fn parse_pointer(report: &Report<'_>, given: &Given<&str>) -> Option<Given<Pointer>> {
    match Pointer::parse(given.value) {
        Ok(value) => Some(Given { value, place: given.place.clone() }),
        Err(error) => {
            let near = (!given.value.is_empty() && !given.value.contains('/'))
                .then(|| format!("/{}", given.value.replace('.', "/")));
            invalid(report, &given.place, near, format!("{POINTER_FORM} ({error})"));
            None
        }
    }
}

/// Whether a device, or a field, can be called that: something that people can read.
pub(super) fn is_name(text: &str) -> bool {
    (1..=MAX_DEVICE_BYTES).contains(&text.len()) && !text.contains(char::is_control)
}

/// The pointer to the device's name, or the name itself.
fn device_of(section: &Section<'_, '_>, allowed: DeviceKey) -> (Option<Given<Pointer>>, Option<Box<str>>) {
    const FORM: &str = "a name of 1 to 256 bytes without control characters such as \"press-7\", or a JSON pointer such as \"/id\" to one in the payload";
    if allowed == DeviceKey::Pointer {
        return (pointer(section, "device"), None);
    }
    let Some(given) = section.text("device", FORM) else { return (None, None) };
    if given.value.starts_with('/') {
        return (parse_pointer(section.report, &given), None);
    }
    if !is_name(given.value) {
        invalid(section.report, &given.place, None, FORM);
        return (None, None);
    }
    (None, Some(given.value.into()))
}

fn fields(section: &Section<'_, '_>) -> Option<Vec<Given<Pointer>>> {
    const FORM: &str = "a list of JSON pointers such as [\"/temperature\", \"/ENERGY/Power\"]";
    let given = section.texts("fields", FORM)?;
    if given.value.is_empty() {
        invalid(section.report, &given.place, None, FORM);
    }
    Some(given.value.iter().filter_map(|field| parse_pointer(section.report, field)).collect())
}

fn timezone(section: &Section<'_, '_>) -> Option<Timezone> {
    const FORM: &str = "\"UTC\" or the name of a time zone such as \"Europe/Berlin\", known to this system";
    let given = section.text("timezone", FORM)?;
    let timezone = Timezone::from_name(given.value);
    if timezone.is_none() {
        invalid(section.report, &given.place, None, FORM);
    }
    timezone
}

#[cfg(test)]
mod tests;
