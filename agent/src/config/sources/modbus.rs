//! `type = "modbus"`: which devices are polled, and which of their registers mean what.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use super::port::port;
use crate::config::fault::Problem;
use crate::config::node::LONGEST;
use crate::config::payloads::is_name;
use crate::config::reader::{Given, Section, invalid, value_or};
use crate::source::modbus::{
    Bytes, Format, Kind, Number, Order, Read, Register, Scale, Settings, Words, wire_time,
};

/// The port of Modbus TCP (Modbus messaging on TCP/IP V1.0b, 3.1.3).
const DEFAULT_TCP_PORT: u16 = 502;
/// Shorter, and the agent does nothing but ask.
const LEAST_INTERVAL: Duration = Duration::from_millis(50);
/// Shorter, and no device could answer: 9 600 baud takes 13 ms for the shortest answer and its request.
const LEAST_TIMEOUT: Duration = Duration::from_millis(20);
/// Longer, and one device that is away holds up the others for too long.
const MOST_TIMEOUT: Duration = Duration::from_secs(60);
/// The last address of each space.
const LAST_ADDRESS: u64 = 65_535;

const READ_FORM: &str =
    "at least one table such as [[sources.rack.read]] with unit = 3 and registers = [ … ]";
const REGISTER_FORM: &str =
    "at least one table such as { field = \"voltage\", address = 0, kind = \"input\", type = \"f32\" }";
const NAME_FORM: &str = "1 to 256 bytes without control characters";
const KIND_FORM: &str = "\"input\", \"holding\", \"coil\" or \"discrete\"";
const TYPE_FORM: &str = "\"u16\", \"i16\", \"u32\", \"i32\", \"u64\", \"i64\", \"f32\", \"f64\", \"bool\" or \"text\", or bit = 0 to 15";

/// The settings of a source; `None` if it is too faulty to be one.
pub(super) fn modbus(name: &str, section: &Section<'_, '_>) -> Option<Settings> {
    let port = port(section, Some(DEFAULT_TCP_PORT)).map(|mut port| {
        if !section.has("baud") {
            port.baud = Settings::DEFAULT_BAUD;
        }
        port
    });
    let interval = section.duration("interval", LEAST_INTERVAL..=LONGEST);
    let timeout = section.duration("timeout", LEAST_TIMEOUT..=MOST_TIMEOUT);
    let reads = reads(name, section);
    let settings = Settings {
        name: name.to_owned(),
        port: port?,
        interval: interval.as_ref().map_or(Settings::DEFAULT_INTERVAL, |given| given.value),
        timeout: value_or(timeout, Settings::DEFAULT_TIMEOUT),
        reads,
    };
    if settings.is_rtu() {
        let baud = settings.port.baud;
        let round: Duration = settings.reads.iter().map(|read| wire_time(&read.registers, baud)).sum();
        // As it is shown.
        let round =
            Duration::from_millis(u64::try_from(round.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX));
        if settings.interval < round {
            let place = interval.map_or_else(|| section.place.clone(), |given| given.place);
            let interval = settings.interval;
            section.report.fault(&place, Problem::RoundTooLong { interval, round, baud });
        }
    }
    Some(settings)
}

/// What is read; what has no faults.
fn reads(source: &str, section: &Section<'_, '_>) -> Vec<Read> {
    section.require("read", READ_FORM);
    let Some(Given { value: items, place }) = section.list("read", READ_FORM) else { return Vec::new() };
    if items.is_empty() {
        section.report.fault(&place, Problem::Missing { expected: READ_FORM });
    }
    // 0 is for everybody and 248 to 255 are reserved on a line; behind a gateway or in a device of its own they mean something.
    let units = if section.has("url") { 0..=255 } else { 1..=247 };
    let read = |section: Section<'_, '_>| {
        section.require("unit", "the device's address on the line, such as unit = 3");
        let unit = section.number("unit", units.clone());
        let device = name_at(&section, "device");
        let registers = registers(&section);
        section.finish();
        let unit = u8::try_from(unit?.value).ok()?;
        let device = device.unwrap_or_else(|| format!("{source}-{unit}"));
        Some(Read { unit, device, registers })
    };
    items.into_iter().filter_map(|item| read(item.section(READ_FORM)?)).collect()
}

fn registers(section: &Section<'_, '_>) -> Vec<Register> {
    section.require("registers", REGISTER_FORM);
    let Some(Given { value: items, place }) = section.list("registers", REGISTER_FORM) else {
        return Vec::new();
    };
    if items.is_empty() {
        section.report.fault(&place, Problem::Missing { expected: REGISTER_FORM });
    }
    let mut fields = BTreeSet::new();
    let mut registers = Vec::with_capacity(items.len());
    for item in items {
        let Some(section) = item.section(REGISTER_FORM) else { continue };
        let register = register(&section);
        section.finish();
        let Some(register) = register else { continue };
        if !fields.insert(register.field.clone())
            && let Some(field) = section.item("field")
        {
            let text = format!("the field {:?}", register.field);
            field.report.fault(&field.place, Problem::Twice { text });
        }
        registers.push(register);
    }
    registers
}

fn register(section: &Section<'_, '_>) -> Option<Register> {
    section.require("field", NAME_FORM);
    section.require("address", "the first register, counted from 0");
    section.require("kind", KIND_FORM);
    let field = name_at(section, "field");
    let address = section.number("address", 0..=LAST_ADDRESS);
    let kinds = [Kind::Input, Kind::Holding, Kind::Coil, Kind::Discrete].map(|kind| (kind.name(), kind));
    let kind = section.choice("kind", KIND_FORM, &kinds);
    let format = format(section, kind.as_ref().map(|kind| kind.value));
    let address = address?;
    let register = Register {
        field: field?,
        kind: kind?.value,
        address: u16::try_from(address.value).ok()?,
        format: format?,
    };
    let last = address.value + u64::from(register.count()) - 1;
    if last > LAST_ADDRESS {
        let problem = Problem::BeyondLastAddress { last, most: LAST_ADDRESS };
        section.report.fault(&address.place, problem);
    }
    Some(register)
}

/// What is in a register, before it is known how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Truth,
    Text,
    Number(Number),
}

/// What is in a register of that kind; its keys are checked also if the kind is not known.
fn format(section: &Section<'_, '_>, kind: Option<Kind>) -> Option<Format> {
    let numbers = Number::ALL.map(|number| (number.name(), Type::Number(number)));
    let types: Vec<_> = numbers.into_iter().chain([("bool", Type::Truth), ("text", Type::Text)]).collect();
    let given_type = section.choice("type", TYPE_FORM, &types);
    let bit = section.number("bit", 0..=15);
    // Known, also where what is wrong elsewhere keeps it from being looked at.
    drop(section.item("byte_order"));
    let length = section.number("length", 1..=u64::from(Kind::Input.most()));
    let scale = section.float("scale");
    let offset = section.float("offset");
    if let Some(scale) = scale.as_ref().filter(|scale| scale.value == 0.0) {
        invalid(section.report, &scale.place, None, "a factor other than 0");
    }
    let pointless = |keys: &[&'static str], why| {
        for (key, item) in keys.iter().filter_map(|key| Some((*key, section.item(key)?))) {
            section.report.fault(&item.place, Problem::Pointless { key, why });
        }
    };
    let is_bits = kind.is_some_and(Kind::is_bits);
    let of_type = match (section.has("type"), section.has("bit")) {
        (true, _) => given_type?.value,
        (false, true) => Type::Truth,
        (false, false) if is_bits => Type::Truth,
        (false, false) => {
            section.require("type", TYPE_FORM);
            return None;
        }
    };
    if is_bits && of_type != Type::Truth {
        pointless(&["type"], "coils and discrete inputs are bits, so it is \"bool\"");
        return None;
    }
    match of_type {
        Type::Truth => {
            pointless(
                &["byte_order", "scale", "offset", "length"],
                "it is true or false; remove it, or set another type",
            );
            if is_bits {
                pointless(&["bit"], "coils and discrete inputs are bits themselves; remove it");
            }
            match bit {
                Some(bit) => Some(Format::Bit(u8::try_from(bit.value).ok()?)),
                None => Some(Format::Truth),
            }
        }
        Type::Text => {
            pointless(&["scale", "offset", "bit"], "it is text; remove it");
            section.require("length", "the length of the text in registers of two bytes, 1 to 125");
            let order = byte_order(section, 1)?;
            Some(Format::Text { registers: u16::try_from(length?.value).ok()?, bytes: order.bytes })
        }
        Type::Number(number) => {
            pointless(&["length"], "only text has one; a number is as long as its type");
            pointless(&["bit"], "it stands for true or false; remove it, or the type");
            let order = byte_order(section, number.registers())?;
            let is_scaled = section.has("scale") || section.has("offset");
            let scale = Scale::new(value_or(scale, 1.0), value_or(offset, 0.0));
            Some(Format::Number { number, order, scale: is_scaled.then_some(scale) })
        }
    }
}

/// The order of bytes in that many registers; `None` if it is faulty. `a` is the most significant byte.
fn byte_order(section: &Section<'_, '_>, registers: u16) -> Option<Order> {
    let order = |words, bytes| Order { words, bytes };
    let orders = [
        order(Words::BigFirst, Bytes::BigFirst),
        order(Words::LittleFirst, Bytes::BigFirst),
        order(Words::BigFirst, Bytes::LittleFirst),
        order(Words::LittleFirst, Bytes::LittleFirst),
    ];
    let [big, word_swapped, byte_swapped, little] = orders;
    let short = [("ab", big), ("ba", byte_swapped)];
    let long = [("abcd", big), ("cdab", word_swapped), ("badc", byte_swapped), ("dcba", little)];
    let longest =
        [("abcdefgh", big), ("ghefcdab", word_swapped), ("badcfehg", byte_swapped), ("hgfedcba", little)];
    let (choices, expected) = match registers {
        1 => (short.to_vec(), "\"ab\" or \"ba\", as it is 16 bits"),
        2 => (long.to_vec(), "\"abcd\", \"cdab\", \"badc\" or \"dcba\""),
        _ => (
            longest.into_iter().chain(long).collect(),
            "\"abcdefgh\", \"ghefcdab\", \"badcfehg\" or \"hgfedcba\" (in short \"abcd\", \"cdab\", \"badc\" or \"dcba\")",
        ),
    };
    match section.choice("byte_order", expected, &choices) {
        Some(order) => Some(order.value),
        None if section.has("byte_order") => None,
        None => Some(Order::default()),
    }
}

/// The name at `key`, or `None`, with a fault if there is something else.
fn name_at(section: &Section<'_, '_>, key: &'static str) -> Option<String> {
    let given = section.text(key, NAME_FORM)?;
    if !is_name(given.value) {
        invalid(section.report, &given.place, None, NAME_FORM);
        return None;
    }
    Some(given.value.to_owned())
}
