//! The store's own state, as it rides in the last chunk of every commit.
//!
//! A commit of readings writes one row and one row only: the chunk, and behind its records the whole of the books and
//! what the peers sent. No table of its own, which would cost another 4 to 8 KiB of flash each time. A commit without
//! readings writes a chunk of no records, at the number that the next reading gets; the next commit replaces that row
//! and carries its changes on.

use serde::{Deserialize, Serialize};

use super::ledger::Books;
use super::nodes::Nodes;
use super::recent::Change;

/// What the note of a commit says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Note {
    /// The books after the commit.
    pub(super) books: Books,
    /// What the peers sent since the row before this one.
    pub(super) recent: Vec<Change>,
}

/// What was written from the first format on.
#[derive(Serialize, Deserialize)]
struct Core<B, R> {
    books: B,
    recent: R,
}

impl Note {
    /// As bytes: the core, then what later formats added, in the order in which they did.
    #[must_use]
    pub(super) fn encode(&self) -> Vec<u8> {
        let note = (Core { books: &self.books, recent: &self.recent }, &self.books.nodes);
        postcard::to_stdvec(&note).expect("a Vec takes any bytes, and no length here is unknown")
    }

    /// From bytes. A note of format 1 ends with its core: there were no nodes.
    ///
    /// # Errors
    /// If they are anything else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        let (Core { mut books, recent }, rest): (Core<Books, Vec<Change>>, _) =
            postcard::take_from_bytes(bytes)?;
        if !rest.is_empty() {
            books.nodes = Nodes::from_bytes(rest)?;
        }
        Ok(Self { books, recent })
    }
}
