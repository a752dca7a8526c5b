//! What the source says of itself: its state for the status, and one log line when trouble begins and one when it ends.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::Settings;
use super::bus::Fault;
use super::drivers::Failure;
use super::settings::Sensor;
use crate::clock::Clock;
use crate::few;
use crate::source::told::{Told, Word};
use crate::source::{DeviceReport, Report, State};

/// Publishes state and logs changes of it.
#[derive(Debug)]
pub(super) struct Reporter {
    bus: String,
    /// What to type to see who answers.
    hint: String,
    to: watch::Sender<Report>,
    report: Report,
    /// Sensors that were not asked yet.
    waiting: BTreeSet<Arc<str>>,
    /// The bus as a whole does not work.
    bus_trouble: Option<(State, String)>,
    /// A transfer does not end.
    hanging: Option<String>,
    told: Told,
}

impl Reporter {
    /// Speaks for this source.
    pub(super) fn new(settings: &Settings, to: watch::Sender<Report>, clock: Clock) -> Self {
        let bus = settings.bus.display().to_string();
        let devices = settings.sensors.iter().map(|sensor| {
            let about = DeviceReport { about: about(sensor), ..DeviceReport::default() };
            (Arc::from(sensor.device.as_str()), about)
        });
        let report = Report { devices: few::map(devices), ..Report::default() };
        let this = Self {
            hint: hint(&settings.bus),
            bus,
            to,
            report,
            waiting: settings.sensors.iter().map(|sensor| sensor.device.as_str().into()).collect(),
            bus_trouble: None,
            hanging: None,
            told: Told::nothing_of(&settings.name, settings.sensors.len(), clock),
        };
        this.to.send_replace(this.report.clone());
        this
    }

    /// The bus could not be opened, or is gone.
    pub(super) fn bus_failed(&mut self, fault: &Fault) {
        let state = fault.of_bus().unwrap_or(State::Disconnected);
        let error = format!("{} {fault}", self.bus);
        let (word, source) = (self.told.is_in(state), self.told.source());
        match word {
            Word::New { left_out } => warn!(%source, left_out, "{error}; trying again"),
            Word::Known => debug!(%source, "{error}"),
        }
        self.bus_trouble = Some((state, error));
        self.publish();
    }

    /// The bus carries transfers. That it could be opened would say less: there may be nothing behind its file.
    pub(super) fn bus_works(&mut self) {
        if self.bus_trouble.take().is_some() {
            if self.told.is_well().is_some() {
                info!(source = %self.told.source(), bus = %self.bus, "the bus works again");
            }
            self.publish();
        }
    }

    /// What was asked of the bus for `who` has not ended for a long time.
    pub(super) fn hangs(&mut self, who: &str) {
        let error = format!(
            "{who}: {} hangs in the kernel; a device may hold its lines: switch the power of the sensors off and on, or \
             restart the machine",
            self.bus
        );
        warn!(source = %self.told.source(), "{error}");
        self.hanging = Some(error);
        self.publish();
    }

    /// It has ended after all.
    pub(super) fn hangs_no_more(&mut self) {
        if self.hanging.take().is_some() {
            info!(source = %self.told.source(), bus = %self.bus, "the bus that hung goes on");
            self.publish();
        }
    }

    /// A sensor was read.
    pub(super) fn read(&mut self, sensor: &Sensor) {
        self.device(sensor).last_error = None;
        if self.told.device_is_well(&sensor.device) {
            info!(source = %self.told.source(), device = %sensor.device, "the sensor is read again");
        }
        self.asked(sensor);
    }

    /// A sensor could not be read.
    pub(super) fn failed(&mut self, sensor: &Sensor, failure: &Failure) {
        let mut error =
            format!("{} at {:#04x} on {} {failure}", sensor.driver.name(), sensor.address, self.bus);
        if *failure == Failure::Bus(Fault::NoAnswer) {
            error.push_str("; check wiring and address (");
            error.push_str(&self.hint);
            error.push(')');
        }
        let device = self.device(sensor);
        device.failures = device.failures.saturating_add(1);
        device.last_error = Some(error.clone());
        let word = self.told.device_fails(&sensor.device.as_str().into());
        let (source, device) = (self.told.source(), &sensor.device);
        match word {
            Word::New { left_out } => warn!(%source, %device, left_out, "{error}; trying again"),
            Word::Known => debug!(%source, %device, "{error}"),
        }
        self.asked(sensor);
    }

    /// Readings wait because the store takes no more.
    pub(super) fn blocked(&mut self) {
        if self.told.blocked("; sensors are not read meanwhile") {
            self.publish();
        }
    }

    /// The store takes readings again.
    pub(super) fn unblocked(&mut self) {
        if self.told.unblocked() {
            self.publish();
        }
    }

    fn device(&mut self, sensor: &Sensor) -> &mut DeviceReport {
        self.report.devices.entry(sensor.device.as_str().into()).or_default()
    }

    fn asked(&mut self, sensor: &Sensor) {
        self.waiting.remove(sensor.device.as_str());
        self.publish();
    }

    fn publish(&mut self) {
        let (state, last_error) = self.state();
        self.report.settled |= state != State::Starting;
        (self.report.state, self.report.last_error) = (state, last_error);
        self.to.send_if_modified(|published| {
            let is_news = *published != self.report;
            if is_news {
                published.clone_from(&self.report);
            }
            is_news
        });
    }

    fn state(&self) -> (State, Option<String>) {
        if let Some(error) = &self.hanging {
            return (State::Hanging, Some(error.clone()));
        }
        if let Some((state, error)) = &self.bus_trouble {
            return (*state, Some(error.clone()));
        }
        let failing: Vec<(&str, &str)> = self
            .report
            .devices
            .iter()
            .filter_map(|(device, of)| Some((&**device, of.last_error.as_deref()?)))
            .collect();
        let last_error = failing.first().map(|(device, error)| match failing.len() - 1 {
            0 => format!("{device}: {error}"),
            more => format!("{device}: {error} (and {more} more)"),
        });
        let state = match &last_error {
            _ if self.told.is_blocked() => State::Blocked,
            Some(_) => State::DeviceErrors,
            None if !self.waiting.is_empty() => State::Starting,
            None => State::Connected,
        };
        (state, last_error)
    }
}

/// The kind of a sensor and what it measures, for people.
fn about(sensor: &Sensor) -> String {
    let fields = sensor.driver.channels().iter();
    let fields: Vec<String> =
        fields.map(|field| format!("{} {}", field.name.as_str(), field.unit.as_str())).collect();
    format!("{} at {:#04x}: {}", sensor.driver.name(), sensor.address, fields.join(", "))
}

fn hint(bus: &Path) -> String {
    let number = bus.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("i2c-"));
    match number {
        Some(number) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("i2cdetect -y {number} shows what answers")
        }
        Some(_) | None => "i2cdetect -l lists the buses, i2cdetect -y BUS shows what answers".to_owned(),
    }
}
