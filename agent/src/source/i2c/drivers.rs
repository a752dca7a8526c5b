//! What can be on a bus: driver crates as they are, each behind an adapter for the [`Sampler`] that firmware uses, too.
//!
//! | driver | chips | fields |
//! |---|---|---|
//! | `bme280` | Bosch BME280 | `temperature` °C, `humidity` % relative, `pressure` Pa |
//! | `bmp280` | Bosch BMP280 | `temperature` °C, `pressure` Pa |
//! | `sht3x` | Sensirion SHT30, SHT31, SHT35 | `temperature` °C, `humidity` % relative |
//! | `lm75` | LM75 and relatives (TMP75, TMP102, DS1775) | `temperature` °C |
//! | `ads1015`, `ads1115` | TI ADS1015, ADS1115 | `a0` to `a3`, V |

mod adc;
mod bosch;
#[cfg(test)]
mod tests;

use std::time::Duration;

use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;
use firmware_bridge::frame::Channel;
use firmware_bridge::sampler::{Diagnosed, Renewed, Sampler, Sensor, Slots};
use firmware_bridge::sensors::{Lm75, Sht3x, Sht3xError};
use firmware_bridge::value::{Kind, Values};

use self::adc::{Ads1015, Ads1115};
pub use self::adc::{Inputs, Range};
use self::bosch::Bosch;
use super::bus::{Bus, Fault};
use super::settings;

/// What a sensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Temperature, humidity and pressure.
    Bme280,
    /// Temperature and pressure.
    Bmp280,
    /// Temperature and humidity.
    Sht3x,
    /// Temperature.
    Lm75,
    /// Four voltages, 12 bits.
    Ads1015(Inputs),
    /// Four voltages, 16 bits.
    Ads1115(Inputs),
}

const TEMPERATURE: Channel<'static> = Channel::new("temperature", "°C", Kind::Single);
const HUMIDITY: Channel<'static> = Channel::new("humidity", "%", Kind::Single);
const PRESSURE: Channel<'static> = Channel::new("pressure", "Pa", Kind::Single);
const VOLTAGES: [Channel<'static>; 4] = [
    Channel::new("a0", "V", Kind::Single),
    Channel::new("a1", "V", Kind::Single),
    Channel::new("a2", "V", Kind::Single),
    Channel::new("a3", "V", Kind::Single),
];

impl Driver {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bme280 => "bme280",
            Self::Bmp280 => "bmp280",
            Self::Sht3x => "sht3x",
            Self::Lm75 => "lm75",
            Self::Ads1015(_) => "ads1015",
            Self::Ads1115(_) => "ads1115",
        }
    }

    /// The addresses that such a chip can have.
    #[must_use]
    pub fn addresses(&self) -> &'static [u8] {
        match self {
            Self::Bme280 | Self::Bmp280 => &[0x76, 0x77],
            Self::Sht3x => &[0x44, 0x45],
            Self::Lm75 => &[0x48, 0x49, 0x4A, 0x4B, 0x4C, 0x4D, 0x4E, 0x4F],
            Self::Ads1015(_) | Self::Ads1115(_) => &[0x48, 0x49, 0x4A, 0x4B],
        }
    }

    /// What it measures: the names of its fields, with their units.
    #[must_use]
    pub fn channels(&self) -> &'static [Channel<'static>] {
        match self {
            Self::Bme280 => &[TEMPERATURE, HUMIDITY, PRESSURE],
            Self::Bmp280 => &[TEMPERATURE, PRESSURE],
            Self::Sht3x => &[TEMPERATURE, HUMIDITY],
            Self::Lm75 => &[TEMPERATURE],
            Self::Ads1015(_) | Self::Ads1115(_) => &VOLTAGES,
        }
    }
}

/// Why a sensor could not be read. Reads on after its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Bus(#[from] Fault),
    #[error("sends damaged data, as its checksum shows; check wiring, cable length and pull-ups")]
    Checksum,
    #[error(
        "is another chip: it says that it is {found:#04x} instead of {expected:#04x}; check driver and address"
    )]
    WrongChip { found: u8, expected: u8 },
    #[error("is a BMP280, which measures no humidity; write driver = \"bmp280\"")]
    NoHumidity,
    #[error("does not finish its measurement; switch its power off and on")]
    NotReady,
    #[error("sends what cannot be right; check its power, or replace it")]
    Nonsense,
}

impl From<Sht3xError<Fault>> for Failure {
    fn from(error: Sht3xError<Fault>) -> Self {
        match error {
            Sht3xError::Bus(fault) => Self::Bus(fault),
            Sht3xError::Checksum => Self::Checksum,
        }
    }
}

/// A sensor with its schedule.
pub(super) trait Scheduled: Send {
    /// When it is to be read next, by the clock that is passed to `read`.
    fn due_ms(&self) -> u64;

    /// Reads it if that is due. Blocks.
    fn read(&mut self, now_ms: u64) -> Option<Result<Values, Failure>>;
}

impl<S, F> Scheduled for Sampler<(Diagnosed<Renewed<S, F>>,)>
where
    S: Sensor<Error = Failure> + Send,
    F: FnMut() -> Result<S, Failure> + Send,
{
    fn due_ms(&self) -> u64 {
        Self::due_ms(self)
    }

    fn read(&mut self, now_ms: u64) -> Option<Result<Values, Failure>> {
        let read = self.poll(now_ms)?;
        let (sensor,) = self.sensors();
        Some(sensor.take_error().map_or(Ok(read.values), Err))
    }
}

/// The sensor on this bus. Nothing is asked of it before it is due.
pub(super) fn scheduled(sensor: &settings::Sensor, bus: &Bus) -> Box<dyn Scheduled> {
    let (address, mut bus) = (sensor.address, bus.clone());
    let plan = Plan { channels: sensor.driver.channels(), interval: sensor.interval };
    match &sensor.driver {
        Driver::Bme280 => plan.with(move || Bosch::<3>::set_up(&bus, address)),
        Driver::Bmp280 => plan.with(move || Bosch::<2>::set_up(&bus, address)),
        Driver::Sht3x => plan.with(move || set_up_sht3x(&mut bus, address)),
        Driver::Lm75 => plan.with(move || set_up_lm75(&mut bus, address)),
        Driver::Ads1015(inputs) => {
            let inputs = inputs.clone();
            plan.with(move || Ads1015::set_up(&bus, address, &inputs))
        }
        Driver::Ads1115(inputs) => {
            let inputs = inputs.clone();
            plan.with(move || Ads1115::set_up(&bus, address, &inputs))
        }
    }
}

struct Plan {
    channels: &'static [Channel<'static>],
    interval: Duration,
}

impl Plan {
    fn with<S, F>(self, set_up: F) -> Box<dyn Scheduled>
    where
        S: Sensor<Error = Failure> + Send + 'static,
        F: FnMut() -> Result<S, Failure> + Send + 'static,
    {
        let sensors = (Diagnosed::new(Renewed::new(set_up)),);
        let interval_ms = u32::try_from(self.interval.as_millis()).unwrap_or(u32::MAX);
        let sampler = Sampler::new(self.channels, sensors, interval_ms);
        Box::new(sampler.expect("each driver fills its channels, as a test shows"))
    }
}

/// A sensor of the firmware bridge, whose errors are told as ours.
struct Ours<S>(S);

impl<S: Sensor> Sensor for Ours<S>
where
    Failure: From<S::Error>,
{
    const VALUES: usize = S::VALUES;
    type Error = Failure;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Failure> {
        Ok(self.0.read(slots)?)
    }
}

/// Ends a periodic measurement, during which an SHT3x would not take our command (data sheet, section 4.8).
const SHT3X_BREAK: [u8; 2] = [0x30, 0x93];

fn set_up_sht3x(bus: &mut Bus, address: u8) -> Result<Ours<Sht3x<Bus, Bus>>, Failure> {
    bus.write(address, &SHT3X_BREAK)?;
    bus.delay_ms(1);
    Ok(Ours(Sht3x { i2c: bus.clone(), address, delay: bus.clone() }))
}

/// The configuration register of an LM75, and the bit in it that stops measuring.
const LM75_CONFIGURATION: u8 = 1;
const LM75_SHUTDOWN: u8 = 1;
/// The first measurement after the power is on takes this long with the slowest relative; before it the register holds no
/// temperature.
const LM75_FIRST_MS: u32 = 300;

fn set_up_lm75(bus: &mut Bus, address: u8) -> Result<Ours<Lm75<Bus>>, Failure> {
    let mut configuration = [0];
    bus.write_read(address, &[LM75_CONFIGURATION], &mut configuration)?;
    let [bits] = configuration;
    if bits & LM75_SHUTDOWN != 0 {
        bus.write(address, &[LM75_CONFIGURATION, bits & !LM75_SHUTDOWN])?;
    }
    bus.delay_ms(LM75_FIRST_MS);
    Ok(Ours(Lm75 { i2c: bus.clone(), address }))
}
