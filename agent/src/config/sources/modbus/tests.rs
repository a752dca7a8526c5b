//! What a `modbus` source accepts, refuses, and says.

use std::path::Path;
use std::time::Duration;

use crate::config::tests::{Bench, check, config, faults_on};
use crate::source::modbus::{Bytes, Format, Kind, Number, Order, Scale, Settings, Words};
use crate::source::port::{Parity, Place, StopBits};

/// A source with this port, these lines, and this read.
fn source(port: &str, read: &str) -> String {
    format!("[sources.r]\ntype = \"modbus\"\n{port}\n[[sources.r.read]]\n{read}\n")
}

const PORT: &str = "path = \"/dev/ttyUSB1\"";
const REGISTER: &str = "{ field = \"v\", address = 0, kind = \"input\", type = \"f32\" }";

/// A read of one register.
fn reads(register: &str) -> String {
    source(PORT, &format!("unit = 3\nregisters = [{register}]"))
}

fn settings(text: &str) -> Settings {
    match config(text).sources.remove(0) {
        crate::source::Settings::Modbus(settings) => settings,
        other => panic!("{other:?}"),
    }
}

fn format(register: &str) -> Format {
    let text = format!("{{ field = \"v\", address = 7, {register} }}");
    settings(&reads(&text)).reads[0].registers[0].format
}

/// A register with these keys has one fault, in line 6, at this key.
fn check_register(keys: &str, key: &str, contains: &str) {
    let text = reads(&format!("{{ field = \"v\", address = 7, {keys} }}"));
    let faults = faults_on(&Bench::named(), &text);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    let path = format!("sources.r.read[0].registers[0]{}{key}: ", if key.is_empty() { "" } else { "." });
    assert!(faults[0].starts_with("6:") && faults[0].contains(&path), "{}", faults[0]);
    assert!(faults[0].contains(contains), "{}", faults[0]);
}

#[test]
fn every_key_reaches_its_setting() {
    let text = "[sources.rack]\ntype = \"modbus\"\npath = \"/dev/ttyUSB1\"\nbaud = 19200\nparity = \"even\"\n\
         stop_bits = 2\ninterval = \"5s\"\ntimeout = \"250ms\"\n[[sources.rack.read]]\nunit = 3\ndevice = \"meter-3\"\n\
         registers = [ { field = \"voltage\", address = 0, kind = \"input\", type = \"f32\", byte_order = \"cdab\", scale = 0.1, \
         offset = -2 }, { field = \"door\", address = 0x0A, kind = \"coil\" } ]\n[[sources.rack.read]]\nunit = 4\n\
         registers = [{ field = \"alarm\", address = 65535, kind = \"holding\", bit = 3 }]\n";
    let settings = settings(text);
    assert_eq!(settings.port.at, Place::Path(Path::new("/dev/ttyUSB1").to_owned()));
    assert_eq!(
        (settings.port.baud, settings.port.parity, settings.port.stop_bits),
        (19_200, Parity::Even, StopBits::Two)
    );
    assert_eq!((settings.interval, settings.timeout), (Duration::from_secs(5), Duration::from_millis(250)));
    let [meter, other] = &settings.reads[..] else { panic!("{:?}", settings.reads) };
    assert_eq!((meter.unit, meter.device.as_str(), other.device.as_str()), (3, "meter-3", "rack-4"));
    let [voltage, door] = &meter.registers[..] else { panic!("{:?}", meter.registers) };
    let order = Order { words: Words::LittleFirst, bytes: Bytes::BigFirst };
    let scale = Some(Scale::new(0.1, -2.0));
    assert_eq!(voltage.format, Format::Number { number: Number::F32, order, scale });
    assert_eq!((door.kind, door.address, door.format), (Kind::Coil, 10, Format::Truth));
    assert_eq!(other.registers[0].format, Format::Bit(3));
}

#[test]
fn what_is_not_said_has_its_default() {
    let rtu = settings(&reads(REGISTER));
    assert_eq!(
        (rtu.port.baud, rtu.interval, rtu.timeout),
        (9_600, Duration::from_secs(10), Duration::from_secs(1))
    );
    let tcp = source("url = \"tcp://plc.example\"", &format!("unit = 255\nregisters = [{REGISTER}]"));
    let tcp = settings(&tcp);
    assert_eq!(tcp.port.at, Place::Tcp { host: "plc.example".to_owned(), port: 502 });
    assert!(!tcp.is_rtu() && rtu.is_rtu());
    assert_eq!(
        format("kind = \"holding\", type = \"u16\""),
        Format::Number { number: Number::U16, order: Order::default(), scale: None }
    );
}

#[test]
fn orders_are_named_by_their_bytes() {
    let check = |number: &str, name: &str, words, bytes| {
        let Format::Number { order, .. } =
            format(&format!("kind = \"input\", type = \"{number}\", byte_order = \"{name}\""))
        else {
            panic!()
        };
        assert_eq!(order, Order { words, bytes }, "{name}");
    };
    check("u16", "ba", Words::BigFirst, Bytes::LittleFirst);
    check("i32", "badc", Words::BigFirst, Bytes::LittleFirst);
    check("u32", "dcba", Words::LittleFirst, Bytes::LittleFirst);
    check("f64", "ghefcdab", Words::LittleFirst, Bytes::BigFirst);
    check("f64", "cdab", Words::LittleFirst, Bytes::BigFirst);
    let text = format("kind = \"input\", type = \"text\", length = 4, byte_order = \"ba\"");
    assert_eq!(text, Format::Text { registers: 4, bytes: Bytes::LittleFirst });
}

#[test]
fn the_port_is_checked() {
    let read = format!("unit = 3\nregisters = [{REGISTER}]");
    let with = |port: &str| source(port, &read);
    check(&with(""), "1:1: sources.r.path: is missing", "or url = \"tcp://host:port\"");
    check(&with("path = \"ttyUSB1\""), "3:8: sources.r.path: \"ttyUSB1\"", "such as");
    check(&with("url = \"http://h\""), "3:7: sources.r.url: \"http://h\"", "tcp://192.168.1.20");
    check(&with("url = \"tcp://h\"\npath = \"/dev/ttyS0\""), "4:8: sources.r.path: ", "remove one of them");
    check(&with("url = \"tcp://h\"\nbaud = 9600"), "4:8: sources.r.baud: ", "the server at the url");
    check(&with(&format!("{PORT}\nbuad = 9600")), "4:1: sources.r.buad: ", "did you mean \"baud\"?");
    let twice = format!("{}{}", with(PORT), with(PORT).replace("sources.r", "sources.s"));
    check(&twice, "9:8: sources.s.path: /dev/ttyUSB1 is taken by sources.r", "another port");
    config(&format!(
        "{0}{1}",
        with("url = \"tcp://h\""),
        with("url = \"tcp://h\"").replace("sources.r", "sources.s")
    ));
}

#[test]
fn times_are_checked() {
    let with = |line: &str, register: &str| {
        source(&format!("{PORT}\n{line}"), &format!("unit = 3\nregisters = [{register}]"))
    };
    check(
        &with("interval = \"10ms\"", REGISTER),
        "4:12: sources.r.interval: \"10ms\" is out of range",
        "50ms to",
    );
    check(
        &with("timeout = \"5m\"", REGISTER),
        "4:11: sources.r.timeout: \"5m\" is out of range",
        "20ms to 1m",
    );
    check(&with("interval = 5", REGISTER), "4:12: sources.r.interval: 5 is a number", "a duration");
    let far = "{ field = \"a\", address = 0, kind = \"input\", type = \"text\", length = 125 }, \
               { field = \"b\", address = 1000, kind = \"input\", type = \"u16\" }";
    // 26 bytes of frames and 252 of data, ten bits each, at 9 600 baud.
    check(
        &with("interval = \"250ms\"", far),
        "4:12: sources.r.interval: interval is 250ms, and what is read takes 290ms on the wire at 9600 baud",
        "raise interval or baud",
    );
    config(&with("interval = \"300ms\"", far));
}

#[test]
fn reads_are_checked() {
    let read = |lines: &str| source(PORT, lines);
    let registers = format!("registers = [{REGISTER}]");
    let none = format!("[sources.r]\ntype = \"modbus\"\n{PORT}\n");
    check(&none, "1:1: sources.r.read: is missing", "at least one table");
    check(&format!("{none}read = []\n"), "4:8: sources.r.read: is missing", "at least one table");
    check(&read(&registers), "4:1: sources.r.read[0].unit: is missing", "unit = 3");
    check(&read(&format!("unit = 0\n{registers}")), "5:8: sources.r.read[0].unit: 0 is out", "1 to 247");
    check(&read(&format!("unit = 248\n{registers}")), "5:8: sources.r.read[0].unit: 248 is out", "1 to 247");
    check(&read(&format!("unit = \"3\"\n{registers}")), "5:8: sources.r.read[0].unit: ", "a whole number");
    check(&read(&format!("unit = 3\ndevice = \"\"\n{registers}")), "6:10: sources.r.read[0].device: ", "256");
    check(&read("unit = 3"), "4:1: sources.r.read[0].registers: is missing", "at least one table");
    check(&read("unit = 3\nregisters = []"), "6:13: sources.r.read[0].registers: is missing", "at least");
    check(
        &read(&format!("unit = 3\n{registers}\ndevise = \"x\"")),
        "7:1: sources.r.read[0].devise: ",
        "did you mean \"device\"?",
    );
    let twice =
        format!("unit = 3\nregisters = [{REGISTER}, {}]", REGISTER.replace("address = 0", "address = 2"));
    check(&read(&twice), "6:", "registers[1].field: the field \"v\" stands here twice");
    let tcp = |unit: u32| source("url = \"tcp://h\"", &format!("unit = {unit}\n{registers}"));
    config(&tcp(0));
    config(&tcp(255));
    check(&tcp(256), "5:8: sources.r.read[0].unit: 256 is out", "0 to 255");
}

#[test]
fn registers_are_checked() {
    let missing = |register: &str, key: &str| {
        let path = format!("sources.r.read[0].registers[0].{key}: is missing");
        check(&reads(register), "6:14: ", &path);
    };
    missing("{ address = 0, kind = \"coil\" }", "field");
    missing("{ field = \"v\", kind = \"coil\" }", "address");
    missing("{ field = \"v\", address = 0 , bit = 1 }", "kind");
    missing("{ field = \"v\", address = 0, kind = \"input\" }", "type");
    check_register("kind = \"inptu\", type = \"u16\"", "kind", "did you mean \"input\"?");
    check_register("kind = \"input\", type = \"F32\"", "type", "did you mean \"f32\"?");
    check_register(
        "kind = \"input\", type = \"u16\", byteorder = \"ab\"",
        "byteorder",
        "did you mean \"byte_order\"?",
    );
    check_register(
        "kind = \"input\", type = \"u16\", byte_order = \"abcd\"",
        "byte_order",
        "as it is 16 bits",
    );
    check_register(
        "kind = \"input\", type = \"u32\", byte_order = \"CDAB\"",
        "byte_order",
        "did you mean \"cdab\"?",
    );
    check_register(
        "kind = \"input\", type = \"u32\", byte_order = \"ab\"",
        "byte_order",
        "\"abcd\", \"cdab\"",
    );
    check_register("kind = \"input\", bit = 16", "bit", "0 to 15");
    check_register("kind = \"input\", bit = 1, byte_order = \"ab\"", "byte_order", "true or false");
    check_register("kind = \"input\", type = \"bool\", scale = 2", "scale", "true or false");
    check_register("kind = \"input\", type = \"u16\", bit = 1", "bit", "remove it, or the type");
    check_register("kind = \"input\", type = \"u16\", length = 1", "length", "only text has one");
    check_register("kind = \"input\", type = \"text\"", "length", "is missing");
    check_register("kind = \"input\", type = \"text\", length = 126", "length", "1 to 125");
    check_register("kind = \"input\", type = \"text\", length = 2, offset = 1", "offset", "it is text");
    check_register("kind = \"coil\", type = \"u16\"", "type", "are bits, so it is \"bool\"");
    check_register("kind = \"discrete\", bit = 1", "bit", "bits themselves");
    check_register("kind = \"coil\", byte_order = \"ab\"", "byte_order", "true or false");
    check_register("kind = \"input\", type = \"u16\", scale = 0", "scale", "other than 0");
    check_register("kind = \"input\", type = \"u16\", scale = inf", "scale", "a number such as 0.1");
    check_register("kind = \"input\", type = \"u16\", scale = 1e999", "scale", "a number such as 0.1");
    check_register("kind = \"input\", type = \"u16\", offset = \"1\"", "offset", "expected a number");
    let beyond = REGISTER.replace("address = 0", "address = 65535");
    check(&reads(&beyond), "6:", "address: it ends at address 65536, and the last there is is 65535");
    check(&reads(&REGISTER.replace("address = 0", "address = 65536")), "6:", "0 to 65535");
    check(&reads(&REGISTER.replace("\"v\"", "\"\\u0007\"")), "6:", "field: ");
    config(&reads(&REGISTER.replace("address = 0", "address = 65534")));
}
