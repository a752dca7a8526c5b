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
//! [`windows`] is the pure part; [`silence`](self) decides when a device is silent; [`replay`](self) knows what was emitted.

mod aggregate;
mod definition;
mod devices;
mod replay;
mod sealed;
mod series;
pub mod settings;
mod silence;
pub mod sketch;
mod state;
pub mod windows;

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use settings::Settings;
pub use windows::{Counts, Windows};

use crate::clock::Clock;
use crate::reading::WindowRecord;
use crate::store::{Readings, WindowsSnapshot, WindowsUpdate};
use crate::stream::Seq;
use replay::Replay;
use silence::Silence;
use state::note_of;
use windows::IdleMark;

/// Readings asked for at a time.
const CHUNK_READINGS: usize = 4_096;
/// Results gathered while an update is being written; with more, no reading is added until it is done. About 4 MB.
const MAX_GATHERED: usize = 8_192;
/// The state is saved this long after it first differed from what is saved: bounds what a crash makes us read again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// The state is saved after this many readings, however few seconds they took: about a second of replay on a small board.
const CHECKPOINT_READINGS: u64 = 200_000;
/// Results shown.
const NEWEST: usize = 20;

/// What the room needs of the store.
pub trait Log: Send + Sync {
    /// Why the store could not do it. It is expected to wait out what can mend itself: an error ends the room.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The checkpoint, and what was emitted since.
    fn snapshot(&self) -> impl Future<Output = Result<WindowsSnapshot, Self::Error>> + Send;

    /// Durable readings from `from` on, about `max` of them. They may begin before `from`; if they begin after it, the ones
    /// between are lost.
    fn readings_from(
        &self,
        from: Seq,
        max: usize,
    ) -> impl Future<Output = Result<Readings, Self::Error>> + Send;

    /// The number after the last durable reading.
    fn head(&self) -> watch::Receiver<Seq>;

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

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

struct Room<'a, L: Log> {
    log: &'a L,
    head: watch::Receiver<Seq>,
    clock: Clock,
    windows: Windows,
    replay: Replay,
    silence: Silence,
    /// Readings before this have been added.
    position: Seq,
    /// What came out and is in no update yet.
    records: Vec<WindowRecord>,
    marks: Vec<IdleMark>,
    reading: Option<Boxed<'a, Result<Readings, L::Error>>>,
    writing: Option<Boxed<'a, Result<(), L::Error>>>,
    /// The position of the last checkpoint.
    saved: Seq,
    /// Since when the state differs from the last checkpoint.
    unsaved_since: Option<Instant>,
    next_look: Instant,
    report: watch::Sender<Report>,
    newest: VecDeque<WindowRecord>,
    skipped: u64,
}

/// What may happen next.
enum Event<E> {
    Read(Result<Readings, E>),
    Written(Result<(), E>),
    Grown,
    SourcesChanged,
    Look,
    CheckpointDue,
    Stop,
}

/// Whether an update carries the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Save {
    No,
    Yes,
}

impl<'a, L: Log> Room<'a, L> {
    fn new(
        settings: &[Settings],
        log: &'a L,
        snapshot: WindowsSnapshot,
        report: watch::Sender<Report>,
        clock: Clock,
    ) -> Self {
        let head = log.head();
        let end = *head.borrow();
        let windows = Windows::restore(settings, end, snapshot.rows);
        // Windows that are all new have no use for what was before them.
        let wanted = windows.first_wanted().unwrap_or(end);
        let position = snapshot.position.max(wanted).min(end);
        let now = clock.monotonic();
        Self {
            log,
            head,
            clock,
            windows,
            replay: Replay::new(snapshot.emitted),
            silence: Silence::new(settings.iter().map(Settings::idle_in_force)),
            position,
            records: Vec::new(),
            marks: Vec::new(),
            reading: None,
            writing: None,
            saved: snapshot.position,
            unsaved_since: (position != snapshot.position).then_some(now),
            next_look: now,
            report,
            newest: VecDeque::with_capacity(NEWEST),
            skipped: 0,
        }
    }

    /// Adds what was stored when we began, then saves windows that are new: they begin where the log ends now, and must not
    /// begin elsewhere after the next crash.
    async fn catch_up(&mut self) -> Result<(), Error<L::Error>> {
        let end = *self.head.borrow_and_update();
        if self.position < end {
            info!(position = self.position.0, end = end.0, "reading on where the windows were left");
        }
        self.replay_marks();
        while self.position < end {
            let from = self.position;
            let read = self.log.readings_from(from, CHUNK_READINGS).await;
            let readings = read.map_err(|source| Error::Read { from, source })?;
            self.add(&readings, end);
            if self.records.len() >= MAX_GATHERED || self.is_checkpoint_due() {
                let save = if self.is_checkpoint_due() { Save::Yes } else { Save::No };
                self.write(save).await?;
            }
        }
        if self.replay.differing > 0 {
            warn!(results = self.replay.differing, "results came out otherwise than before the restart");
        }
        self.windows.adopt_settings();
        if self.windows.needs_checkpoint() {
            self.write(Save::Yes).await?;
        }
        self.publish();
        Ok(())
    }

    async fn read_on(
        &mut self,
        mut sources: watch::Receiver<BTreeMap<String, bool>>,
        stop: CancellationToken,
    ) -> Result<(), Error<L::Error>> {
        let now = self.clock.monotonic();
        self.silence.note(now, self.position);
        self.silence.note_sources(now, self.position, &sources.borrow_and_update());
        let mut stopping = false;
        loop {
            self.start_reading();
            self.start_writing(if self.is_checkpoint_due() { Save::Yes } else { Save::No });
            if stopping && !self.has_backlog() {
                let save = if self.unsaved_since.is_some() { Save::Yes } else { Save::No };
                self.publish();
                return self.write(save).await;
            }
            match self.next(&mut sources, &stop, stopping).await {
                Event::Read(read) => {
                    self.reading = None;
                    let from = self.position;
                    let readings = read.map_err(|source| Error::Read { from, source })?;
                    self.add(&readings, Seq(u64::MAX));
                    if !self.has_backlog() {
                        self.silence.note(self.clock.monotonic(), self.position);
                    }
                    self.publish();
                }
                Event::Written(written) => {
                    self.writing = None;
                    written.map_err(Error::Update)?;
                }
                Event::SourcesChanged => {
                    let now = self.clock.monotonic();
                    self.silence.note_sources(now, self.position, &sources.borrow_and_update());
                }
                Event::Look => self.look(),
                Event::Stop => stopping = true,
                // The next turn of the loop reads and saves.
                Event::Grown | Event::CheckpointDue => {}
            }
        }
    }

    /// Waits; decides nothing. Cancel-safe: what is under way stays in `self`.
    async fn next(
        &mut self,
        sources: &mut watch::Receiver<BTreeMap<String, bool>>,
        stop: &CancellationToken,
        stopping: bool,
    ) -> Event<L::Error> {
        let has_backlog = self.has_backlog();
        let checkpoint_at = self.unsaved_since.map_or(self.next_look, |since| since + CHECKPOINT_INTERVAL);
        let may_save = self.unsaved_since.is_some() && self.writing.is_none();
        tokio::select! {
            biased;
            written = under_way(&mut self.writing) => Event::Written(written),
            () = stop.cancelled(), if !stopping => Event::Stop,
            Ok(()) = sources.changed() => Event::SourcesChanged,
            read = under_way(&mut self.reading) => Event::Read(read),
            grown = self.head.changed(), if self.reading.is_none() => match grown {
                Ok(()) => Event::Grown,
                Err(_) => Event::Stop,
            },
            () = sleep_until(checkpoint_at), if may_save => Event::CheckpointDue,
            () = sleep_until(self.next_look), if !has_backlog && self.windows.is_listening() => Event::Look,
        }
    }

    fn has_backlog(&self) -> bool {
        self.position < *self.head.borrow()
    }

    fn is_checkpoint_due(&self) -> bool {
        let readings = self.position.0.saturating_sub(self.saved.0);
        let is_old = |since| self.clock.monotonic().duration_since(since) >= CHECKPOINT_INTERVAL;
        readings >= CHECKPOINT_READINGS || self.unsaved_since.is_some_and(is_old)
    }

    fn start_reading(&mut self) {
        let end = *self.head.borrow_and_update();
        if self.windows.is_empty() {
            // Nothing is aggregated, but readings that were delivered are freed only behind us.
            self.advance(end);
        } else if self.reading.is_none() && self.position < end && self.records.len() < MAX_GATHERED {
            self.reading = Some(Box::pin(self.log.readings_from(self.position, CHUNK_READINGS)));
        }
    }

    /// Begins to write what was gathered, unless an update is under way.
    fn start_writing(&mut self, save: Save) {
        let is_something = save == Save::Yes || !self.records.is_empty() || !self.marks.is_empty();
        if self.writing.is_some() || !is_something {
            return;
        }
        let checkpoint = (save == Save::Yes).then(|| self.windows.checkpoint());
        if checkpoint.is_some() {
            self.saved = self.position;
            self.unsaved_since = None;
        }
        let records = std::mem::take(&mut self.records);
        let note = note_of(&std::mem::take(&mut self.marks));
        let update = WindowsUpdate { position: self.position, records, note, checkpoint };
        self.writing = Some(Box::pin(self.log.update(update)));
    }

    /// Writes what was gathered, and waits until it is durable.
    async fn write(&mut self, save: Save) -> Result<(), Error<L::Error>> {
        if self.writing.is_some() {
            under_way(&mut self.writing).await.map_err(Error::Update)?;
            self.writing = None;
        }
        self.start_writing(save);
        if self.writing.is_some() {
            under_way(&mut self.writing).await.map_err(Error::Update)?;
            self.writing = None;
        }
        Ok(())
    }

    /// Adds readings before `end`.
    fn add(&mut self, readings: &Readings, end: Seq) {
        let first = readings.first;
        let after = first.plus(readings.readings.len() as u64);
        if readings.readings.is_empty() || after <= self.position {
            // The log goes further, but there is nothing to be read.
            let head = *self.head.borrow();
            return self.skip_to(head.min(end));
        }
        self.skip_to(first.min(end));
        let mut out = Vec::new();
        for (offset, reading) in (0..).zip(readings.readings.iter()) {
            let seq = first.plus(offset);
            if seq < self.position || seq >= end {
                continue;
            }
            if !self.replay.is_over() {
                while let Some(mark) = self.replay.next_mark(seq) {
                    self.windows.replay_idle(&mark, &mut out);
                }
            }
            self.windows.add(seq, reading, &mut out);
        }
        self.keep(out);
        self.advance(after.min(end));
        self.replay_marks();
    }

    fn skip_to(&mut self, position: Seq) {
        let count = position.0.saturating_sub(self.position.0);
        if count > 0 {
            warn!(from = self.position.0, count, "readings cannot be read; no window will see them");
            self.skipped += count;
            self.advance(position);
            self.replay_marks();
        }
    }

    fn advance(&mut self, position: Seq) {
        if position > self.position {
            self.position = position;
            self.unsaved_since.get_or_insert_with(|| self.clock.monotonic());
        }
    }

    /// Does the marks that lie at the position reached. All before it is done by then.
    fn replay_marks(&mut self) {
        let mut out = Vec::new();
        while let Some(mark) = self.replay.next_mark(self.position) {
            self.windows.replay_idle(&mark, &mut out);
        }
        self.keep(out);
        self.replay.reached(self.position);
    }

    /// Looks for devices that have fallen silent, unless what they said may still wait to be read.
    fn look(&mut self) {
        if self.has_backlog() {
            return;
        }
        let (now, position) = (self.clock.monotonic(), self.position);
        self.next_look = now + self.silence.pause();
        self.silence.note(now, position);
        let mut out = Vec::new();
        for nth in 0..self.windows.len() {
            let Some(before) = self.silence.heard_before(nth, now) else { continue };
            let hearing = |source: &str| self.silence.hearing(nth, now, position, source);
            let marks = self.windows.find_silent(nth, before, position, hearing, &mut out);
            self.marks.extend(marks);
        }
        if !self.marks.is_empty() {
            self.unsaved_since.get_or_insert(now);
        }
        self.keep(out);
        self.publish();
    }

    /// Gathers results that the log does not have yet.
    fn keep(&mut self, mut records: Vec<WindowRecord>) {
        if !self.replay.is_over() {
            self.replay.hold_back(&mut records);
        }
        for record in records.iter().rev().take(NEWEST).rev() {
            if self.newest.len() == NEWEST {
                self.newest.pop_front();
            }
            self.newest.push_back(record.clone());
        }
        self.records.append(&mut records);
    }

    fn publish(&self) {
        self.report.send_replace(Report {
            position: self.position,
            windows: self.windows.counts(),
            newest: self.newest.iter().cloned().collect(),
            skipped: self.skipped,
            differing: self.replay.differing,
        });
    }
}

/// Waits for what is under way; for ever if nothing is.
async fn under_way<T>(work: &mut Option<Boxed<'_, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
