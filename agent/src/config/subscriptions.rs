//! `[[sources.<name>.subscribe]]`: which topics, and what their levels say.

use super::fault::Problem;
use super::note::Remark;
use super::payloads::{DeviceKey, payload_settings};
use super::reader::{Given, Section, invalid, value_or};
use super::report::Report;
use crate::ingest::Subscription;
use crate::ingest::settings::{Payload, Retained};
use crate::ingest::topic::Template;

const TOPIC_FORM: &str = "a topic such as \"sensors/{device}/telemetry\", where {name} and + stand for one level and # for the rest";

/// What it means if two filters match the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overlaps {
    /// Nothing: the first takes it.
    Harmless,
    /// A broker may send it once for each (MQTT 3.1.1, section 3.3.5).
    SentTwice,
}

/// The subscriptions of a source; those without faults.
pub(super) fn subscriptions(source: &Section<'_, '_>, overlaps: Overlaps) -> Vec<Subscription> {
    const FORM: &str =
        "at least one table such as [[sources.plant.subscribe]] with topic = \"sensors/{device}/telemetry\"";
    source.require("subscribe", FORM);
    let Some(Given { value: items, place }) = source.list("subscribe", FORM) else { return Vec::new() };
    if items.is_empty() {
        source.report.fault(&place, Problem::Missing { expected: FORM });
    }
    let mut subscriptions: Vec<Subscription> = Vec::with_capacity(items.len());
    for item in items {
        let place = item.place.clone();
        let Some(subscription) = item.section(FORM).and_then(|section| subscription(&section)) else {
            continue;
        };
        // The first that matches takes a message, so a second of the same filter would never get one.
        if subscriptions.iter().any(|earlier| earlier.topic.filter() == subscription.topic.filter()) {
            let text = format!("the topic filter {:?}", subscription.topic.filter());
            source.report.fault(&place, Problem::Twice { text });
        }
        let overlapping = subscriptions.iter().find(|earlier| {
            let (one, other) = (earlier.topic.filter(), subscription.topic.filter());
            one != other && overlap(one, other)
        });
        if let Some(earlier) = overlapping
            && overlaps == Overlaps::SentTwice
        {
            source.report.note(&place, Remark::Overlap { earlier: earlier.topic.filter().to_owned() });
        }
        subscriptions.push(subscription);
    }
    subscriptions
}

/// True if some topic matches both filters.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (unshared(one).split('/'), unshared(other).split('/'));
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(level), Some(level_too)) if level == level_too || level == "+" || level_too == "+" => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

/// The filter without `$share/<group>/`.
fn unshared(filter: &str) -> &str {
    let shared = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
    shared.map_or(filter, |(_, filter)| filter)
}

fn subscription(section: &Section<'_, '_>) -> Option<Subscription> {
    let report = section.report;
    section.require("topic", TOPIC_FORM);
    let topic = section.text("topic", TOPIC_FORM);
    let template = topic.as_ref().and_then(|given| template(report, given));
    let qos = section.number("qos", 0..=2);
    let replayed = [("skip", Retained::Skip), ("take", Retained::Take)];
    let retained = section.choice("retained", "\"skip\" or \"take\"", &replayed);
    let payloads = payload_settings(section, DeviceKey::Pointer);
    section.finish();

    remark_on_qos(section, qos.as_ref());
    let (payloads, template) = (payloads?, template?);
    if let Some(topic) = &topic {
        check_captures(section, topic, &template, &payloads.payload);
    }
    let subscription = payloads.on(template);
    Some(Subscription {
        // The range is checked, so it fits.
        qos: qos.and_then(|qos| u8::try_from(qos.value).ok()).unwrap_or(subscription.qos),
        retained: value_or(retained, subscription.retained),
        ..subscription
    })
}

fn template(report: &Report<'_>, given: &Given<&str>) -> Option<Template> {
    match Template::parse(given.value) {
        Ok(template) => Some(template),
        Err(error) => {
            let near = misspelt(given.value, &["device", "field"]);
            // The error may quote the topic, whatever is in it.
            let error: String = error.to_string().chars().filter(|char| !char.is_control()).collect();
            invalid(report, &given.place, near, format!("{TOPIC_FORM} ({error})"));
            None
        }
    }
}

/// The topic without typing errors in placeholders that should have been `wanted`.
fn misspelt(topic: &str, wanted: &[&str]) -> Option<String> {
    let names = topic.split('/').filter_map(|level| level.strip_prefix('{')?.strip_suffix('}'));
    let near = |name: &str| {
        let lower = name.to_lowercase();
        wanted.iter().find(|wanted| name != **wanted && strsim::osa_distance(&lower, wanted) <= 1)
    };
    let (name, near) = names.into_iter().find_map(|name| Some((name, near(name)?)))?;
    Some(topic.replace(&format!("{{{name}}}"), &format!("{{{near}}}")))
}

/// The quality of service that is not what it seems.
fn remark_on_qos(section: &Section<'_, '_>, qos: Option<&Given<u64>>) {
    let Some(Given { value, place }) = qos else { return };
    match value {
        0 => section.report.note(place, Remark::QosZero),
        2 => section.report.note(place, Remark::QosTwo),
        _ => {}
    }
}

/// Reports a capture that is `{device}` or `{field}` but for a typing error: it would silently become a tag.
fn check_captures(section: &Section<'_, '_>, topic: &Given<&str>, template: &Template, payload: &Payload) {
    let report = section.report;
    let mut wanted = Vec::new();
    if !template.has_device() && !section.has("device") {
        wanted.push("device");
    }
    if *payload == Payload::Value && !template.has_field() {
        wanted.push("field");
    }
    if let Some(meant) = misspelt(topic.value, &wanted) {
        invalid(report, &topic.place, Some(meant), TOPIC_FORM);
    }
    if template.has_device() && section.has("device") {
        report.note(&section.place, Remark::DeviceTwice);
    }
    if template.has_field() && *payload != Payload::Value {
        report.note(&topic.place, Remark::FieldUnused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_overlap_if_a_topic_matches_both() {
        for (one, other) in [
            ("a/+", "a/b"),
            ("a/#", "a/b/c"),
            ("a/#", "a"),
            ("+/b", "a/+"),
            ("#", "x/y"),
            ("$share/g/a/+", "a/b"),
            ("a/+/#", "a/b"),
        ] {
            assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
        }
        for (one, other) in [("a/+", "b/+"), ("a/+", "a/b/c"), ("a/b/#", "a/c/#"), ("a", "a/b"), ("", "a/b")]
        {
            assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
        }
    }
}
