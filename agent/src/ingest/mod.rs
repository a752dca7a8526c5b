//! Room 3: from messages to one chunk.
//!
//! In: messages that sources push into their [`Inlet`]s, decoded there. Out: groups for the store. Promised: a message
//! is reported durable, in the order of its inlet, only after the transaction that holds its outcome; a message sent
//! again because our ack was lost is recognised and not stored twice; every outcome is counted.
//!
//! ```text
//!   connection ── push ──► Inlet ── batch ──► Ingest ── group ──► store
//!       ▲                                        │
//!       └───────── durable: n messages ◄─────────┘   after the commit
//! ```

pub mod decode;
mod gather;
pub(crate) mod inlet;
mod payload;
mod rhythm;
pub mod settings;
pub mod topic;

pub use inlet::{
    Arrival, Closed, Delivery, Flushed, Inlet, Intake, Measured, Peer, Pushed, Replayed, Resent, SourceSpec,
};
pub use settings::Subscription;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::warn;

use self::gather::{Gathered, Receipt};
use self::inlet::{BUDGET_BYTES, Batch};
use self::rhythm::Rhythm;
use crate::clock::{Clock, until};
use crate::pulse;
use crate::store::recent::Recent;
use crate::store::work::{Group, Pace};
use crate::store::{self, Store};

/// How long the store may take for what is left when the agent stops.
const DRAIN: Duration = Duration::from_secs(5);

/// The room: one task.
pub struct Ingest {
    batches: mpsc::Receiver<Batch>,
    store: Store,
    clock: Clock,
    commit_interval: Duration,
    recent: Recent,
    rhythm: Rhythm,
    gathered: Gathered,
    /// The commit on its way, and whom to tell.
    committing: Option<Committing>,
}

struct Committing {
    done: Pin<Box<dyn Future<Output = Result<(), store::Closed>> + Send>>,
    receipts: Vec<Receipt>,
}

enum Event {
    Batch(Box<Batch>),
    Due,
    Durable(Result<(), store::Closed>),
    Closed,
}

impl Ingest {
    /// The room, and where sources get their inlets from. `recent` is what peers sent before, from the store.
    #[must_use]
    pub fn new(store: Store, recent: Recent, commit_interval: Duration, clock: Clock) -> (Intake, Self) {
        let (intake, batches) = Intake::new(clock);
        let room = Self {
            batches,
            store,
            clock,
            commit_interval,
            recent,
            rhythm: Rhythm::new(),
            gathered: Gathered::default(),
            committing: None,
        };
        (intake, room)
    }

    /// Runs until every intake and inlet is gone and what they sent is durable.
    pub async fn run(mut self) {
        loop {
            let event = pulse::waiting(self.next()).await;
            match event {
                Event::Batch(batch) => self.take(*batch),
                Event::Due => self.commit(),
                Event::Durable(Ok(())) => self.redeem(),
                Event::Durable(Err(store::Closed)) => return,
                Event::Closed => return self.drain().await,
            }
        }
    }

    async fn next(&mut self) -> Event {
        let due = self.due();
        let is_committing = self.committing.is_some();
        let durable = async {
            match &mut self.committing {
                Some(committing) => committing.done.as_mut().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = durable => Event::Durable(result),
            // Before the next batch: in a flood there always is one.
            () = until(due), if !is_committing => Event::Due,
            batch = self.batches.recv() => batch.map_or(Event::Closed, |batch| Event::Batch(Box::new(batch))),
        }
    }

    /// When to commit what is gathered, by the rules of [`rhythm`].
    fn due(&self) -> Option<Instant> {
        let since = self.gathered.since()?;
        if self.gathered.is_full(BUDGET_BYTES) {
            return Some(since);
        }
        let latest = since + self.commit_interval;
        if !self.gathered.owes_acks() {
            return Some(latest);
        }
        let last_arrival = self.rhythm.last_arrival().unwrap_or(since);
        Some(latest.min(last_arrival + self.rhythm.pause(self.commit_interval)))
    }

    fn take(&mut self, batch: Batch) {
        let (now, wall) = (self.clock.monotonic(), self.clock.wall());
        self.rhythm.arrived(now, batch.items.len());
        self.gathered.add(batch, &mut self.recent, now, wall);
    }

    fn commit(&mut self) {
        let pace = if self.rhythm.is_sparse(self.commit_interval) { Pace::Sparse } else { Pace::Steady };
        self.rhythm.committing(self.commit_interval);
        let (group, receipts) = self.gathered.take(pace);
        let store = self.store.clone();
        let done: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(append(store, group));
        self.committing = Some(Committing { done, receipts });
    }

    fn redeem(&mut self) {
        if let Some(committing) = self.committing.take() {
            committing.receipts.into_iter().for_each(Receipt::redeem);
            self.rhythm.released(self.clock.monotonic());
        }
    }

    /// Stores what is left, if the store takes it soon: a full or failing one would hold up the end for ever. What is not
    /// stored was not acknowledged either.
    async fn drain(mut self) {
        loop {
            if let Some(committing) = &mut self.committing {
                match timeout(DRAIN, committing.done.as_mut()).await {
                    Ok(Ok(())) => self.redeem(),
                    Ok(Err(store::Closed)) => return,
                    Err(_) => {
                        return warn!(
                            "the store takes nothing now; what was not acknowledged will be sent again"
                        );
                    }
                }
            }
            if self.gathered.is_empty() {
                return;
            }
            self.commit();
        }
    }
}

async fn append(store: Store, group: Group) -> Result<(), store::Closed> {
    store.append(group).await
}
