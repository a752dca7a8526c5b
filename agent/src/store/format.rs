//! Which format a store has: one row of `state`, written so that a damaged one is not taken for another.
//!
//! ```text
//!   the number (varint), which every version reads │ the number (u32) │ once more (u32)
//! ```
//!
//! What two of the three say counts. Without the copies a flipped bit would look like a store of a newer version, and whoever operates
//! it would be told to upgrade while the disk fails. Versions that wrote no copies read the first number and nothing behind it, so they
//! refuse what is newer, too.

use tracing::{info, warn};

use super::file::{Error, File, STATE};

/// The layout of the tables and of notes; chunks have a version of their own. 2: notes know nodes. An older store is taken over
/// when it is opened; a newer one is refused.
pub(super) const FORMAT: u32 = 2;
/// The row of `state` with it.
pub(super) const ROW: &str = "format";
/// Formats up to this one were also written without copies. They are read alike.
const LAST_BARE: u32 = 2;
/// Bytes of the two copies.
const COPIES_BYTES: usize = 8;

/// What the row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This format, as it is written now.
    Current,
    /// A format that is taken over, or this one without copies.
    Older(u32),
    /// A format that this version knows, although some of the row is damaged.
    Mended,
    /// A newer one.
    Newer(u32),
    /// Nothing that can be believed.
    Spoiled,
}

/// The row, for this version's stores.
pub(super) fn row() -> (String, Vec<u8>) {
    (ROW.to_owned(), bytes_of(FORMAT))
}

/// The row of a store of this format.
pub(super) fn bytes_of(format: u32) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(&format).expect("a Vec takes any bytes");
    bytes.extend_from_slice(&format.to_le_bytes());
    bytes.extend_from_slice(&format.to_le_bytes());
    bytes
}

impl Found {
    /// Reads the row.
    pub(super) fn read(row: &[u8]) -> Self {
        let Some((first, copies)) = row.split_last_chunk::<COPIES_BYTES>() else {
            // Whatever it says: versions that know a later format write copies.
            return match number(row) {
                Some(format @ 1..=LAST_BARE) => Self::Older(format),
                _ => Self::Mended,
            };
        };
        let (second, third) = copies.split_at(COPIES_BYTES / 2);
        let copy = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
        let (first, second, third) = (number(first), copy(second), copy(third));
        let agreed =
            if second == third { second } else { first.filter(|_| first == second || first == third) };
        match agreed {
            // The first is 1: zeros are what a lost page leaves.
            None | Some(0) => Self::Spoiled,
            Some(format) if format > FORMAT => Self::Newer(format),
            Some(_) if first != second || second != third => Self::Mended,
            Some(FORMAT) => Self::Current,
            Some(format) => Self::Older(format),
        }
    }
}

/// The number that `bytes` are, all of them.
fn number(bytes: &[u8]) -> Option<u32> {
    postcard::take_from_bytes(bytes).ok().filter(|(_, rest)| rest.is_empty()).map(|(number, _)| number)
}

/// Refuses a store of a newer version; nothing is changed.
///
/// # Errors
/// If it is one, or the row cannot be read.
pub(super) fn refuse_newer(file: &File) -> Result<(), Error> {
    match find(file)? {
        Some(Found::Newer(found)) => Err(Error::Newer { found, known: FORMAT }),
        Some(Found::Current | Found::Older(_) | Found::Mended | Found::Spoiled) | None => Ok(()),
    }
}

/// Takes over a store of this or an older version, before the first commit that only this version can read.
///
/// # Errors
/// If it is of a newer version, cannot be read or written, or does not say what it is.
pub(super) fn take_over(file: &File) -> Result<(), Error> {
    match find(file)? {
        Some(Found::Current) => return Ok(()),
        Some(Found::Newer(found)) => return Err(Error::Newer { found, known: FORMAT }),
        Some(Found::Spoiled) => return Err(Error::unreadable("the format of the store")),
        Some(Found::Mended) => {
            warn!("the row with the store's format was damaged; what it was is known all the same")
        }
        Some(Found::Older(FORMAT)) | None => {}
        Some(Found::Older(found)) => {
            info!(from = found, to = FORMAT, "the store is of an older version; it is taken over");
        }
    }
    let (key, format) = row();
    file.write(|transaction| {
        transaction.open_table(STATE)?.insert(key.as_str(), format.as_slice())?;
        Ok(())
    })
}

/// `None` in a store that is new.
fn find(file: &File) -> Result<Option<Found>, Error> {
    file.read(|transaction| Ok(transaction.open_table(STATE)?.get(ROW)?.map(|row| Found::read(row.value()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The row of `format`, and it again with each of its bits flipped.
    fn damaged(format: u32) -> impl Iterator<Item = Vec<u8>> {
        let row = bytes_of(format);
        (0..row.len() * 8).map(move |bit| {
            let mut damaged = row.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            damaged
        })
    }

    #[test]
    fn what_is_written_is_read_by_this_version_and_by_those_that_knew_no_copies() {
        for format in [1, 2, 3, 77, 127, 128, 40_000, u32::MAX] {
            let expected = match format {
                FORMAT => Found::Current,
                1 => Found::Older(1),
                newer => Found::Newer(newer),
            };
            assert_eq!(Found::read(&bytes_of(format)), expected);
            assert_eq!(postcard::from_bytes::<u32>(&bytes_of(format)).unwrap(), format);
        }
        assert_eq!(Found::read(&[1]), Found::Older(1));
        assert_eq!(Found::read(&[2]), Found::Older(2));
    }

    #[test]
    fn a_flipped_bit_makes_no_store_newer_and_no_newer_store_ours() {
        for known in 1..=FORMAT {
            assert!(damaged(known).all(|row| Found::read(&row) == Found::Mended), "{known}");
        }
        for newer in [3, 4, 6, 10, 77, 130, 40_000] {
            assert!(damaged(newer).all(|row| Found::read(&row) == Found::Newer(newer)), "{newer}");
        }
        for bare in [1_u8, 2] {
            let is_ours =
                |bit: u32| matches!(Found::read(&[bare ^ (1 << bit)]), Found::Mended | Found::Older(_));
            assert!((0..8).all(is_ours), "{bare}");
        }
    }

    #[test]
    fn what_nobody_wrote_is_no_format() {
        assert_eq!(Found::read(&[0; 9]), Found::Spoiled);
        assert_eq!(Found::read(b"noise all over"), Found::Spoiled);
        assert_eq!(Found::read(&[]), Found::Mended);
    }
}
