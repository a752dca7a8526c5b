//! The line to the devices: who speaks next listens first.
//!
//! On a serial line an answer carries no number, so a late one could be taken for the answer to a later question. Therefore a
//! request is written only once all that came before it is thrown away and the line was quiet for as long as the protocol
//! asks for (Modbus over serial line V1.02, 2.5.1.1: 3.5 characters).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::clock::Clock;
use crate::source::port::Duplex;

/// Bits of a character, at most.
const CHARACTER_BITS: u32 = 11;
/// Above 19 200 baud it grows no shorter (2.5.1.1).
const LEAST_GAP: Duration = Duration::from_micros(1_750);
/// Where something came that nobody waited for, more of it may follow: USB adapters hand bytes on every 16 ms.
const GAP_AFTER_NOISE: Duration = Duration::from_millis(40);

/// A line, shared between who asks on it and who watches it. Never by two at the same time.
#[derive(Clone, Debug)]
pub(super) struct Line(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    stream: Box<dyn Duplex>,
    clock: Clock,
    /// `None` where answers are numbered.
    quiet: Option<Quiet>,
    traffic: Traffic,
}

/// How long the line has to be quiet before somebody speaks.
#[derive(Debug)]
struct Quiet {
    gap: Duration,
    since: Pin<Box<Sleep>>,
}

/// What came over the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Bytes read.
    pub(super) bytes: u64,
    /// Of those, thrown away because nobody had asked.
    pub(super) unasked: u64,
}

/// What answers on the line may be mistaken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// They carry no number, and come at this speed.
    Bare {
        /// Bits a second.
        baud: u32,
    },
    /// They carry the number of their request.
    Numbered,
}

impl Line {
    pub(super) fn new(stream: Box<dyn Duplex>, answers: Answers, clock: Clock) -> Self {
        let quiet = match answers {
            Answers::Bare { baud } => {
                let gap = Duration::from_secs(1) * CHARACTER_BITS * 7 / (2 * baud.max(1));
                let gap = gap.max(LEAST_GAP);
                Some(Quiet { gap, since: Box::pin(sleep(gap)) })
            }
            Answers::Numbered => None,
        };
        let traffic = Traffic::default();
        Self(Arc::new(Mutex::new(Shared { stream, clock, quiet, traffic })))
    }

    /// What came so far.
    pub(super) fn traffic(&self) -> Traffic {
        self.shared().traffic
    }

    /// Throws away what comes while nobody asks; ends when the line does. Cancel-safe.
    pub(super) async fn ended(&self) -> io::Error {
        std::future::poll_fn(|context| {
            let ended = ready!(self.shared().poll_noise(context));
            Poll::Ready(ended)
        })
        .await
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stream.forget_output();
    }
}

impl Shared {
    /// Reads on; `Ok(())` with nothing read never happens: the end of the line is an error.
    fn poll_bytes(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        let count = into.filled().len() - before;
        if count == 0 {
            // Not `UnexpectedEof`, which is also said of an answer that is too short.
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the other side has closed it",
            )));
        }
        self.traffic.bytes += count as u64;
        self.quiet_for(|quiet| quiet.gap);
        Poll::Ready(Ok(count))
    }

    /// Throws away what is there. Ready only when the line has ended.
    fn poll_noise(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let mut scratch = [0; 256];
        loop {
            match ready!(self.poll_bytes(context, &mut ReadBuf::new(&mut scratch))) {
                Ok(count) => {
                    self.traffic.unasked += count as u64;
                    self.quiet_for(|quiet| quiet.gap.max(GAP_AFTER_NOISE));
                }
                Err(error) => return Poll::Ready(error),
            }
        }
    }

    fn quiet_for(&mut self, gap: impl Fn(&Quiet) -> Duration) {
        if let Some(quiet) = &mut self.quiet {
            let until = self.clock.monotonic() + gap(quiet);
            quiet.since.as_mut().reset(until);
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared().poll_bytes(context, into).map_ok(drop)
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.shared();
        if let Poll::Ready(error) = shared.poll_noise(context) {
            return Poll::Ready(Err(error));
        }
        if let Some(quiet) = &mut shared.quiet {
            ready!(quiet.since.as_mut().poll(context));
        }
        Pin::new(&mut shared.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.shared().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.shared().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    impl Duplex for DuplexStream {
        fn forget_output(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_a_request_is_no_answer_to_it() {
        let (near, mut far) = duplex(64);
        let mut line = Line::new(Box::new(near), Answers::Bare { baud: 9_600 }, Clock::system());
        far.write_all(b"late").await.unwrap();
        let start = Instant::now();
        line.write_all(b"request").await.unwrap();
        assert!(start.elapsed() >= GAP_AFTER_NOISE, "{:?}", start.elapsed());
        let mut request = [0; 7];
        far.read_exact(&mut request).await.unwrap();
        far.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        line.read_exact(&mut answer).await.unwrap();
        assert_eq!((&request, &answer), (b"request", b"answer"));
        assert_eq!(line.traffic(), Traffic { bytes: 10, unasked: 4 });
        // After an answer the line has to be quiet for 3.5 characters.
        let start = Instant::now();
        line.write_all(b"x").await.unwrap();
        assert!((4..GAP_AFTER_NOISE.as_millis()).contains(&start.elapsed().as_millis()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_until_the_line_is_quiet() {
        let (near, mut far) = duplex(64);
        let mut line = Line::new(Box::new(near), Answers::Bare { baud: 115_200 }, Clock::system());
        let chatter = tokio::spawn(async move {
            for _ in 0..20 {
                far.write_all(b"noise").await.unwrap();
                sleep(GAP_AFTER_NOISE / 2).await;
            }
            far
        });
        let start = Instant::now();
        tokio::task::yield_now().await;
        line.write_all(b"request").await.unwrap();
        assert!(start.elapsed() >= GAP_AFTER_NOISE * 10, "{:?}", start.elapsed());
        let mut far = chatter.await.unwrap();
        let mut request = [0; 7];
        far.read_exact(&mut request).await.unwrap();
        assert_eq!((&request, line.traffic().unasked), (b"request", 100));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_line_is_noticed_by_who_waits_and_by_who_speaks() {
        for answers in [Answers::Numbered, Answers::Bare { baud: 9_600 }] {
            let (near, far) = duplex(64);
            let mut line = Line::new(Box::new(near), answers, Clock::system());
            drop(far);
            assert_eq!(line.ended().await.kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(line.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(line.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
