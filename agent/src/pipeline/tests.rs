//! Stopping and damage, with the real rooms.

use std::fmt::Write;

use redb::{ReadableDatabase, TableDefinition};
use tempfile::TempDir;

use super::*;
use crate::reading::{Origin, Reading, Shape, Value};
use crate::store::work::Group;
use crate::stream::Seq;
use crate::window::Log;

const PATIENCE: Duration = Duration::from_secs(8);

async fn agent(dir: &TempDir, more: &str) -> Running {
    start(config(dir, more), Clock::system()).await.unwrap()
}

fn config(dir: &TempDir, more: &str) -> Config {
    let text = format!(
        "[agent]\nid = \"gw\"\ndata_dir = \"{dir}\"\nclock = \"trusted\"\n[admin]\nlisten = \"\"\nsocket = \"{dir}/a.sock\"\n{more}",
        dir = dir.path().display()
    );
    crate::config::parse(&text, "test.toml", &crate::config::System).unwrap().config
}

fn group(count: u64) -> Group {
    let origin = Arc::new(Origin { source: "plant".into(), device: "d".into(), tags: Vec::new() });
    let shape = Arc::new(Shape { names: vec!["n".into()] });
    let reading = |n: u64| Reading {
        time: Clock::system().wall(),
        received: Clock::system().wall(),
        origin: Arc::clone(&origin),
        shape: Arc::clone(&shape),
        values: vec![Value::Text(format!("{n:0200x}{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into())],
        line: None,
        remarks: None,
    };
    Group { readings: (0..count).map(reading).collect(), ..Group::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_panicked_is_not_waited_for() {
    let dir = TempDir::new().unwrap();
    let mut running = agent(&dir, "").await;
    running.rooms.spawn(Room::Source, async { panic!("a source with a fault of ours") });
    let fault = running.failed().await;
    assert!(matches!(fault, Error::RoomEnded { .. }));
    let stopped = timeout(PATIENCE, running.stop()).await;
    assert!(stopped.is_ok(), "the others do not drain: all wait for the room that is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_agent_stops_cleanly() {
    let dir = TempDir::new().unwrap();
    // Nobody answers there.
    let more = "[store]\nmax_size = \"64KiB\"\nwhen_full = \"block\"\n\
        [sources.direct]\ntype = \"mqtt-listen\"\nlisten = \"127.0.0.1:0\"\n[[sources.direct.subscribe]]\ntopic = \"t/{device}\"\npayload = \"value\"\n\
        [sinks.cloud]\ntype = \"http\"\nurl = \"http://127.0.0.1:9/\"\nstreams = [\"readings\"]\n";
    let running = agent(&dir, more).await;
    let store = running.store.clone().unwrap();
    let mut report = store.report();
    for _ in 0..20 {
        let full = timeout(Duration::from_secs(2), store.append(group(600))).await;
        if full.is_err() {
            break;
        }
    }
    assert_eq!(report.borrow_and_update().state, store::report::State::Blocked);
    drop(store);
    // One reading more, from a sensor.
    let spec = Arc::new(SourceSpec {
        in_flight: 1_000,
        name: "direct".into(),
        subscriptions: Arc::from(Vec::new()),
        max_payload_bytes: 1 << 20,
        kept_payload_bytes: 1 << 10,
    });
    let mut inlet = running.intake.as_ref().unwrap().open(&spec, crate::ingest::Peer::NAMELESS);
    inlet.push(&crate::ingest::Arrival {
        topic: "t/d",
        payload: bytes::Bytes::from_static(b"1"),
        delivery: crate::ingest::Delivery::AtMostOnce,
        replayed: crate::ingest::Replayed::No,
    });
    inlet.flushed().await.unwrap();
    let mut durable = inlet.durable();
    let stored = timeout(Duration::from_millis(1_500), durable.wait_for(|count| *count > 0)).await;
    assert!(stored.is_err(), "nothing is acknowledged while the store is full");
    drop(inlet);
    let stopped = timeout(Duration::from_secs(20), running.stop()).await;
    assert!(matches!(stopped, Ok(Ok(()))), "a full store and SIGTERM: {stopped:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_page_and_socket_goes_on() {
    let dir = TempDir::new().unwrap();
    let text = format!(
        "[agent]\nid = \"gw\"\ndata_dir = \"{}\"\n[admin]\nlisten = \"\"\nsocket = \"\"\n",
        dir.path().display()
    );
    let loaded = crate::config::parse(&text, "test.toml", &crate::config::System).unwrap();
    let mut running = start(loaded.config, Clock::system()).await.unwrap();
    let ended = timeout(Duration::from_millis(300), running.failed()).await;
    assert!(ended.is_err(), "nothing was to be served, and that is no fault: {ended:?}");
    assert!(matches!(timeout(PATIENCE, running.stop()).await, Ok(Ok(()))));
}

fn open(dir: &TempDir) -> Result<Opened, store::Error> {
    let settings = store::Settings::in_dir(dir.path().to_owned());
    Store::open(settings, "gw", "m", WindowsPresence::Configured, Clock::system(), Published::default())
}

/// A store of `commits` chunks of ten readings; a bit of the body of the second has flipped.
async fn damaged(dir: &TempDir, commits: usize) {
    let Opened { store, writer, .. } = open(dir).unwrap();
    let writer = tokio::spawn(writer.run());
    for _ in 0..commits {
        store.append(group(10)).await.unwrap();
    }
    drop(store);
    writer.await.unwrap();
    let table: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("readings");
    let database = redb::Database::open(dir.path().join("store.redb")).unwrap();
    let mut bytes = {
        let transaction = database.begin_read().unwrap();
        transaction.open_table(table).unwrap().get(11).unwrap().unwrap().value().to_vec()
    };
    bytes[60] ^= 1;
    let transaction = database.begin_write().unwrap();
    transaction.open_table(table).unwrap().insert(11, bytes.as_slice()).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_damaged_chunk_does_not_keep_the_agent_from_starting() {
    let dir = TempDir::new().unwrap();
    damaged(&dir, 3).await;
    let opened = open(&dir).map(|_| ()).map_err(|error| chain(&error));
    assert_eq!(opened, Ok(()), "its readings are lost; the agent need not be");
}

#[tokio::test]
async fn a_damaged_chunk_is_lost_to_the_windows_and_does_not_end_them() {
    let dir = TempDir::new().unwrap();
    damaged(&dir, 300).await;
    let opened = open(&dir).unwrap();
    let read = StoreLog::new(&opened.store).readings_from(Seq(11), 100).await;
    let first = read.map(|readings| readings.first).map_err(|error| chain(&error));
    assert_eq!(
        first,
        Ok(Seq(21)),
        "an error here ends the windows room, and with it the agent, at every start"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_been_started_is_ended_when_the_rest_cannot_be() {
    let dir = TempDir::new().unwrap();
    let papers = dir.path().join("ca.pem");
    std::fs::write(&papers, "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n").unwrap();
    let mut sink = "[sinks.cloud]\ntype = \"http\"\nurl = \"https://127.0.0.1:9/\"\n".to_owned();
    let good = config(&dir, &sink);
    writeln!(sink, "tls = {{ ca_file = {papers:?} }}").unwrap();
    let bad = config(&dir, &sink);
    for _ in 0..5 {
        let started = start(bad.clone(), Clock::system()).await;
        assert!(matches!(started, Err(Error::Sink { .. })));
        let running = start(good.clone(), Clock::system()).await.unwrap();
        running.stop().await.unwrap();
    }
}
