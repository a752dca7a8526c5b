//! How far the records of each sensor node are durable, and which of them will never come. Pure.
//!
//! A node behind a serial line numbers its records and keeps them until they are acknowledged. So one position a node is all it
//! takes to recognise what comes again, and it rides in the commit that stores the records: see the `firmware-bridge`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::reading::Timestamp;

/// Nodes remembered; the one silent for longest is forgotten first. They ride in every commit, some 40 bytes each.
pub const MAX_NODES: usize = 128;

/// A node, and the source it speaks to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The configured name of the source.
    pub source: Arc<str>,
    /// What the node calls itself.
    pub node: Arc<str>,
}

/// What the books know of each node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes(BTreeMap<NodeId, NodeBooks>);

/// What the books know of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBooks {
    /// All records up to here are durable, or known never to come.
    pub position: NodePosition,
    /// Records that will never come.
    pub missed: Missed,
    /// The commit that changed this last.
    pub commit: u64,
}

/// A record of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePosition {
    /// Which life of the node.
    pub boot: u32,
    /// Its number in that life.
    pub seq: u64,
    /// When it was taken, by the node's clock: milliseconds since its reset.
    pub uptime_ms: u64,
    /// The same by our clock.
    pub time: Timestamp,
}

/// How many records of a node will never come, by reason. Only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The node had no room for them, and said so.
    pub dropped: u64,
    /// The line lost them, and the node only transmits.
    pub lost: u64,
    /// They are of a kind that this version cannot read.
    pub unreadable: u64,
}

/// What a commit changes of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeChange {
    /// The node.
    pub id: NodeId,
    /// The last record that is settled by it.
    pub position: NodePosition,
    /// What is to be added to the records that will never come.
    pub missed: Missed,
}

impl Missed {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.dropped.saturating_add(self.lost).saturating_add(self.unreadable)
    }

    /// Adds `more`.
    pub fn add(&mut self, more: &Self) {
        self.dropped = self.dropped.saturating_add(more.dropped);
        self.lost = self.lost.saturating_add(more.lost);
        self.unreadable = self.unreadable.saturating_add(more.unreadable);
    }
}

impl Nodes {
    /// Does what `change` says, in the commit of that number.
    pub(crate) fn apply(&mut self, change: &NodeChange, commit: u64) {
        let node = self.0.entry(change.id.clone()).or_default();
        // It replaces what was there: a node that was reset numbers its records anew.
        node.position = change.position;
        node.missed.add(&change.missed);
        node.commit = commit;
        if self.0.len() > MAX_NODES {
            let oldest = self.0.iter().min_by_key(|(_, node)| node.commit).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.0.remove(&id));
        }
    }

    /// The nodes of a source, by name.
    pub fn of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a NodeBooks)> {
        let ids = self.0.iter().filter(move |(id, _)| *id.source == *source);
        ids.map(|(id, books)| (&id.node, books))
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(node: &str, boot: u32, seq: u64, dropped: u64) -> NodeChange {
        NodeChange {
            id: NodeId { source: "press".into(), node: node.into() },
            position: NodePosition { boot, seq, ..NodePosition::default() },
            missed: Missed { dropped, ..Missed::default() },
        }
    }

    #[test]
    fn a_position_replaces_the_one_before_and_what_is_missed_adds_up() {
        let mut nodes = Nodes::default();
        nodes.apply(&change("n1", 3, 90, 4), 1);
        nodes.apply(&change("n1", 4, 1, 2), 2);
        let (_, node) = nodes.of("press").next().unwrap();
        assert_eq!((node.position.boot, node.position.seq, node.missed.total()), (4, 1, 6));
        assert_eq!(nodes.of("pres").count(), 0);
    }

    #[test]
    fn the_node_silent_for_longest_is_forgotten_first() {
        let mut nodes = Nodes::default();
        for (n, commit) in (0..=MAX_NODES).zip(1..) {
            nodes.apply(&change(&format!("n{n}"), 1, 1, 0), commit);
        }
        assert_eq!(nodes.of("press").count(), MAX_NODES);
        assert!(nodes.of("press").all(|(node, _)| **node != *"n0"));
    }
}
