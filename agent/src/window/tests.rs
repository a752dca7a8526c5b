//! The room over a log that crashes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::settings::Aggregate;
use super::state::marks_of;
use super::windows::IdleMark;
use super::*;
use crate::reading::{Origin, Reading, Shape, Timestamp, Value};
use crate::store::{CheckpointBase, Emitted};

/// What is on the disk: it stays when the room is killed.
struct Disk {
    state: Mutex<Stored>,
    head: watch::Sender<Seq>,
    /// How long an update takes to become durable, and then to be reported.
    delay: Duration,
    /// How long it takes to read.
    reads_take: Mutex<Duration>,
}

#[derive(Default)]
struct Stored {
    readings: Vec<Reading>,
    snapshot: WindowsSnapshot,
    /// Everything that was ever appended.
    appended: Vec<WindowRecord>,
    marks: Vec<IdleMark>,
    checkpoints: usize,
}

impl Disk {
    fn new() -> Self {
        Self {
            state: Mutex::new(Stored::default()),
            head: watch::Sender::new(Seq::FIRST),
            delay: Duration::from_millis(70),
            reads_take: Mutex::default(),
        }
    }

    fn append(&self, reading: Reading) {
        let mut stored = self.state.lock().unwrap();
        stored.readings.push(reading);
        self.head.send_replace(Seq::FIRST.plus(stored.readings.len() as u64));
    }

    fn apply(&self, update: WindowsUpdate) {
        let mut stored = self.state.lock().unwrap();
        stored.appended.extend(update.records.iter().cloned());
        stored.marks.extend(marks_of(&update.note).unwrap());
        let Some(checkpoint) = update.checkpoint else {
            let WindowsUpdate { position, records, note, .. } = update;
            stored.snapshot.emitted.push(Emitted { position, records, note });
            return;
        };
        let is_first = stored.snapshot.rows.is_empty();
        assert_eq!(
            checkpoint.base == CheckpointBase::Empty,
            is_first,
            "all of it is in the first checkpoint"
        );
        let mut rows: BTreeMap<_, _> = std::mem::take(&mut stored.snapshot.rows).into_iter().collect();
        for key in checkpoint.removed {
            assert!(!checkpoint.changed.iter().any(|(changed, _)| *changed == key));
            rows.remove(&key);
        }
        rows.extend(checkpoint.changed);
        let rows = rows.into_iter().collect();
        stored.snapshot = WindowsSnapshot { position: update.position, rows, emitted: Vec::new() };
        stored.checkpoints += 1;
    }
}

impl Log for Disk {
    type Error = Infallible;

    async fn snapshot(&self) -> Result<WindowsSnapshot, Infallible> {
        Ok(self.state.lock().unwrap().snapshot.clone())
    }

    async fn readings_from(&self, from: Seq, _max: usize) -> Result<Readings, Infallible> {
        tokio::task::yield_now().await;
        let takes = *self.reads_take.lock().unwrap();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let stored = self.state.lock().unwrap();
        let index = usize::try_from(from.0 - 1).unwrap();
        // Chunks of three, and some that begin before what was asked for.
        let index = index - index % 2;
        let end = (index + 3).min(stored.readings.len());
        Ok(Readings { first: Seq(index as u64 + 1), readings: stored.readings[index..end].into() })
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.head.subscribe()
    }

    async fn update(&self, update: WindowsUpdate) -> Result<(), Infallible> {
        tokio::time::sleep(self.delay).await;
        self.apply(update);
        tokio::time::sleep(self.delay).await;
        Ok(())
    }
}

fn window(name: &str, size: u64, slide: u64, allowed: u64, max_series: usize) -> Settings {
    let names = ["count", "sum", "first", "stddev", "p50"];
    Settings {
        name: name.to_owned(),
        size: Duration::from_secs(size),
        slide: Duration::from_secs(slide),
        lateness: Duration::from_secs(3),
        allowed_lateness: Duration::from_secs(allowed),
        idle: Duration::from_secs(3),
        max_series,
        aggregates: names.iter().map(|name| Aggregate::from_name(name).unwrap()).collect(),
        sources: None,
        fields: None,
    }
}

fn reading(device: &str, seconds: i64, value: f64) -> Reading {
    Reading {
        time: Timestamp(seconds * 1_000_000),
        received: Timestamp(0),
        origin: Arc::new(Origin { source: "plant".into(), device: device.into(), tags: Vec::new() }),
        shape: Arc::new(Shape { names: vec!["t".into()] }),
        values: vec![Value::Float(value)],
        line: None,
        remarks: None,
    }
}

/// What one run over all readings, with the marks where they were, emits: records and counts.
fn undisturbed(settings: &[Settings], from: Seq, stored: &Stored) -> (Vec<WindowRecord>, Vec<Counts>) {
    let mut windows = Windows::new(settings, from);
    let mut records = Vec::new();
    let mut marks = stored.marks.iter().peekable();
    for (seq, reading) in (1..).map(Seq).zip(&stored.readings) {
        while let Some(mark) = marks.next_if(|mark| mark.position <= seq) {
            windows.replay_idle(mark, &mut records);
        }
        windows.add(seq, reading, &mut records);
    }
    marks.for_each(|mark| windows.replay_idle(mark, &mut records));
    (records, windows.counts())
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(u8, i64, i16)>),
    Wait(u64),
    Kill,
    Stop,
    Source(bool),
    ReadsTake(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sample = (0..5_u8, -9..10_i64, any::<i16>());
    let step = prop_oneof![
        8 => proptest::collection::vec(sample, 1..12).prop_map(Step::Append),
        6 => (0..400_u64).prop_map(Step::Wait),
        3 => (400..9_000_u64).prop_map(Step::Wait),
        1 => (20_000..70_000_u64).prop_map(Step::Wait),
        4 => Just(Step::Kill),
        1 => Just(Step::Stop),
        1 => any::<bool>().prop_map(Step::Source),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Plays the steps, and a clean stop at the end. Gives back the last report.
async fn play(settings: &[Settings], disk: &Disk, steps: &[Step]) -> Report {
    let (sources, connected) = watch::channel(BTreeMap::from([("plant".to_owned(), true)]));
    let report = watch::Sender::new(Report::default());
    let mut now = 1_000;
    let mut steps = steps.iter().peekable();
    loop {
        let stop = CancellationToken::new();
        let room = run(settings, disk, connected.clone(), report.clone(), Clock::system(), stop.clone());
        let script = async {
            for step in steps.by_ref() {
                match step {
                    Step::Append(samples) => {
                        for (device, jitter, value) in samples {
                            now += 1;
                            disk.append(reading(&format!("d{device}"), now + jitter, f64::from(*value)));
                        }
                    }
                    Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(*millis)).await,
                    Step::Source(is_up) => {
                        sources.send_replace(BTreeMap::from([("plant".to_owned(), *is_up)]));
                    }
                    Step::ReadsTake(seconds) => {
                        *disk.reads_take.lock().unwrap() = Duration::from_secs(*seconds);
                    }
                    Step::Kill => return,
                    Step::Stop => break,
                }
            }
            stop.cancel();
            std::future::pending().await
        };
        tokio::select! {
            biased;
            ended = room => ended.unwrap(),
            () = script => continue,
        }
        if steps.peek().is_none() {
            return report.borrow().clone();
        }
    }
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(work)
}

proptest! {
    #[test]
    fn what_is_appended_equals_an_undisturbed_run(
        size in 1..12_u64,
        slide in 1..12_u64,
        allowed in 0..6_u64,
        max_series in 2..7_usize,
        steps in steps(),
    ) {
        let settings = [
            window("a", size, slide.min(size), allowed, max_series),
            Settings { idle: Duration::from_millis(400), ..window("b", 5, 5, 0, 100) },
        ];
        let disk = Disk::new();
        // The windows are there before the first reading: they begin at the head.
        run_for(&settings, &disk, 0);
        let report = paused(play(&settings, &disk, &steps));
        let stored = disk.state.lock().unwrap();
        let (records, counts) = undisturbed(&settings, Seq::FIRST, &stored);
        let by_span = |records: &[WindowRecord]| {
            let mut spans: BTreeMap<_, Vec<WindowRecord>> = BTreeMap::new();
            for record in records {
                let key = (record.window.clone(), record.device.clone(), record.field.clone(), record.start);
                spans.entry(key).or_default().push(record.clone());
            }
            spans
        };
        let (found, expected) = (by_span(&stored.appended), by_span(&records));
        for (span, records) in &found {
            let revisions: Vec<u32> = records.iter().map(|record| record.revision).collect();
            let gapless: Vec<u32> = (0..).take(revisions.len()).collect();
            prop_assert_eq!(revisions, gapless, "revisions of {:?}", span);
        }
        prop_assert_eq!(found, expected);
        prop_assert_eq!(report.windows, counts);
        prop_assert_eq!(report.differing + report.skipped, 0);
        prop_assert_eq!(report.position, *disk.head.borrow());
        prop_assert_eq!(stored.snapshot.position, *disk.head.borrow());
    }
}

#[test]
fn the_room_can_run_in_a_task_of_its_own() {
    fn check<T: Send>(_: T) {}
    let (disk, report) = (Disk::new(), watch::Sender::new(Report::default()));
    let (_, sources) = watch::channel(BTreeMap::new());
    check(run(&[], &disk, sources, report, Clock::system(), CancellationToken::new()));
}

/// Runs the room over `disk` for a while, then stops it cleanly.
fn run_for(settings: &[Settings], disk: &Disk, seconds: u64) -> Report {
    paused(play(settings, disk, &[Step::Wait(seconds * 1_000)]))
}

#[test]
fn a_new_window_begins_at_the_head_and_disturbs_no_other() {
    let disk = Disk::new();
    let old = window("old", 10, 10, 0, 100);
    let settings = [old.clone()];
    run_for(&settings, &disk, 0);
    disk.append(reading("d", 1, 1.0));
    run_for(&settings, &disk, 0);

    let both = [old.clone(), window("new", 10, 10, 0, 100)];
    run_for(&both, &disk, 0);
    disk.append(reading("d", 2, 1.0));
    disk.append(reading("d", 20, 1.0));
    run_for(&both, &disk, 0);
    let stored = disk.state.lock().unwrap();
    let counts: Vec<_> =
        stored.appended.iter().map(|record| (&*record.window, record.aggregates[0].1)).collect();
    let count = crate::reading::AggregateValue::Count;
    assert_eq!(counts, [("old", count(2)), ("new", count(1))]);
}

#[test]
fn what_is_left_of_a_removed_window_goes() {
    let disk = Disk::new();
    let both = [window("kept", 10, 10, 0, 100), window("removed", 10, 10, 0, 100)];
    run_for(&both, &disk, 0);
    disk.append(reading("d", 1, 1.0));
    run_for(&both, &disk, 0);
    assert_eq!(disk.state.lock().unwrap().snapshot.rows.len(), 4);
    run_for(&both[..1], &disk, 0);
    assert_eq!(disk.state.lock().unwrap().snapshot.rows.len(), 2);
    run_for(&[], &disk, 0);
    assert_eq!(disk.state.lock().unwrap().snapshot.rows.len(), 0);
}

#[test]
fn without_windows_the_checkpoint_still_moves_on() {
    let disk = Disk::new();
    disk.append(reading("d", 1, 1.0));
    disk.append(reading("d", 2, 1.0));
    run_for(&[], &disk, 0);
    disk.append(reading("d", 3, 1.0));
    let report = run_for(&[], &disk, 61);
    assert_eq!(report.position, Seq(4));
    assert_eq!(disk.state.lock().unwrap().snapshot.position, Seq(4));
}

#[test]
fn a_limit_raised_later_takes_effect_without_a_new_window() {
    let disk = Disk::new();
    run_for(&[window("w", 10, 10, 0, 1)], &disk, 0);
    disk.append(reading("a", 1, 1.0));
    disk.append(reading("b", 1, 1.0));
    let report = run_for(&[window("w", 10, 10, 0, 1)], &disk, 0);
    assert_eq!(report.windows[0].refused, 1);
    disk.append(reading("b", 1, 1.0));
    run_for(&[window("w", 10, 10, 0, 2)], &disk, 0);
    disk.append(reading("b", 1, 1.0));
    let report = run_for(&[window("w", 10, 10, 0, 2)], &disk, 0);
    assert_eq!((report.windows[0].series, report.windows[0].max_series), (2, 2));
}

#[test]
fn a_quiet_room_writes_nothing() {
    let disk = Disk::new();
    let settings = [window("w", 10, 10, 0, 100)];
    run_for(&settings, &disk, 0);
    disk.append(reading("d", 1, 1.0));
    run_for(&settings, &disk, 200);
    let stored = disk.state.lock().unwrap();
    assert_eq!(stored.appended.len(), 1, "the provisional result, once");
    assert_eq!(
        stored.checkpoints, 2,
        "one at the first start, one after the reading; none at a stop without news"
    );
}

#[test]
fn a_device_is_not_silent_while_its_source_is_away() {
    let disk = Disk::new();
    let settings = [window("w", 10, 10, 0, 100)];
    run_for(&settings, &disk, 0);
    disk.append(reading("d", 1, 1.0));
    let away = [Step::Source(false), Step::Wait(100_000)];
    paused(play(&settings, &disk, &away));
    assert_eq!(disk.state.lock().unwrap().appended.len(), 0);
    let back = [Step::Source(false), Step::Wait(100_000), Step::Source(true), Step::Wait(2_900)];
    paused(play(&settings, &disk, &back));
    assert_eq!(disk.state.lock().unwrap().appended.len(), 0);
    run_for(&settings, &disk, 4);
    assert_eq!(disk.state.lock().unwrap().appended.len(), 1);
}

#[test]
fn a_device_that_says_nothing_more_is_silent_once_its_source_is_back() {
    let disk = Disk::new();
    let settings = [window("w", 10, 10, 0, 100)];
    run_for(&settings, &disk, 0);
    disk.append(reading("d", 1, 1.0));
    let back = [Step::Source(false), Step::Wait(100_000), Step::Source(true), Step::Wait(5_000)];
    paused(play(&settings, &disk, &back));
    assert_eq!(disk.state.lock().unwrap().appended.len(), 1, "nothing else comes that could bring it out");
}

#[test]
fn a_replay_that_takes_long_and_is_killed_emits_nothing_twice() {
    let disk = Disk::new();
    let settings = [window("w", 10, 10, 0, 100)];
    run_for(&settings, &disk, 0);
    (0..30).for_each(|n| disk.append(reading("d", n * 10, 1.0)));
    // All comes out; then it is read again, so slowly that the state would be saved on the way.
    let steps = [
        Step::Wait(5_000),
        Step::ReadsTake(20),
        Step::Kill,
        Step::Wait(100_000),
        Step::ReadsTake(0),
        Step::Kill,
    ];
    paused(play(&settings, &disk, &steps));
    let stored = disk.state.lock().unwrap();
    let starts: Vec<_> = stored.appended.iter().map(|record| record.start.0 / 10_000_000).collect();
    assert_eq!(starts, (0..30).collect::<Vec<_>>());
}
