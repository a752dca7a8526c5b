//! Whatever sensors send, the agent takes note of it, keeps it, acknowledges it, and lives.

use harness::{Agent, Broker, Cloud, Journal, Sensor};
use serde_json::Value;

use crate::{BATCH, HOLDFAST, STORE, client, listener};

/// Payloads that are no readings, each with a word of the reason.
fn corpus() -> Vec<(Vec<u8>, &'static str)> {
    let nested = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let big_object = format!("{{\"ts\":1795147200,\"text\":\"{}\"}}", "x".repeat(10 << 20));
    vec![
        (vec![0xff, 0xfe, 0x00], "UTF-8"),
        (b"{\"n\":1,\"text\":\"\xc3\x28\"}".to_vec(), "UTF-8"),
        (b"{\"ts\":1795147200,\"n\":".to_vec(), "JSON"),
        (b"{\"ts\":1795147200,\"n\":1}}".to_vec(), "JSON"),
        (b"{\"ts\":1795147200} {\"ts\":1795147201}".to_vec(), "JSON"),
        (b"Online".to_vec(), "JSON"),
        (b"22,5".to_vec(), "JSON"),
        (b"{\"ts\":1795147200,\"t\":nan}".to_vec(), "JSON"),
        (nested.into_bytes(), "deep"),
        (big_object.into_bytes(), "max_payload"),
        (b"{\"ts\":1795147200,\"a\":1,\"a\":2}".to_vec(), "twice"),
        (b"{\"ts\":1795147200,\"a\":{\"b\":1},\"a.b\":2}".to_vec(), "a.b"),
        (b"{\"ts\":1795147200,\"n\":123456789012345678901234567890}".to_vec(), "64 bits"),
        (b"{\"ts\":\"yesterday at noon\",\"n\":1}".to_vec(), "yesterday"),
        (b"{\"ts\":\"2026-13-45T99:00:00Z\",\"n\":1}".to_vec(), "2026-13-45"),
        (b"{\"ts\":true,\"n\":1}".to_vec(), "time"),
        (b"{\"n\":1}".to_vec(), "time"),
        (b"42".to_vec(), "object"),
        (b"[{\"ts\":1795147200,\"n\":1},2]".to_vec(), "array"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_reading_is_counted_kept_and_acknowledged() {
    let (broker, cloud, journal) = (Broker::start().await, Cloud::start().await, Journal::default());
    let port = harness::free_port();
    let config = format!("{STORE}{}{}{}", listener(port), client(&broker.url()), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;
    let corpus = corpus();
    // At the listener and through a broker alike; between them, good readings go on.
    for (port, device, source) in [(port, "a", "direct"), (broker.port, "b", "plant")] {
        let bad = Journal::default();
        let mut sensor = Sensor::new(device, port, &bad);
        let mut good = Sensor::new(device, port, &journal).with_client_id("good");
        for (n, (payload, _)) in (1..).zip(&corpus) {
            sensor.publish_payloads([(n, payload.clone())]).await;
            good.publish([n]).await;
        }
        let received = 2 * corpus.len() as u64;
        let status = agent
            .wait_for("everything to be settled", |status| status.source(source, "received") == received)
            .await;
        assert_eq!(status.source(source, "rejected"), corpus.len() as u64);
        assert_eq!(status.source(source, "stored"), corpus.len() as u64);
        assert_eq!(status.source_state(source), "connected");
    }
    agent.drained("readings", 2 * corpus.len() as u64).await;
    journal.assert_exactly_once(&cloud);

    let running = letters(&agent).await;
    assert_eq!(running.len(), 2 * corpus.len());
    for (letter, (payload, word)) in running.iter().zip(corpus.iter().chain(&corpus)) {
        let reason = letter["reason"].as_str().unwrap();
        assert!(reason.contains(word), "{reason:?} does not say {word:?}");
        assert_eq!(letter["payload_bytes"].as_u64(), Some(payload.len() as u64), "the full length");
        let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(payload.as_ref()));
        assert_eq!(letter["payload_hash"], hash, "of the payload alone, so that anybody can compare it");
        assert!(letter["topic"].as_str().unwrap().starts_with("sensors/"));
    }
    let status = agent.status().await;
    assert_eq!(status.number("/dead_letters/kept"), running.len() as u64);

    agent.kill();
    assert_eq!(letters(&agent).await, running, "the same offline, after a crash");
    let table = agent.command(&["dead-letters", "list"]).await;
    assert!(table.status.success());
    let lines = String::from_utf8(table.stdout).unwrap().lines().count();
    assert_eq!(lines, running.len() + 1);
}

async fn letters(agent: &Agent) -> Vec<Value> {
    let output = agent.command(&["dead-letters", "list", "--json"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_value_is_skipped() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    let journal = Journal::default();
    let mut sensor = Sensor::new("d1", port, &journal);
    let nothing = [
        "",
        "{\"ts\":1795147200}",
        "{\"ts\":1795147200,\"t\":null}",
        "[]",
        "{\"ts\":1795147200,\"t\":1e400}",
    ];
    sensor.publish_payloads((1..).zip(nothing.map(|payload| payload.as_bytes().to_vec()))).await;
    let status = agent.wait_for("five messages", |status| status.source("direct", "received") == 5).await;
    status.assert_balanced();
    let (skipped, rejected) = (status.source("direct", "skipped"), status.source("direct", "rejected"));
    assert_eq!((skipped + rejected, status.appended("readings")), (5, 0));
    // An empty payload may be called either; the others have no value left.
    assert!(skipped >= 4, "{skipped} skipped, {rejected} rejected");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_may_be_called_what_they_like_up_to_a_length() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    let names = [
        "gerät-☃",
        "a b",
        "x\"y\\z",
        "..",
        "'; DROP TABLE readings;--",
        "<script>",
        "\u{1f600}",
        "$SYS",
        "%2e%2e",
    ];
    for (n, name) in (0..).zip(names) {
        Sensor::new(name, port, &journal).with_client_id(&format!("c{n}")).publish(1..=3).await;
    }
    let refused = Journal::default();
    for bytes in [257, 60_000] {
        let name = "x".repeat(bytes);
        Sensor::new(&name, port, &refused).with_client_id("long").publish([1]).await;
    }
    let stored = names.len() as u64 * 3;
    let status = agent.drained("readings", stored).await;
    assert_eq!((status.appended("readings"), status.source("direct", "rejected")), (stored, 2));
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_devices_cost_bounded_memory() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let config = format!(
        "{STORE}[sources.direct]\ntype = \"mqtt-listen\"\nlisten = \"127.0.0.1:{port}\"\n\
         [[sources.direct.subscribe]]\ntopic = \"sensors/+/telemetry\"\ntime = \"/ts\"\ndevice = \"/id\"\n\
         [windows.minute]\nsize = \"1m\"\nidle = \"1h\"\nmax_series = 2000\n{}",
        cloud.sink("batch = { records = 5000 }")
    );
    let agent = Agent::started(HOLDFAST, &config).await;
    let devices = |from: u64| {
        let of = |i| format!("{{\"ts\":1795147200,\"id\":\"device-{i}\",\"t\":{i}}}");
        format!("[{}]", (from..from + 1_000).map(of).collect::<Vec<_>>().join(",")).into_bytes()
    };
    let mut sensor = Sensor::new("many", port, &journal);
    sensor.publish_payloads((0..100).map(|n| (n, devices(n * 1_000)))).await;
    let status = agent.drained("readings", 100_000).await;
    assert_eq!(cloud.count("readings"), 100_000);
    assert!(status.number("/windows/minute/series") <= 2_000);
    agent
        .wait_for("the others to be counted", |status| status.number("/windows/minute/refused") == 98_000)
        .await;
    let peak = agent.peak_kib();
    assert!(peak < 150 << 10, "{peak} KiB");
    cloud.assert_well_formed();
}
