//! From batches to one group: what was seen before is left out, every outcome is counted. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::inlet::{Batch, Delivery, Item, Outcome, Peer, Rejected, Resent, SourceSpec};
use crate::reading::Timestamp;
use crate::store::DeadLetterOrigin;
use crate::store::ledger::SourceCounts;
use crate::store::nodes::NodeChange;
use crate::store::recent::{Change, Recent};
use crate::store::work::{Group, Letter, Pace};

/// Messages in a group at which it is committed without waiting for more.
const FULL_MESSAGES: usize = 8_192;

/// What is gathered for the next commit, and who is to be told of it.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    group: Group,
    counts: HashMap<Arc<str>, SourceCounts>,
    /// The place in `group.recent` of each peer's latest change.
    latest: HashMap<Arc<str>, usize>,
    messages: usize,
    permits: usize,
    /// Whether somebody waits for an ack.
    owes_acks: bool,
    receipts: Vec<Receipt>,
}

/// Who is told when a group is durable.
#[derive(Debug)]
pub(super) struct Receipt {
    durable: watch::Sender<u64>,
    up_to: u64,
    /// Given back to the budget with the receipt.
    _permits: Option<OwnedSemaphorePermit>,
}

impl Receipt {
    /// The group is durable.
    pub(super) fn redeem(self) {
        self.durable.send_replace(self.up_to);
    }
}

impl Gathered {
    /// Takes one batch. `recent` decides what was seen before, and learns what was not.
    pub(super) fn add(&mut self, batch: Batch, recent: &mut Recent, now: Instant, wall: Timestamp) {
        self.group.since.get_or_insert(now);
        let source = &batch.source.name;
        let mut counts = self.counts.get(source).copied().unwrap_or_default();
        for item in batch.items {
            self.add_item(item, &batch.peer, &batch.source, &mut counts, recent, wall);
        }
        self.counts.insert(Arc::clone(source), counts);
        self.permits += batch.permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        self.receipts.push(Receipt { durable: batch.durable, up_to: batch.up_to, _permits: batch.permits });
    }

    fn add_item(
        &mut self,
        item: Item,
        peer: &Peer,
        source: &SourceSpec,
        counts: &mut SourceCounts,
        recent: &mut Recent,
        wall: Timestamp,
    ) {
        match item.outcome {
            Outcome::SessionLost => return self.forget(peer, source.in_flight, recent),
            Outcome::Repeated(records) => {
                counts.received += records;
                counts.redelivered += records;
                return;
            }
            _ => {}
        }
        if let Some(change) = item.node {
            self.owes_acks |= item.delivery == Delivery::Numbered;
            self.settle(*change);
        }
        if matches!(item.outcome, Outcome::Missed) {
            return;
        }
        self.messages += 1;
        counts.received += 1;
        match item.delivery {
            Delivery::AtMostOnce => counts.unprotected += 1,
            Delivery::Numbered => {}
            Delivery::Acknowledged { packet_id, resent } => {
                self.owes_acks = true;
                if let Peer(Some(peer)) = peer {
                    if resent == Resent::Perhaps && recent.knows(peer, packet_id, item.hash) {
                        counts.redelivered += 1;
                        return;
                    }
                    recent.remember(peer, source.in_flight, packet_id, item.hash);
                    self.change(peer, source.in_flight).messages.push((packet_id, item.hash.to_le_bytes()));
                }
            }
        }
        match item.outcome {
            Outcome::Reading(reading) => {
                counts.stored += 1;
                counts.readings += 1;
                self.group.readings.push(reading);
            }
            Outcome::Readings(readings) => {
                counts.stored += 1;
                counts.readings += readings.len() as u64;
                self.group.readings.extend(readings);
            }
            Outcome::Rejected(rejected) => {
                counts.rejected += 1;
                self.group.rejected.push(letter(*rejected, &source.name, wall));
            }
            Outcome::Skipped => counts.skipped += 1,
            // Not messages; they were seen to above.
            Outcome::SessionLost | Outcome::Missed | Outcome::Repeated(_) => {}
        }
    }

    /// Of each node the last position counts, and all that is missing.
    fn settle(&mut self, change: NodeChange) {
        match self.group.nodes.iter_mut().find(|known| known.id == change.id) {
            Some(known) => {
                known.position = change.position;
                known.missed.add(&change.missed);
            }
            None => self.group.nodes.push(change),
        }
    }

    fn forget(&mut self, peer: &Peer, in_flight: u16, recent: &mut Recent) {
        let Peer(Some(peer)) = peer else { return };
        recent.forget(peer);
        self.latest.insert(Arc::clone(peer), self.group.recent.len());
        self.group.recent.push(Change {
            peer: peer.to_string(),
            session_lost: true,
            in_flight,
            messages: Vec::new(),
        });
    }

    fn change(&mut self, peer: &Arc<str>, in_flight: u16) -> &mut Change {
        let recent = &mut self.group.recent;
        let place = *self.latest.entry(Arc::clone(peer)).or_insert_with(|| {
            recent.push(Change {
                peer: peer.to_string(),
                session_lost: false,
                in_flight,
                messages: Vec::new(),
            });
            recent.len() - 1
        });
        &mut recent[place]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    /// True if it is worth a commit of its own, whatever else may come. `budget_bytes` is what all inlets share.
    pub(super) fn is_full(&self, budget_bytes: usize) -> bool {
        self.messages >= FULL_MESSAGES || self.permits >= budget_bytes / 4
    }

    pub(super) fn owes_acks(&self) -> bool {
        self.owes_acks
    }

    /// When its oldest message came.
    pub(super) fn since(&self) -> Option<Instant> {
        self.group.since
    }

    /// The group to be stored, and whom to tell afterwards.
    pub(super) fn take(&mut self, pace: Pace) -> (Group, Vec<Receipt>) {
        let taken = std::mem::take(self);
        let mut group = taken.group;
        group.counts =
            taken.counts.into_iter().map(|(source, counts)| (source.to_string(), counts)).collect();
        group.pace = pace;
        (group, taken.receipts)
    }
}

fn letter(rejected: Rejected, source: &Arc<str>, wall: Timestamp) -> Letter {
    Letter {
        time: wall,
        origin: DeadLetterOrigin::Source { source: source.to_string(), topic: rejected.topic },
        reason: rejected.reason.to_string(),
        payload: rejected.payload.to_vec(),
        payload_bytes: rejected.payload_bytes,
        payload_hash: rejected.payload_hash,
    }
}
