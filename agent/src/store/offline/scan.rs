//! How many chunks lie in the bytes of a file that redb does not open.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::{Phase, Progress};
use crate::store::scan::{Pass, Scan};

/// What a look through the bytes found. Chunks that were removed may be among them: their bytes stay until they are written over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Scanned {
    /// Whole chunks that hold records.
    pub chunks: u64,
    /// Their records.
    pub records: u64,
}

/// Looks through the bytes of the file at `path`.
pub(super) fn scan(path: &Path, progress: &Progress) -> io::Result<Scanned> {
    let mut scan = Scan::open(path)?;
    let mut found: BTreeMap<(usize, u64), u32> = BTreeMap::new();
    let mut pass = Pass::GoesOn;
    while pass == Pass::GoesOn {
        pass = scan.step(|_, chunk| {
            let header = &chunk.header;
            if header.count > 0 {
                found.insert((header.stream.index(), header.first.0), header.count);
            }
        });
        progress.tell(Phase::Scanning, scan.position(), scan.length());
    }
    let records = found.values().map(|count| u64::from(*count)).sum();
    Ok(Scanned { chunks: found.len() as u64, records })
}
