//! What is not as it should be, and what to do about it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::stream::{Seq, SeqRange, Stream};

/// So many findings of a kind are kept; more of them say nothing new.
const KEPT_OF_A_KIND: u64 = 20;

/// What is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// redb cannot open the file.
    Unopenable,
    /// redb's own checksums do not match, or its pages are not counted rightly.
    Pages,
    /// A table is missing, or cannot be read to its end.
    Table,
    /// The rows that say what the store is, and whose.
    Identity,
    /// A chunk cannot be read, or is not what its row says.
    Chunk,
    /// Chunks overlap, or lie where none should be.
    Order,
    /// Records are neither held nor known to be given up.
    Missing,
    /// The state that the last commit left cannot be read.
    Note,
    /// Bytes or chunks are counted wrongly.
    Held,
    /// A ledger of a sink does not balance, or contradicts itself.
    Ledger,
    /// What a sink still has to get is not there.
    Wanted,
    /// The messages of a source do not add up.
    Source,
    /// Where the windows are makes no sense, or cannot be read.
    Checkpoint,
    /// What peers sent last cannot be read.
    Recent,
    /// A dead letter cannot be read, or is counted wrongly.
    DeadLetter,
}

impl Kind {
    /// What to do.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Unopenable => "copy the file before anything else; check the disk",
            Self::Pages => {
                "copy the file and export what can be read before the agent runs on it; check the disk"
            }
            Self::Table => "copy the file and export what can be read; check the disk",
            Self::Identity => "the next start makes it anew and may begin a new epoch",
            Self::Chunk => "these records are lost, what lies around them is not; check the disk",
            Self::Missing => "these records are lost; please report it if the disk is sound",
            Self::Wanted => "a sink will not get these records from this store",
            Self::Note => {
                "at its next start the agent moves this store aside and saves what can be read into a new one"
            }
            Self::Recent => "messages that come again may be stored again",
            Self::Checkpoint => "windows may be computed anew from the readings held",
            Self::DeadLetter => {
                "no record is touched by it; one that cannot be read keeps the others from being listed"
            }
            Self::Order | Self::Held | Self::Ledger | Self::Source => {
                "nothing stored is lost by it, but counts are wrong; please report it"
            }
        }
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is off.
    pub kind: Kind,
    /// The stream, if one.
    #[serde(serialize_with = "name_of", skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// The first number, as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Seq>,
    /// The last number, as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Seq>,
    /// What was found and what was expected.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

fn name_of<S: serde::Serializer>(stream: &Option<Stream>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(stream.map_or("", Stream::name))
}

impl Finding {
    /// Something of the store as a whole.
    pub(super) fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, stream: None, first: None, last: None, what: what.into(), remedy: kind.remedy() }
    }

    /// Of this stream.
    pub(super) fn of(self, stream: Stream) -> Self {
        Self { stream: Some(stream), ..self }
    }

    /// At these numbers.
    pub(super) fn at(self, range: SeqRange) -> Self {
        Self { first: Some(range.first), last: Some(range.last), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.stream, self.first, self.last) {
            (Some(stream), Some(first), Some(last)) if first == last => write!(f, "{stream} {first}: ")?,
            (Some(stream), Some(first), Some(last)) => write!(f, "{stream} {first}..{last}: ")?,
            (Some(stream), _, _) => write!(f, "{stream}: ")?,
            (None, _, _) => {}
        }
        write!(f, "{} ({})", self.what, self.remedy)
    }
}

/// All findings: the first of each kind, and how many more there are.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) list: Vec<Finding>,
    pub(super) more: u64,
    counts: BTreeMap<Kind, u64>,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        let count = self.counts.entry(finding.kind).or_default();
        *count += 1;
        if *count <= KEPT_OF_A_KIND {
            self.list.push(finding);
        } else {
            self.more += 1;
        }
    }
}
