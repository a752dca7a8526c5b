//! A cloud that does what clouds do: takes a batch and loses the answer, hangs, fails, refuses, says something else.
//!
//! Behind its moods it is a receiver as the contract describes one: one integer for each (epoch, stream). It checks what it
//! gets, the attempts that it does not take, too.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use holdfast::forward::{Answer, Failure, Post, Sending, Settings, Transport};
use serde_json::Value;

use crate::world::{State, World};

/// What a sink answers to batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It takes them.
    #[default]
    Well,
    /// Anything may happen.
    Flaky,
    /// It does not answer.
    Dead,
    /// It refuses our credentials, or is not what it should be.
    Wrong(u16),
    /// It refuses every record.
    Refusing,
}

/// What a receiver has.
#[derive(Debug, Default)]
pub(crate) struct Cloud {
    pub(crate) mood: Mood,
    pub(crate) lines: BTreeMap<(String, String), Line>,
    /// Epochs in the order in which they were seen.
    pub(crate) epochs: Vec<String>,
    /// Records refused while they were alone in a batch: epoch, stream, number.
    pub(crate) refused: BTreeMap<(String, String, u64), Value>,
    /// Batches seen and not refused since, by where they begin: their last number, and their body.
    bodies: BTreeMap<(String, String, u64), (u64, u64)>,
    /// Whether it ever was out of the configuration.
    pub(crate) was_away: bool,
    /// Whether it claimed to have what it cannot have.
    has_claimed: bool,
    /// Whether it claims it next.
    pub(crate) claims: bool,
    pub(crate) requests: u64,
}

/// One stream of one epoch.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) next: u64,
    /// Numbers before this are records of the epoch before, had already.
    pub(crate) begins: u64,
    pub(crate) records: Vec<(u64, Value)>,
    pub(crate) gaps: Vec<(u64, u64, String)>,
}

/// A batch, as it was read.
struct Batch {
    epoch: String,
    stream: String,
    first: u64,
    last: u64,
    previous: Option<(String, u64)>,
    gaps: Vec<(u64, u64, String)>,
    records: Vec<(u64, Value)>,
}

/// What happens to an attempt.
struct Outcome {
    before: Duration,
    /// Numbers before this are taken, if any are.
    take: Option<u64>,
    after: Duration,
    answer: Option<(u16, String, Option<Duration>)>,
}

/// The farthest that a sink is away.
const FAR: Duration = Duration::from_millis(2);

/// The way to one sink.
pub(crate) struct Wire {
    world: World,
    sink: String,
    timeout: Duration,
}

impl Wire {
    pub(crate) fn new(world: World, settings: &Settings) -> Self {
        Self { world, sink: settings.name.clone(), timeout: settings.timeout }
    }
}

impl Transport for Wire {
    fn send<'a>(&'a self, post: Post<'a>) -> Sending<'a> {
        Box::pin(async move {
            // Two sinks that hear of the same commit begin in an order that tokio's `watch` draws by itself: no two are equally far away.
            pause(Duration::from_millis(if self.sink == "cloud" { 1 } else { 2 })).await;
            let outcome = self.world.with(|state| {
                let text = decompressed(state.plan.compression, post.body);
                match read(&text, post.key) {
                    Ok(batch) => {
                        let outcome = receive(state, &self.sink, &batch, &text, self.timeout);
                        Some((Arc::new(batch), outcome))
                    }
                    Err(fault) => {
                        state.violate(format!("{}: {fault}", self.sink));
                        None
                    }
                }
            });
            let Some((batch, outcome)) = outcome else { return Err(Failure::Request("no batch".to_owned())) };
            pause(outcome.before.min(self.timeout - FAR)).await;
            let next =
                outcome.take.map(|until| self.world.with(|state| take(state, &self.sink, &batch, until)));
            pause(outcome.after).await;
            match outcome.answer {
                Some((status, body, retry_after)) => {
                    let next = next.unwrap_or(batch.first).to_string();
                    let body = body.replace("NEXT", &next).into_bytes();
                    Ok(Answer { status, body, retry_after })
                }
                None => Err(Failure::Request("the connection broke off".to_owned())),
            }
        })
    }
}

async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

fn decompressed(compression: &str, body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    match compression {
        "zstd" => text = zstd::stream::decode_all(body).unwrap_or_default(),
        "gzip" => drop(flate2::read::GzDecoder::new(body).read_to_end(&mut text)),
        _ => text = body.to_vec(),
    }
    text
}

/// Reads a batch without the help of the agent's own code.
fn read(text: &[u8], key: &str) -> Result<Batch, String> {
    let body: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
    let number = |value: &Value, name: &str| value[name].as_u64().ok_or(format!("no {name}: {value}"));
    let word = |value: &Value, name: &str| {
        value[name].as_str().map(str::to_owned).ok_or(format!("no {name}: {value}"))
    };
    let list = |name: &str| body[name].as_array().ok_or(format!("no {name}"));
    let (epoch, stream) = (word(&body, "epoch")?, word(&body, "stream")?);
    let (first, last) = (number(&body, "first")?, number(&body, "last")?);
    let gap = |gap: &Value| Ok((number(gap, "first")?, number(gap, "last")?, word(gap, "reason")?));
    let gaps: Vec<_> = list("gaps")?.iter().map(gap).collect::<Result<_, String>>()?;
    let record = |record: &Value| Ok((number(record, "seq")?, record.clone()));
    let records: Vec<_> = list("records")?.iter().map(record).collect::<Result<_, String>>()?;
    let previous = match &body["previous"] {
        Value::Null => None,
        previous => Some((word(previous, "epoch")?, number(previous, "next")?)),
    };
    let expected = format!("gw/{epoch}/{stream}/{first}-{last}");
    if body["format"] != 1 || body["agent"] != "gw" || key != expected {
        return Err(format!("the head of {key} is not right"));
    }
    // Every number is a record or lies in a gap, once.
    let mut covered: Vec<(u64, u64)> = gaps.iter().map(|(first, last, _)| (*first, *last)).collect();
    covered.extend(records.iter().map(|(seq, _)| (*seq, *seq)));
    covered.sort_unstable();
    let mut next = first;
    for (from, to) in &covered {
        if *from != next || to < from {
            return Err(format!("{key}: {next} is neither a record nor in a gap, or twice: {covered:?}"));
        }
        next = to + 1;
    }
    if next != last + 1 {
        return Err(format!("{key}: ends at {}", next - 1));
    }
    if !records.is_sorted_by_key(|(seq, _)| *seq) || !gaps.is_sorted_by_key(|(first, ..)| *first) {
        return Err(format!("{key}: not in order"));
    }
    Ok(Batch { epoch, stream, first, last, previous, gaps, records })
}

fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Looks at an attempt, and says what happens to it.
fn receive(state: &mut State, sink: &str, batch: &Batch, text: &[u8], timeout: Duration) -> Outcome {
    let cloud = state.clouds.get_mut(sink).expect("it is configured");
    cloud.requests += 1;
    if !cloud.epochs.contains(&batch.epoch) {
        cloud.epochs.push(batch.epoch.clone());
    }
    let is_readings = u64::from(batch.stream == "readings");
    let epoch = cloud.epochs.iter().position(|epoch| *epoch == batch.epoch).unwrap_or(0) as u64;
    let details = [epoch, is_readings, batch.first, batch.last, batch.records.len() as u64];
    state.tell(if sink == "cloud" { "batch" } else { "batch of second" }, &details);
    check_attempt(state, sink, batch, text);
    begin_line(state.clouds.get_mut(sink).expect("it is configured"), batch);
    let outcome = decide(state, sink, batch, timeout);
    if let Some((400 | 413 | 422, ..)) = outcome.answer {
        let cloud = state.clouds.get_mut(sink).expect("it is configured");
        let key = |seq| (batch.epoch.clone(), batch.stream.clone(), seq);
        let within: Vec<_> =
            cloud.bodies.range(key(batch.first)..=key(batch.last)).map(|(key, _)| key.clone()).collect();
        cloud.bodies.retain(|key, _| !within.contains(key));
        if let [(seq, record)] = batch.records.as_slice() {
            cloud.refused.insert(key(*seq), record.clone());
        }
    }
    outcome
}

/// What is the same at every sink: one may have got a record before its true times were known, another after.
fn shared(record: &Value) -> Value {
    let mut record = record.clone();
    if let Some(object) = record.as_object_mut().filter(|object| object.contains_key("clock")) {
        object.retain(|key, _| !matches!(key.as_str(), "clock" | "received" | "time"));
    }
    record
}

/// What must be true of every attempt, taken or not.
fn check_attempt(state: &mut State, sink: &str, batch: &Batch, text: &[u8]) {
    let Batch { epoch, stream, first, last, .. } = batch;
    for (seq, record) in &batch.records {
        let content = hash(shared(record).to_string());
        let known = *state.contents.entry((epoch.clone(), stream.clone(), *seq)).or_insert(content);
        if known != content {
            state.violate(format!("{sink}: {stream} {seq} is another record than before: {record}"));
        }
    }
    let cloud = state.clouds.get_mut(sink).expect("it is configured");
    let line = cloud.lines.get(&(epoch.clone(), stream.clone()));
    let wanted = line.map_or(1, |line| line.next);
    let mut faults = Vec::new();
    if *first > wanted {
        faults.push(format!("{sink}: a hole: {stream} {first}-{last} comes, {wanted} is wanted"));
    }
    let body = (*last, hash(text));
    let known = *cloud.bodies.entry((epoch.clone(), stream.clone(), *first)).or_insert(body);
    if known != body {
        faults.push(format!("{sink}: {stream} {first}-{last} is another batch than before (to {})", known.0));
    }
    let is_later = cloud.epochs.first() != Some(epoch);
    match &batch.previous {
        Some((previous, next)) if *first == 1 && is_later => {
            let before = cloud.lines.get(&(previous.clone(), stream.clone()));
            // A sink that is away when an epoch begins is told by this number alone what it missed.
            if before.is_some_and(|line| line.next < *next) && !cloud.was_away {
                faults.push(format!(
                    "{sink}: {stream} of the epoch before ended at {next}, not all of it came"
                ));
            }
        }
        None if *first > 1 || !is_later => {}
        // The first of all epochs that this sink sees need not be the first that there was.
        Some(_) if *first == 1 && cloud.was_away => {}
        other => faults.push(format!("{sink}: {stream} {first}-{last} says of the epoch before: {other:?}")),
    }
    for fault in faults {
        state.violate(fault);
    }
}

/// The first batch of a stream of an epoch came: what the sink had of the epoch before under other numbers, it has.
fn begin_line(cloud: &mut Cloud, batch: &Batch) {
    let key = (batch.epoch.clone(), batch.stream.clone());
    if !cloud.lines.contains_key(&key) {
        let had = batch.previous.as_ref().and_then(|(epoch, next)| {
            let before = cloud.lines.get(&(epoch.clone(), batch.stream.clone()))?;
            Some(before.next.saturating_sub(*next))
        });
        let begins = 1 + had.unwrap_or(0);
        cloud.lines.insert(key, Line { next: begins, begins, ..Line::default() });
    }
}

fn decide(state: &mut State, sink: &str, batch: &Batch, timeout: Duration) -> Outcome {
    let all = batch.last + 1;
    let random = &mut state.random;
    let quickly = Duration::from_millis(random.u64(0..40));
    let slowly = Duration::from_millis(random.u64(0..4_000)).min(timeout / 3);
    let next = "{\"next\":NEXT}".to_owned();
    let outcome = |before, take, after, answer| Outcome { before, take, after, answer };
    let answers = |status: u16| Some((status, "no".to_owned(), None));
    let poisoned = state.plan.poison && batch.records.iter().any(|(_, record)| is_poison(record));
    let cloud = state.clouds.get_mut(sink).expect("it is configured");
    let line = cloud.lines.get(&(batch.epoch.clone(), batch.stream.clone()));
    // What it has it does not refuse.
    let has_it = line.is_some_and(|line| batch.last < line.next);
    match cloud.mood {
        Mood::Dead if random.bool() => return outcome(timeout, None, Duration::ZERO, None),
        Mood::Dead => return outcome(quickly, None, Duration::ZERO, None),
        Mood::Wrong(status) => return outcome(quickly, None, Duration::ZERO, answers(status)),
        Mood::Refusing if !has_it => return outcome(quickly, None, Duration::ZERO, answers(400)),
        Mood::Well | Mood::Flaky | Mood::Refusing => {}
    }
    if poisoned && !has_it {
        return outcome(quickly, None, Duration::ZERO, answers(if random.bool() { 400 } else { 422 }));
    }
    if std::mem::take(&mut cloud.claims) {
        cloud.has_claimed = true;
        let claim = format!("{{\"next\":{}}}", all + 100_000);
        return outcome(quickly, None, Duration::ZERO, Some((200, claim, None)));
    }
    if cloud.mood != Mood::Flaky {
        return outcome(quickly, Some(all), Duration::ZERO, Some((200, next, None)));
    }
    let some = random.u64(batch.first..=all);
    match random.u32(..24) {
        // Taken, and the answer lost, at once or after a hang.
        0 | 1 => outcome(quickly, Some(all), Duration::ZERO, None),
        2 => outcome(Duration::ZERO, Some(all), timeout, None),
        3 => outcome(timeout, None, Duration::ZERO, None),
        4 => outcome(quickly, None, Duration::ZERO, None),
        5 => outcome(slowly, None, slowly, answers(500)),
        6 => outcome(quickly, Some(all), Duration::ZERO, answers(503)),
        7 => outcome(quickly, None, Duration::ZERO, Some((429, String::new(), Some(Duration::from_secs(3))))),
        8 => outcome(quickly, None, Duration::ZERO, answers(408)),
        // Only a part of it was taken.
        9 | 10 => outcome(quickly, Some(some), Duration::ZERO, Some((200, next, None))),
        // Taken, and said in no way that is understood.
        11 => outcome(quickly, Some(all), Duration::ZERO, Some((200, "<html>".to_owned(), None))),
        12 => outcome(quickly, Some(all), Duration::ZERO, Some((204, String::new(), None))),
        13 => outcome(quickly, Some(all), Duration::ZERO, Some((200, "{\"next\":1}".to_owned(), None))),
        14 if batch.records.len() > 1 && !has_it => outcome(quickly, None, Duration::ZERO, answers(413)),
        15 if !cloud.has_claimed && random.u32(..8) == 0 => {
            cloud.has_claimed = true;
            let claim = format!("{{\"next\":{}}}", all + 100_000);
            outcome(quickly, None, Duration::ZERO, Some((200, claim, None)))
        }
        16 | 17 => outcome(slowly, Some(all), slowly, Some((200, next, None))),
        _ => outcome(quickly, Some(all), Duration::ZERO, Some((200, next, None))),
    }
}

/// Records that are refused for good where sinks refuse any.
fn is_poison(record: &Value) -> bool {
    record["fields"]["id"].as_u64().is_some_and(|id| id % 19 == 7)
}

/// Takes the numbers of `batch` before `until`, and says which is wanted next.
fn take(state: &mut State, sink: &str, batch: &Batch, until: u64) -> u64 {
    let cloud = state.clouds.get_mut(sink).expect("it is configured");
    let key = (batch.epoch.clone(), batch.stream.clone());
    let line = cloud.lines.get_mut(&key).expect("it is there since the batch came");
    let wanted = line.next.max(batch.first);
    let fresh = |seq: u64| wanted <= seq && seq < until;
    line.records.extend(batch.records.iter().filter(|(seq, _)| fresh(*seq)).cloned());
    for (first, last, reason) in &batch.gaps {
        let (first, last) = ((*first).max(wanted), (*last).min(until.saturating_sub(1)));
        if first <= last {
            line.gaps.push((first, last, reason.clone()));
        }
    }
    line.next = line.next.max(until);
    let next = line.next;
    state.tell("taken", &[next]);
    next
}

impl Cloud {
    /// What it has of `stream`, in order.
    pub(crate) fn records<'a>(&'a self, stream: &'a str) -> impl Iterator<Item = &'a Value> {
        self.epochs
            .iter()
            .filter_map(move |epoch| self.lines.get(&(epoch.clone(), stream.to_owned())))
            .flat_map(|line| line.records.iter().map(|(_, record)| record))
    }

    /// Why it misses what it misses of `stream`.
    pub(crate) fn reasons(&self) -> BTreeSet<&str> {
        self.lines.values().flat_map(|line| line.gaps.iter().map(|(.., reason)| reason.as_str())).collect()
    }

    /// Forgets which batches were fixed: it was out of the configuration.
    pub(crate) fn unfix(&mut self) {
        self.bodies.clear();
    }
}
