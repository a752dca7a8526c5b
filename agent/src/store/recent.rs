//! What each peer sent last: by this a message is recognised that comes again because our ack was lost.
//!
//! Recognised means (contract, section 1.2): DUP is set, and the same packet id, topic and payload hash are among that
//! peer's last messages, whatever their outcome was. An entry dies when its packet id comes with DUP = 0 (it is then
//! another message), or with the session. Pure. The ingest room decides by it; the store keeps it, as small changes in
//! every commit and whole now and then.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// Every packet id there is: the bound of a sender that does not say how many messages it keeps in flight.
pub const EVERY_PACKET_ID: u16 = u16::MAX;
/// Peers remembered; the one silent for longest is forgotten first. Bounds memory when client ids are random.
const PEERS: usize = 4_096;
/// Messages remembered of all peers together, ten bytes each; the peer silent for longest is forgotten first.
const MESSAGES: usize = 1 << 20;

/// What all peers sent last.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    peers: HashMap<Arc<str>, Messages>,
    /// Messages of all peers.
    messages: usize,
    /// Counts changes; a peer remembers the count of its last one.
    now: u64,
}

/// What one peer sent last, oldest first; two rows instead of pairs, so that an entry takes ten bytes.
#[derive(Clone, Debug, Default)]
struct Messages {
    packet_ids: VecDeque<u16>,
    hashes: VecDeque<u64>,
    in_flight: u16,
    touched: u64,
}

/// One change: what a peer sent, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The peer.
    pub peer: String,
    /// True if its session was lost before these: all that was remembered is void.
    pub session_lost: bool,
    /// So many messages the peer may have in flight; no more of it are remembered.
    pub in_flight: u16,
    /// Packet id and hash (little-endian, a fixed eight bytes) of each message.
    pub messages: Vec<(u16, [u8; 8])>,
}

impl Recent {
    /// True if `peer` sent a message with this packet id and hash, and nothing else with that id since.
    #[must_use]
    pub fn knows(&self, peer: &str, packet_id: u16, hash: u64) -> bool {
        let Some(messages) = self.peers.get(peer) else { return false };
        let found = messages.packet_ids.iter().rposition(|id| *id == packet_id);
        found.is_some_and(|index| messages.hashes[index] == hash)
    }

    /// Everybody of whom something is remembered.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.peers.keys()
    }

    /// Remembers one more message of `peer`, which may have `in_flight` of them on the way.
    pub fn remember(&mut self, peer: &Arc<str>, in_flight: u16, packet_id: u16, hash: u64) {
        self.now += 1;
        if self.peers.len() >= PEERS && !self.peers.contains_key(peer) {
            self.forget_oldest();
        }
        let messages = self.peers.entry(Arc::clone(peer)).or_default();
        messages.in_flight = in_flight;
        messages.touched = self.now;
        let before = messages.hashes.len();
        messages.push(packet_id, hash);
        self.messages = self.messages + messages.hashes.len() - before;
        if self.messages > MESSAGES {
            self.forget_oldest();
        }
    }

    /// Forgets `peer`: its session is gone.
    pub fn forget(&mut self, peer: &str) {
        if let Some(messages) = self.peers.remove(peer) {
            self.messages -= messages.hashes.len();
        }
    }

    /// Does again what `change` says.
    pub fn apply(&mut self, change: &Change) {
        if change.session_lost {
            self.forget(&change.peer);
        }
        let peer: Arc<str> = change.peer.as_str().into();
        for (packet_id, hash) in &change.messages {
            self.remember(&peer, change.in_flight, *packet_id, u64::from_le_bytes(*hash));
        }
    }

    /// All of it, as changes to nothing, the peer silent for longest first: serializes as a list of [`Change`]s.
    pub(super) fn snapshot(&self) -> impl Serialize + '_ {
        Snapshot(self)
    }

    /// Messages remembered, of all peers.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    fn forget_oldest(&mut self) {
        let oldest = self.peers.iter().min_by_key(|(_, messages)| messages.touched);
        if let Some(peer) = oldest.map(|(peer, _)| Arc::clone(peer)) {
            self.forget(&peer);
        }
    }
}

/// A [`Recent`] written as a list of [`Change`]s, without making them: there may be many megabytes of it.
struct Snapshot<'a>(&'a Recent);

/// A [`Change`], borrowed.
#[derive(Serialize)]
struct PeerRow<'a> {
    peer: &'a str,
    session_lost: bool,
    in_flight: u16,
    messages: MessageRows<'a>,
}

struct MessageRows<'a>(&'a Messages);

impl Serialize for Snapshot<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut peers: Vec<_> = self.0.peers.iter().collect();
        peers.sort_by_cached_key(|(_, messages)| messages.touched);
        serializer.collect_seq(peers.into_iter().map(|(peer, messages)| PeerRow {
            peer,
            session_lost: true,
            in_flight: messages.in_flight,
            messages: MessageRows(messages),
        }))
    }
}

impl Serialize for MessageRows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Messages { packet_ids, hashes, .. } = self.0;
        serializer.collect_seq(packet_ids.iter().zip(hashes).map(|(id, hash)| (*id, hash.to_le_bytes())))
    }
}

impl Messages {
    fn push(&mut self, packet_id: u16, hash: u64) {
        while self.packet_ids.len() >= usize::from(self.in_flight.max(1)) {
            self.packet_ids.pop_front();
            self.hashes.pop_front();
        }
        self.packet_ids.push_back(packet_id);
        self.hashes.push_back(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent(messages: &[(u16, u64)]) -> Recent {
        let mut recent = Recent::default();
        for (packet_id, hash) in messages {
            recent.remember(&"a".into(), EVERY_PACKET_ID, *packet_id, *hash);
        }
        recent
    }

    #[test]
    fn a_message_is_known_until_its_packet_id_is_used_anew() {
        let mut recent = recent(&[(1, 10), (2, 20)]);
        assert!(recent.knows("a", 1, 10));
        assert!(!recent.knows("a", 1, 11), "another message under the same id");
        assert!(!recent.knows("b", 1, 10), "another peer");
        recent.remember(&"a".into(), EVERY_PACKET_ID, 1, 11);
        assert!(!recent.knows("a", 1, 10), "the id was used anew");
        recent.forget("a");
        assert!(!recent.knows("a", 2, 20), "the session is gone");
    }

    #[test]
    fn no_more_is_remembered_than_there_are_packet_ids() {
        let mut recent = recent(&[(1, 1)]);
        for round in 0..70_000_u64 {
            recent.remember(&"a".into(), EVERY_PACKET_ID, u16::try_from(round % 65_535 + 1).unwrap(), round);
        }
        assert_eq!(recent.peers["a"].hashes.len(), usize::from(EVERY_PACKET_ID));
    }

    #[test]
    fn the_peer_silent_for_longest_is_forgotten_first() {
        let mut recent = Recent::default();
        for peer in 0..=PEERS {
            recent.remember(&format!("p{peer}").into(), EVERY_PACKET_ID, 1, 1);
        }
        assert!(!recent.knows("p0", 1, 1) && recent.knows("p1", 1, 1));
    }

    #[test]
    fn no_more_is_remembered_than_may_be_in_flight() {
        let mut recent = Recent::default();
        for n in 1..=20 {
            recent.remember(&"a".into(), 5, n, u64::from(n));
        }
        assert!(recent.knows("a", 16, 16) && !recent.knows("a", 15, 15));
        assert_eq!(recent.messages(), 5);
    }

    #[test]
    fn all_peers_together_are_bounded() {
        let mut recent = Recent::default();
        for peer in 0..20 {
            let peer: Arc<str> = format!("p{peer}").into();
            for n in 1..=EVERY_PACKET_ID {
                recent.remember(&peer, EVERY_PACKET_ID, n, 7);
            }
        }
        assert!(recent.messages() <= MESSAGES);
        assert!(recent.knows("p19", 1, 7) && !recent.knows("p0", 1, 7));
    }

    #[test]
    fn a_snapshot_gives_the_same_again() {
        let before = recent(&[(1, 10), (2, 20), (1, 30)]);
        let mut after = Recent::default();
        let written = postcard::to_stdvec(&before.snapshot()).unwrap();
        for change in postcard::from_bytes::<Vec<Change>>(&written).unwrap() {
            after.apply(&change);
        }
        assert!(after.knows("a", 1, 30) && after.knows("a", 2, 20) && !after.knows("a", 1, 10));
    }
}
