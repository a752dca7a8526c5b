use std::vec;

use proptest::prelude::*;

use super::*;
use crate::frame::{Channel, Dropped, MAX_NODE_WIRE_BYTES};
use crate::link::{Identity, Link, Settings as NodeSettings};
use crate::value::{Kind, Value};

const CHANNELS: &[Channel<'static>] = &[Channel::new("count", "", Kind::Int)];
const OTHER: &[Channel<'static>] = &[Channel::new("count", "1", Kind::Int)];

type NodeLink = Link<'static, 1_024>;

fn node(id: &'static str, boot: u32) -> NodeLink {
    Link::new(Identity::new(id, "1", boot, CHANNELS).unwrap(), NodeSettings::DEFAULT)
}

fn now(ms: u64) -> Now {
    Now { monotonic_us: ms * 1_000, wall_us: 1_795_000_000_000_000 + clock_us(ms), is_synced: true }
}

fn clock_us(ms: u64) -> i64 {
    i64::try_from(ms * 1_000).unwrap()
}

/// What a host gave out: the node and the number of samples, gaps with their ends.
#[derive(Debug, PartialEq)]
enum Got {
    Hello(u32),
    Sample(u64),
    Gap(u64, u64, GapReason),
    Other,
}

/// Carries frames between both until neither has anything to say; returns what the host gave out, and the last position.
fn talk(host: &mut Host, link: &mut NodeLink, ms: u64) -> (Vec<Got>, Option<Position>) {
    let (mut got, mut last) = (Vec::new(), None);
    let mut buffer = [0; MAX_NODE_WIRE_BYTES];
    for _ in 0..20 {
        let mut line = Vec::new();
        while let Some(frame) = link.transmit(ms, &mut buffer).unwrap() {
            line.extend_from_slice(frame);
        }
        last = take(host, &line, ms, &mut got).or(last);
        let mut out = Vec::new();
        host.transmit(&now(ms), &mut out);
        link.receive(ms, &out);
    }
    (got, last)
}

fn take(host: &mut Host, line: &[u8], ms: u64, got: &mut Vec<Got>) -> Option<Position> {
    let (mut input, mut last) = (line, None);
    while let Some(happening) = host.next(&mut input, &now(ms)) {
        got.push(match happening {
            Happening::Hello(node) => Got::Hello(node.boot),
            Happening::Sample(sample) => {
                let seq = sample.position.seq.0;
                last = Some(sample.position);
                Got::Sample(seq)
            }
            Happening::Gap(gap) => {
                let (to, reason) = (gap.position.seq.0, gap.reason);
                last = Some(gap.position);
                Got::Gap(gap.first.0, to, reason)
            }
            Happening::Event(_) | Happening::Log { .. } => Got::Other,
        });
    }
    last
}

fn measure(link: &mut NodeLink, count: i64) {
    (0..count).for_each(|count| _ = link.sample(5, &[Value::Int(count)]).unwrap());
}

fn host(known: Option<Position>) -> Host {
    Host::new(Settings::default(), known)
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let (mut host, mut link) = (host(None), node("a", 1));
    measure(&mut link, 2);
    let (got, last) = talk(&mut host, &mut link, 10);
    assert_eq!(got, [Got::Hello(1), Got::Sample(1), Got::Sample(2)]);
    assert_eq!(link.unconfirmed(), 2);
    host.durable(&last.unwrap());
    talk(&mut host, &mut link, 20);
    assert_eq!(link.unconfirmed(), 0);
}

#[test]
fn a_host_that_was_started_again_asks_who_is_there_and_goes_on() {
    let (mut first, mut link) = (host(None), node("a", 1));
    measure(&mut link, 3);
    let (_, last) = talk(&mut first, &mut link, 10);
    measure(&mut link, 1);
    // It stored all three and crashed before it could say so.
    let mut second = host(last);
    let (got, _) = talk(&mut second, &mut link, 20);
    assert_eq!(got, [Got::Hello(1), Got::Sample(4)]);
    assert_eq!(link.unconfirmed(), 1, "and says so now");
}

#[test]
fn a_host_that_lost_its_state_believes_the_node() {
    let (mut first, mut link) = (host(None), node("a", 1));
    measure(&mut link, 3);
    let (_, last) = talk(&mut first, &mut link, 10);
    first.durable(&last.unwrap());
    talk(&mut first, &mut link, 20);
    measure(&mut link, 1);
    let (got, _) = talk(&mut host(None), &mut link, 30);
    assert_eq!(got, [Got::Hello(1), Got::Sample(4)], "the others were acknowledged, and will not come again");
}

#[test]
fn a_host_that_was_set_back_declares_what_is_gone() {
    let (mut first, mut link) = (host(None), node("a", 1));
    measure(&mut link, 3);
    let (_, last) = talk(&mut first, &mut link, 10);
    let last = last.unwrap();
    first.durable(&last);
    talk(&mut first, &mut link, 20);
    measure(&mut link, 1);
    // An image of its disk from when it had one of them.
    let mut restored = host(Some(Position { seq: SampleSeq(1), ..last }));
    let (got, last) = talk(&mut restored, &mut link, 30);
    assert_eq!(got, [Got::Hello(1), Got::Gap(2, 3, GapReason::Dropped), Got::Sample(4)]);
    restored.durable(&last.unwrap());
    talk(&mut restored, &mut link, 40);
    assert_eq!(link.unconfirmed(), 0);
}

#[test]
fn a_reset_begins_a_new_order() {
    let mut host = host(None);
    let mut link = node("a", 1);
    measure(&mut link, 2);
    let (_, last) = talk(&mut host, &mut link, 10);
    let mut link = node("a", 2);
    measure(&mut link, 1);
    let (got, again) = talk(&mut host, &mut link, 20);
    assert_eq!(got, [Got::Hello(2), Got::Sample(1)]);
    let (last, again) = (last.unwrap(), again.unwrap());
    assert!(again.wall_us >= last.wall_us);
    host.durable(&last);
    assert_eq!(link.unconfirmed(), 1, "that was the life before");
    host.durable(&again);
    talk(&mut host, &mut link, 30);
    assert_eq!(link.unconfirmed(), 0);
}

#[test]
fn a_boot_that_is_used_again_is_noticed() {
    let mut host = host(None);
    let mut link = node("a", 1);
    measure(&mut link, 9);
    let (_, last) = talk(&mut host, &mut link, 10);
    host.durable(&last.unwrap());
    talk(&mut host, &mut link, 11);
    let mut link = node("a", 1);
    measure(&mut link, 1);
    let (got, last) = talk(&mut host, &mut link, 20);
    assert_eq!(got, [Got::Hello(1), Got::Sample(1)]);
    // Also by one that was started again meanwhile.
    let mut link = node("a", 1);
    let stored = Position { seq: SampleSeq(9), life: 0, ..last.unwrap() };
    measure(&mut link, 2);
    let (got, _) = talk(&mut Host::new(Settings::default(), [stored]), &mut link, 30);
    assert_eq!(got, [Got::Hello(1), Got::Sample(1), Got::Sample(2)]);
}

#[test]
fn another_node_on_the_same_line_is_noticed_and_the_first_is_not_forgotten() {
    let (mut host, mut a, mut b) = (host(None), node("a", 1), node("b", 1));
    measure(&mut a, 2);
    let (_, last_of_a) = talk(&mut host, &mut a, 10);
    // `b` was at work at another port, so it says no hello of its own accord.
    talk(&mut Host::new(Settings { session: 50, ..Settings::default() }, []), &mut b, 10);
    measure(&mut b, 1);
    host.disconnected();
    let (got, last_of_b) = talk(&mut host, &mut b, 2_000);
    assert_eq!(got, [Got::Hello(1), Got::Sample(1)]);
    assert_eq!(&*last_of_b.unwrap().node, "b");
    host.disconnected();
    measure(&mut a, 1);
    let (got, _) = talk(&mut host, &mut a, 4_000);
    assert_eq!(got, [Got::Hello(1), Got::Sample(3)], "1 and 2 are on their way to the disk");
    host.durable(&last_of_a.unwrap());
    talk(&mut host, &mut a, 4_001);
    assert_eq!(a.unconfirmed(), 1);
}

#[test]
fn a_host_that_only_looks_takes_nothing_from_another_one() {
    let onlooker = || Host::new(Settings { session: 70, confirm: Confirm::Never, ..Settings::default() }, []);
    let (mut agent, mut link) = (host(None), node("a", 1));
    measure(&mut link, 2);
    let (_, last) = talk(&mut agent, &mut link, 10);
    agent.durable(&last.unwrap());
    talk(&mut agent, &mut link, 11);
    agent.disconnected();
    measure(&mut link, 3);
    let mut looking = onlooker();
    let (got, last) = talk(&mut looking, &mut link, 20);
    assert_eq!(got, [Got::Hello(1), Got::Sample(3), Got::Sample(4), Got::Sample(5)]);
    // Not even by mistake, nor when the node sends all of it again.
    looking.durable(&last.unwrap());
    talk(&mut looking, &mut link, 30_000);
    assert_eq!((link.unconfirmed(), looking.counts().repeated > 0), (3, true));
    let (got, last) = talk(&mut agent, &mut link, 40_000);
    assert_eq!(got, [Got::Sample(3), Got::Sample(4), Got::Sample(5)]);
    agent.durable(&last.unwrap());
    talk(&mut agent, &mut link, 40_001);
    assert_eq!(link.unconfirmed(), 0);
    // A node that says one boot twice, and has given more numbers in its second life before anybody notices.
    let mut link = node("a", 1);
    measure(&mut link, 30);
    looking.disconnected();
    talk(&mut looking, &mut link, 99_000);
    assert_eq!(link.unconfirmed(), 30);
    // What it gave up is declared to both.
    measure(&mut link, 200);
    let (got, _) = talk(&mut onlooker(), &mut link, 100_000);
    assert!(matches!(got[1], Got::Gap(1, _, GapReason::Dropped)), "{got:?}");
    let (again, _) = talk(&mut host(None), &mut link, 110_000);
    assert_eq!(again, got);
}

#[test]
fn what_cannot_be_stored_comes_again() {
    let (mut host, mut link) = (host(None), node("a", 1));
    measure(&mut link, 3);
    let (_, _) = talk(&mut host, &mut link, 10);
    host.retract();
    let (got, _) = talk(&mut host, &mut link, 20);
    assert_eq!(got, [Got::Sample(1), Got::Sample(2), Got::Sample(3)]);
}

#[test]
fn a_lost_frame_is_asked_for_at_once() {
    let (mut host, mut link) = (host(None), node("a", 1));
    talk(&mut host, &mut link, 10);
    measure(&mut link, 3);
    let mut buffer = [0; MAX_NODE_WIRE_BYTES];
    // The first one gets lost.
    assert!(link.transmit(20, &mut buffer).unwrap().is_some());
    let (got, _) = talk(&mut host, &mut link, 20);
    assert_eq!(got, [Got::Sample(1), Got::Sample(2), Got::Sample(3)]);
    assert_eq!(host.counts().early, 2);
}

#[test]
fn dropped_records_are_a_gap_that_is_stored_like_a_record() {
    let (mut host, mut link) = (host(None), node("a", 1));
    measure(&mut link, 200);
    let kept = link.unconfirmed();
    let (got, last) = talk(&mut host, &mut link, 10);
    assert_eq!(got[..2], [Got::Hello(1), Got::Gap(1, 200 - kept, GapReason::Dropped)]);
    host.durable(&last.unwrap());
    assert_eq!(got.len() as u64, 2 + kept);
    talk(&mut host, &mut link, 20);
    assert_eq!(link.unconfirmed(), 0);
}

#[test]
fn a_changed_schema_is_told_and_used() {
    let (mut host, mut link) = (host(None), node("a", 1));
    measure(&mut link, 1);
    let (_, last) = talk(&mut host, &mut link, 10);
    host.durable(&last.unwrap());
    talk(&mut host, &mut link, 20);
    link.change_schema(OTHER).unwrap();
    measure(&mut link, 1);
    let (got, _) = talk(&mut host, &mut link, 30);
    assert_eq!(got, [Got::Hello(1), Got::Sample(2)]);
    assert_eq!(&*host.node().unwrap().channels[0].unit, "1");
}

#[test]
fn what_a_one_way_line_loses_is_a_gap() {
    let mut link: NodeLink = Link::new(Identity::new("a", "1", 1, CHANNELS).unwrap(), NodeSettings::ONE_WAY);
    let mut host = host(None);
    let mut buffer = [0; MAX_NODE_WIRE_BYTES];
    measure(&mut link, 1);
    assert_eq!(talk(&mut host, &mut link, 10).0, [Got::Hello(1), Got::Sample(1)]);
    measure(&mut link, 3);
    (0..2).for_each(|_| assert!(link.transmit(20, &mut buffer).unwrap().is_some()));
    let (got, last) = talk(&mut host, &mut link, 20);
    assert_eq!(got, [Got::Gap(2, 3, GapReason::Lost), Got::Sample(4)]);
    // Not even an acknowledgement goes to a node that cannot hear.
    host.durable(&last.unwrap());
    let mut out = Vec::new();
    host.transmit(&now(30), &mut out);
    assert!(out.is_empty());
    assert_eq!(host.known().next().unwrap().seq, SampleSeq(4));
}

#[test]
fn the_time_is_asked_for_now_and_then() {
    let (mut host, mut link) = (host(None), node("a", 1));
    talk(&mut host, &mut link, 1_000);
    assert_eq!(host.next_transmit_us(), Some(31_000_000));
    for ms in (1_000..200_000).step_by(1_000) {
        // The node's clock loses a hundredth.
        let mut out = Vec::new();
        host.transmit(&now(ms), &mut out);
        let node_ms = ms * 100 / 101;
        link.receive(node_ms, &out);
        let mut buffer = [0; MAX_NODE_WIRE_BYTES];
        while let Some(frame) = link.transmit(node_ms, &mut buffer).unwrap() {
            take(&mut host, frame, ms, &mut Vec::new());
        }
    }
    assert!((host.drift().unwrap() - 0.01).abs() < 0.001, "{:?}", host.drift());
}

#[test]
fn what_cannot_become_a_frame_is_counted_though_nothing_ends_it() {
    let mut host = host(None);
    let text = |host: &mut Host| drop(take(host, &[b'x'; 2_000], 1, &mut Vec::new()));
    text(&mut host);
    assert_eq!(host.counts().garbage_bytes, 2_000);
    host.disconnected();
    assert_eq!(host.counts().garbage_bytes, 2_000);
    text(&mut host);
    assert_eq!(host.counts().garbage_bytes, 4_000);
    take(&mut host, &[0], 1, &mut Vec::new());
    assert_eq!((host.counts().garbage_bytes, host.counts().garbage), (4_001, 1));
}

#[test]
fn only_so_many_nodes_are_remembered() {
    let mut host = Host::new(Settings { max_nodes: 2, ..Settings::default() }, []);
    for (ms, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let mut link = node(id, 1);
        measure(&mut link, 1);
        let (_, last) = talk(&mut host, &mut link, ms as u64 * 10_000);
        host.durable(&last.unwrap());
    }
    assert_eq!(host.known().count(), 2);
    assert!(host.core.away.len() <= 2);
}

#[test]
fn what_is_on_its_way_to_the_disk_is_never_taken_again_however_many_nodes_come() {
    let mut host = Host::new(Settings { max_nodes: 2, ..Settings::default() }, []);
    let mut links = ["a", "b", "c", "d"].map(|id| node(id, 1));
    let mut taken = Vec::new();
    for (ms, link) in (0_u64..).zip(&mut links[..3]) {
        measure(link, 1);
        host.disconnected();
        let (got, last) = talk(&mut host, link, ms * 10_000);
        assert_eq!(got, [Got::Hello(1), Got::Sample(1)]);
        taken.extend(last);
    }
    // Somebody would have to be forgotten for the fourth, and nothing of anybody is durable.
    measure(&mut links[3], 1);
    host.disconnected();
    assert_eq!(talk(&mut host, &mut links[3], 40_000), (vec![], None));
    assert!(host.counts().refused > 0);
    for (ms, link) in (50_000_u64..).step_by(10_000).zip(&mut links[..3]) {
        host.disconnected();
        assert_eq!(talk(&mut host, link, ms).0, [Got::Hello(1)], "who it is, and nothing again");
    }
    taken.iter().for_each(|position| host.durable(position));
    host.disconnected();
    assert_eq!(talk(&mut host, &mut links[3], 200_000).0, [Got::Hello(1), Got::Sample(1)]);
    assert_eq!(host.counts().forgotten, 1);
}

#[test]
fn who_was_silent_for_longest_is_forgotten_first_and_comes_back_as_a_doubtful_one() {
    let stored = |id: &str| Position::stored(id.into(), 1, SampleSeq(2), 5, 0);
    let settings = Settings { max_nodes: 2, ..Settings::default() };
    let mut host = Host::new(settings, ["a", "b"].map(stored));
    let mut links = ["a", "b", "c"].map(|id| node(id, 1));
    links.iter_mut().for_each(|link| measure(link, 3));
    // `a` says hello, so `b` was silent for longest when `c` comes.
    assert_eq!(talk(&mut host, &mut links[0], 10).0, [Got::Hello(1), Got::Sample(3)]);
    assert_eq!(host.recognition(), Recognition::Certain);
    host.disconnected();
    let (got, last) = talk(&mut host, &mut links[2], 2_000);
    assert_eq!((got.len(), host.recognition()), (4, Recognition::Doubtful { unconfirmed: 3 }));
    host.durable(&last.unwrap());
    assert_eq!((host.recognition(), host.counts().forgotten), (Recognition::Certain, 1));
    let mut known: Vec<&str> = host.known().map(|position| &*position.node).collect();
    known.sort_unstable();
    assert_eq!(known, ["a", "c"]);
    host.disconnected();
    let (got, _) = talk(&mut host, &mut links[1], 4_000);
    assert_eq!((got.len(), host.recognition()), (4, Recognition::Doubtful { unconfirmed: 3 }));
}

#[test]
fn numbers_at_the_end_of_all_numbers_are_taken_once_or_not_at_all() {
    fn frame(tag: Tag, message: &impl Message, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 100];
        let length = encode(Before::Unknown, tag, message, &[content], &mut frame).unwrap();
        frame.truncate(length);
        frame
    }
    let (mut host, mut link) = (host(None), node("a", 1));
    talk(&mut host, &mut link, 10);
    let context = host.core.peer.as_ref().unwrap().context;
    let dropped =
        |up_to: u64| frame(Tag::DROPPED, &Dropped { context, up_to: SampleSeq(up_to), total: 1 }, &[]);
    let sample =
        |seq: u64| frame(Tag::SAMPLE, &Record { context, seq: SampleSeq(seq), uptime_ms: u64::MAX }, &[0]);
    let heard = |host: &mut Host, line: &[u8]| {
        let mut got = Vec::new();
        let last = take(host, line, 20, &mut got);
        last.iter().for_each(|position| host.durable(position));
        host.transmit(&now(20), &mut Vec::new());
        got
    };
    assert_eq!(heard(&mut host, &dropped(u64::MAX)), []);
    assert_eq!(heard(&mut host, &sample(u64::MAX)), []);
    assert_eq!(host.counts().unusable, 2);
    assert_eq!(heard(&mut host, &dropped(u64::MAX - 2)), [Got::Gap(1, u64::MAX - 2, GapReason::Dropped)]);
    let last = sample(u64::MAX - 1);
    assert_eq!(heard(&mut host, &last).len(), 1, "the last one there is");
    for line in [&last, &sample(u64::MAX), &sample(0), &dropped(u64::MAX - 1), &dropped(0)] {
        assert_eq!(heard(&mut host, line), []);
    }
    assert_eq!(host.known().next().unwrap().seq, SampleSeq::LAST);
}

proptest! {
    #[test]
    fn whatever_comes_never_panics_it(
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..60)), 0..40)
    ) {
        let (mut host, mut link) = (host(None), node("a", 1));
        talk(&mut host, &mut link, 10);
        for (is_frame, bytes) in pieces {
            let mut line = bytes.clone();
            if is_frame {
                line = vec![0; 100];
                // Tags that exist, nearly always.
                let tag = Tag(if bytes[0] < 200 { bytes[0] & 0x33 } else { bytes[0] });
                let length = encode(Before::Unknown, tag, &(), &[&bytes[1..]], &mut line).unwrap();
                line.truncate(length);
            }
            take(&mut host, &line, 20, &mut Vec::new());
            host.transmit(&now(20), &mut Vec::new());
        }
        let before = host.counts();
        measure(&mut link, 1);
        host.disconnected();
        talk(&mut host, &mut link, 100_000);
        prop_assert!(host.counts().frames > before.frames, "it goes on");
    }
}

#[test]
fn what_was_owed_to_a_node_is_not_due_to_one_that_only_transmits() {
    let (mut host, mut first) = (host(None), node("a", 1));
    measure(&mut first, 1);
    let (_, last) = talk(&mut host, &mut first, 10);
    // An acknowledgement is owed when another board says hello on the same line.
    host.durable(&last.unwrap());
    let identity = Identity::new("b", "1", 1, CHANNELS).unwrap();
    let mut second = NodeLink::new(identity, NodeSettings::ONE_WAY);
    let (got, _) = talk(&mut host, &mut second, 20);
    assert_eq!(got, [Got::Hello(1)]);
    assert_eq!(host.next_transmit_us(), None, "who waits for that would never sleep");
}
