//! Lines behind real ptys, read by the whole agent.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use firmware_bridge::frame::Channel;
use firmware_bridge::value::{Kind, Value as NodeValue};
use tempfile::TempDir;
use tokio::time::timeout;

use super::simulated;
use crate::clock::Clock;
use crate::pipeline::{self, Running};
use crate::reading::{Reading, Value};
use crate::source::pty::Pty;
use crate::source::{Report, State};
use crate::store::{self, Books, Piece};
use crate::stream::{Seq, Stream};

const DEADLINE: Duration = Duration::from_secs(30);
const CHANNELS: &[Channel<'static>] = &[
    Channel::new("n", "", Kind::Int),
    Channel::new("temperature", "°C", Kind::Single),
    Channel::new("humidity", "%", Kind::Single),
];

fn node(dir: &TempDir, interval: Duration) -> simulated::Node {
    let settings = simulated::Settings {
        id: "press-7",
        channels: CHANNELS,
        interval,
        measure: Box::new(|n| {
            let humidity = if n.is_multiple_of(2) { NodeValue::Missing } else { NodeValue::Single(48.25) };
            vec![NodeValue::Int(n.cast_signed()), NodeValue::Single(21.53), humidity]
        }),
    };
    simulated::Node::start(dir.path().join("ttyNode"), settings, Clock::system()).unwrap()
}

/// An agent with the source `press` at `path`.
async fn agent(dir: &TempDir, path: &Path, more: &str) -> Running {
    let text = format!(
        "[agent]\nid = \"gw\"\ndata_dir = \"{dir}\"\nclock = \"trusted\"\n[admin]\nlisten = \"\"\nsocket = \"\"\n\
         [store]\ncommit_interval = \"50ms\"\n\
         [sources.press]\ntype = \"serial\"\npath = \"{}\"\n{more}",
        path.display(),
        dir = dir.path().join("data").display(),
    );
    let loaded = crate::config::parse(&text, "test.toml", &crate::config::System).unwrap();
    let started = async {
        loop {
            match pipeline::start(loaded.config.clone(), Clock::system()).await {
                // A commit that was under way at the kill before still has it.
                Err(pipeline::Error::Store(store::Error::InUse { .. })) => tokio::task::yield_now().await,
                started => return started.unwrap(),
            }
        }
    };
    timeout(DEADLINE, started).await.unwrap()
}

async fn reaches(running: &Running, is_so: impl Fn(&Report) -> bool) -> Report {
    let mut report = running.inputs().sources.borrow()["press"].report.clone();
    let reached = timeout(DEADLINE, report.wait_for(|report| is_so(report))).await;
    let reached = reached.map(|report| report.unwrap().clone());
    reached.unwrap_or_else(|_| panic!("still {:?}", report.borrow()))
}

async fn is_in(running: &Running, state: State) -> Report {
    reaches(running, |report| report.state == state).await
}

async fn books(running: &Running, is_so: impl Fn(&Books) -> bool) -> Arc<Books> {
    let mut books = running.inputs().books.clone();
    let reached = timeout(DEADLINE, books.wait_for(|books| is_so(books))).await;
    let reached = reached.map(|books| Arc::clone(&books.unwrap()));
    reached.unwrap_or_else(|_| panic!("still {:?}", books.borrow()))
}

fn stored(running: &Running) -> Vec<Reading> {
    let reader = running.store().reader();
    let (mut all, mut from) = (Vec::new(), Seq::FIRST);
    while let Some(Piece::Readings(_, readings)) = reader.piece(Stream::Readings, from).unwrap() {
        from = from.plus(readings.len() as u64);
        all.extend(readings.iter().cloned());
        if readings.is_empty() {
            break;
        }
    }
    all
}

/// The values of a field, in the order of storing.
fn ints(running: &Running, field: &str) -> Vec<i64> {
    let value = |reading: Reading| {
        let at = reading.shape.names.iter().position(|name| **name == *field)?;
        if let Value::Int(value) = reading.values[at] { Some(value) } else { None }
    };
    stored(running).into_iter().filter_map(value).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_of_a_node_become_readings() {
    let dir = TempDir::new().unwrap();
    let node = node(&dir, Duration::from_millis(5));
    node.plug_in().unwrap();
    let running = agent(&dir, node.path(), "protocol = \"bridge\"\n").await;
    let report = is_in(&running, State::Connected).await;
    let about = &report.devices["press-7"].about;
    assert_eq!(about, "firmware simulated, link 1, boot 1: n, temperature [°C], humidity [%]");
    books(&running, |books| books.stream(Stream::Readings).next > Seq(100)).await;
    let readings = stored(&running);
    for (reading, n) in readings.iter().zip(1_i64..) {
        let fields: BTreeMap<&str, &Value> =
            reading.shape.names.iter().map(|name| &**name).zip(&reading.values).collect();
        assert_eq!(fields["n"], &Value::Int(n));
        assert_eq!(fields["temperature"], &Value::Float(21.53), "a single is written as it reads");
        assert_eq!(fields.contains_key("humidity"), n % 2 == 1, "what could not be measured is no field");
        assert_eq!((&*reading.origin.device, &*reading.origin.source), ("press-7", "press"));
    }
    let spread = readings[99].time.micros_since(readings[0].time);
    assert!((300_000..700_000).contains(&spread), "99 samples, 5 ms apart, are {spread} µs apart");
    running.stop().await.unwrap();
    assert!(node.count().unwrap().0 < 50, "what was durable is acknowledged before the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_stored_once_over_kills_unplugging_and_resets() {
    let dir = TempDir::new().unwrap();
    // Not so often that its memory is full before an agent on a busy machine is started again.
    let node = node(&dir, Duration::from_millis(3));
    node.plug_in().unwrap();
    let mut seen = 0;
    for round in 0..6 {
        let running = agent(&dir, node.path(), "protocol = \"bridge\"\n").await;
        books(&running, |books| books.stream(Stream::Readings).next.0 > seen + 100).await;
        if round == 2 {
            node.unplug().unwrap();
            is_in(&running, State::Unplugged).await;
            node.plug_in().unwrap();
            is_in(&running, State::Connected).await;
        }
        // Records on their way, commits, acknowledgements: whatever is under way is cut off.
        running.kill().await;
        let running = agent(&dir, node.path(), "protocol = \"bridge\"\n").await;
        let ints = ints(&running, "n");
        let expected: Vec<i64> = (1..).take(ints.len()).collect();
        assert_eq!(ints, expected, "in order, none missing, none twice");
        seen = ints.len() as u64;
        running.kill().await;
    }
    let running = agent(&dir, node.path(), "protocol = \"bridge\"\n").await;
    node.reset(2);
    let books = books(&running, |books| {
        let node = books.nodes.of("press").next();
        node.is_some_and(|(_, node)| node.position.boot == 2 && node.position.seq > 100)
    })
    .await;
    let (name, node) = books.nodes.of("press").next().unwrap();
    assert_eq!((&**name, node.missed.total()), ("press-7", 0));
    let ints = ints(&running, "n");
    let reset = ints.iter().rposition(|n| *n == 1).unwrap();
    let (before, after) = ints.split_at(reset);
    assert!(before.iter().copied().eq(1..=before.len().cast_signed() as i64));
    assert!(after.iter().copied().eq(1..=after.len().cast_signed() as i64));
    let times: Vec<_> = stored(&running).iter().map(|reading| reading.time).collect();
    assert!(times.is_sorted(), "a node's order is kept, over resets too");
    let counts = books.sources["press"];
    assert_eq!(counts.received, counts.stored + counts.redelivered);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_had_no_room_for_is_in_the_books() {
    let dir = TempDir::new().unwrap();
    let node = node(&dir, Duration::ZERO);
    node.sample(2_000);
    node.plug_in().unwrap();
    let running = agent(&dir, node.path(), "protocol = \"bridge\"\n").await;
    let books = books(&running, |books| {
        books.nodes.of("press").next().is_some_and(|(_, node)| node.position.seq == 2_000)
    })
    .await;
    let (_, of_node) = books.nodes.of("press").next().unwrap();
    let ints = ints(&running, "n");
    assert!(of_node.missed.dropped > 0);
    assert_eq!(of_node.missed.dropped + ints.len() as u64, 2_000, "each is stored or declared");
    assert_eq!(ints.last(), Some(&2_000));
    let status = crate::status::Status::read(running.inputs());
    assert_eq!(status.sources["press"].missed.dropped, of_node.missed.dropped);
    assert_eq!(status.sources["press"].devices["press-7"].seq, Some(2_000));
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_become_readings_and_what_is_no_line_is_seen() {
    let dir = TempDir::new().unwrap();
    let mut pty = Pty::new().unwrap();
    let lines = "protocol = \"lines\"\npayload = \"csv\"\ncolumns = [\"n\", \"t\"]\ndevice = \"scale\"\n";
    let running = agent(&dir, pty.path(), lines).await;
    is_in(&running, State::Connected).await;
    pty.write(b"1,20.5\r\n2,21\n\nnot two\n3,22.5\n").unwrap();
    let settled =
        books(&running, |books| books.sources.get("press").is_some_and(|of| of.received == 4)).await;
    let counts = settled.sources["press"];
    assert_eq!((counts.stored, counts.rejected, counts.unprotected), (3, 1, 4));
    assert_eq!(ints(&running, "n"), [1, 2, 3]);
    assert_eq!(&*stored(&running)[0].origin.device, "scale");
    // At another speed, everything is noise: seen, told, and not stored for ever.
    for _ in 0..200 {
        pty.write(&[0xf8, 0x80, 0x00, 0xfe, 0xc0, 0xf0, 0x9f, b'\n']).unwrap();
    }
    let report = is_in(&running, State::Garbage).await;
    assert!(report.last_error.as_ref().is_some_and(|error| error.contains("check baud")), "{report:?}");
    for _ in 0..100 {
        pty.write(&[0xf8, 0x80, 0x00, 0xfe, 0xc0, 0xf0, 0x9f, b'\n']).unwrap();
    }
    pty.write(b"4,1\n5,1\n6,1\n").unwrap();
    is_in(&running, State::Connected).await;
    let settled = books(&running, |books| books.sources["press"].stored == 6).await;
    assert!(settled.sources["press"].rejected <= 201, "{:?}", settled.sources["press"]);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_floods_is_read_slowly_and_one_that_is_silent_is_told() {
    let dir = TempDir::new().unwrap();
    let pty = Pty::new().unwrap();
    let more = "protocol = \"lines\"\npayload = \"value\"\nmax_rate = 100\nsilent_after = \"1s\"\n";
    let running = agent(&dir, pty.path(), more).await;
    is_in(&running, State::Connected).await;
    is_in(&running, State::Silent).await;
    let mut writer = pty.try_clone().unwrap();
    let flood = tokio::task::spawn_blocking(move || writer.write(&b"1\n".repeat(400)));
    is_in(&running, State::Flooding).await;
    flood.await.unwrap().unwrap();
    books(&running, |books| books.sources.get("press").is_some_and(|of| of.stored == 400)).await;
    is_in(&running, State::Silent).await;
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_frames_are_garbage_until_a_node_speaks() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("port");
    let mut pty = Pty::new().unwrap();
    std::os::unix::fs::symlink(pty.path(), &path).unwrap();
    let running = agent(&dir, &path, "protocol = \"bridge\"\n").await;
    reaches(&running, |report| report.line.is_some_and(|line| line.opened == 1)).await;
    pty.write(&b"temperature 21.5\r\n".repeat(80)).unwrap();
    let report = is_in(&running, State::Garbage).await;
    assert!(report.last_error.as_ref().is_some_and(|error| error.contains("no whole frame")), "{report:?}");
    drop(pty);
    is_in(&running, State::Unplugged).await;
    let node = node(&dir, Duration::from_millis(10));
    node.plug_in().unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(std::fs::read_link(node.path()).unwrap(), &path).unwrap();
    is_in(&running, State::Connected).await;
    running.stop().await.unwrap();
}
