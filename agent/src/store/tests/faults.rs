//! Promises that a review found broken.

use std::time::Duration;

use redb::ReadableTable;
use tokio::time::timeout;

use super::*;
use crate::store::log::State;

const PATIENCE: Duration = Duration::from_secs(5);

/// Every number of the stream is held, or `sink` knows why not.
fn unexplained(running: &Running, sink: &str) -> Vec<u64> {
    let books = running.books();
    let ledger = &books.sinks[sink].streams[&Stream::Readings];
    let reader = running.store.reader();
    let gaps: Vec<_> = ledger.pins.iter().flat_map(|pin| &pin.gaps).chain(&ledger.ahead).collect();
    (ledger.cursor.0..books.stream(Stream::Readings).next.0)
        .filter(|seq| !gaps.iter().any(|gap| gap.range.contains(Seq(*seq))))
        .filter(|seq| {
            let piece = reader.piece(Stream::Readings, Seq(*seq)).unwrap();
            piece.is_none_or(|piece| !piece.contains(Seq(*seq)))
        })
        .collect()
}

/// A full store whose oldest chunk is pinned by "cloud": there is a hole behind it.
async fn with_a_hole(dir: &TempDir, others: &[&str]) -> Running {
    let running = Running::open(dir, |settings| settings.max_size_bytes = 100_000);
    let sinks = std::iter::once("cloud").chain(others.iter().copied()).map(sink).collect();
    running.store.configure_sinks(sinks).await.unwrap();
    for n in 0..600 {
        running.store.append(readings(n * 100, 100)).await.unwrap();
    }
    running
}

#[tokio::test]
async fn a_new_sink_is_told_of_holes_behind_a_pinned_batch() {
    let dir = TempDir::new().unwrap();
    let running = with_a_hole(&dir, &[]).await;
    running.store.configure_sinks(vec![sink("cloud"), sink("late")]).await.unwrap();
    assert_eq!(unexplained(&running, "cloud"), [0_u64; 0]);
    assert_eq!(unexplained(&running, "late").len(), 0, "neither held nor declared to the new sink");
}

#[tokio::test]
async fn a_sink_that_returns_is_told_of_what_was_shed_behind_a_pinned_batch() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |settings| settings.max_size_bytes = 100_000);
    running.store.configure_sinks(vec![sink("cloud"), sink("other")]).await.unwrap();
    running.store.append(readings(0, 100)).await.unwrap();
    // "other" has the first chunk and goes; "cloud" keeps it pinned.
    let epoch = running.books().epoch;
    running.store.advance("other", epoch, Stream::Readings, Seq(101)).await.unwrap();
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    for n in 1..600 {
        running.store.append(readings(n * 100, 100)).await.unwrap();
    }
    running.store.configure_sinks(vec![sink("cloud"), sink("other")]).await.unwrap();
    assert_eq!(
        unexplained(&running, "other").len(),
        0,
        "neither held nor declared to the sink that returned"
    );
}

#[tokio::test]
async fn what_a_sink_answered_before_a_new_epoch_is_not_sent_to_it_again() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud"), sink("other")]).await.unwrap();
    running.store.append(readings(0, 10)).await.unwrap();
    let epoch = running.books().epoch;
    // "cloud" has all ten: its cursor waits for a commit. Meanwhile "other" turns out to know more than we do.
    running.store.advance("cloud", epoch, Stream::Readings, Seq(11)).await.unwrap();
    running.store.leave_epoch(epoch).await.unwrap();
    assert_eq!(running.books().pending("cloud", Stream::Readings), Some(0), "it would get all ten once more");
}

#[tokio::test]
async fn a_store_that_waits_for_the_windows_does_not_grow_without_bound() {
    let dir = TempDir::new().unwrap();
    let mut settings = Settings::in_dir(dir.path().to_owned());
    settings.max_size_bytes = 100_000;
    let opened = Store::open(
        settings,
        "gw",
        "machine",
        WindowsPresence::Configured,
        Clock::system(),
        Published::default(),
    )
    .unwrap();
    let writer = tokio::spawn(opened.writer.run());
    opened.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    // The windows are behind: no checkpoint comes.
    for n in 0..200 {
        let append = opened.store.append(readings(n * 1_000, 1_000));
        if timeout(Duration::from_millis(500), append).await.is_err() {
            break;
        }
    }
    let held = opened.store.books().borrow().held_bytes();
    writer.abort();
    assert!(held < 10 * 100_000, "max_size is 100 kB, held are {held} bytes");
}

/// Commits `group` as if the wall clock showed `wall`.
fn commit(file: &file::File, state: &mut State, group: Option<Group>, wall: i64) -> u64 {
    let work = work::Work { group, ..work::Work::default() };
    state.commit(file, &work, Clock::system().monotonic(), Timestamp(wall)).unwrap().shed
}

#[test]
fn a_clock_that_is_set_sheds_nothing_that_was_received_a_minute_ago() {
    const YEAR_2026: i64 = 1_790_000_000;
    let dir = TempDir::new().unwrap();
    let file = file::File::open(dir.path(), |_| {}).unwrap();
    let settings = Settings::in_dir(dir.path().to_owned());
    let mut state = State::load(&file, settings, WindowsPresence::None).unwrap();
    let sinks = work::Work { sinks: Some(vec![sink("cloud")]), ..work::Work::default() };
    state.commit(&file, &sinks, Clock::system().monotonic(), Timestamp(0)).unwrap();
    // A board without a battery begins in 1970; the network sets its clock a minute later.
    let mut shed = 0;
    for second in 0..600 {
        let seconds = if second < 60 { second } else { YEAR_2026 + second };
        let wall = seconds * 1_000_000 + 1;
        let mut group = readings(u64::try_from(second).unwrap(), 1);
        group.readings[0].received = Timestamp(wall);
        shed += commit(&file, &mut state, Some(group), wall);
    }
    assert_eq!(shed, 0, "max_age is 30 d, and nothing is older than ten minutes");
}

#[tokio::test]
async fn one_damaged_chunk_does_not_stop_all_intake() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    for n in 0..3 {
        running.store.append(readings(n, 1)).await.unwrap();
    }
    running
        .store
        .reader()
        .file
        .write(|transaction| {
            let mut table = transaction.open_table(file::READINGS)?;
            let mut bytes = table.get(1)?.unwrap().value().to_vec();
            bytes[0] ^= 1;
            table.insert(1, bytes.as_slice())?;
            Ok(())
        })
        .unwrap();
    for n in 3..100 {
        let appended = timeout(PATIENCE, running.store.append(readings(n, 1))).await;
        assert!(appended.is_ok(), "append {n} hangs: {:?}", running.store.report().borrow().last_error);
    }
}

#[tokio::test]
async fn a_full_store_says_once_that_it_sheds() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |settings| settings.max_size_bytes = 100_000);
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    for n in 0..100 {
        running.store.append(readings(n * 100, 100)).await.unwrap();
    }
    let mut changes = 0;
    let mut before = running.store.report().borrow().state;
    for n in 100..200 {
        running.store.append(readings(n * 100, 100)).await.unwrap();
        for _ in 0..2 {
            let now = running.store.report().borrow().state;
            changes += u32::from(now != before);
            before = now;
            // A commit that adds nothing, as pins and cursors make them.
            running.store.remember("x", Vec::new()).await.unwrap();
        }
    }
    assert!(changes <= 2, "{changes} changes of state, each with a log line, in 200 commits of a full store");
}

#[test]
fn what_is_remembered_of_two_hundred_clients_fits_a_gateway() {
    let mut recent = recent::Recent::default();
    for client in 0..200 {
        let peer: Arc<str> = format!("direct/sensor-{client:04}").into();
        for n in 0..70_000_u64 {
            recent.remember(
                &peer,
                crate::source::listen::IN_FLIGHT,
                u16::try_from(n % 65_535 + 1).unwrap(),
                n,
            );
        }
    }
    let row = postcard::to_stdvec(&recent.snapshot()).unwrap();
    assert!(row.len() < 8 << 20, "one row of {} MiB, written every 256 commits", row.len() >> 20);
}

#[tokio::test]
async fn the_last_words_of_the_windows_do_not_wait_for_the_interval() {
    let dir = TempDir::new().unwrap();
    // The longest that the configuration allows; the agent has 25 s to stop.
    let running = Running::open(&dir, |settings| settings.commit_interval = Duration::from_secs(60));
    let update = WindowsUpdate { checkpoint: Some(Checkpoint::default()), ..WindowsUpdate::default() };
    let saved = timeout(PATIENCE, running.store.update_windows(update)).await;
    assert!(saved.is_ok(), "stopping waits for commit_interval");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_does_not_wait_for_company() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |settings| settings.commit_interval = Duration::from_secs(60));
    let asked_before =
        running.store.update_windows(WindowsUpdate { note: vec![1], ..WindowsUpdate::default() });
    let began = Clock::system().monotonic();
    let (saved, ()) = tokio::join!(asked_before, async { running.store.hurry() });
    saved.unwrap();
    running.store.update_windows(WindowsUpdate { note: vec![2], ..WindowsUpdate::default() }).await.unwrap();
    assert!(Clock::system().monotonic() - began < Duration::from_secs(1));
}

#[tokio::test]
async fn max_size_counts_what_lies_on_the_disk() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    for n in 0..20 {
        running.store.append(readings(n * 4_000, 4_000)).await.unwrap();
    }
    let on_disk: u64 = running
        .store
        .reader()
        .file
        .read(|transaction| {
            let table = transaction.open_table(file::READINGS)?;
            let mut sum = 0;
            for row in table.iter()? {
                sum += retention::disk_bytes(row?.1.value().len());
            }
            Ok(sum)
        })
        .unwrap();
    let held = running.books().held_bytes();
    assert!(on_disk <= held * 5 / 4, "{held} bytes are counted, {on_disk} are held");
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Messages(u64),
    SessionLost,
    Windows,
    Checkpoint,
    Pin(usize, Vec<u64>),
    Advance(usize, u64),
    Split(usize),
    Epoch,
    Crash,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::{Just, Strategy, prop_oneof};
    let sink = 0..2_usize;
    let step = prop_oneof![
        6 => (1..400_u64).prop_map(Step::Append),
        3 => (1..40_u64).prop_map(Step::Messages),
        1 => Just(Step::SessionLost),
        2 => Just(Step::Windows),
        2 => Just(Step::Checkpoint),
        2 => (sink.clone(), proptest::collection::vec(1..300_u64, 1..4)).prop_map(|(s, l)| Step::Pin(s, l)),
        4 => (sink.clone(), 0..500_u64).prop_map(|(s, n)| Step::Advance(s, n)),
        1 => sink.prop_map(Step::Split),
        1 => Just(Step::Epoch),
        3 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 20..80)
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(24))]
    #[test]
    fn a_store_read_back_is_the_store_that_was_written(steps in steps()) {
        let dir = TempDir::new().unwrap();
        let file = Arc::new(file::File::open(dir.path(), |_| {}).unwrap());
        let mut settings = Settings::in_dir(dir.path().to_owned());
        settings.max_size_bytes = 60_000;
        let load = || State::load(&file, settings.clone(), WindowsPresence::Configured).unwrap();
        let names = ["a", "b"];
        let configured = || work::Work {
            sinks: Some(names.iter().map(|name| sink(name)).collect()),
            ..work::Work::default()
        };
        let mut state = load();
        let mut n = 0;
        let mut known: Vec<u64> = Vec::new();
        state.commit(&file, &configured(), Clock::system().monotonic(), Clock::system().wall()).unwrap();
        for step in steps {
            let epoch = state.books.epoch;
            let head = state.books.stream(Stream::Readings).next;
            let ledger = |s: usize| &state.books.sinks[names[s]].streams[&Stream::Readings];
            let change = |s: usize, event| LedgerChange {
                sink: names[s].into(), stream: Stream::Readings, epoch, event,
            };
            let mut work = work::Work::default();
            match step {
                Step::Append(count) => {
                    work.group = Some(readings(n, count));
                    known.extend(n..n + count);
                    n += count;
                }
                Step::Messages(count) => {
                    work.group = Some(Group { readings: Vec::new(), ..readings(n, count) });
                    known.extend(n..n + count);
                    n += count;
                }
                Step::SessionLost => {
                    let lost = recent::Change {
                        peer: "plant/c".into(), session_lost: true, in_flight: u16::MAX, messages: Vec::new(),
                    };
                    work.group = Some(Group { recent: vec![lost], ..Group::default() });
                    known.clear();
                }
                Step::Windows => work.windows = Some(WindowsUpdate {
                    position: head, note: b"mark".to_vec(), ..WindowsUpdate::default()
                }),
                Step::Checkpoint => work.windows = Some(WindowsUpdate {
                    position: head, checkpoint: Some(Checkpoint::default()), ..WindowsUpdate::default()
                }),
                Step::Pin(s, lengths) => {
                    let mut last = ledger(s).unpinned().0 - 1;
                    let lasts = lengths.iter().map(|length| { last += length; Seq(last) }).collect();
                    work.ledger.push(change(s, LedgerEvent::Pin(lasts, 0)));
                }
                Step::Advance(s, further) => {
                    let next = ledger(s).cursor.plus(further);
                    work.ledger.push(change(s, LedgerEvent::Advance(next)));
                }
                Step::Split(s) => work.ledger.push(change(s, LedgerEvent::Split)),
                Step::Epoch => {
                    let identity = ledger::Identity { agent: "gw".into(), machine: "m".into() };
                    work.epoch = Some((crate::stream::Epoch(uuid::Uuid::new_v4()), identity));
                }
                Step::Crash => {
                    let loaded = load();
                    assert_eq!(loaded.books, state.books);
                    state = loaded;
                    work = configured();
                }
            }
            state.commit(&file, &work, Clock::system().monotonic(), Clock::system().wall()).unwrap();
            let loaded = load();
            assert_eq!(loaded.books, state.books);
            for seq in &known {
                let id = u16::try_from(seq % 65_535 + 1).unwrap();
                assert!(loaded.recent.knows("plant/c", id, *seq), "message {seq} is forgotten");
            }
            let books = &state.books;
            let stream = books.stream(Stream::Readings);
            let reader = Reader::new(Arc::clone(&file));
            for name in names {
                let ledger = &books.sinks[name].streams[&Stream::Readings];
                let settled = ledger.delivered + ledger.dead_lettered + ledger.shed;
                assert_eq!(stream.appended(), settled + ledger.pending(stream.next), "{name}: {books:?}");
                let gaps: Vec<_> = ledger.pins.iter().flat_map(|pin| &pin.gaps).chain(&ledger.ahead).collect();
                let mut seq = ledger.cursor;
                while seq < stream.next {
                    if let Some(gap) = gaps.iter().find(|gap| gap.range.contains(seq)) {
                        seq = gap.range.last.next();
                        continue;
                    }
                    let piece = reader.piece(Stream::Readings, seq).unwrap();
                    let range = piece.and_then(|piece| piece.range()).filter(|range| range.contains(seq));
                    let range = range.unwrap_or_else(|| panic!("{name}: {seq} is neither held nor declared"));
                    seq = range.last.next();
                }
            }
            let oldest = stream.oldest;
            let first = file.read(|t| Ok(t.open_table(file::READINGS)?.first()?.map(|row| row.0.value()))).unwrap();
            assert!(first.is_some_and(|first| oldest.0 <= first), "{oldest} {first:?}");
        }
    }
}
