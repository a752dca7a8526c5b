//! The agent's own MQTT listener, with the clients that people use.

use std::process::Command;

use harness::{Agent, Cloud, process};
use tokio::task::JoinSet;

use crate::{BATCH, HOLDFAST, STORE, listener};

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_pub_publishes_with_every_qos_and_version() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    let port = port.to_string();
    let mut expected = 0;
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let payload = format!("{{\"ts\":1795147200,\"qos\":{qos},\"version\":\"{version}\"}}");
            let topic = "sensors/d1/telemetry";
            // The same client each time, so packet ids are used anew: none of these is a resend.
            let arguments =
                ["-V", version, "-p", &port, "-i", "sensor-1", "-q", qos, "-t", topic, "-m", &payload];
            for _ in 0..3 {
                crate::mosquitto_pub(&arguments).await;
                expected += 1;
                // With QoS 0 it does not wait until it was heard; the next one takes its name, and would cut it off.
                agent
                    .wait_for("it to be heard", |status| status.source("direct", "received") == expected)
                    .await;
            }
        }
    }
    let status = agent.drained("readings", expected).await;
    assert_eq!(status.appended("readings"), expected);
    assert_eq!((status.source("direct", "unprotected"), status.source("direct", "redelivered")), (6, 0));
    let count = |qos: u64, version: &str| {
        let is_it = |record: &&serde_json::Value| {
            record["fields"]["qos"] == qos && record["fields"]["version"] == version
        };
        cloud.records("readings").iter().filter(is_it).count()
    };
    for version in ["mqttv311", "mqttv5"] {
        assert_eq!([count(0, version), count(1, version), count(2, version)], [3, 3, 3]);
    }
}

/// Publishes so many readings of a device, connecting again as often as it takes, and ends when all
/// are acknowledged.
const PAHO: &str = r#"
import sys
import paho.mqtt.client as mqtt

port, version, qos, count, device = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
arguments = {"client_id": device, "protocol": mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311}
if version != "5":
    arguments["clean_session"] = False
if hasattr(mqtt, "CallbackAPIVersion"):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, **arguments)
else:
    client = mqtt.Client(**arguments)
client.reconnect_delay_set(1, 1)
client.connect("127.0.0.1", port)
client.loop_start()
sent = []
for n in range(count):
    sent.append(client.publish("sensors/%s/telemetry" % device, '{"ts":1795147200,"n":%d}' % n, qos=qos))
    if n % 20 == 0:
        sent[max(0, n - 20)].wait_for_publish(60)
for info in sent:
    info.wait_for_publish(60)
assert all(info.is_published() for info in sent)
client.disconnect()
client.loop_stop()
"#;

fn paho(port: u16, version: &str, qos: &str, count: &str, device: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", PAHO, &port.to_string(), version, qos, count, device]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_publishes_with_both_versions() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    for (version, qos) in [("3.1.1", "1"), ("5", "2")] {
        let output = process::run(paho(port, version, qos, "300", version)).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let status = agent.drained("readings", 600).await;
    assert_eq!((status.appended("readings"), cloud.count("readings")), (600, 600));
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_resends_what_a_killed_agent_did_not_acknowledge_and_nothing_is_stored_twice() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let mut agent = crate::listening(port, &cloud).await;
    let mut publishing = JoinSet::new();
    let clients = [("3.1.1", "1", "a"), ("3.1.1", "2", "b"), ("5", "1", "c"), ("5", "2", "d")];
    for (version, qos, device) in clients {
        publishing.spawn(process::run(paho(port, version, qos, "800", device)));
    }
    for readings in [300, 1_000, 1_700] {
        agent.wait_for("readings to flow", |status| status.appended("readings") >= readings).await;
        agent.kill();
        agent.start().await;
    }
    for output in publishing.join_all().await {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let status = agent.drained("readings", 3_200).await;
    let records = cloud.records("readings");
    for (version, qos, device) in clients {
        let of_it = records.iter().filter(|record| record["device"] == device);
        let mut numbers: Vec<_> = of_it.map(|record| record["fields"]["n"].as_u64().unwrap()).collect();
        numbers.sort_unstable();
        let twice: Vec<_> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "MQTT {version}, QoS {qos}: stored twice: {twice:?}");
        assert_eq!(numbers, (0..800).collect::<Vec<_>>(), "MQTT {version}, QoS {qos}");
    }
    assert_eq!(status.appended("readings"), 3_200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_refused_politely() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    for version in ["mqttv311", "mqttv5"] {
        let mut command = Command::new("mosquitto_sub");
        command.args(["-V", version, "-p", &port.to_string(), "-t", "sensors/#", "-W", "20"]);
        let output = process::run(command).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("denied"), "{version}: {told}");
    }
    assert_eq!(agent.status().await.source_state("direct"), "connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_subscription_takes_is_rejected() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let agent = crate::listening(port, &cloud).await;
    let number = port.to_string();
    // MQTT 3.1.1 has no word for it: acknowledged and counted. MQTT 5 is told.
    crate::mosquitto_pub(&["-V", "mqttv311", "-p", &number, "-q", "1", "-t", "elsewhere", "-m", "{}"]).await;
    let mut command = Command::new("mosquitto_pub");
    command.args(["-d", "-V", "mqttv5", "-p", &number, "-q", "1", "-t", "elsewhere", "-m", "{}"]);
    let output = process::run(command).await;
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // 16 is "no matching subscribers", 135 "not authorized", 144 "topic name invalid".
    assert!(told.contains("RC:1"), "{told}");
    let status = agent.wait_for("both", |status| status.source("direct", "received") == 2).await;
    assert_eq!(status.source("direct", "rejected"), 2);
    status.assert_balanced();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_cut_off_again_and_again_do_not_fill_the_log() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let mut agent = Agent::new(HOLDFAST, &format!("{STORE}{}{}", listener(port), cloud.sink(BATCH)));
    agent.start().await;
    for _ in 0..200 {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // A CONNECT of the client "x", and then a SUBACK, which no client may send.
        socket.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01x\x90\x03\0\x01\0").await.unwrap();
        let mut answer = Vec::new();
        // Closed or reset, either way it is over.
        drop(socket.read_to_end(&mut answer).await);
    }
    let log = agent.log();
    let lines = log.matches("a client was cut off").count();
    assert!((20..100).contains(&lines), "{lines} lines");
    assert_eq!(log.matches("more often than is logged").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_asked_for_their_passwords() {
    let (cloud, port) = (Cloud::start().await, harness::free_port());
    let mut agent = Agent::new(HOLDFAST, "");
    let users = agent.file("users.toml");
    let mut command = Command::new("sh");
    command.args(["-c", "printf 'correct horse\\n' | \"$0\" passwd \"$1\" d1", HOLDFAST]).arg(&users);
    let output = process::run(command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let source = listener(port).replace(
        "[[sources.direct.subscribe]]",
        &format!("users = {{ file = \"{}\" }}\n[[sources.direct.subscribe]]", users.display()),
    );
    agent.configure(&format!("{STORE}{source}{}", cloud.sink(BATCH)));
    agent.start().await;
    let publish = async |extra: &[&str]| {
        let mut command = Command::new("mosquitto_pub");
        command.args(["-p", &port.to_string(), "-q", "1", "-t", "sensors/d1/telemetry"]);
        command.args(["-m", "{\"ts\":1795147200,\"n\":1}"]).args(extra);
        process::run(command).await.status.success()
    };
    assert!(publish(&["-u", "d1", "-P", "correct horse"]).await);
    assert!(!publish(&["-u", "d1", "-P", "battery staple"]).await);
    assert!(!publish(&["-u", "d2", "-P", "correct horse"]).await);
    assert!(!publish(&[]).await);
    let status = agent.drained("readings", 1).await;
    assert_eq!(status.source("direct", "received"), 1);
    assert!(!agent.log().contains("horse") && !agent.log().contains("staple"));
}
