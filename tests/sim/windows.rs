//! What windows must come to, reckoned as naively as can be from the readings that a receiver has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cloud::Cloud;
use crate::world::State;

pub(crate) const SIZE: i64 = 10_000_000;
pub(crate) const LATENESS: i64 = 2_000_000;

/// Window, device and start of a result.
type Span = (String, String, i64);

/// Every window's last result is what the readings give, and no revision has two contents. Gives back how many were compared.
pub(crate) fn check(state: &State, name: &str, cloud: &Cloud) -> Result<u64, String> {
    let mut found: BTreeMap<Span, BTreeMap<u64, &Value>> = BTreeMap::new();
    for record in cloud.records("windows") {
        let word = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let span = (word("window"), word("device"), micros(&record["start"])?);
        // One that goes and comes again begins anew, at the head of the log.
        if span.0 != "w" {
            continue;
        }
        let revision = record["revision"].as_u64().ok_or("no revision")?;
        if found.entry(span).or_default().insert(revision, record).is_some() {
            return Err(format!("revision {revision} came twice: {record}"));
        }
    }
    let misses_something = cloud.was_away || state.plan.may_shed_for(name) || !cloud.reasons().is_empty();
    // What was answered by another number in the epoch before is not among what this one has.
    if misses_something || !cloud.refused.is_empty() || cloud.lines.values().any(|line| line.begins > 1) {
        return Ok(0);
    }
    for (span, revisions) in &found {
        if revisions.keys().copied().ne(0..revisions.len() as u64) {
            return Err(format!("revisions of {span:?} are {:?}", revisions.keys()));
        }
    }
    let expected = expected(state, cloud)?;
    // Windows went by the times that the records had before they were corrected.
    let corrected = corrected(cloud);
    let is_comparable = |span: &Span| !corrected.contains(&span.1);
    let mut compared = 0;
    for (span, values) in expected.iter().filter(|(span, _)| is_comparable(span)) {
        let Some((_, record)) = found.get(span).and_then(|revisions| revisions.last_key_value()) else {
            return Err(format!("{span:?} never came; it has {values:?}"));
        };
        if !agrees(&record["aggregates"], values) {
            return Err(format!("{record} is not what {values:?} give"));
        }
        compared += 1;
    }
    match found.keys().find(|span| is_comparable(span) && !expected.contains_key(*span)) {
        Some(span) => Err(format!("{span:?} came, and no reading belongs there")),
        None => Ok(compared),
    }
}

/// Devices of which some reading has a corrected time of receipt for its own.
fn corrected(cloud: &Cloud) -> BTreeSet<String> {
    let records = cloud.records("readings");
    let moved =
        records.filter(|record| record["clock"] == "corrected" && record["time"] == record["received"]);
    moved.filter_map(|record| record["device"].as_str().map(str::to_owned)).collect()
}

/// The values of every window "w", in the order of their numbers, each with its time.
fn expected(state: &State, cloud: &Cloud) -> Result<BTreeMap<Span, Vec<(i64, f64)>>, String> {
    let slide = i64::try_from(state.plan.slide.as_micros()).expect("slides are short");
    let allowed = i64::try_from(state.plan.allowed_lateness.as_micros()).expect("it is short");
    let mut newest: BTreeMap<&str, i64> = BTreeMap::new();
    let mut spans: BTreeMap<Span, Vec<(i64, f64)>> = BTreeMap::new();
    for record in cloud.records("readings") {
        let device = record["device"].as_str().unwrap_or_default();
        let (time, value) = (micros(&record["time"])?, record["fields"]["v"].as_f64().ok_or("no value")?);
        let gone = newest.get(device).map(|newest| newest - LATENESS - allowed);
        let mut start = time.div_euclid(slide) * slide;
        while start + SIZE > time {
            if gone.is_none_or(|gone| start + SIZE > gone) {
                spans.entry(("w".to_owned(), device.to_owned(), start)).or_default().push((time, value));
            }
            start -= slide;
        }
        let newest = newest.entry(device).or_insert(time);
        *newest = time.max(*newest);
    }
    Ok(spans)
}

fn agrees(aggregates: &Value, values: &[(i64, f64)]) -> bool {
    let number = |name: &str| aggregates[name].as_f64().unwrap_or(f64::NAN);
    let sum: f64 = values.iter().map(|(_, value)| value).sum();
    let least = values.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
    let most = values.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    // Of equal times the first and the last by number.
    let first = values.iter().min_by_key(|(time, _)| *time).map(|(_, value)| *value);
    let last = values.iter().max_by_key(|(time, _)| *time).map(|(_, value)| *value);
    aggregates["count"].as_u64() == Some(values.len() as u64)
        && number("sum") == sum
        && number("min") == least
        && number("max") == most
        && Some(number("first")) == first
        && Some(number("last")) == last
}

/// `2026-11-20T00:00:12.345678Z` in microseconds; only days of November 2026 to 2027 occur far apart, so days are counted by hand.
fn micros(time: &Value) -> Result<i64, String> {
    let text = time.as_str().ok_or("no time")?;
    let part = |from: usize, to: usize| {
        text.get(from..to).and_then(|part| part.parse::<i64>().ok()).ok_or(format!("no time: {text}"))
    };
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    // Days from civil, after Howard Hinnant.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = days * 86_400 + part(11, 13)? * 3_600 + part(14, 16)? * 60 + part(17, 19)?;
    Ok(seconds * 1_000_000 + part(20, 26)?)
}
