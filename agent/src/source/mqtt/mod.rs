//! Room 1: a PUBLISH arrives from a broker.
//!
//! In: the packets of an MQTT broker, 3.1.1 or 5. Out: messages, pushed into an [`Inlet`](crate::ingest::Inlet).
//! Promised: a message with QoS 1 is acknowledged only after the inlet says that it is durable, in the order of arrival,
//! on the connection that brought it; the session outlives connections and restarts; no trouble outside ends the source.
//!
//! ```text
//!   starting ──► connected ◄──────────────► blocked          (the store takes no more)
//!      │          ▲     │
//!      ▼          │     ▼
//!   disconnected / misconfigured / packet-too-large          (a pause with full jitter, then a new attempt)
//! ```

mod acks;
mod link;
mod reporter;
mod session;
mod settings;
mod subscribing;
mod trouble;
mod v4;
mod v5;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use self::settings::{Protocol, Settings};

use self::link::{Filter, Link, Plan, Protection, Releases};
use self::reporter::{Reporter, Trust};
use self::session::{Ending, SETTLED_AFTER, Served, Task};
use self::trouble::Trouble;
use self::v4::V4;
use self::v5::V5;
use crate::backoff::{self, Backoff};
use crate::blocking::blocking;
use crate::clock::Clock;
use crate::ingest::{Intake, Peer, SourceSpec};
use crate::source::Rooms;
use crate::{secret, tls};

/// How fast things are tried again and given up.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Pauses between attempts.
    retry: backoff::Settings,
    /// How long a source that stops waits for what it took to become durable.
    drain_wait: Duration,
}

impl Pace {
    /// At most half a minute between attempts: a broker that is back should not wait long for us. Five seconds to drain:
    /// several commits' time; what is not durable by then comes again.
    const DEFAULT: Self = Self {
        retry: backoff::Settings { initial: Duration::from_millis(500), max: Duration::from_secs(30) },
        drain_wait: Duration::from_secs(5),
    };
}

/// The protocol has 16 bits for the seconds of a keep-alive.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(65_535);

/// What a source subscribed to before, kept durably. A broker's session does not tell, and keeps what it was told.
pub trait SubscriptionMemory: Send + Sync {
    /// The topic filters that the session may hold.
    fn previous(&self) -> Vec<String>;

    /// Keeps `filters` instead; done when that is durable.
    fn remember(&self, filters: Vec<String>) -> impl Future<Output = ()> + Send;
}

/// Runs the source until it is told to stop or the ingest room ends.
///
/// Trouble with the broker is retried for ever and shown in its report. When asked to stop, it takes no more messages,
/// waits up to five seconds for those it took to become durable, acknowledges them and disconnects.
pub async fn run<M: SubscriptionMemory>(settings: Settings, memory: M, rooms: Rooms) {
    Client::new(settings, memory, rooms).run().await;
}

/// Why there will be no further attempt.
struct Done;

struct Client<M> {
    settings: Settings,
    source: Arc<SourceSpec>,
    intake: Intake,
    memory: M,
    wanted: Vec<Filter>,
    stop: CancellationToken,
    clock: Clock,
    reporter: Reporter,
    pace: Pace,
    releases: Releases,
}

impl<M: SubscriptionMemory> Client<M> {
    fn new(settings: Settings, memory: M, rooms: Rooms) -> Self {
        let Rooms { source, intake, report, stop, clock } = rooms;
        let broker = format!("{}:{}", settings.host, settings.port);
        let reporter = Reporter::new(&settings.name, broker, report, clock);
        let wanted = filters(&settings);
        let (pace, releases) = (Pace::DEFAULT, Releases::Known);
        Self { settings, source, intake, memory, wanted, stop, clock, reporter, pace, releases }
    }

    async fn run(mut self) {
        let mut backoff = Backoff::new(self.pace.retry);
        let mut trust = Trust::Now;
        while !self.stop.is_cancelled() {
            let served = match self.attempt(trust).await {
                Ok(served) => served,
                Err(Done) => return,
            };
            let trouble = match served.ending {
                Ending::Failed(trouble) => trouble,
                Ending::Stopped | Ending::RoomClosed => return,
            };
            trust = match served.lasted {
                Some(lasted) if lasted >= SETTLED_AFTER => {
                    backoff.succeeded();
                    Trust::Now
                }
                Some(_) => Trust::Later,
                None => Trust::Now,
            };
            if let Trouble::UnknownRelease = trouble {
                self.releases = Releases::Any;
            }
            let pause = backoff.after_failure(fastrand::f64());
            self.reporter.failed(&trouble, backoff.failures(), pause);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One connection, from reading the secrets to its end.
    async fn attempt(&mut self, trust: Trust) -> Result<Served, Done> {
        let plan = match self.plan().await? {
            Ok(plan) => plan,
            Err(trouble) => {
                let ending = Ending::Failed(trouble);
                return Ok(Served { ending, lasted: None, is_cleaned_up: false });
            }
        };
        let previous = self.memory.previous();
        self.remember_both(&previous).await?;
        let obsolete = without(&previous, &self.wanted);
        let served = match self.settings.protocol {
            Protocol::V311 => self.serve::<V4>(&plan, &obsolete, trust).await,
            Protocol::V5 => self.serve::<V5>(&plan, &obsolete, trust).await,
        };
        if served.is_cleaned_up && !obsolete.is_empty() {
            // Forgotten only now that the broker has dropped them; if this is cut short they are dropped once more.
            self.memory.remember(texts(&self.wanted)).await;
        }
        Ok(served)
    }

    async fn serve<L: Link>(&mut self, plan: &Plan, obsolete: &[String], trust: Trust) -> Served {
        let peer = Peer::named(&self.source.name, &plan.client_id);
        let inlet = self.intake.open(&self.source, peer);
        let task = Task {
            wanted: &self.wanted,
            obsolete,
            keep_alive: plan.keep_alive,
            trust,
            drain_wait: self.pace.drain_wait,
            stop: &self.stop,
            clock: self.clock,
        };
        // Boxed: an event loop and its futures are large, and this is done once in a connection.
        let mut link = Box::new(L::open(plan));
        Box::pin(session::serve(&mut *link, inlet, &task, &mut self.reporter)).await
    }

    /// What may be subscribed from now on is remembered before it is: a crash must not leave a subscription behind that
    /// nobody knows of.
    async fn remember_both(&self, previous: &[String]) -> Result<(), Done> {
        let mut both = previous.to_vec();
        both.extend(texts(&self.wanted).into_iter().filter(|text| !previous.contains(text)));
        if both.len() == previous.len() {
            return Ok(());
        }
        tokio::select! {
            () = self.stop.cancelled() => Err(Done),
            () = self.memory.remember(both) => Ok(()),
        }
    }

    /// Reads what it takes to connect: anew each time, so that rotated secrets and certificates are picked up.
    async fn plan(&self) -> Result<Result<Plan, Trouble>, Done> {
        let (settings, releases) = (self.settings.clone(), self.releases);
        let read = blocking(move || plan(&settings, releases));
        tokio::select! {
            () = self.stop.cancelled() => Err(Done),
            plan = read => Ok(plan),
        }
    }
}

fn plan(settings: &Settings, releases: Releases) -> Result<Plan, Trouble> {
    if settings.client_id.is_empty() {
        return Err(Trouble::NoClientId);
    }
    let password = settings.password.as_ref().map(secret::Secret::reveal).transpose();
    let password = password.map_err(Trouble::Password)?;
    let credentials = match (&settings.username, password) {
        (None, None) => None,
        (username, password) => Some((username.clone().unwrap_or_default(), password.unwrap_or_default())),
    };
    let tls = settings.tls.as_ref().map(tls::client_config).transpose().map_err(Trouble::Tls)?;
    let keep_alive = settings.keep_alive;
    Ok(Plan {
        // rumqttc puts host and port together without brackets, and resolves the outcome from the right.
        host: settings.host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: settings.port,
        client_id: settings.client_id.clone(),
        credentials,
        tls,
        keep_alive: if keep_alive.is_zero() {
            keep_alive
        } else {
            keep_alive.clamp(Duration::from_secs(1), KEEP_ALIVE_MAX)
        },
        releases,
    })
}

/// The filters to subscribe to; of two subscriptions with one filter, the better protected counts.
fn filters(settings: &Settings) -> Vec<Filter> {
    let mut filters: Vec<Filter> = Vec::with_capacity(settings.subscriptions.len());
    for subscription in &settings.subscriptions {
        let text = subscription.topic.filter();
        let protection = if subscription.qos == 0 { Protection::None } else { Protection::Acknowledged };
        match filters.iter_mut().find(|filter| filter.text == text) {
            Some(known) if known.protection == Protection::None => known.protection = protection,
            Some(_) => {}
            None => filters.push(Filter { text: text.to_owned(), protection }),
        }
    }
    filters
}

fn texts(filters: &[Filter]) -> Vec<String> {
    filters.iter().map(|filter| filter.text.clone()).collect()
}

/// Those of `previous` that are not `wanted`.
fn without(previous: &[String], wanted: &[Filter]) -> Vec<String> {
    previous.iter().filter(|text| wanted.iter().all(|filter| filter.text != **text)).cloned().collect()
}
