//! What the sensors say: slow random walks, as temperatures go, with a counter and a flag that rarely changes.
//!
//! Neither constant nor noise in each digit: either would make a compressor look better or worse than it is.

use std::io::Write;

/// How many devices there are in all; each belongs to one connection.
pub(crate) const DEVICES: usize = 200;

/// One device.
pub(crate) struct Device {
    pub(crate) topic: String,
    seq: u64,
    /// Hundredths of a degree.
    temperature: i32,
    /// Tenths of a percent.
    humidity: i32,
    running: bool,
    chance: fastrand::Rng,
}

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// About 85 bytes of JSON.
    Usual,
    /// The same with a text that no compressor makes shorter than three quarters: fills a store quickly.
    Bulky,
}

/// Random characters in a bulky payload.
const BULK_BYTES: usize = 4_000;

impl Device {
    pub(crate) fn new(number: usize) -> Self {
        let mut chance = fastrand::Rng::with_seed(number as u64 + 1);
        Self {
            topic: format!("sensors/d{number:04}/telemetry"),
            // Devices have been running for different times; five digits for most of a run.
            seq: 10_000 + chance.u64(0..2_000),
            temperature: 2_000 + chance.i32(-300..300),
            humidity: 480 + chance.i32(-80..80),
            running: true,
            chance,
        }
    }

    /// Appends the next payload.
    pub(crate) fn write(&mut self, now_ms: u64, kind: Payload, out: &mut Vec<u8>) {
        self.seq += 1;
        self.temperature = (self.temperature + self.chance.i32(-4..=4)).clamp(1_000, 3_999);
        self.humidity = (self.humidity + self.chance.i32(-1..=1)).clamp(200, 899);
        if self.chance.u32(0..500) == 0 {
            self.running = !self.running;
        }
        let Self { seq, temperature, humidity, running, .. } = self;
        let (degrees, hundredths) = (*temperature / 100, *temperature % 100);
        let (percent, tenths) = (*humidity / 10, *humidity % 10);
        write!(
            out,
            "{{\"ts\":{now_ms},\"seq\":{seq},\"temperature\":{degrees}.{hundredths:02},\
             \"humidity\":{percent}.{tenths},\"running\":{running}",
        )
        .expect("a Vec takes any bytes");
        if kind == Payload::Bulky {
            out.extend_from_slice(b",\"trace\":\"");
            out.extend((0..BULK_BYTES).map(|_| self.chance.alphanumeric() as u8));
            out.push(b'"');
        }
        out.push(b'}');
    }
}
