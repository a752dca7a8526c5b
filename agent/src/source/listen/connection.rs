//! One connection, from its first byte to its last: the shell around [`Session`].
//!
//! Promised: nothing is read while there is no room for it (TCP then holds the client back, and its keep-alive does not
//! run); whatever was pushed is handed over before the client's place is free for its next connection.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::answer::Refusal;
use super::clients::{Clients, Entry, Return, SessionMemory};
use super::fault::Fault;
use super::greeting::{handshake, welcome};
use super::line::{Exchanged, Line, Reading};
use super::packet::{self, Connect, Frame, Parting, Version, Will};
use super::session::{Next, Session};
use super::users::Users;
use crate::clock::Clock;
use crate::ingest::{Arrival, Closed, Delivery, Flushed, Inlet, Intake, Peer, Replayed, SourceSpec};
use crate::source::Report;
use crate::source::limiter::Limiter;

/// A client that takes nothing of what it is sent for so long is cut off.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// A client that began a packet and sends nothing of the rest for so long is cut off, whatever its keep-alive.
const PACKET_PATIENCE: Duration = Duration::from_secs(30);
/// At the end of the agent, or of a connection that was taken over, this long is waited for room and for the disk. What is
/// not durable by then was not acknowledged: the client sends it again.
const DRAIN: Duration = Duration::from_secs(5);
/// The last words of a connection.
const FAREWELL: Duration = Duration::from_secs(1);
/// A will waits no longer for its client, whatever it says.
const MAX_WILL_DELAY: Duration = Duration::from_secs(24 * 3_600);
/// No more is read while so much waits to be written: the client does not read.
const MAX_OUTBOX_BYTES: usize = 64 << 10;
/// Packets above this are read only within [`LARGE_PACKETS_BYTES`], all connections together.
const LARGE_PACKET_BYTES: usize = 64 << 10;
/// What large packets may take in memory while they arrive, and until what they hold is handed over: two of the longest, or four
/// of a megabyte, as readings may take many times the memory of their text.
pub(super) const LARGE_PACKETS_BYTES: usize = 2 * packet::MAX_PACKET_BYTES;
/// Log lines about clients that were cut off or kept out: so many at once, then one a second. What strangers do must not fill the
/// log, nor use up what journald takes of it.
const LOGGED_AT_ONCE: u32 = 20;
/// "Never", as a pause that timers can express.
const NEVER: Duration = Duration::from_secs(24 * 3_600);

/// What the connections of one listener have in common.
pub(super) struct Shared {
    pub(super) source: Arc<SourceSpec>,
    pub(super) intake: Intake,
    pub(super) memory: Arc<dyn SessionMemory>,
    pub(super) users: Option<Users>,
    pub(super) clients: Arc<Clients>,
    /// Bytes of large packets on their way in.
    pub(super) large_packets: Arc<Semaphore>,
    /// Bytes of long CONNECTs on their way in.
    pub(super) long_connects: Arc<Semaphore>,
    /// Messages that came with the retain flag.
    pub(super) retained: Arc<AtomicU64>,
    /// What of the clients' faults is still logged.
    pub(super) log: Mutex<Limiter>,
    pub(super) report: watch::Sender<Report>,
    pub(super) stop: CancellationToken,
    pub(super) clock: Clock,
}

impl Shared {
    /// The log lines that clients may cause.
    pub(super) fn new_log() -> Mutex<Limiter> {
        Mutex::new(Limiter::new(LOGGED_AT_ONCE, Duration::from_secs(1)))
    }

    /// Whether one more fault of a client may be logged; says now and then that some are not.
    fn may_log(&self) -> bool {
        let now = self.clock.monotonic();
        let (is_allowed, left_out) = {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            (log.allows(now), log.take_suppressed_when_due(now))
        };
        if let Some(left_out) = left_out {
            warn!(source = %self.source.name, left_out, "clients are cut off or kept out more often than is logged");
        }
        is_allowed
    }

    fn count_clients(&self) {
        let connected = self.clients.connected();
        self.report.send_if_modified(|report| report.clients.replace(connected) != Some(connected));
    }
}

/// Serves one client until it, or the agent, ends.
pub(super) async fn serve(
    socket: TcpStream,
    from: SocketAddr,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) {
    // Acks are small and awaited: Nagle's algorithm would hold them back.
    socket.set_nodelay(true).ok();
    let wire = match tls {
        None => Either::Left(socket),
        Some(acceptor) => match handshake(&acceptor, socket, &shared).await {
            Ok(stream) => Either::Right(Box::new(stream)),
            Err(fault) => {
                if shared.may_log() {
                    info!(source = %shared.source.name, %from, "a TLS handshake failed: {fault}");
                }
                return;
            }
        },
    };
    let mut line = Line::new(wire, shared.clock);
    match welcome(&mut line, &shared).await {
        Ok((connect, entry, peer)) => {
            shared.count_clients();
            debug!(source = %shared.source.name, %from, client = %entry.id(), "a client connected");
            Connection::new(line, &connect, entry, peer, Arc::clone(&shared)).live(connect, from).await;
            shared.count_clients();
        }
        Err(fault) => {
            match fault {
                Fault::Refused(Refusal::Credentials | Refusal::Full) if shared.may_log() => {
                    warn!(source = %shared.source.name, %from, "a client was kept out: {fault}");
                }
                _ => debug!(source = %shared.source.name, %from, "a client was kept out: {fault}"),
            }
            line.close(FAREWELL).await;
        }
    }
}

/// A client that was let in.
struct Connection {
    line: Line,
    version: Version,
    session: Session,
    inlet: Inlet,
    durable: watch::Receiver<u64>,
    entry: Entry,
    shared: Arc<Shared>,
    /// How long the client may be silent.
    patience: Option<Duration>,
    /// When it last sent something, or was last held back by us.
    heard: Instant,
    /// Held while a large packet comes in.
    large: Option<OwnedSemaphorePermit>,
    /// Held while what it was decoded to waits for room in the inlet: that may take many times its length.
    large_decoded: Option<OwnedSemaphorePermit>,
}

/// What the connection waits for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// More bytes.
    Read,
    /// Room in the inlet.
    AwaitRoom,
    /// Acknowledgements to become due, or to be taken.
    AwaitAcks,
    /// Room for a large packet of that many bytes.
    AwaitLarge(u32),
    /// Nothing: the client has taken its leave.
    Leave(Parting),
}

/// What a wait came back with.
enum Event {
    Stop,
    Cut,
    Durable,
    Room(Result<(), Closed>),
    Large(Option<OwnedSemaphorePermit>),
    Exchanged(std::io::Result<Exchanged>),
    Check,
}

/// What a packet of `bytes` takes of [`LARGE_PACKETS_BYTES`].
fn large_price(bytes: usize) -> u32 {
    let price = bytes.saturating_mul(8).min(LARGE_PACKETS_BYTES / 2).max(bytes);
    u32::try_from(price).unwrap_or(u32::MAX)
}

/// How a connection ended.
enum Ending {
    Left(Parting),
    Cut(Fault),
}

impl Connection {
    fn new(line: Line, connect: &Connect, entry: Entry, peer: Peer, shared: Arc<Shared>) -> Self {
        let inlet = shared.intake.open(&shared.source, peer);
        let keep_alive = Some(connect.keep_alive).filter(|keep_alive| !keep_alive.is_zero());
        Self {
            line,
            version: connect.version,
            session: Session::new(connect.version),
            durable: inlet.durable(),
            inlet,
            entry,
            patience: keep_alive.map(|keep_alive| keep_alive * 3 / 2),
            heard: shared.clock.monotonic(),
            large: None,
            large_decoded: None,
            shared,
        }
    }

    async fn live(mut self, connect: Box<Connect>, from: SocketAddr) {
        let ending = self.run().await;
        let source = Arc::clone(&self.shared.source.name);
        match &ending {
            Ending::Left(_) => debug!(%source, %from, client = %connect.client_id, "a client left"),
            Ending::Cut(fault @ (Fault::Gone | Fault::Broken(_) | Fault::Stopping | Fault::TakenOver)) => {
                debug!(%source, %from, client = %connect.client_id, "a client went: {fault}");
            }
            Ending::Cut(fault) if self.shared.may_log() => {
                info!(%source, %from, client = %connect.client_id, "a client was cut off: {fault}");
            }
            Ending::Cut(fault) => {
                debug!(%source, %from, client = %connect.client_id, "a client was cut off: {fault}")
            }
        }
        match ending {
            Ending::Cut(Fault::Stopping) => self.drain().await,
            Ending::Left(Parting::Quietly) => self.part(None, None).await,
            Ending::Left(Parting::WithWill) => self.part(Testament::of(&connect), None).await,
            Ending::Cut(fault) => self.part(Testament::of(&connect), Some(fault)).await,
        }
    }

    /// Goes on until the connection ends.
    async fn run(&mut self) -> Ending {
        let (stop, cut) = (self.shared.stop.clone(), self.entry.cut());
        let mut stop = pin!(stop.cancelled());
        let mut cut = pin!(cut.cancelled());
        let mut timer = pin!(sleep_until(self.heard));
        loop {
            let step = match self.digest() {
                Ok(Step::Leave(parting)) => return Ending::Left(parting),
                Ok(step) => step,
                Err(fault) => return Ending::Cut(fault),
            };
            let due = self.next_check(step);
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            let reading = if step == Step::Read { Reading::Wanted } else { Reading::HeldBack };
            let large_bytes = if let Step::AwaitLarge(bytes) = step { bytes } else { 0 };
            let large_packets = Arc::clone(&self.shared.large_packets);
            let event = select! {
                biased;
                () = &mut stop => Event::Stop,
                () = &mut cut => Event::Cut,
                Ok(()) = self.durable.changed(), if self.session.owes() => Event::Durable,
                room = self.inlet.flushed(), if step == Step::AwaitRoom => Event::Room(room),
                permit = large_packets.acquire_many_owned(large_bytes), if large_bytes > 0 => {
                    Event::Large(permit.ok())
                }
                exchanged = self.line.exchange(reading) => Event::Exchanged(exchanged),
                () = &mut timer => Event::Check,
            };
            if let Err(fault) = self.act(event, step) {
                return Ending::Cut(fault);
            }
        }
    }

    /// Takes every packet that is there, as far as there is room, and hands over what they hold.
    fn digest(&mut self) -> Result<Step, Fault> {
        let step = self.take_packets()?;
        let retained = self.session.take_retained();
        if retained > 0 {
            self.shared.retained.fetch_add(retained, Ordering::Relaxed);
        }
        match step {
            Step::Read | Step::AwaitAcks | Step::AwaitLarge(_) if self.flush()? == Flushed::NoRoom => {
                Ok(Step::AwaitRoom)
            }
            step => Ok(step),
        }
    }

    fn take_packets(&mut self) -> Result<Step, Fault> {
        if self.flush()? == Flushed::NoRoom {
            return Ok(Step::AwaitRoom);
        }
        loop {
            if self.session.holds_back() || self.line.outbox.len() >= MAX_OUTBOX_BYTES {
                return Ok(Step::AwaitAcks);
            }
            let length = match packet::frame(&self.line.inbox)? {
                Frame::Complete(length) => length,
                Frame::Partial(bytes) if bytes > LARGE_PACKET_BYTES && self.large.is_none() => {
                    return Ok(Step::AwaitLarge(large_price(bytes)));
                }
                Frame::Partial(_) => return Ok(Step::Read),
            };
            let packet = packet::read(self.version, &mut self.line.inbox, length)?;
            self.large_decoded = self.large.take();
            match self.session.take(packet, &mut self.inlet, &mut self.line.outbox)? {
                Next::GoOn => {}
                Next::Leave(parting) => return Ok(Step::Leave(parting)),
            }
            if self.inlet.is_batch_full() && self.flush()? == Flushed::NoRoom {
                return Ok(Step::AwaitRoom);
            }
        }
    }

    fn act(&mut self, event: Event, step: Step) -> Result<(), Fault> {
        if step != Step::Read {
            // We held it back: its silence is our doing.
            self.heard = self.shared.clock.monotonic();
        }
        match event {
            Event::Stop => return Err(Fault::Stopping),
            Event::Cut => return Err(Fault::TakenOver),
            Event::Durable => self.settle(),
            Event::Room(room) => {
                room.map_err(|Closed| Fault::Stopping)?;
                self.large_decoded = None;
            }
            Event::Large(permit) => self.large = permit,
            Event::Exchanged(exchanged) => match exchanged.map_err(Fault::Broken)? {
                Exchanged::Read => self.heard = self.shared.clock.monotonic(),
                Exchanged::Closed => return Err(Fault::Gone),
                Exchanged::Wrote => {}
            },
            Event::Check => self.check(step)?,
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<Flushed, Fault> {
        let flushed = self.inlet.flush().map_err(|Closed| Fault::Stopping)?;
        if flushed == Flushed::All {
            self.large_decoded = None;
        }
        Ok(flushed)
    }

    fn settle(&mut self) {
        let durable = *self.durable.borrow_and_update();
        self.session.settle(durable, &mut self.line.outbox);
    }

    /// The first moment at which the client may have been silent, or deaf, for too long.
    fn next_check(&self, step: Step) -> Instant {
        let mut due = self.heard + NEVER;
        if step == Step::Read {
            if let Some(patience) = self.patience {
                due = due.min(self.heard + patience);
            }
            if !self.line.inbox.is_empty() {
                due = due.min(self.heard + PACKET_PATIENCE);
            }
        }
        if !self.line.outbox.is_empty() {
            let since = self.line.stalled_since().unwrap_or_else(|| self.shared.clock.monotonic());
            due = due.min(since + WRITE_PATIENCE);
        }
        due
    }

    fn check(&self, step: Step) -> Result<(), Fault> {
        let now = self.shared.clock.monotonic();
        let for_long = |since: Instant, patience: Duration| now >= since + patience;
        if self.line.stalled_since().is_some_and(|since| for_long(since, WRITE_PATIENCE)) {
            return Err(Fault::NotReading);
        }
        if step != Step::Read {
            return Ok(());
        }
        if self.patience.is_some_and(|patience| for_long(self.heard, patience)) {
            return Err(Fault::Silent);
        }
        if !self.line.inbox.is_empty() && for_long(self.heard, PACKET_PATIENCE) {
            return Err(Fault::Hesitant);
        }
        Ok(())
    }

    /// The agent stops: waits a little for what was pushed to become durable, acknowledges it, and says goodbye.
    async fn drain(mut self) {
        let drained = async {
            if self.inlet.flushed().await.is_err() {
                return;
            }
            self.settle();
            while self.session.owes() || !self.line.outbox.is_empty() {
                select! {
                    changed = self.durable.changed(), if self.session.owes() => match changed {
                        Ok(()) => self.settle(),
                        Err(_) => return,
                    },
                    exchanged = self.line.exchange(Reading::HeldBack) => {
                        if exchanged.is_err() {
                            return;
                        }
                    }
                }
            }
        };
        timeout(DRAIN, drained).await.ok();
        self.version.write_disconnect(&Fault::Stopping, &mut self.line.outbox);
        drop(self.entry);
        self.line.close(FAREWELL).await;
    }

    /// The client has gone, or is to go: what it sent is handed over, with its will, and its place is free.
    async fn part(mut self, testament: Option<Testament>, fault: Option<Fault>) {
        if let Some(fault) = &fault {
            self.version.write_disconnect(fault, &mut self.line.outbox);
        }
        let taken_over = matches!(fault, Some(Fault::TakenOver));
        let Self { mut inlet, line, entry, shared, .. } = self;
        let due_later = match testament {
            Some(testament) if testament.delay.is_zero() => {
                bequeath(&mut inlet, testament.will, &shared);
                None
            }
            later => later,
        };
        hand_over(&mut inlet, &entry, &shared.stop).await;
        match due_later {
            None => {
                drop(entry);
                line.close(FAREWELL).await;
            }
            Some(testament) => {
                if taken_over || !entry.linger() {
                    // Taken over: `returned` answers at once. Too many wait: it is due now, early rather than never.
                    let void = taken_over && entry.returned().await == Return::Resumed;
                    if !void {
                        bequeath(&mut inlet, testament.will, &shared);
                    }
                } else {
                    shared.count_clients();
                    line.close(FAREWELL).await;
                    linger(testament, &mut inlet, &entry, &shared).await;
                    hand_over(&mut inlet, &entry, &shared.stop).await;
                    return;
                }
                hand_over(&mut inlet, &entry, &shared.stop).await;
                drop(entry);
                line.close(FAREWELL).await;
            }
        }
    }
}

/// A will, and how long it waits for its client to come back.
struct Testament {
    will: Will,
    delay: Duration,
}

impl Testament {
    /// MQTT 5.0, section 3.1.3.2.2: due after the delay, or when the session ends, whichever comes first.
    fn of(connect: &Connect) -> Option<Self> {
        let will = connect.will.clone()?;
        let delay = will.delay.min(connect.session_expiry).min(MAX_WILL_DELAY);
        Some(Self { will, delay })
    }
}

/// Waits until the will is due or void. An agent that stops publishes it at once: its client did go without a word.
async fn linger(testament: Testament, inlet: &mut Inlet, entry: &Entry, shared: &Shared) {
    select! {
        () = sleep(testament.delay) => {}
        () = shared.stop.cancelled() => {}
        returned = entry.returned() => {
            if returned == Return::Resumed {
                return;
            }
        }
    }
    bequeath(inlet, testament.will, shared);
}

/// Publishes a will: one more message. Nobody waits for its acknowledgement.
fn bequeath(inlet: &mut Inlet, will: Will, shared: &Shared) {
    let Will { topic, payload, retain, delay: _ } = will;
    if retain {
        shared.retained.fetch_add(1, Ordering::Relaxed);
    }
    inlet.push(&Arrival { topic: &topic, payload, delivery: Delivery::AtMostOnce, replayed: Replayed::No });
}

/// Hands over what was pushed. Waits for room as long as nobody waits for us, then a little.
async fn hand_over(inlet: &mut Inlet, entry: &Entry, stop: &CancellationToken) {
    let cut = entry.cut();
    let deadline = async {
        select! {
            () = cut.cancelled() => {}
            () = stop.cancelled() => {}
        }
        sleep(DRAIN).await;
    };
    select! {
        biased;
        // An error means that the agent has ended: nothing can be handed over, and nothing of it was acknowledged.
        _ = inlet.flushed() => {}
        () = deadline => {}
    }
}
