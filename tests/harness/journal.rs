//! What was sent, and what was acknowledged to whoever sent it: written down outside the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::Cloud;

/// One reading: its device, and the number in its field `n`.
pub type Mark = (String, u64);

/// Shared by all sensors of a test.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    sent: BTreeSet<Mark>,
    acked: BTreeSet<Mark>,
}

impl Journal {
    pub(crate) fn sent(&self, mark: Mark) {
        self.entries().sent.insert(mark);
    }

    pub(crate) fn acked(&self, mark: Mark) {
        self.entries().acked.insert(mark);
    }

    /// How many were acknowledged so far.
    #[must_use]
    pub fn acked_count(&self) -> usize {
        self.entries().acked.len()
    }

    /// What was acknowledged so far.
    #[must_use]
    pub fn acked_marks(&self) -> Vec<Mark> {
        self.entries().acked.iter().cloned().collect()
    }

    /// Takes back what is known to be given up for good.
    pub fn forget(&self, is_given_up: impl Fn(&Mark) -> bool) {
        self.entries().acked.retain(|mark| !is_given_up(mark));
    }

    /// Fails unless what the cloud has is what was acknowledged, each once; and of what was sent and not
    /// acknowledged, nothing twice.
    ///
    /// # Panics
    /// If it is otherwise.
    pub fn assert_exactly_once(&self, cloud: &Cloud) {
        let mut times: BTreeMap<Mark, usize> = BTreeMap::new();
        for record in cloud.records("readings") {
            let n = record["fields"]["n"].as_u64().expect("every reading has an n");
            let device = record["device"].as_str().expect("every reading has a device").to_owned();
            *times.entry((device, n)).or_default() += 1;
        }
        let entries = self.entries();
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).take(10).collect();
        assert!(twice.is_empty(), "delivered more than once: {twice:?}");
        let lost: Vec<_> = entries.acked.iter().filter(|mark| !times.contains_key(mark)).take(10).collect();
        assert!(lost.is_empty(), "acknowledged and not delivered: {lost:?}");
        let strange: Vec<_> = times.keys().filter(|mark| !entries.sent.contains(mark)).take(10).collect();
        assert!(strange.is_empty(), "delivered and never sent: {strange:?}");
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap()
    }
}
