//! How far the records of each sensor node are durable, and which of them will never come. Pure.
//!
//! A node behind a serial line numbers its records and keeps them until they are acknowledged. So one position a node is all it
//! takes to recognise what comes again, and it rides in the commit that stores the records: see the `firmware-bridge`. Of a node that
//! had to be forgotten, what it missed stays counted, and that there was one: its source can tell who may be doubtful.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::reading::Timestamp;

/// Nodes remembered; of the source that has most of them the one silent for longest is forgotten first, so that a line on which
/// anything calls itself a node costs no other line its memory. They ride in every commit, some 40 bytes each.
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nodes {
    known: BTreeMap<NodeId, NodeBooks>,
    /// By source. It comes last: notes of before it end without.
    forgotten: BTreeMap<Arc<str>, Forgotten>,
}

/// Nodes of one source that are remembered no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// How often one was forgotten.
    pub times: u64,
    /// Their records that will never come.
    pub missed: Missed,
}

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
    /// From the bytes of a note.
    ///
    /// # Errors
    /// If they are anything else.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, postcard::Error> {
        let (known, rest) = postcard::take_from_bytes(bytes)?;
        let forgotten = if rest.is_empty() { BTreeMap::new() } else { postcard::from_bytes(rest)? };
        Ok(Self { known, forgotten })
    }

    /// Does what `change` says, in the commit of that number.
    pub(crate) fn apply(&mut self, change: &NodeChange, commit: u64) {
        let node = self.known.entry(change.id.clone()).or_default();
        // It replaces what was there: a node that was reset numbers its records anew.
        node.position = change.position;
        node.missed.add(&change.missed);
        node.commit = commit;
        if self.known.len() > MAX_NODES
            && let Some(oldest) = self.to_forget()
        {
            let books = self.known.remove(&oldest).unwrap_or_default();
            let forgotten = self.forgotten.entry(oldest.source).or_default();
            forgotten.times = forgotten.times.saturating_add(1);
            forgotten.missed.add(&books.missed);
        }
    }

    /// The node that is forgotten next.
    fn to_forget(&self) -> Option<NodeId> {
        let mut crowds: BTreeMap<&str, usize> = BTreeMap::new();
        for id in self.known.keys() {
            *crowds.entry(&*id.source).or_default() += 1;
        }
        let (crowded, _) = crowds.into_iter().max_by_key(|(_, nodes)| *nodes)?;
        let of_crowded = self.known.iter().filter(|(id, _)| *id.source == *crowded);
        of_crowded.min_by_key(|(_, node)| node.commit).map(|(id, _)| id.clone())
    }

    /// What is left of the nodes of a source that are remembered no more.
    #[must_use]
    pub fn forgotten(&self, source: &str) -> Forgotten {
        self.forgotten.get(source).copied().unwrap_or_default()
    }

    /// The nodes of a source, by name.
    pub fn of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a NodeBooks)> {
        let ids = self.known.iter().filter(move |(id, _)| *id.source == *source);
        ids.map(|(id, books)| (&id.node, books))
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
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

    #[test]
    fn a_line_with_a_thousand_names_costs_no_other_line_its_memory() {
        let mut nodes = Nodes::default();
        let of = |source: &str, node: String| {
            let id = NodeId { source: source.into(), node: node.into() };
            NodeChange { id, ..change("", 1, 1, 0) }
        };
        for n in 0..20 {
            nodes.apply(&of("press", format!("n{n}")), n);
        }
        for n in 0..1_000 {
            nodes.apply(&of("hostile", format!("n{n}")), 100 + n);
        }
        assert_eq!((nodes.of("press").count(), nodes.forgotten("press").times), (20, 0));
        assert_eq!(nodes.of("hostile").count(), MAX_NODES - 20);
    }

    #[test]
    fn what_a_forgotten_node_missed_stays_counted() {
        let mut nodes = Nodes::default();
        let missed = |nodes: &Nodes| {
            let mut missed = nodes.forgotten("press").missed;
            nodes.of("press").for_each(|(_, node)| missed.add(&node.missed));
            missed.total()
        };
        let mut before = 0;
        for (n, commit) in (0..3 * MAX_NODES).zip(1..) {
            nodes.apply(&change(&format!("n{n}"), 1, 1, 2), commit);
            assert_eq!(missed(&nodes), before + 2);
            before += 2;
        }
        assert_eq!(nodes.forgotten("press").times, 2 * MAX_NODES as u64);
        assert_eq!(nodes.forgotten("pres"), Forgotten::default());
        let bytes = postcard::to_stdvec(&nodes).unwrap();
        assert_eq!(Nodes::from_bytes(&bytes).unwrap(), nodes);
        let of_before = postcard::to_stdvec(&nodes.known).unwrap();
        assert_eq!(Nodes::from_bytes(&of_before).unwrap().known, nodes.known);
    }
}
