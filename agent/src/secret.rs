//! Shared words: passwords, tokens and header values, and where they are kept.
//!
//! A secret is read when it is used, so that a rotated file is picked up at the next connection, and it is never printed.

use std::fmt;
use std::path::{Path, PathBuf};

/// A secret, or where to find it. `Debug` never shows the value.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Written in the configuration itself.
    Inline(String),
    /// The contents of a file, without the newline at its end. A relative path is looked up in `$CREDENTIALS_DIRECTORY`.
    File(PathBuf),
    /// The value of an environment variable.
    Env(String),
}

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A relative file, but nobody said relative to what.
    #[error(
        "secret file {file:?} is relative and $CREDENTIALS_DIRECTORY is not set; use an absolute path or systemd's LoadCredential"
    )]
    NoCredentialsDirectory {
        /// The path as configured.
        file: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read secret file {file:?}; check that it exists and that the service user may read it")]
    Unreadable {
        /// The path that was tried.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The environment variable is not set, or not UTF-8.
    #[error("environment variable {name} is not set to a text")]
    NoVariable {
        /// Its name.
        name: String,
    },
}

impl Secret {
    /// The value.
    ///
    /// # Errors
    /// If the file or variable it is kept in cannot be read.
    pub fn reveal(&self) -> Result<String, Error> {
        match self {
            Self::Inline(value) => Ok(value.clone()),
            Self::File(file) => {
                let file = located(file)?;
                let text = std::fs::read_to_string(&file)
                    .map_err(|source| Error::Unreadable { file: file.clone(), source })?;
                Ok(text.trim_end_matches(['\n', '\r']).to_owned())
            }
            Self::Env(name) => std::env::var(name).map_err(|_| Error::NoVariable { name: name.clone() }),
        }
    }
}

/// Where a secret file is to be looked for.
///
/// # Errors
/// If it is relative and there is no credentials directory.
pub fn located(file: &Path) -> Result<PathBuf, Error> {
    if file.is_absolute() {
        return Ok(file.to_owned());
    }
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
        .ok_or_else(|| Error::NoCredentialsDirectory { file: file.to_owned() })?;
    Ok(PathBuf::from(directory).join(file))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("***"),
            Self::File(file) => write!(f, "*** from {}", file.display()),
            Self::Env(name) => write!(f, "*** from ${name}"),
        }
    }
}
