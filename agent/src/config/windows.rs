//! `[windows.<name>]`.

use std::time::Duration;

use super::fault::Problem;
use super::nearest::nearest;
use super::node::LONGEST;
use super::reader::{Given, Section, invalid, value_or};
use super::units::DURATION_FORM;
use crate::window::Settings;
use crate::window::settings::Aggregate;

/// `aggregates` where the operator does not say.
const DEFAULT_AGGREGATES: [Aggregate; 4] =
    [Aggregate::Count, Aggregate::Mean, Aggregate::Min, Aggregate::Max];
/// Shorter windows would hold hardly a reading and cost a record each.
const LEAST_SIZE: Duration = Duration::from_millis(100);
/// The longest window: a leap year. Its state must outlast it.
const MOST_SIZE: Duration = Duration::from_secs(366 * 86_400);
/// Each series keeps this many states at once at most: an hour by the second.
const MOST_OVERLAP: u32 = 3_600;
/// Each series costs some hundred bytes; beyond this a gateway's memory ends.
const MOST_SERIES: u64 = 10_000_000;
/// Names of aggregates, to find what was meant.
const AGGREGATES: [&str; 13] =
    ["count", "sum", "mean", "min", "max", "first", "last", "stddev", "p50", "p90", "p95", "p99", "p99.9"];
const AGGREGATE_FORM: &str =
    "count, sum, mean, min, max, first, last, stddev or a quantile such as p95 or p99.9";

/// One window; `None` if it is too faulty to be one. `sources` are the names of all that are configured.
pub(super) fn window(name: &str, section: &Section<'_, '_>, sources: &[&str]) -> Option<Settings> {
    section.require("size", DURATION_FORM);
    let size = section.duration("size", LEAST_SIZE..=MOST_SIZE);
    let slide = section.duration("slide", Duration::from_millis(1)..=MOST_SIZE);
    let lateness = section.duration("lateness", Duration::ZERO..=LONGEST);
    let allowed_lateness = section.duration("allowed_lateness", Duration::ZERO..=LONGEST);
    let idle = section.duration("idle", Duration::ZERO..=LONGEST);
    let max_series = section.number("max_series", 1..=MOST_SERIES);
    let aggregates = aggregates(section);
    let only = sources_of(section, sources);
    let fields = fields(section);
    section.finish();

    let size = size?.value;
    if let Some(slide) = &slide {
        check_slide(section, slide, size);
    }
    let lateness = value_or(lateness, Settings::DEFAULT_LATENESS);
    Some(Settings {
        name: name.to_owned(),
        size,
        slide: value_or(slide, size),
        lateness,
        allowed_lateness: value_or(allowed_lateness, Duration::ZERO),
        idle: value_or(idle, lateness),
        max_series: super::node::in_memory(max_series, Settings::DEFAULT_MAX_SERIES),
        aggregates,
        sources: only,
        fields,
    })
}

fn check_slide(section: &Section<'_, '_>, slide: &Given<Duration>, size: Duration) {
    if slide.value > size {
        section.report.fault(&slide.place, Problem::SlideAboveSize { slide: slide.value, size });
        return;
    }
    let overlap = size.as_millis().div_ceil(slide.value.as_millis().max(1));
    if overlap > MOST_OVERLAP.into() {
        // Rounded up to a whole millisecond, so that what is advised is accepted.
        let least = u64::try_from(size.as_millis().div_ceil(MOST_OVERLAP.into())).unwrap_or(u64::MAX);
        let (slide_is, max) = (slide.value, MOST_OVERLAP);
        let least = Duration::from_millis(least);
        section
            .report
            .fault(&slide.place, Problem::SlideTooSmall { slide: slide_is, size, overlap, max, least });
    }
}

/// `count` always, and first.
fn aggregates(section: &Section<'_, '_>) -> Vec<Aggregate> {
    const FORM: &str = "a list of aggregates such as [\"count\", \"mean\", \"p95\"]";
    let Some(given) = section.texts("aggregates", FORM) else { return DEFAULT_AGGREGATES.to_vec() };
    let mut aggregates = vec![Aggregate::Count];
    let mut said: Vec<&str> = Vec::new();
    for name in given.value {
        if said.contains(&name.value) {
            let text = section.report.shown(&name.place);
            section.report.fault(&name.place, Problem::Twice { text });
        }
        said.push(name.value);
        match Aggregate::from_name(name.value) {
            Some(Aggregate::Count) => {}
            Some(aggregate) => aggregates.push(aggregate),
            None => {
                let near = common_name(name.value).or_else(|| nearest(name.value, AGGREGATES));
                invalid(section.report, &name.place, near, AGGREGATE_FORM);
            }
        }
    }
    aggregates
}

/// Aggregates as other programs call them.
fn common_name(name: &str) -> Option<String> {
    let ours = match name.to_lowercase().as_str() {
        "avg" | "average" => "mean",
        "median" => "p50",
        "std" | "stdev" | "stddev_samp" => "stddev",
        "minimum" => "min",
        "maximum" => "max",
        "total" => "sum",
        "n" | "num" => "count",
        _ => return None,
    };
    Some(ours.to_owned())
}

fn sources_of(section: &Section<'_, '_>, sources: &[&str]) -> Option<Vec<String>> {
    const FORM: &str = "a list of names of sources";
    if sources.is_empty() && !section.has("sources") {
        section.report.fault(&section.place, Problem::NothingFeedsWindow);
    }
    let given = section.texts("sources", FORM)?;
    if given.value.is_empty() {
        invalid(section.report, &given.place, None, "at least one source (without the key: all of them)");
    }
    let mut names: Vec<String> = Vec::with_capacity(given.value.len());
    for name in given.value {
        if names.iter().any(|earlier| earlier == name.value) {
            section.report.fault(&name.place, Problem::Twice { text: format!("{:?}", name.value) });
        }
        if !sources.contains(&name.value) {
            let problem = Problem::NoSuchSource {
                name: name.value.to_owned(),
                nearest: nearest(name.value, sources.iter().copied()),
                sources: sources.iter().map(|source| (*source).to_owned()).collect(),
            };
            section.report.fault(&name.place, problem);
        }
        names.push(name.value.to_owned());
    }
    Some(names)
}

fn fields(section: &Section<'_, '_>) -> Option<Vec<String>> {
    const FORM: &str = "a list of names of fields such as [\"temperature\", \"ENERGY.Power\"]";
    let given = section.texts("fields", FORM)?;
    if given.value.is_empty() {
        invalid(
            section.report,
            &given.place,
            None,
            "at least one field (without the key: all that are numeric)",
        );
    }
    let mut names: Vec<String> = Vec::with_capacity(given.value.len());
    for name in given.value {
        if name.value.is_empty() {
            invalid(section.report, &name.place, None, "the name of a field");
        }
        if let Some(pointer) = name.value.strip_prefix('/') {
            invalid(
                section.report,
                &name.place,
                Some(pointer.replace('/', ".")),
                "the name of a field, nested ones joined by \".\"",
            );
        }
        if names.iter().any(|earlier| earlier == name.value) {
            section.report.fault(&name.place, Problem::Twice { text: format!("{:?}", name.value) });
        }
        names.push(name.value.to_owned());
    }
    Some(names)
}
