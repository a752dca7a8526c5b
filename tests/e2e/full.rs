//! The store is full: it sheds and says so, or it blocks and the senders keep what they have.

use harness::cloud::Answer;
use harness::{Agent, Broker, Cloud, Journal, Sensor};

use crate::{BATCH, HOLDFAST, STORE, client, listener};

fn store(when_full: &str) -> String {
    format!("[store]\ncommit_interval = \"50ms\"\nmax_size = \"64KiB\"\nwhen_full = \"{when_full}\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shed_is_declared() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(503, ""));
    let window = "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"1h\"\n";
    let config = format!("{}{}{window}{}", store("shed"), listener(port), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    let mut n = 0;
    // A dead cloud and a full store do not stop intake.
    let shedding = async |agent: &Agent, sensor: &mut Sensor, n: &mut u64, shed: u64| {
        loop {
            sensor.publish(*n + 1..=*n + 200).await;
            *n += 200;
            let status = agent.status().await;
            status.assert_balanced();
            if status.ledger("readings", "shed") >= shed {
                return status;
            }
            assert!(*n < 50_000, "nothing is shed: {:#}", status.0);
        }
    };
    let status = shedding(&agent, &mut sensor, &mut n, 1).await;
    assert!(status.number("/store/bytes") <= 2 * (64 << 10), "{}", status.number("/store/bytes"));
    let already = status.ledger("readings", "shed");
    agent.wait_for("the state shedding", |status| status.state() == "shedding").await;
    // The books hold across a crash, too.
    agent.kill();
    agent.start().await;
    agent.status().await.assert_balanced();
    shedding(&agent, &mut sensor, &mut n, already + 500).await;

    cloud.script(|_| Answer::take());
    let status = agent.drained("readings", n).await;
    agent.wait_for("the agent to be online", |status| status.state() == "online").await;
    let shed = status.ledger("readings", "shed");
    assert_eq!((status.appended("readings"), status.ledger("readings", "delivered")), (n, n - shed));
    let gaps = cloud.gaps("readings");
    assert!(gaps.iter().all(|gap| gap.reason == "shed:size"), "{gaps:?}");
    assert_eq!(gaps.iter().map(|gap| gap.last - gap.first + 1).sum::<u64>(), shed);
    assert_eq!(cloud.count("readings") as u64, n - shed);
    let mut delivered: Vec<_> =
        cloud.records("readings").iter().map(|record| record["fields"]["n"].as_u64().unwrap()).collect();
    delivered.dedup();
    assert_eq!(delivered.len() as u64, n - shed, "each once, in order");
    assert_eq!(delivered.last(), Some(&n), "the oldest go first");
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_blocks_loses_nothing_of_its_listener() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(503, ""));
    let config = format!("{}{}{}", store("block"), listener(port), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    let publishing = tokio::spawn(async move { sensor.publish(1..=20_000).await });
    let status = agent.wait_for("the state blocked", |status| status.state() == "blocked").await;
    status.assert_balanced();
    assert_eq!(status.ledger("readings", "shed"), 0);
    // Blocked stays blocked after a crash.
    agent.kill();
    agent.start().await;
    agent.wait_for("the state blocked again", |status| status.state() == "blocked").await;
    assert!(!publishing.is_finished(), "acknowledgements stop");
    assert!(journal.acked_count() < 20_000);
    cloud.script(|_| Answer::take());
    publishing.await.unwrap();
    let status = agent.drained("readings", 20_000).await;
    assert_eq!((status.appended("readings"), status.ledger("readings", "shed")), (20_000, 0));
    agent.wait_for("the agent to be online", |status| status.state() == "online").await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_blocks_leaves_the_rest_at_the_broker() {
    let (broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    cloud.script(|_| Answer::refuse(503, ""));
    let config = format!("{}{}{}", store("block"), client(&broker.url()), cloud.sink(BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;
    // The broker takes everything, whatever the agent does.
    Sensor::new("d1", broker.port, &journal).publish(1..=20_000).await;
    let status = agent.wait_for("the state blocked", |status| status.state() == "blocked").await;
    assert!(status.appended("readings") < 20_000);
    status.assert_balanced();
    cloud.script(|_| Answer::take());
    let status = agent.drained("readings", 20_000).await;
    assert_eq!((status.appended("readings"), status.ledger("readings", "shed")), (20_000, 0));
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_shed_and_declared() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(503, ""));
    let store = "[store]\ncommit_interval = \"50ms\"\nmax_age = \"2s\"\n";
    let agent = Agent::started(HOLDFAST, &format!("{store}{}{}", listener(port), cloud.sink(BATCH))).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    let mut n = 0;
    let status = loop {
        sensor.publish(n + 1..=n + 20).await;
        n += 20;
        let status = agent.status().await;
        status.assert_balanced();
        if status.ledger("readings", "shed") > 0 {
            break status;
        }
        assert!(n < 1_000_000, "nothing is shed: {:#}", status.0);
    };
    assert!(status.ledger("readings", "pending") > 0);
    cloud.script(|_| Answer::take());
    let status = agent.drained("readings", n).await;
    let shed = status.ledger("readings", "shed");
    let gaps = cloud.gaps("readings");
    assert!(gaps.iter().all(|gap| gap.reason == "shed:age"), "{gaps:?}");
    assert_eq!(gaps.iter().map(|gap| gap.last - gap.first + 1).sum::<u64>(), shed);
    assert_eq!(cloud.count("readings") as u64, n - shed);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_beyond_their_limit_are_purged_and_counted() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let limits = "[dead_letters]\nmax_size = \"8KiB\"\nmax_payload = \"1KiB\"\n";
    let config = format!("{STORE}{limits}{}{}", listener(port), cloud.sink(BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    let garbage = |n: u64| (n, format!("garbage {n} {}", "x".repeat(5_000)).into_bytes());
    Sensor::new("d1", port, &journal).publish_payloads((1..=50).map(garbage)).await;
    let status =
        agent.wait_for("all to be settled", |status| status.source("direct", "rejected") == 50).await;
    let (kept, purged) = (status.number("/dead_letters/kept"), status.number("/dead_letters/purged"));
    assert_eq!(kept + purged, 50);
    assert!((1..=8).contains(&kept), "{kept} are kept");
    assert!(status.number("/dead_letters/bytes") <= 8 << 10);
    let listed = agent.command(&["dead-letters", "list", "--json"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count() as u64, kept);
    // Cut, but with the full length.
    assert!(listed.lines().all(|line| line.contains("\"payload_bytes\":50")), "{listed}");
}
