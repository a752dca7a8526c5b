//! The power goes, and the disk fails, in the middle of shedding and of compaction: what is declared, delivered and still
//! to be delivered adds up to exactly what was appended, and what is still to be delivered is there.

use super::*;
use crate::stream::GapReason;

/// Bytes that the store may hold: a few groups.
const MAX_SIZE_BYTES: u64 = 64 << 10;
/// Readings of a group.
const GROUP: u64 = 150;
/// After so many groups the store is full.
const LAST_FULL: u64 = 24;

fn open(disk: &Disk) -> Result<Running, Error> {
    let mut settings = Settings::in_dir("unused".into());
    settings.max_size_bytes = MAX_SIZE_BYTES;
    settings.max_age = Duration::from_secs(3_600);
    settings.commit_interval = Duration::from_millis(1);
    let (windows, published) = (WindowsPresence::Configured, Published::default());
    let owner = ("gw", "machine");
    let opened = Store::open_on(disk.medium(), settings, owner, windows, Clock::system(), published)?;
    let writer = tokio::spawn(opened.writer.run());
    Ok(Running { store: opened.store, recent: opened.recent, writer })
}

/// Makes the sink known, of which nothing is pinned by itself.
async fn begin(running: &Running) -> Result<(), Closed> {
    let batch = BatchLimits { wait: Duration::from_secs(3_600), ..BatchLimits::default() };
    running.store.configure_sinks(vec![SinkSpec { batch, ..sink("cloud") }]).await
}

/// Groups, the oldest of them pinned, some too old, some answered later; far more than the store may hold. Says how many
/// readings were acknowledged.
async fn workload(
    running: &Running,
    groups: std::ops::Range<u64>,
    acknowledged: &mut u64,
) -> Result<(), Closed> {
    let store = &running.store;
    let old = Timestamp(Clock::system().wall().0 - 7_200_000_000);
    for n in groups {
        let mut group = readings(n * GROUP, GROUP);
        if n < 6 {
            group.readings.iter_mut().for_each(|reading| reading.received = old);
        }
        store.append(group).await?;
        *acknowledged = (n + 1) * GROUP;
        let position = running.books().stream(Stream::Readings).next;
        let checkpoint = Some(Checkpoint::default());
        store.update_windows(WindowsUpdate { position, checkpoint, ..WindowsUpdate::default() }).await?;
        match n {
            0 => store.change(change(running, LedgerEvent::Pin(vec![Seq(40), Seq(90)], 0))).await?,
            LAST_FULL => store.change(change(running, LedgerEvent::Advance(Seq(60)))).await?,
            _ => {}
        }
    }
    Ok(())
}

/// A disk with a full store that has shed by age and by size, the books of it, and how many of its readings were acknowledged.
async fn full() -> (Disk, u64) {
    let disk = Disk::formatted();
    let running = open(&disk).unwrap();
    let mut acknowledged = 0;
    begin(&running).await.unwrap();
    workload(&running, 0..LAST_FULL, &mut acknowledged).await.unwrap();
    let ledger = &running.books().sinks["cloud"].streams[&Stream::Readings];
    let reasons: Vec<_> = ledger.ahead.iter().map(|gap| gap.reason).collect();
    assert!(reasons.contains(&GapReason::ShedAge) && reasons.contains(&GapReason::ShedSize), "{ledger:?}");
    assert!(!ledger.pins.is_empty(), "the pinned batch is still there");
    running.crash().await;
    let disk = copy(&disk);
    // Closed cleanly, so that opening it again writes little.
    drop(File::on(disk.medium(), |_| {}).unwrap());
    (disk, acknowledged)
}

/// The same disk once more, whole.
fn copy(disk: &Disk) -> Disk {
    let seen = disk.0.lock().unwrap().seen.clone();
    Disk(Arc::new(Mutex::new(Platter { synced: seen.clone(), seen, ..Platter::default() })))
}

/// What must hold whatever happened. Returns how many were given up.
fn check_books(running: &Running, acknowledged: u64, what: &str) -> u64 {
    let books = running.books();
    let stream = books.stream(Stream::Readings);
    let Some(sink) = books.sinks.get("cloud") else { return 0 };
    let ledger = &sink.streams[&Stream::Readings];
    assert!(stream.appended() >= acknowledged, "{what}: {acknowledged} were acknowledged");
    let pending = ledger.pending(stream.next);
    assert_eq!(stream.appended(), ledger.delivered + pending + ledger.shed, "{what}: the books balance");
    let gaps: Vec<_> = ledger.pins.iter().flat_map(|pin| &pin.gaps).chain(&ledger.ahead).collect();
    assert!(
        gaps.iter().all(|gap| matches!(gap.reason, GapReason::ShedSize | GapReason::ShedAge)),
        "{what}: {gaps:?}"
    );
    // Each number from the cursor on is either declared or there, as it was stored.
    let reader = running.store.reader();
    let mut found = 0;
    let mut seq = ledger.cursor;
    while seq < stream.next {
        if let Some(gap) = gaps.iter().find(|gap| gap.range.contains(seq)) {
            seq = gap.range.last.next();
            continue;
        }
        let Some(Piece::Readings(first, readings)) = reader.piece(Stream::Readings, seq).unwrap() else {
            panic!("{what}: {seq} is neither held nor declared");
        };
        assert!(first <= seq, "{what}: {seq} is neither held nor declared");
        let skip = usize::try_from(seq.0 - first.0).unwrap();
        assert!(skip < readings.len(), "{what}: {seq} is not held");
        for reading in readings.iter().skip(skip) {
            assert_eq!(reading.values[0], Value::Uint(seq.0 - 1), "{what}: {seq}");
            found += 1;
            seq = seq.next();
        }
    }
    assert_eq!(found, pending, "{what}");
    ledger.shed
}

/// The groups that are stored while the power goes.
const WHILE_CUT: std::ops::Range<u64> = LAST_FULL..LAST_FULL + 4;

#[tokio::test(start_paused = true)]
async fn a_power_cut_in_the_middle_of_shedding_leaves_the_sum_exact() {
    let (full, acknowledged_before) = full().await;
    let disk = copy(&full);
    let running = open(&disk).unwrap();
    let shed_before = check_books(&running, acknowledged_before, "before");
    begin(&running).await.unwrap();
    let before = disk.operations();
    workload(&running, WHILE_CUT, &mut 0).await.unwrap();
    let operations = disk.operations() - before;
    let mut random = fastrand::Rng::with_seed(11);
    let mut shed = std::collections::BTreeSet::new();
    for cut in 1..=operations {
        let disk = copy(&full);
        let running = open(&disk).unwrap();
        begin(&running).await.unwrap();
        disk.fail(disk.operations() + cut, u64::MAX, io::ErrorKind::Other);
        let mut acknowledged = acknowledged_before;
        let workload = workload(&running, WHILE_CUT, &mut acknowledged);
        drop(tokio::time::timeout(Duration::from_secs(3), workload).await);
        running.crash().await;
        for image in 0..2 {
            let what = format!("power cut at operation {cut}, image {image}");
            let after = disk.after_a_power_cut(&mut random);
            let running = open(&after).unwrap_or_else(|error| panic!("{what}: {error}"));
            shed.insert(check_books(&running, acknowledged, &what));
        }
    }
    assert!(shed.len() > 3 && shed.first() >= Some(&shed_before), "the cuts fell between sheds: {shed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_or_a_failure_in_the_middle_of_a_compaction_is_harmless() {
    let (filled, acknowledged) = full().await;
    let image = copy;
    let whole = filled.0.lock().unwrap().seen.len();

    let sound = image(&filled);
    let file = File::on(sound.medium(), |_| {}).unwrap();
    let opened = sound.operations();
    file.compact().unwrap();
    let operations = sound.operations() - opened;
    drop(file);
    let compacted = sound.0.lock().unwrap().seen.len();
    assert!(compacted < whole, "{whole} bytes are {compacted} now");
    assert!(check_books(&open(&sound).unwrap(), acknowledged, "compacted") > 0);

    let mut random = fastrand::Rng::with_seed(12);
    for cut in 1..=operations {
        let what = format!("power cut at operation {cut} of a compaction");
        let disk = image(&filled);
        let file = File::on(disk.medium(), |_| {}).unwrap();
        let before = disk.operations();
        disk.fail(before + cut, u64::MAX, io::ErrorKind::Other);
        assert!(file.compact().is_err(), "{what}");
        let after = disk.after_a_power_cut(&mut random);
        drop(file);
        let running = open(&after).unwrap_or_else(|error| panic!("{what}: {error}"));
        check_books(&running, acknowledged, &what);

        // The same, but the disk is well again and the process goes on.
        let what = format!("failure at operation {cut} of a compaction");
        let disk = image(&filled);
        let file = File::on(disk.medium(), |_| {}).unwrap();
        let before = disk.operations();
        disk.fail(before + cut, before + cut + 1, io::ErrorKind::StorageFull);
        drop(file.compact());
        file.reopen().unwrap_or_else(|error| panic!("{what}: {error}"));
        drop(file);
        let running = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
        check_books(&running, acknowledged, &what);
    }
}
