//! One open port, from its first byte to its last: messages go into the inlet, acknowledgements come back out when they are durable.
//!
//! One task does it all. What the inlet has no room for is not read: a node keeps it, and says how many it could not keep. The
//! buffers of the system hold four kilobytes of a line that nobody acknowledges; what does not fit there is lost on the wire, as at
//! any port that is not read fast enough.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::bridge::{Bridge, Heard};
use super::health::{CONVINCING, Condition, Health};
use super::lines::{Looks, Piece, Splitter};
use super::reporter::Reporter;
use super::settings::{Protocol, Settings};
use crate::clock::{Clock, until};
use crate::ingest::{Arrival, Closed, Delivery, Flushed, Inlet, Replayed};
use crate::source::hand_over_the_rest;
use crate::source::port::{Beginning, Duplex, Port, Trouble};
use crate::store::Books;

/// Read at once: what the system's buffer of a port holds.
const READ_BYTES: usize = 4_096;
/// So many bytes cost as much to look at as a message.
const BYTES_OF_A_MESSAGE: u64 = 512;
/// While bytes come without a break, they are read so often and no more: each look costs a wakeup, and at 921 600 baud 460 bytes
/// come meanwhile, of 4 096 that the system can keep.
const BREATH: Duration = Duration::from_millis(5);
/// Nothing for so long, and the next byte begins a line.
const QUIET: Duration = Duration::from_millis(50);
/// How often counts and states are brought up to date.
const TICK: Duration = Duration::from_secs(1);
/// Shorter waits for room are the ordinary rhythm of commits.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);
/// How long a source that stops waits for what it took to become durable.
const DRAIN_WAIT: Duration = Duration::from_secs(5);
/// And then for the last acknowledgements to leave.
const GOODBYE_WAIT: Duration = Duration::from_secs(1);

/// How a port ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// We were asked to stop.
    Stopped,
    /// The ingest room has ended.
    RoomClosed,
    /// It was lost.
    Lost(Trouble),
}

impl From<Closed> for Ending {
    fn from(Closed: Closed) -> Self {
        Self::RoomClosed
    }
}

/// A line; outlives its port.
#[derive(Debug)]
pub(super) struct Line {
    settings: Settings,
    inlet: Inlet,
    durable: watch::Receiver<u64>,
    speech: Speech,
    health: Health,
    reporter: Reporter,
    clock: Clock,
    no_room_since: Option<Instant>,
    buffer: Vec<u8>,
    /// What is to be written, and has not left.
    out: Vec<u8>,
    last_read: Option<Instant>,
    /// Until then what comes may be the rest of a line.
    quiet_at: Option<Instant>,
    frames_since_open: u64,
}

/// What is spoken.
#[derive(Debug)]
enum Speech {
    Bridge(Box<Bridge>),
    Lines { splitter: Splitter, topic: String },
}

impl Line {
    pub(super) fn new(
        settings: Settings,
        books: &Books,
        inlet: Inlet,
        reporter: Reporter,
        clock: Clock,
    ) -> Self {
        let speech = match &settings.protocol {
            Protocol::Bridge { device } => {
                let source: Arc<str> = settings.name.as_str().into();
                Speech::Bridge(Box::new(Bridge::new(&source, device.clone(), &books.nodes, clock)))
            }
            Protocol::Lines(_) => Speech::Lines {
                splitter: Splitter::new(settings.max_payload_bytes),
                topic: settings.port.at.to_string(),
            },
        };
        Self {
            durable: inlet.durable(),
            inlet,
            speech,
            health: Health::new(settings.max_rate, settings.silent_after, clock.monotonic()),
            reporter,
            clock,
            no_room_since: None,
            buffer: vec![0; READ_BYTES],
            out: Vec::new(),
            last_read: None,
            quiet_at: None,
            frames_since_open: 0,
            settings,
        }
    }

    /// The port cannot be opened, or was lost.
    pub(super) fn failed(&mut self, trouble: &Trouble) {
        self.reporter.failed(trouble);
        self.refresh();
    }

    /// Waits for the next attempt; what was read before is still handed over.
    pub(super) async fn idle(&mut self, pause: Duration) {
        let pause = sleep(pause);
        tokio::pin!(pause);
        if self.no_room_since.is_some() {
            tokio::select! {
                biased;
                () = &mut pause => return,
                placed = self.inlet.flushed() => if placed.is_ok() { self.found_room() },
            }
        }
        pause.await;
    }

    /// There is no port, and there will be none.
    pub(super) async fn end(&mut self) {
        hand_over_the_rest(&mut self.inlet).await;
    }

    /// Serves an open port until it is lost or the source is stopped.
    pub(super) async fn serve(&mut self, port: Port, stop: &CancellationToken) -> Ending {
        self.begin(port.beginning);
        let (mut reader, mut writer) = tokio::io::split(port.stream);
        let ending = self.attend(&mut reader, &mut writer, stop).await;
        if let Ending::Stopped = ending {
            self.say_goodbye(&mut writer).await;
        }
        self.out.clear();
        // To close a port whose output does not leave would wait for half a minute.
        reader.unsplit(writer).forget_output();
        if let Speech::Bridge(bridge) = &mut self.speech {
            bridge.disconnected();
        }
        ending
    }

    fn begin(&mut self, beginning: Beginning) {
        let now = self.clock.monotonic();
        self.health.begin(now);
        self.frames_since_open = 0;
        self.last_read = None;
        self.reporter.opened();
        match &mut self.speech {
            Speech::Bridge(_) => self.reporter.waits(),
            Speech::Lines { splitter, .. } => {
                splitter.begin(beginning);
                let is_whole = beginning == Beginning::First;
                self.quiet_at = (!is_whole).then(|| now + QUIET.max(4 * self.character()));
                if is_whole {
                    self.reporter.is_in(Condition::Fine, String::new);
                }
            }
        }
        self.refresh();
    }

    /// How long a character takes on the wire, with its start and stop bits.
    fn character(&self) -> Duration {
        Duration::from_secs(12) / self.settings.port.baud.max(1)
    }

    async fn attend(
        &mut self,
        reader: &mut ReadHalf<Box<dyn Duplex>>,
        writer: &mut WriteHalf<Box<dyn Duplex>>,
        stop: &CancellationToken,
    ) -> Ending {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.acknowledge();
            if self.out.is_empty() {
                self.speech.transmit(self.clock.monotonic(), &mut self.out);
            }
            let next_transmit = if self.out.is_empty() { self.speech.next_transmit() } else { None };
            let read_at = self.read_at();
            let (has_room, buffer) = (self.no_room_since.is_none(), &mut self.buffer);
            let read = async {
                if let Some(at) = read_at {
                    sleep_until(at).await;
                }
                reader.read(buffer).await
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ending::Stopped,
                placed = self.inlet.flushed(), if !has_room => match placed {
                    Ok(()) => self.found_room(),
                    Err(closed) => return closed.into(),
                },
                // The sender lives in the inlet, so it is there.
                _ = self.durable.changed(), if self.speech.is_pending() => {}
                written = writer.write(&self.out), if !self.out.is_empty() => match written {
                    Ok(count) if count > 0 => drop(self.out.drain(..count)),
                    Ok(_) => return Ending::Lost(Trouble::of_stream(&self.settings.port.at, None)),
                    Err(error) => return Ending::Lost(Trouble::of_stream(&self.settings.port.at, Some(error))),
                },
                read = read, if has_room => match read {
                    Ok(count) if count > 0 => if let Err(closed) = self.take(count) { return closed.into() },
                    Ok(_) => return Ending::Lost(Trouble::of_stream(&self.settings.port.at, None)),
                    Err(error) => return Ending::Lost(Trouble::of_stream(&self.settings.port.at, Some(error))),
                },
                () = until(next_transmit) => {}
                () = until(self.quiet_at) => self.quiet(),
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    /// When to read again: not while the line floods us, and not for every few bytes of a stream.
    fn read_at(&self) -> Option<Instant> {
        let breath = self.last_read.map(|at| at + BREATH);
        breath.max(self.health.read_again_at())
    }

    /// `count` bytes were read.
    fn take(&mut self, count: usize) -> Result<(), Closed> {
        let now = self.clock.monotonic();
        let condition = self.health.condition(now);
        self.quiet_at = None;
        let heard = self.speech.take(&self.buffer[..count], &mut self.inlet, condition);
        let line = &mut self.reporter.line;
        line.bytes += count as u64;
        line.frames += heard.frames;
        line.garbage_bytes += heard.garbage_bytes;
        self.frames_since_open += heard.frames;
        let (sense, senseless) = match &self.speech {
            // A checksum is no chance. Bytes that are no frame yet may become one, unless they are too many.
            Speech::Bridge(_) if heard.frames > 0 => (CONVINCING, 0),
            Speech::Bridge(_) => (0, count as u64),
            Speech::Lines { .. } => (heard.frames_since_garbage, heard.garbage_bytes),
        };
        // Bytes without any message cost something too.
        let spent = heard.pieces + count as u64 / BYTES_OF_A_MESSAGE;
        self.health.heard(now, spent, sense, senseless);
        // More is at hand when the buffer was filled.
        self.last_read = (count < READ_BYTES).then_some(now);
        if heard.has_greeted {
            self.refresh();
        }
        self.assess(now);
        self.hand_over(now)
    }

    fn hand_over(&mut self, now: Instant) -> Result<(), Closed> {
        match self.inlet.flush()? {
            Flushed::All => self.found_room(),
            Flushed::NoRoom => {
                self.no_room_since.get_or_insert(now);
            }
        }
        Ok(())
    }

    fn found_room(&mut self) {
        if self.no_room_since.take().is_some() {
            self.reporter.unblocked();
        }
    }

    /// What has become durable is to be acknowledged.
    fn acknowledge(&mut self) {
        if let Speech::Bridge(bridge) = &mut self.speech {
            bridge.durable(*self.durable.borrow_and_update());
        }
    }

    /// Nothing came for so long that what comes next begins a line.
    fn quiet(&mut self) {
        self.quiet_at = None;
        if let Speech::Lines { splitter, .. } = &mut self.speech {
            splitter.paused();
        }
        self.assess(self.clock.monotonic());
    }

    fn tick(&mut self) {
        let now = self.clock.monotonic();
        if self.no_room_since.is_some_and(|since| now.saturating_duration_since(since) >= BLOCKED_AFTER) {
            self.reporter.blocked();
        }
        if let Speech::Lines { splitter, .. } = &mut self.speech {
            // Noise need not have ends of lines in it.
            let odd_bytes = splitter.take_odd_bytes() as u64;
            self.health.heard(now, 0, 0, odd_bytes);
        }
        self.assess(now);
        self.refresh();
    }

    fn assess(&mut self, now: Instant) {
        let condition = self.health.condition(now);
        let is_waiting = match &self.speech {
            Speech::Bridge(bridge) => self.frames_since_open == 0 || !bridge.has_met(),
            Speech::Lines { .. } => self.quiet_at.is_some(),
        };
        if condition == Condition::Fine && is_waiting {
            return;
        }
        let Self { settings, health, reporter, .. } = self;
        reporter.is_in(condition, || advice(condition, settings, health.silence(now)));
    }

    fn refresh(&self) {
        match &self.speech {
            Speech::Bridge(bridge) => self.reporter.refresh(bridge.devices()),
            Speech::Lines { .. } => self.reporter.refresh(std::iter::empty()),
        }
    }

    /// Acknowledges what becomes durable soon; the rest comes again.
    async fn say_goodbye(&mut self, writer: &mut WriteHalf<Box<dyn Duplex>>) {
        let pushed = self.inlet.pushed();
        let drained = async {
            self.inlet.flushed().await.ok()?;
            self.durable.wait_for(|count| *count >= pushed).await.ok()?;
            Some(())
        };
        let is_drained = timeout(DRAIN_WAIT, drained).await.is_ok();
        self.acknowledge();
        if is_drained {
            self.speech.transmit(self.clock.monotonic(), &mut self.out);
            // A node that does not read gets them again, as recognised records.
            timeout(GOODBYE_WAIT, writer.write_all(&self.out)).await.ok();
        }
    }
}

impl Speech {
    fn take(&mut self, mut bytes: &[u8], inlet: &mut Inlet, condition: Condition) -> Heard {
        let (splitter, topic) = match self {
            Self::Bridge(bridge) => return bridge.take(bytes, inlet),
            Self::Lines { splitter, topic } => (splitter, topic),
        };
        let mut heard = Heard::default();
        while let Some(piece) = splitter.next(&mut bytes) {
            heard.pieces += 1;
            let line = match piece {
                Piece::Line(line, Looks::Text) => {
                    heard.frames += 1;
                    heard.frames_since_garbage += 1;
                    line
                }
                Piece::Line(line, Looks::Noise) => {
                    heard.garbage_bytes += line.len() as u64;
                    heard.frames_since_garbage = 0;
                    // The first are kept, to be looked at; a line at the wrong speed would fill the flash with the others.
                    if condition == Condition::Garbage {
                        continue;
                    }
                    line
                }
                Piece::Skipped(count) => {
                    heard.garbage_bytes += count as u64;
                    continue;
                }
            };
            inlet.push(&Arrival {
                topic,
                payload: Bytes::copy_from_slice(line),
                delivery: Delivery::AtMostOnce,
                replayed: Replayed::No,
            });
        }
        heard
    }

    fn transmit(&mut self, now: Instant, out: &mut Vec<u8>) {
        if let Self::Bridge(bridge) = self
            && bridge.next_transmit().is_some_and(|at| at <= now)
        {
            bridge.transmit(out);
        }
    }

    fn next_transmit(&self) -> Option<Instant> {
        match self {
            Self::Bridge(bridge) => bridge.next_transmit(),
            Self::Lines { .. } => None,
        }
    }

    fn is_pending(&self) -> bool {
        match self {
            Self::Bridge(bridge) => bridge.is_pending(),
            Self::Lines { .. } => false,
        }
    }
}

/// What is wrong with a line, and what to do.
fn advice(condition: Condition, settings: &Settings, silence: Duration) -> String {
    let Settings { port, protocol, max_rate, .. } = settings;
    let (at, baud, silence) = (&port.at, port.baud, silence.as_secs());
    let (unit, speaker) = match protocol {
        Protocol::Bridge { .. } => ("frame", "the node's firmware speaks the bridge protocol"),
        Protocol::Lines(_) => ("line of text", "the device sends text"),
    };
    match condition {
        Condition::Fine => String::new(),
        Condition::Silent => format!(
            "{at}: no whole {unit} has come for {silence} s; check that the device has power, and that its TX leads to our RX"
        ),
        Condition::Flooding => format!(
            "{at}: more than {max_rate} messages a second come; no more are read: look after the device, or raise max_rate"
        ),
        Condition::Garbage => format!(
            "{at}: bytes come, but no whole {unit} among them; check baud ({baud}), parity and that {speaker} (`holdfast serial monitor {at}` shows what comes)"
        ),
    }
}
