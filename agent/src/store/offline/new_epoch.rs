//! Making the next start begin a new epoch, for a store that was put back from a backup.
//!
//! Since the backup was made, numbers that it does not know were given to records and sent. The next start would give them once
//! more, to other records, and a receiver would take those for repeats. A receiver that answers with the number it wants next
//! may give that away, another cannot.

use std::path::Path;

use crate::store::file::{Error, File, STATE};
use crate::store::handle;
use crate::store::ledger::Identity;
use crate::store::log::IDENTITY_ROW;

/// No machine's id, which is 32 digits, or nothing.
const NO_MACHINE: &str = "a backup";

/// Has the next start of the store in `dir` begin a new epoch, as it would on another machine. Nothing else changes. Returns
/// whose store it is.
///
/// # Errors
/// If there is no store, if it is in use, of a newer version, or cannot be read or written.
pub fn new_epoch(dir: &Path) -> Result<String, Error> {
    let file = File::open_existing(dir)?;
    let before = handle::identity(&file)?.ok_or_else(|| Error::unreadable("whose the store is"))?;
    let identity = Identity { machine: NO_MACHINE.to_owned(), ..before };
    let row = postcard::to_stdvec(&identity).expect("a Vec takes any bytes");
    file.write(|transaction| {
        transaction.open_table(STATE)?.insert(IDENTITY_ROW, row.as_slice())?;
        Ok(())
    })?;
    file.close();
    Ok(identity.agent)
}
