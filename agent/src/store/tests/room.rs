//! What the file takes on the disk: near its limit, however long it is written to; and less again when a backlog is gone.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::store::log::State;

const MIB: u64 = 1 << 20;

/// Apparent length and bytes on the disk.
fn file_size(dir: &TempDir) -> (u64, u64) {
    let metadata = std::fs::metadata(dir.path().join(file::FILE_NAME)).unwrap();
    (metadata.len(), metadata.blocks() * 512)
}

/// A group of readings that do not compress.
fn incompressible(from: u64, count: u64, text_bytes: usize) -> Group {
    let mut group = readings(from, count);
    for reading in &mut group.readings {
        let text: String = (0..text_bytes / 16).map(|_| format!("{:016x}", fastrand::u64(..))).collect();
        reading.values[0] = Value::Text(text.into());
    }
    group
}

fn letter() -> work::Letter {
    work::Letter {
        time: Timestamp(1),
        origin: DeadLetterOrigin::Source { source: "plant".into(), topic: "t".into() },
        reason: "not understood".into(),
        payload: vec![7; fastrand::usize(10..60_000)],
        payload_bytes: 1,
        payload_hash: 1,
    }
}

#[test]
fn the_file_stays_near_its_limit_however_long_it_is_written_to() {
    let dir = TempDir::new().unwrap();
    let file = file::File::open(dir.path(), |_| {}).unwrap();
    let mut settings = Settings::in_dir(dir.path().to_owned());
    settings.max_size_bytes = 8 * MIB;
    settings.dead_letters.max_size_bytes = MIB;
    let mut state = State::load(&file, settings, WindowsPresence::Configured).unwrap();
    let mut commit = |work: &work::Work| {
        state.commit(&file, work, Clock::system().monotonic(), Clock::system().wall()).unwrap();
        state.books.clone()
    };
    commit(&work::Work { sinks: Some(vec![sink("cloud")]), ..work::Work::default() });
    let (mut n, mut longest, mut largest) = (0, 0, 0);
    let mut shed = 0;
    for turn in 0..1_000_u64 {
        // Lone readings and floods, letters of all sizes, states of a few hundred series: all that is written to the file.
        let count = 1 << fastrand::u32(0..10);
        let mut group = incompressible(n, count, 200);
        n += count;
        group.recent[0].peer = format!("plant/{}", turn % 20);
        if turn % 3 == 0 {
            group.rejected.push(letter());
        }
        let row = |_| (fastrand::u64(0..400).to_le_bytes().to_vec(), vec![1; fastrand::usize(100..1_500)]);
        let changed = if turn % 16 == 0 { (0..100).map(row).collect() } else { Vec::new() };
        let checkpoint = Some(Checkpoint { changed, ..Checkpoint::default() });
        let windows = WindowsUpdate { position: Seq(n + 1), checkpoint, ..WindowsUpdate::default() };
        let books =
            commit(&work::Work { group: Some(group), windows: Some(windows), ..work::Work::default() });
        shed = books.sinks["cloud"].streams[&Stream::Readings].shed;
        let (length, on_disk) = file_size(&dir);
        longest = longest.max(length);
        largest = largest.max(on_disk);
    }
    assert!(shed > n / 2, "{shed} of {n} were given up: the file was written through several times");
    // As ARCHITECTURE.md says: twice the limits; dead letters count twice, because redb rounds them up.
    let (limits, beside) = (8 * MIB + 2 * MIB, 4 * MIB);
    assert!(longest <= 2 * (limits + beside), "the file was {longest} bytes long");
    assert!(largest <= 2 * limits, "the file took {largest} bytes on the disk");
}

#[tokio::test]
async fn the_file_becomes_small_again_when_a_backlog_is_gone() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    let mut n = 0;
    while file_size(&dir).1 < 80 * MIB {
        running.store.append(incompressible(n, 64, 30_000)).await.unwrap();
        n += 64;
    }
    let (epoch, next) = (running.books().epoch, running.books().stream(Stream::Readings).next);
    running.store.advance("cloud", epoch, Stream::Readings, next).await.unwrap();
    // The next look at what can go is at most 64 commits away, and the copy of what peers sent at most 256.
    let mut report = running.store.report();
    let mut stored = vec![];
    for _ in 0..600 {
        running.store.append(readings(n, 1)).await.unwrap();
        stored.push(n);
        n += 1;
        if report.borrow_and_update().file_bytes < 10 * MIB && file_size(&dir).1 < 10 * MIB {
            break;
        }
    }
    let (length, on_disk) = file_size(&dir);
    assert!(length < 16 * MIB && on_disk < 10 * MIB, "{length} bytes, {on_disk} on the disk");
    // All is there, and the store goes on.
    running.store.append(readings(n, 1)).await.unwrap();
    running.crash().await;
    let running = Running::open(&dir, |_| {});
    let books = running.books();
    let stream = books.stream(Stream::Readings);
    assert_eq!(stream.next, next.plus(stored.len() as u64 + 1));
    assert_eq!(books.pending("cloud", Stream::Readings), Some(stored.len() as u64 + 1));
}

#[tokio::test]
async fn a_start_compacts_a_file_that_is_far_larger_than_what_is_in_it() {
    let dir = TempDir::new().unwrap();
    {
        // As a version that never compacts would leave it.
        let file = file::File::open(dir.path(), |_| {}).unwrap();
        file.write(|transaction| {
            let mut table = transaction.open_table(file::DEAD_LETTERS)?;
            (0..1_600).try_for_each(|id| table.insert(id, vec![7; 60_000].as_slice()).map(drop))?;
            Ok(())
        })
        .unwrap();
        file.write(|transaction| Ok(transaction.open_table(file::DEAD_LETTERS)?.retain(|_, _| false)?))
            .unwrap();
    }
    assert!(file_size(&dir).1 > 90 * MIB);
    let running = Running::open(&dir, |_| {});
    assert!(file_size(&dir).0 < MIB, "{:?}", file_size(&dir));
    assert!(running.store.report().borrow().file_bytes < MIB);
    running.store.append(readings(0, 10)).await.unwrap();
    assert_eq!(numbers(&running.store).len(), 10);
}
