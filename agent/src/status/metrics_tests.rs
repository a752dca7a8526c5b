use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::status::fixture;

/// One line of an exposition.
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads the text as a scraper does; panics on whatever it would refuse. Returns types by family, and samples.
fn parsed(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let (mut types, mut helps, mut samples) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && helps.insert(name.to_owned()), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helps.contains(name), "{line}");
            assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "{line}");
        } else if line != "# EOF" {
            samples.push(sample(line));
        }
    }
    (types, samples)
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").unwrap();
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        escaped @ ('\\' | '"') => escaped,
                        other => panic!("unknown escape {other} in {line}"),
                    }),
                    (_, plain) => value.push(plain),
                }
            };
            assert_eq!(labels.insert(label.to_owned(), value), None, "{line}");
            rest = after.split_at(end + 1).1;
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = rest.strip_prefix('}').unwrap();
    }
    let value = rest.trim();
    let value =
        if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap_or_else(|_| panic!("{line}")) };
    Sample { name: name.to_owned(), labels, value }
}

fn status() -> Status {
    let (rooms, inputs) = fixture::rooms();
    rooms.store.send_modify(|report| {
        for millis in [1, 30, 30, 9_000] {
            report.commit_seconds.observe(Duration::from_millis(millis));
        }
        report.commits = 4;
    });
    Status::read(&inputs)
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let wanted: BTreeMap<String, String> =
        labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
    samples.iter().find(|sample| sample.name == name && sample.labels == wanted).map(|sample| sample.value)
}

#[tokio::test]
async fn the_metrics_of_the_contract_are_there_in_both_dialects() {
    for format in [Format::Plain, Format::OpenMetrics] {
        let text = render(status(), format);
        let (types, samples) = parsed(&text);
        let check = |name: &str, labels: &[(&str, &str)], expected: f64| {
            assert_eq!(value(&samples, name, labels), Some(expected), "{name} {labels:?}\n{text}");
        };
        let cloud = [("sink", "cloud"), ("stream", "readings")];
        check("holdfast_source_received_total", &[("source", "plant")], 1012.0);
        check("holdfast_source_rejected_total", &[("source", "plant")], 4.0);
        check("holdfast_stream_appended_total", &[("stream", "readings")], 1000.0);
        check("holdfast_sink_delivered_total", &cloud, 985.0);
        check("holdfast_sink_pending", &cloud, 10.0);
        check("holdfast_sink_dead_lettered_total", &cloud, 1.0);
        check("holdfast_sink_shed_total", &cloud, 4.0);
        check("holdfast_sink_up", &[("sink", "cloud")], 1.0);
        check("holdfast_store_bytes", &[], 123.0);
        check("holdfast_window_late_total", &[("window", "minute")], 9.0);
        check("holdfast_state", &[("state", "online")], 1.0);
        check("holdfast_state", &[("state", "blocked")], 0.0);
        check("holdfast_commit_seconds_count", &[], 4.0);
        check("holdfast_commit_seconds_bucket", &[("le", "0.05")], 3.0);
        check("holdfast_commit_seconds_bucket", &[("le", "+Inf")], 4.0);
        assert_eq!(types["holdfast_commit_seconds"], "histogram");

        // A removed sink keeps its counters and raises no alarm.
        check("holdfast_sink_delivered_total", &[("sink", "old"), ("stream", "readings")], 10.0);
        assert_eq!(value(&samples, "holdfast_sink_up", &[("sink", "old")]), None);
        assert_eq!(
            value(&samples, "holdfast_sink_pending", &[("sink", "old"), ("stream", "readings")]),
            None
        );
    }
}

#[tokio::test]
async fn every_sample_belongs_to_a_declared_family_and_counters_end_in_total() {
    for format in [Format::Plain, Format::OpenMetrics] {
        let text = render(status(), format);
        let (types, samples) = parsed(&text);
        for sample in &samples {
            let name = sample.name.as_str();
            assert!(name.starts_with("holdfast_"), "{name}");
            let family = match format {
                Format::Plain => name,
                Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            };
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            match (types.get(family).map(String::as_str), of_histogram) {
                (Some("counter"), _) => assert!(name.ends_with("_total"), "{name}"),
                (Some("gauge"), _) => assert!(!name.ends_with("_total"), "{name}"),
                (_, Some(histogram)) => assert_eq!(types[histogram], "histogram", "{name}"),
                (other, None) => panic!("{name} is declared as {other:?}"),
            }
        }
        assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics);
    }
}

#[tokio::test]
async fn label_values_are_escaped() {
    let hostile = "a\"} 1\nholdfast_evil 1\\";
    let (rooms, inputs) = fixture::rooms();
    rooms.windows.send_modify(|report| {
        report.windows.insert(hostile.to_owned(), crate::status::WindowReport::default());
    });
    let (_, samples) = parsed(&render(Status::read(&inputs), Format::Plain));
    assert_eq!(value(&samples, "holdfast_window_late_total", &[("window", hostile)]), Some(0.0));
    assert!(samples.iter().all(|sample| sample.name != "holdfast_evil"));
}

#[test]
fn prometheus_gets_openmetrics_and_others_the_classic_format() {
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::wanted(prometheus), Format::OpenMetrics);
    for other in ["", "*/*", "text/plain; version=0.0.4"] {
        assert_eq!(Format::wanted(other), Format::Plain);
    }
}
