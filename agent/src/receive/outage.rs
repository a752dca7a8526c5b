//! A receiver that plays dead, for the demo and for tests: what an agent does then is what it is for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// Switches a receiver's outages on and off. Cheap to clone; all clones switch the same receiver.
#[derive(Clone, Debug, Default)]
pub struct Outage(Arc<AtomicU8>);

/// How the receiver behaves towards agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Normal,
    /// It answers every request with 503.
    Unavailable,
    /// It closes new connections at once and answers 503 on those it has.
    Unreachable,
}

impl Outage {
    /// From now on, the receiver behaves like this.
    pub fn set(&self, behaviour: Behaviour) {
        let code = match behaviour {
            Behaviour::Normal => 0,
            Behaviour::Unavailable => 1,
            Behaviour::Unreachable => 2,
        };
        self.0.store(code, Ordering::Relaxed);
    }

    /// How the receiver behaves now.
    #[must_use]
    pub fn behaviour(&self) -> Behaviour {
        match self.0.load(Ordering::Relaxed) {
            0 => Behaviour::Normal,
            1 => Behaviour::Unavailable,
            _ => Behaviour::Unreachable,
        }
    }
}

/// The listening socket: sends new connections away while the receiver is unreachable.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) outage: Outage,
}

impl Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if self.outage.behaviour() == Behaviour::Unreachable {
                continue;
            }
            // Answers are a few bytes, and the agent waits for them.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot set TCP_NODELAY");
            }
            return (stream, address);
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
