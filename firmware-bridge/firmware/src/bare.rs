//! The node without the link: the same sensors on the same schedule, their values written as they are. What the link costs is
//! the difference.
#![no_std]
#![no_main]

mod board;

use cortex_m::Peripherals;
use cortex_m::asm::wfi;
use cortex_m_rt::entry;
use firmware_bridge::frame::Channel;
use firmware_bridge::sampler::{Sampler, from_fn};
use firmware_bridge::sensors::Lm75;
use firmware_bridge::value::{Kind, Value};
use panic_halt as _;

const CHANNELS: &[Channel<'static>] =
    &[Channel::new("temperature", "°C", Kind::Single), Channel::new("reading", "", Kind::Int)];

#[entry]
fn main() -> ! {
    let Some(peripherals) = Peripherals::take() else { halt() };
    board::start(peripherals.SYST);
    let mut readings = 0_u32;
    let counter = from_fn::<1, _, ()>(move |slots| {
        readings = readings.wrapping_add(1);
        slots.put(readings);
        Ok(())
    });
    let thermometer = Lm75 { i2c: board::SimulatedBus::default(), address: 0x48 };
    let Ok(mut sampler) = Sampler::new(CHANNELS, (thermometer, counter), 10) else { halt() };
    loop {
        while board::read().is_some() {}
        if let Some(sample) = sampler.poll(board::uptime_ms()) {
            for value in sample.values.as_slice() {
                match value {
                    Value::Single(value) => board::write(&value.to_le_bytes()),
                    Value::Int(value) => board::write(&value.to_le_bytes()),
                    Value::Missing | Value::Bool(_) | Value::Double(_) => {}
                }
            }
        }
        wfi();
    }
}

/// The firmware was built wrongly: nothing to be done.
fn halt() -> ! {
    loop {
        wfi();
    }
}
