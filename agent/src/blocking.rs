//! Work that blocks (redb, encoding, compressing), kept off the threads that run the rooms.

use std::cell::Cell;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::pulse;

thread_local! {
    static TAKES: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// From now on, work that is run in place on this thread takes so long: in a simulation, others go on meanwhile.
pub fn take_in_place(duration: Duration) {
    TAKES.set(duration);
}

/// Runs `work` on a thread of its own; a panic of it goes on here.
///
/// On a runtime of one thread it runs at once, in place: such a runtime belongs to a test or a simulation, where
/// two threads would make the order of events a matter of chance. Cancel-safe: `work` runs to its end.
///
/// A room that runs it is hung if it does not end within the room's limit.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let _working = pulse::working();
    blocking_for_long(work).await
}

/// As [`blocking`], for what may take as long as it likes: reading a whole store through.
pub async fn blocking_for_long<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => {
            let done = work();
            let duration = TAKES.get();
            if !duration.is_zero() {
                tokio::time::sleep(duration).await;
            }
            done
        }
        _ => match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(failure) => match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends; nobody will ask for the result.
                Err(_) => std::future::pending().await,
            },
        },
    }
}
