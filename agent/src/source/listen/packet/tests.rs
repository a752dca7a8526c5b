use bytes::BytesMut;
use proptest::prelude::{any, prop, prop_assert, proptest};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::{self as bytes5, v5};

use super::super::fault::Fault;
use super::super::fuzz::packets;
use super::{Frame, Hello, Packet, Parting, Start, Version, frame, read, read_connect};

/// Reads the one packet in `bytes`.
fn read_all(version: Version, bytes: &[u8]) -> Result<Packet, Fault> {
    let mut buffer = BytesMut::from(bytes);
    let Frame::Complete(length) = frame(&buffer)? else { panic!("not a whole packet: {bytes:02x?}") };
    read(version, &mut buffer, length)
}

fn hello(bytes: &[u8]) -> Result<Hello, Fault> {
    let mut buffer = BytesMut::from(bytes);
    let Frame::Complete(length) = frame(&buffer)? else { panic!("not a whole packet: {bytes:02x?}") };
    read_connect(&mut buffer, length)
}

fn written_v5(packet: &v5::Packet) -> Vec<u8> {
    let mut out = BytesMut::new();
    packet.write(&mut out, None).unwrap();
    out.to_vec()
}

#[test]
fn the_protocol_is_told_from_the_connect() {
    let connect = |name: &[u8], level: u8| {
        let mut packet = vec![0x10, 0, 0, u8::try_from(name.len()).unwrap()];
        packet.extend_from_slice(name);
        packet.extend_from_slice(&[level, 0b10, 0, 60]);
        if level == 5 {
            packet.push(0);
        }
        packet.extend_from_slice(&[0, 1, b'a']);
        packet[1] = u8::try_from(packet.len() - 2).unwrap();
        hello(&packet)
    };
    let version = |hello| match hello {
        Ok(Hello::Connect(connect)) => connect.version,
        other => panic!("{other:?}"),
    };
    assert_eq!(version(connect(b"MQTT", 4)), Version::V4);
    assert_eq!(version(connect(b"MQTT", 5)), Version::V5);
    assert_eq!(connect(b"MQIsdp", 3).unwrap(), Hello::OtherProtocol(Version::V4));
    assert_eq!(connect(b"MQTT", 3).unwrap(), Hello::OtherProtocol(Version::V4));
    assert_eq!(connect(b"MQTT", 6).unwrap(), Hello::OtherProtocol(Version::V5));
    assert!(matches!(connect(b"AMQP", 4), Err(Fault::NoConnect)));
    assert!(matches!(hello(b"\x10\x00"), Err(Fault::NoConnect)));
}

#[test]
fn a_connect_of_each_version_says_the_same() {
    let mut will = v5::LastWill::new("w", "gone", bytes5::QoS::AtLeastOnce, true, None);
    let properties =
        v5::ConnectProperties { session_expiry_interval: Some(60), ..v5::ConnectProperties::new() };
    let mut connect = v5::Connect {
        keep_alive: 30,
        client_id: "a".to_owned(),
        clean_start: false,
        properties: Some(properties),
    };
    will.properties = Some(v5::LastWillProperties {
        delay_interval: Some(5),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    });
    let login = v5::Login::new("ada", "secret");
    let packet = v5::Packet::Connect(connect.clone(), Some(will), Some(login));
    let Hello::Connect(read) = hello(&written_v5(&packet)).unwrap() else { panic!() };
    assert_eq!((read.start, read.session_expiry.as_secs()), (Start::Resume, 60));
    let will = read.will.unwrap();
    assert_eq!((will.topic.as_str(), &will.payload[..], will.delay.as_secs()), ("w", &b"gone"[..], 5));
    assert!(!format!("{:?}", read.login.unwrap()).contains("secret"));

    connect.properties = None;
    let Hello::Connect(read) = hello(&written_v5(&v5::Packet::Connect(connect, None, None))).unwrap() else {
        panic!()
    };
    assert!(read.session_expiry.is_zero(), "without the property the session ends with the connection");
}

#[test]
fn a_v5_disconnect_may_be_as_short_as_two_bytes() {
    let parting = |bytes: &[u8]| match read_all(Version::V5, bytes) {
        Ok(Packet::Disconnect(parting)) => parting,
        other => panic!("{other:?}"),
    };
    assert_eq!(parting(&[0xE0, 0]), Parting::Quietly);
    assert_eq!(parting(&[0xE0, 1, 0]), Parting::Quietly);
    assert_eq!(parting(&[0xE0, 1, 4]), Parting::WithWill);
    assert_eq!(parting(&[0xE0, 2, 0, 0]), Parting::Quietly);
    assert_eq!(parting(&[0xE0, 2, 4, 0]), Parting::WithWill);
}

#[test]
fn topics_that_nobody_may_publish_to_end_the_connection() {
    let check = |topic: &[u8]| {
        let length = u8::try_from(topic.len()).unwrap();
        for version in [Version::V4, Version::V5] {
            let mut packet = vec![0x30, length + 3 + u8::from(version == Version::V5), 0, length];
            packet.extend_from_slice(topic);
            if version == Version::V5 {
                packet.push(0);
            }
            packet.push(b'1');
            let fault = read_all(version, &packet).unwrap_err();
            assert!(matches!(fault, Fault::TopicInvalid | Fault::Malformed { .. }), "{topic:?}: {fault}");
        }
    };
    check(b"");
    check(b"a/+/b");
    check(b"a/#");
    check(b"a\0b");
    check(b"\xFF");
}

#[test]
fn a_topic_alias_is_refused() {
    let properties = v5::PublishProperties { topic_alias: Some(3), ..Default::default() };
    let publish = v5::Publish::new("a", bytes5::QoS::AtMostOnce, "1", Some(properties));
    let fault = read_all(Version::V5, &written_v5(&v5::Packet::Publish(publish))).unwrap_err();
    assert!(matches!(fault, Fault::TopicAlias { alias: 3 }), "{fault}");
}

#[test]
fn what_is_cheap_to_send_and_dear_to_parse_is_refused() {
    let too_large = |fault: Fault| assert!(matches!(fault, Fault::PacketTooLarge { .. }), "{fault}");
    too_large(frame(&[0x82, 0x81, 0x80, 0x80, 0x01]).unwrap_err());
    too_large(frame(&[0x30, 0x81, 0x80, 0x80, 0x08]).unwrap_err());
    too_large(frame(&[0x10, 0x81, 0x80, 0x80, 0x01]).unwrap_err());
    let user_properties = vec![(String::new(), String::new()); 20_000];
    let properties = v5::PublishProperties { user_properties, ..Default::default() };
    let publish = v5::Publish::new("a", bytes5::QoS::AtMostOnce, "1", Some(properties));
    too_large(read_all(Version::V5, &written_v5(&v5::Packet::Publish(publish))).unwrap_err());
}

#[test]
fn what_only_servers_send_ends_the_connection() {
    for bytes in [&[0x20, 2, 0, 0][..], &[0x40, 2, 0, 1], &[0xD0, 0], &[0xB0, 2, 0, 1]] {
        assert!(read_all(Version::V4, bytes).is_err(), "{bytes:02x?}");
    }
    assert!(matches!(read_all(Version::V5, &[0xF0, 0]), Err(Fault::Malformed { .. })), "AUTH");
    assert!(
        matches!(read_all(Version::V4, &[0x36, 6, 0, 1, b'a', 0, 1, b'1']), Err(Fault::Malformed { .. })),
        "QoS 3"
    );
    assert!(read_all(Version::V4, &[0x32, 6, 0, 1, b'a', 0, 0, b'1']).is_err(), "packet identifier zero");
}

#[test]
fn a_packet_in_pieces_is_waited_for() {
    let mut out = BytesMut::new();
    v4::Publish::new("a/b", rumqttc::mqttbytes::QoS::AtMostOnce, vec![0; 300]).write(&mut out).unwrap();
    for end in 0..out.len() {
        assert!(matches!(frame(&out[..end]).unwrap(), Frame::Partial(_)), "{end}");
    }
    assert_eq!(frame(&out).unwrap(), Frame::Complete(out.len()));
}

proptest! {
    #[test]
    fn any_packet_with_any_contents_is_one_or_a_fault(
        kind in 1_u8..=15, flags in 0_u8..16, v5 in any::<bool>(), body in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut packet = vec![kind << 4 | flags, u8::try_from(body.len()).unwrap()];
        packet.extend_from_slice(&body);
        let version = if v5 { Version::V5 } else { Version::V4 };
        drop(read_all(version, &packet));
        drop(hello(&packet));
    }

    #[test]
    fn a_damaged_packet_is_one_or_a_fault(at in 0_usize..60, byte in any::<u8>(), dup in any::<bool>()) {
        let properties = v5::PublishProperties {
            user_properties: vec![("k".to_owned(), "v".to_owned())],
            content_type: Some("t".to_owned()),
            message_expiry_interval: Some(9),
            ..Default::default()
        };
        let mut publish = v5::Publish::new("a/b", bytes5::QoS::AtLeastOnce, "21.5", Some(properties));
        (publish.dup, publish.pkid) = (dup, 7);
        let mut packet = written_v5(&v5::Packet::Publish(publish));
        let at = at % packet.len();
        packet[at] = byte;
        prop_assert!(packets(&packet) <= packet.len());
    }
}
