//! What an operator says about an `mqtt` source: which broker, who we are there, and what to subscribe to.

use std::time::Duration;

use crate::ingest::Subscription;
use crate::secret::Secret;
use crate::tls;

/// Settings of an `mqtt` source: checked values.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configured name.
    pub name: String,
    /// Broker host.
    pub host: String,
    /// Broker port: 1883, or 8883 for `mqtts`, unless the URL says otherwise.
    pub port: u16,
    /// TLS, if the URL says `mqtts`.
    pub tls: Option<tls::ClientSettings>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Stable, so that the broker keeps the session; default `holdfast-<agent id>-<source>`.
    pub client_id: String,
    /// The protocol spoken.
    pub protocol: Protocol,
    /// How often the connection is proved alive.
    pub keep_alive: Duration,
    /// Longer payloads become dead letters.
    pub max_payload_bytes: usize,
    /// What to subscribe to.
    pub subscriptions: Vec<Subscription>,
}

impl Settings {
    /// So many messages the broker may have in flight to us.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        match self.protocol {
            Protocol::V311 => crate::store::recent::EVERY_PACKET_ID,
            Protocol::V5 => super::link::RECEIVE_MAXIMUM,
        }
    }

    /// `keep_alive` where the operator does not say.
    pub const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(30);
    /// `max_payload` where the operator does not say: 1 MiB.
    pub const DEFAULT_MAX_PAYLOAD_BYTES: usize = 1 << 20;
}

/// An MQTT protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}
