//! Serial lines behind real ptys: nodes, lines of text, and whatever may be wrong with a port.

mod firmware;
mod lines;
mod nodes;
mod states;

use std::path::Path;

use harness::books::Status;
use harness::{Agent, Cloud};
use serde_json::Value;

/// A source at the port `path`, with these further keys.
fn source(name: &str, path: &Path, lines: &str) -> String {
    format!("[sources.{name}]\ntype = \"serial\"\npath = \"{}\"\n{lines}\n", path.display())
}

/// The values of the field `n` of all readings that the cloud took, in its order.
fn numbers(cloud: &Cloud) -> Vec<u64> {
    cloud.records("readings").iter().map(number).collect()
}

fn number(record: &Value) -> u64 {
    record["fields"]["n"].as_u64().unwrap_or_else(|| panic!("no n in {record}"))
}

/// Fails unless these numbers rise: none comes twice, none too late.
fn assert_rising(numbers: &[u64]) {
    let fall = numbers.windows(2).find(|pair| pair[0] >= pair[1]);
    assert_eq!(fall, None, "twice, or out of order");
}

/// Waits until the source is in this state, and everybody is told so.
async fn is_in(agent: &Agent, name: &str, state: &str) -> Status {
    let status =
        agent.wait_for(&format!("{name} to be {state}"), |status| status.source_state(name) == state).await;
    let shown = agent.command(&["status", "--json"]).await;
    let shown = Status(serde_json::from_slice(&shown.stdout).unwrap());
    assert_eq!(shown.source_state(name), state);
    let metrics = agent.get("/metrics").await.text();
    let line = format!("holdfast_source_state{{source=\"{name}\",state=\"{state}\"}} 1");
    assert!(metrics.contains(&line), "no {line} in\n{metrics}");
    status
}

/// How often the log says that this source fell into that state, and that it came out of it.
fn told(agent: &Agent, name: &str, state: &str) -> [usize; 2] {
    let (log, source) = (agent.log(), format!("source={name} "));
    let count = |what: String| {
        log.lines().filter(|line| format!("{line} ").contains(&source) && line.contains(&what)).count()
    };
    [count(format!(" state=\"{state}\"")), count(format!(" after=\"{state}\""))]
}
