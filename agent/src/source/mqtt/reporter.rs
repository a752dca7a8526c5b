//! What the source says of itself: its state for the status, and one log line when trouble begins and one when it ends.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::subscribing::Summary;
use super::trouble::Trouble;
use crate::causes::chain;
use crate::clock::Clock;
use crate::source::told::{Told, Word};
use crate::source::{Report, State};

/// Publishes state and logs changes of it.
#[derive(Debug)]
pub(super) struct Reporter {
    broker: String,
    report: watch::Sender<Report>,
    /// What it would be were it not blocked.
    state: State,
    last_error: Option<String>,
    told: Told,
    /// What was said of brokers that protect less than they were asked to.
    warned: Option<String>,
}

/// Whether to believe that trouble has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The connection before could not be made at all: this one is an improvement worth a line in the log.
    Now,
    /// Connections were lost as soon as they were made: the log waits until this one has lasted.
    Later,
}

impl Reporter {
    /// Speaks for the source `name`, a client of `broker`.
    pub(super) fn new(name: &str, broker: String, report: watch::Sender<Report>, clock: Clock) -> Self {
        let (told, state) = (Told::nothing_of(name, 0, clock), State::Starting);
        Self { broker, report, state, last_error: None, told, warned: None }
    }

    /// An attempt failed, or a connection ended; the next attempt comes after `pause`.
    pub(super) fn failed(&mut self, trouble: &Trouble, attempt: u32, pause: Duration) {
        let error = chain(trouble);
        let (word, source, broker, state) =
            (self.told.is_in(trouble.state()), self.told.source(), &self.broker, trouble.state());
        match word {
            Word::New { left_out } => {
                warn!(%source, %broker, attempt, ?pause, left_out, "{error}; retrying");
            }
            Word::Known => debug!(%source, %broker, attempt, ?pause, "{error}"),
        }
        self.told.forget_blocked();
        self.state = state;
        self.last_error = Some(format!("broker {broker}: {error}"));
        self.publish();
    }

    /// All subscriptions are answered.
    pub(super) fn subscribed(&mut self, summary: &Summary, trust: Trust) {
        if !summary.refused.is_empty() {
            self.refused(summary);
            return;
        }
        self.state = State::Connected;
        self.last_error = self.unprotected(summary);
        if trust == Trust::Now {
            self.trouble_ended();
        }
        self.publish();
    }

    /// The connection has lasted.
    pub(super) fn settled(&mut self) {
        if self.state == State::Connected {
            self.trouble_ended();
        }
    }

    /// Messages wait because the store takes no more.
    pub(super) fn blocked(&mut self) {
        if self.told.blocked("") {
            self.publish();
        }
    }

    /// The store takes messages again.
    pub(super) fn unblocked(&mut self) {
        if self.told.unblocked() {
            self.publish();
        }
    }

    fn refused(&mut self, summary: &Summary) {
        let refused: Vec<String> =
            summary.refused.iter().map(|(filter, reason)| format!("{filter:?} ({reason})")).collect();
        let error = format!(
            "the broker refused to subscribe {}; allow this user to read it there, or change the topic",
            refused.join(", ")
        );
        if let Word::New { left_out } = self.told.is_in(State::Misconfigured) {
            let source = self.told.source();
            warn!(%source, broker = %self.broker, left_out, "{error}; asking again now and then");
        }
        self.state = State::Misconfigured;
        self.last_error = Some(format!("broker {}: {error}", self.broker));
        self.publish();
    }

    /// The broker protects less than it was asked to: worth a word, but it works.
    fn unprotected(&mut self, summary: &Summary) -> Option<String> {
        if summary.unprotected.is_empty() {
            self.warned = None;
            return None;
        }
        let filters = summary.unprotected.join(", ");
        let word =
            format!("the broker granted only QoS 0 for {filters}: messages can be lost on their way here");
        // Not at each connection anew.
        if self.warned.as_ref() != Some(&word) {
            warn!(source = %self.told.source(), broker = %self.broker, "{word}");
            self.warned = Some(word.clone());
        }
        Some(word)
    }

    fn trouble_ended(&mut self) {
        if self.told.is_well().is_some() {
            info!(source = %self.told.source(), broker = %self.broker, "connected and subscribed again");
        } else {
            debug!(source = %self.told.source(), broker = %self.broker, "connected and subscribed");
        }
    }

    fn publish(&self) {
        let state = if self.told.is_blocked() { State::Blocked } else { self.state };
        let report = Report {
            state,
            last_error: self.last_error.clone(),
            settled: self.state != State::Starting,
            ..Report::default()
        };
        self.report.send_if_modified(|published| {
            let is_news = *published != report;
            *published = report;
            is_news
        });
    }
}
