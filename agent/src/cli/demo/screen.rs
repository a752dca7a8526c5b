//! The demo's output: one live line on a terminal, a line every few seconds elsewhere.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use crate::forward;
use crate::receive::Behaviour;
use crate::source;

/// Away from a terminal, a line each time this has passed.
const PLAIN_PERIOD: Duration = Duration::from_secs(2);

/// Where the demo writes.
pub(super) struct Screen<W> {
    out: W,
    kind: Kind,
    last: Option<Duration>,
}

/// What is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A person: the line is redrawn in place.
    Terminal,
    /// A file or a pipe.
    Plain,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, kind: Kind) -> Self {
        Self { out, kind, last: None }
    }

    /// Shows how things stand; away from a terminal only now and then.
    pub(super) fn progress(&mut self, glance: &Glance) -> io::Result<()> {
        match self.kind {
            // Without automatic wrapping: a line longer than the terminal would otherwise not be redrawn in place.
            Kind::Terminal => write!(self.out, "\r\x1b[?7l{glance}\x1b[K\x1b[?7h")?,
            Kind::Plain => {
                if self.last.is_some_and(|last| glance.elapsed < last + PLAIN_PERIOD) {
                    return Ok(());
                }
                writeln!(self.out, "{glance}")?;
            }
        }
        self.last = Some(glance.elapsed);
        self.out.flush()
    }

    /// Says something that stays, above the live line.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        match self.kind {
            Kind::Terminal => writeln!(self.out, "\r\x1b[K{text}")?,
            Kind::Plain => writeln!(self.out, "{text}")?,
        }
        self.out.flush()
    }

    /// Ends the live line, so that it stays too.
    pub(super) fn keep_line(&mut self) -> io::Result<()> {
        if self.kind == Kind::Terminal && self.last.is_some() {
            writeln!(self.out)?;
        }
        self.out.flush()
    }
}

/// How things stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glance {
    pub(super) elapsed: Duration,
    /// Messages that the sensors saw acknowledged.
    pub(super) acked: u64,
    /// Readings in the store's books.
    pub(super) stored: u64,
    /// Of these, delivered.
    pub(super) delivered: u64,
    /// Of these, waiting.
    pub(super) pending: u64,
    /// Window results.
    pub(super) windows: u64,
    pub(super) sink: forward::State,
    pub(super) cloud: Behaviour,
    /// How the line to the node is.
    pub(super) serial: source::State,
    pub(super) phase: Phase,
}

/// What the demo is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Measuring,
    Draining,
}

impl fmt::Display for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acked, stored, delivered, pending, windows, .. } = self;
        let seconds = self.elapsed.as_secs();
        let sink = match self.sink {
            forward::State::Up => "up",
            forward::State::Retrying => "retrying",
            forward::State::Unauthorized => "unauthorized",
            forward::State::Misconfigured => "misconfigured",
            forward::State::Refusing => "refusing",
        };
        let cloud = match self.cloud {
            Behaviour::Normal => "",
            Behaviour::Unavailable | Behaviour::Unreachable => ", OUTAGE",
        };
        let serial = match self.serial {
            source::State::Unplugged => " | node unplugged",
            _ => "",
        };
        let phase = match self.phase {
            Phase::Measuring => "",
            Phase::Draining => " | draining",
        };
        write!(
            f,
            "{:>3}:{:02} | acked {acked:>6} | stored {stored:>6} | delivered {delivered:>6} | pending {pending:>5} | \
             windows {windows:>5} | cloud {sink}{cloud}{serial}{phase}",
            seconds / 60,
            seconds % 60,
        )
    }
}
