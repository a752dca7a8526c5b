//! A megabyte that is given back when the disk is full.
//!
//! On a full disk redb cannot even note that a sink has something: every commit writes pages before it frees others. So
//! nothing could be sent any more that was not fixed in a batch before, and nothing trimmed, until a person makes room. With this megabyte
//! pins, answers and trims go on, and what is trimmed makes room inside the file. Readings are not taken for it: they wait, as on
//! any full disk, until there is room again.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::{debug, info};

/// Measured: 256 KiB are enough to trim and go on; this is some commits more.
const BALLAST_BYTES: usize = 1 << 20;
/// Made only where it leaves this much: it must not be what fills the disk.
const LEAVES_BYTES: u64 = 8 << 20;
/// Its name in the data directory.
pub(super) const FILE_NAME: &str = "store.ballast";

/// The file, if there is one.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// The ballast of the store in `dir`.
    pub(super) fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(FILE_NAME) }
    }

    /// Makes it if it is not there and the disk has room. True if it is there then. Blocks.
    pub(super) fn make(&self) -> bool {
        let is_whole = std::fs::metadata(&self.path).is_ok_and(|file| file.len() == BALLAST_BYTES as u64);
        if is_whole {
            return true;
        }
        match self.write() {
            Ok(is_there) => is_there,
            Err(error) => {
                debug!(file = %self.path.display(), %error, "no room for the store's ballast");
                drop(std::fs::remove_file(self.temporary()));
                false
            }
        }
    }

    /// Gives it back. True if there was one. Blocks.
    pub(super) fn free(&self) -> bool {
        let is_freed = std::fs::remove_file(&self.path).is_ok();
        if is_freed {
            info!(file = %self.path.display(), "the disk is full; the store's ballast is given back, so that what sinks take can make room");
        }
        is_freed
    }

    fn write(&self) -> io::Result<bool> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let free = rustix::fs::statvfs(dir).map(|of| of.f_bavail.saturating_mul(of.f_frsize))?;
        if free < LEAVES_BYTES + BALLAST_BYTES as u64 {
            return Ok(false);
        }
        // Bytes that no file system can store as less than they are.
        let mut random = fastrand::Rng::with_seed(0);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(BALLAST_BYTES).collect();
        let mut file = std::fs::File::create(self.temporary())?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(self.temporary(), &self.path)?;
        Ok(true)
    }

    fn temporary(&self) -> PathBuf {
        self.path.with_extension("ballast.new")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_takes_real_room_and_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::in_dir(dir.path());
        assert!(!ballast.free(), "there is none");
        assert!(ballast.make() && ballast.make());
        let file = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap();
        assert!(file.blocks() * 512 >= BALLAST_BYTES as u64, "{} blocks", file.blocks());
        assert!(ballast.free() && !ballast.free());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
