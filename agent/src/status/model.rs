//! The status as one value: what `/api/v1/status` answers, and all else is drawn from.
//!
//! Names and shapes are public: keys are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Inputs, SinkInput, SourceInput, WindowReport};
use crate::clock::Trust;
use crate::reading::{AggregateValue, ClockState, WindowRecord};
use crate::store::ledger::{Books, DamageBooks, DeadLetterBooks, Ledger, Presence, SinkBooks, SourceCounts};
use crate::store::nodes::Missed;
use crate::store::report::{Histogram, Recovering, State as StoreState};
use crate::stream::{Epoch, Stream};
use crate::{few, forward, pulse, source, store};

/// The whole status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's id.
    pub agent: String,
    /// The store's birth; `None` until the store is open.
    pub epoch: Option<Epoch>,
    /// The program's version.
    pub version: String,
    /// The wall clock, RFC 3339.
    pub time: String,
    /// Whether it can be trusted.
    pub clock: ClockStatus,
    /// Since the process started.
    pub uptime_s: f64,
    /// The agent's state.
    pub state: AgentState,
    /// The same in a sentence or two, for people.
    pub summary: String,
    /// Whether the books of every sink balance.
    pub balanced: bool,
    /// The store.
    pub store: StoreStatus,
    /// The streams, by name.
    pub streams: BTreeMap<String, StreamStatus>,
    /// The sources, by name; also those no longer configured.
    pub sources: BTreeMap<String, SourceStatus>,
    /// The sinks, by name; also those no longer configured.
    pub sinks: BTreeMap<String, SinkStatus>,
    /// The configured windows, by name.
    pub windows: BTreeMap<String, WindowStatus>,
    /// The newest results of all windows, newest first.
    pub newest_windows: Vec<NewestWindow>,
    /// What the dead letters hold.
    pub dead_letters: DeadLettersStatus,
    /// The rooms of the program, by name, and whether they get anywhere.
    pub rooms: BTreeMap<String, RoomStatus>,
}

/// The wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Whether it is synchronised; if not, readings are marked.
    pub state: ClockState,
    /// Who says so: `kernel` or `trusted`.
    pub source: Trust,
    /// How far the times of receipt are ahead of it, because it went back.
    pub ahead_s: f64,
}

/// The agent's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// All is well.
    Online,
    /// A sink does not take batches; all is stored.
    Buffering,
    /// A limit of the store is reached; the oldest records are given up and declared.
    Shedding,
    /// Sources are held back.
    Blocked,
    /// The disk does not take writes; sources are held back.
    StorageFailing,
}

impl AgentState {
    /// All states, best first.
    pub const ALL: [Self; 5] =
        [Self::Online, Self::Buffering, Self::Shedding, Self::Blocked, Self::StorageFailing];

    /// Its name in the status and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Buffering => "buffering",
            Self::Shedding => "shedding",
            Self::Blocked => "blocked",
            Self::StorageFailing => "storage-failing",
        }
    }
}

/// The store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes on disk of what is held.
    pub bytes: u64,
    /// Their limit.
    pub max_bytes: u64,
    /// What the file takes on the disk: what is held, what is beside it, and free space to be used again.
    pub file_bytes: u64,
    /// Its state.
    pub state: StoreState,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Durable commits since start.
    pub commits: u64,
    /// How long they took.
    pub commit_seconds: Histogram,
    /// How far the opening has come; `None` once the store is open.
    pub recovering: Option<Recovering>,
    /// What a damaged disk cost; `None` if it never did.
    #[serde(default)]
    pub damage: Option<DamageStatus>,
}

/// What a damaged disk cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageStatus {
    /// How often a damaged store was moved aside.
    pub moved_aside: u64,
    /// When that was last, RFC 3339.
    pub last: Option<String>,
    /// Records read from damaged files and stored anew, by stream.
    pub saved: BTreeMap<String, u64>,
    /// Records that some sink still wanted and that are lost, by stream.
    pub lost: BTreeMap<String, u64>,
    /// Dead letters that are lost.
    pub lost_dead_letters: u64,
    /// Damaged files that are still being read.
    pub reading: Vec<String>,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Records ever appended.
    pub appended: u64,
    /// The number that the next record gets.
    pub next_seq: u64,
    /// The oldest record held; equal to `next_seq` if none is.
    pub oldest_seq: u64,
    /// Bytes held.
    pub held_bytes: u64,
    /// Their limit, if the stream has one of its own.
    pub max_bytes: Option<u64>,
}

/// One source. In messages: `received = stored + rejected + redelivered + skipped`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its state; `None` if it is no longer configured.
    pub state: Option<source::State>,
    /// Whether it is configured.
    pub present: bool,
    /// Where messages come from.
    pub endpoint: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Clients connected (listeners only).
    pub clients: Option<usize>,
    /// Messages whose outcome is durable.
    pub received: u64,
    /// Messages stored as readings.
    pub stored: u64,
    /// Messages that could not be decoded; kept among the dead letters.
    pub rejected: u64,
    /// Messages sent again that were settled before.
    pub redelivered: u64,
    /// Messages with nothing in them to store.
    pub skipped: u64,
    /// Of the received, those sent with QoS 0.
    pub unprotected: u64,
    /// Readings stored.
    pub readings: u64,
    /// Records of sensor nodes that will never come, as the nodes or the line say.
    #[serde(default)]
    pub missed: Missed,
    /// What went over the line since the start (serial only).
    #[serde(default)]
    pub line: Option<source::LineCounts>,
    /// Rounds left out since the start, because the one before took too long (polled sources only).
    #[serde(default)]
    pub rounds_skipped: Option<u64>,
    /// What is behind it, by name: nodes, devices on a bus, sensors.
    #[serde(default)]
    pub devices: BTreeMap<String, DeviceStatus>,
}

/// A device behind a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// What it says of itself.
    #[serde(default)]
    pub about: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// How often it failed since the start.
    pub failures: u64,
    /// The life of a node that is durable last.
    #[serde(default)]
    pub boot: Option<u32>,
    /// Its last record that is durable.
    #[serde(default)]
    pub seq: Option<u64>,
    /// Its records that will never come.
    #[serde(default)]
    pub missed: Missed,
}

/// One sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its state; `None` if it is no longer configured.
    pub state: Option<forward::State>,
    /// Whether it is configured.
    pub present: bool,
    /// Where batches go.
    pub endpoint: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When the next attempt is due, if one is waiting.
    pub next_attempt_s: Option<f64>,
    /// Bytes of request bodies sent, since start.
    pub sent_bytes: u64,
    /// Requests sent, since start.
    pub requests: u64,
    /// Whether `appended = delivered + pending + dead_lettered + shed` for each of its streams.
    pub balanced: bool,
    /// Its ledgers, by stream.
    pub streams: BTreeMap<String, LedgerStatus>,
}

/// What one sink has of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// Records that the sink has.
    pub delivered: u64,
    /// Records still to be delivered.
    pub pending: u64,
    /// Records that it refused for good.
    pub dead_lettered: u64,
    /// Records it will never get, by rule.
    pub shed: u64,
}

impl LedgerStatus {
    /// Whether every record appended is accounted for.
    #[must_use]
    pub fn balances(&self, appended: u64) -> bool {
        let sum = [self.delivered, self.pending, self.dead_lettered, self.shed]
            .into_iter()
            .try_fold(0_u64, u64::checked_add);
        sum == Some(appended)
    }
}

/// One window. Counts are since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowStatus {
    /// Values that came too late.
    pub late: u64,
    /// Series in memory.
    pub series: u64,
    /// Values of series beyond `max_series`.
    pub refused: u64,
}

/// One result of a window, shaped as on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewestWindow {
    /// The window's name.
    pub window: String,
    /// The device.
    pub device: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The field.
    pub field: String,
    /// First moment, inclusive, RFC 3339.
    pub start: String,
    /// End, exclusive, RFC 3339.
    pub end: String,
    /// 0 for the first result of this span.
    pub revision: u32,
    /// Aggregates by name.
    pub aggregates: BTreeMap<String, serde_json::Number>,
}

/// What the dead letters hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLettersStatus {
    /// How many are kept.
    pub kept: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many were purged because of the quota.
    pub purged: u64,
    /// How many were purged by people.
    #[serde(default)]
    pub purged_by_hand: u64,
    /// How many were replayed.
    #[serde(default)]
    pub replayed: u64,
}

/// One room of the program.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomStatus {
    /// For how long it has given no sign of life; 0 if it did when it was asked last.
    pub silent_s: f64,
    /// Whether that is too long: it hangs, and the watchdog is not fed.
    pub hung: bool,
}

/// Whether the store has been opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Open,
    Closed,
}

impl Status {
    /// What the rooms say right now.
    #[must_use]
    pub fn read(inputs: &Inputs) -> Self {
        let books = inputs.books.borrow().clone();
        let report = inputs.store.borrow().clone();
        let windows = inputs.windows.borrow().clone();
        let epoch = Some(books.epoch).filter(|epoch| !epoch.0.is_nil());
        let now = inputs.clock.monotonic();

        let mut sources = sources(&books, &inputs.sources.borrow());
        if matches!(report.state, StoreState::Blocked | StoreState::Failing) {
            hold_back(&mut sources);
        }
        let sinks = sinks(&books, &inputs.sinks.borrow(), now);
        let access =
            if epoch.is_some() && report.recovering.is_none() { Access::Open } else { Access::Closed };
        let state = agent_state(access, report.state, &sources, &sinks);
        let rooms: BTreeMap<String, RoomStatus> =
            few::map(inputs.rooms.borrow().iter().map(|(room, vital)| (room.clone(), vital.into())));
        Self {
            agent: inputs.agent.clone(),
            epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: inputs.clock.wall().to_string(),
            clock: ClockStatus {
                state: inputs.clock.state(),
                source: inputs.clock.trust(),
                ahead_s: rounded(inputs.clock.ahead().as_secs_f64()),
            },
            uptime_s: rounded(now.saturating_duration_since(inputs.started).as_secs_f64()),
            state,
            summary: super::text::summary(state, access, &report, &sources, &sinks)
                + &super::text::hung(&rooms),
            balanced: sinks.values().all(|sink| sink.balanced),
            streams: few::map(
                Stream::ALL
                    .into_iter()
                    .map(|stream| (stream.to_string(), stream_status(&books, &report, stream))),
            ),
            store: StoreStatus { damage: damage(&books.damage), ..report.into() },
            sources,
            sinks,
            windows: few::map(windows.windows.iter().map(|(name, window)| (name.clone(), (*window).into()))),
            newest_windows: windows.newest.iter().map(NewestWindow::from).collect(),
            dead_letters: books.dead_letters.into(),
            rooms,
        }
    }
}

/// The agent's state: the worst thing that is true.
fn agent_state(
    access: Access,
    store: StoreState,
    sources: &BTreeMap<String, SourceStatus>,
    sinks: &BTreeMap<String, SinkStatus>,
) -> AgentState {
    let is_held_back = sources.values().any(|source| source.state == Some(source::State::Blocked));
    let is_sink_down = sinks.values().any(|sink| sink.state.is_some_and(|state| state != forward::State::Up));
    match store {
        StoreState::Failing => AgentState::StorageFailing,
        StoreState::Blocked => AgentState::Blocked,
        // Nothing is taken before the store is open.
        StoreState::Ok | StoreState::Shedding if is_held_back || access == Access::Closed => {
            AgentState::Blocked
        }
        StoreState::Shedding => AgentState::Shedding,
        StoreState::Ok if is_sink_down => AgentState::Buffering,
        StoreState::Ok => AgentState::Online,
    }
}

/// All sources that are configured, or that the books remember.
fn sources(books: &Books, inputs: &BTreeMap<String, SourceInput>) -> BTreeMap<String, SourceStatus> {
    let names = inputs.keys().chain(books.sources.keys());
    few::map(names.map(|name| {
        let counts = books.sources.get(name).copied().unwrap_or_default();
        let mut status = source_status(counts, devices(name, books, inputs.get(name)), inputs.get(name));
        status.missed.add(&books.nodes.forgotten(name).missed);
        (name.clone(), status)
    }))
}

/// A source whose messages the store does not take is blocked, whether or not it has noticed yet.
fn hold_back(sources: &mut BTreeMap<String, SourceStatus>) {
    for source in sources.values_mut() {
        if source.state.is_some_and(source::State::is_connected) {
            source.state = Some(source::State::Blocked);
        }
    }
}

/// What is behind a source: as the books have it, and as it says itself.
fn devices(source: &str, books: &Books, input: Option<&SourceInput>) -> BTreeMap<String, DeviceStatus> {
    let mut devices: BTreeMap<String, DeviceStatus> = BTreeMap::new();
    for (node, of) in books.nodes.of(source) {
        let device = devices.entry(node.to_string()).or_default();
        (device.boot, device.seq) = (Some(of.position.boot), Some(of.position.seq));
        device.missed = of.missed;
    }
    for (name, of) in input.into_iter().flat_map(|input| input.report.borrow().devices.clone()) {
        let device = devices.entry(name.to_string()).or_default();
        device.about = Some(of.about).filter(|about| !about.is_empty());
        (device.last_error, device.failures) = (of.last_error, of.failures);
    }
    devices
}

fn source_status(
    counts: SourceCounts,
    devices: BTreeMap<String, DeviceStatus>,
    input: Option<&SourceInput>,
) -> SourceStatus {
    let report = input.map(|input| input.report.borrow().clone());
    let mut missed = Missed::default();
    devices.values().for_each(|device| missed.add(&device.missed));
    SourceStatus {
        state: report.as_ref().map(|report| report.state),
        present: input.is_some(),
        // Port 0 says nothing; the one that the system chose does.
        endpoint: match report.as_ref().and_then(|report| report.address) {
            Some(bound) => Some(bound.to_string()),
            None => input.map(|input| without_credentials(&input.endpoint)),
        },
        clients: report.as_ref().and_then(|report| report.clients),
        last_error: report.as_ref().and_then(|report| report.last_error.clone()),
        received: counts.received,
        stored: counts.stored,
        rejected: counts.rejected,
        redelivered: counts.redelivered,
        skipped: counts.skipped,
        unprotected: counts.unprotected,
        readings: counts.readings,
        missed,
        line: report.as_ref().and_then(|report| report.line),
        rounds_skipped: report.as_ref().and_then(|report| report.rounds_skipped),
        devices,
    }
}

/// All sinks that are configured, or that the books remember.
fn sinks(
    books: &Books,
    inputs: &BTreeMap<String, SinkInput>,
    now: tokio::time::Instant,
) -> BTreeMap<String, SinkStatus> {
    let unknown = SinkBooks::default();
    let names = inputs.keys().chain(books.sinks.keys());
    few::map(names.map(|name| {
        let sink = books.sinks.get(name).unwrap_or(&unknown);
        (name.clone(), sink_status(books, sink, inputs.get(name), now))
    }))
}

fn sink_status(
    books: &Books,
    sink: &SinkBooks,
    input: Option<&SinkInput>,
    now: tokio::time::Instant,
) -> SinkStatus {
    // A sink may be gone from the configuration before the commit that writes it into the books, and the other way round.
    let report = match sink.presence {
        Presence::Configured => input.map(|input| input.report.borrow().clone()),
        Presence::Removed => None,
    };
    let present = report.is_some();
    let report_or_nothing = report.unwrap_or_default();
    let due = report_or_nothing.next_attempt.map(|due| due.saturating_duration_since(now));
    let ledgers: Vec<(Stream, LedgerStatus)> = sink
        .streams
        .iter()
        .map(|(stream, ledger)| (*stream, ledger_status(ledger, books, *stream)))
        .collect();
    SinkStatus {
        state: present.then_some(report_or_nothing.state),
        present,
        endpoint: input.map(|input| without_credentials(&input.endpoint)),
        last_error: report_or_nothing.last_error,
        next_attempt_s: due.map(|due| rounded(due.as_secs_f64())),
        sent_bytes: report_or_nothing.sent_bytes,
        requests: report_or_nothing.requests,
        balanced: ledgers.iter().all(|(stream, ledger)| ledger.balances(books.stream(*stream).appended())),
        streams: few::map(ledgers.into_iter().map(|(stream, ledger)| (stream.to_string(), ledger))),
    }
}

fn ledger_status(ledger: &Ledger, books: &Books, stream: Stream) -> LedgerStatus {
    LedgerStatus {
        delivered: ledger.delivered,
        pending: ledger.pending(books.stream(stream).next),
        dead_lettered: ledger.dead_lettered,
        shed: ledger.shed,
    }
}

impl From<store::Report> for StoreStatus {
    fn from(report: store::Report) -> Self {
        Self {
            bytes: report.bytes,
            max_bytes: report.max_bytes,
            file_bytes: report.file_bytes,
            state: report.state,
            last_error: report.last_error,
            commits: report.commits,
            commit_seconds: report.commit_seconds,
            recovering: report.recovering,
            damage: None,
        }
    }
}

fn damage(books: &DamageBooks) -> Option<DamageStatus> {
    if *books == DamageBooks::default() {
        return None;
    }
    let by_stream = |counts: [u64; 3]| {
        few::map(Stream::ALL.into_iter().zip(counts).map(|(stream, count)| (stream.to_string(), count)))
    };
    Some(DamageStatus {
        moved_aside: books.moved_aside,
        last: books.last.map(|time| time.to_string()),
        saved: by_stream(books.saved),
        lost: by_stream(books.lost),
        lost_dead_letters: books.lost_letters,
        reading: books.files.iter().map(|file| file.name.clone()).collect(),
    })
}

fn stream_status(books: &Books, report: &store::Report, stream: Stream) -> StreamStatus {
    let max_bytes = report.max_stream_bytes[stream.index()];
    let stream = books.stream(stream);
    StreamStatus {
        appended: stream.appended(),
        next_seq: stream.outside(stream.next).0,
        oldest_seq: stream.outside(stream.oldest).0.max(1),
        held_bytes: stream.held_bytes,
        max_bytes,
    }
}

impl From<&pulse::Vital> for RoomStatus {
    fn from(vital: &pulse::Vital) -> Self {
        Self { silent_s: rounded(vital.silent.as_secs_f64()), hung: vital.is_hung() }
    }
}

impl From<WindowReport> for WindowStatus {
    fn from(report: WindowReport) -> Self {
        Self { late: report.late, series: report.series, refused: report.refused }
    }
}

impl From<&WindowRecord> for NewestWindow {
    fn from(record: &WindowRecord) -> Self {
        let number = |value: AggregateValue| match value {
            AggregateValue::Count(count) => Some(count.into()),
            AggregateValue::Number(number) => serde_json::Number::from_f64(number),
        };
        Self {
            window: record.window.to_string(),
            device: record.device.to_string(),
            tags: few::map(record.tags.iter().map(|(name, value)| (name.to_string(), value.to_string()))),
            field: record.field.to_string(),
            start: record.start.to_string(),
            end: record.end.to_string(),
            revision: record.revision,
            aggregates: few::map(
                record
                    .aggregates
                    .iter()
                    .filter_map(|(name, value)| Some((name.to_string(), number(*value)?))),
            ),
        }
    }
}

impl From<DeadLetterBooks> for DeadLettersStatus {
    fn from(books: DeadLetterBooks) -> Self {
        Self {
            kept: books.kept,
            bytes: books.kept_bytes,
            purged: books.purged,
            purged_by_hand: books.purged_by_hand,
            replayed: books.replayed,
        }
    }
}

/// Seconds with three decimals: what people read, and no more.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// A URL or address without `user:password@` and without what follows `?` or `#`: both are places for tokens.
fn without_credentials(endpoint: &str) -> String {
    let shown = endpoint.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match shown.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), shown),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}{host}{path}")
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
