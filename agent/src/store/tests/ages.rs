//! What is too old goes, but only by a clock that can be believed.

use super::*;
use crate::clock::SimulatedWall;
use crate::reading::ClockState;

const NOON: Timestamp = Timestamp(1_800_000_000_000_000);
const YEAR: i64 = 365 * 86_400_000_000;

/// A store that keeps readings for an hour, and a sink that takes nothing.
async fn store(dir: &TempDir, clock: Clock) -> Store {
    let mut settings = Settings::in_dir(dir.path().to_owned());
    settings.max_age = Duration::from_secs(3_600);
    let opened = Store::open(settings, "gw", "machine", WindowsPresence::None, clock, Published::default());
    let Opened { store, writer, .. } = opened.unwrap();
    tokio::spawn(writer.run());
    let batch = BatchLimits { wait: Duration::from_secs(1 << 20), ..BatchLimits::default() };
    store.configure_sinks(vec![SinkSpec { batch, ..sink("cloud") }]).await.unwrap();
    store
}

async fn fill(store: &Store, clock: Clock) {
    for n in 0..20 {
        let mut group = readings(n * 1_000, 1_000);
        let received = clock.stamp().time;
        group.readings.iter_mut().for_each(|reading| reading.received = received);
        store.append(group).await.unwrap();
    }
}

fn shed(store: &Store) -> u64 {
    store.books().borrow().sinks["cloud"].streams[&Stream::Readings].shed
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_goes_also_where_nothing_is_committed_any_more() {
    let dir = TempDir::new().unwrap();
    let clock = Clock::simulated(Box::leak(Box::new(SimulatedWall::showing(NOON))));
    let store = store(&dir, clock).await;
    fill(&store, clock).await;
    let before = shed(&store);
    tokio::time::sleep(Duration::from_secs(3_500)).await;
    assert_eq!(shed(&store), before);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(shed(&store) > before, "an hour is over");
    let commits = store.report().borrow().commits;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert!(store.report().borrow().commits - commits < 5, "an idle store is left alone");
    assert_eq!(store.report().borrow().state, report::State::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_a_year_ahead_for_five_minutes_sheds_nothing() {
    let dir = TempDir::new().unwrap();
    let wall: &'static SimulatedWall = Box::leak(Box::new(SimulatedWall::showing(NOON)));
    let clock = Clock::simulated(wall);
    let store = store(&dir, clock).await;
    fill(&store, clock).await;
    let before = shed(&store);
    wall.jump(YEAR);
    tokio::time::sleep(Duration::from_secs(300)).await;
    wall.jump(-YEAR);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(shed(&store), before);
    // A clock that nobody vouches for is not believed at all.
    wall.set_state(ClockState::Unsynced);
    wall.jump(YEAR);
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    assert_eq!(shed(&store), before);
}

#[tokio::test(start_paused = true)]
async fn what_a_clock_two_months_behind_stamped_is_not_too_old_when_it_is_set() {
    let dir = TempDir::new().unwrap();
    let wall: &'static SimulatedWall = Box::leak(Box::new(SimulatedWall::showing(NOON)));
    wall.set_state(ClockState::Unsynced);
    let clock = Clock::simulated(wall);
    let store = store(&dir, clock).await;
    for n in 0..5 {
        let mut group = readings(n * 1_000, 1_000);
        let stamp = clock.stamp();
        for reading in &mut group.readings {
            (reading.received, reading.line) = (stamp.time, stamp.line.clone());
        }
        store.append(group).await.unwrap();
    }
    wall.jump(YEAR / 6);
    wall.set_state(ClockState::Synced);
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    assert_eq!(shed(&store), 0, "how old they are is not known");
    store.learn_boot(boots::Boot { id: clock.boot(), at: clock.booted_at() }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(shed(&store), 0, "three quarters of an hour");
    tokio::time::sleep(Duration::from_secs(2 * 3_600)).await;
    assert!(shed(&store) > 0, "now they are");
}

#[test]
fn what_is_replayed_ages_from_then_on_whether_or_not_the_clock_is_right() {
    use crate::store::letters::{LettersChange, Records, Replay};
    for clock in [ClockState::Synced, ClockState::Unsynced] {
        let dir = TempDir::new().unwrap();
        let file = file::File::open(dir.path(), |_| {}).unwrap();
        let mut settings = Settings::in_dir(dir.path().to_owned());
        settings.max_age = Duration::from_secs(3_600);
        let mut state = log::State::load(&file, settings, WindowsPresence::None).unwrap();
        state.ages_by = Some((NOON, clock));
        let mut commit = |work: work::Work| {
            state.trims_next = true;
            state.commit(&file, &work, Clock::system().monotonic(), NOON).unwrap();
            state.books.sinks["cloud"].streams[&Stream::Readings].shed
        };
        let received = |mut group: Group, received: Timestamp| {
            group.readings.iter_mut().for_each(|reading| reading.received = received);
            group
        };
        let batch = BatchLimits { wait: Duration::from_secs(1 << 20), ..BatchLimits::default() };
        let sinks = Some(vec![SinkSpec { batch, ..sink("cloud") }]);
        let rejected = vec![work::Letter {
            time: Timestamp(1),
            origin: DeadLetterOrigin::Source { source: "plant".into(), topic: "t".into() },
            reason: "not understood".into(),
            payload: vec![7],
            payload_bytes: 1,
            payload_hash: 1,
        }];
        let group = Some(Group { rejected, ..Group::default() });
        commit(work::Work { sinks, group, ..work::Work::default() });
        // It was received yesterday.
        let records = received(readings(0, 1), Timestamp(NOON.0 - 86_400_000_000)).readings;
        let replay = Replay { id: 1, records: Records::Readings(records) };
        let letters = Some(LettersChange::Replay(vec![replay]));
        commit(work::Work { letters, ..work::Work::default() });
        let mut shed = 0;
        for n in 1..4 {
            shed =
                commit(work::Work { group: Some(received(readings(n, 1), NOON)), ..work::Work::default() });
        }
        assert_eq!(shed, 0, "{clock:?}: a person asked for it a moment ago");
    }
}
