//! Payloads that a pattern reads.

use proptest::prelude::*;

use super::super::pattern::MAX_TEXT_BYTES;
use super::*;
use crate::ingest::settings::Pattern;

fn regex(pattern: &str) -> Subscription {
    Subscription { payload: Payload::Regex(Pattern::new(pattern).unwrap()), ..json() }
}

const WEATHER: &str = r"T=\s*(?<temperature>[-0-9.]+)( C)?(, H=(?<humidity>\S+))?(?: #(?<id>.*))?";

#[test]
fn named_groups_are_fields() {
    let check =
        |payload: &str, expected: &str| assert_eq!(said(regex(WEATHER), payload), expected, "{payload}");
    check("T=21.5 C, H=48", "plant temperature=21.5 humidity=48");
    check("log: T=  -3, H=wet\r\n", r#"plant temperature=-3 humidity="wet""#);
    // Groups that took no part, and those that say nothing, are dropped.
    check("T=21.5", "plant temperature=21.5");
    check("T=1, H=nan", "plant temperature=1");
    check("T=1 #  ", "plant temperature=1");
    check("T=1 # p 7 \0", r#"plant temperature=1 id="p 7""#);
    // The first match counts.
    check("T=1 T=2", "plant temperature=1");
    check("T=1.2.3", r#"plant temperature="1.2.3""#);
    check("", "nothing");
    check(
        "T=99999999999999999999",
        "rejected: the integer at \"temperature\" needs more than 64 bits; send it as a string or as a float",
    );
    assert_eq!(said(regex("(?<a>x)|(?<b>y)"), "y"), "plant b=\"y\"");
    assert_eq!(said(regex("(?<a>x*)$"), "y"), "nothing");
    assert_eq!(said(regex("^(?<a>\\d+)$"), " 12 \r\n"), "plant a=12");
    assert_eq!(said(regex("(?<a>ü.)"), "xüß"), "plant a=\"üß\"");
}

#[test]
fn what_the_pattern_does_not_match_is_rejected() {
    assert_eq!(rejected(regex(WEATHER), "ready"), Rejection::NoMatch { start: "ready".into() });
    let long = "é".repeat(MAX_TEXT_BYTES / 2);
    assert_eq!(rejected(regex(WEATHER), &long), Rejection::NoMatch { start: "é".repeat(80) });
    let (bytes, limit_bytes) = (MAX_TEXT_BYTES + 1, MAX_TEXT_BYTES);
    assert_eq!(
        rejected(regex(WEATHER), format!("{long}x")),
        Rejection::TooLongForPattern { bytes, limit_bytes }
    );
}

#[test]
fn time_device_and_fields_name_groups() {
    let pattern = "(?<at>\\S*) (?<id>\\S*) (?<a>\\S*) (?<b>\\S*)";
    let both = || Subscription { time: pointer("/at"), device: pointer("/id"), ..regex(pattern) };
    assert_eq!(said(both(), "7 p 1 2"), "p @1970-01-01T00:00:07.000000Z a=1 b=2");
    assert_eq!(rejected(both(), "x p 1 2"), Rejection::TimeUnreadable { found: "\"x\"".into() });
    assert_eq!(rejected(both(), "7  1 2"), Rejection::DeviceMissing { pointer: "/id".into() });
    let one = Subscription { fields: with_fields(&["/b"]).fields, ..both() };
    assert_eq!(said(one, "7 p 1 2"), "p @1970-01-01T00:00:07.000000Z b=2");
}

#[test]
fn each_subscription_has_its_own_pattern() {
    let on = |topic: &str, pattern: &str| Subscription {
        topic: Template::parse(topic).unwrap(),
        ..regex(pattern)
    };
    let mut decoder = decoder([on("a", "(?<a>.)"), json(), on("b", "(.)(.)(?<b>.)"), on("c", "(?<c>.)(.)?")]);
    for _ in 0..2 {
        for (topic, expected) in [("a", "plant a=1"), ("b", "plant b=3"), ("c", "plant c=1")] {
            assert_eq!(short(&decoder.decode(topic, b"123", RECEIVED, None)), expected);
        }
    }
}

#[test]
fn a_fixed_name_comes_behind_the_topics_and_before_the_payloads() {
    let named =
        |subscription: Subscription| Subscription { device_name: Some("press-7".into()), ..subscription };
    let payload = r#"{"d":"pump","a":1}"#;
    assert_eq!(said(named(json()), r#"{"a":1}"#), "press-7 a=1");
    assert_eq!(said(named(value("sensors/+")), "21.5"), "press-7 value=21.5");
    assert_eq!(said(named(regex("(?<a>.)")), "1"), "press-7 a=1");
    assert_eq!(said(named(with_device("/d")), payload), "press-7 a=1");
    assert_eq!(said(named(subscription("sensors/{device}")), r#"{"a":1}"#), "x a=1");
    let (bytes, limit_bytes) = (MAX_DEVICE_BYTES + 1, MAX_DEVICE_BYTES);
    let long = Subscription { device_name: Some("n".repeat(bytes).into()), ..json() };
    assert_eq!(rejected(long, "{\"a\":1}"), Rejection::DeviceTooLong { bytes, limit_bytes });
    // A serial source takes everything; its topic is the path of its port.
    let lines = Subscription { topic: Template::parse("#").unwrap(), ..named(regex("(?<a>.)")) };
    assert_eq!(short(&decode(lines, "/dev/serial/by-id/usb-1", b"1")), "press-7 a=1");
}

proptest! {
    #[test]
    fn no_bytes_panic(payload in prop::collection::vec(any::<u8>(), 0..64)) {
        for pattern in [WEATHER, "(?<a>.*)", "(?<a>(?:é|x)*)(?<b>\\W)?"] {
            prop_assert!(!said(regex(pattern), &payload).is_empty());
        }
    }

    #[test]
    fn what_was_put_in_comes_out(a in any::<i32>(), b in "[a-z]{1,8}z", noise in "[A-Z ]{0,9}") {
        let found = said(regex("<(?<a>-?[0-9]+)/(?<b>[^>]*)>"), format!("{noise}<{a}/{b}>{noise}"));
        prop_assert_eq!(found, format!("plant a={a} b={b:?}"));
    }
}
