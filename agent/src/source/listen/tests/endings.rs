//! How connections end: wills, take-overs, and clients that are cut off.

use std::time::Duration;

use rumqttc::mqttbytes::{QoS, v4};
use rumqttc::v5::mqttbytes::QoS as QoS5;
use rumqttc::v5::mqttbytes::v5::{self, DisconnectReasonCode as Reason};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::bench::{Bench, PAYLOAD, Raw, connect_v4, connect_v5, hash, publish_v4, publish_v5, within};
use crate::ingest::Delivery;

const WILL: &str = "{\"gone\":1}";

fn with_will(id: &str) -> v4::Connect {
    let mut connect = connect_v4(id);
    connect.last_will = Some(v4::LastWill::new("wills/a", WILL, QoS::AtLeastOnce, true));
    connect
}

#[tokio::test]
async fn a_will_is_one_more_message_of_who_goes_without_a_word() {
    let mut bench = Bench::new().await;
    let (mut client, _) = Raw::v4(&bench, with_will("a")).await;
    client.send4(&publish_v4(QoS::AtMostOnce, 0)).await;
    drop(client);
    let stored = bench.store_hashed(2).await;
    let expected = [hash("a/b", PAYLOAD.as_bytes()), hash("wills/a", WILL.as_bytes())]
        .map(|hash| (Delivery::AtMostOnce, hash));
    assert_eq!(stored, expected);
    bench.clients(0).await;

    // Who says goodbye has none.
    let (mut client, _) = Raw::v4(&bench, with_will("a")).await;
    client.send4(&v4::Packet::Disconnect).await;
    assert_eq!(client.read4().await, None);
    bench.clients(0).await;
    bench.assert_nothing_more();

    let retained = bench.report.wait_for(|report| report.retained == Some(1));
    drop(within("the retained count", retained).await.unwrap());
    bench.stopped().await;
}

fn v5_with_will(id: &str, delay: u32) -> (v5::Connect, Option<v5::LastWill>) {
    let properties = v5::LastWillProperties {
        delay_interval: Some(delay),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let will = v5::LastWill::new("wills/a", WILL, QoS5::AtMostOnce, false, Some(properties));
    let session =
        v5::ConnectProperties { session_expiry_interval: Some(u32::MAX), ..v5::ConnectProperties::new() };
    (v5::Connect { properties: Some(session), ..connect_v5(id) }, Some(will))
}

#[tokio::test]
async fn a_v5_client_can_leave_and_have_its_will() {
    let mut bench = Bench::new().await;
    let (connect, will) = v5_with_will("a", 0);
    let (mut client, _) = Raw::v5(&bench, connect, will).await;
    let reason_code = Reason::DisconnectWithWillMessage;
    client.send5(&v5::Packet::Disconnect(v5::Disconnect { reason_code, properties: None })).await;
    bench.store(1).await;
    bench.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_will_waits_for_its_client_to_come_back() {
    let mut bench = Bench::new().await;
    let (connect, will) = v5_with_will("a", 50);
    drop(Raw::v5(&bench, connect.clone(), will.clone()).await);
    bench.clients(0).await;
    // It comes back to its session: the will is void.
    let resuming = v5::Connect { clean_start: false, ..connect.clone() };
    let (client, ack) = Raw::v5(&bench, resuming, will.clone()).await;
    assert!(ack.session_present);
    bench.assert_nothing_more();
    // It goes again, and comes back as another: the session has ended, and the will is due.
    drop(client);
    bench.clients(0).await;
    let (client, _) = Raw::v5(&bench, connect, will).await;
    bench.store(1).await;
    // It goes and stays away. (Time is paused: it passes while everybody waits.)
    drop(client);
    bench.clients(0).await;
    let left = Instant::now();
    bench.store(1).await;
    assert!(left.elapsed() >= Duration::from_secs(49));
    bench.stopped().await;
}

#[tokio::test]
async fn a_second_connection_takes_over_and_the_first_messages_stay_first() {
    let mut bench = Bench::new().await;
    let (mut first, _) = Raw::v5(&bench, connect_v5("a"), None).await;
    first.send5(&publish_v5(QoS5::AtLeastOnce, 1)).await;
    first.send5(&v5::Packet::PingReq(v5::PingReq)).await;
    // Answered: so the PUBLISH before it was pushed.
    assert_eq!(first.read5().await, Some(v5::Packet::PingResp(v5::PingResp)));
    let (mut second, _) = Raw::v5(&bench, connect_v5("a"), None).await;
    assert_eq!(first.reason5().await, Reason::SessionTakenOver);
    second.send5(&publish_v5(QoS5::AtLeastOnce, 2)).await;
    let ids: Vec<u16> = bench
        .store(2)
        .await
        .into_iter()
        .map(|delivery| match delivery {
            Delivery::Acknowledged { packet_id, .. } => packet_id,
            Delivery::AtMostOnce | Delivery::Numbered => 0,
        })
        .collect();
    assert_eq!(ids, [1, 2]);
    assert_eq!(bench.report.borrow().clients, Some(1));
    bench.stopped().await;
}

#[tokio::test]
async fn a_broken_protocol_ends_the_connection_with_a_reason() {
    let bench = Bench::new().await;
    for (bytes, expected) in [
        (&b"\x30\x05\0\x01#\x001"[..], Reason::TopicNameInvalid),
        (b"\x30\x08\0\x01a\x03\x23\0\x011", Reason::TopicAliasInvalid),
        (b"\x36\x07\0\x01a\0\x01\x001", Reason::MalformedPacket),
        (b"\x30\x81\x80\x80\x08", Reason::PacketTooLarge),
        (b"\x40\x02\0\x01", Reason::ProtocolError),
    ] {
        let (mut client, _) = Raw::v5(&bench, connect_v5("a"), None).await;
        client.send(bytes).await;
        assert_eq!(client.reason5().await, expected, "{bytes:02x?}");
        assert_eq!(client.read5().await, None);
    }
    let (mut greedy, _) = Raw::v5(&bench, connect_v5("a"), None).await;
    for packet_id in 1..=1_025 {
        greedy.send5(&publish_v5(QoS5::AtLeastOnce, packet_id)).await;
    }
    assert_eq!(greedy.reason5().await, Reason::ReceiveMaximumExceeded);
    bench.stopped().await;
}

#[tokio::test]
async fn what_is_no_mqtt_is_cut_off() {
    let bench = Bench::new().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x10\xFF\xFF\xFF\xFF\xFF",
        b"\x10\x02xx",
        b"\x30\x03\0\x01a",
        b"\0",
    ] {
        let mut client = Raw::open(&bench).await;
        client.send(bytes).await;
        assert_eq!(client.read4().await, None, "{bytes:02x?}");
    }
    bench.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_cut_off() {
    let bench = Bench::new().await;
    let started = Instant::now();
    assert_eq!(Raw::open(&bench).await.read4().await, None);
    assert!(started.elapsed() >= Duration::from_secs(10), "without a CONNECT");

    let (mut client, _) = Raw::v5(&bench, v5::Connect { keep_alive: 20, ..connect_v5("a") }, None).await;
    let started = Instant::now();
    assert_eq!(client.reason5().await, Reason::KeepAliveTimeout);
    assert!(started.elapsed() >= Duration::from_secs(30), "after its keep-alive and half as much");

    let (mut client, _) = Raw::v5(&bench, v5::Connect { keep_alive: 0, ..connect_v5("a") }, None).await;
    client.send(b"\x30\x20").await;
    assert_eq!(client.reason5().await, Reason::UnspecifiedError, "in the middle of a packet");
    bench.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_cut_off() {
    let mut bench = Bench::new().await;
    let (mut client, _) = Raw::v4(&bench, connect_v4("a")).await;
    // Each ping is answered; nobody reads the answers, until every buffer on the way is full.
    let pings = b"\xC0\0".repeat(1 << 16);
    let flood = async { while client.socket.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(300), flood).await.expect("it must be cut off");
    bench.clients(0).await;
    bench.stopped().await;
}
