//! Devices that speak Modbus, on a serial line (RTU) or a network (TCP): asked in rounds, because none speaks by itself.
//!
//! In: registers, read through one bus. Out: one reading for each `read` table and round, into an [`Inlet`], stamped when its
//! last answer came. Promised: a device that does not answer, or refuses, is asked ever less often and costs the others nothing
//! but that; each failure has a name; the port comes and goes without a restart. What was polled is protected by nobody until
//! it is stored: it is counted as such.
//!
//! ```text
//!   closed ── open ──► open: a round ── what is left of the interval ──► a round ──► …
//!     ▲ pause            │
//!     └──────────────────┘ unplugged, connection lost
//! ```

mod bus;
mod fault;
mod line;
mod plan;
mod reporter;
mod schedule;
mod settings;
mod unit;
mod value;

#[cfg(test)]
mod tests;

pub use plan::{requests, wire_time};
pub use settings::{Bytes, Format, Kind, Number, Order, Read, Register, Scale, Settings, Words};

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::{Instant, sleep, sleep_until};

use self::bus::Bus;
use self::fault::Failure;
use self::reporter::{AllWell, Reporter};
use self::schedule::Schedule;
use self::unit::{Step, Unit};
use super::port::{self, Trouble};
use super::{LineCounts, Rooms, hand_over_the_rest};
use crate::backoff::{self, Backoff};
use crate::clock::Clock;
use crate::ingest::{Closed, Flushed, Inlet, Peer};

/// Pauses between attempts to connect to a host.
const RECONNECT: backoff::Settings = backoff::Settings {
    initial: std::time::Duration::from_millis(500),
    max: std::time::Duration::from_secs(30),
};

/// Reads the devices until it is told to stop.
pub async fn run(settings: Settings, rooms: Rooms) {
    let Rooms { source, intake, report, stop, clock } = rooms;
    let (place, interval) = (settings.port.at.clone(), settings.interval);
    let reporter = Reporter::new(&settings.name, place, interval, about(&settings), report, clock);
    let mut poller = Poller {
        units: Unit::all(&settings.name, &settings.reads, settings.interval),
        bus: Bus::new(&settings, clock),
        inlet: intake.open(&source, Peer::NAMELESS),
        reporter,
        settings,
        clock,
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        // Somebody else tells that the room has ended.
        Closed = poller.run() => stop.cancelled().await,
    }
    hand_over_the_rest(&mut poller.inlet).await;
}

/// What is read of each device, for people.
fn about(settings: &Settings) -> BTreeMap<Arc<str>, String> {
    let mut about: BTreeMap<Arc<str>, String> = BTreeMap::new();
    for read in &settings.reads {
        let (fields, asked) = (read.registers.len(), requests(&read.registers));
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let text = format!("unit {}: {} in {}", read.unit, count(fields, "field"), count(asked, "request"));
        let known = about.entry(read.device.as_str().into()).or_default();
        *known = if known.is_empty() { text } else { format!("{known}; {text}") };
    }
    about
}

/// The shell: it has the line, and does what the units say.
struct Poller {
    settings: Settings,
    units: Vec<Unit>,
    bus: Bus,
    inlet: Inlet,
    reporter: Reporter,
    clock: Clock,
}

/// Why rounds ended.
enum End {
    Lost(Trouble),
    Closed,
}

impl From<Closed> for End {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        Self::Lost(trouble)
    }
}

impl Poller {
    /// Ends only with the ingest room.
    async fn run(&mut self) -> Closed {
        let mut pauses = Backoff::new(if self.settings.is_rtu() { port::RETRY } else { RECONNECT });
        loop {
            let trouble = match self.bus.open().await {
                Ok(()) => {
                    let started = self.clock.monotonic();
                    match self.rounds(started).await {
                        End::Closed => return Closed,
                        End::Lost(trouble) => {
                            if self.clock.monotonic() - started >= self.settings.interval {
                                pauses.succeeded();
                            }
                            trouble
                        }
                    }
                }
                Err(trouble) => trouble,
            };
            self.bus.close();
            let pause = pauses.after_failure(fastrand::f64());
            self.reporter.failed(&trouble, pause);
            sleep(pause).await;
        }
    }

    /// Rounds while the line lasts.
    async fn rounds(&mut self, started: Instant) -> End {
        self.units.iter_mut().for_each(|unit| unit.begin_afresh(started));
        self.reporter.opened();
        let mut schedule = Schedule::new(started, self.settings.interval);
        loop {
            if let Err(end) = self.round(schedule.due()).await {
                return end;
            }
            let skipped = schedule.ended(self.clock.monotonic());
            let all_well =
                if self.units.iter().any(Unit::is_in_trouble) { AllWell::No } else { AllWell::Yes };
            self.reporter.round_ended(skipped, all_well);
            tokio::select! {
                biased;
                trouble = self.bus.unplugged() => return End::Lost(trouble),
                () = sleep_until(schedule.due()) => {}
            }
        }
    }

    /// Asks every unit that is due; those that did not answer the last time come last.
    async fn round(&mut self, round: Instant) -> Result<(), End> {
        let mut due: Vec<usize> = (0..self.units.len()).filter(|at| self.units[*at].is_due(round)).collect();
        due.sort_by_cached_key(|at| usize::from(self.units[*at].is_silent()));
        for at in due {
            self.read(at, round).await?;
        }
        let line = self.line_counts();
        self.reporter.asked(&self.units, line);
        Ok(())
    }

    /// Reads all tables of a unit.
    async fn read(&mut self, at: usize, round: Instant) -> Result<(), End> {
        for table in self.units[at].order() {
            let step = self.read_table(at, table, round).await;
            if let Some(reading) = self.units[at].tables[table].take_reading(round) {
                self.inlet.push_measured(reading);
                self.hand_over().await?;
            }
            match step? {
                Step::GoOn => {}
                Step::Leave => {
                    let line = self.line_counts();
                    self.reporter.asked(&self.units, line);
                    break;
                }
            }
        }
        Ok(())
    }

    async fn read_table(&mut self, at: usize, table: usize, round: Instant) -> Result<Step, Trouble> {
        let unit = &mut self.units[at];
        while let Some((question, span)) = unit.next(table, round) {
            let answer = match self.bus.ask(unit.number, span).await {
                Ok(data) => Ok(data),
                Err(Failure::Device(fault)) => Err(fault),
                Err(Failure::Lost(trouble)) => return Err(trouble),
            };
            if unit.settle(table, question, round, answer) == Step::Leave {
                return Ok(Step::Leave);
            }
        }
        Ok(Step::GoOn)
    }

    /// Hands the reading over at once, so that it is stamped by itself; waits while the store takes no more.
    async fn hand_over(&mut self) -> Result<(), Closed> {
        if self.inlet.flush()? == Flushed::All {
            return Ok(());
        }
        self.reporter.blocked();
        self.inlet.flushed().await?;
        self.reporter.unblocked();
        Ok(())
    }

    /// Of a network there is no line.
    fn line_counts(&self) -> Option<LineCounts> {
        self.settings.is_rtu().then(|| self.bus.counts())
    }
}
