//! `[sinks.<name>]`.

use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};

use super::fault::Problem;
use super::nearest::nearest;
use super::node::in_memory;
use super::note::Remark;
use super::reader::{Given, Section, invalid, value_or};
use super::{files, urls};
use crate::backoff;
use crate::forward::Settings;
use crate::forward::settings::{AckRule, BatchLimits, Compression, Required};
use crate::secret::Secret;
use crate::stream::Stream;

/// The most records of one request; a refused batch is split record by record in the worst case.
const MOST_RECORDS: u64 = 100_000;
/// The most bytes of a batch: it is held in memory, once plain and once compressed.
const MOST_BYTES: u64 = 16 << 20;
/// The longest that a record waits for others.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
/// The shortest pause ceiling after a failure, so that a dead cloud is no busy loop.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);
/// The least and most time of a request.
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
const MOST_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Headers that the agent sets, or that belong to the connection.
const OUR_HEADERS: [&str; 7] = [
    "content-type",
    "content-encoding",
    "content-length",
    "idempotency-key",
    "host",
    "transfer-encoding",
    "connection",
];

/// One sink; `None` if it is too faulty to be one.
pub(super) fn sink(name: &str, section: &Section<'_, '_>) -> Option<Settings> {
    const TYPE_FORM: &str = "type = \"http\"";
    section.require("type", TYPE_FORM);
    section.choice("type", TYPE_FORM, &[("http", ())]);
    section.require("url", urls::SINK.expected);
    let url = section.text("url", urls::SINK.expected);
    let parsed = url.as_ref().and_then(|given| urls::url(section.report, given, &urls::SINK));
    let streams = streams(section);
    let bodies = [("zstd", Compression::Zstd), ("gzip", Compression::Gzip), ("none", Compression::None)];
    let compression = section.choice("compression", "\"zstd\", \"gzip\" or \"none\"", &bodies);
    let batch = batch(section);
    let retry = retry(section);
    let timeout = section.duration("timeout", LEAST_TIMEOUT..=MOST_TIMEOUT);
    let ack = section.flag("require_ack");
    let required = section.flag("required");
    let headers = headers(section);
    let tls = files::client_tls(section);
    if let Some(parsed) = &parsed
        && parsed.scheme() == "http"
        && tls.is_some()
        && let Some(item) = section.item("tls")
    {
        section.report.fault(&item.place, Problem::TlsUnused { scheme: "http".to_owned() });
    }
    if let (Some(url), Some(item)) = (&parsed, section.item("headers"))
        && urls::is_readable_on_its_way(url)
    {
        section.report.note(&item.place, Remark::SecretInClear { scheme: "https" });
    }
    section.finish();
    Some(Settings {
        name: name.to_owned(),
        url: parsed.and(url)?.value.to_owned(),
        streams,
        compression: value_or(compression, Compression::default()),
        batch,
        retry,
        timeout: value_or(timeout, Settings::DEFAULT_TIMEOUT),
        ack: ack
            .map_or_else(AckRule::default, |given| if given.value { AckRule::Body } else { AckRule::Status }),
        required: required
            .map_or_else(Required::default, |given| if given.value { Required::Yes } else { Required::No }),
        headers,
        tls: tls.unwrap_or_default(),
    })
}

fn streams(section: &Section<'_, '_>) -> Vec<Stream> {
    const FORM: &str =
        "a list of streams in order of priority, such as [\"alerts\", \"windows\", \"readings\"]";
    let Some(given) = section.texts("streams", FORM) else { return Settings::DEFAULT_STREAMS.to_vec() };
    if given.value.is_empty() {
        invalid(section.report, &given.place, None, FORM);
    }
    let mut streams = Vec::with_capacity(Stream::ALL.len());
    for name in given.value {
        match Stream::from_name(name.value) {
            Some(stream) if streams.contains(&stream) => {
                section
                    .report
                    .fault(&name.place, Problem::Twice { text: format!("stream {:?}", name.value) });
            }
            Some(stream) => streams.push(stream),
            None => {
                let near = nearest(name.value, Stream::ALL.map(Stream::name));
                invalid(section.report, &name.place, near, "one of the streams alerts, windows, readings");
            }
        }
    }
    streams
}

fn batch(parent: &Section<'_, '_>) -> BatchLimits {
    let section =
        parent.section("batch", "a table such as { records = 1000, bytes = \"256KiB\", wait = \"1s\" }");
    let defaults = BatchLimits::default();
    let records = section.number("records", 1..=MOST_RECORDS);
    let size = section.size("bytes", 1..=MOST_BYTES);
    let wait = section.duration("wait", Duration::ZERO..=LONGEST_WAIT);
    section.finish();
    BatchLimits {
        records: value_or(records, defaults.records),
        bytes: in_memory(size, defaults.bytes),
        wait: value_or(wait, defaults.wait),
    }
}

fn retry(parent: &Section<'_, '_>) -> backoff::Settings {
    let section = parent.section("retry", "a table such as { initial = \"500ms\", max = \"5m\" }");
    let initial = section.duration("initial", SHORTEST_PAUSE..=LONGEST_PAUSE);
    let max = section.duration("max", SHORTEST_PAUSE..=LONGEST_PAUSE);
    section.finish();
    let is_sound = initial.is_some() == section.has("initial") && max.is_some() == section.has("max");
    let place = initial.as_ref().or(max.as_ref()).map(|given| given.place.clone());
    let defaults = Settings::DEFAULT_RETRY;
    let settings =
        backoff::Settings { initial: value_or(initial, defaults.initial), max: value_or(max, defaults.max) };
    if let Some(place) = place
        && is_sound
        && settings.initial > settings.max
    {
        section
            .report
            .fault(&place, Problem::InitialAboveMax { initial: settings.initial, max: settings.max });
    }
    settings
}

fn headers(parent: &Section<'_, '_>) -> Vec<(String, Secret)> {
    const FORM: &str = "a table such as { Authorization = { file = \"token\" } }";
    let Some(section) = parent.secret_item("headers").and_then(|item| item.section(FORM)) else {
        return Vec::new();
    };
    let mut headers: Vec<(String, Secret)> = Vec::new();
    for (name, item) in section.entries() {
        check_header_name(&section, &name, &headers);
        let place = item.place.clone();
        let Some(secret) = files::secret(item) else { continue };
        if let Secret::Inline(value) = &secret
            && HeaderValue::from_str(value).is_err()
        {
            let text = "the value (not shown)".to_owned();
            let expected = "visible characters without line breaks, as HTTP allows".to_owned();
            section.report.fault(&place, Problem::Invalid { text, nearest: None, expected });
        }
        headers.push((name.value.to_owned(), secret));
    }
    headers
}

fn check_header_name(section: &Section<'_, '_>, name: &Given<&str>, earlier: &[(String, Secret)]) {
    let lower = name.value.to_ascii_lowercase();
    if HeaderName::from_bytes(name.value.as_bytes()).is_err() {
        invalid(section.report, &name.place, None, "the name of an HTTP header such as Authorization");
    } else if OUR_HEADERS.contains(&lower.as_str()) {
        invalid(section.report, &name.place, None, "a header other than those the agent sets itself");
    } else if earlier.iter().any(|(other, _)| other.eq_ignore_ascii_case(name.value)) {
        section.report.fault(&name.place, Problem::Twice { text: format!("header {:?}", name.value) });
    }
}
