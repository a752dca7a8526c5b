//! What a configuration asks of the machine: the host name, variables, whether files are there. Behind a trait, so that a
//! test does not depend on the machine it runs on.

use std::io;
use std::path::Path;

/// The machine, as far as the configuration is concerned.
pub trait Environment {
    /// The host name, or an empty text.
    fn host_name(&self) -> String;
    /// The value of an environment variable, if it is set to a text.
    fn variable(&self, name: &str) -> Option<String>;
    /// Looks whether there is something at `path` that can be read like a file. Opens nothing.
    ///
    /// # Errors
    /// If there is nothing, or a folder, or it cannot be told.
    fn look(&self, path: &Path) -> io::Result<()>;
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// The machine this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Environment for System {
    fn host_name(&self) -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn look(&self, path: &Path) -> io::Result<()> {
        if std::fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }
}
