//! The store by itself, over its public handle: what rooms remember, and what peers sent, at every write boundary.

use std::time::Duration;

use harness::simulated_disk::{Disk, Fault, Left};
use holdfast::clock::Clock;
use holdfast::store::recent::{Change, Recent};
use holdfast::store::work::{BatchLimits, Group, Required, SinkSpec};
use holdfast::store::{Closed, Error, Medium, Opened, Published, Settings, Store, WindowsPresence};
use holdfast::stream::Stream;
use tokio::task::JoinHandle;

use crate::run::in_virtual_time;
use crate::seeds::formatted;

/// Messages in each group.
const MESSAGES: u64 = 3;
const GROUPS: u64 = 10;

struct Running {
    store: Store,
    recent: Recent,
    writer: JoinHandle<()>,
}

fn open(disk: &Disk) -> Result<Running, Error> {
    let disk = disk.clone();
    let medium = Medium::Backend(Box::new(move |builder| {
        disk.drop_cache();
        builder.create_with_backend(disk.clone())
    }));
    let settings = Settings::in_dir("unused".into());
    let opened = Store::open_on(
        medium,
        settings,
        ("gw", ""),
        WindowsPresence::None,
        Clock::system(),
        Published::default(),
    );
    let Opened { store, writer, recent } = opened?;
    Ok(Running { store, recent, writer: tokio::spawn(writer.run()) })
}

impl Running {
    async fn crash(self) {
        self.writer.abort();
        drop(self.store);
        drop(self.writer.await);
    }
}

fn group(first: u64) -> Group {
    let messages = (first..first + MESSAGES).map(|n| (u16::try_from(n + 1).unwrap(), n.to_le_bytes()));
    let change = Change {
        peer: "plant/c".to_owned(),
        session_lost: false,
        in_flight: u16::MAX,
        messages: messages.collect(),
    };
    Group { recent: vec![change], ..Group::default() }
}

/// Says how many groups were acknowledged, and what was remembered last.
async fn workload(store: &Store, acked: &mut u64, remembered: &mut u8) -> Result<(), Closed> {
    let sink = SinkSpec {
        name: "cloud".to_owned(),
        streams: vec![Stream::Readings],
        batch: BatchLimits::default(),
        required: Required::Yes,
    };
    store.configure_sinks(vec![sink]).await?;
    for n in 0..GROUPS {
        store.append(group(n * MESSAGES)).await?;
        *acked += 1;
        let value = u8::try_from(n + 1).unwrap();
        store.remember("filters", vec![value]).await?;
        *remembered = value;
    }
    Ok(())
}

fn check(running: &Running, acked: u64, remembered: u8, what: &str) {
    for n in 0..acked * MESSAGES {
        let packet_id = u16::try_from(n + 1).unwrap();
        assert!(running.recent.knows("plant/c", packet_id, n), "{what}: message {n} would be stored again");
    }
    let found = running.store.recall("filters").unwrap().map_or(0, |value| value[0]);
    assert!(
        found == remembered || found == remembered + 1,
        "{what}: {remembered} was remembered, {found} is"
    );
}

fn operations(formatted: &Disk) -> u64 {
    in_virtual_time(0, async {
        let disk = formatted.copy();
        let running = open(&disk).unwrap();
        workload(&running.store, &mut 0, &mut 0).await.unwrap();
        disk.operations()
    })
}

#[test]
fn what_rooms_remember_and_peers_sent_survives_a_power_cut_before_any_write() {
    let formatted = formatted();
    let mut random = fastrand::Rng::with_seed(4);
    for cut in 1..=operations(&formatted) {
        for left in [Left::None, Left::Some, Left::Some, Left::All] {
            let what = format!("cut before operation {cut}, {left:?} left");
            in_virtual_time(cut, async {
                let disk = formatted.copy();
                disk.cut_before(cut);
                let (mut acked, mut remembered) = (0, 0);
                if let Ok(running) = open(&disk) {
                    let work = workload(&running.store, &mut acked, &mut remembered);
                    drop(tokio::time::timeout(Duration::from_secs(3), work).await);
                    running.crash().await;
                }
                let running = open(&disk.after_power_cut(left, &mut random));
                let running = running.unwrap_or_else(|error| panic!("{what}: {error}"));
                check(&running, acked, remembered, &what);
            });
        }
    }
}

#[test]
fn a_sync_that_failed_is_not_believed_because_its_pages_are_still_read() {
    let formatted = formatted();
    for from in 1..=operations(&formatted) {
        in_virtual_time(from, async {
            let disk = formatted.copy();
            let Ok(running) = open(&disk) else { return };
            disk.fail(from, from + 1, Fault::Broken);
            let (mut acked, mut remembered) = (0, 0);
            workload(&running.store, &mut acked, &mut remembered).await.unwrap();
            running.crash().await;
            // Whatever the failed sync should have written is gone now.
            let running = open(&disk.after_power_cut(Left::None, &mut fastrand::Rng::with_seed(1))).unwrap();
            check(&running, acked, remembered, &format!("operation {from} failed"));
        });
    }
}
