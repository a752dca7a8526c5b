//! The plug is pulled, at random moments, again and again: nothing acknowledged is lost, nothing is stored twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Agent, Broker, Cloud, Journal, Sensor};
use tokio::task::JoinSet;

use crate::{BATCH, HOLDFAST, STORE, client, listener};

/// Times that the agent is killed in one test.
const KILLS: usize = 6;

/// Sensors publish until `stop`; then all they sent is acknowledged.
fn publish_until(stop: &Arc<AtomicBool>, sensors: impl IntoIterator<Item = Sensor>) -> JoinSet<()> {
    let mut publishing = JoinSet::new();
    for mut sensor in sensors {
        let stop = Arc::clone(stop);
        publishing.spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                sensor.publish(n + 1..=n + 40).await;
                n += 40;
            }
        });
    }
    publishing
}

/// Kills and starts the agent at random moments, while readings flow.
async fn kill_again_and_again(agent: &mut Agent, cloud: &Cloud, journal: &Journal) {
    let mut random = harness::random();
    for _ in 0..KILLS {
        let (acked, requests) = (journal.acked_count(), cloud.request_count());
        let (further, batches) = (random.usize(1..400), random.usize(1..6));
        harness::wait_for("readings to flow", harness::DEADLINE, async || {
            (journal.acked_count() >= acked + further || cloud.request_count() >= requests + batches)
                .then_some(())
        })
        .await;
        agent.kill();
        agent.start().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_mid_flow_loses_nothing_of_its_own_listener() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut agent = crate::listening(port, &cloud).await;
    let stop = Arc::new(AtomicBool::new(false));
    let sensors = (0..4).map(|i| Sensor::new(&format!("d{i}"), port, &journal));
    let publishing = publish_until(&stop, sensors);
    kill_again_and_again(&mut agent, &cloud, &journal).await;
    stop.store(true, Ordering::Relaxed);
    publishing.join_all().await;

    let acked = journal.acked_count();
    let status = agent.drained("readings", acked as u64).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    assert_eq!(
        status.appended("readings"),
        acked as u64,
        "all that was sent is acknowledged, and no more is stored"
    );
    assert_eq!(cloud.count("readings"), acked);
    println!("{acked} readings, {} recognised", status.source("direct", "redelivered"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_mid_flow_loses_nothing_of_a_broker() {
    let (broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    let config = format!("{STORE}{}{}", client(&broker.url()), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    // Before the first subscription the broker keeps nothing for us.
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;
    let stop = Arc::new(AtomicBool::new(false));
    let sensors = (0..4).map(|i| Sensor::new(&format!("d{i}"), broker.port, &journal));
    let publishing = publish_until(&stop, sensors);
    kill_again_and_again(&mut agent, &cloud, &journal).await;
    stop.store(true, Ordering::Relaxed);
    publishing.join_all().await;

    let acked = journal.acked_count();
    let status = agent.drained("readings", acked as u64).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    assert_eq!(status.appended("readings"), acked as u64, "nothing is stored twice");
    println!("{acked} readings, {} recognised", status.source("plant", "redelivered"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_sent_again_after_a_crash_is_the_same() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| harness::cloud::Answer::refuse(503, "not now"));
    let mut agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    for round in 0..4 {
        sensor.publish(round * 70 + 1..=round * 70 + 70).await;
        let before = cloud.request_count();
        cloud.wait_for("another attempt", |requests| requests.len() > before).await;
        agent.kill();
        agent.start().await;
    }
    cloud.script(|_| harness::cloud::Answer::take());
    agent.drained("readings", 280).await;
    journal.assert_exactly_once(&cloud);
    // That bodies are the same is seen by the cloud itself; here, that there was something to see.
    cloud.assert_well_formed();
    let mut attempts: BTreeMap<String, usize> = BTreeMap::new();
    cloud.requests().into_iter().for_each(|request| *attempts.entry(request.key).or_default() += 1);
    let most = attempts.values().max().copied().unwrap_or(0);
    assert!(most >= 4, "the first batch was attempted before and after each crash: {attempts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_just_acknowledged_survives_a_kill() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    // A commit interval longer than the test: a lone reading is committed, and acknowledged, at once all the same.
    let store = "[store]\ncommit_interval = \"60s\"\n";
    let config = format!("{store}{}{}", listener(port), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    for n in 1..=5 {
        let published = tokio::time::timeout(Duration::from_secs(20), sensor.publish([n])).await;
        published.expect("a lone reading is acknowledged without waiting for the interval");
        agent.kill();
        agent.start().await;
    }
    cloud.has("readings", 5).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_sent_again_because_its_ack_was_lost_is_not_stored_again() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    for n in 1..=10 {
        sensor.send(n).await.unwrap();
    }
    // The agent has them, but their acknowledgements are never read.
    agent.wait_for("ten readings", |status| status.appended("readings") == 10).await;
    sensor.cut();
    sensor.publish(11..=20).await;
    let status = agent.drained("readings", 20).await;
    assert_eq!((status.appended("readings"), status.source("direct", "redelivered")), (20, 10));

    // The same across a crash.
    for n in 21..=30 {
        sensor.send(n).await.unwrap();
    }
    agent.wait_for("ten more", |status| status.appended("readings") == 30).await;
    agent.kill();
    sensor.cut();
    agent.start().await;
    sensor.publish(31..=40).await;
    let status = agent.drained("readings", 40).await;
    assert_eq!((status.appended("readings"), status.source("direct", "redelivered")), (40, 20));
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_makes_its_store_starts_again() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut random = harness::random();
    let config = format!("{STORE}{}{}", listener(port), cloud.sink(BATCH));
    let mut agent = Agent::new(HOLDFAST, &config);
    for _ in 0..15 {
        agent.spawn();
        // At a random moment between the first folder and being ready.
        let steps = random.usize(0..40);
        let (data, mut seen) = (agent.file("data"), 0);
        harness::wait_for("the data folder", harness::DEADLINE, || {
            seen += usize::from(data.exists());
            std::future::ready((seen > 0).then_some(()))
        })
        .await;
        for _ in 0..steps {
            tokio::task::spawn_blocking(|| std::fs::metadata("/proc/self/status")).await.unwrap().unwrap();
        }
        agent.kill();
        // Half of the times from nothing.
        if random.bool() {
            agent.start().await;
            agent.kill();
            std::fs::remove_dir_all(agent.file("data")).unwrap();
        }
    }
    agent.start().await;
    Sensor::new("d1", port, &journal).publish(1..=20).await;
    agent.drained("readings", 20).await;
    journal.assert_exactly_once(&cloud);
}
