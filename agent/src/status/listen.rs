//! Connections, bounded: how many, how long without a request, how many bytes of one; and the socket's file.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::either::Either;

use super::http::Error;

/// Connections served at once; further ones wait in the system's queue. A page, two scrapers and some curious people are ten.
pub(crate) const MAX_CONNECTIONS: usize = 32;
/// Connections that the system keeps for us until we accept them.
const BACKLOG: u32 = 128;
/// How long a new connection may take until its first answer begins.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may stay without a further answer: above the usual scrape interval of a minute.
const NEXT_ANSWER_WITHIN: Duration = Duration::from_secs(65);
/// Bytes that a client may send for one answer: a browser's request with all its headers has a tenth.
const MAX_REQUEST_BYTES: usize = 32 << 10;

/// A listener whose connections are bounded. One type for both kinds: what serves HTTP comes once for each type of connection.
pub(crate) struct Bounded {
    listener: Either<TcpListener, UnixListener>,
    places: Arc<Semaphore>,
}

impl Bounded {
    pub(crate) fn new(listener: Either<TcpListener, UnixListener>) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    // Nobody asks who it is, and those at the socket have no address.
    type Addr = ();

    async fn accept(&mut self) -> (Connection, ()) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        let io = match &mut self.listener {
            Either::Left(tcp) => Either::Left(Listener::accept(tcp).await.0),
            Either::Right(socket) => Either::Right(Listener::accept(socket).await.0),
        };
        (Connection::new(io, place), ())
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that ends by itself if it gets no answer for too long, or asks with too many bytes.
pub(crate) struct Connection {
    io: Either<TcpStream, UnixStream>,
    deadline: Pin<Box<Sleep>>,
    request_bytes: usize,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(io: Either<TcpStream, UnixStream>, place: OwnedSemaphorePermit) -> Self {
        let deadline = Box::pin(tokio::time::sleep(FIRST_ANSWER_WITHIN));
        Self { io, deadline, request_bytes: 0, _place: place }
    }

    /// Ready once the time is up. Also wakes the task when it will be.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.deadline.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut.into())
    }

    fn answered(&mut self) {
        self.request_bytes = 0;
        let due = self.deadline.deadline().max(later());
        self.deadline.as_mut().reset(due);
    }
}

/// The time by which the next answer is due.
fn later() -> tokio::time::Instant {
    crate::clock::Clock::system().monotonic() + NEXT_ANSWER_WITHIN
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_deadline(context) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        self.request_bytes += buffer.filled().len() - before;
        if self.request_bytes > MAX_REQUEST_BYTES {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_deadline(context) {
            return Poll::Ready(Err(error));
        }
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.answered();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The file of a bound socket; removed when this is dropped, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "admin socket stays behind");
        }
    }
}

/// Binds a socket at `path` that owner and group may use (0660). A file that nobody listens at any more is replaced.
///
/// Nobody can connect before its permissions are set, because it does not listen before. It is made under another name and renamed,
/// so that it is never missing.
pub(crate) async fn bind_socket(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    check_free(path).await?;
    let fault = |source| Error::Socket { path: path.to_owned(), source };
    let mut fresh = path.to_owned().into_os_string();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixSocket::new_stream().map_err(fault)?;
    socket.bind(&fresh).map_err(fault)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o660)).map_err(fault)?;
    let listener = socket.listen(BACKLOG).map_err(fault)?;
    let inode = fs::symlink_metadata(&fresh).map_err(fault)?.ino();
    fs::rename(&fresh, path).map_err(fault)?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// An error if something that is no leftover is at `path`.
async fn check_free(path: &Path) -> Result<(), Error> {
    let fault = |source| Error::Socket { path: path.to_owned(), source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fault(error)),
    };
    if !found.file_type().is_socket() {
        return Err(Error::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path).await {
        Ok(stream) => Err(Error::SocketInUse { path: path.to_owned(), by: peer(&stream) }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(fault(error)),
    }
}

/// Who is at the other end, for people.
fn peer(stream: &UnixStream) -> String {
    let Some(pid) = stream.peer_cred().ok().and_then(|credentials| credentials.pid()) else {
        return "another process".to_owned();
    };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}
