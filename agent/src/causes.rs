//! Shared words: errors with their causes, for logs and the status.

use std::error::Error;

/// An error with its causes, in one line: `cannot open the store: the disk is full`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
