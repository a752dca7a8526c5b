//! From the broker to the cloud: everything once, in the format of the contract.

use harness::{Agent, Broker, Cloud, DEADLINE, Journal, Sensor, wait_for};
use serde_json::{Value, json};

use crate::{BATCH, HOLDFAST, STORE, client};

#[tokio::test(flavor = "multi_thread")]
async fn readings_go_from_the_broker_to_the_cloud_exactly_once() {
    let (broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    let config = format!("{STORE}{}{}", client(&broker.url()), cloud.sink(BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;

    let mut sensors: Vec<_> = (0..5).map(|i| Sensor::new(&format!("d{i}"), broker.port, &journal)).collect();
    for sensor in &mut sensors {
        sensor.publish(1..=200).await;
    }

    let status = agent.drained("readings", 1_000).await;
    assert_eq!(journal.acked_count(), 1_000);
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    assert_eq!(status.source("plant", "received"), 1_000);
    assert_eq!(status.source("plant", "stored"), 1_000);
    assert_eq!(status.ledger("readings", "delivered"), 1_000);
    assert_eq!((status.state(), status.sink_state("cloud")), ("online", "up"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_every_key_that_the_contract_names() {
    let (broker, cloud) = (Broker::start().await, Cloud::start().await);
    let config = format!(
        "{STORE}[sources.plant]\ntype = \"mqtt\"\nurl = \"{}\"\n\
         [[sources.plant.subscribe]]\ntopic = \"sensors/{{line}}/{{device}}/telemetry\"\ntime = \"/ts\"\n\
         [windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\naggregates = [\"count\", \"mean\", \"p95\"]\n{}",
        broker.url(),
        cloud.sink(BATCH),
    );
    let agent = Agent::started(HOLDFAST, &config).await;
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;
    let epoch = agent.status().await.text("/epoch").to_owned();
    assert_eq!(epoch.len(), 36, "{epoch}");

    let publish = async |payload: &str| {
        let port = broker.port.to_string();
        let arguments = ["-p", &port, "-q", "1", "-t", "sensors/a/d0017/telemetry", "-m", payload];
        crate::mosquitto_pub(&arguments).await;
    };
    publish(
        r#"{"ts":1795148112123,"seq":123,"temperature":21.53,"running":true,"mode":"auto",
            "nested":{"Power":[1,2.0]},"big":18446744073709551615,"gone":null}"#,
    )
    .await;
    publish(r#"{"ts":"2026-11-20T04:16:30Z","temperature":5e-324}"#).await;
    cloud.has("readings", 2).await;
    cloud.has("windows", 1).await;
    cloud.assert_well_formed();

    let requests = cloud.requests();
    for request in &requests {
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["content-encoding"], "zstd");
        assert_eq!((&request.batch["agent"], &request.batch["epoch"]), (&json!("gw-e2e"), &json!(epoch)));
        assert_eq!(
            keys(&request.batch),
            ["agent", "epoch", "first", "format", "gaps", "last", "records", "stream"]
        );
    }
    let readings = cloud.records("readings");
    let mut first = readings[0].clone();
    assert_eq!(keys(&first), ["device", "fields", "received", "seq", "source", "tags", "time"], "{first}");
    let received = first["received"].take();
    assert_time(received.as_str().unwrap());
    assert_eq!(
        first,
        json!({
            "seq": 1, "time": "2026-11-20T04:15:12.123000Z", "received": null, "source": "plant",
            "device": "d0017", "tags": {"line": "a"},
            "fields": {"seq": 123, "temperature": 21.53, "running": true, "mode": "auto",
                "nested.Power.0": 1, "nested.Power.1": 2.0, "big": 18_446_744_073_709_551_615_u64}
        })
    );
    assert_eq!(readings[1]["time"], "2026-11-20T04:16:30.000000Z");
    assert_eq!(readings[1]["fields"]["temperature"].as_f64(), Some(5e-324));

    let windows = cloud.records("windows");
    let window = windows.iter().find(|window| window["field"] == "temperature").unwrap();
    assert_eq!(
        keys(window),
        ["aggregates", "device", "end", "field", "revision", "seq", "start", "tags", "window"]
    );
    assert_eq!(window["window"], "minute");
    assert_eq!(window["device"], "d0017");
    assert_eq!(window["tags"], json!({"line": "a"}));
    assert_eq!(window["start"], "2026-11-20T04:15:00.000000Z");
    assert_eq!(window["end"], "2026-11-20T04:16:00.000000Z");
    assert_eq!(window["revision"], 0);
    let aggregates = &window["aggregates"];
    assert_eq!((&aggregates["count"], &aggregates["mean"]), (&json!(1), &json!(21.53)));
    assert!((aggregates["p95"].as_f64().unwrap() / 21.53 - 1.0).abs() <= 0.01, "{aggregates}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_compressed_as_configured() {
    for (compression, header) in [("gzip", Some("gzip")), ("none", None), ("zstd", Some("zstd"))] {
        let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
        let sink = cloud.sink(&format!("compression = \"{compression}\"\n{BATCH}"));
        let agent = Agent::started(HOLDFAST, &format!("{STORE}{}{sink}", crate::listener(port))).await;
        Sensor::new("d1", port, &journal).publish(1..=20).await;
        agent.drained("readings", 20).await;
        for request in cloud.requests() {
            assert_eq!(request.headers.get("content-encoding").map(String::as_str), header);
        }
        cloud.assert_well_formed();
        journal.assert_exactly_once(&cloud);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sinks_each_get_everything_at_their_own_pace() {
    let (cloud, slow, journal) = (Cloud::start().await, Cloud::start().await, Journal::default());
    let port = harness::free_port();
    slow.script(|_| harness::cloud::Answer::refuse(503, ""));
    let other = slow.sink("headers = { X-Token = \"abc\" }").replace("sinks.cloud", "sinks.slow");
    let config = format!("{STORE}{}{}{other}", crate::listener(port), cloud.sink(BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    Sensor::new("d1", port, &journal).publish(1..=300).await;
    let status = agent.drained("readings", 300).await;
    assert_eq!(status.number("/sinks/slow/streams/readings/pending"), 300);
    agent.wait_for("the other to be down", |status| status.sink_state("slow") == "retrying").await;
    assert_eq!(agent.status().await.state(), "buffering");
    slow.script(|_| harness::cloud::Answer::take());
    slow.has("readings", 300).await;
    assert!(slow.requests().iter().all(|request| request.headers["x-token"] == "abc"));
    let status = wait_for("an agent that is online again", DEADLINE, async || {
        let status = agent.status().await;
        (status.state() == "online").then_some(status)
    })
    .await;
    status.assert_balanced();
    journal.assert_exactly_once(&cloud);
    journal.assert_exactly_once(&slow);
    cloud.assert_well_formed();
    slow.assert_well_formed();
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// RFC 3339, UTC, six digits.
fn assert_time(time: &str) {
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{time}");
}
