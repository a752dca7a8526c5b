//! Whether the clock is right, as the kernel says and as the operator says.

use std::process::Command;

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
    assert!(metrics.contains(&format!("holdfast_clock_synced {}", u8::from(is_synced))));
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
