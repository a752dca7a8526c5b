//! A child process that does not outlive its owner.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`, its stderr appended to the file `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {name} ({error}); scripts/test installs what the tests need")
        });
        Self { child, name }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Pulls the plug: SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // Already ended is just as well.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// If the system does not tell.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn end(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_for(&what, within, || std::future::ready(self.ended())).await
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn terminate(&mut self, within: Duration) -> ExitStatus {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
            // A process that stands still would never see it.
            self.signal(Signal::CONT);
        }
        self.end(within).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end, off the async threads.
///
/// # Panics
/// If it cannot be started.
pub async fn run(mut command: Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let running = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    running.await.unwrap().unwrap_or_else(|error| {
        panic!("cannot start {name} ({error}); scripts/test installs what the tests need")
    })
}
