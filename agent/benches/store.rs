//! What a commit costs by the number of readings in it, and what reading it back costs.
//!
//! The disk is a real one: the temporary folder of the system. Appending is wall time, most of it the sync; divide the
//! counters by it with care on a busy machine. Reading back is from the file, by a store that was opened anew: finding the
//! chunk, checking it, decompressing and decoding.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use holdfast::clock::Clock;
use holdfast::reading::{Origin, Reading, Shape, Timestamp, Value};
use holdfast::store::work::Group;
use holdfast::store::{Opened, Published, Settings, Store, WindowsPresence};
use holdfast::stream::{Seq, Stream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const GROUPS: [usize; 5] = [1, 16, 128, 1_024, 8_192];
const DEVICES: usize = 200;

fn main() {
    divan::main();
}

/// Readings of 200 devices: a counter, temperatures that wander, a flag.
fn readings(count: usize) -> Vec<Reading> {
    let mut chance = fastrand::Rng::with_seed(1);
    let names = ["seq", "temperature", "humidity", "running"].map(Into::into);
    let shape = Arc::new(Shape { names: names.to_vec() });
    let origins: Vec<Arc<Origin>> = (0..DEVICES)
        .map(|device| {
            let device = format!("d{device:04}").into();
            Arc::new(Origin { source: "plant".into(), device, tags: Vec::new() })
        })
        .collect();
    (0_i64..)
        .take(count)
        .zip(origins.iter().cycle())
        .map(|(number, origin)| {
            let time = Timestamp(1_795_148_112_123_000 + number * 20_000);
            Reading {
                time,
                received: Timestamp(time.0 + 1_000 + i64::from(chance.u32(0..5_000))),
                origin: Arc::clone(origin),
                shape: Arc::clone(&shape),
                values: vec![
                    Value::Int(12_345 + number),
                    Value::Float(f64::from(chance.u32(2_000..2_100)) / 100.0),
                    Value::Float(f64::from(chance.u32(480..490)) / 10.0),
                    Value::Bool(true),
                ],
                line: None,
                remarks: None,
            }
        })
        .collect()
}

/// A store in a folder of its own, with its writer running.
struct Running {
    runtime: Runtime,
    store: Option<Store>,
    writer: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl Running {
    fn new() -> Self {
        let runtime = Runtime::new().expect("threads");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut running = Self { runtime, store: None, writer: None, dir };
        running.open();
        running
    }

    fn open(&mut self) {
        let settings = Settings::in_dir(self.dir.path().to_owned());
        let presence = WindowsPresence::None;
        let Opened { store, writer, .. } =
            Store::open(settings, "bench", "bench", presence, Clock::system(), Published::default())
                .expect("a store");
        self.writer = Some(self.runtime.spawn(writer.run()));
        self.store = Some(store);
    }

    /// Nothing that was appended is in memory any more.
    fn reopen(&mut self) {
        self.store = None;
        if let Some(writer) = self.writer.take() {
            self.runtime.block_on(writer).expect("the writer ends");
        }
        self.open();
    }

    fn append(&self, readings: Vec<Reading>) {
        let store = self.store.as_ref().expect("it is open");
        let group = Group { readings, ..Group::default() };
        self.runtime.block_on(store.append(group)).expect("the store is open");
    }
}

/// One durable transaction with so many readings.
#[divan::bench(args = GROUPS, sample_size = 1, max_time = 3)]
fn append_and_commit(bencher: Bencher<'_, '_>, count: usize) {
    let running = Running::new();
    let readings = readings(count);
    bencher
        .counter(ItemsCount::new(count))
        .with_inputs(|| readings.clone())
        .bench_local_values(|readings| running.append(readings));
}

/// The chunks of one such transaction, from the file.
#[divan::bench(args = GROUPS)]
fn read_back(bencher: Bencher<'_, '_>, count: usize) {
    let mut running = Running::new();
    running.append(readings(count));
    running.reopen();
    let reader = running.store.as_ref().expect("it is open").reader();
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let (mut seq, mut seen) = (Seq::FIRST, 0);
        while seen < count as u64 {
            let piece = reader.piece(Stream::Readings, seq).expect("it is whole").expect("it is there");
            let range = piece.range().expect("it has readings");
            seen += range.count();
            seq = range.last.next();
        }
        seen
    });
}
