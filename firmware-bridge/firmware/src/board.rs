//! What we need of the LM3S6965: its UART0 (a PL011) and a clock of milliseconds; and a thermometer that is not there,
//! behind embedded-hal. Registers are touched here and nowhere else.

use core::cell::Cell;
use core::convert::Infallible;

use cortex_m::interrupt::{Mutex, free};
use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::exception;
use embedded_hal::i2c::{ErrorType, I2c, Operation};

/// UART0 of the LM3S6965.
const UART: usize = 0x4000_C000;
const DATA: *mut u32 = UART as *mut u32;
const FLAGS: *const u32 = (UART + 0x18) as *const u32;
const CONTROL: *mut u32 = (UART + 0x30) as *mut u32;
const RECEIVE_EMPTY: u32 = 1 << 4;
const TRANSMIT_FULL: u32 = 1 << 5;
/// The UART, its transmitter and its receiver.
const ENABLED: u32 = 1 | 1 << 8 | 1 << 9;
/// The processor's clock after a reset is 12.5 MHz here: so many ticks are a millisecond.
const TICKS: u32 = 12_500;

static UPTIME_MS: Mutex<Cell<u64>> = Mutex::new(Cell::new(0));

#[exception]
fn SysTick() {
    free(|token| {
        let uptime = UPTIME_MS.borrow(token);
        uptime.set(uptime.get() + 1);
    });
}

/// Milliseconds since the reset.
pub fn uptime_ms() -> u64 {
    free(|token| UPTIME_MS.borrow(token).get())
}

/// Starts clock and UART.
pub fn start(mut timer: SYST) {
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(TICKS - 1);
    timer.clear_current();
    timer.enable_interrupt();
    timer.enable_counter();
    // SAFETY: the address is the UART's control register (data sheet, section 12.6), which nobody else touches.
    unsafe { CONTROL.write_volatile(ENABLED) };
}

/// Waits for room and writes all of it.
pub fn write(bytes: &[u8]) {
    for byte in bytes {
        // SAFETY: the UART's registers; reading the flags and writing the data have no other effect.
        unsafe {
            while FLAGS.read_volatile() & TRANSMIT_FULL != 0 {}
            DATA.write_volatile(u32::from(*byte));
        }
    }
}

/// The next byte that was received, if there is one.
pub fn read() -> Option<u8> {
    // SAFETY: as above; reading the data takes a byte off the receiver's queue.
    unsafe { (FLAGS.read_volatile() & RECEIVE_EMPTY == 0).then(|| DATA.read_volatile().to_le_bytes()[0]) }
}

/// A bus with an LM75 whose temperature rises by 1/8 °C with each reading, from 20 to 52 °C and again.
#[derive(Default)]
pub struct SimulatedBus {
    readings: u8,
}

impl ErrorType for SimulatedBus {
    type Error = Infallible;
}

impl I2c for SimulatedBus {
    fn transaction(&mut self, _address: u8, operations: &mut [Operation<'_>]) -> Result<(), Infallible> {
        for operation in operations {
            if let Operation::Read(bytes) = operation {
                let register = (160 + u16::from(self.readings)) << 5;
                for (to, from) in bytes.iter_mut().zip(register.to_be_bytes()) {
                    *to = from;
                }
                self.readings = self.readings.wrapping_add(1);
            }
        }
        Ok(())
    }
}
