//! A part of the program that hangs is seen: by `/healthz`, by systemd's watchdog, and in the log.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use harness::{Agent, Cloud, DEADLINE, Disk, Journal, Sensor};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{BATCH, HOLDFAST, STORE, listener};

/// A sink hangs after 30 s, the store after 60; rooms are asked every 5.
const HUNG_BY: Duration = Duration::from_secs(90);
/// As short as a watchdog may sensibly be.
const WATCHDOG: Duration = Duration::from_secs(3);

/// Which parts hang, and whether `/healthz` says so.
async fn hung(agent: &Agent) -> Vec<String> {
    let answer = agent.get("/healthz").await;
    let health: Value = serde_json::from_slice(&answer.body).unwrap();
    let hung: Vec<String> = serde_json::from_value(health["hung"].clone()).unwrap();
    assert_eq!(answer.status() == 200, hung.is_empty(), "{health}");
    assert_eq!(health["healthy"], hung.is_empty());
    hung
}

async fn wait_until_hung(agent: &Agent, expected: &[&str]) {
    harness::wait_for(&format!("{expected:?} to hang"), HUNG_BY, async || {
        (hung(agent).await == expected).then_some(())
    })
    .await;
}

/// Whether the watchdog was fed since the last time it was asked.
fn is_fed(socket: &UnixDatagram) -> bool {
    let (mut is_fed, mut message) = (false, [0; 256]);
    while let Ok(count) = socket.recv(&mut message) {
        is_fed |= String::from_utf8_lossy(&message[..count]).contains("WATCHDOG=1");
    }
    is_fed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_hangs_is_named_and_starves_the_watchdog_until_it_goes_on() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut agent = Agent::new(HOLDFAST, "");
    let token = agent.file("token");
    std::fs::write(&token, "secret\n").unwrap();
    let sink =
        cloud.sink(&format!("{BATCH}\nheaders = {{ Authorization = {{ file = \"{}\" }} }}", token.display()));
    agent.configure(&format!("{STORE}{}{sink}", listener(port)));
    let mut disk = Disk::freezable(&agent.file("data"));
    if disk.is_none() {
        println!("the store will not hang: only root may mount a disk that can be frozen");
    }
    let socket = agent.watched(WATCHDOG);
    agent.start().await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=20).await;
    agent.drained("readings", 20).await;
    sleep(WATCHDOG).await;
    assert!(is_fed(&socket) && hung(&agent).await.is_empty());

    // Whoever opens a pipe that nobody writes to hangs in the kernel, as on a dead network disk.
    std::fs::remove_file(&token).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&token).status().unwrap().success());
    sensor.publish(21..=40).await;
    if let Some(disk) = &mut disk {
        disk.freeze();
        sensor.send(41).await.unwrap();
    }
    let began = Instant::now();
    wait_until_hung(&agent, &["sink cloud"]).await;
    assert!(began.elapsed() > Duration::from_secs(20), "a hang of seconds is none");
    if disk.is_some() {
        wait_until_hung(&agent, &["sink cloud", "store"]).await;
    }
    // Nobody read the socket meanwhile: a last word from before the hang may wait for room in it.
    while is_fed(&socket) {
        sleep(WATCHDOG / 3).await;
    }
    sleep(2 * WATCHDOG).await;
    assert!(!is_fed(&socket), "systemd is to restart us");
    let metrics = agent.get("/metrics").await.text();
    assert!(metrics.contains("holdfast_room_hung{room=\"sink cloud\"} 1"), "{metrics}");
    assert!(metrics.contains("holdfast_room_hung{room=\"ingest\"} 0"), "{metrics}");
    let status = agent.status().await;
    assert_eq!(status.0["rooms"]["sink cloud"]["hung"], true);
    assert!(status.text("/summary").contains("sink cloud"), "{}", status.text("/summary"));

    if let Some(disk) = &mut disk {
        disk.thaw();
    }
    // Whoever reads the pipe gets its token; then there is a file again.
    let pipe = token.clone();
    tokio::task::spawn_blocking(move || std::fs::write(pipe, "secret\n")).await.unwrap().unwrap();
    std::fs::remove_file(&token).unwrap();
    std::fs::write(&token, "secret\n").unwrap();
    harness::wait_for("the rooms to go on", DEADLINE, async || hung(&agent).await.is_empty().then_some(()))
        .await;
    sensor.publish(42..=60).await;
    agent.drained("readings", journal.acked_count() as u64).await;
    journal.assert_exactly_once(&cloud);
    is_fed(&socket);
    sleep(WATCHDOG).await;
    assert!(is_fed(&socket));
    let log = agent.log();
    let parts = if disk.is_some() { 2 } else { 1 };
    assert_eq!(log.matches("a room hangs").count(), parts, "{log}");
    assert_eq!(log.matches("goes on").count(), parts * 2, "{log}");
    assert!(agent.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_up_neither_the_end_nor_a_reload() {
    let (mut cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let config = format!("{STORE}{}{}", listener(port), cloud.sink(BATCH));
    let mut agent = Agent::new(HOLDFAST, &config);
    let Some(disk) = Disk::small(&agent.file("data"), 16) else {
        return println!("not tested: only root may mount a disk that is small");
    };
    agent.start().await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=100).await;
    disk.fill();
    let publishing = tokio::spawn(async move {
        sensor.publish(101..=20_000).await;
        sensor
    });
    agent.wait_for("the disk to fail", |status| status.state() == "storage-failing").await;

    // A reload waits for the disk, and everything else goes on.
    agent.configure(&config.replace("records = 50", "records = 60"));
    agent.signal(Signal::HUP);
    harness::wait_for("the word that it waits", DEADLINE, async || {
        agent.log().contains("not reloaded yet").then_some(())
    })
    .await;
    assert_eq!(agent.status().await.state(), "storage-failing");
    disk.free();
    agent.reloaded(1).await;
    let mut sensor = publishing.await.unwrap();

    // So does the end, for a few seconds; what was acknowledged is there afterwards.
    // Nothing of it is delivered meanwhile, and it is more than the file has free space for.
    cloud.close();
    disk.fill();
    let publishing = tokio::spawn(async move {
        let mut random = fastrand::Rng::with_seed(7);
        let mut noise = || (0..4).map(|_| format!("{:032x}", random.u128(..))).collect::<String>();
        let noisy = (20_001..=40_000).map(|n| {
            let mut payload = Sensor::payload(n);
            payload.pop();
            payload.extend_from_slice(format!(",\"noise\":\"{}\"}}", noise()).as_bytes());
            (n, payload)
        });
        sensor.publish_payloads(noisy).await;
    });
    agent.wait_for("the disk to fail again", |status| status.state() == "storage-failing").await;
    let asked = Instant::now();
    assert_eq!(agent.stop().await.code(), Some(1));
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    assert!(agent.log().contains("stopped while the store cannot write"), "{}", agent.log());
    disk.free();
    cloud.reopen().await;
    agent.start().await;
    publishing.await.unwrap();
    agent.drained("readings", 40_000).await;
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}
