//! A damaged disk: whatever is done to the file, the store opens, saves what can be read, and its books balance.

mod again;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use redb::ReadableTable;
use tokio::time::timeout;

use super::*;
use crate::causes::chain;
use crate::store::chunk::Chunk;
use crate::store::note::Note;
use crate::stream::GapReason;

/// Of virtual time where that is paused, as wherever a disk that fails is waited for: that takes a minute and more.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A store's file, and what is known of it from elsewhere.
struct Image {
    bytes: Vec<u8>,
    /// Readings with the numbers 0 to this one less were stored; each has the sequence number one above.
    stored: u64,
    /// So many of them has the sink "cloud", and so many "other".
    had: [u64; 2],
}

#[derive(Clone, Copy, Debug)]
enum Close {
    Clean,
    Unclean,
}

fn sinks() -> Vec<SinkSpec> {
    // Nothing is pinned by itself.
    let wait = Duration::from_secs(3_600);
    let both = vec![Stream::Windows, Stream::Readings];
    ["cloud", "other"]
        .map(|name| SinkSpec {
            streams: both.clone(),
            batch: BatchLimits { wait, ..BatchLimits::default() },
            ..sink(name)
        })
        .to_vec()
}

/// Loses the first page of a store that is closed, so that it cannot be opened.
fn lose_head(dir: &TempDir) {
    let path = dir.path().join(file::FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..4_096].fill(0);
    std::fs::write(&path, bytes).unwrap();
}

/// Both sinks take whatever there is, until no damaged file is left.
async fn take_all_until_saved(running: &Running) {
    while !running.books().damage.files.is_empty() {
        let books = running.books();
        for name in ["cloud", "other"] {
            let next = books.stream(Stream::Readings).next;
            running.store.advance(name, books.epoch, Stream::Readings, next).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn image(close: Close) -> Image {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |settings| settings.commit_interval = Duration::from_millis(1));
    running.store.configure_sinks(sinks()).await.unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let (mut stored, had) = (0, [2_050, 1_400]);
    for round in 0..60 {
        let count = if round % 20 == 7 { 6_000 } else { random.u64(1..120) };
        running.store.append(readings(stored, count)).await.unwrap();
        stored += count;
        running.store.update_windows(windows(round)).await.unwrap();
        for (name, had) in ["cloud", "other"].into_iter().zip(had) {
            let next = Seq(had.min(stored) + 1);
            running.store.advance(name, running.books().epoch, Stream::Readings, next).await.unwrap();
        }
    }
    let path = dir.path().join(file::FILE_NAME);
    let bytes = match close {
        Close::Unclean => std::fs::read(&path).unwrap(),
        Close::Clean => {
            running.crash().await;
            std::fs::read(&path).unwrap()
        }
    };
    Image { bytes, stored, had }
}

/// The image with its first page gone, in a folder and as bytes.
fn without_head(image: &Image) -> (TempDir, Vec<u8>) {
    let mut bytes = image.bytes.clone();
    bytes[..4_096].fill(0);
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join(file::FILE_NAME), &bytes).unwrap();
    (dir, bytes)
}

fn windows(n: u64) -> WindowsUpdate {
    let record = WindowRecord {
        window: "minute".into(),
        device: "d1".into(),
        tags: Arc::default(),
        field: "n".into(),
        start: Timestamp(i64::try_from(n).unwrap() * 60_000_000),
        end: Timestamp(i64::try_from(n).unwrap() * 60_000_000 + 60_000_000),
        revision: 0,
        aggregates: vec![("count".into(), crate::reading::AggregateValue::Count(n))],
        replay_of: None,
    };
    WindowsUpdate { records: vec![record], ..WindowsUpdate::default() }
}

/// Intact chunks of readings of `bytes`, found in the dullest way: numbers, and the commit if there is a note.
fn intact(bytes: &[u8]) -> Vec<(SeqRange, Option<Note>)> {
    let mut found = Vec::new();
    for at in (0..bytes.len().saturating_sub(48)).filter(|at| bytes[*at..].starts_with(b"HFCK")) {
        let length = |from: usize| u32::from_le_bytes(bytes[at + from..at + from + 4].try_into().unwrap());
        let end = at + 48 + length(32) as usize + length(36) as usize;
        let Some(chunk) = bytes.get(at..end).and_then(|bytes| Chunk::parse(bytes).ok()) else { continue };
        let none = SeqRange { first: Seq(u64::MAX), last: Seq(0) };
        if chunk.header.stream == Stream::Readings {
            found.push((chunk.header.range().unwrap_or(none), Note::decode(chunk.note).ok()));
        }
    }
    found
}

/// What "cloud" and "other" still have to get: number of each reading, and what it is a replay of.
fn pending(running: &Running, sink: &str) -> Result<Vec<(u64, Option<u64>)>, String> {
    let books = running.books();
    let ledger = &books.sinks[sink].streams[&Stream::Readings];
    let next = books.stream(Stream::Readings).next;
    let settled = ledger.delivered + ledger.dead_lettered + ledger.shed;
    assert_eq!(
        books.stream(Stream::Readings).appended(),
        settled + ledger.pending(next),
        "{sink}: {books:?}"
    );
    let reader = running.store.reader();
    let mut seq = ledger.cursor;
    let mut found = Vec::new();
    while seq < next {
        if ledger.settled_by(seq).is_some() {
            seq = seq.next();
            continue;
        }
        let piece = reader.piece(Stream::Readings, seq).map_err(|error| chain(&error))?;
        let Some(Piece::Readings(first, records)) = piece.filter(|piece| piece.contains(seq)) else {
            running.store.suspect(Stream::Readings, seq);
            return Err(format!("{seq} is neither held nor declared"));
        };
        let end = first.plus(records.len() as u64);
        while seq < end {
            if ledger.settled_by(seq).is_none() {
                let reading = &records[usize::try_from(seq.0 - first.0).unwrap()];
                let Value::Uint(number) = reading.values[0] else { unreachable!("only numbers were stored") };
                let of = reading.remarks.as_ref().and_then(|remarks| remarks.replay_of.as_ref());
                found.push((number, of.map(|of| of.seq.0)));
            }
            seq = seq.next();
        }
    }
    Ok(found)
}

/// Opens what is left of an image, waits until everything is saved or declared lost, and holds it against what is known.
async fn check(image: &Image, damaged: Option<&[u8]>, what: &str) {
    let dir = TempDir::new().unwrap();
    let bytes = damaged.unwrap_or(&image.bytes);
    std::fs::write(dir.path().join(file::FILE_NAME), bytes).unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    // New readings are taken at once.
    running.store.append(readings(1_000_000, 10)).await.unwrap();
    settled(&running, image, bytes, what).await;
    // Nothing of it is done again at the next start.
    let before = running.books();
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    let after = running.books();
    assert_eq!((before.epoch, before.damage.clone()), (after.epoch, after.damage.clone()), "{what}");
}

async fn settled(running: &Running, image: &Image, bytes: &[u8], what: &str) {
    let intact = intact(bytes);
    let newest = intact.iter().filter_map(|(_, note)| Some(note.as_ref()?.books.commit)).max();
    let last_commit =
        self::intact(&image.bytes).iter().filter_map(|(_, note)| Some(note.as_ref()?.books.commit)).max();
    let ranges: Vec<SeqRange> = intact.iter().map(|(range, _)| *range).collect();
    for (name, had) in ["cloud", "other"].into_iter().zip(image.had) {
        let mut books = running.store.books();
        let found = timeout(PATIENCE, async {
            loop {
                let is_read = books.borrow_and_update().damage.files.is_empty();
                match is_read.then(|| pending(running, name)) {
                    Some(Ok(found)) => return found,
                    // A commit tells more; what could be read after all tells nothing.
                    Some(Err(_)) => drop(timeout(LOOK_AGAIN, books.changed()).await),
                    None => books.changed().await.unwrap(),
                }
            }
        });
        let found = found.await.unwrap_or_else(|_| panic!("{what}: never settled: {:?}", running.books()));
        let numbers: BTreeSet<u64> = found.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers.len(), found.len(), "{what}: {name} would get something twice");
        let (new, old): (BTreeSet<u64>, BTreeSet<u64>) =
            numbers.iter().partition(|number| **number >= 1_000_000);
        assert_eq!(new, (1_000_000..1_000_010).collect(), "{what}: what came after the damage");
        assert!(old.iter().all(|number| *number < image.stored), "{what}: {name} would get what never was");
        for (number, of) in found.iter().filter(|(number, _)| *number < 1_000_000) {
            assert!(of.is_none_or(|of| of == number + 1), "{what}: {number} is said to have been {of:?}");
        }
        if newest.is_some() && newest == last_commit {
            assert!(
                old.first().is_none_or(|first| *first >= had),
                "{what}: {name} would get again what it has"
            );
        }
        let wanted = (had..image.stored).filter(|n| ranges.iter().any(|range| range.contains(Seq(n + 1))));
        let missing: Vec<u64> = wanted.filter(|n| !old.contains(n)).collect();
        assert!(
            missing.is_empty(),
            "{what}: {name} misses {} that can be read, {:?}…",
            missing.len(),
            &missing[..missing.len().min(5)]
        );
        if running.books().damage.moved_aside == 0 {
            let gaps = &running.books().sinks[name].streams[&Stream::Readings].ahead;
            assert!(gaps.iter().all(|gap| gap.reason == GapReason::Damage), "{what}: {gaps:?}");
        }
    }
}

fn damage(bytes: &[u8], random: &mut fastrand::Rng) -> (String, Vec<u8>) {
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let page = |at: usize| at / 4_096 * 4_096..(at / 4_096 + 1) * 4_096;
    let what = match random.u8(..7) {
        0 => {
            let at = random.usize(..used);
            bytes[at] ^= 1 << random.u8(..8);
            format!("a bit at {at} is flipped")
        }
        1 => {
            let places: Vec<usize> = (0..random.usize(1..40)).map(|_| random.usize(..used)).collect();
            places.iter().for_each(|at| bytes[*at] = random.u8(..));
            format!("bytes at {places:?} are others")
        }
        2 => {
            let at = page(random.usize(..used));
            bytes[at.clone()].fill(0);
            format!("the page at {} is zeros", at.start)
        }
        3 => {
            let at = page(random.usize(..used));
            let to = (at.start + random.usize(1..60) * 4_096).min(length);
            bytes[at.start..to].fill(0);
            format!("the pages from {} to {to} are zeros", at.start)
        }
        4 => {
            bytes.truncate(random.usize(1..length));
            format!("it ends at {}", bytes.len())
        }
        5 => {
            let (from, to) = (page(random.usize(..used)), page(random.usize(..used)));
            let copied = bytes[from.clone()].to_vec();
            bytes[to.clone()].copy_from_slice(&copied);
            format!("the page of {} lies also at {}", from.start, to.start)
        }
        _ => {
            let at = random.usize(..used);
            let to = (at + random.usize(1..50_000)).min(length);
            bytes[at..to].iter_mut().for_each(|byte| *byte = random.u8(..));
            format!("from {at} to {to} there is noise")
        }
    };
    (what, bytes)
}

async fn many(close: Close, seeds: std::ops::Range<u64>) {
    let image = image(close).await;
    check(&image, None, "nothing is damaged").await;
    for seed in seeds {
        let (what, bytes) = damage(&image.bytes, &mut fastrand::Rng::with_seed(seed));
        let what = format!("{close:?}, seed {seed}: {what}");
        check(&image, Some(&bytes), &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_damaged_what_can_be_read_is_saved_once() {
    many(Close::Clean, 0..30).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_is_damaged_after_an_unclean_stop_what_can_be_read_is_saved_once() {
    many(Close::Unclean, 100..130).await;
}

#[tokio::test]
async fn a_file_that_is_no_store_is_moved_aside() {
    let foreign = TempDir::new().unwrap();
    let foreign_path = foreign.path().join("foreign.redb");
    let other = redb::Database::create(&foreign_path).unwrap();
    let transaction = other.begin_write().unwrap();
    let table: redb::TableDefinition<'_, u32, &str> = redb::TableDefinition::new("somebody's");
    transaction.open_table(table).unwrap().insert(1, "else").unwrap();
    transaction.commit().unwrap();
    drop(other);
    let cases: BTreeMap<&str, Vec<u8>> = BTreeMap::from([
        ("empty", Vec::new()),
        ("text", b"this is no store at all\n".repeat(500)),
        ("sqlite", [b"SQLite format 3\0".as_slice(), &[0; 8_000]].concat()),
        ("zeros", vec![0; 1 << 20]),
        ("one byte", vec![7]),
        ("another database", std::fs::read(&foreign_path).unwrap()),
    ]);
    for (what, bytes) in cases {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join(file::FILE_NAME), &bytes).unwrap();
        if what != "another database" {
            let error = Store::dead_letters(dir.path()).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{what}: no fault of the disk: {error:?}");
        }
        let running = Running::open(&dir, |_| {});
        running.store.configure_sinks(sinks()).await.unwrap();
        running.store.append(readings(0, 10)).await.unwrap();
        let mut books = running.store.books();
        let wait = books.wait_for(|books| books.damage.files.is_empty());
        timeout(PATIENCE, wait).await.unwrap().unwrap();
        assert_eq!((running.books().damage.moved_aside, numbers(&running.store).len()), (1, 10), "{what}");
        let kept = kept(dir.path());
        assert_eq!(kept.len(), 1, "{what}: kept for those who want to look");
        // redb repairs what it takes for its own.
        assert!(kept[0] == bytes || what == "another database", "{what}: as it was");
    }
}

/// What was moved aside.
fn kept(dir: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let aside = entries.filter(|path| path.to_string_lossy().contains("store.redb."));
    aside.map(|path| std::fs::read(path).unwrap()).collect()
}

#[tokio::test]
async fn a_kill_in_the_middle_of_saving_repeats_nothing() {
    let image = image(Close::Unclean).await;
    let (dir, bytes) = without_head(&image);
    let mut running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    running.store.append(readings(1_000_000, 10)).await.unwrap();
    let mut kills = 0;
    while !running.books().damage.files.is_empty() {
        let mut books = running.store.books();
        let saved = books.borrow().damage.saved;
        let wait = books.wait_for(|books| books.damage.saved != saved || books.damage.files.is_empty());
        timeout(PATIENCE, wait).await.unwrap().unwrap();
        running.crash().await;
        kills += 1;
        running = Running::open(&dir, |_| {});
        running.store.configure_sinks(sinks()).await.unwrap();
    }
    assert!(kills >= 2, "{kills} kills");
    settled(&running, &image, &bytes, "killed while it saved").await;
}

#[tokio::test]
async fn results_of_windows_are_saved_and_messages_recognised() {
    let image = image(Close::Unclean).await;
    let (dir, _) = without_head(&image);
    let running = Running::open(&dir, |_| {});
    let last = image.stored - 1;
    assert!(running.recent.knows("plant/c", u16::try_from(last % 65_535 + 1).unwrap(), last));
    assert!(running.books().previous.is_some(), "the first batch names the epoch before");
    running.store.configure_sinks(sinks()).await.unwrap();
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.files.is_empty())).await.unwrap().unwrap();
    let books = running.books();
    assert_eq!((books.damage.saved[1], books.damage.lost), (60, [0; 3]));
    assert_eq!(books.pending("cloud", Stream::Windows), Some(60));
    let piece = running.store.reader().piece(Stream::Windows, books.stream(Stream::Windows).first());
    let Piece::Windows(_, records) = piece.unwrap().unwrap() else { panic!("windows") };
    assert_eq!(records[0].replay_of.as_ref().unwrap().seq, Seq(1));
}

#[tokio::test]
async fn a_chunk_that_is_damaged_while_the_store_runs_is_declared_lost() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud"), sink("other")]).await.unwrap();
    // More than is kept in memory.
    for n in 0..30 {
        running.store.append(readings(n * 2_000, 2_000)).await.unwrap();
    }
    let epoch = running.books().epoch;
    running.store.advance("other", epoch, Stream::Readings, Seq(60_001)).await.unwrap();
    running.store.remember("x", Vec::new()).await.unwrap();
    let victim = Seq(10_001);
    let Some(Piece::Readings(first, records)) =
        running.store.reader().piece(Stream::Readings, victim).unwrap()
    else {
        panic!("it is held");
    };
    let range = SeqRange { first, last: Seq(first.0 + records.len() as u64 - 1) };
    let spoil = |key: u64| {
        running.store.reader().file.write(|transaction| {
            let mut table = transaction.open_table(file::READINGS)?;
            let mut bytes = table.get(key)?.unwrap().value().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            table.insert(key, bytes.as_slice())?;
            Ok(())
        })
    };
    spoil(first.0).unwrap();
    let lost = running.store.reader().piece(Stream::Readings, victim).unwrap();
    assert!(lost.is_none_or(|piece| !piece.contains(victim)));
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.lost[0] > 0)).await.unwrap().unwrap();
    let books = running.books();
    assert_eq!(books.damage.lost, [range.count(), 0, 0]);
    let ledger = |name: &str| books.sinks[name].streams[&Stream::Readings].clone();
    let declared: Vec<_> = ledger("cloud").ahead;
    assert!(declared.iter().any(|gap| gap.range == range && gap.reason == GapReason::Damage), "{declared:?}");
    assert_eq!((ledger("cloud").shed, ledger("other").shed), (range.count(), 0));
    for name in ["cloud", "other"] {
        let ledger = ledger(name);
        let settled = ledger.delivered + ledger.shed + ledger.pending(Seq(60_001));
        assert_eq!(settled, 60_000, "{name}");
    }
    // The same again after a crash, and a new sink is told, too.
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud"), sink("late")]).await.unwrap();
    assert_eq!(running.books().damage.lost, [range.count(), 0, 0]);
    let late = &running.books().sinks["late"].streams[&Stream::Readings];
    assert!(late.ahead.iter().any(|gap| gap.range == range), "{:?}", late.ahead);
}

#[tokio::test(start_paused = true)]
async fn a_tree_that_leads_nowhere_while_the_store_runs_is_left_for_a_new_store() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    for n in 0..30 {
        running.store.append(readings(n * 2_000, 2_000)).await.unwrap();
    }
    let epoch = running.books().epoch;
    let victim = running.store.reader().file.write(|transaction| {
        let mut table = transaction.open_table(file::READINGS)?;
        let key = table.iter()?.nth(7).transpose()?.map(|(key, _)| key.value()).unwrap();
        table.remove(key)?;
        Ok(Seq(key))
    });
    let victim = victim.unwrap();
    let found = running.store.reader().piece(Stream::Readings, victim).unwrap();
    assert!(found.is_none_or(|piece| !piece.contains(victim)));
    // A sink has some of it, and says so when everything is different already.
    running.store.suspect(Stream::Readings, victim);
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.moved_aside == 1)).await.unwrap().unwrap();
    running.store.advance("cloud", epoch, Stream::Readings, Seq(1_001)).await.unwrap();
    running.store.append(readings(1_000_000, 10)).await.unwrap();
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.files.is_empty())).await.unwrap().unwrap();
    let books = running.books();
    assert_eq!(books.previous.unwrap().epoch, epoch);
    assert!(books.stream(Stream::Readings).base == 60_000, "numbers inside go on");
    // The row that was removed was free for a moment, so its bytes may or may not be there.
    let lost = usize::try_from(books.damage.lost[0]).unwrap();
    for (name, all) in [("cloud", 59_010), ("other", 60_010)] {
        let numbers: Vec<u64> =
            pending(&running, name).unwrap().into_iter().map(|(number, _)| number).collect();
        let once: BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!((once.len(), once.len() + lost), (numbers.len(), all), "{name}");
    }
    assert_eq!(running.store.report().borrow().state, report::State::Ok);
}

/// Writes what `change` makes of the row `key`.
fn spoil(running: &Running, key: u64, change: impl FnOnce(&mut Vec<u8>)) {
    let spoiled = running.store.reader().file.write(|transaction| {
        let mut table = transaction.open_table(file::READINGS)?;
        let mut bytes = table.get(key)?.unwrap().value().to_vec();
        change(&mut bytes);
        table.insert(key, bytes.as_slice())?;
        Ok(())
    });
    spoiled.unwrap();
}

#[tokio::test]
async fn a_row_whose_header_lies_of_its_length_does_not_stay_for_ever_nor_take_others_with_it() {
    /// Where a header says how many records there are.
    const COUNT_AT: usize = 16;
    for count in [3_u8, 255] {
        let dir = TempDir::new().unwrap();
        let running = Running::open(&dir, |settings| settings.max_size_bytes = 40_000);
        running.store.configure_sinks(sinks()).await.unwrap();
        for n in 0..4 {
            running.store.append(readings(n * 10, 10)).await.unwrap();
        }
        spoil(&running, 1, |bytes| bytes[COUNT_AT] = count);
        // Both have the first three rows; the disk is filled until those go.
        for name in ["cloud", "other"] {
            running.store.advance(name, running.books().epoch, Stream::Readings, Seq(31)).await.unwrap();
        }
        for n in 4..100 {
            running.store.append(readings(n * 10, 10)).await.unwrap();
        }
        let books = running.books();
        let held = books.stream(Stream::Readings);
        assert!(held.oldest > Seq(11) && held.held_bytes <= 50_000, "{count}: {held:?}");
        running.crash().await;
        let running = Running::open(&dir, |_| {});
        assert_eq!(running.books().damage.moved_aside, 0, "{count}: {:?}", running.books());
        let gap = |gap: &crate::stream::Gap| gap.reason == GapReason::ShedSize && gap.range.first == Seq(31);
        let ledger = &running.books().sinks["cloud"].streams[&Stream::Readings];
        assert!(ledger.ahead.iter().all(gap), "{count}: {ledger:?}");
    }
}

#[tokio::test]
async fn a_chunk_that_nobody_understands_is_lost_though_its_checksum_is_right() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    for n in 0..3 {
        running.store.append(readings(n * 10, 10)).await.unwrap();
    }
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    spoil(&running, 11, |bytes| {
        let packed = chunk::Packed::new(vec![255; 30]);
        *bytes = packed.write(Stream::Readings, Seq(11), 10, Timestamp(0), b"");
    });
    let lost = timeout(PATIENCE, async {
        while pending(&running, "cloud").is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    lost.await.expect("the sink waits for it for ever");
    assert_eq!(running.books().damage.lost, [10, 0, 0]);
}

#[tokio::test]
async fn a_flipped_version_in_the_last_chunk_is_damage_and_no_newer_store() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    running.store.append(readings(0, 10)).await.unwrap();
    spoil(&running, 1, |bytes| bytes[4] ^= 2);
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    assert_eq!(running.books().damage.moved_aside, 1);
}

#[tokio::test]
async fn a_flipped_bit_in_the_format_is_damage_and_no_newer_store() {
    let with_copies = format::bytes_of(format::FORMAT);
    // As it was written before there were copies.
    for row in [with_copies, vec![2], vec![1]] {
        for bit in (0..8).chain([33, 70].into_iter().filter(|bit| *bit < row.len() * 8)) {
            let dir = TempDir::new().unwrap();
            let running = Running::open(&dir, |_| {});
            running.store.append(readings(0, 10)).await.unwrap();
            let mut damaged = row.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            set_format(&running, &damaged);
            running.crash().await;
            let running = Running::open(&dir, |_| {});
            assert_eq!(
                (running.books().damage.moved_aside, numbers(&running.store).len()),
                (0, 10),
                "{damaged:?}"
            );
            let now = running.store.reader().file.read(|transaction| {
                Ok(transaction.open_table(file::STATE)?.get("format")?.unwrap().value().to_vec())
            });
            assert_eq!(now.unwrap(), format::bytes_of(format::FORMAT));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_now_is_not_shed_for_what_is_saved_where_readings_have_a_limit_of_their_own() {
    const LIMIT: u64 = 400_000;
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    for n in 0..100 {
        running.store.append(readings(n * 2_000, 2_000)).await.unwrap();
    }
    assert!(running.books().held_bytes() > 2 * LIMIT, "{}", running.books().held_bytes());
    running.crash().await;
    lose_head(&dir);
    let limit = |settings: &mut Settings| {
        settings.streams[Stream::Readings.index()].max_size_bytes = Some(LIMIT);
    };
    let running = Running::open(&dir, limit);
    running.store.configure_sinks(sinks()).await.unwrap();
    running.store.append(readings(1_000_000, 10)).await.unwrap();
    // No sink takes anything: what was saved waits for room.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let books = running.books();
    let shed = books.sinks["cloud"].streams[&Stream::Readings].shed;
    assert_eq!(shed, 0, "given up for older ones: {:?}", books.stream(Stream::Readings));
    assert!(books.damage.saved[0] > 0 && !books.damage.files.is_empty(), "{:?}", books.damage);
    // They take it: the rest is saved.
    take_all_until_saved(&running).await;
    let books = running.books();
    assert_eq!((books.damage.saved[0], books.sinks["cloud"].streams[&Stream::Readings].shed), (200_000, 0));
}

#[tokio::test(start_paused = true)]
async fn windows_that_begin_anew_after_the_store_was_replaced_save_their_state_again() {
    let dir = TempDir::new().unwrap();
    let settings = Settings::in_dir(dir.path().to_owned());
    let (windows, published) = (WindowsPresence::Configured, Published::default());
    let opened = Store::open(settings, "gw", "machine", windows, Clock::system(), published).unwrap();
    let writer = tokio::spawn(opened.writer.run());
    let running = Running { store: opened.store, recent: opened.recent, writer };
    running.store.configure_sinks(sinks()).await.unwrap();
    for n in 0..3 {
        running.store.append(readings(n * 10, 10)).await.unwrap();
    }
    running
        .store
        .reader()
        .file
        .write(|transaction| Ok(transaction.open_table(file::READINGS)?.remove(11)?.is_some()))
        .unwrap();
    running.store.suspect(Stream::Readings, Seq(11));
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.moved_aside == 1)).await.unwrap().unwrap();
    let save = |base, key| {
        let checkpoint = Checkpoint { base, changed: vec![(vec![key], vec![1])], removed: Vec::new() };
        let position = running.books().stream(Stream::Readings).next;
        let update = WindowsUpdate { position, checkpoint: Some(checkpoint), ..WindowsUpdate::default() };
        running.store.update_windows(update)
    };
    let keys = || {
        let rows = running.store.windows_snapshot().unwrap().rows;
        rows.into_iter().map(|(key, _)| key[0]).collect::<Vec<u8>>()
    };
    save(CheckpointBase::Previous, 1).await.unwrap();
    assert_eq!(keys(), [0_u8; 0], "what changed since the rows were lost says too little");
    save(CheckpointBase::Empty, 2).await.unwrap();
    save(CheckpointBase::Previous, 3).await.unwrap();
    assert_eq!(keys(), [2, 3], "all of it is there again");
}

#[tokio::test]
async fn results_that_were_saved_without_their_epoch_are_none_that_the_windows_emitted() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    running.store.append(readings(0, 10)).await.unwrap();
    running.store.update_windows(windows(7)).await.unwrap();
    // Nothing tells any more whose the results were.
    spoil(&running, 1, |bytes| bytes.fill(0));
    spoil(&running, 11, |bytes| bytes.fill(0));
    running.crash().await;
    let path = dir.path().join(file::FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    let noted: Vec<usize> =
        (0..bytes.len() - 8).filter(|at| bytes[*at..].starts_with(b"HFCK") && bytes[at + 6] == 0).collect();
    noted.into_iter().for_each(|at| bytes[at] = 0);
    std::fs::write(&path, bytes).unwrap();
    let running = Running::open(&dir, |_| {});
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.files.is_empty())).await.unwrap().unwrap();
    let books = running.books();
    assert_eq!((books.damage.saved[1], books.previous.is_some()), (1, false), "{books:?}");
    let whole = Books { checkpoint: Books::default().checkpoint, ..Books::clone(&books) };
    let snapshot = checkpoint::windows_snapshot(&running.store.reader().file, &whole).unwrap();
    assert!(snapshot.emitted.is_empty(), "{:?}", snapshot.emitted);
}

#[tokio::test]
async fn a_store_that_was_salvaged_and_lost_chunks_is_sound() {
    use crate::store::offline::{Progress, verify};
    let image = image(Close::Unclean).await;
    let (dir, _) = without_head(&image);
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    running.store.append(readings(1_000_000, 10)).await.unwrap();
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.files.is_empty())).await.unwrap().unwrap();
    let keys = running.store.reader().file.read(|transaction| {
        let table = transaction.open_table(file::READINGS)?;
        Ok(table.iter()?.map(|row| row.unwrap().0.value()).collect::<Vec<u64>>())
    });
    let keys = keys.unwrap();
    // The oldest, two in the middle, one after the other.
    for key in [keys[0], keys[3], keys[2]] {
        spoil(&running, key, |bytes| bytes[60] ^= 1);
        running.store.suspect(Stream::Readings, Seq(key));
        let lost = running.books().damage.lost[0];
        timeout(PATIENCE, books.wait_for(|books| books.damage.lost[0] > lost)).await.unwrap().unwrap();
    }
    running.store.configure_sinks([sinks(), vec![sink("late")]].concat()).await.unwrap();
    drop(books);
    running.crash().await;
    let report = verify(dir.path(), &|_, _| None, &Progress::none()).unwrap();
    assert!(report.sound, "{:#?}", report.findings);
}
