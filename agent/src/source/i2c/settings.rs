//! What an operator can say of an I2C bus and the sensors on it.

use std::path::PathBuf;
use std::time::Duration;

use super::drivers::Driver;

/// The settings of a source of sensors on one bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configured name.
    pub name: String,
    /// The bus: a device such as `/dev/i2c-1`.
    pub bus: PathBuf,
    /// What is on it; no two at one address, no two of one name.
    pub sensors: Vec<Sensor>,
}

impl Settings {
    /// How often sensors are read where the operator does not say: climates and voltages rarely change faster.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

    /// What a sensor is called where the operator does not say.
    #[must_use]
    pub fn default_device(source: &str, driver: &Driver, address: u8) -> String {
        format!("{source}-{}-{address:02x}", driver.name())
    }
}

/// One sensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensor {
    /// What it is.
    pub driver: Driver,
    /// Its address on the bus, of seven bits.
    pub address: u8,
    /// What its readings are called.
    pub device: String,
    /// How often it is read.
    pub interval: Duration,
}
