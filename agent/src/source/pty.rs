//! A pty whose master is ours: a port without hardware, for the demo and for tests.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::io::{Join, join};
use tokio::net::unix::pipe;

/// The master's end, both directions. When it is dropped, the port is unplugged.
pub type Stream = Join<pipe::Receiver, pipe::Sender>;

/// The master's end. When it is dropped, the port is unplugged.
#[derive(Debug)]
pub struct Pty {
    master: File,
    path: PathBuf,
}

impl Pty {
    /// A new one. All bytes pass as they are, also those written before anybody opens it.
    ///
    /// # Errors
    /// If the system has none.
    pub fn new() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let mut settings = tcgetattr(&master)?;
        settings.make_raw();
        tcsetattr(&master, OptionalActions::Now, &settings)?;
        let name = ptsname(&master, Vec::new())?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        Ok(Self { master: master.into(), path })
    }

    /// Opens the port without using it: its other end does not fail while this lives.
    ///
    /// # Errors
    /// If the system fails.
    pub fn hold(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.path, flags, Mode::empty())?.into())
    }

    /// Where the port is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `bytes` to whoever has the port open, now or later. Blocks when the port's buffer is full.
    ///
    /// # Errors
    /// If the system fails.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.master.write_all(bytes)
    }

    /// Writes what the port's buffer has room for now.
    ///
    /// # Errors
    /// If that is nothing, and [`set_nonblocking`](Self::set_nonblocking) was called, or the system fails.
    pub fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.master.write(bytes)
    }

    /// From now on reads and writes that would have to wait fail instead.
    ///
    /// # Errors
    /// If the system fails.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        let flags = fcntl_getfl(&self.master)?;
        Ok(fcntl_setfl(&self.master, flags | OFlags::NONBLOCK)?)
    }

    /// Reads what was written to the port; blocks until there is something. `EIO` while nobody has it open.
    ///
    /// # Errors
    /// If nobody has it open, or the system fails.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.master.read(into)
    }

    /// The master as tokio reads and writes it; reads fail while nobody has the port open. Only within a runtime.
    ///
    /// # Errors
    /// If the system fails.
    pub fn into_stream(self) -> io::Result<Stream> {
        self.set_nonblocking()?;
        let second = self.try_clone()?;
        // No pipe, but no other type of tokio's takes any descriptor safely.
        Ok(join(
            pipe::Receiver::from_file_unchecked(self.master)?,
            pipe::Sender::from_file_unchecked(second.master)?,
        ))
    }

    /// A second handle to the same master.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { master: self.master.try_clone()?, path: self.path.clone() })
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}
