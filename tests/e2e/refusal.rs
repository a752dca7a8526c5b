//! A cloud that refuses: records for good, credentials, the whole address. Poison is isolated, everything else is kept.

use std::time::Duration;

use harness::cloud::{Answer, Gap, Request};
use harness::{Agent, Cloud, Journal, Sensor};
use serde_json::Value;

use crate::{BATCH, HOLDFAST, STORE, listener};

/// True if the batch has the reading `n`.
fn has(request: &Request, n: u64) -> bool {
    request.records().iter().any(|record| record["fields"]["n"] == n)
}

fn dead_letter(seq: u64) -> Gap {
    Gap { first: seq, last: seq, reason: "dead-letter".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_records_are_isolated_and_the_rest_is_delivered() {
    for status in [400, 422] {
        let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
        cloud.script(move |request| {
            // One in the middle, and the very last, which no later record explains.
            if has(request, 13) || has(request, 60) {
                Answer::refuse(status, "{\"error\":\"no such unit\"}")
            } else {
                Answer::take()
            }
        });
        let mut agent = crate::listening(port, &cloud).await;
        Sensor::new("d1", port, &journal).publish(1..=60).await;
        let state = agent.drained("readings", 60).await;
        assert_eq!(
            (state.ledger("readings", "delivered"), state.ledger("readings", "dead_lettered")),
            (58, 2)
        );
        assert_eq!(state.sink_state("cloud"), "up");
        let delivered: Vec<_> =
            cloud.records("readings").iter().map(|record| record["seq"].as_u64().unwrap()).collect();
        let expected: Vec<_> = (1..=60).filter(|seq| ![13, 60].contains(seq)).collect();
        assert_eq!(delivered, expected);
        harness::wait_for("the last gap to be declared", harness::DEADLINE, async || {
            (cloud.gaps("readings") == [dead_letter(13), dead_letter(60)]).then_some(())
        })
        .await;
        cloud.assert_well_formed();

        let listed = |output: std::process::Output| -> Vec<Value> {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let letters = listed(agent.command(&["dead-letters", "list", "--json"]).await);
        assert_eq!(letters.len(), 2);
        for (letter, seq) in letters.iter().zip([13, 60]) {
            assert_eq!(
                (letter["sink"].as_str(), letter["stream"].as_str()),
                (Some("cloud"), Some("readings"))
            );
            assert_eq!((letter["first"].as_u64(), letter["last"].as_u64()), (Some(seq), Some(seq)));
            assert_eq!(letter["status"], status);
            assert!(letter["reason"].as_str().unwrap().contains("no such unit"), "{letter}");
        }
        assert!(agent.stop().await.success());
        assert_eq!(listed(agent.command(&["dead-letters", "list", "--json"]).await), letters);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_refuses_everything_costs_ten_records_and_no_more() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(400, "schema version 7 expected"));
    let agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=100).await;
    let state = agent.wait_for("the state refusing", |state| state.sink_state("cloud") == "refusing").await;
    assert!(state.text("/sinks/cloud/last_error").contains("schema version 7"));
    assert_eq!(state.state(), "buffering");
    let before = cloud.request_count();
    cloud.wait_for("further attempts", |requests| requests.len() >= before + 5).await;
    sensor.publish(101..=150).await;
    let state = agent.status().await;
    state.assert_balanced();
    assert_eq!((state.ledger("readings", "dead_lettered"), state.ledger("readings", "pending")), (10, 140));

    cloud.script(|_| Answer::take());
    let state = agent.drained("readings", 150).await;
    assert_eq!((state.ledger("readings", "dead_lettered"), state.ledger("readings", "delivered")), (10, 140));
    assert_eq!(state.sink_state("cloud"), "up");
    assert_eq!(cloud.gaps("readings").iter().map(|gap| gap.last - gap.first + 1).sum::<u64>(), 10);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_halved_until_it_is_not() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(
        |request| {
            if request.decoded.len() > 2_000 { Answer::refuse(413, "") } else { Answer::take() }
        },
    );
    let agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=100).await;
    // And one that is too large by itself.
    let giant = format!("{{\"n\":101,\"text\":\"{}\"}}", "x".repeat(3_000))
        .replace("{\"n\"", "{\"ts\":1795147200000,\"n\"");
    sensor.publish_payloads([(101, giant.into_bytes())]).await;
    sensor.publish(102..=110).await;
    let state = agent.drained("readings", 110).await;
    assert_eq!((state.ledger("readings", "dead_lettered"), state.ledger("readings", "delivered")), (1, 109));
    cloud.assert_well_formed();
    assert!(!cloud.records("readings").iter().any(|record| record["fields"]["n"] == 101));
}

/// The sink gets into `state`, nothing is lost, and it recovers by itself.
async fn keeps_everything(answer: Answer, state: &str) {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(move |_| answer.clone());
    let agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=60).await;
    let status = agent.wait_for(&format!("the state {state}"), |now| now.sink_state("cloud") == state).await;
    assert_eq!(status.state(), "buffering");
    let before = cloud.request_count();
    cloud.wait_for("another attempt", |requests| requests.len() > before).await;
    sensor.publish(61..=80).await;
    let status = agent.status().await;
    assert_eq!(status.ledger("readings", "pending"), 80);
    status.assert_balanced();
    cloud.script(|_| Answer::take());
    agent.drained("readings", 80).await;
    agent.wait_for("the agent to be online", |status| status.state() == "online").await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_does_not_know_us_is_asked_until_it_does() {
    for status in [401, 403, 407] {
        keeps_everything(Answer::refuse(status, "who are you"), "unauthorized").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_a_state_of_its_own() {
    for status in [404, 405, 410, 451] {
        keeps_everything(Answer::refuse(status, "<html>not found</html>"), "misconfigured").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_never_followed() {
    let elsewhere = Cloud::start().await;
    for status in [301, 302, 307, 308] {
        let answer = Answer::refuse(status, "").with_header("Location", &elsewhere.url());
        keeps_everything(answer, "misconfigured").await;
    }
    assert_eq!(elsewhere.request_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_2xx_counts_whatever_it_says() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut answers = [(200, "<html>ok</html>"), (204, ""), (202, "{\"next\":\"soon\"}"), (201, "null")]
        .into_iter()
        .cycle();
    cloud.script(move |_| {
        let (status, body) = answers.next().unwrap();
        Answer::take().saying(status, body)
    });
    let agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=400).await;
    agent.drained("readings", 400).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_require_ack_only_a_body_with_next_counts() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::take().saying(200, "<html>thank you</html>"));
    let sink = cloud.sink(&format!("require_ack = true\n{BATCH}"));
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{}{sink}", listener(port))).await;
    Sensor::new("d1", port, &journal).publish(1..=50).await;
    cloud.wait_for("three attempts", |requests| requests.len() >= 3).await;
    let state = agent.wait_for("the sink to retry", |state| state.sink_state("cloud") == "retrying").await;
    assert_eq!(state.ledger("readings", "delivered"), 0);
    cloud.script(|_| Answer::take());
    agent.drained("readings", 50).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_behind_the_batch_is_no_delivery() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|request| Answer::refuse(200, &format!("{{\"next\":{}}}", request.first())));
    let agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=50).await;
    cloud.wait_for("three attempts", |requests| requests.len() >= 3).await;
    let state = agent.wait_for("the sink to retry", |state| state.sink_state("cloud") == "retrying").await;
    assert_eq!(state.ledger("readings", "delivered"), 0);
    cloud.script(|_| Answer::take());
    agent.drained("readings", 50).await;
    journal.assert_exactly_once(&cloud);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_from_files_and_a_new_token_is_used_at_once() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|request| match request.headers.get("authorization").map(String::as_str) {
        Some("Bearer new") => Answer::take(),
        Some(_) | None => Answer::refuse(401, "expired"),
    });
    let mut agent = Agent::new(HOLDFAST, "");
    let token = agent.file("token");
    std::fs::write(&token, "Bearer old\n").unwrap();
    let headers = format!("headers = {{ Authorization = {{ file = \"{}\" }} }}\n{BATCH}", token.display());
    agent.configure(&format!("{STORE}{}{}", listener(port), cloud.sink(&headers)));
    agent.start().await;
    Sensor::new("d1", port, &journal).publish(1..=50).await;
    agent.wait_for("the state unauthorized", |state| state.sink_state("cloud") == "unauthorized").await;
    std::fs::write(&token, "Bearer new\n").unwrap();
    agent.drained("readings", 50).await;
    journal.assert_exactly_once(&cloud);
    let shown = String::from_utf8_lossy(&agent.command(&["status", "--json"]).await.stdout).into_owned();
    assert!(!shown.contains("Bearer") && !agent.log().contains("Bearer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_window_overtakes_a_backlog_of_readings() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::take().after(Duration::from_millis(300)));
    let sink = cloud.sink("batch = { records = 20, wait = \"10ms\" }");
    let window = "[windows.hour]\nsize = \"1h\"\nlateness = \"0s\"\nidle = \"1h\"\n";
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{}{window}{sink}", listener(port))).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=600).await;
    cloud.wait_for("the drain to begin", |requests| requests.len() >= 2).await;
    // The first reading of the next hour closes the window.
    sensor.publish([4_000]).await;
    agent.wait_for("a window", |state| state.appended("windows") > 0).await;
    let before = cloud.request_count();
    cloud.has("windows", 1).await;
    let requests = cloud.requests();
    let overtaken = requests.iter().skip(before).take_while(|request| request.stream() == "readings").count();
    assert!(overtaken <= 1, "{overtaken} more batches of readings went before the window");
    let state = agent.status().await;
    assert!(state.ledger("readings", "pending") > 200, "there is still a backlog");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_state_refusing_costs_no_further_records() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(400, "schema version 7 expected"));
    let mut agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=100).await;
    for _ in 0..3 {
        agent.wait_for("the state refusing", |state| state.sink_state("cloud") == "refusing").await;
        agent.kill();
        agent.start().await;
    }
    let state = agent.wait_for("the state refusing", |state| state.sink_state("cloud") == "refusing").await;
    assert_eq!(state.ledger("readings", "dead_lettered"), 10);
}
