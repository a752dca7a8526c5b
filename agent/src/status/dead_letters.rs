//! Dead letters as the admin socket lists them: everything but the payload.

use std::fmt::Write as _;
use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::store::{DeadLetter, DeadLetterOrigin};

/// Where the admin socket gets dead letters from.
pub trait DeadLetters: Send + Sync + 'static {
    /// At most `limit` dead letters with an id above `after`, lowest id first. The error is for people.
    fn list(&self, after: u64, limit: usize) -> impl Future<Output = Result<Vec<DeadLetter>, String>> + Send;
}

/// One page of the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// The dead letters, lowest id first.
    pub dead_letters: Vec<Entry>,
    /// What to ask for next as `after`; `None` at the end.
    pub next_after: Option<u64>,
}

/// One dead letter, without its payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its id.
    pub id: u64,
    /// When it was refused, RFC 3339.
    pub time: String,
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
    /// Why it was refused.
    pub reason: String,
    /// The payload's full length.
    pub payload_bytes: u64,
    /// xxh3-64 of the full payload, hexadecimal.
    pub payload_hash: String,
}

/// Where a dead letter comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Origin {
    /// A payload that could not be decoded.
    Source {
        /// The source.
        source: String,
        /// The topic.
        topic: String,
    },
    /// Records that a sink refused.
    Sink {
        /// The sink.
        sink: String,
        /// The stream.
        stream: String,
        /// The epoch of the numbers.
        epoch: String,
        /// The first record's number.
        first: u64,
        /// The last record's number.
        last: u64,
        /// The status of the answer.
        status: u16,
    },
}

impl From<&DeadLetter> for Entry {
    fn from(letter: &DeadLetter) -> Self {
        let origin = match &letter.origin {
            DeadLetterOrigin::Source { source, topic } => {
                Origin::Source { source: source.clone(), topic: topic.clone() }
            }
            DeadLetterOrigin::Sink { sink, stream, epoch, range, status } => Origin::Sink {
                sink: sink.clone(),
                stream: stream.to_string(),
                epoch: epoch.to_string(),
                first: range.first.0,
                last: range.last.0,
                status: *status,
            },
        };
        let mut payload_hash = String::with_capacity(16);
        write!(payload_hash, "{:016x}", letter.payload_hash).expect("writing to a String cannot fail");
        Self {
            id: letter.id,
            time: letter.time.to_string(),
            origin,
            reason: letter.reason.clone(),
            payload_bytes: letter.payload_bytes,
            payload_hash,
        }
    }
}
