//! Finding chunks in a damaged file by its bytes alone.
//!
//! redb keeps a value in one piece, in a page or in several that follow one another, so a chunk whose bytes are intact is found
//! whatever became of the trees above it. Old copies of a chunk lie around in pages that were freed: the visitor has to expect the
//! same numbers more than once. What the disk does not return counts as zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::chunk::{self, Chunk, HEADER_BYTES, MAGIC};

/// Read at a time. A step takes a few milliseconds, and memory stays flat.
const WINDOW_BYTES: usize = 512 << 10;
/// What the disk refuses is asked for again in pieces of this size, so that one bad sector costs no more than itself.
const SECTOR_BYTES: usize = 4 << 10;
/// No chunk is longer: a packet has 16 MiB at most, and the note is small beside that.
const MAX_CHUNK_BYTES: usize = 64 << 20;

/// One pass over a file.
#[derive(Debug)]
pub(super) struct Scan {
    file: File,
    length: u64,
    at: u64,
    window: Vec<u8>,
    /// A chunk that reaches beyond the window.
    long: Vec<u8>,
}

/// Whether there is more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    GoesOn,
    Over,
}

impl Scan {
    /// A pass over the file at `path`, from its first byte on.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, at: 0, window: Vec::new(), long: Vec::new() })
    }

    /// The file, for reading what was found.
    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// How far it is, in bytes.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// How long the file is.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Looks through the next half megabyte; `visit` gets each intact chunk and where it begins.
    pub(super) fn step(&mut self, mut visit: impl FnMut(u64, &Chunk<'_>)) -> Pass {
        let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
        let mut window = std::mem::take(&mut self.window);
        window.resize(left.min(WINDOW_BYTES), 0);
        read(&self.file, self.at, &mut window);
        let is_last = window.len() == left;
        let mut from = 0;
        // Where the next step begins.
        let mut next = self.at + window.len() as u64;
        while let Some(place) = find_magic(&window, from) {
            if window.len() - place < HEADER_BYTES {
                if !is_last {
                    next = self.at + place as u64;
                }
                break;
            }
            from = place + 1;
            let offset = self.at + place as u64;
            let Some(bytes) = chunk::announced_bytes(&window[place..]) else { continue };
            if bytes > MAX_CHUNK_BYTES || offset + bytes as u64 > self.length {
                continue;
            }
            let parsed = if let Some(within) = window.get(place..place + bytes) {
                Chunk::parse(within)
            } else {
                self.long.resize(bytes, 0);
                read(&self.file, offset, &mut self.long);
                Chunk::parse(&self.long)
            };
            let Ok(chunk) = parsed else { continue };
            visit(offset, &chunk);
            // What a chunk holds is no place to look for chunks: a sensor may have sent one.
            from = place + bytes;
            if from > window.len() {
                next = offset + bytes as u64;
                break;
            }
        }
        if find_tail(&window) > 0 && next == self.at + window.len() as u64 && !is_last {
            // The magic itself may be cut by the window's end.
            next -= find_tail(&window) as u64;
        }
        self.long.shrink_to(WINDOW_BYTES);
        self.window = window;
        self.at = next;
        if self.at >= self.length { Pass::Over } else { Pass::GoesOn }
    }
}

/// The bytes of the chunk that was found at `offset`, if they are still there.
pub(super) fn chunk_at(file: &File, offset: u64, bytes: usize) -> Vec<u8> {
    let mut chunk = vec![0; bytes];
    read(file, offset, &mut chunk);
    chunk
}

/// Fills `into`; what the disk does not return stays zero.
fn read(file: &File, offset: u64, into: &mut [u8]) {
    if file.read_exact_at(into, offset).is_ok() {
        return;
    }
    into.fill(0);
    for (sector, place) in into.chunks_mut(SECTOR_BYTES).zip(0_u64..) {
        if file.read_exact_at(sector, offset + place * SECTOR_BYTES as u64).is_err() {
            sector.fill(0);
        }
    }
}

fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let found = bytes.get(from..)?.windows(MAGIC.len()).position(|four| four == MAGIC)?;
    Some(from + found)
}

/// How many of the last bytes could begin the magic.
fn find_tail(bytes: &[u8]) -> usize {
    (1..MAGIC.len()).rev().find(|length| bytes.ends_with(&MAGIC[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Timestamp;
    use crate::store::chunk::Packed;
    use crate::stream::{Seq, Stream};

    fn chunk(first: u64, body: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(first);
        let body = (0..body).map(|_| random.u8(..)).collect();
        Packed::new(body).write(Stream::Readings, Seq(first), 1, Timestamp(0), b"note")
    }

    fn found(bytes: &[u8]) -> Vec<(u64, u64)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let mut scan = Scan::open(&path).unwrap();
        let mut found = Vec::new();
        while scan.step(|offset, chunk| found.push((offset, chunk.header.first.0))) == Pass::GoesOn {}
        found
    }

    #[test]
    fn chunks_are_found_wherever_they_lie() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for n in 1..=400 {
            bytes.extend((0..random.usize(0..6_000)).map(|_| random.u8(..)));
            expected.push((bytes.len() as u64, n));
            let body = if n % 50 == 0 { random.usize(0..700_000) } else { random.usize(0..9_000) };
            bytes.extend(chunk(n, body));
        }
        assert_eq!(found(&bytes), expected);
    }

    #[test]
    fn a_chunk_at_the_edge_of_a_window_is_found() {
        for before in WINDOW_BYTES - 60..WINDOW_BYTES + 4 {
            let mut bytes = vec![b'H'; before];
            bytes.extend(chunk(7, 100));
            assert_eq!(found(&bytes), [(before as u64, 7)], "{before}");
        }
    }

    #[test]
    fn what_a_chunk_holds_is_not_taken_for_another() {
        let inner = chunk(1, 10);
        let outer = Packed::new(inner).write(Stream::Readings, Seq(2), 1, Timestamp(0), b"");
        assert_eq!(found(&outer), [(0, 2)]);
        assert_eq!(found(b"HFCK"), []);
        assert_eq!(found(b""), []);
    }
}
