//! Numbers so large that the JSON reader hands them over as floats, though they may be written as integers.
//!
//! The reader does not say which. So the first such number makes us scan the text for the first integer that is too
//! large; which of the huge numbers it is, counted from the start, tells whether the reader has come to it. Numbers of
//! ordinary size cost one comparison.

use super::value::{NumberForm, parse_integer};

/// 2^63: a float below it is no integer that was too large for one.
const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;

/// The huge numbers of one document, as the reader comes to them.
#[derive(Debug, Default)]
pub(super) struct Huge {
    seen: usize,
    /// The place of the first integer among the huge numbers, from 1; 0 if there is none. `None`: not yet scanned.
    first_integer: Option<usize>,
}

impl Huge {
    /// The reader has come to `number`, a float: true if `text`, the document, has it as an integer.
    pub(super) fn is_integer(&mut self, number: f64, text: &str) -> bool {
        if number.abs() < TWO_TO_63 {
            return false;
        }
        self.seen += 1;
        *self.first_integer.get_or_insert_with(|| first_huge_integer(text)) == self.seen
    }
}

/// The place of the first integer beyond 64 bits among the numbers of `text` that are huge, from 1; 0 if there is
/// none. Beyond the first error in `text` the answer means nothing.
fn first_huge_integer(text: &str) -> usize {
    let mut seen = 0;
    for number in Numbers(text) {
        let is_huge_float = || number.parse::<f64>().is_ok_and(|value| value.abs() >= TWO_TO_63);
        match NumberForm::of(number) {
            Some(NumberForm::Integer) if parse_integer(number).is_none() => return seen + 1,
            Some(NumberForm::Float) if is_huge_float() => seen += 1,
            Some(NumberForm::Integer | NumberForm::Float) | None => {}
        }
    }
    0
}

/// The numbers of a JSON text, as they are written.
struct Numbers<'t>(&'t str);

impl<'t> Iterator for Numbers<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        loop {
            let at = self.0.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            let rest = self.0.split_at(at).1;
            if let Some(string) = rest.strip_prefix('"') {
                self.0 = behind_string(string);
                continue;
            }
            let is_number = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
            let end = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
            let (number, rest) = rest.split_at(end);
            self.0 = rest;
            return Some(number);
        }
    }
}

/// What follows the closing quote of a string whose opening quote is gone.
fn behind_string(text: &str) -> &str {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return text.split_at(at + 1).1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    ""
}
