//! The frames of every version, as they are on the wire of nodes that will not be updated; and what becomes of frames that a
//! later version may send. Whoever has to change a line of `frames_v1.txt` has changed the protocol.
#![expect(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    clippy::string_slice,
    reason = "the helpers of a test may panic"
)]

use firmware_bridge::bounded::{List, Text};
use firmware_bridge::codec::{
    Before, Decoded, Decoder, HOST_DECODER_BYTES, Message, NODE_DECODER_BYTES, encode,
};
use firmware_bridge::frame::{
    Ack, Channel, Channels, Clock, Context, Dropped, Event, Flow, FromHost, FromNode, Hello, Level, Log,
    MAX_CHANNEL_NAME_BYTES, MAX_CHANNELS, MAX_FIRMWARE_BYTES, MAX_HOST_BODY_BYTES, MAX_NODE_BODY_BYTES,
    MAX_NODE_ID_BYTES, MAX_NODE_WIRE_BYTES, MAX_UNIT_BYTES, Next, Record, Resend, SampleSeq, Tag, Time,
    Unusable, Welcome, schema_hash,
};
use firmware_bridge::host::{GapReason, Happening, Host, Now, Settings as HostSettings};
use firmware_bridge::link::{Identity, Link, Settings};
use firmware_bridge::value::{Kind, MAX_CONTENT_BYTES, Value, pack, unpack};

const VERSION_1: &str = include_str!("frames_v1.txt");
const CHANNELS: &[Channel<'static>] = &[
    Channel::new("temperature", "°C", Kind::Single),
    Channel::new("door", "", Kind::Bool),
    Channel::new("count", "", Kind::Int),
    Channel::new("mass", "kg", Kind::Double),
];
const NOW: Now = Now { monotonic_us: 9_000_000, wall_us: 1_795_148_112_123_000, is_synced: true };

fn hello() -> Hello<'static> {
    Hello {
        version: 1,
        node: Text::new("press-7").unwrap(),
        firmware: Text::new("1.4.0").unwrap(),
        boot: 12,
        flow: Flow::TwoWay,
        uptime_ms: 1_000,
        acked: SampleSeq(299),
        next: SampleSeq(301),
        schema: schema_hash(CHANNELS),
        channels: Channels::from_slice(CHANNELS).unwrap(),
    }
}

fn context() -> Context {
    Context::of("press-7", 12, schema_hash(CHANNELS))
}

fn record(seq: u64) -> Record {
    Record { context: context(), seq: SampleSeq(seq), uptime_ms: 1_000 }
}

/// The packed values of a sample.
fn content() -> Vec<u8> {
    let mut out = [0; MAX_CONTENT_BYTES];
    let values = [Value::Single(21.5), Value::Missing, Value::Int(-3), Value::Double(0.1)];
    let length = pack(CHANNELS, &values, &mut out).unwrap();
    out[..length].to_vec()
}

fn frame(tag: Tag, message: &impl Message, content: &[u8]) -> Vec<u8> {
    let mut out = vec![0; MAX_NODE_WIRE_BYTES + content.len()];
    let length = encode(Before::Frame, tag, message, &[content], &mut out).unwrap();
    out.truncate(length);
    out
}

/// The body of a frame.
fn body<const BYTES: usize>(mut frame: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::<BYTES>::new();
    let Some(Decoded::Body(body)) = decoder.next(&mut frame) else { panic!("no frame: {frame:?}") };
    body.to_vec()
}

/// The frame of that name, as it was stored.
fn stored(name: &str) -> Vec<u8> {
    let line = VERSION_1.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex = line.unwrap_or_else(|| panic!("no frame {name}"));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Is written as it was stored, and says what it said.
fn check_node(name: &str, tag: Tag, message: &impl Message, content: &[u8], said: FromNode<'_>) {
    let written = frame(tag, message, content);
    let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, stored(name), "{name} {hex}");
    assert_eq!(FromNode::parse(&body::<HOST_DECODER_BYTES>(&stored(name))), Ok(said));
}

fn check_host(name: &str, tag: Tag, message: &impl Message, said: FromHost) {
    let written = frame(tag, message, &[]);
    let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, stored(name), "{name} {hex}");
    assert_eq!(FromHost::parse(&body::<NODE_DECODER_BYTES>(&stored(name))), Ok(said));
}

#[test]
fn version_1_is_written_and_read_as_it_always_was() {
    check_node("hello", Tag::HELLO, &hello(), &[], FromNode::Hello(hello()));
    let packed = content();
    check_node(
        "sample",
        Tag::SAMPLE,
        &record(300),
        &packed,
        FromNode::Record(Tag::SAMPLE, record(300), &packed),
    );
    let next = Next { mark: context().mark(SampleSeq(301)), after_ms: 500 };
    check_node("next", Tag::NEXT, &next, &packed, FromNode::Next(next, &packed));
    let event = Event { name: Text::new("door").unwrap(), value: Value::Bool(true) };
    let packed = body::<HOST_DECODER_BYTES>(&frame(Tag::EVENT, &event, &[]))[1..].to_vec();
    check_node(
        "event",
        Tag::EVENT,
        &record(302),
        &packed,
        FromNode::Record(Tag::EVENT, record(302), &packed),
    );
    let dropped = Dropped { context: context(), up_to: SampleSeq(400), total: 98 };
    check_node("dropped", Tag::DROPPED, &dropped, &[], FromNode::Dropped(dropped));
    let clock = Clock { stamp: 5, uptime_ms: 70_000 };
    check_node("clock", Tag::CLOCK, &clock, &[], FromNode::Clock(clock));
    let log = Log { level: Level::Warn, uptime_ms: 2, text: Text::new("sensor 2 is silent").unwrap() };
    check_node("log", Tag::LOG, &log, &[], FromNode::Log(log));

    let welcome = Welcome {
        version: 1,
        session: 7,
        context: context(),
        wall_us: Some(1_795_148_112_123_000),
        window: 1_024,
        acked: SampleSeq(299),
    };
    check_host("welcome", Tag::WELCOME, &welcome, FromHost::Welcome(welcome));
    let unsynced = Welcome { wall_us: None, acked: SampleSeq(0), ..welcome };
    check_host("welcome-unsynced", Tag::WELCOME, &unsynced, FromHost::Welcome(unsynced));
    let ack = Ack { session: 7, up_to: SampleSeq(300) };
    check_host("ack", Tag::ACK, &ack, FromHost::Ack(ack));
    let time = Time { stamp: 5, wall_us: Some(-1) };
    check_host("time", Tag::TIME, &time, FromHost::Time(time));
    let resend = Resend { session: 7, from: SampleSeq(301) };
    check_host("resend", Tag::RESEND, &resend, FromHost::Resend(resend));
    check_host("request-hello", Tag::REQUEST_HELLO, &(), FromHost::RequestHello);
}

#[test]
fn values_of_version_1_are_read_as_they_always_were() {
    let body = body::<HOST_DECODER_BYTES>(&stored("sample"));
    let Ok(FromNode::Record(_, _, packed)) = FromNode::parse(&body) else { panic!() };
    let values = unpack(CHANNELS.iter().map(|channel| &channel.kind), packed).unwrap();
    let expected = [Value::Single(21.5), Value::Missing, Value::Int(-3), Value::Double(0.1)];
    assert_eq!(values.as_slice(), expected);
}

/// COBS 1, delimiter 1, checksum 4, tag 1, number 2, time 2, missing values 1.
#[test]
fn a_small_sample_costs_twelve_bytes_beside_its_values() {
    const CLIMATE: &[Channel<'static>] =
        &[Channel::new("temperature", "°C", Kind::Single), Channel::new("humidity", "%", Kind::Single)];
    let mut link = Link::<2_048>::new(Identity::new("n", "1", 1, CLIMATE).unwrap(), Settings::default());
    let mut out = [0; MAX_NODE_WIRE_BYTES];
    link.transmit(1, &mut out).unwrap().unwrap();
    let context = Context::of("n", 1, schema_hash(CLIMATE));
    let acked = SampleSeq(0);
    let welcome = Welcome { version: 1, session: 1, context, wall_us: None, window: 100, acked };
    link.receive(2, &frame(Tag::WELCOME, &welcome, &[]));
    for second in 0..60 {
        let values = [Value::Single(20.1), Value::Single(f32::MAX)];
        let _ = link.sample(second * 16_000, &values).unwrap();
    }
    let mut longest = 0;
    let first = link.transmit(3, &mut out).unwrap().unwrap().len();
    while let Some(frame) = link.transmit(3, &mut out).unwrap() {
        longest = longest.max(frame.len());
    }
    assert_eq!(
        (first, longest),
        (23, 20),
        "in full (a leading zero, the context, short numbers), and in short"
    );
}

#[test]
fn the_largest_frames_fit_their_bounds() {
    let letters = "x".repeat(MAX_NODE_ID_BYTES);
    let widest = Channel::new(&letters[..MAX_CHANNEL_NAME_BYTES], &letters[..MAX_UNIT_BYTES], Kind::Double);
    let hello = Hello {
        version: u8::MAX,
        node: Text::new(&letters).unwrap(),
        firmware: Text::new(&letters[..MAX_FIRMWARE_BYTES]).unwrap(),
        boot: u32::MAX,
        flow: Flow::OneWay,
        uptime_ms: u64::MAX,
        acked: SampleSeq(u64::MAX),
        next: SampleSeq(u64::MAX),
        schema: u32::MAX,
        channels: List::from_slice(&[widest; MAX_CHANNELS]).unwrap(),
    };
    let mut out = [0; MAX_NODE_WIRE_BYTES];
    let length = encode(Before::Unknown, Tag::HELLO, &hello, &[], &mut out).unwrap();
    let body = body::<HOST_DECODER_BYTES>(&out[..length]);
    assert_eq!(body.len(), MAX_NODE_BODY_BYTES);
    assert_eq!(FromNode::parse(&body), Ok(FromNode::Hello(hello)));
}

/// A node of a later version with this host: what was appended is ignored, what is unknown is counted, and numbered records
/// that nobody can read do not hold up the others.
#[test]
fn an_old_host_gets_along_with_a_new_node() {
    let mut host = Host::new(HostSettings::default(), []);
    let mut line = frame(Tag::HELLO, &Hello { version: 2, ..hello() }, b"appended in version 2");
    line.extend(frame(Tag(0x07), &(), b"a message of version 2"));
    line.extend(frame(Tag(0x1A), &record(300), b"a numbered record of version 2"));
    let mut appended = content();
    appended.extend(b"appended to the values");
    line.extend(frame(Tag::SAMPLE, &record(301), &appended));
    let mut input = line.as_slice();
    let Some(Happening::Hello(node)) = host.next(&mut input, &NOW) else { panic!() };
    assert_eq!((node.version, node.channels.len()), (2, 4));
    let Some(Happening::Gap(gap)) = host.next(&mut input, &NOW) else { panic!() };
    assert_eq!((gap.first, gap.count(), gap.reason), (SampleSeq(300), 1, GapReason::Unreadable));
    let Some(Happening::Sample(sample)) = host.next(&mut input, &NOW) else { panic!() };
    assert_eq!(sample.values.as_slice()[0], Value::Single(21.5));
    assert_eq!(host.next(&mut input, &NOW), None);
    assert_eq!(host.counts().unusable, 1);
}

/// A host of a later version with this node.
#[test]
fn an_old_node_gets_along_with_a_new_host() {
    let identity = Identity::new("press-7", "1.4.0", 12, CHANNELS).unwrap();
    let mut link = Link::<2_048>::new(identity, Settings::default());
    let mut out = [0; MAX_NODE_WIRE_BYTES];
    link.transmit(1, &mut out).unwrap().unwrap();
    let acked = SampleSeq(0);
    let welcome = Welcome { version: 2, session: 1, context: context(), wall_us: None, window: 9, acked };
    link.receive(2, &frame(Tag(0x87), &(), b"a message of version 2"));
    link.receive(2, &frame(Tag::WELCOME, &welcome, b"appended in version 2"));
    assert!(link.is_joined());
    assert_eq!(link.counts().unusable, 1);
    let largest = vec![0; MAX_HOST_BODY_BYTES - 1];
    link.receive(3, &frame(Tag(0x88), &(), &largest));
    assert_eq!((link.counts().unusable, link.counts().garbage), (2, 0), "as long as the bound allows");
}

#[test]
fn cut_off_and_foreign_bodies_are_nothing() {
    for name in ["hello", "sample", "next", "event", "dropped", "clock", "log"] {
        let whole = body::<HOST_DECODER_BYTES>(&stored(name));
        assert_eq!(FromHost::parse(&whole), Err(Unusable::Unknown(whole[0])), "{name}: an echo");
        for length in 0..whole.len() {
            // Behind its head, content may be cut anywhere.
            _ = FromNode::parse(&whole[..length]);
        }
        assert!(FromNode::parse(&whole[..2.min(whole.len())]).is_err(), "{name}");
    }
    for name in ["welcome", "ack", "time", "resend"] {
        let whole = body::<NODE_DECODER_BYTES>(&stored(name));
        assert_eq!(FromNode::parse(&whole), Err(Unusable::Unknown(whole[0])), "{name}: an echo");
        for length in 1..whole.len() {
            assert_eq!(FromHost::parse(&whole[..length]), Err(Unusable::Malformed(whole[0])), "{name}");
        }
    }
}
