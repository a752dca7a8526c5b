//! A serial port, or what stands in for one: opened, and told apart why it cannot be.
//!
//! Bytes come over a UART, a USB adapter or a pty (`path`), or over TCP from a serial server such as `ser2net` (`url`). All of
//! them are the same to who reads: a stream of bytes that ends when it is unplugged.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_serial::{ClearBuffer, ErrorKind, SerialPort, SerialStream};
pub use tokio_serial::{DataBits, FlowControl, Parity, StopBits};

use super::State;
use crate::backoff;
use crate::blocking::blocking;

/// How long a serial server may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to open a port: who plugs something in should not wait long for us.
pub const RETRY: backoff::Settings =
    backoff::Settings { initial: Duration::from_millis(250), max: Duration::from_secs(5) };
/// Where ptys lie.
const PTYS: &str = "/dev/pts";

/// Where the port is, and how it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub at: Place,
    /// Symbols a second. This and what follows mean nothing over TCP.
    pub baud: u32,
    /// Bits in a character.
    pub data_bits: DataBits,
    /// The check bit of a character.
    pub parity: Parity,
    /// Bits behind a character.
    pub stop_bits: StopBits,
    /// How the one side tells the other to wait.
    pub flow_control: FlowControl,
}

/// Where a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A device file. It is looked up at each opening, so a link under `/dev/serial/by-id` leads to the right one.
    Path(PathBuf),
    /// A serial server, as host and port.
    Tcp {
        /// The host, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Settings {
    /// `baud` where the operator does not say: what most boards and adapters are set to.
    pub const DEFAULT_BAUD: u32 = 115_200;

    /// That place, with all else at its default: 115 200 baud, 8 N 1.
    #[must_use]
    pub fn at(at: Place) -> Self {
        Self {
            at,
            baud: Self::DEFAULT_BAUD,
            data_bits: DataBits::Eight,
            parity: Parity::None,
            stop_bits: StopBits::One,
            flow_control: FlowControl::None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {
    /// Forgets what was written and has not left. The system waits for it when a port is closed, and with it our thread.
    fn forget_output(&self);
}

impl Duplex for SerialStream {
    fn forget_output(&self) {
        // One that is gone has nothing left to forget.
        self.clear(ClearBuffer::Output).ok();
    }
}

impl Duplex for TcpStream {
    fn forget_output(&self) {}
}

/// An open port.
#[derive(Debug)]
pub struct Port {
    /// Its bytes. A read of nothing means that it was unplugged.
    pub stream: Box<dyn Duplex>,
    /// Whether what comes first may be the rest of something.
    pub beginning: Beginning,
}

/// What a port begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Perhaps the middle of a line: whoever is at the other end does not know that we begin to listen.
    AnyPlace,
    /// The first byte: a pty keeps what was written before we came.
    First,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Nothing is plugged in.
    #[error("{place} is not there; it is opened as soon as it is plugged in{}", by_id(place))]
    Absent {
        /// The port.
        place: Place,
    },
    /// It was there.
    #[error("{place} was unplugged")]
    Gone {
        /// The port.
        place: Place,
    },
    /// We may not open it.
    #[error(
        "{place} may not be opened ({reason}): add the user of this program to the group that owns it, dialout on Debian"
    )]
    Permission {
        /// The port.
        place: Place,
        /// What the system said.
        reason: String,
    },
    /// The unit of the service does not allow such devices, or did not when it was started.
    #[error(
        "{place} may not be opened (Operation not permitted): allow it to the service with DeviceAllow=, and restart the service once its driver is loaded"
    )]
    Forbidden {
        /// The port.
        place: Place,
    },
    /// Another program has it.
    #[error("{place} is in use by another program; stop that, `fuser -v` on it tells which")]
    Busy {
        /// The port.
        place: Place,
    },
    /// It is something else.
    #[error("{place} is no serial port")]
    NoPort {
        /// The port.
        place: Place,
    },
    /// It does not take these settings.
    #[error("{place} does not take {baud} baud with these settings: {reason}")]
    Refused {
        /// The port.
        place: Place,
        /// The speed.
        baud: u32,
        /// What the system said.
        reason: String,
    },
    /// Something else.
    #[error("{place} cannot be opened")]
    Io {
        /// The port.
        place: Place,
        /// What the system said.
        source: io::Error,
    },
    /// It was open and failed.
    #[error("{place} failed")]
    Failed {
        /// The port.
        place: Place,
        /// What the system said.
        source: io::Error,
    },
}

fn by_id(place: &Place) -> &'static str {
    match place {
        Place::Path(path) if !path.starts_with("/dev/serial") => {
            " (`ls -l /dev/serial/by-id` shows names that stay the same)"
        }
        _ => "",
    }
}

impl Trouble {
    /// The state of a source that has it.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Self::Absent { .. } | Self::Gone { .. } => State::Unplugged,
            Self::Permission { .. } | Self::Forbidden { .. } => State::PermissionDenied,
            Self::Busy { .. } => State::Busy,
            Self::NoPort { .. } | Self::Refused { .. } => State::Misconfigured,
            Self::Io { .. } | Self::Failed { .. } => State::Disconnected,
        }
    }

    /// What a read or write of nothing, or this error of one, means.
    #[must_use]
    pub fn of_stream(place: &Place, error: Option<io::Error>) -> Self {
        let place = place.clone();
        // A pty or an adapter that is gone says EIO, ENXIO or ENODEV, whichever way it is asked.
        let is_gone = |error: &io::Error| matches!(error.raw_os_error(), Some(5 | 6 | 19));
        match error {
            Some(error) if !is_gone(&error) => Self::Failed { place, source: error },
            _ => Self::Gone { place },
        }
    }
}

/// Opens the port. It is ours alone until it is dropped.
///
/// # Errors
/// If it cannot be opened now; it may be the next time.
pub async fn open(settings: &Settings) -> Result<Port, Trouble> {
    match &settings.at {
        Place::Tcp { host, port } => {
            let place = &settings.at;
            let failed = |source| Trouble::Io { place: place.clone(), source };
            let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await;
            let stream = connected.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            notice_silence(&stream).map_err(|error| failed(error.into()))?;
            Ok(Port { stream: Box::new(stream), beginning: Beginning::AnyPlace })
        }
        Place::Path(path) => {
            let (path, settings) = (path.clone(), settings.clone());
            // Some drivers take their time.
            blocking(move || open_path(&path, &settings)).await
        }
    }
}

/// A server that lost its power says nothing, and need not have anything to say for hours: the system asks whether it is there.
fn notice_silence(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)
}

fn open_path(path: &Path, settings: &Settings) -> Result<Port, Trouble> {
    let is_pty = std::fs::canonicalize(path).is_ok_and(|path| path.starts_with(PTYS));
    let builder = tokio_serial::new(path.to_string_lossy(), settings.baud)
        .data_bits(settings.data_bits)
        .parity(settings.parity)
        .stop_bits(settings.stop_bits)
        .flow_control(settings.flow_control);
    let mut stream = SerialStream::open(&builder).map_err(|error| trouble(&error, settings))?;
    if is_pty {
        // TIOCEXCL stays set on a pty after it is closed, for as long as its master lives. An agent that was killed, and is not
        // root, would never get it back. The lock on the file, which ends with us, keeps others out as well.
        stream.set_exclusive(false).map_err(|error| trouble(&error, settings))?;
    }
    let beginning = if is_pty { Beginning::First } else { Beginning::AnyPlace };
    Ok(Port { stream: Box::new(stream), beginning })
}

/// What an error of the library means. It keeps no error number, and its texts are those of the C library in its own words.
fn trouble(error: &tokio_serial::Error, settings: &Settings) -> Trouble {
    let (place, text) = (settings.at.clone(), error.description.as_str());
    match error.kind() {
        ErrorKind::Io(io::ErrorKind::NotFound) => Trouble::Absent { place },
        ErrorKind::Io(io::ErrorKind::PermissionDenied) => {
            Trouble::Permission { place, reason: text.to_owned() }
        }
        ErrorKind::Io(kind) => Trouble::Io { place, source: kind.into() },
        // Also what another program's lock on the port is called.
        ErrorKind::NoDevice => Trouble::Busy { place },
        ErrorKind::InvalidInput => Trouble::Refused { place, baud: settings.baud, reason: text.to_owned() },
        ErrorKind::Unknown => match text {
            "Operation not permitted" => Trouble::Forbidden { place },
            "No such device" | "No such device or address" | "I/O error" => Trouble::Absent { place },
            "Not a typewriter" | "Is a directory" => Trouble::NoPort { place },
            "Settings did not apply correctly" | "Invalid argument" => {
                Trouble::Refused { place, baud: settings.baud, reason: text.to_owned() }
            }
            _ => Trouble::Io { place, source: io::Error::other(text.to_owned()) },
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::source::pty::Pty;

    fn at(path: &Path) -> Settings {
        Settings::at(Place::Path(path.to_owned()))
    }

    async fn state_of(path: &Path) -> State {
        open(&at(path)).await.unwrap_err().state()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn why_a_port_cannot_be_opened_is_told_apart() {
        let dir = TempDir::new().unwrap();
        assert_eq!(state_of(&dir.path().join("nothing")).await, State::Unplugged);
        let file = dir.path().join("file");
        std::fs::write(&file, "no port").unwrap();
        assert_eq!(state_of(&file).await, State::Misconfigured);
        assert_eq!(state_of(dir.path()).await, State::Misconfigured);
        let pty = Pty::new().unwrap();
        let held = open(&at(pty.path())).await.unwrap();
        assert_eq!(state_of(pty.path()).await, State::Busy);
        drop(held);
        open(&at(pty.path())).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_pass_as_they_are_and_an_unplugged_port_ends() {
        let dir = TempDir::new().unwrap();
        let link = dir.path().join("by-id");
        let mut pty = Pty::new().unwrap();
        symlink(pty.path(), &link).unwrap();
        let mut port = open(&at(&link)).await.unwrap();
        let all: Vec<u8> = (0..=255).collect();
        pty.write(&all).unwrap();
        let mut got = [0; 256];
        port.stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got.as_slice(), all);
        drop(pty);
        assert_eq!(port.stream.read(&mut got).await.unwrap(), 0);
        let failed = port.stream.write_all(b"x").await.unwrap_err();
        let place = Place::Path(link.clone());
        assert_eq!(Trouble::of_stream(&place, Some(failed)).state(), State::Unplugged);
        // Plugged in again, it is another device under the same name.
        let mut pty = Pty::new().unwrap();
        drop(port);
        std::fs::remove_file(&link).unwrap();
        symlink(pty.path(), &link).unwrap();
        let mut port = open(&at(&link)).await.unwrap();
        pty.write(b"again").unwrap();
        port.stream.read_exact(&mut got[..5]).await.unwrap();
        assert_eq!(&got[..5], b"again");
    }

    #[tokio::test]
    async fn a_serial_server_is_a_port_too() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let settings = Settings::at(Place::Tcp { host: "127.0.0.1".to_owned(), port });
        let mut port = open(&settings).await.unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        accepted.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        port.stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        drop((accepted, server));
        assert_eq!(open(&settings).await.unwrap_err().state(), State::Disconnected);
    }
}
