//! What is acknowledged, when, and in which order.

use std::time::Duration;

use rumqttc::mqttbytes::{QoS, v4};
use rumqttc::v5::mqttbytes::{QoS as QoS5, v5};

use super::bench::{Bench, Memory, Raw, connect_v4, connect_v5, publish_v4, publish_v5, settings, within};
use crate::ingest::{Delivery, Resent};

#[tokio::test]
async fn no_acknowledgement_leaves_before_the_message_is_durable() {
    let mut bench = Bench::new().await;
    let (mut client, _) = Raw::v4(&bench, connect_v4("a")).await;
    for packet_id in [7, 8] {
        client.send4(&publish_v4(QoS::AtLeastOnce, packet_id)).await;
    }
    let mut batches = vec![bench.batch().await];
    while batches.iter().map(|batch| batch.items.len()).sum::<usize>() < 2 {
        batches.push(bench.batch().await);
    }
    // Had a PUBACK been sent, it would come first.
    client.send4(&v4::Packet::PingReq).await;
    assert_eq!(client.read4().await, Some(v4::Packet::PingResp));
    batches[0].durable.send_replace(1);
    assert_eq!(client.read4().await, Some(v4::Packet::PubAck(v4::PubAck::new(7))));
    batches[0].durable.send_replace(2);
    assert_eq!(client.read4().await, Some(v4::Packet::PubAck(v4::PubAck::new(8))));
    bench.stopped().await;
}

#[tokio::test]
async fn a_message_of_qos_2_goes_through_all_four_packets() {
    let mut bench = Bench::new().await;
    let (mut client, _) = Raw::v5(&bench, connect_v5("a"), None).await;
    client.send5(&publish_v5(QoS5::ExactlyOnce, 3)).await;
    let expected = Delivery::Acknowledged { packet_id: 3, resent: Resent::No };
    assert_eq!(bench.store(1).await, [expected]);
    assert_eq!(client.read5().await, Some(v5::Packet::PubRec(v5::PubRec::new(3, None))));
    client.send5(&v5::Packet::PubRel(v5::PubRel::new(3, None))).await;
    assert_eq!(client.read5().await, Some(v5::Packet::PubComp(v5::PubComp::new(3, None))));
    bench.stopped().await;
}

#[tokio::test]
async fn a_topic_that_no_subscription_takes_is_refused_to_v5_and_acknowledged_to_v4() {
    let mut nothing = settings();
    nothing.subscriptions.clear();
    let mut bench = Bench::with(nothing, Memory::OfNobody).await;
    let (mut new, _) = Raw::v5(&bench, connect_v5("new"), None).await;
    new.send5(&publish_v5(QoS5::AtLeastOnce, 1)).await;
    let (mut old, _) = Raw::v4(&bench, connect_v4("old")).await;
    old.send4(&publish_v4(QoS::AtLeastOnce, 1)).await;
    bench.store(2).await;
    let Some(v5::Packet::PubAck(ack)) = new.read5().await else { panic!() };
    assert_eq!(ack.reason, v5::PubAckReason::TopicNameInvalid);
    assert_eq!(old.read4().await, Some(v4::Packet::PubAck(v4::PubAck::new(1))));
    bench.stopped().await;
}

#[tokio::test]
async fn subscribing_is_refused_politely() {
    let bench = Bench::new().await;
    let (mut client, ack) = Raw::v5(&bench, connect_v5("a"), None).await;
    let properties = ack.properties.unwrap();
    assert_eq!(properties.receive_max, Some(1_024));
    assert_eq!(properties.max_packet_size, Some(16 << 20));
    assert_eq!(properties.wildcard_subscription_available, Some(0));
    let filter = v5::Filter::new("#", QoS5::AtLeastOnce);
    let mut subscribe = v5::Subscribe::new(filter, None);
    subscribe.pkid = 9;
    client.send5(&v5::Packet::Subscribe(subscribe)).await;
    let Some(v5::Packet::SubAck(ack)) = client.read5().await else { panic!() };
    assert_eq!(ack.return_codes, [v5::SubscribeReasonCode::NotAuthorized]);
    // It may stay and publish.
    client.send5(&v5::Packet::PingReq(v5::PingReq)).await;
    assert_eq!(client.read5().await, Some(v5::Packet::PingResp(v5::PingResp)));
    bench.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_is_held_back_when_there_is_no_room_and_its_keep_alive_with_it() {
    let mut bench = Bench::new().await;
    let mut connect = connect_v4("a");
    connect.keep_alive = 10;
    let (mut client, _) = Raw::v4(&bench, connect).await;
    let mut packets = bytes::BytesMut::new();
    for _ in 0..4_000 {
        publish_v4(QoS::AtMostOnce, 0).write(&mut packets, 1 << 20).unwrap();
    }
    let sender = tokio::spawn(async move {
        for _ in 0..1_000 {
            client.send(&packets).await;
        }
        client
    });
    // Nobody takes anything: the sender gets stuck, and time passes.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!sender.is_finished());
    assert_eq!(bench.report.borrow().clients, Some(1), "it is silent because we hold it back");
    // Now time must not run ahead of the kernel, which takes its own time to open a closed window.
    tokio::time::resume();
    let mut left = 4_000_000_usize;
    while left > 0 {
        let batch = bench.batch().await;
        left -= batch.items.len();
    }
    let mut client = within("the sender", sender).await.unwrap();
    client.send4(&v4::Packet::PingReq).await;
    assert_eq!(client.read4().await, Some(v4::Packet::PingResp));
    bench.stopped().await;
}

#[tokio::test]
async fn a_large_packet_arrives_whole() {
    let mut bench = Bench::new().await;
    let (mut client, _) = Raw::v4(&bench, connect_v4("a")).await;
    let mut publish = v4::Publish::new("a/b", QoS::AtLeastOnce, vec![b'x'; 3 << 20]);
    publish.pkid = 1;
    client.send4(&v4::Packet::Publish(publish)).await;
    client.send4(&publish_v4(QoS::AtLeastOnce, 2)).await;
    bench.store(2).await;
    for packet_id in [1, 2] {
        assert_eq!(client.read4().await, Some(v4::Packet::PubAck(v4::PubAck::new(packet_id))));
    }
    bench.stopped().await;
}

#[tokio::test]
async fn what_is_durable_in_time_is_acknowledged_when_the_agent_stops() {
    let mut bench = Bench::new().await;
    let (mut client, _) = Raw::v5(&bench, connect_v5("a"), None).await;
    client.send5(&publish_v5(QoS5::AtLeastOnce, 1)).await;
    let batch = bench.batch().await;
    bench.stop();
    batch.durable.send_replace(batch.up_to);
    assert_eq!(client.read5().await, Some(v5::Packet::PubAck(v5::PubAck::new(1, None))));
    assert_eq!(client.reason5().await, v5::DisconnectReasonCode::ServerShuttingDown);
    assert_eq!(client.read5().await, None);
    bench.stopped().await;
}
