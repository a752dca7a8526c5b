//! What the two protocol versions have in common, as far as a session needs it.
//!
//! A [`Link`] is one connection, from before it is made until it is lost: a rumqttc client and event loop of its own, so
//! that neither acks nor pending requests of a lost connection can ever leak into the next (rumqtt issues 849, 1056).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ClientConfig;

use super::acks::{Ack, Acks};
use super::trouble::Trouble;
use crate::ingest::{Delivery, Replayed};

/// The longest payload that is read: 16 MiB, as the configuration promises.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 16 << 20;
/// The largest packet that is read: the longest payload, and room for the longest topic and some properties.
pub(super) const MAX_PACKET_BYTES: u32 = MAX_PAYLOAD_BYTES + (128 << 10);
/// The largest packet that we send: a SUBSCRIBE of the longest filters.
pub(super) const MAX_SENT_BYTES: usize = 1 << 20;
/// How long TCP, TLS and CONNACK may take together, and each write thereafter.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that a broker (MQTT 5) may have in flight to us: a large window lets one commit serve many.
pub(super) const RECEIVE_MAXIMUM: u16 = 1_000;
/// Places in rumqttc's request queue: as many acks as may be due at once.
pub(super) const REQUESTS: usize = RECEIVE_MAXIMUM as usize;
/// rumqttc sets aside memory for as many messages as we may have in flight to the broker (11 MiB for its default in
/// MQTT 5); we publish none.
pub(super) const OUTGOING_IN_FLIGHT: u16 = 16;

/// All that it takes to connect.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) client_id: String,
    /// User name and password; either may be empty.
    pub(super) credentials: Option<(String, String)>,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) keep_alive: Duration,
    pub(super) releases: Releases,
}

/// Whether the broker may release QoS 2 messages of which this process knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Releases {
    /// No: a PUBREL without its PUBLISH is an error, as rumqttc sees it.
    #[default]
    Known,
    /// A resumed session brought such a PUBREL: whatever comes is answered with PUBCOMP, or it would come for ever.
    Any,
}

/// One filter to subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) text: String,
    pub(super) protection: Protection,
}

/// The quality of service that is asked for. 2 is never asked for: rumqttc forgets its QoS 2 state at each disconnect and
/// then fails at the resumed session's PUBREL. QoS 1 with our own recognition of repeats is as exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    /// QoS 0.
    None,
    /// QoS 1.
    Acknowledged,
}

/// What happened on a link.
#[derive(Debug)]
pub(super) enum Event {
    /// The broker took us.
    Connected(Session),
    /// A message.
    Message(Message),
    /// The answer to a SUBSCRIBE, one grant for each filter in order.
    Subscribed(Vec<Grant>),
    /// The answer to an UNSUBSCRIBE.
    Unsubscribed,
    /// An ack from the request queue is on its way.
    AckSent,
    /// Something that needs no attention, a ping for example.
    Other,
}

/// What the broker knew of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// It kept our session.
    Resumed,
    /// It has none: packet ids begin anew, subscriptions are gone.
    New,
}

/// What a subscription came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Granted with this quality of service.
    Granted(Protection),
    /// Refused, for this reason.
    Refused(&'static str),
}

/// A message as the link gives it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) topic: Topic,
    pub(super) payload: Bytes,
    pub(super) delivery: Delivery,
    pub(super) replayed: Replayed,
    /// What the broker waits for, if anything.
    pub(super) ack: Option<Ack>,
}

/// A topic, as rumqttc gives it.
#[derive(Debug)]
pub(super) enum Topic {
    /// MQTT 3.1.1: checked.
    Text(String),
    /// MQTT 5: not checked.
    Bytes(Bytes),
}

impl Topic {
    /// The topic as text. What is not UTF-8 is replaced: such a message finds its way to the dead letters or is stored
    /// under a visibly odd name, and is acknowledged; refusing it would bring it back at each connect.
    pub(super) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes),
        }
    }
}

/// Whether a request found a place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It will be sent.
    Yes,
    /// The queue is full: try again when something has left it.
    No,
}

impl Taken {
    /// The outcome of one of rumqttc's `try_` functions. They fail if the queue is full; it cannot be closed, as the link
    /// that empties it is ours.
    pub(super) fn from_result<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Yes } else { Self::No }
    }

    pub(super) fn is_taken(self) -> bool {
        self == Self::Yes
    }
}

/// What can be asked of a link while it is being polled. Nothing here waits.
pub(super) trait Requests {
    fn ack(&self, ack: Ack) -> Taken;
    fn subscribe(&self, filters: &[Filter]) -> Taken;
    fn unsubscribe(&self, filter: &str) -> Taken;
    fn disconnect(&self) -> Taken;
}

/// One connection in one protocol version.
pub(super) trait Link: Send {
    /// Its request queue.
    type Requests: Requests + Send + Sync;

    /// Acks that may be in the request queue at a time.
    const QUEUED_ACKS: usize;

    /// A link that is not connected yet: polling connects it.
    fn open(plan: &Plan) -> Self;

    /// Its request queue.
    fn requests(&self) -> Self::Requests;

    /// Connects, reads, writes and pings. Not to be dropped before it is done, unless the link is given up with it; nor to
    /// be called again once it has failed.
    fn poll(&mut self) -> impl Future<Output = Result<Event, Trouble>> + Send;

    /// Sends what is due, as cheaply as this version can.
    fn send_acks(&mut self, acks: &mut Acks) -> impl Future<Output = Result<(), Trouble>> + Send;
}
