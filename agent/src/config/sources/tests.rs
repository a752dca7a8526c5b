//! The keys of sources on serial ports, and each of their faults.

use std::time::Duration;

use crate::config::tests::{self, config};
use crate::ingest::settings::Payload;
use crate::source::port::{DataBits, FlowControl, Parity, Place, StopBits};
use crate::source::serial::{Protocol, Settings};
use crate::source::{self, port};

/// A serial source with `keys`, each in a line of its own.
fn with(keys: &str) -> String {
    format!("[sources.press]\ntype = \"serial\"\n{keys}\n")
}

fn serial(keys: &str) -> Settings {
    match config(&with(keys)).sources.remove(0) {
        source::Settings::Serial(settings) => settings,
        other => panic!("{other:?}"),
    }
}

/// `keys` have one fault, at `line` of them and `column`; it says `contains`. Line 0: of the table as a whole.
fn check(keys: &str, (line, column): (usize, usize), contains: &str) {
    let line = if line == 0 { 1 } else { line + 2 };
    tests::check(&with(keys), &format!("{line}:{column}: sources.press"), contains);
}

const BRIDGE: &str = "path = \"/dev/ttyUSB0\"\nprotocol = \"bridge\"\n";
const LINES: &str = "path = \"/dev/ttyUSB0\"\nprotocol = \"lines\"\n";

#[test]
fn a_line_has_the_usual_defaults() {
    let settings = serial(BRIDGE);
    assert_eq!(settings.port, port::Settings::at(Place::Path("/dev/ttyUSB0".into())));
    assert_eq!((settings.port.baud, settings.port.stop_bits), (115_200, StopBits::One));
    assert_eq!(settings.protocol, Protocol::Bridge { device: None });
    assert_eq!(settings.silent_after, Duration::from_secs(90));
    let lines = serial(LINES);
    let Protocol::Lines(subscription) = lines.protocol else { panic!("{lines:?}") };
    assert_eq!((&subscription.payload, &subscription.device), (&Payload::Json, &None));
    assert_eq!((lines.silent_after, lines.max_payload_bytes), (Duration::from_secs(600), 64 << 10));
}

#[test]
fn each_key_of_a_line_counts() {
    let keys = "baud = 9600\ndata_bits = 7\nparity = \"even\"\nstop_bits = 2\nflow_control = \"hardware\"\nmax_rate = 5\nsilent_after = \"0s\"";
    let settings = serial(&format!("{BRIDGE}{keys}\ndevice = \"press-7\""));
    let expected = port::Settings {
        at: Place::Path("/dev/ttyUSB0".into()),
        baud: 9_600,
        data_bits: DataBits::Seven,
        parity: Parity::Even,
        stop_bits: StopBits::Two,
        flow_control: FlowControl::Hardware,
    };
    assert_eq!(settings.port, expected);
    assert_eq!((settings.max_rate, settings.silent_after), (5, Duration::ZERO));
    assert_eq!(settings.protocol, Protocol::Bridge { device: Some("press-7".into()) });
    let lines = serial(&format!("{LINES}payload = \"value\"\ndevice = \"scale\"\nmax_payload = \"1KiB\""));
    let Protocol::Lines(subscription) = lines.protocol else { panic!("{lines:?}") };
    assert_eq!(subscription.device_name.as_deref(), Some("scale"));
    assert_eq!(lines.max_payload_bytes, 1_024);
    let server = serial("url = \"tcp://[::1]:2000\"\nprotocol = \"bridge\"");
    assert_eq!(server.port.at, Place::Tcp { host: "::1".to_owned(), port: 2_000 });
    assert_eq!(server.port.at.to_string(), "tcp://[::1]:2000");
}

#[test]
fn faults_of_lines_are_told_where_they_are() {
    let missing = "is missing; expected the path of a serial port";
    check("protocol = \"bridge\"", (0, 1), missing);
    check("path = \"/dev/ttyUSB0\"", (0, 1), "is missing; expected protocol = \"bridge\"");
    check("path = \"ttyUSB0\"\nprotocol = \"bridge\"", (1, 8), "expected the path of a serial port");
    check("path = 7\nprotocol = \"bridge\"", (1, 8), "is a number; expected the path");
    check(&BRIDGE.replace("bridge", "brigde"), (2, 12), "did you mean \"bridge\"?");
    check(&format!("{BRIDGE}baud = 0"), (3, 8), "expected 1 to 16000000");
    check(&format!("{BRIDGE}data_bits = 9"), (3, 13), "expected 5 to 8");
    check(&format!("{BRIDGE}parity = \"evn\""), (3, 10), "did you mean \"even\"?");
    check(&format!("{BRIDGE}flow_control = \"xon\""), (3, 16), "expected \"none\", \"software\"");
    check(&format!("{BRIDGE}device = \"/id\""), (3, 10), "a node says its own name");
    check(&format!("{BRIDGE}device = \"\""), (3, 10), "a name of 1 to 256 bytes");
    check(&format!("{BRIDGE}payload = \"json\""), (3, 1), "unknown key \"payload\"");
    check(&format!("{BRIDGE}boud = 9600"), (3, 1), "did you mean \"baud\"?");
    check(&format!("{LINES}payload = \"csv\""), (0, 1), "is missing; expected a list of the names");
    let server = "url = \"tcp://10.0.0.1:2000\"\nprotocol = \"bridge\"\n";
    check(&server.replace(":2000", ""), (1, 7), "expected a URL such as \"tcp://");
    check(&server.replace("tcp", "http"), (1, 7), "expected a URL such as \"tcp://");
    check(&format!("{server}baud = 9600"), (3, 8), "the server at the url sets the port");
    check(&format!("{server}path = \"/dev/ttyUSB0\""), (3, 8), "remove one of them");
}

#[test]
fn a_port_belongs_to_one_source() {
    let second = "[sources.other]\ntype = \"serial\"\npath = \"/dev/ttyUSB0\"\nprotocol = \"lines\"\n";
    let text = format!("{}{second}", with(BRIDGE));
    tests::check(&text, "8:8: sources.other.path", "/dev/ttyUSB0 is taken by sources.press");
    let dir = tempfile::TempDir::new().unwrap();
    let (port, link) = (dir.path().join("ttyUSB0"), dir.path().join("by-id"));
    std::fs::write(&port, "").unwrap();
    std::os::unix::fs::symlink(&port, &link).unwrap();
    let second = second.replace("/dev/ttyUSB0", link.to_str().unwrap());
    let text = format!("{}{second}", with(&BRIDGE.replace("/dev/ttyUSB0", port.to_str().unwrap())));
    tests::check(&text, "8:8: sources.other.path", "by-id is taken by sources.press");
}

#[test]
fn so_does_the_line_behind_a_serial_server() {
    let source =
        |name: &str, url: &str, more: &str| format!("[sources.{name}]\n{more}\nurl = \"tcp://{url}\"\n");
    let serial = |name: &str, url: &str| source(name, url, "type = \"serial\"\nprotocol = \"bridge\"");
    let registers = "registers = [{ field = \"x\", address = 0, kind = \"input\", type = \"u16\" }]";
    let read = format!("type = \"modbus\"\nread = [{{ unit = 1, {registers} }}]");
    let modbus = |name: &str, url: &str| source(name, url, &read);
    let taken = "is taken by sources.a; two that read one line take each other's bytes";
    for (one, other) in [
        ("10.0.0.1:2000", "10.0.0.1:2000"),
        ("Rack.local:2000", "rack.local.:2000"),
        ("localhost:2000", "127.0.0.1:2000"),
        ("[::1]:2000", "[0:0:0:0:0:0:0:1]:2000"),
    ] {
        tests::check(&(serial("a", one) + &serial("b", other)), "8:7: sources.b.url", taken);
    }
    tests::check(&(modbus("a", "h:2000") + &serial("b", "h:2000")), "8:7: sources.b.url", taken);
    tests::check(
        &(serial("a", "h") + &modbus("b", "h:502")).replacen("h\"", "h:502\"", 1),
        "8:7: sources.b.url",
        taken,
    );
    // Another port is another line, and a Modbus server tells its clients apart.
    config(&(serial("a", "h:2000") + &serial("b", "h:2001") + &modbus("c", "h") + &modbus("d", "h:502")));
}

#[test]
fn the_name_of_a_device_is_one_that_people_can_read() {
    check(&format!("{BRIDGE}device = \"a\\u0007b\""), (3, 10), "1 to 256 bytes without control characters");
    check(&format!("{LINES}payload = \"value\"\ndevice = \"a\\nb\""), (4, 10), "without control characters");
}
