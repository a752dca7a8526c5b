//! From the bytes of a line to what is seen of them, and what a host would say to it. Pure: bytes and the time go in.
//!
//! A node speaks only to a host that welcomes it, so the viewer does. It confirms nothing ([`Confirm::Never`]): what it sees the node
//! keeps, and sends again to the agent, which is told everything from where its own books end.

use firmware_bridge::frame::{Flow, MAX_WINDOW};
use firmware_bridge::host::{Confirm, Counts, Happening, Host, Node, Now, Position, Settings};

use super::seen::{
    Channel, EXCERPT_BYTES, Named, Record, Seen, Shown, Totals, Understood, excerpt, kind, level, reason,
};
use crate::reading::Timestamp;
use crate::source::port::Beginning;
use crate::source::serial::{Looks, Piece, Splitter, odd_bytes, unique_names};

const SECOND_US: u64 = 1_000_000;
/// A line of text is cut behind so many bytes.
const LINE_BYTES: usize = 1_024;
/// What is not complete is shown after so long.
const UNFINISHED_US: u64 = 2 * SECOND_US;
/// A line that is silent from the beginning is not well; who has spoken may just have nothing to say.
const SILENT_AT_FIRST_US: u64 = 5 * SECOND_US;
const SILENT_LATER_US: u64 = 30 * SECOND_US;
/// Who has not answered is asked again after so long.
const ASK_AGAIN_US: u64 = 5 * SECOND_US;
/// Text is waited for before binary questions are put to a device that may not know them.
const LISTEN_FIRST_US: u64 = 1_500_000;
/// A serial server may let two programs in: while a node sends to another one, it is left to that.
const LISTEN_SHARED_US: u64 = 5 * SECOND_US;

/// What the line is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Whatever comes.
    Anything,
    /// One of them, whatever comes.
    Only(Understood),
}

/// When something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    /// Never.
    Silent,
    /// As soon as it helps; the port is ours alone.
    Alone,
    /// If nobody else seems to speak to the node.
    Shared,
}

/// One line.
#[derive(Debug)]
pub(super) struct Viewer {
    expected: Expected,
    understood: Option<Understood>,
    speech: Speech,
    advice: String,
    host: Host,
    splitter: Splitter,
    /// Bytes since the last thing that had an end.
    open: Excerpt,
    /// Bytes that are nothing, and have not been told.
    stray: Excerpt,
    names: Vec<Box<str>>,
    totals: Totals,
    told: Counts,
    began_us: u64,
    /// When something came last, or the port was opened.
    heard_us: u64,
    /// Whether anything that came since the port was opened made sense.
    makes_sense: bool,
    silence_told_us: u64,
    asked_us: u64,
    /// Nothing is sent before.
    speaks_us: u64,
}

/// Some bytes, of which the first are kept.
#[derive(Debug, Default)]
struct Excerpt {
    bytes: u64,
    since_us: u64,
    first: Vec<u8>,
}

impl Excerpt {
    fn add(&mut self, bytes: &[u8], now_us: u64) {
        if self.bytes == 0 {
            self.since_us = now_us;
        }
        self.bytes += bytes.len() as u64;
        let room = LINE_BYTES.saturating_sub(self.first.len()).min(bytes.len());
        self.first.extend_from_slice(&bytes[..room]);
    }

    fn take_from(&mut self, other: &mut Self, now_us: u64) {
        self.add(&other.first, now_us);
        self.bytes += other.bytes.saturating_sub(other.first.len() as u64);
        other.clear();
    }

    fn clear(&mut self) {
        self.bytes = 0;
        self.first.clear();
    }
}

impl Viewer {
    /// `session` is another one at each start; `advice` is what to check if nothing makes sense.
    pub(super) fn new(expected: Expected, speech: Speech, session: u32, advice: String, now: &Now) -> Self {
        let settings =
            Settings { session, window: MAX_WINDOW, confirm: Confirm::Never, ..Settings::default() };
        let host = Host::new(settings, []);
        Self {
            told: host.counts(),
            host,
            expected,
            understood: None,
            speech,
            advice,
            splitter: Splitter::new(LINE_BYTES),
            open: Excerpt::default(),
            stray: Excerpt::default(),
            names: Vec::new(),
            totals: Totals::default(),
            began_us: now.monotonic_us,
            heard_us: now.monotonic_us,
            makes_sense: false,
            silence_told_us: 0,
            asked_us: 0,
            speaks_us: 0,
        }
    }

    /// The port is open.
    pub(super) fn opened(&mut self, now: &Now) {
        let now_us = now.monotonic_us;
        self.splitter.begin(Beginning::First);
        (self.heard_us, self.makes_sense, self.silence_told_us) = (now_us, false, now_us);
        self.asked_us = now_us;
        let pause_us = match (self.speech, self.expected) {
            (Speech::Shared, _) => LISTEN_SHARED_US,
            (_, Expected::Anything) => LISTEN_FIRST_US,
            (_, Expected::Only(_)) => 0,
        };
        self.speaks_us = now_us + pause_us;
    }

    /// The port was lost.
    pub(super) fn closed(&mut self, now: &Now, seen: &mut Vec<Seen>) {
        self.settle(now, seen);
        self.host.disconnected();
    }

    /// How many things came that make sense: samples, events and lines.
    pub(super) fn messages(&self) -> u64 {
        self.totals.samples + self.totals.events + self.totals.lines
    }

    /// True if anything came that makes sense.
    pub(super) fn has_understood(&self) -> bool {
        self.host.counts().frames > 0 || self.totals.lines > 0
    }

    /// Takes what came.
    pub(super) fn take(&mut self, bytes: &[u8], now: &Now, seen: &mut Vec<Seen>) {
        self.heard_us = now.monotonic_us;
        self.silence_told_us = now.monotonic_us;
        self.totals.bytes += bytes.len() as u64;
        let frames = self.host.counts().frames;
        for piece in bytes.split_inclusive(|byte| *byte == 0) {
            self.open.add(piece, now.monotonic_us);
            let is_frame =
                self.expected != Expected::Only(Understood::Lines) && self.take_frames(piece, now, seen);
            if !is_frame {
                self.take_other(piece, now, seen);
            }
        }
        let is_waiting = now.monotonic_us < self.speaks_us;
        if self.speech == Speech::Shared && is_waiting && self.host.counts().frames > frames {
            self.speaks_us = now.monotonic_us + LISTEN_SHARED_US;
        }
    }

    /// What may be text; `piece` has at most one zero, at its end.
    fn take_other(&mut self, piece: &[u8], now: &Now, seen: &mut Vec<Seen>) {
        let is_lines = self.is_lines();
        let may_be_lines =
            is_lines || (self.understood.is_none() && self.expected != Expected::Only(Understood::Bridge));
        let zero = piece.strip_suffix(&[0]).filter(|_| !is_lines);
        if may_be_lines {
            self.take_lines(zero.unwrap_or(piece), now, seen);
        }
        if zero.is_some() && !self.is_lines() {
            if self.open.bytes > 1 {
                self.stray.take_from(&mut self.open, now.monotonic_us);
            }
            self.open.clear();
            self.splitter.begin(Beginning::First);
        }
    }

    /// True if lines come, as far as we know, or have to.
    fn is_lines(&self) -> bool {
        self.understood == Some(Understood::Lines) || self.expected == Expected::Only(Understood::Lines)
    }

    /// True if a frame has ended. `piece` has at most one zero, at its end.
    fn take_frames(&mut self, piece: &[u8], now: &Now, seen: &mut Vec<Seen>) -> bool {
        let (before, mut rest) = (self.host.counts(), piece);
        let understood = seen.len();
        while let Some(happening) = self.host.next(&mut rest, now) {
            match happening {
                Happening::Hello(node) => {
                    self.names = unique_names(&node);
                    seen.push(hello(&node, &self.names));
                }
                Happening::Sample(sample) => {
                    self.totals.samples += 1;
                    let values = sample.values.as_slice().iter().map(Shown::from);
                    let node = self.host.node();
                    let units = node.iter().flat_map(|node| node.channels.iter().map(|of| &of.unit));
                    let values = self.names.iter().zip(units).zip(values).map(|((name, unit), value)| {
                        Named { name: name.to_string(), unit: unit.to_string(), value }
                    });
                    seen.push(Seen::Sample { record: record(&sample.position), values: values.collect() });
                }
                Happening::Event(event) => {
                    self.totals.events += 1;
                    seen.push(Seen::Event {
                        record: record(&event.position),
                        event: event.name.to_string(),
                        value: Shown::from(&event.value),
                    });
                }
                Happening::Gap(gap) => {
                    // A node may claim any number, again and again.
                    self.totals.missing = self.totals.missing.saturating_add(gap.count());
                    seen.push(Seen::Gap {
                        node: gap.position.node.to_string(),
                        first: gap.first.0,
                        last: gap.position.seq.0,
                        reason: reason(gap.reason),
                    });
                }
                Happening::Log { level: of, uptime_ms, text } => {
                    let text = text.to_owned();
                    let node = self.host.node().map_or_else(String::new, |node| node.id.to_string());
                    seen.push(Seen::Log { node, level: level(of), uptime_ms, text });
                }
            }
        }
        let is_frame = self.host.counts().frames > before.frames;
        if is_frame {
            self.understand(Understood::Bridge, seen, understood);
            self.open.clear();
        }
        is_frame
    }

    fn take_lines(&mut self, piece: &[u8], now: &Now, seen: &mut Vec<Seen>) {
        let (mut is_lines, mut rest) = (self.is_lines(), piece);
        while let Some(piece) = self.splitter.next(&mut rest) {
            let Piece::Line(line, looks) = piece else { continue };
            // Before it is known what comes, a line is one without a single odd byte: frames have some.
            let is_text =
                if is_lines { looks == Looks::Text } else { odd_bytes(line) == 0 && line.len() > 1 };
            if is_text {
                let text = String::from_utf8_lossy(line).into_owned();
                self.totals.lines += 1;
                is_lines = true;
                self.open.clear();
                self.open.add(rest, now.monotonic_us);
                let at = seen.len();
                seen.push(Seen::Line { text, has_ended: true });
                self.understand(Understood::Lines, seen, at);
            } else if is_lines {
                self.stray.add(line, now.monotonic_us);
                self.open.clear();
                self.open.add(rest, now.monotonic_us);
            }
        }
    }

    /// Something made sense; it was seen from `at` on.
    fn understand(&mut self, what: Understood, seen: &mut Vec<Seen>, at: usize) {
        self.makes_sense = true;
        if self.understood != Some(what) {
            self.understood = Some(what);
            seen.insert(at, Seen::Speaks { protocol: what });
        }
    }

    /// Looks after what takes its time: to be called several times a second while the port is open.
    pub(super) fn tick(&mut self, now: &Now, seen: &mut Vec<Seen>) {
        let now_us = now.monotonic_us;
        if self.open.bytes > 0 && now_us >= self.open.since_us + UNFINISHED_US {
            self.tell_unfinished(now, seen);
        }
        if self.stray.bytes > 0 && now_us >= self.stray.since_us + SECOND_US {
            self.tell_garbage(seen);
        }
        self.tell_odd_frames(seen);
        let silent_us = now_us.saturating_sub(self.heard_us);
        let patience_us = if self.makes_sense { SILENT_LATER_US } else { SILENT_AT_FIRST_US };
        // Ever more seldom.
        let told_us = self.silence_told_us.saturating_sub(self.heard_us);
        if silent_us >= patience_us.max(2 * told_us) {
            self.silence_told_us = now_us;
            seen.push(Seen::Silent { seconds: silent_us / SECOND_US, advice: self.silence_advice() });
        }
        let is_unanswered = self.host.node().is_none() && silent_us >= ASK_AGAIN_US;
        if is_unanswered && now_us >= self.asked_us + ASK_AGAIN_US {
            self.asked_us = now_us;
            self.host.disconnected();
        }
    }

    /// What is to be sent now is appended to `out`.
    pub(super) fn transmit(&mut self, now: &Now, out: &mut Vec<u8>) {
        let is_text =
            self.understood == Some(Understood::Lines) || self.expected == Expected::Only(Understood::Lines);
        if self.speech == Speech::Silent || is_text || now.monotonic_us < self.speaks_us {
            return;
        }
        self.host.transmit(now, out);
    }

    /// Everything that was seen until now.
    pub(super) fn end(&mut self, now: &Now, seen: &mut Vec<Seen>) {
        self.settle(now, seen);
        let counts = self.host.counts();
        let micros = now.monotonic_us.saturating_sub(self.began_us);
        seen.push(Seen::End(Totals {
            seconds: std::time::Duration::from_micros(micros).as_secs_f64(),
            frames: counts.frames,
            repeated: counts.repeated,
            unreadable: counts.strange,
            ..self.totals.clone()
        }));
    }

    fn settle(&mut self, now: &Now, seen: &mut Vec<Seen>) {
        if self.open.bytes > 0 {
            self.tell_unfinished(now, seen);
        }
        if self.stray.bytes > 0 {
            self.tell_garbage(seen);
        }
        self.tell_odd_frames(seen);
    }

    /// A prompt without an end, or the beginning of nothing.
    fn tell_unfinished(&mut self, now: &Now, seen: &mut Vec<Seen>) {
        let is_text = self.understood != Some(Understood::Bridge)
            && self.open.bytes > 1
            && odd_bytes(&self.open.first) == 0;
        if is_text {
            let text = String::from_utf8_lossy(&self.open.first).into_owned();
            seen.push(Seen::Line { text, has_ended: false });
            self.open.clear();
        } else {
            self.stray.take_from(&mut self.open, now.monotonic_us);
        }
    }

    fn tell_garbage(&mut self, seen: &mut Vec<Seen>) {
        let bytes = self.stray.bytes;
        self.totals.garbage_bytes += bytes;
        let first = self.stray.first.get(..EXCERPT_BYTES).unwrap_or(&self.stray.first);
        let (hex, ascii) = excerpt(first);
        let advice = if self.makes_sense { String::new() } else { self.advice.clone() };
        seen.push(Seen::Garbage { bytes, hex, ascii, advice });
        self.stray.clear();
    }

    fn tell_odd_frames(&mut self, seen: &mut Vec<Seen>) {
        let counts = self.host.counts();
        let records = counts.strange - self.told.strange;
        if records > 0 && self.host.node().is_none() {
            let advice = match self.speech {
                Speech::Silent => {
                    "it says hello after a reset, or when it is asked, which --listen-only forbids"
                }
                Speech::Alone => "it is being asked",
                Speech::Shared => {
                    "another program seems to speak to it, such as the agent; it is not asked meanwhile"
                }
            };
            seen.push(Seen::Unreadable { records, advice });
        }
        if counts.unusable > self.told.unusable {
            seen.push(Seen::Unusable { frames: counts.unusable - self.told.unusable });
        }
        self.told = counts;
    }

    fn silence_advice(&self) -> &'static str {
        if self.makes_sense {
            "it has spoken before, and may have nothing to say; else check its power and the line"
        } else if self.speech == Speech::Silent {
            "check that the device has power, and that its TX leads to our RX; without --listen-only it is also asked to speak"
        } else {
            "check that the device has power, that its TX leads to our RX and its RX to our TX, and that the grounds are connected"
        }
    }
}

fn hello(node: &Node, names: &[Box<str>]) -> Seen {
    let channels = node.channels.iter().zip(names).map(|(of, name)| Channel {
        name: name.to_string(),
        unit: of.unit.to_string(),
        kind: kind(of.kind),
    });
    Seen::Hello {
        node: node.id.to_string(),
        firmware: node.firmware.to_string(),
        link: node.version,
        boot: node.boot,
        transmits_only: node.flow == Flow::OneWay,
        channels: channels.collect(),
    }
}

fn record(of: &Position) -> Record {
    Record { node: of.node.to_string(), n: of.seq.0, time: Timestamp(of.wall_us), uptime_ms: of.uptime_ms }
}
