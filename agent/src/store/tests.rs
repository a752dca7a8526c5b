//! The store as rooms use it: groups in, sinks' answers, crashes between.

mod ages;
mod damage;
pub(crate) mod disk;
mod faults;
mod letters;
mod limits;
mod offline;
mod room;

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::nodes::{Missed, NodeChange, NodeId, NodePosition};
use super::work::{BatchLimits, Group, LedgerChange, LedgerEvent, Required, SinkSpec};
use super::*;
use crate::clock::Clock;
use crate::reading::{Origin, Shape, Timestamp, Value};
use crate::stream::Stream;

struct Running {
    store: Store,
    recent: recent::Recent,
    writer: JoinHandle<()>,
}

impl Running {
    fn open(dir: &TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::in_dir(dir.path().to_owned());
        change(&mut settings);
        let opened = Store::open(
            settings,
            "gw",
            "machine",
            WindowsPresence::None,
            Clock::system(),
            Published::default(),
        )
        .unwrap();
        Self { store: opened.store, recent: opened.recent, writer: tokio::spawn(opened.writer.run()) }
    }

    /// Ends without the clean end: what is not durable is gone.
    async fn crash(self) {
        self.writer.abort();
        drop(self.store);
        assert!(self.writer.await.is_err());
    }

    fn books(&self) -> Arc<Books> {
        Arc::clone(&self.store.books().borrow())
    }
}

fn readings(from: u64, count: u64) -> Group {
    let origin = Arc::new(Origin { source: "plant".into(), device: "d1".into(), tags: Vec::new() });
    let shape = Arc::new(Shape { names: vec!["n".into()] });
    let reading = |n: u64| Reading {
        time: Timestamp(1_000_000),
        received: Clock::system().wall(),
        origin: Arc::clone(&origin),
        shape: Arc::clone(&shape),
        values: vec![Value::Uint(n)],
        line: None,
        remarks: None,
    };
    let messages = (from..from + count).map(|n| (u16::try_from(n % 65_535 + 1).unwrap(), n.to_le_bytes()));
    let recent = recent::Change {
        peer: "plant/c".into(),
        session_lost: false,
        in_flight: u16::MAX,
        messages: messages.collect(),
    };
    Group { readings: (from..from + count).map(reading).collect(), recent: vec![recent], ..Group::default() }
}

fn sink(name: &str) -> SinkSpec {
    let batch = BatchLimits { wait: Duration::ZERO, ..BatchLimits::default() };
    SinkSpec { name: name.into(), streams: vec![Stream::Readings], batch, required: Required::Yes }
}

/// Every number that is read back, in order.
fn numbers(store: &Store) -> Vec<u64> {
    let reader = store.reader();
    let next = store.books().borrow().stream(Stream::Readings).next;
    let mut found = Vec::new();
    let mut from = Seq::FIRST;
    while from < next {
        let Some(Piece::Readings(first, readings)) = reader.piece(Stream::Readings, from).unwrap() else {
            break;
        };
        let skip = usize::try_from(from.0.saturating_sub(first.0)).unwrap();
        found.extend(readings.iter().skip(skip).map(|reading| match reading.values[0] {
            Value::Uint(number) => number,
            _ => unreachable!("only numbers were stored"),
        }));
        from = first.plus(readings.len() as u64);
    }
    found
}

fn change(running: &Running, event: LedgerEvent) -> LedgerChange {
    let epoch = running.books().epoch;
    LedgerChange { epoch, sink: "cloud".into(), stream: Stream::Readings, event }
}

#[tokio::test]
async fn what_was_reported_durable_is_there_after_a_crash() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.append(readings(0, 1)).await.unwrap();
    running.store.append(readings(1, 5_000)).await.unwrap();
    running.crash().await;

    let running = Running::open(&dir, |_| {});
    assert_eq!(running.books().stream(Stream::Readings).next, Seq(5_002));
    assert_eq!(numbers(&running.store), (0..5_001).collect::<Vec<_>>());
    assert!(running.recent.knows("plant/c", 1, 0), "redeliveries are recognised after the crash");
    assert!(running.recent.knows("plant/c", 5_001, 5_000));
}

#[tokio::test]
async fn commits_without_readings_keep_what_peers_sent() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    for n in 0..3 {
        running.store.append(Group { readings: Vec::new(), ..readings(n, 1) }).await.unwrap();
    }
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    running.store.append(readings(3, 1)).await.unwrap();
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    for n in 0..4_u16 {
        assert!(running.recent.knows("plant/c", n + 1, u64::from(n)), "message {n}");
    }
    assert_eq!(numbers(&running.store), [3]);
}

#[tokio::test]
async fn a_batch_is_pinned_by_the_commit_that_stores_it() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    let before = running.books().commit;
    running.store.append(readings(0, 10)).await.unwrap();
    let books = running.books();
    assert_eq!(books.commit, before + 1);
    let (range, _) = books.sinks["cloud"].streams[&Stream::Readings].first_pin().unwrap();
    assert_eq!((range.first, range.last), (Seq(1), Seq(10)));
}

#[tokio::test]
async fn what_every_sink_has_is_trimmed_and_the_books_stay() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    for n in 0..600 {
        running.store.append(readings(n * 10, 10)).await.unwrap();
        running
            .store
            .advance("cloud", running.books().epoch, Stream::Readings, Seq(n * 10 + 11))
            .await
            .unwrap();
    }
    let books = running.books();
    assert!(books.stream(Stream::Readings).held_chunks < 400, "{books:?}");
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    let books = running.books();
    let ledger = &books.sinks["cloud"].streams[&Stream::Readings];
    assert_eq!(ledger.delivered + ledger.pending(books.stream(Stream::Readings).next), 6_000);
    assert!(running.recent.knows("plant/c", 1, 0), "what was trimmed is still recognised");
}

#[tokio::test]
async fn a_full_store_gives_up_the_oldest_and_declares_it() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |settings| settings.max_size_bytes = 100_000);
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    // The first batch is pinned, so it stays; what follows is shed.
    for n in 0..600 {
        running.store.append(readings(n * 100, 100)).await.unwrap();
    }
    let books = running.books();
    let next = books.stream(Stream::Readings).next;
    let ledger = &books.sinks["cloud"].streams[&Stream::Readings];
    assert!(books.held_bytes() <= 100_000);
    assert!(ledger.shed > 0);
    assert_eq!(books.stream(Stream::Readings).appended(), ledger.shed + ledger.pending(next));
    let found = numbers(&running.store);
    assert_eq!(&found[..100], (0..100).collect::<Vec<_>>(), "the pinned batch");
    assert_eq!(found.len() as u64, ledger.pending(next));
}

#[tokio::test]
async fn a_full_store_that_blocks_takes_nothing_until_a_sink_takes_some() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |settings| {
        settings.max_size_bytes = 40_000;
        settings.when_full = settings::WhenFull::Block;
    });
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    let mut stored = 0;
    let mut report = running.store.report();
    let held = loop {
        let append = running.store.append(readings(stored, 100));
        let mut append = Box::pin(append);
        tokio::select! {
            result = &mut append => result.unwrap(),
            _ = report.wait_for(|report| report.state == report::State::Blocked) => {
                // The group that is waiting now stays so until there is room.
                break append;
            }
        }
        stored += 100;
    };
    let next = running.books().stream(Stream::Readings).next;
    running.store.advance("cloud", running.books().epoch, Stream::Readings, next).await.unwrap();
    held.await.unwrap();
    let mut report = running.store.report();
    report.wait_for(|report| report.state == report::State::Ok).await.unwrap();
}

#[tokio::test]
async fn a_refused_record_becomes_a_dead_letter_in_one_transaction() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    running.store.append(readings(0, 2)).await.unwrap();
    running.store.change(change(&running, LedgerEvent::Split)).await.unwrap();
    let letter = work::Letter {
        time: Timestamp(1),
        origin: DeadLetterOrigin::Sink {
            sink: "cloud".into(),
            stream: Stream::Readings,
            epoch: running.books().epoch,
            range: SeqRange { first: Seq(1), last: Seq(1) },
            status: 400,
        },
        reason: "bad".into(),
        payload: b"{}".to_vec(),
        payload_bytes: 2,
        payload_hash: 0,
    };
    running.store.change(change(&running, LedgerEvent::DeadLetter(Seq(1), Box::new(letter)))).await.unwrap();
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    let books = running.books();
    let ledger = &books.sinks["cloud"].streams[&Stream::Readings];
    assert_eq!((ledger.dead_lettered, books.dead_letters.kept, ledger.pending(Seq(3))), (1, 1, 1));
    let letters = running.store.reader().dead_letters(0, 10).unwrap();
    assert_eq!(letters[0].reason, "bad");
}

#[tokio::test]
async fn a_new_sink_starts_at_the_oldest_record_held() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |settings| settings.max_size_bytes = 50_000);
    for n in 0..400 {
        running.store.append(readings(n * 100, 100)).await.unwrap();
    }
    running.store.configure_sinks(vec![sink("late")]).await.unwrap();
    let books = running.books();
    let oldest = books.stream(Stream::Readings).oldest;
    let ledger = &books.sinks["late"].streams[&Stream::Readings];
    assert!(oldest > Seq::FIRST);
    assert_eq!(ledger.shed, oldest.0 - 1);
    assert_eq!(ledger.ahead[0].reason, crate::stream::GapReason::BeforeSink);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_store_is_in_use() {
    let dir = TempDir::new().unwrap();
    let _running = Running::open(&dir, |_| {});
    let settings = Settings::in_dir(dir.path().to_owned());
    let second =
        Store::open(settings, "gw", "machine", WindowsPresence::None, Clock::system(), Published::default());
    assert!(matches!(second, Err(Error::InUse { .. })));
}

#[tokio::test]
async fn the_file_is_free_once_the_writer_has_ended_whoever_would_still_read() {
    let dir = TempDir::new().unwrap();
    let Running { store, writer, .. } = Running::open(&dir, |_| {});
    store.append(readings(0, 10)).await.unwrap();
    let reader = store.reader().clone();
    drop(store);
    writer.await.unwrap();
    let again = Running::open(&dir, |_| {});
    assert_eq!(numbers(&again.store).len(), 10);
    assert!(reader.dead_letters(0, 1).is_err());
}

/// Puts these bytes in the place of the row with the format.
fn set_format(running: &Running, row: &[u8]) {
    let written = running.store.reader().file.write(|transaction| {
        transaction.open_table(file::STATE)?.insert("format", row)?;
        Ok(())
    });
    written.unwrap();
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.append(readings(0, 10)).await.unwrap();
    set_format(&running, &format::bytes_of(7));
    running.crash().await;
    let settings = Settings::in_dir(dir.path().to_owned());
    let open = || {
        let (windows, published) = (WindowsPresence::None, Published::default());
        Store::open(settings.clone(), "gw", "machine", windows, Clock::system(), published)
    };
    for _ in 0..2 {
        assert!(matches!(open(), Err(Error::Newer { found: 7, .. })));
    }
    assert!(matches!(Store::dead_letters(dir.path()), Err(Error::Newer { found: 7, .. })));
    assert!(matches!(crate::store::offline::new_epoch(dir.path()), Err(Error::Newer { found: 7, .. })));
    assert!(matches!(
        crate::store::offline::compact(dir.path(), &crate::store::offline::Progress::none()),
        Err(Error::Newer { found: 7, .. })
    ));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().flatten().filter(is_aside).count(), 0);
}

fn is_aside(entry: &std::fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().contains("damaged")
}

#[tokio::test]
async fn a_store_on_another_machine_begins_a_new_epoch_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    running.store.append(readings(0, 10)).await.unwrap();
    let epoch = running.books().epoch;
    running.store.advance("cloud", epoch, Stream::Readings, Seq(5)).await.unwrap();
    running.store.append(readings(10, 1)).await.unwrap();
    running.crash().await;

    let settings = Settings::in_dir(dir.path().to_owned());
    let opened =
        Store::open(settings, "gw", "another", WindowsPresence::None, Clock::system(), Published::default())
            .unwrap();
    let books = Arc::clone(&opened.store.books().borrow());
    assert_ne!(books.epoch, epoch);
    assert_eq!(books.previous.unwrap(), ledger::Previous { epoch, next: [Seq(5), Seq(1), Seq(1)] });
    let stream = books.stream(Stream::Readings);
    assert_eq!((stream.appended(), books.pending("cloud", Stream::Readings)), (7, Some(7)));
    assert_eq!(numbers(&opened.store).len(), 11, "nothing stored is touched");
}

#[tokio::test]
async fn records_too_old_are_given_up_but_not_those_of_a_clock_that_was_not_set() {
    for (received, shed) in [(Timestamp(1_793_500_000_000_000), 4_900), (Timestamp(1_000_000), 0)] {
        let dir = TempDir::new().unwrap();
        let running = Running::open(&dir, |settings| settings.max_age = Duration::from_secs(60));
        let later = SinkSpec {
            batch: BatchLimits { wait: Duration::from_secs(3_600), ..BatchLimits::default() },
            ..sink("cloud")
        };
        running.store.configure_sinks(vec![later]).await.unwrap();
        // Enough commits for what peers sent to be copied, so that chunks may go, and for a sweep after that.
        for n in 0..400 {
            let mut group = readings(n * 100, 100);
            group.readings.iter_mut().for_each(|reading| reading.received = received);
            running.store.append(group).await.unwrap();
        }
        let books = running.books();
        let ledger = &books.sinks["cloud"].streams[&Stream::Readings];
        assert!(
            if shed == 0 { ledger.shed == 0 } else { ledger.shed >= shed },
            "{received}: {}",
            ledger.shed
        );
        let next = books.stream(Stream::Readings).next;
        assert_eq!(books.stream(Stream::Readings).appended(), ledger.shed + ledger.pending(next));
    }
}

#[tokio::test]
async fn what_windows_emitted_is_remembered_while_none_is_configured() {
    let dir = TempDir::new().unwrap();
    let open = |windows| {
        let settings = Settings::in_dir(dir.path().to_owned());
        Store::open(settings, "gw", "machine", windows, Clock::system(), Published::default()).unwrap()
    };
    let Opened { store, writer, .. } = open(WindowsPresence::Configured);
    let writer = tokio::spawn(writer.run());
    let changed = [[2, 7], [LASTING_ROWS, 7]].map(|key| (key.to_vec(), vec![1]));
    let checkpoint = Checkpoint { changed: changed.into(), ..Checkpoint::default() };
    let update = WindowsUpdate { checkpoint: Some(checkpoint), ..WindowsUpdate::default() };
    store.update_windows(update).await.unwrap();
    drop(store);
    writer.await.unwrap();
    drop(open(WindowsPresence::None));
    drop(open(WindowsPresence::None));
    let rows = open(WindowsPresence::Configured).store.windows_snapshot().unwrap().rows;
    assert_eq!(rows, [(vec![LASTING_ROWS, 7], vec![1])]);
}

/// `fixtures/format-1.redb.zst` was written by the version before nodes were known: three readings that were acknowledged, one
/// sink that has none of them, and no clean end.
#[tokio::test]
async fn a_store_of_the_first_format_is_taken_over_whole() {
    let dir = TempDir::new().unwrap();
    let old = zstd::decode_all(&include_bytes!("tests/fixtures/format-1.redb.zst")[..]).unwrap();
    std::fs::write(dir.path().join("store.redb"), old).unwrap();
    let settings = Settings::in_dir(dir.path().to_owned());
    let open = || {
        let windows = WindowsPresence::None;
        Store::open(settings.clone(), "gw", "machine", windows, Clock::system(), Published::default())
            .unwrap()
    };
    let change = NodeChange {
        id: NodeId { source: "press".into(), node: "n1".into() },
        position: NodePosition { boot: 1, seq: 7, ..NodePosition::default() },
        missed: Missed { dropped: 2, ..Missed::default() },
    };
    for opening in 1..=2 {
        let Opened { store, writer, recent } = open();
        let writer = tokio::spawn(writer.run());
        let books = Arc::clone(&store.books().borrow());
        assert_eq!(books.stream(Stream::Readings).next, Seq(4));
        assert_eq!(books.sources["direct"].stored, 3);
        assert_eq!(books.pending("cloud", Stream::Readings), Some(3));
        assert_eq!(recent.peers().count(), 1);
        let known: Vec<_> = books.nodes.of("press").map(|(_, node)| node.position.seq).collect();
        assert_eq!(known, if opening == 1 { vec![] } else { vec![7] });
        let group = Group { nodes: vec![change.clone()], ..Group::default() };
        store.append(group).await.unwrap();
        let Some(Piece::Readings(first, readings)) = store.reader().piece(Stream::Readings, Seq(1)).unwrap()
        else {
            panic!("no readings");
        };
        assert_eq!((first, readings.len()), (Seq(1), 1));
        drop(store);
        writer.await.unwrap();
    }
}
