//! SIGHUP: sources, windows and sinks come, change and go while readings flow, and the books balance all along.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::cloud::Answer;
use harness::{Agent, Broker, Cloud, DEADLINE, Journal, Sensor};
use rustix::process::Signal;
use tokio::task::JoinHandle;

use crate::{BATCH, HOLDFAST, STORE, client, listener};

const MINUTE: &str = "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"300ms\"\n";

/// A second sink.
fn second(cloud: &Cloud, lines: &str) -> String {
    cloud.sink(&format!("{BATCH}\n{lines}")).replace("sinks.cloud", "sinks.second")
}

/// A sensor that publishes until it is told to stop, and returns how many readings it had acknowledged.
fn flow(mut sensor: Sensor) -> (Arc<AtomicBool>, JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let flowing = tokio::spawn(async move {
        let mut n = 0;
        while !told.load(Ordering::Relaxed) {
            sensor.publish(n + 1..=n + 20).await;
            n += 20;
        }
        n
    });
    (stop, flowing)
}

/// How many numbers of the readings are missing at a sink, by the reasons it was told.
fn missing(cloud: &Cloud) -> (u64, BTreeSet<String>) {
    let gaps = cloud.gaps("readings");
    let count = gaps.iter().map(|gap| gap.last - gap.first + 1).sum();
    (count, gaps.into_iter().map(|gap| gap.reason).collect())
}

/// Waits until a sink has, or was told of, all readings.
async fn has_all(cloud: &Cloud, count: u64) {
    harness::wait_for("every number to be accounted for", DEADLINE, async || {
        (cloud.count("readings") as u64 + missing(cloud).0 >= count).then_some(())
    })
    .await;
}

/// Waits until this number, which a sink might want, is given up.
async fn trimmed(agent: &Agent, seq: u64) -> harness::books::Status {
    agent
        .wait_for("delivered readings to be given up", |status| {
            status.number("/streams/readings/oldest_seq") > seq
        })
        .await
}

/// Takes another configuration and waits until it is in force; the books balance then.
async fn reload(agent: &Agent, config: &str, nth: &mut usize) {
    *nth += 1;
    agent.configure(config);
    agent.signal(Signal::HUP);
    agent.reloaded(*nth).await;
    agent.status().await.assert_balanced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_comes_changes_goes_and_returns_while_readings_flow() {
    let (cloud, other, journal) = (Cloud::start().await, Cloud::start().await, Journal::default());
    let (port, mut nth) = (harness::free_port(), 0);
    let alone = format!("{STORE}{}{}", listener(port), cloud.sink(BATCH));
    let agent = Agent::started(HOLDFAST, &alone).await;
    let (stop, flowing) = flow(Sensor::new("d1", port, &journal));
    let flows = async |further: usize| {
        let acked = journal.acked_count();
        harness::wait_for("readings to flow", DEADLINE, async || {
            (journal.acked_count() >= acked + further).then_some(())
        })
        .await;
    };
    trimmed(&agent, 1).await;
    reload(&agent, &format!("{alone}{}", second(&other, "")), &mut nth).await;
    let status = agent.status().await;
    assert!(status.ledger_of("second", "readings", "shed") > 0, "what was before it: {:#}", status.0);
    flows(500).await;
    // It changes: another format on the wire, other bounds of a batch.
    let changed = second(&other, "compression = \"gzip\"").replace("records = 50", "records = 30");
    reload(&agent, &format!("{alone}{changed}"), &mut nth).await;
    flows(500).await;
    // It lags, and goes with what it has not got; its books stay as they are.
    other.script(|_| Answer::refuse(503, "not now"));
    flows(500).await;
    reload(&agent, &alone, &mut nth).await;
    let frozen = agent.status().await;
    assert_eq!(frozen.0["sinks"]["second"]["present"], false);
    assert!(frozen.ledger_of("second", "readings", "pending") > 0, "{:#}", frozen.0);
    let shown = agent.command(&["status"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("removed"));
    let has =
        frozen.ledger_of("second", "readings", "delivered") + frozen.ledger_of("second", "readings", "shed");
    // A removed sink holds nothing back.
    let status = trimmed(&agent, has + 1).await;
    status.assert_balanced();
    for counter in ["delivered", "shed", "dead_lettered"] {
        let count = |status: &harness::books::Status| status.ledger_of("second", "readings", counter);
        assert_eq!(count(&status), count(&frozen), "{counter} of a removed sink");
    }
    // It returns, and is told what was given up meanwhile.
    other.script(|_| Answer::take());
    reload(&agent, &format!("{alone}{}", second(&other, "")), &mut nth).await;
    stop.store(true, Ordering::Relaxed);
    let count = flowing.await.unwrap();
    agent.drained("readings", count).await;
    has_all(&other, count).await;
    let status = agent
        .wait_for("the second sink to have all", |status| {
            status.ledger_of("second", "readings", "pending") == 0
        })
        .await;
    status.assert_balanced();
    let (missed, reasons) = missing(&other);
    assert_eq!(reasons, BTreeSet::from(["before-sink".to_owned(), "removed".to_owned()]));
    assert_eq!(status.ledger_of("second", "readings", "shed"), missed);
    assert_eq!(status.ledger_of("second", "readings", "delivered"), other.count("readings") as u64);
    assert_eq!(status.appended("readings"), count);
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    other.assert_well_formed();
    assert_eq!(missing(&cloud).0, 0, "the first sink misses nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_and_windows_come_change_and_go_while_readings_flow() {
    let (broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    let (port, moved, mut nth) = (harness::free_port(), harness::free_port(), 0);
    let sink = cloud.sink(BATCH);
    let plain = format!("{STORE}{}{sink}", listener(port));
    let agent = Agent::started(HOLDFAST, &plain).await;
    let (stop, flowing) = flow(Sensor::new("d1", port, &journal));
    reload(&agent, &format!("{plain}{}{MINUTE}", client(&broker.url())), &mut nth).await;
    agent.wait_for("the broker", |status| status.source_state("plant") == "connected").await;
    let mut behind = Sensor::new("b1", broker.port, &journal);
    behind.publish(1..=200).await;
    cloud.has("windows", 2).await;
    // The window changes; the source that stays goes on where it was.
    let changed = MINUTE.replace("\"1m\"", "\"2m\"");
    reload(&agent, &format!("{plain}{}{changed}", client(&broker.url())), &mut nth).await;
    behind.publish(201..=400).await;
    harness::wait_for("a window of two minutes", DEADLINE, async || {
        let is_one = |record: &serde_json::Value| {
            let minutes =
                |name: &str| record[name].as_str().unwrap().get(14..16).unwrap().parse::<i32>().unwrap();
            (minutes("end") - minutes("start")).rem_euclid(60) == 2
        };
        cloud.records("windows").iter().any(is_one).then_some(())
    })
    .await;
    // Both go, and what they counted stays in the books.
    reload(&agent, &plain, &mut nth).await;
    let status = agent.status().await;
    assert_eq!(status.0["sources"]["plant"]["present"], false);
    assert_eq!(status.source("plant", "received"), 400);
    assert!(status.0["windows"].as_object().unwrap().is_empty());
    stop.store(true, Ordering::Relaxed);
    let count = flowing.await.unwrap();
    // The listener moves; its old door is shut.
    reload(&agent, &format!("{STORE}{}{sink}", listener(moved)), &mut nth).await;
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err());
    Sensor::new("d2", moved, &journal).publish(1..=100).await;
    let status = agent.drained("readings", count + 500).await;
    assert_eq!(status.appended("readings"), count + 500);
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_returns_or_changes_repeats_no_revision() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let plain = format!("{STORE}{}{}", listener(port), cloud.sink(BATCH));
    let minute = format!("{plain}{MINUTE}");
    let mut agent = Agent::started(HOLDFAST, &minute).await;
    let (mut sensor, mut nth) = (Sensor::new("d1", port, &journal), 0);
    // All of it within one minute; a silent device's windows come out after a moment.
    let span = |record: &serde_json::Value| format!("{} {}", record["field"], record["revision"]);
    sensor.publish(1..=5).await;
    cloud.has("windows", 2).await;
    reload(&agent, &plain, &mut nth).await;
    reload(&agent, &minute, &mut nth).await;
    sensor.publish(6..=10).await;
    cloud.has("windows", 4).await;
    // Killed, and changed before the next start.
    agent.kill();
    agent.configure(&format!("{minute}aggregates = [\"max\"]\n"));
    agent.start().await;
    sensor.publish(11..=15).await;
    cloud.has("windows", 6).await;
    let records = cloud.records("windows");
    let spans: BTreeSet<String> = records.iter().map(span).collect();
    assert!(records.iter().all(|record| record["start"] == records[0]["start"]));
    assert_eq!(records.len(), spans.len(), "{records:?}");
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_right_after_sighup_leaves_the_old_books_or_the_new() {
    let (cloud, other, journal) = (Cloud::start().await, Cloud::start().await, Journal::default());
    let (port, mut random) = (harness::free_port(), harness::random());
    let alone = format!("{STORE}{}{}", listener(port), cloud.sink(BATCH));
    let both = format!("{alone}{MINUTE}{}", second(&other, ""));
    let mut agent = Agent::started(HOLDFAST, &alone).await;
    let (stop, flowing) = flow(Sensor::new("d1", port, &journal));
    for round in 0..8 {
        agent.configure(if round % 2 == 0 { &both } else { &alone });
        // Hasty hands press twice.
        for _ in 0..random.u8(1..4) {
            agent.signal(Signal::HUP);
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
        agent.kill();
        agent.start().await;
        agent.status().await.assert_balanced();
    }
    agent.configure(&both);
    agent.signal(Signal::HUP);
    stop.store(true, Ordering::Relaxed);
    let count = flowing.await.unwrap();
    agent.wait_for("the second sink", |status| status.sink_state("second") == "up").await;
    agent.drained("readings", count).await;
    has_all(&other, count).await;
    let status = agent.status().await;
    status.assert_balanced();
    assert_eq!(status.appended("readings"), count);
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    other.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reloaded_is_refused_and_says_why() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    let good = std::fs::read_to_string(agent.config()).unwrap();
    let mut sensor = Sensor::new("d1", port, &journal);
    let refused = async |text: &str, complaint: &str| {
        let before = agent.log().matches("configuration not reloaded").count();
        std::fs::write(agent.config(), text).unwrap();
        agent.signal(Signal::HUP);
        harness::wait_for(complaint, DEADLINE, async || {
            let log = agent.log();
            let count = log.matches("configuration not reloaded").count();
            (count > before && log.contains(complaint)).then(|| assert_eq!(count, before + 1, "{log}"))
        })
        .await;
    };
    sensor.publish(1..=20).await;
    let line = good.lines().count() + 1;
    let file = agent.config();
    refused(&format!("{good}[store2]\nx = 1\n"), &format!("{}:{line}:2", file.display())).await;
    refused("not toml", &format!("{}:1:", file.display())).await;
    refused(&good.replace("/data\"", "/elsewhere\""), "agent.data_dir needs a restart").await;
    assert!(!agent.file("elsewhere").exists());
    std::fs::remove_file(&file).unwrap();
    agent.signal(Signal::HUP);
    harness::wait_for("the file to be missed", DEADLINE, async || {
        (agent.log().matches("configuration not reloaded").count() == 4).then_some(())
    })
    .await;
    sensor.publish(21..=40).await;
    assert_eq!(agent.status().await.source("direct", "redelivered"), 0, "nobody was even disconnected");

    // The same again changes nothing; what is logged changes without a restart of anything.
    std::fs::write(&file, &good).unwrap();
    agent.signal(Signal::HUP);
    std::fs::write(&file, format!("{good}[log]\nlevel = \"debug\"\n")).unwrap();
    agent.signal(Signal::HUP);
    harness::wait_for("more to be logged", DEADLINE, async || {
        agent.log().contains("only what is logged has changed").then_some(())
    })
    .await;
    sensor.publish(41..=60).await;
    agent.drained("readings", 60).await;
    assert!(agent.log().contains("batch answered"), "{}", agent.log());
    assert!(!agent.log().contains("configuration in force"));
    journal.assert_exactly_once(&cloud);

    // Another name is another epoch, for what is to be delivered from now on.
    let epoch = agent.status().await.text("/epoch").to_owned();
    std::fs::write(&file, good.replace("gw-e2e", "gw-new")).unwrap();
    agent.signal(Signal::HUP);
    agent.reloaded(1).await;
    sensor.publish(61..=80).await;
    cloud.has("readings", 80).await;
    let status = agent.status().await;
    assert_eq!(status.text("/agent"), "gw-new");
    assert_ne!(status.text("/epoch"), epoch);
    status.assert_balanced();
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_not_required_blocks_nothing_and_is_told_what_it_misses() {
    let (cloud, other, journal) = (Cloud::start().await, Cloud::start().await, Journal::default());
    let port = harness::free_port();
    other.script(|_| Answer::refuse(503, "down for weeks"));
    let store = "[store]\ncommit_interval = \"50ms\"\nmax_size = \"64KiB\"\nwhen_full = \"block\"\n";
    let both =
        format!("{store}{}{}{}", listener(port), cloud.sink(BATCH), second(&other, "required = false"));
    let mut agent = Agent::started(HOLDFAST, &both).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    // Far more than the store holds, and nobody waits.
    sensor.publish(1..=20_000).await;
    let status = agent.drained("readings", 20_000).await;
    assert!(status.ledger_of("second", "readings", "shed") > 0, "{:#}", status.0);
    assert_eq!(status.ledger("readings", "shed"), 0, "who is required misses nothing");
    agent.kill();
    agent.start().await;
    agent.status().await.assert_balanced();
    other.script(|_| Answer::take());
    sensor.publish(20_001..=20_100).await;
    has_all(&other, 20_100).await;
    let status = agent
        .wait_for("the second sink to have the rest", |status| {
            status.ledger_of("second", "readings", "pending") == 0
        })
        .await;
    status.assert_balanced();
    let (missed, reasons) = missing(&other);
    assert_eq!(reasons, BTreeSet::from(["shed:size".to_owned()]));
    assert_eq!(status.ledger_of("second", "readings", "shed"), missed);
    agent.drained("readings", 20_100).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    other.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_lags_holds_up_no_other() {
    let (cloud, other, journal) = (Cloud::start().await, Cloud::start().await, Journal::default());
    let port = harness::free_port();
    other.script(|_| Answer::take().after(Duration::from_millis(500)));
    let config = format!("{STORE}{}{}{}", listener(port), cloud.sink(BATCH), second(&other, ""));
    let agent = Agent::started(HOLDFAST, &config).await;
    Sensor::new("d1", port, &journal).publish(1..=2_000).await;
    let status = agent.drained("readings", 2_000).await;
    assert!(status.ledger_of("second", "readings", "pending") > 1_000, "{:#}", status.0);
    other.script(|_| Answer::take());
    has_all(&other, 2_000).await;
    assert_eq!(missing(&other).0, 0);
    journal.assert_exactly_once(&cloud);
    journal.assert_exactly_once(&other);
    agent.status().await.assert_balanced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cloud_does_not_hold_up_a_reload() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(200, "").hanging());
    let agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=100).await;
    cloud.wait_for("a request", |requests| !requests.is_empty()).await;
    cloud.script(|_| Answer::take());
    let asked = tokio::time::Instant::now();
    reload(&agent, &format!("{STORE}{}{MINUTE}{}", listener(port), cloud.sink(BATCH)), &mut 0).await;
    assert!(asked.elapsed() < Duration::from_secs(4), "intake was away for {:?}", asked.elapsed());
    sensor.publish(101..=200).await;
    agent.drained("readings", 200).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_take_force_gives_way_to_the_one_before() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    let good = std::fs::read_to_string(agent.config()).unwrap();
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=20).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = good.replace(&agent.admin(), &taken.local_addr().unwrap().to_string());
    std::fs::write(agent.config(), elsewhere).unwrap();
    agent.signal(Signal::HUP);
    harness::wait_for("the complaint", DEADLINE, async || {
        agent.log().contains("the new configuration cannot take force").then_some(())
    })
    .await;
    agent.reloaded(1).await;
    sensor.publish(21..=40).await;
    agent.drained("readings", 40).await;
    // Once the port is free it can.
    drop(taken);
    agent.signal(Signal::HUP);
    agent.reloaded(2).await;
    sensor.publish(41..=60).await;
    agent.drained("readings", 60).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_during_a_reload_stops() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=100).await;
    agent.configure(&format!("{STORE}{}{MINUTE}{}", listener(port), cloud.sink(BATCH)));
    agent.signal(Signal::HUP);
    agent.signal(Signal::TERM);
    assert_eq!(agent.end().await.code(), Some(0));
    agent.start().await;
    agent.drained("readings", 100).await;
    journal.assert_exactly_once(&cloud);
}
