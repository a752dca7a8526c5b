//! The firmware for a Cortex-M3 in QEMU, on an emulated UART, against the shipped daemon.

use std::path::PathBuf;
use std::process::Command;

use harness::process::Process;
use harness::{Agent, DEADLINE, Receiver, Socket};
use serde_json::Value;

use super::{is_in, source};
use crate::{BATCH, HOLDFAST, STORE};

/// Where the emulated UART came out.
async fn port_of(log: &std::path::Path) -> PathBuf {
    harness::wait_for("QEMU to say where its UART is", DEADLINE, async || {
        let said = std::fs::read_to_string(log).ok()?;
        let (_, behind) = said.split_once("char device redirected to ")?;
        behind.split_once(' ').map(|(path, _)| PathBuf::from(path))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/firmware builds the firmware and runs this"]
async fn every_reading_of_the_firmware_is_at_the_receiver_once_though_the_agent_is_killed() {
    let firmware = std::env::var("HOLDFAST_FIRMWARE").expect("HOLDFAST_FIRMWARE names the firmware");
    let (socket, mut receiver) = (Socket::empty(), Receiver::start(HOLDFAST));
    let sink =
        format!("[sinks.cloud]\ntype = \"http\"\nurl = \"http://127.0.0.1:{}/\"\n{BATCH}\n", receiver.port);
    let board = source("board", &socket.path(), "protocol = \"bridge\"");
    let mut agent = Agent::new(HOLDFAST, &format!("{STORE}{board}{sink}"));
    let mut qemu = Command::new("qemu-system-arm");
    qemu.args([
        "-M",
        "lm3s6965evb",
        "-nographic",
        "-monitor",
        "none",
        "-serial",
        "pty",
        "-kernel",
        &firmware,
    ]);
    let log = agent.file("qemu.log");
    let _qemu = Process::start(&mut qemu, &log);
    socket.lead_to(&port_of(&log).await);
    agent.start().await;
    is_in(&agent, "board", "connected").await;
    let mut random = harness::random();
    for _ in 0..6 {
        let until = agent.status().await.source("board", "stored") + random.u64(50..150);
        agent.wait_for("readings to flow", |status| status.source("board", "stored") >= until).await;
        agent.kill();
        agent.start().await;
    }
    is_in(&agent, "board", "connected").await;
    let until = agent.status().await.source("board", "stored") + 100;
    agent.wait_for("readings to flow", |status| status.source("board", "stored") >= until).await;
    let status = agent.status().await;
    let device = &status.0["sources"]["board"]["devices"]["qemu-node"];
    assert!(device["about"].as_str().unwrap().contains("temperature [°C], reading"), "{device}");
    assert!(agent.stop().await.success());
    // What it had stored when it stopped goes out when it starts again.
    socket.unplug();
    agent.start().await;
    let status = agent.drained("readings", 400).await;
    let missed = status.number("/sources/board/missed/dropped");
    receiver.stop().await;

    let readings = receiver.lines("gw-e2e", "readings.ndjson");
    let number = |record: &Value| record["fields"]["reading"].as_u64().unwrap();
    let numbers: Vec<u64> = readings.iter().map(number).collect();
    super::assert_rising(&numbers);
    let last = numbers.last().unwrap();
    println!("{last} readings, of which {missed} are known to be missing");
    assert_eq!(numbers.len() as u64 + missed, *last, "each is there, or known to be missing");
    assert!(missed < last / 2, "it can remember two seconds, and nobody was away for longer");
    for record in &readings {
        // The thermometer behind the emulated bus rises by an eighth of a degree with each reading.
        let eighths = u32::try_from((number(record) - 1) % 256).unwrap();
        assert_eq!(record["fields"]["temperature"], 20.0 + f64::from(eighths) / 8.0, "{record}");
        assert_eq!(record["device"], "qemu-node");
    }
}
