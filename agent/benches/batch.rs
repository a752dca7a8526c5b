//! Building a batch: the wire encoding of 1000 readings, and what each compression level makes of it.
//!
//! Sizes are printed first, per reading: what a level saves on the wire against what it costs in time.

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use holdfast::reading::{Origin, Reading, Shape, Timestamp, Value};
use holdfast::stream::{Epoch, Seq, SeqRange, Stream};
use holdfast::wire::{self, Head};

const READINGS: usize = 1_000;
const DEVICES: usize = 200;
const LEVELS: [i32; 4] = [1, 3, 6, 9];

fn main() -> std::io::Result<()> {
    let body = encoded(&readings());
    let mut out = std::io::stdout().lock();
    let per_reading = |bytes: usize| format!("{}.{:02}", bytes / READINGS, bytes % READINGS / 10);
    writeln!(out, "bytes per reading: json {}", per_reading(body.len()))?;
    for level in LEVELS {
        let compressed = zstd::bulk::compress(&body, level)?;
        writeln!(out, "bytes per reading: zstd level {level} {}", per_reading(compressed.len()))?;
    }
    drop(out);
    divan::main();
    Ok(())
}

/// Readings as 200 devices send them: a counter, noisy temperatures, a state that rarely changes.
fn readings() -> Vec<Reading> {
    let mut chance = fastrand::Rng::with_seed(1);
    let names = ["seq", "temperature", "humidity", "running", "mode"].map(Into::into);
    let shape = Arc::new(Shape { names: names.to_vec() });
    let origins: Vec<Arc<Origin>> = (0..DEVICES)
        .map(|device| {
            let device = format!("d{device:04}").into();
            let tags = vec![("line".into(), "a".into())];
            Arc::new(Origin { source: "plant".into(), device, tags })
        })
        .collect();
    let start = 1_795_148_112_123_000;
    let number = |index: usize| i64::try_from(index).unwrap_or(0);
    (0..READINGS)
        .map(|index| {
            let time = Timestamp(start + number(index) * 333_000);
            let celsius = 20.0 + f64::from(chance.u32(0..400)) / 100.0;
            let humidity = 40.0 + f64::from(chance.u32(0..1_000)) / 100.0;
            Reading {
                time,
                received: Timestamp(time.0 + 1_000 + i64::from(chance.u32(0..5_000))),
                origin: Arc::clone(&origins[index % DEVICES]),
                shape: Arc::clone(&shape),
                values: vec![
                    Value::Int(number(index / DEVICES)),
                    Value::Float(celsius),
                    Value::Float(humidity),
                    Value::Bool(index % 50 != 0),
                    Value::Text("auto".into()),
                ],
                line: None,
                remarks: None,
            }
        })
        .collect()
}

fn encoded(readings: &[Reading]) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 << 10);
    encode(readings, &mut out);
    out
}

fn encode(readings: &[Reading], out: &mut Vec<u8>) {
    let last = Seq(u64::try_from(readings.len()).unwrap_or(1));
    let range = SeqRange { first: Seq::FIRST, last };
    let epoch = Epoch(uuid::Uuid::from_u128(7));
    let head = Head { agent: "gw-lab-01", epoch, stream: Stream::Readings, range, gaps: &[], previous: None };
    head.write(out);
    for (seq, reading) in (1..).map(Seq).zip(readings) {
        if seq > Seq::FIRST {
            out.push(b',');
        }
        wire::write_reading(seq, reading, out);
    }
    wire::write_end(out);
}

#[divan::bench]
fn encode_1000_readings(bencher: Bencher) {
    let readings = readings();
    let mut out = Vec::with_capacity(256 << 10);
    bencher.counter(ItemsCount::new(READINGS)).bench_local(|| {
        out.clear();
        encode(black_box(&readings), &mut out);
        out.len()
    });
}

/// With one compressor for all batches, as a sink keeps it.
#[divan::bench(args = LEVELS)]
fn compress_zstd(bencher: Bencher, level: i32) {
    let body = encoded(&readings());
    let mut compressor = zstd::bulk::Compressor::new(level).expect("the level is valid");
    let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(body.len()));
    bencher.counter(BytesCount::new(body.len())).counter(ItemsCount::new(READINGS)).bench_local(|| {
        out.clear();
        compressor.compress_to_buffer(black_box(&body), &mut out).expect("the buffer is large enough")
    });
}
