//! The keys that say how payloads are read, and each of their faults.

use super::super::report::Report;
use super::super::syntax::Readable;
use super::super::tests::{self, Bench, SOURCE, config, load};
use super::super::{Remark, source};
use super::*;

/// A source whose subscription has `keys` beside its topic.
fn with(keys: &str) -> String {
    SOURCE.replace("topic = \"t/{device}\"", &format!("topic = \"t\", {keys}"))
}

/// The subscription that has `keys`.
fn subscription(keys: &str) -> Subscription {
    match config(&with(keys)).sources.remove(0) {
        source::Settings::Mqtt(mut source) => source.subscriptions.remove(0),
        other => panic!("{other:?}"),
    }
}

/// A subscription with `keys` has one fault, where `at` stands first, at the key `at` or below it; it says `contains`.
fn check(keys: &str, at: &str, key: &str, contains: &str) {
    let text = with(keys);
    let line = text.lines().nth(3).unwrap();
    let column = line.split_once(at).unwrap_or_else(|| panic!("{at} is not in {line}")).0.chars().count() + 1;
    tests::check(&text, &format!("4:{column}: sources.a.subscribe[0]{key}: "), contains);
}

fn csv(names: &[&str], delimiter: &str) -> Payload {
    let columns = Columns::new(names.iter().copied()).unwrap();
    Payload::Csv(columns, Delimiter::new(delimiter).unwrap())
}

#[test]
fn each_payload_has_its_keys() {
    let columns = "payload = \"csv\", columns = [\"ts\", \"a\", \"\"]";
    assert_eq!(subscription(columns).payload, csv(&["ts", "a", ""], ","));
    assert_eq!(subscription(&format!("{columns}, delimiter = \"\\t\"")).payload, csv(&["ts", "a", ""], "\t"));
    let all = subscription(&format!("{columns}, time = \"/ts\", device = \"/a\", fields = [\"/a\"]"));
    assert_eq!(all.time, Some(Pointer::to_member("ts")));
    assert_eq!(all.fields.map(|fields| fields.len()), Some(1));
    let regex = subscription(
        "payload = \"regex\", pattern = '(?<ts>\\d+) (?<a.b>.)', time = \"/ts\", fields = [\"/a.b\"]",
    );
    let Payload::Regex(pattern) = regex.payload else { panic!("{regex:?}") };
    assert_eq!(pattern.as_str(), "(?<ts>\\d+) (?<a.b>.)");
    let notes = load(&with("payload = \"csv\", columns = [\"a\"]").replace("\"t\"", "\"t/{field}\"")).notes;
    assert!(notes.iter().any(|note| note.remark == Remark::FieldUnused), "{notes:?}");
}

#[test]
fn a_payload_says_what_it_is_and_what_that_needs() {
    check("payload = \"cvs\", columns = [\"a\"]", "\"cvs\"", ".payload", "did you mean \"csv\"?");
    let all = "expected \"json\", \"value\", \"csv\" or \"regex\"";
    check("payload = \"xml\", columns = [\"a\"]", "\"xml\"", ".payload", all);
    check("payload = 7", "7", ".payload", all);
    check("payload = \"csv\"", "{", ".columns", "is missing; expected a list of the names");
    check("payload = \"csv\", colums = [\"a\"]", "colums", ".colums", "did you mean \"columns\"?");
    check("payload = \"regex\"", "{", ".pattern", "is missing; expected a pattern with named groups");
    let pointless = "has no meaning here: only payload = \"csv\" has columns";
    check("columns = [\"a\"]", "[\"a\"]", ".columns", pointless);
    check("payload = \"value\", delimiter = \";\"", "\";\"", ".delimiter", pointless);
    let pointless = "pattern has no meaning here: only payload = \"regex\" has a pattern";
    check("payload = \"csv\", columns = [\"a\"], pattern = '(?<a>.)'", "'(?", ".pattern", pointless);
    check("payload = \"value\", fields = [\"/a\"]", "[\"/a\"]", ".fields", "fields has no meaning here");
    check("payload = \"value\", device = \"/a\"", "\"/a\"", ".device", "device has no meaning here");
}

#[test]
fn columns_are_checked() {
    let check = |columns: &str, at: &str, key: &str, contains: &str| {
        let keys = format!("payload = \"csv\", columns = {columns}");
        check(&keys, at, &format!(".columns{key}"), contains);
    };
    check("\"a,b\"", "\"a,b\"", "", "\"a,b\" is a string; expected a list of the names");
    check("[\"a\", 1]", "1]", "[1]", "1 is a number; expected a list");
    check("[]", "[]", "", "[] is not understood; expected a list of the names");
    check("[\"\"]", "[\"\"]", "", "name at least one");
    check("[\"a\", \"\", \"\", \"a\"]", "\"a\"]", "[3]", "the column \"a\" stands here twice");
    check(&format!("[\"a\", \"{}\"]", "n".repeat(1_025)), "\"nnn", "[1]", "longer than 1024 bytes");
    check(&format!("[{}\"a\"]", "\"\",".repeat(4_096)), "[\"\",", "", "more than 4096 columns");
}

#[test]
fn a_delimiter_is_one_character() {
    let check = |delimiter: &str, contains: &str| {
        let keys = format!("payload = \"csv\", columns = [\"a\"], delimiter = {delimiter}");
        check(&keys, delimiter, ".delimiter", contains);
    };
    check("\"tab\"", "did you mean \"\\t\"?");
    check("'\\t'", "did you mean \"\\t\"?");
    check("\"semicolon\"", "did you mean \";\"?");
    check("\"\"", "expected one character");
    check("\".\"", "expected one character");
    check("\", \"", "expected one character");
    check("9", "is a number");
}

#[test]
fn a_pattern_is_compiled_when_it_is_read() {
    let check = |pattern: &str, contains: &str| {
        check(&format!("payload = \"regex\", pattern = {pattern}"), pattern, ".pattern", contains);
    };
    check("'(?<a>x'", "pattern = 'T=(?<temperature>[-0-9.]+)' (found open group without closing ')')");
    check("'T=(.*)'", "it has no named group");
    check("'(?<a>x)(?<a>y)'", "duplicate");
    check("'(?<a>(x{1000}){1000})'", "size limit");
    check("'(?<a>\\p{L})'", "not supported");
    check("['(?<a>x)']", "is an array");
    check(&format!("'(?<{}>x)'", "n".repeat(1_025)), "1025 bytes long; at most 1024");
    check(&format!("'(?<a>{})'", "x".repeat(5_000)), "at most 4096");
}

#[test]
fn pointers_name_columns_or_groups() {
    let csv = |keys: &str, at: &str, key: &str, contains: &str| {
        check(&format!("payload = \"csv\", columns = [\"time\", \"m/s\", \"\"], {keys}"), at, key, contains);
    };
    let listed = "did you mean \"/time\"? expected the JSON pointer to a column, one of \"/time\", \"/m~1s\"";
    csv("time = \"/tiem\"", "\"/tiem\"", ".time", listed);
    csv("device = \"/id\"", "\"/id\"", ".device", "expected the JSON pointer to a column");
    csv("device = \"time\"", "\"time\" }", ".device", "did you mean \"/time\"?");
    csv("fields = [\"/time\", \"/m/s\"]", "\"/m/s\"", ".fields[1]", "did you mean \"/m~1s\"?");
    csv("fields = [\"/\"]", "\"/\"", ".fields[0]", "one of \"/time\"");
    let keys = "payload = \"regex\", pattern = '(x)(?<time>y)', time = \"/1\"";
    check(keys, "\"/1\"", ".time", "to a named group, one of \"/time\"");
    let names: Vec<String> = (0..30).map(|n| format!("\"c{n}\"")).collect();
    let many = format!("payload = \"csv\", columns = [{}], time = \"/x\"", names.join(", "));
    check(&many, "\"/x\"", ".time", "\"/c19\", …");
}

/// What a source of lines would read from `text`, and its faults.
fn lines(text: &str) -> (Option<Subscription>, Vec<String>) {
    let bench = Bench::named();
    let readable = Readable::of(text);
    let report = Report::new(text, "h.toml", &bench);
    let table = readable.table(&report).unwrap();
    let section = Section::root(&report, table.get_ref());
    let settings = payload_settings(&section, DeviceKey::NameOrPointer);
    section.finish();
    drop(section);
    let everything = Template::parse("#").unwrap();
    let subscription = settings.map(|settings| settings.on(everything));
    drop(table);
    (subscription, report.into_faults().iter().map(ToString::to_string).collect())
}

#[test]
fn a_source_without_topics_may_name_its_device() {
    let said = |text: &str| match lines(text) {
        (Some(subscription), faults) if faults.is_empty() => {
            (subscription.device_name.clone(), subscription.device_in_payload().map(ToString::to_string))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(said("device = \"press-7\""), (Some("press-7".into()), None));
    assert_eq!(said("device = \"/model\""), (None, Some("/model".into())));
    assert_eq!(said("payload = \"value\"\ndevice = \"press-7\""), (Some("press-7".into()), None));
    assert_eq!(
        said("payload = \"csv\"\ncolumns = [\"a\", \"id\"]\ndevice = \"/id\""),
        (None, Some("/id".into()))
    );
    assert_eq!(said("max_future = \"1m\"\ntimezone = \"UTC\""), (None, None));
    let faulty = |text: &str, contains: &str| {
        let (_, faults) = lines(text);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(contains), "{faults:?}");
    };
    faulty("device = \"\"", "1:10: device: \"\" is not understood; expected a name of 1 to 256 bytes");
    faulty(&format!("device = \"{}\"", "n".repeat(257)), "1 to 256 bytes");
    faulty("device = \"a\\u0000\"", "1 to 256 bytes");
    faulty("device = \"/a~\"", "a JSON pointer such as");
    faulty("payload = \"value\"\ndevice = \"/model\"", "2:10: device: device has no meaning here");
    faulty("payload = \"csv\"\ncolumns = [\"a\", \"id\"]\ndevice = \"/di\"", "did you mean \"/id\"?");
    faulty("topic = \"x\"", "unknown key \"topic\"");
}
