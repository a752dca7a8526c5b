//! The cloud is away, slow, or loses its answers: all is kept, and each record arrives once.

use std::time::Duration;

use harness::cloud::Answer;
use harness::{Agent, Cloud, Journal, Sensor};

use crate::{BATCH, HOLDFAST, STORE, listener};

/// An agent buffers while `cloud` behaves like this, and drains once it is well.
async fn survives(outage: Answer) {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(move |_| outage.clone());
    let sink = cloud.sink(&format!("timeout = \"300ms\"\n{BATCH}"));
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{}{sink}", listener(port))).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=120).await;
    let status =
        agent.wait_for("the sink to be down", |status| status.sink_state("cloud") == "retrying").await;
    assert_eq!(status.state(), "buffering");
    assert!(!status.text("/sinks/cloud/last_error").is_empty());
    status.assert_balanced();
    assert_eq!(status.ledger("readings", "delivered"), 0);
    cloud.wait_for("three attempts", |requests| requests.len() >= 3).await;
    // A dead cloud does not slow intake.
    sensor.publish(121..=240).await;

    cloud.script(|_| Answer::take());
    let status = agent.drained("readings", 240).await;
    assert_eq!((status.sink_state("cloud"), status.text("/sinks/cloud/last_error")), ("up", ""));
    assert_eq!(status.ledger("readings", "delivered"), 240);
    agent.wait_for("the agent to be online", |status| status.state() == "online").await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    let requests = cloud.requests();
    let first = requests.iter().filter(|request| request.key == requests[0].key).count();
    assert!(first >= 3, "the first batch was sent again as it was, {first} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_answers_500_gets_everything_later() {
    survives(Answer::refuse(500, "<h1>oh no</h1>")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_hangs_gets_everything_later() {
    survives(Answer::refuse(200, "").hanging()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_hangs_up_gets_everything_later() {
    survives(Answer::refuse(200, "").dropping()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_breaks_off_its_answers_gets_everything_later() {
    survives(Answer::refuse(200, "").half_said()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_whose_answers_are_lost_has_each_record_once() {
    survives(Answer::take().dropping()).await;
    survives(Answer::take().half_said()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_that_asks_for_patience_gets_it() {
    for status in [408, 409, 425, 429, 503] {
        survives(Answer::refuse(status, "")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_nobody_finds_gets_everything_when_it_is_back() {
    let (mut cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.close();
    let mut agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=300).await;
    let status =
        agent.wait_for("the sink to be down", |status| status.sink_state("cloud") == "retrying").await;
    assert_eq!((status.state(), status.ledger("readings", "pending")), ("buffering", 300));
    assert!(
        status.0.pointer("/sinks/cloud/next_attempt_s").is_some_and(|due| due.is_number() || due.is_null())
    );
    // It may also be stopped and started meanwhile.
    assert!(agent.stop().await.success());
    agent.start().await;
    sensor.publish(301..=400).await;
    cloud.reopen().await;
    agent.drained("readings", 400).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut refusals = 0;
    cloud.script(move |_| {
        refusals += 1;
        match refusals {
            1 => Answer::refuse(429, "").with_header("Retry-After", "2"),
            _ => Answer::take(),
        }
    });
    let agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=10).await;
    agent.drained("readings", 10).await;
    let requests = cloud.requests();
    let pause = requests[1].at - requests[0].at;
    assert!(pause >= Duration::from_secs(2), "sent again after {pause:?}");
    journal.assert_exactly_once(&cloud);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_takes_half_of_a_batch_gets_the_rest() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|request| Answer::take_until(request.first() + (request.last() - request.first()) / 2));
    let agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=200).await;
    agent.drained("readings", 200).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}
