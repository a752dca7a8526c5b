//! Sensors on the gateway's own bus. No machine of ours has one: what is tried here is a bus that is not there, and what is no bus.

use harness::books::Status;
use harness::{Agent, Cloud, Journal, Sensor};
use tokio::time::Instant;

use crate::{BATCH, HOLDFAST, STORE, listener};

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_not_there_is_named_and_stops_nothing_else() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let folder = tempfile::tempdir().unwrap();
    let bus = folder.path().join("i2c-7");
    let board = format!(
        "[sources.board]\ntype = \"i2c\"\nbus = \"{}\"\n\
         sensors = [{{ driver = \"bme280\", address = 0x76, device = \"enclosure\" }}]\n",
        bus.display()
    );
    let config = format!("{STORE}{board}{}{}", listener(port), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    let is = |state: &'static str| move |status: &Status| status.source_state("board") == state;
    let status = agent.wait_for("the bus to be missed", is("unplugged")).await;
    let error = status.text("/sources/board/last_error");
    assert!(error.starts_with(&format!("{} is not there; turn the bus on", bus.display())), "{error}");
    assert_eq!(
        status.text("/sources/board/devices/enclosure/about"),
        "bme280 at 0x76: temperature °C, humidity %, pressure Pa"
    );
    Sensor::new("d1", port, &journal).publish(1..=10).await;
    agent.drained("readings", 10).await;
    journal.assert_exactly_once(&cloud);

    std::fs::write(&bus, "").unwrap();
    let status = agent.wait_for("the file to be seen through", is("misconfigured")).await;
    let error = status.text("/sources/board/last_error");
    assert!(error.contains("is no I2C bus; expected a device such as /dev/i2c-1"), "{error}");
    std::fs::remove_file(&bus).unwrap();
    agent.wait_for("the file to be missed", is("unplugged")).await;
    let metrics = agent.get("/metrics").await.text();
    let line = "holdfast_source_state{source=\"board\",state=\"unplugged\"} 1";
    assert!(metrics.contains(line), "no {line} in\n{metrics}");

    let asked = Instant::now();
    assert_eq!(agent.stop().await.code(), Some(0));
    assert!(asked.elapsed() < std::time::Duration::from_secs(5), "{:?}", asked.elapsed());
    let log = agent.log();
    assert_eq!(log.matches("is not there; turn the bus on").count(), 2, "once each time it begins:\n{log}");
    assert_eq!(log.matches("is no I2C bus").count(), 1, "{log}");
}
