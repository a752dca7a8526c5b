//! Liveness and readiness: is every room getting anywhere, and has it everything it needs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Inputs, SourceKind};
use crate::source;
use crate::store::report::State as StoreState;

/// How often the runtime is to tick [`Inputs::heartbeat`].
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// A heartbeat older than this means that the runtime is stuck. Far above a tick, so that a busy or suspended gateway is not
/// restarted for it.
const STALE_AFTER: Duration = Duration::from_secs(15);

/// The answer of `/healthz`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Whether the process and every room in it make progress.
    pub healthy: bool,
    /// How long ago the process last proved it.
    pub heartbeat_age_s: f64,
    /// The rooms that hang: asked, and without an answer for too long.
    pub hung: Vec<String>,
}

impl Health {
    /// The health at `now`.
    #[must_use]
    pub fn read(inputs: &Inputs, now: Instant) -> Self {
        let age = now.saturating_duration_since(*inputs.heartbeat.borrow());
        let hung: Vec<String> = hung(inputs);
        Self { healthy: age <= STALE_AFTER && hung.is_empty(), heartbeat_age_s: age.as_secs_f64(), hung }
    }
}

/// The rooms that hang.
fn hung(inputs: &Inputs) -> Vec<String> {
    let vitals = inputs.rooms.borrow();
    vitals.iter().filter(|(_, vital)| vital.is_hung()).map(|(room, _)| room.clone()).collect()
}

/// The answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether nothing is missing.
    pub ready: bool,
    /// What is missing, for people.
    pub missing: Vec<String>,
}

impl Readiness {
    /// What is still missing: the store open, listeners bound, each client source connected or failed once.
    #[must_use]
    pub fn read(inputs: &Inputs) -> Self {
        let mut missing = Vec::new();
        missing.extend(store_missing(inputs));
        for (name, input) in &*inputs.sources.borrow() {
            let report = input.report.borrow();
            missing.extend(source_missing(input.kind, &report).map(|what| format!("source {name}: {what}")));
        }
        Self { ready: missing.is_empty(), missing }
    }
}

fn store_missing(inputs: &Inputs) -> Option<String> {
    let report = inputs.store.borrow();
    if report.state == StoreState::Failing {
        let error = report.last_error.as_deref().unwrap_or("the disk does not take writes");
        return Some(format!("store: {error}"));
    }
    if let Some(progress) = report.recovering {
        let (done, total) = (progress.done_bytes, progress.total_bytes);
        return Some(format!("store: being opened after an unclean stop, {done} of {total} bytes read"));
    }
    inputs.books.borrow().epoch.0.is_nil().then(|| "store: not open yet".to_owned())
}

fn source_missing(kind: SourceKind, report: &source::Report) -> Option<String> {
    let is_bound = report.state.is_connected()
        || matches!(report.state, source::State::PacketTooLarge | source::State::Blocked);
    let error = || report.last_error.as_deref().unwrap_or("starting");
    match kind {
        SourceKind::Listener if !is_bound => Some(format!("not listening: {}", error())),
        SourceKind::Client if !report.settled => Some("neither connected nor failed yet".to_owned()),
        SourceKind::Listener | SourceKind::Client => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::fixture::rooms;
    use crate::store::report::Recovering;

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_that_stops_is_noticed_and_one_that_returns_too() {
        let (rooms, inputs) = rooms();
        let healthy = |after: Duration| Health::read(&inputs, inputs.clock.monotonic() + after).healthy;
        assert!(healthy(Duration::ZERO));
        assert!(healthy(STALE_AFTER));
        assert!(!healthy(STALE_AFTER + Duration::from_millis(1)));
        rooms.heartbeat.send_replace(inputs.clock.monotonic() + STALE_AFTER);
        assert!(healthy(STALE_AFTER + Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn a_room_that_hangs_is_named() {
        let (rooms, inputs) = rooms();
        let health = || Health::read(&inputs, inputs.clock.monotonic());
        assert_eq!((health().healthy, health().hung), (true, Vec::new()));
        let silent = |silent| {
            rooms.vitals.send_modify(|vitals| vitals.get_mut("sink cloud").unwrap().silent = silent);
        };
        silent(crate::pulse::LIMIT);
        assert!(health().healthy);
        silent(crate::pulse::LIMIT + crate::pulse::ASK_EVERY);
        assert_eq!((health().healthy, health().hung), (false, vec!["sink cloud".to_owned()]));
    }

    #[tokio::test]
    async fn readiness_names_all_that_is_missing() {
        let (rooms, inputs) = rooms();
        assert_eq!(Readiness::read(&inputs), Readiness { ready: true, missing: Vec::new() });

        rooms.books.send_replace(std::sync::Arc::default());
        rooms.plant.send_replace(source::Report::default());
        rooms.direct.send_modify(|report| {
            report.state = source::State::Disconnected;
            report.last_error = Some("cannot bind 127.0.0.1:1884: in use".into());
        });
        let readiness = Readiness::read(&inputs);
        assert!(!readiness.ready);
        assert_eq!(
            readiness.missing,
            [
                "store: not open yet",
                "source direct: not listening: cannot bind 127.0.0.1:1884: in use",
                "source plant: neither connected nor failed yet",
            ]
        );
    }

    #[tokio::test]
    async fn a_client_that_failed_once_holds_up_nothing() {
        let (rooms, inputs) = rooms();
        rooms.plant.send_modify(|report| report.state = source::State::Disconnected);
        assert!(Readiness::read(&inputs).ready);
    }

    #[tokio::test]
    async fn a_store_that_is_read_or_fails_is_not_ready() {
        let (rooms, inputs) = rooms();
        let progress = Recovering { done_bytes: 1, total_bytes: 2 };
        rooms.store.send_modify(|report| report.recovering = Some(progress));
        assert_eq!(
            Readiness::read(&inputs).missing,
            ["store: being opened after an unclean stop, 1 of 2 bytes read"]
        );
        rooms.store.send_modify(|report| {
            report.state = StoreState::Failing;
            report.last_error = Some("no space left on device".into());
        });
        assert_eq!(Readiness::read(&inputs).missing, ["store: no space left on device"]);
    }
}
