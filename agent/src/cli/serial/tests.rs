//! What is seen of bytes; and the command over ptys, with a node and the agent.

use std::path::Path;

use firmware_bridge::codec::{Before, encode};
use firmware_bridge::frame::{
    Channel, Context, Dropped, Level, MAX_NODE_WIRE_BYTES, SampleSeq, Tag, schema_hash,
};
use firmware_bridge::host::Now;
use firmware_bridge::link::{Identity, Link, Settings as LinkSettings};
use firmware_bridge::value::{Kind, Value};
use tempfile::TempDir;
use tokio::time::timeout;

use super::seen::Seen;
use super::viewer::{Speech, Viewer};
use super::*;
use crate::reading::Timestamp;
use crate::source::pty::Pty;
use crate::source::serial::simulated;
use crate::store::Piece;
use crate::stream::{Seq, Stream};

const DEADLINE: Duration = Duration::from_secs(30);
const CHANNELS: &[Channel<'static>] =
    &[Channel::new("temperature", "°C", Kind::Single), Channel::new("open", "", Kind::Bool)];
const COUNT: &[Channel<'static>] = &[Channel::new("count", "", Kind::Int)];
/// 2026-11-20T04:15:12Z
const WALL_US: i64 = 1_795_148_112_000_000;

type Node = Link<'static, 512>;

fn at(ms: u64) -> Now {
    let us = ms * 1_000;
    Now { monotonic_us: us, wall_us: WALL_US + us.cast_signed(), is_synced: true }
}

fn node(id: &'static str) -> Node {
    Link::new(Identity::new(id, "1.4.0", 12, CHANNELS).unwrap(), LinkSettings::DEFAULT)
}

fn viewer(expected: Expected, speech: Speech) -> Viewer {
    let mut viewer = Viewer::new(expected, speech, 7, "; try another --baud".to_owned(), &at(0));
    viewer.opened(&at(0));
    viewer
}

fn measure(node: &mut Node, ms: u64, celsius: f32) {
    _ = node.sample(ms, &[Value::Single(celsius), Value::Bool(true)]).unwrap();
}

/// What the node says now.
fn said(node: &mut Node, ms: u64) -> Vec<u8> {
    let (mut line, mut buffer) = (Vec::new(), [0; MAX_NODE_WIRE_BYTES]);
    while let Some(frame) = node.transmit(ms, &mut buffer).unwrap() {
        line.extend_from_slice(frame);
    }
    line
}

/// Carries bytes both ways until neither side says anything more.
fn talk(viewer: &mut Viewer, node: &mut Node, ms: u64) -> Vec<Seen> {
    let mut seen = Vec::new();
    for _ in 0..10 {
        viewer.take(&said(node, ms), &at(ms), &mut seen);
        viewer.tick(&at(ms), &mut seen);
        let mut out = Vec::new();
        viewer.transmit(&at(ms), &mut out);
        node.receive(ms, &out);
    }
    seen
}

fn lines(seen: &[Seen], ms: u64) -> Vec<String> {
    let wall = Timestamp(at(ms).wall_us);
    // Without the time of the day.
    seen.iter().map(|seen| seen.line(wall).split_off("04:15:12.000  ".len())).collect()
}

/// What is seen of pieces of bytes, a quarter of a second apart, and then of nothing.
fn shown(expected: Expected, pieces: &[&[u8]]) -> Vec<String> {
    let (mut viewer, mut seen) = (viewer(expected, Speech::Alone), Vec::new());
    let mut ms = 0;
    for piece in pieces.iter().copied().chain([b"".as_slice(); 12]) {
        if !piece.is_empty() {
            viewer.take(piece, &at(ms), &mut seen);
        }
        ms += 250;
        viewer.tick(&at(ms), &mut seen);
    }
    lines(&seen, 0)
}

#[test]
fn a_node_is_welcome_and_what_it_says_is_shown() {
    let (mut viewer, mut node) = (viewer(Expected::Anything, Speech::Alone), node("press-7"));
    measure(&mut node, 5, 21.53);
    let mut seen = talk(&mut viewer, &mut node, 2_000);
    measure(&mut node, 6_000, -3.0);
    _ = node.sample(6_000, &[Value::Missing, Value::Bool(false)]).unwrap();
    let name = firmware_bridge::bounded::Text::new("door").unwrap();
    _ = node.event(6_000, name, Value::Int(3)).unwrap();
    seen.extend(talk(&mut viewer, &mut node, 6_000));
    let mut buffer = [0; MAX_NODE_WIRE_BYTES];
    let log = node.log(6_500, Level::Warn, "brown \u{1b}[31mout", &mut buffer).unwrap();
    viewer.take(log, &at(6_500), &mut seen);
    assert_eq!(
        lines(&seen, 6_500),
        [
            "-- a node speaks: frames of firmware-bridge",
            "press-7  hello: firmware 1.4.0, link 1, boot 12; channels: temperature [°C] single, open bool",
            "press-7  n=1 (of 04:15:12.004) temperature=21.53 °C open=true",
            "press-7  n=2 temperature=-3 °C open=true",
            "press-7  n=3 temperature=? °C open=false",
            "press-7  n=4 event door=3",
            "press-7  warn 6.500 s: brown \\u{1b}[31mout",
        ]
    );
    let json: Vec<serde_json::Value> = seen
        .iter()
        .map(|seen| serde_json::from_str(&seen.json(Timestamp(WALL_US)).unwrap()).unwrap())
        .collect();
    assert_eq!(json[1]["channels"][0]["unit"], "°C");
    assert_eq!(json[2]["values"], serde_json::json!({ "temperature": 21.53, "open": true }));
    assert_eq!(json[4]["values"]["temperature"], serde_json::Value::Null);
    assert_eq!(json[2]["n"], 1);
    assert!(json[2]["time"].as_str().unwrap().starts_with("2026-11-20T04:15:12.00"), "{}", json[2]);
    assert!(node.is_joined());
    assert_eq!(node.unconfirmed(), 4, "nothing is acknowledged");
}

#[test]
fn a_node_that_nobody_answers_for_hours_is_still_shown_and_declares_what_it_gave_up() {
    let (mut viewer, mut node) = (viewer(Expected::Anything, Speech::Alone), node("a"));
    (0..20_000).for_each(|_| measure(&mut node, 5, 1.0));
    let seen = talk(&mut viewer, &mut node, 2_000);
    let kept = node.unconfirmed();
    assert_eq!(seen.iter().filter(|seen| matches!(seen, Seen::Sample { .. })).count() as u64, kept);
    let gap =
        format!("a  n=1..{} will never come: the node had no room for them, and gave them up", 20_000 - kept);
    assert_eq!(lines(&seen, 2_000)[2], gap);
    assert_eq!(node.unconfirmed(), kept);
}

#[test]
fn a_node_that_claims_to_have_lost_all_numbers_there_are_is_counted_as_far_as_there_are_numbers() {
    let mut viewer = viewer(Expected::Anything, Speech::Alone);
    let mut seen = Vec::new();
    for id in ["a", "b"] {
        seen.extend(talk(&mut viewer, &mut node(id), u64::MAX / 1_000_000));
        for up_to in [u64::MAX - 1, u64::MAX, 0] {
            let context = Context::of(id, 12, schema_hash(CHANNELS));
            let dropped = Dropped { context, up_to: SampleSeq(up_to), total: u64::MAX };
            let mut frame = [0; MAX_NODE_WIRE_BYTES];
            let length = encode(Before::Unknown, Tag::DROPPED, &dropped, &[], &mut frame).unwrap();
            viewer.take(&frame[..length], &at(3_000), &mut seen);
        }
    }
    viewer.end(&at(4_000), &mut seen);
    let text = lines(&seen, 4_000);
    let gaps = text.iter().filter(|line| line.ends_with("the node had no room for them, and gave them up"));
    assert_eq!(gaps.count(), 2, "{text:?}");
    assert!(text.last().unwrap().contains(&format!("{} records given up", u64::MAX)), "{text:?}");
}

#[test]
fn who_only_listens_says_nothing_and_hears_hellos() {
    let (mut viewer, mut node) = (viewer(Expected::Anything, Speech::Silent), node("a"));
    measure(&mut node, 5, 1.0);
    let seen = talk(&mut viewer, &mut node, 60_000);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(!node.is_joined());
}

#[test]
fn a_node_that_speaks_to_somebody_else_is_left_to_that() {
    let (mut viewer, mut node) = (viewer(Expected::Anything, Speech::Shared), node("a"));
    let mut agent = self::viewer(Expected::Only(Understood::Bridge), Speech::Alone);
    talk(&mut agent, &mut node, 0);
    let (mut seen, mut out) = (Vec::new(), Vec::new());
    for ms in (1_000..60_000).step_by(1_000) {
        measure(&mut node, ms, 1.0);
        viewer.take(&said(&mut node, ms), &at(ms), &mut seen);
        viewer.tick(&at(ms), &mut seen);
        viewer.transmit(&at(ms), &mut out);
        if !out.is_empty() {
            break;
        }
    }
    assert!(out.is_empty(), "the node speaks all the time");
    assert!(lines(&seen, 0)[1].contains("another program seems to speak to it"), "{seen:?}");
    viewer.tick(&at(70_000), &mut seen);
    viewer.transmit(&at(70_000), &mut out);
    assert!(!out.is_empty(), "nobody is there any more");
}

#[test]
fn text_is_shown_line_by_line_and_nothing_is_sent_to_who_sends_it() {
    let text = shown(Expected::Anything, &[b"boot v1\r\n\x1b[2J\x07evil\nT=21.5 \xc2\xb0C\r\nT=", b"22\n"]);
    assert_eq!(text, ["-- lines of text come", "boot v1", "\\u{1b}[2J\\u{7}evil", "T=21.5 °C", "T=22"]);
    let mut viewer = viewer(Expected::Anything, Speech::Alone);
    viewer.take(b"T=1\n", &at(0), &mut Vec::new());
    let mut out = Vec::new();
    viewer.tick(&at(60_000), &mut Vec::new());
    viewer.transmit(&at(60_000), &mut out);
    assert!(out.is_empty());
    let prompt = shown(Expected::Anything, &[b"login: "]);
    assert_eq!(prompt, ["login:   (without an end so far)"]);
}

#[test]
fn the_log_of_a_boot_loader_gives_way_to_frames() {
    let mut node = node("a");
    let mut bytes = b"\0boot v1\nready\n".to_vec();
    bytes.extend(said(&mut node, 0));
    let text = shown(Expected::Anything, &[&bytes]);
    let expected =
        ["-- lines of text come", "boot v1", "ready", "-- a node speaks: frames of firmware-bridge"];
    assert_eq!(text[..4], expected);
    assert!(text[4].starts_with("a  hello") && text.len() == 5, "{text:?}");
}

#[test]
fn another_speed_is_garbage_with_advice() {
    let noise = [0xf8, 0x80, 0x00, 0xfe, 0xc0, b'A', b'\n', 0xf0].repeat(30);
    for expected in
        [Expected::Anything, Expected::Only(Understood::Bridge), Expected::Only(Understood::Lines)]
    {
        let seen = shown(expected, &[&noise]);
        assert!(seen[0].starts_with("-- garbage: "), "{expected:?}: {seen:?}");
        assert!(seen[0].ends_with("; try another --baud"), "{expected:?}: {seen:?}");
        assert!(seen[0].contains("f8 80"), "{expected:?}: {seen:?}");
    }
    let seen = shown(Expected::Only(Understood::Bridge), &[b"T=21.5\n"]);
    assert_eq!(seen, ["-- garbage: 7 bytes, such as 54 3d 32 31 2e 35 0a \"T=21.5.\"; try another --baud"]);
}

#[test]
fn silence_is_told_ever_more_seldom() {
    let (mut viewer, mut seen) = (viewer(Expected::Anything, Speech::Alone), Vec::new());
    for second in 0..=60 {
        viewer.tick(&at(second * 1_000), &mut seen);
    }
    let told: Vec<_> =
        lines(&seen, 0).iter().map(|line| line.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(
        told,
        ["-- nothing for 5 s", "-- nothing for 10 s", "-- nothing for 20 s", "-- nothing for 40 s"]
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_it_or_steer_a_terminal(
        pieces: Vec<Vec<u8>>,
        is_hello: bool,
    ) {
        let (mut viewer, mut seen) = (viewer(Expected::Anything, Speech::Alone), Vec::new());
        let mut ms = 0;
        for piece in &pieces {
            viewer.take(piece, &at(ms), &mut seen);
            if is_hello {
                viewer.take(&said(&mut node("\u{9b}2J\u{202e}"), ms), &at(ms), &mut seen);
            }
            ms += 700;
            viewer.tick(&at(ms), &mut seen);
            viewer.transmit(&at(ms), &mut Vec::new());
        }
        viewer.end(&at(ms), &mut seen);
        for seen in &seen {
            for text in [seen.line(Timestamp(WALL_US)), seen.json(Timestamp(WALL_US)).unwrap()] {
                proptest::prop_assert!(!text.contains(crate::status::text::is_odd), "{text:?}");
            }
        }
    }
}

fn args(path: &Path, more: &[&str]) -> Args {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let words = ["monitor", path.to_str().unwrap()].into_iter().chain(more.iter().copied());
    let line: Line = clap::Parser::try_parse_from(words).unwrap();
    line.args
}

async fn monitor(path: &Path, more: &[&str]) -> (anyhow::Result<ExitCode>, String) {
    let (args, mut out) = (args(path, more), Vec::new());
    let stop = CancellationToken::new();
    let command = Command::Monitor(args);
    let ended = timeout(DEADLINE, run(&command, Clock::system(), &stop, &mut out)).await.unwrap();
    (ended, String::from_utf8(out).unwrap())
}

fn is_code(ended: &anyhow::Result<ExitCode>, code: ExitCode) -> bool {
    ended.as_ref().is_ok_and(|ended| format!("{ended:?}") == format!("{code:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_monitor_has_shown_reaches_the_agent_all_the_same() {
    let dir = TempDir::new().unwrap();
    let settings = simulated::Settings {
        id: "press-7",
        channels: COUNT,
        interval: Duration::from_millis(20),
        measure: Box::new(|n| vec![Value::Int(n.cast_signed())]),
    };
    let node = simulated::Node::start(dir.path().join("tty"), settings, Clock::system()).unwrap();
    node.plug_in().unwrap();
    let (ended, out) = monitor(node.path(), &["--count", "20", "--protocol", "bridge"]).await;
    assert!(is_code(&ended, ExitCode::SUCCESS), "{ended:?} {out}");
    assert!(out.contains("press-7  hello: firmware simulated") && out.contains(" count=20\n"), "{out}");
    let (kept, taken) = node.count().unwrap();
    assert!(kept == taken && kept >= 20, "{kept} of {taken}");

    let config = format!(
        "[agent]\nid = \"gw\"\ndata_dir = \"{}\"\nclock = \"trusted\"\n[admin]\nlisten = \"\"\nsocket = \"\"\n\
         [sources.press]\ntype = \"serial\"\npath = \"{}\"\nprotocol = \"bridge\"\n",
        dir.path().join("data").display(),
        node.path().display(),
    );
    let loaded = crate::config::parse(&config, "test.toml", &crate::config::System).unwrap();
    let running = crate::pipeline::start(loaded.config, Clock::system()).await.unwrap();
    let mut books = running.inputs().books.clone();
    let stored = books.wait_for(|books| books.stream(Stream::Readings).next > Seq(taken));
    timeout(DEADLINE, stored).await.unwrap().unwrap();
    // While the agent has the port, nobody else gets it.
    let (ended, out) = monitor(node.path(), &[]).await;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("most likely the running agent") && out.is_empty(), "{error} {out}");
    let Some(Piece::Readings(_, readings)) =
        running.store().reader().piece(Stream::Readings, Seq::FIRST).unwrap()
    else {
        panic!("no readings")
    };
    let counts = readings.iter().map(|reading| reading.values[0].clone());
    assert!(counts.eq((1..).map(crate::reading::Value::Int).take(readings.len())), "from the first one on");
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_not_there_is_waited_for_and_nothing_of_sense_is_a_failure() {
    let dir = TempDir::new().unwrap();
    let (ended, out) = monitor(&dir.path().join("tty"), &["--duration", "300ms", "--json"]).await;
    assert!(is_code(&ended, ExitCode::FAILURE), "{ended:?}");
    let first: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(first["seen"], "waiting");
    assert!(first["reason"].as_str().unwrap().contains("is not there"), "{first}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(monitor(&file, &[]).await.0.unwrap_err().to_string().contains("is no serial port"));

    let mut pty = Pty::new().unwrap();
    pty.write(b"T=1\nT=2\n").unwrap();
    let (ended, out) = monitor(pty.path(), &["--count", "2"]).await;
    assert!(is_code(&ended, ExitCode::SUCCESS) && out.contains("  T=2\n"), "{ended:?} {out}");
}

#[test]
fn a_port_is_a_path_or_a_serial_server() {
    assert_eq!(place("ttyUSB0"), Ok(Place::Path("ttyUSB0".into())));
    let tcp = |host: &str| Ok(Place::Tcp { host: host.to_owned(), port: 2_000 });
    assert_eq!(place("tcp://gw:2000"), tcp("gw"));
    assert_eq!(place("tcp://[::1]:2000"), tcp("::1"));
    for bad in ["tcp://gw", "http://gw:1", "tcp://gw:0", "tcp://a@gw:1", "tcp://gw:1/x"] {
        assert!(place(bad).is_err(), "{bad}");
    }
}
