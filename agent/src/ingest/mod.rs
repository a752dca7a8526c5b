//! Room 3: from messages to one chunk.
//!
//! In: messages that sources push into their [`Inlet`]s, decoded there. Out: groups for the store. Promised: a message
//! is reported durable, in the order of its inlet, only after the transaction that holds its outcome; a message sent
//! again because our ack was lost is recognised and not stored twice; every outcome is counted.

pub mod decode;
pub(crate) mod inlet;
pub mod settings;
pub mod topic;

pub use inlet::{
    Arrival, Closed, Delivery, Flushed, Inlet, Intake, Peer, Pushed, Replayed, Resent, SourceSpec,
};
pub use settings::Subscription;
