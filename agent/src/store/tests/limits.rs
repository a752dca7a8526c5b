//! What goes when a limit is reached, in which order, and what never does.

use tokio::time::timeout;

use super::*;
use crate::reading::{AggregateValue, WindowRecord};
use crate::store::ledger::Ledger;
use crate::stream::GapReason;

const PATIENCE: Duration = Duration::from_secs(5);
/// Long enough that a group which is not stored by then is held back.
const HELD_BACK: Duration = Duration::from_millis(300);

/// A store with windows, of which a sink takes everything and answers nothing. Batches wait long, so that nothing is pinned.
async fn open(dir: &TempDir, change: impl FnOnce(&mut Settings)) -> Running {
    let mut settings = Settings::in_dir(dir.path().to_owned());
    settings.commit_interval = Duration::from_millis(1);
    change(&mut settings);
    let (windows, published) = (WindowsPresence::Configured, Published::default());
    let opened = Store::open(settings, "gw", "machine", windows, Clock::system(), published).unwrap();
    let writer = tokio::spawn(opened.writer.run());
    let running = Running { store: opened.store, recent: opened.recent, writer };
    let batch = BatchLimits { wait: Duration::from_secs(3_600), records: 1_000_000, bytes: 1 << 30 };
    let sink = SinkSpec { streams: vec![Stream::Windows, Stream::Readings], batch, ..sink("cloud") };
    running.store.configure_sinks(vec![sink]).await.unwrap();
    running
}

/// Whether an update saves the state of the windows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Save {
    No,
    Yes,
}

/// So many results of the readings that are stored.
fn results(running: &Running, count: usize, save: Save) -> WindowsUpdate {
    let result = |n: usize| WindowRecord {
        window: "minute".into(),
        device: format!("device {n}").into(),
        tags: Arc::default(),
        field: "temperature".into(),
        start: Timestamp(0),
        end: Timestamp(60_000_000),
        revision: 0,
        aggregates: vec![("count".into(), AggregateValue::Count(1))],
        replay_of: None,
    };
    WindowsUpdate {
        position: running.books().stream(Stream::Readings).next,
        records: (0..count).map(result).collect(),
        note: Vec::new(),
        checkpoint: (save == Save::Yes).then(Checkpoint::default),
    }
}

fn ledger(running: &Running, stream: Stream) -> Ledger {
    running.books().sinks["cloud"].streams[&stream].clone()
}

fn held(running: &Running, stream: Stream) -> u64 {
    running.books().stream(stream).held_bytes
}

fn assert_balanced(running: &Running, stream: Stream) {
    let (books, ledger) = (running.books(), ledger(running, stream));
    let stream = books.stream(stream);
    let settled = ledger.delivered + ledger.dead_lettered + ledger.shed;
    assert_eq!(stream.appended(), settled + ledger.pending(stream.next), "{books:?}");
}

fn own(settings: &mut Settings, stream: Stream, max_size_bytes: u64) {
    settings.streams[stream.index()].max_size_bytes = Some(max_size_bytes);
}

/// Readings, and after each group the results and the state of the windows.
async fn fill(running: &Running, groups: std::ops::Range<u64>, count: usize) {
    for n in groups {
        running.store.append(readings(n * 200, 200)).await.unwrap();
        running.store.update_windows(results(running, count, Save::Yes)).await.unwrap();
    }
}

#[tokio::test]
async fn readings_go_first_and_the_results_of_those_that_went_stay() {
    let dir = TempDir::new().unwrap();
    let running = open(&dir, |settings| settings.max_size_bytes = 200_000).await;
    fill(&running, 0..60, 20).await;
    let (of_readings, of_windows) = (ledger(&running, Stream::Readings), ledger(&running, Stream::Windows));
    assert!(of_readings.shed > 1_000, "{of_readings:?}");
    assert_eq!(of_windows.shed, 0, "while there are readings");
    assert!(of_readings.ahead.iter().all(|gap| gap.reason == GapReason::ShedSize));
    let first = running.store.reader().piece(Stream::Windows, Seq::FIRST).unwrap().unwrap();
    assert_eq!(first.range().unwrap().first, Seq::FIRST, "the first result, of readings that are gone");
    assert!(running.books().held_bytes() <= 200_000);
    // With nothing but the last readings left, the oldest results go, too.
    while ledger(&running, Stream::Windows).shed == 0 {
        running.store.update_windows(results(&running, 200, Save::Yes)).await.unwrap();
    }
    assert!(held(&running, Stream::Readings) < 50_000, "what is left carries what peers sent");
    assert_balanced(&running, Stream::Readings);
    assert_balanced(&running, Stream::Windows);
}

#[tokio::test]
async fn nothing_goes_that_the_checkpoint_of_the_windows_has_not_passed() {
    let dir = TempDir::new().unwrap();
    let running = open(&dir, |settings| settings.max_size_bytes = 100_000).await;
    let mut groups = 0;
    while timeout(HELD_BACK, running.store.append(readings(groups * 200, 200))).await.is_ok() {
        groups += 1;
        assert_eq!(numbers(&running.store).len() as u64, groups * 200, "all are held");
    }
    assert!(groups > 10 && held(&running, Stream::Readings) > 100_000, "after {groups} groups");
    assert!(*running.store.wants_checkpoint().borrow());
    // Results without the state let nothing go, the state does.
    let update = running.store.update_windows(results(&running, 1, Save::No));
    timeout(PATIENCE, update).await.unwrap().unwrap();
    assert_eq!(ledger(&running, Stream::Readings).shed, 0);
    let update = running.store.update_windows(results(&running, 0, Save::Yes));
    timeout(PATIENCE, update).await.unwrap().unwrap();
    let append = running.store.append(readings(1_000_000, 200));
    timeout(PATIENCE, append).await.expect("there is room again").unwrap();
    assert!(ledger(&running, Stream::Readings).shed > 0);
    assert_balanced(&running, Stream::Readings);
}

#[tokio::test]
async fn readings_above_a_limit_of_their_own_go_although_the_store_has_room() {
    let dir = TempDir::new().unwrap();
    let running = open(&dir, |settings| own(settings, Stream::Readings, 80_000)).await;
    fill(&running, 0..60, 20).await;
    assert!(held(&running, Stream::Readings) <= 80_000);
    let of_readings = ledger(&running, Stream::Readings);
    assert!(of_readings.shed > 0);
    assert!(of_readings.ahead.iter().all(|gap| gap.reason == GapReason::ShedSize));
    assert_eq!(ledger(&running, Stream::Windows).shed, 0);
    assert_eq!(running.store.report().borrow().state, report::State::Shedding);
    assert_balanced(&running, Stream::Readings);
}

#[tokio::test]
async fn readings_above_a_limit_of_their_own_wait_if_the_store_blocks() {
    let dir = TempDir::new().unwrap();
    let running = open(&dir, |settings| {
        own(settings, Stream::Readings, 80_000);
        settings.when_full = settings::WhenFull::Block;
    })
    .await;
    let mut n = 0;
    while timeout(HELD_BACK, running.store.append(readings(n * 200, 200))).await.is_ok() {
        n += 1;
        assert!(n < 200, "nothing is held back: {:?}", running.books());
        running.store.update_windows(results(&running, 1, Save::Yes)).await.unwrap();
    }
    assert_eq!(running.store.report().borrow().state, report::State::Blocked);
    assert_eq!(ledger(&running, Stream::Readings).shed, 0);
    // The windows still write what they have.
    let update = running.store.update_windows(results(&running, 1, Save::Yes));
    timeout(PATIENCE, update).await.unwrap().unwrap();
}

#[tokio::test]
async fn windows_above_a_limit_of_their_own_go_and_never_hold_up_readings() {
    for when_full in [settings::WhenFull::Shed, settings::WhenFull::Block] {
        let dir = TempDir::new().unwrap();
        let running = open(&dir, |settings| {
            own(settings, Stream::Windows, 80_000);
            settings.when_full = when_full;
        })
        .await;
        timeout(PATIENCE, fill(&running, 0..60, 200)).await.expect("readings are taken");
        assert!(held(&running, Stream::Windows) <= 80_000, "{when_full:?}");
        let of_windows = ledger(&running, Stream::Windows);
        assert!(of_windows.shed > 0, "{when_full:?}");
        assert_eq!(ledger(&running, Stream::Readings).shed, 0, "{when_full:?}");
        assert_balanced(&running, Stream::Windows);
    }
}

#[tokio::test]
async fn windows_above_a_limit_of_their_own_ask_for_the_checkpoint_behind_which_they_may_go() {
    let dir = TempDir::new().unwrap();
    let running = open(&dir, |settings| own(settings, Stream::Windows, 80_000)).await;
    running.store.append(readings(0, 1)).await.unwrap();
    while held(&running, Stream::Windows) <= 100_000 {
        running.store.update_windows(results(&running, 200, Save::No)).await.unwrap();
    }
    assert!(*running.store.wants_checkpoint().borrow());
    assert_eq!(ledger(&running, Stream::Windows).shed, 0);
    timeout(PATIENCE, running.store.append(readings(1, 1))).await.expect("readings are taken").unwrap();
    running.store.update_windows(results(&running, 1, Save::Yes)).await.unwrap();
    running.store.append(readings(2, 1)).await.unwrap();
    assert!(held(&running, Stream::Windows) <= 80_000);
    assert!(!*running.store.wants_checkpoint().borrow());
}

#[tokio::test]
async fn each_stream_goes_by_its_own_age() {
    let dir = TempDir::new().unwrap();
    let running = open(&dir, |settings| {
        settings.max_age = Duration::from_secs(24 * 3_600);
        settings.streams[Stream::Readings.index()].max_age = Some(Duration::from_secs(3_600));
    })
    .await;
    let two_hours_ago = Timestamp(Clock::system().wall().0 - 2 * 3_600 * 1_000_000);
    for n in 0..400 {
        let mut group = readings(n * 100, 100);
        group.readings.iter_mut().for_each(|reading| reading.received = two_hours_ago);
        running.store.append(group).await.unwrap();
        if n % 10 == 0 {
            running.store.update_windows(results(&running, 1, Save::Yes)).await.unwrap();
        }
    }
    let of_readings = ledger(&running, Stream::Readings);
    assert!(of_readings.shed > 0);
    assert!(of_readings.ahead.iter().all(|gap| gap.reason == GapReason::ShedAge));
    assert_eq!(ledger(&running, Stream::Windows).shed, 0);
    assert_balanced(&running, Stream::Readings);
}
