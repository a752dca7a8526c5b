//! The clients that people use: mosquitto_pub, paho for Python, and rumqttc.

use std::path::Path;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::QoS as QoS5;

use super::bench::{Bench, Memory, PAYLOAD, Raw, child, connect_v4, settings, within};
use crate::ingest::{Delivery, Resent};

fn is_acknowledged(delivery: &Delivery) -> bool {
    matches!(delivery, Delivery::Acknowledged { .. })
}

#[tokio::test]
async fn mosquitto_pub_is_served_in_both_versions_and_all_qualities() {
    let mut bench = Bench::new().await;
    let port = bench.address.port().to_string();
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            for session in [&["-i", "pump"][..], &["-i", "pump", "-c"]] {
                // Under MQTT 5 it wants to be told for how long its session is to last.
                let lasting = ["-x", "60"];
                let lasting = if version == "mqttv5" && session.len() == 3 { &lasting[..] } else { &[] };
                let mut arguments = vec!["-h", "127.0.0.1", "-p", &port, "-t", "a/b", "-m", PAYLOAD];
                arguments.extend_from_slice(&["-q", qos, "-V", version, "--repeat", "3"]);
                arguments.extend_from_slice(session);
                arguments.extend_from_slice(lasting);
                let sent = child(Path::new("/"), "mosquitto_pub", &arguments);
                let stored = bench.store(3).await;
                assert!(
                    stored.iter().all(|delivery| is_acknowledged(delivery) == (qos != "0")),
                    "{stored:?}"
                );
                assert_eq!(within("mosquitto_pub", sent).await.unwrap(), Some(0), "{arguments:?}");
            }
        }
    }
    bench.assert_nothing_more();
    bench.stopped().await;
}

const PAHO_PUBLISHES: &str = r#"
import sys, paho.mqtt.client as paho
port, protocol, payload = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
# Debian 12 has paho 1.6, where clients take no version of the callbacks.
version = [paho.CallbackAPIVersion.VERSION2] if hasattr(paho, "CallbackAPIVersion") else []
client = paho.Client(*version, client_id="paho", protocol=protocol)
client.connect("127.0.0.1", port)
client.loop_start()
sent = [client.publish("a/b", payload, qos=n % 3) for n in range(300)]
for message in sent:
    message.wait_for_publish(15)
    assert message.is_published()
client.disconnect()
client.loop_stop()
"#;

#[tokio::test]
async fn paho_gets_every_message_acknowledged() {
    let mut bench = Bench::new().await;
    let port = bench.address.port().to_string();
    for protocol in ["4", "5"] {
        let sent = child(Path::new("/"), "python3", &["-c", PAHO_PUBLISHES, &port, protocol, PAYLOAD]);
        let stored = bench.store(300).await;
        assert_eq!(stored.iter().filter(|delivery| is_acknowledged(delivery)).count(), 200);
        assert_eq!(within("paho", sent).await.unwrap(), Some(0));
    }
    bench.assert_nothing_more();
    bench.stopped().await;
}

const PAHO_RESENDS: &str = r#"
import sys, paho.mqtt.client as paho
port, payload = int(sys.argv[1]), sys.argv[2]
version = [paho.CallbackAPIVersion.VERSION2] if hasattr(paho, "CallbackAPIVersion") else []
client = paho.Client(*version, client_id="paho", clean_session=False)
client.reconnect_delay_set(1, 1)
client.connect("127.0.0.1", port)
client.loop_start()
sent = [client.publish("a/b", payload, qos=1 + n % 2) for n in range(4)]
for message in sent:
    message.wait_for_publish(15)
    assert message.is_published()
client.disconnect()
client.loop_stop()
"#;

#[tokio::test]
async fn paho_sends_again_with_dup_what_was_not_acknowledged() {
    let mut bench = Bench::new().await;
    let port = bench.address.port().to_string();
    let sent = child(Path::new("/"), "python3", &["-c", PAHO_RESENDS, &port, PAYLOAD]);
    let mut taken = 0;
    while taken < 4 {
        // Not reported durable: the acknowledgements never leave.
        taken += bench.batch().await.items.len();
    }
    drop(Raw::v4(&bench, connect_v4("paho")).await);
    let again = bench.store(4).await;
    let resent =
        |delivery: &Delivery| matches!(delivery, Delivery::Acknowledged { resent: Resent::Perhaps, .. });
    assert!(again.iter().all(resent), "{again:?}");
    assert_eq!(within("paho", sent).await.unwrap(), Some(0));
    bench.stopped().await;
}

#[tokio::test]
async fn rumqttc_sends_again_when_it_is_told_that_its_session_is_present() {
    // As after a restart of the agent: the store knows the client.
    let mut bench = Bench::with(settings(), Memory::OfEverybody).await;
    let mut options = rumqttc::MqttOptions::new("rumq", "127.0.0.1", bench.address.port());
    options.set_clean_session(false).set_keep_alive(Duration::from_secs(30));
    let (client, mut events) = rumqttc::AsyncClient::new(options, 10);
    let polling = tokio::spawn(async move {
        loop {
            // An error means that it was cut off: the next poll connects again.
            if let Ok(rumqttc::Event::Incoming(rumqttc::Packet::PubAck(ack))) = events.poll().await {
                return ack.pkid;
            }
        }
    });
    client.publish("a/b", QoS::AtLeastOnce, false, PAYLOAD).await.unwrap();
    let first = bench.batch().await;
    assert_eq!(first.items[0].delivery, Delivery::Acknowledged { packet_id: 1, resent: Resent::No });
    drop(Raw::v4(&bench, connect_v4("rumq")).await);
    let again = bench.store(1).await;
    // It does not set DUP, against MQTT-3.3.1-1: of rumqttc as a sensor a resend cannot be told from a new message.
    assert_eq!(again, [Delivery::Acknowledged { packet_id: 1, resent: Resent::No }]);
    assert_eq!(within("a PUBACK", polling).await.unwrap(), 1);
    bench.stopped().await;
}

#[tokio::test]
async fn rumqttc_of_version_5_gets_every_message_acknowledged() {
    let mut bench = Bench::new().await;
    let mut options = rumqttc::v5::MqttOptions::new("rumq5", "127.0.0.1", bench.address.port());
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut events) = rumqttc::v5::AsyncClient::new(options, 10);
    let polling = tokio::spawn(async move {
        use rumqttc::v5::Event::Incoming;
        use rumqttc::v5::mqttbytes::v5::Packet;
        let mut done = 0;
        while done < 500 {
            let event = events.poll().await.unwrap();
            done += usize::from(matches!(event, Incoming(Packet::PubAck(_) | Packet::PubComp(_))));
        }
    });
    let sending = tokio::spawn(async move {
        for n in 0..500 {
            let qos = if n % 2 == 0 { QoS5::AtLeastOnce } else { QoS5::ExactlyOnce };
            client.publish("a/b", qos, false, PAYLOAD).await.unwrap();
        }
        client
    });
    assert_eq!(bench.store(500).await.len(), 500);
    within("acknowledgements", polling).await.unwrap();
    drop(within("the sender", sending).await.unwrap());
    bench.stopped().await;
}
