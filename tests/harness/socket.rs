//! A serial port that things are plugged into: a name that stays the same, as under `/dev/serial/by-id`, and leads to another pty
//! each time.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use holdfast::source::pty::Pty;
use tempfile::TempDir;

/// The socket. What was plugged in belongs to who plugged it in.
#[derive(Debug)]
pub struct Socket {
    dir: TempDir,
    /// The next one. Opened while the last one still is, or the system would give it the same number.
    next: Pty,
}

impl Socket {
    /// Nothing is plugged in.
    ///
    /// # Panics
    /// If the system has no pty.
    #[must_use]
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), next: Pty::new().unwrap() }
    }

    /// Where the port is, while something is plugged in.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("usb-press")
    }

    /// Plugs something in: the port is there, and this is the other end of it.
    ///
    /// # Panics
    /// If the system has no pty left, or does not let us make the link.
    pub fn plug_in(&mut self) -> Pty {
        let pty = std::mem::replace(&mut self.next, Pty::new().unwrap());
        pty.set_nonblocking().unwrap();
        self.lead_to(pty.path());
        pty
    }

    /// The name leads nowhere any more. The pty ends when its owner drops it.
    ///
    /// # Panics
    /// If nothing was plugged in.
    pub fn unplug(&self) {
        std::fs::remove_file(self.path()).unwrap();
    }

    /// The name leads to something else from now on, such as a file.
    ///
    /// # Panics
    /// If the system does not let us make the link.
    pub fn lead_to(&self, target: &Path) {
        let new = self.dir.path().join("new");
        symlink(target, &new).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}
