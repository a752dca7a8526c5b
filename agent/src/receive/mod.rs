//! The reference receiver: what stands at the other end of an `http` sink.
//!
//! In: batches over HTTP (contract, sections 4 and 5), from any number of agents. Out: their records as NDJSON, a file for
//! each agent and stream, and a file of what is missing. Promised: each record is written exactly once, whoever is killed and
//! however often a batch is sent again, because one integer for each (agent, epoch, stream) says which number is wanted next
//! and changes durably together with the records; what is answered with 200 is durable; a missing number has a line that says why.
//!
//! It knows nothing of who is allowed to send: put a proxy that does in front of it.
//!
//! ```text
//! http.rs    request  ->  batch.rs    bytes to a checked batch
//!                     ->  books.rs    what is new in it
//!                     ->  folder.rs   journal.rs, then the NDJSON files, then the answer {"next":N}
//! ```

mod batch;
mod books;
mod folder;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod http;
mod journal;
mod outage;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use books::StreamBooks;
use folder::Folder;
use http::Desk;
pub use outage::{Behaviour, Outage};

/// After a stop, requests that have begun may take this long to end.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A receiver that is bound and has recovered its folder, but does not answer yet.
#[derive(Debug)]
pub struct Receiver {
    listener: TcpListener,
    local_addr: SocketAddr,
    desk: Arc<Desk>,
}

/// Listens on `addr` (port 0: the system chooses) and opens `data_dir`, recovering what a crash left.
///
/// # Errors
/// If the address or the folder is taken or cannot be used.
pub async fn bind(addr: SocketAddr, data_dir: &Path) -> Result<Receiver, Error> {
    let listen = |source| Error::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(listen)?;
    let local_addr = listener.local_addr().map_err(listen)?;
    let root = data_dir.to_owned();
    let folder =
        tokio::task::spawn_blocking(move || Folder::open(&root)).await.map_err(|_| Error::Interrupted)??;
    Ok(Receiver { listener, local_addr, desk: Arc::new(Desk::new(folder, Outage::default())) })
}

impl Receiver {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The switch of its outages.
    #[must_use]
    pub fn outage(&self) -> Outage {
        self.desk.outage().clone()
    }

    /// Takes batches until `stop`, then lets what has begun end and closes the folder cleanly.
    ///
    /// # Errors
    /// If the folder cannot be closed cleanly; nothing is lost then, the next start recovers.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { listener, local_addr, desk } = self;
        info!(%local_addr, "receiving");
        let door = outage::Door { listener, outage: desk.outage().clone() };
        let serving = axum::serve(door, http::router(Arc::clone(&desk)))
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let too_long = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_DEADLINE).await;
        };
        tokio::select! {
            ended = serving.into_future() => ended.map_err(|source| Error::Listen { addr: local_addr, source })?,
            () = too_long => warn!("some requests did not end in time; they were not answered"),
        }
        desk.with_folder(Folder::close).await
    }
}

/// Why the receiver cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}; is another process using it?")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has the folder.
    #[error("data folder {folder:?} is in use by another receiver; stop that one or use another folder")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The disk does not let us.
    #[error("cannot {doing} {path:?}; check the disk, its free space and its permissions")]
    Disk {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The state file is damaged. It is replaced as a whole, so a crash alone does not do that.
    #[error("{path:?} is damaged; restore it, or move the whole data folder away to begin anew")]
    StateDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The state file was written by another version.
    #[error("{path:?} has format {format}, which this version does not know; use the version that wrote it")]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The receiver is stopping.
    #[error("the receiver is stopping")]
    Closed,
    /// What was begun did not end; send the batch again.
    #[error("the work on the batch was interrupted; send it again")]
    Interrupted,
}
