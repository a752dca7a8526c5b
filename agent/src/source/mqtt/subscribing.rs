//! Subscriptions of one connection: asked for anew at each connect, one request at a time.
//!
//! A resumed session keeps old subscriptions and does not learn of changed ones, so everything configured is subscribed
//! again and what is configured no more is unsubscribed. One request at a time, because rumqttc's packet ids may repeat.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::link::{Filter, Grant, Protection, Requests};

/// Filters in one SUBSCRIBE: some brokers take no more than this.
const FILTERS_AT_ONCE: usize = 8;
/// A broker that has not answered a request after this long will not.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// A refused filter is asked for again after this long: permissions change without a reconnect.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Subscribe(Vec<Filter>),
    Unsubscribe(String),
}

/// What the subscriptions came to, once all is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Filters that the broker refused, and why.
    pub(super) refused: Vec<(String, &'static str)>,
    /// Filters for which it protects less than was asked for.
    pub(super) unprotected: Vec<String>,
}

/// How far the subscriptions of a connection have come.
#[derive(Debug, Default)]
pub(super) struct Subscribing {
    waiting: VecDeque<Step>,
    asked: Option<(Step, Instant)>,
    refused: Vec<(Filter, &'static str)>,
    unprotected: Vec<String>,
    ask_again: Option<Instant>,
}

impl Subscribing {
    /// Subscribes to `wanted` and unsubscribes `obsolete`.
    pub(super) fn new(wanted: &[Filter], obsolete: &[String]) -> Self {
        let subscribe = wanted.chunks(FILTERS_AT_ONCE).map(|filters| Step::Subscribe(filters.to_vec()));
        let unsubscribe = obsolete.iter().cloned().map(Step::Unsubscribe);
        Self { waiting: subscribe.chain(unsubscribe).collect(), ..Self::default() }
    }

    /// Sends the next request if none is unanswered.
    pub(super) fn go_on(&mut self, requests: &impl Requests, now: Instant) {
        if self.asked.is_some() {
            return;
        }
        let Some(step) = self.waiting.pop_front() else { return };
        let taken = match &step {
            Step::Subscribe(filters) => requests.subscribe(filters),
            Step::Unsubscribe(filter) => requests.unsubscribe(filter),
        };
        if taken.is_taken() {
            self.asked = Some((step, now));
        } else {
            self.waiting.push_front(step);
        }
    }

    /// The broker answered a SUBSCRIBE. A filter for which it has no answer counts as refused.
    pub(super) fn subscribed(&mut self, grants: &[Grant], now: Instant) {
        let Some((Step::Subscribe(filters), _)) = self.asked.take_if(|(step, _)| step.is_subscribe()) else {
            return;
        };
        for (index, filter) in filters.into_iter().enumerate() {
            match grants.get(index).unwrap_or(&Grant::Refused("the broker did not answer for it")) {
                Grant::Granted(granted) if *granted == filter.protection => {}
                Grant::Granted(Protection::Acknowledged) => {}
                Grant::Granted(Protection::None) => self.unprotected.push(filter.text),
                Grant::Refused(reason) => self.refused.push((filter, reason)),
            }
        }
        if !self.refused.is_empty() {
            self.ask_again = Some(now + ASK_AGAIN);
        }
    }

    /// The broker answered an UNSUBSCRIBE.
    pub(super) fn unsubscribed(&mut self) {
        self.asked.take_if(|(step, _)| !step.is_subscribe());
    }

    /// What came of it, if everything is answered.
    pub(super) fn summary(&self) -> Option<Summary> {
        let is_done = self.asked.is_none() && self.waiting.is_empty();
        is_done.then(|| Summary {
            refused: self.refused.iter().map(|(filter, reason)| (filter.text.clone(), *reason)).collect(),
            unprotected: self.unprotected.clone(),
        })
    }

    /// True if the broker has left a request unanswered for too long.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.asked.as_ref().is_some_and(|(_, asked_at)| now.duration_since(*asked_at) > ANSWER_WAIT)
    }

    /// Puts what was refused in line again, when it is time.
    pub(super) fn ask_again_when_due(&mut self, now: Instant) {
        if self.ask_again.take_if(|due| *due <= now).is_some() {
            let filters: Vec<Filter> = self.refused.drain(..).map(|(filter, _)| filter).collect();
            let steps = filters.chunks(FILTERS_AT_ONCE).map(|filters| Step::Subscribe(filters.to_vec()));
            self.waiting.extend(steps);
        }
    }
}

impl Step {
    fn is_subscribe(&self) -> bool {
        match self {
            Self::Subscribe(_) => true,
            Self::Unsubscribe(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::acks::Ack;
    use super::super::link::Taken;
    use super::*;

    #[derive(Default)]
    struct Queue(RefCell<Vec<String>>);

    impl Queue {
        fn take(&self) -> Vec<String> {
            self.0.take()
        }
    }

    impl Requests for Queue {
        fn ack(&self, _ack: Ack) -> Taken {
            Taken::No
        }
        fn subscribe(&self, filters: &[Filter]) -> Taken {
            let texts: Vec<&str> = filters.iter().map(|filter| filter.text.as_str()).collect();
            self.0.borrow_mut().push(format!("+{}", texts.join(" ")));
            Taken::Yes
        }
        fn unsubscribe(&self, filter: &str) -> Taken {
            self.0.borrow_mut().push(format!("-{filter}"));
            Taken::Yes
        }
        fn disconnect(&self) -> Taken {
            Taken::No
        }
    }

    fn filters(count: usize) -> Vec<Filter> {
        let filter = |n| Filter { text: format!("f{n}"), protection: Protection::Acknowledged };
        (0..count).map(filter).collect()
    }

    const GRANTED: Grant = Grant::Granted(Protection::Acknowledged);

    #[tokio::test(start_paused = true)]
    async fn requests_go_out_one_at_a_time_and_obsolete_filters_last() {
        let now = crate::clock::Clock::system().monotonic();
        let queue = Queue::default();
        let mut subscribing = Subscribing::new(&filters(9), &["old".to_owned()]);

        subscribing.go_on(&queue, now);
        subscribing.go_on(&queue, now);
        assert_eq!(queue.take(), ["+f0 f1 f2 f3 f4 f5 f6 f7"]);
        subscribing.unsubscribed();
        subscribing.go_on(&queue, now);
        assert!(queue.take().is_empty(), "that was not the answer");

        subscribing.subscribed(&vec![GRANTED; 8], now);
        subscribing.go_on(&queue, now);
        assert_eq!(queue.take(), ["+f8"]);
        subscribing.subscribed(&[GRANTED], now);
        subscribing.go_on(&queue, now);
        assert_eq!(queue.take(), ["-old"]);
        assert_eq!(subscribing.summary(), None);
        subscribing.unsubscribed();
        assert_eq!(subscribing.summary(), Some(Summary::default()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_filter_is_asked_for_again_after_a_while() {
        let now = crate::clock::Clock::system().monotonic();
        let queue = Queue::default();
        let mut subscribing = Subscribing::new(&filters(3), &[]);
        subscribing.go_on(&queue, now);
        subscribing.subscribed(&[GRANTED, Grant::Refused("no"), Grant::Granted(Protection::None)], now);
        let summary = subscribing.summary().unwrap();
        assert_eq!(summary.refused, [("f1".to_owned(), "no")]);
        assert_eq!(summary.unprotected, ["f2"]);
        queue.take();

        subscribing.ask_again_when_due(now + ASK_AGAIN - Duration::from_secs(1));
        subscribing.go_on(&queue, now);
        assert!(queue.take().is_empty());
        subscribing.ask_again_when_due(now + ASK_AGAIN);
        subscribing.go_on(&queue, now);
        assert_eq!(queue.take(), ["+f1"]);
        subscribing.subscribed(&[GRANTED], now);
        assert!(subscribing.summary().unwrap().refused.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_is_overdue_and_a_missing_grant_is_a_refusal() {
        let now = crate::clock::Clock::system().monotonic();
        let mut subscribing = Subscribing::new(&filters(2), &[]);
        assert!(!subscribing.is_overdue(now + ANSWER_WAIT * 2), "nothing was asked");
        subscribing.go_on(&Queue::default(), now);
        assert!(!subscribing.is_overdue(now + ANSWER_WAIT));
        assert!(subscribing.is_overdue(now + ANSWER_WAIT * 2));
        subscribing.subscribed(&[GRANTED], now);
        assert_eq!(subscribing.summary().unwrap().refused.len(), 1);
    }
}
