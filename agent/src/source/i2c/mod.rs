//! Room 1: sensors on the gateway's own I2C bus.
//!
//! In: what sensors measure when they are asked, each on its own schedule. Out: a reading a sensor and round, pushed into an
//! [`Inlet`]. Promised: a sensor that fails holds up no other, and is set up anew when it is back; no
//! trouble with the bus ends the source; the schedule does not drift.
//!
//! ```text
//!   starting ──► connected ◄──► device-errors      (a sensor does not answer; the others are read)
//!      │           │   ▲
//!      ▼           ▼   │
//!   unplugged / permission-denied / misconfigured  (the bus as a whole: opened anew after a pause)
//!   hanging                                        (the kernel does not come back: it is waited for)
//! ```
//!
//! Drivers are those of firmware, behind the same [`Sampler`](firmware_bridge::sampler::Sampler); they block, and so run on a
//! thread of their own, one sensor at a time. That thread does not count among the signs of life of the room: what hangs is the
//! bus, which a restart of the agent would not mend, so it is a state of this source and nothing for the watchdog.

mod bus;
mod drivers;
mod reporter;
mod settings;
#[cfg(test)]
mod tests;

pub use self::drivers::{Driver, Inputs, Range};
pub use self::settings::{Sensor, Settings};

use std::sync::Arc;
use std::time::Duration;

use firmware_bridge::value::Values;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::bus::{Bus, Fault};
use self::drivers::{Failure, Scheduled, scheduled};
use self::reporter::Reporter;
use super::{Rooms, hand_over_the_rest, measured};
use crate::backoff::{self, Backoff};
use crate::blocking::blocking_for_long;
use crate::clock::Clock;
use crate::ingest::{Closed, Delivery, Flushed, Inlet, Measured, Peer};
use crate::reading::{Origin, Shape, Value};

/// A sensor that does not answer is asked at least this often, or in every round if rounds are longer.
const LONGEST_SKIP: Duration = Duration::from_secs(60);
/// How fast things are tried again and given up.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Pauses between attempts to open the bus.
    retry: backoff::Settings,
    /// What takes longer hangs.
    hangs_after: Duration,
    /// Who stops waits so long for the sensor that is being read.
    last_read: Duration,
}

impl Pace {
    /// Opening a bus costs next to nothing, and somebody may just be plugging it in. A sensor takes some tenths of a second, and
    /// kernels give up a transfer after a second or a few.
    const DEFAULT: Self = Self {
        retry: backoff::Settings { initial: Duration::from_millis(500), max: Duration::from_secs(5) },
        hangs_after: Duration::from_secs(10),
        last_read: Duration::from_millis(500),
    };
}

/// Where buses come from: the kernel, or a test.
type Open = dyn Fn() -> Result<Bus, Fault> + Send + Sync;

/// Runs the source until it is stopped or the ingest room ends. What is being read then is waited for half a second.
pub async fn run(settings: Settings, rooms: Rooms) {
    let path = settings.bus.clone();
    run_on(settings, rooms, Arc::new(move || Bus::open(&path)), Pace::DEFAULT).await;
}

async fn run_on(settings: Settings, rooms: Rooms, open: Arc<Open>, pace: Pace) {
    let Rooms { source, intake, report, stop, clock } = rooms;
    let reporter = Reporter::new(&settings, report, clock);
    let inlet = intake.open(&source, Peer::NAMELESS);
    drop(intake);
    let mut poller = Poller { settings, open, pace, inlet, reporter, stop, clock };
    // Either way it has ended in good order.
    let (Ended::Stopped | Ended::RoomClosed) = poller.run().await;
    hand_over_the_rest(&mut poller.inlet).await;
}

/// Why there is nothing more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Stopped,
    RoomClosed,
}

impl From<Closed> for Ended {
    fn from(Closed: Closed) -> Self {
        Self::RoomClosed
    }
}

struct Poller {
    settings: Settings,
    open: Arc<Open>,
    pace: Pace,
    inlet: Inlet,
    reporter: Reporter,
    stop: CancellationToken,
    clock: Clock,
}

impl Poller {
    async fn run(&mut self) -> Ended {
        let mut backoff = Backoff::new(self.pace.retry);
        loop {
            let fault = match self.attempt(&mut backoff).await {
                Ok(fault) => fault,
                Err(ended) => return ended,
            };
            self.reporter.bus_failed(&fault);
            let pause = backoff.after_failure(fastrand::f64());
            tokio::select! {
                () = self.stop.cancelled() => return Ended::Stopped,
                () = sleep(pause) => {}
            }
        }
    }

    /// Opens the bus and reads what is on it, until the bus is gone.
    async fn attempt(&mut self, backoff: &mut Backoff) -> Result<Fault, Ended> {
        let open = Arc::clone(&self.open);
        let bus = match self.patiently("opening it", move || open()).await? {
            Ok(bus) => bus,
            Err(fault) => return Ok(fault),
        };
        let started = self.clock.monotonic();
        let sensors = self.settings.sensors.iter();
        let mut turns: Vec<Turn> =
            sensors.map(|sensor| Turn::new(&self.settings.name, sensor, &bus)).collect();
        loop {
            let Some(turn) = turns.iter_mut().min_by_key(|turn| turn.next_ms()) else {
                self.stop.cancelled().await;
                return Err(Ended::Stopped);
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Ended::Stopped),
                () = tokio::time::sleep_until(started + Duration::from_millis(turn.next_ms())) => {}
            }
            if let Some(fault) = self.take_turn(turn, started).await? {
                return Ok(fault);
            }
            backoff.succeeded();
        }
    }

    /// Reads a sensor that is due. Returns what is wrong with the bus as a whole.
    async fn take_turn(&mut self, turn: &mut Turn, started: Instant) -> Result<Option<Fault>, Ended> {
        let Some(mut schedule) = turn.schedule.take() else { return Ok(None) };
        let now_ms = self.clock.monotonic().saturating_duration_since(started).as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        let read = move || {
            let outcome = schedule.read(now_ms);
            (schedule, outcome)
        };
        let (schedule, outcome) = self.patiently(&turn.sensor.device, read).await?;
        turn.schedule = Some(schedule);
        match outcome {
            None => {}
            Some(Ok(values)) => {
                turn.failures = 0;
                self.reporter.bus_works();
                self.reporter.read(&turn.sensor);
                self.inlet.push_measured(turn.measured(&values));
                self.hand_over().await?;
            }
            Some(Err(Failure::Bus(fault))) if fault.of_bus().is_some() => return Ok(Some(fault)),
            Some(Err(failure)) => {
                turn.failures = turn.failures.saturating_add(1);
                self.reporter.bus_works();
                self.reporter.failed(&turn.sensor, &failure);
            }
        }
        Ok(None)
    }

    async fn hand_over(&mut self) -> Result<(), Ended> {
        if self.inlet.flush()? == Flushed::All {
            return Ok(());
        }
        self.reporter.blocked();
        tokio::select! {
            () = self.stop.cancelled() => return Err(Ended::Stopped),
            flushed = self.inlet.flushed() => flushed?,
        }
        self.reporter.unblocked();
        Ok(())
    }

    /// Waits for work that blocks, however long it takes, and says when it hangs.
    async fn patiently<T: Send + 'static>(
        &mut self,
        who: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let mut work = std::pin::pin!(blocking_for_long(work));
        let done = tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = self.stop.cancelled() => None,
            () = sleep(self.pace.hangs_after) => {
                self.reporter.hangs(who);
                tokio::select! {
                    biased;
                    done = &mut work => Some(done),
                    () = self.stop.cancelled() => None,
                }
            }
        };
        match done {
            Some(done) => {
                self.reporter.hangs_no_more();
                Ok(done)
            }
            // If it does not end, it is left behind: nobody can break it off.
            None => timeout(self.pace.last_read, work).await.map_err(|_| Ended::Stopped),
        }
    }
}

/// One sensor, and when it is its turn.
struct Turn {
    sensor: Sensor,
    /// Away while it is being read.
    schedule: Option<Box<dyn Scheduled>>,
    /// How often in a row it could not be read.
    failures: u32,
    origin: Arc<Origin>,
    /// The names of what it measured last.
    shape: Arc<Shape>,
}

impl Turn {
    fn new(source: &str, sensor: &Sensor, bus: &Bus) -> Self {
        let origin =
            Origin { source: source.into(), device: sensor.device.as_str().into(), tags: Vec::new() };
        Self {
            schedule: Some(scheduled(sensor, bus)),
            sensor: sensor.clone(),
            failures: 0,
            origin: Arc::new(origin),
            shape: Arc::default(),
        }
    }

    /// When it is to be read next. After failures, rounds are skipped; the schedule stays as it is.
    fn next_ms(&self) -> u64 {
        let due_ms = self.schedule.as_ref().map_or(u64::MAX, |schedule| schedule.due_ms());
        let interval_ms = u64::try_from(self.sensor.interval.as_millis()).unwrap_or(u64::MAX);
        due_ms.saturating_add(interval_ms.saturating_mul(self.skipped_rounds().into()))
    }

    /// None after the first failure, then one, three, seven, as long as that takes no longer than [`LONGEST_SKIP`].
    fn skipped_rounds(&self) -> u32 {
        let most = LONGEST_SKIP.as_millis() / self.sensor.interval.as_millis().max(1);
        let wanted = 2_u32.saturating_pow(self.failures.saturating_sub(1)).saturating_sub(1);
        wanted.min(u32::try_from(most).unwrap_or(u32::MAX).saturating_sub(1))
    }

    fn measured(&mut self, values: &Values) -> Measured {
        let channels = self.sensor.driver.channels().iter();
        let named: Vec<(&str, Value)> = channels
            .zip(values.as_slice())
            .filter_map(|(channel, value)| Some((channel.name.as_str(), measured::value(value)?)))
            .collect();
        if !self.shape.names.iter().map(|name| &**name).eq(named.iter().map(|(name, _)| *name)) {
            self.shape = Arc::new(Shape { names: named.iter().map(|(name, _)| (*name).into()).collect() });
        }
        Measured {
            origin: Arc::clone(&self.origin),
            shape: Arc::clone(&self.shape),
            values: named.into_iter().map(|(_, value)| value).collect(),
            time: None,
            // Whoever is asked does not send again.
            delivery: Delivery::AtMostOnce,
            node: None,
        }
    }
}
