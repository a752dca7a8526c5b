//! Sensor nodes with `firmware-bridge`: what a node was told to be safe is, and each of its samples arrives once, in order, or is
//! known to be missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::books::Status;
use harness::cloud::Answer;
use harness::{Agent, Cloud, DEADLINE, Node, Receiver, Socket};
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{assert_rising, is_in, number, numbers, source, told};
use crate::{BATCH, HOLDFAST, STORE};

const BRIDGE: &str = "protocol = \"bridge\"";
const NODE: &str = "press-7";
const MISSED: &str = "/sources/press/devices/press-7/missed/dropped";

/// An agent with the source `press` at the socket, and a sink at the cloud.
async fn agent(socket: &Socket, cloud: &Cloud) -> Agent {
    let press = source("press", &socket.path(), BRIDGE);
    started(&format!("{STORE}{press}{}", cloud.sink(BATCH))).await
}

/// An agent as it runs where it belongs: not as root, whom a lock that it forgot to release would not keep out.
async fn started(config: &str) -> Agent {
    let mut agent = Agent::new(HOLDFAST, config).unprivileged();
    agent.start().await;
    agent
}

/// Waits until the node was told that all its samples are safe.
async fn is_safe(node: &Node) {
    harness::wait_for("all samples to be acknowledged", DEADLINE, async || {
        (node.unconfirmed() == 0).then_some(())
    })
    .await;
}

async fn joins(node: &Node) {
    harness::wait_for("the host to know the node", DEADLINE, async || node.is_joined().then_some(())).await;
}

/// A node that measures some hundred times a second, as long as it has room for what it measures.
struct Measuring {
    node: Arc<Node>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Measuring {
    fn start(node: &Arc<Node>) -> Self {
        let (node, stop) = (Arc::clone(node), Arc::new(AtomicBool::new(false)));
        let (measured, told) = (Arc::clone(&node), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !told.load(Ordering::Relaxed) {
                measured.sample_what_fits(4);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { node, stop, task }
    }

    /// Waits until so many more samples are known to be safe.
    async fn goes_on(&self, further: u64) {
        let safe = || self.node.taken() - self.node.unconfirmed();
        let until = safe() + further;
        harness::wait_for("samples to flow", DEADLINE, async || (safe() >= until).then_some(())).await;
    }

    async fn pause(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_is_at_the_receiver_once_whatever_happens_on_the_way() {
    let mut random = harness::random();
    let (mut socket, mut receiver) = (Socket::empty(), Receiver::start(HOLDFAST));
    let sink = format!(
        "[sinks.cloud]\ntype = \"http\"\nurl = \"http://127.0.0.1:{}/\"\ntimeout = \"1s\"\n\
         retry = {{ initial = \"20ms\", max = \"100ms\" }}\n{BATCH}\n",
        receiver.port
    );
    let press = source("press", &socket.path(), BRIDGE);
    let mut agent = started(&format!("{STORE}{press}{sink}")).await;
    let node = Arc::new(Node::start(NODE));
    node.plug_into(socket.plug_in().into());
    let measuring = Measuring::start(&node);
    for round in 0..10 {
        measuring.goes_on(random.u64(1..300)).await;
        match round {
            3 => {
                socket.unplug();
                node.unplug();
                is_in(&agent, "press", "unplugged").await;
                node.plug_into(socket.plug_in().into());
                is_in(&agent, "press", "connected").await;
            }
            // It gets another number before the one that it had is gone.
            5 => node.plug_into(socket.plug_in().into()),
            6 => receiver.kill(),
            8 => receiver.restart(),
            _ => {}
        }
        agent.kill();
        agent.start().await;
    }
    // Its life ends when all of it is safe: nothing may be missing.
    measuring.pause().await;
    is_safe(&node).await;
    assert_eq!(agent.status().await.number(MISSED), 0, "it had room for all");
    assert_eq!(node.reset(2), 0);
    let measuring = Measuring::start(&node);
    measuring.goes_on(100).await;
    // Its life ends in the middle: what it had not delivered is gone with its memory, and nothing else.
    let lost_at_most = node.reset(3);
    measuring.goes_on(100).await;
    measuring.pause().await;
    // It measures on while nobody comes, for longer than it can remember.
    socket.unplug();
    node.unplug();
    node.sample(2_000);
    node.plug_into(socket.plug_in().into());
    is_safe(&node).await;

    let stored = agent.status().await.source("press", "stored");
    let status = agent.drained("readings", stored).await;
    let missed = status.number(MISSED);
    assert!((1..=node.dropped()).contains(&missed), "it had no room for all: {:#}", status.0);
    assert_eq!(missed, status.number("/sources/press/missed/dropped"));
    assert!(agent.stop().await.success());
    let verified = agent.command(&["store", "verify"]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    receiver.stop().await;
    let readings = receiver.lines("gw-e2e", "readings.ndjson");
    assert!(receiver.lines("gw-e2e", "gaps.ndjson").is_empty());
    let numbers: Vec<u64> = readings.iter().map(number).collect();
    assert_rising(&numbers);
    let times: Vec<&str> = readings.iter().map(|record| record["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "a node keeps its order, over resets too");
    let lost = node.taken() - numbers.len() as u64 - missed;
    println!("{} taken, {missed} missed, {lost} of at most {lost_at_most} lost", node.taken());
    assert!(lost <= lost_at_most, "{lost} samples are missing without a word, {lost_at_most} may be");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_sends_again_because_an_acknowledgement_was_lost_is_recognised() {
    let (mut socket, cloud, node) = (Socket::empty(), Cloud::start().await, Node::start(NODE));
    let mut agent = agent(&socket, &cloud).await;
    node.plug_into(socket.plug_in().into());
    joins(&node).await;
    node.deafen();
    node.sample(50);
    let again = |status: &Status| status.source("press", "redelivered") >= 50;
    let status = agent.wait_for("all to come again", again).await;
    assert_eq!(status.source("press", "stored"), 50);
    assert_eq!(node.unconfirmed(), 50, "it was told nothing");
    // The agent dies between the commit and the acknowledgement.
    agent.kill();
    node.plug_into(socket.plug_in().into());
    node.undeafen();
    agent.start().await;
    is_safe(&node).await;
    node.sample(10);
    is_safe(&node).await;
    agent.drained("readings", 60).await;
    assert_eq!(numbers(&cloud), Vec::from_iter(1..=60));
    assert_eq!(agent.status().await.number(MISSED), 0);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_had_no_room_for_is_in_the_books_once_also_after_a_crash() {
    let (mut socket, cloud, node) = (Socket::empty(), Cloud::start().await, Node::start(NODE));
    let mut agent = agent(&socket, &cloud).await;
    node.plug_into(socket.plug_in().into());
    joins(&node).await;
    node.unplug();
    node.deafen();
    node.sample(2_000);
    node.plug_into(socket.plug_in().into());
    let all = |status: &Status| {
        status.source("press", "stored") + status.number("/sources/press/missed/dropped") == 2_000
    };
    let before = agent.wait_for("each sample to be stored or known to be missing", all).await;
    let missed = before.number(MISSED);
    assert_eq!((missed, missed + node.unconfirmed()), (node.dropped(), 2_000), "it was told nothing");
    assert_eq!(before.number("/sources/press/devices/press-7/seq"), 2_000);
    agent.kill();
    node.plug_into(socket.plug_in().into());
    node.undeafen();
    agent.start().await;
    is_safe(&node).await;
    let after = agent.drained("readings", 2_000 - missed).await;
    assert_eq!((after.number(MISSED), after.source("press", "stored")), (missed, 2_000 - missed));
    let metrics = agent.get("/metrics").await.text();
    let line = format!("source=\"press\",reason=\"dropped\"}} {missed}");
    assert!(metrics.contains(&line), "no {line} in\n{metrics}");
    let numbers = numbers(&cloud);
    assert_eq!(numbers, Vec::from_iter(missed + 1..=2_000), "the oldest went");
    assert!(agent.log().contains("records of a node will never come"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_blocks_holds_the_node_back_and_loses_nothing() {
    let (mut socket, cloud, node) = (Socket::empty(), Cloud::start().await, Arc::new(Node::start(NODE)));
    cloud.script(|_| Answer::refuse(503, ""));
    let store = "[store]\ncommit_interval = \"50ms\"\nmax_size = \"64KiB\"\nwhen_full = \"block\"\n";
    let press = source("press", &socket.path(), BRIDGE);
    let mut agent = started(&format!("{store}{press}{}", cloud.sink(BATCH))).await;
    node.plug_into(socket.plug_in().into());
    let filling = {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            while node.taken() < 20_000 {
                node.sample_what_fits(100.min(20_000 - node.taken()));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    for _ in 0..3 {
        let status = agent.wait_for("the state blocked", |status| status.state() == "blocked").await;
        status.assert_balanced();
        assert_eq!(status.ledger("readings", "shed"), 0);
        harness::wait_for("the node to be held back", DEADLINE, async || {
            (node.unconfirmed() >= harness::node::RING_SAMPLES).then_some(())
        })
        .await;
        // What it was told is on the disk, and not in the memory of an agent that dies.
        agent.kill();
        agent.start().await;
    }
    assert!(!filling.is_finished());
    cloud.script(|_| Answer::take());
    filling.await.unwrap();
    is_safe(&node).await;
    let status = agent.drained("readings", 20_000).await;
    assert_eq!((status.ledger("readings", "shed"), status.number(MISSED)), (0, 0));
    assert_eq!(numbers(&cloud), Vec::from_iter(1..=20_000));
    agent.wait_for("the agent to be online", |status| status.state() == "online").await;
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_behind_a_serial_server_loses_nothing_when_the_server_goes_away() {
    let (cloud, node) = (Cloud::start().await, Node::start(NODE));
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let press = format!("[sources.press]\ntype = \"serial\"\nurl = \"tcp://{address}\"\n{BRIDGE}\n");
    let mut agent = Agent::started(HOLDFAST, &format!("{STORE}{press}{}", cloud.sink(BATCH))).await;
    let accepted = async |server: &TcpListener| {
        let (stream, _) = tokio::time::timeout(DEADLINE, server.accept()).await.unwrap().unwrap();
        harness::node::Line::Tcp(stream.into_std().unwrap())
    };
    node.plug_into(accepted(&server).await);
    node.sample(100);
    is_safe(&node).await;
    is_in(&agent, "press", "connected").await;
    // The connection is cut, then nobody listens.
    node.unplug();
    node.plug_into(accepted(&server).await);
    node.sample(100);
    is_safe(&node).await;
    drop(server);
    node.unplug();
    node.sample(100);
    is_in(&agent, "press", "disconnected").await;
    agent.kill();
    agent.start().await;
    is_in(&agent, "press", "disconnected").await;
    let server = TcpListener::bind(address).await.unwrap();
    node.plug_into(accepted(&server).await);
    is_safe(&node).await;
    is_in(&agent, "press", "connected").await;
    agent.drained("readings", 300).await;
    assert_eq!(numbers(&cloud), Vec::from_iter(1..=300));
    assert_eq!(told(&agent, "press", "disconnected"), [2, 1], "once for each run:\n{}", agent.log());
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_comes_and_goes_with_the_configuration() {
    let (mut first, mut second) = (Socket::empty(), Socket::empty());
    let (cloud, node, other) = (Cloud::start().await, Node::start(NODE), Node::start("press-8"));
    node.plug_into(first.plug_in().into());
    other.plug_into(second.plug_in().into());
    let press = source("press", &first.path(), BRIDGE);
    let both =
        format!("{press}{}", source("second", &second.path(), "protocol = \"bridge\"\ndevice = \"eight\""));
    let sink = cloud.sink(BATCH);
    let agent = started(&format!("{STORE}{press}{sink}")).await;
    node.sample(50);
    other.sample(50);
    is_safe(&node).await;
    for (nth, sources) in [&both, &press, &both].into_iter().enumerate() {
        agent.configure(&format!("{STORE}{sources}{sink}"));
        agent.signal(Signal::HUP);
        agent.reloaded(nth + 1).await;
        node.sample(50);
        other.sample(50);
        is_safe(&node).await;
        if sources == &both {
            is_safe(&other).await;
        } else {
            assert_eq!(other.unconfirmed(), 50, "nobody takes what it says");
        }
    }
    let status = agent.drained("readings", 400).await;
    assert_eq!((status.appended("readings"), status.source("second", "stored")), (400, 200));
    for (device, count) in [(NODE, 200), ("eight", 200)] {
        let of_device = cloud.records("readings").into_iter().filter(|record| record["device"] == device);
        let numbers: Vec<u64> = of_device.map(|record| number(&record)).collect();
        assert_eq!(numbers, Vec::from_iter(1..=count), "{device}");
    }
    cloud.assert_well_formed();
}
