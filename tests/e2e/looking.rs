//! Starting, stopping, reloading, and what the agent tells those who look.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::cloud::Answer;
use harness::{Agent, Cloud, DEADLINE, Journal, Sensor, http, process};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::{BATCH, HOLDFAST, STORE, listener};

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_looks_at_the_agent_sees_the_same() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let window = "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"300ms\"\n";
    let config = format!("{STORE}{}{window}{}", listener(port), cloud.sink(BATCH));
    let agent = Agent::started(HOLDFAST, &config).await;
    Sensor::new("d1", port, &journal).publish(1..=200).await;
    agent.drained("readings", 200).await;
    // Four minutes, two fields.
    cloud.has("windows", 8).await;
    let status = agent.drained("windows", 8).await;

    let address = agent.admin();
    let get = async |path: &str| http::get(&address, &address, path).await.unwrap();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(path).await.status(), 200, "{path}");
    }
    let over_tcp: Value = serde_json::from_slice(&get("/api/v1/status").await.body).unwrap();
    for pointer in ["/agent", "/epoch", "/version", "/state", "/streams", "/sources"] {
        assert_eq!(over_tcp.pointer(pointer), status.0.pointer(pointer), "{pointer}");
    }
    assert_eq!((status.text("/agent"), status.text("/version")), ("gw-e2e", env!("CARGO_PKG_VERSION")));
    assert_eq!(status.number("/streams/readings/next_seq"), 201);
    assert!(status.0["uptime_s"].as_f64().unwrap() > 0.0);
    assert_eq!(status.number("/store/max_bytes"), 1 << 30);
    assert_eq!(status.text("/store/state"), "ok");

    let metrics = get("/metrics").await;
    assert_eq!(metrics.status(), 200);
    let metrics = metrics.text().replace("{}", "");
    for line in [
        "holdfast_source_received_total{source=\"direct\"} 200",
        "holdfast_source_rejected_total{source=\"direct\"} 0",
        "holdfast_stream_appended_total{stream=\"readings\"} 200",
        "holdfast_sink_delivered_total{sink=\"cloud\",stream=\"readings\"} 200",
        "holdfast_sink_pending{sink=\"cloud\",stream=\"readings\"} 0",
        "holdfast_sink_dead_lettered_total{sink=\"cloud\",stream=\"readings\"} 0",
        "holdfast_sink_shed_total{sink=\"cloud\",stream=\"readings\"} 0",
        "holdfast_sink_up{sink=\"cloud\"} 1",
        "holdfast_commit_seconds_count ",
        "holdfast_store_bytes ",
        "holdfast_window_late_total{window=\"minute\"} 0",
        "holdfast_state{state=\"online\"} 1",
        "holdfast_state{state=\"buffering\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "no {line} in\n{metrics}");
    }
    let page = get("/").await;
    assert_eq!(page.status(), 200);
    let html = page.text();
    assert!(html.contains("gw-e2e") && html.contains("cloud") && html.contains("direct"));
    for outside in
        ["src=\"http", "href=\"http", "src='http", "href='http", "url(http", "@import", "fetch('http"]
    {
        assert!(!html.contains(outside), "the page asks elsewhere: {outside}");
    }
    // A stranger's web page may not read it by a name of its own.
    assert!(
        (400..500).contains(&http::get(&address, "evil.example", "/api/v1/status").await.unwrap().status())
    );
    assert_eq!(get("/nothing").await.status(), 404);

    let text = agent.command(&["status"]).await;
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("ONLINE") && text.contains("readings") && text.contains("200"), "{text}");
    let json = agent.command(&["status", "--json"]).await;
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["streams"], status.0["streams"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_of_an_agent_that_does_not_run_is_an_error() {
    let agent = Agent::new(HOLDFAST, STORE);
    let output = agent.command(&["status"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not running"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_drain_and_end_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
        cloud.script(|_| Answer::take().after(Duration::from_millis(100)));
        let sink = cloud.sink("batch = { records = 50, wait = \"30s\" }");
        let mut agent = Agent::started(HOLDFAST, &format!("{STORE}{}{sink}", listener(port))).await;
        Sensor::new("d1", port, &journal).publish(1..=175).await;
        let asked = Instant::now();
        agent.signal(signal);
        assert_eq!(agent.end().await.code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
        assert_eq!(cloud.count("readings"), 175, "what waited for a fuller batch is sent at the end");
        journal.assert_exactly_once(&cloud);
        cloud.assert_well_formed();
        assert!(!agent.file("admin.sock").exists(), "the socket is tidied away");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cloud_does_not_hold_up_the_end() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(200, "").hanging());
    let mut agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=100).await;
    cloud.wait_for("a request", |requests| !requests.is_empty()).await;
    let asked = Instant::now();
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    cloud.script(|_| Answer::take());
    agent.start().await;
    agent.drained("readings", 100).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(200, "").hanging());
    let mut agent = crate::listening(port, &cloud).await;
    Sensor::new("d1", port, &journal).publish(1..=100).await;
    cloud.wait_for("a request", |requests| !requests.is_empty()).await;
    agent.signal(Signal::TERM);
    harness::wait_for("the agent to begin its end", DEADLINE, async || {
        agent.log().contains("stopping").then_some(())
    })
    .await;
    agent.signal(Signal::TERM);
    assert_eq!(agent.end().await.code(), Some(1));
    cloud.script(|_| Answer::take());
    agent.start().await;
    agent.drained("readings", 100).await;
    journal.assert_exactly_once(&cloud);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_store_is_refused() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    let config = std::fs::read_to_string(agent.config()).unwrap();
    // The same in every respect; and on the same store alone.
    let apart = config
        .replace(&agent.admin(), &format!("127.0.0.1:{}", harness::free_port()))
        .replace("admin.sock", "other.sock")
        .replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{}", harness::free_port()));
    for (name, text) in [("same.toml", &config), ("apart.toml", &apart)] {
        let file = agent.file(name);
        std::fs::write(&file, text).unwrap();
        let output = run(&file).await;
        assert_eq!(output.status.code(), Some(1), "{name}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("in use") || told.contains("already"), "{name}: {told}");
    }
    assert_eq!(agent.status().await.state(), "online");
}

async fn run(config: &Path) -> std::process::Output {
    let mut command = Command::new(HOLDFAST);
    command.arg("run").arg("--config").arg(config);
    process::run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_a_good_file_and_leaves_a_bad_one() {
    let (cloud, other, journal) = (Cloud::start().await, Cloud::start().await, Journal::default());
    let port = harness::free_port();
    let agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=50).await;

    let second = other.sink(BATCH).replace("sinks.cloud", "sinks.second");
    let good = format!("{STORE}{}{}{second}", listener(port), cloud.sink(BATCH));
    agent.configure(&good);
    agent.signal(Signal::HUP);
    let status = agent
        .wait_for("the second sink", |status| {
            status.0.pointer("/sinks/second/state").is_some_and(Value::is_string)
        })
        .await;
    status.assert_balanced();
    // The sensor is cut off for a moment and sends again what was not acknowledged.
    sensor.publish(51..=100).await;
    cloud.has("readings", 100).await;
    // A new sink starts at the oldest record held, and is told what came before.
    harness::wait_for("the second sink to have the rest", DEADLINE, async || {
        let before: u64 = other.gaps("readings").iter().map(|gap| gap.last - gap.first + 1).sum();
        (other.count("readings") as u64 + before >= 100).then_some(())
    })
    .await;
    assert!(
        other.gaps("readings").iter().all(|gap| gap.reason == "before-sink"),
        "{:?}",
        other.gaps("readings")
    );

    agent.configure("[store]\nmax_szie = 1\n");
    agent.signal(Signal::HUP);
    harness::wait_for("the complaint", DEADLINE, async || agent.log().contains("max_szie").then_some(()))
        .await;
    sensor.publish(101..=150).await;
    cloud.has("readings", 150).await;
    let status = agent.drained("readings", 150).await;
    assert_eq!(status.state(), "online");

    // A sink that goes holds nothing back; its books stay, frozen.
    agent.configure(&format!("{STORE}{}{}", listener(port), cloud.sink(BATCH)));
    agent.signal(Signal::HUP);
    let status = agent
        .wait_for("the second sink to be gone", |status| status.0["sinks"]["second"]["present"] == false)
        .await;
    assert!(status.0["sinks"]["second"]["streams"]["readings"]["delivered"].as_u64().unwrap() > 0);
    sensor.publish(151..=200).await;
    cloud.has("readings", 200).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
    other.assert_well_formed();
}
