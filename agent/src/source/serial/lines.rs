//! From bytes to lines. Pure.

use crate::source::port::Beginning;

/// So many odd bytes in a line are characters that were hit: it goes to the dead letters, where it can be seen. A line with more is
/// nothing but noise.
const NOISE: usize = 4;

/// Cuts a stream of bytes into lines, which end with LF, CR or both.
#[derive(Debug)]
pub(crate) struct Splitter {
    max_bytes: usize,
    line: Vec<u8>,
    /// Bytes of the line beyond the longest.
    beyond: usize,
    /// Odd bytes of the line that were told.
    odd_told: usize,
    /// True once `line` was given out, and is to be forgotten.
    is_handed_out: bool,
    skip: Skip,
}

/// Whether what comes up to the next end of a line is to be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    No,
    /// It may be the rest of a line whose beginning we did not hear, and would read as another number.
    Rest,
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    /// Like text.
    Text,
    /// Like a line at another speed.
    Noise,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'s> {
    /// A line without its end, never empty. One that is too long is cut behind the first byte too many.
    Line(&'s [u8], Looks),
    /// So many bytes that are no line.
    Skipped(usize),
}

impl Splitter {
    /// For lines of at most `max_bytes`.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, line: Vec::new(), beyond: 0, odd_told: 0, is_handed_out: false, skip: Skip::No }
    }

    /// The port was opened: what came before is gone, and if it may begin anywhere, so is what comes up to the first end of a line.
    pub(crate) fn begin(&mut self, beginning: Beginning) {
        self.line.clear();
        (self.beyond, self.odd_told) = (0, 0);
        self.skip = match beginning {
            Beginning::AnyPlace => Skip::Rest,
            Beginning::First => Skip::No,
        };
    }

    /// Nothing has come for longer than a character takes: what comes next begins a line.
    pub(super) fn paused(&mut self) {
        if self.line.is_empty() || self.is_handed_out {
            self.skip = Skip::No;
        }
    }

    /// Takes bytes off the beginning of `input` up to the end of a line; `None` when they are used up.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Option<Piece<'_>> {
        loop {
            if std::mem::take(&mut self.is_handed_out) {
                self.line.clear();
                self.odd_told = 0;
            }
            let end = input.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let taken = end.unwrap_or(input.len());
            let room = (self.max_bytes + 1).saturating_sub(self.line.len()).min(taken);
            self.line.extend_from_slice(&input[..room]);
            // A device may go on for days without an end of a line.
            self.beyond = self.beyond.saturating_add(taken - room);
            *input = &input[taken + usize::from(end.is_some())..];
            end?;
            self.is_handed_out = true;
            let bytes = self.line.len().saturating_add(std::mem::take(&mut self.beyond));
            if std::mem::replace(&mut self.skip, Skip::No) == Skip::Rest {
                return Some(Piece::Skipped(bytes.saturating_add(1)));
            }
            if !self.line.is_empty() {
                let looks = if odd_bytes(&self.line) > NOISE { Looks::Noise } else { Looks::Text };
                return Some(Piece::Line(&self.line, looks));
            }
        }
    }

    /// Bytes of a line that has not ended, which do not look like text and were not told before: a line may stay without its end
    /// for hours.
    pub(super) fn take_odd_bytes(&mut self) -> usize {
        let odd = if self.is_handed_out { 0 } else { odd_bytes(&self.line) };
        odd.saturating_sub(std::mem::replace(&mut self.odd_told, odd))
    }
}

/// Bytes that no line of text has: not UTF-8, or control characters.
pub(crate) fn odd_bytes(mut line: &[u8]) -> usize {
    let is_control =
        |text: &str| text.bytes().filter(|byte| byte.is_ascii_control() && *byte != b'\t').count();
    let mut odd = 0;
    loop {
        match std::str::from_utf8(line) {
            Ok(text) => return odd + is_control(text),
            Err(error) => {
                let (good, bad) = line.split_at(error.valid_up_to());
                odd += std::str::from_utf8(good).map_or(0, is_control);
                let length = error.error_len().unwrap_or(bad.len());
                odd += length;
                line = &bad[length..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(splitter: &mut Splitter, mut input: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(piece) = splitter.next(&mut input) {
            lines.push(match piece {
                Piece::Line(line, Looks::Text) => String::from_utf8_lossy(line).into_owned(),
                Piece::Line(line, Looks::Noise) => format!("noise {}", line.len()),
                Piece::Skipped(bytes) => format!("skipped {bytes}"),
            });
        }
        lines
    }

    #[test]
    fn lines_end_with_either_character_or_both_and_empty_ones_are_none() {
        let mut splitter = Splitter::new(100);
        splitter.begin(Beginning::First);
        assert_eq!(lines(&mut splitter, b"1\n2\r\n\n\n3\r4"), ["1", "2", "3"]);
        assert_eq!(lines(&mut splitter, b"5\n"), ["45"]);
    }

    #[test]
    fn the_rest_of_a_line_that_began_before_is_no_line() {
        let mut splitter = Splitter::new(100);
        splitter.begin(Beginning::AnyPlace);
        assert_eq!(lines(&mut splitter, b"3.5\n21.5\n"), ["skipped 4", "21.5"]);
        splitter.begin(Beginning::AnyPlace);
        splitter.paused();
        assert_eq!(lines(&mut splitter, b"23.5\n"), ["23.5"]);
        assert_eq!(lines(&mut splitter, b"half"), [""; 0]);
        splitter.begin(Beginning::AnyPlace);
        assert_eq!(lines(&mut splitter, b"other half\n1\n"), ["skipped 11", "1"]);
    }

    #[test]
    fn what_is_too_long_is_cut_behind_the_first_byte_too_many() {
        let mut splitter = Splitter::new(3);
        splitter.begin(Beginning::First);
        assert_eq!(lines(&mut splitter, b"1234"), [""; 0]);
        assert_eq!(lines(&mut splitter, b"567"), [""; 0]);
        assert_eq!(lines(&mut splitter, b"8\n123\n"), ["1234", "123"]);
    }

    #[test]
    fn noise_is_told_from_a_hit_character() {
        let mut splitter = Splitter::new(100);
        splitter.begin(Beginning::First);
        assert_eq!(lines(&mut splitter, "gr\u{fc}n\t1\n".as_bytes()), ["gr\u{fc}n\t1"]);
        assert_eq!(lines(&mut splitter, b"T=2\xff.5\n"), ["T=2\u{fffd}.5"]);
        assert_eq!(lines(&mut splitter, b"\xf8\x80\x00\xf8\x80\xfe\n"), ["noise 6"]);
        assert_eq!(lines(&mut splitter, b"\xf8\x80\x00"), [""; 0]);
        assert_eq!(splitter.take_odd_bytes(), 3);
    }

    #[test]
    fn odd_bytes_are_told_once_however_long_a_line_stays_without_its_end() {
        let mut splitter = Splitter::new(100);
        splitter.begin(Beginning::First);
        let mut told = |bytes: &[u8]| {
            lines(&mut splitter, bytes);
            [splitter.take_odd_bytes(), splitter.take_odd_bytes()]
        };
        assert_eq!(told(b"21.5\n\x03"), [1, 0]);
        assert_eq!(told(b"\x00\x00"), [2, 0]);
        assert_eq!(told(b"22.5\n"), [0, 0]);
        assert_eq!(told(b"\x03"), [1, 0], "of another line");
        assert_eq!(told(b"23.5\n\x03"), [1, 0], "and of the one behind it");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_lines(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
            cuts in prop::collection::vec(1_usize..20, 0..40),
        ) {
            let mut whole = Splitter::new(16);
            whole.begin(Beginning::First);
            let expected = lines(&mut whole, &bytes);
            let mut split = Splitter::new(16);
            split.begin(Beginning::First);
            let (mut got, mut rest) = (Vec::new(), &bytes[..]);
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                got.extend(lines(&mut split, piece));
                rest = left;
            }
            got.extend(lines(&mut split, rest));
            prop_assert_eq!(got, expected);
        }
    }
}
