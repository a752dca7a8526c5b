//! ADS1015 and ADS1115, through the crate `ads1x1x`.

use ads1x1x::{Ads1x1x, FullScaleRange, TargetAddr, channel, ic, mode};
use embedded_hal::delay::DelayNs;
use firmware_bridge::sampler::{Sensor, Slots};
use firmware_bridge::value::Value;

use super::Failure;
use crate::source::i2c::bus::{Bus, Fault};

/// The largest voltage, of either sign, that is told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Range {
    /// 6.144 V.
    V6_144,
    /// 4.096 V.
    V4_096,
    /// 2.048 V, as after a reset.
    #[default]
    V2_048,
    /// 1.024 V.
    V1_024,
    /// 0.512 V.
    V0_512,
    /// 0.256 V.
    V0_256,
}

impl Range {
    /// All of them, by their names in the configuration.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("6.144V", Self::V6_144),
        ("4.096V", Self::V4_096),
        ("2.048V", Self::V2_048),
        ("1.024V", Self::V1_024),
        ("0.512V", Self::V0_512),
        ("0.256V", Self::V0_256),
    ];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, range)| *range == self).map_or("", |(name, _)| name)
    }

    fn volts(self) -> f32 {
        match self {
            Self::V6_144 => 6.144,
            Self::V4_096 => 4.096,
            Self::V2_048 => 2.048,
            Self::V1_024 => 1.024,
            Self::V0_512 => 0.512,
            Self::V0_256 => 0.256,
        }
    }

    fn setting(self) -> FullScaleRange {
        match self {
            Self::V6_144 => FullScaleRange::Within6_144V,
            Self::V4_096 => FullScaleRange::Within4_096V,
            Self::V2_048 => FullScaleRange::Within2_048V,
            Self::V1_024 => FullScaleRange::Within1_024V,
            Self::V0_512 => FullScaleRange::Within0_512V,
            Self::V0_256 => FullScaleRange::Within0_256V,
        }
    }
}

/// Which inputs are read, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The range of all of them.
    pub range: Range,
    /// Whether each of the four is read, against ground.
    pub read: [bool; 4],
}

impl Default for Inputs {
    fn default() -> Self {
        Self { range: Range::default(), read: [true; 4] }
    }
}

/// The address is one of the four (see [`Driver::addresses`](super::Driver::addresses)).
fn pin(address: u8) -> TargetAddr {
    match address & 0b11 {
        0 => TargetAddr::Gnd,
        1 => TargetAddr::Vdd,
        2 => TargetAddr::Sda,
        _ => TargetAddr::Scl,
    }
}

/// Between two looks whether a conversion is done, and how often to look: conversions take 8 ms at most.
const LOOK_MS: u32 = 2;
const LOOKS: usize = 20;

/// What a conversion brings, which `ask` begins or asks for.
fn converted(
    bus: &mut Bus,
    mut ask: impl FnMut() -> nb::Result<i16, ads1x1x::Error<Fault>>,
) -> Result<i16, Failure> {
    for _ in 0..LOOKS {
        match ask() {
            Ok(counts) => return Ok(counts),
            Err(nb::Error::WouldBlock) => bus.delay_ms(LOOK_MS),
            Err(nb::Error::Other(ads1x1x::Error::I2C(fault))) => return Err(fault.into()),
            Err(nb::Error::Other(ads1x1x::Error::InvalidInputData)) => return Err(Failure::Nonsense),
        }
    }
    Err(Failure::NotReady)
}

/// The crate's types of the two chips have no trait in common that can be named outside of it.
macro_rules! adc {
    ($name:ident, $new:ident, $resolution:ident, $full_scale:literal) => {
        pub(super) struct $name {
            driver: Ads1x1x<Bus, ic::$name, ic::$resolution, mode::OneShot>,
            bus: Bus,
            inputs: Inputs,
        }

        impl $name {
            pub(super) fn set_up(bus: &Bus, address: u8, inputs: &Inputs) -> Result<Self, Failure> {
                let mut driver = Ads1x1x::$new(bus.clone(), pin(address));
                driver.set_full_scale_range(inputs.range.setting()).map_err(|error| match error {
                    ads1x1x::Error::I2C(fault) => Failure::Bus(fault),
                    ads1x1x::Error::InvalidInputData => Failure::Nonsense,
                })?;
                Ok(Self { driver, bus: bus.clone(), inputs: inputs.clone() })
            }
        }

        impl Sensor for $name {
            const VALUES: usize = 4;
            type Error = Failure;

            // The range is sent with each conversion, so that a loss of power does no harm.
            fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Failure> {
                let Self { driver, bus, inputs } = self;
                for (input, is_read) in inputs.read.into_iter().enumerate() {
                    if !is_read {
                        slots.put(Value::Missing);
                        continue;
                    }
                    let counts = converted(bus, || match input {
                        0 => driver.read(channel::SingleA0),
                        1 => driver.read(channel::SingleA1),
                        2 => driver.read(channel::SingleA2),
                        _ => driver.read(channel::SingleA3),
                    })?;
                    slots.put(f32::from(counts) * inputs.range.volts() / $full_scale);
                }
                Ok(())
            }
        }
    };
}

adc!(Ads1015, new_ads1015, Resolution12Bit, 2_048.0);
adc!(Ads1115, new_ads1115, Resolution16Bit, 32_768.0);
