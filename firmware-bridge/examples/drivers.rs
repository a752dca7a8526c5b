//! Driver crates as they are: a BME280 and an ADS1115, each behind an adapter of a few lines, sampled together.
//!
//! The chips are simulated, so this runs anywhere; on a board `SimulatedBme280` and `SimulatedAds1115` are two handles of its
//! I2C bus (embedded-hal-bus makes them), and the values of a sample go to `Link::sample`.

#![expect(clippy::print_stdout, reason = "that is its purpose")]

use std::convert::Infallible;

use ads1x1x::{Ads1x1x, TargetAddr, channel, ic, mode};
use bme280::i2c::BME280;
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::{ErrorType, I2c, Operation};
use firmware_bridge::frame::Channel;
use firmware_bridge::sampler::{Every, Sampler, Sensor, Slots};
use firmware_bridge::value::Kind;

const CHANNELS: &[Channel<'static>] = &[
    Channel::new("temperature", "°C", Kind::Single),
    Channel::new("humidity", "%", Kind::Single),
    Channel::new("pressure", "Pa", Kind::Single),
    Channel::new("battery", "V", Kind::Single),
];

/// A BME280 through the crate of that name.
struct Climate<I, D> {
    driver: BME280<I>,
    delay: D,
}

impl<I: I2c, D: DelayNs> Sensor for Climate<I, D> {
    const VALUES: usize = 3;
    type Error = bme280::Error<I::Error>;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Self::Error> {
        let measured = self.driver.measure(&mut self.delay)?;
        slots.put(measured.temperature);
        slots.put(measured.humidity);
        slots.put(measured.pressure);
        Ok(())
    }
}

/// The first input of an ADS1115, at its full scale of 2.048 V, behind a divider by two.
struct Battery<I>(Ads1x1x<I, ic::Ads1115, ic::Resolution16Bit, mode::OneShot>);

impl<I: I2c> Sensor for Battery<I> {
    const VALUES: usize = 1;
    type Error = ads1x1x::Error<I::Error>;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Self::Error> {
        let counts = nb::block!(self.0.read(channel::SingleA0))?;
        slots.put(f32::from(counts) * 2.0 * 2.048 / 32_768.0);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut climate = Climate { driver: BME280::new_primary(SimulatedBme280::new()), delay: NoDelay };
    climate.driver.init(&mut climate.delay).map_err(|error| format!("{error:?}"))?;
    let battery = Battery(Ads1x1x::new_ads1115(SimulatedAds1115::default(), TargetAddr::default()));
    // The battery only in every tenth sample.
    let mut sampler = Sampler::new(CHANNELS, (climate, Every::new(10, battery)), 1_000)?;
    for now_ms in (0..3_000).step_by(500) {
        if let Some(sample) = sampler.poll(now_ms) {
            if sample.failed != 0 {
                return Err(format!("a sensor has failed: {:#b}", sample.failed).into());
            }
            println!("{now_ms} ms: {:?}", sample.values);
        }
    }
    Ok(())
}

/// Simulated chips are never busy.
struct NoDelay;

impl DelayNs for NoDelay {
    fn delay_ns(&mut self, _ns: u32) {}
}

/// Registers of one byte, with the calibration of a real one.
struct SimulatedBme280 {
    registers: [u8; 256],
    at: u8,
}

impl SimulatedBme280 {
    fn new() -> Self {
        let mut registers = [0; 256];
        let mut set = |at: usize, bytes: &[u8]| registers[at..at + bytes.len()].copy_from_slice(bytes);
        set(0xD0, &[0x60]);
        // T1 to T3, P1 to P9: the example of the data sheet (section 3.12 of the BMP280's).
        let words: [u16; 12] =
            [27_504, 26_435, 64_536, 36_477, 54_851, 3_024, 2_855, 140, 65_529, 15_500, 50_936, 6_000];
        for (index, word) in words.iter().enumerate() {
            set(0x88 + 2 * index, &word.to_le_bytes());
        }
        set(0xA1, &[75]);
        set(0xE1, &[0x6A, 0x01, 0x00, 0x13, 0x08, 0x03, 0x1E]);
        // Pressure and temperature of that example, and some humidity.
        set(0xF7, &[0x65, 0x5A, 0xC0, 0x7E, 0xED, 0x00, 0x6E, 0x00]);
        Self { registers, at: 0 }
    }
}

impl ErrorType for SimulatedBme280 {
    type Error = Infallible;
}

impl I2c for SimulatedBme280 {
    fn transaction(&mut self, _address: u8, operations: &mut [Operation<'_>]) -> Result<(), Infallible> {
        for operation in operations {
            match operation {
                // Registers that are written (configuration) do not matter here, but for what they are set to.
                Operation::Write([at, values @ ..]) => {
                    self.at = *at;
                    for (place, value) in self.registers[usize::from(*at)..].iter_mut().zip(values) {
                        *place = *value;
                    }
                }
                Operation::Write([]) => {}
                Operation::Read(bytes) => {
                    let length = bytes.len();
                    bytes.copy_from_slice(&self.registers[usize::from(self.at)..][..length]);
                }
            }
        }
        Ok(())
    }
}

/// Registers of two bytes; a conversion is always finished.
#[derive(Default)]
struct SimulatedAds1115 {
    at: u8,
}

impl ErrorType for SimulatedAds1115 {
    type Error = Infallible;
}

impl I2c for SimulatedAds1115 {
    fn transaction(&mut self, _address: u8, operations: &mut [Operation<'_>]) -> Result<(), Infallible> {
        for operation in operations {
            match operation {
                Operation::Write(bytes) => self.at = bytes.first().copied().unwrap_or(self.at),
                Operation::Read(bytes) => {
                    // 1.85 V behind the divider; the configuration says that nothing is under way.
                    let value: u16 = if self.at == 0 { 29_600 } else { 0x8583 };
                    for (to, from) in bytes.iter_mut().zip(value.to_be_bytes()) {
                        *to = from;
                    }
                }
            }
        }
        Ok(())
    }
}
