//! The node's half of the link: a state machine without a line, a clock or memory of its own.
//!
//! Bytes from the line and the time go in; frames and the time of the next one come out. Samples and events are numbered,
//! kept in a ring of `RING` bytes and sent until the host says that they are durable. If the ring is full, the oldest go,
//! and the host is told which numbers will never come.
//!
//! ```text
//!                 Hello, again and again                  Sample, Next, Next …, as far as the window goes
//!              ┌──────────┐                              ┌────────┐
//!              ▼          │        Welcome               ▼        │
//!           Greeting ─────┴───────────────────────────► Joined ───┘  no Ack in time, or Resend: from there again
//!              ▲                                          │
//!              └── RequestHello · no Ack for a long time ─┘
//! ```
//!
//! A board that only transmits ([`Flow::OneWay`]) says Hello now and then, and sends every record once.
//!
//! ```
//! use firmware_bridge::frame::{Channel, MAX_NODE_WIRE_BYTES};
//! use firmware_bridge::link::{Identity, Link, Settings};
//! use firmware_bridge::value::{Kind, Value};
//!
//! const CHANNELS: &[Channel<'static>] = &[Channel::new("temperature", "°C", Kind::Single)];
//! let identity = Identity::new("press-7", "1.4.0", 12, CHANNELS)?;
//! let mut link = Link::<2048>::new(identity, Settings::default());
//! let mut buffer = [0; MAX_NODE_WIRE_BYTES];
//!
//! let now_ms = 1_000; // Milliseconds since the reset.
//! link.sample(now_ms, &[Value::Single(21.5)])?;
//! link.receive(now_ms, b"whatever the UART had");
//! while let Some(frame) = link.transmit(now_ms, &mut buffer)? {
//!     // Write all of `frame` to the UART.
//! }
//! let wake_at_ms = link.next_transmit_ms(); // Or when the UART has something, or a sample is due.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::bounded::Text;
use crate::codec::{Before, BufferTooSmall, Decoded, Decoder, NODE_DECODER_BYTES, encode};
use crate::frame::{
    Channel, Clock, Context, Dropped, Event, Flow, FromHost, Hello, Level, Log, MAX_CHANNEL_NAME_BYTES,
    MAX_CHANNELS, MAX_WINDOW, Next, Record, SampleSeq, Tag, VERSION, Welcome, schema_hash,
};
use crate::ring::{Cursor, Kept, Ring};
use crate::value::{MAX_CONTENT_BYTES, Value, pack};
use crate::wire::{Bytes, Message as _};

mod settings;
#[cfg(test)]
mod tests;

pub use crate::ring::{RECORD_HEAD_BYTES, TooLarge};
pub use settings::{Counts, Identity, NotTaken, Settings, Taken, Unconfirmed};

/// So often in a row a node resends without an answer before it asks who is there.
const PATIENCE: u8 = 5;

/// Where we stand with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum Phase {
    /// It does not know us, or we cannot hear it.
    Greeting { due_ms: u64, pause_ms: u32 },
    /// It knows us; `resend_at_ms` is set while something waits for its acknowledgement.
    Joined { session: u32, window: u16, resend_at_ms: Option<u64>, tries: u8 },
}

/// The node's half of the link.
#[derive(Debug)]
pub struct Link<'a, const RING: usize> {
    identity: Identity<'a>,
    settings: Settings,
    schema: u32,
    context: Context,
    ring: Ring<RING>,
    phase: Phase,
    /// The host has all up to here.
    acked: SampleSeq,
    /// What is sent next; below the ring's first if the host must be told that it is gone.
    to_send: SampleSeq,
    /// Where that lies.
    cursor: Cursor,
    /// The time of the record before it, if that was the last one on the line.
    previous_ms: Option<u64>,
    /// The answer that the host waits for.
    clock: Option<Clock>,
    /// The host's time, and ours when it said so.
    wall: Option<(i64, u64)>,
    decoder: Decoder<NODE_DECODER_BYTES>,
    counts: Counts,
}

impl<'a, const RING: usize> Link<'a, RING> {
    /// After a reset. A ring of `RING` bytes holds a record in [`RECORD_HEAD_BYTES`] and its packed values: for two
    /// single-precision channels 17 bytes.
    #[must_use]
    pub fn new(identity: Identity<'a>, settings: Settings) -> Self {
        let ring = Ring::new();
        let schema = schema_hash(identity.channels);
        Self {
            identity,
            settings,
            schema,
            context: Context::of(identity.node.as_str(), identity.boot, schema),
            cursor: ring.locate(SampleSeq(1)),
            ring,
            phase: Phase::Greeting { due_ms: 0, pause_ms: settings.hello_after_ms },
            acked: SampleSeq(0),
            to_send: SampleSeq(1),
            previous_ms: None,
            clock: None,
            wall: None,
            decoder: Decoder::new(),
            counts: Counts::default(),
        }
    }

    /// Takes a sample: one value for each channel, in the order of the schema. `uptime_ms` is when it was measured.
    ///
    /// # Errors
    /// If the values are not those of the schema, or too large for the ring.
    pub fn sample(&mut self, uptime_ms: u64, values: &[Value]) -> Result<Taken, NotTaken> {
        let mut content = [0; MAX_CONTENT_BYTES];
        let length = pack(self.identity.channels, values, &mut content).map_err(NotTaken::Mismatch)?;
        self.keep(Tag::SAMPLE, uptime_ms, content.get(..length).unwrap_or_default())
    }

    /// Takes an event, which is delivered like a sample.
    ///
    /// # Errors
    /// If it is too large for the ring.
    pub fn event(
        &mut self,
        uptime_ms: u64,
        name: Text<'_, MAX_CHANNEL_NAME_BYTES>,
        value: Value,
    ) -> Result<Taken, NotTaken> {
        let mut content = [0; MAX_CONTENT_BYTES];
        let mut out = Bytes::new(&mut content);
        Event { name, value }.write(&mut out);
        let length = out.finish().ok_or(NotTaken::TooLarge(TooLarge))?;
        self.keep(Tag::EVENT, uptime_ms, content.get(..length).unwrap_or_default())
    }

    fn keep(&mut self, tag: Tag, uptime_ms: u64, content: &[u8]) -> Result<Taken, NotTaken> {
        let seq = self.ring.next();
        let dropped = self.ring.push(tag, uptime_ms, content).map_err(NotTaken::TooLarge)?;
        self.counts.dropped = self.counts.dropped.saturating_add(u64::from(dropped));
        if self.cursor.seq < self.ring.first() {
            self.cursor = self.ring.locate(self.ring.first());
        }
        Ok(Taken { seq, dropped })
    }

    /// Measures something else from now on; the host is told first.
    ///
    /// # Errors
    /// If it has yet to confirm records of the schema so far.
    pub fn change_schema(&mut self, channels: &'a [Channel<'a>]) -> Result<(), Unconfirmed> {
        let records = self.unconfirmed();
        if records > 0 {
            return Err(Unconfirmed { records });
        }
        self.identity.channels = channels.get(..MAX_CHANNELS).unwrap_or(channels);
        self.schema = schema_hash(self.identity.channels);
        self.context = Context::of(self.identity.node.as_str(), self.identity.boot, self.schema);
        self.greet(0);
        Ok(())
    }

    /// How many records are kept.
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.ring.next().0.saturating_sub(self.ring.first().0)
    }

    /// True if the host knows us. Never true on a one-way link.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        matches!(self.phase, Phase::Joined { .. })
    }

    /// What became of it all.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The host's time when our clock says `uptime_ms`: microseconds since the Unix epoch, as exact as the line is fast;
    /// `None` as long as the host has not told, or does not know itself.
    #[must_use]
    pub fn wall_us(&self, uptime_ms: u64) -> Option<i64> {
        let (wall_us, at_ms) = self.wall?;
        let since_ms = i64::try_from(uptime_ms).ok()?.checked_sub(i64::try_from(at_ms).ok()?)?;
        wall_us.checked_add(since_ms.checked_mul(1_000)?)
    }

    /// A line for people, as a frame to write at once: it is not kept. Longer than
    /// [`MAX_LOG_BYTES`](crate::frame::MAX_LOG_BYTES), it is cut.
    ///
    /// # Errors
    /// If `out` is too small.
    pub fn log<'o>(
        &self,
        uptime_ms: u64,
        level: Level,
        text: &str,
        out: &'o mut [u8],
    ) -> Result<&'o [u8], BufferTooSmall> {
        let log = Log { level, uptime_ms, text: Text::cut(text) };
        let length = encode(Before::Unknown, Tag::LOG, &log, &[], out)?;
        out.get(..length).ok_or(BufferTooSmall)
    }

    /// Takes what came from the line, in pieces of any size.
    pub fn receive(&mut self, now_ms: u64, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            let said = match self.decoder.next(&mut rest) {
                None => return,
                Some(Decoded::Garbage { .. }) => {
                    self.counts.garbage = self.counts.garbage.saturating_add(1);
                    continue;
                }
                Some(Decoded::Body(body)) => FromHost::parse(body),
            };
            let is_usable = match said {
                Ok(said) => self.hear(now_ms, said),
                Err(_) => false,
            };
            if !is_usable {
                self.counts.unusable = self.counts.unusable.saturating_add(1);
            }
        }
    }

    /// Obeys; false if it is not for us.
    fn hear(&mut self, now_ms: u64, said: FromHost) -> bool {
        if self.settings.flow == Flow::OneWay {
            return false;
        }
        match (said, self.phase) {
            (FromHost::RequestHello, _) => {
                self.greet(now_ms);
                true
            }
            (FromHost::Time(time), _) => {
                self.clock = Some(Clock { stamp: time.stamp, uptime_ms: now_ms });
                self.set_wall(time.wall_us, now_ms);
                true
            }
            (FromHost::Welcome(welcome), _) => self.join(now_ms, &welcome),
            (FromHost::Ack(ack), Phase::Joined { session, .. }) if ack.session == session => {
                self.confirm(now_ms, ack.up_to)
            }
            (FromHost::Resend(resend), Phase::Joined { session, .. }) if resend.session == session => {
                let is_ours = resend.from <= self.to_send;
                if is_ours {
                    self.rewind(resend.from);
                }
                is_ours
            }
            (FromHost::Ack(_) | FromHost::Resend(_), _) => false,
        }
    }

    /// Says Hello at `due_ms`.
    fn greet(&mut self, due_ms: u64) {
        event!("greeting the host");
        self.phase = Phase::Greeting { due_ms, pause_ms: self.settings.hello_after_ms };
        self.previous_ms = None;
    }

    fn join(&mut self, now_ms: u64, welcome: &Welcome) -> bool {
        // A host that claims more than we ever gave means another life of ours.
        if welcome.context != self.context || welcome.acked >= self.ring.next() {
            return false;
        }
        event!("the host knows us");
        self.set_wall(welcome.wall_us, now_ms);
        let window = welcome.window.clamp(1, MAX_WINDOW);
        self.phase = Phase::Joined { session: welcome.session, window, resend_at_ms: None, tries: 0 };
        self.acked = self.acked.max(welcome.acked);
        self.ring.forget(self.acked);
        self.rewind(self.acked.next());
        true
    }

    fn set_wall(&mut self, wall_us: Option<i64>, now_ms: u64) {
        self.wall = wall_us.map(|wall_us| (wall_us, now_ms)).or(self.wall);
    }

    /// The host has all up to `up_to`.
    fn confirm(&mut self, now_ms: u64, up_to: SampleSeq) -> bool {
        if up_to >= self.ring.next() {
            return false;
        }
        if up_to > self.acked {
            self.acked = up_to;
            self.ring.forget(up_to);
            if self.to_send <= up_to {
                self.rewind(up_to.next());
            } else if self.cursor.seq < self.ring.first() {
                self.cursor = self.ring.locate(self.to_send);
            }
            self.set_alarm(now_ms, 0);
        }
        true
    }

    /// Sends from `from` on, whatever was sent before.
    fn rewind(&mut self, from: SampleSeq) {
        self.to_send = from;
        self.cursor = self.ring.locate(from);
        self.previous_ms = None;
    }

    /// Expects an acknowledgement in time, if one is due at all.
    fn set_alarm(&mut self, now_ms: u64, tried: u8) {
        let is_waiting = self.acked.next() < self.to_send;
        if let Phase::Joined { resend_at_ms, tries, .. } = &mut self.phase {
            let pause = self.settings.resend_after_ms.saturating_mul(1 << tried.min(PATIENCE));
            let pause = pause.min(self.settings.resend_at_most_ms);
            *resend_at_ms = is_waiting.then(|| now_ms.saturating_add(u64::from(pause)));
            *tries = tried;
        }
    }

    /// The next frame that is due, written to the beginning of `out`; `None` if none is. Write all of it to the line and
    /// ask again.
    ///
    /// # Errors
    /// If `out` is too small; nothing is lost.
    pub fn transmit<'o>(
        &mut self,
        now_ms: u64,
        out: &'o mut [u8],
    ) -> Result<Option<&'o [u8]>, BufferTooSmall> {
        let length = self.encode_due(now_ms, out)?;
        Ok(if length == 0 { None } else { out.get(..length) })
    }

    /// When [`Link::transmit`] has something next, if nothing else happens: a time at or before now means at once.
    #[must_use]
    pub fn next_transmit_ms(&self) -> Option<u64> {
        if self.clock.is_some() || self.may_send() {
            return Some(0);
        }
        match self.phase {
            Phase::Greeting { due_ms, .. } => Some(due_ms),
            Phase::Joined { resend_at_ms, .. } => resend_at_ms,
        }
    }

    /// True if a record, or the news that it is gone, may go out now.
    fn may_send(&self) -> bool {
        let is_there = self.to_send < self.ring.next();
        match self.phase {
            Phase::Greeting { due_ms, .. } => self.settings.flow == Flow::OneWay && due_ms > 0 && is_there,
            Phase::Joined { window, .. } => {
                // What was dropped is not on its way, whether or not the host has confirmed that.
                let gone = self.ring.first().before();
                let is_within = self.to_send <= self.acked.max(gone).plus(u64::from(window));
                self.to_send <= gone || (is_there && is_within)
            }
        }
    }

    /// Returns the bytes of the frame; 0 if none is due.
    fn encode_due(&mut self, now_ms: u64, out: &mut [u8]) -> Result<usize, BufferTooSmall> {
        if let Some(clock) = self.clock {
            let length = encode(Before::Frame, Tag::CLOCK, &clock, &[], out)?;
            self.clock = None;
            return Ok(length);
        }
        match self.phase {
            Phase::Greeting { due_ms, pause_ms } if due_ms <= now_ms => {
                return self.encode_hello(now_ms, pause_ms, out);
            }
            Phase::Joined { resend_at_ms: Some(at_ms), tries, .. } if at_ms <= now_ms => {
                if tries >= PATIENCE {
                    self.greet(now_ms);
                    return self.encode_due(now_ms, out);
                }
                self.counts.resends = self.counts.resends.saturating_add(1);
                self.rewind(self.acked.next());
                self.set_alarm(now_ms, tries.saturating_add(1));
            }
            Phase::Greeting { .. } | Phase::Joined { .. } => {}
        }
        if !self.may_send() {
            return Ok(0);
        }
        let first = self.ring.first();
        if self.to_send < first {
            let dropped =
                Dropped { context: self.context, up_to: first.before(), total: self.counts.dropped };
            let length = encode(Before::Unknown, Tag::DROPPED, &dropped, &[], out)?;
            self.rewind(first);
            self.expect_answer(now_ms);
            return Ok(length);
        }
        let Some(kept) = self.ring.get(self.cursor) else { return Ok(0) };
        let length = self.encode_record(&kept, out)?;
        self.previous_ms = (self.settings.flow == Flow::TwoWay).then_some(kept.uptime_ms);
        self.cursor = self.ring.behind(self.cursor);
        self.to_send = self.to_send.next();
        if self.settings.flow == Flow::OneWay {
            self.acked = self.to_send.before();
            self.ring.forget(self.acked);
        }
        self.expect_answer(now_ms);
        Ok(length)
    }

    /// Sets the alarm if it is not set.
    fn expect_answer(&mut self, now_ms: u64) {
        if let Phase::Joined { resend_at_ms, tries, .. } = self.phase
            && resend_at_ms.is_none_or(|at_ms| at_ms <= now_ms)
        {
            self.set_alarm(now_ms, tries);
        }
    }

    fn encode_hello(&mut self, now_ms: u64, pause_ms: u32, out: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let hello = Hello {
            version: VERSION,
            node: self.identity.node,
            firmware: self.identity.firmware,
            boot: self.identity.boot,
            flow: self.settings.flow,
            uptime_ms: now_ms,
            acked: self.acked,
            next: self.ring.next(),
            schema: self.schema,
            channels: self.identity.channels,
        };
        let length = encode(Before::Unknown, Tag::HELLO, &hello, &[], out)?;
        // Not 0, which means that no Hello was sent yet.
        let due_ms = now_ms.saturating_add(u64::from(pause_ms.max(1)));
        let pause_ms = pause_ms.saturating_mul(2).min(self.settings.hello_at_most_ms);
        self.phase = Phase::Greeting { due_ms, pause_ms };
        Ok(length)
    }

    /// In short, if the host has seen the record before.
    fn encode_record(&self, kept: &Kept<'_>, out: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let after_ms = self.previous_ms.and_then(|previous_ms| kept.uptime_ms.checked_sub(previous_ms));
        if let Some(after_ms) = after_ms.and_then(|after_ms| u32::try_from(after_ms).ok())
            && kept.tag == Tag::SAMPLE
        {
            let next = Next { mark: self.context.mark(self.to_send), after_ms };
            return encode(Before::Frame, Tag::NEXT, &next, &kept.content, out);
        }
        let before = match self.settings.flow {
            Flow::TwoWay => Before::Unknown,
            Flow::OneWay => Before::Frame,
        };
        let record = Record { context: self.context, seq: self.to_send, uptime_ms: kept.uptime_ms };
        encode(before, kept.tag, &record, &kept.content, out)
    }
}
