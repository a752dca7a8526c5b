//! Who is connected, who took over from whom, and whom we know from before.
//!
//! A client id is connected once: whoever comes with an id that is in use cuts off the one before and waits until that
//! one's messages are handed over, so that a resend never overtakes the original.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::packet::{Connect, Start};
use crate::ingest::Peer;

/// What is remembered of clients across restarts: whoever has entries by which a resend is recognised is known.
pub trait SessionMemory: Send + Sync {
    /// Whether resends of `peer` can be recognised.
    fn knows(&self, peer: &Peer) -> bool;
}

/// Ids of clients with a session that are remembered in memory, per client that may be connected.
const KNOWN_PER_CLIENT: usize = 4;

/// All clients of one listener.
#[derive(Debug)]
pub(super) struct Clients {
    max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    present: HashMap<Arc<str>, Arc<Presence>>,
    connected: usize,
    lingering: usize,
    /// Clients that keep a session, and the order in which they came to be known.
    sessions: HashSet<Arc<str>>,
    session_order: VecDeque<Arc<str>>,
}

/// One client id, from its CONNECT until its last message (a delayed will, perhaps) is handed over.
#[derive(Debug, Default)]
struct Presence {
    /// Cancelled when another connection takes over.
    cut: CancellationToken,
    /// Whether the one that took over wants to hear nothing of the earlier session.
    fresh: AtomicBool,
    /// Cancelled when everything is handed over.
    done: CancellationToken,
    /// The connection is gone, only its will is still to come.
    lingers: AtomicBool,
}

/// No room for another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Clients {
    pub(super) fn new(max: usize) -> Self {
        Self { max, inner: Mutex::default() }
    }

    /// Lets `id` in, cutting off whoever has that id; await [`Entry::alone`] before handing anything over.
    ///
    /// # Errors
    /// If `max_clients` are connected.
    pub(super) fn enter(self: &Arc<Self>, id: &str, start: Start) -> Result<Entry, Full> {
        let mut inner = self.lock();
        let before = inner.present.get(id).cloned();
        let replaces_connected = before.as_ref().is_some_and(|before| !before.lingers());
        if inner.connected - usize::from(replaces_connected).min(inner.connected) >= self.max {
            return Err(Full);
        }
        if let Some(before) = &before {
            before.fresh.store(start == Start::Fresh, Ordering::Release);
            before.cut.cancel();
        }
        let id: Arc<str> = id.into();
        let presence = Arc::new(Presence::default());
        inner.present.insert(Arc::clone(&id), Arc::clone(&presence));
        inner.connected += 1;
        Ok(Entry { clients: Arc::clone(self), id, presence, before })
    }

    /// How many are connected.
    pub(super) fn connected(&self) -> usize {
        self.lock().connected
    }

    /// Answers whether `connect`, allowed in as `id`, finds a session of its own, and remembers whether it leaves one.
    ///
    /// We keep no session but what recognises resends, which is all that a client that only publishes has at a server.
    /// "Session present" is what makes a client send again, with DUP, what it has no acknowledgement for (rumqttc drops
    /// it otherwise, and MQTT 5 has it start over), so whoever asks to resume and is known is told yes. Known is who
    /// left a session with this process, or has entries in `memory` and now asks for a session that lasts: a
    /// client of MQTT 5 whose sessions end with the connection must not be told of one.
    pub(super) fn session_present(
        &self,
        id: &str,
        connect: &Connect,
        peer: &Peer,
        memory: &dyn SessionMemory,
    ) -> bool {
        let lasting = connect.session_expiry > Duration::ZERO;
        let mut inner = self.lock();
        let known = inner.sessions.contains(id);
        let limit = self.max.saturating_mul(KNOWN_PER_CLIENT);
        if lasting {
            inner.remember(id, limit)
        } else {
            inner.forget(id)
        }
        drop(inner);
        connect.start == Start::Resume && (known || (lasting && memory.knows(peer)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves counts and names, each of them whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remember(&mut self, id: &str, limit: usize) {
        if self.sessions.contains(id) {
            return;
        }
        while self.sessions.len() >= limit.max(1) {
            let Some(oldest) = self.session_order.pop_front() else { break };
            self.sessions.remove(&oldest);
        }
        let id: Arc<str> = id.into();
        self.sessions.insert(Arc::clone(&id));
        self.session_order.push_back(id);
    }

    fn forget(&mut self, id: &str) {
        if self.sessions.remove(id) {
            self.session_order.retain(|known| &**known != id);
        }
    }
}

impl Presence {
    fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Acquire)
    }
}

/// A client's place. Dropped when everything it sent is handed over: only then the next one of its id goes ahead.
#[derive(Debug)]
pub(super) struct Entry {
    clients: Arc<Clients>,
    id: Arc<str>,
    presence: Arc<Presence>,
    before: Option<Arc<Presence>>,
}

/// How the client came back while its will was waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    /// To its session: the will is void.
    Resumed,
    /// To a new one: the old one has ended, and the will is due.
    Fresh,
}

impl Entry {
    /// The client's id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Waits until the connection that this one took over from has handed everything over.
    pub(super) async fn alone(&mut self) {
        if let Some(before) = &self.before {
            before.done.cancelled().await;
            self.before = None;
        }
    }

    /// Cancelled when another connection takes over.
    pub(super) fn cut(&self) -> CancellationToken {
        self.presence.cut.clone()
    }

    /// The client has gone; its entry waits for a delayed will. `false` if too many do already.
    pub(super) fn linger(&self) -> bool {
        let mut inner = self.clients.lock();
        if inner.lingering >= self.clients.max {
            return false;
        }
        inner.lingering += 1;
        inner.connected -= 1;
        self.presence.lingers.store(true, Ordering::Release);
        true
    }

    /// Waits until the client comes back. Cancel-safe.
    pub(super) async fn returned(&self) -> Return {
        self.presence.cut.cancelled().await;
        if self.presence.fresh.load(Ordering::Acquire) { Return::Fresh } else { Return::Resumed }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut inner = self.clients.lock();
        if self.presence.lingers() {
            inner.lingering -= 1;
        } else {
            inner.connected -= 1;
        }
        let ours = inner.present.get(&self.id).is_some_and(|present| Arc::ptr_eq(present, &self.presence));
        if ours {
            inner.present.remove(&self.id);
        }
        drop(inner);
        self.presence.done.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(max: usize) -> Arc<Clients> {
        Arc::new(Clients::new(max))
    }

    #[tokio::test]
    async fn who_takes_over_waits_for_the_one_before() {
        let clients = clients(1);
        let first = clients.enter("a", Start::Resume).unwrap();
        let mut second = clients.enter("a", Start::Resume).unwrap();
        assert!(first.cut().is_cancelled());
        {
            let alone = std::pin::pin!(second.alone());
            let waits = tokio::time::timeout(Duration::from_millis(20), alone).await;
            assert!(waits.is_err(), "it must not go ahead of the first");
        }
        drop(first);
        second.alone().await;
        assert_eq!(clients.connected(), 1);
        assert_eq!(clients.enter("b", Start::Fresh).unwrap_err(), Full);
        drop(second);
        assert!(clients.enter("b", Start::Fresh).is_ok());
    }

    #[test]
    fn who_lingers_leaves_its_place_to_another() {
        let clients = clients(1);
        let first = clients.enter("a", Start::Resume).unwrap();
        assert!(first.linger());
        let second = clients.enter("b", Start::Resume).unwrap();
        assert!(!second.linger(), "only max_clients wills may wait");
        drop(first);
        assert_eq!(clients.connected(), 1);
    }

    #[test]
    fn the_oldest_known_session_is_forgotten_first() {
        let mut inner = Inner::default();
        for id in ["a", "b", "c", "b"] {
            inner.remember(id, 2);
        }
        assert!(
            !inner.sessions.contains("a") && inner.sessions.contains("b") && inner.sessions.contains("c")
        );
        inner.forget("b");
        assert_eq!(inner.session_order.len(), 1);
    }
}
