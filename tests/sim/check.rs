//! The verdict on a run: what was acknowledged to the sensors against what the receivers have, when all trouble is over and
//! all is drained.

use std::collections::{BTreeMap, BTreeSet};

use holdfast::store::Books;
use holdfast::store::ledger::Presence;
use holdfast::stream::Stream;
use serde_json::Value;

use crate::cloud::Cloud;
use crate::plan::Limit;
use crate::windows;
use crate::world::{Kind, State};

/// What a run came to, to see that runs are worth their time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) acked: u64,
    pub(crate) windows: u64,
    pub(crate) boots: u64,
    pub(crate) requests: u64,
}

/// Fails with the first promise that is broken.
pub(crate) fn verdict(state: &State, books: &Books) -> Result<Summary, String> {
    if let Some(violation) = &state.violation {
        return Err(violation.clone());
    }
    let mut summary = Summary { boots: state.boot, ..Summary::default() };
    for (name, cloud) in &state.clouds {
        summary.requests += cloud.requests;
        let fault = |fault: String| format!("{name}: {fault}");
        readings(state, name, cloud).map_err(fault)?;
        gaps(state, name, cloud).map_err(fault)?;
        summary.windows += windows::check(state, name, cloud).map_err(fault)?;
        balance(cloud, name, books).map_err(fault)?;
    }
    for (source, counts) in &books.sources {
        let settled = counts.stored + counts.rejected + counts.redelivered + counts.skipped;
        if counts.received != settled {
            return Err(format!("{source}: {counts:?} does not add up"));
        }
    }
    summary.acked = state.messages.iter().filter(|message| message.is_acked).count() as u64;
    Ok(summary)
}

/// Everything acknowledged is there once, nothing twice, nothing that was not said, in order.
fn readings(state: &State, name: &str, cloud: &Cloud) -> Result<(), String> {
    let mut found: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut latest: BTreeMap<usize, usize> = BTreeMap::new();
    for record in cloud.records("readings") {
        let (id, k) = identity(record)?;
        let said = state.messages.get(id).filter(|said| said.kind == Kind::Good);
        let Some((said, (time, value))) = said.and_then(|said| Some((said, said.readings.get(k)?))) else {
            return Err(format!("nobody ever said {record}"));
        };
        if !found.insert((id, k)) {
            return Err(format!("it has reading {k} of message {id} twice: {record}"));
        }
        let is_value = record["fields"]["v"].as_f64() == Some(*value);
        let shown = [&record["time"], &record["original_time"]];
        let is_time = time.is_none_or(|time| {
            let text = holdfast::reading::Timestamp(time).to_string();
            shown.iter().any(|shown| shown.as_str() == Some(&text))
        });
        if !is_value || !is_time || record["device"] != said.device.as_str() {
            return Err(format!("{record} is not what was said: {said:?}"));
        }
        let order = said.order.unwrap_or_default() * 100 + k;
        if latest.insert(said.peer, order).is_some_and(|before| before >= order) {
            return Err(format!("message {id} of peer {} comes before an earlier one", said.peer));
        }
    }
    if state.plan.may_shed_for(name) || cloud.was_away {
        return Ok(());
    }
    let refused: BTreeSet<(usize, usize)> =
        cloud.refused.values().filter_map(|record| identity(record).ok()).collect();
    for (id, said) in state.messages.iter().enumerate().filter(|(_, said)| said.is_acked) {
        for k in 0..said.readings.len() {
            if !found.contains(&(id, k)) && !refused.contains(&(id, k)) {
                let last = cloud.lines.iter().map(|(line, books)| (&line.1, books.next)).collect::<Vec<_>>();
                return Err(format!(
                    "message {id} was acknowledged and is not there: {said:?}; it has {last:?}"
                ));
            }
        }
    }
    Ok(())
}

fn identity(record: &Value) -> Result<(usize, usize), String> {
    let number = |name: &str| record["fields"][name].as_u64().and_then(|number| usize::try_from(number).ok());
    number("id").zip(number("k")).ok_or_else(|| format!("nobody ever said {record}"))
}

/// Nothing is missing without a reason that this run allows.
fn gaps(state: &State, name: &str, cloud: &Cloud) -> Result<(), String> {
    for reason in cloud.reasons() {
        let is_allowed = match reason {
            "shed:size" => state.plan.may_shed_for(name) && !matches!(state.plan.limit, Limit::Age(_)),
            "shed:age" => matches!(state.plan.limit, Limit::Age(_)),
            "dead-letter" => !cloud.refused.is_empty(),
            "before-sink" | "removed" => cloud.was_away,
            "replay" => cloud.epochs.len() > 1 || cloud.was_away,
            _ => false,
        };
        if !is_allowed {
            return Err(format!("numbers are missing because of {reason}, for which there was no reason"));
        }
    }
    if cloud.epochs.len() > 1 || cloud.was_away {
        return Ok(());
    }
    for ((epoch, stream), line) in &cloud.lines {
        for (first, last, _) in line.gaps.iter().filter(|(.., reason)| reason == "dead-letter") {
            let unrefused = (*first..=*last)
                .find(|seq| !cloud.refused.contains_key(&(epoch.clone(), stream.clone(), *seq)));
            if let Some(seq) = unrefused {
                return Err(format!("{stream} {seq} is said to be a dead letter and was never refused"));
            }
        }
    }
    Ok(())
}

/// The agent's books say what the receiver has.
fn balance(cloud: &Cloud, name: &str, books: &Books) -> Result<(), String> {
    let Some(sink) = books.sinks.get(name) else { return Ok(()) };
    for (stream, ledger) in &sink.streams {
        let of_stream = books.stream(*stream);
        let pending = ledger.pending(of_stream.next);
        let settled = ledger.delivered + ledger.dead_lettered + ledger.shed;
        if of_stream.appended() != settled + pending {
            return Err(format!("the books of {stream} do not balance: {ledger:?} of {of_stream:?}"));
        }
        if sink.presence == Presence::Removed || *stream == Stream::Alerts {
            continue;
        }
        if pending != 0 {
            return Err(format!("{pending} of {stream} are pending at the end"));
        }
        let Some(line) = cloud.lines.get(&(books.epoch.to_string(), stream.to_string())) else {
            if of_stream.appended() == 0 {
                continue;
            }
            return Err(format!("{} of {stream} were appended, and it has none", of_stream.appended()));
        };
        let count = |reasons: &[&str]| -> u64 {
            let counted = line.gaps.iter().filter(|(.., reason)| reasons.contains(&reason.as_str()));
            counted.map(|(first, last, _)| last - first + 1).sum()
        };
        let had = line.begins - 1;
        let delivered = line.records.len() as u64 + had + count(&["replay"]);
        let dead_lettered = count(&["dead-letter"]);
        let shed = count(&["shed:size", "shed:age", "before-sink", "removed"]);
        let theirs = (line.next - 1, delivered, dead_lettered, shed);
        let ours = (of_stream.appended(), ledger.delivered, ledger.dead_lettered, ledger.shed);
        // What it had taken without our knowing, and was given up while it was away, both count. And of what it had of the epoch before,
        // some may have been gaps.
        let is_sum_right = theirs.1 + theirs.2 + theirs.3 == ours.1 + ours.2 + ours.3;
        let is_sum_enough = cloud.was_away || line.begins > 1;
        if theirs != ours && !(is_sum_enough && theirs.0 == ours.0 && is_sum_right) {
            return Err(format!(
                "the books of {stream} say {ours:?}, the receiver {theirs:?} (appended, delivered, dead, shed)"
            ));
        }
    }
    Ok(())
}
