//! How many chunks lie in the bytes of a file that redb does not open: each begins with a magic and knows its length and checksum.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

use super::{Phase, Progress};
use crate::store::chunk;

/// Read at once; no chunk with its note is longer than half of it, except with books of thousands of sinks.
const WINDOW_BYTES: usize = 4 << 20;

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
    let mut file = File::open(path)?;
    let total = file.metadata()?.len();
    let mut found: BTreeMap<(usize, u64), u32> = BTreeMap::new();
    let mut window = Vec::with_capacity(WINDOW_BYTES);
    let mut passed = 0;
    loop {
        let room = (WINDOW_BYTES - window.len()) as u64;
        let is_end = (&mut file).take(room).read_to_end(&mut window)? == 0;
        // Chunks that begin in the second half are looked at when they are whole.
        let until = if is_end { window.len() } else { window.len().div_ceil(2) };
        for at in places(&window, until) {
            if let Some(header) = whole_chunk(&window[at..]).filter(|header| header.count > 0) {
                found.insert((header.stream.index(), header.first.0), header.count);
            }
        }
        passed += until as u64;
        progress.tell(Phase::Scanning, passed, total);
        if is_end {
            break;
        }
        window.drain(..until);
    }
    let records = found.values().map(|count| u64::from(*count)).sum();
    Ok(Scanned { chunks: found.len() as u64, records })
}

/// Where a chunk may begin, before `until`.
fn places(bytes: &[u8], until: usize) -> impl Iterator<Item = usize> {
    let first = chunk::MAGIC[0];
    (0..until).filter(move |at| bytes[*at] == first && bytes[*at..].starts_with(&chunk::MAGIC))
}

/// The header of the chunk that `bytes` begin with, if it is whole.
fn whole_chunk(bytes: &[u8]) -> Option<chunk::Header> {
    let length = chunk::Header::length(bytes)?;
    chunk::Chunk::parse(bytes.get(..length)?).ok().map(|chunk| chunk.header)
}
