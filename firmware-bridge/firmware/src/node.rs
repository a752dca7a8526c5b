//! A sensor node: a thermometer on I2C, read a hundred times a second, delivered over the UART exactly once.
#![no_std]
#![no_main]

mod board;

use cortex_m::Peripherals;
use cortex_m::asm::wfi;
use cortex_m_rt::entry;
use firmware_bridge::frame::{Channel, Level, MAX_NODE_WIRE_BYTES};
use firmware_bridge::link::{Identity, Link, Settings};
use firmware_bridge::sampler::{Sampler, from_fn};
use firmware_bridge::sensors::Lm75;
use firmware_bridge::value::Kind;
use panic_halt as _;

const CHANNELS: &[Channel<'static>] =
    &[Channel::new("temperature", "°C", Kind::Single), Channel::new("reading", "", Kind::Int)];
const INTERVAL_MS: u32 = 10;
/// The ring: 200 samples and more, two seconds.
const RING_BYTES: usize = 4_096;

/// What the link needs of RAM beside its ring, with the transmit buffer.
const LINK_BYTES: usize = size_of::<Link<'_, RING_BYTES>>() - RING_BYTES + MAX_NODE_WIRE_BYTES;
const _: () = assert!(LINK_BYTES <= 1_024, "the link has outgrown its RAM");

#[entry]
fn main() -> ! {
    let Some(peripherals) = Peripherals::take() else { halt() };
    board::start(peripherals.SYST);
    // A real board counts its resets in EEPROM or draws a random number; QEMU's has neither.
    let Ok(identity) = Identity::new("qemu-node", env!("CARGO_PKG_VERSION"), 1, CHANNELS) else { halt() };
    let mut link = Link::<RING_BYTES>::new(identity, Settings::default());
    let mut buffer = [0; MAX_NODE_WIRE_BYTES];
    let mut readings = 0_u32;
    let counter = from_fn::<1, _, ()>(move |slots| {
        readings = readings.wrapping_add(1);
        slots.put(readings);
        Ok(())
    });
    let thermometer = Lm75 { i2c: board::SimulatedBus::default(), address: 0x48 };
    let Ok(mut sampler) = Sampler::new(CHANNELS, (thermometer, counter), INTERVAL_MS) else { halt() };
    if let Ok(frame) = link.log(0, Level::Info, "the node has started", &mut buffer) {
        board::write(frame);
    }
    loop {
        let now_ms = board::uptime_ms();
        while let Some(byte) = board::read() {
            link.receive(now_ms, &[byte]);
        }
        if let Some(sample) = sampler.poll(now_ms) {
            // What had to be dropped for it the link tells the host.
            _ = link.sample(now_ms, sample.values.as_slice());
        }
        while let Ok(Some(frame)) = link.transmit(now_ms, &mut buffer) {
            board::write(frame);
        }
        // The clock wakes us each millisecond.
        wfi();
    }
}

/// The firmware was built wrongly: nothing to be done.
fn halt() -> ! {
    loop {
        wfi();
    }
}
