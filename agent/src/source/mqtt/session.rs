//! One connection from CONNECT to its end: messages go into the inlet, acks come back out when they are durable.
//!
//! ```text
//!             ┌───────── poll: ready ─────────┐
//!             ▼                               │        batch full: hand over
//!   poll the event loop ── pending ──► hand over, send what is due, wait
//!             ▲                               │
//!             └── packet, or durable moved ───┘        no room for long: read on only within bounds
//! ```
//!
//! One task does it all, and while it is connected it waits for nothing but the event loop: a poll is never abandoned
//! half-way, and acks are handed over without waiting. If the inlet has no room, reading goes on up to a bound, so that
//! pings are answered and the broker, whose window is full because no acks come, keeps the connection. Only who floods
//! us with QoS 0 meanwhile is held back by TCP.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::link::{CONNECT_TIMEOUT, Event, Filter, Link, Message, Session};
use super::reporter::{Reporter, Trust};
use super::subscribing::Subscribing;
use super::trouble::{Stage, Trouble};
use crate::clock::{self, Clock};
use crate::ingest::{Arrival, Closed, Flushed, Inlet};

/// A connection that has lasted this long was worth making: the pauses between attempts start small again.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Shorter waits for room are the ordinary rhythm of commits.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);
/// Then the broker has this long to close the connection. It does so when it has come to our DISCONNECT, and with it to
/// the last of our acks: a mosquitto that sees the next connection first drops those it has not read yet.
const DISCONNECT_WAIT: Duration = Duration::from_secs(1);
/// Messages that are read while the inlet has no room: more than any broker keeps in flight by default.
const UNPLACED_MESSAGES: u64 = 2_048;
/// Bytes that are read while the inlet has no room.
const UNPLACED_BYTES: usize = 1 << 20;

/// What a connection is about.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub(super) wanted: &'a [Filter],
    /// Subscribed once, configured no more.
    pub(super) obsolete: &'a [String],
    pub(super) keep_alive: Duration,
    /// Whether the log believes at once that all is well when the connection is made.
    pub(super) trust: Trust,
    /// At the end, what was taken may take this long to become durable.
    pub(super) drain_wait: Duration,
    pub(super) stop: &'a CancellationToken,
    pub(super) clock: Clock,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) ending: Ending,
    /// How long it was up; `None` if the broker never took us.
    pub(super) lasted: Option<Duration>,
    /// True if the broker's subscriptions are the configured ones now, and no others.
    pub(super) is_cleaned_up: bool,
}

/// Why it ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// We were asked to stop.
    Stopped,
    /// The ingest room has ended.
    RoomClosed,
    /// Something went wrong.
    Failed(Trouble),
}

/// Connects `link`, and serves it until it ends.
pub(super) async fn serve<L: Link>(
    link: &mut L,
    inlet: Inlet,
    task: &Task<'_>,
    reporter: &mut Reporter,
) -> Served {
    let mut connection = Connection::new(link.requests(), inlet, task, reporter);
    let ending = match connection.run(link).await {
        Ok(()) => Ending::Stopped,
        Err(End::RoomClosed) => Ending::RoomClosed,
        Err(End::Failed(trouble)) => Ending::Failed(connection.placed(trouble)),
    };
    if let Ending::Failed(_) = ending {
        connection.hand_over_the_rest().await;
    }
    connection.served(ending)
}

/// What ends a connection early.
enum End {
    RoomClosed,
    Failed(Trouble),
}

impl From<Closed> for End {
    fn from(Closed: Closed) -> Self {
        Self::RoomClosed
    }
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        Self::Failed(trouble)
    }
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more is taken; what was taken becomes durable and is acknowledged.
    Draining {
        until: Instant,
    },
    /// DISCONNECT is on its way, and the broker will close the connection.
    Leaving {
        until: Instant,
    },
    Left,
}

/// The state of one connection.
struct Connection<'a, R> {
    requests: R,
    inlet: Inlet,
    acks: Acks,
    subscribing: Subscribing,
    phase: Phase,
    /// Messages that were handed over, of those pushed.
    placed: u64,
    /// Bytes pushed since the last hand-over.
    unplaced_bytes: usize,
    no_room_since: Option<Instant>,
    connected_at: Option<Instant>,
    is_subscribed: bool,
    is_settled: bool,
    last_event: Instant,
    ticks: Interval,
    task: &'a Task<'a>,
    reporter: &'a mut Reporter,
}

impl<'a, R: super::link::Requests> Connection<'a, R> {
    fn new(requests: R, inlet: Inlet, task: &'a Task<'a>, reporter: &'a mut Reporter) -> Self {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            requests,
            acks: Acks::new(inlet.durable()),
            inlet,
            subscribing: Subscribing::default(),
            phase: Phase::Open,
            placed: 0,
            unplaced_bytes: 0,
            no_room_since: None,
            connected_at: None,
            is_subscribed: false,
            is_settled: false,
            last_event: task.clock.monotonic(),
            ticks,
            task,
            reporter,
        }
    }

    async fn run<L: Link<Requests = R>>(&mut self, link: &mut L) -> Result<(), End> {
        loop {
            let event = {
                let mut poll = pin!(link.poll());
                match now(poll.as_mut()).await {
                    Poll::Ready(event) => Some(event),
                    Poll::Pending => self.wait(poll, L::QUEUED_ACKS).await?,
                }
            };
            match event {
                Some(Ok(event)) => self.handle(event)?,
                Some(Err(_)) if self.is_leaving() => return Ok(()),
                Some(Err(trouble)) => return Err(End::Failed(trouble)),
                None => return Ok(()),
            }
            self.make_room().await?;
            link.send_acks(&mut self.acks).await?;
            self.leave_when_drained();
        }
    }

    /// The event loop has nothing at the moment: hands over what was gathered, offers acks, and waits. `None`: there is
    /// nothing left to wait for.
    async fn wait<F>(&mut self, mut poll: Pin<&mut F>, queued_acks: usize) -> Result<Option<F::Output>, End>
    where
        F: Future<Output = Result<Event, Trouble>>,
    {
        loop {
            self.hand_over()?;
            self.acks.refresh();
            self.acks.queue_due(&self.requests, queued_acks);
            self.leave_when_drained();
            let until = match self.phase {
                Phase::Open => None,
                Phase::Draining { until } | Phase::Leaving { until } => Some(until),
                Phase::Left => return Ok(None),
            };
            let is_open = until.is_none();
            tokio::select! {
                biased;
                () = self.task.stop.cancelled(), if is_open => self.drain(),
                event = &mut poll => return Ok(Some(event)),
                placed = self.inlet.flushed(), if self.no_room_since.is_some() => {
                    placed?;
                    self.found_room();
                }
                () = self.acks.moved() => {}
                _ = self.ticks.tick() => self.tick()?,
                () = clock::until(until), if !is_open => self.leave(),
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), End> {
        // A reading of the clock for each message would be dear; the ticks see to it that this is fresh enough.
        match event {
            Event::Message(message) => return self.take(message),
            Event::AckSent => self.acks.one_left(),
            Event::Connected(session) => self.connected(session),
            Event::Subscribed(grants) => {
                self.subscribing.subscribed(&grants, self.now());
                self.go_on_subscribing();
            }
            Event::Unsubscribed => {
                self.subscribing.unsubscribed();
                self.go_on_subscribing();
            }
            Event::Other => {}
        }
        self.last_event = self.now();
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), End> {
        if self.phase != Phase::Open {
            // The broker keeps what we do not acknowledge.
            return Ok(());
        }
        let Message { topic, payload, delivery, replayed, ack } = message;
        let topic = topic.text();
        self.unplaced_bytes += topic.len() + payload.len();
        self.inlet.push(&Arrival { topic: &topic, payload, delivery, replayed });
        if let Some(ack) = ack {
            self.acks.expect(self.inlet.pushed(), ack).map_err(|_| Trouble::TooManyInFlight)?;
        }
        if self.inlet.is_batch_full() {
            self.last_event = self.now();
            self.hand_over()?;
            self.acks.refresh();
        }
        Ok(())
    }

    fn connected(&mut self, session: Session) {
        let now = self.now();
        self.connected_at = Some(now);
        let obsolete = match session {
            Session::Resumed => self.task.obsolete,
            Session::New => {
                self.inlet.session_lost();
                &[]
            }
        };
        self.subscribing = Subscribing::new(self.task.wanted, obsolete);
        self.go_on_subscribing();
    }

    fn go_on_subscribing(&mut self) {
        self.subscribing.go_on(&self.requests, self.now());
        if let Some(summary) = self.subscribing.summary() {
            self.is_subscribed = true;
            let trust = if self.is_settled { Trust::Now } else { self.task.trust };
            self.reporter.subscribed(&summary, trust);
        }
    }

    /// Gives what was gathered to the ingest room, if it has room.
    fn hand_over(&mut self) -> Result<(), Closed> {
        match self.inlet.flush()? {
            Flushed::All => self.found_room(),
            Flushed::NoRoom => {
                let now = self.now();
                self.no_room_since.get_or_insert(now);
            }
        }
        Ok(())
    }

    fn found_room(&mut self) {
        self.placed = self.inlet.pushed();
        self.unplaced_bytes = 0;
        if self.no_room_since.take().is_some() {
            self.reporter.unblocked();
        }
    }

    /// Waits for room while there is too much that has none; reads nothing meanwhile.
    async fn make_room(&mut self) -> Result<(), End> {
        while self.no_room_since.is_some() && self.is_overfull() && self.phase == Phase::Open {
            tokio::select! {
                biased;
                () = self.task.stop.cancelled() => return Ok(()),
                placed = self.inlet.flushed() => {
                    placed?;
                    self.found_room();
                }
                _ = self.ticks.tick() => self.say_when_blocked(),
            }
            // Nothing was read, so nothing is overdue.
            self.last_event = self.now();
        }
        Ok(())
    }

    /// What was read before the connection was lost is handed over as well: with QoS 0 it would never come again. Where
    /// there is no room there is no hurry to connect again either.
    async fn hand_over_the_rest(&mut self) {
        // A room that has ended is noticed at the next connection.
        while self.hand_over().is_ok() && self.no_room_since.is_some() {
            tokio::select! {
                biased;
                () = self.task.stop.cancelled() => return,
                _ = self.inlet.flushed() => {}
                _ = self.ticks.tick() => self.say_when_blocked(),
            }
        }
    }

    fn is_overfull(&self) -> bool {
        self.inlet.pushed() - self.placed >= UNPLACED_MESSAGES || self.unplaced_bytes >= UNPLACED_BYTES
    }

    fn tick(&mut self) -> Result<(), Trouble> {
        let now = self.now();
        self.say_when_blocked();
        let Some(connected_at) = self.connected_at else { return Ok(()) };
        if !self.is_settled && self.is_subscribed && now.duration_since(connected_at) >= SETTLED_AFTER {
            self.is_settled = true;
            self.reporter.settled();
        }
        if self.subscribing.is_overdue(now) {
            return Err(Trouble::NoSuback);
        }
        self.subscribing.ask_again_when_due(now);
        self.subscribing.go_on(&self.requests, now);
        // Each keep-alive brings a ping and its answer. rumqttc misses a broker that has stopped reading (MQTT 5).
        let patience = self.task.keep_alive + 2 * CONNECT_TIMEOUT;
        let is_silent = !self.task.keep_alive.is_zero() && now.duration_since(self.last_event) > patience;
        if is_silent { Err(Trouble::Silent) } else { Ok(()) }
    }

    fn say_when_blocked(&mut self) {
        let now = self.now();
        if self.no_room_since.is_some_and(|since| now.duration_since(since) >= BLOCKED_AFTER) {
            self.reporter.blocked();
        }
    }

    /// Takes nothing more; what was taken is still to become durable. A connection that is not made is given up.
    fn drain(&mut self) {
        self.phase = match self.connected_at {
            Some(_) => Phase::Draining { until: self.now() + self.task.drain_wait },
            None => Phase::Left,
        };
    }

    /// Says goodbye once all that was taken is durable and acknowledged.
    fn leave_when_drained(&mut self) {
        if !matches!(self.phase, Phase::Draining { .. }) {
            return;
        }
        let is_durable = self.acks.refresh() >= self.inlet.pushed();
        if is_durable && self.acks.due().is_none() && self.acks.queued() == 0 {
            self.leave();
        }
    }

    fn leave(&mut self) {
        self.phase = if self.is_leaving() || !self.requests.disconnect().is_taken() {
            Phase::Left
        } else {
            Phase::Leaving { until: self.now() + DISCONNECT_WAIT }
        };
    }

    fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// The same trouble, with what this connection knows of how far it had come.
    fn placed(&self, trouble: Trouble) -> Trouble {
        match trouble {
            Trouble::Closed(Stage::Settled) if !self.is_subscribed => Trouble::Closed(Stage::Subscribing),
            Trouble::Closed(Stage::Settled) if !self.is_settled => Trouble::Closed(Stage::Fresh),
            other => other,
        }
    }

    fn served(&self, ending: Ending) -> Served {
        let lasted = self.connected_at.map(|at| self.now().duration_since(at));
        Served { ending, lasted, is_cleaned_up: self.is_subscribed }
    }

    fn now(&self) -> Instant {
        self.task.clock.monotonic()
    }
}

/// Polls `future` once.
async fn now<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}
