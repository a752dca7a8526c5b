//! The reference receiver, `holdfast receive`, as a process, and what it wrote.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::{DEADLINE, free_port};

/// One receiver with its folder, running or not.
#[derive(Debug)]
pub struct Receiver {
    program: String,
    dir: TempDir,
    /// Where it listens.
    pub port: u16,
    process: Option<Process>,
}

impl Receiver {
    /// A receiver that was started.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(program: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = Self { program: program.to_owned(), dir, port: free_port(), process: None };
        receiver.restart();
        receiver
    }

    /// Starts it again, at the same port and folder.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn restart(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(["receive", "--listen", &format!("127.0.0.1:{}", self.port), "--data"]).arg(self.data());
        self.process = Some(Process::start(&mut command, &self.dir.path().join("log")));
    }

    /// Pulls the plug.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Makes it stand still.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// If it ends otherwise than well.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let status = process.terminate(DEADLINE).await;
            assert!(status.success(), "the receiver ended with {status}: {}", self.log());
        }
    }

    /// The lines of a file that it wrote for an agent.
    ///
    /// # Panics
    /// If one is no JSON.
    #[must_use]
    pub fn lines(&self, agent: &str, file: &str) -> Vec<Value> {
        let file = self.data().join(agent).join(file);
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        Path::join(self.dir.path(), "received")
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }
}
