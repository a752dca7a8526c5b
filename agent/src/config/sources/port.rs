//! Where a serial port is and how it is set: keys that several types of sources have.

use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;

use crate::config::fault::Problem;
use crate::config::reader::{Section, invalid, value_or};
use crate::source::port::{DataBits, FlowControl, Parity, Place, Settings, StopBits};

const PATH_FORM: &str =
    "the path of a serial port such as \"/dev/serial/by-id/usb-…\", \"/dev/ttyUSB0\" or \"/dev/ttyAMA0\"";
const PLACE_FORM: &str =
    "the path of a serial port such as \"/dev/ttyUSB0\", or url = \"tcp://host:port\" of a server";
const URL_FORM: &str = "a URL such as \"tcp://192.168.1.20:2000\"";
/// Faster than any port.
const MOST_BAUD: u64 = 16_000_000;
/// What means nothing over TCP.
const LINE_KEYS: [&str; 5] = ["baud", "data_bits", "parity", "stop_bits", "flow_control"];

/// The port of a source; `default_port` is that of a URL without one.
pub(super) fn port(section: &Section<'_, '_>, default_port: Option<u16>) -> Option<Settings> {
    let report = section.report;
    let url = section.text("url", URL_FORM);
    let path = section.text("path", PATH_FORM);
    if !section.has("url") {
        section.require("path", PLACE_FORM);
    }
    let baud = section.number("baud", 1..=MOST_BAUD);
    let data_bits = section.number("data_bits", 5..=8);
    let parities = [("none", Parity::None), ("odd", Parity::Odd), ("even", Parity::Even)];
    let parity = section.choice("parity", "\"none\", \"odd\" or \"even\"", &parities);
    let stop_bits = section.number("stop_bits", 1..=2);
    let controls = [
        ("none", FlowControl::None),
        ("software", FlowControl::Software),
        ("hardware", FlowControl::Hardware),
    ];
    let flow_control = section.choice("flow_control", "\"none\", \"software\" or \"hardware\"", &controls);
    if url.is_some() {
        let keys = LINE_KEYS.into_iter().chain(["path"]);
        for (key, item) in keys.filter_map(|key| Some((key, section.item(key)?))) {
            let why = if key == "path" {
                "url says where the port is; remove one of them"
            } else {
                "the server at the url sets the port; remove it here"
            };
            report.fault(&item.place, Problem::Pointless { key, why });
        }
    }
    let at = match (url, path) {
        (Some(url), _) => match tcp(url.value, default_port) {
            Some(place) => place,
            None => {
                invalid(report, &url.place, None, URL_FORM);
                return None;
            }
        },
        (None, Some(path)) if !path.value.starts_with('/') || path.value.contains('\0') => {
            invalid(report, &path.place, None, PATH_FORM);
            return None;
        }
        (None, Some(path)) => Place::Path(PathBuf::from(path.value)),
        (None, None) => return None,
    };
    let defaults = Settings::at(at);
    Some(Settings {
        baud: baud.and_then(|baud| u32::try_from(baud.value).ok()).unwrap_or(defaults.baud),
        data_bits: match value_or(data_bits, 8) {
            5 => DataBits::Five,
            6 => DataBits::Six,
            7 => DataBits::Seven,
            _ => DataBits::Eight,
        },
        parity: value_or(parity, defaults.parity),
        stop_bits: if value_or(stop_bits, 1) == 2 { StopBits::Two } else { StopBits::One },
        flow_control: value_or(flow_control, defaults.flow_control),
        at: defaults.at,
    })
}

fn tcp(text: &str, default_port: Option<u16>) -> Option<Place> {
    let url = Url::parse(text).ok().filter(|url| url.scheme() == "tcp")?;
    let is_plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && matches!(url.path(), "" | "/");
    let host = url.host_str().filter(|host| is_plain && !host.is_empty())?;
    let port = url.port().or(default_port).filter(|port| *port != 0)?;
    // One name, however it is written: a scheme that is not the web's leaves it as it is.
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    let host = host.parse::<IpAddr>().map_or(host, |address| address.to_string());
    (!host.is_empty()).then_some(Place::Tcp { host, port })
}
