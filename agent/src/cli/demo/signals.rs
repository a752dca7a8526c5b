//! What the demo's devices measure: believable signals with a daily cycle, noise, drift, and a fault now and then. Pure:
//! the same seed and the same times give the same samples.

use std::f64::consts::TAU;

use crate::wire;

/// A day of the demo passes in a minute, so that a short run shows its shape.
const DAY_S: f64 = 60.0;
/// On average a device is well for this long before a fault.
const WELL_S: f64 = 75.0;
/// A fault lasts at least this long, at most twice as long.
const FAULT_S: f64 = 5.0;

/// The names of all fields that are worth a window.
pub(super) const MEASURED: [&str; 14] = [
    "flow_c",
    "return_c",
    "pressure_bar",
    "temperature_c",
    "vibration_mm_s",
    "bearing_c",
    "speed_rpm",
    "power_w",
    "voltage_v",
    "energy_wh",
    "battery_v",
    "opened",
    "co2_ppm",
    "humidity_pct",
];

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Boiler,
    Freezer,
    Pump,
    Inverter,
    Door,
    Air,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Boiler, Self::Freezer, Self::Pump, Self::Inverter, Self::Door, Self::Air];

    fn name(self) -> &'static str {
        match self {
            Self::Boiler => "boiler",
            Self::Freezer => "freezer",
            Self::Pump => "pump",
            Self::Inverter => "inverter",
            Self::Door => "door",
            Self::Air => "air",
        }
    }

    fn area(self) -> &'static str {
        match self {
            Self::Boiler | Self::Pump => "plant",
            Self::Freezer | Self::Door => "store",
            Self::Inverter => "roof",
            Self::Air => "office",
        }
    }

    /// What its status says while it has a fault.
    fn fault(self) -> &'static str {
        match self {
            Self::Boiler => "lockout",
            Self::Freezer => "door-open",
            Self::Pump => "bearing-wear",
            Self::Inverter => "string-failure",
            Self::Door => "battery-low",
            Self::Air => "ventilation-off",
        }
    }
}

/// Whether a device has its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Faulty,
}

/// One simulated device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    kind: Kind,
    name: String,
    chance: fastrand::Rng,
    /// Seconds into the demo, at the last sample.
    at_s: f64,
    fault_until_s: Option<f64>,
    /// Each kind keeps its slow state here: a temperature, a drift, a cloud cover.
    level: f64,
    running: bool,
    counter: f64,
    samples: u64,
}

/// One value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Measure {
    /// With this many digits after the point.
    Number(f64, usize),
    Flag(bool),
    Word(&'static str),
}

/// The values of a sample, by name.
pub(super) type Fields = Vec<(&'static str, Measure)>;

impl Device {
    /// The device with that index; its kind and its name follow from it.
    pub(super) fn new(index: usize, seed: u64) -> Self {
        let kind = Kind::ALL[index % Kind::ALL.len()];
        let number = index / Kind::ALL.len() + 1;
        let own = u64::try_from(index).unwrap_or(u64::MAX);
        let chance = fastrand::Rng::with_seed(seed ^ own.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let level = match kind {
            Kind::Boiler => 55.0,
            Kind::Freezer => -18.0,
            Kind::Pump | Kind::Door => 0.0,
            Kind::Inverter => 0.8,
            Kind::Air => 500.0,
        };
        Self {
            kind,
            name: format!("{}-{number}", kind.name()),
            chance,
            at_s: 0.0,
            fault_until_s: None,
            level,
            running: false,
            counter: 0.0,
            samples: 0,
        }
    }

    /// Its name: unique among the devices of a demo.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it publishes.
    pub(super) fn topic(&self) -> String {
        format!("demo/{}/{}", self.kind.area(), self.name)
    }

    /// The next message, `at_s` seconds into the demo, `unix_ms` by the device's clock: JSON, numbered from 1.
    pub(super) fn message(&mut self, at_s: f64, unix_ms: i64) -> Vec<u8> {
        let fields = self.sample(at_s);
        self.samples += 1;
        let mut out = format!("{{\"ts\":{unix_ms},\"n\":{}", self.samples).into_bytes();
        for (name, measure) in fields {
            out.push(b',');
            wire::write_text(name, &mut out);
            out.push(b':');
            match measure {
                Measure::Number(value, digits) => {
                    out.extend_from_slice(format!("{value:.digits$}").as_bytes());
                }
                Measure::Flag(flag) => out.extend_from_slice(if flag { b"true" } else { b"false" }),
                Measure::Word(word) => wire::write_text(word, &mut out),
            }
        }
        out.push(b'}');
        out
    }

    /// What it measures `at_s` seconds into the demo; times do not go back.
    pub(super) fn sample(&mut self, at_s: f64) -> Fields {
        let passed_s = (at_s - self.at_s).max(0.0);
        self.at_s = at_s;
        let health = self.advance_health(passed_s);
        let mut fields = match self.kind {
            Kind::Boiler => self.boiler(passed_s, health),
            Kind::Freezer => self.freezer(passed_s, health),
            Kind::Pump => self.pump(passed_s, health),
            Kind::Inverter => self.inverter(passed_s, health),
            Kind::Door => self.door(passed_s, health),
            Kind::Air => self.air(passed_s, health),
        };
        let status = match health {
            Health::Well => "ok",
            Health::Faulty => self.kind.fault(),
        };
        fields.push(("status", Measure::Word(status)));
        fields
    }

    fn advance_health(&mut self, passed_s: f64) -> Health {
        let breaks = self.happens(passed_s / WELL_S);
        match self.fault_until_s {
            Some(end_s) if self.at_s < end_s => Health::Faulty,
            None if breaks => {
                self.fault_until_s = Some(self.at_s + FAULT_S * (1.0 + self.chance.f64()));
                Health::Faulty
            }
            Some(_) | None => {
                self.fault_until_s = None;
                Health::Well
            }
        }
    }

    /// A burner between two temperatures; the set point follows the cold of the night.
    fn boiler(&mut self, passed_s: f64, health: Health) -> Fields {
        let wanted = 60.0 - 8.0 * self.daylight();
        self.running = health == Health::Well
            && if self.running { self.level < wanted + 3.0 } else { self.level < wanted - 3.0 };
        self.approach(if self.running { 90.0 } else { 20.0 }, passed_s, 40.0);
        self.counter += passed_s;
        vec![
            ("flow_c", Measure::Number(self.level + self.noise(0.15), 2)),
            ("return_c", Measure::Number(self.level - 12.0 + self.noise(0.3), 2)),
            // It loses water slowly; somebody tops it up each ten minutes.
            ("pressure_bar", Measure::Number(1.8 - (self.counter % 600.0) / 2_000.0 + self.noise(0.01), 2)),
            ("burner", Measure::Flag(self.running)),
        ]
    }

    /// A compressor between two temperatures; with the door open it does not keep up.
    fn freezer(&mut self, passed_s: f64, health: Health) -> Fields {
        self.running = if self.running { self.level > -19.5 } else { self.level > -17.0 };
        match (health, self.running) {
            (Health::Faulty, _) => self.approach(12.0, passed_s, 25.0),
            (Health::Well, true) => self.approach(-26.0, passed_s, 30.0),
            (Health::Well, false) => self.approach(5.0, passed_s, 80.0),
        }
        vec![
            ("temperature_c", Measure::Number(self.level + self.noise(0.1), 2)),
            ("compressor", Measure::Flag(self.running)),
            ("door_open", Measure::Flag(health == Health::Faulty)),
        ]
    }

    /// It vibrates a little more from day to day, and a lot with a worn bearing.
    fn pump(&mut self, passed_s: f64, health: Health) -> Fields {
        self.level = (self.level + passed_s / 1_800.0) % 1.0;
        let wear = if health == Health::Faulty { 4.5 } else { 0.0 };
        let load = 0.6 + 0.4 * self.daylight();
        vec![
            (
                "vibration_mm_s",
                Measure::Number((1.9 * load + self.level + wear + self.noise(0.12)).max(0.0), 3),
            ),
            ("bearing_c", Measure::Number(38.0 + 9.0 * load + 4.0 * wear + self.noise(0.2), 2)),
            ("speed_rpm", Measure::Number(1_480.0 - 12.0 * load + self.noise(1.5), 0)),
        ]
    }

    /// The sun by day, less the clouds; `energy_wh` is a counter.
    fn inverter(&mut self, passed_s: f64, health: Health) -> Fields {
        let clouds = self.noise(0.12) * passed_s.min(4.0).sqrt();
        self.level = (self.level + clouds).clamp(0.15, 1.0);
        let strings = if health == Health::Faulty { 0.5 } else { 1.0 };
        let power = (4_200.0 * self.daylight() * self.level * strings + self.noise(4.0)).max(0.0);
        self.counter += power * passed_s / 3_600.0 * (86_400.0 / DAY_S);
        vec![
            ("power_w", Measure::Number(power, 1)),
            ("voltage_v", Measure::Number(231.0 + 3.0 * self.daylight() + self.noise(0.6), 1)),
            ("energy_wh", Measure::Number(self.counter, 0)),
        ]
    }

    /// Opened now and then by day; `opened` counts.
    fn door(&mut self, passed_s: f64, health: Health) -> Fields {
        let often = if self.running { 0.4 } else { 0.02 + 0.1 * self.daylight() };
        if self.happens(passed_s * often) {
            self.running = !self.running;
            self.counter += if self.running { 1.0 } else { 0.0 };
        }
        let battery = if health == Health::Faulty { 2.1 } else { 3.0 };
        vec![
            ("open", Measure::Flag(self.running)),
            ("opened", Measure::Number(self.counter, 0)),
            ("battery_v", Measure::Number(battery + self.noise(0.01), 2)),
        ]
    }

    /// People breathe by day; without ventilation it adds up.
    fn air(&mut self, passed_s: f64, health: Health) -> Fields {
        let target = 430.0 + 650.0 * self.daylight() + if health == Health::Faulty { 900.0 } else { 0.0 };
        self.approach(target, passed_s, 8.0);
        vec![
            ("co2_ppm", Measure::Number((self.level + self.noise(6.0)).max(400.0), 0)),
            ("humidity_pct", Measure::Number(42.0 + 5.0 * self.daylight() + self.noise(0.4), 1)),
            ("temperature_c", Measure::Number(20.5 + 1.8 * self.daylight() + self.noise(0.05), 2)),
        ]
    }

    /// 0 at night, up to 1 at noon. The demo begins in the morning.
    fn daylight(&self) -> f64 {
        (TAU * self.at_s / DAY_S).sin().max(0.0)
    }

    /// Lets `level` go to `target`, 63 % of the way in `slowness_s`.
    fn approach(&mut self, target: f64, passed_s: f64, slowness_s: f64) {
        self.level += (target - self.level) * (1.0 - (-passed_s / slowness_s).exp());
    }

    /// Bell-shaped around 0, nearly always within three `deviation`s, never beyond six.
    fn noise(&mut self, deviation: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| self.chance.f64()).sum();
        (sum - 6.0) * deviation
    }

    fn happens(&mut self, probability: f64) -> bool {
        self.chance.f64() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(index: usize, seed: u64) -> Vec<String> {
        let mut device = Device::new(index, seed);
        let at = |step: u32| f64::from(step) * 0.5;
        (0..2_000)
            .map(|step| {
                String::from_utf8(device.message(at(step), 1_795_148_112_000 + i64::from(step))).unwrap()
            })
            .collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_messages_and_another_one_others() {
        for index in 0..Kind::ALL.len() {
            assert_eq!(run(index, 7), run(index, 7));
            assert_ne!(run(index, 7), run(index, 8));
        }
    }

    #[test]
    fn every_message_is_json_with_finite_believable_values_and_its_number() {
        let range = |name: &str| match name {
            "temperature_c" | "flow_c" | "return_c" | "bearing_c" => -40.0..=110.0,
            "pressure_bar" | "battery_v" => 0.5..=4.0,
            "vibration_mm_s" => 0.0..=12.0,
            "speed_rpm" => 1_400.0..=1_520.0,
            "power_w" => 0.0..=4_300.0,
            "voltage_v" => 220.0..=245.0,
            "energy_wh" | "opened" => 0.0..=1e9,
            "co2_ppm" => 400.0..=2_500.0,
            "humidity_pct" => 20.0..=70.0,
            other => panic!("{other} has no range"),
        };
        for index in 0..Kind::ALL.len() {
            for (before, message) in run(index, 42).iter().enumerate() {
                let value: serde_json::Value = serde_json::from_str(message).unwrap();
                assert_eq!(value["n"], before + 1);
                for (name, value) in value.as_object().unwrap() {
                    if let (Some(number), false) = (value.as_f64(), ["n", "ts"].contains(&name.as_str())) {
                        assert!(range(name).contains(&number), "{name} is {number}");
                        assert!(MEASURED.contains(&name.as_str()), "{name} gets no window");
                    }
                }
            }
        }
    }

    #[test]
    fn each_kind_of_device_has_a_fault_now_and_then_but_is_mostly_well() {
        for index in 0..Kind::ALL.len() {
            let messages = run(index, 42);
            let well = messages.iter().filter(|message| message.contains("\"ok\"")).count();
            assert!((1_200..2_000).contains(&well), "{}: {well} of 2000", Kind::ALL[index].name());
        }
    }

    #[test]
    fn names_and_topics_are_unique() {
        let topics: std::collections::HashSet<_> =
            (0..500).map(|index| Device::new(index, 1).topic()).collect();
        assert_eq!(topics.len(), 500);
    }
}
