//! Dead letters in people's hands: shown byte for byte, replayed exactly once, purged; by the running agent and without it.

use std::process::Output;

use harness::books::Status;
use harness::cloud::{Answer, Gap};
use harness::{Agent, Cloud, DEADLINE, Journal, Sensor};
use rustix::process::Signal;
use serde_json::Value;

use crate::{BATCH, HOLDFAST, STORE, listener};

/// Who does what the commands ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The running agent, over its socket.
    Agent,
    /// The command itself, on a store that no agent has open.
    Command,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `holdfast dead-letters`, which must end with `code`; without the agent if so wanted.
async fn letters(agent: &mut Agent, by: By, arguments: &[&str], code: i32) -> Output {
    if by == By::Command {
        assert!(agent.stop().await.success());
    }
    let output = agent.command(&[&["dead-letters"], arguments].concat()).await;
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{by:?} {arguments:?}: {said}");
    if by == By::Command {
        agent.start().await;
    }
    output
}

/// Writes another configuration and puts it in force.
async fn reload(agent: &Agent, config: &str) {
    let starts = || agent.log().matches("agent started").count();
    let before = starts();
    agent.configure(config);
    agent.signal(Signal::HUP);
    harness::wait_for("the reload", DEADLINE, async || (starts() > before).then_some(())).await;
}

/// A listener that looks for the time where there is none.
fn mistaken(port: u16) -> String {
    listener(port).replace("/ts", "/nowhere")
}

fn numbers(cloud: &Cloud) -> Vec<u64> {
    cloud.records("readings").iter().map(|record| record["fields"]["n"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_decoded_arrives_once_when_the_configuration_is_mended() {
    for by in [By::Agent, By::Command] {
        let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
        let config = |listener: String| format!("{STORE}{listener}{}", cloud.sink(BATCH));
        let mut agent = Agent::started(HOLDFAST, &config(mistaken(port))).await;
        let mut sensor = Sensor::new("d1", port, &journal);
        sensor.publish(1..=5).await;
        let before = agent.wait_for("five dead letters", |now| now.number("/dead_letters/kept") == 5).await;
        assert_eq!(before.source("direct", "rejected"), 5);

        // Nothing has been mended yet: all stay, which is a failure only of those that were named.
        let output = letters(&mut agent, by, &["replay"], 0).await;
        assert_eq!(text(&output.stdout), "0 dead letters replayed\n5 stayed: it still cannot be decoded\n");
        let output = letters(&mut agent, by, &["replay", "2", "77"], 1).await;
        let said = text(&output.stdout);
        assert!(said.contains("77 not replayed: there is no dead letter of this id"), "{said}");
        assert!(said.contains("2 not replayed: it still cannot be decoded: there is no time at"), "{said}");

        reload(&agent, &config(listener(port))).await;
        let output = letters(&mut agent, by, &["replay", "2"], 0).await;
        assert_eq!(text(&output.stdout), "1 dead letter replayed\n");
        let output = letters(&mut agent, by, &["replay"], 0).await;
        assert_eq!(text(&output.stdout), "4 dead letters replayed\n");
        // The power goes the moment after.
        agent.kill();
        agent.start().await;
        sensor.publish(6..=7).await;
        let after = agent.drained("readings", 7).await;
        assert_eq!(numbers(&cloud), [2, 1, 3, 4, 5, 6, 7]);
        for record in cloud.records("readings") {
            let n = record["fields"]["n"].as_u64().unwrap();
            let time = format!("2026-11-20T04:00:{n:02}.000000Z");
            assert_eq!(record["time"], time, "{record}");
            assert!(record["received"].as_str().unwrap() >= "2026-11-20T00:00", "{record}");
            assert!(record.get("replay_of").is_none(), "it never had a number: {record}");
        }
        assert_eq!((after.source("direct", "rejected"), after.source("direct", "stored")), (5, 2));
        assert_eq!((after.number("/dead_letters/kept"), after.number("/dead_letters/replayed")), (0, 5));
        let output = letters(&mut agent, by, &["replay"], 0).await;
        assert_eq!(text(&output.stdout), "0 dead letters replayed\n");
        journal.assert_exactly_once(&cloud);
        cloud.assert_well_formed();
    }
}

/// The ledger that a sink has of the readings.
fn ledger(status: &Status, sink: &str) -> [u64; 4] {
    ["delivered", "pending", "dead_lettered", "shed"]
        .map(|count| status.number(&format!("/sinks/{sink}/streams/readings/{count}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_of_two_sinks_refused_goes_to_that_one_alone() {
    for by in [By::Agent, By::Command] {
        let (cloud, other) = (Cloud::start().await, Cloud::start().await);
        let (journal, port) = (Journal::default(), harness::free_port());
        cloud.script(|request| {
            let has_three = request.records().iter().any(|record| record["fields"]["n"] == 3);
            if has_three { Answer::refuse(422, "no such unit") } else { Answer::take() }
        });
        let sinks =
            format!("{}{}", cloud.sink(BATCH), other.sink(BATCH).replace("sinks.cloud", "sinks.other"));
        let window = "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"200ms\"\n";
        let mut agent = Agent::started(HOLDFAST, &format!("{STORE}{}{window}{sinks}", listener(port))).await;
        Sensor::new("d1", port, &journal).publish(1..=10).await;
        let settled = |status: &Status| {
            ledger(status, "cloud") == [9, 0, 1, 0] && ledger(status, "other") == [10, 0, 0, 0]
        };
        let before = agent.wait_for("ten readings at both", settled).await;
        before.assert_balanced();
        let windows = agent.wait_for("two windows", |status| status.appended("windows") == 2).await;
        let epoch = before.text("/epoch").to_owned();

        // The cloud has learned the unit.
        cloud.script(|_| Answer::take());
        let output = letters(&mut agent, by, &["replay"], 0).await;
        assert_eq!(text(&output.stdout), "1 dead letter replayed\n");
        agent.kill();
        agent.start().await;
        let settled = |status: &Status| {
            ledger(status, "cloud") == [10, 0, 1, 0] && ledger(status, "other") == [11, 0, 0, 0]
        };
        let after = agent.wait_for("the record at the one that lacked it", settled).await;
        after.assert_balanced();
        journal.assert_exactly_once(&cloud);
        journal.assert_exactly_once(&other);
        let find = |cloud: &Cloud| -> Value {
            let found = cloud.records("readings").into_iter().find(|record| record["fields"]["n"] == 3);
            found.unwrap()
        };
        let (mut replayed, mut original) = (find(&cloud), find(&other));
        assert_eq!((&replayed["seq"], &original["seq"]), (&Value::from(11), &Value::from(3)));
        assert_eq!(replayed["replay_of"], serde_json::json!({ "epoch": epoch, "seq": 3 }));
        for record in [&mut replayed, &mut original] {
            let record = record.as_object_mut().unwrap();
            record.remove("seq");
            record.remove("replay_of");
        }
        assert_eq!(replayed, original, "everything else is as it was, the times too");
        let gap = Gap { first: 11, last: 11, reason: "replay".to_owned() };
        harness::wait_for("the gap to be declared", DEADLINE, async || {
            (other.gaps("readings") == [gap.clone()]).then_some(())
        })
        .await;
        assert_eq!(after.appended("windows"), windows.appended("windows"), "no window has seen it");
        cloud.assert_well_formed();
        other.assert_well_formed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_result_that_was_refused_is_replayed_and_not_emitted_again() {
    let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
    cloud.script(|request| {
        let is_refused = request.records().iter().any(|record| record["field"] == "temperature");
        if is_refused { Answer::refuse(400, "no such field") } else { Answer::take() }
    });
    let window = "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"200ms\"\n";
    let config = format!("{STORE}{}{window}{}", listener(port), cloud.sink(BATCH));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    Sensor::new("d1", port, &journal).publish(1..=10).await;
    let one_refused = |status: &Status| {
        status.ledger("windows", "dead_lettered") == 1 && status.ledger("windows", "delivered") == 1
    };
    agent.wait_for("a refused result", one_refused).await;
    cloud.script(|_| Answer::take());
    let output = letters(&mut agent, By::Agent, &["replay"], 0).await;
    assert_eq!(text(&output.stdout), "1 dead letter replayed\n");
    // The windows begin at their checkpoint: what they find in the log behind it includes the replayed one.
    agent.kill();
    agent.start().await;
    let status = agent.drained("windows", 3).await;
    assert_eq!((status.appended("windows"), status.ledger("windows", "delivered")), (3, 2));
    let records = cloud.records("windows");
    let replayed: Vec<&Value> = records.iter().filter(|record| record["field"] == "temperature").collect();
    assert_eq!(replayed.len(), 1);
    assert_eq!(replayed[0]["replay_of"]["epoch"], status.text("/epoch"));
    assert_eq!(replayed[0]["aggregates"]["count"], 10);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_is_shown_and_what_is_purged_is_gone() {
    for by in [By::Agent, By::Command] {
        let (cloud, journal, port) = (Cloud::start().await, Journal::default(), harness::free_port());
        let config =
            format!("{STORE}[dead_letters]\nmax_payload = \"64B\"\n{}{}", listener(port), cloud.sink(BATCH));
        let mut agent = Agent::started(HOLDFAST, &config).await;
        let payload = b"\x00\xff\x1b[2J not JSON\r\n".to_vec();
        let long = "y".repeat(100).into_bytes();
        let payloads = [(1, payload.clone()), (2, long), (3, b"{".to_vec()), (4, b"}".to_vec())];
        Sensor::new("d1", port, &journal).publish_payloads(payloads).await;
        agent.wait_for("four dead letters", |now| now.number("/dead_letters/kept") == 4).await;

        let output = letters(&mut agent, by, &["show", "1"], 0).await;
        assert_eq!(output.stdout, payload);
        let known = text(&output.stderr);
        assert!(
            known.contains("source direct sensors/d1/telemetry") && known.contains("not UTF-8"),
            "{known}"
        );
        let output = letters(&mut agent, by, &["show", "--raw", "2"], 0).await;
        assert_eq!(output.stdout, [b'y'; 64]);
        let known = text(&output.stderr);
        assert!(known.contains("100 bytes, of which the first 64 are kept"), "{known}");
        let output = letters(&mut agent, by, &["show", "9"], 1).await;
        assert!(text(&output.stderr).contains("there is no dead letter 9"));
        let output = letters(&mut agent, by, &["replay", "2"], 1).await;
        assert!(text(&output.stdout).contains("2 not replayed: it was kept cut"));

        let json = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();
        let shown = letters(&mut agent, by, &["show", "--json", "1"], 0).await;
        assert!(shown.stderr.is_empty() && json(&shown)["source"] == "direct");
        assert_eq!(json(&shown)["payload_hex"], "00ff1b5b324a206e6f74204a534f4e0d0a");
        let shown = letters(&mut agent, by, &["show", "--json", "3"], 0).await;
        assert_eq!((&json(&shown)["payload"], &json(&shown)["kept_bytes"]), (&"{".into(), &1.into()));
        let output = letters(&mut agent, by, &["replay", "--json", "2"], 1).await;
        assert_eq!((&json(&output)["replayed"], &json(&output)["stayed"][0]["id"]), (&0.into(), &2.into()));

        let output = letters(&mut agent, by, &["purge", "2", "3"], 0).await;
        assert_eq!(text(&output.stdout), "2 dead letters purged\n");
        let output = letters(&mut agent, by, &["purge", "3"], 1).await;
        assert!(text(&output.stdout).starts_with("0 dead letters purged\n"));
        let output = letters(&mut agent, by, &["purge", "--json", "3", "1"], 1).await;
        assert_eq!(text(&output.stdout), "{\"purged\":1,\"not_there\":1}\n");
        let output = letters(&mut agent, by, &["purge"], 0).await;
        assert_eq!(text(&output.stdout), "1 dead letter purged\n");
        let output = letters(&mut agent, by, &["list"], 0).await;
        assert_eq!(text(&output.stdout), "no dead letters\n");
        agent.kill();
        agent.start().await;
        let status = agent.status().await;
        assert_eq!(
            (status.number("/dead_letters/kept"), status.number("/dead_letters/purged_by_hand")),
            (0, 4)
        );
        assert_eq!((status.number("/dead_letters/bytes"), status.number("/dead_letters/purged")), (0, 0));
        assert!(!agent.log().contains("yyyy"), "no payload in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_there_is_nothing_to_show_and_none_is_made() {
    let agent = Agent::new(HOLDFAST, STORE);
    for arguments in [&["list"][..], &["show", "1"], &["replay"], &["purge"]] {
        let output = agent.command(&[&["dead-letters"], arguments].concat()).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
    assert!(!agent.file("data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_no_further_has_what_he_wants_and_who_cannot_be_told_is_a_failure() {
    let (journal, port) = (Journal::default(), harness::free_port());
    let mut agent = Agent::started(HOLDFAST, &format!("{STORE}{}", listener(port))).await;
    Sensor::new("d1", port, &journal).publish_payloads([(1, b"{".to_vec())]).await;
    agent.wait_for("a dead letter", |now| now.number("/dead_letters/kept") == 1).await;
    let all: [&[&str]; 7] = [
        &["check"],
        &["status", "--json"],
        &["dead-letters", "list"],
        &["dead-letters", "list", "--json"],
        &["dead-letters", "show", "--json", "1"],
        &["dead-letters", "show", "--raw", "1"],
        &["dead-letters", "replay"],
    ];
    for by in [By::Agent, By::Command] {
        if by == By::Command {
            assert!(agent.stop().await.success());
        }
        for arguments in all.iter().filter(|arguments| by == By::Agent || arguments[0] != "status") {
            let run = |out: std::process::Stdio| {
                let mut command = std::process::Command::new(HOLDFAST);
                command.args(*arguments).arg("--config").arg(agent.config()).stdout(out).output().unwrap()
            };
            let (reader, nobody) = std::io::pipe().unwrap();
            drop(reader);
            let output = run(nobody.into());
            let said = text(&output.stderr);
            assert!(output.status.success() && !said.contains("pipe"), "{by:?} {arguments:?}: {said}");

            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let output = run(full.into());
            let said = text(&output.stderr);
            let is_told = said.contains("holdfast: cannot write the results to standard output: ");
            assert!(output.status.code() == Some(1) && is_told, "{by:?} {arguments:?}: {said}");
        }
    }
}
