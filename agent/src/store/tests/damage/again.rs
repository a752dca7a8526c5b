//! Damage on damage, and restarts between: what is saved, what is counted as lost, and who waits.

use super::*;

/// Spoils every chunk of readings of `bytes` that begins behind `last`, and tells how many numbers were in them.
fn wipe_behind(bytes: &mut [u8], last: u64) -> u64 {
    let mut wiped = BTreeSet::new();
    for at in (0..bytes.len() - 48).filter(|at| bytes[*at..].starts_with(b"HFCK")).collect::<Vec<_>>() {
        let Some(range) = chunk::announced_bytes(&bytes[at..])
            .and_then(|length| chunk::Header::parse(bytes.get(at..at + length)?).ok())
            .filter(|header| header.stream == Stream::Readings && header.first.0 > last)
            .and_then(|header| header.range())
        else {
            continue;
        };
        wiped.extend(range.first.0..=range.last.0);
        bytes[at] = 0;
    }
    wiped.len() as u64
}

#[tokio::test(start_paused = true)]
async fn what_a_sink_had_after_all_makes_no_loss_smaller_after_a_restart() {
    const LIMIT: u64 = 200_000;
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    for n in 0..50 {
        running.store.append(readings(n * 2_000, 2_000)).await.unwrap();
    }
    let epoch = running.books().epoch;
    running.crash().await;
    lose_head(&dir);
    let limit = |settings: &mut Settings| {
        settings.streams[Stream::Readings.index()].max_size_bytes = Some(LIMIT);
    };
    // Saving waits for room in the middle.
    let running = Running::open(&dir, limit);
    running.store.configure_sinks(sinks()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let saved = running.books().damage.saved[0];
    assert!(saved > 10_000 && saved < 80_000, "{saved}");
    let file = running.books().damage.files[0].name.clone();
    // Answers to what was on its way when the damage was met.
    for name in ["cloud", "other"] {
        running.store.advance(name, epoch, Stream::Readings, Seq(10_001)).await.unwrap();
    }
    running.store.append(readings(1_000_000, 1)).await.unwrap();
    running.crash().await;
    let mut bytes = std::fs::read(dir.path().join(&file)).unwrap();
    let wiped = wipe_behind(&mut bytes, 80_000);
    std::fs::write(dir.path().join(&file), bytes).unwrap();
    assert!(wiped > 10_000);
    let running = Running::open(&dir, limit);
    running.store.configure_sinks(sinks()).await.unwrap();
    take_all_until_saved(&running).await;
    let damage = &running.books().damage;
    assert_eq!((damage.lost, damage.saved[0]), ([wiped, 0, 0], 100_000 - wiped));
}

#[tokio::test]
async fn what_a_file_held_that_is_given_up_is_counted_as_lost() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, |_| {});
    running.store.configure_sinks(sinks()).await.unwrap();
    running.store.append(readings(0, 10)).await.unwrap();
    running.store.advance("cloud", running.books().epoch, Stream::Readings, Seq(5)).await.unwrap();
    running.store.update_windows(windows(1)).await.unwrap();
    running.crash().await;
    // More often than damaged files wait: nobody ever comes to read them.
    for damaged in 1..=5 {
        lose_head(&dir);
        let settings = Settings::in_dir(dir.path().to_owned());
        let (windows, published) = (WindowsPresence::None, Published::default());
        let opened = Store::open(settings, "gw", "machine", windows, Clock::system(), published).unwrap();
        let damage = opened.store.books().borrow().damage.clone();
        let expected = if damaged < 5 { (damaged, [0; 3]) } else { (4, [10, 1, 0]) };
        assert_eq!((damage.files.len(), damage.lost), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_damage_holds_up_no_commit_while_the_first_file_is_read_through() {
    let image = image(Close::Unclean).await;
    let (dir, _) = without_head(&image);
    let settings = Settings::in_dir(dir.path().to_owned());
    let open = || {
        let (windows, published) = (WindowsPresence::None, Published::default());
        Store::open(settings.clone(), "gw", "machine", windows, Clock::system(), published).unwrap()
    };
    let Opened { store, writer, .. } = open();
    let first = store.books().borrow().damage.files[0].name.clone();
    drop((store, writer));
    lose_head(&dir);
    // Whoever opens it waits for somebody who writes.
    let first = dir.path().join(first);
    std::fs::remove_file(&first).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &first, rustix::fs::FileType::Fifo, mode, 0).unwrap();

    let Opened { store, writer, recent } = open();
    assert_eq!(store.books().borrow().damage.files.len(), 2);
    let running = Running { store, recent, writer: tokio::spawn(writer.run()) };
    running.store.configure_sinks(sinks()).await.unwrap();
    for n in 0..5 {
        timeout(Duration::from_secs(60), running.store.append(readings(1_000_000 + n, 1)))
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(running.books().damage.files.len(), 2);
    let opened = std::fs::OpenOptions::new().write(true).open(&first).unwrap();
    std::fs::remove_file(&first).unwrap();
    drop(opened);
    let mut books = running.store.books();
    timeout(PATIENCE, books.wait_for(|books| books.damage.files.is_empty())).await.unwrap().unwrap();
    assert_eq!(running.books().damage.lost, [0; 3], "nobody knows what the first held");
}
