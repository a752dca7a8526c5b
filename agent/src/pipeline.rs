//! Builds the rooms, connects, starts and drains them: the only file that knows them all.
//!
//! ```text
//!   sources ──Inlet──► ingest ──group──► store ◄──update── windows
//!                                          │
//!                                          ├──books, records──► sinks ──► the cloud
//!                                          └──books──► status
//! ```
//!
//! Started from the sink's end to the source's, stopped the other way round: sources stop taking, what they took is stored and
//! acknowledged, the windows read on to the end and save their state, sinks send what they can, the store commits the rest.

mod adapters;
pub mod letters;
mod outside;
mod timekeeping;

pub use outside::{MakeTransport, Outside, RunSource};

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::adapters::{FilterMemory, KnownPeers, StoreLog};
use self::letters::{Letters, StoredLetters};
use crate::blocking::blocking;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::Config;
use crate::forward::{self, Forward};
use crate::ingest::{Ingest, Intake, SourceSpec};
use crate::pulse::{self, Vitals};
use crate::source::{self, Settings as SourceSettings};
use crate::status::{self, Admin, Inputs, SinkInput, SourceInput, SourceKind, WindowReport, WindowsReport};
use crate::store::work::SinkSpec;
use crate::store::{self, Medium, Opened, Published, Store, WindowsPresence};
use crate::{few, window};

/// How long sinks may go on sending what is pending when the agent stops. What is not sent stays in the store.
const DRAIN: Duration = Duration::from_secs(5);
/// How long everything may take to stop; systemd waits 90 s by default before it kills.
const STOP: Duration = Duration::from_secs(25);
/// An agent that stops waits so long for a disk that does not take writes; cards stall for about as long.
const DISK: Duration = Duration::from_secs(4);

/// Why the agent cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin listener or socket cannot be had.
    #[error(transparent)]
    Admin(#[from] status::Error),
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] store::Error),
    /// A sink cannot be set up.
    #[error("cannot set up the sink {sink}")]
    Sink {
        /// Its name.
        sink: String,
        /// Why.
        source: forward::SetupError,
    },
    /// The store ended while it was needed.
    #[error(transparent)]
    StoreClosed(#[from] store::Closed),
    /// A room ended that never should: a fault of ours. The supervisor starts us again.
    #[error("the room \"{room}\" ended by itself; this is a fault of the program")]
    RoomEnded {
        /// Which.
        room: &'static str,
    },
    /// Stopping took too long. Nothing that was acknowledged is lost.
    #[error("stopping took longer than {STOP:?}; what was not acknowledged will be sent again")]
    Stuck,
    /// The disk takes no writes, so what is under way cannot be stored. Nothing that was acknowledged is lost.
    #[error("stopped while the store cannot write; what was not acknowledged will be sent again")]
    DiskFails,
}

/// The kinds of rooms, in the order in which they are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Source,
    Clock,
    Ingest,
    Windows,
    Sink,
    Writer,
    Admin,
}

impl Room {
    /// All of them, in that order.
    const ALL: [Self; 7] =
        [Self::Source, Self::Clock, Self::Ingest, Self::Windows, Self::Sink, Self::Writer, Self::Admin];

    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Clock => "clock",
            Self::Ingest => "ingest",
            Self::Windows => "windows",
            Self::Sink => "sink",
            Self::Writer => "store",
            Self::Admin => "status",
        }
    }
}

/// The running agent.
pub struct Running {
    rooms: Rooms,
    inputs: Inputs,
    admin: Option<SocketAddr>,
    /// Lets go of the store when it is closed.
    letters: StoredLetters,
    /// Ends the writer when it goes.
    store: Option<Store>,
    /// Ends the ingest room when it goes, after the sources.
    intake: Option<Intake>,
}

/// Starts the agent. Returns when the store is open and every room runs; sources connect on their own time.
///
/// # Errors
/// If something that the configuration asks for cannot be had.
pub async fn start(config: Config, clock: Clock) -> Result<Running, Error> {
    start_in(config, Outside::of_this_machine(clock)).await
}

/// As [`start`], in the world that a simulation provides.
///
/// # Errors
/// As [`start`].
pub async fn start_in(config: Config, outside: Outside) -> Result<Running, Error> {
    let mut rooms = Rooms::default();
    let started = start_rooms(config, outside, &mut rooms).await;
    if started.is_err() {
        // Who tries another configuration at once must find the store and the ports free.
        rooms.end().await;
    }
    started
}

async fn start_rooms(config: Config, outside: Outside, rooms: &mut Rooms) -> Result<Running, Error> {
    let Outside { clock, machine, medium, transport, source } = outside;
    let clock = clock.trusting(config.clock);
    let published = Published::default();
    let (source_inputs, source_reports) = source_inputs(&config);
    let (sink_inputs, sink_reports) = sink_inputs(&config);
    let (windows_report, windows_seen) = watch::channel(WindowsReport::default());
    let (heartbeat, heartbeat_seen) = watch::channel(clock.monotonic());
    let (vitals, vitals_seen) = watch::channel(Vitals::new());
    let inputs = Inputs {
        agent: config.agent_id.clone(),
        started: clock.monotonic(),
        clock,
        books: published.books.subscribe(),
        store: published.report.subscribe(),
        sources: watch::channel(source_inputs).1,
        sinks: watch::channel(sink_inputs).1,
        windows: windows_seen,
        heartbeat: heartbeat_seen,
        rooms: vitals_seen,
    };

    // The default socket lies in the data directory, which may not be there at the first start.
    store::make_dir(&config.store.data_dir)?;
    let admin = Admin::bind(&config.admin).await?;
    let admin_address = admin.address();
    let letters = StoredLetters::default();
    rooms.spawn_asked(Room::Admin, "status".to_owned(), {
        let (inputs, letters, stop) = (inputs.clone(), letters.clone(), rooms.stop_admin.clone());
        async move {
            if let Err(error) = pulse::waiting(admin.serve(inputs, letters, stop)).await {
                error!(error = %chain(&error), "status cannot be served any more");
            }
        }
    });
    let (stop_beating, stop_asking) = (rooms.stop_admin.clone(), rooms.stop_admin.clone());
    rooms.spawn(Room::Admin, beat(heartbeat, clock, stop_beating));
    rooms.spawn(Room::Admin, ask(rooms.asked.clone(), vitals, clock, stop_asking));

    let Opened { store, writer, recent } = open_store(&config, machine, medium, clock, published).await?;
    if let Some(newest) = store.newest_received() {
        clock.resume(newest);
    }
    letters.open(Letters::new(&store, &config));
    rooms.spawn_asked(Room::Writer, "store".to_owned(), writer.run());
    store.configure_sinks(config.sinks.iter().map(spec).collect()).await?;

    rooms.spawn(Room::Clock, timekeeping::keep(clock, store.clone(), rooms.stop_sources.clone()));
    for (settings, report) in config.sinks.iter().zip(sink_reports) {
        let forward = match &transport {
            Some(make) => Forward::through(make(settings), settings.clone(), store.clone(), report, clock),
            None => Forward::new(settings.clone(), store.clone(), report, clock)
                .map_err(|source| Error::Sink { sink: settings.name.clone(), source })?,
        };
        let sink = forward.run(rooms.drain_sinks.clone(), rooms.abort_sinks.clone());
        rooms.spawn_asked(Room::Sink, format!("sink {}", settings.name), sink);
    }
    if !config.windows.is_empty() {
        let connected = connected(&inputs, rooms);
        let (windows, log, stop) =
            (config.windows.clone(), StoreLog::new(&store), rooms.stop_windows.clone());
        let report = windows_reports(windows_report, rooms);
        let mut begun = report.subscribe();
        rooms.spawn_asked(Room::Windows, "windows".to_owned(), async move {
            if let Err(error) = window::run(&windows, &log, connected, report, clock, stop).await {
                error!(error = %chain(&error), "windows cannot go on");
            }
        });
        // Windows begin at the head of the log. Were readings taken before that is durable, a crash would leave them out. An error
        // means that the room has ended, which is told elsewhere.
        begun.changed().await.ok();
    }
    let known = Arc::new(KnownPeers::new(recent.peers()));
    let (intake, ingest) = Ingest::new(store.clone(), recent, config.store.commit_interval, clock);
    rooms.spawn_asked(Room::Ingest, "ingest".to_owned(), ingest.run());
    for (settings, report) in config.sources.iter().zip(source_reports) {
        start_source(settings, &config, &intake, &store, &known, report, clock, source.as_ref(), rooms);
    }
    info!(agent = %config.agent_id, epoch = %store.books().borrow().epoch, "agent started");
    Ok(Running {
        rooms: std::mem::take(rooms),
        inputs,
        admin: admin_address,
        letters,
        store: Some(store),
        intake: Some(intake),
    })
}

impl Running {
    /// What the rooms publish.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The store, for tests that look into it.
    #[cfg(test)]
    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().expect("it runs")
    }

    /// Where the page is, if it is served over TCP.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Where the `mqtt-listen` source of that name listens, as soon as it does; `None` if there is no such source.
    pub async fn listen_address(&self, source: &str) -> Option<SocketAddr> {
        let mut report = self.inputs.sources.borrow().get(source)?.report.clone();
        let report = report.wait_for(|report| report.address.is_some()).await.ok()?;
        report.address
    }

    /// Waits until a room ends that should not. Cancel-safe.
    pub async fn failed(&mut self) -> Error {
        let room = self.rooms.next_ended().await;
        Error::RoomEnded { room: room.map_or("unknown", Room::name) }
    }

    /// Stops and drains everything, in the order of the flow.
    ///
    /// # Errors
    /// If it takes too long or the disk does not take what is under way; nothing that was acknowledged is lost.
    pub async fn stop(self) -> Result<(), Error> {
        self.stop_within(DRAIN).await
    }

    /// Ends at once, as a power cut would end it: nothing is drained, nothing more is written.
    pub async fn kill(mut self) {
        self.rooms.set.shutdown().await;
    }

    /// The same, to be started again at once: sinks need not send what they will send then. A batch that is under way is
    /// sent again, and is the same.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_to_restart(self) -> Result<(), Error> {
        self.rooms.abort_sinks.cancel();
        self.stop_within(STOP).await
    }

    async fn stop_within(mut self, sinks: Duration) -> Result<(), Error> {
        let report = self.inputs.store.clone();
        tokio::select! {
            biased;
            drained = timeout(STOP, self.drain(sinks)) => drained.map_err(|_| Error::Stuck),
            () = disk_fails(report) => Err(Error::DiskFails),
        }
    }

    async fn drain(&mut self, sinks: Duration) {
        self.letters.close();
        if let Some(store) = &self.store {
            store.hurry();
        }
        for room in Room::ALL {
            match room {
                Room::Ingest => self.intake = None,
                Room::Writer => self.store = None,
                Room::Sink => {
                    if timeout(sinks, self.rooms.ended(Room::Sink)).await.is_err() {
                        warn!("sinks do not take everything in time; the rest stays in the store");
                        self.rooms.abort_sinks.cancel();
                    }
                }
                Room::Source | Room::Clock | Room::Windows | Room::Admin => {}
            }
            self.rooms.ended(room).await;
        }
        info!("agent stopped");
    }
}

/// The rooms, and what ends them.
#[derive(Default)]
struct Rooms {
    set: JoinSet<()>,
    /// Which task is which room.
    alive: HashMap<Id, Room>,
    /// Those that are asked for signs of life.
    asked: pulse::Rooms,
    stop_sources: CancellationToken,
    stop_windows: CancellationToken,
    drain_sinks: CancellationToken,
    abort_sinks: CancellationToken,
    stop_admin: CancellationToken,
}

impl Rooms {
    /// A room that is asked for signs of life under this name.
    fn spawn_asked(&mut self, room: Room, name: String, task: impl Future<Output = ()> + Send + 'static) {
        let limit = if room == Room::Writer { pulse::LIMIT_ON_DISK } else { pulse::LIMIT };
        // Boxed here and in `spawn`: what the runtime brings for each type of task takes some 4 KiB of the binary.
        let task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
        self.spawn(room, self.asked.add(name, limit).carried_by(task));
    }

    fn spawn(&mut self, room: Room, task: impl Future<Output = ()> + Send + 'static) {
        let task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
        let task = self.set.spawn(task);
        self.alive.insert(task.id(), room);
    }

    /// Tells the rooms of that kind to end. Ingest and the writer do when nobody has anything more for them.
    fn stop(&self, room: Room) {
        match room {
            Room::Source | Room::Clock => self.stop_sources.cancel(),
            Room::Windows => self.stop_windows.cancel(),
            Room::Sink => self.drain_sinks.cancel(),
            Room::Admin => self.stop_admin.cancel(),
            Room::Ingest | Room::Writer => {}
        }
    }

    /// Ends the rooms of that kind, and waits for them. Cancel-safe.
    async fn ended(&mut self, room: Room) {
        self.stop(room);
        while self.alive.values().any(|alive| *alive == room) {
            self.next_ended().await;
        }
    }

    /// The room that ends next. Cancel-safe.
    async fn next_ended(&mut self) -> Option<Room> {
        let id = match self.set.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => {
                error!(%error, "a room panicked");
                error.id()
            }
        };
        self.alive.remove(&id)
    }

    /// Ends those that run, when not all could be started. All at once: any of them may hold the store.
    async fn end(mut self) {
        self.abort_sinks.cancel();
        Room::ALL.iter().for_each(|room| self.stop(*room));
        let ended = async { while self.next_ended().await.is_some() {} };
        if timeout(STOP, ended).await.is_err() {
            warn!("not everything that had been started ended in time");
        }
    }
}

async fn open_store(
    config: &Config,
    machine: Option<String>,
    medium: Option<Medium>,
    clock: Clock,
    published: Published,
) -> Result<Opened, Error> {
    let (settings, agent) = (config.store.clone(), config.agent_id.clone());
    let windows = if config.windows.is_empty() { WindowsPresence::None } else { WindowsPresence::Configured };
    let opening = blocking(move || {
        let machine = machine.unwrap_or_else(machine_id);
        match medium {
            Some(medium) => Store::open_on(medium, settings, (&agent, &machine), windows, clock, published),
            None => Store::open(settings, &agent, &machine, windows, clock, published),
        }
    });
    Ok(opening.await?)
}

/// What tells one machine from another: a cloned card has another id.
fn machine_id() -> String {
    std::fs::read_to_string("/etc/machine-id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

fn spec(settings: &forward::Settings) -> SinkSpec {
    SinkSpec {
        name: settings.name.clone(),
        streams: settings.streams.clone(),
        batch: settings.batch,
        required: settings.required,
    }
}

#[expect(clippy::too_many_arguments, reason = "a source needs something of every room")]
fn start_source(
    settings: &SourceSettings,
    config: &Config,
    intake: &Intake,
    store: &Store,
    known: &Arc<KnownPeers>,
    report: watch::Sender<source::Report>,
    clock: Clock,
    simulated: Option<&RunSource>,
    rooms: &mut Rooms,
) {
    let spec = Arc::new(SourceSpec {
        name: settings.name().into(),
        subscriptions: settings.subscriptions().into(),
        max_payload_bytes: settings.max_payload_bytes(),
        in_flight: settings.in_flight(),
        kept_payload_bytes: config.store.dead_letters.max_payload_bytes,
    });
    let (intake, stop) = (intake.clone(), rooms.stop_sources.clone());
    let house = source::Rooms { source: spec, intake, report, stop, clock };
    if let Some(run) = simulated {
        rooms.spawn(Room::Source, run(settings, house));
        return;
    }
    let source: Pin<Box<dyn Future<Output = ()> + Send>> = match settings.clone() {
        SourceSettings::Mqtt(settings) => {
            let memory = FilterMemory::new(store, &settings.name);
            Box::pin(source::mqtt::run(settings, memory, house))
        }
        SourceSettings::Listen(settings) => {
            let memory = Arc::clone(known) as Arc<dyn source::listen::SessionMemory>;
            Box::pin(source::listen::run(settings, memory, house))
        }
        SourceSettings::Serial(settings) => {
            let books = Arc::clone(&store.books().borrow());
            Box::pin(async move { source::serial::run(settings, &books, house).await })
        }
        SourceSettings::I2c(settings) => Box::pin(source::i2c::run(settings, house)),
        SourceSettings::Modbus(settings) => Box::pin(source::modbus::run(settings, house)),
    };
    rooms.spawn_asked(Room::Source, format!("source {}", settings.name()), pulse::waiting(source));
}

type Reports<T> = Vec<watch::Sender<T>>;

fn source_inputs(config: &Config) -> (BTreeMap<String, SourceInput>, Reports<source::Report>) {
    let inputs = config.sources.iter().map(|settings| {
        let (report, seen) = watch::channel(source::Report::default());
        let (kind, endpoint) = match settings {
            SourceSettings::Mqtt(mqtt) => {
                let scheme = if mqtt.tls.is_some() { "mqtts" } else { "mqtt" };
                (SourceKind::Client, format!("{scheme}://{}:{}", mqtt.host, mqtt.port))
            }
            SourceSettings::Listen(listen) => (SourceKind::Listener, listen.listen.to_string()),
            SourceSettings::Serial(serial) => (SourceKind::Client, serial.port.at.to_string()),
            SourceSettings::I2c(i2c) => (SourceKind::Client, i2c.bus.display().to_string()),
            SourceSettings::Modbus(modbus) => (SourceKind::Client, modbus.port.at.to_string()),
        };
        ((settings.name().to_owned(), SourceInput { kind, endpoint, report: seen }), report)
    });
    inputs.unzip()
}

fn sink_inputs(config: &Config) -> (BTreeMap<String, SinkInput>, Reports<forward::Report>) {
    let inputs = config.sinks.iter().map(|settings| {
        let (report, seen) = watch::channel(forward::Report::default());
        ((settings.name.clone(), SinkInput { endpoint: settings.url.clone(), report: seen }), report)
    });
    inputs.unzip()
}

/// Which sources are connected, for the windows' idle timers.
fn connected(inputs: &Inputs, rooms: &mut Rooms) -> watch::Receiver<BTreeMap<String, bool>> {
    let mut reports: Vec<(String, watch::Receiver<source::Report>)> = {
        let sources = inputs.sources.borrow();
        sources.iter().map(|(name, input)| (name.clone(), input.report.clone())).collect()
    };
    let all = few::map(reports.iter().map(|(name, _)| (name.clone(), false)));
    let (connected, seen) = watch::channel(all);
    for (name, mut report) in reports.drain(..) {
        let (connected, stop) = (connected.clone(), rooms.stop_admin.clone());
        rooms.spawn(Room::Admin, async move {
            loop {
                let is_connected = report.borrow_and_update().state.is_connected();
                connected.send_if_modified(|all: &mut BTreeMap<String, bool>| {
                    all.insert(name.clone(), is_connected) != Some(is_connected)
                });
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    changed = report.changed() => if changed.is_err() { return stop.cancelled().await },
                }
            }
        });
    }
    seen
}

/// Passes on what the windows say, in the words of the status.
fn windows_reports(to: watch::Sender<WindowsReport>, rooms: &mut Rooms) -> watch::Sender<window::Report> {
    let (report, mut seen) = watch::channel(window::Report::default());
    let stop = rooms.stop_admin.clone();
    rooms.spawn(Room::Admin, async move {
        loop {
            let now = {
                let report = seen.borrow_and_update();
                let windows = report.windows.iter().map(|counts| {
                    let series = counts.series as u64;
                    let report = WindowReport { late: counts.late, series, refused: counts.refused };
                    (counts.window.to_string(), report)
                });
                WindowsReport {
                    windows: few::map(windows),
                    newest: report.newest.iter().rev().cloned().collect(),
                }
            };
            to.send_replace(now);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = seen.changed() => if changed.is_err() { return stop.cancelled().await },
            }
        }
    });
    report
}

/// Waits until the store could not write for [`DISK`] without a break.
async fn disk_fails(mut report: watch::Receiver<store::Report>) {
    loop {
        if report.wait_for(|report| report.state == store::report::State::Failing).await.is_err() {
            // The writer has ended, in good order.
            return std::future::pending().await;
        }
        let writes_again = report.wait_for(|report| report.state != store::report::State::Failing);
        if timeout(DISK, writes_again).await.is_err() {
            return;
        }
    }
}

/// Asks every room for a sign of life, and says when one hangs and when it goes on.
async fn ask(rooms: pulse::Rooms, vitals: watch::Sender<Vitals>, clock: Clock, stop: CancellationToken) {
    let mut asker = pulse::Asker::new(rooms, clock.monotonic());
    let mut ticks = tokio::time::interval(pulse::ASK_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (now, changes) = asker.ask(clock.monotonic());
        for change in changes {
            match change {
                pulse::Change::Hangs { room, silent } => {
                    error!(%room, ?silent, "a room hangs; the watchdog is not fed until it goes on");
                }
                pulse::Change::GoesOn { room } => info!(%room, "the room that hung goes on"),
            }
        }
        vitals.send_if_modified(|before| {
            let is_news = *before != now;
            *before = now;
            is_news
        });
    }
}

/// Proves, once a second, that the runtime gets anywhere.
async fn beat(heartbeat: watch::Sender<Instant>, clock: Clock, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(status::health::HEARTBEAT_EVERY);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => heartbeat.send_replace(clock.monotonic()),
        };
    }
}

#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod tests;
