//! BME280 and BMP280, through the crate `bme280`.

use bme280::i2c::BME280;
use bme280::{Configuration, Error, IIRFilter, Oversampling};
use embedded_hal::i2c::I2c;
use firmware_bridge::sampler::{Sensor, Slots};

use super::Failure;
use crate::source::i2c::bus::{Bus, Fault};

/// The register that says which chip it is, and what it says.
const CHIP_ID: u8 = 0xD0;
const BME280_ID: u8 = 0x60;
/// The last one is in mass production.
const BMP280_IDS: [u8; 3] = [0x56, 0x57, 0x58];
/// `ctrl_hum`; behind it come `status` and `ctrl_meas`.
const CONTROL: u8 = 0xF2;
const HUMIDITY_1X: u8 = 0b001;
const TEMPERATURE_2X_PRESSURE_8X: u8 = (0b010 << 5) | (0b100 << 2);
/// All of `ctrl_meas` but the mode.
const OVERSAMPLING: u8 = !0b11;

/// One of the two: a BME280 has three `VALUES`, a BMP280 two.
pub(super) struct Bosch<const VALUES: usize> {
    driver: BME280<Bus>,
    bus: Bus,
    address: u8,
}

impl<const VALUES: usize> Bosch<VALUES> {
    const HAS_HUMIDITY: bool = VALUES == 3;

    /// Resets it and sets it up for single measurements.
    pub(super) fn set_up(bus: &Bus, address: u8) -> Result<Self, Failure> {
        let mut bus = bus.clone();
        let mut id = [0];
        bus.write_read(address, &[CHIP_ID], &mut id)?;
        let [found] = id;
        let is_bmp280 = BMP280_IDS.contains(&found);
        if is_bmp280 && Self::HAS_HUMIDITY {
            return Err(Failure::NoHumidity);
        }
        // A BME280 does all that a BMP280 does.
        if !is_bmp280 && found != BME280_ID {
            let expected = if Self::HAS_HUMIDITY { BME280_ID } else { 0x58 };
            return Err(Failure::WrongChip { found, expected });
        }
        let mut this = Self { driver: BME280::new(bus.clone(), address), bus, address };
        this.configure()?;
        Ok(this)
    }

    /// Such a measurement takes 28 ms at most (data sheet, section 9.1), and the crate waits 40. A filter over measurements that are
    /// seconds apart would only make them late.
    fn configure(&mut self) -> Result<(), Failure> {
        let configuration = Configuration::default()
            .with_temperature_oversampling(Oversampling::Oversampling2X)
            .with_pressure_oversampling(Oversampling::Oversampling8X)
            .with_humidity_oversampling(Oversampling::Oversampling1X)
            .with_iir_filter(IIRFilter::Off);
        Ok(self.driver.init_with_config(&mut self.bus, configuration)?)
    }

    /// Whether it was without power since it was set up: it would answer, with numbers that mean nothing.
    fn was_reset(&mut self) -> Result<bool, Failure> {
        let mut control = [0; 3];
        self.bus.write_read(self.address, &[CONTROL], &mut control)?;
        let [humidity, _status, measurement] = control;
        let keeps_humidity = !Self::HAS_HUMIDITY || humidity & 0b111 == HUMIDITY_1X;
        Ok(!keeps_humidity || measurement & OVERSAMPLING != TEMPERATURE_2X_PRESSURE_8X)
    }
}

impl<const COUNT: usize> Sensor for Bosch<COUNT> {
    const VALUES: usize = COUNT;
    type Error = Failure;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Failure> {
        if self.was_reset()? {
            self.configure()?;
        }
        let measured = self.driver.measure(&mut self.bus)?;
        slots.put(measured.temperature);
        if Self::HAS_HUMIDITY {
            slots.put(measured.humidity);
        }
        slots.put(measured.pressure);
        Ok(())
    }
}

impl From<Error<Fault>> for Failure {
    fn from(error: Error<Fault>) -> Self {
        match error {
            Error::Bus(fault) => Self::Bus(fault),
            Error::CompensationFailed
            | Error::InvalidData
            | Error::NoCalibrationData
            | Error::UnsupportedChip
            | Error::Delay => Self::Nonsense,
        }
    }
}
