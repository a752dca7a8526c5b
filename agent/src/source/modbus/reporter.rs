//! What the source says of itself: its state and its devices for the status, and one log line when trouble begins and one when it
//! ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::schedule::{News, Overload};
use super::unit::{Trouble, Unit};
use crate::causes::chain;
use crate::few;
use crate::source::{DeviceReport, LineCounts, Report, State, port};

/// Publishes state and logs changes of it.
#[derive(Debug)]
pub(super) struct Reporter {
    name: String,
    place: port::Place,
    interval: Duration,
    sender: watch::Sender<Report>,
    /// As published, or about to be.
    report: Report,
    /// The trouble with the line that was logged and has not ended.
    logged: Option<State>,
    blocked: Blocked,
    overload: Overload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    No,
    Yes,
}

impl Reporter {
    /// Speaks for the source `name`, whose devices are at `place`. `about` says what is read of each.
    pub(super) fn new(
        name: &str,
        place: port::Place,
        interval: Duration,
        about: BTreeMap<Arc<str>, String>,
        sender: watch::Sender<Report>,
    ) -> Self {
        let devices = few::map(
            about
                .into_iter()
                .map(|(device, about)| (device, DeviceReport { about, ..DeviceReport::default() })),
        );
        let report = Report { devices, rounds_skipped: Some(0), ..Report::default() };
        let (name, overload) = (name.to_owned(), Overload::default());
        Self { name, place, interval, sender, report, logged: None, blocked: Blocked::No, overload }
    }

    /// There is no line; the next attempt comes after `pause`.
    pub(super) fn failed(&mut self, trouble: &port::Trouble, pause: Duration) {
        let (error, state) = (chain(trouble), trouble.state());
        if self.logged == Some(state) {
            debug!(source = %self.name, ?pause, "{error}");
        } else {
            warn!(source = %self.name, ?pause, "{error}; trying again");
            self.logged = Some(state);
        }
        self.blocked = Blocked::No;
        (self.report.state, self.report.last_error) = (state, Some(error));
        self.publish();
    }

    /// The line is there; nobody was asked on it yet.
    pub(super) fn opened(&mut self) {
        debug!(source = %self.name, place = %self.place, "connected");
        self.publish();
    }

    /// Some devices were asked, and the line is still there.
    pub(super) fn asked(&mut self, units: &[Unit], line: Option<LineCounts>) {
        if self.logged.take().is_some() {
            info!(source = %self.name, place = %self.place, "connected again");
        }
        let devices = devices(units);
        for (device, (trouble, failures)) in &devices {
            let known = self.report.devices.entry(Arc::clone(device)).or_default();
            match (&known.last_error, trouble) {
                (None, Some(trouble)) => {
                    warn!(source = %self.name, %device, "{}; it is asked less often now", trouble.error);
                }
                (Some(_), None) => {
                    info!(source = %self.name, %device, "the device answers as it should again")
                }
                (Some(before), Some(now)) if before != now.error => {
                    debug!(source = %self.name, %device, "{}", now.error);
                }
                (None, None) | (Some(_), Some(_)) => {}
            }
            known.failures = *failures;
            if known.last_error.as_deref() != trouble.map(|trouble| trouble.error) {
                known.last_error = trouble.map(|trouble| trouble.error.to_owned());
            }
        }
        let troubles: Vec<_> = devices.values().filter_map(|(trouble, _)| *trouble).collect();
        let all_garbage =
            troubles.len() == devices.len() && troubles.iter().all(|trouble| trouble.is_garbage);
        self.report.state = match troubles.len() {
            0 => State::Connected,
            _ if all_garbage => State::Garbage,
            _ => State::DeviceErrors,
        };
        self.report.last_error = troubles.first().map(|first| match troubles.len() - 1 {
            0 => first.error.to_owned(),
            more => format!("{}; and {more} more", first.error),
        });
        self.report.line = line;
        self.publish();
    }

    /// A round has ended, and so many after it are left out; `all_well` if every device answered in it.
    pub(super) fn round_ended(&mut self, skipped: u32, all_well: AllWell) {
        if skipped > 0 {
            let before = self.report.rounds_skipped.unwrap_or_default();
            self.report.rounds_skipped = Some(before.saturating_add(skipped.into()));
            self.publish();
        }
        if all_well == AllWell::No {
            return;
        }
        let (source, interval) = (&self.name, self.interval);
        match self.overload.round(skipped) {
            Some(News::Begins) => {
                warn!(%source, ?interval, "a round takes longer than the interval, so rounds are left out; raise interval");
            }
            Some(News::Ends) => info!(%source, ?interval, "rounds take no longer than the interval any more"),
            None => {}
        }
    }

    /// Readings wait because the store takes no more.
    pub(super) fn blocked(&mut self) {
        if self.blocked == Blocked::No {
            warn!(source = %self.name, "held back: the store takes no more at the moment");
            self.blocked = Blocked::Yes;
            self.publish();
        }
    }

    /// The store takes readings again.
    pub(super) fn unblocked(&mut self) {
        if self.blocked == Blocked::Yes {
            info!(source = %self.name, "no longer held back");
            self.blocked = Blocked::No;
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.report.settled = true;
        let mut report = self.report.clone();
        if self.blocked == Blocked::Yes {
            report.state = State::Blocked;
        }
        self.sender.send_if_modified(|published| {
            let is_news = *published != report;
            *published = report;
            is_news
        });
    }
}

/// Whether every device answered in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AllWell {
    Yes,
    No,
}

/// The first trouble of each device, and how often it failed.
fn devices(units: &[Unit]) -> BTreeMap<Arc<str>, (Option<Trouble<'_>>, u64)> {
    let mut devices: BTreeMap<_, (Option<Trouble<'_>>, u64)> = BTreeMap::new();
    for unit in units {
        for (place, table) in unit.tables.iter().enumerate() {
            let (trouble, failures) = devices.entry(Arc::clone(&table.device)).or_default();
            *trouble = trouble.or_else(|| unit.trouble(place));
            *failures += table.failures;
        }
    }
    devices
}
