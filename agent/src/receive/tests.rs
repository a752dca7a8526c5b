//! The receiver over real sockets, and its folder after a kill at each point.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::batch::{Batch, Encoding};
use super::*;

const EPOCH: &str = "0b8c5b1e-6f0a-4d59-9c69-0f5b3c6f7a10";
const OTHER_EPOCH: &str = "1b8c5b1e-6f0a-4d59-9c69-0f5b3c6f7a11";

fn record(seq: u64) -> String {
    format!(r#"{{"seq":{seq},"device":"d","fields":{{"n":{seq}}}}}"#)
}

/// A batch from `first` to `last` with `gaps`; all other numbers are records.
fn batch(epoch: &str, stream: &str, first: u64, last: u64, gaps: &[(u64, u64)]) -> String {
    let mut text = format!(
        r#"{{"format":1,"agent":"gw-1","epoch":"{epoch}","stream":"{stream}","first":{first},"last":{last},"later":[1],"gaps":["#
    );
    let declared: Vec<String> = gaps
        .iter()
        .map(|(first, last)| format!(r#"{{"first":{first},"last":{last},"reason":"shed:size"}}"#))
        .collect();
    let missing = |seq: u64| gaps.iter().any(|(first, last)| (*first..=*last).contains(&seq));
    let records: Vec<String> = (first..=last).filter(|seq| !missing(*seq)).map(record).collect();
    write!(text, r#"{}],"records":[{}]}}"#, declared.join(","), records.join(",")).unwrap();
    text
}

fn readings(first: u64, last: u64) -> String {
    batch(EPOCH, "readings", first, last, &[])
}

/// The numbers in `gw-1/<file>`, line by line.
fn seqs(root: &Path, file: &str) -> Vec<u64> {
    lines(root, file).iter().map(|line| line["seq"].as_u64().unwrap()).collect()
}

fn lines(root: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(root.join("gw-1").join(file)).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A running receiver and a client.
struct Fixture {
    root: tempfile::TempDir,
    url: String,
    outage: Outage,
    client: reqwest::Client,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Fixture {
    async fn start() -> Self {
        // Another test may have installed it before.
        drop(rustls::crypto::ring::default_provider().install_default());
        let root = tempfile::tempdir().unwrap();
        let receiver = bind((Ipv4Addr::LOCALHOST, 0).into(), root.path()).await.unwrap();
        let url = format!("http://{}/v1/telemetry", receiver.local_addr());
        let (outage, stop) = (receiver.outage(), CancellationToken::new());
        let running = tokio::spawn(receiver.run(stop.clone()));
        Self { root, url, outage, client: reqwest::Client::new(), stop, running }
    }

    fn request(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.client.post(&self.url).header("content-type", "application/json").body(body)
    }

    async fn send(&self, body: impl Into<reqwest::Body>) -> (u16, Value) {
        answer(self.request(body)).await
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let base = self.url.strip_suffix("/v1/telemetry").unwrap();
        let response = self.client.get(format!("{base}{path}")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn stop(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        self.root
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null))
}

#[tokio::test]
async fn repeats_are_dropped_also_when_a_batch_repeats_only_in_part() {
    let receiver = Fixture::start().await;
    assert_eq!(receiver.send(readings(1, 3)).await, (200, json!({"next": 4})));
    assert_eq!(receiver.send(readings(1, 3)).await, (200, json!({"next": 4})));
    assert_eq!(receiver.send(readings(2, 5)).await, (200, json!({"next": 6})));
    assert_eq!(receiver.send(readings(1, 2)).await, (200, json!({"next": 6})));
    let (status, overview) = receiver.get("/").await;
    let overview: Value = serde_json::from_str(&overview).unwrap();
    assert_eq!(status, 200);
    assert_eq!(
        overview["streams"],
        json!([{"agent": "gw-1", "epoch": EPOCH, "stream": "readings", "next": 6,
                "received": 5, "repeats": 7, "gaps": 0, "unexplained": 0}])
    );
    let root = receiver.stop().await;
    assert_eq!(seqs(root.path(), "readings.ndjson"), [1, 2, 3, 4, 5]);
    let text = std::fs::read_to_string(root.path().join("gw-1/readings.ndjson")).unwrap();
    assert_eq!(text.lines().next().unwrap(), record(1), "records are written exactly as sent");
}

#[tokio::test]
async fn every_stream_and_epoch_has_its_own_next() {
    let receiver = Fixture::start().await;
    receiver.send(readings(1, 3)).await;
    assert_eq!(receiver.send(batch(EPOCH, "windows", 1, 1, &[])).await, (200, json!({"next": 2})));
    assert_eq!(receiver.send(batch(OTHER_EPOCH, "readings", 1, 2, &[])).await, (200, json!({"next": 3})));
    assert_eq!(receiver.send(readings(3, 4)).await, (200, json!({"next": 5})));
    let root = receiver.stop().await;
    assert_eq!(seqs(root.path(), "readings.ndjson"), [1, 2, 3, 1, 2, 4]);
    assert_eq!(seqs(root.path(), "windows.ndjson"), [1]);
}

#[tokio::test]
async fn gaps_and_holes_are_reported_once_with_their_reasons() {
    let receiver = Fixture::start().await;
    // 1 and 2 never come; 5 and 6 are declared; then a batch of gaps alone, of which a part is known.
    let with_gap = batch(EPOCH, "readings", 3, 7, &[(5, 6)]);
    for _ in 0..2 {
        assert_eq!(receiver.send(with_gap.clone()).await, (200, json!({"next": 8})));
    }
    let gaps_alone = batch(EPOCH, "readings", 6, 9, &[(6, 9)]);
    assert_eq!(receiver.send(gaps_alone).await, (200, json!({"next": 10})));
    let (_, overview) = receiver.get("/").await;
    let books: Value = serde_json::from_str(&overview).unwrap();
    let books = &books["streams"][0];
    assert_eq!(
        (&books["received"], &books["gaps"], &books["unexplained"]),
        (&json!(3), &json!(6), &json!(2))
    );
    let root = receiver.stop().await;
    let gap = |first: u64, last: u64, reason: &str| json!({"epoch": EPOCH, "stream": "readings", "first": first, "last": last, "reason": reason});
    assert_eq!(
        lines(root.path(), "gaps.ndjson"),
        [gap(1, 2, "unexplained"), gap(5, 6, "shed:size"), gap(8, 9, "shed:size")]
    );
}

#[tokio::test]
async fn what_does_not_hold_together_is_refused_with_a_reason() {
    let receiver = Fixture::start().await;
    let head = format!(r#"{{"format":1,"agent":"gw-1","epoch":"{EPOCH}","stream":"readings""#);
    let body = |range: &str, gaps: &str, records: &str| {
        format!(r#"{head},{range},"gaps":[{gaps}],"records":[{records}]}}"#)
    };
    let gap = |first: u64, last: u64| format!(r#"{{"first":{first},"last":{last},"reason":"replay"}}"#);
    let two = format!("{},{}", record(1), record(2));
    let one_to_two = r#""first":1,"last":2"#;
    let cases = [
        (String::new(), "JSON object"),
        ("[]".into(), "JSON object"),
        ("{\"format\":1".into(), "not valid JSON"),
        (readings(1, 2) + "x", "not valid JSON"),
        (readings(1, 2).replace("\"format\":1", "\"format\":2"), "format 2"),
        (readings(1, 2).replace("gw-1", ".."), "agent id"),
        (readings(1, 2).replace("gw-1", "a/b"), "agent id"),
        (readings(1, 2).replace("\"readings\"", "\"gaps\""), "stream name"),
        (readings(1, 2).replace(EPOCH, "today"), "not valid JSON"),
        (body(r#""first":2,"last":1"#, "", &two), "first 2, last 1"),
        (body(r#""first":0,"last":2"#, "", &two), "begin at 1"),
        (body(r#""first":1,"last":18446744073709551615"#, "", &two), "below 2^63"),
        (body(one_to_two, "", &record(1)), "number 2 is neither"),
        (body(one_to_two, "", ""), "number 1 is neither"),
        (body(one_to_two, "", &format!("{two},{}", record(2))), "number 2 of a record comes where 3"),
        (body(one_to_two, "", &format!("{},{}", record(2), record(1))), "number 1 is neither"),
        (body(one_to_two, "", &format!("{two},{}", record(3))), "lies outside"),
        (body(one_to_two, &gap(2, 2), &two), "comes where"),
        (body(one_to_two, &gap(2, 3), &record(1)), "lies outside"),
        (body(one_to_two, &gap(2, 1), &two), "ends before"),
        (body(one_to_two, "", r#"{"seq":1},{"sequence":2}"#), "not valid JSON"),
        (body(one_to_two, "", "[1],[2]"), "JSON object"),
    ];
    for (body, reason) in cases {
        let (status, answer) = receiver.send(body.clone()).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(reason), "{body}\n  -> {status} {answer}");
    }
    assert_eq!(receiver.send(body(one_to_two, "", &two)).await, (200, json!({"next": 3})));
    receiver.stop().await;
}

#[tokio::test]
async fn other_methods_types_and_encodings_are_refused() {
    let receiver = Fixture::start().await;
    assert_eq!(receiver.get("/healthz").await, (200, "ok\n".into()));
    assert_eq!(receiver.get("/v1/telemetry").await.0, 405);
    assert_eq!(answer(receiver.client.put(&receiver.url)).await.0, 405);
    let typed = |name: &str| receiver.client.post(&receiver.url).header("content-type", name);
    assert_eq!(answer(receiver.client.post(&receiver.url).body(readings(1, 1))).await.0, 415);
    assert_eq!(answer(typed("text/plain").body(readings(1, 1))).await.0, 415);
    assert_eq!(answer(typed("Application/JSON; charset=utf-8").body(readings(1, 1))).await.0, 200);
    let encoded = |name: &str| receiver.request(readings(1, 1)).header("content-encoding", name);
    assert_eq!(answer(encoded("br")).await.0, 415);
    assert_eq!(answer(encoded("gzip, zstd")).await.0, 415);
    assert_eq!(answer(encoded("gzip")).await.0, 400, "it is not gzip");
    assert_eq!(answer(encoded("zstd")).await.0, 400, "it is not zstd");
    assert_eq!(answer(encoded("identity")).await.0, 200);
    receiver.stop().await;
}

#[tokio::test]
async fn bodies_are_decompressed_but_no_further_than_the_limit() {
    let receiver = Fixture::start().await;
    let sent = async |encoding: &str, body: Vec<u8>| {
        answer(receiver.request(body).header("content-encoding", encoding)).await
    };
    let zstd_of = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    assert_eq!(sent("zstd", zstd_of(readings(1, 3).as_bytes())).await, (200, json!({"next": 4})));
    assert_eq!(sent("gzip", gzip_of(readings(4, 6).as_bytes())).await, (200, json!({"next": 7})));
    let bomb = vec![b' '; batch::MAX_BODY_BYTES + 1];
    assert_eq!(sent("zstd", zstd_of(&bomb)).await.0, 413);
    assert_eq!(sent("gzip", gzip_of(&bomb)).await.0, 413);
    let cut = zstd_of(readings(7, 9).as_bytes());
    assert_eq!(sent("zstd", cut[..cut.len() - 5].to_vec()).await.0, 400);
    let root = receiver.stop().await;
    assert_eq!(seqs(root.path(), "readings.ndjson"), [1, 2, 3, 4, 5, 6]);
}

fn gzip_of(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn an_outage_begins_and_ends_at_the_switch() {
    let receiver = Fixture::start().await;
    assert_eq!(receiver.send(readings(1, 1)).await.0, 200);
    receiver.outage.set(Behaviour::Unavailable);
    assert_eq!(receiver.send(readings(2, 2)).await.0, 503);
    receiver.outage.set(Behaviour::Unreachable);
    assert!(reqwest::Client::new().get(&receiver.url).send().await.is_err());
    receiver.outage.set(Behaviour::Normal);
    assert_eq!(receiver.send(readings(2, 2)).await, (200, json!({"next": 3})));
    receiver.stop().await;
}

#[tokio::test]
async fn a_folder_has_one_writer_and_the_next_one_continues() {
    let receiver = Fixture::start().await;
    receiver.send(readings(1, 3)).await;
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let second = bind(address, receiver.root.path()).await;
    assert!(matches!(second, Err(Error::InUse { .. })), "{second:?}");
    let root = receiver.stop().await;
    let third = bind(address, root.path()).await.unwrap();
    let books = third.desk.with_folder(Folder::books).await.unwrap();
    assert_eq!((books[0].next, books[0].received), (4, 3));
}

#[test]
fn line_breaks_between_tokens_stay_one_line() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::open(root.path()).unwrap();
    let pretty = readings(1, 1).replace("\"fields\"", "\n\"fields\"\r\n");
    take(&mut folder, &pretty);
    assert_eq!(seqs(root.path(), "readings.ndjson"), [1]);
}

#[test]
fn a_disk_that_fails_is_a_state_that_ends() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::open(root.path()).unwrap();
    assert_eq!(take(&mut folder, &readings(1, 2)), 3);
    // A folder in the file's place: the journal has the batch, the file cannot be written.
    let file = root.path().join("gw-1/windows.ndjson");
    std::fs::create_dir(&file).unwrap();
    let windows = batch(EPOCH, "windows", 1, 2, &[]);
    assert!(try_take(&mut folder, &windows).is_err());
    assert!(try_take(&mut folder, &readings(3, 4)).is_err(), "it cannot recover yet");
    std::fs::remove_dir(&file).unwrap();
    assert_eq!(take(&mut folder, &readings(3, 4)), 5);
    assert_eq!(take(&mut folder, &windows), 3);
    assert_eq!(seqs(root.path(), "readings.ndjson"), [1, 2, 3, 4]);
    assert_eq!(seqs(root.path(), "windows.ndjson"), [1, 2]);
}

fn try_take(folder: &mut Folder, body: &str) -> Result<u64, Error> {
    let raw = Bytes::from(body.to_owned());
    let batch = Batch::read(&raw, Encoding::Identity).unwrap();
    folder.take(&batch, &raw, Encoding::Identity)
}

fn take(folder: &mut Folder, body: &str) -> u64 {
    try_take(folder, body).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn cut(path: &Path, bytes: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// What a kill leaves: the folder as it is, but changed by `damage`; opened again, and `resent` sent.
fn after_a_kill(damage: impl FnOnce(&Path), resent: &str) -> (Vec<u64>, u64) {
    let root = tempfile::tempdir().unwrap();
    let killed = tempfile::tempdir().unwrap();
    let mut folder = Folder::open(root.path()).unwrap();
    take(&mut folder, &readings(1, 3));
    take(&mut folder, &readings(4, 6));
    copy(root.path(), killed.path());
    damage(killed.path());
    let mut folder = Folder::open(killed.path()).unwrap();
    let next = take(&mut folder, resent);
    (seqs(killed.path(), "readings.ndjson"), next)
}

#[test]
fn a_kill_at_each_point_leaves_every_batch_in_whole_or_not_at_all() {
    let all = (vec![1, 2, 3, 4, 5, 6], 7);
    let file = |root: &Path| root.join("gw-1/readings.ndjson");
    let own = |root: &Path, name: &str| root.join("@receive").join(name);
    assert_eq!(after_a_kill(|_| {}, &readings(4, 6)), all, "killed before the answer");
    assert_eq!(after_a_kill(|root| cut(&file(root), 130), &readings(4, 6)), all, "a torn line");
    assert_eq!(after_a_kill(|root| std::fs::remove_file(file(root)).unwrap(), &readings(4, 6)), all);
    let torn_journal = |root: &Path| {
        let journal = own(root, "journal");
        cut(&journal, length(&journal) - 1);
    };
    assert_eq!(after_a_kill(torn_journal, &readings(1, 3)), (vec![1, 2, 3], 4), "never answered");
    assert_eq!(after_a_kill(torn_journal, &readings(4, 6)), all);
    let half_a_state = |root: &Path| std::fs::write(own(root, "state.json.tmp"), b"{\"form").unwrap();
    assert_eq!(after_a_kill(half_a_state, &readings(4, 6)), all, "killed in a checkpoint");
}

#[test]
fn a_kill_between_the_new_state_and_the_new_journal_counts_nothing_twice() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::open(root.path()).unwrap();
    take(&mut folder, &readings(1, 3));
    // A clean close leaves the new state, and in the journal the entries of the generation before.
    folder.close().unwrap();
    drop(folder);
    let mut folder = Folder::open(root.path()).unwrap();
    assert_eq!(folder.books().unwrap()[0].received, 3);
    assert_eq!(take(&mut folder, &readings(1, 4)), 5);
    assert_eq!(seqs(root.path(), "readings.ndjson"), [1, 2, 3, 4]);
}

#[test]
fn checkpoints_on_the_way_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::open(root.path()).unwrap();
    let padding = format!("\"later\":\"{}\"", "x".repeat(3 << 20));
    for seq in 1..=12 {
        let body = readings(seq, seq).replace("\"later\":[1]", &padding);
        assert_eq!(take(&mut folder, &body), seq + 1);
    }
    drop(folder);
    assert_eq!(length(&root.path().join("@receive/journal")) >> 20, 9, "three batches, then anew");
    let mut folder = Folder::open(root.path()).unwrap();
    assert_eq!(folder.books().unwrap()[0].next, 13);
    assert_eq!(seqs(root.path(), "readings.ndjson"), (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_damaged_or_newer_state_is_not_guessed_at() {
    let root = tempfile::tempdir().unwrap();
    drop(Folder::open(root.path()).unwrap());
    let state = root.path().join("@receive/state.json");
    std::fs::write(&state, b"{").unwrap();
    assert!(matches!(Folder::open(root.path()), Err(Error::StateDamaged { .. })));
    std::fs::write(&state, br#"{"format":9,"generation":1,"streams":[]}"#).unwrap();
    assert!(matches!(Folder::open(root.path()), Err(Error::StateFormat { format: 9, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Batches of random sizes; a kill that leaves the journal cut after any byte, and of the files any part of what the
    /// journal explains; then everything is sent again, as an agent does that saw none of the answers.
    #[test]
    fn whatever_a_kill_leaves_each_record_comes_out_once(
        sizes in prop::collection::vec((1_u64..6, 0_u64..3), 1..8),
        checkpoint_before in 0_usize..8,
        kill in kill(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(root.path()).unwrap();
        let mut points = vec![Point::default()];
        let mut bodies = Vec::new();
        let (mut first, mut expected, mut missing) = (1, Vec::new(), 0);
        for (index, (records, gap)) in sizes.into_iter().enumerate() {
            if index == checkpoint_before {
                folder.close().unwrap();
                drop(folder);
                folder = Folder::open(root.path()).unwrap();
                points = vec![Point::now(root.path(), 0)];
            }
            let gaps: Vec<_> = (gap > 0).then(|| (first, first + gap - 1)).into_iter().collect();
            let last = first + gap + records - 1;
            let body = batch(EPOCH, "readings", first, last, &gaps);
            take(&mut folder, &body);
            let journal = points[points.len() - 1].journal + 37 + u64::try_from(body.len()).unwrap();
            points.push(Point::now(root.path(), journal));
            bodies.push(body);
            expected.extend(first + gap..=last);
            missing += gap;
            first = last + 1;
        }
        drop(folder);
        kill.strike(root.path(), &points);

        let mut folder = Folder::open(root.path()).unwrap();
        for body in &bodies {
            take(&mut folder, body);
        }
        prop_assert_eq!(seqs(root.path(), "readings.ndjson"), expected);
        let books = folder.books().unwrap();
        prop_assert_eq!(books[0].next, first);
        prop_assert_eq!(books[0].gaps, missing);
        prop_assert_eq!(books[0].received + missing, first - 1);
        let told = lines(root.path(), "gaps.ndjson");
        let told = told.iter().map(|line| line["last"].as_u64().unwrap() - line["first"].as_u64().unwrap() + 1);
        prop_assert_eq!(told.sum::<u64>(), missing);
    }
}

/// How long the files were at a moment since the last checkpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    journal: u64,
    readings: u64,
    gaps: u64,
}

impl Point {
    fn now(root: &Path, journal: u64) -> Self {
        let bytes = |name: &str| std::fs::metadata(root.join("gw-1").join(name)).map_or(0, |file| file.len());
        Self { journal, readings: bytes("readings.ndjson"), gaps: bytes("gaps.ndjson") }
    }
}

/// Where a kill strikes: of each file, which fraction of what may be left is left.
#[derive(Clone, Debug)]
struct Kill {
    journal: f64,
    readings: f64,
    gaps: f64,
    garbage: Vec<u8>,
}

fn kill() -> impl Strategy<Value = Kill> {
    let fraction = || 0.0_f64..=1.0;
    (fraction(), fraction(), fraction(), prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(journal, readings, gaps, garbage)| Kill { journal, readings, gaps, garbage })
}

impl Kill {
    fn strike(&self, root: &Path, points: &[Point]) {
        let (oldest, newest) = (points[0], points[points.len() - 1]);
        let journal = between(0, newest.journal, self.journal);
        cut(&root.join("@receive/journal"), journal);
        let durable = points.iter().rfind(|point| point.journal <= journal).unwrap();
        let files = [
            ("readings.ndjson", oldest.readings, durable.readings, self.readings),
            ("gaps.ndjson", oldest.gaps, durable.gaps, self.gaps),
        ];
        for (name, least, most, fraction) in files {
            let path = root.join("gw-1").join(name);
            if !path.exists() {
                continue;
            }
            cut(&path, between(least, most, fraction));
            if most > least {
                // A power cut may leave anything where data was not synced.
                let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
                file.write_all(&self.garbage).unwrap();
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small"
)]
fn between(least: u64, most: u64, fraction: f64) -> u64 {
    least + ((most - least) as f64 * fraction).round() as u64
}
