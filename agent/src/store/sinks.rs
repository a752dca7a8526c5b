//! Sinks come and go: what that does to the books. Pure.

use super::ledger::{Books, Ledger, Presence};
use super::work::SinkSpec;
use crate::stream::{GapReason, Seq, SeqRange};

impl Books {
    /// Makes the ledgers those of `sinks`. A new sink starts at the oldest record held; what came before is shed for it.
    pub(super) fn configure_sinks(&mut self, sinks: &[SinkSpec]) {
        for (name, books) in &mut self.sinks {
            if !sinks.iter().any(|sink| sink.name == *name) {
                books.presence = Presence::Removed;
            }
        }
        for sink in sinks {
            let returns = self.sinks.contains_key(&sink.name);
            let books = self.sinks.entry(sink.name.clone()).or_default();
            books.presence = Presence::Configured;
            for stream in &sink.streams {
                let reason = if returns && books.streams.contains_key(stream) {
                    GapReason::Removed
                } else {
                    GapReason::BeforeSink
                };
                let of_stream = self.streams[stream.index()];
                let ledger =
                    books.streams.entry(*stream).or_insert_with(|| Ledger::starting_at(of_stream.first()));
                let oldest = of_stream.oldest;
                if ledger.cursor < oldest {
                    ledger.miss(SeqRange { first: of_stream.first(), last: Seq(oldest.0 - 1) }, reason);
                }
                for hole in &self.holes[stream.index()] {
                    ledger.miss(*hole, reason);
                }
            }
        }
    }
}
