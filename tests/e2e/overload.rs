//! More than the agent can take: memory stays flat, nobody starves, and all is well again by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::cloud::Answer;
use harness::{Agent, Broker, Cloud, DEADLINE, Journal, Sensor};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{BATCH, HOLDFAST, STORE, client, listener};

/// What the agent may take of memory however many small messages come. `ARCHITECTURE.md` says so.
const MOST_KIB: u64 = 64 << 10;
/// The same, for messages of a megabyte.
const MOST_FOR_LARGE_KIB: u64 = 192 << 10;
/// What it may grow by while the same goes on.
const GROWTH_KIB: u64 = 24 << 10;
/// Windows that close as the readings' times go on.
const WINDOW: &str = "[windows.short]\nsize = \"5s\"\nlateness = \"0s\"\nidle = \"1h\"\n";
/// As many records as a request takes by default.
const LARGE_BATCH: &str = "batch = { wait = \"50ms\" }";

/// Eight sensors that publish so many readings each, as fast as they are let.
async fn flood(port: u16, journal: &Journal, numbers: std::ops::RangeInclusive<u64>) {
    let mut sensors = JoinSet::new();
    for device in 0..8 {
        let (journal, numbers) = (journal.clone(), numbers.clone());
        sensors.spawn(async move {
            Sensor::new(&format!("d{device}"), port, &journal).publish(numbers).await;
        });
    }
    while let Some(sensor) = sensors.join_next().await {
        sensor.unwrap();
    }
}

/// Nothing is lost, and memory stays flat.
async fn withstands(agent: &Agent, cloud: &Cloud, port: u16) {
    let journal = Journal::default();
    flood(port, &journal, 1..=3_000).await;
    let peak_kib = agent.peak_kib();
    flood(port, &journal, 3_001..=9_000).await;
    let status = agent.drained("readings", 8 * 9_000).await;
    assert_eq!((status.appended("readings"), status.ledger("readings", "shed")), (8 * 9_000, 0));
    agent.wait_for("the agent to be online", |status| status.state() == "online").await;
    let later_kib = agent.peak_kib();
    assert!(later_kib <= MOST_KIB, "{later_kib} KiB of memory");
    assert!(later_kib - peak_kib <= GROWTH_KIB, "memory grows: {peak_kib} KiB, then {later_kib}");
    journal.assert_exactly_once(cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn sensors_at_full_speed_are_slowed_down_and_memory_stays_flat() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let config = format!("{STORE}{WINDOW}{}{}", listener(port), cloud.sink(LARGE_BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    withstands(&agent, &cloud, port).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_more_than_we_can_take_keeps_it_and_memory_stays_flat() {
    let (broker, cloud) = (Broker::start().await, Cloud::start().await);
    let config = format!("{STORE}{WINDOW}{}{}", client(&broker.url()), cloud.sink(LARGE_BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;
    withstands(&agent, &cloud, broker.port).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_most_of_the_traffic_does_not_starve_the_others() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let config = format!("{STORE}{WINDOW}{}{}", listener(port), cloud.sink(LARGE_BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut loud = Sensor::new("loud", port, &journal);
    let is_enough = Arc::clone(&enough);
    let publishing = tokio::spawn(async move {
        loud.publish((1..).take_while(|_| !is_enough.load(Ordering::Relaxed))).await;
    });
    cloud.has("readings", 500).await;
    let mut quiet = JoinSet::new();
    for device in 0..9 {
        let journal = journal.clone();
        quiet.spawn(async move {
            let mut sensor = Sensor::new(&format!("quiet{device}"), port, &journal);
            let mut longest = Duration::ZERO;
            for n in 1..=12 {
                let started = Instant::now();
                sensor.publish([n]).await;
                longest = longest.max(started.elapsed());
            }
            longest
        });
    }
    while let Some(longest) = quiet.join_next().await {
        let longest = longest.unwrap();
        assert!(longest < DEADLINE / 6, "a quiet device waited {longest:?} for an acknowledgement");
    }
    // Their readings and the results of them arrive while the loud one goes on.
    let of_quiet = |record: &serde_json::Value| record["device"].as_str().unwrap().starts_with("quiet");
    harness::wait_for("what the quiet ones said, and its windows", DEADLINE, async || {
        let count = |stream: &str| cloud.records(stream).iter().filter(|record| of_quiet(record)).count();
        (count("readings") == 9 * 12 && count("windows") >= 9 * 2).then_some(())
    })
    .await;
    assert!(!publishing.is_finished(), "the loud one goes on");
    enough.store(true, Ordering::Relaxed);
    publishing.await.unwrap();
    let stored = journal.acked_count() as u64;
    agent.drained("readings", stored).await;
    let loud_ones = journal.acked_marks().iter().filter(|(device, _)| device == "loud").count() as u64;
    assert!(loud_ones >= stored / 10 * 8, "{loud_ones} of {stored} are of the loud one");
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

/// A payload of a megabyte: 1 000 fields of text.
fn megabyte(n: u64) -> Vec<u8> {
    let fields: String = (0..1_000).map(|i| format!(",\"f{i}\":\"{:01000}\"", n * 1_000 + i)).collect();
    let payload = format!("{{\"ts\":{},\"n\":{n}{fields}}}", harness::sensor::START_MS + n);
    assert!((1_000_000..1 << 20).contains(&payload.len()), "{}", payload.len());
    payload.into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_a_megabyte_from_many_at_once_pass_and_memory_stays_flat() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let config = format!("{STORE}{}{}", listener(port), cloud.sink(LARGE_BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    let mut sensors = JoinSet::new();
    for device in 0..8_u64 {
        let journal = journal.clone();
        sensors.spawn(async move {
            let payloads = (1..=5).map(|n| (n, megabyte(n)));
            Sensor::new(&format!("d{device}"), port, &journal).publish_payloads(payloads).await;
        });
    }
    while let Some(sensor) = sensors.join_next().await {
        sensor.unwrap();
    }
    agent.drained("readings", 40).await;
    let peak_kib = agent.peak_kib();
    assert!(peak_kib <= MOST_FOR_LARGE_KIB, "{peak_kib} KiB of memory");
    journal.assert_exactly_once(&cloud);
    let requests = cloud.requests();
    assert!(requests.iter().all(|request| request.records().len() <= 1), "each is too large for company");
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_that_take_far_more_memory_than_they_are_long_have_a_limit() {
    let (journal, port) = (Journal::default(), harness::free_port());
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{}", listener(port))).await;
    let fields: Vec<_> = (0..50_000).map(|n| format!("\"field{n}\":{n}")).collect();
    let many_fields = format!("{{\"ts\":1,{}}}", fields.join(",")).into_bytes();
    let array = |count: usize| format!("[{}{{}}]", "{\"ts\":1,\"a\":1},".repeat(count)).replace(",{}]", "]");
    let payloads = [many_fields, array(69_000).into_bytes(), array(65_000).into_bytes()];
    assert!(payloads.iter().all(|payload| payload.len() <= 1 << 20));
    let mut sensors = JoinSet::new();
    for device in 0..16 {
        let payloads: Vec<_> = (1..).zip(payloads.clone()).collect();
        let journal = journal.clone();
        sensors.spawn(async move {
            Sensor::new(&format!("d{device}"), port, &journal).publish_payloads(payloads).await;
        });
    }
    while let Some(sensor) = sensors.join_next().await {
        sensor.unwrap();
    }
    let status =
        agent.wait_for("all to be settled", |status| status.source("direct", "received") == 48).await;
    status.assert_balanced();
    assert_eq!((status.source("direct", "rejected"), status.appended("readings")), (32, 16 * 65_000));
    let peak_kib = agent.peak_kib();
    assert!(peak_kib <= MOST_FOR_LARGE_KIB, "{peak_kib} KiB of memory");
    let listed = agent.command(&["dead-letters", "list", "--json"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("more than 65536 readings") && listed.contains("more than 4096 fields"),
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_takes_long_for_each_request_delays_no_window_and_stops_no_intake() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::take().after(Duration::from_secs(1)));
    let sink = cloud.sink(&format!("timeout = \"30s\"\n{BATCH}"));
    let config = format!("{STORE}{WINDOW}{}{sink}", listener(port));
    let agent = Agent::started(HOLDFAST, &config).await;
    flood(port, &journal, 1..=1_000).await;
    // All is taken, while a backlog of 160 requests waits; nothing is the matter.
    let status = agent.status().await;
    assert!(status.ledger("readings", "pending") > 4_000, "{:#}", status.0);
    status.assert_balanced();
    let before = cloud.requests().iter().filter(|request| request.stream() == "readings").count();
    // Every window that is closed is there long before the backlog of readings is.
    let windows = agent
        .wait_for("windows to be appended", |status| status.appended("windows") >= 8 * 199)
        .await
        .appended("windows");
    let needed = usize::try_from(windows).unwrap();
    cloud.wait_for("a few requests", |requests| requests.len() >= before + 3).await;
    let requests = cloud.requests();
    let streams: Vec<_> = requests.iter().map(|request| request.stream().to_owned()).collect();
    let first_window = streams.iter().position(|stream| stream == "windows").expect("windows were sent");
    let after: Vec<_> = streams[first_window..].iter().filter(|stream| *stream == "readings").collect();
    assert!(after.len() <= 2, "readings of the backlog go before windows: {streams:?}");
    // Quick again, the cloud has all of it soon.
    cloud.script(|_| Answer::take());
    agent.drained("windows", windows).await;
    agent.drained("readings", 8_000).await;
    agent.wait_for("the agent to be online", |status| status.state() == "online").await;
    assert!(cloud.count("windows") >= needed);
    assert!(agent.peak_kib() <= MOST_KIB, "{} KiB of memory", agent.peak_kib());
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}
