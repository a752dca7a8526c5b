//! The one writer: gathers what rooms ask for and commits it together.
//!
//! ```text
//!   ingest ─ group (now) ───────────────┐
//!   windows ─ update (with the next) ───┼──► Work ──► one commit ──► books, acks
//!   sinks ─ pins (now), cursor (later) ─┘
//! ```
//!
//! A group of readings, a pin or a dead letter is committed at once, window results within `commit_interval`, a moved
//! cursor only after seconds of silence, because any commit that comes along takes it. When the disk fails, the work
//! is kept, the file opened again, and the same work committed; nobody is told that anything is durable meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::checkpoint;
use super::file::{Error, File, STATE};
use super::ledger::{Books, Identity};
use super::log::{self, State, WindowsPresence};
use super::reader::{Piece, Reader};
use super::recent::Recent;
use super::report::{self, Recovering, Report};
use super::retention::Pressure;
use super::settings::Settings;
use super::work::{Group, LedgerChange, LedgerEvent, SinkSpec, Work};
use super::{WindowsSnapshot, WindowsUpdate};
use crate::backoff::{self, Backoff};
use crate::clock::Clock;
use crate::stream::{Epoch, Seq, Stream};

/// Requests that may wait. Each asker waits for his answer, so there are never many.
const REQUESTS_WAITING: usize = 256;
/// How long a moved cursor waits for a commit to ride in. Until then a crash means a batch sent again, which the
/// receiver drops.
const CURSOR_DELAY: Duration = Duration::from_secs(2);
/// Pauses between attempts to open the file again after the disk failed.
const REOPEN: backoff::Settings =
    backoff::Settings { initial: Duration::from_millis(250), max: Duration::from_secs(10) };
/// The layout of the tables; chunks have a version of their own.
const FORMAT: u32 = 1;
/// The row of `state` with it.
const FORMAT_ROW: &str = "format";

/// The store has ended, or the agent is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has closed")]
pub struct Closed;

enum Request {
    Group(Group, oneshot::Sender<()>),
    Windows(WindowsUpdate, oneshot::Sender<()>),
    Ledger(LedgerChange, Option<oneshot::Sender<()>>),
    Remember(String, Vec<u8>, oneshot::Sender<()>),
    Sinks(Vec<SinkSpec>, oneshot::Sender<()>),
    Epoch(Epoch, oneshot::Sender<()>),
}

/// A handle to the store. Cheap to clone; the writer ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct Store {
    requests: mpsc::Sender<Request>,
    reader: Reader,
    identity: Arc<Identity>,
    books: watch::Receiver<Arc<Books>>,
    report: watch::Receiver<Report>,
    wants_checkpoint: watch::Receiver<bool>,
    head: watch::Receiver<Seq>,
}

/// The task that commits.
pub struct Writer {
    requests: mpsc::Receiver<Request>,
    reader: Reader,
    identity: Arc<Identity>,
    state: Option<Box<State>>,
    clock: Clock,
    books: watch::Sender<Arc<Books>>,
    report: watch::Sender<Report>,
    wants_checkpoint: watch::Sender<bool>,
    head: watch::Sender<Seq>,
    pressure: Pressure,
    work: Work,
    /// Who is to be told when `work` is durable.
    waiting: Vec<oneshot::Sender<()>>,
    /// A group that waits for room (`when_full = "block"`).
    held: Option<(Group, oneshot::Sender<()>)>,
    due: Option<Instant>,
}

/// Where the store publishes what others read; made before the store, so that its opening can be watched.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The books as of the last commit.
    pub books: watch::Sender<Arc<Books>>,
    /// What the store says of itself.
    pub report: watch::Sender<Report>,
}

/// What opening gives.
pub struct Opened {
    /// The handle.
    pub store: Store,
    /// The task, to be run.
    pub writer: Writer,
    /// What peers sent last, for the ingest room.
    pub recent: Recent,
}

impl Store {
    /// Opens the store for `agent` on `machine`, or makes it. Blocks; after an unclean stop it reads the whole file.
    /// How far that has come is published in `published`, and logged.
    ///
    /// # Errors
    /// If the store is in use, of a newer format, or cannot be read.
    pub fn open(
        settings: Settings,
        agent: &str,
        machine: &str,
        windows: WindowsPresence,
        clock: Clock,
        published: Published,
    ) -> Result<Opened, Error> {
        let report = published.report.clone();
        report.send_modify(|report| report.max_bytes = settings.max_size_bytes);
        let total_bytes =
            std::fs::metadata(settings.data_dir.join(super::file::FILE_NAME)).map_or(0, |file| file.len());
        let progress = move |part: f64| {
            let done_bytes = part_of(total_bytes, part);
            info!(done_bytes, total_bytes, "store was not closed cleanly; reading it through");
            report.send_modify(|report| report.recovering = Some(Recovering { done_bytes, total_bytes }));
        };
        let file = Arc::new(File::open(&settings.data_dir, progress)?);
        let before = identity(&file)?;
        let identity = Identity { agent: agent.to_owned(), machine: machine.to_owned() };
        let mut state = State::load(&file, settings, windows)?;
        if before.as_ref() != Some(&identity) {
            let epoch = Epoch(uuid::Uuid::new_v4());
            if let Some(before) = before {
                warn!(?before, now = ?identity, %epoch, "the store comes from another agent or machine; a new epoch begins");
            }
            let work = Work { epoch: Some((epoch, identity.clone())), ..Work::default() };
            state.commit(&file, &work, clock.monotonic(), clock.wall())?;
        }
        let recent = state.recent.clone();

        let (requests, waiting) = mpsc::channel(REQUESTS_WAITING);
        let Published { books, report } = published;
        books.send_replace(Arc::new(state.books.clone()));
        report.send_modify(|report| {
            report.bytes = state.books.held_bytes();
            report.recovering = None;
        });
        let (wants_checkpoint, checkpoint_wanted) = watch::channel(false);
        let (head, head_seen) = watch::channel(state.books.stream(Stream::Readings).next);
        let reader = Reader::new(file);
        let identity = Arc::new(identity);
        let store = Self {
            requests,
            reader: reader.clone(),
            identity: Arc::clone(&identity),
            books: books.subscribe(),
            report: report.subscribe(),
            wants_checkpoint: checkpoint_wanted,
            head: head_seen,
        };
        let writer = Writer {
            requests: waiting,
            reader,
            identity,
            state: Some(Box::new(state)),
            clock,
            books,
            report,
            wants_checkpoint,
            head,
            pressure: Pressure::default(),
            work: Work::default(),
            waiting: Vec::new(),
            held: None,
            due: None,
        };
        Ok(Opened { store, writer, recent })
    }

    /// The dead letters of a store that no agent has open; `None` if one has. Blocks.
    ///
    /// # Errors
    /// If there is no store in `data_dir`, or it cannot be read.
    pub fn dead_letters(data_dir: &std::path::Path) -> Result<Option<Vec<super::DeadLetter>>, Error> {
        match File::open_existing(data_dir) {
            Ok(file) => Reader::new(Arc::new(file)).dead_letters(0, usize::MAX).map(Some),
            Err(Error::InUse { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Who the store is.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The books as of the last commit; changes with every commit.
    #[must_use]
    pub fn books(&self) -> watch::Receiver<Arc<Books>> {
        self.books.clone()
    }

    /// What the store says of itself.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<Report> {
        self.report.clone()
    }

    /// True while a checkpoint of the windows would free room that is needed.
    #[must_use]
    pub fn wants_checkpoint(&self) -> watch::Receiver<bool> {
        self.wants_checkpoint.clone()
    }

    /// The number after the last durable reading.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Seq> {
        self.head.clone()
    }

    /// For reading records back.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Stores a group; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn append(&self, group: Group) -> Result<(), Closed> {
        self.ask(|done| Request::Group(group, done)).await
    }

    /// Stores results of windows, with the next commit; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn update_windows(&self, update: WindowsUpdate) -> Result<(), Closed> {
        self.ask(|done| Request::Windows(update, done)).await
    }

    /// Changes a ledger at once; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn change(&self, change: LedgerChange) -> Result<(), Closed> {
        self.ask(|done| Request::Ledger(change, Some(done))).await
    }

    /// `sink` has everything of `stream` before `next`: goes into some commit soon, and nobody waits for it.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn advance(&self, sink: &str, epoch: Epoch, stream: Stream, next: Seq) -> Result<(), Closed> {
        let change = LedgerChange { sink: sink.to_owned(), stream, epoch, event: LedgerEvent::Advance(next) };
        self.requests.send(Request::Ledger(change, None)).await.map_err(|_| Closed)
    }

    /// Makes `sinks` those that are configured; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn configure_sinks(&self, sinks: Vec<SinkSpec>) -> Result<(), Closed> {
        self.ask(|done| Request::Sinks(sinks, done)).await
    }

    /// Begins a new epoch, unless `current` is not the epoch any more; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn leave_epoch(&self, current: Epoch) -> Result<(), Closed> {
        self.ask(|done| Request::Epoch(current, done)).await
    }

    /// Keeps `value` under `key`; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn remember(&self, key: &str, value: Vec<u8>) -> Result<(), Closed> {
        let key = format!("memory/{key}");
        self.ask(|done| Request::Remember(key, value, done)).await
    }

    /// What was remembered under `key`. Blocks.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn recall(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.reader.file.read(|transaction| {
            let row = transaction
                .open_table(STATE)?
                .get(format!("memory/{key}").as_str())?
                .map(|row| row.value().to_vec());
            Ok(row)
        })
    }

    /// Where the windows were: their checkpoint, and what was emitted since. Blocks.
    ///
    /// # Errors
    /// If the disk fails or what is on it is damaged.
    pub fn windows_snapshot(&self) -> Result<WindowsSnapshot, Error> {
        let books = Arc::clone(&self.books.borrow());
        checkpoint::windows_snapshot(&self.reader.file, &books)
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<()>) -> Request) -> Result<(), Closed> {
        let (done, durable) = oneshot::channel();
        self.requests.send(request(done)).await.map_err(|_| Closed)?;
        durable.await.map_err(|_| Closed)
    }
}

/// Whose the store was, if it is not new.
fn identity(file: &File) -> Result<Option<Identity>, Error> {
    let (format, identity) = file.read(|transaction| {
        let state = transaction.open_table(STATE)?;
        let row = |key: &str| Ok::<_, Error>(state.get(key)?.map(|row| row.value().to_vec()));
        Ok((row(FORMAT_ROW)?, row(log::IDENTITY_ROW)?))
    })?;
    match format {
        Some(format) => {
            let found = postcard::from_bytes(&format).unwrap_or(u32::MAX);
            if found > FORMAT {
                return Err(Error::Newer { found, known: FORMAT });
            }
        }
        None => file.write(|transaction| {
            let format = postcard::to_stdvec(&FORMAT).expect("a Vec takes any bytes");
            transaction.open_table(STATE)?.insert(FORMAT_ROW, format.as_slice())?;
            Ok(())
        })?,
    }
    Ok(identity.and_then(|row| postcard::from_bytes(&row).ok()))
}

impl Writer {
    /// Runs until every handle is gone and what was asked is durable.
    pub async fn run(mut self) {
        while let Event::Due = self.next().await {
            self.commit().await;
        }
        if !self.work.is_empty() {
            self.commit().await;
        }
    }

    /// Waits until a commit is due. Cancel-safe: what was received is in `work`.
    async fn next(&mut self) -> Event {
        loop {
            let now = self.clock.monotonic();
            if self.due.is_some_and(|due| due <= now) {
                self.take_waiting();
                return Event::Due;
            }
            let received = match self.due {
                Some(due) => match timeout_at(due, self.requests.recv()).await {
                    Ok(received) => received,
                    Err(_) => continue,
                },
                None => self.requests.recv().await,
            };
            match received {
                Some(request) => self.take(request),
                None => return Event::Closed,
            }
        }
    }

    /// Everything that waits goes into the commit that is due.
    fn take_waiting(&mut self) {
        // One update of the windows and one group is as much as a commit takes; who has more waits for this one.
        while self.work.group.is_none() || self.work.windows.is_none() {
            match self.requests.try_recv() {
                Ok(request) => self.take(request),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, request: Request) {
        let now = self.clock.monotonic();
        let interval = self.state.as_ref().map_or(Duration::ZERO, |state| state.settings.commit_interval);
        let (due, done) = match request {
            Request::Group(group, done) => {
                if self.pressure.over && self.is_blocking() {
                    self.held = Some((group, done));
                    return;
                }
                debug_assert!(self.work.group.is_none(), "ingest has one group on the way at a time");
                self.work.group = Some(group);
                (now, Some(done))
            }
            Request::Windows(update, done) => {
                let due =
                    if update.checkpoint.is_some() && self.pressure.over { now } else { now + interval };
                self.work.windows = Some(update);
                (due, Some(done))
            }
            Request::Ledger(change, done) => {
                self.work.ledger.push(change);
                let is_needed = done.is_some() || self.pressure.over;
                (if is_needed { now } else { now + CURSOR_DELAY }, done)
            }
            Request::Remember(key, value, done) => {
                self.work.remember.push((key, value));
                (now, Some(done))
            }
            Request::Sinks(sinks, done) => {
                self.work.sinks = Some(sinks);
                (now, Some(done))
            }
            Request::Epoch(current, done) => {
                if self.books.borrow().epoch == current {
                    let epoch = Epoch(uuid::Uuid::new_v4());
                    self.work.epoch = Some((epoch, Identity::clone(&self.identity)));
                }
                (now, Some(done))
            }
        };
        self.waiting.extend(done);
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    fn is_blocking(&self) -> bool {
        use super::settings::WhenFull;
        self.state.as_ref().is_some_and(|state| state.settings.when_full == WhenFull::Block)
    }

    /// Commits `work`, however long it takes the disk to recover.
    async fn commit(&mut self) {
        self.due = None;
        let mut backoff = Backoff::new(REOPEN);
        let mut work = std::mem::take(&mut self.work);
        let mut state = self.state.take().expect("the state is away only within this function");
        let before = [Stream::Readings, Stream::Windows].map(|stream| state.books.stream(stream).next);
        let pressure = loop {
            let (file, now, wall) =
                (Arc::clone(&self.reader.file), self.clock.monotonic(), self.clock.wall());
            let attempt = tokio::task::spawn_blocking(move || {
                let result = state.commit(&file, &work, now, wall);
                (state, work, result)
            });
            let result;
            (state, work, result) = attempt.await.expect("panics of redb are caught at the store's edge");
            match result {
                Ok(pressure) => {
                    let took = self.clock.monotonic() - now;
                    self.report.send_modify(|report| {
                        report.commits += 1;
                        report.commit_seconds.observe(took);
                    });
                    break pressure;
                }
                Err(error) => {
                    self.failed(&error);
                    match self.reopened(state, &mut backoff).await {
                        Reopened::AsBefore(same) => state = same,
                        // The commit that seemed to fail is in the file.
                        Reopened::WithCommit(later) => {
                            state = later;
                            if let Some(sinks) = &work.sinks {
                                state.sinks.clone_from(sinks);
                            }
                            break Pressure { over: self.pressure.over, ..Pressure::default() };
                        }
                    }
                }
            }
        };
        self.publish(&state, &mut work, before, pressure);
        self.state = Some(state);
        for done in self.waiting.drain(..) {
            // Who asked and went does not mind.
            let _gone = done.send(());
        }
        self.release_held();
    }

    fn publish(&mut self, state: &State, work: &mut Work, before: [Seq; 2], pressure: Pressure) {
        if let Some(group) = work.group.take().filter(|group| !group.readings.is_empty()) {
            self.reader.keep(Piece::Readings(before[0], group.readings.into()));
        }
        if let Some(update) = work.windows.take().filter(|update| !update.records.is_empty()) {
            self.reader.keep(Piece::Windows(before[1], update.records.into()));
        }
        let now = match () {
            () if pressure.over && self.is_blocking_state(state) => report::State::Blocked,
            () if pressure.shed > 0 || pressure.over => report::State::Shedding,
            () => report::State::Ok,
        };
        self.tell(now, pressure);
        self.report.send_modify(|report| report.bytes = state.books.held_bytes());
        self.pressure = pressure;
        self.wants_checkpoint.send_if_modified(|wanted| {
            std::mem::replace(wanted, pressure.wants_checkpoint) != pressure.wants_checkpoint
        });
        self.books.send_replace(Arc::new(state.books.clone()));
        let next = state.books.stream(Stream::Readings).next;
        self.head.send_if_modified(|head| std::mem::replace(head, next) != next);
    }

    fn is_blocking_state(&self, state: &State) -> bool {
        state.settings.when_full == super::settings::WhenFull::Block
    }

    /// Says once when trouble begins, and once when it ends.
    fn tell(&self, now: report::State, pressure: Pressure) {
        let before = self.report.borrow().state;
        if before == now {
            return;
        }
        match now {
            report::State::Ok if before == report::State::Failing => info!("store writes again"),
            report::State::Ok => info!("store has room again and takes what comes"),
            report::State::Shedding => {
                error!(
                    shed = pressure.shed,
                    "store is full or its oldest records too old; the oldest are given up and declared"
                );
            }
            report::State::Blocked => {
                warn!("store is full; nothing more is acknowledged until a sink takes what is held");
            }
            report::State::Failing => {}
        }
        self.report.send_modify(|report| {
            report.state = now;
            report.last_error = None;
        });
    }

    fn failed(&self, error: &Error) {
        let before = self.report.borrow().state;
        let text = chain(error);
        if before != report::State::Failing {
            error!(error = %text, "store cannot write; nothing is acknowledged until it can");
        }
        self.report.send_modify(|report| {
            report.state = report::State::Failing;
            report.last_error = Some(text);
        });
    }

    /// Opens the file again, as often as it takes, and reads from it what is durable.
    async fn reopened(&self, before: Box<State>, backoff: &mut Backoff) -> Reopened {
        loop {
            tokio::time::sleep(backoff.after_failure(fastrand::f64())).await;
            let file = Arc::clone(&self.reader.file);
            let (settings, windows) = (before.settings.clone(), before.windows);
            let attempt = tokio::task::spawn_blocking(move || {
                file.reopen()?;
                State::load(&file, settings, windows)
            });
            match attempt.await.expect("panics of redb are caught at the store's edge") {
                Ok(mut loaded) if loaded.books.commit > before.books.commit => {
                    loaded.sinks.clone_from(&before.sinks);
                    return Reopened::WithCommit(Box::new(loaded));
                }
                Ok(_) => return Reopened::AsBefore(before),
                Err(error) => self.failed(&error),
            }
        }
    }

    /// Takes a held group as soon as there is room.
    fn release_held(&mut self) {
        if self.pressure.over {
            return;
        }
        if let Some((group, done)) = self.held.take() {
            self.take(Request::Group(group, done));
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a progress bar, not a count"
)]
fn part_of(total_bytes: u64, part: f64) -> u64 {
    (total_bytes as f64 * part.clamp(0.0, 1.0)) as u64
}

enum Event {
    Due,
    Closed,
}

enum Reopened {
    /// The failed commit left nothing.
    AsBefore(Box<State>),
    /// The failed commit is there after all.
    WithCommit(Box<State>),
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
