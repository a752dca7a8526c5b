//! What an operator should know of a valid configuration, and how it is said.

use std::fmt;
use std::sync::Arc;

use super::fault::write_place;
use super::lines::Position;

/// Something an operator should know of a valid configuration.
#[derive(Clone, Debug)]
pub struct Note {
    /// The file, as the operator named it.
    pub file: Arc<str>,
    /// Where; `None` if it concerns the file as a whole.
    pub position: Option<Position>,
    /// The path of the key; may be empty.
    pub key: String,
    /// What there is to know.
    pub remark: Remark,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.position)?;
        f.write_str(match self.remark.severity() {
            Severity::Warning => "warning: ",
            Severity::Note => "note: ",
        })?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.remark.fmt(f)
    }
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Probably not what the operator wants.
    Warning,
    /// Good to know.
    Note,
}

/// What there is to know of a valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Remark {
    /// Nothing comes in.
    NoSource,
    /// Nothing goes out.
    NoSink,
    /// QoS 2 is asked for.
    QosTwo,
    /// QoS 0 is asked for.
    QosZero,
    /// A relative secret file, and nobody to say relative to what.
    RelativeSecret {
        /// The file.
        file: String,
    },
    /// A secret's variable is not set here.
    VariableNotSet {
        /// Its name.
        name: String,
    },
    /// A file that is there but cannot be looked at by who runs the check.
    CannotLook {
        /// The file.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// The users file is empty.
    NoUsers,
    /// Passwords cross the network readable.
    PasswordsInClear,
    /// What proves who we are crosses the network readable.
    SecretInClear {
        /// The scheme that would hide it.
        scheme: &'static str,
    },
    /// A stream that no sink takes.
    StreamGoesNowhere {
        /// The stream.
        stream: &'static str,
    },
    /// Both topic and payload name the device.
    DeviceTwice,
    /// `{field}` in the topic of payloads that name their fields themselves.
    FieldUnused,
    /// Two subscriptions at one broker that take the same messages.
    Overlap {
        /// The filter of the earlier one.
        earlier: String,
    },
    /// The path of the socket is longer than the system allows.
    SocketPathTooLong {
        /// The path.
        path: String,
    },
}

impl Remark {
    /// How much it matters.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::NoSource
            | Self::NoSink
            | Self::NoUsers
            | Self::PasswordsInClear
            | Self::SecretInClear { .. }
            | Self::StreamGoesNowhere { .. }
            | Self::DeviceTwice
            | Self::FieldUnused
            | Self::Overlap { .. }
            | Self::SocketPathTooLong { .. } => Severity::Warning,
            Self::QosTwo
            | Self::QosZero
            | Self::RelativeSecret { .. }
            | Self::VariableNotSet { .. }
            | Self::CannotLook { .. } => Severity::Note,
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSource => f.write_str("no source is configured: nothing comes in"),
            Self::NoSink => f.write_str("no sink is configured: readings are kept until the store's limits and sent nowhere"),
            Self::QosTwo => f.write_str("qos 2 is subscribed at 1; messages sent again are recognised, so each is stored once all the same"),
            Self::QosZero => f.write_str("qos 0: a message is unprotected until it is stored"),
            Self::RelativeSecret { file } => write!(
                f,
                "secret file {file:?} is relative and $CREDENTIALS_DIRECTORY is not set here, so it was not looked for"
            ),
            Self::VariableNotSet { name } => {
                write!(f, "environment variable {name} is not set here; the service needs it")
            }
            Self::CannotLook { file, reason } => {
                write!(f, "cannot look at {file:?}: {reason}; the service user must be able to read it")
            }
            Self::NoUsers => f.write_str("the users file names nobody: all clients are refused"),
            Self::PasswordsInClear => {
                f.write_str("clients send their passwords readable over the network; add tls")
            }
            Self::SecretInClear { scheme } => {
                write!(f, "this is sent readable over the network; use {scheme}://")
            }
            Self::StreamGoesNowhere { stream } => {
                write!(f, "no sink takes the stream {stream:?}: it is kept until the store's limits")
            }
            Self::DeviceTwice => f.write_str("the topic has {device} already; leave one of the two out"),
            Self::FieldUnused => f.write_str("{field} names the field of a \"value\" payload; any other has its own names"),
            Self::Overlap { earlier } => write!(
                f,
                "overlaps with the filter {earlier:?} of this source: a broker may send a message that both match twice, and it is then stored twice"
            ),
            Self::SocketPathTooLong { path } => write!(
                f,
                "{path:?} is longer than the {MAX_SOCKET_PATH_BYTES} bytes a socket's path may have; set admin.socket to a shorter one"
            ),
        }
    }
}

/// `sun_path` holds 108 bytes, the last of them zero (unix(7)).
pub(super) const MAX_SOCKET_PATH_BYTES: usize = 107;
