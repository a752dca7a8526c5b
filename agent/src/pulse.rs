//! Signs of life: whether a room still gets anywhere.
//!
//! Every few seconds each room is asked, by waking its task. It answers where it may wait as long as it likes ([`waiting`]): in its
//! `select!`, at a request with a timeout of its own, for another room, which is asked itself. What is not marked so has to
//! end within the room's limit: a lock, a loop, a commit that hangs in the kernel ([`working`]).
//!
//! ```text
//!   alive ── no answer for longer than its limit ──► hung: /healthz says so, the watchdog is not fed
//!     ▲                                               │
//!     └──────────────── an answer ────────────────────┘
//! ```
//!
//! An answer costs a room two atomic stores, and no timer of its own. Outside of a room that is asked, all of it does nothing.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::few;

/// How often rooms are asked. Each time wakes every room once.
pub const ASK_EVERY: Duration = Duration::from_secs(5);
/// A room that does not answer for longer is hung. Far above anything that a room does in one go, also on a board that swaps.
pub const LIMIT: Duration = Duration::from_secs(30);
/// The same for the store's writer: cheap SD cards stall for tens of seconds.
pub const LIMIT_ON_DISK: Duration = Duration::from_secs(60);

tokio::task_local! {
    static CURRENT: Pulse;
}

/// One room's side: carried by its task.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    has_answered: AtomicBool,
    /// Pieces of work under way that have to end within the limit.
    working: AtomicU32,
    /// Wakes the task where it waits.
    waker: Mutex<Option<Waker>>,
}

impl Pulse {
    /// Runs a room, which is asked from now on until it ends.
    pub async fn carried_by<F: Future>(self, room: F) -> F::Output {
        CURRENT.scope(self, room).await
    }

    fn answer(&self) {
        if self.0.working.load(Acquire) == 0 {
            self.0.has_answered.store(true, Relaxed);
        }
    }

    fn wait(&self, waker: &Waker) {
        self.answer();
        let mut known = self.0.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *known {
            Some(known) => known.clone_from(waker),
            None => *known = Some(waker.clone()),
        }
    }
}

/// Marks a wait that may last: while `future` is polled, the room answers. Cancel-safe if `future` is.
pub async fn waiting<F: Future>(future: F) -> F::Output {
    let pulse = CURRENT.try_with(Pulse::clone).ok();
    let mut future = pin!(future);
    poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        if let Some(pulse) = &pulse {
            match &polled {
                Poll::Ready(_) => pulse.answer(),
                Poll::Pending => pulse.wait(context.waker()),
            }
        }
        polled
    })
    .await
}

/// Marks work on another thread that has to end within the room's limit: the room does not answer until this is dropped,
/// wherever it waits.
#[must_use]
pub fn working() -> Working {
    let pulse = CURRENT.try_with(Pulse::clone).ok();
    if let Some(pulse) = &pulse {
        pulse.0.working.fetch_add(1, AcqRel);
    }
    Working(pulse)
}

/// Work under way; see [`working`].
#[derive(Debug)]
pub struct Working(Option<Pulse>);

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(pulse) = self.0.take() {
            pulse.0.working.fetch_sub(1, AcqRel);
            pulse.answer();
        }
    }
}

/// What is known of one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vital {
    /// For how long it has not answered; zero if it answered when it was asked last.
    pub silent: Duration,
    /// It is hung when it does not answer for longer.
    pub limit: Duration,
}

impl Vital {
    /// Whether it gets nowhere any more.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.silent > self.limit
    }
}

/// All rooms, by name.
pub type Vitals = BTreeMap<String, Vital>;

/// The rooms that are asked. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Rooms(Arc<Mutex<Vec<Asked>>>);

#[derive(Debug)]
struct Asked {
    name: String,
    /// Gone with the room.
    pulse: Weak<Shared>,
    vital: Vital,
}

impl Rooms {
    /// One more, to be [carried](Pulse::carried_by) by its task.
    #[must_use]
    pub fn add(&self, name: String, limit: Duration) -> Pulse {
        let pulse = Arc::new(Shared::default());
        let vital = Vital { silent: Duration::ZERO, limit };
        let asked = Asked { name, pulse: Arc::downgrade(&pulse), vital };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        Pulse(pulse)
    }

    /// Takes the answers since the last time, `elapsed` ago, and asks again.
    fn ask(&self, elapsed: Duration) -> Vitals {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.retain_mut(|room| {
            let Some(pulse) = room.pulse.upgrade() else { return false };
            let has_answered = pulse.has_answered.swap(false, Relaxed);
            room.vital.silent = if has_answered { Duration::ZERO } else { room.vital.silent + elapsed };
            let waker = pulse.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(waker) = waker {
                waker.wake();
            }
            true
        });
        few::map(rooms.iter().map(|room| (room.name.clone(), room.vital)))
    }
}

/// Who asks: keeps what was answered, and says what has changed.
#[derive(Debug)]
pub struct Asker {
    rooms: Rooms,
    last: Instant,
    before: Vitals,
}

/// A room that hangs since the last time, or does so no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It does not answer any more.
    Hangs {
        /// Which.
        room: String,
        /// Since when.
        silent: Duration,
    },
    /// It answers again, or has ended.
    GoesOn {
        /// Which.
        room: String,
    },
}

impl Asker {
    /// Begins at `now`.
    #[must_use]
    pub fn new(rooms: Rooms, now: Instant) -> Self {
        Self { rooms, last: now, before: Vitals::new() }
    }

    /// To be called every [`ASK_EVERY`].
    pub fn ask(&mut self, now: Instant) -> (Vitals, Vec<Change>) {
        // If we were held up ourselves, a stopped or starved process, that is no silence of the rooms.
        let elapsed = now.saturating_duration_since(self.last).min(2 * ASK_EVERY);
        self.last = now;
        let vitals = self.rooms.ask(elapsed);
        let hung = |vitals: &Vitals, room: &str| vitals.get(room).is_some_and(Vital::is_hung);
        let begun = vitals.iter().filter(|(room, vital)| vital.is_hung() && !hung(&self.before, room));
        let begun = begun.map(|(room, vital)| Change::Hangs { room: room.clone(), silent: vital.silent });
        let ended = self.before.iter().filter(|(room, vital)| vital.is_hung() && !hung(&vitals, room));
        let ended = ended.map(|(room, _)| Change::GoesOn { room: room.clone() });
        let changes = begun.chain(ended).collect();
        self.before.clone_from(&vitals);
        (vitals, changes)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::task::yield_now;
    use tokio::time::sleep;

    use super::*;

    /// Asks for so long, and returns what is known of the room then.
    async fn asked_for(asker: &mut Asker, long: Duration) -> (Option<Vital>, Vec<Change>) {
        let (mut vital, mut changes) = (None, Vec::new());
        for _ in 0..long.as_secs() / ASK_EVERY.as_secs() {
            sleep(ASK_EVERY).await;
            let (vitals, more) = asker.ask(Instant::now());
            vital = vitals.get("room").copied();
            changes.extend(more);
            yield_now().await;
        }
        (vital, changes)
    }

    fn asker() -> (Asker, Pulse) {
        let rooms = Rooms::default();
        let pulse = rooms.add("room".to_owned(), LIMIT);
        (Asker::new(rooms, Instant::now()), pulse)
    }

    fn is_hung(vital: Option<Vital>) -> bool {
        vital.unwrap().is_hung()
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_that_waits_for_an_event_is_alive_for_ever() {
        let (mut asker, pulse) = asker();
        let room = tokio::spawn(pulse.carried_by(waiting(std::future::pending::<()>())));
        let (vital, changes) = asked_for(&mut asker, 100 * LIMIT).await;
        assert_eq!((vital.unwrap().silent, changes), (Duration::ZERO, Vec::new()));
        room.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_stuck_at_what_should_have_ended_is_hung_until_it_goes_on() {
        let (mut asker, pulse) = asker();
        let (release, stuck) = oneshot::channel::<()>();
        let room = tokio::spawn(pulse.carried_by(async {
            drop(stuck.await);
            waiting(std::future::pending::<()>()).await;
        }));
        let (vital, changes) = asked_for(&mut asker, LIMIT).await;
        assert!(!is_hung(vital) && changes.is_empty(), "{changes:?}");
        let (vital, changes) = asked_for(&mut asker, LIMIT).await;
        assert!(is_hung(vital));
        assert_eq!(changes, [Change::Hangs { room: "room".into(), silent: LIMIT + ASK_EVERY }], "said once");
        release.send(()).unwrap();
        let (vital, changes) = asked_for(&mut asker, 2 * ASK_EVERY).await;
        assert!(!is_hung(vital));
        assert_eq!(changes, [Change::GoesOn { room: "room".into() }]);
        room.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_does_not_end_is_a_hang_wherever_the_room_waits() {
        let (mut asker, pulse) = asker();
        let (release, stuck) = oneshot::channel::<()>();
        let work = async move {
            let working = working();
            drop(stuck.await);
            drop(working);
            std::future::pending::<()>().await;
        };
        let room = tokio::spawn(pulse.carried_by(waiting(work)));
        let (vital, _) = asked_for(&mut asker, 2 * LIMIT).await;
        assert!(is_hung(vital));
        release.send(()).unwrap();
        let (vital, _) = asked_for(&mut asker, 2 * ASK_EVERY).await;
        assert_eq!(vital.unwrap().silent, Duration::ZERO);
        room.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_room_that_blocks_its_thread_does_not_answer() {
        let (mut asker, pulse) = asker();
        let lock = Arc::new(Mutex::new(()));
        let held = lock.lock().unwrap();
        let (lock, now) = (Arc::clone(&lock), Instant::now());
        let room = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(pulse.carried_by(waiting(async move { drop(lock.lock().unwrap()) })));
        });
        let asked: Vec<_> = (1..=8).map(|nth| asker.ask(now + nth * ASK_EVERY).0["room"]).collect();
        assert!(asked[7].is_hung(), "{asked:?}");
        drop(held);
        room.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_that_has_ended_is_forgotten() {
        let (mut asker, pulse) = asker();
        tokio::spawn(pulse.carried_by(async {})).await.unwrap();
        assert_eq!(asked_for(&mut asker, LIMIT).await, (None, Vec::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_is_no_silence_of_its_rooms() {
        let (mut asker, pulse) = asker();
        let room = tokio::spawn(pulse.carried_by(waiting(std::future::pending::<()>())));
        asked_for(&mut asker, 2 * ASK_EVERY).await;
        // Asked, and frozen before the room could answer.
        asker.ask(Instant::now());
        let (vitals, changes) = asker.ask(Instant::now() + 100 * LIMIT);
        assert!(!vitals["room"].is_hung() && changes.is_empty());
        room.abort();
    }
}
