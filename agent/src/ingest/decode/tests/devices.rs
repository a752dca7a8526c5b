//! What real devices publish.

use super::*;

#[test]
fn zigbee2mqtt() {
    let bulb = Subscription { time: pointer("/last_seen"), ..subscription("zigbee2mqtt/{device}") };
    let check = |payload: &str, expected: &str| {
        let decoded = decode(bulb.clone(), "zigbee2mqtt/attic", payload.as_bytes());
        assert_eq!(short(&decoded), expected, "{payload}");
    };
    check(
        r#"{"temperature":21.4,"humidity":48.2,"battery":97,"linkquality":112,"last_seen":"2026-03-01T07:15:02+01:00"}"#,
        "attic @2026-03-01T06:15:02.000000Z temperature=21.4 humidity=48.2 battery=97 linkquality=112",
    );
    check(
        r#"{"state":"ON","power":12.7,"energy":null,"update":{"state":"idle"},"last_seen":1772345702510}"#,
        r#"attic @2026-03-01T06:15:02.510000Z state="ON" power=12.7 update.state="idle""#,
    );
    let without_time = decode(bulb.clone(), "zigbee2mqtt/attic", br#"{"battery":"100.00"}"#);
    let missing = Rejection::TimeMissing { pointer: "/last_seen".into() };
    assert_eq!(without_time, Decoded::Rejected(missing));
    let button = decode(subscription("zigbee2mqtt/{device}"), "zigbee2mqtt/b", br#"{"action":"single"}"#);
    assert_eq!(short(&button), r#"b action="single""#);
}

#[test]
fn tasmota() {
    let sensor = Subscription { time: pointer("/Time"), ..subscription("tele/{device}/SENSOR") };
    let payload =
        br#"{"Time":"2026-03-01T07:15:00","ENERGY":{"TotalStartTime":"2025-11-02T10:00:00","Total":18.204,
        "Power":[63,64],"Voltage":231},"AM2301":{"Temperature":19.8,"Humidity":null},"TempUnit":"C"}"#;
    let expected = r#"plug @2026-03-01T07:15:00.000000Z ENERGY.TotalStartTime="2025-11-02T10:00:00" ENERGY.Total=18.204 ENERGY.Power.0=63 ENERGY.Power.1=64 ENERGY.Voltage=231 AM2301.Temperature=19.8 TempUnit="C""#;
    assert_eq!(short(&decode(sensor.clone(), "tele/plug/SENSOR", payload)), expected);
    let old_build = decode(sensor, "tele/plug/SENSOR", br#"{"Time":"1970-01-01T00:00:09","T":nan}"#);
    assert!(matches!(old_build, Decoded::Rejected(Rejection::NotJson { .. })));
    let will = decode(value("tele/{device}/{field}"), "tele/plug/LWT", b"Online");
    assert_eq!(short(&will), r#"plug LWT="Online""#);
}

#[test]
fn shelly() {
    let second =
        Subscription { time: pointer("/params/ts"), device: pointer("/src"), ..subscription("+/events/rpc") };
    let payload = br#"{"src":"plus1pm-a1","dst":"x/events","method":"NotifyStatus","params":{"ts":1772345702.51,
        "switch:0":{"id":0,"apower":64.2,"aenergy":{"total":1820.4,"by_minute":[1070.1,1068.9],"minute_ts":1772345700}}}}"#;
    let expected = r#"plus1pm-a1 @2026-03-01T06:15:02.510000Z dst="x/events" method="NotifyStatus" params.switch:0.id=0 params.switch:0.apower=64.2 params.switch:0.aenergy.total=1820.4 params.switch:0.aenergy.by_minute.0=1070.1 params.switch:0.aenergy.by_minute.1=1068.9 params.switch:0.aenergy.minute_ts=1772345700"#;
    assert_eq!(short(&decode(second.clone(), "x/events/rpc", payload)), expected);
    let power =
        Subscription { fields: Some(vec![Pointer::parse("/params/switch:0/apower").unwrap()]), ..second };
    let expected = "plus1pm-a1 @2026-03-01T06:15:02.510000Z params.switch:0.apower=64.2";
    assert_eq!(short(&decode(power, "x/events/rpc", payload)), expected);
    let first =
        decode(value("shellies/{device}/emeter/{channel}/{field}"), "shellies/em/emeter/0/power", b"63.91");
    assert_eq!(short(&first), "em{channel=0} power=63.91");
}

#[test]
fn esphome() {
    let on = |topic: &str, payload: &str| {
        short(&decode(value("{device}/{domain}/{field}/state"), topic, payload.as_bytes()))
    };
    assert_eq!(on("node/sensor/temperature/state", "21.4"), "node{domain=sensor} temperature=21.4");
    assert_eq!(on("node/binary_sensor/door/state", "ON"), "node{domain=binary_sensor} door=\"ON\"");
    assert_eq!(on("node/sensor/temperature/state", "nan"), "nothing");
}

#[test]
fn thingsboard() {
    let device = Subscription { time: pointer("/ts"), ..json() };
    let payload = r#"[{"ts":1772345700512,"values":{"temperature":21.4,"door":false}}]"#;
    assert_eq!(
        said(device, payload),
        "[plant @2026-03-01T06:15:00.512000Z values.temperature=21.4 values.door=false]"
    );
}
