//! Where readings come in. Each source decodes nothing and stores nothing: it hands messages to an
//! [`Inlet`](crate::ingest::Inlet) and acknowledges them, in order, once the inlet says that they are durable.

pub mod listen;
pub mod mqtt;

use serde::{Deserialize, Serialize};

/// The settings of one source, by type.
#[derive(Clone, Debug, PartialEq)]
pub enum Settings {
    /// A client of a broker.
    Mqtt(mqtt::Settings),
    /// Our own listener.
    Listen(listen::Settings),
}

impl Settings {
    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Mqtt(settings) => &settings.name,
            Self::Listen(settings) => &settings.name,
        }
    }

    /// Longer payloads become dead letters.
    #[must_use]
    pub fn max_payload_bytes(&self) -> usize {
        match self {
            Self::Mqtt(settings) => settings.max_payload_bytes,
            Self::Listen(settings) => settings.max_payload_bytes,
        }
    }

    /// So many messages a peer may have in flight. Who speaks MQTT 5 is told; a 3.1.1 broker does not say.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        match self {
            Self::Mqtt(settings) => settings.in_flight(),
            Self::Listen(_) => listen::IN_FLIGHT,
        }
    }

    /// The subscriptions, by which payloads are routed and decoded.
    #[must_use]
    pub fn subscriptions(&self) -> &[crate::ingest::Subscription] {
        match self {
            Self::Mqtt(settings) => &settings.subscriptions,
            Self::Listen(settings) => &settings.subscriptions,
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
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Connected,
        Self::Disconnected,
        Self::Misconfigured,
        Self::PacketTooLarge,
        Self::Blocked,
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
}
