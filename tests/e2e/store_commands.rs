//! What an operator does with a store while the agent is stopped: verify, export, compact.

use std::path::Path;
use std::process::Output;

use harness::cloud::Answer;
use harness::{Agent, Cloud, Journal, Sensor};
use serde_json::Value;

const COMMANDS: [&str; 3] = ["verify", "export", "compact"];

/// An agent that stored readings 1 to `count` and could not deliver them, stopped.
async fn stopped(port: u16, cloud: &Cloud, journal: &Journal, count: u64) -> Agent {
    cloud.script(|_| Answer::refuse(503, ""));
    let mut agent = crate::listening(port, cloud).await;
    Sensor::new("d1", port, journal).publish(1..=count).await;
    assert!(agent.stop().await.success());
    agent
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Flips a byte in the body of each copy of the chunk of readings that begins at 1.
fn damage(store: &Path) {
    let mut bytes = std::fs::read(store).unwrap();
    let is_it = |at: &usize| {
        let header = &bytes[*at..*at + 20];
        let (first, count) = (&header[8..16], &header[16..20]);
        header.starts_with(b"HFCK") && header[6] == 0 && first == 1_u64.to_le_bytes() && count != [0; 4]
    };
    let places: Vec<usize> = (0..bytes.len() - 64).filter(is_it).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at + 50] ^= 1);
    std::fs::write(store, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agents_store_is_verified_exported_compacted_and_goes_on() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut agent = stopped(port, &cloud, &journal, 500).await;
    let verified = agent.command(&["store", "verify"]).await;
    assert!(verified.status.success(), "{}{}", out(&verified), err(&verified));
    assert!(out(&verified).contains("the books balance"), "{}", out(&verified));
    let verified = agent.command(&["store", "verify", "--json"]).await;
    let report: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(report["sound"], true);
    assert_eq!(report["sinks"]["cloud"]["readings"]["pending"], 500);

    let exported = agent.command(&["store", "export"]).await;
    assert!(exported.status.success(), "{}", err(&exported));
    let all = records(&out(&exported));
    let numbers: Vec<u64> = all.iter().map(|record| record["fields"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=500).collect::<Vec<_>>());
    let part = agent.command(&["store", "export", "--from", "101", "--to", "110"]).await;
    assert_eq!(records(&out(&part)), all[100..110]);
    let time = |index: usize| all[index]["time"].as_str().unwrap();
    let part = agent.command(&["store", "export", "--from", time(200), "--to", time(210)]).await;
    assert_eq!(records(&out(&part)), all[200..210], "the end of a time is not included");
    let file = agent.file("export.ndjson");
    let written = agent.command(&["store", "export", "--output", file.to_str().unwrap()]).await;
    assert!(written.status.success() && written.stdout.is_empty(), "{}", err(&written));
    assert_eq!(records(&std::fs::read_to_string(&file).unwrap()), all);
    let none = agent.command(&["store", "export", "--stream", "windows"]).await;
    assert!(none.status.success() && none.stdout.is_empty());
    for wrong in [["--stream", "reading"], ["--from", "yesterday"]] {
        let output = agent.command(&["store", "export", wrong[0], wrong[1]]).await;
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    }

    let compacted = agent.command(&["store", "compact"]).await;
    assert!(compacted.status.success() && out(&compacted).contains(" freed: "), "{}", err(&compacted));
    assert!(agent.command(&["store", "verify"]).await.status.success());

    cloud.script(|_| Answer::take());
    agent.start().await;
    Sensor::new("d2", port, &journal).publish(501..=520).await;
    agent.drained("readings", 520).await;
    journal.assert_exactly_once(&cloud);
    let sent = cloud.records("readings");
    assert_eq!(sent[..500], all, "what was exported is what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_is_left_alone_and_one_that_is_not_there_is_not_made() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    for command in COMMANDS {
        let output = agent.command(&["store", command]).await;
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(err(&output).contains("in use by another process"), "{command}: {}", err(&output));
        assert!(output.stdout.is_empty(), "{command}: {}", out(&output));
    }
    let empty = Agent::new(crate::HOLDFAST, "");
    for command in COMMANDS {
        let output = empty.command(&["store", command]).await;
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(err(&output).contains("there is no store"), "{command}: {}", err(&output));
    }
    assert!(!empty.file("data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_what_lies_around_it_is_exported() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let agent = stopped(port, &cloud, &journal, 200).await;
    damage(&agent.file("data/store.redb"));
    let verified = agent.command(&["store", "verify"]).await;
    assert_eq!(verified.status.code(), Some(1), "{}", out(&verified));
    let report = out(&verified);
    assert!(report.contains("NOT SOUND") && report.contains("readings 1.."), "{report}");
    assert!(report.contains("checksum of the chunk at 1"), "{report}");
    let exported = agent.command(&["store", "export"]).await;
    assert_eq!(exported.status.code(), Some(1));
    assert!(err(&exported).contains("damaged at readings 1"), "{}", err(&exported));
    let left = records(&out(&exported));
    assert!(!left.is_empty() && left.len() < 200, "{} records", left.len());
    assert_eq!(left.last().unwrap()["seq"], 200);
    let compacted = agent.command(&["store", "compact"]).await;
    assert_eq!(compacted.status.code(), Some(1), "{}", out(&compacted));
}
