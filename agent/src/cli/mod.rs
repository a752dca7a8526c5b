//! The command line.

pub mod passwd;
