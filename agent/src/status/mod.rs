//! Status page, metrics, health and the API: reads what rooms publish, asks nobody.
//!
//! In: [`Inputs`], the `watch` ends of every room. Out: one [`Status`] (JSON), from which the page, the metrics and the
//! command `holdfast status` are all drawn, so that they never contradict one another. Promised: nothing here can hold up
//! or change a room; answers hold no secret; every name and error in them is treated as hostile text; what is
//! reachable over TCP only reads, and only under a name that is ours (no DNS rebinding).
//!
//! ```text
//! rooms ──watch──▶ Inputs ──▶ Status ──▶ JSON · metrics · page · text
//!                    └──────▶ health (healthz, readyz)
//! ```

pub mod client;
pub mod dead_letters;
pub mod health;
mod host;
pub mod http;
mod listen;
pub mod metrics;
pub mod model;
mod page;
pub mod settings;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

pub use http::{Admin, Error};
pub use model::Status;
pub use settings::Settings;

use crate::clock::Clock;
use crate::pulse::Vitals;
use crate::reading::WindowRecord;
use crate::store::ledger::Books;
use crate::{forward, source, store};

/// What rooms publish, as the status reads it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The agent's configured id.
    pub agent: String,
    /// When the process started.
    pub started: Instant,
    /// Where the time comes from.
    pub clock: Clock,
    /// The books, as of the last commit.
    pub books: watch::Receiver<Arc<Books>>,
    /// What the store says of itself.
    pub store: watch::Receiver<store::Report>,
    /// The sources that are configured, by name.
    pub sources: watch::Receiver<BTreeMap<String, SourceInput>>,
    /// The sinks that are configured, by name.
    pub sinks: watch::Receiver<BTreeMap<String, SinkInput>>,
    /// What the windows say of themselves.
    pub windows: watch::Receiver<WindowsReport>,
    /// When the runtime last proved that it makes progress; see [`health::HEARTBEAT_EVERY`].
    pub heartbeat: watch::Receiver<Instant>,
    /// Which rooms gave a sign of life when they were asked last.
    pub rooms: watch::Receiver<Vitals>,
}

/// One configured source.
#[derive(Clone, Debug)]
pub struct SourceInput {
    /// Which way messages come.
    pub kind: SourceKind,
    /// Where they come from, for people. Credentials and query strings are cut off before it is shown.
    pub endpoint: String,
    /// What it says of itself.
    pub report: watch::Receiver<source::Report>,
}

/// Which way messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// We call: ready once it is connected or has failed once.
    Client,
    /// We are called: ready once the listener is bound.
    Listener,
}

/// One configured sink.
#[derive(Clone, Debug)]
pub struct SinkInput {
    /// Where batches go, for people. Credentials and query strings are cut off before it is shown.
    pub endpoint: String,
    /// What it says of itself.
    pub report: watch::Receiver<forward::Report>,
}

/// What the windows say of themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowsReport {
    /// Per configured window.
    pub windows: BTreeMap<String, WindowReport>,
    /// The newest results of all windows, newest first; a handful.
    pub newest: Vec<WindowRecord>,
}

/// What one window says of itself. Counts are since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowReport {
    /// Values that came later than `allowed_lateness`.
    pub late: u64,
    /// Series in memory.
    pub series: u64,
    /// Values of series beyond `max_series`, not aggregated.
    pub refused: u64,
}

#[cfg(test)]
pub(crate) mod fixture;
