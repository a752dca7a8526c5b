//! The bus, and what can go wrong on it.
//!
//! Drivers see any embedded-hal bus: the kernel's, or one of a test. All of them share it; its errors are those that a
//! person can do something about.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::{self, ErrorKind, ErrorType, I2c, NoAcknowledgeSource, Operation};
use linux_embedded_hal::i2cdev::linux::LinuxI2CError;
use linux_embedded_hal::{Delay, I2CError, I2cdev};
use rustix::io::Errno;

use crate::source::State;

/// Why a bus could not be opened, or a transfer on it failed. Reads on after the name of whoever it befell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The device file is not there, or nothing is behind it any more.
    #[error("is not there; turn the bus on (on a Raspberry Pi: dtparam=i2c_arm=on) or plug its adapter in")]
    Absent,
    /// We may not open it.
    #[error(
        "may not be opened; add the user of the agent to the group i2c, and under systemd let DeviceAllow= name it"
    )]
    Denied,
    /// It is something else.
    #[error("is no I2C bus; expected a device such as /dev/i2c-1 (i2cdetect -l lists them)")]
    NotABus,
    /// Nobody acknowledges.
    #[error("does not answer")]
    NoAnswer,
    /// The transfer took too long for the kernel.
    #[error("holds up the bus: a transfer timed out; check its power, its wiring and the pull-ups")]
    TimedOut,
    /// The kernel has a driver for that address, or the bus is never free.
    #[error(
        "is in use: a driver of the kernel has this address (i2cdetect shows UU), or the bus is never free"
    )]
    InUse,
    /// The adapter has no plain transfers.
    #[error("cannot be read: the adapter of this bus speaks SMBus only")]
    SmbusOnly,
    /// Another bus master was faster, or the line is disturbed.
    #[error("cannot be read: transfers are disturbed ({0}); check wiring, cable length and pull-ups")]
    Disturbed(String),
}

impl Fault {
    /// The state of the whole source, if it concerns the whole bus.
    pub(super) fn of_bus(&self) -> Option<State> {
        match self {
            Self::Absent => Some(State::Unplugged),
            Self::Denied => Some(State::PermissionDenied),
            Self::NotABus => Some(State::Misconfigured),
            Self::NoAnswer | Self::TimedOut | Self::InUse | Self::SmbusOnly | Self::Disturbed(_) => None,
        }
    }

    /// What an error of the system means during a transfer (the kernel's `Documentation/i2c/fault-codes.rst`).
    fn of_transfer(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::SHUTDOWN => Self::Absent,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            Errno::NOTTY | Errno::ISDIR => Self::NotABus,
            // Adapters do not agree on how to say it; the Raspberry Pi's says EREMOTEIO.
            Errno::NXIO | Errno::REMOTEIO => Self::NoAnswer,
            Errno::TIMEDOUT => Self::TimedOut,
            Errno::BUSY => Self::InUse,
            Errno::OPNOTSUPP => Self::SmbusOnly,
            other => Self::Disturbed(std::io::Error::from(other).to_string()),
        }
    }

    /// The same while the bus is opened.
    fn of_opening(errno: Errno) -> Self {
        match errno {
            Errno::NXIO => Self::Absent,
            Errno::INVAL => Self::NotABus,
            other => Self::of_transfer(other),
        }
    }
}

impl i2c::Error for Fault {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoAnswer => ErrorKind::NoAcknowledge(NoAcknowledgeSource::Unknown),
            Self::Disturbed(_) | Self::TimedOut | Self::InUse => ErrorKind::Bus,
            Self::Absent | Self::Denied | Self::NotABus | Self::SmbusOnly => ErrorKind::Other,
        }
    }
}

impl From<I2CError> for Fault {
    fn from(error: I2CError) -> Self {
        errno(error.inner()).map_or_else(|| Self::Disturbed(error.to_string()), Self::of_transfer)
    }
}

/// What a bus says that knows no more than embedded-hal does.
impl From<ErrorKind> for Fault {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NoAcknowledge(_) => Self::NoAnswer,
            other => Self::Disturbed(other.to_string()),
        }
    }
}

fn errno(error: &LinuxI2CError) -> Option<Errno> {
    let raw = match error {
        LinuxI2CError::Errno(raw) => Some(*raw),
        LinuxI2CError::Io(error) => error.raw_os_error(),
    };
    // Zero stands for one that nobody knows.
    raw.filter(|raw| (1..4_096).contains(raw)).map(Errno::from_raw_os_error)
}

/// A bus that drivers share, each with a handle of its own; also their delay. Both block.
#[derive(Clone)]
pub(super) struct Bus {
    wire: Arc<Mutex<dyn I2c<Error = Fault> + Send>>,
    pause: fn(Duration),
}

impl Bus {
    /// Any bus of embedded-hal. `pause` waits as long as it is told.
    pub(super) fn new<B>(bus: B, pause: fn(Duration)) -> Self
    where
        B: I2c + Send + 'static,
        Fault: From<B::Error>,
    {
        Self { wire: Arc::new(Mutex::new(Explained(bus))), pause }
    }

    /// The kernel's bus at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let pause = |duration: Duration| {
            Delay.delay_ns(u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX));
        };
        match I2cdev::new(path) {
            Ok(bus) => Ok(Self::new(bus, pause)),
            Err(error) => {
                Err(errno(&error).map_or_else(|| Fault::Disturbed(error.to_string()), Fault::of_opening))
            }
        }
    }

    fn on_the_wire<T>(&self, transfer: impl FnOnce(&mut dyn I2c<Error = Fault>) -> T) -> T {
        transfer(&mut *self.wire.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ErrorType for Bus {
    type Error = Fault;
}

impl I2c for Bus {
    fn read(&mut self, address: u8, read: &mut [u8]) -> Result<(), Fault> {
        self.on_the_wire(|wire| wire.read(address, read))
    }

    fn write(&mut self, address: u8, write: &[u8]) -> Result<(), Fault> {
        self.on_the_wire(|wire| wire.write(address, write))
    }

    fn write_read(&mut self, address: u8, write: &[u8], read: &mut [u8]) -> Result<(), Fault> {
        self.on_the_wire(|wire| wire.write_read(address, write, read))
    }

    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), Fault> {
        self.on_the_wire(|wire| wire.transaction(address, operations))
    }
}

impl DelayNs for Bus {
    fn delay_ns(&mut self, ns: u32) {
        (self.pause)(Duration::from_nanos(ns.into()));
    }

    // The default would take a millisecond for a thousand pauses.
    fn delay_us(&mut self, us: u32) {
        (self.pause)(Duration::from_micros(us.into()));
    }

    fn delay_ms(&mut self, ms: u32) {
        (self.pause)(Duration::from_millis(ms.into()));
    }
}

/// A bus whose errors are [`Fault`]s.
struct Explained<B>(B);

impl<B> ErrorType for Explained<B> {
    type Error = Fault;
}

impl<B: I2c> I2c for Explained<B>
where
    Fault: From<B::Error>,
{
    fn read(&mut self, address: u8, read: &mut [u8]) -> Result<(), Fault> {
        Ok(self.0.read(address, read)?)
    }

    fn write(&mut self, address: u8, write: &[u8]) -> Result<(), Fault> {
        Ok(self.0.write(address, write)?)
    }

    fn write_read(&mut self, address: u8, write: &[u8], read: &mut [u8]) -> Result<(), Fault> {
        Ok(self.0.write_read(address, write, read)?)
    }

    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), Fault> {
        Ok(self.0.transaction(address, operations)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bus_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("i2c-1");
        let check = |path: &Path, expected: Fault| assert_eq!(Bus::open(path).err(), Some(expected));
        check(&file, Fault::Absent);
        std::fs::write(&file, "").unwrap();
        check(&file, Fault::NotABus);
        check(folder.path(), Fault::NotABus);
        check(Path::new("/dev/null"), Fault::NotABus);
    }

    #[test]
    fn what_the_kernel_says_has_a_meaning() {
        let check = |errno: Errno, during: &Fault, opening: &Fault| {
            assert_eq!(
                (&Fault::of_transfer(errno), &Fault::of_opening(errno)),
                (during, opening),
                "{errno:?}"
            );
        };
        check(Errno::NXIO, &Fault::NoAnswer, &Fault::Absent);
        check(Errno::REMOTEIO, &Fault::NoAnswer, &Fault::NoAnswer);
        check(Errno::NODEV, &Fault::Absent, &Fault::Absent);
        check(Errno::ACCESS, &Fault::Denied, &Fault::Denied);
        check(Errno::PERM, &Fault::Denied, &Fault::Denied);
        check(Errno::BUSY, &Fault::InUse, &Fault::InUse);
        check(Errno::TIMEDOUT, &Fault::TimedOut, &Fault::TimedOut);
        check(Errno::OPNOTSUPP, &Fault::SmbusOnly, &Fault::SmbusOnly);
        assert!(Fault::of_transfer(Errno::IO).to_string().contains("Input/output error"));
    }
}
