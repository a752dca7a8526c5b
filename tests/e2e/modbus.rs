//! Devices that are asked: some answer, some refuse, some are away; servers restart and ports are pulled out. Real Modbus servers, over
//! TCP and over RTU on a pty.

use harness::modbus::{Device, ExceptionCode, Plant, Port, Server};
use harness::{Agent, Cloud, books::Status, free_port};
use serde_json::{Value, json};

use crate::{BATCH, HOLDFAST, STORE};

/// Units 1, 2 and 3 behind this port.
fn source(port: &str) -> String {
    format!(
        "[sources.rack]\ntype = \"modbus\"\n{port}\ninterval = \"200ms\"\ntimeout = \"400ms\"\n\
         [[sources.rack.read]]\nunit = 1\ndevice = \"meter\"\nregisters = [\n\
         {{ field = \"voltage\", address = 0, kind = \"input\", type = \"f32\" }},\n\
         {{ field = \"power\", address = 2, kind = \"input\", type = \"i16\", scale = 0.1 }},\n\
         {{ field = \"energy\", address = 4, kind = \"holding\", type = \"u32\", byte_order = \"cdab\" }},\n\
         {{ field = \"name\", address = 6, kind = \"holding\", type = \"text\", length = 2 }},\n\
         {{ field = \"alarm\", address = 3, kind = \"holding\", bit = 4 }},\n\
         {{ field = \"relay\", address = 7, kind = \"coil\" }} ]\n\
         [[sources.rack.read]]\nunit = 2\nregisters = [{{ field = \"v\", address = 0, kind = \"holding\", type = \"u16\" }}]\n\
         [[sources.rack.read]]\nunit = 3\nregisters = [\n\
         {{ field = \"good\", address = 0, kind = \"holding\", type = \"u16\" }},\n\
         {{ field = \"bad\", address = 9, kind = \"holding\", type = \"u16\" }} ]\n"
    )
}

/// A meter at unit 1, nobody at unit 2, and a device without register 9 at unit 3.
fn plant() -> Plant {
    let plant = Plant::default();
    // 230.1, -12.5 W, 70 000 Wh, "ABC", bit 4.
    plant.put_registers(1, &[0x4366, 0x199A, 0xFF83, 0x0010, 0x1170, 0x0001, 0x4142, 0x4300]);
    plant.put_registers(3, &[7, 0, 0]);
    plant
}

async fn agent(port: &str, cloud: &Cloud) -> Agent {
    Agent::started(HOLDFAST, &format!("{STORE}{}{}", source(port), cloud.sink(BATCH))).await
}

/// The fields of all readings of a device.
fn fields(cloud: &Cloud, device: &str) -> Vec<Value> {
    let records = cloud.records("readings").into_iter().filter(|record| record["device"] == device);
    records.map(|record| record["fields"].clone()).collect()
}

/// Waits until the cloud has `count` more readings of a device.
async fn more(cloud: &Cloud, device: &str, count: usize) {
    let before = fields(cloud, device).len();
    let what = format!("{count} more readings of {device}");
    harness::wait_for(&what, harness::DEADLINE, async || {
        (fields(cloud, device).len() >= before + count).then_some(())
    })
    .await;
}

fn error(status: &Status, device: &str) -> String {
    status.0["sources"]["rack"]["devices"][device]["last_error"].as_str().unwrap_or_default().to_owned()
}

/// One device is away and one has a wrong address: the third is read as if they were not there, until all are well.
async fn check_that_trouble_stays_with_its_device(plant: &Plant, agent: &Agent, cloud: &Cloud) {
    let status = agent
        .wait_for("both troubles", |status| {
            status.source_state("rack") == "device-errors"
                && !error(status, "rack-2").is_empty()
                && !error(status, "rack-3").is_empty()
        })
        .await;
    let away = error(&status, "rack-2");
    assert!(away.starts_with("unit 2, holding register 0: no answer within 400ms; check"), "{away}");
    let wrong = error(&status, "rack-3");
    let expected = "unit 3, holding register 9: illegal data address (exception 2); check the address";
    assert!(wrong.starts_with(expected), "{wrong}");
    assert_eq!(error(&status, "meter"), "");
    more(cloud, "meter", 10).await;
    let meter = json!({"voltage": 230.1, "power": -12.5, "energy": 70_000, "name": "ABC", "alarm": true, "relay": true});
    assert!(fields(cloud, "meter").iter().all(|fields| *fields == meter), "{:?}", fields(cloud, "meter"));
    assert!(fields(cloud, "rack-3").iter().all(|fields| *fields == json!({"good": 7})));
    assert!(fields(cloud, "rack-2").is_empty());
    let (meter, away) = (plant.asked(1), plant.asked(2));
    assert!(away * 3 < meter, "asked less often: {away} times, and the meter {meter} times");

    plant.put_registers(2, &[5]);
    plant.put_registers(3, &[7, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    agent.wait_for("all to be well", |status| status.source_state("rack") == "connected").await;
    more(cloud, "rack-2", 2).await;
    more(cloud, "rack-3", 2).await;
    assert_eq!(fields(cloud, "rack-2").last(), Some(&json!({"v": 5})));
    assert_eq!(fields(cloud, "rack-3").last(), Some(&json!({"good": 7, "bad": 8})));
    let log = agent.log();
    for device in ["rack-2", "rack-3"] {
        let lines = |level: &str| {
            let of_device = format!("device={device}");
            log.lines().filter(|line| line.contains(level) && line.contains(&of_device)).count()
        };
        assert_eq!((lines("WARN"), lines("INFO")), (1, 1), "{device}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_each_device_has_its_own_trouble_and_a_server_that_restarts_is_found_again() {
    let (plant, cloud, port) = (plant(), Cloud::start().await, free_port());
    let server = Server::tcp(&plant, port).await;
    let mut agent = agent(&format!("url = \"tcp://127.0.0.1:{port}\""), &cloud).await;
    check_that_trouble_stays_with_its_device(&plant, &agent, &cloud).await;

    server.stop().await;
    let status =
        agent.wait_for("the source to notice", |status| status.source_state("rack") == "disconnected").await;
    assert!(status.text("/sources/rack/last_error").contains(&format!("tcp://127.0.0.1:{port}")));
    plant.put(2, Device::Refuses(ExceptionCode::ServerDeviceFailure));
    let _server = Server::tcp(&plant, port).await;
    let status = agent
        .wait_for("the device that fails now", |status| error(status, "rack-2").contains("(exception 4)"))
        .await;
    assert_eq!(status.source_state("rack"), "device-errors");
    more(&cloud, "meter", 3).await;

    // Another register: a reload reads on with it.
    agent.configure(&format!(
        "{STORE}{}{}",
        source(&format!("url = \"tcp://127.0.0.1:{port}\"")).replace("\"voltage\"", "\"volts\""),
        cloud.sink(BATCH)
    ));
    agent.signal(rustix::process::Signal::HUP);
    agent.reloaded(1).await;
    more(&cloud, "meter", 2).await;
    assert_eq!(fields(&cloud, "meter").last().unwrap()["volts"], 230.1);
    assert!(agent.stop().await.success());
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn over_rtu_each_device_has_its_own_trouble_and_a_port_that_is_plugged_in_again_is_read_on() {
    let (plant, cloud) = (plant(), Cloud::start().await);
    let links = tempfile::tempdir().unwrap();
    let link = links.path().join("by-id");
    let mut port = Port::plug_in(&plant, &link);
    let mut agent = agent(&format!("path = {:?}\nbaud = 115200", link.display().to_string()), &cloud).await;
    check_that_trouble_stays_with_its_device(&plant, &agent, &cloud).await;

    for _ in 0..2 {
        port.unplug().await;
        agent.wait_for("the source to notice", |status| status.source_state("rack") == "unplugged").await;
        port = Port::plug_in(&plant, &link);
        agent.wait_for("the port", |status| status.source_state("rack") == "connected").await;
        more(&cloud, "meter", 2).await;
    }
    let status = agent.status().await;
    assert_eq!(status.number("/sources/rack/line/opened"), 3);
    let log = agent.log();
    assert_eq!(log.matches("was unplugged; trying again").count(), 2, "{log}");
    assert_eq!(log.matches("connected again").count(), 2, "{log}");
    assert!(agent.stop().await.success());
    cloud.assert_well_formed();
}
