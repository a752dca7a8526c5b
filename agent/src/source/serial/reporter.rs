//! What the source says of itself: its state for the status, and one log line when trouble begins and one when it ends.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::health::Condition;
use crate::causes::chain;
use crate::clock::Clock;
use crate::few;
use crate::source::port::{Place, Trouble};
use crate::source::told::{Told, Word};
use crate::source::{DeviceReport, LineCounts, Report, State};

/// Publishes state and logs changes of it.
#[derive(Debug)]
pub(super) struct Reporter {
    place: Place,
    report: watch::Sender<Report>,
    /// What it would be were it not blocked.
    state: State,
    last_error: Option<String>,
    told: Told,
    was_well: bool,
    pub(super) line: LineCounts,
}

impl Reporter {
    pub(super) fn new(name: &str, place: Place, report: watch::Sender<Report>, clock: Clock) -> Self {
        Self {
            place,
            report,
            state: State::Starting,
            last_error: None,
            told: Told::nothing_of(name, 0, clock),
            was_well: false,
            line: LineCounts::default(),
        }
    }

    /// The port cannot be opened, or was lost.
    pub(super) fn failed(&mut self, trouble: &Trouble) {
        self.told.forget_blocked();
        self.change(trouble.state(), Some(chain(trouble)));
    }

    /// The port is open; what is there has not said anything yet.
    pub(super) fn opened(&mut self) {
        self.line.opened += 1;
        debug!(source = %self.told.source(), port = %self.place, "port open");
        self.report.send_modify(|report| report.settled = true);
    }

    /// Whoever is there has to speak first.
    pub(super) fn waits(&mut self) {
        self.change(State::Starting, None);
    }

    /// The port is open, and this is how the line is.
    pub(super) fn is_in(&mut self, condition: Condition, advice: impl FnOnce() -> String) {
        let state = match condition {
            Condition::Fine => State::Connected,
            Condition::Silent => State::Silent,
            Condition::Flooding => State::Flooding,
            Condition::Garbage => State::Garbage,
        };
        if state == State::Connected {
            self.change(state, None);
        } else if state != self.state || self.told.is_due() {
            self.change(state, Some(advice()));
        }
    }

    /// Messages wait because the store takes no more.
    pub(super) fn blocked(&mut self) {
        if self.told.blocked("") {
            self.publish();
        }
    }

    /// The store takes messages again.
    pub(super) fn unblocked(&mut self) {
        if self.told.unblocked() {
            self.publish();
        }
    }

    /// Brings the counts up to date, and what is known of devices.
    pub(super) fn refresh<'d>(&self, devices: impl Iterator<Item = (&'d Arc<str>, &'d DeviceReport)>) {
        let line = Some(self.line);
        let devices: Vec<_> = devices.collect();
        self.report.send_if_modified(|report| {
            let is_same = report.devices.len() == devices.len()
                && devices.iter().all(|(name, device)| report.devices.get(*name) == Some(*device));
            if report.line == line && is_same {
                return false;
            }
            report.line = line;
            report.devices =
                few::map(devices.iter().map(|(name, device)| (Arc::clone(name), (*device).clone())));
            true
        });
    }

    fn change(&mut self, state: State, error: Option<String>) {
        if self.state == state && self.last_error == error && !self.told.is_due() {
            return;
        }
        let source = self.told.source().to_owned();
        match &error {
            Some(error) => match self.told.is_in(state) {
                Word::New { left_out } => warn!(%source, state = state.name(), left_out, "{error}"),
                Word::Known => debug!(%source, state = state.name(), "{error}"),
            },
            None if state == State::Starting => {}
            None => self.well(&source),
        }
        (self.state, self.last_error) = (state, error);
        self.publish();
    }

    fn well(&mut self, source: &str) {
        let was_well = std::mem::replace(&mut self.was_well, true);
        match self.told.is_well().map(State::name) {
            // The log does not have what was wrong, so it is no news that it ended.
            None if was_well => debug!(%source, port = %self.place, "serial line is well"),
            after => info!(%source, port = %self.place, after, "serial line is well"),
        }
    }

    fn publish(&self) {
        let state = if self.told.is_blocked() { State::Blocked } else { self.state };
        self.report.send_if_modified(|report| {
            let before = (report.state, report.last_error.clone(), report.settled);
            report.state = state;
            report.last_error.clone_from(&self.last_error);
            report.settled |= self.state != State::Starting;
            report.line = Some(self.line);
            before != (report.state, report.last_error.clone(), report.settled)
        });
    }
}
