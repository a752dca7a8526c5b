//! Devices that write lines of text: each form of payload, and what becomes of lines that cannot be read.

use harness::{Agent, Cloud, DEADLINE, Socket};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::source;
use crate::{BATCH, HOLDFAST, STORE};

/// Sources by name: how their lines are read, what is written to their ports, and what the good lines say.
fn forms() -> [(&'static str, &'static str, &'static [u8], [Value; 2]); 4] {
    [
        (
            "json",
            "time = \"/ts\"",
            b"{\"ts\":1795147200,\"t\":21.5}\r\n{\"ts\":\r\n{\"ts\":1795147201,\"t\":22,\"ok\":true}\n",
            [json!({ "t": 21.5 }), json!({ "t": 22, "ok": true })],
        ),
        (
            "csv",
            "payload = \"csv\"\ncolumns = [\"t\", \"\", \"mode\"]\ndelimiter = \";\"",
            b"21.5;x;auto\nwrong\n22;x;off\n",
            [json!({ "t": 21.5, "mode": "auto" }), json!({ "t": 22, "mode": "off" })],
        ),
        (
            "value",
            "payload = \"value\"",
            b"21.5\n21\xff5\n22\n",
            [json!({ "value": 21.5 }), json!({ "value": 22 })],
        ),
        (
            "regex",
            "payload = \"regex\"\npattern = 'T=(?<t>[-0-9.]+) H=(?<h>[0-9]+)'",
            b"T=21.5 H=40\nT=?? H=40\nT=22 H=41\n",
            [json!({ "t": 21.5, "h": 40 }), json!({ "t": 22, "h": 41 })],
        ),
    ]
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_form_of_line_becomes_readings_and_a_wrong_one_a_dead_letter() {
    let cloud = Cloud::start().await;
    let mut lines: Vec<_> = forms().into_iter().map(|form| (form, Socket::empty())).collect();
    let mut config = STORE.to_owned();
    for ((name, how, _, _), socket) in &lines {
        let device = if *name == "value" { "device = \"scale\"\n" } else { "" };
        config += &source(name, &socket.path(), &format!("protocol = \"lines\"\n{device}{how}"));
    }
    let mut agent = Agent::started(HOLDFAST, &format!("{config}{}", cloud.sink(BATCH))).await;
    let mut plugged = Vec::new();
    for ((_, _, written, _), socket) in &mut lines {
        let mut pty = socket.plug_in();
        pty.write(written).unwrap();
        plugged.push(pty);
    }
    let all = |status: &harness::books::Status| {
        ["json", "csv", "value", "regex"].iter().all(|name| status.source(name, "received") == 3)
    };
    agent.wait_for("three lines of each", all).await;
    agent.drained("readings", 8).await;
    // What was read is durable, though nobody was waiting for that.
    agent.kill();
    agent.start().await;
    let status = agent.status().await;
    status.assert_balanced();
    let records = cloud.records("readings");
    for ((name, _, _, expected), _) in &lines {
        let of_source: Vec<_> = records.iter().filter(|record| record["source"] == *name).collect();
        let fields: Vec<_> = of_source.iter().map(|record| record["fields"].clone()).collect();
        assert_eq!(fields, expected, "{name}");
        let device = if *name == "value" { "scale" } else { name };
        assert!(of_source.iter().all(|record| record["device"] == device), "{of_source:?}");
        let counts = ["stored", "rejected", "unprotected"].map(|count| status.source(name, count));
        assert_eq!(counts, [2, 1, 3], "{name}");
    }
    assert_eq!(
        records.iter().find(|record| record["source"] == "json").unwrap()["time"],
        "2026-11-20T04:00:00.000000Z"
    );

    let listed = text(&agent.command(&["dead-letters", "list", "--json"]).await.stdout);
    let letters: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(letters.len(), 4);
    for letter in letters {
        let shown = agent.command(&["dead-letters", "show", &letter["id"].to_string()]).await;
        let known = text(&shown.stderr);
        let place = |((name, _, _, _), socket): &((&str, _, _, _), Socket)| {
            known.contains(&format!("source {name} {}", socket.path().display()))
        };
        let ((_, _, written, _), _) =
            lines.iter().find(|line| place(line)).unwrap_or_else(|| panic!("{known}"));
        let wrong = written.split(|byte| *byte == b'\n').nth(1).unwrap();
        assert_eq!(shown.stdout, wrong.trim_ascii_end(), "{known}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_were_misread_arrive_when_the_configuration_is_mended() {
    let (mut socket, cloud) = (Socket::empty(), Cloud::start().await);
    let config = |delimiter: &str| {
        let how = format!(
            "protocol = \"lines\"\npayload = \"csv\"\ncolumns = [\"n\", \"t\"]\ndelimiter = \"{delimiter}\""
        );
        format!("{STORE}{}{}", source("scale", &socket.path(), &how), cloud.sink(BATCH))
    };
    let (mistaken, mended) = (config(","), config(";"));
    let mut agent = Agent::started(HOLDFAST, &mistaken).await;
    let mut pty = socket.plug_in();
    pty.write(b"1;20.5\n2;21\n3;21.5\n").unwrap();
    agent.wait_for("three dead letters", |now| now.number("/dead_letters/kept") == 3).await;
    let replayed = agent.command(&["dead-letters", "replay"]).await;
    assert_eq!(text(&replayed.stdout), "0 dead letters replayed\n3 stayed: it still cannot be decoded\n");
    agent.configure(&mended);
    agent.signal(Signal::HUP);
    agent.reloaded(1).await;
    let replayed = agent.command(&["dead-letters", "replay"]).await;
    assert_eq!(text(&replayed.stdout), "3 dead letters replayed\n");
    agent.kill();
    agent.start().await;
    pty.write(b"4;22\n").unwrap();
    agent.drained("readings", 4).await;
    assert_eq!(super::numbers(&cloud), [1, 2, 3, 4]);
    assert!(cloud.records("readings").iter().all(|record| record["device"] == "scale"));
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_the_store_has_no_room_for_wait_in_the_port() {
    let (mut socket, cloud) = (Socket::empty(), Cloud::start().await);
    cloud.script(|_| harness::cloud::Answer::refuse(503, ""));
    let store = "[store]\ncommit_interval = \"50ms\"\nmax_size = \"64KiB\"\nwhen_full = \"block\"\n";
    let how = "protocol = \"lines\"\npayload = \"csv\"\ncolumns = [\"n\", \"note\"]\nmax_rate = 1000000";
    let press = source("press", &socket.path(), how);
    let agent = Agent::started(HOLDFAST, &format!("{store}{press}{}", cloud.sink(BATCH))).await;
    let mut pty = socket.plug_in();
    let until = 20_000;
    let writing = tokio::spawn(async move {
        for n in 1..=until {
            // Notes that hardly shrink, so that the store is soon full.
            let note: String = (0..200).map(|_| fastrand::alphanumeric()).collect();
            let line = format!("{n},{note}\n");
            let mut rest = line.as_bytes();
            while !rest.is_empty() {
                match pty.write_some(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                }
            }
        }
        pty
    });
    // The queue in memory is full, too.
    harness::wait_for("the line to be held back", DEADLINE, async || {
        agent.log().contains("held back: ").then_some(())
    })
    .await;
    super::is_in(&agent, "press", "blocked").await;
    agent.status().await.assert_balanced();
    assert!(!writing.is_finished(), "nothing more is read");
    cloud.script(|_| harness::cloud::Answer::take());
    let _pty = tokio::time::timeout(DEADLINE, writing).await.unwrap().unwrap();
    agent.drained("readings", until).await;
    assert_eq!(super::numbers(&cloud), Vec::from_iter(1..=until));
    super::is_in(&agent, "press", "connected").await;
    let log = agent.log();
    assert_eq!(
        (log.matches("held back: ").count(), log.matches("no longer held back").count()),
        (1, 1),
        "{log}"
    );
}
