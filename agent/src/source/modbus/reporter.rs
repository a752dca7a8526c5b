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
use crate::clock::Clock;
use crate::few;
use crate::source::told::{Told, Word};
use crate::source::{DeviceReport, LineCounts, Report, State, port};

/// Publishes state and logs changes of it.
#[derive(Debug)]
pub(super) struct Reporter {
    place: port::Place,
    interval: Duration,
    sender: watch::Sender<Report>,
    /// As published, or about to be.
    report: Report,
    told: Told,
    overload: Overload,
}

impl Reporter {
    /// Speaks for the source `name`, whose devices are at `place`. `about` says what is read of each.
    pub(super) fn new(
        name: &str,
        place: port::Place,
        interval: Duration,
        about: BTreeMap<Arc<str>, String>,
        sender: watch::Sender<Report>,
        clock: Clock,
    ) -> Self {
        let told = Told::nothing_of(name, about.len(), clock);
        let devices = few::map(
            about
                .into_iter()
                .map(|(device, about)| (device, DeviceReport { about, ..DeviceReport::default() })),
        );
        let report = Report { devices, rounds_skipped: Some(0), ..Report::default() };
        Self { place, interval, sender, report, told, overload: Overload::default() }
    }

    /// There is no line; the next attempt comes after `pause`.
    pub(super) fn failed(&mut self, trouble: &port::Trouble, pause: Duration) {
        let (error, state) = (chain(trouble), trouble.state());
        let (word, source) = (self.told.is_in(state), self.told.source());
        match word {
            Word::New { left_out } => warn!(%source, ?pause, left_out, "{error}; trying again"),
            Word::Known => debug!(%source, ?pause, "{error}"),
        }
        self.told.forget_blocked();
        (self.report.state, self.report.last_error) = (state, Some(error));
        self.publish();
    }

    /// The line is there; nobody was asked on it yet.
    pub(super) fn opened(&mut self) {
        debug!(source = %self.told.source(), place = %self.place, "connected");
        self.publish();
    }

    /// Some devices were asked, and the line is still there.
    pub(super) fn asked(&mut self, units: &[Unit], line: Option<LineCounts>) {
        if self.told.is_well().is_some() {
            info!(source = %self.told.source(), place = %self.place, "connected again");
        }
        let devices = devices(units);
        for (device, (trouble, failures)) in &devices {
            let known = self.report.devices.entry(Arc::clone(device)).or_default();
            match trouble {
                Some(trouble) => match self.told.device_fails(device) {
                    Word::New { left_out } => {
                        let source = self.told.source();
                        warn!(%source, %device, left_out, "{}; it is asked less often now", trouble.error);
                    }
                    Word::Known if known.last_error.as_deref() != Some(trouble.error) => {
                        debug!(source = %self.told.source(), %device, "{}", trouble.error);
                    }
                    Word::Known => {}
                },
                None if self.told.device_is_well(device) => {
                    info!(source = %self.told.source(), %device, "the device answers as it should again");
                }
                None => {}
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
        let (source, interval) = (self.told.source(), self.interval);
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
        if self.told.blocked("") {
            self.publish();
        }
    }

    /// The store takes readings again.
    pub(super) fn unblocked(&mut self) {
        if self.told.unblocked() {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.report.settled = true;
        let mut report = self.report.clone();
        if self.told.is_blocked() {
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
