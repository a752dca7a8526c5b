//! The windows by themselves: no clock, no disk, no network. Readings go in, results come out.
//!
//! ```sh
//! cargo run -p holdfast --example windows
//! ```
//!
//! A thermometer speaks every ten seconds. One reading is delayed: late, but within `allowed_lateness`, so its window
//! comes out a second time, with revision 1. Another one is older than that: counted as late, and in no window.

use std::sync::Arc;
use std::time::Duration;

use holdfast::reading::{Origin, Reading, Shape, Timestamp, Value, WindowRecord};
use holdfast::stream::Seq;
use holdfast::window::settings::Aggregate;
use holdfast::window::{Settings, Windows};
use holdfast::wire;

/// 2026-11-20T04:15:00Z.
const START_US: i64 = 1_795_148_100_000_000;

#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn main() {
    let settings = Settings {
        name: "minute".to_owned(),
        size: Duration::from_secs(60),
        slide: Duration::from_secs(60),
        lateness: Duration::from_secs(10),
        allowed_lateness: Duration::from_secs(120),
        idle: Duration::from_secs(10),
        max_series: Settings::DEFAULT_MAX_SERIES,
        aggregates: ["count", "mean", "max", "p95"].into_iter().filter_map(Aggregate::from_name).collect(),
        sources: None,
        fields: None,
    };
    let mut windows = Windows::new(&[settings], Seq::FIRST);

    // Seconds after the start at which each was measured, in the order of arrival: 25 comes late, then 35 comes too late.
    let regular = (0..24).map(|n| n * 10);
    let arrivals = regular.clone().take(9).chain([25]).chain(regular.skip(9)).chain([35]);
    let mut next = Seq::FIRST;
    for (seq, second) in (1..).map(Seq).zip(arrivals) {
        let mut results: Vec<WindowRecord> = Vec::new();
        windows.add(seq, &reading(second), &mut results);
        for result in &results {
            let mut line = Vec::new();
            wire::write_window(next, result, &mut line);
            println!("reading of {second:>3} s: {}", String::from_utf8_lossy(&line));
            next = next.next();
        }
    }
    for counts in windows.counts() {
        println!("window {}: {} series, {} late", counts.window, counts.series, counts.late);
    }
}

/// A reading of the thermometer, `second` seconds after the start.
fn reading(second: u32) -> Reading {
    let time = Timestamp(START_US + i64::from(second) * 1_000_000);
    Reading {
        time,
        received: time,
        origin: Arc::new(Origin { source: "plant".into(), device: "thermometer".into(), tags: Vec::new() }),
        shape: Arc::new(Shape { names: vec!["temperature".into()] }),
        values: vec![Value::Float(20.0 + f64::from(second) / 60.0)],
        line: None,
        remarks: None,
    }
}
