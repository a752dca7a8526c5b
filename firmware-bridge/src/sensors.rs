//! Sensors that need no driver crate: a pin, a thermometer and a hygrometer on I2C, an ADC on SPI.
//!
//! They show each of embedded-hal's traits at work; what has a driver crate is used through an adapter (see
//! [`sampler`](crate::sampler)).

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::InputPin;
use embedded_hal::i2c::I2c;
use embedded_hal::spi::SpiDevice;

#[cfg(feature = "async")]
use crate::sampler::AsyncSensor;
use crate::sampler::{Sensor, Slots};

/// A digital input: true while the pin is high.
#[derive(Debug)]
pub struct Input<P>(pub P);

impl<P: InputPin> Sensor for Input<P> {
    const VALUES: usize = 1;
    type Error = P::Error;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), P::Error> {
        slots.put(self.0.is_high()?);
        Ok(())
    }
}

/// An LM75 or one of its many relatives: °C, single precision.
#[derive(Debug)]
pub struct Lm75<I> {
    /// The bus.
    pub i2c: I,
    /// `0x48` to `0x4F`, as its pins say.
    pub address: u8,
}

/// The register with the temperature: 11 bits in steps of 1/8 °C, at the upper end (9 bits with the first LM75).
const LM75_TEMPERATURE: u8 = 0;

/// What the two bytes of that register say, in °C.
fn lm75_celsius(bytes: [u8; 2]) -> f32 {
    f32::from(i16::from_be_bytes(bytes) >> 5) / 8.0
}

impl<I: I2c> Sensor for Lm75<I> {
    const VALUES: usize = 1;
    type Error = I::Error;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), I::Error> {
        let mut bytes = [0; 2];
        self.i2c.write_read(self.address, &[LM75_TEMPERATURE], &mut bytes)?;
        slots.put(lm75_celsius(bytes));
        Ok(())
    }
}

#[cfg(feature = "async")]
impl<I: embedded_hal_async::i2c::I2c> AsyncSensor for Lm75<I> {
    const VALUES: usize = 1;
    type Error = I::Error;

    async fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), I::Error> {
        let mut bytes = [0; 2];
        self.i2c.write_read(self.address, &[LM75_TEMPERATURE], &mut bytes).await?;
        slots.put(lm75_celsius(bytes));
        Ok(())
    }
}

/// A Sensirion SHT30, SHT31 or SHT35: °C and % relative humidity, single precision.
#[derive(Debug)]
pub struct Sht3x<I, D> {
    /// The bus.
    pub i2c: I,
    /// `0x44` or `0x45`, as its pin says.
    pub address: u8,
    /// For the time that a measurement takes.
    pub delay: D,
}

/// Measure once, high repeatability, without stretching the clock (data sheet, table 9).
const SHT3X_MEASURE: [u8; 2] = [0x24, 0x00];
/// It takes 15.5 ms at most (table 4).
const SHT3X_MEASURE_MS: u32 = 16;

/// Why an SHT3x could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Sht3xError<E> {
    /// The bus has failed.
    Bus(E),
    /// The bus has changed what the sensor said.
    Checksum,
}

/// What the six bytes of a measurement say: °C and %.
fn sht3x_values<E>(bytes: [u8; 6]) -> Result<(f32, f32), Sht3xError<E>> {
    let [t_high, t_low, t_crc, h_high, h_low, h_crc] = bytes;
    if sht3x_crc([t_high, t_low]) != t_crc || sht3x_crc([h_high, h_low]) != h_crc {
        return Err(Sht3xError::Checksum);
    }
    let share = |high, low| f32::from(u16::from_be_bytes([high, low])) / 65_535.0;
    Ok((share(t_high, t_low) * 175.0 - 45.0, share(h_high, h_low) * 100.0))
}

/// CRC-8 with the polynomial 0x31, from 0xFF (section 4.12).
fn sht3x_crc(bytes: [u8; 2]) -> u8 {
    bytes.iter().fold(0xFF, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| (crc << 1) ^ (0x31 & (crc >> 7).wrapping_neg()))
    })
}

impl<I: I2c, D: DelayNs> Sensor for Sht3x<I, D> {
    const VALUES: usize = 2;
    type Error = Sht3xError<I::Error>;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Self::Error> {
        self.i2c.write(self.address, &SHT3X_MEASURE).map_err(Sht3xError::Bus)?;
        self.delay.delay_ms(SHT3X_MEASURE_MS);
        let mut bytes = [0; 6];
        self.i2c.read(self.address, &mut bytes).map_err(Sht3xError::Bus)?;
        let (celsius, humidity) = sht3x_values(bytes)?;
        slots.put(celsius);
        slots.put(humidity);
        Ok(())
    }
}

#[cfg(feature = "async")]
impl<I, D> AsyncSensor for Sht3x<I, D>
where
    I: embedded_hal_async::i2c::I2c,
    D: embedded_hal_async::delay::DelayNs,
{
    const VALUES: usize = 2;
    type Error = Sht3xError<I::Error>;

    async fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Self::Error> {
        self.i2c.write(self.address, &SHT3X_MEASURE).await.map_err(Sht3xError::Bus)?;
        self.delay.delay_ms(SHT3X_MEASURE_MS).await;
        let mut bytes = [0; 6];
        self.i2c.read(self.address, &mut bytes).await.map_err(Sht3xError::Bus)?;
        let (celsius, humidity) = sht3x_values(bytes)?;
        slots.put(celsius);
        slots.put(humidity);
        Ok(())
    }
}

/// The first `CHANNELS` inputs of an MCP3008 (or, up to four, MCP3004): 0 to 1 023, whole numbers.
#[derive(Debug)]
pub struct Mcp3008<S, const CHANNELS: usize>(pub S);

/// Start, single-ended, the input; then room for the answer (data sheet, figure 6-1).
const fn mcp3008_question(input: u8) -> [u8; 3] {
    [0x01, 0x80 | (input << 4), 0x00]
}

/// What comes back while the question goes out.
fn mcp3008_counts([_, high, low]: [u8; 3]) -> u16 {
    u16::from_be_bytes([high & 0x03, low])
}

impl<S: SpiDevice, const CHANNELS: usize> Sensor for Mcp3008<S, CHANNELS> {
    const VALUES: usize = {
        assert!(CHANNELS <= 8, "an MCP3008 has eight inputs");
        CHANNELS
    };
    type Error = S::Error;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), S::Error> {
        (0..8).take(CHANNELS).try_for_each(|input| {
            let mut bytes = mcp3008_question(input);
            self.0.transfer_in_place(&mut bytes)?;
            slots.put(mcp3008_counts(bytes));
            Ok(())
        })
    }
}

#[cfg(feature = "async")]
impl<S: embedded_hal_async::spi::SpiDevice, const CHANNELS: usize> AsyncSensor for Mcp3008<S, CHANNELS> {
    const VALUES: usize = {
        assert!(CHANNELS <= 8, "an MCP3008 has eight inputs");
        CHANNELS
    };
    type Error = S::Error;

    async fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), S::Error> {
        for input in (0..8).take(CHANNELS) {
            let mut bytes = mcp3008_question(input);
            self.0.transfer_in_place(&mut bytes).await?;
            slots.put(mcp3008_counts(bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use embedded_hal_mock::eh1::delay::NoopDelay;
    use embedded_hal_mock::eh1::digital::{Mock as Pin, State, Transaction as Level};
    use embedded_hal_mock::eh1::i2c::{Mock as Bus, Transaction as Transfer};
    use embedded_hal_mock::eh1::spi::{Mock as Spi, Transaction as Exchange};
    use std::vec;

    use super::*;
    use crate::frame::Channel;
    use crate::sampler::Sampler;
    use crate::value::{Kind, Value};

    const CHANNELS: &[Channel<'static>] = &[
        Channel::new("door", "", Kind::Bool),
        Channel::new("board", "°C", Kind::Single),
        Channel::new("temperature", "°C", Kind::Single),
        Channel::new("humidity", "%", Kind::Single),
        Channel::new("a0", "", Kind::Int),
        Channel::new("a1", "", Kind::Int),
    ];
    /// From the data sheet of the SHT3x: the checksum of 0xBEEF is 0x92.
    const SHT3X_ANSWER: [u8; 6] = [0xBE, 0xEF, 0x92, 0xBE, 0xEF, 0x92];

    fn lm75_transfers() -> [Transfer; 1] {
        [Transfer::write_read(0x48, vec![0], vec![0xE7, 0x20])]
    }

    fn sht3x_transfers(answer: [u8; 6]) -> [Transfer; 2] {
        [Transfer::write(0x44, vec![0x24, 0]), Transfer::read(0x44, answer.to_vec())]
    }

    fn spi_exchanges() -> [Exchange<u8>; 6] {
        [
            Exchange::transaction_start(),
            Exchange::transfer_in_place(vec![1, 0x80, 0], vec![0xFF, 0xFE, 0x34]),
            Exchange::transaction_end(),
            Exchange::transaction_start(),
            Exchange::transfer_in_place(vec![1, 0x90, 0], vec![0, 3, 0xFF]),
            Exchange::transaction_end(),
        ]
    }

    /// Everything that was expected has happened.
    fn done(mut pin: Pin, buses: [Bus; 2], mut spi: Spi<u8>) {
        pin.done();
        buses.into_iter().for_each(|mut bus| bus.done());
        spi.done();
    }

    fn check(values: &[Value], failed: u32) {
        assert_eq!(failed, 0);
        let [door, board, temperature, humidity, a0, a1] = *values else { panic!("{values:?}") };
        assert_eq!((door, board), (Value::Bool(true), Value::Single(-24.875)));
        assert_eq!((a0, a1), (Value::Int(0x234), Value::Int(1_023)));
        let (Value::Single(temperature), Value::Single(humidity)) = (temperature, humidity) else {
            panic!("{values:?}")
        };
        assert!((temperature - 85.523).abs() < 0.001 && (humidity - 74.584).abs() < 0.001);
    }

    #[test]
    fn each_is_read_as_its_data_sheet_says() {
        let pin = Pin::new(&[Level::get(State::High)]);
        let lm75_bus = Bus::new(&lm75_transfers());
        let sht3x_bus = Bus::new(&sht3x_transfers(SHT3X_ANSWER));
        let spi = Spi::new(&spi_exchanges());
        let sensors = (
            Input(pin.clone()),
            Lm75 { i2c: lm75_bus.clone(), address: 0x48 },
            Sht3x { i2c: sht3x_bus.clone(), address: 0x44, delay: NoopDelay::new() },
            Mcp3008::<_, 2>(spi.clone()),
        );
        let read = Sampler::new(CHANNELS, sensors, 1_000).unwrap().poll(0).unwrap();
        check(read.values.as_slice(), read.failed);
        done(pin, [lm75_bus, sht3x_bus], spi);
    }

    #[cfg(feature = "async")]
    #[test]
    fn each_is_read_the_same_without_blocking() {
        use crate::sampler::Blocking;
        use std::pin::pin;
        use std::task::{Context, Poll, Waker};

        let pin = Pin::new(&[Level::get(State::High)]);
        let lm75_bus = Bus::new(&lm75_transfers());
        let sht3x_bus = Bus::new(&sht3x_transfers(SHT3X_ANSWER));
        let spi = Spi::new(&spi_exchanges());
        let sensors = (
            Blocking(Input(pin.clone())),
            Lm75 { i2c: lm75_bus.clone(), address: 0x48 },
            Sht3x { i2c: sht3x_bus.clone(), address: 0x44, delay: NoopDelay::new() },
            Mcp3008::<_, 2>(spi.clone()),
        );
        let mut sampler = Sampler::new_async(CHANNELS, sensors, 1_000).unwrap();
        let Poll::Ready(read) = pin!(sampler.poll_async(0)).poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("the mocks never wait")
        };
        let read = read.unwrap();
        check(read.values.as_slice(), read.failed);
        done(pin, [lm75_bus, sht3x_bus], spi);
    }

    #[test]
    fn a_damaged_measurement_is_refused() {
        let mut answer = SHT3X_ANSWER;
        answer[4] ^= 1;
        let mut bus = Bus::new(&sht3x_transfers(answer));
        let sensor = Sht3x { i2c: bus.clone(), address: 0x44, delay: NoopDelay::new() };
        let read = Sampler::new(&CHANNELS[2..4], (sensor,), 1_000).unwrap().poll(0).unwrap();
        assert_eq!((read.values.as_slice(), read.failed), ([Value::Missing; 2].as_slice(), 1));
        bus.done();
    }

    #[test]
    fn a_bus_that_fails_is_a_missing_value() {
        use embedded_hal::i2c::{ErrorKind, NoAcknowledgeSource};
        let error = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);
        let mut bus = Bus::new(&[lm75_transfers()[0].clone().with_error(error)]);
        let sensor = Lm75 { i2c: bus.clone(), address: 0x48 };
        let read = Sampler::new(&CHANNELS[1..2], (sensor,), 1_000).unwrap().poll(0).unwrap();
        assert_eq!((read.values.as_slice(), read.failed), ([Value::Missing].as_slice(), 1));
        bus.done();
    }
}
