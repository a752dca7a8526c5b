//! What may be wrong with a port and with the line behind it: a state that everybody is told, one line in the log when it begins
//! and one when it ends, and no restart to get over it.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use harness::books::Status;
use harness::{Agent, Cloud, Node, Socket};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::termios::{ioctl_tiocexcl, ioctl_tiocnxcl};

use super::{is_in, source, told};
use crate::{BATCH, HOLDFAST, STORE};

const LINES: &str = "protocol = \"lines\"\npayload = \"value\"";

/// Opens a port as another program would.
fn other_program(path: &Path) -> File {
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, OFlags::NOCTTY.bits().cast_signed());
    options.read(true).write(true).open(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_be_opened_is_told_apart_and_opened_as_soon_as_it_can_be() {
    let cloud = Cloud::start().await;
    let troubles = [
        ("absent", "unplugged"),
        ("denied", "permission-denied"),
        ("taken", "busy"),
        ("locked", "busy"),
        ("file", "misconfigured"),
    ];
    let mut sockets = troubles.map(|_| Socket::empty());
    let mut config = STORE.to_owned();
    for ((name, _), socket) in troubles.iter().zip(&sockets) {
        config += &source(name, &socket.path(), LINES);
    }
    let [absent, denied, taken, locked, file] = &mut sockets;
    let mut plugged = [denied, taken, locked].map(Socket::plug_in);
    let [of_denied, of_taken, of_locked] = &plugged;
    std::fs::set_permissions(of_denied.path(), Permissions::from_mode(0o0)).unwrap();
    let (takes, locks) = (other_program(of_taken.path()), other_program(of_locked.path()));
    ioctl_tiocexcl(&takes).unwrap();
    flock(&locks, FlockOperation::LockExclusive).unwrap();
    let mut agent = Agent::new(HOLDFAST, &format!("{config}{}", cloud.sink(BATCH))).unprivileged();
    std::fs::write(agent.file("notes.txt"), "no port").unwrap();
    file.lead_to(&agent.file("notes.txt"));
    agent.start().await;
    for (name, state) in troubles {
        let status = is_in(&agent, name, state).await;
        let error = status.text(&format!("/sources/{name}/last_error"));
        assert!(error.contains("usb-press"), "what is wrong with what: {error:?}");
    }
    // It tries again all the time, and says so once.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    for (name, state) in troubles {
        assert_eq!(told(&agent, name, state), [1, 0], "{name}:\n{}", agent.log());
    }

    std::fs::set_permissions(of_denied.path(), Permissions::from_mode(0o600)).unwrap();
    // A pty stays taken after its last descriptor is closed, as long as its master is open; other ports do not.
    ioctl_tiocnxcl(&takes).unwrap();
    drop((takes, locks));
    let mut others = [absent.plug_in(), file.plug_in()];
    for (pty, n) in plugged.iter_mut().chain(&mut others).zip(1..) {
        pty.write(format!("{n}\n").as_bytes()).unwrap();
    }
    for (name, state) in troubles {
        is_in(&agent, name, "connected").await;
        agent.wait_for("a line", |status| status.source(name, "stored") == 1).await;
        assert_eq!(told(&agent, name, state), [1, 1], "{name}:\n{}", agent.log());
    }
    agent.drained("readings", 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_a_node_is_silent_or_garbage_until_one_speaks() {
    let (mut socket, cloud, node) = (Socket::empty(), Cloud::start().await, Node::start("press-7"));
    let press = source("press", &socket.path(), "protocol = \"bridge\"\nsilent_after = \"1s\"");
    let mut pty = socket.plug_in();
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{press}{}", cloud.sink(BATCH))).await;
    let status = is_in(&agent, "press", "silent").await;
    assert!(status.text("/sources/press/last_error").contains("check that the device has power"));
    for _ in 0..80 {
        pty.write(b"temperature 21.5\r\n").unwrap();
    }
    let status = is_in(&agent, "press", "garbage").await;
    let advice = status.text("/sources/press/last_error");
    assert!(advice.contains("check baud (115200)"), "{advice}");
    let counted = |status: &Status| status.number("/sources/press/line/garbage_bytes") == 1_440;
    agent.wait_for("all of it to be counted", counted).await;
    // Now the right thing is plugged in.
    node.sample(10);
    node.plug_into(socket.plug_in().into());
    drop(pty);
    is_in(&agent, "press", "connected").await;
    agent.drained("readings", 10).await;
    assert_eq!(super::numbers(&cloud), Vec::from_iter(1..=10));
    // It has nothing more to say, and then it is gone for a while.
    is_in(&agent, "press", "silent").await;
    socket.unplug();
    node.unplug();
    is_in(&agent, "press", "unplugged").await;
    node.plug_into(socket.plug_in().into());
    is_in(&agent, "press", "connected").await;
    assert_eq!(told(&agent, "press", "garbage")[0], 1, "{}", agent.log());
    assert_eq!(told(&agent, "press", "unplugged"), [2, 2], "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_text_may_be_silent_flooding_or_noise() {
    let (mut socket, cloud) = (Socket::empty(), Cloud::start().await);
    let press = source("press", &socket.path(), &format!("{LINES}\nmax_rate = 500\nsilent_after = \"9s\""));
    let mut pty = socket.plug_in();
    let mut agent = Agent::started(HOLDFAST, &format!("{STORE}{press}{}", cloud.sink(BATCH))).await;
    is_in(&agent, "press", "connected").await;
    // A device gone mad: its lines are read no faster than they may be.
    pty.write(&b"1\n".repeat(1_200)).unwrap();
    is_in(&agent, "press", "flooding").await;
    let all = |status: &Status| status.source("press", "stored") == 1_200;
    let settled = agent.wait_for("every line of the flood", all).await;
    assert_eq!(settled.source("press", "rejected"), 0);
    is_in(&agent, "press", "connected").await;
    assert_eq!(told(&agent, "press", "flooding"), [1, 1], "{}", agent.log());
    is_in(&agent, "press", "silent").await;
    pty.write(b"2\n3\n4\n").unwrap();
    is_in(&agent, "press", "connected").await;
    assert_eq!(told(&agent, "press", "silent"), [1, 1], "{}", agent.log());
    // Somebody has set the device to another speed, and back.
    for _ in 0..150 {
        pty.write(b"\xf8\x80\x00\xfe\xc0\xf0\x9f\n").unwrap();
    }
    is_in(&agent, "press", "garbage").await;
    pty.write(b"5\n6\n7\n").unwrap();
    is_in(&agent, "press", "connected").await;
    assert_eq!(told(&agent, "press", "garbage"), [1, 1], "{}", agent.log());
    let status = agent.drained("readings", 1_206).await;
    assert!(status.source("press", "rejected") <= 150, "{:#}", status.0);
    assert!(agent.stop().await.success());
}

const FAULTY: &str = r#"
[sources.a]
type = "serial"
path = "ttyUSB0"
protocol = "brige"

[sources.b]
type = "seriel"
path = "/dev/ttyUSB0"
baud = "fast"
data_bits = 9
parity = "evn"
stop_bits = 3
flow_control = "xon"
protocol = "lines"
payload = "csv"

[sources.c]
type = "serial"
url = "tcp://127.0.0.1:4000"
path = "/dev/ttyUSB1"
baud = 9600
protocol = "lines"
payload = "regex"
pattern = "T=("
max_rate = 0

[sources.d]
type = "serial"
url = "http://127.0.0.1/"
protocol = "bridge"
device = "/id"
columns = ["t"]

[sources.e]
type = "serial"
bauds = 9600
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_serial_source_is_told_with_its_line_and_column() {
    let agent = Agent::new(HOLDFAST, "");
    std::fs::write(agent.config(), FAULTY).unwrap();
    let output = agent.command(&["check"]).await;
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    let expected = [
        ("4:8: sources.a.path", "ttyUSB0"),
        ("5:12: sources.a.protocol", "did you mean \"bridge\""),
        ("8:8: sources.b.type", "did you mean \"serial\""),
        ("10:8: sources.b.baud", "fast"),
        ("11:13: sources.b.data_bits", "9"),
        ("12:10: sources.b.parity", "did you mean \"even\""),
        ("13:13: sources.b.stop_bits", "3"),
        ("14:16: sources.b.flow_control", "xon"),
        ("7:1: sources.b.columns", "is missing"),
        ("21:8: sources.c.path", "url says where the port is"),
        ("22:8: sources.c.baud", "the server at the url sets the port"),
        ("25:11: sources.c.pattern", "T=("),
        ("26:12: sources.c.max_rate", "0"),
        ("30:7: sources.d.url", "http://127.0.0.1/"),
        ("32:10: sources.d.device", "a node says its own name"),
        ("33:1: sources.d.columns", "columns"),
        ("35:1: sources.e.path", "is missing"),
        ("35:1: sources.e.protocol", "is missing"),
        ("37:1: sources.e", "did you mean \"baud\""),
    ];
    for (place, hint) in expected {
        let place = format!("{}:{place}", agent.config().display());
        let is_told = told.lines().any(|line| line.starts_with(&place) && line.contains(hint));
        assert!(is_told, "nothing of {place} … {hint} in:\n{told}");
    }
    let faults = told.lines().filter(|line| line.contains("sources.")).count();
    assert_eq!(faults, expected.len(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_well_and_garbage_by_turns_does_not_fill_the_log() {
    let (mut socket, cloud) = (Socket::empty(), Cloud::start().await);
    let press = source("press", &socket.path(), LINES);
    let mut pty = socket.plug_in();
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{press}{}", cloud.sink(BATCH))).await;
    let reaches = async |state: &str| {
        agent.wait_for(state, |status| status.source_state("press") == state).await;
    };
    for _ in 0..15 {
        reaches("connected").await;
        for _ in 0..150 {
            pty.write(b"\xf8\x80\x00\xfe\xc0\xf0\x9f\n").unwrap();
        }
        reaches("garbage").await;
        pty.write(b"5\n6\n7\n").unwrap();
    }
    reaches("connected").await;
    assert_eq!(told(&agent, "press", "garbage"), [10, 10], "{}", agent.log());
}
