//! Every write boundary: a workload with every kind of transaction, the power cut before every single write and sync of it,
//! and every one of them failing.
//!
//! The workload is a run of the real pipeline whose steps are written down: appends, arrays, dead letters from sources and from
//! sinks, window results with and without a checkpoint, marks of silence, batches pinned by commits and cut from a backlog,
//! splits, cursors, copies of what peers sent, trimming, shedding, a sink that goes and comes, a new epoch. After the cut
//! the agent starts again on what the disk kept, the rest of the workload goes on, and the checker has its say.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harness::simulated_disk::{Disk, Fault};

use crate::agent::Configured;
use crate::cloud::Mood;
use crate::peers;
use crate::plan::{Limit, Plan};
use crate::run::{self, Run};
use crate::seeds::formatted;

/// What happens to the disk on the way.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// The power goes before this operation. What is left of the unsynced is drawn anew for each image.
    Cut {
        before: u64,
        image: u64,
    },
    /// This operation and as many after it fail.
    Fails {
        from: u64,
        count: u64,
        fault: Fault,
    },
}

/// The workload, and how many operations it made.
fn workload(limit: Limit, trouble: Trouble, formatted: &Disk) -> Result<u64, String> {
    let seed = match trouble {
        Trouble::Cut { image, .. } => image,
        Trouble::None | Trouble::Fails { .. } => 0,
    };
    run::in_virtual_time(seed, async {
        holdfast::blocking::take_in_place(Duration::from_millis(1));
        let mut run = Run::new(Plan { seed, ..Plan::quiet(limit) }, formatted.copy());
        match trouble {
            Trouble::None => {}
            Trouble::Cut { before, .. } => run.disk.cut_before(before),
            Trouble::Fails { from, count, fault } => run.disk.fail(from, from + count, fault),
        }
        let before = run.disk.operations();
        run.boot().await;
        let say = |run: &Run, peer, count| run.world.with(|state| peers::say(state, peer, count));
        let mood = |run: &Run, mood| {
            run.world.with(|state| state.clouds.values_mut().for_each(|cloud| cloud.mood = mood));
        };
        run.pass(Duration::from_millis(100)).await;
        // The steady flow, with gaps in which devices fall silent.
        for _ in 0..2 {
            say(&run, 0, 6);
            say(&run, 1, 3);
            run.pass(Duration::from_millis(1_500)).await;
        }
        run.pass(Duration::from_secs(5)).await;
        // A backlog, cut into batches by the sink; then refused halves and dead letters.
        mood(&run, Mood::Dead);
        for _ in 0..2 {
            say(&run, 0, 12);
            run.pass(Duration::from_millis(1_200)).await;
        }
        mood(&run, Mood::Well);
        run.pass(Duration::from_secs(21)).await;
        // A sink goes, and comes back later; the windows save their state at the stop.
        run.restart_as(Configured { second_sink: false, extra_window: false }).await;
        say(&run, 1, 5);
        run.pass(Duration::from_secs(3)).await;
        run.restart_as(Configured { second_sink: true, extra_window: true }).await;
        // Long enough for a checkpoint in passing, and for trimming.
        for _ in 0..6 {
            say(&run, 0, 6);
            run.pass(Duration::from_millis(10_500)).await;
        }
        // A receiver that claims more than there is: a new epoch.
        run.world.with(|state| state.clouds.values_mut().for_each(|cloud| cloud.claims = true));
        say(&run, 0, 4);
        run.pass(Duration::from_secs(5)).await;
        say(&run, 1, 4);
        run.pass(Duration::from_secs(2)).await;
        let operations = run.disk.operations() - before;
        run.finish().await.map(|_| operations)
    })
}

/// Tries all troubles, on all cores.
fn check(limit: Limit, troubles: &[Trouble], formatted: &Disk) {
    let next = AtomicU64::new(0);
    let failed: Mutex<Vec<String>> = Mutex::default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let nth = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
                    let Some(trouble) = troubles.get(nth).filter(|_| failed.lock().unwrap().len() < 10)
                    else {
                        return;
                    };
                    if let Err(what) = workload(limit, *trouble, formatted) {
                        failed.lock().unwrap().push(format!("{limit:?}, {trouble:?}: {what}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// How many images of the disk are tried for each boundary, and whether every boundary is tried under every limit. By default
/// one, and under the second limit every fifth boundary: `HOLDFAST_BOUNDARIES=8` tries eight, everywhere.
fn images() -> (u64, usize) {
    match std::env::var("HOLDFAST_BOUNDARIES") {
        Ok(images) => (images.parse().expect("HOLDFAST_BOUNDARIES is a number"), 1),
        Err(_) => (1, 5),
    }
}

/// The limits under which the workload is done, and the operations that it makes.
fn cases(formatted: &Disk) -> [(Limit, u64); 2] {
    [Limit::None, Limit::Shed(64 << 10)].map(|limit| {
        let operations = workload(limit, Trouble::None, formatted).unwrap();
        println!("{limit:?}: {operations} writes and syncs");
        assert!(operations > 400, "the workload writes");
        (limit, operations)
    })
}

#[test]
fn a_power_cut_before_any_write_or_sync_breaks_no_promise() {
    let formatted = formatted();
    let (images, step) = images();
    for (limit, operations) in cases(&formatted) {
        let step = if limit == Limit::None { 1 } else { step };
        let cuts = (1..=operations).step_by(step).flat_map(|before| {
            (0..images).map(move |image| Trouble::Cut { before, image: before * 64 + image })
        });
        check(limit, &cuts.collect::<Vec<_>>(), &formatted);
    }
}

#[test]
fn a_disk_that_fails_at_any_write_or_sync_breaks_no_promise() {
    let formatted = formatted();
    let (_, step) = images();
    for (limit, operations) in cases(&formatted) {
        let step = if limit == Limit::None { step } else { 3 * step };
        let all = || (1..=operations).step_by(step);
        let broken = all().map(|from| Trouble::Fails { from, count: 1, fault: Fault::Broken });
        let full = all().map(|from| Trouble::Fails { from: from + 1, count: 4, fault: Fault::Full });
        check(limit, &broken.chain(full).collect::<Vec<_>>(), &formatted);
    }
}
