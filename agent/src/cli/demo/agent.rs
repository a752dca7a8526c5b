//! The agent as the demo sees it: a configuration goes in; addresses, books and a way to stop it come out.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::store::Books;
use crate::{config, forward, pipeline, source};

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
    /// What the source of the node says of itself.
    pub(super) serial: watch::Receiver<source::Report>,
    /// Awaited, drains the agent and ends it; the last books stay in `books`.
    pub(super) stop: Stop,
}

/// The source of the node.
pub(super) const SERIAL: &str = "press";

/// Starts an agent with this configuration (TOML).
///
/// # Errors
/// If it cannot start.
pub(super) async fn start(config: &str) -> anyhow::Result<Running> {
    let loaded = config::parse(config, "demo.toml", &config::System).map_err(|faults| anyhow!("{faults}"))?;
    let running = pipeline::start(loaded.config, Clock::system()).await?;
    let inputs = running.inputs();
    let books = inputs.books.clone();
    let sink = inputs.sinks.borrow().values().next().map(|sink| sink.report.clone());
    let serial = inputs.sources.borrow().get(SERIAL).map(|source| source.report.clone());
    Ok(Running {
        direct: running.listen_address("direct").await.context("the listener did not start")?,
        admin: running.admin(),
        books,
        sink: sink.context("the demo has a sink")?,
        serial: serial.context("the demo has a node")?,
        stop: Box::pin(async move { Ok(running.stop().await?) }),
    })
}
