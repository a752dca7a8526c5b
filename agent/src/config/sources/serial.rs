//! `type = "serial"`.

use std::time::Duration;

use super::port::port;
use crate::config::fault::Problem;
use crate::config::node::{LONGEST, in_memory};
use crate::config::payloads::{DeviceKey, is_name, payload_settings};
use crate::config::reader::{Section, invalid, value_or};
use crate::ingest::topic::Template;
use crate::source::serial::{Protocol, Settings};

const PROTOCOL_FORM: &str =
    "protocol = \"bridge\" (nodes with firmware-bridge) or \"lines\" (a reading a line)";
const DEVICE_FORM: &str = "a name of 1 to 256 bytes without control characters, such as \"press-7\"";
/// Above this the limit protects nothing.
const MOST_RATE: u64 = 10_000_000;
/// A line of text that is longer is none.
const MOST_LINE_BYTES: u64 = 16 << 20;
/// The only topic of a source that has none: all that it takes.
const EVERYTHING: &str = "#";

/// What is spoken on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Bridge,
    Lines,
}

/// A serial source.
pub(super) fn serial(name: &str, section: &Section<'_, '_>) -> Option<Settings> {
    let port = port(section, None);
    section.require("protocol", PROTOCOL_FORM);
    let spoken = [("bridge", Spoken::Bridge), ("lines", Spoken::Lines)];
    let spoken = section.choice("protocol", PROTOCOL_FORM, &spoken);
    let max_rate = section.number("max_rate", 1..=MOST_RATE);
    let silent_after = section.duration("silent_after", Duration::ZERO..=LONGEST);
    let (protocol, default_silent, max_payload) = match spoken?.value {
        Spoken::Bridge => {
            let device = match device(section) {
                Ok(device) => device,
                Err(Faulty) => return None,
            };
            (Protocol::Bridge { device: device.map(Into::into) }, Settings::DEFAULT_SILENT_NODE, None)
        }
        Spoken::Lines => {
            let payload = payload_settings(section, DeviceKey::NameOrPointer);
            let max_payload = section.size("max_payload", 1..=MOST_LINE_BYTES);
            let topic = Template::parse(EVERYTHING).ok()?;
            let lines = Protocol::Lines(Box::new(payload?.on(topic)));
            (lines, Settings::DEFAULT_SILENT_LINES, max_payload)
        }
    };
    Some(Settings {
        name: name.to_owned(),
        port: port?,
        protocol,
        max_rate: max_rate
            .and_then(|given| u32::try_from(given.value).ok())
            .unwrap_or(Settings::DEFAULT_MAX_RATE),
        silent_after: value_or(silent_after, default_silent),
        max_payload_bytes: in_memory(max_payload, Settings::DEFAULT_MAX_PAYLOAD_BYTES),
    })
}

/// The fault is reported.
struct Faulty;

/// The name that stands for the node's own.
fn device<'r>(section: &Section<'r, '_>) -> Result<Option<&'r str>, Faulty> {
    let Some(given) = section.text("device", DEVICE_FORM) else {
        return if section.has("device") { Err(Faulty) } else { Ok(None) };
    };
    if given.value.starts_with('/') {
        let why = "a node says its own name; without this key that is the device";
        section.report.fault(&given.place, Problem::Pointless { key: "a pointer", why });
        return Err(Faulty);
    }
    if !is_name(given.value) {
        invalid(section.report, &given.place, None, DEVICE_FORM);
        return Err(Faulty);
    }
    Ok(Some(given.value))
}
