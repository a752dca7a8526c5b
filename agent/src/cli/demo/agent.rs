//! The agent as the demo sees it: a configuration goes in; addresses, books and a way to stop it come out.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use crate::forward;
use crate::store::Books;

/// Drains the agent and ends it.
pub(super) type Stop = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// A running agent.
pub(super) struct Running {
    /// Where its `mqtt-listen` source listens.
    pub(super) direct: SocketAddr,
    /// Where its page is.
    pub(super) admin: Option<SocketAddr>,
    /// Its books. The sender goes when the agent has ended.
    pub(super) books: watch::Receiver<Arc<Books>>,
    /// What its sink says of itself.
    pub(super) sink: watch::Receiver<forward::Report>,
    /// Awaited, drains the agent and ends it; the last books stay in `books`.
    pub(super) stop: Stop,
}

/// Starts an agent with this configuration (TOML).
///
/// # Errors
/// If it cannot start.
#[expect(clippy::unused_async, reason = "starting the pipeline waits")]
pub(super) async fn start(config: &str) -> anyhow::Result<Running> {
    let _ = config;
    anyhow::bail!("the agent's pipeline is not part of this build")
}
