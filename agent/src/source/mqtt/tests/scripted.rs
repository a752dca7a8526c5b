//! The source against a broker played by hand, for what mosquitto would never do.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::super::Protocol;
use super::room::{DEADLINE, Memory, Source, hash, hashes, in_both, settings};
use crate::clock::Clock;
use crate::source::State;

#[tokio::test]
async fn a_refused_subscription_is_named_while_the_others_work() {
    in_both(|protocol| async move {
        // mosquitto itself refuses no SUBSCRIBE for lack of permission, so the broker is played by hand.
        let (listener, mut source) = source_of_ours(protocol, &["a", "b"]).await;
        let mut socket = accept(&listener).await;
        read_packet(&mut socket).await;
        socket.write_all(connack(protocol)).await.unwrap();
        let subscribe = read_packet(&mut socket).await;
        let code = if protocol == Protocol::V5 { 0x87 } else { 0x80 };
        socket.write_all(&suback(protocol, &subscribe, &[1, code])).await.unwrap();
        let error = source.reaches(State::Misconfigured).await.last_error.unwrap();
        assert!(error.contains("refused to subscribe \"b\""), "{error}");

        socket.write_all(&publish(protocol, 1, 7)).await.unwrap();
        let seen = source.takes(1).await;
        assert_eq!((seen[0].hash, seen[0].packet_id()), (hash("a", "x"), 7));
        source.settle();
        assert_eq!(read_packet(&mut socket).await, [0x40, 2, 0, 7]);
    })
    .await;
}

#[tokio::test]
async fn acks_leave_in_the_order_of_arrival_and_only_as_far_as_is_durable() {
    in_both(|protocol| async move {
        let (listener, mut source) = source_of_ours(protocol, &["a"]).await;
        let mut socket = accept_subscriber(&listener, protocol).await;
        // Packet ids in no order of their own.
        let ids: Vec<u16> = (0..500_u32).map(|n| u16::try_from(n * 7_919 % 65_521 + 1).unwrap()).collect();
        let (early, late) = ids.split_at(311);
        for part in [early, late] {
            let packets: Vec<u8> = part.iter().flat_map(|id| publish(protocol, 1, *id)).collect();
            socket.write_all(&packets).await.unwrap();
            let seen = source.takes(part.len()).await;
            assert!(seen.iter().map(|seen| seen.packet_id()).eq(part.iter().copied()));
            source.settle();
            for id in part {
                let [high, low] = id.to_be_bytes();
                assert_eq!(read_packet(&mut socket).await, [0x40, 2, high, low]);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_an_older_connection_owed_is_never_sent_on_a_newer_one() {
    in_both(|protocol| async move {
        let (listener, mut source) = source_of_ours(protocol, &["a"]).await;
        let mut socket = accept_subscriber(&listener, protocol).await;
        socket.write_all(&publish(protocol, 1, 7)).await.unwrap();
        source.takes(1).await;
        drop(socket);

        let mut socket = accept_subscriber(&listener, protocol).await;
        source.reaches(State::Connected).await;
        // Only now is the message of the first connection durable.
        source.settle();
        socket.write_all(&publish(protocol, 1, 8)).await.unwrap();
        source.takes(1).await;
        source.settle();
        assert_eq!(read_packet(&mut socket).await, [0x40, 2, 0, 8]);
    })
    .await;
}

#[tokio::test]
async fn a_flood_that_has_no_room_is_held_back_by_tcp() {
    in_both(|protocol| async move {
        let (listener, mut source) = source_of_ours(protocol, &["a"]).await;
        let mut socket = accept_subscriber(&listener, protocol).await;
        // Rejected payloads are kept up to 1 KiB, so it takes thousands of messages to use up the budget.
        let flood: Vec<u8> = (0..1_000).flat_map(|_| publish(protocol, 0, 0)).collect();
        let mut written = 0;
        let is_held_back = async |socket: &mut TcpStream| {
            timeout(Duration::from_secs(2), socket.write_all(&flood)).await.is_err()
        };
        while !is_held_back(&mut socket).await {
            written += flood.len();
            assert!(written < 512 << 20, "nothing holds it back");
        }
        source.reaches(State::Blocked).await;

        // The test's own room takes what waits, and gives the budget back.
        while source.report.borrow().state == State::Blocked {
            let batch = timeout(DEADLINE, source.batches.recv()).await.expect("no batch comes").unwrap();
            drop(batch);
        }
    })
    .await;
}

#[tokio::test]
async fn who_is_kicked_at_once_backs_off() {
    in_both(|protocol| async move {
        let (listener, mut source) = source_of_ours(protocol, &["a"]).await;
        let began = Clock::system().monotonic();
        for _ in 0..5 {
            let socket = accept_subscriber(&listener, protocol).await;
            source.reaches(State::Connected).await;
            drop(socket);
            let error = source.reaches(State::Disconnected).await.last_error.unwrap();
            assert!(error.contains("client_id"), "{error}");
        }
        // Four pauses of at least a tenth of 100, 200, 400 and 800 ms; a loop without them takes a few.
        assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
        source.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_release_of_an_unknown_qos_2_message_is_answered_at_the_second_connection() {
    in_both(|protocol| async move {
        let (listener, mut source) = source_of_ours(protocol, &["a"]).await;
        for attempt in 0..2 {
            let mut socket = accept_subscriber(&listener, protocol).await;
            socket.write_all(&[0x62, 2, 0, 9]).await.unwrap();
            if attempt == 0 {
                source.reaches(State::Disconnected).await;
            } else {
                assert_eq!(read_packet(&mut socket).await, [0x70, 2, 0, 9]);
                // And a QoS 2 message of the old subscription goes its way.
                socket.write_all(&publish(protocol, 2, 7)).await.unwrap();
                source.takes(1).await;
                source.settle();
                assert_eq!(read_packet(&mut socket).await, [0x50, 2, 0, 7]);
                socket.write_all(&[0x62, 2, 0, 7]).await.unwrap();
                assert_eq!(read_packet(&mut socket).await, [0x70, 2, 0, 7]);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_arrives_together_with_the_end_of_the_connection_is_kept() {
    in_both(|protocol| async move {
        let (listener, mut source) = source_of_ours(protocol, &["a"]).await;
        let mut socket = accept(&listener).await;
        read_packet(&mut socket).await;
        socket.write_all(connack(protocol)).await.unwrap();
        let subscribe = read_packet(&mut socket).await;
        let mut last = suback(protocol, &subscribe, &[1]);
        for _ in 0..3 {
            last.extend(publish(protocol, 0, 0));
        }
        // A reserved packet type: the connection is over.
        last.extend_from_slice(&[0x00, 0x00]);
        socket.write_all(&last).await.unwrap();
        assert_eq!(hashes(&source.takes(3).await), [hash("a", "x"); 3]);
        source.reaches(State::Disconnected).await;
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_is_not_utf_8_does_no_lasting_harm() {
    in_both(|protocol| async move {
        let (listener, mut source) = source_of_ours(protocol, &["a"]).await;
        let mut socket = accept_subscriber(&listener, protocol).await;
        match protocol {
            Protocol::V311 => {
                socket.write_all(b"\x32\x06\x00\x01\xff\x00\x07x").await.unwrap();
                let error = source.reaches(State::Disconnected).await.last_error.unwrap();
                assert!(error.contains("not UTF-8"), "{error}");
            }
            Protocol::V5 => {
                socket.write_all(b"\x32\x07\x00\x01\xff\x00\x07\x00x").await.unwrap();
                assert_eq!(hashes(&source.takes(1).await), [hash("\u{fffd}", "x")]);
                source.settle();
                assert_eq!(read_packet(&mut socket).await, [0x40, 2, 0, 7]);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_never_answers_does_not_hold_up_the_stop() {
    in_both(|protocol| async move {
        let (listener, source) = source_of_ours(protocol, &["a"]).await;
        let mut socket = accept(&listener).await;
        read_packet(&mut socket).await;
        source.stop.cancel();
        timeout(Duration::from_secs(2), source.task).await.expect("the stop waits for the broker").unwrap();
    })
    .await;
}

/// A source whose broker is the test.
async fn source_of_ours(protocol: Protocol, topics: &[&str]) -> (TcpListener, Source) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Source::start(settings(port, protocol, topics), &Memory::default()))
}

/// Takes a connection, and grants its one subscription.
async fn accept_subscriber(listener: &TcpListener, protocol: Protocol) -> TcpStream {
    let mut socket = accept(listener).await;
    read_packet(&mut socket).await;
    socket.write_all(connack(protocol)).await.unwrap();
    let subscribe = read_packet(&mut socket).await;
    socket.write_all(&suback(protocol, &subscribe, &[1])).await.unwrap();
    socket
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(DEADLINE, listener.accept()).await.expect("nobody connects").unwrap().0
}

/// One packet with a length of one byte, as all our own are.
async fn read_packet(socket: &mut TcpStream) -> Vec<u8> {
    let read = async {
        let mut packet = vec![0; 2];
        socket.read_exact(&mut packet).await.unwrap();
        assert!(packet[1] < 0x80, "a longer packet than expected");
        packet.resize(2 + usize::from(packet[1]), 0);
        socket.read_exact(&mut packet[2..]).await.unwrap();
        packet
    };
    timeout(DEADLINE, read).await.expect("no packet comes")
}

fn connack(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::V311 => &[0x20, 2, 0, 0],
        Protocol::V5 => &[0x20, 3, 0, 0, 0],
    }
}

fn suback(protocol: Protocol, subscribe: &[u8], codes: &[u8]) -> Vec<u8> {
    assert_eq!(subscribe[0], 0x82, "that is no SUBSCRIBE: {subscribe:?}");
    let mut body = vec![subscribe[2], subscribe[3]];
    if protocol == Protocol::V5 {
        body.push(0);
    }
    body.extend_from_slice(codes);
    let mut packet = vec![0x90, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    packet
}

/// A PUBLISH of "x" to the topic "a".
fn publish(protocol: Protocol, qos: u8, packet_id: u16) -> Vec<u8> {
    let mut body = vec![0, 1, b'a'];
    if qos > 0 {
        body.extend(packet_id.to_be_bytes());
    }
    if protocol == Protocol::V5 {
        body.push(0);
    }
    body.push(b'x');
    let mut packet = vec![0x30 | qos << 1, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    packet
}
