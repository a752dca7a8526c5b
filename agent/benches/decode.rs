//! What decoding one message costs: on a topic that was seen before, as nearly all are, and on ever new ones.
//!
//! Allocations are counted too: they are what a gateway feels, and they do not depend on how busy the machine is.

use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use holdfast::ingest::decode::{Decoded, Decoder};
use holdfast::ingest::settings::{Columns, Delimiter, Pattern, Payload, Pointer, Subscription};
use holdfast::ingest::topic::Template;
use holdfast::reading::Timestamp;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// 2026-11-20T04:15:13Z.
const RECEIVED: Timestamp = Timestamp(1_795_148_113_000_000);

/// 85 bytes, as most sensors send.
const FLAT: &str = r#"{"ts":1795148112123,"seq":12345,"temperature":21.53,"humidity":48.2,"running":true}"#;
/// The device in the payload, and the time as text.
const NAMED: &str =
    r#"{"ts":"2026-11-20T04:15:12.123Z","id":"d0017","temperature":21.53,"humidity":48.2,"running":true}"#;
/// A Tasmota plug with a sensor: nested, and a time without a zone.
const TASMOTA: &str = concat!(
    r#"{"Time":"2026-03-01T07:15:00","ENERGY":{"TotalStartTime":"2025-11-02T10:00:00","Total":18.204,"Today":0.41,"#,
    r#""Power":63,"Voltage":231,"Current":0.281},"AM2301":{"Temperature":19.8,"Humidity":55.1,"DewPoint":10.5},"#,
    r#""TempUnit":"C"}"#,
);
/// What [`FLAT`] says, as a logger's record.
const RECORD: &str = "1795148112123,12345,21.53,48.2,true";
/// The same for people.
const LINE: &str = "[1795148112123] #12345 T=21.53 C, H=48.2 %, running=true";

fn main() {
    divan::main();
}

fn subscription(topic: &str) -> Subscription {
    Subscription::new(Template::parse(topic).expect("a template"))
}

fn pointer(text: &str) -> Option<Pointer> {
    Some(Pointer::parse(text).expect("a pointer"))
}

fn topics(count: usize, suffix: &str) -> Vec<String> {
    (0..count).map(|n| format!("sensors/d{n:04}/{suffix}")).collect()
}

/// Routes and decodes as an inlet does, the topics in turn.
fn run(bencher: Bencher<'_, '_>, subscription: Subscription, topics: &[String], payload: &str) {
    let mut decoder = Decoder::new(&Arc::from("plant"), Arc::from([subscription]));
    // Fewer than the largest number of topics, so that there the timed ones are new.
    let warm_up = 1_000;
    for topic in topics.iter().take(warm_up) {
        let decoded = decoder.decode(topic, payload.as_bytes(), RECEIVED, None);
        assert!(matches!(decoded, Decoded::Reading(_)), "{decoded:?}");
    }
    let mut topics = topics.iter().cycle().skip(warm_up);
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        let topic = topics.next().expect("an endless cycle");
        black_box(decoder.route(topic));
        decoder.decode(topic, black_box(payload.as_bytes()), RECEIVED, None)
    });
}

#[divan::bench(args = [1, 200, 100_000])]
fn flat_object(bencher: Bencher<'_, '_>, topic_count: usize) {
    let subscription = Subscription { time: pointer("/ts"), ..subscription("sensors/{device}/telemetry") };
    run(bencher, subscription, &topics(topic_count, "telemetry"), FLAT);
}

#[divan::bench]
fn device_and_time_as_text(bencher: Bencher<'_, '_>) {
    let (time, device) = (pointer("/ts"), pointer("/id"));
    let subscription = Subscription { time, device, ..subscription("sensors/+/telemetry") };
    run(bencher, subscription, &topics(200, "telemetry"), NAMED);
}

#[divan::bench]
fn nested_tasmota(bencher: Bencher<'_, '_>) {
    let subscription = Subscription { time: pointer("/Time"), ..subscription("sensors/{device}/SENSOR") };
    run(bencher, subscription, &topics(200, "SENSOR"), TASMOTA);
}

#[divan::bench]
fn bare_value(bencher: Bencher<'_, '_>) {
    let subscription = Subscription { payload: Payload::Value, ..subscription("sensors/{device}/{field}") };
    run(bencher, subscription, &topics(200, "power"), "63.91");
}

#[divan::bench]
fn csv_record(bencher: Bencher<'_, '_>) {
    let columns = Columns::new(["ts", "seq", "temperature", "humidity", "running"]).expect("columns");
    let (payload, time) = (Payload::Csv(columns, Delimiter::COMMA), pointer("/ts"));
    let subscription = Subscription { payload, time, ..subscription("sensors/{device}/csv") };
    run(bencher, subscription, &topics(200, "csv"), RECORD);
}

#[divan::bench]
fn text_by_a_pattern(bencher: Bencher<'_, '_>) {
    let pattern = r"\[(?<ts>\d+)\] #(?<seq>\d+) T=(?<temperature>[-0-9.]+) C, H=(?<humidity>[0-9.]+) %, running=(?<running>\w+)";
    let (payload, time) = (Payload::Regex(Pattern::new(pattern).expect("a pattern")), pointer("/ts"));
    let subscription = Subscription { payload, time, ..subscription("sensors/{device}/text") };
    run(bencher, subscription, &topics(200, "text"), LINE);
}
