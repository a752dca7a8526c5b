use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::codec::{HOST_DECODER_BYTES, Message};
use crate::frame::{Ack, FromNode, MAX_NODE_WIRE_BYTES, Resend, Time};
use crate::value::Kind;

const CHANNELS: &[Channel<'static>] = &[Channel::new("count", "", Kind::Int)];
const OTHER: &[Channel<'static>] = &[Channel::new("count", "1", Kind::Int)];

type Node = Link<'static, 256>;

fn node(settings: Settings) -> Node {
    Link::new(Identity::new("n", "1", 3, CHANNELS).unwrap(), settings)
}

/// What a node sent.
#[derive(Debug, PartialEq)]
enum Sent {
    Hello,
    Record(u64),
    Next(u16),
    Dropped(u64),
    Clock(u32, u64),
    Log,
}

fn read(node: &Node, mut frame: &[u8]) -> Sent {
    let mut decoder = Decoder::<HOST_DECODER_BYTES>::new();
    let Some(Decoded::Body(body)) = decoder.next(&mut frame) else { panic!("no frame") };
    match FromNode::parse(body).unwrap() {
        FromNode::Hello(_) => Sent::Hello,
        FromNode::Record(_, record, _) => Sent::Record(record.seq.0),
        FromNode::Next(next, _) => {
            let seq = u16::from_le_bytes(next.mark) ^ u16::from_le_bytes(node.context.mark(SampleSeq(0)));
            Sent::Next(seq)
        }
        FromNode::Dropped(dropped) => Sent::Dropped(dropped.up_to.0),
        FromNode::Clock(clock) => Sent::Clock(clock.stamp, clock.uptime_ms),
        FromNode::Log(_) => Sent::Log,
    }
}

/// All that is due.
fn sent(node: &mut Node, now_ms: u64) -> Vec<Sent> {
    let mut out = [0; MAX_NODE_WIRE_BYTES];
    let mut sent = Vec::new();
    while let Some(frame) = node.transmit(now_ms, &mut out).unwrap().map(<[u8]>::to_vec) {
        sent.push(read(node, &frame));
    }
    sent
}

fn hear(node: &mut Node, now_ms: u64, tag: Tag, message: &impl Message) {
    let mut out = [0; 100];
    let length = encode(Before::Frame, tag, message, &[], &mut out).unwrap();
    node.receive(now_ms, &out[..length]);
}

fn welcome(node: &Node, acked: u64) -> Welcome {
    let (context, acked) = (node.context, SampleSeq(acked));
    Welcome { version: VERSION, session: 7, context, wall_us: None, window: 4, acked }
}

fn ack(node: &mut Node, now_ms: u64, up_to: u64) {
    hear(node, now_ms, Tag::ACK, &Ack { session: 7, up_to: SampleSeq(up_to) });
}

fn measure(node: &mut Node, count: i64) {
    let before = node.unconfirmed();
    let taken = node.sample(count.cast_unsigned(), &[Value::Int(count)]).unwrap();
    assert_eq!(node.unconfirmed(), before + 1 - u64::from(taken.dropped));
}

/// A node that the host knows, with so many samples.
fn joined(samples: i64) -> Node {
    let mut node = node(Settings::DEFAULT);
    assert_eq!(sent(&mut node, 0), [Sent::Hello]);
    (1..=samples).for_each(|count| measure(&mut node, count));
    let welcome = welcome(&node, 0);
    hear(&mut node, 10, Tag::WELCOME, &welcome);
    node
}

#[test]
fn it_greets_ever_more_seldom_until_it_is_welcome() {
    let mut node = node(Settings::DEFAULT);
    let mut greeted = Vec::new();
    for now_ms in (0..100_000).step_by(500) {
        if !sent(&mut node, now_ms).is_empty() {
            greeted.push(now_ms / 1_000);
        }
    }
    assert_eq!(greeted, [0, 1, 3, 7, 15, 31, 61, 91]);
    assert_eq!(node.next_transmit_ms(), Some(121_000));
}

#[test]
fn the_first_record_is_said_in_full_and_the_window_is_kept() {
    let mut node = joined(6);
    assert_eq!(sent(&mut node, 10), [Sent::Record(1), Sent::Next(2), Sent::Next(3), Sent::Next(4)]);
    ack(&mut node, 20, 2);
    assert_eq!(sent(&mut node, 20), [Sent::Next(5), Sent::Next(6)]);
    ack(&mut node, 30, 6);
    assert_eq!((node.unconfirmed(), node.next_transmit_ms()), (0, None));
}

#[test]
fn what_is_not_acknowledged_in_time_comes_again() {
    let mut node = joined(2);
    sent(&mut node, 10);
    assert_eq!(node.next_transmit_ms(), Some(3_010));
    assert_eq!(sent(&mut node, 3_009), []);
    assert_eq!(sent(&mut node, 3_010), [Sent::Record(1), Sent::Next(2)]);
    assert_eq!(node.next_transmit_ms(), Some(9_010), "twice as long");
    ack(&mut node, 4_000, 1);
    assert_eq!(sent(&mut node, 7_000), [Sent::Record(2)], "it was answered: three seconds again");
    assert_eq!(node.counts().resends, 2);
}

#[test]
fn without_any_answer_it_greets_again() {
    let mut node = joined(1);
    let frames: Vec<Sent> = (0..200_000).step_by(10).flat_map(|now_ms| sent(&mut node, now_ms)).collect();
    let resent = frames.iter().filter(|frame| **frame == Sent::Record(1)).count();
    assert_eq!(resent, 6, "once, and five times again");
    assert_eq!(frames[6], Sent::Hello);
    assert!(!node.is_joined());
}

#[test]
fn what_the_host_misses_comes_again_at_once() {
    let mut node = joined(4);
    sent(&mut node, 10);
    hear(&mut node, 20, Tag::RESEND, &Resend { session: 7, from: SampleSeq(3) });
    assert_eq!(sent(&mut node, 20), [Sent::Record(3), Sent::Next(4)]);
    hear(&mut node, 20, Tag::RESEND, &Resend { session: 7, from: SampleSeq(99) });
    assert_eq!(sent(&mut node, 20), [], "never given");
}

#[test]
fn what_was_dropped_is_declared_before_what_follows() {
    let mut node = joined(0);
    (1..=40).for_each(|count| measure(&mut node, count));
    let first = 41 - node.unconfirmed();
    assert_eq!(node.counts().dropped, first - 1);
    let next = |after: u64| Sent::Next(u16::try_from(first + after).unwrap());
    let sent_at_10 = sent(&mut node, 10);
    assert_eq!(sent_at_10[..2], [Sent::Dropped(first - 1), Sent::Record(first)]);
    assert_eq!(sent_at_10[2..], [next(1), next(2), next(3)], "the window is full; what is gone is not in it");
    ack(&mut node, 20, first - 1);
    assert_eq!(sent(&mut node, 20), [], "as full as before");
    ack(&mut node, 20, first);
    assert_eq!(sent(&mut node, 20), [next(4)]);
}

#[test]
fn what_others_are_told_is_not_obeyed() {
    let mut node = joined(2);
    sent(&mut node, 10);
    hear(&mut node, 20, Tag::ACK, &Ack { session: 8, up_to: SampleSeq(2) });
    assert_eq!(node.unconfirmed(), 2, "another session");
    ack(&mut node, 20, 3);
    assert_eq!(node.unconfirmed(), 2, "never given");
    let stranger = Welcome { context: Context([0; 4]), session: 9, ..welcome(&node, 2) };
    hear(&mut node, 20, Tag::WELCOME, &stranger);
    let liar = Welcome { session: 9, ..welcome(&node, 3) };
    hear(&mut node, 20, Tag::WELCOME, &liar);
    ack(&mut node, 20, 2);
    assert_eq!((node.unconfirmed(), node.counts().unusable), (0, 4));
}

#[test]
fn a_host_that_was_started_again_is_greeted() {
    let mut node = joined(2);
    sent(&mut node, 10);
    hear(&mut node, 20, Tag::REQUEST_HELLO, &());
    assert_eq!(sent(&mut node, 20), [Sent::Hello]);
    let again = Welcome { session: 8, ..welcome(&node, 1) };
    hear(&mut node, 30, Tag::WELCOME, &again);
    assert_eq!(sent(&mut node, 30), [Sent::Record(2)], "the first was durable already");
}

#[test]
fn a_schema_changes_when_the_one_before_is_confirmed() {
    let mut node = joined(1);
    assert_eq!(node.change_schema(OTHER), Err(Unconfirmed { records: 1 }));
    sent(&mut node, 10);
    ack(&mut node, 20, 1);
    let before = node.context;
    assert_eq!(node.change_schema(OTHER), Ok(()));
    assert_ne!(node.context, before);
    measure(&mut node, 2);
    assert_eq!(sent(&mut node, 30), [Sent::Hello], "no sample before it is welcome");
}

#[test]
fn the_time_is_told_and_asked() {
    let mut node = joined(0);
    assert_eq!(node.wall_us(10), None);
    let wall_us = 1_795_000_000_000_000;
    hear(&mut node, 500, Tag::TIME, &Time { stamp: 5, wall_us: Some(wall_us) });
    assert_eq!(node.wall_us(1_500), Some(wall_us + 1_000_000));
    assert_eq!(node.wall_us(400), Some(wall_us - 100_000));
    assert_eq!(sent(&mut node, 510), [Sent::Clock(5, 500)]);
}

#[test]
fn a_board_that_only_transmits_sends_all_once_and_in_full() {
    let mut node = node(Settings::ONE_WAY);
    (1..=3).for_each(|count| measure(&mut node, count));
    let all = [Sent::Hello, Sent::Record(1), Sent::Record(2), Sent::Record(3)];
    assert_eq!(sent(&mut node, 0), all);
    assert_eq!((node.unconfirmed(), node.next_transmit_ms()), (0, Some(1_000)));
    (4..=43).for_each(|count| measure(&mut node, count));
    assert!(
        matches!(sent(&mut node, 10)[..], [Sent::Dropped(up_to), Sent::Record(next), ..] if next == up_to + 1)
    );
    hear(&mut node, 20, Tag::REQUEST_HELLO, &());
    assert_eq!(sent(&mut node, 20), [], "it does not listen");
}

#[test]
fn a_log_line_is_cut_and_not_kept() {
    let node = joined(0);
    let mut out = [0; MAX_NODE_WIRE_BYTES];
    let frame = node.log(5, Level::Warn, &"é".repeat(100), &mut out).unwrap();
    assert_eq!(read(&node, frame), Sent::Log);
}

#[test]
fn a_buffer_that_is_too_small_loses_nothing() {
    let mut node = joined(2);
    assert_eq!(node.transmit(10, &mut [0; 10]), Err(BufferTooSmall));
    assert_eq!(sent(&mut node, 10), [Sent::Record(1), Sent::Next(2)]);
}

#[test]
fn it_fits_a_kilobyte_beside_the_ring() {
    // With pointers of 64 bits here; firmware/src/node.rs checks it for 32.
    assert!(size_of::<Node>() - 256 + MAX_NODE_WIRE_BYTES <= 1_024);
}

proptest! {
    #[test]
    fn whatever_is_said_to_it_never_panics_it(
        steps in prop::collection::vec((0..9_u8, any::<u64>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..80)), 0..60)
    ) {
        let mut node = joined(3);
        for (what, now_ms, seq, bytes) in steps {
            let seq = SampleSeq(if seq > 200 { now_ms } else { seq.into() });
            match what {
                0 => node.receive(now_ms, &bytes),
                1 if !bytes.is_empty() => hear_body(&mut node, now_ms, &bytes),
                2 => hear(&mut node, now_ms, Tag::ACK, &Ack { session: 7, up_to: seq }),
                3 => hear(&mut node, now_ms, Tag::RESEND, &Resend { session: 7, from: seq }),
                4 => {
                    let welcome = welcome(&node, seq.0);
                    hear(&mut node, now_ms, Tag::WELCOME, &welcome);
                }
                5 => _ = node.change_schema(if now_ms % 2 == 0 { OTHER } else { CHANNELS }),
                6 => _ = node.transmit(now_ms, &mut [0; 30]),
                7 => _ = sent(&mut node, now_ms),
                _ => _ = node.sample(now_ms, &[Value::Int(now_ms.cast_signed())]),
            }
            _ = (node.wall_us(now_ms), node.next_transmit_ms());
        }
    }
}

/// Any body with a right checksum.
fn hear_body(node: &mut Node, now_ms: u64, body: &[u8]) {
    let mut out = [0; 100];
    let length = encode(Before::Frame, Tag(body[0]), &(), &[&body[1..]], &mut out).unwrap();
    node.receive(now_ms, &out[..length]);
}
