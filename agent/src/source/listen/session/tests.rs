use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

use super::super::fault::Fault;
use super::super::packet::{Packet, Parting, Publish, Qos, Version};
use super::{Door, Next, RECEIVE_MAXIMUM, Session};
use crate::ingest::{Arrival, Delivery, Pushed, Resent};

/// Takes what begins with "known/", and remembers how it came.
#[derive(Default)]
struct Taken(Vec<(String, Delivery)>);

impl Door for Taken {
    fn push(&mut self, arrival: &Arrival<'_>) -> Pushed {
        self.0.push((arrival.topic.to_owned(), arrival.delivery));
        if arrival.topic.starts_with("known/") { Pushed::Routed } else { Pushed::Unrouted }
    }

    fn pushed(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A session, its door, and what it said.
struct Bench {
    session: Session,
    version: Version,
    door: Taken,
    out: BytesMut,
}

impl Bench {
    fn new(version: Version) -> Self {
        Self { session: Session::new(version), version, door: Taken::default(), out: BytesMut::new() }
    }

    fn take(&mut self, packet: Packet) -> Result<Next, Fault> {
        self.session.take(packet, &mut self.door, &mut self.out)
    }

    fn publish(&mut self, qos: Qos) {
        assert_eq!(self.take(publish("known/a", qos)).unwrap(), Next::GoOn);
    }

    /// What was said since this was last asked, as debug text, one packet an entry.
    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while !self.out.is_empty() {
            said.push(match self.version {
                Version::V4 => format!("{:?}", v4::Packet::read(&mut self.out, 1 << 20).unwrap()),
                Version::V5 => format!("{:?}", v5::Packet::read(&mut self.out, None).unwrap()),
            });
        }
        said
    }

    fn settle(&mut self, durable: u64) -> Vec<String> {
        self.session.settle(durable, &mut self.out);
        self.said()
    }
}

fn publish(topic: &str, qos: Qos) -> Packet {
    Packet::Publish(Publish {
        topic: topic.to_owned(),
        payload: Bytes::from_static(b"1"),
        qos,
        resent: false,
        retain: false,
    })
}

const fn once(packet_id: u16) -> Qos {
    Qos::AtLeastOnce { packet_id }
}

const fn exactly(packet_id: u16) -> Qos {
    Qos::ExactlyOnce { packet_id }
}

#[test]
fn acknowledgements_wait_for_the_disk_and_keep_the_order_of_the_publishes() {
    let mut bench = Bench::new(Version::V4);
    for qos in [once(7), Qos::AtMostOnce, exactly(3), once(9)] {
        bench.publish(qos);
    }
    assert!(bench.said().is_empty());
    assert_eq!(bench.settle(1), ["PubAck(PubAck { pkid: 7 })"]);
    assert!(bench.settle(2).is_empty(), "nobody waits for QoS 0");
    assert_eq!(bench.settle(4), ["PubRec(PubRec { pkid: 3 })", "PubAck(PubAck { pkid: 9 })"]);
    assert!(!bench.session.owes());
}

#[test]
fn a_repeat_of_qos_2_before_its_release_is_acknowledged_and_not_stored_again() {
    for version in [Version::V4, Version::V5] {
        let mut bench = Bench::new(version);
        bench.publish(exactly(5));
        bench.publish(exactly(5));
        assert_eq!(bench.settle(1).len(), 2, "two PUBRECs");
        bench.publish(exactly(5));
        assert_eq!(bench.door.0.len(), 1);
        assert_eq!(bench.said().len(), 1, "what is durable is acknowledged at once");
        bench.take(Packet::Release { packet_id: 5 }).unwrap();
        assert!(bench.said()[0].starts_with("PubComp"));
        bench.publish(exactly(5));
        assert_eq!(bench.door.0.len(), 2, "after the release the id is free for the next message");
    }
}

#[test]
fn an_unknown_release_is_completed_so_that_the_client_gets_rid_of_it() {
    let mut bench = Bench::new(Version::V4);
    bench.take(Packet::Release { packet_id: 8 }).unwrap();
    assert_eq!(bench.said(), ["PubComp(PubComp { pkid: 8 })"]);
    let mut bench = Bench::new(Version::V5);
    bench.take(Packet::Release { packet_id: 8 }).unwrap();
    assert!(bench.said()[0].contains("PacketIdentifierNotFound"));
}

#[test]
fn a_release_before_the_message_is_durable_breaks_the_protocol() {
    let mut bench = Bench::new(Version::V5);
    bench.publish(exactly(5));
    let fault = bench.take(Packet::Release { packet_id: 5 }).unwrap_err();
    assert!(matches!(fault, Fault::Unexpected { .. }), "{fault}");
}

#[test]
fn a_message_that_no_subscription_takes_is_refused_where_there_are_words_for_it() {
    let check = |version, qos, expected: &str| {
        let mut bench = Bench::new(version);
        bench.take(publish("other", qos)).unwrap();
        let said = bench.settle(1);
        assert!(said[0].contains(expected), "{said:?}");
        bench
    };
    check(Version::V4, once(1), "PubAck { pkid: 1 }");
    check(Version::V4, exactly(1), "PubRec { pkid: 1 }");
    check(Version::V5, once(1), "TopicNameInvalid");
    // A PUBREC that refuses ends the exchange: the id is free at once.
    let mut bench = check(Version::V5, exactly(1), "PubRec { pkid: 1, reason: TopicNameInvalid");
    bench.publish(exactly(1));
    assert_eq!(bench.door.0.len(), 2);
}

#[test]
fn the_dup_flag_is_handed_on() {
    let mut bench = Bench::new(Version::V4);
    let Packet::Publish(mut resent) = publish("known/a", once(4)) else { unreachable!() };
    resent.resent = true;
    resent.retain = true;
    bench.take(Packet::Publish(resent)).unwrap();
    let delivery = Delivery::Acknowledged { packet_id: 4, resent: Resent::Perhaps };
    assert_eq!(bench.door.0, [("known/a".to_owned(), delivery)]);
    assert_eq!((bench.session.take_retained(), bench.session.take_retained()), (1, 0));
}

#[test]
fn a_v5_client_above_the_receive_maximum_is_cut_off() {
    let mut bench = Bench::new(Version::V5);
    for packet_id in 1..=RECEIVE_MAXIMUM {
        bench.publish(if packet_id % 2 == 0 { once(packet_id) } else { exactly(packet_id) });
    }
    bench.settle(u64::from(RECEIVE_MAXIMUM));
    // The PUBACKs made room, the PUBRECs did not.
    for packet_id in 1..=RECEIVE_MAXIMUM / 2 {
        bench.publish(once(packet_id * 2));
    }
    let fault = bench.take(publish("known/a", once(2_000))).unwrap_err();
    assert!(matches!(fault, Fault::ReceiveMaximum { limit: RECEIVE_MAXIMUM }), "{fault}");
}

#[test]
fn of_a_v4_client_nothing_more_is_read_until_what_is_owed_leaves() {
    let mut bench = Bench::new(Version::V4);
    for packet_id in 1..=RECEIVE_MAXIMUM {
        assert!(!bench.session.holds_back());
        bench.publish(exactly(packet_id));
    }
    assert!(bench.session.holds_back());
    bench.settle(1);
    // All of them are unreleased, and that must not hold it back: the PUBRELs have to be read.
    assert!(!bench.session.holds_back());
}

#[test]
fn subscriptions_are_refused_politely() {
    let mut bench = Bench::new(Version::V4);
    bench.take(Packet::Subscribe { packet_id: 3, filters: 2 }).unwrap();
    bench.take(Packet::Unsubscribe { packet_id: 4, filters: 1 }).unwrap();
    bench.take(Packet::Ping).unwrap();
    let expected = [
        "SubAck(SubAck { pkid: 3, return_codes: [Failure, Failure] })",
        "UnsubAck(UnsubAck { pkid: 4 })",
        "PingResp",
    ];
    assert_eq!(bench.said(), expected);

    let mut bench = Bench::new(Version::V5);
    bench.take(Packet::Subscribe { packet_id: 3, filters: 2 }).unwrap();
    assert!(bench.said()[0].contains("[NotAuthorized, NotAuthorized]"));
    assert!(bench.take(Packet::Subscribe { packet_id: 0, filters: 1 }).is_err());
}

#[test]
fn a_disconnect_ends_it() {
    let mut bench = Bench::new(Version::V5);
    let next = bench.take(Packet::Disconnect(Parting::WithWill)).unwrap();
    assert_eq!(next, Next::Leave(Parting::WithWill));
}
