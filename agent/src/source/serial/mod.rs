//! Room 1, serial lines: sensor nodes and other devices behind a UART, a USB adapter or a serial server.
//!
//! In: the bytes of a port. Out: readings, pushed into one [`Inlet`](crate::ingest::Inlet) for the line; acknowledgements back to
//! nodes. Promised: a node's record is acknowledged only after the commit that holds it; one that comes again is recognised, also
//! after a crash; what the store cannot take is not read; no trouble outside ends the source.
//!
//! ```text
//!   mod.rs       opens the port, and again when it was lost
//!   session.rs   one open port: reads, waits, writes       health.rs: how the line is, pure
//!   bridge.rs    frames of firmware-bridge                 speaker.rs: the node at the other end
//!   lines.rs     lines of text, pure
//!   reporter.rs  states and log lines
//!
//!   unplugged / busy / permission-denied / misconfigured / disconnected ◄──► starting ──► connected
//!                                                          silent, garbage, flooding, blocked ◄──┘
//! ```

mod bridge;
mod health;
mod lines;
mod reporter;
mod session;
pub mod settings;
pub mod simulated;
mod speaker;

#[cfg(test)]
mod tests;

pub(crate) use lines::{Looks, Piece, Splitter, odd_bytes};
pub use settings::{Protocol, Settings};
pub(crate) use speaker::unique_names;

use self::reporter::Reporter;
use self::session::{Ending, Line};
use crate::backoff::Backoff;
use crate::ingest::Peer;
use crate::source::{Rooms, port};
use crate::store::Books;

/// Runs the source until it is stopped or the ingest room ends. `books` say how far its nodes are durable.
pub async fn run(settings: Settings, books: &Books, rooms: Rooms) {
    let Rooms { source, intake, report, stop, clock } = rooms;
    let inlet = intake.open(&source, Peer::NAMELESS);
    let reporter = Reporter::new(&settings.name, settings.port.at.clone(), report, clock);
    let settings_of_port = settings.port.clone();
    let mut line = Line::new(settings, books, inlet, reporter, clock);
    let mut backoff = Backoff::new(port::RETRY);
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            opened = port::open(&settings_of_port) => opened,
        };
        let trouble = match opened {
            Ok(port) => {
                let opened = clock.monotonic();
                match line.serve(port, &stop).await {
                    Ending::Stopped | Ending::RoomClosed => return,
                    Ending::Lost(trouble) => {
                        // A server that accepts and hangs up is as good as none.
                        if clock.monotonic().saturating_duration_since(opened) >= port::RETRY.max {
                            backoff.succeeded();
                        }
                        trouble
                    }
                }
            }
            Err(trouble) => trouble,
        };
        line.failed(&trouble);
        let pause = backoff.after_failure(fastrand::f64());
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = line.idle(pause) => {}
        }
    }
    line.end().await;
}
