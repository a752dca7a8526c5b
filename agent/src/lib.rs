//! Holdfast: an edge telemetry agent that loses nothing it acknowledged.

pub mod backoff;
pub mod blocking;
pub mod causes;
pub mod cli;
pub mod clock;
pub mod config;
mod few;
pub mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod ingest;
pub mod pipeline;
pub mod pulse;
pub mod reading;
pub mod receive;
pub mod secret;
pub mod source;
pub mod status;
pub mod store;
pub mod stream;
pub mod tls;
pub mod window;
pub mod wire;
