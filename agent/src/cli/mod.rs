//! The command line: one file per command.

pub mod dead_letters;
pub mod status;
