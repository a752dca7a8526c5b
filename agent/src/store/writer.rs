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

mod trouble;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::trouble::{Salvaging, Starved};
use super::ageing::Ageing;
use super::compaction::{self, Occasion};
use super::damage::{Before, Known, Opening};
use super::file::{Error, File};
use super::handle::Request;
use super::ledger::{Books, Identity};
use super::letters::{LettersChange, LettersDone};
use super::log::State;
use super::reader::{Piece, Reader};
use super::report::{self, Report};
use super::retention::{self, Pressure};
use super::salvage::{Salvager, Slice, Step};
use super::settings::{Settings, WhenFull};
use super::work::{Group, Work};
use crate::backoff::{self, Backoff};
use crate::blocking::{blocking, blocking_for_long};
use crate::causes::chain;
use crate::clock::{self, Clock};
use crate::pulse;
use crate::reading::{ClockState, Timestamp};
use crate::stream::{Epoch, Seq, Stream};

/// How long a moved cursor waits for a commit to ride in. Until then a crash means a batch sent again, which the
/// receiver drops.
const CURSOR_DELAY: Duration = Duration::from_secs(2);
/// A store that was full has room again if it has for so long.
const CALM: Duration = Duration::from_secs(5);
/// Pauses between attempts to open the file again after the disk failed.
const REOPEN: backoff::Settings =
    backoff::Settings { initial: Duration::from_millis(250), max: Duration::from_secs(10) };
/// Records that are too old and could not go are tried again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(3_600);

/// The store is given up when what was met in a row weighs this much. Damage does after three times: opening it again may help. A
/// disk that fails does after half a minute or more: it may only have been unplugged.
const STRIKES: u32 = 12;
/// The task that commits.
pub struct Writer {
    ends: Ends,
    state: Option<Box<State>>,
    clock: Clock,
    pressure: Pressure,
    work: Work,
    /// Who is to be told when `work` is durable.
    waiting: Vec<oneshot::Sender<()>>,
    /// A group that waits for room (`when_full = "block"`).
    held: Option<(Group, oneshot::Sender<()>)>,
    /// Who is to be told what became of the dead letters in `work`.
    letters_done: Option<oneshot::Sender<LettersDone>>,
    /// Further changes of dead letters: one goes into a commit, so that each is told its own.
    letters_waiting: VecDeque<(LettersChange, oneshot::Sender<LettersDone>)>,
    due: Option<Instant>,
    /// The agent stops: results of windows and their checkpoint do not wait for company.
    is_hurried: bool,
    /// What the file took on the disk after it was compacted last.
    compacted_bytes: u64,
    ageing: Ageing,
    /// When to look for records that are too old, whether or not anything is committed.
    look_at: Instant,
    /// When to say that the store has room again, if it still has.
    calm_at: Option<Instant>,
    /// Reads a damaged file, between its steps.
    salvager: Option<Box<Salvager>>,
    /// A step of it that is under way.
    salvaging: Option<Salvaging>,
    /// When the next step may begin.
    salvage_at: Instant,
    /// Who is to be told when the group in `work` is durable.
    group_waiting: Option<oneshot::Sender<()>>,
    /// The disk is full and the ballast given back.
    starved: Option<Starved>,
}

/// What the writer shares with the handles.
pub(super) struct Ends {
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) reader: Reader,
    pub(super) identity: Arc<Identity>,
    pub(super) books: watch::Sender<Arc<Books>>,
    pub(super) report: watch::Sender<Report>,
    pub(super) wants_checkpoint: watch::Sender<bool>,
    pub(super) head: watch::Sender<Seq>,
}

impl Writer {
    pub(super) fn new(state: State, ends: Ends, clock: Clock) -> Self {
        let now = clock.monotonic();
        Self {
            ageing: Ageing::new(state.newest_received, now, clock.wall()),
            look_at: now + look_every(&state.settings),
            calm_at: None,
            ends,
            state: Some(Box::new(state)),
            salvager: None,
            salvaging: None,
            salvage_at: clock.monotonic(),
            group_waiting: None,
            starved: None,
            clock,
            pressure: Pressure::default(),
            work: Work::default(),
            waiting: Vec::new(),
            held: None,
            letters_done: None,
            letters_waiting: VecDeque::new(),
            due: None,
            is_hurried: false,
            compacted_bytes: 0,
        }
    }

    /// Runs until every handle is gone and what was asked is durable.
    pub async fn run(mut self) {
        loop {
            match pulse::waiting(self.next()).await {
                Event::Due => {
                    self.commit().await;
                    if self.pressure.trimmed {
                        self.compact_if_it_pays().await;
                    }
                }
                Event::Look => self.look_for_aged().await,
                Event::Closed => break,
            }
        }
        if !self.work.is_empty() {
            self.commit().await;
        }
        // A sink that broke off may be reading to this moment. Who starts again at once must find the file free.
        let file = Arc::clone(&self.ends.reader.file);
        blocking(move || file.close()).await;
    }

    /// Waits until a commit is due. Cancel-safe: what was received is in `work`.
    async fn next(&mut self) -> Event {
        loop {
            let now = self.clock.monotonic();
            if self.due.is_some_and(|due| due <= now) {
                self.take_waiting();
                return Event::Due;
            }
            if self.look_at <= now {
                return Event::Look;
            }
            if self.calm_at.take_if(|at| *at <= now).is_some() {
                info!("store has room again and takes what comes");
            }
            self.look_for_room(now).await;
            let salvage_at = self.start_salvage(now);
            tokio::select! {
                biased;
                received = self.ends.requests.recv() => match received {
                    Some(request) => self.take(request),
                    None => return Event::Closed,
                },
                () = clock::until(self.due) => {}
                () = clock::until(Some(self.look_at)) => {}
                () = clock::until(self.calm_at) => {}
                () = self.ends.reader.suspected() => {
                    self.work.suspects.extend(self.ends.reader.take_suspects());
                    self.due = Some(now);
                }
                (salvager, step) = under_way(&mut self.salvaging) => {
                    self.salvaging = None;
                    self.salvager = Some(salvager);
                    self.take_salvaged(now, step);
                }
                () = clock::until(salvage_at) => {}
                () = clock::until(self.starved.map(|starved| starved.look_at)) => {}
            }
        }
    }

    /// Everything that waits goes into the commit that is due.
    fn take_waiting(&mut self) {
        // One update of the windows and one group is as much as a commit takes; who has more waits for this one.
        while self.work.group.is_none() || self.work.windows.is_none() {
            match self.ends.requests.try_recv() {
                Ok(request) => self.take(request),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, request: Request) {
        let now = self.clock.monotonic();
        let interval = self.state.as_ref().map_or(Duration::ZERO, |state| state.settings.commit_interval);
        let (due, done) = match request {
            Request::Hurry => {
                self.is_hurried = true;
                if self.work.windows.is_none() {
                    return;
                }
                (now, None)
            }
            Request::Group(group, done) => {
                if self.is_full() {
                    self.held = Some((group, done));
                    return;
                }
                debug_assert!(self.work.group.is_none(), "ingest has one group on the way at a time");
                self.work.group = Some(group);
                self.group_waiting = Some(done);
                (now, None)
            }
            Request::Windows(update, done) => {
                // Who stops waits for his checkpoint, however long the interval.
                let due = match update.checkpoint {
                    Some(_) | None if self.is_hurried => now,
                    Some(_) if self.pressure.over => now,
                    // Windows that are new: intake waits until it is durable where they begin.
                    Some(_) if update.position == self.ends.books.borrow().checkpoint.position => now,
                    Some(_) => now + interval.min(CURSOR_DELAY),
                    None => now + interval,
                };
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
            Request::Boot(boot, done) => {
                self.work.boot = Some(boot);
                (now, Some(done))
            }
            Request::Epoch(current, done) => {
                if self.ends.books.borrow().epoch == current {
                    let epoch = Epoch(uuid::Uuid::new_v4());
                    self.work.epoch = Some((epoch, Identity::clone(&self.ends.identity)));
                }
                (now, Some(done))
            }
            Request::Letters(change, done) => {
                if self.work.letters.is_some() {
                    // Who went away wants nothing any more; so these are never many.
                    self.letters_waiting.retain(|(_, done)| !done.is_closed());
                    self.letters_waiting.push_back((change, done));
                } else {
                    self.work.letters = Some(change);
                    self.letters_done = Some(done);
                }
                (now, None)
            }
        };
        self.waiting.extend(done);
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Whether readings have to wait: by the operator's rule, or for the windows, which must have passed what is given up.
    fn is_full(&self) -> bool {
        let is_blocking =
            self.state.as_ref().is_some_and(|state| state.settings.when_full == WhenFull::Block);
        self.is_starved() || self.pressure.far_over || (self.pressure.over && is_blocking)
    }

    /// Commits if records are too old, so that they go also where nothing else is committed.
    async fn look_for_aged(&mut self) {
        let ages_by = self.ages_by();
        let Some(state) = &mut self.state else { return };
        let pause = look_every(&state.settings);
        let (file, books) = (Arc::clone(&self.ends.reader.file), state.books.clone());
        let settings = state.settings.clone();
        let found = blocking(move || retention::has_aged(&file, &books, &settings, ages_by)).await;
        // A disk that cannot be read shows itself at the next commit.
        let has_aged = found.unwrap_or(false);
        if has_aged {
            state.trims_next = true;
            self.commit().await;
        }
        let gave_nothing = has_aged && self.pressure.shed == 0;
        // What is too old and may not go (a pinned batch, say) is not worth a commit a minute.
        let pause = if gave_nothing { LOOK_AGAIN.max(pause) } else { pause };
        self.look_at = self.clock.monotonic() + pause;
        if !has_aged && self.ends.report.borrow().state == report::State::Shedding {
            let is_over =
                self.pressure.over || self.state.as_ref().is_some_and(|state| self.still_sheds(state));
            if !is_over {
                self.tell(report::State::Ok, Pressure::default());
            }
        }
    }

    fn ages_by(&mut self) -> (Timestamp, ClockState) {
        let state = self.clock.state();
        (self.ageing.look(self.clock.monotonic(), self.clock.wall(), state), state)
    }

    /// Commits `work`, however long it takes the disk to recover.
    async fn commit(&mut self) {
        self.due = None;
        let mut backoff = Backoff::new(REOPEN);
        let mut strikes = 0;
        let mut work = std::mem::take(&mut self.work);
        let ages_by = self.ages_by();
        let mut state = self.state.take().expect("the state is away only within this function");
        let letters_before = state.books.dead_letters;
        state.ages_by = Some(ages_by);
        let before = [Stream::Readings, Stream::Windows].map(|stream| state.books.stream(stream).next);
        let pressure = loop {
            let (file, now, wall) =
                (Arc::clone(&self.ends.reader.file), self.clock.monotonic(), self.clock.wall());
            let attempt = blocking(move || {
                let result = state.commit(&file, &work, now, wall);
                (state, work, result)
            });
            let result;
            (state, work, result) = attempt.await;
            match result {
                Ok(pressure) => {
                    let took = self.clock.monotonic() - now;
                    self.ends.report.send_modify(|report| {
                        report.commits += 1;
                        report.commit_seconds.observe(took);
                    });
                    break pressure;
                }
                Err(error) => {
                    self.failed(&error);
                    if matches!(error, Error::Full) {
                        self.starve(&state).await;
                    }
                    strikes += weight(&error);
                    match pulse::waiting(self.reopened(state, &mut backoff, &mut strikes)).await {
                        Reopened::AsBefore(same) => state = same,
                        // The same work goes into the new store; sinks' answers count in the old one's books, too.
                        Reopened::Anew(new) => {
                            state = new;
                            self.salvager = None;
                            // What was met in the old one says nothing of the new.
                            strikes = 0;
                            // It began with an epoch of its own; in another one nobody would know the one before.
                            work.epoch = None;
                        }
                        // The commit that seemed to fail is in the file.
                        Reopened::WithCommit(later) => {
                            state = later;
                            if let Some(sinks) = &work.sinks {
                                state.sinks.clone_from(sinks);
                            }
                            break Pressure { over: self.pressure.over, ..Pressure::default() };
                        }
                    }
                    // Only now: a commit that is in the file after all holds the group already.
                    self.hold_if_starved(&mut work);
                }
            }
        };
        self.publish(&state, &mut work, before, pressure);
        if let Some(Slice { name, end: Some(lost), .. }) = &work.salvaged {
            self.salvaged(&state, name, *lost).await;
        }
        let letters_done = LettersDone::between(letters_before, state.books.dead_letters);
        self.state = Some(state);
        if let Some(done) = self.letters_done.take() {
            // Who asked and went does not mind.
            let _gone = done.send(letters_done);
        }
        for done in self.waiting.drain(..).chain(self.group_waiting.take()) {
            // Who asked and went does not mind.
            let _gone = done.send(());
        }
        self.release_held();
        if let Some((change, done)) = self.letters_waiting.pop_front() {
            self.take(Request::Letters(change, done));
        }
    }

    /// Makes the file smaller if it is far larger than what is in it, and nothing waits. Called after commits that looked for
    /// what can go.
    async fn compact_if_it_pays(&mut self) {
        let Some(file_bytes) = self.ends.reader.file.disk_bytes() else { return };
        self.ends.report.send_modify(|report| report.file_bytes = file_bytes);
        let is_idle = self.due.is_none() && self.held.is_none() && self.ends.requests.is_empty();
        let held_bytes = self.ends.books.borrow().held_bytes();
        let may_pay = compaction::pays(Occasion::Running, file_bytes, held_bytes, self.compacted_bytes);
        let Some(state) = self.state.take_if(|_| is_idle && may_pay) else { return };
        let (file, before_bytes) = (Arc::clone(&self.ends.reader.file), self.compacted_bytes);
        let attempt = blocking(move || {
            let result = state.live_bytes(&file).and_then(|live_bytes| {
                let pays = compaction::pays(Occasion::Running, file_bytes, live_bytes, before_bytes);
                if pays { file.compact().map(|()| file.disk_bytes()) } else { Ok(None) }
            });
            (state, result)
        });
        let started = self.clock.monotonic();
        let (state, result) = attempt.await;
        self.state = Some(state);
        let took = self.clock.monotonic() - started;
        match result {
            Ok(Some(bytes)) => {
                info!(
                    before_bytes = file_bytes,
                    bytes,
                    ?took,
                    "store's file was far larger than what is in it; compacted"
                );
                self.compacted_bytes = bytes;
                self.ends.report.send_modify(|report| report.file_bytes = bytes);
            }
            Ok(None) => {}
            // The next commit finds the file unusable, says so and opens it again.
            Err(error) => {
                warn!(error = %chain(&error), "store's file could not be compacted");
                self.compacted_bytes = file_bytes;
            }
        }
    }

    fn publish(&mut self, state: &State, work: &mut Work, before: [Seq; 2], pressure: Pressure) {
        if let Some(group) = work.group.take().filter(|group| !group.readings.is_empty()) {
            self.ends.reader.keep(Piece::Readings(before[0], group.readings.into()));
        }
        if let Some(update) = work.windows.take().filter(|update| !update.records.is_empty()) {
            self.ends.reader.keep(Piece::Windows(before[1], update.records.into()));
        }
        let now = match () {
            () if pressure.far_over || (pressure.over && state.settings.when_full == WhenFull::Block) => {
                report::State::Blocked
            }
            () if pressure.shed > 0 || pressure.over || self.still_sheds(state) => report::State::Shedding,
            () => report::State::Ok,
        };
        // A full disk stays one until readings can be taken again.
        if !self.is_starved() {
            self.tell(now, pressure);
        }
        self.ends.report.send_modify(|report| report.bytes = state.books.held_bytes());
        self.pressure = pressure;
        self.ends.wants_checkpoint.send_if_modified(|wanted| {
            std::mem::replace(wanted, pressure.wants_checkpoint) != pressure.wants_checkpoint
        });
        self.ends.books.send_replace(Arc::new(state.books.clone()));
        let next = state.books.stream(Stream::Readings).next;
        self.ends.head.send_if_modified(|head| std::mem::replace(head, next) != next);
    }

    /// A store that shed stays so until there is clearly room again, or nothing left to miss: not every commit of a full store
    /// gives something up.
    fn still_sheds(&self, state: &State) -> bool {
        let is_shedding = self.ends.report.borrow().state == report::State::Shedding;
        let is_wanted = state.sinks.iter().any(|sink| {
            sink.streams.iter().any(|stream| state.books.pending(&sink.name, *stream).unwrap_or(0) > 0)
        });
        is_shedding && is_wanted && state.books.fills(90, &state.settings)
    }

    /// Says once when trouble begins, and once when it ends.
    fn tell(&mut self, now: report::State, pressure: Pressure) {
        let before = self.ends.report.borrow().state;
        if before == now {
            return;
        }
        // While a full store is emptied, each batch makes room, and each message takes it: one trouble, not many.
        let goes_on = self.calm_at.take().is_some();
        match now {
            report::State::Ok if before == report::State::Failing => info!("store writes again"),
            report::State::Ok => self.calm_at = Some(self.clock.monotonic() + CALM),
            report::State::Shedding | report::State::Blocked if goes_on => {}
            report::State::Shedding => {
                error!(
                    shed = pressure.shed,
                    "store is full or its oldest records too old; the oldest are given up and declared"
                );
            }
            report::State::Blocked => {
                warn!("store is full; nothing more is acknowledged until there is room again");
            }
            report::State::Failing => {}
        }
        self.ends.report.send_modify(|report| {
            report.state = now;
            report.last_error = None;
        });
    }

    fn failed(&self, error: &Error) {
        let before = self.ends.report.borrow().state;
        let text = chain(error);
        if before != report::State::Failing && error.is_damage() {
            warn!(error = %text, "the store cannot be read; nothing is acknowledged until it can");
        } else if before != report::State::Failing {
            error!(error = %text, "store cannot write; nothing is acknowledged until it can");
        }
        self.ends.report.send_modify(|report| {
            report.state = report::State::Failing;
            report.last_error = Some(text);
        });
    }

    /// Opens the file again, as often as it takes, and reads from it what is durable.
    async fn reopened(&mut self, before: Box<State>, backoff: &mut Backoff, strikes: &mut u32) -> Reopened {
        loop {
            tokio::time::sleep(backoff.after_failure(fastrand::f64())).await;
            let file = Arc::clone(&self.ends.reader.file);
            if *strikes >= STRIKES && file.is_replaceable() {
                match self.replaced(file, &before).await {
                    Ok(new) => return Reopened::Anew(new),
                    Err(error) => self.failed(&error),
                }
                continue;
            }
            let (settings, windows) = (before.settings.clone(), before.windows);
            let attempt = blocking_for_long(move || {
                file.reopen()?;
                State::load(&file, settings, windows)
            });
            match attempt.await {
                Ok(mut loaded) if loaded.books.commit > before.books.commit => {
                    loaded.sinks.clone_from(&before.sinks);
                    return Reopened::WithCommit(Box::new(loaded));
                }
                Ok(_) => return Reopened::AsBefore(before),
                Err(error) => {
                    *strikes += weight(&error);
                    self.failed(&error);
                }
            }
        }
    }

    /// Moves the store aside and puts a new one in its place, which goes on where this one stands in memory.
    async fn replaced(&mut self, file: Arc<File>, before: &State) -> Result<Box<State>, Error> {
        let (settings, windows) = (before.settings.clone(), before.windows);
        let identity = Identity::clone(&self.ends.identity);
        let known = Known {
            before: Before::of(&before.books),
            recent: before.recent.clone(),
            reading: before.before.clone(),
        };
        let sinks = before.sinks.clone();
        let (now, wall) = (self.clock.monotonic(), self.clock.wall());
        let attempt = blocking_for_long(move || {
            let opening = Opening { settings: &settings, windows, identity: &identity, now, wall };
            file.reopen_after(|| opening.begin_anew(Some(known), &|_| {}))?;
            let mut state = Box::new(State::load(&file, settings, windows)?);
            state.sinks = sinks;
            Ok(state)
        });
        attempt.await
    }

    /// Takes a held group as soon as there is room.
    fn release_held(&mut self) {
        if self.is_full() {
            return;
        }
        if let Some((group, done)) = self.held.take() {
            self.take(Request::Group(group, done));
        }
    }
}

/// How often to look for records that are too old.
fn look_every(settings: &Settings) -> Duration {
    let shortest = Stream::ALL.into_iter().map(|stream| settings.max_age_of(stream)).min();
    (shortest.unwrap_or(settings.max_age) / 8).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

enum Event {
    Due,
    Look,
    Closed,
}

/// How much an error says for giving up the store.
fn weight(error: &Error) -> u32 {
    match error {
        Error::Io(_) => u32::from(error.is_damage()),
        _ if error.is_damage() => STRIKES / 3,
        _ => 0,
    }
}

/// Waits for a step that is under way; for ever if none is.
async fn under_way(step: &mut Option<Salvaging>) -> (Box<Salvager>, Step) {
    match step {
        Some(step) => step.await,
        None => std::future::pending().await,
    }
}

enum Reopened {
    /// The store was damaged; a new one took its place.
    Anew(Box<State>),
    /// The failed commit left nothing.
    AsBefore(Box<State>),
    /// The failed commit is there after all.
    WithCommit(Box<State>),
}
