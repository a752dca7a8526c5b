//! What an operator says about a listener.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::ingest::Subscription;
use crate::tls;

/// Settings of an `mqtt-listen` source: checked values.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configured name.
    pub name: String,
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// TLS, if configured.
    pub tls: Option<tls::ServerSettings>,
    /// A TOML file of `name = "argon2 hash"`; without it anyone may publish.
    pub users_file: Option<PathBuf>,
    /// Further clients are refused.
    pub max_clients: usize,
    /// Longer payloads become dead letters.
    pub max_payload_bytes: usize,
    /// What may be published, and how it is read.
    pub subscriptions: Vec<Subscription>,
}

impl Settings {
    /// `max_clients` where the operator does not say.
    pub const DEFAULT_MAX_CLIENTS: usize = 1_000;
    /// `max_payload` where the operator does not say: 1 MiB.
    pub const DEFAULT_MAX_PAYLOAD_BYTES: usize = 1 << 20;
}
