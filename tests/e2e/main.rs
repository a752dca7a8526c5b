//! The promises of the agent, tested from outside: the shipped binary, real brokers, a cloud that misbehaves.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod bad_input;
mod broker;
mod chaos;
mod clock;
mod config;
mod damage;
mod dead_letters;
mod delivery;
mod epochs;
mod full;
mod health;
mod i2c;
mod listener;
mod looking;
mod modbus;
mod outage;
mod overload;
mod receiver;
mod refusal;
mod reload;
mod restart;
mod serial;
mod store_commands;
mod storm;
mod tls;
mod windows;

use harness::{Agent, Cloud};

/// The program under test.
const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast-e2e");

/// Commits come soon, so that tests are not slow.
const STORE: &str = "[store]\ncommit_interval = \"50ms\"\n";

/// A listener at this port that takes what [`harness::Sensor`] publishes.
fn listener(port: u16) -> String {
    format!(
        "[sources.direct]\ntype = \"mqtt-listen\"\nlisten = \"127.0.0.1:{port}\"\n\
         [[sources.direct.subscribe]]\ntopic = \"sensors/{{device}}/telemetry\"\ntime = \"/ts\"\n"
    )
}

/// A client of the broker at this URL that subscribes to the same.
fn client(url: &str) -> String {
    format!(
        "[sources.plant]\ntype = \"mqtt\"\nurl = \"{url}\"\n\
         [[sources.plant.subscribe]]\ntopic = \"sensors/{{device}}/telemetry\"\ntime = \"/ts\"\n"
    )
}

/// Small batches that do not wait long.
const BATCH: &str = "batch = { records = 50, wait = \"50ms\" }";

/// An agent with a listener at `port` and a sink at `cloud`, ready.
async fn listening(port: u16, cloud: &Cloud) -> Agent {
    Agent::started(HOLDFAST, &format!("{STORE}{}{}", listener(port), cloud.sink(BATCH))).await
}

/// Runs mosquitto_pub, which must succeed.
async fn mosquitto_pub(arguments: &[&str]) {
    let mut command = std::process::Command::new("mosquitto_pub");
    command.args(arguments);
    let output = harness::process::run(command).await;
    assert!(output.status.success(), "mosquitto_pub: {}", String::from_utf8_lossy(&output.stderr));
}
