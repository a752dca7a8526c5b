//! Numbers begin anew when they must, and the first batch of an epoch says where the one before ended.

use std::path::Path;

use harness::cloud::Answer;
use harness::{Cloud, Journal, Sensor};
use serde_json::json;

use crate::{BATCH, STORE, listener};

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_agent_begins_a_new_epoch_at_one() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=100).await;
    let epoch = agent.drained("readings", 100).await.text("/epoch").to_owned();
    cloud.script(|_| Answer::refuse(503, ""));
    sensor.publish(101..=150).await;
    agent.kill();
    agent.configure_as("gw-renamed", &format!("{STORE}{}{}", listener(port), cloud.sink(BATCH)));
    agent.start().await;
    cloud.script(|_| Answer::take());
    sensor.publish(151..=200).await;
    cloud.has("readings", 200).await;
    let status = agent.wait_for("an empty backlog", |status| status.ledger("readings", "pending") == 0).await;
    status.assert_balanced();
    assert_ne!(status.text("/epoch"), epoch);

    let requests = cloud.requests();
    let first = requests.iter().find(|request| request.batch["epoch"] != epoch.as_str()).unwrap();
    assert_eq!((&first.batch["agent"], first.first()), (&json!("gw-renamed"), 1));
    assert_eq!(first.batch["previous"]["epoch"], epoch.as_str());
    assert!(first.batch["previous"]["next"].as_u64() >= Some(101), "{}", first.batch["previous"]);
    journal.assert_exactly_once(&cloud);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_image_is_noticed_at_a_receiver_that_knows_more() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    let mut agent = crate::listening(port, &cloud).await;
    let mut sensor = Sensor::new("d1", port, &journal);
    sensor.publish(1..=50).await;
    agent.drained("readings", 50).await;
    assert!(agent.stop().await.success());
    copy(&agent.file("data"), &agent.file("image"));
    agent.start().await;
    sensor.publish(51..=100).await;
    let epoch = agent.drained("readings", 100).await.text("/epoch").to_owned();
    assert!(agent.stop().await.success());

    // A week later somebody puts the old image back.
    std::fs::remove_dir_all(agent.file("data")).unwrap();
    copy(&agent.file("image"), &agent.file("data"));
    agent.start().await;
    sensor.publish(101..=120).await;
    cloud.has("readings", 120).await;
    let status = agent.wait_for("an empty backlog", |status| status.ledger("readings", "pending") == 0).await;
    status.assert_balanced();
    assert_ne!(status.text("/epoch"), epoch);
    // One batch of the old epoch came with other records, which is what gave the image away; none of them was taken.
    journal.assert_exactly_once(&cloud);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
