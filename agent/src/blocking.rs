//! Work that blocks (redb, encoding, compressing), kept off the threads that run the rooms.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work` on a thread of its own; a panic of it goes on here.
///
/// On a runtime of one thread it runs at once, in place: such a runtime belongs to a test or a simulation, where
/// two threads would make the order of events a matter of chance. Cancel-safe: `work` runs to its end.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
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
