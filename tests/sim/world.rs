//! The world outside of the agent, in one place: what sensors said, who acknowledged what, what the receivers have, and the
//! chance that decides all of it.
//!
//! This is the independent record: nothing in it comes from the agent but what it says to the outside.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use holdfast::clock::SimulatedWall;
use holdfast::reading::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cloud::Cloud;
use crate::peers::Peer;
use crate::plan::Plan;

/// 2026-11-20T00:00:00Z: when every run begins.
pub(crate) const BEGINNING: i64 = 1_795_132_800_000_000;

/// A handle to the world. Cheap to clone.
#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    pub(crate) wall: &'static SimulatedWall,
    /// Somebody wants to connect.
    pub(crate) knock: Arc<Notify>,
}

/// All of it. Locked for a moment at a time, by one thread.
pub(crate) struct State {
    pub(crate) plan: Plan,
    pub(crate) random: fastrand::Rng,
    pub(crate) messages: Vec<Message>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) clouds: BTreeMap<String, Cloud>,
    /// What each number was given to, by epoch and stream; the same at every sink.
    pub(crate) contents: BTreeMap<(String, String, u64), u64>,
    /// Counts starts of the agent.
    pub(crate) boot: u64,
    /// Messages in the order in which they were first published.
    pub(crate) published: usize,
    pub(crate) violation: Option<String>,
    /// Whether what happens is told.
    pub(crate) is_told: bool,
    trace: DefaultHasher,
    started: Instant,
}

/// What a sensor said, once: what is published anew in another session is another message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) peer: usize,
    pub(crate) device: String,
    pub(crate) kind: Kind,
    /// Time, if it says one, and value of each reading in it.
    pub(crate) readings: Vec<(Option<i64>, f64)>,
    pub(crate) is_protected: bool,
    /// Its place among all messages, once it was published.
    pub(crate) order: Option<usize>,
    /// Whether the agent ever said that it has it.
    pub(crate) is_acked: bool,
}

/// What is to become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As many records as it has readings.
    Good,
    /// A dead letter.
    Broken,
    /// Nothing.
    Empty,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let wall = Box::leak(Box::new(SimulatedWall::showing(Timestamp(BEGINNING))));
        let random = fastrand::Rng::with_seed(plan.seed ^ 0x5EED);
        let mut clouds = BTreeMap::from([("cloud".to_owned(), Cloud::default())]);
        if plan.second_sink {
            clouds.insert("second".to_owned(), Cloud::default());
        }
        let peers = (0..=plan.clients).map(|nth| Peer::new(nth, plan.in_flight)).collect();
        let state = State {
            plan,
            random,
            messages: Vec::new(),
            peers,
            clouds,
            contents: BTreeMap::new(),
            boot: 0,
            published: 0,
            violation: None,
            is_told: std::env::var_os("HOLDFAST_TRACE").is_some(),
            trace: DefaultHasher::new(),
            started: Instant::now(),
        };
        if state.is_told {
            println!("{:?}", state.plan);
        }
        Self { state: Arc::new(Mutex::new(state)), wall, knock: Arc::new(Notify::new()) }
    }

    /// Does something to the world. Not to be called within itself.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().expect("nothing panics while it holds the world"))
    }

    /// What happened, as one number.
    pub(crate) fn trace(&self) -> u64 {
        self.with(|state| state.trace.finish())
    }
}

impl State {
    /// Microseconds since the beginning.
    pub(crate) fn elapsed(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_micros()).expect("a run is short")
    }

    /// Something happened: two runs of one seed must tell the same.
    pub(crate) fn tell(&mut self, what: &str, details: &[u64]) {
        let elapsed = self.elapsed();
        (elapsed, what, details).hash(&mut self.trace);
        if self.is_told {
            println!("{:>12} {what} {details:?}", elapsed);
        }
    }

    /// A promise is broken. The first one counts.
    pub(crate) fn violate(&mut self, what: String) {
        self.tell(&what, &[]);
        self.violation.get_or_insert(what);
    }

    /// True with a chance of `percent` in a hundred.
    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(..100) < percent
    }
}
