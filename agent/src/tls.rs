//! Certificates and keys: from files to rustls configurations. All TLS of the agent goes through here.

use std::path::PathBuf;

/// TLS as a client: whom to trust, and who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSettings {
    /// PEM certificates to trust; without it, the system's.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain (PEM), for servers that ask for one.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file` (PEM).
    pub key_file: Option<PathBuf>,
}

/// TLS as a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Our certificate chain (PEM).
    pub cert_file: PathBuf,
    /// Its key (PEM).
    pub key_file: PathBuf,
    /// Clients must show a certificate signed by one of these (PEM).
    pub client_ca_file: Option<PathBuf>,
}
