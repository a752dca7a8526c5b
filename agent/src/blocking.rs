//! Work that blocks (redb, encoding, compressing), kept off the threads that run the rooms.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
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
    let result = Arc::new(Mutex::new(None));
    let place = Arc::clone(&result);
    run(Box::new(move || {
        let done = work();
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
    }))
    .await;
    let done = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    match done {
        Some(done) => done,
        // Not run, as the runtime ends; nobody will ask for the result.
        None => std::future::pending().await,
    }
}

/// Not generic: what the runtime brings for each type of task takes some 4 KiB of the binary.
async fn run(work: Box<dyn FnOnce() + Send>) {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => {
            work();
            let duration = TAKES.get();
            if !duration.is_zero() {
                tokio::time::sleep(duration).await;
            }
        }
        _ => {
            if let Err(failure) = tokio::task::spawn_blocking(work).await
                && let Ok(panic) = failure.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}
