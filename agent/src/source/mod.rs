//! Where readings come in. Each source decodes nothing and stores nothing: it hands messages to an
//! [`Inlet`] and acknowledges them, in order, once the inlet says that they are durable.

pub mod i2c;
mod limiter;
pub mod listen;
mod measured;
pub mod modbus;
pub mod mqtt;
pub mod port;
pub mod pty;
pub mod serial;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::ingest::{Inlet, Intake, SourceSpec};

/// The settings of one source, by type.
#[derive(Clone, Debug, PartialEq)]
pub enum Settings {
    /// A client of a broker.
    Mqtt(mqtt::Settings),
    /// Our own listener.
    Listen(listen::Settings),
    /// A serial line.
    Serial(serial::Settings),
    /// Sensors on an I2C bus.
    I2c(i2c::Settings),
    /// Devices that are polled over Modbus.
    Modbus(modbus::Settings),
}

impl Settings {
    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Mqtt(settings) => &settings.name,
            Self::Listen(settings) => &settings.name,
            Self::Serial(settings) => &settings.name,
            Self::I2c(settings) => &settings.name,
            Self::Modbus(settings) => &settings.name,
        }
    }

    /// Longer payloads become dead letters.
    #[must_use]
    pub fn max_payload_bytes(&self) -> usize {
        match self {
            Self::Mqtt(settings) => settings.max_payload_bytes,
            Self::Listen(settings) => settings.max_payload_bytes,
            Self::Serial(settings) => settings.max_payload_bytes,
            // It decodes for itself.
            Self::I2c(_) => 0,
            // It brings readings, no payloads.
            Self::Modbus(_) => 0,
        }
    }

    /// So many messages a peer may have in flight. Who speaks MQTT 5 is told; a 3.1.1 broker does not say.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        match self {
            Self::Mqtt(settings) => settings.in_flight(),
            Self::Listen(_) => listen::IN_FLIGHT,
            // What comes again is recognised by the number that a node gives it.
            Self::Serial(_) => 0,
            // Nothing comes again.
            Self::I2c(_) => 0,
            // Nobody sends anything again.
            Self::Modbus(_) => 0,
        }
    }

    /// The subscriptions, by which payloads are routed and decoded.
    #[must_use]
    pub fn subscriptions(&self) -> &[crate::ingest::Subscription] {
        match self {
            Self::Mqtt(settings) => &settings.subscriptions,
            Self::Listen(settings) => &settings.subscriptions,
            Self::Serial(settings) => match &settings.protocol {
                serial::Protocol::Lines(subscription) => std::slice::from_ref(subscription),
                serial::Protocol::Bridge { .. } => &[],
            },
            Self::I2c(_) => &[],
            Self::Modbus(_) => &[],
        }
    }
}

/// The state of a source, as the status names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not yet connected or bound.
    #[default]
    Starting,
    /// Subscribed, or listening.
    Connected,
    /// Not reachable; retrying with backoff.
    Disconnected,
    /// Refused for a reason that only a person can mend: credentials, permissions, a refused subscription.
    Misconfigured,
    /// The broker sends a packet above the limit, again and again.
    PacketTooLarge,
    /// Held back because the store cannot take more.
    Blocked,
    /// The port is not there: nothing is plugged in.
    Unplugged,
    /// The port is there, but may not be opened.
    PermissionDenied,
    /// The port is in use by another program.
    Busy,
    /// What comes makes no sense: the wrong speed, or the wrong protocol.
    Garbage,
    /// More comes than a line can carry for good reason; it is read slowly.
    Flooding,
    /// The port is open, but nothing has come for a long time.
    Silent,
    /// Some of the devices do not answer, or not as they should; the others are read.
    DeviceErrors,
    /// What was asked of the bus does not end.
    Hanging,
}

impl State {
    /// All states.
    pub const ALL: [Self; 14] = [
        Self::Starting,
        Self::Connected,
        Self::Disconnected,
        Self::Misconfigured,
        Self::PacketTooLarge,
        Self::Blocked,
        Self::Unplugged,
        Self::PermissionDenied,
        Self::Busy,
        Self::Garbage,
        Self::Flooding,
        Self::Silent,
        Self::DeviceErrors,
        Self::Hanging,
    ];

    /// Its name in the status and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Misconfigured => "misconfigured",
            Self::PacketTooLarge => "packet-too-large",
            Self::Blocked => "blocked",
            Self::Unplugged => "unplugged",
            Self::PermissionDenied => "permission-denied",
            Self::Busy => "busy",
            Self::Garbage => "garbage",
            Self::Flooding => "flooding",
            Self::Silent => "silent",
            Self::DeviceErrors => "device-errors",
            Self::Hanging => "hanging",
        }
    }

    /// True if readings come, or would if there were any.
    #[must_use]
    pub fn is_connected(self) -> bool {
        match self {
            Self::Connected | Self::Flooding | Self::Silent | Self::DeviceErrors => true,
            Self::Starting
            | Self::Disconnected
            | Self::Misconfigured
            | Self::PacketTooLarge
            | Self::Blocked
            | Self::Unplugged
            | Self::PermissionDenied
            | Self::Busy
            | Self::Garbage
            | Self::Hanging => false,
        }
    }
}

/// What a source says of itself. The counts of messages are not here: they are durable and live in the store's books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its state.
    pub state: State,
    /// What went wrong last, for people; `None` when all is well.
    pub last_error: Option<String>,
    /// Clients connected (listener only).
    pub clients: Option<usize>,
    /// The address that is listened on, port 0 resolved (listener only, while it listens).
    pub address: Option<std::net::SocketAddr>,
    /// Messages that came with the retain flag since the start (listener only): taken as any other, retained nowhere.
    pub retained: Option<u64>,
    /// True once the source has been subscribed or listening, or has failed once: it holds up readiness no longer.
    pub settled: bool,
    /// What went over the line since the start (serial only).
    pub line: Option<LineCounts>,
    /// Rounds left out since the start, because the one before took longer than the interval (polled sources only).
    pub rounds_skipped: Option<u64>,
    /// What is behind the source, by name: nodes, devices on a bus, sensors.
    pub devices: BTreeMap<Arc<str>, DeviceReport>,
}

/// What went over a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCounts {
    /// How often the port was opened.
    pub opened: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Of those, what was no frame, or no text.
    pub garbage_bytes: u64,
    /// Frames or lines that were whole.
    pub frames: u64,
}

/// What is known of a device behind a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// What it says of itself, for people: firmware and channels of a node, the kind of a sensor.
    pub about: String,
    /// What went wrong last; `None` when all is well.
    pub last_error: Option<String>,
    /// How often it failed since the start.
    pub failures: u64,
}

/// How long a source that stops waits for room for what nobody would send again: several commits' time.
const LAST_ROOM_WAIT: Duration = Duration::from_secs(5);

/// Hands over what a source has read and found no room for, before it ends.
async fn hand_over_the_rest(inlet: &mut Inlet) {
    // If there is no room until then, it is lost with what waits before it: the store takes nothing.
    timeout(LAST_ROOM_WAIT, inlet.flushed()).await.ok();
}

/// What every source is given.
#[derive(Debug)]
pub struct Rooms {
    /// What the source's inlets have in common.
    pub source: Arc<SourceSpec>,
    /// Where inlets come from.
    pub intake: Intake,
    /// Where its state goes.
    pub report: watch::Sender<Report>,
    /// Ends it.
    pub stop: CancellationToken,
    /// Where the time comes from.
    pub clock: Clock,
}
