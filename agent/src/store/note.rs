//! The store's own state, as it rides in the last chunk of every commit.
//!
//! A commit of readings writes one row and one row only: the chunk, and behind its records the whole of the books and
//! what the peers sent. No table of its own, which would cost another 4 to 8 KiB of flash each time. A commit without
//! readings writes a chunk of no records, at the number that the next reading gets; the next commit replaces that row
//! and carries its changes on.

use serde::{Deserialize, Serialize};

use super::ledger::Books;
use super::recent::Change;

/// What the note of a commit says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The books after the commit.
    pub(super) books: Books,
    /// What the peers sent since the row before this one.
    pub(super) recent: Vec<Change>,
}

impl Note {
    /// As bytes.
    #[must_use]
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a Vec takes any bytes, and no length here is unknown")
    }

    /// From bytes.
    ///
    /// # Errors
    /// If they are anything else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}
