//! Acks of one connection: which packet may be acknowledged, and in what order.
//!
//! A broker wants its acks in the order of its messages (MQTT 3.1.1 and 5, section 4.6), and we acknowledge only what is
//! durable. Messages become durable in the order in which they were pushed into the inlet, so a queue is all it takes:
//! its head is due as soon as the durable count has reached its position.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::link::Requests;

/// More messages than this cannot be waiting: there are no more packet ids.
const PACKET_IDS: usize = 65_535;

/// What the broker waits for after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    /// The packet identifier of the message.
    pub(super) packet_id: u16,
    /// The kind of packet that answers it.
    pub(super) receipt: Receipt,
}

/// The kind of packet that answers a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// For QoS 1.
    Puback,
    /// For QoS 2; the rest of that exchange is rumqttc's.
    Pubrec,
}

/// The broker has more messages in flight than there are packet ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// The acks that are owed.
#[derive(Debug)]
pub(super) struct Acks {
    owed: VecDeque<(u64, Ack)>,
    durable: watch::Receiver<u64>,
    reached: u64,
    /// Handed to the request queue, and not yet on their way.
    queued: usize,
}

impl Acks {
    /// None owed yet. `durable` shows how many messages of the inlet are durable.
    pub(super) fn new(durable: watch::Receiver<u64>) -> Self {
        Self { owed: VecDeque::new(), durable, reached: 0, queued: 0 }
    }

    /// `ack` is owed for the message that was pushed as number `position`.
    pub(super) fn expect(&mut self, position: u64, ack: Ack) -> Result<(), TooMany> {
        if self.owed.len() >= PACKET_IDS {
            return Err(TooMany);
        }
        self.owed.push_back((position, ack));
        Ok(())
    }

    /// Looks up how far durability has come, and returns it.
    pub(super) fn refresh(&mut self) -> u64 {
        self.reached = *self.durable.borrow_and_update();
        self.reached
    }

    /// Waits until durability has moved since the last [`refresh`](Self::refresh). Cancel-safe.
    pub(super) async fn moved(&mut self) {
        if self.durable.changed().await.is_err() {
            // The inlet holds the other end; should it be gone, nothing moves any more.
            std::future::pending::<()>().await;
        }
    }

    /// The next ack that may be sent, as of the last refresh.
    pub(super) fn due(&self) -> Option<Ack> {
        self.owed.front().filter(|(position, _)| *position <= self.reached).map(|(_, ack)| *ack)
    }

    /// Takes the next ack that may be sent, to send it now.
    pub(super) fn take_due(&mut self) -> Option<Ack> {
        let due = self.due()?;
        self.owed.pop_front();
        Some(due)
    }

    /// Hands due acks to the request queue until it is full or `limit` of them are in it.
    pub(super) fn queue_due(&mut self, requests: &impl Requests, limit: usize) {
        while self.queued < limit
            && let Some(ack) = self.due()
            && requests.ack(ack).is_taken()
        {
            self.owed.pop_front();
            self.queued += 1;
        }
    }

    /// The oldest of the queued acks is on its way.
    pub(super) fn one_left(&mut self) {
        self.queued = self.queued.saturating_sub(1);
    }

    /// How many are in the request queue: later ones must not overtake them.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::link::Taken;
    use super::*;

    /// A request queue of bounded size.
    struct Queue {
        ids: RefCell<Vec<u16>>,
        places: usize,
    }

    impl Requests for Queue {
        fn ack(&self, ack: Ack) -> Taken {
            let mut ids = self.ids.borrow_mut();
            if ids.len() == self.places {
                return Taken::No;
            }
            ids.push(ack.packet_id);
            Taken::Yes
        }
        fn subscribe(&self, _filters: &[super::super::link::Filter]) -> Taken {
            Taken::No
        }
        fn unsubscribe(&self, _filter: &str) -> Taken {
            Taken::No
        }
        fn disconnect(&self) -> Taken {
            Taken::No
        }
    }

    fn puback(packet_id: u16) -> Ack {
        Ack { packet_id, receipt: Receipt::Puback }
    }

    #[test]
    fn only_the_durable_are_due_and_in_order_of_arrival() {
        let durable = watch::Sender::new(0);
        let mut acks = Acks::new(durable.subscribe());
        // Messages 2 and 4 were sent with QoS 0: they take a place and need no ack.
        for (position, id) in [(1, 9), (3, 7), (5, 8)] {
            acks.expect(position, puback(id)).unwrap();
        }
        acks.refresh();
        assert_eq!(acks.due(), None);

        durable.send_replace(4);
        assert_eq!(acks.due(), None, "not before it is looked up");
        assert_eq!(acks.refresh(), 4);
        assert_eq!(acks.take_due(), Some(puback(9)));
        assert_eq!(acks.take_due(), Some(puback(7)));
        assert_eq!(acks.take_due(), None);
    }

    #[test]
    fn a_full_request_queue_keeps_acks_back_in_order() {
        let durable = watch::Sender::new(5);
        let mut acks = Acks::new(durable.subscribe());
        (1..=5).for_each(|id| acks.expect(id.into(), puback(id)).unwrap());
        acks.refresh();

        let queue = Queue { ids: RefCell::default(), places: 2 };
        acks.queue_due(&queue, usize::MAX);
        assert_eq!(*queue.ids.borrow(), [1, 2]);
        assert_eq!(acks.queued(), 2);
        queue.ids.borrow_mut().clear();
        acks.queue_due(&queue, 3);
        assert_eq!(*queue.ids.borrow(), [3], "only three may be in the queue at a time");
    }

    #[test]
    fn more_messages_in_flight_than_packet_ids_are_refused() {
        let durable = watch::Sender::new(0);
        let mut acks = Acks::new(durable.subscribe());
        (1..=u16::MAX).for_each(|id| acks.expect(id.into(), puback(id)).unwrap());
        assert_eq!(acks.expect(65_536, puback(1)), Err(TooMany));
    }
}
