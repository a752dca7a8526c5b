//! Room 5: windowed aggregates.
//!
//! In: stored readings, in the order of their sequence. Out: records of the stream `windows`, and now and then a checkpoint
//! of the state, all through one kind of update that the store makes durable as a whole. Promised:
//!
//! - The last revision of every window is a function of the stored readings, also over a crash at any moment; no revision
//!   is appended twice.
//! - A reading costs no disk write of its own: results are appended without the state, and the state is saved once a
//!   minute, and then only what changed.
//!
//! ```text
//!   checkpoint ──── emitted since, with marks where a device was found silent ────▶ end of the log
//!       │                                                                             │
//!       └── after a crash: restore, read the readings again, hold back what is there ─┘
//! ```
//!
//! [`windows`] is the pure part; `room` moves what goes in and out; `silence` decides when a device is silent; `replay` knows what was emitted already.

mod aggregate;
mod definition;
mod devices;
mod replay;
mod room;
mod sealed;
mod series;
pub mod settings;
mod silence;
pub mod sketch;
mod state;
pub mod windows;

use std::collections::BTreeMap;
use std::future::Future;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use settings::Settings;
pub use windows::{Counts, Windows};

use crate::clock::Clock;
use crate::reading::WindowRecord;
use crate::store::{Readings, WindowsSnapshot, WindowsUpdate};
use crate::stream::Seq;
use room::Room;

/// What the room needs of the store.
pub trait Log: Send + Sync {
    /// Why the store could not do it. It is expected to wait out what can mend itself: an error ends the room.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The checkpoint, and what was emitted since.
    fn snapshot(&self) -> impl Future<Output = Result<WindowsSnapshot, Self::Error>> + Send;

    /// Durable readings from `from` on, about `max` of them. They may begin before `from`; if they begin after it, the ones
    /// between are lost. So an empty answer to a `from` before the head means that nothing up to the head can be read.
    fn readings_from(
        &self,
        from: Seq,
        max: usize,
    ) -> impl Future<Output = Result<Readings, Self::Error>> + Send;

    /// The number after the last durable reading.
    fn head(&self) -> watch::Receiver<Seq>;

    /// True while the store is full and a checkpoint would let it give something up.
    fn wants_checkpoint(&self) -> watch::Receiver<bool> {
        watch::channel(false).1
    }

    /// Makes an update durable, as a whole and after those before it.
    fn update(&self, update: WindowsUpdate) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Why the room ended.
#[derive(Debug, thiserror::Error)]
pub enum Error<E: std::error::Error + 'static> {
    /// The checkpoint could not be read.
    #[error("cannot read the windows' checkpoint")]
    Snapshot(#[source] E),
    /// Stored readings could not be read.
    #[error("cannot read readings from {from} on for the windows")]
    Read {
        /// The first that was wanted.
        from: Seq,
        /// Why.
        source: E,
    },
    /// Results or the checkpoint could not be written.
    #[error("cannot write what the windows emitted")]
    Update(#[source] E),
}

/// What the room says of itself.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Readings before this have been seen.
    pub position: Seq,
    /// Each window, in the order of the configuration.
    pub windows: Vec<Counts>,
    /// The last results, the newest at the end.
    pub newest: Vec<WindowRecord>,
    /// Readings that were lost to the windows because the store could not read them.
    pub skipped: u64,
    /// Results that a replay after a crash gave otherwise than they had been emitted; 0 unless the store was damaged.
    pub differing: u64,
}

/// Runs until `stop`, then reads on to the end of the log, saves the state and ends.
///
/// `sources` says which sources are connected. It must list all that are configured: one that it does not list is taken to
/// be gone for good.
///
/// # Errors
/// If the store gives up.
pub async fn run<L: Log>(
    settings: &[Settings],
    log: &L,
    sources: watch::Receiver<BTreeMap<String, bool>>,
    report: watch::Sender<Report>,
    clock: Clock,
    stop: CancellationToken,
) -> Result<(), Error<L::Error>> {
    let snapshot = log.snapshot().await.map_err(Error::Snapshot)?;
    let mut room = Room::new(settings, log, snapshot, report, clock);
    room.catch_up().await?;
    room.read_on(sources, stop).await
}

#[cfg(test)]
mod tests;
