//! Whether the clock is right, as the kernel says and as the operator says.

use std::path::PathBuf;
use std::process::Command;

use harness::cloud::Answer;
use harness::{Agent, Cloud, Journal, Sensor};
use serde_json::Value;

use crate::{BATCH, HOLDFAST, STORE, listener};

/// What the kernel of this machine says; the agent goes by the same.
fn kernel_says_synced() -> bool {
    let script = "import ctypes\n\
        class T(ctypes.Structure):\n _fields_ = [('modes', ctypes.c_uint), ('offset', ctypes.c_long), ('freq', ctypes.c_long), ('maxerror', ctypes.c_long), ('rest', ctypes.c_char * 512)]\n\
        t = T()\nassert ctypes.CDLL(None).adjtimex(ctypes.byref(t)) >= 0\nprint(t.maxerror)";
    let output = Command::new("python3").arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let maxerror: i64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    maxerror < 16_000_000
}

async fn marks(cloud: &Cloud, agent: &Agent, port: u16) -> Vec<Option<String>> {
    let journal = Journal::default();
    Sensor::new("d1", port, &journal).publish(1..=20).await;
    agent.drained("readings", 20).await;
    journal.assert_exactly_once(cloud);
    let mark = |record: &Value| record.get("clock").and_then(Value::as_str).map(str::to_owned);
    cloud.records("readings").iter().map(mark).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_are_marked_if_the_kernel_does_not_vouch_for_the_clock() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let config = format!("{STORE}{}{}", listener(port), cloud.sink(BATCH));
    let mut agent = Agent::new(HOLDFAST, &config).asking_the_kernel(&config);
    agent.start().await;
    let marks = marks(&cloud, &agent, port).await;
    let status = agent.status().await;
    assert_eq!(status.text("/clock/source"), "kernel");
    let is_synced = kernel_says_synced();
    assert_eq!(status.text("/clock/state"), if is_synced { "synced" } else { "unsynced" });
    let expected = if is_synced { None } else { Some("unsynced".to_owned()) };
    assert_eq!(marks, vec![expected; 20]);
    assert_eq!(agent.log().matches("nothing synchronises the clock").count(), usize::from(!is_synced));
    let metrics = String::from_utf8(agent.get("/metrics").await.body.to_vec()).unwrap();
    assert!(metrics.contains(&format!("holdfast_clock_synced{{}} {}", u8::from(is_synced))));
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_the_operator_trusts_marks_nothing() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{}{}", listener(port), cloud.sink(BATCH))).await;
    assert_eq!(marks(&cloud, &agent, port).await, vec![None; 20]);
    assert_eq!(agent.status().await.text("/clock/source"), "trusted");
    cloud.assert_well_formed();
}

/// What makes a program believe in another wall clock (Debian: libfaketime, which `scripts/test` installs).
fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let library = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    library.expect("libfaketime is installed; scripts/test does that")
}

/// Days to before the first midnight of 1970.
const TO_1970: &str = "-20700d";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_received_in_1970_is_corrected_once_the_clock_is_set() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(503, ""));
    // No time of their own.
    let source = listener(port).replace("time = \"/ts\"\n", "");
    let config = format!("{STORE}max_age = \"1h\"\n{source}{}", cloud.sink(BATCH));
    let mut agent = Agent::new(HOLDFAST, &config);
    let shown = agent.file("faketime");
    std::fs::write(&shown, TO_1970).unwrap();
    agent.set("LD_PRELOAD", faketime());
    agent.set("FAKETIME_TIMESTAMP_FILE", shown.clone());
    agent.set("FAKETIME_NO_CACHE", "1");
    agent.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    agent.start().await;
    assert_eq!(agent.status().await.text("/clock/state"), "unsynced");
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=10).await;
    agent.wait_for("the first batch to be refused", |status| status.sink_state("cloud") == "retrying").await;
    sensor.publish(11..=20).await;
    agent.kill();
    agent.start().await;
    sensor.publish(21..=30).await;

    std::fs::write(&shown, "+0").unwrap();
    agent.wait_for("the clock to be set", |status| status.text("/clock/state") == "synced").await;
    let known = "it is known now when the machine was started";
    harness::wait_for("the boot to be learned", harness::DEADLINE, async || {
        agent.log().contains(known).then_some(())
    })
    .await;
    sensor.publish(31..=40).await;
    agent.kill();
    agent.start().await;
    cloud.script(|_| Answer::take());
    let status = agent.drained("readings", 40).await;
    assert_eq!(status.ledger("readings", "shed"), 0);
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();

    let records = cloud.records("readings");
    let mark = |record: &Value| record.get("clock").and_then(Value::as_str).unwrap_or("").to_owned();
    let of = |wanted: &str| records.iter().filter(|record| mark(record) == wanted).collect::<Vec<_>>();
    let (unsynced, corrected, right) = (of("unsynced"), of("corrected"), of(""));
    assert_eq!(right.len(), 10);
    assert!(!unsynced.is_empty(), "what was fixed before stays as it was");
    assert!(corrected.len() >= 10, "what was not is corrected, also over two crashes: {records:?}");
    let time = |record: &Value| record["time"].as_str().unwrap().to_owned();
    assert!(unsynced.iter().all(|record| time(record).starts_with("1970-")));
    let today: Vec<String> = corrected.iter().chain(&right).map(|record| time(record)).collect();
    assert!(today.is_sorted(), "{today:?}");
    assert!(today.iter().all(|time| time.as_str() > "2026-11-01"));
    assert!(corrected.iter().all(|record| record["time"] == record["received"]));
}
