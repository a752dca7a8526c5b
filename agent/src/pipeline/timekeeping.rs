//! Watches over the clock: says when it stops or begins to be right or goes back, and lets the store know when the machine was started, once
//! that can be told and readings wait for it.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::{Clock, Trust};
use crate::reading::{ClockState, Timestamp};
use crate::store::Store;
use crate::store::boots::Boot;

/// How often the clock is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A clock that just became synchronised may still be on its way: it has to show the same for this long...
const SETTLED: Duration = Duration::from_secs(2);
/// ...and for this long if it contradicts what it showed before.
const SETTLED_ANEW: Duration = Duration::from_secs(60);
/// What counts as the same, in microseconds.
const SAME_MICROS: u64 = 100_000;
/// A clock that goes back by less is being set finely, which is nobody's concern.
const WENT_BACK: Duration = Duration::from_secs(1);

/// Runs until `stop` is cancelled.
pub(super) async fn keep(clock: Clock, store: Store, stop: CancellationToken) {
    let mut watch = Watch { clock, said: None, is_back: false, shown: None };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let look = async {
            ticks.tick().await;
            match watch.look(&store) {
                Some(boot) => store.learn_boot(boot).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            looked = look => if looked.is_err() { return },
        }
    }
}

struct Watch {
    clock: Clock,
    /// What was logged last.
    said: Option<ClockState>,
    /// True from when it is logged that the clock went back until it is logged that it caught up.
    is_back: bool,
    /// When the machine was started, by what the synchronised clock shows, and since when it shows that.
    shown: Option<(i64, Instant)>,
}

impl Watch {
    /// What the store is to learn.
    fn look(&mut self, store: &Store) -> Option<Boot> {
        let state = self.clock.state();
        self.say(state);
        self.say_ahead();
        if state == ClockState::Unsynced {
            self.shown = None;
            return None;
        }
        let (now, at) = (self.clock.monotonic(), self.clock.booted_at());
        let same = self.shown.filter(|(shown, _)| shown.abs_diff(at) <= SAME_MICROS);
        let (_, since) = *self.shown.insert(same.unwrap_or((at, now)));
        let boot = Boot { id: self.clock.boot(), at };
        let books = store.books();
        let boots = &books.borrow().boots;
        if !boots.wants(boot) {
            return None;
        }
        let settled = if boots.at(boot.id, u32::MAX).is_some() { SETTLED_ANEW } else { SETTLED };
        let is_settled = now.duration_since(since) >= settled;
        if is_settled {
            let booted_at = Timestamp(at);
            info!(%booted_at, "it is known now when the machine was started: what waits to be sent is corrected");
        }
        is_settled.then_some(boot)
    }

    fn say(&mut self, state: ClockState) {
        if self.said.replace(state) == Some(state) {
            return;
        }
        match (state, self.clock.trust()) {
            (ClockState::Synced, _) => info!("the clock is synchronised"),
            (ClockState::Unsynced, Trust::Kernel) => warn!(
                "nothing synchronises the clock, as far as the kernel tells us: readings are marked until something does; \
                 if it is kept right by other means, set clock = \"trusted\" in [agent]"
            ),
            (ClockState::Unsynced, Trust::Operator) => warn!(
                time = %self.clock.wall(),
                "the clock shows a time before this program was written: readings are marked until it is set"
            ),
        }
    }

    fn say_ahead(&mut self) {
        let ahead = self.clock.ahead();
        if !self.is_back && ahead >= WENT_BACK {
            self.is_back = true;
            warn!(?ahead, "the clock went back: times of receipt stay ahead of it until it has caught up");
        } else if self.is_back && ahead.is_zero() {
            self.is_back = false;
            info!("the clock has caught up with the times of receipt");
        }
    }
}
