//! One run: things happen to the agent, by chance or as written down; then all trouble ends, everything is drained, and the
//! checker has its say.

use std::time::Duration;

use harness::simulated_disk::{Disk, Fault, Left};
use holdfast::pipeline::Running;
use holdfast::reading::ClockState;
use holdfast::store::Books;
use tokio::time::{sleep, timeout};

use crate::agent::{self, Configured};
use crate::check::{self, Summary};
use crate::cloud::Mood;
use crate::peers::{self, Session};
use crate::plan::{Plan, pick};
use crate::world::{State, World};

/// How soon it is noticed that the power is gone.
const NOTICE: Duration = Duration::from_millis(100);
/// By then everything must be drained, once all trouble is over: longer than the longest pause of anything here, many times.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// How long a device's windows wait for it, and a little.
const IDLE: Duration = Duration::from_secs(5);

/// The agent in its world.
pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) disk: Disk,
    running: Option<Running>,
    configured: Configured,
    is_disk_failing: bool,
}

/// Runs one seed to its end. Gives back what it came to, and its trace.
pub(crate) fn seed(seed: u64, formatted: &Disk) -> (Result<Summary, String>, u64) {
    in_virtual_time(seed, async {
        let plan = Plan::drawn(seed);
        holdfast::blocking::take_in_place(plan.disk_takes);
        let mut run = Run::new(plan, formatted.copy());
        let verdict = run.chaos().await;
        (verdict, run.world.trace())
    })
}

/// Runs `work` on a runtime of its own whose time stands still while anything is done.
pub(crate) fn in_virtual_time<T>(seed: u64, work: impl Future<Output = T>) -> T {
    fastrand::seed(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime needs nothing here");
    runtime.block_on(work)
}

impl Run {
    pub(crate) fn new(plan: Plan, disk: Disk) -> Self {
        let configured = Configured { second_sink: plan.second_sink, extra_window: false };
        Self { world: World::new(plan), disk, running: None, configured, is_disk_failing: false }
    }

    async fn chaos(&mut self) -> Result<Summary, String> {
        self.boot().await;
        let steps = self.with(|state| state.plan.steps);
        for _ in 0..steps {
            let pause = self.with(|state| {
                let longest = u64::try_from(state.plan.longest_pause.as_millis()).expect("pauses are short");
                Duration::from_millis(state.random.u64(0..=longest))
            });
            self.pass(pause).await;
            self.step().await;
            if self.with(|state| state.violation.is_some()) {
                break;
            }
        }
        self.finish().await
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        self.world.with(work)
    }

    /// Lets time pass; a power cut on the way is noticed.
    pub(crate) async fn pass(&mut self, mut pause: Duration) {
        loop {
            if self.disk.is_cut() {
                self.power_cut().await;
            }
            let part = pause.min(NOTICE);
            if let Some(running) = &mut self.running {
                tokio::select! {
                    biased;
                    fault = running.failed() => self.world.with(|state| state.violate(fault.to_string())),
                    () = sleep(part) => {}
                }
            } else {
                sleep(part).await;
            }
            pause = pause.saturating_sub(part);
            if pause.is_zero() {
                break;
            }
        }
        if self.disk.is_cut() {
            self.power_cut().await;
        }
        if self.running.is_none() {
            self.boot().await;
        }
        self.reconnect();
    }

    /// Peers come back by themselves after a while.
    fn reconnect(&self) {
        let count = self.with(|state| state.peers.len());
        for nth in 0..count {
            let session = self.with(|state| {
                let comes = !state.peers[nth].is_connected() && state.chance(50);
                let is_lost = comes && state.plan.chaos.disconnect > 0 && state.chance(15);
                comes.then_some(if is_lost { Session::Lost } else { Session::Kept })
            });
            if let Some(session) = session {
                peers::connect(&self.world, nth, session);
            }
        }
    }

    async fn step(&mut self) {
        let chaos = self.with(|state| state.plan.chaos.clone());
        let weights = [
            chaos.publish,
            chaos.disconnect,
            chaos.disk,
            chaos.power,
            chaos.kill,
            chaos.restart,
            chaos.cloud,
            chaos.clock,
        ];
        let all: u32 = weights.iter().sum();
        let mut drawn = self.with(|state| state.random.u32(..all));
        let chosen = weights.iter().position(|weight| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        match chosen.unwrap_or_default() {
            0 => self.with(|state| {
                let peer = state.random.usize(..state.peers.len());
                let count =
                    if state.chance(10) { state.random.usize(20..80) } else { state.random.usize(1..8) };
                peers::say(state, peer, count);
            }),
            1 => self.with(|state| {
                let peer = state.random.usize(..state.peers.len());
                peers::disconnect(state, peer);
            }),
            2 => self.disk_trouble(),
            3 => self.plan_power_cut(),
            4 => self.kill().await,
            5 => self.restart().await,
            6 => self.with(change_mood),
            _ => self.jump(),
        }
    }

    /// The disk fails for a while, or for a few operations, or is well again.
    fn disk_trouble(&mut self) {
        let fault = self.with(|state| if state.random.bool() { Fault::Broken } else { Fault::Full });
        if self.is_disk_failing {
            self.disk.fail_now(None);
            self.is_disk_failing = false;
        } else if self.with(|state| state.random.bool()) {
            self.disk.fail_now(Some(fault));
            self.is_disk_failing = true;
        } else {
            let (from, count) = self.with(|state| (state.random.u64(1..60), state.random.u64(1..4)));
            let now = self.disk.operations();
            self.disk.fail(now + from, now + from + count, fault);
        }
        let failing = self.is_disk_failing;
        self.with(|state| state.tell("disk", &[failing.into(), u64::from(fault == Fault::Full)]));
    }

    fn plan_power_cut(&mut self) {
        let ahead = self.with(|state| state.random.u64(1..80));
        self.disk.cut_before(self.disk.operations() + ahead);
        self.with(|state| state.tell("power will go", &[ahead]));
    }

    /// The power goes; the machine is started again after a while.
    pub(crate) async fn power_cut(&mut self) {
        self.disk.cut_now();
        let left = self.with(|state| {
            state.tell("power cut", &[]);
            peers::agent_gone(state);
            pick(&mut state.random, &[Left::None, Left::Some, Left::Some, Left::Some, Left::All])
        });
        self.end_processes().await;
        self.disk = self.with(|state| self.disk.after_power_cut(left, &mut state.random));
        self.is_disk_failing = false;
        self.boot().await;
    }

    /// The process is killed; the system goes on.
    async fn kill(&mut self) {
        self.with(|state| {
            state.tell("kill", &[]);
            peers::agent_gone(state);
        });
        let disk = self.disk.after_kill();
        self.end_processes().await;
        self.disk = disk;
        self.boot().await;
    }

    async fn end_processes(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill().await;
        }
    }

    /// A clean stop and a start, perhaps with another configuration.
    async fn restart(&mut self) {
        let after = self.with(|state| Configured {
            second_sink: state.plan.second_sink && state.chance(70),
            extra_window: state.chance(50),
        });
        self.restart_as(after).await;
    }

    /// A clean stop and a start with this configuration.
    pub(crate) async fn restart_as(&mut self, after: Configured) {
        let Some(running) = self.running.take() else { return };
        self.with(|state| state.tell("stop", &[]));
        let stopped = tokio::select! {
            biased;
            stopped = running.stop() => Some(stopped),
            () = until_cut(&self.disk) => None,
        };
        // Each chunk that is read takes as long as a commit here, so windows that catch up may well take longer than a stop may.
        let is_slow = self.with(|state| state.plan.disk_takes >= Duration::from_millis(100));
        if let Some(Err(error)) = &stopped
            && !self.is_excused()
            && !is_slow
        {
            self.with(|state| state.violate(format!("it did not stop: {error}")));
        }
        if self.configured.second_sink && !after.second_sink {
            self.with(|state| {
                let second = state.clouds.get_mut("second").expect("it is in the plan");
                second.was_away = true;
                second.unfix();
            });
        }
        self.configured = after;
        if self.disk.is_cut() {
            return self.power_cut().await;
        }
        self.disk = self.disk.after_kill();
        self.with(peers::agent_gone);
        self.boot().await;
    }

    fn jump(&mut self) {
        let micros = self.with(|state| match state.random.u32(..4) {
            0 => state.random.i64(-7_200_000_000..7_200_000_000),
            1 => state.random.i64(-2_000_000..2_000_000),
            _ => 0,
        });
        let is_synced = self.with(|state| state.random.bool());
        self.world.wall.jump(micros);
        self.world.wall.set_state(if is_synced { ClockState::Synced } else { ClockState::Unsynced });
        self.with(|state| state.tell("clock", &[micros.unsigned_abs(), is_synced.into()]));
    }

    /// Starts the agent, as often as it takes.
    pub(crate) async fn boot(&mut self) {
        loop {
            let disk = self.disk.clone();
            let started = tokio::select! {
                biased;
                started = agent::start(&self.world, &disk, self.configured) => Some(started),
                () = until_cut(&self.disk) => None,
                () = sleep(Duration::from_secs(60)) => None,
            };
            match started {
                Some(Ok(running)) => {
                    self.with(|state| state.tell("up", &[state.boot]));
                    self.running = Some(running);
                    return;
                }
                Some(Err(error)) if !self.is_excused() => {
                    let error = holdfast::causes::chain(&error);
                    return self.with(|state| state.violate(format!("it does not start: {error}")));
                }
                Some(Err(_)) | None => {}
            }
            self.with(peers::agent_gone);
            sleep(Duration::from_secs(1)).await;
            if self.disk.is_cut() {
                let left = self.with(|state| pick(&mut state.random, &[Left::None, Left::Some, Left::All]));
                self.disk = self.with(|state| self.disk.after_power_cut(left, &mut state.random));
                self.is_disk_failing = false;
            } else {
                // Somebody looks after it.
                self.disk.fail_now(None);
                self.is_disk_failing = false;
                self.disk = self.disk.after_kill();
            }
        }
    }

    fn is_excused(&self) -> bool {
        self.disk.is_cut() || self.disk.has_failed()
    }

    /// All trouble ends; everything must arrive. Then a clean stop, and the verdict.
    pub(crate) async fn finish(&mut self) -> Result<Summary, String> {
        if let Some(violation) = self.with(|state| state.violation.clone()) {
            self.end_processes().await;
            return Err(violation);
        }
        self.with(|state| {
            state.tell("peace", &[]);
            state.plan.chaos.disconnect = 0;
            state.clouds.values_mut().for_each(|cloud| cloud.mood = Mood::Well);
        });
        self.disk.calm();
        self.is_disk_failing = false;
        let drained = timeout(PATIENCE, self.drained()).await;
        let books = self.running.as_ref().map(|running| running.inputs().books.clone());
        let last = || books.as_ref().map(|books| books.borrow().clone());
        if drained.is_err() && self.with(|state| state.violation.is_none()) {
            let books = last().map(|books| format!("{:?} {:?}", books.streams, books.sinks));
            let waiting = self.with(|state| {
                state.peers.iter().map(|peer| (peer.queue.len(), peer.in_flight.len())).collect::<Vec<_>>()
            });
            self.with(|state| state.violate(format!("an hour was not enough: {waiting:?} {books:?}")));
        }
        if self.with(|state| state.violation.is_none())
            && let Some(running) = self.running.take()
            && let Err(error) = running.stop().await
            && self.with(|state| state.plan.disk_takes < Duration::from_millis(100))
        {
            self.with(|state| state.violate(format!("it did not stop: {error}")));
        }
        self.end_processes().await;
        let books = last().ok_or("it does not run at the end")?;
        self.with(|state| {
            if state.is_told {
                for record in
                    state.clouds["cloud"].records("readings").chain(state.clouds["cloud"].records("windows"))
                {
                    println!("{record}");
                }
            }
            check::verdict(state, &books)
        })
    }

    async fn drained(&mut self) {
        loop {
            self.pass(Duration::from_secs(1)).await;
            if self.with(|state| state.violation.is_some()) {
                return;
            }
            if !self.with(|state| state.peers.iter().all(peers::Peer::is_done)) {
                continue;
            }
            // Silent devices' windows come out, if their sources are there, and what they waited for.
            let before = self.books().map(|books| books.streams.map(|stream| stream.next));
            let is_connected = |state: &mut State| state.peers.iter().all(peers::Peer::is_connected);
            if !self.with(is_connected) {
                continue;
            }
            // Windows that catch up read all chunks first, one at a time.
            let chunks = self.books().map_or(0, |books| books.streams[0].held_chunks);
            let reads = 20 + u32::try_from(chunks).unwrap_or(u32::MAX);
            let silence =
                self.with(|state| IDLE + 3 * state.plan.commit_interval + reads * state.plan.disk_takes);
            self.pass(silence).await;
            let Some(books) = self.books() else { continue };
            let is_settled =
                self.with(is_connected) && before == Some(books.streams.map(|stream| stream.next));
            let configured = ["cloud", "second"].iter().take(if self.configured.second_sink { 2 } else { 1 });
            let mut ledgers =
                configured.filter_map(|name| books.sinks.get(*name)).flat_map(|sink| &sink.streams);
            if is_settled && ledgers.all(|(stream, ledger)| ledger.cursor == books.stream(*stream).next) {
                return;
            }
        }
    }

    fn books(&self) -> Option<std::sync::Arc<Books>> {
        self.running.as_ref().map(|running| running.inputs().books.borrow().clone())
    }
}

fn change_mood(state: &mut State) {
    let sinks: Vec<String> = state.clouds.keys().cloned().collect();
    let sink = &sinks[state.random.usize(..sinks.len())];
    let mood = match state.random.u32(..12) {
        0..=2 => Mood::Well,
        3..=7 => Mood::Flaky,
        8 | 9 => Mood::Dead,
        10 => Mood::Wrong(pick(&mut state.random, &[301, 401, 403, 404, 405, 407, 418])),
        _ => Mood::Refusing,
    };
    state.tell("mood", &[u64::from(sink == "cloud"), hash_of(mood)]);
    state.clouds.get_mut(sink).expect("it is one of them").mood = mood;
}

fn hash_of(mood: Mood) -> u64 {
    match mood {
        Mood::Well => 0,
        Mood::Flaky => 1,
        Mood::Dead => 2,
        Mood::Refusing => 3,
        Mood::Wrong(status) => status.into(),
    }
}

async fn until_cut(disk: &Disk) {
    while !disk.is_cut() {
        sleep(NOTICE).await;
    }
}
