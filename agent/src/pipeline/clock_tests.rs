//! A wall clock that is not set, jumps, or goes back, with the real rooms and virtual time.

use tempfile::TempDir;
use tokio::time::sleep;

use super::*;
use crate::clock::SimulatedWall;
use crate::ingest::{Arrival, Delivery, Inlet, Peer, Replayed};
use crate::reading::{ClockState, Timestamp};
use crate::store::Piece;
use crate::stream::{Seq, Stream};

const NOON: Timestamp = Timestamp(1_800_000_000_000_000);
const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;

fn wall(shows: Timestamp, state: ClockState) -> &'static SimulatedWall {
    let wall = SimulatedWall::showing(shows);
    wall.set_state(state);
    Box::leak(Box::new(wall))
}

struct Agent {
    running: Running,
    inlet: Inlet,
}

impl Agent {
    async fn start(dir: &TempDir, wall: &'static SimulatedWall, more: &str) -> Self {
        let text = format!(
            "[agent]\nid = \"gw\"\ndata_dir = \"{dir}\"\n[admin]\nlisten = \"\"\nsocket = \"\"\n\
             [sources.direct]\ntype = \"mqtt-listen\"\nlisten = \"127.0.0.1:0\"\n\
             [[sources.direct.subscribe]]\ntopic = \"t/{{device}}\"\npayload = \"value\"\n{more}",
            dir = dir.path().display()
        );
        let loaded = crate::config::parse(&text, "test.toml", &crate::config::System).unwrap();
        let subscriptions = loaded.config.sources[0].subscriptions().into();
        let running = start(loaded.config, Clock::simulated(wall)).await.unwrap();
        let spec = Arc::new(SourceSpec {
            in_flight: 1_000,
            name: "direct".into(),
            subscriptions,
            max_payload_bytes: 1 << 20,
            kept_payload_bytes: 1 << 10,
        });
        let inlet = running.intake.as_ref().unwrap().open(&spec, Peer::NAMELESS);
        Self { running, inlet }
    }

    /// The device says `value`; returns when that is durable.
    async fn hear(&mut self, value: u32) {
        self.inlet.push(&Arrival {
            topic: "t/d",
            payload: value.to_string().into(),
            delivery: Delivery::AtMostOnce,
            replayed: Replayed::No,
        });
        self.inlet.flushed().await.unwrap();
        let pushed = self.inlet.pushed();
        self.inlet.durable().wait_for(|durable| *durable >= pushed).await.unwrap();
    }

    fn store(&self) -> &Store {
        self.running.store.as_ref().unwrap()
    }

    /// Of all readings: the time, and whether it is marked.
    fn stamps(&self) -> Vec<(Timestamp, bool)> {
        let mut stamps = Vec::new();
        let (reader, mut seq) = (self.store().reader(), Seq(1));
        while let Some(Piece::Readings(first, readings)) = reader.piece(Stream::Readings, seq).unwrap() {
            assert_eq!(first, seq);
            stamps.extend(readings.iter().map(|reading| {
                assert_eq!(reading.time, reading.received);
                (reading.time, reading.line.is_some())
            }));
            seq = first.plus(readings.len() as u64);
        }
        stamps
    }

    /// Of all results: start and revision.
    fn windows(&self) -> Vec<(Timestamp, u32)> {
        let mut results = Vec::new();
        let (reader, mut seq) = (self.store().reader(), Seq(1));
        while let Some(Piece::Windows(first, records)) = reader.piece(Stream::Windows, seq).unwrap() {
            results.extend(records.iter().map(|record| (record.start, record.revision)));
            seq = first.plus(records.len() as u64);
        }
        results
    }

    fn shed(&self) -> u64 {
        let books = Arc::clone(&self.store().books().borrow());
        books.sinks.values().flat_map(|sink| sink.streams.values()).map(|ledger| ledger.shed).sum()
    }

    fn booted_at(&self, clock: Clock) -> Option<i64> {
        self.store().books().borrow().boots.at(clock.boot(), u32::MAX)
    }

    async fn stop(self) {
        drop(self.inlet);
        self.running.stop().await.unwrap();
    }
}

const MINUTES: &str =
    "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"1h\"\naggregates = [\"count\"]\n";

fn is_sorted(stamps: &[(Timestamp, bool)]) -> bool {
    stamps.is_sorted_by_key(|(time, _)| *time)
}

#[tokio::test(start_paused = true)]
async fn after_a_step_back_of_three_hours_order_holds_and_windows_go_on() {
    let (dir, wall) = (TempDir::new().unwrap(), wall(NOON, ClockState::Synced));
    let mut agent = Agent::start(&dir, wall, MINUTES).await;
    agent.hear(0).await;
    wall.jump(-3 * HOUR);
    for value in 1..=60 {
        sleep(Duration::from_secs(10)).await;
        agent.hear(value).await;
    }
    sleep(Duration::from_secs(5)).await;
    let stamps = agent.stamps();
    assert!(is_sorted(&stamps), "{stamps:?}");
    assert!(!stamps[0].1 && stamps[1..].iter().all(|(_, is_marked)| *is_marked));
    let newest = stamps.last().unwrap().0;
    let passed = newest.micros_since(NOON);
    assert!((299 * SECOND..340 * SECOND).contains(&passed), "eleven minutes at half speed: {passed}");
    let windows = agent.windows();
    assert_eq!(windows.len(), 5, "one for each minute that is over: {windows:?}");
    assert!(windows.iter().all(|(start, revision)| start.0 + 60 * SECOND <= newest.0 && *revision == 0));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_ahead_of_three_hours_closes_what_is_over_and_nothing_else() {
    let (dir, wall) = (TempDir::new().unwrap(), wall(NOON, ClockState::Synced));
    let mut agent = Agent::start(&dir, wall, MINUTES).await;
    agent.hear(0).await;
    wall.jump(3 * HOUR);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(agent.windows(), [], "the clock alone closes nothing");
    agent.hear(1).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(agent.windows(), [(NOON, 0)]);
    let stamps = agent.stamps();
    assert!(is_sorted(&stamps) && stamps.iter().all(|(_, is_marked)| !is_marked));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn idle_timers_do_not_mind_jumps() {
    for jump in [3 * HOUR, -3 * HOUR] {
        let (dir, wall) = (TempDir::new().unwrap(), wall(NOON, ClockState::Synced));
        let patient = MINUTES.replace("1h", "20s");
        let mut agent = Agent::start(&dir, wall, &patient).await;
        // The source has been connected for longer than that.
        sleep(Duration::from_secs(30)).await;
        agent.hear(0).await;
        wall.jump(jump);
        sleep(Duration::from_secs(15)).await;
        assert_eq!(agent.windows(), [], "{jump}");
        sleep(Duration::from_secs(15)).await;
        assert_eq!(agent.windows(), [(NOON, 0)], "{jump}");
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn from_1970_to_today_nothing_is_shed_and_the_boot_is_learned() {
    let (dir, wall) = (TempDir::new().unwrap(), wall(Timestamp(0), ClockState::Unsynced));
    let clock = Clock::simulated(wall);
    // Nobody answers there.
    let more = "[store]\nmax_age = \"1h\"\n[sinks.cloud]\ntype = \"http\"\nurl = \"http://127.0.0.1:9/\"\nstreams = [\"readings\"]\n";
    let mut agent = Agent::start(&dir, wall, more).await;
    for value in 0..20 {
        agent.hear(value).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(agent.booted_at(clock), None);
    wall.jump(NOON.0);
    wall.set_state(ClockState::Synced);
    for value in 20..40 {
        agent.hear(value).await;
        sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(agent.shed(), 0);
    assert_eq!(agent.booted_at(clock), Some(NOON.0));
    let stamps = agent.stamps();
    assert!(is_sorted(&stamps));
    let marked = stamps.iter().filter(|(time, is_marked)| time.0 < HOUR && *is_marked).count();
    assert_eq!((marked, stamps.len()), (20, 40));
    assert!(stamps[20..].iter().all(|(_, is_marked)| !is_marked));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_before_the_clock_is_set_still_lets_it_be_corrected() {
    let (dir, wall) = (TempDir::new().unwrap(), wall(Timestamp(0), ClockState::Unsynced));
    let clock = Clock::simulated(wall);
    let mut agent = Agent::start(&dir, wall, "").await;
    agent.hear(1).await;
    agent.stop().await;
    let agent = Agent::start(&dir, wall, "").await;
    wall.jump(NOON.0);
    wall.set_state(ClockState::Synced);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(agent.booted_at(clock), Some(NOON.0));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_stamps_go_on_where_they_were() {
    let dir = TempDir::new().unwrap();
    let mut agent = Agent::start(&dir, wall(NOON, ClockState::Synced), "").await;
    agent.hear(1).await;
    agent.stop().await;
    // Another boot, and the battery is empty.
    let mut agent = Agent::start(&dir, wall(Timestamp(0), ClockState::Unsynced), "").await;
    agent.hear(2).await;
    let stamps = agent.stamps();
    assert!(is_sorted(&stamps) && stamps[1].1, "{stamps:?}");
    agent.stop().await;
}
