//! Frames to bytes on a wire, and back: COBS, with a zero byte behind each frame.
//!
//! The zero byte occurs nowhere else, so whoever has lost the thread finds it again behind the next one: after any
//! garbage at most the frame that it touches is lost. Both directions work in the caller's memory, piece by piece.

use crate::crc::{CRC_BYTES, Crc, crc_of};
use crate::frame::{MAX_HOST_BODY_BYTES, MAX_NODE_BODY_BYTES, Tag};
pub use crate::wire::Message;
use crate::wire::{Sink, Write};

/// Memory for the largest body that a node receives.
pub const NODE_DECODER_BYTES: usize = MAX_HOST_BODY_BYTES + CRC_BYTES;
/// Memory for the largest body that a host receives.
pub const HOST_DECODER_BYTES: usize = MAX_NODE_BODY_BYTES + CRC_BYTES;
/// The code of a COBS block that is full: 254 bytes, and no zero behind them.
const FULL: u8 = 0xFF;

/// The frame does not fit the buffer; [`MAX_NODE_WIRE_BYTES`](crate::frame::MAX_NODE_WIRE_BYTES) are always enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BufferTooSmall;

impl core::fmt::Display for BufferTooSmall {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the frame does not fit the transmit buffer")
    }
}

impl core::error::Error for BufferTooSmall {}

/// What the line was before a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The end of another frame.
    Frame,
    /// Perhaps half a frame, or noise: a zero byte ends it, so that it does not take this frame with it.
    Unknown,
}

/// Writes the frame of `tag`, `message` and `content` to the beginning of `out`; returns how many bytes it takes.
///
/// # Errors
/// If `out` is too small.
pub fn encode(
    before: Before,
    tag: Tag,
    message: &impl Message,
    content: &[&[u8]],
    out: &mut [u8],
) -> Result<usize, BufferTooSmall> {
    let mut stuffer = Stuffer::new(before, out);
    stuffer.byte(tag.0);
    message.write(&mut stuffer);
    content.iter().for_each(|part| stuffer.bytes(part));
    stuffer.finish().ok_or(BufferTooSmall)
}

/// COBS and checksum in one pass. What does not fit is left out, and noticed in the end.
struct Stuffer<'o> {
    out: &'o mut [u8],
    /// Bytes written, had there been room.
    length: usize,
    /// Where the code of the current block goes.
    code_at: usize,
    /// That code, so far.
    code: u8,
    crc: Crc,
}

impl<'o> Stuffer<'o> {
    fn new(before: Before, out: &'o mut [u8]) -> Self {
        let mut stuffer = Self { out, length: 0, code_at: 0, code: 1, crc: Crc::new() };
        if before == Before::Unknown {
            stuffer.append(0);
        }
        stuffer.open();
        stuffer
    }

    fn append(&mut self, byte: u8) {
        if let Some(place) = self.out.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.wrapping_add(1);
    }

    /// Begins a block.
    fn open(&mut self) {
        self.code_at = self.length;
        self.code = 1;
        self.append(0);
    }

    /// Ends a block: its code is known now.
    fn close(&mut self) {
        if let Some(place) = self.out.get_mut(self.code_at) {
            *place = self.code;
        }
    }

    fn stuff(&mut self, byte: u8) {
        if byte != 0 {
            self.append(byte);
            self.code = self.code.wrapping_add(1);
        }
        if byte == 0 || self.code == FULL {
            self.close();
            self.open();
        }
    }

    /// Ends the frame; returns how many bytes it takes, if it has fitted.
    fn finish(mut self) -> Option<usize> {
        for byte in self.crc.value().to_le_bytes() {
            self.stuff(byte);
        }
        self.close();
        self.append(0);
        (self.length <= self.out.len()).then_some(self.length)
    }
}

impl Sink for Stuffer<'_> {
    fn byte(&mut self, byte: u8) {
        self.crc.update(&[byte]);
        self.stuff(byte);
    }
}

/// What ended with a zero byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'d> {
    /// A frame whose checksum is right.
    Body(&'d [u8]),
    /// Something else: noise, a torn frame, one that is too long.
    Garbage {
        /// How many bytes it was, its zero byte included.
        bytes: u32,
    },
}

/// Takes bytes as they come and gives bodies of at most `BYTES` less the checksum.
#[derive(Clone, Debug)]
pub struct Decoder<const BYTES: usize> {
    body: [u8; BYTES],
    length: usize,
    /// Bytes that the current block still has.
    left: u8,
    /// The block before was not full: a zero belongs between it and the next.
    zero_due: bool,
    /// It cannot become a frame any more.
    broken: bool,
    /// Bytes since the last zero byte.
    taken: u32,
}

impl<const BYTES: usize> Default for Decoder<BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const BYTES: usize> Decoder<BYTES> {
    /// At the beginning of a frame.
    #[must_use]
    pub const fn new() -> Self {
        Self { body: [0; BYTES], length: 0, left: 0, zero_due: false, broken: false, taken: 0 }
    }

    /// Takes bytes off the beginning of `input` up to the end of a frame, and says what ended; `None` when `input` is
    /// used up. Zero bytes without anything between them are nothing.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Decoded<'_>> {
        loop {
            let end = input.iter().position(|byte| *byte == 0);
            let (piece, rest) = match end {
                Some(end) => (input.get(..end)?, input.get(end.wrapping_add(1)..)?),
                None => (*input, [].as_slice()),
            };
            *input = rest;
            self.take(piece);
            end?;
            if self.taken > 0 {
                break;
            }
        }
        Some(self.finish())
    }

    /// Forgets what came since the last zero byte: the line was closed.
    pub fn reset(&mut self) {
        self.begin();
    }

    /// So many bytes have come since the last zero byte that they cannot become a frame any more; 0 if they can.
    #[must_use]
    pub fn hopeless_bytes(&self) -> u32 {
        if self.broken { self.taken } else { 0 }
    }

    fn begin(&mut self) {
        (self.length, self.left, self.zero_due, self.broken, self.taken) = (0, 0, false, false, 0);
    }

    /// Takes bytes of a frame, without its zero byte.
    fn take(&mut self, mut piece: &[u8]) {
        self.taken = self.taken.saturating_add(u32::try_from(piece.len()).unwrap_or(u32::MAX));
        while !self.broken
            && let Some((code, behind)) = piece.split_first()
        {
            if self.left == 0 {
                if self.zero_due {
                    self.append(&[0]);
                }
                self.left = code.wrapping_sub(1);
                self.zero_due = *code != FULL;
                piece = behind;
            } else {
                let (run, rest) = piece.split_at(piece.len().min(usize::from(self.left)));
                self.append(run);
                // Not longer than `left`, so it fits a byte.
                self.left = self.left.wrapping_sub(run.len().to_le_bytes()[0]);
                piece = rest;
            }
        }
    }

    fn append(&mut self, run: &[u8]) {
        let end = self.length.saturating_add(run.len());
        match self.body.get_mut(self.length..end) {
            Some(place) => {
                copy(place, run);
                self.length = end;
            }
            None => self.broken = true,
        }
    }

    /// The zero byte came.
    fn finish(&mut self) -> Decoded<'_> {
        let is_whole = !self.broken && self.left == 0;
        let (length, bytes) = (self.length, self.taken.saturating_add(1));
        self.begin();
        let body = self.body.get(..length).and_then(|body| body.split_last_chunk::<CRC_BYTES>());
        match body {
            Some((body, crc))
                if is_whole && !body.is_empty() && crc_of(&[body]) == u32::from_le_bytes(*crc) =>
            {
                Decoded::Body(body)
            }
            _ => Decoded::Garbage { bytes },
        }
    }
}

/// As `copy_from_slice`, of what is known to be as long; the compiler does not know it, and would leave a panic behind.
pub(crate) fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    type HostDecoder = Decoder<HOST_DECODER_BYTES>;

    /// The frame of a body (its tag first).
    fn frame(body: &[u8]) -> Vec<u8> {
        let mut out = vec![0; crate::frame::wire_bytes(body.len())];
        let length = encode(Before::Frame, Tag(body[0]), &(), &[&body[1..]], &mut out).unwrap();
        out.truncate(length);
        out
    }

    /// What a decoder makes of `pieces`.
    fn decode<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Vec<u8>>, u32) {
        let mut decoder = HostDecoder::new();
        let (mut bodies, mut garbage) = (Vec::new(), 0);
        for mut piece in pieces {
            while let Some(decoded) = decoder.next(&mut piece) {
                match decoded {
                    Decoded::Body(body) => bodies.push(body.to_vec()),
                    Decoded::Garbage { bytes } => garbage += bytes,
                }
            }
        }
        (bodies, garbage)
    }

    fn body() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![2 => Just(0_u8), 5 => any::<u8>()];
        prop_oneof![
            prop::collection::vec(byte, 1..80),
            prop::collection::vec(1..=255_u8, 1..=MAX_NODE_BODY_BYTES)
        ]
    }

    #[test]
    fn a_frame_is_what_the_page_of_the_format_says() {
        let crc = crc_of(&[&[0x85]]).to_le_bytes();
        let [a, b, c, d] = crc;
        assert!(!crc.contains(&0), "or the example would be longer");
        assert_eq!(frame(&[0x85]), [6, 0x85, a, b, c, d, 0]);
        let mut out = [0; 16];
        let length = encode(Before::Unknown, Tag(0x85), &(), &[], &mut out).unwrap();
        assert_eq!(out[..length], [0, 6, 0x85, a, b, c, d, 0]);
    }

    #[test]
    fn no_buffer_is_overrun() {
        let whole = frame(&[1; 300]);
        for length in 0..whole.len() {
            let mut out = vec![0; length];
            assert_eq!(encode(Before::Frame, Tag(1), &(), &[&[1; 299]], &mut out), Err(BufferTooSmall));
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_garbage_and_the_next_one_is_not() {
        let mut line = frame(&[7; HOST_DECODER_BYTES + 1]);
        let long = u32::try_from(line.len()).unwrap();
        line.extend(frame(&[8]));
        assert_eq!(decode([line.as_slice()]), (vec![vec![8]], long));
    }

    #[test]
    fn nothing_between_zero_bytes_is_nothing() {
        assert_eq!(decode([[0, 0, 0].as_slice()]), (vec![], 0));
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            bodies in prop::collection::vec(body(), 0..8), cuts in prop::collection::vec(0..200_usize, 0..40)
        ) {
            let line: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
            for body in &bodies {
                prop_assert!(frame(body).len() < crate::frame::wire_bytes(body.len()), "a leading zero would fit, too");
            }
            let mut rest = line.as_slice();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            pieces.push(rest);
            prop_assert_eq!(decode(pieces), (bodies, 0));
        }

        #[test]
        fn after_any_garbage_at_most_one_frame_is_lost(garbage: Vec<u8>, first in body(), second in body()) {
            let mut line = garbage;
            line.extend(frame(&first));
            line.extend(frame(&second));
            let (bodies, _) = decode([line.as_slice()]);
            prop_assert_eq!(bodies.last(), Some(&second));
        }

        #[test]
        fn a_leading_zero_saves_even_that_frame(garbage: Vec<u8>, first in body()) {
            let mut line = garbage;
            line.push(0);
            line.extend(frame(&first));
            let (bodies, _) = decode([line.as_slice()]);
            prop_assert_eq!(bodies.last(), Some(&first));
        }

        #[test]
        fn a_flipped_bit_is_never_taken_for_a_frame(body in body(), at: prop::sample::Index, bit in 0..8_u32) {
            let mut line = frame(&body);
            let at = at.index(line.len());
            line[at] ^= 1 << bit;
            line.push(0);
            let (bodies, _) = decode([line.as_slice()]);
            prop_assert!(bodies.is_empty());
        }

        #[test]
        fn any_bytes_are_a_frame_or_garbage(line: Vec<u8>) {
            let (bodies, garbage) = decode([line.as_slice(), &[0]]);
            prop_assert!(bodies.is_empty() || line.len() > CRC_BYTES);
            prop_assert!(garbage as usize <= line.len() + 1);
        }
    }
}
