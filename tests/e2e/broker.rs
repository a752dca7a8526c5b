//! The broker restarts, forgets, redelivers: the agent is back by itself, and stores each message once.

use harness::{Agent, Broker, Cloud, Journal, Sensor};

use crate::{BATCH, HOLDFAST, STORE, client};

/// An agent that is subscribed at the broker, with further lines for the source.
async fn subscribed(broker: &Broker, cloud: &Cloud, lines: &str) -> Agent {
    let source = client(&broker.url()).replace("type = \"mqtt\"\n", &format!("type = \"mqtt\"\n{lines}"));
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{source}{}", cloud.sink(BATCH))).await;
    connected(&agent).await;
    agent
}

async fn connected(agent: &Agent) {
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;
}

async fn disconnected(agent: &Agent) {
    agent.wait_for("the source to notice", |status| status.source_state("plant") == "disconnected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_is_found_again() {
    for protocol in ["", "protocol = \"5\"\n"] {
        let (mut broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
        let mut agent = subscribed(&broker, &cloud, protocol).await;
        for round in 0..3 {
            Sensor::new(&format!("d{round}"), broker.port, &journal).publish(1..=100).await;
            broker.stop().await;
            disconnected(&agent).await;
            broker.restart().await;
            connected(&agent).await;
        }
        // What comes while the agent is away waits at the broker, also across a restart of the broker.
        assert!(agent.stop().await.success());
        Sensor::new("d3", broker.port, &journal).publish(1..=100).await;
        broker.stop().await;
        broker.restart().await;
        agent.start().await;
        let status = agent.drained("readings", 400).await;
        assert_eq!(status.appended("readings"), 400);
        assert_eq!(journal.acked_count(), 400);
        journal.assert_exactly_once(&cloud);
        cloud.assert_well_formed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_renewed_at_a_broker_that_forgot_them() {
    let (mut broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    let agent = subscribed(&broker, &cloud, "").await;
    Sensor::new("d1", broker.port, &journal).publish(1..=50).await;
    agent.drained("readings", 50).await;
    broker.stop().await;
    broker.forget();
    disconnected(&agent).await;
    broker.restart().await;
    connected(&agent).await;
    // Under packet ids that were used before: they mean nothing any more.
    Sensor::new("d2", broker.port, &journal).publish(1..=50).await;
    let status = agent.drained("readings", 100).await;
    assert_eq!((status.appended("readings"), status.source("plant", "redelivered")), (100, 0));
    journal.assert_exactly_once(&cloud);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_redelivers_is_recognised_also_across_a_crash() {
    for protocol in ["", "protocol = \"5\"\n"] {
        let (mut broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
        let mut agent = subscribed(&broker, &cloud, protocol).await;
        let mut sensor = Sensor::new("d1", broker.port, &journal);
        for (round, crash) in [Crash::No, Crash::Yes].into_iter().enumerate() {
            let first = round as u64 * 10;
            // The broker sends ten messages to an agent that stands still; then the broker stands still and the agent
            // stores and acknowledges them; the broker ends without having read the acknowledgements.
            agent.freeze();
            sensor.publish(first + 1..=first + 10).await;
            broker.freeze();
            agent.thaw();
            agent.wait_for("ten readings", |status| status.appended("readings") == first + 10).await;
            if crash == Crash::Yes {
                agent.kill();
            }
            sensor.cut();
            broker.stop().await;
            broker.restart().await;
            if crash == Crash::Yes {
                agent.start().await;
            }
            connected(&agent).await;
            let status = agent
                .wait_for("the redelivery", |status| status.source("plant", "redelivered") == first + 10)
                .await;
            assert_eq!(status.appended("readings"), first + 10, "nothing is stored twice");
        }
        sensor.publish(21..=30).await;
        agent.drained("readings", 30).await;
        journal.assert_exactly_once(&cloud);
        cloud.assert_well_formed();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Crash {
    No,
    Yes,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_yet_is_found_when_it_comes() {
    let (mut broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    broker.stop().await;
    let source = client(&broker.url());
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{source}{}", cloud.sink(BATCH))).await;
    disconnected(&agent).await;
    broker.restart().await;
    connected(&agent).await;
    Sensor::new("d1", broker.port, &journal).publish(1..=50).await;
    agent.drained("readings", 50).await;
    journal.assert_exactly_once(&cloud);
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_are_no_new_readings_unless_asked_for() {
    for (lines, readings, skipped) in [("", 0, 1), ("retained = \"take\"\n", 1, 0)] {
        let (broker, cloud) = (Broker::start().await, Cloud::start().await);
        let port = broker.port.to_string();
        let topic = "sensors/d1/telemetry";
        crate::mosquitto_pub(&[
            "-p",
            &port,
            "-q",
            "1",
            "-r",
            "-t",
            topic,
            "-m",
            "{\"ts\":1795147200,\"n\":1}",
        ])
        .await;
        let source = format!("{}{lines}", client(&broker.url()));
        let agent = Agent::started(HOLDFAST, &format!("{STORE}{source}{}", cloud.sink(BATCH))).await;
        let status = agent.wait_for("the replay", |status| status.source("plant", "received") == 1).await;
        assert_eq!((status.appended("readings"), status.source("plant", "skipped")), (readings, skipped));
        status.assert_balanced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_let_us_in_is_a_state_of_its_own() {
    let (broker, cloud) = (Broker::with("allow_anonymous false").await, Cloud::start().await);
    for protocol in ["3.1.1", "5"] {
        let credentials = format!("protocol = \"{protocol}\"\nusername = \"gw\"\npassword = \"s3cr3t\"\n");
        let source =
            client(&broker.url()).replace("type = \"mqtt\"\n", &format!("type = \"mqtt\"\n{credentials}"));
        let agent = Agent::started(HOLDFAST, &format!("{STORE}{source}{}", cloud.sink(BATCH))).await;
        let status =
            agent.wait_for("the refusal", |status| status.source_state("plant") == "misconfigured").await;
        assert!(!status.text("/sources/plant/last_error").is_empty());
        assert!(!agent.log().contains("s3cr3t") && !format!("{:?}", status.0).contains("s3cr3t"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_gone_from_the_configuration_is_dropped_at_the_broker() {
    let (broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    let second = "[[sources.plant.subscribe]]\ntopic = \"other/{device}\"\n";
    let config = |more: &str| format!("{STORE}{}{more}{}", client(&broker.url()), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config(second)).await;
    connected(&agent).await;
    assert!(agent.stop().await.success());
    agent.configure(&config(""));
    agent.start().await;
    connected(&agent).await;
    let port = broker.port.to_string();
    crate::mosquitto_pub(&["-p", &port, "-q", "1", "-t", "other/d1", "-m", "{\"n\":1}"]).await;
    Sensor::new("d2", broker.port, &journal).publish(1..=10).await;
    let status = agent.drained("readings", 10).await;
    // Had the broker still sent the other, it would have come before, and be counted as rejected.
    assert_eq!((status.source("plant", "received"), status.source("plant", "rejected")), (10, 0));
    journal.assert_exactly_once(&cloud);
}
