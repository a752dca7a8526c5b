//! Readings of a clock that was not right, and what is sent of them once it is known when the machine was started.

use tempfile::TempDir;
use uuid::Uuid;

use super::settings::BatchLimits;
use super::*;
use crate::reading::{ClockLine, Origin, Pace, Reading, Shape, Timestamp, Value};
use crate::store::boots::Boot;
use crate::store::work::{Group, SinkSpec};
use crate::store::{Opened, Published, WindowsPresence};

const BOOT: Uuid = Uuid::from_u128(7);
const NOON: Timestamp = Timestamp(1_800_000_000_000_000);

fn settings() -> Settings {
    let wait = Duration::from_secs(3_600);
    let batch = BatchLimits { wait, ..BatchLimits::default() };
    Settings { streams: vec![Stream::Readings], batch, ..tests::settings() }
}

/// A store as it is after a start.
async fn open(dir: &TempDir) -> (Store, Forward, tokio::task::JoinHandle<()>) {
    let settings = settings();
    let opened = Store::open(
        store::Settings::in_dir(dir.path().to_owned()),
        "gw",
        "m",
        WindowsPresence::None,
        Clock::system(),
        Published::default(),
    );
    let Opened { store, writer, .. } = opened.unwrap();
    let writer = tokio::spawn(writer.run());
    let spec = SinkSpec {
        name: settings.name.clone(),
        streams: settings.streams.clone(),
        batch: settings.batch,
        required: settings.required,
    };
    store.configure_sinks(vec![spec]).await.unwrap();
    let forward = Forward::new(settings, store.clone(), watch::Sender::default(), Clock::system()).unwrap();
    (store, forward, writer)
}

/// Ten readings of a minute and a half after the start, by a clock that said 1970; every other one has a time of its own.
fn readings() -> Group {
    let origin = Arc::new(Origin { source: "plant".into(), device: "d".into(), tags: Vec::new() });
    let shape = Arc::new(Shape { names: vec!["n".into()] });
    let line =
        Arc::new(ClockLine { boot: BOOT, stamp: Timestamp(0), uptime_micros: 90_000_000, pace: Pace::Full });
    let reading = |n: i64| Reading {
        time: if n % 2 == 0 { Timestamp(n) } else { NOON },
        received: Timestamp(n),
        line: Some(Arc::clone(&line)),
        origin: Arc::clone(&origin),
        shape: Arc::clone(&shape),
        values: vec![Value::Int(n)],
        remarks: None,
    };
    Group { readings: (0..10).map(reading).collect(), ..Group::default() }
}

async fn pin(store: &Store, last: u64) {
    let (epoch, known) = {
        let books = store.books().borrow().clone();
        (books.epoch, books.boots.known())
    };
    let event = LedgerEvent::Pin(vec![Seq(last)], known);
    store
        .change(LedgerChange { sink: "cloud".into(), stream: Stream::Readings, epoch, event })
        .await
        .unwrap();
}

/// The body that would be sent now.
async fn body(forward: &mut Forward) -> String {
    match forward.step(Mode::Go) {
        Step::Send(view, range, gaps) => {
            String::from_utf8(forward.batch(view, range, gaps).await.unwrap().body.to_vec()).unwrap()
        }
        Step::Pin(..) | Step::Wait(_) | Step::Done => panic!("a batch is pinned"),
    }
}

fn count(body: &str, what: &str) -> usize {
    body.matches(what).count()
}

#[tokio::test]
async fn a_batch_fixed_before_the_boot_was_known_stays_as_it_was_and_later_ones_are_corrected() {
    let dir = TempDir::new().unwrap();
    let (store, mut forward, writer) = open(&dir).await;
    store.append(readings()).await.unwrap();
    pin(&store, 10).await;
    let before = body(&mut forward).await;
    let boot = Boot { id: BOOT, at: NOON.0 };
    assert!(store.books().borrow().boots.wants(boot));
    store.learn_boot(boot).await.unwrap();
    assert!(!store.books().borrow().boots.wants(boot));
    store.append(readings()).await.unwrap();
    pin(&store, 20).await;
    assert_eq!(body(&mut forward).await, before, "a retry");
    assert_eq!((count(&before, "\"clock\":\"unsynced\""), count(&before, "corrected")), (10, 0));
    drop((store, forward));
    writer.await.unwrap();

    let (store, mut forward, writer) = open(&dir).await;
    assert_eq!(body(&mut forward).await, before, "a retry after a restart");
    let epoch = store.books().borrow().epoch;
    store.advance("cloud", epoch, Stream::Readings, Seq(11)).await.unwrap();
    store.learn_boot(Boot { at: NOON.0 + 5_000_000, ..boot }).await.unwrap();
    let after = body(&mut forward).await;
    assert_eq!((count(&after, "\"clock\":\"corrected\""), count(&after, "unsynced")), (10, 0));
    let true_time = Timestamp(NOON.0 + 90_000_002);
    assert_eq!(count(&after, &format!("\"time\":\"{true_time}\",\"received\":\"{true_time}\"")), 1);
    assert_eq!(count(&after, &format!("\"time\":\"{NOON}\",")), 5, "what a device says of itself stands");
    drop((store, forward));
    writer.await.unwrap();

    let (store, mut forward, writer) = open(&dir).await;
    assert_eq!(body(&mut forward).await, after, "also by which boots, if it was learned anew since");
    drop((store, forward));
    writer.await.unwrap();
}

#[test]
fn a_corrected_record_is_no_longer_than_its_bound() {
    for reading in readings().readings {
        let mut out = Vec::new();
        crate::wire::write_corrected(Seq(u64::MAX), &reading, Some(NOON.0), &mut out);
        assert!(out.len() < crate::wire::reading_bound(&reading));
    }
}
