//! `holdfast check`: is the configuration valid, and what will the agent do with it?
//!
//! A valid one gives a summary on stdout that answers an operator's questions: what does each source listen to, what
//! will each window emit, where does each sink send what, how much may the store hold. An invalid one gives every fault
//! on stderr. No secret is shown, not even where it stands in a URL's query.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use crate::clock::Trust;
use crate::config::units::{show_duration, show_size};
use crate::config::{self, Config, Faults, Loaded, LogFormat};
use crate::forward::settings::{AckRule, Compression, Required};
use crate::ingest::Subscription;
use crate::ingest::settings::{Payload, Pointer, Retained};
use crate::source::modbus;
use crate::source::mqtt::Protocol;
use crate::store::settings::WhenFull;
use crate::stream::Stream;
use crate::window::settings::Aggregate;
use crate::{forward, source, window};

/// The configuration is valid.
const VALID: u8 = 0;
/// The configuration is not valid.
const INVALID: u8 = 2;

/// Checks the configuration at `path` and says to `out` what it means; returns the exit code: 0 valid, 2 not.
///
/// # Errors
/// If `out` does not take the answer.
pub fn run(path: &Path, out: &mut impl Write) -> anyhow::Result<u8> {
    match config::load(path) {
        Ok(loaded) => {
            out.write_all(summary(path, &loaded).as_bytes())?;
            Ok(VALID)
        }
        Err(faults) => {
            // Nobody to tell if stderr is closed.
            drop(std::io::stderr().write_all(complaint(&faults).as_bytes()));
            Ok(INVALID)
        }
    }
}

/// All faults, a line each, and how many they are.
fn complaint(faults: &Faults) -> String {
    let count = faults.0.len();
    format!("{faults}\n{count} {}\n", if count == 1 { "error" } else { "errors" })
}

/// What the agent would do, on about one screen.
fn summary(path: &Path, loaded: &Loaded) -> String {
    let mut page = Page::default();
    page.line(format_args!("{}: valid", path.display()));
    about_the_agent(&mut page, &loaded.config);
    page.heading("sources", loaded.config.sources.len());
    for source in &loaded.config.sources {
        about_source(&mut page, source);
    }
    page.heading("windows", loaded.config.windows.len());
    for window in &loaded.config.windows {
        about_window(&mut page, window);
    }
    page.heading("sinks", loaded.config.sinks.len());
    for sink in &loaded.config.sinks {
        about_sink(&mut page, sink);
    }
    if !loaded.notes.is_empty() {
        page.line(format_args!(""));
    }
    for note in &loaded.notes {
        page.line(format_args!("{note}"));
    }
    page.text
}

/// Text with a margin for names.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to a string cannot fail");
    }

    fn heading(&mut self, heading: &str, count: usize) {
        self.line(format_args!("\n{heading}{}", if count == 0 { ": none" } else { "" }));
    }

    /// A line of something named; an empty name continues the one above.
    fn entry(&mut self, name: &str, what: &str) {
        self.line(format_args!("  {name:<14} {what}"));
    }
}

fn about_the_agent(page: &mut Page, config: &Config) {
    let store = &config.store;
    page.entry("agent", &format!("{}, data in {}", config.agent_id, store.data_dir.display()));
    let when_full = match store.when_full {
        WhenFull::Shed => "then sheds the oldest readings first and declares them",
        WhenFull::Block => "then stops acknowledging",
    };
    let (size, age) = (show_size(store.max_size_bytes), show_duration(store.max_age));
    page.entry("store", &format!("holds {size} for {age}, {when_full}"));
    page.entry(
        "",
        &format!("a reading waits at most {} for its commit", show_duration(store.commit_interval)),
    );
    for (stream, own) in Stream::ALL.into_iter().zip(&store.streams) {
        let limit = match (own.max_size_bytes.map(show_size), own.max_age.map(show_duration)) {
            (Some(size), Some(age)) => format!("{size} for {age}"),
            (Some(size), None) => size,
            (None, Some(age)) => format!("all for {age}"),
            (None, None) => continue,
        };
        page.entry("", &format!("of {stream} it holds at most {limit}"));
    }
    let letters = &store.dead_letters;
    let cut = show_size(u64::try_from(letters.max_payload_bytes).unwrap_or(u64::MAX));
    page.entry("dead letters", &format!("hold {}, payloads cut at {cut}", show_size(letters.max_size_bytes)));
    let listen = config.admin.listen.map_or_else(|| "off".to_owned(), |listen| format!("http://{listen}"));
    let socket =
        config.admin.socket.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string());
    page.entry("admin", &format!("page {listen}, socket {socket}"));
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    page.entry("log", &format!("{} as {format}", config.log.filter));
    let clock = match config.clock {
        Trust::Kernel => "synchronised if the kernel says so",
        Trust::Operator => "trusted",
    };
    page.entry("clock", clock);
}

fn about_source(page: &mut Page, source: &source::Settings) {
    match source {
        source::Settings::Mqtt(settings) => about_client(page, settings),
        source::Settings::Listen(settings) => about_listener(page, settings),
        source::Settings::Serial(settings) => about_line(page, settings),
        source::Settings::I2c(settings) => about_bus(page, settings),
        source::Settings::Modbus(settings) => about_modbus(page, settings),
    }
    for subscription in source.subscriptions() {
        page.entry("", &about_subscription(source, subscription));
    }
}

fn about_client(page: &mut Page, settings: &source::mqtt::Settings) {
    let scheme = if settings.tls.is_some() { "mqtts" } else { "mqtt" };
    let protocol = match settings.protocol {
        Protocol::V311 => "3.1.1",
        Protocol::V5 => "5",
    };
    let who = settings.username.as_ref().map(|name| format!(" as user {name:?}")).unwrap_or_default();
    let (host, port, id) = (&settings.host, settings.port, &settings.client_id);
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    page.entry(&settings.name, &format!("{scheme}://{host}:{port}{who}, MQTT {protocol}, client id {id:?}"));
}

fn about_listener(page: &mut Page, settings: &source::listen::Settings) {
    let tls = match &settings.tls {
        Some(tls) if tls.client_ca_file.is_some() => "TLS with client certificates",
        Some(_) => "TLS",
        None => "no TLS",
    };
    let users = settings
        .users_file
        .as_ref()
        .map_or_else(|| "no users file".to_owned(), |file| format!("users of {}", file.display()));
    let (listen, clients) = (settings.listen, settings.max_clients);
    page.entry(
        &settings.name,
        &format!("listens for MQTT on {listen}, {tls}, {users}, at most {clients} clients"),
    );
}

fn about_line(page: &mut Page, settings: &source::serial::Settings) {
    let place = about_port(&settings.port);
    let spoken = match &settings.protocol {
        source::serial::Protocol::Bridge { device: None } => "nodes of firmware-bridge".to_owned(),
        source::serial::Protocol::Bridge { device: Some(device) } => {
            format!("a node of firmware-bridge, device {device:?}")
        }
        source::serial::Protocol::Lines(_) => "a reading a line".to_owned(),
    };
    page.entry(
        &settings.name,
        &format!("{place}, {spoken}, at most {} messages a second", settings.max_rate),
    );
}

fn about_port(settings: &source::port::Settings) -> String {
    use source::port::{DataBits, FlowControl, Parity, Place, StopBits};
    let Place::Path(path) = &settings.at else { return settings.at.to_string() };
    let bits = match settings.data_bits {
        DataBits::Five => 5,
        DataBits::Six => 6,
        DataBits::Seven => 7,
        DataBits::Eight => 8,
    };
    let parity = match settings.parity {
        Parity::None => 'N',
        Parity::Odd => 'O',
        Parity::Even => 'E',
    };
    let stop = if settings.stop_bits == StopBits::One { 1 } else { 2 };
    let control = match settings.flow_control {
        FlowControl::None => "",
        FlowControl::Software => ", XON/XOFF",
        FlowControl::Hardware => ", RTS/CTS",
    };
    format!("{} at {} baud, {bits}{parity}{stop}{control}", path.display(), settings.baud)
}

fn about_bus(page: &mut Page, settings: &source::i2c::Settings) {
    page.entry(&settings.name, &format!("reads sensors on the bus {}", settings.bus.display()));
    for sensor in &settings.sensors {
        let (driver, interval) = (&sensor.driver, show_duration(sensor.interval));
        let mut text =
            format!("{:?}: {} at {:#04x}, every {interval}", sensor.device, driver.name(), sensor.address);
        if let source::i2c::Driver::Ads1015(inputs) | source::i2c::Driver::Ads1115(inputs) = driver {
            let read = inputs.read.iter().enumerate().filter(|(_, is_read)| **is_read);
            let read = read.map(|(input, _)| format!("a{input}")).collect::<Vec<_>>().join(" ");
            text.push_str(&format!(", {read} within {}", inputs.range.name()));
        }
        page.entry("", &text);
    }
}

fn about_modbus(page: &mut Page, settings: &modbus::Settings) {
    let protocol = if settings.is_rtu() { "RTU" } else { "TCP" };
    let (place, interval, timeout) =
        (about_port(&settings.port), show_duration(settings.interval), show_duration(settings.timeout));
    page.entry(
        &settings.name,
        &format!("{place}, Modbus {protocol} every {interval}, an answer within {timeout}"),
    );
    for read in &settings.reads {
        let fields: Vec<_> = read.registers.iter().map(about_register).collect();
        let requests = match modbus::requests(&read.registers) {
            1 => "one request".to_owned(),
            requests => format!("{requests} requests"),
        };
        page.entry(
            "",
            &format!("unit {} as {:?} in {requests}: {}", read.unit, read.device, fields.join(", ")),
        );
    }
}

fn about_register(register: &modbus::Register) -> String {
    let format = match register.format {
        modbus::Format::Truth => "bool".to_owned(),
        modbus::Format::Bit(bit) => format!("bit {bit}"),
        modbus::Format::Number { number, .. } => number.name().to_owned(),
        modbus::Format::Text { registers, .. } => format!("text of {registers}"),
    };
    format!("{} ({format} at {} {})", register.field, register.kind.name(), register.address)
}

fn about_subscription(source: &source::Settings, subscription: &Subscription) -> String {
    let mut text = match source {
        source::Settings::Serial(_) => "each line".to_owned(),
        _ => subscription.topic.filter().to_owned(),
    };
    let mut add = |part: &str| {
        text.push_str(", ");
        text.push_str(part);
    };
    if matches!(source, source::Settings::Mqtt(_)) {
        // Two is asked for as one (contract, section 3).
        add(&format!("qos {}", subscription.qos.min(1)));
    }
    match &subscription.payload {
        Payload::Json => add("json"),
        Payload::Value if subscription.topic.has_field() => add("bare value named by {field}"),
        Payload::Value => add("bare value named \"value\""),
        Payload::Csv(..) => add(&format!("csv of {}", names(&subscription.payload))),
        Payload::Regex(_) => add(&format!("pattern for {}", names(&subscription.payload))),
    }
    if let Some(fields) = &subscription.fields {
        add(&format!("fields {}", fields.iter().map(Pointer::to_string).collect::<Vec<_>>().join(" ")));
    }
    match &subscription.time {
        Some(time) => add(&format!("time {time}")),
        None => add("time of receipt"),
    }
    match subscription.device_in_payload() {
        Some(device) => add(&format!("device {device}")),
        None if subscription.topic.has_device() => add("device from the topic"),
        None => add(&format!("device {:?}", subscription.device_name.as_deref().unwrap_or(source.name()))),
    }
    match (source, subscription.retained) {
        (source::Settings::Mqtt(_), Retained::Take) => add("retained messages too"),
        (source::Settings::Mqtt(_), Retained::Skip)
        | (
            source::Settings::Listen(_)
            | source::Settings::Serial(_)
            | source::Settings::I2c(_)
            | source::Settings::Modbus(_),
            _,
        ) => {}
    }
    text
}

/// The names of columns or groups.
fn names(payload: &Payload) -> String {
    let named: Vec<&str> =
        payload.parts().iter().filter(|name| !name.is_empty()).map(|name| &**name).collect();
    named.join(" ")
}

fn about_window(page: &mut Page, settings: &window::Settings) {
    let (size, slide) = (show_duration(settings.size), show_duration(settings.slide));
    let shape = if settings.slide == settings.size {
        format!("every {size}")
    } else {
        format!("the last {size}, every {slide}")
    };
    let aggregates = settings.aggregates.iter().map(Aggregate::name).collect::<Vec<_>>().join(" ");
    page.entry(&settings.name, &format!("{shape}: {aggregates}"));
    let list = |some: &Option<Vec<String>>, all: &str| {
        some.as_ref().map_or_else(|| all.to_owned(), |some| some.join(" "))
    };
    let fields = list(&settings.fields, "all numeric fields");
    let sources = list(&settings.sources, "all sources");
    page.entry(
        "",
        &format!(
            "of each device and field: {fields}; from {sources}; at most {} series",
            settings.max_series
        ),
    );
    let (lateness, idle) = (show_duration(settings.lateness), show_duration(settings.idle));
    let again = if settings.allowed_lateness.is_zero() {
        "later readings are counted as late".to_owned()
    } else {
        format!("later readings emit anew for {}", show_duration(settings.allowed_lateness))
    };
    page.entry(
        "",
        &format!(
            "readings may come {lateness} out of order; a device silent for {idle} is not waited for; {again}"
        ),
    );
}

fn about_sink(page: &mut Page, settings: &forward::Settings) {
    let compression = match settings.compression {
        Compression::Zstd => "zstd",
        Compression::Gzip => "gzip",
        Compression::None => "not compressed",
    };
    let url = match settings.url.split_once('?') {
        Some((url, _)) => format!("{url}?…"),
        None => settings.url.clone(),
    };
    page.entry(&settings.name, &format!("POST {url}, {compression}"));
    let streams =
        settings.streams.iter().map(|stream| Stream::name(*stream)).collect::<Vec<_>>().join(", then ");
    page.entry("", &format!("sends {streams}"));
    let batch = &settings.batch;
    let bytes = show_size(u64::try_from(batch.bytes).unwrap_or(u64::MAX));
    let wait = show_duration(batch.wait);
    let (initial, max) = (show_duration(settings.retry.initial), show_duration(settings.retry.max));
    let timeout = show_duration(settings.timeout);
    page.entry("", &format!(
        "up to {} records or {bytes} in a batch, after {wait} at the latest; time-out {timeout}, pauses {initial} to {max}",
        batch.records
    ));
    let ack = match settings.ack {
        AckRule::Status => None,
        AckRule::Body => Some("a 2xx counts only with a body {\"next\": N}"),
    };
    let required = match settings.required {
        Required::Yes => None,
        Required::No => Some("never holds intake up"),
    };
    let headers = settings.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let headers = (!headers.is_empty()).then(|| format!("with header {headers}"));
    let more: Vec<&str> = [ack, required, headers.as_deref()].into_iter().flatten().collect();
    if !more.is_empty() {
        page.entry("", &more.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary_of(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h.toml");
        std::fs::write(&path, text).unwrap();
        summary(Path::new("h.toml"), &config::load(&path).unwrap_or_else(|faults| panic!("{faults}")))
    }

    #[test]
    fn the_summary_answers_an_operators_questions() {
        let text = include_str!("../../../config/examples/mosquitto-to-http.toml");
        let summary = summary_of(text);
        for answer in [
            "h.toml: valid",
            "gw-lab-01, data in /",
            "holds 2GiB for 30d, then sheds",
            "mqtt://127.0.0.1:1883 as user \"holdfast\", MQTT 3.1.1, client id \"holdfast-gw-lab-01-plant\"",
            "sensors/+/+/telemetry, qos 1, json, time /ts, device from the topic",
            "every 1m: count mean min max stddev p95",
            "POST https://ingest.example.com/v1/telemetry, zstd",
            "sends alerts, then windows, then readings",
            "up to 1000 records or 256KiB",
        ] {
            assert!(summary.contains(answer), "{answer}\n{summary}");
        }
        assert!(summary.lines().count() <= 40, "one screen");
        assert!(summary.lines().all(|line| !line.ends_with(' ')));
    }

    #[test]
    fn sensors_of_a_bus_are_listed() {
        let summary = summary_of(
            "[sources.board]\ntype = \"i2c\"\nbus = \"/dev/i2c-1\"\nsensors = [{ driver = \"bme280\", address = 0x76 },\n\
             { driver = \"ads1115\", address = 0x48, device = \"tank\", interval = \"1m\", channels = [0, 2] }]\n",
        );
        for answer in [
            "board          reads sensors on the bus /dev/i2c-1",
            "\"board-bme280-76\": bme280 at 0x76, every 10s",
            "\"tank\": ads1115 at 0x48, every 1m, a0 a2 within 2.048V",
        ] {
            assert!(summary.contains(answer), "{answer}\n{summary}");
        }
    }

    #[test]
    fn the_summary_says_what_is_polled() {
        let summary = summary_of(
            "[sources.rack]\ntype = \"modbus\"\npath = \"/dev/ttyUSB1\"\nparity = \"even\"\n[[sources.rack.read]]\nunit = 3\n\
             registers = [{ field = \"v\", address = 7, kind = \"input\", type = \"f32\" }, { field = \"on\", address = 1, kind = \"coil\" }]",
        );
        for line in [
            "  rack           /dev/ttyUSB1 at 9600 baud, 8E1, Modbus RTU every 10s, an answer within 1s\n",
            "unit 3 as \"rack-3\" in 2 requests: v (f32 at input 7), on (bool at coil 1)\n",
        ] {
            assert!(summary.contains(line), "{line}\n{summary}");
        }
    }

    #[test]
    fn the_summary_shows_no_secret() {
        let sink =
            "[sinks.c]\ntype = \"http\"\nurl = \"https://h/x?token=hunter2\"\nheaders = { A = \"hunter2\" }";
        let summary = summary_of(sink);
        assert!(summary.contains("https://h/x?…") && !summary.contains("hunter2"), "{summary}");
    }

    #[test]
    fn faults_are_counted_and_exit_with_two() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h.toml");
        std::fs::write(&path, "[stroe]\n[log]\nlevel = 3\n").unwrap();
        let complaint = complaint(&config::load(&path).unwrap_err());
        assert_eq!(complaint.lines().count(), 3, "{complaint}");
        assert!(complaint.ends_with("\n2 errors\n"), "{complaint}");
        let code = |path: &Path| run(path, &mut Vec::new()).unwrap();
        assert_eq!(code(&path), INVALID);
        assert_eq!(code(&folder.path().join("none.toml")), INVALID);
        std::fs::write(&path, "[agent]\nid = \"x\"\n").unwrap();
        assert_eq!(code(&path), VALID);
    }
}
