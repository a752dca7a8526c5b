//! The reference receiver and the demo: the whole product without anybody else's server.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use harness::agent::command;
use harness::process::Process;
use harness::{Agent, DEADLINE, Journal, Sensor};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{BATCH, HOLDFAST, STORE, listener};

fn receive(port: u16, dir: &Path) -> Process {
    let mut command = Command::new(HOLDFAST);
    command
        .arg("receive")
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--data")
        .arg(dir.join("received"));
    Process::start(&mut command, &dir.join("log"))
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receivers_files_have_each_record_once_though_both_are_killed() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let (port, receiver_port) = (harness::free_port(), harness::free_port());
    let mut random = harness::random();
    let mut receiver = receive(receiver_port, dir.path());
    let sink = format!(
        "[sinks.cloud]\ntype = \"http\"\nurl = \"http://127.0.0.1:{receiver_port}/\"\n\
         retry = {{ initial = \"20ms\", max = \"100ms\" }}\n{BATCH}\n"
    );
    let window = "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"300ms\"\n";
    let mut agent = Agent::started(HOLDFAST, &format!("{STORE}{}{window}{sink}", listener(port))).await;
    let mut publishing = JoinSet::new();
    for device in ["a", "b", "c"] {
        let mut sensor = Sensor::new(device, port, &journal);
        publishing.spawn(async move { sensor.publish(1..=2_000).await });
    }
    for _ in 0..8 {
        let (acked, further) = (journal.acked_count(), random.usize(1..600));
        harness::wait_for("readings to flow", DEADLINE, async || {
            (journal.acked_count() >= (acked + further).min(6_000)).then_some(())
        })
        .await;
        let both = random.u8(0..3);
        if both != 0 {
            receiver.kill();
        }
        if both != 1 {
            agent.kill();
            agent.start().await;
        }
        if both != 0 {
            receiver = receive(receiver_port, dir.path());
        }
    }
    publishing.join_all().await;
    agent.drained("readings", 6_000).await;
    // The last windows come when the sensors are found silent; 2 000 s touch 34 or 35 minutes.
    agent.wait_for("all windows", |status| status.appended("windows") >= 3 * 2 * 34).await;
    let status = agent.drained("windows", 3 * 2 * 34).await;
    assert!(agent.stop().await.success());
    assert!(receiver.terminate(DEADLINE).await.success());

    let folder = dir.path().join("received/gw-e2e");
    let readings = lines(&folder.join("readings.ndjson"));
    let marks: BTreeSet<_> = readings
        .iter()
        .map(|reading| (reading["device"].as_str().unwrap(), reading["fields"]["n"].as_u64().unwrap()))
        .collect();
    assert_eq!((readings.len(), marks.len()), (6_000, 6_000));
    for (seq, reading) in (1_u64..).zip(&readings) {
        assert_eq!(reading["seq"], seq, "in order, without a hole");
    }
    let windows = lines(&folder.join("windows.ndjson"));
    assert!(windows.len() as u64 >= status.appended("windows"));
    for (seq, window) in (1_u64..).zip(&windows) {
        assert_eq!(window["seq"], seq, "in order, without a hole");
    }
    assert!(lines(&folder.join("gaps.ndjson")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_balances_its_books_over_an_outage() {
    let output = command(
        HOLDFAST,
        &[
            "demo",
            "--duration",
            "5s",
            "--cloud-outage",
            "2s",
            "--rate",
            "200",
            "--listen-admin",
            "127.0.0.1:0",
        ],
    )
    .await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("books balanced"), "{text}");
    assert!(text.contains("http://127.0.0.1:"), "the page's address is shown: {text}");
}
