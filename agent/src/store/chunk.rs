//! A chunk: the unit of storage. Immutable, self-describing, checksummed.
//!
//! ```text
//!  0  magic "HFCK"        8  first sequence (u64)     28  body bytes before compression (u32)
//!  4  format version      16 count (u32)              32  body bytes as stored (u32)
//!  5  codec               20 newest receipt (i64, µs) 36  note bytes (u32)
//!  6  stream                                          40  xxh3-64 of all but these eight bytes
//!  7  reserved (0)                                    48  body, then note
//! ```
//!
//! All little-endian. redb does not verify its pages when it reads them, so every chunk carries its own checksum; with
//! the magic and the length in front, chunks can also be found in a damaged file by looking at its bytes.
//!
//! The *note* of the last chunk of the readings is the store's own state (see [`super::note`]).

use xxhash_rust::xxh3::Xxh3;

use crate::reading::Timestamp;
use crate::stream::{Seq, SeqRange, Stream};

/// Begins every chunk.
pub(super) const MAGIC: [u8; 4] = *b"HFCK";
/// The format written by this version. Newer ones are refused.
pub(super) const VERSION: u8 = 1;
/// Bytes before the body.
pub(super) const HEADER_BYTES: usize = 48;
/// A chunk stays below this: redb rounds a value above a page up to a power of two of pages, so 64 KiB less redb's own
/// overhead wastes least.
pub(super) const MAX_BYTES: usize = (64 << 10) - 128;
/// Smaller bodies are stored as they are: compression saves no page.
const COMPRESS_ABOVE_BYTES: usize = 3_500;

const CHECKSUM_AT: usize = 40;

/// How a body is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Plain,
    Lz4,
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The stream.
    pub(super) stream: Stream,
    /// The number of the first record.
    pub(super) first: Seq,
    /// How many records; may be 0 where only the note matters.
    pub(super) count: u32,
    /// When the newest of its records was received.
    pub(super) newest_received: Timestamp,
    codec: Codec,
    raw_bytes: usize,
    body_bytes: usize,
    note_bytes: usize,
}

/// Why a chunk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not begin as a chunk does, or its lengths do not fit.
    #[error("this is no chunk")]
    NotAChunk,
    /// A newer version wrote it.
    #[error(
        "a chunk has format {found}, this version knows {VERSION}; use the version that wrote the store, or newer"
    )]
    Newer {
        /// The format found.
        found: u8,
    },
    /// Some bytes are not what was written.
    #[error(
        "the checksum of the chunk at {first} does not match: the disk returned other bytes than were written"
    )]
    Checksum {
        /// The sequence number in its header, if that can be believed.
        first: Seq,
    },
    /// The checksum is right, yet the body cannot be read.
    #[error("the body of the chunk at {first} cannot be read")]
    Body {
        /// The sequence number in its header.
        first: Seq,
        /// What failed.
        source: super::codec::Error,
    },
}

impl Header {
    /// The numbers of its records, or `None` if it has none.
    #[must_use]
    pub(super) fn range(&self) -> Option<SeqRange> {
        // Bytes that nobody wrote may say any number.
        let last = self.first.0.checked_add(u64::from(self.count).checked_sub(1)?)?;
        Some(SeqRange { first: self.first, last: Seq(last) })
    }

    /// Reads the header alone, without checking the checksum.
    ///
    /// # Errors
    /// If `bytes` is no chunk of this format.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Error::NotAChunk)?;
        if header[..4] != MAGIC {
            return Err(Error::NotAChunk);
        }
        if header[4] != VERSION {
            return Err(Error::Newer { found: header[4] });
        }
        let codec = match header[5] {
            0 => Codec::Plain,
            1 => Codec::Lz4,
            _ => return Err(Error::NotAChunk),
        };
        let stream = *Stream::ALL.get(usize::from(header[6])).ok_or(Error::NotAChunk)?;
        let parsed = Self {
            stream,
            first: Seq(u64_at(header, 8)),
            count: u32_at(header, 16),
            newest_received: Timestamp(i64::from_le_bytes(eight(header, 20))),
            codec,
            raw_bytes: usize::try_from(u32_at(header, 28)).map_err(|_| Error::NotAChunk)?,
            body_bytes: usize::try_from(u32_at(header, 32)).map_err(|_| Error::NotAChunk)?,
            note_bytes: usize::try_from(u32_at(header, 36)).map_err(|_| Error::NotAChunk)?,
        };
        let stored =
            HEADER_BYTES.checked_add(parsed.body_bytes).and_then(|n| n.checked_add(parsed.note_bytes));
        if stored != Some(bytes.len()) { Err(Error::NotAChunk) } else { Ok(parsed) }
    }
}

/// A chunk whose checksum was found right.
#[derive(Debug)]
pub(super) struct Chunk<'a> {
    /// The header.
    pub(super) header: Header,
    body: &'a [u8],
    /// The store's state at this commit; empty in all but the last chunk of a commit.
    pub(super) note: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Checks `bytes` and finds the parts.
    ///
    /// # Errors
    /// If they are no chunk, or not as they were written.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let header = Header::parse(bytes)?;
        if checksum(bytes) != u64_at(bytes, CHECKSUM_AT) {
            return Err(Error::Checksum { first: header.first });
        }
        let (body, note) = bytes[HEADER_BYTES..].split_at(header.body_bytes);
        Ok(Self { header, body, note })
    }

    /// How long it is.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        HEADER_BYTES + self.body.len() + self.note.len()
    }

    /// The body as it was encoded.
    ///
    /// # Errors
    /// If it cannot be decompressed.
    pub(super) fn body(&self) -> Result<std::borrow::Cow<'a, [u8]>, Error> {
        match self.header.codec {
            Codec::Plain => Ok(self.body.into()),
            // No block says more than 255 bytes with one: a length beyond that is a lie that must not take the memory.
            Codec::Lz4 if self.header.raw_bytes / 255 > self.body.len() => {
                Err(Error::Checksum { first: self.header.first })
            }
            Codec::Lz4 => lz4_flex::block::decompress(self.body, self.header.raw_bytes)
                .map(Into::into)
                .map_err(|_| Error::Checksum { first: self.header.first }),
        }
    }
}

/// A body ready to be stored: compressed where that pays.
#[derive(Debug)]
pub(super) struct Packed {
    codec: Codec,
    raw_bytes: usize,
    bytes: Vec<u8>,
}

impl Packed {
    /// Compresses `body` if that makes it smaller.
    #[must_use]
    pub(super) fn new(body: Vec<u8>) -> Self {
        let raw_bytes = body.len();
        if raw_bytes > COMPRESS_ABOVE_BYTES {
            let compressed = lz4_flex::block::compress(&body);
            if compressed.len() < raw_bytes {
                return Self { codec: Codec::Lz4, raw_bytes, bytes: compressed };
            }
        }
        Self { codec: Codec::Plain, raw_bytes, bytes: body }
    }

    /// `bytes` as if they were a compressed body.
    #[cfg(any(test, fuzzing))]
    pub(super) fn hostile(bytes: &[u8]) -> Self {
        Self { codec: Codec::Lz4, raw_bytes: bytes.len().saturating_mul(3), bytes: bytes.to_vec() }
    }

    /// Bytes of the chunk without its note.
    #[must_use]
    pub(super) fn chunk_bytes(&self) -> usize {
        HEADER_BYTES + self.bytes.len()
    }

    /// The chunk of `count` records from `first` on.
    #[must_use]
    pub(super) fn write(
        self,
        stream: Stream,
        first: Seq,
        count: u32,
        newest_received: Timestamp,
        note: &[u8],
    ) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).expect("a chunk is far below 4 GiB").to_le_bytes();
        let mut out = Vec::with_capacity(self.chunk_bytes() + note.len());
        out.extend_from_slice(&MAGIC);
        let codec = match self.codec {
            Codec::Plain => 0,
            Codec::Lz4 => 1,
        };
        let stream = u8::try_from(stream.index()).expect("there are three streams");
        out.extend_from_slice(&[VERSION, codec, stream, 0]);
        out.extend_from_slice(&first.0.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&newest_received.0.to_le_bytes());
        out.extend_from_slice(&length(self.raw_bytes));
        out.extend_from_slice(&length(self.bytes.len()));
        out.extend_from_slice(&length(note.len()));
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.bytes);
        out.extend_from_slice(note);
        let sum = checksum(&out);
        out[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        out
    }
}

/// How long the chunk is that begins with `bytes`, if one of this format could: for finding chunks by their bytes.
#[must_use]
pub(super) fn announced_bytes(bytes: &[u8]) -> Option<usize> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
    if header[..4] != MAGIC || header[4] != VERSION || header[5] > 1 || header[6] > 2 || header[7] != 0 {
        return None;
    }
    // No stream ever comes that far.
    if u64_at(header, 8) == 0 || u64_at(header, 8) >= 1 << 62 {
        return None;
    }
    let length = |at| usize::try_from(u32_at(header, at)).ok();
    HEADER_BYTES.checked_add(length(32)?)?.checked_add(length(36)?)
}

/// Whether `bytes` are a chunk of this version in which only the version is another, as a flipped bit leaves it: a newer one would
/// not sum up so.
pub(super) fn is_spoiled_version(bytes: &[u8]) -> bool {
    let mut mended = bytes.to_vec();
    if let Some(version) = mended.get_mut(4) {
        *version = VERSION;
    }
    Chunk::parse(&mended).is_ok()
}

/// Over everything but the checksum itself.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&bytes[..CHECKSUM_AT]);
    hasher.update(&bytes[HEADER_BYTES..]);
    hasher.digest()
}

fn eight(bytes: &[u8], at: usize) -> [u8; 8] {
    bytes[at..at + 8].try_into().expect("eight bytes")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(eight(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::collection;
    use proptest::prelude::{any, proptest};

    use super::*;

    fn sample(body: &[u8]) -> Vec<u8> {
        Packed::new(body.to_vec()).write(Stream::Readings, Seq(7), 3, Timestamp(5), b"note")
    }

    #[test]
    fn small_and_large_bodies_come_back() {
        for length in [0, 10, 5_000, 200_000] {
            let body: Vec<u8> = (0..length).map(|i| u8::try_from(i % 7).unwrap()).collect();
            let bytes = sample(&body);
            let chunk = Chunk::parse(&bytes).unwrap();
            assert_eq!(chunk.header.range(), Some(SeqRange { first: Seq(7), last: Seq(9) }));
            assert_eq!(chunk.body().unwrap(), body.as_slice());
            assert_eq!(chunk.note, b"note");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample(b"some body");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Chunk::parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut bytes = sample(b"");
        bytes[4] = VERSION + 1;
        assert!(matches!(Chunk::parse(&bytes), Err(Error::Newer { found }) if found == VERSION + 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_chunk_or_not(bytes in collection::vec(any::<u8>(), 0..120)) {
            assert!(Chunk::parse(&bytes).is_err());
        }
    }
}
