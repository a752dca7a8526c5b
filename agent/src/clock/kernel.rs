//! What the kernel knows of the clock: whether it is synchronised, how long the machine has been up, and which boot this is.
//!
//! `adjtimex(2)` gives a bound of the clock's error. Whoever synchronises the clock sets it, the kernel lets it grow, and at
//! 16 s, or when somebody sets the clock by hand, the clock counts as not synchronised. That is also what `timedatectl` goes
//! by. `STA_UNSYNC` says the same, but chronyd leaves it set where it was not told to tend the hardware clock.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

/// The kernel is asked at most this often: its answer changes seldom, and a reading should not cost a system call.
const ASK_EVERY_MICROS: i64 = 1_000_000;

/// The last answer and when it was given: the time since boot in microseconds, times two, plus one if synchronised. -1: never.
static ANSWER: AtomicI64 = AtomicI64::new(-1);

/// Whether something keeps the clock right, as of at most a second ago.
pub(super) fn is_synced(uptime_micros: i64) -> bool {
    let answer = ANSWER.load(Relaxed);
    if answer >= 0 && uptime_micros - answer / 2 < ASK_EVERY_MICROS {
        return answer % 2 == 1;
    }
    let is_synced = ask();
    ANSWER.store(uptime_micros.saturating_mul(2).saturating_add(i64::from(is_synced)), Relaxed);
    is_synced
}

/// True if the clock's error is bounded. No answer means that nobody vouches for the clock; a sandbox may refuse the call
/// (`ProtectClock=` of systemd does, although nothing is set).
#[cfg(target_pointer_width = "64")]
fn ask() -> bool {
    /// `NTP_PHASE_LIMIT` of the kernel, in microseconds.
    const UNBOUNDED_MICROS: i64 = 16_000_000;
    let mut state = rtime_clock::adjtime::Timex::new();
    rtime_clock::adjtime::adjtimex(&mut state).is_ok() && state.0.maxerror < UNBOUNDED_MICROS
}

/// No crate that asks without `unsafe` on our side compiles for 32-bit machines. Second best: systemd-timesyncd, or
/// systemd-time-wait-sync on behalf of others, leaves this file when the clock was synchronised in this boot.
#[cfg(not(target_pointer_width = "64"))]
fn ask() -> bool {
    std::path::Path::new("/run/systemd/timesync/synchronized").exists()
}

/// Time since boot, sleep included. It runs on evenly when the wall clock is set.
pub(super) fn uptime_micros() -> i64 {
    let uptime = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
    i64::try_from(uptime.as_micros()).unwrap_or(i64::MAX)
}

/// What tells this boot from all others; nil where it cannot be read.
pub(super) fn boot_id() -> Uuid {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|id| Uuid::try_parse(id.trim()).ok())
        .unwrap_or_default()
}
