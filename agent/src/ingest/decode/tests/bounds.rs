//! Limits of one message, and of what is remembered between messages.

use super::*;

fn nested(open: &str, close: &str, levels: usize) -> String {
    format!("{{\"a\":{}1{}}}", open.repeat(levels - 1), close.repeat(levels - 1))
}

#[test]
fn nesting_has_a_limit() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        assert!(matches!(
            decode(json(), "sensors/x", nested(open, close, MAX_DEPTH).as_bytes()),
            Decoded::Reading(_)
        ));
        for levels in [MAX_DEPTH + 1, 200, 10_000] {
            assert_eq!(
                rejected(json(), nested(open, close, levels)),
                Rejection::TooDeep { limit: MAX_DEPTH }
            );
        }
    }
}

#[test]
fn names_have_limits() {
    let name = "x".repeat(MAX_DEVICE_BYTES);
    assert!(said(with_device("/d"), format!(r#"{{"a":1,"d":"{name}"}}"#)).ends_with(" a=1"));
    let too_long = Rejection::DeviceTooLong { bytes: MAX_DEVICE_BYTES + 1, limit_bytes: MAX_DEVICE_BYTES };
    assert_eq!(rejected(with_device("/d"), format!(r#"{{"a":1,"d":"{name}x"}}"#)), too_long);
    let on_topic = decode(subscription("sensors/{device}"), &format!("sensors/{name}x"), b"{\"a\":1}");
    assert_eq!(on_topic, Decoded::Rejected(too_long));
    let tag = decode(subscription("sensors/{line}"), &format!("sensors/{name}x"), b"{\"a\":1}");
    assert!(matches!(tag, Decoded::Rejected(Rejection::TagTooLong { bytes: 257, .. })));

    let half = "n".repeat(MAX_FIELD_NAME_BYTES / 2);
    let rest = "n".repeat(MAX_FIELD_NAME_BYTES / 2 - 1);
    assert!(said(json(), format!(r#"{{"{half}":{{"{rest}":1}}}}"#)).ends_with("=1"));
    let reason = rejected(json(), format!(r#"{{"{half}":{{"{half}":1}}}}"#));
    assert!(matches!(reason, Rejection::FieldNameTooLong { bytes: 1_025, limit_bytes: 1_024, .. }));
    let field = decode(value("sensors/{field}"), &format!("sensors/{half}{half}n"), b"1");
    assert!(matches!(field, Decoded::Rejected(Rejection::FieldNameTooLong { bytes: 1_025, .. })));
}

#[test]
fn a_reading_has_a_limit_of_fields() {
    let fields = |count: usize| {
        let fields: Vec<_> = (0..count).map(|n| format!("\"f{n}\":{n}")).collect();
        format!("{{{}}}", fields.join(","))
    };
    let Decoded::Reading(reading) = decode(json(), "sensors/x", fields(MAX_FIELDS).as_bytes()) else {
        panic!("a reading");
    };
    assert_eq!(reading.values.len(), MAX_FIELDS);
    assert_eq!(rejected(json(), fields(MAX_FIELDS + 1)), Rejection::TooManyFields { limit: MAX_FIELDS });
    // What is not taken does not count.
    assert_eq!(said(with_fields(&["/f7"]), fields(MAX_FIELDS + 1)), "plant f7=7");
}

fn reading(decoded: Decoded) -> Reading {
    match decoded {
        Decoded::Reading(reading) => reading,
        other => panic!("{other:?}"),
    }
}

#[test]
fn origin_and_names_are_shared_between_readings() {
    let mut decoder = decoder([subscription("sensors/{device}")]);
    let mut on =
        |topic: &str, payload: &str| reading(decoder.decode(topic, payload.as_bytes(), RECEIVED, None));
    let first = on("sensors/1", r#"{"a":1,"b":2}"#);
    let again = on("sensors/1", r#"{"a":3,"b":4.5}"#);
    assert!(Arc::ptr_eq(&first.origin, &again.origin) && Arc::ptr_eq(&first.shape, &again.shape));
    let other_device = on("sensors/2", r#"{"a":1,"b":2}"#);
    assert!(Arc::ptr_eq(&first.shape, &other_device.shape));
    for payload in [r#"{"a":1}"#, r#"{"b":1}"#, r#"{"a":1,"b":2,"c":3}"#, r#"{"ab":1}"#] {
        assert_ne!(on("sensors/1", payload).shape, first.shape);
    }
    assert!(Arc::ptr_eq(&first.shape, &on("sensors/1", r#"{"a":1,"b":2}"#).shape));
}

#[test]
fn a_short_reading_after_a_long_one_holds_little() {
    let mut decoder = decoder([json()]);
    let long: Vec<_> = (0..100).map(|n| format!("\"f{n}\":{n}")).collect();
    let long = format!("{{{}}}", long.join(","));
    for (payload, most) in [(&*long, 200), (r#"{"f0":1}"#, 1), (r#"{"f0":1}"#, 1)] {
        let decoded = decoder.decode("sensors/x", payload.as_bytes(), RECEIVED, None);
        assert!(reading(decoded).values.capacity() <= most);
    }
}

#[test]
fn a_rejected_message_leaves_no_trace_in_the_next() {
    let mut decoder = decoder([Subscription { device: pointer("/d"), ..with_time("/t") }]);
    let mut on = |payload: &str| short(&decoder.decode("sensors/x", payload.as_bytes(), RECEIVED, None));
    for broken in [r#"{"d":"p","t":0,"a":{"b":1"#, r#"{"d":"p","t":0,"a":{"b":[1,2,{"c":1,"c":2}]}}"#] {
        assert!(on(broken).starts_with("rejected"));
        assert_eq!(on(r#"{"d":"q","t":1,"c":1}"#), "q @1970-01-01T00:00:01.000000Z c=1");
    }
    assert!(on(r#"{"a":1}"#).starts_with("rejected: there is no time"));
    assert!(on(r#"{"a":1,"t":1}"#).starts_with("rejected: there is no device"));
}

#[test]
fn a_hundred_thousand_topics_take_bounded_memory() {
    let mut decoder = decoder([subscription("sensors/{device}")]);
    for n in 0..100_000 {
        let topic = format!("sensors/{n}");
        assert!(decoder.route(&topic).is_some());
        let decoded = decoder.decode(&topic, b"{\"a\":1}", RECEIVED, None);
        assert_eq!(*reading(decoded).origin.device, *n.to_string());
        assert!(decoder.memory.entries() <= 4_097);
    }
    for n in 0..10_000 {
        assert!(decoder.route(&format!("unknown/{n}")).is_none());
    }
    assert!(decoder.memory.entries() <= 4_097);
}

#[test]
fn a_hundred_thousand_devices_on_one_topic_take_bounded_memory() {
    let mut decoder = decoder([with_device("/d")]);
    for n in 0..100_000 {
        let payload = format!(r#"{{"d":{n},"a":1}}"#);
        let decoded = decoder.decode("sensors/x", payload.as_bytes(), RECEIVED, None);
        assert_eq!(*reading(decoded).origin.device, *n.to_string());
    }
    assert!(decoder.memory.entries() <= 4_097);
    let at_once: Vec<_> = (0..20_000).map(|n| format!(r#"{{"d":{n},"f{n}":1}}"#)).collect();
    let payload = format!("[{}]", at_once.join(","));
    let decoded = decoder.decode("sensors/x", payload.as_bytes(), RECEIVED, None);
    assert!(matches!(decoded, Decoded::Readings(readings) if readings.len() == 20_000));
    assert!(decoder.memory.entries() <= 4_097);
}

#[test]
fn ever_new_names_take_bounded_memory() {
    let mut decoder = decoder([json()]);
    let name = "n".repeat(900);
    for n in 0..20_000 {
        let payload = format!(r#"{{"{name}{n}":1}}"#);
        let decoded = decoder.decode("sensors/x", payload.as_bytes(), RECEIVED, None);
        assert_eq!(reading(decoded).values.len(), 1);
    }
    assert!(decoder.memory.shapes_held() < 2_500, "{}", decoder.memory.shapes_held());
}

#[test]
fn an_array_has_a_limit_of_readings() {
    let array = |count: usize| format!("[{}{{}}]", "{\"a\":1},".repeat(count));
    let Decoded::Readings(readings) = decode(json(), "sensors/x", array(MAX_READINGS).as_bytes()) else {
        panic!("readings");
    };
    assert_eq!(readings.len(), MAX_READINGS, "what has no value does not count");
    let reason = rejected(json(), array(MAX_READINGS + 1));
    assert_eq!(reason, Rejection::TooManyReadings { limit: MAX_READINGS });
    assert_eq!(reason.to_string(), "the array has more than 65536 readings; send it in several messages");
}
