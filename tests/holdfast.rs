//! The program `holdfast`, built where the end-to-end tests find it; or, in its place, another that they are to try.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Names the other program, for example one for another processor with an emulator around it (`scripts/test-arm`).
const OTHER: &str = "HOLDFAST_BINARY";

fn main() -> ExitCode {
    match std::env::var_os(OTHER) {
        Some(other) => become_other(&other),
        None => holdfast::cli::main(),
    }
}

/// Takes its place under the same process id, so that every signal is for it, and its end is the end that tests see.
fn become_other(other: &OsStr) -> ExitCode {
    let error = Command::new(other).args(std::env::args_os().skip(1)).exec();
    // Nobody to tell if stderr is closed.
    drop(writeln!(std::io::stderr(), "cannot start {} ({OTHER}): {error}", other.display()));
    ExitCode::FAILURE
}
