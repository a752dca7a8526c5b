//! When the file is to be made smaller.
//!
//! redb uses free space again, but of the file's end it gives back only what happens to be free. So a file stays as large as
//! it once had to be: after a backlog was delivered, or a limit lowered, it may be far larger than what is in it. Compaction
//! moves what is held to the front and cuts the rest off. Nobody can read or write meanwhile, and it cannot be
//! interrupted, so its length is bounded by how much there is to move. Pure.

/// Smaller files are left as they are.
const WORTH_BYTES: u64 = 64 << 20;
/// A file pays to be compacted when it is more than this many times as large as what is in it.
const TIMES: u64 = 4;
/// At most this much is moved while senders wait for their acknowledgements: 30 to 60 ms on a disk of a server, three seconds
/// on a card that writes 10 MB/s, as each page is written about twice.
const MOST_MOVED_RUNNING: u64 = 16 << 20;
/// At most this much is moved at a start, before anybody waits.
const MOST_MOVED_AT_START: u64 = 64 << 20;

/// When it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// The store was just opened; nothing is listening yet.
    Start,
    /// Between two commits.
    Running,
}

/// Whether a file of `file_bytes` on the disk that holds `live_bytes` is worth it. `before_bytes` is what the last compaction
/// of this run left: what it could not make smaller the next cannot, either.
pub(super) fn pays(occasion: Occasion, file_bytes: u64, live_bytes: u64, before_bytes: u64) -> bool {
    let most_moved = match occasion {
        Occasion::Start => MOST_MOVED_AT_START,
        Occasion::Running => MOST_MOVED_RUNNING,
    };
    file_bytes > WORTH_BYTES
        && live_bytes <= most_moved
        && file_bytes / TIMES > live_bytes
        && file_bytes / 2 > before_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[derive(Debug, PartialEq)]
    enum Verdict {
        Pays,
        Waits,
    }
    use Occasion::{Running, Start};
    use Verdict::{Pays, Waits};

    fn check(occasion: Occasion, file_mib: u64, live_mib: u64, before_mib: u64, expected: Verdict) {
        let pays = pays(occasion, file_mib * MIB, live_mib * MIB, before_mib * MIB);
        let found = if pays { Pays } else { Waits };
        assert_eq!(found, expected, "{occasion:?}: {live_mib} in {file_mib} MiB, {before_mib} before");
    }

    #[test]
    fn it_pays_if_little_is_moved_and_much_is_freed() {
        check(Running, 1_000, 5, 0, Pays);
        check(Running, 1_000, 17, 0, Waits);
        check(Start, 1_000, 17, 0, Pays);
        check(Start, 1_000, 65, 0, Waits);
        check(Start, 100, 25, 0, Waits);
        check(Start, 64, 1, 0, Waits);
    }

    #[test]
    fn what_did_not_help_is_not_done_again_before_the_file_has_doubled() {
        check(Running, 100, 5, 60, Waits);
        check(Running, 122, 5, 60, Pays);
    }
}
