//! The journal: new batches as they arrived (compressed), since the last checkpoint. Appending to it and one
//! `fdatasync` make a batch durable; everything else follows from it.
//!
//! A file of entries, written in place from its start again after each checkpoint, so that in the long run a batch
//! overwrites blocks that exist and the sync has no file size to write. What was there before is told apart by
//! the generation, a number that each checkpoint raises.
//!
//! ```text
//! entry := hash u64 | generation u64 | records_start u64 | gaps_start u64 | encoding u8 | length u32 | body
//! ```
//!
//! Little endian; `hash` is the xxh3-64 of all that follows it. The first entry that does not check out ends the
//! journal: it was being written when the power went, and its batch was not answered.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::batch::{Encoding, MAX_BODY_BYTES};

const HASH_BYTES: usize = 8;
const HEAD_BYTES: usize = 37;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    generation: u64,
    length: u64,
}

/// One batch, and how long the files were that it was appended to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The length of the stream's file before the batch.
    pub(super) records_start: u64,
    /// The length of the gaps' file before the batch.
    pub(super) gaps_start: u64,
    /// How `body` is compressed.
    pub(super) encoding: Encoding,
    /// The body as it arrived.
    pub(super) body: Bytes,
}

impl Journal {
    /// Opens the journal at `path`, or makes an empty one, to be read and continued in `generation`.
    pub(super) fn open(path: &Path, generation: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, generation, length: 0 })
    }

    /// How many bytes of entries it holds.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The generation of its entries.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Hands each entry of this generation to `each`, in order, and leaves the journal behind the last.
    ///
    /// # Errors
    /// If the file cannot be read, or `each` fails.
    pub(super) fn replay(&mut self, mut each: impl FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(1 << 16, &self.file);
        let mut length = 0;
        while let Some((entry, entry_bytes)) = read_entry(&mut reader, self.generation)? {
            length += entry_bytes;
            each(entry)?;
        }
        self.length = length;
        Ok(())
    }

    /// Appends `entry`. When this returns, it is durable.
    pub(super) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let bytes = write_entry(entry, self.generation);
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.length += widened(bytes.len());
        Ok(())
    }

    /// Forgets all entries: from here on it is written in `generation`. A file longer than `keep_bytes` is cut to
    /// that, so that one huge batch does not hold its space for ever.
    pub(super) fn restart(&mut self, generation: u64, keep_bytes: u64) -> io::Result<()> {
        assert!(generation > self.generation, "a generation never comes again");
        self.generation = generation;
        self.length = 0;
        if self.file.metadata()?.len() > keep_bytes {
            self.file.set_len(keep_bytes)?;
        }
        Ok(())
    }
}

fn write_entry(entry: &Entry, generation: u64) -> Vec<u8> {
    let length = u32::try_from(entry.body.len()).expect("bodies are bounded far below 4 GiB");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + entry.body.len());
    bytes.extend_from_slice(&[0; HASH_BYTES]);
    for number in [generation, entry.records_start, entry.gaps_start] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.push(entry.encoding.code());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&entry.body);
    let hash = xxh3_64(&bytes[HASH_BYTES..]);
    bytes[..HASH_BYTES].copy_from_slice(&hash.to_le_bytes());
    bytes
}

/// The next entry and its length, or `None` where the journal ends.
fn read_entry(reader: &mut impl Read, generation: u64) -> io::Result<Option<(Entry, u64)>> {
    let mut head = [0; HEAD_BYTES];
    if !filled(reader, &mut head)? {
        return Ok(None);
    }
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| head[at + index]));
    let length = u32::from_le_bytes(std::array::from_fn(|index| head[33 + index]));
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (Some(encoding), true) = (Encoding::from_code(head[32]), length <= MAX_BODY_BYTES) else {
        return Ok(None);
    };
    if number(8) != generation {
        return Ok(None);
    }
    let mut bytes = vec![0; HEAD_BYTES + length];
    bytes[..HEAD_BYTES].copy_from_slice(&head);
    if !filled(reader, &mut bytes[HEAD_BYTES..])? || xxh3_64(&bytes[HASH_BYTES..]) != number(0) {
        return Ok(None);
    }
    let entry_bytes = widened(bytes.len());
    let body = Bytes::from(bytes).slice(HEAD_BYTES..);
    Ok(Some((Entry { records_start: number(16), gaps_start: number(24), encoding, body }, entry_bytes)))
}

/// Fills `buffer`; false if the file ends before.
fn filled(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn widened(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        let body = vec![b'a'; usize::try_from(number).unwrap() * 10].into();
        Entry { records_start: number, gaps_start: 2 * number, encoding: Encoding::Zstd, body }
    }

    fn replayed(path: &Path, generation: u64) -> (Vec<Entry>, Journal) {
        let mut journal = Journal::open(path, generation).unwrap();
        let mut entries = Vec::new();
        journal
            .replay(|entry| {
                entries.push(entry);
                Ok(())
            })
            .unwrap();
        (entries, journal)
    }

    #[test]
    fn entries_come_back_and_the_journal_continues_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path, 1).unwrap();
        journal.append(&entry(1)).unwrap();
        journal.append(&entry(2)).unwrap();
        let (entries, mut journal) = replayed(&path, 1);
        assert_eq!(entries, [entry(1), entry(2)]);
        journal.append(&entry(3)).unwrap();
        assert_eq!(replayed(&path, 1).0, [entry(1), entry(2), entry(3)]);
    }

    #[test]
    fn a_torn_entry_ends_the_journal_wherever_it_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path, 1).unwrap();
        journal.append(&entry(1)).unwrap();
        let whole = journal.length();
        journal.append(&entry(2)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in usize::try_from(whole).unwrap()..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(replayed(&path, 1).0, [entry(1)], "cut at {cut}");
            let mut zeroed = bytes.clone();
            zeroed[cut..].fill(0);
            std::fs::write(&path, &zeroed).unwrap();
            assert_eq!(replayed(&path, 1).0, [entry(1)], "zeroes from {cut}");
        }
    }

    #[test]
    fn what_an_earlier_generation_left_behind_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path, 1).unwrap();
        for number in [3, 3, 3] {
            journal.append(&entry(number)).unwrap();
        }
        journal.restart(2, 1 << 20).unwrap();
        assert_eq!(replayed(&path, 2).0, []);
        journal.append(&entry(3)).unwrap();
        assert_eq!(replayed(&path, 2).0, [entry(3)]);
    }
}
