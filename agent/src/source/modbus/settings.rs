//! What an operator says about a `modbus` source: where the devices are, and which of their registers mean what.

use std::time::Duration;

use crate::source::port;

/// Settings of a `modbus` source: checked values.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configured name.
    pub name: String,
    /// Where the devices are: behind a serial port (RTU), or a host (Modbus TCP).
    pub port: port::Settings,
    /// How often everything is read.
    pub interval: Duration,
    /// How long one answer may take.
    pub timeout: Duration,
    /// What is read. Each makes one reading a round.
    pub reads: Vec<Read>,
}

impl Settings {
    /// `interval` where the operator does not say.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
    /// `timeout` where the operator does not say: several times what a slow meter takes.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
    /// `baud` of a Modbus line where the operator does not say: what most devices are shipped with.
    pub const DEFAULT_BAUD: u32 = 9_600;

    /// Whether the devices hang on a serial line, not on a network.
    #[must_use]
    pub fn is_rtu(&self) -> bool {
        matches!(self.port.at, port::Place::Path(_))
    }
}

/// What is read of one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// Its address on the line.
    pub unit: u8,
    /// The device's name in readings.
    pub device: String,
    /// Its registers, in the order of the file; their fields differ.
    pub registers: Vec<Register>,
}

/// One field, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Register {
    /// The field's name.
    pub field: String,
    /// Which of a device's four spaces it is in.
    pub kind: Kind,
    /// Its first register or bit, counted from 0. All of it lies below 65 536.
    pub address: u16,
    /// What is in it.
    pub format: Format,
}

impl Register {
    /// How many registers (or bits, of bit spaces) it takes.
    #[must_use]
    pub fn count(&self) -> u16 {
        match self.format {
            Format::Truth | Format::Bit(_) => 1,
            Format::Number { number, .. } => number.registers(),
            Format::Text { registers, .. } => registers,
        }
    }
}

/// The four spaces of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Input registers: 16 bits, read only (function 4).
    Input,
    /// Holding registers: 16 bits (function 3).
    Holding,
    /// Coils: bits (function 1).
    Coil,
    /// Discrete inputs: bits, read only (function 2).
    Discrete,
}

impl Kind {
    /// Whether it holds bits, not registers.
    #[must_use]
    pub fn is_bits(self) -> bool {
        match self {
            Self::Coil | Self::Discrete => true,
            Self::Input | Self::Holding => false,
        }
    }

    /// How many of them one request may ask for (Modbus application protocol V1.1b3, 6.1 to 6.4).
    #[must_use]
    pub fn most(self) -> u16 {
        if self.is_bits() { 2_000 } else { 125 }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Holding => "holding",
            Self::Coil => "coil",
            Self::Discrete => "discrete",
        }
    }
}

/// What the bits of a register mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// True or false: a bit of a bit space, or a register that is not zero.
    Truth,
    /// One bit of a register, 0 the least.
    Bit(u8),
    /// A number.
    Number {
        /// How it is written.
        number: Number,
        /// In which order.
        order: Order,
        /// What it is multiplied by and what is added, if anything.
        scale: Option<Scale>,
    },
    /// Text, two bytes in a register, up to the first zero.
    Text {
        /// How many registers.
        registers: u16,
        /// Which byte of a register comes first.
        bytes: Bytes,
    },
}

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say it")]
pub enum Number {
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Number {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::U16, Self::I16, Self::U32, Self::I32, Self::U64, Self::I64, Self::F32, Self::F64];

    /// How many registers it takes.
    #[must_use]
    pub fn registers(self) -> u16 {
        match self {
            Self::U16 | Self::I16 => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

/// The order in which the parts of a number come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Of registers.
    pub words: Words,
    /// Within a register.
    pub bytes: Bytes,
}

/// Which register of a number comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Words {
    /// The most significant.
    #[default]
    BigFirst,
    /// The least significant.
    LittleFirst,
}

/// Which byte of a register comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bytes {
    /// The most significant, as the protocol has it.
    #[default]
    BigFirst,
    /// The least significant.
    LittleFirst,
}

/// A number as it is meant: `raw * factor + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    factor: Factor,
    offset: f64,
}

/// 2301 * 0.1 is 230.10000000000002; 2301 / 10 is 230.1. So a factor such as 0.1 or 0.001 divides.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Factor {
    Times(f64),
    Over(f64),
}

impl Scale {
    /// Both finite.
    #[must_use]
    pub fn new(factor: f64, offset: f64) -> Self {
        /// Up to here every whole number is a float.
        const MOST: f64 = 9_007_199_254_740_992.0;
        let over = (1.0 / factor).round();
        let divides = factor.abs() < 1.0 && over.abs() <= MOST && (1.0 / over).to_bits() == factor.to_bits();
        let factor = if divides { Factor::Over(over) } else { Factor::Times(factor) };
        Self { factor, offset }
    }

    /// `raw` as it is meant. May be no finite number.
    #[must_use]
    pub fn apply(&self, raw: f64) -> f64 {
        let scaled = match self.factor {
            Factor::Times(factor) => raw * factor,
            Factor::Over(divisor) => raw / divisor,
        };
        scaled + self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scaled_number_is_the_one_that_people_mean() {
        let check = |raw: f64, factor: f64, offset: f64, meant: f64| {
            assert_eq!(Scale::new(factor, offset).apply(raw).to_bits(), meant.to_bits(), "{raw} * {factor}");
        };
        check(2_301.0, 0.1, 0.0, 230.1);
        check(-12_345.0, 0.001, 0.0, -12.345);
        check(7.0, 0.25, -1.0, 0.75);
        check(7.0, 1.0, 0.0, 7.0);
        check(3.0, 10.0, 5.0, 35.0);
        check(3.0, -0.5, 0.0, -1.5);
        check(100.0, 0.3, 0.0, 30.0);
        check(1.0, 1e-300, 0.0, 1e-300);
    }
}
