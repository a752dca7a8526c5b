//! How far it is: a bar on a terminal, a line now and then elsewhere. All of it on stderr.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::store::offline::{Phase, Progress, Step};

/// Where there is no terminal (a journal, a file), a line comes so often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// So often the elapsed time is drawn anew.
const TICK: Duration = Duration::from_millis(250);

/// Whether anything is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Yes,
    /// The results go to the same terminal.
    No,
}

/// The bar.
pub(super) struct Bar {
    bar: ProgressBar,
    lines: Option<Arc<Mutex<Lines>>>,
    phase: Arc<Mutex<Option<Phase>>>,
}

struct Lines {
    next: Instant,
}

impl Bar {
    pub(super) fn new(shown: Shown) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = match shown {
            Shown::Yes if is_terminal => ProgressBar::new(0),
            Shown::Yes | Shown::No => ProgressBar::hidden(),
        };
        let has_lines = shown == Shown::Yes && !is_terminal;
        let next = Clock::system().monotonic() + LINE_EVERY;
        let lines = has_lines.then(|| Arc::new(Mutex::new(Lines { next })));
        Self { bar, lines, phase: Arc::default() }
    }

    /// What the work tells how far it is.
    pub(super) fn progress(&self) -> Progress {
        let (bar, lines, phase) = (self.bar.clone(), self.lines.clone(), Arc::clone(&self.phase));
        Progress::new(move |step| {
            let mut shown = phase.lock().unwrap_or_else(PoisonError::into_inner);
            if shown.replace(step.phase) != Some(step.phase) {
                begin(&bar, step.phase);
            }
            drop(shown);
            bar.set_length(step.total);
            bar.set_position(step.done);
            if let Some(lines) = &lines {
                lines.lock().unwrap_or_else(PoisonError::into_inner).tell(step);
            }
        })
    }

    /// Writes a line without disturbing the bar.
    pub(super) fn above(&self, line: &str) {
        // Nobody to tell if stderr is closed.
        self.bar.suspend(|| drop(writeln!(std::io::stderr(), "{line}")));
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn begin(bar: &ProgressBar, phase: Phase) {
    let template = match phase {
        Phase::Opening | Phase::Pages | Phase::Chunks | Phase::Scanning => {
            "{msg:18} [{bar:30}] {percent:>3} %  {bytes} of {total_bytes}  {elapsed}"
        }
        Phase::Records => "{msg:18} [{bar:30}] {percent:>3} %  {elapsed}",
        // redb does not say how far it is.
        Phase::Compacting => "{spinner} {msg}  {elapsed}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(phase.name());
    bar.reset_elapsed();
    bar.enable_steady_tick(TICK);
}

impl Lines {
    fn tell(&mut self, step: Step) {
        let now = Clock::system().monotonic();
        if now < self.next {
            return;
        }
        self.next = now + LINE_EVERY;
        let percent = step.done.saturating_mul(100) / step.total.max(1);
        // Nobody to tell if stderr is closed.
        drop(writeln!(std::io::stderr(), "{}: {percent} %", step.phase.name()));
    }
}
