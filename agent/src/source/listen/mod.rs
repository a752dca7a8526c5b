//! Room 1, the listener: sensors publish straight to the agent, and PUBACK means "on disk".
//!
//! In: connections of MQTT 3.1.1 and 5 clients that publish; whoever subscribes is refused, politely. Out: messages
//! into one [`Inlet`](crate::ingest::Inlet) per connection, acknowledgements back. Promised: a PUBACK (PUBREC for
//! QoS 2) leaves only after the message is durable, in the order of the PUBLISHes; what the store cannot take is not
//! read.
//!
//! ```text
//!   mod.rs         binds, accepts, binds again when the address is lost
//!   greeting.rs    TLS, CONNECT, who it is                      users.rs: who may
//!   connection.rs  one task per client: reads, waits, writes    line.rs: its bytes
//!   session.rs     what is owed to it, pure                     packet.rs, answer.rs: packets
//!   clients.rs     who is connected, who takes over             fault.rs: why a connection ends
//! ```

mod answer;
mod clients;
mod connection;
mod fault;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod greeting;
mod line;
mod packet;
mod session;
pub mod settings;
pub mod users;

pub use clients::SessionMemory;
pub use settings::Settings;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::select;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, info, warn};

use self::clients::Clients;
use self::connection::{LARGE_PACKETS_BYTES, Shared};
use self::greeting::LONG_CONNECTS_BYTES;
use self::users::Users;
use super::{Rooms, State};
use crate::backoff::{self, Backoff};
use crate::causes::chain;
use crate::tls;

/// Pauses between attempts to listen.
const RETRY: backoff::Settings =
    backoff::Settings { initial: Duration::from_millis(500), max: Duration::from_secs(30) };
/// The pause after the system had no descriptor or memory for one more connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(500);
/// How often the counts in the report are brought up to date.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Connections beyond `max_clients` that may be in their greeting, so that they can be told no.
const GREETING_CONNECTIONS: usize = 64;
/// Longer than a connection takes to drain and say goodbye.
const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// Why the source does not listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error(
        "cannot listen on {address}; check that it is an address of this machine and that nothing else uses it"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The listening socket failed.
    #[error("the listening socket on {address} failed")]
    Accept {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The users' file cannot be used.
    #[error(transparent)]
    Users(#[from] users::Error),
}

impl Error {
    /// The state of a source that fails so.
    fn state(&self) -> State {
        match self {
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                State::Misconfigured
            }
            Self::Bind { .. } | Self::Accept { .. } => State::Disconnected,
            Self::Tls(_) | Self::Users(_) => State::Misconfigured,
        }
    }
}

/// Messages that a client may have in flight: so many of its last are recognised when they come again. MQTT 5 clients are told
/// (Receive Maximum); those of 3.1.1 use 20 to 100 by default.
pub const IN_FLIGHT: u16 = 1_024;

/// Listens, and serves who connects, until `stop`; then what was pushed is acknowledged once durable, within seconds.
///
/// An address that cannot be bound, or is lost, is a state of the source: it tries again with growing pauses. The
/// address bound (port 0 lets the system choose) is in the report. `memory` says who is known from before a restart.
pub async fn run(settings: Settings, memory: Arc<dyn SessionMemory>, rooms: Rooms) {
    let Rooms { source, intake, report, stop, clock } = rooms;
    report.send_modify(|report| {
        report.clients = Some(0);
        report.retained = Some(0);
    });
    let clients = Arc::new(Clients::new(settings.max_clients));
    let large_packets = Arc::new(Semaphore::new(LARGE_PACKETS_BYTES));
    let long_connects = Arc::new(Semaphore::new(LONG_CONNECTS_BYTES));
    let retained = Arc::new(AtomicU64::new(0));
    let mut backoff = Backoff::new(RETRY);
    let mut connections = JoinSet::new();
    let mut address = settings.listen;
    while !stop.is_cancelled() {
        let error = match open(&settings, address).await {
            Ok((listener, acceptor, users)) => {
                backoff.succeeded();
                // Lost and bound again, a port that the system chose stays the same.
                address = listener.local_addr().unwrap_or(address);
                let shared = Shared {
                    source: Arc::clone(&source),
                    intake: intake.clone(),
                    memory: Arc::clone(&memory),
                    users,
                    clients: Arc::clone(&clients),
                    large_packets: Arc::clone(&large_packets),
                    long_connects: Arc::clone(&long_connects),
                    retained: Arc::clone(&retained),
                    log: Shared::new_log(),
                    report: report.clone(),
                    stop: stop.clone(),
                    clock,
                };
                let door = Door { listener, acceptor, address, shared: Arc::new(shared) };
                match door.accept(&settings, &mut connections).await {
                    Ok(()) => break,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let text = chain(&error);
        match backoff.failures() {
            0 => error!(source = %source.name, "not listening: {text}"),
            _ => debug!(source = %source.name, "still not listening: {text}"),
        }
        report.send_modify(|report| {
            report.state = error.state();
            report.last_error = Some(text);
            report.address = None;
            report.settled = true;
        });
        select! {
            () = stop.cancelled() => {}
            () = sleep(backoff.after_failure(fastrand::f64())) => {}
        }
    }
    // Connections hold an intake; the room downstream ends when the last is gone.
    drop(intake);
    let served = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_DEADLINE, served).await.is_err() {
        warn!(source = %source.name, "connections that did not end in time are dropped");
    }
    connections.shutdown().await;
}

/// Everything that must be right before clients are let in.
async fn open(
    settings: &Settings,
    address: SocketAddr,
) -> Result<(TcpListener, Option<TlsAcceptor>, Option<Users>), Error> {
    let users = settings.users_file.as_deref().map(Users::open).transpose()?;
    let tls = settings.tls.as_ref().map(tls::server_config).transpose()?;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })?;
    Ok((listener, tls.map(TlsAcceptor::from), users))
}

/// A bound address.
struct Door {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Door {
    /// Accepts until the agent stops.
    async fn accept(self, settings: &Settings, connections: &mut JoinSet<()>) -> Result<(), Error> {
        let Self { listener, acceptor, address, shared } = self;
        let source = &shared.source.name;
        info!(%source, %address, tls = acceptor.is_some(), "listening for MQTT");
        shared.report.send_modify(|report| {
            report.state = State::Connected;
            report.last_error = None;
            report.address = Some(address);
            report.settled = true;
        });
        let max_connections = settings.max_clients.saturating_mul(2).saturating_add(GREETING_CONNECTIONS);
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = select! {
                biased;
                () = shared.stop.cancelled() => return Ok(()),
                Some(ended) = connections.join_next() => {
                    if let Err(panic) = ended {
                        error!(%source, "a connection ended by a fault of ours: {panic}");
                    }
                    continue;
                }
                _ = tick.tick() => {
                    let retained = shared.retained.load(Ordering::Relaxed);
                    shared.report.send_if_modified(|report| report.retained.replace(retained) != Some(retained));
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                // Twice max_clients: all of them may come back before we notice that they had gone.
                Ok((socket, from)) if connections.len() >= max_connections => {
                    debug!(%source, %from, "a connection is dropped: too many are in their greeting");
                    drop(socket);
                }
                Ok((socket, from)) => {
                    connections.spawn(connection::serve(socket, from, acceptor.clone(), Arc::clone(&shared)));
                }
                Err(error) => match verdict(&error) {
                    AcceptFault::OfThePeer => {}
                    AcceptFault::Exhausted => {
                        warn!(%source, %error, "cannot accept for now; raise LimitNOFILE if it lasts");
                        sleep(EXHAUSTED_PAUSE).await;
                    }
                    AcceptFault::OfTheSocket => return Err(Error::Accept { address, source: error }),
                },
            }
        }
    }
}

/// Whose fault it is that no connection was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptFault {
    /// The connection was gone before it was accepted; accept(2) reports errors of the network, too.
    OfThePeer,
    /// The process or the system has no descriptor or memory left.
    Exhausted,
    /// The listening socket is of no more use.
    OfTheSocket,
}

fn verdict(error: &io::Error) -> AcceptFault {
    use rustix::io::Errno;
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AcceptFault::Exhausted,
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT) => {
            AcceptFault::OfTheSocket
        }
        _ => AcceptFault::OfThePeer,
    }
}

#[cfg(test)]
mod tests;
