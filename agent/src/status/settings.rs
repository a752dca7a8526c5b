//! What an operator says about the admin listener.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Settings of the status room: checked values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where the page, health, metrics and the read-only API listen; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// The socket through which things are changed; `None`: nowhere.
    pub socket: Option<PathBuf>,
}
