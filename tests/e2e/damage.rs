//! The disk returns other bytes than were written: the agent goes on, saves what can be read, and says what it could not.

use std::os::unix::fs::FileExt;
use std::path::Path;

use harness::cloud::Answer;
use harness::{Cloud, Journal, Sensor};

/// Whole lines of the log at ERROR that speak of damage.
fn errors(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("ERROR") && line.contains("damaged")).collect()
}

fn spoil(path: &Path, what: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    match what {
        "the first page is zeros" => bytes[..4_096].fill(0),
        "it is cut in half" => bytes.truncate(bytes.len() / 2 / 4_096 * 4_096),
        "it is empty" => bytes.clear(),
        "it is text" => bytes = b"somebody's notes\n".repeat(1_000),
        _ => unreachable!("no such damage"),
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_saved_as_far_as_it_can_be_read() {
    for what in ["the first page is zeros", "it is cut in half", "it is empty", "it is text"] {
        let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
        let mut agent = crate::listening(port, &cloud).await;
        let mut sensor = Sensor::new("d1", port, &journal);
        sensor.publish(1..=200).await;
        let epoch = agent.drained("readings", 200).await.text("/epoch").to_owned();
        // What the sink has is on the disk some seconds later, or with the next commit.
        cloud.script(|_| Answer::refuse(503, ""));
        sensor.publish(201..=900).await;
        agent.kill();
        spoil(&agent.file("data/store.redb"), what);
        agent.start().await;
        assert_ne!(agent.status().await.text("/epoch"), epoch, "{what}");
        sensor.publish(901..=1_000).await;
        let status = agent
            .wait_for("the damaged file to be read", |status| {
                status.0.pointer("/store/damage/reading").is_some_and(|files| files == &serde_json::json!([]))
            })
            .await;
        status.assert_balanced();
        assert_eq!(status.number("/store/damage/moved_aside"), 1, "{what}");
        let saved = status.number("/store/damage/saved/readings");
        if what == "the first page is zeros" {
            assert_eq!((saved, status.number("/store/damage/lost/readings")), (700, 0), "{what}");
        }
        cloud.script(|_| Answer::take());
        let status = agent.drained("readings", saved + 100).await;
        assert_eq!(status.appended("readings"), saved + 100, "{what}");
        let records = cloud.records("readings");
        let mut numbers: Vec<u64> = records.iter().map(|r| r["fields"]["n"].as_u64().unwrap()).collect();
        numbers.sort_unstable();
        let all = numbers.len();
        numbers.dedup();
        assert_eq!((all, numbers.len() as u64), (numbers.len(), 300 + saved), "{what}: each once");
        let replayed = records.iter().filter(|record| record["replay_of"]["epoch"] == epoch.as_str());
        for record in replayed.clone() {
            assert_eq!(record["replay_of"]["seq"], record["fields"]["n"], "{what}");
        }
        assert_eq!(replayed.count() as u64, saved, "{what}");
        cloud.assert_well_formed();

        let log = agent.log();
        assert_eq!(errors(&log).len(), 1, "{what}: {:#?}", errors(&log));
        let shown = agent.command(&["status"]).await;
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&format!("damaged: {saved} record")), "{what}: {shown}");
        // The next start is a calm one.
        assert!(agent.stop().await.success());
        agent.start().await;
        sensor.publish(1_001..=1_010).await;
        agent.drained("readings", saved + 110).await;
        let log = agent.log();
        assert_eq!(errors(&log).len(), 1, "{what}: {:#?}", errors(&log));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_damaged_under_the_running_agent_is_declared_lost() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|_| Answer::refuse(503, ""));
    let agent = crate::listening(port, &cloud).await;
    // More than the 4 MiB that redb keeps in memory; texts that do not compress.
    let mut random = fastrand::Rng::with_seed(5);
    let mut payload = |n: u64| {
        let text: String = (0..4_000).map(|_| random.alphanumeric()).collect();
        (n, format!("{{\"ts\":{},\"n\":{n},\"text\":\"{text}\"}}", harness::sensor::START_MS).into_bytes())
    };
    let payloads: Vec<_> = (1..=3_000).map(&mut payload).collect();
    Sensor::new("d1", port, &journal).publish_payloads(payloads).await;
    // The first chunks of the file are the oldest: one byte in the body of each of a few.
    let path = agent.file("data/store.redb");
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let body = |at: usize| u32::from_le_bytes(bytes[at + 32..at + 36].try_into().unwrap());
    let begins = (0..bytes.len() - 48).filter(|at| bytes[*at..].starts_with(b"HFCK\x01"));
    for at in begins.filter(|at| bytes[at + 6] == 0 && body(*at) > 4_000).take(10).collect::<Vec<_>>() {
        file.write_all_at(&[!bytes[at + 2_000]], at as u64 + 2_000).unwrap();
    }
    cloud.script(|_| Answer::take());
    let status = agent.drained("readings", 3_000).await;
    let lost =
        status.0.pointer("/store/damage/lost/readings").and_then(serde_json::Value::as_u64).unwrap_or(0);
    assert!(lost > 0, "nothing was lost: {:#}", status.0);
    assert_eq!(
        (status.ledger("readings", "shed"), status.ledger("readings", "delivered")),
        (lost, 3_000 - lost)
    );
    let gaps = cloud.gaps("readings");
    assert!(gaps.iter().all(|gap| gap.reason == "lost:damage"), "{gaps:?}");
    assert_eq!(gaps.iter().map(|gap| gap.last - gap.first + 1).sum::<u64>(), lost);
    assert_eq!(cloud.count("readings") as u64, 3_000 - lost);
    assert!(!errors(&agent.log()).is_empty());
}
