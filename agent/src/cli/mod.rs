//! The command line: one file per command.

pub mod check;
pub mod dead_letters;
pub mod demo;
pub mod passwd;
pub mod receive;
pub mod status;
