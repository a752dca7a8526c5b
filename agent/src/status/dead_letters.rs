//! Dead letters as the admin socket shows and changes them. Payloads may be confidential: only who asks for one gets it.

use std::fmt::Write as _;
use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::store::{DeadLetter, DeadLetterOrigin};

/// Where the admin socket gets dead letters from.
pub trait DeadLetters: Send + Sync + 'static {
    /// At most `limit` dead letters with an id above `after`, lowest id first. The error is for people.
    fn list(&self, after: u64, limit: usize) -> impl Future<Output = Result<Vec<DeadLetter>, String>> + Send;

    /// The dead letter of this id, if there is one. The error is for people.
    fn find(&self, id: u64) -> impl Future<Output = Result<Option<DeadLetter>, String>> + Send;

    /// Replays some of these, in one transaction, and says what is left of them. The error is for people.
    fn replay(&self, which: Selection) -> impl Future<Output = Result<Replayed, String>> + Send;

    /// Purges these, in one transaction. The error is for people.
    fn purge(&self, which: Selection) -> impl Future<Output = Result<Purged, String>> + Send;
}

/// Which dead letters: `{"ids":[1,2]}`, or `{"all":{}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// Those with these ids.
    Ids(Vec<u64>),
    /// All of a span.
    All(Span),
}

impl Selection {
    /// Those with `ids`; without any, all.
    #[must_use]
    pub fn of(ids: &[u64]) -> Self {
        if ids.is_empty() { Self::All(Span::default()) } else { Self::Ids(ids.to_vec()) }
    }
}

/// A span of ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Those above this.
    #[serde(default)]
    pub after: u64,
    /// Those up to this; by default up to the newest there is, so that what a replay brings back is not replayed with it.
    #[serde(default)]
    pub up_to: Option<u64>,
}

/// What became of a replay, or of its first part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// How many dead letters are no more, because their records were appended anew.
    pub replayed: u64,
    /// Those that stay as they are.
    pub stayed: Vec<Stayed>,
    /// What was not looked at yet: to be asked for next. `None` at the end.
    pub next: Option<Selection>,
}

/// A dead letter that cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stayed {
    /// Its id.
    pub id: u64,
    /// Why, in words that are the same for all of a kind.
    pub why: String,
    /// What is to be said of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What became of a purge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// How many there were to purge.
    pub purged: u64,
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
    /// How much of it is kept; less where it was longer than `max_payload`.
    pub kept_bytes: u64,
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
            kept_bytes: letter.payload.len() as u64,
            payload_hash,
        }
    }
}
