//! The status of an agent, and whether its books balance.

use serde_json::Value;

/// What an agent answered to `/api/v1/status`. Read by the names that the contract gives, not by the program's own types.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// The number at this JSON pointer.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn number(&self, pointer: &str) -> u64 {
        let found = self.0.pointer(pointer).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("the status has no number {pointer}: {:#}", self.0))
    }

    /// The text at this JSON pointer; empty if it is null.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The agent's state.
    #[must_use]
    pub fn state(&self) -> &str {
        self.text("/state")
    }

    /// A sink's state.
    #[must_use]
    pub fn sink_state(&self, sink: &str) -> &str {
        self.text(&format!("/sinks/{sink}/state"))
    }

    /// A source's state.
    #[must_use]
    pub fn source_state(&self, source: &str) -> &str {
        self.text(&format!("/sources/{source}/state"))
    }

    /// A source's counter.
    #[must_use]
    pub fn source(&self, source: &str, counter: &str) -> u64 {
        self.number(&format!("/sources/{source}/{counter}"))
    }

    /// A counter of the ledger that the sink `cloud` has of a stream.
    #[must_use]
    pub fn ledger(&self, stream: &str, counter: &str) -> u64 {
        self.number(&format!("/sinks/cloud/streams/{stream}/{counter}"))
    }

    /// The same of another sink.
    #[must_use]
    pub fn ledger_of(&self, sink: &str, stream: &str, counter: &str) -> u64 {
        self.number(&format!("/sinks/{sink}/streams/{stream}/{counter}"))
    }

    /// How many records of a stream were ever appended.
    #[must_use]
    pub fn appended(&self, stream: &str) -> u64 {
        self.number(&format!("/streams/{stream}/appended"))
    }

    /// Fails unless every stream balances at every sink, and every source's messages are accounted for.
    ///
    /// # Panics
    /// If they do not.
    pub fn assert_balanced(&self) {
        for (sink, of) in entries(&self.0, "/sinks") {
            for (stream, ledger) in entries(of, "/streams") {
                let count = |name: &str| ledger[name].as_u64().unwrap();
                let sum = count("delivered") + count("pending") + count("dead_lettered") + count("shed");
                assert_eq!(self.appended(stream), sum, "{stream} at {sink} does not balance: {:#}", self.0);
            }
        }
        for (source, counts) in entries(&self.0, "/sources") {
            let count = |name: &str| counts[name].as_u64().unwrap();
            let sum = count("stored") + count("rejected") + count("redelivered") + count("skipped");
            assert_eq!(count("received"), sum, "the messages of {source} do not balance: {:#}", self.0);
        }
    }
}

fn entries<'a>(of: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    of.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}
