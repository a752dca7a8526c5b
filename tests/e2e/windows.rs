//! Windows, as they arrive at the cloud, against a naive reference computed from the readings that arrived there.

use std::collections::BTreeMap;

use harness::sensor::START_MS;
use harness::{Agent, Cloud, Journal, Sensor};
use serde_json::Value;

use crate::{BATCH, HOLDFAST, STORE, listener};

/// One configured window, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Window {
    name: &'static str,
    size: u64,
    slide: u64,
    lateness: u64,
    allowed: u64,
}

const WINDOWS: [Window; 3] = [
    Window { name: "tumbling", size: 10_000, slide: 10_000, lateness: 5_000, allowed: 0 },
    Window { name: "sliding", size: 20_000, slide: 5_000, lateness: 2_000, allowed: 0 },
    Window { name: "patient", size: 10_000, slide: 10_000, lateness: 0, allowed: 8_000 },
];

fn config(cloud: &Cloud, port: u16) -> String {
    let windows: String = WINDOWS
        .iter()
        .map(|window| {
            let Window { name, size, slide, lateness, allowed } = window;
            format!(
                "[windows.{name}]\nsize = \"{size}ms\"\nslide = \"{slide}ms\"\nlateness = \"{lateness}ms\"\n\
                 allowed_lateness = \"{allowed}ms\"\nidle = \"500ms\"\nfields = [\"v\"]\n\
                 aggregates = [\"count\", \"sum\", \"mean\", \"min\", \"max\", \"first\", \"last\", \"stddev\", \"p50\", \"p95\"]\n"
            )
        })
        .collect();
    format!("{STORE}{}{windows}{}", listener(port), cloud.sink(BATCH))
}

/// Readings of a device whose times are in disorder, some far behind.
fn disorder(random: &mut fastrand::Rng, count: u64) -> Vec<(u64, Vec<u8>)> {
    let mut now = START_MS;
    let reading = |n| {
        now += random.u64(0..800);
        let behind = match random.u8(0..10) {
            0 => random.u64(0..30_000),
            1..=4 => random.u64(0..4_000),
            _ => 0,
        };
        let value = (random.f64() - 0.3) * 100.0;
        (n, format!("{{\"ts\":{},\"n\":{n},\"v\":{value}}}", now - behind).into_bytes())
    };
    (1..=count).map(reading).collect()
}

/// Window, device and start.
type Place = (String, String, String);

/// What the windows must come to: the values of each, in order of time (ties by number), straight from the contract.
fn reference(readings: &[Value]) -> BTreeMap<Place, Vec<(u64, f64)>> {
    let mut expected: BTreeMap<Place, Vec<(u64, f64)>> = BTreeMap::new();
    for window in WINDOWS {
        let mut newest: BTreeMap<String, u64> = BTreeMap::new();
        for reading in readings {
            let device = reading["device"].as_str().unwrap().to_owned();
            let at = parse_ms(reading["time"].as_str().unwrap());
            let value = reading["fields"]["v"].as_f64().unwrap();
            let seen = newest.entry(device.clone()).or_insert(0);
            let watermark = seen.saturating_sub(window.lateness);
            let mut start = at / window.slide * window.slide;
            while start + window.size > at {
                if start + window.size + window.allowed > watermark {
                    let place = (window.name.to_owned(), device.clone(), format_ms(start));
                    expected.entry(place).or_default().push((at, value));
                }
                start -= window.slide;
            }
            *seen = (*seen).max(at);
        }
    }
    // Stable: ties stay in the order of their numbers.
    expected.values_mut().for_each(|values| values.sort_by_key(|(at, _)| *at));
    expected
}

/// Compares the last revision of every window with the reference.
fn compare(expected: &BTreeMap<Place, Vec<(u64, f64)>>, records: &[Value]) -> Result<(), String> {
    let mut last: BTreeMap<Place, &Value> = BTreeMap::new();
    let mut revisions: BTreeMap<Place, u64> = BTreeMap::new();
    for record in records {
        let text = |key: &str| record[key].as_str().unwrap().to_owned();
        let place = (text("window"), text("device"), text("start"));
        let revision = record["revision"].as_u64().unwrap();
        let next = revisions.entry(place.clone()).or_insert(0);
        // Emitted twice, or with a revision left out: that never mends.
        assert_eq!(revision, *next, "{place:?} has revision {revision} where {next} is due");
        *next += 1;
        last.insert(place, record);
    }
    for (place, values) in expected {
        let Some(record) = last.get(place) else { return Err(format!("{place:?} is missing")) };
        let aggregates = &record["aggregates"];
        if aggregates["count"].as_u64() != Some(values.len() as u64) {
            return Err(format!("{place:?} has {aggregates} for {values:?}"));
        }
        check(aggregates, values)
            .map_err(|what| format!("{place:?}: {what} in {aggregates} for {values:?}"))?;
    }
    let strange = last.keys().find(|place| !expected.contains_key(*place));
    strange.map_or(Ok(()), |place| Err(format!("{place:?} should not be")))
}

fn check(aggregates: &Value, values: &[(u64, f64)]) -> Result<(), String> {
    let numbers: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    let count = f64::from(u32::try_from(numbers.len()).unwrap());
    let sum: f64 = numbers.iter().sum();
    let mean = sum / count;
    let mut sorted = numbers.clone();
    sorted.sort_by(f64::total_cmp);
    let about = |name: &str, expected: f64, error: f64| {
        let found = aggregates[name].as_f64().ok_or_else(|| format!("no {name}"))?;
        let bound = error * expected.abs().max(1e-3);
        if (found - expected).abs() <= bound { Ok(()) } else { Err(format!("{name} is not {expected}")) }
    };
    about("sum", sum, 1e-9)?;
    about("mean", mean, 1e-9)?;
    about("min", sorted[0], 0.0)?;
    about("max", *sorted.last().unwrap(), 0.0)?;
    about("first", numbers[0], 0.0)?;
    about("last", *numbers.last().unwrap(), 0.0)?;
    if numbers.len() > 1 {
        let squares: f64 = numbers.iter().map(|value| (value - mean).powi(2)).sum();
        about("stddev", (squares / (count - 1.0)).sqrt(), 1e-6)?;
    } else if !aggregates["stddev"].is_null() {
        return Err("a stddev of one value".to_owned());
    }
    for (name, quantile) in [("p50", 0.5), ("p95", 0.95)] {
        // Where a quantile falls between two values, definitions differ; either neighbour will do.
        let rank = quantile * (count - 1.0);
        let near = |rank: f64| sorted.iter().copied().nth(format!("{rank:.0}").parse().unwrap()).unwrap();
        about(name, near(rank.floor()), 0.0101).or_else(|_| about(name, near(rank.ceil()), 0.0101))?;
    }
    Ok(())
}

/// Milliseconds of `2026-11-20THH:MM:SS.ffffff Z`, all on one day.
fn parse_ms(time: &str) -> u64 {
    let part = |from: usize, to: usize| time.get(from..to).unwrap().parse::<u64>().unwrap();
    assert_eq!(time.get(..11), Some("2026-11-20T"));
    let seconds = part(11, 13) * 3_600 + part(14, 16) * 60 + part(17, 19);
    DAY_MS + seconds * 1_000 + part(20, 26) / 1_000
}

/// 2026-11-20T00:00:00Z.
const DAY_MS: u64 = START_MS - 4 * 3_600_000;

fn format_ms(at: u64) -> String {
    let (seconds, ms) = ((at - DAY_MS) / 1_000, at % 1_000);
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!("2026-11-20T{hours:02}:{minutes:02}:{:02}.{ms:03}000Z", seconds % 60)
}

/// Waits until the cloud's windows are what they must be.
async fn all_right(agent: &Agent, cloud: &Cloud, readings: usize) {
    cloud.has("readings", readings).await;
    let expected = reference(&cloud.records("readings"));
    let mut last = Ok(());
    let comparing = harness::wait_for("windows that equal the reference", harness::DEADLINE, || {
        last = compare(&expected, &cloud.records("windows"));
        let is_equal = last.is_ok().then_some(());
        std::future::ready(is_equal)
    });
    if tokio::time::timeout(harness::DEADLINE / 2 * harness::patience(), comparing).await.is_err() {
        panic!("{last:?}");
    }
    let emitted = cloud.count("windows") as u64;
    let status = agent.drained("windows", emitted).await;
    assert_eq!(status.appended("windows"), emitted, "each revision was delivered once");
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_equal_a_naive_reference() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut random = harness::random();
    let agent = Agent::started(HOLDFAST, &config(&cloud, port)).await;
    for device in ["a", "b", "c"] {
        let readings = disorder(&mut random, 400);
        Sensor::new(device, port, &journal).publish_payloads(readings).await;
    }
    all_right(&agent, &cloud, 1_200).await;
    let late: u64 = WINDOWS.iter().map(|window| agent_late(&cloud, window)).sum();
    let status = agent.status().await;
    let counted: u64 =
        WINDOWS.iter().map(|window| status.number(&format!("/windows/{}/late", window.name))).sum();
    assert_eq!(counted, late, "every late reading is counted");
    assert!(late > 0, "the test has late readings");
}

/// Readings that came too late for at least one of their windows.
fn agent_late(cloud: &Cloud, window: &Window) -> u64 {
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    let mut late = 0;
    for reading in cloud.records("readings") {
        let at = parse_ms(reading["time"].as_str().unwrap());
        let seen = newest.entry(reading["device"].as_str().unwrap().to_owned()).or_insert(0);
        let oldest_start = (at - window.size) / window.slide * window.slide + window.slide;
        late +=
            u64::from(oldest_start + window.size + window.allowed <= seen.saturating_sub(window.lateness));
        *seen = (*seen).max(at);
    }
    late
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_equal_the_reference_though_the_agent_is_killed_on_the_way() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut random = harness::random();
    let mut agent = Agent::started(HOLDFAST, &config(&cloud, port)).await;
    let mut publishing = tokio::task::JoinSet::new();
    for device in ["a", "b", "c"] {
        let readings = disorder(&mut random, 1_500);
        let mut sensor = Sensor::new(device, port, &journal);
        publishing.spawn(async move { sensor.publish_payloads(readings).await });
    }
    for _ in 0..5 {
        let (acked, further) = (journal.acked_count(), random.usize(50..700));
        harness::wait_for("readings to flow", harness::DEADLINE, async || {
            (journal.acked_count() >= (acked + further).min(4_500)).then_some(())
        })
        .await;
        agent.kill();
        agent.start().await;
    }
    publishing.join_all().await;
    all_right(&agent, &cloud, 4_500).await;
    // Once more after a clean stop: nothing comes again.
    let emitted = cloud.count("windows");
    assert!(agent.stop().await.success());
    agent.start().await;
    Sensor::new("d", port, &journal).publish_payloads(disorder(&mut random, 50)).await;
    all_right(&agent, &cloud, 4_550).await;
    assert!(cloud.records("windows").iter().skip(emitted).all(|record| record["device"] == "d"));
}
