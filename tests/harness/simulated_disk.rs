//! A disk in memory for a store: it records what was written and not synced, loses it when the power goes, and fails when it
//! is told to.
//!
//! It is as bad as disks may be and no worse. Of what was not synced, any sectors survive a power cut, in any order,
//! a write over several of them torn. After a sync that failed, what it should have written is read back as if it
//! were there, and is never written again, however many syncs succeed later (Linux marks such pages clean) until
//! the file's cache is dropped. The length is metadata, which the file system's journal keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// What a disk writes as a whole: smaller parts are never torn.
const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// The errors that a disk answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO.
    Broken,
    /// ENOSPC: writes fail, syncs do not.
    Full,
}

/// What is left of what was not synced when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    None,
    /// All of it.
    All,
    /// Each sector by chance.
    Some,
}

/// A disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// What the running system sees.
    seen: Vec<u8>,
    /// Sectors that may be otherwise on the disk: what is there for certain, and what was written over it since, but for the last,
    /// which is seen.
    unsynced: BTreeMap<usize, Vec<Sector>>,
    /// Of these, the ones whose sync failed: no later one writes them.
    forgotten: BTreeSet<usize>,
    /// Writes, syncs and changes of length so far.
    operations: u64,
    /// Operations from the first of these up to before the second fail.
    trouble: Option<(u64, u64, Fault)>,
    /// From this operation on there is no power.
    cut_at: Option<u64>,
    has_failed: bool,
}

impl Disk {
    /// Another disk with the same on it, all of it synced.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self::holding(self.platter().seen.clone())
    }

    /// How many writes, syncs and changes of length there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.platter().operations
    }

    /// All trouble that was planned is off.
    pub fn calm(&self) {
        let mut platter = self.platter();
        (platter.trouble, platter.cut_at) = (None, None);
        platter.has_failed = false;
    }

    /// Whether any operation failed since the start, or since [`calm`](Self::calm).
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.platter().has_failed
    }

    /// The operations from `from` up to before `until`, counted from 1, fail.
    pub fn fail(&self, from: u64, until: u64, fault: Fault) {
        self.platter().trouble = Some((from, until, fault));
    }

    /// Everything fails from now on, or nothing does any more.
    pub fn fail_now(&self, fault: Option<Fault>) {
        let mut platter = self.platter();
        platter.trouble = fault.map(|fault| (platter.operations + 1, u64::MAX, fault));
    }

    /// The power goes just before the `operation`th operation, counted from 1.
    pub fn cut_before(&self, operation: u64) {
        self.platter().cut_at = Some(operation);
    }

    /// The power goes now.
    pub fn cut_now(&self) {
        let mut platter = self.platter();
        platter.cut_at = Some(platter.cut_at.unwrap_or(u64::MAX).min(platter.operations + 1));
    }

    /// True if the power is gone.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.platter().is_cut()
    }

    /// The disk as the next boot finds it.
    #[must_use]
    pub fn after_power_cut(&self, left: Left, random: &mut fastrand::Rng) -> Self {
        let platter = self.platter();
        let mut seen = platter.seen.clone();
        for (&sector, versions) in &platter.unsynced {
            let certain = match left {
                Left::All if !platter.forgotten.contains(&sector) => continue,
                Left::All | Left::None => &versions[0],
                Left::Some => match versions.get(random.usize(..=versions.len())) {
                    Some(version) => version,
                    None => continue,
                },
            };
            put(&mut seen, sector, certain);
        }
        Self::holding(seen)
    }

    /// The disk as the next process finds it, where the system goes on: what the one before wrote is there, and what is planned to
    /// go wrong still will.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let mut platter = self.platter();
        // Who still holds the old one cannot write any more.
        let gone = Platter { cut_at: Some(0), ..Platter::default() };
        let next = std::mem::replace(&mut *platter, gone);
        Self(Arc::new(Mutex::new(next)))
    }

    /// What was read into the cache is dropped: what a failed sync did not write is seen to be missing.
    pub fn drop_cache(&self) {
        let mut platter = self.platter();
        for sector in std::mem::take(&mut platter.forgotten) {
            if let Some(versions) = platter.unsynced.remove(&sector) {
                put(&mut platter.seen, sector, &versions[0]);
            }
        }
    }

    fn holding(seen: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Platter { seen, ..Platter::default() })))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().expect("nothing panics while it holds the platter")
    }
}

impl Platter {
    fn is_cut(&self) -> bool {
        self.cut_at.is_some_and(|at| self.operations >= at)
    }

    fn operate(&mut self) -> Result<(), Fault> {
        if !self.is_cut() {
            self.operations += 1;
        }
        if self.is_cut() {
            return Err(Fault::Broken);
        }
        match self.trouble {
            Some((from, until, fault)) if (from..until).contains(&self.operations) => {
                self.has_failed = true;
                Err(fault)
            }
            _ => Ok(()),
        }
    }

    /// Remembers what is on the disk before sectors are written.
    fn touch(&mut self, sectors: std::ops::Range<usize>) {
        for sector in sectors {
            let mut now = [0; SECTOR];
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.seen.len());
            if from < to {
                now[..to - from].copy_from_slice(&self.seen[from..to]);
            }
            self.unsynced.entry(sector).or_default().push(now);
            self.forgotten.remove(&sector);
        }
    }
}

fn put(seen: &mut [u8], sector: usize, content: &Sector) {
    let from = sector * SECTOR;
    let to = (from + SECTOR).min(seen.len());
    if from < to {
        seen[from..to].copy_from_slice(&content[..to - from]);
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::from_raw_os_error(match fault {
            Fault::Broken => rustix::io::Errno::IO.raw_os_error(),
            Fault::Full => rustix::io::Errno::NOSPC.raw_os_error(),
        })
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("the disk fits the memory")
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        let offset = place(offset);
        let part = platter.seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.platter();
        platter.operate()?;
        platter.seen.resize(place(len), 0);
        let end = platter.seen.len().div_ceil(SECTOR);
        platter.unsynced.split_off(&end);
        platter.forgotten.split_off(&end);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        match platter.operate() {
            Ok(()) | Err(Fault::Full) => {
                let Platter { unsynced, forgotten, .. } = &mut *platter;
                unsynced.retain(|sector, _| forgotten.contains(sector));
                Ok(())
            }
            Err(Fault::Broken) => {
                if !platter.is_cut() {
                    let sectors: Vec<usize> = platter.unsynced.keys().copied().collect();
                    platter.forgotten.extend(sectors);
                }
                Err(Fault::Broken.into())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter();
        platter.operate()?;
        let offset = place(offset);
        let end = offset + data.len();
        if end > platter.seen.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        platter.touch(offset / SECTOR..end.div_ceil(SECTOR));
        platter.seen[offset..end].copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let disk = Disk::default();
        disk.set_len(4 * SECTOR as u64).unwrap();
        disk.write(0, &[1; 4 * SECTOR]).unwrap();
        disk.sync_data().unwrap();
        disk
    }

    fn content(disk: &Disk) -> Vec<u8> {
        disk.platter().seen.chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_perhaps() {
        let disk = disk();
        disk.write(SECTOR as u64, &[2; 2 * SECTOR]).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        assert_eq!(content(&disk.after_power_cut(Left::None, &mut random)), [1, 1, 1, 1]);
        assert_eq!(content(&disk.after_power_cut(Left::All, &mut random)), [1, 2, 2, 1]);
        let torn = (0..50).any(|_| {
            let left = content(&disk.after_power_cut(Left::Some, &mut random));
            left == [1, 1, 2, 1]
        });
        assert!(torn, "a later sector may survive without the one before");
        disk.sync_data().unwrap();
        assert_eq!(content(&disk.after_power_cut(Left::None, &mut random)), [1, 2, 2, 1]);
    }

    #[test]
    fn what_a_failed_sync_forgot_is_seen_and_not_there() {
        let disk = disk();
        disk.write(0, &[2; SECTOR]).unwrap();
        disk.fail_now(Some(Fault::Broken));
        disk.sync_data().unwrap_err();
        disk.fail_now(None);
        disk.write(SECTOR as u64, &[3; SECTOR]).unwrap();
        disk.sync_data().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        assert_eq!(content(&disk), [2, 3, 1, 1]);
        assert_eq!(content(&disk.after_power_cut(Left::None, &mut random)), [1, 3, 1, 1]);
        disk.drop_cache();
        assert_eq!(content(&disk), [1, 3, 1, 1]);
    }

    #[test]
    fn nothing_is_written_once_the_power_is_gone() {
        let disk = disk();
        disk.cut_before(disk.operations() + 2);
        disk.write(0, &[2; SECTOR]).unwrap();
        assert!(!disk.is_cut());
        disk.sync_data().unwrap_err();
        assert!(disk.is_cut());
        disk.write(0, &[3; SECTOR]).unwrap_err();
        assert_eq!(content(&disk), [2, 1, 1, 1]);
    }
}
