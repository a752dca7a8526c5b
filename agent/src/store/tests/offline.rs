//! Stores that are sound: verified, exported, compacted.

mod damage;
mod lost;

use std::path::Path;

use redb::ReadableTable;

use super::*;
use crate::reading::{AggregateValue, WindowRecord};
use crate::store::chunk::{Chunk, Packed};
use crate::store::file::{DEAD_LETTERS, File, READINGS, STATE, WINDOWS};
use crate::store::format;
use crate::store::ledger::{Identity, Pin, SourceCounts};
use crate::store::log::State;
use crate::store::note::Note;
use crate::store::offline::{
    Edge, ExportError, Exported, Finding, Kind, Progress, Report, Selection, compact, export, new_epoch,
    verify,
};
use crate::store::work::{Letter, Work};
use crate::stream::{Epoch, Gap, GapReason};

/// A store and its only user.
struct Bench {
    dir: TempDir,
    open: Option<(File, State)>,
    settings: Settings,
    sinks: Vec<SinkSpec>,
    readings: u64,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut settings = Settings::in_dir(dir.path().to_owned());
        change(&mut settings);
        let published = Published::default();
        let presence = WindowsPresence::Configured;
        drop(Store::open(settings.clone(), "gw", "m", presence, Clock::system(), published).unwrap());
        let mut bench = Self { dir, open: None, settings, sinks: Vec::new(), readings: 0 };
        bench.configure(&["a", "b"]);
        bench
    }

    fn state(&mut self) -> &mut (File, State) {
        let (dir, settings) = (self.dir.path(), &self.settings);
        self.open.get_or_insert_with(|| {
            let file = File::open(dir, |_| {}).unwrap();
            let state = State::load(&file, settings.clone(), WindowsPresence::Configured).unwrap();
            (file, state)
        })
    }

    fn books(&mut self) -> Books {
        self.state().1.books.clone()
    }

    fn commit(&mut self, work: &Work) {
        let wall = Clock::system().wall();
        let sinks = self.sinks.clone();
        let (file, state) = self.state();
        if state.sinks.is_empty() {
            state.sinks = sinks;
        }
        state.commit(file, work, Clock::system().monotonic(), wall).unwrap();
    }

    fn configure(&mut self, names: &[&str]) {
        let streams = vec![Stream::Windows, Stream::Readings];
        self.sinks = names.iter().map(|name| SinkSpec { streams: streams.clone(), ..sink(name) }).collect();
        self.commit(&Work { sinks: Some(self.sinks.clone()), ..Work::default() });
    }

    fn append(&mut self, count: u64) {
        let group = readings(self.readings, count);
        self.readings += count;
        let counts = SourceCounts { received: count, stored: count, readings: count, ..Default::default() };
        let group = Group { counts: vec![("plant".into(), counts)], ..group };
        self.commit(&Work { group: Some(group), ..Work::default() });
    }

    fn reject(&mut self, payload: &[u8]) {
        let counts = SourceCounts { received: 1, rejected: 1, ..Default::default() };
        let origin = DeadLetterOrigin::Source { source: "plant".into(), topic: "t".into() };
        let group = Group {
            rejected: vec![letter(origin, payload)],
            counts: vec![("plant".into(), counts)],
            ..Group::default()
        };
        self.commit(&Work { group: Some(group), ..Work::default() });
    }

    fn windows(&mut self, count: usize, checkpoint: Option<Checkpoint>) {
        let position = self.books().stream(Stream::Readings).next;
        let records = (0..).map(result).take(count).collect();
        let update = WindowsUpdate { position, records, note: b"mark".to_vec(), checkpoint };
        self.commit(&Work { windows: Some(update), ..Work::default() });
    }

    fn ledger(&mut self, sink: &str, stream: Stream, event: LedgerEvent) {
        let epoch = self.books().epoch;
        let change = LedgerChange { sink: sink.into(), stream, epoch, event };
        self.commit(&Work { ledger: vec![change], ..Work::default() });
    }

    /// Halves the first batch until a record is alone, and refuses that.
    fn refuse(&mut self, sink: &str) {
        for _ in 0..64 {
            let books = self.books();
            let ledger = &books.sinks[sink].streams[&Stream::Readings];
            let Some((range, pin)) = ledger.first_pin() else { return };
            let is_gap = |seq: Seq| pin.gaps.iter().any(|gap| gap.range.contains(seq));
            let left: Vec<Seq> =
                (range.first.0..=range.last.0).map(Seq).filter(|seq| !is_gap(*seq)).take(2).collect();
            match left.as_slice() {
                [] => return,
                [alone] => {
                    let origin = DeadLetterOrigin::Sink {
                        sink: sink.into(),
                        stream: Stream::Readings,
                        epoch: books.epoch,
                        range,
                        status: 422,
                    };
                    let letter = Box::new(letter(origin, b"{}"));
                    let alone = *alone;
                    return self.ledger(sink, Stream::Readings, LedgerEvent::DeadLetter(alone, letter));
                }
                _ => self.ledger(sink, Stream::Readings, LedgerEvent::Split),
            }
        }
    }

    fn begin_epoch(&mut self) {
        let identity = Identity { agent: "gw".into(), machine: "m".into() };
        let epoch = Some((Epoch(uuid::Uuid::new_v4()), identity));
        self.commit(&Work { epoch, ..Work::default() });
    }

    fn close(&mut self) -> &Path {
        self.open = None;
        self.dir.path()
    }

    fn verify(&mut self) -> Report {
        verify(self.close(), &|_, _| None, &Progress::none()).unwrap()
    }

    #[track_caller]
    fn assert_sound(&mut self) {
        let report = self.verify();
        assert!(report.sound, "{:#?}", report.findings);
    }

    /// Changes rows behind the store's back.
    fn tamper(&mut self, change: impl FnOnce(&redb::WriteTransaction) -> Result<(), Error>) {
        File::open(self.close(), |_| {}).unwrap().write(change).unwrap();
    }

    /// Changes the books of the last commit.
    fn cook(&mut self, change: impl FnOnce(&mut Books)) {
        self.tamper(|transaction| {
            let mut table = transaction.open_table(READINGS)?;
            let (key, bytes) = {
                let (key, value) = table.last()?.unwrap();
                let chunk = Chunk::parse(value.value()).unwrap();
                let mut note = Note::decode(chunk.note).unwrap();
                change(&mut note.books);
                let packed = Packed::new(chunk.body().unwrap().into_owned());
                let header = chunk.header;
                let bytes = packed.write(
                    header.stream,
                    header.first,
                    header.count,
                    header.newest_received,
                    &note.encode(),
                );
                (key.value(), bytes)
            };
            table.insert(key, bytes.as_slice())?;
            Ok(())
        });
    }

    fn export(&mut self, selection: &Selection) -> (String, Exported) {
        let mut out = Vec::new();
        let exported = export(self.close(), selection, &mut out, &mut |_| {}, &Progress::none()).unwrap();
        (String::from_utf8(out).unwrap(), exported)
    }
}

fn letter(origin: DeadLetterOrigin, payload: &[u8]) -> Letter {
    Letter {
        time: Timestamp(1),
        origin,
        reason: "bad".into(),
        payload: payload.to_vec(),
        payload_bytes: payload.len() as u64,
        payload_hash: 0,
    }
}

fn result(n: i64) -> WindowRecord {
    WindowRecord {
        window: "minute".into(),
        device: "d1".into(),
        tags: Arc::default(),
        field: "n".into(),
        start: Timestamp(n * 60_000_000),
        end: Timestamp((n + 1) * 60_000_000),
        revision: 0,
        aggregates: vec![("count".into(), AggregateValue::Count(1))],
        replay_of: None,
    }
}

const ALL: Selection = Selection { stream: Stream::Readings, from: None, to: None };

/// A store with some of everything in it.
fn filled() -> Bench {
    let mut bench = Bench::new(|_| {});
    for n in 0..30 {
        bench.append(100);
        if n % 10 == 0 {
            bench.reject(if n == 0 { b"" } else { b"no JSON" });
        }
    }
    bench.windows(5, Some(Checkpoint { changed: vec![(vec![1], vec![2])], ..Checkpoint::default() }));
    bench.windows(3, None);
    bench.windows(0, None);
    bench.ledger("a", Stream::Readings, LedgerEvent::Advance(Seq(1_201)));
    bench.ledger("a", Stream::Readings, LedgerEvent::Pin(vec![Seq(1_210), Seq(1_300)], 0));
    bench.refuse("a");
    bench.ledger("b", Stream::Windows, LedgerEvent::Advance(Seq(3)));
    bench.append(10);
    bench
}

/// Changes the bytes of the row of readings at `key`.
fn set(
    transaction: &redb::WriteTransaction,
    key: u64,
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<(), Error> {
    let mut table = transaction.open_table(READINGS)?;
    let mut bytes = table.get(key)?.unwrap().value().to_vec();
    change(&mut bytes);
    table.insert(key, bytes.as_slice())?;
    Ok(())
}

#[test]
fn a_store_with_some_of_everything_is_sound_and_stays_as_it_is() {
    let mut bench = filled();
    let path = bench.close().join("store.redb");
    let before = std::fs::read(&path).unwrap();
    let report = bench.verify();
    assert!(report.sound, "{:#?}", report.findings);
    assert!(!report.recovered);
    assert_eq!(report.agent.as_deref(), Some("gw"));
    assert_eq!((report.streams["readings"].records, report.streams["windows"].records), (3_010, 8));
    assert_eq!((report.dead_letters, report.sinks["a"]["readings"].dead_lettered), (4, 1));
    assert_eq!(bench.export(&ALL).1.records, 3_010);
    assert!(std::fs::read(&path).unwrap() == before, "nothing was written");
}

#[test]
fn a_store_that_was_not_closed_is_recovered_in_memory() {
    let mut bench = filled();
    bench.append(1);
    let image = TempDir::new().unwrap();
    let path = image.path().join("store.redb");
    // As the power leaves it: the file of a store that is open.
    std::fs::copy(bench.dir.path().join("store.redb"), &path).unwrap();
    let before = std::fs::read(&path).unwrap();
    let report = verify(image.path(), &|_, _| None, &Progress::none()).unwrap();
    assert!(report.recovered && report.sound, "{:#?}", report.findings);
    assert!(std::fs::read(&path).unwrap() == before, "nothing was written");
}

#[test]
fn a_store_in_use_or_not_there_is_said_to_be_so() {
    let mut bench = filled();
    bench.append(1);
    let dir = bench.dir.path();
    let nobody = &|_: &str, _| None;
    let in_use = verify(dir, nobody, &Progress::none()).unwrap_err();
    assert!(in_use.to_string().contains("in use by another process"), "{in_use}");
    assert!(in_use.to_string().contains("store.redb"), "{in_use}");
    assert!(matches!(compact(dir, &Progress::none()), Err(Error::InUse { .. })));
    let mut out = Vec::new();
    assert!(export(dir, &ALL, &mut out, &mut |_| {}, &Progress::none()).is_err());
    let empty = TempDir::new().unwrap();
    assert!(matches!(verify(empty.path(), nobody, &Progress::none()), Err(Error::NoStore { .. })));
    assert!(matches!(compact(empty.path(), &Progress::none()), Err(Error::NoStore { .. })));
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is made");
}

#[test]
fn a_store_of_a_newer_format_is_not_judged() {
    let mut bench = filled();
    bench.tamper(|transaction| {
        transaction.open_table(STATE)?.insert("format", format::bytes_of(7).as_slice())?;
        Ok(())
    });
    let newer = verify(bench.close(), &|_, _| None, &Progress::none());
    assert!(matches!(newer, Err(Error::Newer { found: 7, .. })));
}

#[test]
fn what_a_sink_takes_no_more_need_not_be_held() {
    let mut bench = filled();
    bench.tamper(|t| {
        t.open_table(WINDOWS)?.remove(6)?;
        Ok(())
    });
    let takes = |_: &str, stream| Some(stream == Stream::Readings);
    let report = verify(bench.close(), &takes, &Progress::none()).unwrap();
    assert!(report.findings.iter().all(|finding| finding.kind != Kind::Wanted), "{:#?}", report.findings);
}

#[test]
fn an_export_has_the_records_as_sinks_get_them() {
    let mut bench = filled();
    let (text, exported) = bench.export(&ALL);
    assert_eq!((exported.records, text.lines().count()), (3_010, 3_010));
    let numbers = |text: &str| -> Vec<u64> {
        let parsed = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        parsed.map(|record| record["seq"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&text), (1..=3_010).collect::<Vec<_>>());
    assert!(
        text.starts_with("{\"seq\":1,\"time\":\"1970-01-01T00:00:01.000000Z\",\"received\":\""),
        "{text}"
    );

    let part = |from, to| Selection { from: Some(from), to: Some(to), ..ALL };
    let (text, _) = bench.export(&part(Edge::Number(150), Edge::Number(1_203)));
    assert_eq!(numbers(&text), (150..=1_203).collect::<Vec<_>>());
    let windows = Selection {
        stream: Stream::Windows,
        ..part(Edge::Time(Timestamp(60_000_000)), Edge::Time(Timestamp(180_000_000)))
    };
    assert_eq!(numbers(&bench.export(&windows).0), [2, 3, 7, 8], "by start, the end excluded");
    assert_eq!(bench.export(&Selection { stream: Stream::Alerts, ..ALL }).1.records, 0);

    // A new epoch begins where the slower sink is: at 1 for b.
    bench.ledger("b", Stream::Readings, LedgerEvent::Advance(Seq(501)));
    bench.begin_epoch();
    let (text, exported) = bench.export(&ALL);
    assert_eq!((exported.records, exported.earlier), (2_510, 500));
    assert_eq!(numbers(&text), (1..=2_510).collect::<Vec<_>>());
    assert_eq!(numbers(&bench.export(&part(Edge::Number(2_509), Edge::Number(9_999))).0), [2_509, 2_510]);
    bench.assert_sound();
}

#[test]
fn an_export_goes_on_behind_damage_and_ends_when_nobody_reads() {
    let mut bench = filled();
    bench.tamper(|t| set(t, 1_301, |bytes| bytes[60] ^= 1));
    let mut heard = Vec::new();
    let mut out = Vec::new();
    let mut hear = |error: &Error| heard.push(crate::causes::chain(error));
    let exported = export(bench.close(), &ALL, &mut out, &mut hear, &Progress::none()).unwrap();
    assert_eq!((exported.records, exported.damaged), (2_910, 1));
    assert!(heard[0].contains("readings 1301"), "{heard:?}");

    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let ended = export(bench.close(), &ALL, &mut Closed, &mut |_| {}, &Progress::none());
    assert!(matches!(ended, Err(ExportError::Output(_))));
}

#[test]
fn compacting_frees_what_was_trimmed_and_loses_nothing() {
    let mut bench = Bench::new(|_| {});
    for _ in 0..200 {
        bench.append(2_000);
    }
    bench.windows(1, Some(Checkpoint::default()));
    for sink in ["a", "b"] {
        bench.ledger(sink, Stream::Readings, LedgerEvent::Advance(Seq(399_001)));
    }
    for _ in 0..300 {
        bench.append(1);
    }
    bench.assert_sound();
    let before = bench.export(&ALL).0;
    let compacted = compact(bench.close(), &Progress::none()).unwrap();
    assert!(compacted.bytes.1 < compacted.bytes.0 / 2, "{compacted:?}");
    assert!(compacted.freed_bytes() > 0, "{compacted:?}");
    assert!(bench.export(&ALL).0 == before);
    bench.assert_sound();
    bench.append(5);
    bench.assert_sound();
}

#[test]
fn a_damaged_store_is_not_compacted() {
    let mut bench = filled();
    let path = bench.close().join("store.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let chunks: Vec<usize> = (0..bytes.len() - 4).filter(|at| &bytes[*at..at + 4] == b"HFCK").collect();
    for chunk in chunks {
        bytes[chunk + 60] ^= 1;
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(compact(bench.close(), &Progress::none()), Err(Error::Damaged { .. })));
    assert!(std::fs::read(&path).unwrap() == bytes, "it is left alone");
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Reject(usize),
    Windows(usize),
    Checkpoint(usize),
    Pin(usize, Stream, Vec<u64>),
    Advance(usize, Stream, u64),
    Refuse(usize),
    Sinks(usize),
    Epoch,
    Verify,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::{Just, Strategy, prop_oneof};
    let sink = 0..2_usize;
    let stream = prop_oneof![3 => Just(Stream::Readings), 1 => Just(Stream::Windows)];
    let lengths = proptest::collection::vec(1..300_u64, 1..4);
    let step = prop_oneof![
        8 => (1..400_u64).prop_map(Step::Append),
        1 => (0..3_000_usize).prop_map(Step::Reject),
        2 => (0..600_usize).prop_map(Step::Windows),
        2 => (0..9_usize).prop_map(Step::Checkpoint),
        2 => (sink.clone(), stream.clone(), lengths).prop_map(|(s, t, l)| Step::Pin(s, t, l)),
        4 => (sink.clone(), stream, 0..900_u64).prop_map(|(s, t, n)| Step::Advance(s, t, n)),
        2 => sink.prop_map(Step::Refuse),
        1 => (0..4_usize).prop_map(Step::Sinks),
        1 => Just(Step::Epoch),
        1 => Just(Step::Verify),
    ];
    proptest::collection::vec(step, 20..90)
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..proptest::test_runner::Config::with_cases(24) })]
    #[test]
    fn whatever_an_agent_does_its_store_is_sound(steps in steps(), max_size_bytes in 30_000..200_000_u64) {
        let mut bench = Bench::new(|settings| {
            settings.max_size_bytes = max_size_bytes;
            settings.dead_letters.max_size_bytes = 5_000;
        });
        let names = ["a", "b"];
        for step in steps {
            match step {
                Step::Append(count) => bench.append(count),
                Step::Reject(bytes) => bench.reject(&vec![b'x'; bytes]),
                Step::Windows(count) => bench.windows(count, None),
                Step::Checkpoint(count) => bench.windows(count, Some(Checkpoint::default())),
                Step::Pin(sink, stream, lengths) => {
                    let books = bench.books();
                    let Some(ledger) = books.sinks[names[sink]].streams.get(&stream) else { continue };
                    let mut last = ledger.unpinned().0 - 1;
                    let lasts = lengths.iter().map(|length| { last += length; Seq(last) }).collect();
                    bench.ledger(names[sink], stream, LedgerEvent::Pin(lasts, 0));
                }
                Step::Advance(sink, stream, further) => {
                    let cursor = bench.books().sinks[names[sink]].streams[&stream].cursor;
                    bench.ledger(names[sink], stream, LedgerEvent::Advance(cursor.plus(further)));
                }
                Step::Refuse(sink) => bench.refuse(names[sink]),
                Step::Sinks(which) => bench.configure([&names[..], &names[..1], &names[1..], &[]][which]),
                Step::Epoch => bench.begin_epoch(),
                Step::Verify => bench.assert_sound(),
            }
        }
        bench.assert_sound();
    }
}

#[test]
fn an_export_has_the_times_that_sinks_get() {
    let mut bench = Bench::new(|_| {});
    let boot = uuid::Uuid::from_u128(7);
    let line = crate::reading::ClockLine {
        boot,
        stamp: Timestamp(0),
        uptime_micros: 90_000_000,
        pace: crate::reading::Pace::Full,
    };
    let mut group = readings(0, 1);
    let reading = &mut group.readings[0];
    (reading.time, reading.received) = (Timestamp(5_000_000), Timestamp(5_000_000));
    reading.line = Some(Arc::new(line));
    bench.commit(&Work { group: Some(group), ..Work::default() });
    let at = 1_800_000_000_000_000;
    bench.commit(&Work { boot: Some(boots::Boot { id: boot, at }), ..Work::default() });
    drop(bench.open.take());
    let from = Some(Edge::Time(Timestamp(at)));
    let selection = Selection { stream: Stream::Readings, from, to: None };
    let mut out = Vec::new();
    let progress = Progress::none();
    export(bench.dir.path(), &selection, &mut out, &mut |_| {}, &progress).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("\"clock\":\"corrected\"") && text.contains("\"time\":\"2027-"), "{text}");
}

#[tokio::test]
async fn a_store_that_was_put_back_begins_a_new_epoch_if_it_is_told_so() {
    let mut bench = Bench::new(|_| {});
    bench.append(5);
    let books = bench.books();
    assert!(matches!(new_epoch(bench.dir.path()), Err(Error::InUse { .. })));
    bench.open = None;
    let start = |bench: &Bench| {
        let (settings, published) = (bench.settings.clone(), Published::default());
        let seen = published.books.subscribe();
        drop(
            Store::open(settings, "gw", "m", WindowsPresence::Configured, Clock::system(), published)
                .unwrap(),
        );
        seen.borrow().clone()
    };
    assert_eq!(start(&bench).epoch, books.epoch, "a start alone changes nothing");

    assert_eq!(new_epoch(bench.dir.path()).unwrap(), "gw");
    let report = verify(bench.dir.path(), &|_, _| Some(true), &Progress::none()).unwrap();
    assert!(report.sound && report.epoch == Some(books.epoch), "{report:?}");
    let after = start(&bench);
    assert_ne!(after.epoch, books.epoch);
    assert_eq!(after.previous.as_ref().map(|previous| previous.epoch), Some(books.epoch));
    assert_eq!(start(&bench).epoch, after.epoch, "once");
}
