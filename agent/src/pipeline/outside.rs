//! What lies outside of the agent: the time, the disk, the sinks, those who send. A simulation puts its own in their place.

use std::future::Future;
use std::pin::Pin;

use crate::clock::Clock;
use crate::forward::{self, Transport};
use crate::source;
use crate::store::Medium;

/// The world that an agent lives in. What is `None` is what the configuration says.
pub struct Outside {
    /// The time.
    pub clock: Clock,
    /// What tells this machine from another, in place of its id.
    pub machine: Option<String>,
    /// What the store lies on, in place of a file in the data directory.
    pub medium: Option<Medium>,
    /// How batches reach the sinks, in place of HTTP.
    pub transport: Option<MakeTransport>,
    /// What is run for each source, in place of a client or a listener. It ends when it is told to stop.
    pub source: Option<RunSource>,
}

/// See [`Outside::transport`].
pub type MakeTransport = Box<dyn Fn(&forward::Settings) -> Box<dyn Transport> + Send + Sync>;

/// See [`Outside::source`].
pub type RunSource =
    Box<dyn Fn(&source::Settings, source::Rooms) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl Outside {
    /// The world as it is.
    #[must_use]
    pub fn of_this_machine(clock: Clock) -> Self {
        Self { clock, machine: None, medium: None, transport: None, source: None }
    }
}
