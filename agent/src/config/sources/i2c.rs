//! `type = "i2c"`: sensors on a bus of the gateway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::fault::{Place, Problem};
use crate::config::nearest::nearest;
use crate::config::payloads::is_name;
use crate::config::reader::{Given, Item, Section, invalid, value_or};
use crate::source::Settings;
use crate::source::i2c::{self, Driver, Inputs, Range, Sensor};

const BUS_FORM: &str = "an absolute path such as \"/dev/i2c-1\"";
const SENSORS_FORM: &str = "a list of tables such as { driver = \"bme280\", address = 0x76 }";
const DRIVER_FORM: &str = "one of \"bme280\", \"bmp280\", \"sht3x\", \"lm75\", \"ads1015\" and \"ads1115\"";
const ADDRESS_FORM: &str = "an address of seven bits, 0x08 to 0x77";
const DEVICE_FORM: &str = "a name of 1 to 256 bytes without control characters";
const RANGE_FORM: &str = "one of \"6.144V\", \"4.096V\", \"2.048V\", \"1.024V\", \"0.512V\" and \"0.256V\"";
const CHANNELS_FORM: &str = "a list of inputs, each 0 to 3, such as [0, 1]";
/// A measurement takes up to some tenths of a second; the sampler counts milliseconds in 32 bits.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
const MOST_INTERVAL: Duration = Duration::from_secs(86_400);
/// Those with ten bits included, to tell what is wrong with a larger one than seven bits hold.
const MOST_ADDRESS: u64 = 0x3FF;
const SEVEN_BITS: std::ops::RangeInclusive<u64> = 0x08..=0x77;

/// One source; `None` if it is too faulty to be one.
pub(super) fn source(name: &str, section: &Section<'_, '_>) -> Option<i2c::Settings> {
    section.require("bus", BUS_FORM);
    let bus = section.text("bus", BUS_FORM).and_then(|given| bus(section, &given));
    let interval = section.duration("interval", LEAST_INTERVAL..=MOST_INTERVAL);
    let interval = value_or(interval, i2c::Settings::DEFAULT_INTERVAL);
    section.require("sensors", SENSORS_FORM);
    let items = section.list("sensors", SENSORS_FORM)?;
    if items.value.is_empty() {
        invalid(section.report, &items.place, None, SENSORS_FORM);
    }
    let mut taken = Taken::default();
    let sensors = items.value.into_iter().filter_map(|item| sensor(name, item, interval, &mut taken));
    let sensors = sensors.collect();
    Some(i2c::Settings { name: name.to_owned(), bus: bus?, sensors })
}

fn bus(section: &Section<'_, '_>, given: &Given<&str>) -> Option<PathBuf> {
    let path = Path::new(given.value);
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    let number = given.value.trim_start_matches("dev/").trim_start_matches("i2c").trim_start_matches('-');
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    invalid(section.report, &given.place, is_number.then(|| format!("/dev/i2c-{number}")), BUS_FORM);
    None
}

/// What a source has already.
#[derive(Default)]
struct Taken {
    /// By which device each address is.
    addresses: BTreeMap<u8, String>,
    devices: Vec<String>,
}

fn sensor(source: &str, item: Item<'_, '_>, interval: Duration, taken: &mut Taken) -> Option<Sensor> {
    let section = item.section(SENSORS_FORM)?;
    section.require("driver", DRIVER_FORM);
    let driver = section.text("driver", DRIVER_FORM).and_then(|given| driver(&section, &given));
    section.require("address", ADDRESS_FORM);
    let given = section.number("address", 0..=MOST_ADDRESS);
    let address = given.as_ref().and_then(|given| address(&section, given, driver.as_ref()));
    let device = section.text("device", DEVICE_FORM).and_then(|given| device(&section, &given));
    let own = section.duration("interval", LEAST_INTERVAL..=MOST_INTERVAL);
    section.finish();

    let (driver, address) = (driver?, address?);
    let place = |key| section.item(key).map_or_else(|| section.place.clone(), |item| item.place);
    let device = device.unwrap_or_else(|| i2c::Settings::default_device(source, &driver, address));
    if let Some(other) = taken.addresses.get(&address) {
        let problem = Problem::SensorAddressTaken { address, other: format!("{other:?}") };
        section.report.fault(&place("address"), problem);
    } else if taken.devices.contains(&device) {
        section.report.fault(&place("device"), Problem::Twice { text: format!("the device {device:?}") });
    }
    taken.addresses.entry(address).or_insert_with(|| device.clone());
    taken.devices.push(device.clone());
    Some(Sensor { driver, address, device, interval: value_or(own, interval) })
}

/// The driver with its settings, or the one that was probably meant, so that the rest can be checked too.
fn driver(section: &Section<'_, '_>, given: &Given<&str>) -> Option<Driver> {
    const NAMES: [&str; 6] = ["bme280", "bmp280", "sht3x", "lm75", "ads1015", "ads1115"];
    let of_name = |name: &str| match name {
        "bme280" => Some(Driver::Bme280),
        "bmp280" => Some(Driver::Bmp280),
        "sht3x" => Some(Driver::Sht3x),
        "lm75" => Some(Driver::Lm75),
        "ads1015" => Some(Driver::Ads1015(inputs(section))),
        "ads1115" => Some(Driver::Ads1115(inputs(section))),
        _ => None,
    };
    of_name(given.value).or_else(|| {
        // Single chips of a family that has one driver.
        let near = match given.value.to_ascii_lowercase().as_str() {
            "sht30" | "sht31" | "sht35" => Some("sht3x".to_owned()),
            "tmp75" | "tmp102" | "lm75a" | "lm75b" | "ds1775" => Some("lm75".to_owned()),
            other => nearest(other, NAMES),
        };
        let driver = near.as_deref().and_then(of_name);
        invalid(section.report, &given.place, near, DRIVER_FORM);
        driver
    })
}

fn inputs(section: &Section<'_, '_>) -> Inputs {
    let range = value_or(section.choice("range", RANGE_FORM, &Range::NAMES), Range::default());
    let Some(list) = section.list("channels", CHANNELS_FORM) else {
        return Inputs { range, ..Inputs::default() };
    };
    if list.value.is_empty() {
        invalid(section.report, &list.place, None, CHANNELS_FORM);
    }
    let mut read = [false; 4];
    for given in list.value.into_iter().filter_map(|item| item.number(0..=3)) {
        let Some(input) = usize::try_from(given.value).ok().and_then(|input| read.get_mut(input)) else {
            continue;
        };
        if std::mem::replace(input, true) {
            let text = section.report.shown(&given.place);
            section.report.fault(&given.place, Problem::Twice { text });
        }
    }
    Inputs { range, read }
}

/// An address that the chip can have; without a driver, that any can.
fn address(section: &Section<'_, '_>, given: &Given<u64>, driver: Option<&Driver>) -> Option<u8> {
    let in_driver = |number: u64| {
        let of = |driver: &Driver| driver.addresses().iter().any(|address| u64::from(*address) == number);
        driver.map_or_else(|| SEVEN_BITS.contains(&number), of)
    };
    if in_driver(given.value) {
        return u8::try_from(given.value).ok();
    }
    let expected = driver.map_or_else(
        || ADDRESS_FORM.to_owned(),
        |driver| {
            let all: Vec<String> =
                driver.addresses().iter().map(|address| format!("{address:#04x}")).collect();
            format!("an address that this chip ({}) can have: {}", driver.name(), all.join(", "))
        },
    );
    // Some data sheets tell the address with the read bit; and 76 is easily written for 0x76.
    let as_hex = u64::from_str_radix(&given.value.to_string(), 16).unwrap_or(0);
    let meant = [as_hex, given.value / 2].into_iter().find(|meant| driver.is_some() && in_driver(*meant));
    invalid(section.report, &given.place, meant.map(|meant| format!("{meant:#04x}")), expected);
    None
}

fn device(section: &Section<'_, '_>, given: &Given<&str>) -> Option<String> {
    let name = given.value;
    if !is_name(name) {
        invalid(section.report, &given.place, None, DEVICE_FORM);
        return None;
    }
    Some(name.to_owned())
}

/// Reports sensors at one address of one bus, in several sources.
pub(super) fn check_together(sources: &[(Given<Settings>, &Section<'_, '_>)]) {
    let mut taken: BTreeMap<(&Path, u8), (&str, &str)> = BTreeMap::new();
    for (source, section) in sources {
        let Settings::I2c(settings) = &source.value else { continue };
        for sensor in &settings.sensors {
            let at = (settings.bus.as_path(), sensor.address);
            let this = (settings.name.as_str(), sensor.device.as_str());
            match taken.get(&at) {
                // Within one source it was reported where it stands.
                Some((other, _)) if *other == settings.name => {}
                Some((other, device)) => {
                    let other = format!("{device:?} of sources.{other}");
                    let place: Place =
                        section.item("sensors").map_or_else(|| source.place.clone(), |item| item.place);
                    section
                        .report
                        .fault(&place, Problem::SensorAddressTaken { address: sensor.address, other });
                }
                None => {
                    taken.insert(at, this);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::config::tests::Bench;

    const HEAD: &str = "[sources.board]\ntype = \"i2c\"\nbus = \"/dev/i2c-1\"\n";

    fn settings(text: &str) -> i2c::Settings {
        let loaded = parse(text, "h", &Bench::named()).unwrap_or_else(|faults| panic!("{faults}"));
        let Some(Settings::I2c(settings)) = loaded.config.sources.into_iter().next() else { panic!() };
        settings
    }

    /// The faults of `text`, without the file's name.
    fn faults(text: &str) -> Vec<String> {
        let faults = parse(text, "h", &Bench::named()).map(|loaded| loaded.config).unwrap_err().to_string();
        faults.lines().map(|line| line.strip_prefix("h:").unwrap().to_owned()).collect()
    }

    /// These sensors, in line 4, have this one fault.
    fn check(sensors: &str, expected: &str) {
        let faults = faults(&format!("{HEAD}sensors = [{sensors}]"));
        assert!(faults.len() == 1 && faults[0].starts_with(expected), "{faults:#?}\n{expected}");
    }

    #[test]
    fn sensors_are_as_they_were_written() {
        let minimal = settings(&format!(
            "{HEAD}sensors = [{{ driver = \"bme280\", address = 0x76 }}, {{ driver = \"ads1115\", address = 72 }}]"
        ));
        assert_eq!((minimal.name.as_str(), minimal.bus.as_path()), ("board", Path::new("/dev/i2c-1")));
        let [climate, voltages] = &minimal.sensors[..] else { panic!("{minimal:?}") };
        assert_eq!(
            (&climate.driver, climate.address, climate.device.as_str()),
            (&Driver::Bme280, 0x76, "board-bme280-76")
        );
        assert_eq!(climate.interval, i2c::Settings::DEFAULT_INTERVAL);
        assert_eq!((&voltages.driver, voltages.address), (&Driver::Ads1115(Inputs::default()), 0x48));

        let full = settings(&format!(
            "{HEAD}interval = \"1m\"\n[[sources.board.sensors]]\ndriver = \"ads1015\"\naddress = 0x4b\ndevice = \"tank 1\"\n\
             interval = \"250ms\"\nrange = \"4.096V\"\nchannels = [3, 0]\n\
             [[sources.board.sensors]]\ndriver = \"lm75\"\naddress = 0x4a\n"
        ));
        let inputs = Inputs { range: Range::V4_096, read: [true, false, false, true] };
        let tank = Sensor {
            driver: Driver::Ads1015(inputs),
            address: 0x4B,
            device: "tank 1".to_owned(),
            interval: Duration::from_millis(250),
        };
        assert_eq!(full.sensors[0], tank);
        assert_eq!(full.sensors[1].interval, Duration::from_secs(60), "that of the source");
    }

    #[test]
    fn every_fault_of_a_sensor_has_its_place() {
        let bme = "driver = \"bme280\"";
        check(
            "{ driver = \"bme20\", address = 0x76 }",
            "4:23: sources.board.sensors[0].driver: \"bme20\" is not understood; did you mean \"bme280\"?",
        );
        check(
            "{ driver = \"SHT31\", address = 0x44 }",
            "4:23: sources.board.sensors[0].driver: \"SHT31\" is not understood; did you mean \"sht3x\"?",
        );
        check(
            "{ driver = \"dht22\", address = 0x44 }",
            "4:23: sources.board.sensors[0].driver: \"dht22\" is not understood; expected one of \"bme280\"",
        );
        check("{ address = 0x44 }", "4:12: sources.board.sensors[0].driver: is missing; expected one of");
        check(
            &format!("{{ {bme} }}"),
            "4:12: sources.board.sensors[0].address: is missing; expected an address of seven bits, 0x08 to 0x77",
        );
        check(
            &format!("{{ {bme}, address = 0x48 }}"),
            "4:43: sources.board.sensors[0].address: 0x48 is not understood; expected an address that this chip (bme280) can have: 0x76, 0x77",
        );
        check(
            &format!("{{ {bme}, address = 76 }}"),
            "4:43: sources.board.sensors[0].address: 76 is not understood; did you mean \"0x76\"?",
        );
        check(
            &format!("{{ {bme}, address = 0xEE }}"),
            "4:43: sources.board.sensors[0].address: 0xEE is not understood; did you mean \"0x77\"?",
        );
        check(
            &format!("{{ {bme}, address = 0x80 }}"),
            "4:43: sources.board.sensors[0].address: 0x80 is not understood; expected an address that",
        );
        check(
            &format!("{{ {bme}, address = \"0x76\" }}"),
            "4:43: sources.board.sensors[0].address: \"0x76\" is a string; expected a whole number",
        );
        check(
            &format!("{{ {bme}, address = -1 }}"),
            "4:43: sources.board.sensors[0].address: -1 is out of range",
        );
        check(
            &format!("{{ {bme}, address = 0x76, interval = \"1ms\" }}"),
            "4:60: sources.board.sensors[0].interval: \"1ms\" is out of range; expected 100ms to 1d",
        );
        check(
            &format!("{{ {bme}, address = 0x76, device = \"\" }}"),
            "4:58: sources.board.sensors[0].device: \"\" is not understood; expected a name",
        );
        check(
            &format!("{{ {bme}, address = 0x76, adress = 1 }}"),
            "4:49: sources.board.sensors[0].adress: unknown key \"adress\"; did you mean \"address\"?",
        );
        check(
            &format!("{{ {bme}, address = 0x76, range = \"4.096V\" }}"),
            "4:49: sources.board.sensors[0].range: unknown key \"range\"",
        );
        let ads = "driver = \"ads1115\", address = 0x48";
        check(
            &format!("{{ {ads}, range = \"4.096\" }}"),
            "4:58: sources.board.sensors[0].range: \"4.096\" is not understood; did you mean \"4.096V\"?",
        );
        check(
            &format!("{{ {ads}, channels = [4] }}"),
            "4:62: sources.board.sensors[0].channels[0]: 4 is out of range; expected 0 to 3",
        );
        check(
            &format!("{{ {ads}, channels = [1, 1] }}"),
            "4:65: sources.board.sensors[0].channels[1]: 1 stands here twice",
        );
        check(
            &format!("{{ {ads}, channels = [] }}"),
            "4:61: sources.board.sensors[0].channels: [] is not understood; expected a list of inputs",
        );
        check("", "4:11: sources.board.sensors: [] is not understood; expected a list of tables");
        check("3", "4:12: sources.board.sensors[0]: 3 is a number; expected a list of tables");
    }

    #[test]
    fn no_two_sensors_share_an_address_or_a_name() {
        let lm75 = |address: &str, device: &str| {
            format!("{{ driver = \"lm75\", address = {address}, device = \"{device}\" }}")
        };
        check(
            &format!("{}, {}", lm75("0x48", "a"), lm75("72", "b")),
            "4:92: sources.board.sensors[1].address: address 0x48 of this bus is taken by \"a\"; two chips",
        );
        check(
            &format!("{}, {}", lm75("0x48", "a"), lm75("0x49", "a")),
            "4:107: sources.board.sensors[1].device: the device \"a\" stands here twice",
        );
        let two = |bus: &str| {
            format!(
                "{HEAD}sensors = [{}]\n[sources.other]\ntype = \"i2c\"\nbus = \"{bus}\"\nsensors = [{}]\n",
                lm75("0x48", "a"),
                lm75("0x48", "a")
            )
        };
        let found = faults(&two("/dev/i2c-1"));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with(
                "8:11: sources.other.sensors: address 0x48 of this bus is taken by \"a\" of sources.board"
            ),
            "{found:?}"
        );
        settings(&two("/dev/i2c-2"));
    }

    #[test]
    fn a_bus_is_a_path() {
        let with = |bus: &str| {
            faults(&format!(
                "[sources.board]\ntype = \"i2c\"\n{bus}\nsensors = [{{ driver = \"lm75\", address = 0x48 }}]"
            ))
        };
        let check = |bus: &str, expected: &str| {
            let faults = with(bus);
            assert!(faults.len() == 1 && faults[0].starts_with(expected), "{faults:#?}");
        };
        check(
            "bus = \"i2c-1\"",
            "3:7: sources.board.bus: \"i2c-1\" is not understood; did you mean \"/dev/i2c-1\"?",
        );
        check("bus = \"1\"", "3:7: sources.board.bus: \"1\" is not understood; did you mean \"/dev/i2c-1\"?");
        check("bus = 1", "3:7: sources.board.bus: 1 is a number; expected an absolute path");
        check("", "1:1: sources.board.bus: is missing; expected an absolute path");
        let faults = faults("[sources.board]\ntype = \"i2x\"\nbus = \"/dev/i2c-1\"\n");
        assert!(
            faults[0].contains("sensors: is missing") && faults[1].contains("did you mean \"i2c\"?"),
            "{faults:?}"
        );
    }
}
