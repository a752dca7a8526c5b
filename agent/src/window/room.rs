//! The room at work: reads on, gathers results, writes updates, saves the state now and then.
//!
//! One update is written at a time; while it is, readings are added and the next one is gathered, up to a bound.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::replay::Replay;
use super::silence::Silence;
use super::state::note_of;
use super::windows::{Counts, IdleMark, Windows};
use super::{Error, Log, Report, Settings};
use crate::clock::Clock;
use crate::pulse;
use crate::reading::WindowRecord;
use crate::store::{Readings, WindowsSnapshot, WindowsUpdate};
use crate::stream::Seq;

/// Readings asked for at a time.
const CHUNK_READINGS: usize = 4_096;
/// Results gathered while an update is being written; with more, no reading is added until it is done. About 4 MB.
const MAX_GATHERED: usize = 8_192;
/// The state is saved this long after it first differed from what is saved: bounds what a crash makes us read again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// How often while the store is full and waits for it.
const WANTED_INTERVAL: Duration = Duration::from_secs(1);
/// The state is saved after this many readings, however few seconds they took: about a second of replay on a small board.
const CHECKPOINT_READINGS: u64 = 200_000;
/// The state is saved after this many results: a start reads the ones since the last checkpoint into memory.
const CHECKPOINT_RESULTS: usize = 50_000;
/// Results shown.
const NEWEST: usize = 20;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The room at work.
pub(crate) struct Room<'a, L: Log> {
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
    /// Results appended since.
    results_since: usize,
    /// Since when the state differs from the last checkpoint.
    unsaved_since: Option<Instant>,
    /// Whether the store would have room if a checkpoint passed on.
    is_wanted: watch::Receiver<bool>,
    next_look: Instant,
    report: watch::Sender<Report>,
    /// For each window, how many values it had refused when we looked last, and whether we said so.
    refusals: Vec<(u64, Refusing)>,
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

/// What the room is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Told to stop: what is stored is still read, then it ends.
    Draining,
}

/// Whether a window was last said to refuse new series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusing {
    No,
    Yes,
}

/// Whether an update carries the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Save {
    No,
    Yes,
}

impl<'a, L: Log> Room<'a, L> {
    /// The room as a snapshot left it.
    pub(crate) fn new(
        settings: &[Settings],
        log: &'a L,
        snapshot: WindowsSnapshot,
        report: watch::Sender<Report>,
        clock: Clock,
    ) -> Self {
        let head = log.head();
        let end = *head.borrow();
        let windows = Windows::restore_after(settings, end, snapshot.rows, &snapshot.emitted);
        // Windows that are all new have no use for what was before them.
        let wanted = windows.first_wanted().unwrap_or(end);
        let position = snapshot.position.max(wanted).min(end);
        let results_since = snapshot.emitted.iter().map(|update| update.records.len()).sum();
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
            results_since,
            unsaved_since: (position != snapshot.position).then_some(now),
            is_wanted: log.wants_checkpoint(),
            next_look: now,
            report,
            refusals: Vec::new(),
            newest: VecDeque::with_capacity(NEWEST),
            skipped: 0,
        }
    }

    /// Adds what was stored when we began, then saves windows that are new: they begin where the log ends now, and must not
    /// begin elsewhere after the next crash.
    /// The first report says that they have begun, durably.
    pub(crate) async fn catch_up(&mut self) -> Result<(), Error<L::Error>> {
        if !self.windows.needs_checkpoint() {
            self.publish();
        }
        let end = *self.head.borrow_and_update();
        if self.position < end {
            info!(position = self.position.0, end = end.0, "reading on where the windows were left");
        }
        self.replay_marks();
        while self.position < end {
            let from = self.position;
            let read = pulse::waiting(self.log.readings_from(from, CHUNK_READINGS)).await;
            let readings = read.map_err(|source| Error::Read { from, source })?;
            self.add(&readings, end);
            // Not before all that was emitted has come out again: a checkpoint says that what the log has was emitted before it, and of
            // what comes after it the log may have some already.
            let is_due = self.replay.is_over() && self.is_checkpoint_due();
            if is_due || self.records.len() >= MAX_GATHERED {
                self.write(if is_due { Save::Yes } else { Save::No }).await?;
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

    /// Reads what is stored from now on, until `stop` and the end of the log.
    pub(crate) async fn read_on(
        &mut self,
        mut sources: watch::Receiver<BTreeMap<String, bool>>,
        stop: CancellationToken,
    ) -> Result<(), Error<L::Error>> {
        let now = self.clock.monotonic();
        self.silence.note(now, self.position);
        self.silence.note_sources(now, &sources.borrow_and_update());
        let mut phase = Phase::Running;
        loop {
            self.start_reading();
            self.start_writing(if self.is_checkpoint_due() { Save::Yes } else { Save::No });
            if phase == Phase::Draining && !self.has_backlog() {
                let save = if self.unsaved_since.is_some() { Save::Yes } else { Save::No };
                self.publish();
                return self.write(save).await;
            }
            let event = pulse::waiting(self.next(&mut sources, &stop, phase)).await;
            match event {
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
                    self.silence.note_sources(now, &sources.borrow_and_update());
                }
                Event::Look => self.look(),
                Event::Stop => phase = Phase::Draining,
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
        phase: Phase,
    ) -> Event<L::Error> {
        let has_backlog = self.has_backlog();
        let interval = self.checkpoint_interval();
        let checkpoint_at = self.unsaved_since.map_or(self.next_look, |since| since + interval);
        let may_save = self.unsaved_since.is_some() && self.writing.is_none();
        tokio::select! {
            biased;
            written = under_way(&mut self.writing) => Event::Written(written),
            () = stop.cancelled(), if phase == Phase::Running => Event::Stop,
            Ok(()) = sources.changed() => Event::SourcesChanged,
            read = under_way(&mut self.reading) => Event::Read(read),
            grown = self.head.changed(), if self.reading.is_none() => match grown {
                Ok(()) => Event::Grown,
                Err(_) => Event::Stop,
            },
            Ok(()) = self.is_wanted.changed() => Event::CheckpointDue,
            () = sleep_until(checkpoint_at), if may_save => Event::CheckpointDue,
            () = sleep_until(self.next_look), if !has_backlog && self.windows.is_listening() => Event::Look,
        }
    }

    fn has_backlog(&self) -> bool {
        self.position < *self.head.borrow()
    }

    fn is_checkpoint_due(&self) -> bool {
        let readings = self.position.0.saturating_sub(self.saved.0);
        let interval = self.checkpoint_interval();
        let is_old = |since| self.clock.monotonic().duration_since(since) >= interval;
        let results = self.results_since + self.records.len();
        readings >= CHECKPOINT_READINGS
            || results >= CHECKPOINT_RESULTS
            || self.unsaved_since.is_some_and(is_old)
    }

    fn checkpoint_interval(&self) -> Duration {
        if *self.is_wanted.borrow() { WANTED_INTERVAL } else { CHECKPOINT_INTERVAL }
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
        self.results_since = if checkpoint.is_some() { 0 } else { self.results_since + records.len() };
        let note = note_of(&std::mem::take(&mut self.marks));
        let update = WindowsUpdate { position: self.position, records, note, checkpoint };
        self.writing = Some(Box::pin(self.log.update(update)));
    }

    /// Writes what was gathered, and waits until it is durable.
    async fn write(&mut self, save: Save) -> Result<(), Error<L::Error>> {
        if self.writing.is_some() {
            pulse::waiting(under_way(&mut self.writing)).await.map_err(Error::Update)?;
            self.writing = None;
        }
        self.start_writing(save);
        if self.writing.is_some() {
            pulse::waiting(under_way(&mut self.writing)).await.map_err(Error::Update)?;
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
            if self.silence.has_settled(nth, now) {
                self.windows.look_again(nth);
            }
            let hearing = |source: &str| self.silence.hearing(nth, now, source);
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

    fn publish(&mut self) {
        let windows = self.windows.counts();
        self.tell_refusals(&windows);
        self.report.send_replace(Report {
            position: self.position,
            windows,
            newest: self.newest.iter().cloned().collect(),
            skipped: self.skipped,
            differing: self.replay.differing,
        });
    }

    /// Says once when a window begins to refuse new series, and once when it has room again.
    fn tell_refusals(&mut self, windows: &[Counts]) {
        // At a start, what was refused before it is no news.
        let known = windows.iter().skip(self.refusals.len());
        self.refusals.extend(known.map(|counts| (counts.refused, Refusing::No)));
        for (counts, (refused, refusing)) in windows.iter().zip(&mut self.refusals) {
            let Counts { window, max_series, .. } = counts;
            match *refusing {
                Refusing::No if counts.refused > *refused => {
                    warn!(%window, max_series, "the window holds max_series series, and no device is idle: new ones are not aggregated");
                    *refusing = Refusing::Yes;
                }
                Refusing::Yes if !counts.is_full() => {
                    info!(%window, refused = counts.refused, "the window has room for new series again");
                    *refusing = Refusing::No;
                }
                Refusing::No | Refusing::Yes => {}
            }
            *refused = counts.refused;
        }
    }
}

/// Waits for what is under way; for ever if nothing is.
async fn under_way<T>(work: &mut Option<Boxed<'_, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}
