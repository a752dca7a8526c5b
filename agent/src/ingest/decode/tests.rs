//! Payloads, one line per case, and what becomes of them.
//!
//! A reading is written as `device{tags} @time name=value ...`: integers bare, floats with a point, text in quotes;
//! the time only where it is not that of receipt.

mod against_a_model;
mod bounds;
mod csv;
mod devices;
mod pattern;

use std::fmt::Write;
use std::sync::Arc;

use super::*;
use crate::ingest::settings::{Pointer, Timezone};
use crate::ingest::topic::Template;
use crate::reading::{Pace, Value};

/// 2026-11-20T04:15:13Z.
const RECEIVED: Timestamp = Timestamp(1_795_148_113_000_000);

fn subscription(topic: &str) -> Subscription {
    Subscription::new(Template::parse(topic).unwrap())
}

/// JSON on `sensors/+`: the device is the source, "plant".
fn json() -> Subscription {
    subscription("sensors/+")
}

fn pointer(text: &str) -> Option<Pointer> {
    Some(Pointer::parse(text).unwrap())
}

fn with_time(text: &str) -> Subscription {
    Subscription { time: pointer(text), ..json() }
}

fn with_device(text: &str) -> Subscription {
    Subscription { device: pointer(text), ..json() }
}

fn with_fields(texts: &[&str]) -> Subscription {
    Subscription { fields: Some(texts.iter().map(|text| Pointer::parse(text).unwrap()).collect()), ..json() }
}

fn value(topic: &str) -> Subscription {
    Subscription { payload: Payload::Value, ..subscription(topic) }
}

fn decoder(subscriptions: impl Into<Arc<[Subscription]>>) -> Decoder {
    Decoder::new(&"plant".into(), subscriptions.into())
}

fn decode(subscription: Subscription, topic: &str, payload: &[u8]) -> Decoded {
    decoder([subscription]).decode(topic, payload, RECEIVED, None)
}

/// What becomes of `payload` on `sensors/x`, in short.
fn said(subscription: Subscription, payload: impl AsRef<[u8]>) -> String {
    short(&decode(subscription, "sensors/x", payload.as_ref()))
}

fn rejected(subscription: Subscription, payload: impl AsRef<[u8]>) -> Rejection {
    match decode(subscription, "sensors/x", payload.as_ref()) {
        Decoded::Rejected(reason) => reason,
        other => panic!("not rejected: {}", short(&other)),
    }
}

fn short(decoded: &Decoded) -> String {
    match decoded {
        Decoded::Reading(reading) => short_reading(reading),
        Decoded::Readings(readings) => {
            let readings: Vec<_> = readings.iter().map(short_reading).collect();
            format!("[{}]", readings.join(" | "))
        }
        Decoded::Nothing => "nothing".into(),
        Decoded::Rejected(reason) => format!("rejected: {reason}"),
    }
}

fn short_reading(reading: &Reading) -> String {
    assert_eq!(reading.shape.names.len(), reading.values.len());
    let mut text = reading.origin.device.to_string();
    if !reading.origin.tags.is_empty() {
        let tags: Vec<_> = reading.origin.tags.iter().map(|(name, tag)| format!("{name}={tag}")).collect();
        write!(text, "{{{}}}", tags.join(",")).unwrap();
    }
    if reading.time != reading.received {
        write!(text, " @{}", reading.time).unwrap();
    }
    for (name, value) in reading.shape.names.iter().zip(&reading.values) {
        match value {
            Value::Int(value) => write!(text, " {name}={value}"),
            Value::Uint(value) => write!(text, " {name}={value}u"),
            Value::Float(value) => write!(text, " {name}={value:?}"),
            Value::Bool(value) => write!(text, " {name}={value}"),
            Value::Text(value) => write!(text, " {name}={value:?}"),
        }
        .unwrap();
    }
    text
}

#[test]
fn every_scalar_leaf_becomes_a_field() {
    let check = |payload: &str, expected: &str| assert_eq!(said(json(), payload), expected, "{payload}");
    check(r#"{"a":1}"#, "plant a=1");
    check(r#"{"a":-1,"b":21.53,"c":true,"d":"on"}"#, r#"plant a=-1 b=21.53 c=true d="on""#);
    check(r#"{"a":{"b":1,"c":{"d":2}},"e":3}"#, "plant a.b=1 a.c.d=2 e=3");
    check(r#"{"Power":[1,2.5,[3]],"x":4}"#, "plant Power.0=1 Power.1=2.5 Power.2.0=3 x=4");
    check(r#"{"a":[{"b":1},{"b":2}]}"#, "plant a.0.b=1 a.1.b=2");
    check(r#"{"":1,"a":{"":2}}"#, "plant =1 a.=2");
    check(r#"{"größe":1,"\u0061\n":2}"#, "plant größe=1 a\n=2");
    check(r#"{"a":"tab\tquote\" \u00e9 \ud83d\ude00"}"#, "plant a=\"tab\\tquote\\\" é 😀\"");
    check(r#"{"a":"","b":" "}"#, r#"plant a="" b=" ""#);
    check(" { \"a\" : 1 }\r\n", "plant a=1");
    check(r#"{"a":"nan","b":"inf"}"#, r#"plant a="nan" b="inf""#);
    check(r#"{"a":"100.00"}"#, r#"plant a="100.00""#);
}

#[test]
fn numbers_stay_what_they_are() {
    let check = |number: &str, expected: &str| {
        assert_eq!(said(json(), format!("{{\"a\":{number}}}")), format!("plant a={expected}"));
    };
    check("0", "0");
    check("9007199254740993", "9007199254740993");
    check("9223372036854775807", "9223372036854775807");
    check("-9223372036854775808", "-9223372036854775808");
    check("9223372036854775808", "9223372036854775808u");
    check("18446744073709551615", "18446744073709551615u");
    check("1.0", "1.0");
    check("-0.0", "-0.0");
    check("1e2", "100.0");
    check("1e20", "1e20");
    check("-1E+300", "-1e300");
    check("18446744073709551616.0", "1.8446744073709552e19");
    check("1e-400", "0.0");
    check("0.30000000000000004", "0.30000000000000004");
    check("0.1234567890123456789", "0.12345678901234568");
    check("2.2250738585072011e-308", "2.225073858507201e-308");
    check("179.36041259765626", "179.36041259765625");
}

#[test]
fn an_integer_beyond_64_bits_rejects_the_message() {
    let check = |payload: &str, field: &str| {
        assert_eq!(
            rejected(json(), payload),
            Rejection::IntegerTooLarge { field: field.into() },
            "{payload}"
        );
    };
    check(r#"{"a":18446744073709551616}"#, "a");
    check(r#"{"a":-9223372036854775809}"#, "a");
    check(r#"{"x":1e20,"y":"\"99999999999999999999","a":{"b":[99999999999999999999,1]},"c":1e30}"#, "a.b.0");
    check(r#"{"a":-99999999999999999999,"b":99999999999999999999}"#, "a");
    // Also where it is no field: the message is taken whole or not at all.
    let fields = with_fields(&["/a"]);
    assert!(matches!(
        rejected(fields, r#"{"a":1,"b":99999999999999999999}"#),
        Rejection::IntegerTooLarge { .. }
    ));
    assert!(matches!(
        rejected(with_time("/t"), r#"{"t":99999999999999999999}"#),
        Rejection::IntegerTooLarge { .. }
    ));
    assert_eq!(
        said(json(), r#"{"a\"":1e20,"9":"99999999999999999999","\\":2e20}"#),
        "plant a\"=1e20 9=\"99999999999999999999\" \\=2e20"
    );
}

#[test]
fn what_says_nothing_is_skipped() {
    let nothing = [
        "",
        " \n",
        "\u{feff}",
        "\0",
        "{}",
        "[]",
        "null",
        "[{}]",
        "[null]",
        r#"{"a":null}"#,
        r#"{"a":{},"b":[]}"#,
        r#"{"a":[null,{"b":null}]}"#,
    ];
    for payload in nothing {
        assert_eq!(said(json(), payload), "nothing", "{payload:?}");
        assert_eq!(
            said(Subscription { device: pointer("/d"), ..with_time("/t") }, payload),
            "nothing",
            "{payload:?}"
        );
    }
    assert_eq!(said(json(), r#"{"a":null,"b":1}"#), "plant b=1");
    for payload in ["", " \r\n", "\0", "\n\0", "nan", " NaN\n", "-inf\0", "Infinity"] {
        assert_eq!(said(value("sensors/{device}"), payload), "nothing", "{payload:?}");
    }
}

#[test]
fn an_array_is_as_many_readings_as_it_has_objects() {
    let check = |payload: &str, expected: &str| assert_eq!(said(json(), payload), expected, "{payload}");
    check(r#"[{"a":1}]"#, "[plant a=1]");
    check(r#"[{"a":1},{"a":2},{"b":3,"a":4}]"#, "[plant a=1 | plant a=2 | plant b=3 a=4]");
    check(r#"[{"a":1},{},null,{"a":null},{"a":2}]"#, "[plant a=1 | plant a=2]");
    let check =
        |payload: &str, expected: Rejection| assert_eq!(rejected(json(), payload), expected, "{payload}");
    check("[1]", Rejection::NotAnObject { index: 0, found: "a number" });
    check(r#"[{"a":1},"x"]"#, Rejection::NotAnObject { index: 1, found: "a string" });
    check(r#"[{"a":1},[{"a":1}]]"#, Rejection::NotAnObject { index: 1, found: "an array" });
    let reason = Box::new(Rejection::DuplicateKey { key: "a".into() });
    check(r#"[{"a":1},{"a":1,"a":2}]"#, Rejection::Element { index: 1, reason });
    let reason = rejected(with_time("/t"), r#"[{"a":1,"t":1},{"a":1}]"#);
    assert!(reason.to_string().starts_with("element 1 of the array: there is no time at \"/t\""), "{reason}");
}

#[test]
fn what_stands_twice_rejects_the_message() {
    let key = |payload: &str, key: &str| {
        assert_eq!(rejected(json(), payload), Rejection::DuplicateKey { key: key.into() }, "{payload}");
    };
    key(r#"{"a":1,"a":1}"#, "a");
    key(r#"{"a":null,"a":1}"#, "a");
    key(r#"{"a":{},"b":1,"a":[]}"#, "a");
    key(r#"{"a":{"b":1},"a":{"c":1}}"#, "a");
    key(r#"{"x":[{"b":1,"\u0062":2}]}"#, "b");
    key(r#"{"":1,"":1}"#, "");
    let many: Vec<_> = (0..40).map(|n| format!("\"k{}\":{n}", n % 39)).collect();
    key(&format!("{{{}}}", many.join(",")), "k0");

    let field = |payload: &str, field: &str| {
        assert_eq!(rejected(json(), payload), Rejection::DuplicateField { field: field.into() }, "{payload}");
    };
    field(r#"{"a.b":1,"a":{"b":2}}"#, "a.b");
    field(r#"{"a":[1],"a.0":2}"#, "a.0");
    assert_eq!(said(json(), r#"{"a":{"b":1},"b":{"a":1,"b":{"a":2}}}"#), "plant a.b=1 b.a=1 b.b.a=2");
    assert_eq!(said(json(), r#"{"a.b":null,"a":{"b":2}}"#), "plant a.b=2");
}

#[test]
fn what_is_not_json_is_rejected_with_its_place() {
    let check = |payload: &str, expected: &str| {
        assert_eq!(
            said(json(), payload),
            format!("rejected: the payload is not JSON: {expected}"),
            "{payload}"
        );
    };
    check(r#"{"a":1"#, "EOF while parsing an object at line 1 column 6");
    check("{\n\"a\":nan}", "expected ident at line 2 column 6");
    check(r#"{"a":1e400}"#, "number out of range at line 1 column 10");
    check(r#"{"a":22,5}"#, "key must be a string at line 1 column 9");
    check(r#"{"a":1}{"a":2}"#, "trailing characters at line 1 column 8");
    check(r#"{"a":01}"#, "invalid number at line 1 column 7");
    check(r#"{"a":1,}"#, "trailing comma at line 1 column 8");
    check("Online", "expected value at line 1 column 1");
    check("{'a':1}", "key must be a string at line 1 column 2");
    check(r#"{"a":"\ud800"}"#, "unexpected end of hex escape at line 1 column 13");
    check("[{\"a\":1}", "EOF while parsing a list at line 1 column 8");
    assert_eq!(rejected(json(), b"{\"a\":\"\xff\"}"), Rejection::NotUtf8 { at: 6 });
    assert_eq!(rejected(value("sensors/+"), b"21\xb0C"), Rejection::NotUtf8 { at: 2 });
    for (payload, found) in [("21.4", "a number"), ("\"x\"", "a string"), ("true", "a boolean")] {
        assert_eq!(rejected(json(), payload), Rejection::BareValue { found });
    }
    assert!(rejected(json(), "21.4").to_string().contains("payload = \"value\""));
}

#[test]
fn a_byte_order_mark_and_a_trailing_nul_are_no_part_of_the_payload() {
    assert_eq!(said(json(), "\u{feff}{\"a\":1}"), "plant a=1");
    assert_eq!(said(json(), "{\"a\":1}\0"), "plant a=1");
    assert_eq!(said(json(), "{\"a\":1}\n\0"), "plant a=1");
    assert!(matches!(rejected(json(), "{\"a\":1}\0\0"), Rejection::NotJson { .. }));
}

#[test]
fn a_bare_value_is_a_field() {
    let check = |payload: &str, expected: &str| {
        assert_eq!(said(value("sensors/{device}"), payload), format!("x value={expected}"), "{payload}");
    };
    check("21.4", "21.4");
    check(" 21\r\n", "21");
    check("21\0", "21");
    check("21 \n\0", "21");
    check("true", "true");
    check("ON", "\"ON\"");
    check("22,5", "\"22,5\"");
    check("007", "\"007\"");
    check("\u{feff}1", "1");
    check("a\0b", "\"a\\0b\"");
    check("{\"a\":1}", r#""{\"a\":1}""#);
    assert_eq!(said(value("{line}/{field}"), "5"), "plant{line=sensors} x=5");
    let too_large = Rejection::IntegerTooLarge { field: "value".into() };
    assert_eq!(rejected(value("sensors/+"), "99999999999999999999"), too_large);
    assert!(matches!(rejected(value("sensors/+"), "1e400"), Rejection::NumberTooLarge { .. }));
    // Pointers lead into JSON only.
    let pointed = Subscription { device: pointer("/d"), time: pointer("/t"), ..value("sensors/+") };
    assert_eq!(said(pointed, "5"), "plant value=5");
}

#[test]
fn a_configured_time_is_the_devices_word() {
    let check = |payload: &str, expected: &str| {
        assert_eq!(said(with_time("/t"), payload), expected, "{payload}");
    };
    check(r#"{"t":1795148112,"a":1}"#, "plant @2026-11-20T04:15:12.000000Z a=1");
    check(r#"{"t":1795148112123,"a":1}"#, "plant @2026-11-20T04:15:12.123000Z a=1");
    check(r#"{"t":1795148112.51,"a":1}"#, "plant @2026-11-20T04:15:12.510000Z a=1");
    check(r#"{"a":1,"t":"2026-11-20T05:15:12+01:00"}"#, "plant @2026-11-20T04:15:12.000000Z a=1");
    check(r#"{"a":1,"t":-1}"#, "plant @1969-12-31T23:59:59.000000Z a=1");
    assert_eq!(
        said(with_time("/m/0/t"), r#"{"m":[{"t":0,"b":1}]}"#),
        "plant @1970-01-01T00:00:00.000000Z m.0.b=1"
    );
    assert_eq!(
        said(with_time("/a~1b/~0"), r#"{"a/b":{"~":0},"c":1}"#),
        "plant @1970-01-01T00:00:00.000000Z c=1"
    );
    assert_eq!(said(json(), r#"{"t":5,"a":1}"#), "plant t=5 a=1");
}

#[test]
fn a_time_without_a_zone_is_meant_in_the_subscriptions() {
    let zone = jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let subscription = Subscription { timezone: Timezone(zone), ..with_time("/Time") };
    let payload = r#"{"Time":"2026-07-01T12:00:00","a":1}"#;
    assert_eq!(said(subscription, payload), "plant @2026-07-01T10:00:00.000000Z a=1");
}

#[test]
fn a_configured_time_that_is_missing_or_none_rejects_the_message() {
    let check = |payload: &str, expected: Rejection| {
        assert_eq!(rejected(with_time("/m/t"), payload), expected, "{payload}");
    };
    let missing = || Rejection::TimeMissing { pointer: "/m/t".into() };
    let unreadable = |found: &str| Rejection::TimeUnreadable { found: found.into() };
    let out = |found: &str| Rejection::TimeOutOfRange { found: found.into() };
    check(r#"{"a":1}"#, missing());
    check(r#"{"a":1,"m":{"t":null}}"#, missing());
    check(r#"{"a":1,"m":5}"#, missing());
    check(r#"{"a":1,"m.t":5}"#, missing());
    check(r#"{"a":1,"m":{"t":"noon"}}"#, unreadable("\"noon\""));
    check(r#"{"a":1,"m":{"t":true}}"#, unreadable("a boolean"));
    check(r#"{"a":1,"m":{"t":[1]}}"#, unreadable("an array"));
    check(r#"{"a":1,"m":{"t":{}}}"#, unreadable("an object"));
    check(r#"{"a":1,"m":{"t":-99999999999}}"#, out("-99999999999"));
    check(r#"{"a":1,"m":{"t":1e30}}"#, out("1000000000000000000000000000000"));
    check(r#"{"a":1,"m":{"t":"9999-12-31T23:59:59-01:00"}}"#, out("\"9999-12-31T23:59:59-01:00\""));
    let escaped = Rejection::TimeMissing { pointer: "/a~1b/~0".into() };
    assert_eq!(rejected(with_time("/a~1b/~0"), r#"{"a/b":1}"#), escaped);
    let long = format!(r#"{{"m":{{"t":"{}"}}}}"#, "ü".repeat(1_000));
    check(&long, unreadable(&format!("\"{}\"…", "ü".repeat(80))));
}

#[test]
fn a_time_far_ahead_of_a_synchronised_clock_is_replaced() {
    let decoded = |time: i64, line: Option<&Arc<ClockLine>>| {
        let mut decoder = decoder([with_time("/t")]);
        let payload = format!("{{\"t\":{time},\"a\":1}}");
        match decoder.decode("sensors/x", payload.as_bytes(), RECEIVED, line) {
            Decoded::Reading(reading) => {
                let remarks = reading.remarks.as_deref().cloned();
                (reading.time, remarks.and_then(|remarks| remarks.original_time), reading.line)
            }
            other => panic!("{other:?}"),
        }
    };
    let limit = RECEIVED.0 + 300_000_000;
    assert_eq!(decoded(limit, None), (Timestamp(limit), None, None));
    assert_eq!(decoded(limit + 1, None), (RECEIVED, Some(Timestamp(limit + 1)), None));
    assert_eq!(decoded(0, None), (Timestamp(0), None, None));
    let unsynced = line();
    assert_eq!(decoded(limit + 1, Some(&unsynced)), (Timestamp(limit + 1), None, Some(unsynced.clone())));
    assert_eq!(decoded(0, Some(&unsynced)), (Timestamp(0), None, Some(unsynced)));
}

fn line() -> Arc<ClockLine> {
    let (boot, pace) = (uuid::Uuid::from_u128(1), Pace::Full);
    Arc::new(ClockLine { boot, stamp: RECEIVED, uptime_micros: 5_000_000, pace })
}

#[test]
fn without_a_clock_every_record_says_so() {
    let line = line();
    let mut decoder = decoder([value("sensors/+")]);
    let Decoded::Reading(reading) = decoder.decode("sensors/x", b"5", RECEIVED, Some(&line)) else {
        panic!("a reading");
    };
    assert_eq!((reading.time, reading.received), (RECEIVED, RECEIVED));
    assert_eq!((reading.line, reading.remarks), (Some(line), None));
}

#[test]
fn the_device_is_named_by_the_topic_else_the_payload_else_the_source() {
    let payload = r#"{"d":"pump","a":1}"#;
    assert_eq!(said(subscription("sensors/{device}"), payload), r#"x d="pump" a=1"#);
    assert_eq!(said(with_device("/d"), payload), "pump a=1");
    assert_eq!(said(json(), payload), r#"plant d="pump" a=1"#);
    // Configured for the payload, but the topic says it: the leaf is no field all the same, whatever it is.
    let both = || Subscription { device: pointer("/d"), ..subscription("sensors/{device}") };
    assert_eq!(said(both(), payload), "x a=1");
    assert_eq!(said(both(), r#"{"a":1}"#), "x a=1");
    assert_eq!(said(both(), r#"{"d":{"e":2},"a":1}"#), "x d.e=2 a=1");
    assert_eq!(said(with_device("/d"), r#"{"a":1,"d":17}"#), "17 a=1");
    assert_eq!(said(with_device("/d"), r#"{"a":1,"d":-1.5}"#), "-1.5 a=1");
    assert_eq!(said(with_device("/d"), r#"{"a":1,"d":18446744073709551615}"#), "18446744073709551615 a=1");
    assert_eq!(said(with_device("/d/id"), r#"{"d":{"id":"7","x":1}}"#), "7 d.x=1");
    let two = r#"[{"d":"p","a":1},{"d":"q","a":2},{"d":"p","a":3}]"#;
    assert_eq!(said(with_device("/d"), two), "[p a=1 | q a=2 | p a=3]");
}

#[test]
fn a_device_without_a_name_is_rejected() {
    let check = |payload: &str, expected: Rejection| {
        assert_eq!(rejected(with_device("/d"), payload), expected, "{payload}");
    };
    let pointer = || "/d".to_owned();
    check(r#"{"a":1}"#, Rejection::DeviceMissing { pointer: pointer() });
    check(r#"{"a":1,"d":null}"#, Rejection::DeviceMissing { pointer: pointer() });
    check(r#"{"a":1,"d":true}"#, Rejection::DeviceNotAName { pointer: pointer(), found: "a boolean" });
    check(r#"{"a":1,"d":["x"]}"#, Rejection::DeviceNotAName { pointer: pointer(), found: "an array" });
    check(r#"{"a":1,"d":{"x":1}}"#, Rejection::DeviceNotAName { pointer: pointer(), found: "an object" });
    check(r#"{"a":1,"d":""}"#, Rejection::DeviceEmpty);
    let empty = decode(subscription("sensors/{device}"), "sensors/", b"{\"a\":1}");
    assert_eq!(empty, Decoded::Rejected(Rejection::DeviceEmpty));
    // A device of an earlier object is not that of the next.
    let two = rejected(with_device("/d"), r#"[{"d":"p","a":1},{"a":2}]"#);
    let reason = Box::new(Rejection::DeviceMissing { pointer: pointer() });
    assert_eq!(two, Rejection::Element { index: 1, reason });
}

#[test]
fn other_captures_become_tags_sorted_by_name() {
    let on = |template: &str, topic: &str| short(&decode(subscription(template), topic, b"{\"a\":1}"));
    assert_eq!(on("{site}/{device}/{line}/#", "s1/d1/l1/x"), "d1{line=l1,site=s1} a=1");
    assert_eq!(on("{b}/{a}", "1/2"), "plant{a=2,b=1} a=1");
    assert_eq!(on("{device}/{field}", "d/f"), "d a=1");
    assert_eq!(on("{a}/{device}", "/d"), "d{a=} a=1");
    let device = Subscription { device: pointer("/d"), ..subscription("{line}/x") };
    assert_eq!(short(&decode(device, "l1/x", br#"{"d":"p","a":1}"#)), "p{line=l1} a=1");
}

#[test]
fn configured_fields_are_taken_and_no_others() {
    let payload = r#"{"t":0,"a":1,"b":{"c":2,"d":[3,4]},"e":5}"#;
    let check = |fields: &[&str], expected: &str| {
        assert_eq!(said(with_fields(fields), payload), expected, "{fields:?}");
    };
    check(&["/a"], "plant a=1");
    check(&["/e", "/a"], "plant a=1 e=5");
    check(&["/b"], "plant b.c=2 b.d.0=3 b.d.1=4");
    check(&["/b/d"], "plant b.d.0=3 b.d.1=4");
    check(&["/b/d/1"], "plant b.d.1=4");
    check(&["/b", "/b/c"], "plant b.c=2 b.d.0=3 b.d.1=4");
    check(&["/none", "/a/none"], "nothing");
    let timed = |fields: &[&str]| said(Subscription { time: pointer("/t"), ..with_fields(fields) }, payload);
    assert_eq!(timed(&["/a"]), "plant @1970-01-01T00:00:00.000000Z a=1");
    // Asked for by its own name, the time is a field too.
    assert_eq!(timed(&["/a", "/t"]), "plant @1970-01-01T00:00:00.000000Z t=0 a=1");
    let nested = Subscription { time: pointer("/b/c"), ..with_fields(&["/b"]) };
    assert_eq!(said(nested, payload), "plant @1970-01-01T00:00:02.000000Z b.d.0=3 b.d.1=4");
}

#[test]
fn the_first_subscription_that_matches_takes_the_topic() {
    let first = value("a/{device}");
    let mut decoder = decoder([first.clone(), subscription("a/#"), subscription("b/{device}/x")]);
    assert_eq!(decoder.route("a/1"), Some(&first));
    assert_eq!(decoder.route("a/1/2").map(|taken| taken.topic.filter()), Some("a/#"));
    assert_eq!(decoder.route("b/7/x").map(|taken| taken.topic.filter()), Some("b/+/x"));
    assert_eq!(decoder.route("c"), None);
    assert_eq!(decoder.route("a/1"), Some(&first));
    // Decoding does not depend on what was routed last.
    let decoded = decoder.decode("b/7/x", b"{\"a\":1}", RECEIVED, None);
    assert_eq!(short(&decoded), "7 a=1");
    let unrouted = decoder.decode("c", b"1", RECEIVED, None);
    assert_eq!(unrouted, Decoded::Rejected(Rejection::NoSubscription));
}
