//! What rooms ask of the store, in the words of each.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::backoff::{self, Backoff};
use crate::blocking::blocking;
use crate::causes::chain;
use crate::ingest::Peer;
use crate::source::listen::SessionMemory;
use crate::source::mqtt::SubscriptionMemory;
use crate::store::{self, Piece, Reader, Readings, Store, WindowsSnapshot, WindowsUpdate};
use crate::stream::{Seq, Stream};
use crate::window::Log;

/// The store as the windows see it.
pub(super) struct StoreLog {
    store: Store,
    reader: Reader,
}

impl StoreLog {
    pub(super) fn new(store: &Store) -> Self {
        Self { store: store.clone(), reader: store.reader() }
    }
}

impl StoreLog {
    /// Reads from the file, however long it takes the disk to recover.
    async fn read(&self, from: Seq) -> Option<Piece> {
        let mut backoff = Backoff::new(READ_AGAIN);
        loop {
            let reader = self.reader.clone();
            match blocking(move || reader.piece(Stream::Readings, from)).await {
                Ok(piece) => return piece,
                Err(error) => {
                    let pause = backoff.after_failure(fastrand::f64());
                    warn!(error = %chain(&error), ?pause, "windows cannot read the store; they try again");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// Pauses of the windows while the disk fails.
const READ_AGAIN: backoff::Settings =
    backoff::Settings { initial: Duration::from_millis(500), max: Duration::from_secs(30) };

/// Why the store could not do what the windows asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Closed(#[from] store::Closed),
}

impl Log for StoreLog {
    type Error = LogError;

    async fn snapshot(&self) -> Result<WindowsSnapshot, LogError> {
        let store = self.store.clone();
        Ok(blocking(move || store.windows_snapshot()).await?)
    }

    async fn readings_from(&self, from: Seq, _max: usize) -> Result<Readings, LogError> {
        let piece = match self.reader.recent(Stream::Readings, from) {
            Some(piece) => Some(piece),
            None => self.read(from).await,
        };
        Ok(match piece {
            Some(Piece::Readings(first, readings)) => Readings { first, readings },
            Some(Piece::Windows(..)) | None => Readings { first: from, readings: Arc::new([]) },
        })
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.store.head()
    }

    fn wants_checkpoint(&self) -> watch::Receiver<bool> {
        self.store.wants_checkpoint()
    }

    async fn update(&self, update: WindowsUpdate) -> Result<(), LogError> {
        Ok(self.store.update_windows(update).await?)
    }
}

/// Which filters an MQTT source subscribed to, kept in the store.
pub(super) struct FilterMemory {
    store: Store,
    key: String,
    /// As stored: read once, because reading blocks.
    filters: Mutex<Vec<String>>,
}

impl FilterMemory {
    /// Blocks for one look into the store.
    pub(super) fn new(store: &Store, source: &str) -> Self {
        let key = format!("filters/{source}");
        let stored = store.recall(&key).unwrap_or_else(|error| {
            warn!(%error, source, "cannot tell what was subscribed before; nothing is unsubscribed");
            None
        });
        let filters = stored.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default();
        Self { store: store.clone(), key, filters: Mutex::new(filters) }
    }
}

impl SubscriptionMemory for FilterMemory {
    fn previous(&self) -> Vec<String> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn remember(&self, filters: Vec<String>) {
        let bytes = postcard::to_stdvec(&filters).expect("a Vec takes any bytes");
        *self.filters.lock().unwrap_or_else(PoisonError::into_inner) = filters;
        if self.store.remember(&self.key, bytes).await.is_err() {
            warn!("the store closed before it could keep what is subscribed");
        }
    }
}

/// Who is known from before the start.
pub(super) struct KnownPeers(HashSet<Arc<str>>);

impl KnownPeers {
    pub(super) fn new<'a>(peers: impl Iterator<Item = &'a Arc<str>>) -> Self {
        Self(peers.cloned().collect())
    }
}

impl SessionMemory for KnownPeers {
    fn knows(&self, peer: &Peer) -> bool {
        peer.0.as_ref().is_some_and(|peer| self.0.contains(peer))
    }
}
