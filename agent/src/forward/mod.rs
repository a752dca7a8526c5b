//! Room 6: per sink, the next batch of the most important stream, until it is answered.
//!
//! In: the books, which say what is pinned and what is pending. Out: requests, and the changes of the ledger that their
//! answers mean. Promised: a batch is fixed durably before it is first sent and identical at every retry; one batch is in
//! flight at a time, so a backlog of readings delays a fresh window by no more than that; nothing here slows intake.
//!
//! ```text
//!          pinned ──► send ──► 2xx ──────────────► cursor moves
//!            ▲          │      400, 422, 413 ────► two halves; alone: dead letter
//!   pending ─┘          │      408 … 5xx, none ──► the same again, with backoff
//!                       └───── 401 … other ──────► keep all, retry slowly
//! ```
//!
//! Most batches are pinned by the commit that stores their records. Only a backlog is cut into batches here, several at a time,
//! so that a drain costs few commits.

mod answer;
mod batch;
mod http;
pub mod report;
pub mod settings;

pub use answer::Answer;
pub use batch::Error as BatchError;
pub use http::{Failure, Post, Sending, SetupError, Transport};
pub use report::{Report, State};
pub use settings::Settings;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::answer::Verdict;
use self::batch::{Batch, Builder, Rest, View};
use self::http::Endpoint;
use crate::backoff::Backoff;
use crate::blocking::blocking;
use crate::causes::chain;
use crate::clock::{self, Clock};
use crate::pulse;
use crate::store::ledger::{Books, Ledger};
use crate::store::work::{LedgerChange, LedgerEvent, Letter};
use crate::store::{self, DeadLetterOrigin, Store};
use crate::stream::{Epoch, Gap, Seq, SeqRange, Stream};

/// Batches of a backlog that are pinned together.
const PINNED_AHEAD: usize = 8;
/// So many lone records refused in a row are not the records' fault.
const REFUSED_IN_A_ROW: u32 = 10;
/// A commit that comes a little late may still pin a batch, which saves one of its own.
const PIN_GRACE: Duration = Duration::from_millis(250);

/// One sink's task.
pub struct Forward {
    settings: Settings,
    store: Store,
    books: watch::Receiver<Arc<Books>>,
    report: watch::Sender<Report>,
    clock: Clock,
    endpoint: Box<dyn Transport>,
    builder: Option<Box<Builder>>,
    backoff: Backoff,
    /// Nothing is sent before this.
    resume_at: Option<Instant>,
    /// Numbers that were answered, per stream; the books follow with some commit.
    answered: BTreeMap<Stream, Seq>,
    /// Since when records wait that no pin covers.
    waiting: BTreeMap<Stream, Instant>,
    /// Bodies of pinned batches that were built ahead.
    ahead: VecDeque<Batch>,
    refused_in_a_row: u32,
    /// The epoch of the numbers in `answered` and `ahead`.
    epoch: Epoch,
    /// Whether this sink knew more numbers than we have and nothing was delivered to it since.
    is_ahead_of_us: bool,
}

/// Whether the agent goes on or stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Go,
    Drain,
}

/// What to do next.
enum Step {
    Send(View, SeqRange, Vec<Gap>),
    Pin(View, SeqRange, Vec<Gap>, Rest),
    Wait(Option<Instant>),
    Done,
}

impl Forward {
    /// A sink's task, to be run.
    ///
    /// # Errors
    /// If its certificates or URL cannot be used.
    pub fn new(
        settings: Settings,
        store: Store,
        report: watch::Sender<Report>,
        clock: Clock,
    ) -> Result<Self, SetupError> {
        let endpoint = Box::new(Endpoint::new(&settings, clock)?);
        Ok(Self::through(endpoint, settings, store, report, clock))
    }

    /// A sink's task whose batches go through `endpoint`.
    #[must_use]
    pub fn through(
        endpoint: Box<dyn Transport>,
        settings: Settings,
        store: Store,
        report: watch::Sender<Report>,
        clock: Clock,
    ) -> Self {
        let builder = builder(&store, &settings);
        let epoch = store.books().borrow().epoch;
        // A sink that refused everything before a restart is not given ten more records to refuse.
        let refused_in_a_row = {
            let books = store.books().borrow().clone();
            let ledgers = books.sinks.get(&settings.name).into_iter().flat_map(|sink| sink.streams.values());
            let most = ledgers.map(Ledger::refused_in_a_row).max().unwrap_or(0);
            u32::try_from(most).unwrap_or(u32::MAX)
        };
        Self {
            books: store.books(),
            backoff: Backoff::new(settings.retry),
            settings,
            store,
            report,
            clock,
            endpoint,
            builder: Some(Box::new(builder)),
            resume_at: None,
            answered: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ahead: VecDeque::new(),
            refused_in_a_row,
            epoch,
            is_ahead_of_us: false,
        }
    }

    /// Runs until `drain` is cancelled and what is pending was sent, as far as the sink takes it; or `abort` is cancelled.
    pub async fn run(mut self, drain: CancellationToken, abort: CancellationToken) {
        loop {
            let mode = if drain.is_cancelled() { Mode::Drain } else { Mode::Go };
            let step = self.step(mode);
            let result = tokio::select! {
                biased;
                () = abort.cancelled() => return,
                result = self.take(step, &drain) => result,
            };
            match result {
                Ok(Flow::Continue) => {}
                Ok(Flow::Done) | Err(store::Closed) => return,
            }
        }
    }

    async fn take(&mut self, step: Step, drain: &CancellationToken) -> Result<Flow, store::Closed> {
        match step {
            Step::Send(view, range, gaps) => self.send(view, range, gaps).await?,
            Step::Pin(view, range, gaps, rest) => self.pin(view, range, gaps, rest).await?,
            Step::Wait(until) => pulse::waiting(self.wait(until, drain)).await?,
            Step::Done => return Ok(Flow::Done),
        }
        Ok(Flow::Continue)
    }

    async fn wait(&mut self, until: Option<Instant>, drain: &CancellationToken) -> Result<(), store::Closed> {
        let is_draining = drain.is_cancelled();
        tokio::select! {
            biased;
            changed = self.books.changed() => changed.map_err(|_| store::Closed),
            () = clock::until(until) => Ok(()),
            () = drain.cancelled(), if !is_draining => Ok(()),
        }
    }

    /// Decides what to do next; the most important stream first.
    fn step(&mut self, mode: Mode) -> Step {
        let now = self.clock.monotonic();
        if let Some(resume_at) = self.resume_at.filter(|at| *at > now) {
            // Who does not take batches now need not be waited for at the end: all is stored.
            return if mode == Mode::Drain { Step::Done } else { Step::Wait(Some(resume_at)) };
        }
        let books = Arc::clone(&self.books.borrow_and_update());
        if books.epoch != self.epoch {
            self.epoch = books.epoch;
            self.answered.clear();
            self.ahead.clear();
        }
        let Some(sink) = books.sinks.get(&self.settings.name) else { return Step::Wait(None) };
        let ledgers = || {
            let with_ledger = |stream: &Stream| Some((*stream, sink.streams.get(stream)?));
            self.settings.streams.iter().filter_map(with_ledger)
        };
        // By priority: what is due of an important stream goes before what is pinned of another.
        let mut earliest = None;
        let mut waiting = BTreeMap::new();
        let mut step = None;
        for (stream, ledger) in ledgers() {
            if let Some((range, gaps, corrections)) = self.first_unanswered(stream, ledger) {
                let view = View::of(&books, stream).fixed_with(corrections);
                step = step.or(Some(Step::Send(view, range, gaps)));
            }
            let (first, next) = (ledger.unpinned(), books.stream(stream).next);
            if first >= next {
                continue;
            }
            let since = self.waiting.get(&stream).copied().unwrap_or(now);
            waiting.insert(stream, since);
            let range = SeqRange { first, last: Seq(next.0 - 1) };
            let due = since + self.settings.batch.wait + PIN_GRACE;
            let is_over = due <= now || mode == Mode::Drain;
            if is_over || range.count() >= self.settings.batch.records {
                let rest = if is_over { Rest::Too } else { Rest::Waits };
                step = step
                    .or_else(|| Some(Step::Pin(View::of(&books, stream), range, ledger.ahead.clone(), rest)));
            }
            earliest = earliest.map_or(Some(due), |before: Instant| Some(before.min(due)));
        }
        self.waiting = waiting;
        step.unwrap_or(match mode {
            Mode::Drain => Step::Done,
            Mode::Go => Step::Wait(earliest),
        })
    }

    /// The first pinned batch, or the rest of it, that was not answered yet.
    fn first_unanswered(&self, stream: Stream, ledger: &Ledger) -> Option<(SeqRange, Vec<Gap>, u32)> {
        let answered = self.answered.get(&stream).copied().unwrap_or(Seq::FIRST);
        let mut first = ledger.cursor;
        for pin in &ledger.pins {
            let range = SeqRange { first: first.max(answered), last: pin.last };
            if pin.last >= answered {
                let gaps = pin.gaps.iter().filter(|gap| gap.range.last >= range.first);
                let cut = |gap: &Gap| {
                    let first = gap.range.first.max(range.first);
                    Gap { range: SeqRange { first, ..gap.range }, ..*gap }
                };
                return Some((range, gaps.map(cut).collect(), pin.corrections));
            }
            first = pin.last.next();
        }
        None
    }

    /// Cuts a backlog into batches and pins them.
    async fn pin(
        &mut self,
        view: View,
        range: SeqRange,
        gaps: Vec<Gap>,
        rest: Rest,
    ) -> Result<(), store::Closed> {
        let planned =
            self.blocking(move |builder| builder.plan(view, range, &gaps, PINNED_AHEAD, rest)).await;
        let batches = match planned {
            Ok(batches) => batches,
            // Given up since the books were read: they say so by now, or soon will.
            Err(BatchError::Missing { .. }) if self.books.has_changed().unwrap_or(true) => return Ok(()),
            Err(error) => {
                self.unreadable(&error);
                return Ok(());
            }
        };
        if batches.is_empty() {
            // Fewer bytes than it seemed; more will come, or the wait will be over.
            let due = self.clock.monotonic() + PIN_GRACE;
            sleep_until(due).await;
            return Ok(());
        }
        let lasts = batches.iter().map(|batch| batch.range.last).collect();
        self.ahead.extend(batches);
        self.waiting.remove(&view.stream);
        self.change(view, LedgerEvent::Pin(lasts, view.corrections)).await
    }

    /// One attempt.
    async fn send(&mut self, view: View, range: SeqRange, gaps: Vec<Gap>) -> Result<(), store::Closed> {
        let batch = match self.batch(view, range, gaps).await {
            Ok(batch) => batch,
            Err(error) => {
                self.unreadable(&error);
                return Ok(());
            }
        };
        let bytes = batch.body.len() as u64;
        self.report.send_modify(|report| {
            report.requests += 1;
            report.sent_bytes += bytes;
        });
        // It has a timeout of its own.
        match pulse::waiting(self.endpoint.send(Post { key: &batch.key, body: &batch.body })).await {
            Ok(answer) => self.answered(view, batch, &answer).await,
            Err(failure) => {
                self.keep(batch);
                self.pause(State::Retrying, chain(&failure), None);
                Ok(())
            }
        }
    }

    async fn answered(&mut self, view: View, batch: Batch, answer: &Answer) -> Result<(), store::Closed> {
        let describe = || answer.describe();
        match answer.verdict(self.settings.ack) {
            Verdict::Delivered(next) => return self.delivered(view, batch, next).await,
            Verdict::Refused | Verdict::TooLarge => return self.refused(view, batch, answer).await,
            Verdict::Retry(pause) => self.pause(State::Retrying, describe(), pause),
            Verdict::Unauthorized => self.pause(State::Unauthorized, describe(), None),
            Verdict::Misconfigured => self.pause(State::Misconfigured, describe(), None),
        }
        self.keep(batch);
        Ok(())
    }

    async fn delivered(&mut self, view: View, batch: Batch, next: Option<u64>) -> Result<(), store::Closed> {
        let end = batch.range.last.next();
        let (head, next) = {
            let books = self.books.borrow();
            (books.stream(batch.stream).next, next.map_or(end, |next| view.inside(next)))
        };
        if next > head {
            return self.outrun(batch, view.seq(next)).await;
        }
        if next <= batch.range.first {
            let text = format!("it took the batch {} and still wants {} next", batch.key, view.seq(next));
            self.keep(batch);
            self.pause(State::Retrying, text, None);
            return Ok(());
        }
        if batch.records > 0 {
            self.refused_in_a_row = 0;
        }
        self.is_ahead_of_us = false;
        self.recovered();
        self.answered.insert(batch.stream, next);
        pulse::waiting(self.store.advance(&self.settings.name, batch.epoch, batch.stream, next)).await
    }

    /// The sink knows numbers that we never gave: our store was set back, by a restored image perhaps. A new epoch begins, once;
    /// if that does not help, what it says makes no sense.
    async fn outrun(&mut self, batch: Batch, next: Seq) -> Result<(), store::Closed> {
        let sink = &self.settings.name;
        if self.is_ahead_of_us {
            let text = format!("it wants {next} next, beyond all we have, also in a new epoch");
            self.keep(batch);
            self.pause(State::Misconfigured, text, None);
            return Ok(());
        }
        error!(%sink, key = %batch.key, %next, "sink knows more records than this store ever had; a new epoch begins");
        self.is_ahead_of_us = true;
        pulse::waiting(self.store.leave_epoch(batch.epoch)).await
    }

    /// Halves what was refused; what is alone becomes a dead letter, unless everything is refused.
    async fn refused(&mut self, view: View, batch: Batch, answer: &Answer) -> Result<(), store::Closed> {
        let stream = batch.stream;
        if batch.records == 0 {
            self.keep(batch);
            self.pause(State::Misconfigured, answer.describe(), None);
            return Ok(());
        }
        if batch.records > 1 {
            self.settle_answered(view, batch.range.first).await?;
            return self.change(view, LedgerEvent::Split).await;
        }
        if self.refused_in_a_row >= REFUSED_IN_A_ROW {
            self.keep(batch);
            self.pause(State::Refusing, answer.describe(), None);
            return Ok(());
        }
        let Some(seq) = batch.lone_record() else { return Ok(()) };
        let record = match self.blocking(move |builder| builder.record(view, seq)).await {
            Ok(record) => record,
            Err(error) => {
                self.unreadable(&error);
                return Ok(());
            }
        };
        // A record that is too long says nothing of the others.
        if answer.verdict(self.settings.ack) == Verdict::Refused {
            self.refused_in_a_row += 1;
        }
        error!(sink = %self.settings.name, %stream, seq = %view.seq(seq), answer = %answer.describe(), "record refused for good; it is kept as a dead letter");
        let letter = Letter {
            time: self.clock.wall(),
            origin: DeadLetterOrigin::Sink {
                sink: self.settings.name.clone(),
                stream,
                epoch: view.epoch,
                range: view.range(SeqRange { first: seq, last: seq }),
                status: answer.status,
            },
            reason: answer.describe(),
            payload_bytes: record.len() as u64,
            payload_hash: xxhash_rust::xxh3::xxh3_64(&record),
            payload: record,
        };
        self.settle_answered(view, batch.range.first).await?;
        self.change(view, LedgerEvent::DeadLetter(seq, Box::new(letter))).await?;
        if self.refused_in_a_row >= REFUSED_IN_A_ROW {
            self.pause(State::Refusing, answer.describe(), None);
        }
        Ok(())
    }

    /// The books must know of all answers before the first pin is changed.
    async fn settle_answered(&self, view: View, first: Seq) -> Result<(), store::Closed> {
        self.change(view, LedgerEvent::Advance(first)).await
    }

    async fn change(&self, view: View, event: LedgerEvent) -> Result<(), store::Closed> {
        let View { stream, epoch, .. } = view;
        let change = LedgerChange { sink: self.settings.name.clone(), stream, epoch, event };
        // As long as the disk takes; the store's own task is asked whether it gets anywhere.
        pulse::waiting(self.store.change(change)).await
    }

    /// The body of a pinned batch: built ahead, or now.
    async fn batch(&mut self, view: View, range: SeqRange, gaps: Vec<Gap>) -> Result<Batch, BatchError> {
        let stream = view.stream;
        let is_it = |batch: &Batch| {
            (batch.stream, batch.range, batch.corrections) == (stream, range, view.corrections)
                && batch.gaps == gaps
        };
        let place = self.ahead.iter().position(is_it);
        if let Some(batch) = place.and_then(|place| self.ahead.remove(place)) {
            return Ok(batch);
        }
        // What was built ahead and is none of the pinned batches is of no use any more.
        self.ahead.retain(|batch| batch.stream != stream);
        self.blocking(move |builder| builder.build(view, range, gaps)).await
    }

    /// Keeps a batch that has to be sent again.
    fn keep(&mut self, batch: Batch) {
        self.ahead.push_front(batch);
        self.ahead.truncate(2 * PINNED_AHEAD);
    }

    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Builder) -> Result<T, BatchError> + Send + 'static,
    ) -> Result<T, BatchError> {
        let mut builder =
            self.builder.take().unwrap_or_else(|| Box::new(builder(&self.store, &self.settings)));
        builder.boots.clone_from(&self.books.borrow().boots);
        let done = blocking(move || {
            let result = work(&mut builder);
            (builder, result)
        });
        let (builder, result) = done.await;
        self.builder = Some(builder);
        result
    }

    /// The records of a batch cannot be read: the store tells the operator; here it is tried again later.
    fn unreadable(&mut self, error: &BatchError) {
        if let BatchError::Missing { stream, seq } = error {
            self.store.suspect(*stream, *seq);
        }
        self.pause(State::Retrying, chain(error), None);
    }

    /// Nothing more is sent for a while.
    fn pause(&mut self, state: State, error: String, asked: Option<Duration>) {
        let pause = match state {
            State::Up | State::Retrying => {
                let own = self.backoff.after_failure(fastrand::f64());
                asked.map_or(own, |asked| asked.max(own))
            }
            // A person is needed; asking often helps nobody.
            State::Unauthorized | State::Misconfigured | State::Refusing => {
                self.settings.retry.max.mul_f64(0.5 + fastrand::f64() / 2.0)
            }
        };
        let resume_at = self.clock.monotonic() + pause;
        self.resume_at = Some(resume_at);
        let before = self.report.borrow().state;
        let sink = &self.settings.name;
        if before != state {
            match state {
                State::Up | State::Retrying => {
                    warn!(%sink, %error, "sink does not take batches; everything is kept and sent again");
                }
                State::Unauthorized | State::Misconfigured | State::Refusing => {
                    error!(%sink, state = state.name(), %error, "sink needs a person; everything is kept");
                }
            }
        } else {
            debug!(%sink, %error, ?pause, "sink still does not take batches");
        }
        self.report.send_modify(|report| {
            report.state = state;
            report.last_error = Some(error);
            report.next_attempt = Some(resume_at);
        });
    }

    fn recovered(&mut self) {
        self.backoff.succeeded();
        self.resume_at = None;
        if self.report.borrow().state != State::Up {
            info!(sink = %self.settings.name, "sink takes batches again");
            self.report.send_modify(|report| {
                report.state = State::Up;
                report.last_error = None;
                report.next_attempt = None;
            });
        }
    }
}

fn builder(store: &Store, settings: &Settings) -> Builder {
    Builder::new(store.reader(), &store.identity().agent, settings.batch, settings.compression)
}

enum Flow {
    Continue,
    Done,
}

impl Batch {
    /// The only record of a batch that has one.
    fn lone_record(&self) -> Option<Seq> {
        let mut seq = self.range.first;
        for gap in &self.gaps {
            if !gap.range.contains(seq) {
                break;
            }
            seq = gap.range.last.next();
        }
        self.range.contains(seq).then_some(seq)
    }
}

#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod tests;
