//! A room's worth of watch senders for tests: publish anything, read the status.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Inputs, SinkInput, SourceInput, SourceKind, WindowsReport};
use crate::clock::Clock;
use crate::pulse::{self, Vital, Vitals};
use crate::reading::{AggregateValue, Timestamp, WindowRecord};
use crate::store::ledger::{Books, Ledger, Pin, Presence, SinkBooks, SourceCounts, StreamBooks};
use crate::stream::{Epoch, Gap, GapReason, Seq, SeqRange, Stream};
use crate::{forward, source, store};

/// The sending ends.
pub(crate) struct Rooms {
    pub(crate) books: watch::Sender<Arc<Books>>,
    pub(crate) store: watch::Sender<store::Report>,
    pub(crate) sources: watch::Sender<BTreeMap<String, SourceInput>>,
    pub(crate) sinks: watch::Sender<BTreeMap<String, SinkInput>>,
    pub(crate) windows: watch::Sender<WindowsReport>,
    pub(crate) heartbeat: watch::Sender<tokio::time::Instant>,
    pub(crate) vitals: watch::Sender<Vitals>,
    pub(crate) plant: watch::Sender<source::Report>,
    pub(crate) direct: watch::Sender<source::Report>,
    pub(crate) cloud: watch::Sender<forward::Report>,
}

/// A healthy agent with a client source, a listener, a sink and one that was removed; numbers as in the contract.
pub(crate) fn rooms() -> (Rooms, Inputs) {
    let settled = |clients| source::Report {
        state: source::State::Connected,
        clients,
        settled: true,
        ..source::Report::default()
    };
    let plant = watch::Sender::new(settled(None));
    let direct = watch::Sender::new(settled(Some(3)));
    let cloud = watch::Sender::new(forward::Report::default());
    let sources = BTreeMap::from([
        (
            "plant".to_owned(),
            SourceInput {
                kind: SourceKind::Client,
                endpoint: "mqtt://user:hunter2@127.0.0.1:1883".to_owned(),
                report: plant.subscribe(),
            },
        ),
        (
            "direct".to_owned(),
            SourceInput {
                kind: SourceKind::Listener,
                endpoint: "127.0.0.1:1884".to_owned(),
                report: direct.subscribe(),
            },
        ),
    ]);
    let sinks = BTreeMap::from([(
        "cloud".to_owned(),
        SinkInput {
            endpoint: "https://ingest.example.com/v1?token=hunter2".to_owned(),
            report: cloud.subscribe(),
        },
    )]);
    let report = store::Report { bytes: 123, max_bytes: 1 << 30, ..store::Report::default() };
    let rooms = Rooms {
        books: watch::Sender::new(Arc::new(books())),
        store: watch::Sender::new(report),
        sources: watch::Sender::new(sources),
        sinks: watch::Sender::new(sinks),
        windows: watch::Sender::new(windows("d0017")),
        heartbeat: watch::Sender::new(Clock::system().monotonic()),
        vitals: watch::Sender::new(vitals()),
        plant,
        direct,
        cloud,
    };
    let inputs = Inputs {
        agent: "gw-lab-01".to_owned(),
        started: Clock::system().monotonic(),
        clock: Clock::system(),
        books: rooms.books.subscribe(),
        store: rooms.store.subscribe(),
        sources: rooms.sources.subscribe(),
        sinks: rooms.sinks.subscribe(),
        windows: rooms.windows.subscribe(),
        heartbeat: rooms.heartbeat.subscribe(),
        rooms: rooms.vitals.subscribe(),
    };
    (rooms, inputs)
}

/// Every room has just answered.
fn vitals() -> Vitals {
    let alive = Vital { silent: Duration::ZERO, limit: pulse::LIMIT };
    ["ingest", "sink cloud", "source plant", "status", "store"].map(|room| (room.to_owned(), alive)).into()
}

/// 1 000 readings: the sink has 985, refused 2, misses 3 that are declared, and 10 wait; of those, 2 are gaps ahead.
fn books() -> Books {
    let gap = |first, last| Gap {
        range: SeqRange { first: Seq(first), last: Seq(last) },
        reason: GapReason::ShedSize,
    };
    let ledger = Ledger {
        cursor: Seq(989),
        delivered: 985,
        dead_lettered: 1,
        shed: 4,
        ahead: vec![gap(999, 999)],
        pins: VecDeque::from([Pin { last: Seq(995), gaps: vec![gap(990, 990)], corrections: 0 }]),
        ..Ledger::new()
    };
    let removed = Ledger { cursor: Seq(11), delivered: 10, ..Ledger::new() };
    let counts = SourceCounts {
        received: 1012,
        stored: 1000,
        rejected: 4,
        redelivered: 6,
        skipped: 2,
        unprotected: 1,
        readings: 1000,
    };
    let mut books = Books { epoch: Epoch(uuid::Uuid::from_u128(7)), ..Books::default() };
    books.streams[Stream::Readings.index()] =
        StreamBooks { base: 0, next: Seq(1001), oldest: Seq(900), held_bytes: 4_096, held_chunks: 3 };
    books.sources.insert("plant".into(), counts);
    books.sources.insert("gone".into(), counts);
    let sink =
        |presence, ledger| SinkBooks { presence, streams: BTreeMap::from([(Stream::Readings, ledger)]) };
    books.sinks.insert("cloud".into(), sink(Presence::Configured, ledger));
    books.sinks.insert("old".into(), sink(Presence::Removed, removed));
    books.dead_letters.kept = 5;
    books.dead_letters.kept_bytes = 777;
    books
}

/// One window with one result of `device`.
pub(crate) fn windows(device: &str) -> WindowsReport {
    let record = WindowRecord {
        window: "minute".into(),
        device: device.into(),
        tags: Arc::new(vec![("line".into(), "a".into())]),
        field: "temperature".into(),
        start: Timestamp(1_795_148_100_000_000),
        end: Timestamp(1_795_148_160_000_000),
        revision: 0,
        aggregates: vec![
            ("count".into(), AggregateValue::Count(60)),
            ("mean".into(), AggregateValue::Number(21.5)),
        ],
        replay_of: None,
    };
    let window = super::WindowReport { late: 9, series: 200, refused: 1 };
    WindowsReport { windows: BTreeMap::from([("minute".to_owned(), window)]), newest: vec![record] }
}
