//! Many seeds, on all cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::simulated_disk::Disk;
use holdfast::clock::Clock;
use holdfast::store::{Medium, Published, Settings, Store, WindowsPresence};

use crate::check::Summary;
use crate::run;

/// Seeds of a run that does not say how many.
const SEEDS: u64 = 120;

/// A disk with an empty store on it: the first pages are written under another name, so no power cut can spoil them.
pub(crate) fn formatted() -> Disk {
    let disk = Disk::default();
    let medium = {
        let disk = disk.clone();
        Medium::Backend(Box::new(move |builder| builder.create_with_backend(disk.clone())))
    };
    let settings = Settings::in_dir("unused".into());
    let clock = Clock::system();
    drop(
        Store::open_on(
            medium,
            settings,
            ("gw", ""),
            WindowsPresence::Configured,
            clock,
            Published::default(),
        )
        .unwrap(),
    );
    disk
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

fn guarded(seed: u64, formatted: &Disk) -> (Result<Summary, String>, u64) {
    catch_unwind(AssertUnwindSafe(|| run::seed(seed, formatted))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        (Err(format!("panicked: {}", text.unwrap_or_default())), 0)
    })
}

#[test]
fn nothing_is_lost_or_repeated_whatever_happens() {
    let formatted = formatted();
    let (first, count) = match (number("HOLDFAST_SEED"), number("HOLDFAST_SIM_SEEDS")) {
        (Some(seed), count) => (seed, count.unwrap_or(1)),
        (None, Some(count)) => (fastrand::u64(..1 << 40), count),
        (None, None) => (1, SEEDS),
    };
    println!("seeds {first} to {}", first + count - 1);
    let next = AtomicU64::new(first);
    let results: Mutex<(Summary, Vec<String>)> = Mutex::default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || results.lock().unwrap().1.len() >= 20 {
                        return;
                    }
                    let (verdict, _) = guarded(seed, &formatted);
                    let (all, failed) = &mut *results.lock().unwrap();
                    match verdict {
                        Ok(summary) => {
                            all.acked += summary.acked;
                            all.windows += summary.windows;
                            all.boots += summary.boots;
                            all.requests += summary.requests;
                        }
                        Err(what) => {
                            println!("HOLDFAST_SEED={seed} cargo test -p e2e --test sim   # {what}");
                            failed.push(what);
                        }
                    }
                }
            });
        }
    });
    let (all, failed) = results.into_inner().unwrap();
    println!("{all:?}");
    assert!(failed.is_empty(), "{} seeds fail", failed.len());
    assert!(count < SEEDS || all.windows > 500, "the runs compare too little to mean anything: {all:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let formatted = formatted();
    for seed in 1..=15 {
        let (first, second) = (run::seed(seed, &formatted), run::seed(seed, &formatted));
        assert_eq!(first.1, second.1, "seed {seed}");
    }
}
