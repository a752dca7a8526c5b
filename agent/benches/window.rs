//! What a reading costs in the windows: three numeric fields, one window, 200 devices.
//!
//! Divide by `READINGS` for the cost of one.

use std::sync::Arc;
use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use holdfast::reading::{Origin, Reading, Shape, Timestamp, Value};
use holdfast::stream::Seq;
use holdfast::window::settings::Aggregate;
use holdfast::window::sketch::Sketch;
use holdfast::window::{Settings, Windows};

const READINGS: u64 = 100_000;
const DEVICES: u64 = 200;

fn main() {
    divan::main();
}

fn settings(aggregates: &[&str]) -> Settings {
    Settings {
        name: "minute".to_owned(),
        size: Duration::from_secs(60),
        slide: Duration::from_secs(60),
        lateness: Duration::from_secs(10),
        allowed_lateness: Duration::ZERO,
        idle: Duration::from_secs(10),
        max_series: 10_000,
        aggregates: aggregates.iter().filter_map(|name| Aggregate::from_name(name)).collect(),
        sources: None,
        fields: None,
    }
}

/// One reading a second of each device; names are shared as a decoded chunk shares them.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "made-up numbers, all small")]
fn readings() -> Vec<Reading> {
    let names = ["seq", "temperature", "humidity", "running"];
    let shape = Arc::new(Shape { names: names.iter().map(|name| (*name).into()).collect() });
    let origins: Vec<_> = (0..DEVICES)
        .map(|device| Origin {
            source: "plant".into(),
            device: format!("d{device:04}").into(),
            tags: Vec::new(),
        })
        .map(Arc::new)
        .collect();
    (0..READINGS)
        .map(|number| {
            let second = number / DEVICES;
            let noise = (number.wrapping_mul(2_654_435_761) % 1_000) as f64 / 1_000.0;
            Reading {
                time: Timestamp(1_795_148_100_000_000 + second as i64 * 1_000_000),
                received: Timestamp(0),
                origin: Arc::clone(&origins[(number % DEVICES) as usize]),
                shape: Arc::clone(&shape),
                values: vec![
                    Value::Int(number as i64),
                    Value::Float(21.0 + noise),
                    Value::Float(45.0 + 10.0 * noise),
                    Value::Bool(true),
                ],
                line: None,
                remarks: None,
            }
        })
        .collect()
}

#[divan::bench(args = [
    &["count", "mean", "min", "max"] as &[&str],
    &["count", "mean", "min", "max", "stddev", "p95"],
])]
fn add(bencher: Bencher<'_, '_>, aggregates: &[&str]) {
    let readings = readings();
    let settings = [settings(aggregates)];
    bencher
        .counter(ItemsCount::new(READINGS))
        .with_inputs(|| Windows::new(&settings, Seq::FIRST))
        .bench_values(|mut windows| {
            let mut records = Vec::new();
            for (seq, reading) in (1..).map(Seq).zip(&readings) {
                windows.add(seq, reading, &mut records);
                records.clear();
            }
            windows
        });
}

#[divan::bench]
fn checkpoint(bencher: Bencher<'_, '_>) {
    let readings = readings();
    let settings = [settings(&["count", "mean", "min", "max", "stddev", "p95"])];
    let filled = || {
        let mut windows = Windows::new(&settings, Seq::FIRST);
        let mut records = Vec::new();
        (1..).map(Seq).zip(&readings).for_each(|(seq, reading)| windows.add(seq, reading, &mut records));
        windows
    };
    bencher.with_inputs(filled).bench_refs(|windows| windows.checkpoint());
}

#[divan::bench]
fn sketch(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(10_000_u32)).with_inputs(Sketch::default).bench_refs(|sketch| {
        for number in 0..10_000_u32 {
            sketch.add(black_box(20.0 + f64::from(number % 100) / 50.0));
        }
    });
}
