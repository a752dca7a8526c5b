//! Making the file smaller: redb moves pages to the front and cuts the end off, in transactions of its own, so that a crash at
//! any moment leaves the store as it was or a step smaller.

use std::path::Path;

use super::{Looking, Phase, Progress};
use crate::store::file::{Error, FILE_NAME, File};

/// Rounds at most; redb says when there is nothing more to gain, which has taken two.
const ROUNDS: usize = 8;
/// Moving pages takes a few new ones first; a disk with less than this free is taken for full.
const NEEDED_BYTES: u64 = 4 << 20;

/// What became of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Its length before and after.
    pub bytes: (u64, u64),
    /// What it took on the disk before and after; less than its length where that has holes.
    pub disk_bytes: (u64, u64),
}

impl Compacted {
    /// What the disk got back.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.disk_bytes.0.saturating_sub(self.disk_bytes.1)
    }
}

/// Compacts the store in `dir`. One whose pages are damaged is left alone: moving them could lose what can still be read.
///
/// # Errors
/// If there is no store, if it is in use, damaged, or if the disk is full or fails.
pub fn compact(dir: &Path, progress: &Progress) -> Result<Compacted, Error> {
    let path = dir.join(FILE_NAME);
    check(dir, progress)?;
    let free = free_bytes(dir).map_err(|source| Error::Directory { path: dir.to_owned(), source })?;
    if free < NEEDED_BYTES {
        return Err(Error::Full);
    }
    let before = sizes(&path)?;
    progress.tell(Phase::Compacting, 0, before.0);
    let file = File::open_existing(dir)?;
    for _ in 0..ROUNDS {
        if !file.alone(|database| Ok(database.compact()?))? {
            break;
        }
    }
    // Closing cuts off what is left.
    file.close();
    let after = sizes(&path)?;
    Ok(Compacted { bytes: (before.0, after.0), disk_bytes: (before.1, after.1) })
}

/// All pages must be as they were written.
fn check(dir: &Path, progress: &Progress) -> Result<(), Error> {
    let looking = Looking::at(dir, progress)?;
    looking.meter.begin(Phase::Pages, looking.bytes);
    let is_sound = looking.file.alone(|database| Ok(database.check_integrity()?));
    looking.file.close();
    if is_sound? {
        return Ok(());
    }
    let what = "its pages are not as they were written, so it is not compacted; see: holdfast store verify";
    Err(Error::Damaged { what: what.to_owned() })
}

fn free_bytes(dir: &Path) -> std::io::Result<u64> {
    let system = rustix::fs::statvfs(dir)?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

/// Length, and bytes on the disk.
fn sizes(path: &Path) -> Result<(u64, u64), Error> {
    use std::os::unix::fs::MetadataExt;
    let file =
        std::fs::metadata(path).map_err(|source| Error::Directory { path: path.to_owned(), source })?;
    Ok((file.len(), file.blocks() * 512))
}
