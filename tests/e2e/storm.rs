//! Everything that can happen to processes, network and disk, at random from a printed seed: mosquitto, the agent and the
//! receiver are killed, stopped and frozen, every link between them is cut, held, slowed or loses one direction, the disk is
//! full. At the end every acknowledged reading is in the receiver's files exactly once, and the books balance.
//!
//! `HOLDFAST_SEED` repeats a run, `HOLDFAST_CHAOS_SECONDS` makes it longer; `scripts/chaos` runs many.

#![expect(clippy::print_stdout, reason = "what happened when is shown with the failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::proxy::Weather;
use harness::sensor::START_MS;
use harness::{Agent, Broker, Disk, Journal, Proxy, Receiver, Sensor, Witness};
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::{HOLDFAST, STORE, client, listener};

/// How long the storm lasts by default.
const SECONDS: u64 = 30;
/// The agent's disk, in MiB: more than a storm of minutes fills.
const DISK_MIB: u32 = 96;
/// How long everything may take to drain afterwards.
const DRAIN: Duration = Duration::from_secs(180);

/// Devices that publish to the agent's listener, with QoS 1 and 2.
const DIRECT: [&str; 3] = ["direct-1", "direct-2", "direct-3"];
/// Devices that publish to the broker.
const BEHIND_THE_BROKER: [&str; 2] = ["plant-1", "plant-2"];

/// What the broker goes through: killed with -9, mosquitto forgets what it acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broking {
    Stopped,
    Killed,
}

struct Storm {
    random: fastrand::Rng,
    broking: Broking,
    broker: Broker,
    agent: Agent,
    receiver: Receiver,
    /// Sensors to listener, agent to broker, agent to receiver.
    links: [(&'static str, Proxy); 3],
    disk: Option<Disk>,
    is_full: bool,
    /// Two good configurations, taken in turns.
    configs: [String; 2],
    began: Instant,
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_every_acknowledged_reading_arrives_exactly_once() {
    storm(Broking::Stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_that_kills_the_broker_too_what_the_agent_acknowledged_arrives() {
    storm(Broking::Killed).await;
}

async fn storm(broking: Broking) {
    let random = harness::random();
    let seconds = std::env::var("HOLDFAST_CHAOS_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let (journal, brokered, witness) = (Journal::default(), Journal::default(), Witness::default());
    let (broker, receiver) = (Broker::start().await, Receiver::start(HOLDFAST));
    let port = harness::free_port();
    let links = [
        ("sensors", Proxy::start(port)),
        ("broker", Proxy::tapped(broker.port, witness.taps())),
        ("cloud", Proxy::start(receiver.port)),
    ];
    let [sensors, plant, cloud] = links.each_ref().map(|(_, proxy)| proxy.port);
    let plant = client(&format!("mqtt://127.0.0.1:{plant}")).replace("[[", "keep_alive = \"5s\"\n[[");
    let config = format!(
        "{STORE}{}{plant}\
         [windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"2s\"\nfields = [\"temperature\"]\n\
         aggregates = [\"count\"]\n\
         [sinks.cloud]\ntype = \"http\"\nurl = \"http://127.0.0.1:{cloud}/\"\ntimeout = \"2s\"\n\
         retry = {{ initial = \"50ms\", max = \"1s\" }}\nbatch = {{ records = 200, wait = \"100ms\" }}\n",
        listener(port),
    );
    let other = config
        .replace("records = 200", "records = 150")
        .replace("[sinks", "[windows.ten]\nsize = \"10m\"\n[sinks");
    let mut agent = Agent::new(HOLDFAST, &config);
    let disk = Disk::small(&agent.file("data"), DISK_MIB);
    if disk.is_none() {
        println!("the disk will not be full: only root may mount one that is small");
    }
    agent.start().await;
    agent.wait_for("a subscription", |status| status.source_state("plant") == "connected").await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut publishing = JoinSet::new();
    for (nth, device) in DIRECT.iter().enumerate() {
        let sensor = Sensor::new(device, sensors, &journal);
        let sensor = if nth == 0 { sensor.exactly_once() } else { sensor };
        publishing.spawn(publish(sensor, Arc::clone(&stop)));
    }
    for device in BEHIND_THE_BROKER {
        let sensor = Sensor::new(device, broker.port, &brokered).exactly_once();
        publishing.spawn(publish(sensor, Arc::clone(&stop)));
    }
    let (began, is_full) = (Instant::now(), false);
    let mut storm = Storm {
        random,
        broking,
        broker,
        agent,
        receiver,
        links,
        disk,
        is_full,
        configs: [other, config],
        began,
    };
    while began.elapsed() < Duration::from_secs(seconds) {
        storm.strike().await;
        storm.lull().await;
        assert!(publishing.try_join_next().is_none(), "a sensor gave up");
    }
    storm.clear_up().await;
    stop.store(true, Ordering::Relaxed);
    timeout(DRAIN, publishing.join_all()).await.expect("all that was published is acknowledged");
    storm.settle(&journal, &brokered, &witness).await;
}

/// Publishes, now and then a burst, until told to stop; then all of it is acknowledged.
async fn publish(mut sensor: Sensor, stop: Arc<AtomicBool>) {
    let (mut n, mut random) = (0, fastrand::Rng::new());
    while !stop.load(Ordering::Relaxed) {
        let count = random.u64(1..60);
        sensor.publish_payloads((n + 1..=n + count).map(|n| (n, payload(n)))).await;
        n += count;
        if random.u8(0..10) == 0 {
            sensor.cut();
        }
        sleep(Duration::from_millis(random.u64(5..60))).await;
    }
}

/// A reading a second, a month ago: however many there are, none comes from the future.
fn payload(n: u64) -> Vec<u8> {
    let ts = START_MS - 30 * 86_400_000 + n * 1_000;
    format!("{{\"ts\":{ts},\"n\":{n},\"temperature\":{}.5}}", n % 40).into_bytes()
}

impl Storm {
    /// One thing happens, or two at once.
    async fn strike(&mut self) {
        match self.random.u8(0..14) {
            0 | 1 => {
                self.say("the agent is killed");
                self.agent.kill();
                self.lull().await;
                self.agent.spawn();
            }
            2 => {
                self.say("the agent is told to stop, and started again");
                self.agent.signal(Signal::TERM);
                self.pause().await;
                // Not yet ended is just as well.
                self.agent.kill();
                self.agent.spawn();
            }
            3 => {
                self.say("the agent stands still");
                self.agent.freeze();
                self.lull().await;
                if self.random.bool() {
                    self.agent.kill();
                    self.agent.spawn();
                } else {
                    self.agent.thaw();
                }
            }
            4 | 5 => {
                self.say("the receiver is killed");
                self.receiver.kill();
                self.lull().await;
                self.receiver.restart();
            }
            6 => {
                self.say("the receiver stands still");
                self.receiver.freeze();
                self.lull().await;
                self.receiver.thaw();
            }
            7 if self.broking == Broking::Killed && self.random.bool() => {
                self.say("the broker is killed");
                self.broker.kill();
                self.lull().await;
                self.broker.restart().await;
            }
            7 => {
                self.say("the broker stops");
                self.broker.stop().await;
                self.lull().await;
                self.broker.restart().await;
            }
            8 => {
                self.say("the broker stands still");
                self.broker.freeze();
                self.lull().await;
                self.broker.thaw();
            }
            9..=11 => {
                let weather = self.random.choice(Weather::FOUL).unwrap();
                let link = self.random.usize(0..self.links.len());
                self.say(&format!("the link of the {} is {weather:?}", self.links[link].0));
                self.links[link].1.set(weather);
                if self.random.bool() {
                    // Something else happens meanwhile.
                    return;
                }
                self.lull().await;
                self.links[link].1.set(Weather::Fair);
            }
            12 => {
                self.say("the agent is told to take another configuration");
                self.agent.configure(&self.configs[0]);
                self.configs.rotate_left(1);
                self.agent.signal(Signal::HUP);
            }
            _ => self.fill_the_disk().await,
        }
        if self.random.bool() {
            self.links.iter().for_each(|(_, proxy)| proxy.set(Weather::Fair));
        }
    }

    async fn fill_the_disk(&mut self) {
        let Some(disk) = &self.disk else { return };
        disk.fill();
        self.is_full = true;
        self.say("the disk is full");
        self.lull().await;
        match self.random.u8(0..4) {
            0 => {
                self.say("the agent is killed on a full disk");
                self.agent.kill();
                self.agent.spawn();
                self.lull().await;
            }
            1 => {
                self.say("the agent is told to stop on a full disk");
                self.agent.signal(Signal::TERM);
                self.pause().await;
                self.agent.kill();
                self.agent.spawn();
            }
            _ => {}
        }
        self.disk.iter().for_each(Disk::free);
        self.say("the disk has room");
        // What ended on the full disk is started again before anybody else is blamed for it.
        self.lull().await;
        self.is_full = false;
    }

    /// Some time passes. The supervisor starts the agent again if it has ended by itself, which only a disk may make it.
    async fn lull(&mut self) {
        self.pause().await;
        if let Some(status) = self.agent.restart_if_ended() {
            self.say(&format!("the agent had ended with {status}"));
            assert!(self.is_full, "the agent ended by itself: {status}");
        }
    }

    async fn pause(&mut self) {
        let long = match self.random.u8(0..10) {
            0 => self.random.u64(3_000..6_000),
            _ => self.random.u64(50..1_500),
        };
        sleep(Duration::from_millis(long)).await;
    }

    fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// All faults end.
    async fn clear_up(&mut self) {
        self.say("the storm is over");
        self.links.iter().for_each(|(_, proxy)| proxy.set(Weather::Fair));
        self.agent.restart_if_ended();
        self.agent.ready().await;
    }

    /// Waits until all is delivered, and compares.
    async fn settle(mut self, journal: &Journal, brokered: &Journal, witness: &Witness) {
        let direct: BTreeSet<_> = journal.acked_marks().into_iter().collect();
        let least = direct.len() + brokered.acked_count() * usize::from(self.broking == Broking::Stopped);
        let (mut before, mut quiet_since) = (0, Instant::now());
        let settled = async {
            loop {
                let status = self.agent.status().await;
                let pending = status.ledger("readings", "pending") + status.ledger("windows", "pending");
                let appended = status.appended("readings") + status.appended("windows");
                if appended != before || pending > 0 {
                    (before, quiet_since) = (appended, Instant::now());
                }
                // Windows of devices that fall silent come out after `idle`; what is missing may be on its way from the broker.
                let is_all_here = status.appended("readings") >= least as u64;
                if quiet_since.elapsed() > Duration::from_secs(if is_all_here { 5 } else { 40 }) {
                    return status;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let status = timeout(DRAIN, settled).await.expect("everything is delivered");
        status.assert_balanced();
        assert_eq!(status.state(), "online", "{:#}", status.0);
        let shown = self.agent.command(&["status"]).await;
        assert!(String::from_utf8_lossy(&shown.stdout).contains("ONLINE"));
        assert_eq!((status.ledger("readings", "shed"), status.ledger("readings", "dead_lettered")), (0, 0));
        assert!(self.agent.stop().await.success());
        self.receiver.stop().await;

        let readings = self.receiver.lines("gw-e2e", "readings.ndjson");
        let windows = self.receiver.lines("gw-e2e", "windows.ndjson");
        assert_eq!(self.receiver.lines("gw-e2e", "gaps.ndjson"), Vec::<Value>::new(), "no number is missing");
        assert_numbered(&readings, status.appended("readings"));
        assert_numbered(&windows, status.appended("windows"));

        let mut times: BTreeMap<_, usize> = BTreeMap::new();
        for reading in &readings {
            let device = reading["device"].as_str().unwrap().to_owned();
            *times.entry((device, reading["fields"]["n"].as_u64().unwrap())).or_default() += 1;
        }
        let is_direct = |device: &str| DIRECT.contains(&device);
        let lost: Vec<_> = direct.iter().filter(|mark| !times.contains_key(*mark)).take(10).collect();
        assert!(lost.is_empty(), "acknowledged and not delivered: {lost:?}");
        let twice: Vec<_> = times
            .iter()
            .filter(|(mark, count)| **count > if is_direct(&mark.0) { 1 } else { witness.handed_over(mark) })
            .map(|(mark, count)| (mark, count, witness.story(mark)))
            .take(10)
            .collect();
        assert!(twice.is_empty(), "delivered more often than it came: {twice:?}");
        let acked = witness.acked();
        let lost: Vec<_> = acked.iter().filter(|mark| !times.contains_key(*mark)).take(10).collect();
        assert!(lost.is_empty(), "acknowledged to the broker and not delivered: {lost:?}");
        if self.broking == Broking::Stopped {
            let brokered = brokered.acked_marks();
            let lost: Vec<_> = brokered.iter().filter(|mark| !times.contains_key(*mark)).take(10).collect();
            assert!(lost.is_empty(), "taken by the broker and not delivered: {lost:?}");
        }
        assert_windows(&readings, &windows);
        println!(
            "{} readings, {} windows; {} recognised at the listener, {} of the broker",
            readings.len(),
            windows.len(),
            status.source("direct", "redelivered"),
            status.source("plant", "redelivered"),
        );
    }
}

/// Numbers are gapless from 1, in one epoch.
fn assert_numbered(records: &[Value], appended: u64) {
    for (seq, record) in (1_u64..).zip(records) {
        assert_eq!(record["seq"], seq, "in order, without a hole: {record}");
    }
    assert_eq!(records.len() as u64, appended, "the tail is there, too");
}

/// Each revision comes once, and the last one of every window counts all its readings, for devices whose readings came in order.
fn assert_windows(readings: &[Value], windows: &[Value]) {
    let minute = |time: &Value| time.as_str().unwrap().split_at(16).0.to_owned();
    let place =
        |record: &Value, time: &str| (record["device"].as_str().unwrap().to_owned(), minute(&record[time]));
    let mut counted: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    // The other window begins anew whenever it is configured again.
    for window in windows.iter().filter(|window| window["window"] == "minute") {
        let last = counted.entry(place(window, "start")).or_insert((0, 0));
        assert_eq!(window["revision"], last.0, "each revision once, in order: {window}");
        *last = (last.0 + 1, window["aggregates"]["count"].as_u64().unwrap());
    }
    let mut expected: BTreeMap<_, u64> = BTreeMap::new();
    for reading in readings.iter().filter(|reading| DIRECT.contains(&reading["device"].as_str().unwrap())) {
        *expected.entry(place(reading, "time")).or_default() += 1;
    }
    for (place, count) in expected {
        let found = counted.get(&place).map(|(_, count)| *count);
        assert_eq!(found, Some(count), "the window {place:?} counts other readings than were delivered");
    }
}
