//! The line of stamps: when things are received, by a clock that never goes back. Pure.
//!
//! ```text
//!            wall jumps ahead: so does the line
//!   stamps  ────────╯
//!                       wall jumps back: the line goes on, at half the speed, until the wall has caught up
//!   wall    ──────────╮   (at full speed while the wall shows nothing that can be true: then there is nothing to wait for)
//!                     ╰──────
//! ```
//!
//! So what a device sends later has no earlier stamp, and windows of devices without a time of their own neither go back nor
//! stand still. What is stamped while the clock is not synchronised, or while the line is off the wall, carries the
//! [`ClockLine`] by which its true time can be told once that boot's is known.

use std::sync::Arc;

use uuid::Uuid;

use super::Clock;
use crate::reading::{ClockLine, ClockState, Pace, Timestamp};

/// Nearer than this to the wall clock, a stamp is as good as the wall's.
const CLOSE_MICROS: i64 = 1_000_000;
/// The wall clock and the time since boot run together but for steps; both cannot be read at the same moment.
const STEP_MICROS: i64 = 10_000;

/// What was seen at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) wall: Timestamp,
    pub(super) uptime_micros: i64,
    pub(super) state: ClockState,
}

/// When something was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamp {
    /// The time.
    pub time: Timestamp,
    /// By which line, if not by a wall clock that is right.
    pub line: Option<Arc<ClockLine>>,
}

/// The line of stamps of one process, or of one simulation.
#[derive(Debug)]
pub(super) struct Line {
    boot: Uuid,
    /// The last stamp, and when it was given.
    last: Timestamp,
    last_uptime_micros: i64,
    /// The way of the line while the wall is behind it.
    waiting: Option<ClockLine>,
    /// What was given out last; shared by all that it stamps.
    shared: Option<Arc<ClockLine>>,
}

impl Line {
    pub(super) fn new(boot: Uuid) -> Self {
        Self { boot, last: Timestamp::MIN, last_uptime_micros: 0, waiting: None, shared: None }
    }

    pub(super) fn boot(&self) -> Uuid {
        self.boot
    }

    /// The next stamp.
    pub(super) fn stamp(&mut self, seen: Seen) -> Stamp {
        let time = self.advance(seen);
        let is_right = seen.state == ClockState::Synced && time.micros_since(seen.wall).abs() <= CLOSE_MICROS;
        let line = if is_right { None } else { Some(self.line_at(time, seen)) };
        Stamp { time, line }
    }

    /// The line goes on from `newest` if it is not past it.
    pub(super) fn resume(&mut self, newest: Timestamp, seen: Seen) {
        if newest > self.last {
            (self.last, self.last_uptime_micros) = (newest, seen.uptime_micros);
            self.waiting = None;
            self.advance(seen);
        }
    }

    /// Microseconds from the wall to the line.
    pub(super) fn ahead(&self, seen: Seen) -> i64 {
        let waiting = self.waiting.as_ref().map(|line| line.stamp_at(seen.uptime_micros));
        waiting.map_or(0, |stamp| stamp.micros_since(seen.wall).max(0))
    }

    fn advance(&mut self, seen: Seen) -> Timestamp {
        self.last = self.next(seen).clamp(self.last, Timestamp::MAX);
        self.last_uptime_micros = seen.uptime_micros;
        self.last
    }

    fn next(&mut self, seen: Seen) -> Timestamp {
        let now = match &self.waiting {
            Some(line) => line.stamp_at(seen.uptime_micros),
            None => self.last,
        };
        if seen.wall >= now {
            self.waiting = None;
            return seen.wall;
        }
        let pace = if Clock::is_plausible(seen.wall) { Pace::Half } else { Pace::Full };
        let from = match &self.waiting {
            Some(line) if line.pace == pace => return now,
            Some(_) => (now, seen.uptime_micros),
            // Nobody saw at which moment since the last stamp the wall went back.
            None => (self.last, self.last_uptime_micros),
        };
        let line = self.line_from(from.0, from.1, pace);
        let now = line.stamp_at(seen.uptime_micros);
        self.waiting = Some(line);
        now
    }

    /// The line on which `time` lies.
    fn line_at(&mut self, time: Timestamp, seen: Seen) -> Arc<ClockLine> {
        let is_on = |line: &ClockLine| match &self.waiting {
            Some(waiting) => line == waiting,
            None => {
                line.pace == Pace::Full
                    && line.stamp_at(seen.uptime_micros).micros_since(time).abs() <= STEP_MICROS
            }
        };
        if let Some(line) = self.shared.as_ref().filter(|line| is_on(line)) {
            return Arc::clone(line);
        }
        let line = self.waiting.clone();
        let line = Arc::new(line.unwrap_or_else(|| self.line_from(time, seen.uptime_micros, Pace::Full)));
        self.shared = Some(Arc::clone(&line));
        line
    }

    fn line_from(&self, stamp: Timestamp, uptime_micros: i64, pace: Pace) -> ClockLine {
        ClockLine { boot: self.boot, stamp, uptime_micros, pace }
    }
}
