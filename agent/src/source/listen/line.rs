//! One connection's bytes: what came in and is not yet parsed, what is to go out and is not yet written.
//!
//! An idle connection holds a kilobyte; the buffer grows with what a client sends at once, and shrinks again.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::clock::Clock;

/// What an idle connection reads into: a thousand of them take a megabyte.
const MIN_READ_BYTES: usize = 1 << 10;
/// The most that is read at once: some hundred messages, so that the work per read is spread over them.
const MAX_READ_BYTES: usize = 64 << 10;

/// A socket, with or without TLS.
pub(super) type Wire = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A socket and its buffers.
#[derive(Debug)]
pub(super) struct Line {
    wire: Wire,
    /// Bytes that came and are not yet parsed.
    pub(super) inbox: BytesMut,
    /// Bytes to be written.
    pub(super) outbox: BytesMut,
    read_bytes: usize,
    /// The buffer is larger than what now comes: let it go when it is empty.
    oversized: bool,
    /// Written, but perhaps still in the hands of TLS.
    unflushed: bool,
    stalled_since: Option<Instant>,
    clock: Clock,
}

/// Whether more is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Wanted,
    HeldBack,
}

/// What [`Line::exchange`] came back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchanged {
    /// Bytes were read.
    Read,
    /// The other side has closed its half.
    Closed,
    /// All that was to be written is.
    Wrote,
}

impl Line {
    pub(super) fn new(wire: Wire, clock: Clock) -> Self {
        Self {
            wire,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            read_bytes: MIN_READ_BYTES,
            oversized: false,
            unflushed: false,
            stalled_since: None,
            clock,
        }
    }

    /// Writes what is to be written and, if wanted, reads what is there; waits until one of them got somewhere.
    /// Cancel-safe.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) async fn exchange(&mut self, reading: Reading) -> io::Result<Exchanged> {
        poll_fn(|context| self.poll_exchange(context, reading)).await
    }

    /// Since when the other side takes nothing of what is to be written.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Writes the rest and closes, within `patience`; what does not go out by then is dropped.
    pub(super) async fn close(mut self, patience: Duration) {
        let farewell = async {
            while !self.outbox.is_empty() {
                if self.exchange(Reading::HeldBack).await.is_err() {
                    return;
                }
            }
            // It is going away; whether it hears that does not matter any more.
            self.wire.shutdown().await.ok();
        };
        timeout(patience, farewell).await.ok();
    }

    fn poll_exchange(&mut self, context: &mut Context<'_>, reading: Reading) -> Poll<io::Result<Exchanged>> {
        let wrote = self.poll_write(context)?;
        if reading == Reading::Wanted
            && let Poll::Ready(count) = self.poll_read(context)?
        {
            let exchanged = if count == 0 { Exchanged::Closed } else { Exchanged::Read };
            return Poll::Ready(Ok(exchanged));
        }
        if wrote { Poll::Ready(Ok(Exchanged::Wrote)) } else { Poll::Pending }
    }

    /// Writes as much as goes; true if that was the rest of it.
    fn poll_write(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let mut progressed = false;
        while !self.outbox.is_empty() {
            match pin!(self.wire.write_buf(&mut self.outbox)).poll(context)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(_) => {
                    progressed = true;
                    self.unflushed = true;
                    self.stalled_since = None;
                }
                Poll::Pending => {
                    self.stalled_since.get_or_insert_with(|| self.clock.monotonic());
                    return Ok(false);
                }
            }
        }
        if self.unflushed {
            if Pin::new(&mut self.wire).poll_flush(context)?.is_pending() {
                self.stalled_since.get_or_insert_with(|| self.clock.monotonic());
                return Ok(false);
            }
            self.unflushed = false;
            progressed = true;
        }
        self.stalled_since = None;
        Ok(progressed)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.oversized && self.inbox.is_empty() {
            self.inbox = BytesMut::new();
            self.oversized = false;
        }
        if self.inbox.capacity() - self.inbox.len() < self.read_bytes / 2 {
            self.inbox.reserve(self.read_bytes);
        }
        let room_bytes = self.inbox.capacity() - self.inbox.len();
        let Poll::Ready(count) = pin!(self.wire.read_buf(&mut self.inbox)).poll(context)? else {
            return Poll::Pending;
        };
        if count == room_bytes {
            self.read_bytes = (self.read_bytes * 4).min(MAX_READ_BYTES);
        } else if count < self.read_bytes / 16 && self.read_bytes > MIN_READ_BYTES {
            self.read_bytes = (self.read_bytes / 4).max(MIN_READ_BYTES);
            self.oversized = true;
        }
        Poll::Ready(Ok(count))
    }
}
