//! The session of one client: what it is owed, and in which order. Pure: no socket, no clock.
//!
//! ```text
//!              QoS 1                                QoS 2
//!   PUBLISH ───────────► owed PUBACK     PUBLISH ───────────► owed PUBREC, unreleased
//!                          │ durable                            │ durable
//!                        PUBACK                               PUBREC
//!                                         PUBREL ───────────► released, PUBCOMP
//! ```
//!
//! Promised: an acknowledgement leaves only after the message is durable, and in the order of the PUBLISHes
//! (MQTT-4.6.0-2). Between PUBLISH and PUBREL a repeat of a QoS 2 message is acknowledged and not stored again.

use std::collections::{HashMap, VecDeque};

use bytes::BytesMut;

use super::answer::{Ack, Release, Taken};
use super::fault::Fault;
use super::packet::{Packet, Parting, Publish, Qos, Version};
use crate::ingest::{Arrival, Delivery, Inlet, Pushed, Replayed, Resent};

/// Messages that a client may have published and not seen through. A client of MQTT 5 is told, and cut off above it; of
/// one of MQTT 3.1.1 nothing more is read. Large enough that eight clients fill a group commit.
pub(super) const RECEIVE_MAXIMUM: u16 = super::IN_FLIGHT;

/// Where messages go: the inlet, or what a test puts in its place.
pub(super) trait Door {
    /// Takes one message.
    fn push(&mut self, arrival: &Arrival<'_>) -> Pushed;
    /// How many it took so far.
    fn pushed(&self) -> u64;
}

impl Door for Inlet {
    fn push(&mut self, arrival: &Arrival<'_>) -> Pushed {
        Self::push(self, arrival)
    }

    fn pushed(&self) -> u64 {
        Self::pushed(self)
    }
}

/// What a packet means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It goes on.
    GoOn,
    /// The client takes its leave.
    Leave(Parting),
}

/// One client's session.
#[derive(Debug)]
pub(super) struct Session {
    version: Version,
    /// Acknowledgements to come, in the order of the PUBLISHes.
    owed: VecDeque<Owed>,
    /// Packet ids of QoS 2 between PUBLISH and PUBREL, and the number of messages that must be durable for the PUBREC.
    unreleased: HashMap<u16, u64>,
    /// Messages that count against the receive maximum.
    in_flight: usize,
    /// Messages known to be durable.
    durable: u64,
    /// Messages that came with the retain flag: there is nothing to retain them for.
    retained: u64,
}

/// One acknowledgement to come.
#[derive(Clone, Copy, Debug)]
struct Owed {
    /// It may leave when this many messages of the connection are durable.
    after: u64,
    packet_id: u16,
    ack: Ack,
    taken: Taken,
    /// Whether the message is seen through when this has left.
    frees: bool,
}

impl Session {
    pub(super) fn new(version: Version) -> Self {
        Self {
            version,
            owed: VecDeque::new(),
            unreleased: HashMap::new(),
            in_flight: 0,
            durable: 0,
            retained: 0,
        }
    }

    /// Does what `packet` asks for: messages go through `door`, answers that need not wait are appended to `out`.
    ///
    /// # Errors
    /// If the client breaks the protocol, so that the connection must end.
    pub(super) fn take(
        &mut self,
        packet: Packet,
        door: &mut impl Door,
        out: &mut BytesMut,
    ) -> Result<Next, Fault> {
        match packet {
            Packet::Publish(publish) => {
                self.publish(publish, door)?;
                // A repeat may be durable already: nothing more would become so and bring its PUBREC along.
                self.settle(self.durable, out);
            }
            Packet::Release { packet_id } => self.release(packet_id, out)?,
            Packet::Subscribe { packet_id: 0, .. } | Packet::Unsubscribe { packet_id: 0, .. } => {
                return Err(Fault::Unexpected { packet: "a packet identifier of zero" });
            }
            Packet::Subscribe { packet_id, filters } => {
                self.version.write_no_subscription(packet_id, filters, out);
            }
            Packet::Unsubscribe { packet_id, filters } => {
                self.version.write_unsubscribed(packet_id, filters, out);
            }
            Packet::Ping => self.version.write_pong(out),
            Packet::Disconnect(parting) => return Ok(Next::Leave(parting)),
        }
        Ok(Next::GoOn)
    }

    /// The first `durable` messages of the connection are on disk: appends the acknowledgements that this allows.
    pub(super) fn settle(&mut self, durable: u64, out: &mut BytesMut) {
        self.durable = durable;
        while let Some(owed) = self.owed.front().filter(|owed| owed.after <= durable) {
            self.version.write_ack(owed.ack, owed.packet_id, owed.taken, out);
            self.in_flight -= usize::from(owed.frees);
            self.owed.pop_front();
        }
    }

    /// Whether acknowledgements are to come.
    pub(super) fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// True while so much is owed that nothing more is to be read. Ends by itself: what is owed becomes durable.
    pub(super) fn holds_back(&self) -> bool {
        // What waits for a PUBREL does not count here: that comes through the very socket that would not be read. A client of
        // MQTT 5 cannot come here but by repeats: it is cut off at the receive maximum.
        let limit = match self.version {
            Version::V4 => usize::from(RECEIVE_MAXIMUM),
            Version::V5 => 2 * usize::from(RECEIVE_MAXIMUM),
        };
        self.owed.len() >= limit
    }

    /// How many messages came with the retain flag since this was last asked.
    pub(super) fn take_retained(&mut self) -> u64 {
        std::mem::take(&mut self.retained)
    }

    fn publish(&mut self, publish: Publish, door: &mut impl Door) -> Result<(), Fault> {
        self.retained += u64::from(publish.retain);
        let (ack, packet_id) = match publish.qos {
            Qos::AtMostOnce => {
                push(publish, Delivery::AtMostOnce, door);
                return Ok(());
            }
            Qos::AtLeastOnce { packet_id } => (Ack::Received, packet_id),
            Qos::ExactlyOnce { packet_id } => (Ack::Recorded, packet_id),
        };
        if ack == Ack::Recorded && self.unreleased.contains_key(&packet_id) {
            let after = door.pushed();
            self.owed.push_back(Owed { after, packet_id, ack, taken: Taken::Yes, frees: false });
            return Ok(());
        }
        if self.version == Version::V5 && self.in_flight >= usize::from(RECEIVE_MAXIMUM) {
            return Err(Fault::ReceiveMaximum { limit: RECEIVE_MAXIMUM });
        }
        let resent = if publish.resent { Resent::Perhaps } else { Resent::No };
        let taken = match push(publish, Delivery::Acknowledged { packet_id, resent }, door) {
            Pushed::Routed => Taken::Yes,
            Pushed::Unrouted => Taken::Unrouted,
        };
        let after = door.pushed();
        // A PUBREC of MQTT 5 that refuses ends the exchange: no PUBREL follows.
        let refused = taken == Taken::Unrouted && self.version == Version::V5;
        let released_later = ack == Ack::Recorded && !refused;
        if released_later {
            self.unreleased.insert(packet_id, after);
        }
        self.in_flight += 1;
        self.owed.push_back(Owed { after, packet_id, ack, taken, frees: !released_later });
        Ok(())
    }

    /// A PUBREL is answered at once: what it ends has been durable since the PUBREC. An unknown one, too: it belongs to
    /// an earlier connection, and the client must get rid of it.
    fn release(&mut self, packet_id: u16, out: &mut BytesMut) -> Result<(), Fault> {
        let release = match self.unreleased.get(&packet_id) {
            Some(after) if *after > self.durable => {
                return Err(Fault::Unexpected { packet: "a PUBREL before its PUBREC" });
            }
            Some(_) => {
                self.unreleased.remove(&packet_id);
                self.in_flight -= 1;
                Release::Known
            }
            None => Release::Unknown,
        };
        self.version.write_complete(packet_id, release, out);
        Ok(())
    }
}

fn push(publish: Publish, delivery: Delivery, door: &mut impl Door) -> Pushed {
    let Publish { topic, payload, .. } = publish;
    // A sensor's retain flag asks a broker to keep the message; the message itself is fresh.
    door.push(&Arrival { topic: &topic, payload, delivery, replayed: Replayed::No })
}

#[cfg(test)]
mod tests;
