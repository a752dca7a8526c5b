//! Reads sensors on a schedule.
//!
//! The schema is one table of the board's, in flash; sensors fill it from left to right. A sensor that cannot be read
//! leaves its channels empty and does not keep the others from being read.
//!
//! ```
//! use firmware_bridge::frame::Channel;
//! use firmware_bridge::sampler::{Sampler, from_fn};
//! use firmware_bridge::value::Kind;
//!
//! const CHANNELS: &[Channel<'static>] = &[
//!     Channel::new("temperature", "°C", Kind::Single),
//!     Channel::new("humidity", "%", Kind::Single),
//!     Channel::new("door", "", Kind::Bool),
//! ];
//! # fn measure() -> Result<(f32, f32), ()> { Ok((21.5, 40.0)) }
//! // Whatever driver there is:
//! let climate = from_fn::<2, _, _>(|slots| {
//!     let (temperature, humidity) = measure()?;
//!     slots.put(temperature);
//!     slots.put(humidity);
//!     Ok::<(), ()>(())
//! });
//! let door = from_fn::<1, _, _>(|slots| Ok::<(), ()>(slots.put(true)));
//!
//! let mut sampler = Sampler::new(CHANNELS, (climate, door), 1_000)?;
//! let now_ms = 0;
//! if let Some(sample) = sampler.poll(now_ms) {
//!     // link.sample(now_ms, sample.values.as_slice())
//!     assert_eq!(sample.failed, 0);
//! }
//! let wake_at_ms = sampler.due_ms();
//! # Ok::<(), firmware_bridge::value::Mismatch>(())
//! ```
//!
//! # An adapter for a driver crate
//!
//! Where a closure does not do, an adapter takes ten lines; this is the one for the `bme280` crate:
//!
//! ```
//! use embedded_hal::{delay::DelayNs, i2c::I2c};
//! use firmware_bridge::sampler::{Sensor, Slots};
//!
//! struct Climate<I, D> {
//!     driver: bme280::i2c::BME280<I>,
//!     delay: D,
//! }
//!
//! impl<I: I2c, D: DelayNs> Sensor for Climate<I, D> {
//!     const VALUES: usize = 3;
//!     type Error = bme280::Error<I::Error>;
//!
//!     fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Self::Error> {
//!         let measured = self.driver.measure(&mut self.delay)?;
//!         slots.put(measured.temperature);
//!         slots.put(measured.humidity);
//!         slots.put(measured.pressure);
//!         Ok(())
//!     }
//! }
//! ```

use crate::frame::Channel;
use crate::value::{Mismatch, Value, Values};

/// The places for the values of one sensor.
#[derive(Debug)]
pub struct Slots<'v> {
    values: &'v mut Values,
    left: usize,
}

impl Slots<'_> {
    /// Fills the next place. What is put beyond [`Sensor::VALUES`] is left out.
    pub fn put(&mut self, value: impl Into<Value>) {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            // There is room: the sampler has counted the channels.
            _ = self.values.push(value.into());
        }
    }
}

/// Something that can be read, through embedded-hal or otherwise.
pub trait Sensor {
    /// How many channels it fills.
    const VALUES: usize;
    /// Why it could not be read.
    type Error;

    /// Measures and fills the places, in the order of the channels. Those that are left empty are missing this time; after
    /// an error all are.
    ///
    /// # Errors
    /// If it could not be read.
    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Self::Error>;
}

/// All sensors of a board: a tuple of up to eight [`Sensor`]s, also of one.
pub trait Sensors {
    /// How many channels they fill together.
    const VALUES: usize;

    /// Reads all of them; returns a bit for each that could not be read, the first one lowest.
    fn read_all(&mut self, values: &mut Values) -> u32;
}

/// As [`Sensor`], for drivers on embedded-hal-async.
#[cfg(feature = "async")]
pub trait AsyncSensor {
    /// How many channels it fills.
    const VALUES: usize;
    /// Why it could not be read.
    type Error;

    /// As [`Sensor::read`]. If it is dropped halfway, the sample is not taken.
    fn read(&mut self, slots: &mut Slots<'_>) -> impl Future<Output = Result<(), Self::Error>>;
}

/// As [`Sensors`], of [`AsyncSensor`]s.
#[cfg(feature = "async")]
pub trait AsyncSensors {
    /// How many channels they fill together.
    const VALUES: usize;

    /// As [`Sensors::read_all`]; one after the other.
    fn read_all(&mut self, values: &mut Values) -> impl Future<Output = u32>;
}

/// Settles what one sensor filled: the rest of its places is missing, all of them if it failed.
fn settle<E>(values: &mut Values, before: usize, count: usize, outcome: &Result<(), E>) -> u32 {
    if outcome.is_err() {
        values.truncate(before);
    }
    while values.as_slice().len() < before.saturating_add(count) && values.push(Value::Missing).is_ok() {}
    u32::from(outcome.is_err())
}

macro_rules! sensors {
    ($($name:ident . $index:tt),+) => {
        impl<$($name: Sensor),+> Sensors for ($($name,)+) {
            const VALUES: usize = 0 $(+ $name::VALUES)+;

            fn read_all(&mut self, values: &mut Values) -> u32 {
                let mut failed = 0;
                $(
                    let before = values.as_slice().len();
                    let outcome = self.$index.read(&mut Slots { values, left: $name::VALUES });
                    failed |= settle(values, before, $name::VALUES, &outcome) << $index;
                )+
                failed
            }
        }

        #[cfg(feature = "async")]
        impl<$($name: AsyncSensor),+> AsyncSensors for ($($name,)+) {
            const VALUES: usize = 0 $(+ $name::VALUES)+;

            async fn read_all(&mut self, values: &mut Values) -> u32 {
                let mut failed = 0;
                $(
                    let before = values.as_slice().len();
                    let outcome = self.$index.read(&mut Slots { values, left: $name::VALUES }).await;
                    failed |= settle(values, before, $name::VALUES, &outcome) << $index;
                )+
                failed
            }
        }
    };
}

sensors!(A.0);
sensors!(A.0, B.1);
sensors!(A.0, B.1, C.2);
sensors!(A.0, B.1, C.2, D.3);
sensors!(A.0, B.1, C.2, D.3, E.4);
sensors!(A.0, B.1, C.2, D.3, E.4, F.5);
sensors!(A.0, B.1, C.2, D.3, E.4, F.5, G.6);
sensors!(A.0, B.1, C.2, D.3, E.4, F.5, G.6, H.7);

/// A sensor of `VALUES` channels from a closure.
pub fn from_fn<const VALUES: usize, F, E>(read: F) -> FromFn<VALUES, F>
where
    F: FnMut(&mut Slots<'_>) -> Result<(), E>,
{
    FromFn(read)
}

/// See [`from_fn`].
#[derive(Debug)]
pub struct FromFn<const VALUES: usize, F>(F);

impl<const VALUES: usize, F, E> Sensor for FromFn<VALUES, F>
where
    F: FnMut(&mut Slots<'_>) -> Result<(), E>,
{
    const VALUES: usize = VALUES;
    type Error = E;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), E> {
        self.0(slots)
    }
}

/// A blocking sensor among those of embedded-hal-async: fine for pins, and for what takes microseconds.
#[cfg(feature = "async")]
#[derive(Debug)]
pub struct Blocking<S>(pub S);

#[cfg(feature = "async")]
impl<S: Sensor> AsyncSensor for Blocking<S> {
    const VALUES: usize = S::VALUES;
    type Error = S::Error;

    async fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), S::Error> {
        self.0.read(slots)
    }
}

/// Reads a slow sensor only in every nth sample; its channels are missing in between.
#[derive(Debug)]
pub struct Every<S> {
    sensor: S,
    every: u16,
    turn: u16,
}

impl<S> Every<S> {
    /// In the first sample, and in every nth after it.
    #[must_use]
    pub const fn new(every: u16, sensor: S) -> Self {
        Self { sensor, every, turn: 0 }
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.turn == 0;
        self.turn = self.turn.checked_sub(1).unwrap_or(self.every.saturating_sub(1));
        is_due
    }
}

impl<S: Sensor> Sensor for Every<S> {
    const VALUES: usize = S::VALUES;
    type Error = S::Error;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), S::Error> {
        if self.is_due() { self.sensor.read(slots) } else { Ok(()) }
    }
}

#[cfg(feature = "async")]
impl<S: AsyncSensor> AsyncSensor for Every<S> {
    const VALUES: usize = S::VALUES;
    type Error = S::Error;

    async fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), S::Error> {
        if self.is_due() { self.sensor.read(slots).await } else { Ok(()) }
    }
}

/// Keeps why its sensor could not be read; a [`Sampler`] by itself says only which.
#[derive(Debug)]
pub struct Diagnosed<S: Sensor> {
    sensor: S,
    error: Option<S::Error>,
}

impl<S: Sensor> Diagnosed<S> {
    /// Around this sensor.
    #[must_use]
    pub const fn new(sensor: S) -> Self {
        Self { sensor, error: None }
    }

    /// Why the last reading failed, if it did. Tells it once.
    pub const fn take_error(&mut self) -> Option<S::Error> {
        self.error.take()
    }
}

/// A [`Diagnosed`] sensor could not be read; it knows why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

impl<S: Sensor> Sensor for Diagnosed<S> {
    const VALUES: usize = S::VALUES;
    type Error = Failed;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), Failed> {
        self.error = self.sensor.read(slots).err();
        if self.error.is_some() { Err(Failed) } else { Ok(()) }
    }
}

/// A sensor that is set up before its first reading, and anew after each failure: one that is plugged in later, or was without
/// power and has forgotten its configuration, is read again as soon as it answers.
#[derive(Debug)]
pub struct Renewed<S, F> {
    sensor: Option<S>,
    set_up: F,
}

impl<S: Sensor, F: FnMut() -> Result<S, S::Error>> Renewed<S, F> {
    /// A sensor that `set_up` makes. Nothing is done before the first reading.
    #[must_use]
    pub const fn new(set_up: F) -> Self {
        Self { sensor: None, set_up }
    }
}

impl<S: Sensor, F: FnMut() -> Result<S, S::Error>> Sensor for Renewed<S, F> {
    const VALUES: usize = S::VALUES;
    type Error = S::Error;

    fn read(&mut self, slots: &mut Slots<'_>) -> Result<(), S::Error> {
        // Taken out: what fails is not put back.
        let mut sensor = match self.sensor.take() {
            Some(sensor) => sensor,
            None => (self.set_up)()?,
        };
        sensor.read(slots)?;
        self.sensor = Some(sensor);
        Ok(())
    }
}

/// A sample, for [`Link::sample`](crate::link::Link::sample).
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// One value for each channel.
    pub values: Values,
    /// A bit for each sensor that could not be read, the first one lowest.
    pub failed: u32,
}

/// Reads all sensors each `interval_ms`, without drifting. Samples that could not be taken in time are left out.
#[derive(Debug)]
pub struct Sampler<S> {
    sensors: S,
    interval_ms: u32,
    due_ms: u64,
    missed: u64,
}

impl<S> Sampler<S> {
    /// When the next sample is to be taken; by the clock that is passed to `poll`.
    #[must_use]
    pub const fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// How many samples were not taken because nobody polled in time.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// The sensors.
    pub const fn sensors(&mut self) -> &mut S {
        &mut self.sensors
    }

    fn checked(
        channels: &[Channel<'_>],
        sensors: S,
        values: usize,
        interval_ms: u32,
    ) -> Result<Self, Mismatch> {
        if values != channels.len() {
            return Err(Mismatch::Count { values, channels: channels.len() });
        }
        Ok(Self { sensors, interval_ms: interval_ms.max(1), due_ms: 0, missed: 0 })
    }

    /// True if a sample is due; then it sets the time of the next one.
    fn is_due(&mut self, now_ms: u64) -> bool {
        if now_ms < self.due_ms {
            return false;
        }
        // A small processor has no division of 64 bits; nobody polls 50 days late.
        let late_ms = u32::try_from(now_ms.saturating_sub(self.due_ms)).unwrap_or(u32::MAX);
        let late = late_ms.checked_div(self.interval_ms).unwrap_or(0);
        // What is missed before the first sample is nothing.
        self.missed = self.missed.saturating_add(if self.due_ms == 0 { 0 } else { late.into() });
        let passed = u64::from(late).saturating_add(1).saturating_mul(self.interval_ms.into());
        self.due_ms = self.due_ms.saturating_add(passed);
        true
    }
}

impl<S: Sensors> Sampler<S> {
    /// For a board with these channels.
    ///
    /// # Errors
    /// If the sensors do not fill exactly these.
    pub fn new(channels: &[Channel<'_>], sensors: S, interval_ms: u32) -> Result<Self, Mismatch> {
        Self::checked(channels, sensors, S::VALUES, interval_ms)
    }

    /// Reads all sensors if a sample is due.
    pub fn poll(&mut self, now_ms: u64) -> Option<Read> {
        if !self.is_due(now_ms) {
            return None;
        }
        let mut values = Values::new();
        let failed = self.sensors.read_all(&mut values);
        Some(Read { values, failed })
    }
}

#[cfg(feature = "async")]
impl<S: AsyncSensors> Sampler<S> {
    /// For a board with these channels, whose drivers are asynchronous.
    ///
    /// # Errors
    /// If the sensors do not fill exactly these.
    pub fn new_async(channels: &[Channel<'_>], sensors: S, interval_ms: u32) -> Result<Self, Mismatch> {
        Self::checked(channels, sensors, S::VALUES, interval_ms)
    }

    /// Reads all sensors if a sample is due. If it is dropped halfway, that sample is left out.
    pub async fn poll_async(&mut self, now_ms: u64) -> Option<Read> {
        if !self.is_due(now_ms) {
            return None;
        }
        let mut values = Values::new();
        let failed = self.sensors.read_all(&mut values).await;
        Some(Read { values, failed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Kind;

    const CHANNELS: &[Channel<'static>] = &[
        Channel::new("a", "", Kind::Single),
        Channel::new("b", "", Kind::Int),
        Channel::new("c", "", Kind::Bool),
    ];

    fn read(sampler: &mut Sampler<impl Sensors>, now_ms: u64) -> Option<(std::vec::Vec<Value>, u32)> {
        sampler.poll(now_ms).map(|read| (read.values.as_slice().to_vec(), read.failed))
    }

    #[test]
    fn a_sensor_that_fails_leaves_only_its_own_channels_empty() {
        let mut calls = 0;
        let flaky = from_fn::<2, _, _>(move |slots| {
            calls += 1;
            slots.put(1.5_f32);
            if calls == 2 {
                return Err(());
            }
            slots.put(7);
            Ok(())
        });
        let steady = from_fn::<1, _, ()>(|slots| {
            slots.put(true);
            slots.put(false);
            Ok(())
        });
        let mut sampler = Sampler::new(CHANNELS, (flaky, steady), 10).unwrap();
        let whole = std::vec![Value::Single(1.5), Value::Int(7), Value::Bool(true)];
        assert_eq!(read(&mut sampler, 0), Some((whole.clone(), 0)));
        let rest = std::vec![Value::Missing, Value::Missing, Value::Bool(true)];
        assert_eq!(read(&mut sampler, 10), Some((rest, 1)));
        assert_eq!(read(&mut sampler, 20), Some((whole, 0)));
    }

    #[test]
    fn sensors_have_to_fill_the_schema() {
        let one = from_fn::<1, _, ()>(|_| Ok(()));
        let wrong = Sampler::new(CHANNELS, (one,), 10).map(|_| ());
        assert_eq!(wrong, Err(Mismatch::Count { values: 1, channels: 3 }));
    }

    #[test]
    fn samples_are_taken_on_time_and_not_made_up_for() {
        let mut sampler = Sampler::new(&CHANNELS[..1], (from_fn::<1, _, ()>(|_| Ok(())),), 100).unwrap();
        assert!(sampler.poll(70).is_some(), "the first one at once");
        assert!(sampler.poll(99).is_none());
        assert!(sampler.poll(105).is_some());
        assert_eq!(sampler.due_ms(), 200, "it does not drift");
        assert!(sampler.poll(450).is_some());
        assert_eq!((sampler.due_ms(), sampler.missed()), (500, 2), "300 and 400");
    }

    #[test]
    fn a_slow_sensor_is_read_in_every_nth_sample() {
        let slow = from_fn::<1, _, ()>(|slots| {
            slots.put(3.0_f32);
            Ok(())
        });
        let mut sampler = Sampler::new(&CHANNELS[..1], (Every::new(3, slow),), 1).unwrap();
        let taken: std::vec::Vec<bool> = (0..7)
            .map(|now_ms| sampler.poll(now_ms).unwrap().values.as_slice()[0] != Value::Missing)
            .collect();
        assert_eq!(taken, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn why_a_sensor_could_not_be_read_is_told_once() {
        let mut results = [Err("cold"), Ok(()), Err("warm")].into_iter();
        let sensor = from_fn::<1, _, _>(move |_| results.next().unwrap());
        let mut sampler = Sampler::new(&CHANNELS[..1], (Diagnosed::new(sensor),), 1).unwrap();
        assert_eq!(sampler.poll(0).unwrap().failed, 1);
        assert_eq!(sampler.sensors().0.take_error(), Some("cold"));
        assert_eq!(sampler.sensors().0.take_error(), None);
        assert_eq!(sampler.poll(1).unwrap().failed, 0);
        assert_eq!(sampler.sensors().0.take_error(), None);
        assert_eq!(sampler.poll(2).unwrap().failed, 1);
        assert_eq!(sampler.sensors().0.take_error(), Some("warm"));
    }

    #[test]
    fn a_sensor_is_set_up_at_first_and_after_each_failure() {
        use core::cell::Cell;

        let (is_plugged_in, set_ups) = (Cell::new(false), Cell::new(0));
        let read = || if is_plugged_in.get() { Ok(()) } else { Err("nobody answers") };
        let sensor = Renewed::new(|| {
            read()?;
            set_ups.set(set_ups.get() + 1);
            Ok(from_fn::<1, _, _>(|slots| {
                slots.put(set_ups.get());
                read()
            }))
        });
        let mut sampler = Sampler::new(&CHANNELS[1..2], (sensor,), 1).unwrap();
        let mut value = |now_ms: u64, plugged_in: bool| {
            is_plugged_in.set(plugged_in);
            sampler.poll(now_ms).unwrap().values.as_slice()[0]
        };
        assert_eq!(value(0, false), Value::Missing);
        assert_eq!((value(1, true), value(2, true)), (Value::Int(1), Value::Int(1)));
        assert_eq!(value(3, false), Value::Missing);
        assert_eq!((value(4, true), value(5, true)), (Value::Int(2), Value::Int(2)));
    }
}
