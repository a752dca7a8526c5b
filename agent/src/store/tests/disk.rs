//! A disk that fails: every write and sync of a workload fails once, and the power goes at every one of them.

mod shedding;

use std::io;
use std::sync::Mutex;

use redb::StorageBackend;

use super::*;
use crate::store::file::{File, Medium};
use crate::store::recent::Recent;

/// A disk in memory. What was written since the last sync may be gone when the power goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// What the running system sees.
    seen: Vec<u8>,
    /// What is certain to survive.
    synced: Vec<u8>,
    /// Writes since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Writes and syncs so far.
    operations: u64,
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    /// The first operation that fails.
    from: u64,
    /// The first that does not any more.
    until: u64,
    kind: io::ErrorKind,
}

impl Platter {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.trouble {
            Some(Trouble { from, until, kind }) if (from..until).contains(&self.operations) => {
                Err(kind.into())
            }
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let part = platter.seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        let len = usize::try_from(len).unwrap();
        platter.seen.resize(len, 0);
        // The length is metadata, which the journal of the file system keeps.
        platter.synced.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        platter.synced = platter.seen.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        let offset = usize::try_from(offset).unwrap();
        platter.seen[offset..offset + data.len()].copy_from_slice(data);
        platter.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}

impl Disk {
    /// A disk with an empty store on it.
    pub(crate) fn formatted() -> Self {
        let disk = Self::default();
        drop(File::on(disk.medium(), |_| {}).unwrap());
        disk
    }

    pub(crate) fn fail(&self, from: u64, until: u64, kind: io::ErrorKind) {
        self.0.lock().unwrap().trouble = Some(Trouble { from, until, kind });
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// The disk as the next boot finds it: of what was not synced a random part, sectors torn.
    pub(super) fn after_a_power_cut(&self, random: &mut fastrand::Rng) -> Self {
        const SECTOR: usize = 512;
        let platter = self.0.lock().unwrap();
        let mut left = platter.synced.clone();
        for (offset, data) in &platter.unsynced {
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if random.bool() {
                    let at = offset + index * SECTOR;
                    left[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        let seen = left.clone();
        Self(Arc::new(Mutex::new(Platter { seen, synced: left, ..Platter::default() })))
    }

    pub(crate) fn medium(&self) -> Medium {
        let disk = self.clone();
        Medium::Backend(Box::new(move |builder| builder.create_with_backend(disk.clone())))
    }

    pub(super) fn open(&self) -> Result<(Running, Recent), Error> {
        let medium = self.medium();
        let settings = Settings::in_dir("unused".into());
        let (windows, published) = (WindowsPresence::Configured, Published::default());
        let opened =
            Store::open_on(medium, settings, ("gw", "machine"), windows, Clock::system(), published)?;
        let writer = tokio::spawn(opened.writer.run());
        let recent = opened.recent;
        Ok((Running { store: opened.store, recent: recent.clone(), writer }, recent))
    }
}

/// Ten groups of three readings, with every other kind of transaction between them. Says how many groups were acknowledged.
async fn workload(running: &Running, acknowledged: &mut u64) -> Result<(), Closed> {
    let store = &running.store;
    store.configure_sinks(vec![sink("cloud")]).await?;
    for n in 0..10 {
        store.append(readings(n * 3, 3)).await?;
        *acknowledged += 1;
        let epoch = running.books().epoch;
        match n % 5 {
            0 => store.advance("cloud", epoch, Stream::Readings, Seq(n * 3 + 2)).await?,
            1 => {
                let checkpoint =
                    Some(Checkpoint { changed: vec![(vec![1], vec![2])], ..Checkpoint::default() });
                let position = Seq(n * 3 + 4);
                store
                    .update_windows(WindowsUpdate { position, checkpoint, ..WindowsUpdate::default() })
                    .await?;
            }
            2 => store.change(change(running, LedgerEvent::Split)).await?,
            3 => store.remember("filters", vec![1, 2, 3]).await?,
            _ => store.change(change(running, LedgerEvent::Pin(vec![Seq(n * 3 + 3)], 0))).await?,
        }
    }
    Ok(())
}

/// What must hold whatever happened, if so many groups were acknowledged.
fn check(running: &Running, recent: &Recent, acknowledged: u64, what: &str) {
    let found = numbers(&running.store);
    let expected: Vec<u64> = (0..found.len() as u64).collect();
    assert_eq!(found, expected, "{what}: stored once, in order, without a hole");
    assert!(
        found.len() as u64 >= acknowledged * 3,
        "{what}: {acknowledged} groups acknowledged, {} stored",
        found.len()
    );
    let books = running.books();
    let stream = books.stream(Stream::Readings);
    assert_eq!(stream.appended(), found.len() as u64, "{what}");
    for n in 0..acknowledged * 3 {
        let packet_id = u16::try_from(n + 1).unwrap();
        assert!(recent.knows("plant/c", packet_id, n), "{what}: message {n} would be stored again");
    }
    if let Some(sink) = books.sinks.get("cloud") {
        let ledger = &sink.streams[&Stream::Readings];
        let settled = ledger.delivered + ledger.dead_lettered + ledger.shed;
        assert_eq!(stream.appended(), settled + ledger.pending(stream.next), "{what}: the books balance");
    }
}

/// How many writes and syncs the workload makes on a sound disk.
async fn operations() -> u64 {
    let disk = Disk::formatted();
    let before = disk.operations();
    let (running, _) = disk.open().unwrap();
    workload(&running, &mut 0).await.unwrap();
    disk.operations() - before
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_for_a_while_loses_nothing_and_the_work_goes_on() {
    let operations = operations().await;
    assert!(operations > 100, "the workload writes");
    for from in 1..=operations {
        for (kind, lasts) in [(io::ErrorKind::StorageFull, 3), (io::ErrorKind::Other, 1)] {
            let what = format!("{kind:?} at operation {from}");
            let disk = Disk::formatted();
            let before = disk.operations();
            let Ok((running, _)) = disk.open() else { continue };
            disk.fail(before + from, before + from + lasts, kind);
            let mut acknowledged = 0;
            workload(&running, &mut acknowledged).await.unwrap();
            assert_eq!(acknowledged, 10, "{what}");
            running.crash().await;
            let (running, recent) = disk.open().unwrap();
            check(&running, &recent, 10, &what);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_write_loses_nothing_that_was_acknowledged() {
    let operations = operations().await;
    let mut random = fastrand::Rng::with_seed(4);
    for cut in 1..=operations {
        let disk = Disk::formatted();
        let before = disk.operations();
        let (running, _) = disk.open().unwrap();
        disk.fail(before + cut, u64::MAX, io::ErrorKind::Other);
        let mut acknowledged = 0;
        let patience = Duration::from_secs(3);
        drop(tokio::time::timeout(patience, workload(&running, &mut acknowledged)).await);
        running.crash().await;
        for image in 0..4 {
            let what = format!("power cut at operation {cut}, image {image}");
            let after = disk.after_a_power_cut(&mut random);
            let (running, recent) = after.open().unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&running, &recent, acknowledged, &what);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_lets_sinks_go_on_by_giving_back_the_ballast() {
    let disk = Disk::formatted();
    let dir = TempDir::new().unwrap();
    let settings = Settings::in_dir(dir.path().to_owned());
    let reserve = ballast::Ballast::in_dir(dir.path());
    assert!(reserve.make());
    let path = dir.path().join(ballast::FILE_NAME);
    let (windows, clock) = (WindowsPresence::None, Clock::system());
    let opened =
        Store::open_on(disk.medium(), settings, ("gw", "m"), windows, clock, Published::default()).unwrap();
    let writer = tokio::spawn(opened.writer.run());
    let store = opened.store;
    store.configure_sinks(vec![sink("cloud")]).await.unwrap();
    store.append(readings(0, 10)).await.unwrap();
    disk.fail(0, u64::MAX, io::ErrorKind::StorageFull);
    let append = tokio::spawn({
        let store = store.clone();
        async move { store.append(readings(10, 10)).await }
    });
    let mut report = store.report();
    report.wait_for(|report| report.state == report::State::Failing).await.unwrap();
    // Another program fills the disk: room for the ballast again, there is none. For a few pages there is.
    while path.is_file() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::create_dir_all(&path).unwrap();
    disk.fail(0, 0, io::ErrorKind::StorageFull);
    let epoch = store.books().borrow().epoch;
    let pin = LedgerChange {
        sink: "cloud".into(),
        stream: Stream::Readings,
        epoch,
        event: LedgerEvent::Pin(vec![Seq(10)], 0),
    };
    store.change(pin).await.unwrap();
    assert!(!append.is_finished(), "readings wait");
    assert_eq!(report.borrow().state, report::State::Failing);
    std::fs::remove_dir(&path).unwrap();
    append.await.unwrap().unwrap();
    assert!(path.is_file(), "the ballast is there again");
    assert_eq!(numbers(&store), (0..20).collect::<Vec<_>>());
    drop(store);
    drop(report);
    writer.abort();
}

#[tokio::test(start_paused = true)]
async fn what_the_windows_noted_without_a_result_is_there_until_the_next_checkpoint() {
    let noted = |running: &Running| -> Vec<(Seq, Vec<u8>)> {
        let emitted = running.store.windows_snapshot().unwrap().emitted;
        emitted.into_iter().map(|update| (update.position, update.note)).collect()
    };
    let disk = Disk::formatted();
    let (running, _) = disk.open().unwrap();
    running.store.append(readings(0, 3)).await.unwrap();
    let found_silent = WindowsUpdate { position: Seq(4), note: vec![7], ..WindowsUpdate::default() };
    running.store.update_windows(found_silent).await.unwrap();
    running.crash().await;

    let (running, _) = disk.open().unwrap();
    assert_eq!(noted(&running), [(Seq(4), vec![7])]);
    let saved = WindowsUpdate {
        position: Seq(4),
        checkpoint: Some(Checkpoint::default()),
        ..WindowsUpdate::default()
    };
    running.store.update_windows(saved).await.unwrap();
    running.crash().await;
    let (running, _) = disk.open().unwrap();
    assert_eq!(noted(&running), []);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_stores_nothing_twice_whatever_write_or_sync_it_refuses() {
    for from in 1..=30 {
        let disk = Disk::formatted();
        let dir = TempDir::new().unwrap();
        // As much as a ballast that can be given back, whether or not this machine has room for one.
        std::fs::write(dir.path().join(ballast::FILE_NAME), [0]).unwrap();
        let settings = Settings::in_dir(dir.path().to_owned());
        let (windows, clock) = (WindowsPresence::None, Clock::system());
        let opened =
            Store::open_on(disk.medium(), settings, ("gw", "m"), windows, clock, Published::default())
                .unwrap();
        let writer = tokio::spawn(opened.writer.run());
        let store = opened.store;
        store.configure_sinks(vec![sink("cloud")]).await.unwrap();
        store.append(readings(0, 10)).await.unwrap();
        let before = disk.operations();
        disk.fail(before + from, before + from + 1, io::ErrorKind::StorageFull);
        store.append(readings(10, 10)).await.unwrap();
        store.append(readings(20, 10)).await.unwrap();
        assert_eq!(numbers(&store), (0..30).collect::<Vec<_>>(), "operation {from}");
        drop(store);
        writer.abort();
    }
}
