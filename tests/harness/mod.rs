//! What the end-to-end tests are made of: the agent as a process, real brokers, sensors, and a cloud that does as it is told.
//!
//! Everything lives on the loopback and in temporary folders, and ends with the test: children are killed when their
//! owner is dropped. Nobody sleeps for luck: [`wait_for`] is the one place that waits, under a deadline. What was
//! acknowledged to whom is written down by those who sent it ([`Journal`]), never taken from the agent.

#![expect(clippy::unwrap_used, reason = "a harness that cannot do its work fails the test")]

pub mod agent;
pub mod books;
pub mod broker;
pub mod cloud;
pub mod disk;
pub mod http;
pub mod journal;
pub mod modbus;
pub mod node;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod sensor;
pub mod simulated_disk;
pub mod socket;
pub mod tls;
pub mod witness;

pub use agent::Agent;
pub use broker::Broker;
pub use cloud::Cloud;
pub use disk::Disk;
pub use journal::Journal;
pub use node::Node;
pub use proxy::Proxy;
pub use receiver::Receiver;
pub use sensor::Sensor;
pub use socket::Socket;
pub use witness::Witness;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long anything may take. Generous: the tests share two cores with a compiler.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something, and fails the test with `what` if it never does.
///
/// # Panics
/// After `within`, times `HOLDFAST_PATIENCE`.
pub async fn wait_for<T, F>(what: &str, within: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let asking = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let within = within * patience();
    match tokio::time::timeout(within, asking).await {
        Ok(found) => found,
        Err(_) => panic!("waited {within:?} in vain for {what}"),
    }
}

/// How many times longer everything may take: `HOLDFAST_PATIENCE`, for programs in an emulator; else 1.
///
/// # Panics
/// If it is no number.
#[must_use]
pub fn patience() -> u32 {
    std::env::var("HOLDFAST_PATIENCE")
        .map_or(1, |times| times.parse().expect("HOLDFAST_PATIENCE is a whole number"))
}

/// A port on the loopback that nobody listens on now.
///
/// It lies below the range from which the system takes ports for outgoing connections, so that it is still free when a
/// killed process is started again. Another run of the tests begins elsewhere.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(997);
    (0..COUNT)
        .find_map(|_| {
            let place = start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let port = u16::try_from(FIRST + place).ok()?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok().then_some(port)
        })
        .expect("some port is free")
}

/// A random generator for a test, whose seed is printed so that a failure can be repeated with `HOLDFAST_SEED`.
///
/// # Panics
/// If `HOLDFAST_SEED` is no number.
#[must_use]
#[expect(clippy::print_stdout, reason = "shown with the failure")]
pub fn random() -> fastrand::Rng {
    let seed = match std::env::var("HOLDFAST_SEED") {
        Ok(seed) => seed.parse().expect("HOLDFAST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("HOLDFAST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
