//! Dead letters that are replayed or purged: nothing is lost, nothing comes twice, and the books balance at every step.

use std::collections::BTreeMap;
use std::io;

use proptest::collection;
use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

use super::disk::Disk;
use super::*;
use crate::reading::{AggregateValue, Remarks, ReplayOf, WindowRecord};
use crate::store::letters::{LettersChange, LettersDone, Records, Replay, Which};
use crate::store::offline::{Progress, verify};
use crate::stream::{Gap, GapReason};

/// A sink whose batches are pinned by the test alone.
fn slow(name: &str) -> SinkSpec {
    let batch = BatchLimits { wait: Duration::from_secs(3_600), ..BatchLimits::default() };
    SinkSpec { batch, streams: vec![Stream::Readings, Stream::Windows], ..sink(name) }
}

fn of(running: &Running, sink: &str, stream: Stream, event: LedgerEvent) -> LedgerChange {
    LedgerChange { epoch: running.books().epoch, sink: sink.into(), stream, event }
}

/// Numbers from the cursor on that no gap explains.
fn wanted(running: &Running, sink: &str, stream: Stream) -> Vec<Seq> {
    let books = running.books();
    let ledger = &books.sinks[sink].streams[&stream];
    let gaps: Vec<&Gap> = ledger.pins.iter().flat_map(|pin| &pin.gaps).chain(&ledger.ahead).collect();
    (ledger.cursor.0..books.stream(stream).next.0)
        .map(Seq)
        .filter(|seq| !gaps.iter().any(|gap| gap.range.contains(*seq)))
        .collect()
}

/// `sink` refuses the next record that it is offered.
async fn refuse(running: &Running, sink: &str, stream: Stream) {
    let seq = wanted(running, sink, stream)[0];
    let pin = LedgerEvent::Pin(vec![seq], 0);
    running.store.change(of(running, sink, stream, pin)).await.unwrap();
    let outside = running.books().stream(stream).outside(seq);
    let letter = work::Letter {
        time: Timestamp(1),
        origin: DeadLetterOrigin::Sink {
            sink: sink.into(),
            stream,
            epoch: running.books().epoch,
            range: SeqRange { first: outside, last: outside },
            status: 422,
        },
        reason: "bad".into(),
        payload: content(running, stream, seq).to_string().into_bytes(),
        payload_bytes: 1,
        payload_hash: 0,
    };
    let event = LedgerEvent::DeadLetter(seq, Box::new(letter));
    running.store.change(of(running, sink, stream, event)).await.unwrap();
}

/// What tells a record from all others, whatever its number.
fn content(running: &Running, stream: Stream, seq: Seq) -> u64 {
    match running.store.reader().piece(stream, seq).unwrap().unwrap() {
        Piece::Readings(first, readings) => {
            match readings[usize::try_from(seq.0 - first.0).unwrap()].values[0] {
                Value::Uint(number) => number,
                _ => unreachable!("only numbers were stored"),
            }
        }
        Piece::Windows(first, records) => {
            records[usize::try_from(seq.0 - first.0).unwrap()].start.0.unsigned_abs()
        }
    }
}

/// `sink` takes everything, and this is what it is given.
async fn take_all(running: &Running, sink: &str, stream: Stream) -> Vec<u64> {
    let given = wanted(running, sink, stream).iter().map(|seq| content(running, stream, *seq)).collect();
    let head = running.books().stream(stream).next;
    running.store.change(of(running, sink, stream, LedgerEvent::Advance(head))).await.unwrap();
    given
}

/// What the letters with these ids come to, as the pipeline makes it.
fn replays(running: &Running, ids: &[u64]) -> LettersChange {
    let reader = running.store.reader();
    let letters = ids.iter().filter_map(|id| reader.dead_letter(*id).unwrap());
    LettersChange::Replay(
        letters
            .map(|letter| {
                let number: u64 = std::str::from_utf8(&letter.payload).unwrap().parse().unwrap();
                let of = match letter.origin {
                    DeadLetterOrigin::Sink { epoch, range, stream, .. } => Some((stream, epoch, range.first)),
                    DeadLetterOrigin::Source { .. } => None,
                };
                let replay_of = of.map(|(_, epoch, seq)| ReplayOf { epoch, seq });
                let records = match of {
                    Some((Stream::Windows, ..)) => {
                        let record = result(number);
                        Records::Window(Box::new(WindowRecord {
                            replay_of: replay_of.map(Box::new),
                            ..record
                        }))
                    }
                    _ => {
                        let mut reading = readings(number, 1).readings.remove(0);
                        reading.received = Timestamp(2);
                        reading.remarks =
                            Some(Box::new(Remarks { replay_of, replayed: true, ..Remarks::default() }));
                        Records::Readings(vec![reading])
                    }
                };
                Replay { id: letter.id, records }
            })
            .collect(),
    )
}

async fn replay(running: &Running, ids: &[u64]) -> LettersDone {
    running.store.change_letters(replays(running, ids)).await.unwrap()
}

fn result(n: u64) -> WindowRecord {
    WindowRecord {
        window: "minute".into(),
        device: "d".into(),
        tags: Arc::new(Vec::new()),
        field: "n".into(),
        start: Timestamp(i64::try_from(n).unwrap()),
        end: Timestamp(60_000_000),
        revision: 0,
        aggregates: vec![("count".into(), AggregateValue::Count(1))],
        replay_of: None,
    }
}

fn balance(running: &Running) {
    let books = running.books();
    for (name, sink) in &books.sinks {
        for (stream, ledger) in &sink.streams {
            let of = books.stream(*stream);
            let settled = ledger.delivered + ledger.dead_lettered + ledger.shed;
            assert_eq!(of.appended(), settled + ledger.pending(of.next), "{name} {stream}: {ledger:?}");
        }
    }
    let letters = books.dead_letters;
    assert_eq!(letters.last_id, letters.kept + letters.purged + letters.purged_by_hand + letters.replayed);
    let kept = running.store.reader().dead_letters(0, usize::MAX).unwrap();
    assert_eq!(kept.len() as u64, letters.kept);
}

fn letter(payload: &[u8]) -> work::Letter {
    work::Letter {
        time: Timestamp(1),
        origin: DeadLetterOrigin::Source { source: "plant".into(), topic: "a".into() },
        reason: "not JSON".into(),
        payload: payload.to_vec(),
        payload_bytes: payload.len() as u64,
        payload_hash: 0,
    }
}

async fn reject(running: &Running, payload: &[u8]) {
    let group = Group { rejected: vec![letter(payload)], ..Group::default() };
    running.store.append(group).await.unwrap();
}

#[tokio::test]
async fn a_replayed_record_goes_to_who_lacks_it_and_the_others_are_told_that_they_have_it() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![slow("cloud"), slow("other")]).await.unwrap();
    running.store.append(readings(0, 3)).await.unwrap();
    let epoch = running.books().epoch;
    refuse(&running, "cloud", Stream::Readings).await;
    assert_eq!(take_all(&running, "cloud", Stream::Readings).await, [1, 2]);
    assert_eq!(take_all(&running, "other", Stream::Readings).await, [0, 1, 2]);
    balance(&running);
    assert_eq!(replay(&running, &[1]).await, LettersDone { replayed: 1, purged: 0 });
    balance(&running);
    running.crash().await;
    let report = verify(dir.path(), &|_, _| None, &Progress::none()).unwrap();
    assert!(report.sound, "the readings are older than their replay: {:#?}", report.findings);

    let running = Running::open(&dir, |_| {});
    balance(&running);
    let books = running.books();
    let ledger = |sink: &str| books.sinks[sink].streams[&Stream::Readings].clone();
    assert_eq!((ledger("cloud").pending(Seq(5)), ledger("cloud").dead_lettered), (1, 1));
    let range = SeqRange { first: Seq(4), last: Seq(4) };
    assert_eq!(ledger("other").ahead, [Gap { range, reason: GapReason::Replay }]);
    assert_eq!(ledger("other").delivered, 4);
    assert_eq!(
        (books.dead_letters.kept, books.dead_letters.kept_bytes, books.dead_letters.replayed),
        (0, 0, 1)
    );
    let Some(Piece::Readings(first, stored)) =
        running.store.reader().piece(Stream::Readings, Seq(4)).unwrap()
    else {
        panic!("the record is there")
    };
    let stored = &stored[usize::try_from(4 - first.0).unwrap()];
    let remarks = stored.remarks.as_deref().unwrap();
    assert_eq!(remarks.replay_of, Some(ReplayOf { epoch, seq: Seq(1) }));
    assert!(stored.is_replayed());
    assert_eq!(stored.received, Timestamp(2), "the original times");
    assert_eq!(take_all(&running, "cloud", Stream::Readings).await, [0]);
    assert_eq!(take_all(&running, "other", Stream::Readings).await, [0_u64; 0]);
    assert_eq!(replay(&running, &[1]).await, LettersDone::default(), "it is gone");
    balance(&running);
}

#[tokio::test]
async fn a_record_that_two_sinks_refused_is_appended_once() {
    for at_once in [true, false] {
        let dir = TempDir::new().unwrap();
        let running = Running::open(&dir, |_| {});
        running.store.configure_sinks(vec![slow("a"), slow("b"), slow("c")]).await.unwrap();
        running.store.append(readings(0, 1)).await.unwrap();
        refuse(&running, "a", Stream::Readings).await;
        refuse(&running, "b", Stream::Readings).await;
        if at_once {
            assert_eq!(replay(&running, &[1, 2]).await.replayed, 2);
        } else {
            assert_eq!(replay(&running, &[1]).await.replayed, 1);
            assert_eq!(replay(&running, &[2]).await.replayed, 1);
        }
        balance(&running);
        assert_eq!(running.books().stream(Stream::Readings).next, Seq(3));
        for sink in ["a", "b", "c"] {
            assert_eq!(take_all(&running, sink, Stream::Readings).await, [0], "{sink}");
        }
        balance(&running);
    }
}

#[tokio::test]
async fn a_replayed_window_result_is_no_emission() {
    let dir = TempDir::new().unwrap();
    let mut running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![slow("cloud")]).await.unwrap();
    let update = |records| WindowsUpdate { position: Seq(1), records, ..WindowsUpdate::default() };
    running.store.update_windows(update(vec![result(1), result(2)])).await.unwrap();
    refuse(&running, "cloud", Stream::Windows).await;
    assert_eq!(take_all(&running, "cloud", Stream::Windows).await, [2]);
    replay(&running, &[1]).await;
    running.store.update_windows(update(vec![result(3)])).await.unwrap();
    balance(&running);
    for _ in 0..2 {
        running.crash().await;
        running = Running::open(&dir, |_| {});
        // Without windows the checkpoint is at the end: seen from the beginning, everything is an emission but the replay.
        let mut books = Books::clone(&running.books());
        books.checkpoint.windows_next = Seq::FIRST;
        let snapshot = checkpoint::windows_snapshot(&running.store.reader().file, &books).unwrap();
        let emitted: Vec<i64> =
            snapshot.emitted.iter().flat_map(|update| &update.records).map(|record| record.start.0).collect();
        assert_eq!(emitted, [1, 2, 3]);
    }
    assert_eq!(take_all(&running, "cloud", Stream::Windows).await, [1, 3]);
    balance(&running);
}

#[tokio::test]
async fn a_payload_that_is_decoded_at_last_goes_to_every_sink() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![slow("cloud"), slow("other")]).await.unwrap();
    reject(&running, b"7").await;
    running.store.append(readings(0, 1)).await.unwrap();
    // Together with readings that are stored in the same commit.
    let (done, stored) = tokio::join!(
        running.store.change_letters(replays(&running, &[1])),
        running.store.append(readings(1, 1))
    );
    stored.unwrap();
    assert_eq!(done.unwrap().replayed, 1);
    balance(&running);
    for sink in ["cloud", "other"] {
        let mut given = take_all(&running, sink, Stream::Readings).await;
        given.sort_unstable();
        assert_eq!(given, [0, 1, 7]);
    }
    balance(&running);
}

#[tokio::test]
async fn a_record_from_an_earlier_epoch_is_found_again_by_its_number_inside() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![slow("cloud"), slow("other")]).await.unwrap();
    running.store.append(readings(0, 4)).await.unwrap();
    take_all(&running, "other", Stream::Readings).await;
    running
        .store
        .change(of(&running, "cloud", Stream::Readings, LedgerEvent::Advance(Seq(3))))
        .await
        .unwrap();
    refuse(&running, "cloud", Stream::Readings).await;
    take_all(&running, "cloud", Stream::Readings).await;
    running.store.leave_epoch(running.books().epoch).await.unwrap();
    running.store.configure_sinks(vec![slow("cloud"), slow("other"), slow("late")]).await.unwrap();
    running.store.append(readings(10, 1)).await.unwrap();
    replay(&running, &[1]).await;
    balance(&running);
    assert_eq!(take_all(&running, "cloud", Stream::Readings).await, [10, 2]);
    assert_eq!(take_all(&running, "other", Stream::Readings).await, [10]);
    assert_eq!(take_all(&running, "late", Stream::Readings).await, [10, 2], "it never had the original");
    balance(&running);
}

#[tokio::test]
async fn what_people_purge_is_gone_and_counted() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    for n in 1..=6_u64 {
        reject(&running, n.to_string().as_bytes()).await;
    }
    let purge = async |which| running.store.change_letters(LettersChange::Purge(which)).await.unwrap().purged;
    assert_eq!(purge(Which::These(vec![2, 2, 9])).await, 1);
    assert_eq!(purge(Which::Between(2, 4)).await, 2);
    assert_eq!(purge(Which::Between(4, 3)).await, 0);
    balance(&running);
    let ids = |running: &Running| -> Vec<u64> {
        running.store.reader().dead_letters(0, 10).unwrap().iter().map(|letter| letter.id).collect()
    };
    assert_eq!(ids(&running), [1, 5, 6]);
    assert_eq!(purge(Which::Between(0, u64::MAX)).await, 3);
    balance(&running);
    assert_eq!(running.books().dead_letters.kept_bytes, 0);
    reject(&running, b"7").await;
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    assert_eq!(ids(&running), [7], "an id is never given twice");
    balance(&running);
}

#[tokio::test]
async fn above_the_quota_the_oldest_are_purged_and_counted_also_over_a_crash() {
    let dir = TempDir::new().unwrap();
    let open = || Running::open(&dir, |settings| settings.dead_letters.max_size_bytes = 1_000);
    let mut running = open();
    for n in 1..=40_u64 {
        reject(&running, &[b'x'; 100]).await;
        balance(&running);
        let books = running.books().dead_letters;
        assert!(books.kept_bytes <= 1_000 && books.purged == n - books.kept);
        let oldest = running.store.reader().dead_letters(0, 1).unwrap()[0].id;
        assert_eq!(oldest, n - books.kept + 1, "the newest stay");
        if n % 10 == 0 {
            running.crash().await;
            running = open();
            assert_eq!(running.books().dead_letters, books);
        }
    }
    assert!((5..10).contains(&running.books().dead_letters.kept));
    // One that is larger than the quota stays until the next one comes.
    reject(&running, &[b'x'; 2_000]).await;
    assert_eq!(running.books().dead_letters.kept, 1);
    balance(&running);
}

#[tokio::test]
async fn a_payload_of_no_bytes_is_a_dead_letter_like_any_other() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    reject(&running, b"").await;
    reject(&running, b"1").await;
    let letters = running.store.reader().dead_letters(0, 10).unwrap();
    assert_eq!(letters.iter().map(|letter| letter.payload.len()).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn a_replay_that_is_too_long_for_one_batch_is_not_pinned_as_one() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    let batch = BatchLimits { records: 100, bytes: 2_000, wait: Duration::ZERO };
    running.store.configure_sinks(vec![SinkSpec { batch, ..sink("cloud") }]).await.unwrap();
    let ids: Vec<u64> = (1..=20).collect();
    for id in &ids {
        reject(&running, id.to_string().as_bytes()).await;
    }
    replay(&running, &ids[..2]).await;
    let first_pin = |running: &Running| {
        let books = running.books();
        books.sinks["cloud"].streams[&Stream::Readings].first_pin().map(|(range, _)| range.count())
    };
    assert_eq!(first_pin(&running), Some(2), "two fit, and nothing is to be waited for");
    take_all(&running, "cloud", Stream::Readings).await;
    assert_eq!(replay(&running, &ids).await.replayed, 18);
    assert_eq!(first_pin(&running), None);
    balance(&running);
}

/// Ten readings, one refused by one of two sinks, and one payload that could not be decoded.
async fn with_letters(running: &Running) {
    running.store.configure_sinks(vec![slow("cloud"), slow("other")]).await.unwrap();
    running.store.append(readings(0, 10)).await.unwrap();
    refuse(running, "cloud", Stream::Readings).await;
    reject(running, b"20").await;
    reject(running, b"21").await;
}

/// Two letters are replayed, one is purged.
async fn change_letters(running: &Running) -> Result<(), Closed> {
    running.store.change_letters(replays(running, &[1, 2])).await?;
    running.store.change_letters(LettersChange::Purge(Which::Between(0, 3))).await.map(drop)
}

/// Each letter is there, or what it comes to, and never both.
fn check(running: &Running, what: &str) {
    balance(running);
    let books = running.books();
    let next = books.stream(Stream::Readings).next;
    let letters = books.dead_letters;
    match (letters.kept, letters.replayed, letters.purged_by_hand) {
        (3, 0, 0) => assert_eq!(next, Seq(11), "{what}"),
        (1, 2, 0) | (0, 2, 1) => {
            assert_eq!(next, Seq(13), "{what}");
            let contents: Vec<u64> = [11, 12].map(|seq| content(running, Stream::Readings, Seq(seq))).into();
            assert_eq!(contents, [0, 20], "{what}");
            assert_eq!(wanted(running, "cloud", Stream::Readings).len(), 11, "{what}");
            assert_eq!(wanted(running, "other", Stream::Readings).len(), 11, "{what}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

async fn operations() -> (u64, u64) {
    let disk = Disk::formatted();
    let (running, _) = disk.open().unwrap();
    with_letters(&running).await;
    let before = disk.operations();
    change_letters(&running).await.unwrap();
    check(&running, "on a sound disk");
    (before, disk.operations())
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_write_of_a_replay_leaves_the_letter_or_its_record() {
    let (before, after) = operations().await;
    assert!(after > before + 10, "a replay writes");
    let mut random = fastrand::Rng::with_seed(6);
    let mut replayed = 0;
    for cut in before..=after {
        let disk = Disk::formatted();
        let (running, _) = disk.open().unwrap();
        with_letters(&running).await;
        disk.fail(cut, u64::MAX, io::ErrorKind::Other);
        drop(tokio::time::timeout(Duration::from_secs(3), change_letters(&running)).await);
        running.crash().await;
        for image in 0..4 {
            let what = format!("power cut at operation {cut}, image {image}");
            let after = disk.after_a_power_cut(&mut random);
            let (running, _) = after.open().unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&running, &what);
            replayed += running.books().dead_letters.replayed;
            // And once more, as a person would.
            change_letters(&running).await.unwrap();
            check(&running, &what);
            assert_eq!(running.books().dead_letters.kept, 0, "{what}");
        }
    }
    assert!(replayed > 0, "some cuts came after the commit");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_at_any_write_of_a_replay_does_it_once() {
    let (before, after) = operations().await;
    for from in before..=after {
        for (kind, lasts) in [(io::ErrorKind::StorageFull, 3), (io::ErrorKind::Other, 1)] {
            let disk = Disk::formatted();
            let (running, _) = disk.open().unwrap();
            with_letters(&running).await;
            disk.fail(from, from + lasts, kind);
            let done = running.store.change_letters(replays(&running, &[1, 2])).await.unwrap();
            assert_eq!(done.replayed, 2, "{kind:?} at operation {from}");
            let purged =
                running.store.change_letters(LettersChange::Purge(Which::These(vec![3]))).await.unwrap();
            assert_eq!(purged.purged, 1, "{kind:?} at operation {from}");
            check(&running, &format!("{kind:?} at operation {from}"));
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(u64),
    Refuse(usize),
    Take(usize),
    Replay(u64),
    Epoch,
    Crash,
}

const SINKS: [&str; 3] = ["a", "b", "c"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..4_u64).prop_map(Step::Append),
        6 => (0..3_usize).prop_map(Step::Refuse),
        2 => (0..3_usize).prop_map(Step::Take),
        3 => (0..20_u64).prop_map(Step::Replay),
        1 => prop_oneof![Just(Step::Epoch), Just(Step::Crash)],
    ];
    collection::vec(step, 1..40)
}

/// Does `steps`, then lets every sink take everything and replays what is left. What each sink was given, in any order.
async fn given_after(steps: Vec<Step>) -> (u64, BTreeMap<&'static str, Vec<u64>>) {
    let disk = Disk::formatted();
    let (mut running, _) = disk.open().unwrap();
    running.store.configure_sinks(SINKS.map(slow).into()).await.unwrap();
    let (mut appended, mut given) = (0, BTreeMap::<_, Vec<u64>>::new());
    for step in steps {
        match step {
            Step::Append(count) => {
                running.store.append(readings(appended, count)).await.unwrap();
                appended += count;
            }
            Step::Refuse(sink) => {
                if !wanted(&running, SINKS[sink], Stream::Readings).is_empty() {
                    refuse(&running, SINKS[sink], Stream::Readings).await;
                }
            }
            Step::Take(sink) => {
                let taken = take_all(&running, SINKS[sink], Stream::Readings).await;
                given.entry(SINKS[sink]).or_default().extend(taken);
            }
            Step::Replay(id) => {
                replay(&running, &[id, id + 1, id + 5]).await;
            }
            Step::Epoch => running.store.leave_epoch(running.books().epoch).await.unwrap(),
            Step::Crash => {
                running.crash().await;
                running = disk.open().unwrap().0;
                running.store.configure_sinks(SINKS.map(slow).into()).await.unwrap();
            }
        }
        balance(&running);
    }
    let ids: Vec<u64> = (1..=running.books().dead_letters.last_id).collect();
    replay(&running, &ids).await;
    balance(&running);
    for sink in SINKS {
        let taken = take_all(&running, sink, Stream::Readings).await;
        given.entry(sink).or_default().extend(taken);
    }
    balance(&running);
    (appended, given)
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_refused_and_replayed_each_sink_is_given_each_record_once(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (appended, given) = runtime.block_on(given_after(steps));
        for (sink, mut given) in given {
            given.sort_unstable();
            assert_eq!(given, (0..appended).collect::<Vec<_>>(), "{sink}");
        }
    }
}
