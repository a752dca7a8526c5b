//! The demo's end: do the sensors, the agent's books and the receiver's files say the same?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::agent::SERIAL;
use super::sensors::Tally;
use crate::store::Books;
use crate::stream::Stream;

/// What the receiver's files hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Lines in each stream's file.
    pub(super) lines: BTreeMap<&'static str, u64>,
    /// By device, the messages whose readings are there.
    pub(super) messages: HashMap<String, HashSet<u64>>,
    /// Readings whose message was there before.
    pub(super) twice: u64,
    /// Missing numbers that nobody explained.
    pub(super) unexplained: u64,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    device: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    fields: &'a RawValue,
}

#[derive(Deserialize)]
struct Numbered {
    n: u64,
}

#[derive(Deserialize)]
struct GapLine {
    first: u64,
    last: u64,
    reason: String,
}

impl Received {
    /// Counts what is in `folder`, the agent's folder at the receiver. Readings that have no number were published by
    /// somebody else, who was invited to.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        let mut received = Self::default();
        for stream in Stream::ALL {
            let mut lines = 0;
            each_line(&folder.join(format!("{stream}.ndjson")), |line| {
                lines += 1;
                if stream == Stream::Readings {
                    let Line { device, fields } = serde_json::from_str(line)?;
                    let Ok(Numbered { n }) = serde_json::from_str(fields.get()) else { return Ok(()) };
                    if !received.messages.entry(device.into_owned()).or_default().insert(n) {
                        received.twice += 1;
                    }
                }
                Ok(())
            })?;
            received.lines.insert(stream.name(), lines);
        }
        each_line(&folder.join("gaps.ndjson"), |line| {
            let gap: GapLine = serde_json::from_str(line)?;
            if gap.reason == "unexplained" {
                received.unexplained += gap.last - gap.first + 1;
            }
            Ok(())
        })?;
        Ok(received)
    }
}

fn each_line(path: &Path, mut each: impl FnMut(&str) -> serde_json::Result<()>) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for line in BufReader::new(file).lines() {
        each(&line?)?;
    }
    Ok(())
}

/// The final word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The ledger, a line for each stream and sink.
    pub(super) table: String,
    /// What is off; empty if the books balance.
    pub(super) faults: Vec<String>,
}

/// Compares the three.
pub(super) fn judge(sensors: &[(String, Tally)], books: &Books, received: &Received) -> Verdict {
    let mut faults = Vec::new();
    let mut table = format!(
        "{:<22}{:>10}  ={:>10}  +{:>9}  +{:>6}  +{:>6}{:>12}\n",
        "", "appended", "delivered", "pending", "dead", "shed", "received"
    );
    for (sink, sink_books) in &books.sinks {
        for (stream, ledger) in &sink_books.streams {
            let next = books.stream(*stream).next;
            let (appended, pending) = (next.0 - 1, ledger.pending(next));
            let (delivered, dead, shed) = (ledger.delivered, ledger.dead_lettered, ledger.shed);
            let lines = received.lines.get(stream.name()).copied().unwrap_or(0);
            let name = format!("{sink} {stream}");
            table.push_str(&format!(
                "{name:<22}{appended:>10}  ={delivered:>10}  +{pending:>9}  +{dead:>6}  +{shed:>6}{lines:>12}\n"
            ));
            if appended != delivered + pending + dead + shed {
                faults.push(format!("{name}: appended is not delivered + pending + dead + shed"));
            }
            if !(delivered..=delivered + pending).contains(&lines) {
                faults.push(format!("{name}: {delivered} delivered, but {lines} in the receiver's file"));
            }
            if *stream == Stream::Readings && pending > 0 {
                faults.push(format!("{name}: {pending} still to be delivered"));
            }
            if dead + shed > 0 {
                faults.push(format!("{name}: {} were given up", dead + shed));
            }
        }
    }
    judge_sensors(sensors, received, &mut faults);
    for (name, node) in books.nodes.of(SERIAL) {
        let missed = node.missed.total();
        if missed > 0 {
            faults.push(format!("{name}: {missed} samples were given up before they arrived"));
        }
    }
    if received.unexplained > 0 {
        faults.push(format!("{} numbers are missing at the receiver, unexplained", received.unexplained));
    }
    Verdict { table, faults }
}

/// Every acknowledged message is in the receiver's file, once; a message without an ack may be there or not.
fn judge_sensors(sensors: &[(String, Tally)], received: &Received, faults: &mut Vec<String>) {
    let none = HashSet::new();
    for (name, tally) in sensors {
        let there = received.messages.get(name).unwrap_or(&none);
        let arrived = u64::try_from(there.len()).unwrap_or(u64::MAX);
        if !(tally.acked..=tally.published).contains(&arrived) {
            faults.push(format!("{name}: {} acknowledged, but {arrived} received", tally.acked));
        }
        if tally.acked < tally.published {
            faults.push(format!("{name}: {} never acknowledged", tally.published - tally.acked));
        }
        if let Some(stray) = there.iter().find(|number| !(1..=tally.published).contains(*number)) {
            faults.push(format!("{name}: message {stray} was received but never sent"));
        }
    }
    if received.twice > 0 {
        faults.push(format!("{} readings were received twice", received.twice));
    }
}
