//! The windows against a naive reference, and their promises one by one.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::reading::{AggregateValue, Origin, Remarks, Shape, Timestamp, Value};
use crate::window::settings::Aggregate;

const SECOND: i64 = 1_000_000;

fn settings(size: u64, slide: u64, lateness: u64, allowed_lateness: u64) -> Settings {
    let names = ["count", "sum", "mean", "min", "max", "first", "last", "stddev", "p50"];
    Settings {
        name: "w".to_owned(),
        size: Duration::from_secs(size),
        slide: Duration::from_secs(slide),
        lateness: Duration::from_secs(lateness),
        allowed_lateness: Duration::from_secs(allowed_lateness),
        idle: Duration::from_secs(lateness),
        max_series: 1_000,
        aggregates: names.iter().map(|name| Aggregate::from_name(name).unwrap()).collect(),
        sources: None,
        fields: None,
    }
}

fn reading(device: &str, seconds: i64, fields: &[(&str, Value)]) -> Reading {
    Reading {
        time: Timestamp(seconds * SECOND),
        received: Timestamp(0),
        origin: Arc::new(Origin { source: "plant".into(), device: device.into(), tags: Vec::new() }),
        shape: Arc::new(Shape { names: fields.iter().map(|(name, _)| (*name).into()).collect() }),
        values: fields.iter().map(|(_, value)| value.clone()).collect(),
        line: None,
        remarks: None,
    }
}

fn temperature(device: &str, seconds: i64, value: f64) -> Reading {
    reading(device, seconds, &[("t", Value::Float(value))])
}

/// Windows that number what they are given, and keep what they emit.
struct Bench {
    windows: Windows,
    next: Seq,
    records: Vec<WindowRecord>,
}

impl Bench {
    fn new(settings: &[Settings]) -> Self {
        Self { windows: Windows::new(settings, Seq::FIRST), next: Seq::FIRST, records: Vec::new() }
    }

    fn add(&mut self, reading: &Reading) -> &mut Self {
        self.windows.add(self.next, reading, &mut self.records);
        self.next = self.next.next();
        self
    }

    fn idle(&mut self) -> Vec<IdleMark> {
        let hear = |_: &str| Hearing::Silent;
        (0..self.windows.len())
            .flat_map(|nth| self.windows.find_silent(nth, self.next, self.next, hear, &mut self.records))
            .collect()
    }

    /// What was emitted since the last look: device, start in seconds, revision, count.
    fn emitted(&mut self) -> Vec<(String, i64, u32, u64)> {
        let brief = |record: WindowRecord| {
            let AggregateValue::Count(count) = record.aggregates[0].1 else { panic!("count is first") };
            (record.device.to_string(), record.start.0 / SECOND, record.revision, count)
        };
        self.records.drain(..).map(brief).collect()
    }

    fn emits(&mut self, expected: &[(&str, i64, u32, u64)]) -> &mut Self {
        let expected: Vec<_> = expected
            .iter()
            .map(|(device, start, revision, count)| ((*device).to_owned(), *start, *revision, *count))
            .collect();
        assert_eq!(self.emitted(), expected);
        self
    }

    fn late(&self) -> u64 {
        self.windows.counts()[0].late
    }
}

#[test]
fn a_window_is_emitted_when_the_watermark_passes_its_end() {
    let mut bench = Bench::new(&[settings(10, 10, 5, 0)]);
    bench.add(&temperature("a", 1, 1.0)).add(&temperature("a", 9, 2.0));
    bench.add(&temperature("a", 14, 3.0)).emits(&[]);
    bench.add(&temperature("a", 15, 4.0)).emits(&[("a", 0, 0, 2)]);
}

#[test]
fn one_devices_clock_closes_no_window_of_another() {
    let mut bench = Bench::new(&[settings(10, 10, 0, 0)]);
    bench.add(&temperature("a", 1, 1.0)).add(&temperature("b", 1_000_000, 1.0)).emits(&[]);
    bench.add(&temperature("a", 2, 1.0));
    assert_eq!(bench.late(), 0);
}

#[test]
fn a_reading_behind_the_watermark_is_late() {
    let mut bench = Bench::new(&[settings(10, 10, 0, 0)]);
    bench.add(&temperature("a", 1, 1.0)).add(&temperature("a", 10, 1.0)).emits(&[("a", 0, 0, 1)]);
    bench.add(&temperature("a", 9, 1.0)).emits(&[]);
    assert_eq!(bench.late(), 1);
}

#[test]
fn within_allowed_lateness_a_late_reading_emits_the_next_revision() {
    let mut bench = Bench::new(&[settings(10, 10, 0, 5)]);
    bench.add(&temperature("a", 1, 1.0)).add(&temperature("a", 10, 1.0)).emits(&[("a", 0, 0, 1)]);
    bench.add(&temperature("a", 9, 1.0)).emits(&[("a", 0, 1, 2)]);
    bench.add(&temperature("a", 14, 1.0)).add(&temperature("a", 8, 1.0)).emits(&[("a", 0, 2, 3)]);
    bench.add(&temperature("a", 15, 1.0)).add(&temperature("a", 7, 1.0)).emits(&[]);
    assert_eq!(bench.late(), 1);
}

#[test]
fn an_idle_emission_is_provisional() {
    let mut bench = Bench::new(&[settings(10, 10, 0, 0)]);
    bench.add(&temperature("a", 1, 1.0));
    assert_eq!(bench.idle().len(), 1);
    bench.emits(&[("a", 0, 0, 1)]);
    // Nothing new: neither a second look nor the close emits anything.
    assert_eq!(bench.idle().len(), 0);
    bench.add(&temperature("a", 12, 1.0)).emits(&[]);
    // A reading not behind the watermark is taken, and the close tells of it.
    bench.idle();
    bench.emits(&[("a", 10, 0, 1)]).add(&temperature("a", 12, 1.0)).add(&temperature("a", 20, 1.0));
    bench.emits(&[("a", 10, 1, 2)]);
    assert_eq!(bench.late(), 0);
}

#[test]
fn sliding_windows_overlap() {
    let mut bench = Bench::new(&[settings(10, 5, 0, 0)]);
    bench.add(&temperature("a", 7, 1.0)).add(&temperature("a", 12, 1.0)).emits(&[("a", 0, 0, 1)]);
    // Late for the window from 0, in time for the one from 5.
    bench.add(&temperature("a", 8, 1.0)).add(&temperature("a", 15, 1.0)).emits(&[("a", 5, 0, 3)]);
    assert_eq!(bench.late(), 1);
}

#[test]
fn only_numbers_of_the_chosen_fields_and_sources_count() {
    let chosen = Settings {
        fields: Some(vec!["t".to_owned(), "on".to_owned()]),
        sources: Some(vec!["plant".to_owned()]),
        ..settings(10, 10, 0, 0)
    };
    let mut bench = Bench::new(&[chosen]);
    let fields = [
        ("h", Value::Float(1.0)),
        ("t", Value::Int(2)),
        ("on", Value::Bool(true)),
        ("s", Value::Text("x".into())),
    ];
    bench.add(&reading("a", 1, &fields));
    let mut other = reading("a", 2, &fields);
    other.origin = Arc::new(Origin { source: "other".into(), ..(*other.origin).clone() });
    bench.add(&other).idle();
    assert_eq!(bench.records.len(), 1);
    assert_eq!(&*bench.records[0].field, "t");
    bench.emits(&[("a", 0, 0, 1)]);
}

#[test]
fn a_replayed_reading_is_not_seen() {
    let mut bench = Bench::new(&[settings(10, 10, 0, 0)]);
    let remarks = Remarks { replayed: true, ..Remarks::default() };
    bench.add(&Reading { remarks: Some(Box::new(remarks)), ..temperature("a", 1, 1.0) }).idle();
    bench.emits(&[]);
}

#[test]
fn series_beyond_the_limit_are_refused_and_counted() {
    let mut bench = Bench::new(&[Settings { max_series: 2, ..settings(10, 10, 0, 0) }]);
    for device in ["a", "b", "c", "d"] {
        bench.add(&temperature(device, 1, 1.0));
    }
    let counts = bench.windows.counts();
    assert_eq!((counts[0].series, counts[0].refused), (2, 2));
    bench.idle();
    bench.emits(&[("a", 0, 0, 1), ("b", 0, 0, 1)]);
}

#[test]
fn a_hundred_thousand_devices_take_no_more_than_the_limit() {
    let mut bench = Bench::new(&[Settings { max_series: 100, ..settings(10, 10, 0, 0) }]);
    for number in 0..100_000 {
        bench.add(&temperature(&format!("d{number}"), number, 1.0));
        if number % 1_000 == 0 {
            bench.idle();
        }
    }
    let counts = bench.windows.counts();
    assert_eq!(counts[0].series, 100);
    assert!(counts[0].refused > 0);
}

#[test]
fn the_longest_idle_device_gives_way_and_emits_nothing_twice() {
    let mut bench = Bench::new(&[Settings { max_series: 2, ..settings(10, 10, 0, 0) }]);
    bench.add(&temperature("a", 1, 1.0)).add(&temperature("b", 1, 1.0)).idle();
    bench.emits(&[("a", 0, 0, 1), ("b", 0, 0, 1)]);
    bench.add(&temperature("c", 1, 1.0));
    assert_eq!(bench.windows.counts()[0].refused, 0);
    // "a" gave way; it returns in place of "b", but its old window does not.
    bench.add(&temperature("a", 2, 1.0));
    assert_eq!(bench.late(), 1);
    bench.add(&temperature("a", 12, 1.0)).idle();
    bench.emits(&[("c", 0, 0, 1), ("a", 10, 0, 1)]);
}

#[test]
fn a_changed_window_starts_anew_and_leaves_the_others_alone() {
    let other = |seconds| Settings { name: "other".to_owned(), ..settings(seconds, seconds, 0, 0) };
    let before = [settings(10, 10, 0, 0), other(60)];
    let mut bench = Bench::new(&before);
    bench.add(&temperature("a", 1, 1.0));
    let rows = bench.windows.checkpoint().changed;
    assert!(!Windows::restore(&before, Seq(2), rows.clone()).needs_checkpoint());

    let mut changed = Windows::restore(&[settings(10, 10, 0, 0), other(30)], Seq(2), rows);
    assert!(changed.needs_checkpoint());
    let checkpoint = changed.checkpoint();
    assert_eq!(checkpoint.removed.len(), 1, "the device's row in the changed window");
    assert_eq!(checkpoint.changed.len(), 1, "the changed window's own row");
    let mut records = Vec::new();
    changed.add(Seq(2), &temperature("a", 100, 1.0), &mut records);
    assert_eq!(records.iter().map(|record| &*record.window).collect::<Vec<_>>(), ["w"]);
}

/// The rows after a checkpoint.
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Goes on with these settings, after a crash if something was emitted since the checkpoint, and saves.
fn restarted(bench: &mut Bench, settings: &[Settings], rows: &mut Rows, emitted: &[Emitted]) {
    let saved = rows.clone().into_iter().collect();
    bench.windows = Windows::restore_after(settings, bench.next, saved, emitted);
    save(bench, rows);
}

fn save(bench: &mut Bench, rows: &mut Rows) {
    let checkpoint = bench.windows.checkpoint();
    checkpoint.removed.iter().for_each(|key| drop(rows.remove(key)));
    rows.extend(checkpoint.changed);
}

#[test]
fn a_window_that_returns_or_changes_repeats_no_revision() {
    let window = settings(60, 60, 0, 0);
    let (mut bench, mut rows) = (Bench::new(std::slice::from_ref(&window)), Rows::new());
    bench.add(&temperature("a", 1, 1.0)).idle();
    bench.add(&temperature("a", 2, 1.0)).idle();
    bench.emits(&[("a", 0, 0, 1), ("a", 0, 1, 2)]);
    save(&mut bench, &mut rows);
    // Removed, and added again.
    restarted(&mut bench, &[], &mut rows, &[]);
    assert_eq!(rows.len(), 1, "nothing but what went out");
    restarted(&mut bench, std::slice::from_ref(&window), &mut rows, &[]);
    bench.add(&temperature("a", 3, 1.0)).add(&temperature("b", 3, 1.0)).idle();
    bench.emits(&[("a", 0, 2, 1), ("b", 0, 2, 1)]);
    // Its own revisions are none of another.
    save(&mut bench, &mut rows);
    restarted(&mut bench, std::slice::from_ref(&window), &mut rows, &[]);
    bench.add(&temperature("a", 4, 1.0)).idle();
    bench.emits(&[("a", 0, 3, 2)]);
    // What comes later has not been there before.
    bench.add(&temperature("a", 60, 1.0)).idle();
    bench.emits(&[("a", 60, 0, 1)]);
    save(&mut bench, &mut rows);
    // Changed.
    let changed = Settings { aggregates: vec![Aggregate::Count, Aggregate::Max], ..window.clone() };
    restarted(&mut bench, std::slice::from_ref(&changed), &mut rows, &[]);
    bench.add(&temperature("a", 61, 1.0)).idle();
    bench.emits(&[("a", 60, 4, 1)]);
}

#[test]
fn what_was_emitted_before_a_crash_is_not_repeated_by_a_window_that_changed_or_returns() {
    let window = settings(60, 60, 0, 0);
    let changed = Settings { aggregates: vec![Aggregate::Count], ..window.clone() };
    for (between, then, revision) in [
        (std::slice::from_ref(&changed), &changed, 1),
        (&[], &window, 1),
        (std::slice::from_ref(&window), &window, 0),
    ] {
        let (mut bench, mut rows) = (Bench::new(std::slice::from_ref(&window)), Rows::new());
        save(&mut bench, &mut rows);
        bench.add(&temperature("a", 1, 1.0)).idle();
        let records = std::mem::take(&mut bench.records);
        let emitted = [Emitted { position: bench.next, records, note: Vec::new() }];
        restarted(&mut bench, between, &mut rows, &emitted);
        restarted(&mut bench, std::slice::from_ref(then), &mut rows, &[]);
        // The window that goes on would see the first reading again, and say the same of it.
        bench.add(&temperature("a", 2, 1.0)).idle();
        bench.emits(&[("a", 0, revision, 1)]);
    }
}

#[test]
fn rows_of_another_version_start_the_window_anew() {
    let mut bench = Bench::new(&[settings(10, 10, 0, 0)]);
    bench.add(&temperature("a", 1, 1.0));
    let mut rows = bench.windows.checkpoint().changed;
    rows.iter_mut().for_each(|(_, value)| value[0] = 99);
    rows.push((vec![200, 1, 2], vec![]));
    let mut windows = Windows::restore(&[settings(10, 10, 0, 0)], Seq(2), rows);
    assert!(windows.needs_checkpoint());
    assert_eq!(windows.counts()[0].series, 0);
    assert_eq!(windows.checkpoint().removed.len(), 2);
}

#[test]
fn a_row_is_small() {
    let mut bench = Bench::new(&[settings(60, 60, 0, 0)]);
    let start = 1_795_148_100;
    for second in 0..60 {
        bench.add(&temperature(
            "d0017",
            start + second,
            21.0 + 0.01 * f64::from(u8::try_from(second).unwrap()),
        ));
    }
    let checkpoint = bench.windows.checkpoint();
    let bytes: usize = checkpoint.changed.iter().map(|(_, value)| value.len()).max().unwrap();
    assert!(bytes <= 200, "{bytes} bytes");
}

/// One reading of the random tests: device, time and value of field "t", and whether "u" is there too.
type Sample = (u8, i64, i16, bool);

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    // Time mostly goes on, with disorder; now and then it leaps.
    let step = (0..3_u8, -12..14_i64, any::<i16>(), any::<bool>(), 0..40_u8);
    proptest::collection::vec(step, 0..200).prop_map(|steps| {
        let mut now = 1_000;
        steps
            .into_iter()
            .map(|(device, jitter, value, both, leap)| {
                now += i64::from(leap == 0) * 60 + 1;
                (device, now + jitter, value, both)
            })
            .collect()
    })
}

fn reading_of(sample: &Sample) -> Reading {
    let (device, at, value, both) = *sample;
    let mut fields = vec![("t", Value::Float(f64::from(value) / 8.0))];
    if both {
        fields.insert(0, ("u", Value::Int(i64::from(value))));
        fields.push(("note", Value::Text("x".into())));
    }
    reading(&format!("d{device}"), at, &fields)
}

fn spans() -> impl Strategy<Value = Settings> {
    let numbers = (1..20_u64, 1..20_u64, 0..15_u64, 0..15_u64);
    numbers.prop_map(|(size, slide, lateness, allowed)| settings(size, slide.min(size), lateness, allowed))
}

/// Device, field and start.
type Span = (String, String, i64);

/// The values of each (device, field, start) by the book: a list, filtered. Also how many readings were late.
fn reference(settings: &Settings, samples: &[Sample]) -> (BTreeMap<Span, Vec<(i64, f64)>>, u64) {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap();
    let (size, slide) = (seconds(settings.size), seconds(settings.slide));
    let patience = seconds(settings.lateness) + seconds(settings.allowed_lateness);
    let mut newest: HashMap<u8, i64> = HashMap::new();
    let mut windows: BTreeMap<Span, Vec<(i64, f64)>> = BTreeMap::new();
    let mut late = 0;
    for (device, at, value, both) in samples {
        let newest = newest.entry(*device).or_insert(*at);
        *newest = (*newest).max(*at);
        let mut is_late = false;
        for start in (at - size + 1..=*at).filter(|start| start % slide == 0) {
            if start + size + patience <= *newest {
                is_late = true;
                continue;
            }
            let key = |field: &str| (format!("d{device}"), field.to_owned(), start);
            windows.entry(key("t")).or_default().push((*at, f64::from(*value) / 8.0));
            if *both {
                windows.entry(key("u")).or_default().push((*at, f64::from(*value)));
            }
        }
        late += u64::from(is_late);
    }
    (windows, late)
}

fn check_aggregates(record: &WindowRecord, values: &[(i64, f64)]) {
    let get =
        |name: &str| record.aggregates.iter().find(|(found, _)| **found == *name).map(|(_, value)| *value);
    let number = |name: &str| match get(name) {
        Some(AggregateValue::Number(number)) => number,
        other => panic!("{name} is {other:?}"),
    };
    let close = |name: &str, expected: f64| {
        assert!((number(name) - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{name} of {record:?}");
    };
    let mut sorted: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    sorted.sort_by(f64::total_cmp);
    let count = f64::from(u32::try_from(values.len()).unwrap());
    let mean = sorted.iter().sum::<f64>() / count;
    assert_eq!(get("count"), Some(AggregateValue::Count(values.len() as u64)), "{record:?}");
    close("sum", sorted.iter().sum());
    close("mean", mean);
    close("min", sorted[0]);
    close("max", sorted[sorted.len() - 1]);
    close("first", values.iter().min_by_key(|(at, _)| at).unwrap().1);
    close("last", values.iter().max_by_key(|(at, _)| at).unwrap().1);
    let median = sorted[(sorted.len() - 1) / 2];
    assert!((number("p50") - median).abs() <= 0.010_001 * median.abs(), "p50 of {record:?}");
    if values.len() < 2 {
        assert_eq!(get("stddev"), None);
    } else {
        let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
        close("stddev", (squares / (count - 1.0)).sqrt());
    }
}

proptest! {
    #[test]
    fn the_last_revisions_are_what_a_naive_reference_says(
        settings in spans(),
        samples in samples(),
        idle_at in proptest::collection::btree_set(0..200_usize, 0..6),
    ) {
        let mut bench = Bench::new(std::slice::from_ref(&settings));
        for (index, sample) in samples.iter().enumerate() {
            bench.add(&reading_of(sample));
            if idle_at.contains(&index) {
                bench.idle();
            }
        }
        // What is still open comes out provisionally, so every window is compared.
        bench.idle();

        let mut last: BTreeMap<Span, WindowRecord> = BTreeMap::new();
        for record in &bench.records {
            let key = (record.device.to_string(), record.field.to_string(), record.start.0 / SECOND);
            let expected = last.get(&key).map_or(0, |before| before.revision + 1);
            prop_assert_eq!(record.revision, expected, "revisions are gapless");
            last.insert(key, record.clone());
        }
        let (reference, late) = reference(&settings, &samples);
        prop_assert_eq!(last.keys().collect::<Vec<_>>(), reference.keys().collect::<Vec<_>>());
        for (key, values) in &reference {
            check_aggregates(&last[key], values);
        }
        prop_assert_eq!(bench.late(), late);
    }

    #[test]
    fn a_restored_checkpoint_goes_on_as_if_nothing_had_happened(
        settings in spans(),
        max_series in 1..8_usize,
        samples in samples(),
        events in proptest::collection::btree_map(0..200_usize, any::<bool>(), 0..20),
    ) {
        let settings = [Settings { max_series, ..settings }];
        let mut whole = Bench::new(&settings);
        let mut parts = Bench::new(&settings);
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (index, sample) in samples.iter().enumerate() {
            whole.add(&reading_of(sample));
            parts.add(&reading_of(sample));
            match events.get(&index) {
                Some(true) => {
                    whole.idle();
                    parts.idle();
                }
                Some(false) => {
                    let checkpoint = parts.windows.checkpoint();
                    checkpoint.removed.iter().for_each(|key| { rows.remove(key); });
                    rows.extend(checkpoint.changed);
                    let saved = rows.clone().into_iter().collect();
                    parts.windows = Windows::restore(&settings, Seq::FIRST, saved);
                    prop_assert!(!parts.windows.needs_checkpoint());
                }
                None => {}
            }
        }
        whole.idle();
        parts.idle();
        prop_assert_eq!(&whole.records, &parts.records);
        prop_assert_eq!(whole.windows.counts(), parts.windows.counts());
    }
}
