//! Standard output, as every command writes its results to it.
//!
//! Who reads no further, as `head` does, has what he wants: that is no failure. Anything else that keeps results from being written
//! says so.

use std::io::{self, Stdout, Write};

/// The results could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the results to standard output")]
struct NotWritten(#[source] io::Error);

/// Standard output.
#[derive(Debug)]
pub(super) struct Out<W = Stdout>(W);

impl Out {
    pub(super) fn new() -> Self {
        Self(io::stdout())
    }
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        told(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        told(self.0.flush(), ())
    }
}

/// `done` where nobody reads any more.
fn told<T>(written: io::Result<T>, done: T) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(done),
        // Those who write try again by themselves.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
        Err(error) => Err(io::Error::new(error.kind(), NotWritten(error))),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::chain;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_no_failure_and_a_full_disk_is_one_with_a_name() {
        let mut closed = Out(Fails(io::ErrorKind::BrokenPipe));
        closed.write_all(b"x").unwrap();
        closed.flush().unwrap();
        let error = Out(Fails(io::ErrorKind::StorageFull)).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(
            chain(&error).starts_with("cannot write the results to standard output: "),
            "{}",
            chain(&error)
        );
    }
}
