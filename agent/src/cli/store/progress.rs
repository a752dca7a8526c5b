//! How far it is: a bar on a terminal, a line now and then elsewhere. All of it on stderr.
//!
//! By hand: the crates that draw bars weigh more in the binary than all that they would show.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::status::text::bytes;
use crate::store::offline::{Phase, Progress, Step};

/// Where there is no terminal (a journal, a file), a line comes so often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// So often the bar is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// How many characters the bar is long.
const BAR_CHARS: usize = 30;
/// Goes to the beginning of the line and wipes it (ECMA-48, EL).
const WIPE: &str = "\r\x1b[K";

/// Whether anything is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Yes,
    /// The results go to the same terminal.
    No,
}

/// The bar.
#[derive(Clone)]
pub(super) struct Bar(Arc<Mutex<Display>>);

struct Display {
    kind: Kind,
    phase: Option<Phase>,
    /// When the phase began.
    began: Instant,
    /// When the next bar or line is due.
    next: Instant,
    /// What is on the terminal's last line.
    drawn: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hidden,
    Bar,
    Lines,
}

impl Bar {
    pub(super) fn new(shown: Shown) -> Self {
        let kind = match shown {
            Shown::No => Kind::Hidden,
            Shown::Yes if std::io::stderr().is_terminal() => Kind::Bar,
            Shown::Yes => Kind::Lines,
        };
        let now = Clock::system().monotonic();
        let next = if kind == Kind::Lines { now + LINE_EVERY } else { now };
        let display = Display { kind, phase: None, began: now, next, drawn: String::new() };
        Self(Arc::new(Mutex::new(display)))
    }

    /// What the work tells how far it is.
    pub(super) fn progress(&self) -> Progress {
        let display = Arc::clone(&self.0);
        Progress::new(move |step| {
            let now = Clock::system().monotonic();
            display.lock().unwrap_or_else(PoisonError::into_inner).tell(step, now);
        })
    }

    /// Writes a line without disturbing the bar.
    pub(super) fn above(&self, line: &str) {
        let display = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match display.kind {
            Kind::Bar => say(&format!("{WIPE}{line}\n{}", display.drawn)),
            Kind::Hidden | Kind::Lines => say(&format!("{line}\n")),
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        let mut display = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !display.drawn.is_empty() {
            say(WIPE);
            display.drawn.clear();
        }
    }
}

impl Display {
    fn tell(&mut self, step: Step, now: Instant) {
        let is_news = self.phase.replace(step.phase) != Some(step.phase);
        if is_news {
            self.began = now;
        }
        match self.kind {
            Kind::Bar if is_news || now >= self.next || step.done >= step.total => {
                self.next = now + DRAW_EVERY;
                self.drawn = bar(step, now - self.began);
                say(&format!("{WIPE}{}", self.drawn));
            }
            Kind::Lines if now >= self.next => {
                self.next = now + LINE_EVERY;
                say(&format!("{}: {} %\n", step.phase.name(), percent(step)));
            }
            Kind::Hidden | Kind::Bar | Kind::Lines => {}
        }
    }
}

/// The bar as it is drawn.
fn bar(step: Step, took: Duration) -> String {
    let name = step.phase.name();
    let counted = match step.phase {
        // redb does not say how far it is.
        Phase::Compacting => return format!("{name} …"),
        Phase::Opening | Phase::Pages | Phase::Chunks | Phase::Scanning => {
            format!("  {} of {}", bytes(step.done), bytes(step.total))
        }
        Phase::Records => String::new(),
    };
    let percent = percent(step);
    let full = BAR_CHARS * usize::try_from(percent).unwrap_or_default() / 100;
    let (full, empty) = ("=".repeat(full), " ".repeat(BAR_CHARS - full));
    format!("{name:18} [{full}{empty}] {percent:>3} %{counted}  {} s", took.as_secs())
}

fn percent(step: Step) -> u64 {
    (step.done.saturating_mul(100) / step.total.max(1)).min(100)
}

fn say(text: &str) {
    let mut stderr = std::io::stderr();
    // Nobody to tell if stderr is closed.
    drop(stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_full_as_the_work_is_done() {
        let at = |done| bar(Step { phase: Phase::Chunks, done, total: 2 << 20 }, Duration::from_secs(3));
        let half = format!("[{}{}]  50 %  1.0 MiB of 2.0 MiB  3 s", "=".repeat(15), " ".repeat(15));
        assert!(at(1 << 20).ends_with(&half), "{}", at(1 << 20));
        assert!(at(9 << 20).contains("100 %"), "more than was announced is still the end");
        assert!(bar(Step { phase: Phase::Records, done: 0, total: 0 }, Duration::ZERO).contains("  0 %"));
    }
}
