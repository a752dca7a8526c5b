//! From bytes to lines and columns.

/// A place in a file. Both count from 1; columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line; one past its last character for what is missing at its end.
    pub column: usize,
}

/// Finds line and column of a byte.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let after_newlines =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// The position of the byte at `offset`; the end of the text for what lies behind it.
    pub(super) fn position(&self, offset: usize) -> Position {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        // A byte order mark is not seen in an editor, so it is no column.
        let before = self.text.get(start..offset).unwrap_or_default().trim_start_matches('\u{feff}');
        Position { line, column: before.chars().count() + 1 }
    }

    /// The text of the line that `offset` is in, and the part of it before `offset`.
    pub(super) fn line_at(&self, offset: usize) -> (&'a str, &'a str) {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let end = self.starts.get(line).map_or(self.text.len(), |next| next - 1);
        (self.text.get(start..end).unwrap_or_default(), self.text.get(start..offset).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_from_one() {
        let lines = Lines::of("\u{feff}a = 1\nü = \"é\" x\n");
        let at = |offset| {
            let Position { line, column } = lines.position(offset);
            (line, column)
        };
        assert_eq!(at(0), (1, 1));
        assert_eq!(at(3), (1, 1));
        assert_eq!(at(9), (2, 1));
        assert_eq!(at(11), (2, 2));
        assert_eq!(at(1_000), (3, 1));
        assert_eq!(lines.line_at(11), ("ü = \"é\" x", "ü"));
    }
}
