//! A file that can be written and is not changed: what redb writes stays in memory and is forgotten.
//!
//! redb writes whenever it opens, recovers, checks or closes a database. Whoever only looks wants none of that on the disk: a
//! store that is off should be seen as the agent left it, and a copy on a read-only disk should be readable. What redb writes
//! then is a few bitmaps, so that memory stays small.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use super::{Medium, Phase, Progress};

/// What is remembered together. redb writes in pages of this size.
const BLOCK_BYTES: u64 = 4_096;
/// So often it is told how much has been read.
const TOLD_EVERY_BYTES: u64 = 1 << 20;

/// The store's file under an overlay; each opening begins with an empty one.
pub(super) fn medium(path: PathBuf, meter: Meter) -> Medium {
    Medium::Backend(Box::new(move |builder| {
        builder.create_with_backend(Overlay::over(&path, meter.clone())?)
    }))
}

/// Counts the bytes that redb reads: it does not say itself how far it has come.
#[derive(Clone, Debug)]
pub(super) struct Meter(Arc<Metered>);

#[derive(Debug)]
struct Metered {
    progress: Progress,
    phase: Mutex<Option<Phase>>,
    read: AtomicU64,
    total: AtomicU64,
}

impl Meter {
    pub(super) fn new(progress: Progress) -> Self {
        Self(Arc::new(Metered {
            progress,
            phase: Mutex::new(None),
            read: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }))
    }

    /// What is read from now on belongs to `phase`, which reads about `total` bytes.
    pub(super) fn begin(&self, phase: Phase, total: u64) {
        *self.0.phase.lock().unwrap_or_else(PoisonError::into_inner) = Some(phase);
        self.0.total.store(total, Relaxed);
        self.0.read.store(0, Relaxed);
        self.0.progress.tell(phase, 0, total);
    }

    fn count(&self, bytes: u64) {
        let before = self.0.read.fetch_add(bytes, Relaxed);
        if before / TOLD_EVERY_BYTES != (before + bytes) / TOLD_EVERY_BYTES {
            let phase = *self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(phase) = phase {
                self.0.progress.tell(phase, before + bytes, self.0.total.load(Relaxed));
            }
        }
    }
}

#[derive(Debug)]
struct Overlay {
    below: FileBackend,
    locking: Locking,
    above: Mutex<Above>,
    meter: Meter,
}

/// Whether the file can be locked against an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Locking {
    Possible,
    /// It lies on a disk that is mounted read-only: locks want a file that is open for writing, and no agent can use it.
    Needless,
}

#[derive(Debug)]
struct Above {
    len: u64,
    /// Bytes of the file below that still count; behind them everything that is not in `blocks` is zero.
    below_len: u64,
    blocks: HashMap<u64, Box<[u8]>>,
}

impl Overlay {
    fn over(path: &Path, meter: Meter) -> Result<Self, DatabaseError> {
        let io = |error: io::Error| DatabaseError::Storage(error.into());
        let (file, locking) = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => (file, Locking::Possible),
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                (std::fs::File::open(path).map_err(io)?, Locking::Needless)
            }
            Err(error) => return Err(io(error)),
        };
        let len = file.metadata().map_err(io)?.len();
        let above = Mutex::new(Above { len, below_len: len, blocks: HashMap::new() });
        Ok(Self { below: FileBackend::new(file)?, locking, above, meter })
    }

    fn above(&self) -> MutexGuard<'_, Above> {
        self.above.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_below(&self, below_len: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(below_len.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (below, behind) = out.split_at_mut(there);
        behind.fill(0);
        if below.is_empty() { Ok(()) } else { self.below.read(offset, below) }
    }
}

/// The parts of `offset..offset + length` by block: number of the block, place in it, place in the whole, length.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK_BYTES).expect("less than a block");
        let block_bytes = usize::try_from(BLOCK_BYTES).expect("a page");
        let part = (block_bytes - within).min(length - done);
        let place = done;
        done += part;
        (part > 0).then_some((at / BLOCK_BYTES, within, place, part))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.above().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let above = self.above();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > above.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_below(above.below_len, offset, out)?;
        if !above.blocks.is_empty() {
            for (block, within, place, length) in parts(offset, out.len()) {
                if let Some(bytes) = above.blocks.get(&block) {
                    out[place..place + length].copy_from_slice(&bytes[within..within + length]);
                }
            }
        }
        drop(above);
        self.meter.count(out.len() as u64);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut above = self.above();
        above.len = len;
        above.below_len = above.below_len.min(len);
        // What lay behind the end is gone; a block that the end cuts is zero from there on.
        above.blocks.retain(|block, bytes| {
            let start = block * BLOCK_BYTES;
            if let Some(kept) = len.checked_sub(start).filter(|kept| *kept < BLOCK_BYTES) {
                bytes[usize::try_from(kept).expect("less than a block")..].fill(0);
            }
            start < len
        });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut above = self.above();
        let Above { below_len, blocks, .. } = &mut *above;
        for (block, within, place, length) in parts(offset, data.len()) {
            let bytes = match blocks.entry(block) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).expect("a page")].into_boxed_slice();
                    self.read_below(*below_len, block * BLOCK_BYTES, &mut bytes)?;
                    entry.insert(bytes)
                }
            };
            bytes[within..within + length].copy_from_slice(&data[place..place + length]);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.below.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        match self.locking {
            Locking::Possible => self.below.try_lock_range(start, end),
            Locking::Needless => Ok(true),
        }
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        match self.locking {
            Locking::Possible => self.below.try_lock_shared_range(start, end),
            Locking::Needless => Ok(true),
        }
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        match self.locking {
            Locking::Possible => self.below.lock_range(start, end),
            Locking::Needless => Ok(()),
        }
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        match self.locking {
            Locking::Possible => self.below.lock_shared_range(start, end),
            Locking::Needless => Ok(()),
        }
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        match self.locking {
            Locking::Possible => self.below.unlock_range(start, end),
            Locking::Needless => Ok(()),
        }
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        match self.locking {
            Locking::Possible => self.below.query_lock_range(start, end),
            Locking::Needless => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_file_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let original: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &original).unwrap();
        let overlay = Overlay::over(&path, Meter::new(Progress::none())).unwrap();
        let mut model = original.clone();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..400 {
            match random.u32(0..10) {
                0 => {
                    let len = random.usize(1..30_000);
                    overlay.set_len(len as u64).unwrap();
                    model.resize(len, 0);
                }
                1..=5 => {
                    let at = random.usize(0..model.len());
                    let data = vec![random.u8(..); random.usize(0..=(model.len() - at).min(9_000))];
                    overlay.write(at as u64, &data).unwrap();
                    model[at..at + data.len()].copy_from_slice(&data);
                }
                _ => {
                    let at = random.usize(0..model.len());
                    let mut out = vec![0; random.usize(0..=model.len() - at)];
                    overlay.read(at as u64, &mut out).unwrap();
                    assert!(out == model[at..at + out.len()], "{at}");
                }
            }
        }
        assert!(overlay.read(model.len() as u64, &mut [0]).is_err());
        assert!(std::fs::read(&path).unwrap() == original);
    }
}
