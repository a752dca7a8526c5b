//! A network that fails: a TCP proxy on the loopback that cuts, holds back, slows down, or loses one direction.
//!
//! A link in which bytes were lost is cut when it heals: TCP never goes on behind a hole.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::{DEADLINE, free_port, wait_for};

/// A client that comes while nobody is behind the proxy is let go after this, so that it does not come back in a busy loop.
const NOBODY_THERE: Duration = Duration::from_millis(50);

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// It works.
    Fair,
    /// Connections are cut, new ones refused.
    Cut,
    /// Connections stay, nothing comes through; it comes later.
    Held,
    /// A little at a time.
    Slow,
    /// What clients say does not arrive any more.
    NoRequests,
    /// What is answered to them does not arrive any more.
    NoAnswers,
}

impl Weather {
    /// All that is not fair.
    pub const FOUL: [Self; 5] = [Self::Cut, Self::Held, Self::Slow, Self::NoRequests, Self::NoAnswers];

    fn lets_through(self, way: Way) -> bool {
        match self {
            Self::Fair | Self::Slow => true,
            Self::Cut | Self::Held => false,
            Self::NoRequests => way == Way::Down,
            Self::NoAnswers => way == Way::Up,
        }
    }

    /// Whether what was under way is lost with it.
    fn loses(self) -> bool {
        matches!(self, Self::Cut | Self::NoRequests | Self::NoAnswers)
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// Sees all bytes of a connection that either side has sent, whether or not they arrive.
pub trait Tap: Send {
    /// These were sent.
    fn sent(&mut self, way: Way, bytes: &[u8]);
}

/// Makes a tap for each connection.
pub type Taps = Arc<dyn Fn() -> Box<dyn Tap> + Send + Sync>;

/// The proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    weather: watch::Sender<Weather>,
    server: JoinHandle<()>,
}

impl Proxy {
    /// A proxy before the port `target`, in fair weather.
    #[must_use]
    pub fn start(target: u16) -> Self {
        Self::tapped(target, Arc::new(|| Box::new(Nobody)))
    }

    /// The same with somebody who listens in.
    #[must_use]
    pub fn tapped(target: u16, taps: Taps) -> Self {
        let (weather, seen) = watch::channel(Weather::Fair);
        let port = free_port();
        Self { port, weather, server: tokio::spawn(serve(port, target, seen, taps)) }
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Nobody;

impl Tap for Nobody {
    fn sent(&mut self, _: Way, _: &[u8]) {}
}

async fn serve(port: u16, target: u16, mut weather: watch::Receiver<Weather>, taps: Taps) {
    let mut links = JoinSet::new();
    while weather.wait_for(|weather| *weather != Weather::Cut).await.is_ok() {
        let listener = wait_for("the proxy's port", DEADLINE, async || {
            TcpListener::bind(("127.0.0.1", port)).await.ok()
        })
        .await;
        let inside = weather.clone();
        loop {
            tokio::select! {
                cut = weather.wait_for(|weather| *weather == Weather::Cut) => {
                    if cut.is_err() {
                        return;
                    }
                    break;
                }
                Ok((client, _)) = listener.accept() => {
                    links.spawn(link(client, target, inside.clone(), taps()));
                }
                Some(_) = links.join_next() => {}
            }
        }
        drop(listener);
        links.shutdown().await;
    }
}

/// One connection, until either side ends it or the weather breaks it.
async fn link(client: TcpStream, target: u16, mut weather: watch::Receiver<Weather>, mut tap: Box<dyn Tap>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return tokio::time::sleep(NOBODY_THERE).await;
    };
    // It is only a test that gets slower.
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let mut up = Pump { from: client_reads, to: server_writes, way: Way::Up };
    let mut down = Pump { from: server_reads, to: client_writes, way: Way::Down };
    let (mut upward, mut downward) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        let now = *weather.borrow_and_update();
        let (way, moved) = tokio::select! {
            changed = weather.changed() => {
                if changed.is_err() || (now.loses() && *weather.borrow() != now) {
                    return;
                }
                continue;
            }
            count = up.from.read(&mut upward) , if now.lets_through(Way::Up) => (Way::Up, count),
            count = down.from.read(&mut downward), if now.lets_through(Way::Down) => (Way::Down, count),
        };
        let Ok(count @ 1..) = moved else { return };
        let (bytes, to) = match way {
            Way::Up => (&upward[..count], &mut up),
            Way::Down => (&downward[..count], &mut down),
        };
        tap.sent(to.way, bytes);
        if to.pass(bytes, now).await.is_err() {
            return;
        }
    }
}

struct Pump {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    way: Way,
}

impl Pump {
    async fn pass(&mut self, bytes: &[u8], weather: Weather) -> std::io::Result<()> {
        if weather != Weather::Slow {
            return self.to.write_all(bytes).await;
        }
        for part in bytes.chunks(700) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.to.write_all(part).await?;
        }
        Ok(())
    }
}
