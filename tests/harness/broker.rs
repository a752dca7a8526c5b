//! A real mosquitto, for one test: on a port of its own, with its files in a temporary folder.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::process::Process;
use crate::{DEADLINE, free_port, wait_for};

/// Debian installs it where users do not look.
const PROGRAM: &str = "/usr/sbin/mosquitto";
/// Ports tried before giving up; another process may take a free port before we have it.
const ATTEMPTS: usize = 5;

/// A broker that lets anyone in and keeps sessions across a clean restart.
///
/// Tests of what the agent promises end it by SIGTERM: mosquitto 2.0 killed with -9 forgets messages that it acknowledged,
/// and the agent would get the blame.
#[derive(Debug)]
pub struct Broker {
    dir: TempDir,
    process: Option<Process>,
    lines: String,
    /// Where it listens.
    pub port: u16,
}

impl Broker {
    /// A broker that is up.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn start() -> Self {
        Self::with("allow_anonymous true").await
    }

    /// A broker with these lines in its configuration instead of letting anyone in.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn with(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut broker = Self { dir, process: None, port: 0, lines: lines.to_owned() };
        for _ in 0..ATTEMPTS {
            broker.port = free_port();
            broker.configure();
            if broker.try_start().await {
                return broker;
            }
        }
        panic!("mosquitto does not start: {}", broker.log());
    }

    /// Starts it again after [`stop`](Self::stop), at the same port.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn restart(&mut self) {
        assert!(self.try_start().await, "mosquitto does not start again: {}", self.log());
    }

    /// Ends it with SIGTERM, so that it writes down its sessions.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(DEADLINE).await;
        }
    }

    /// Pulls the plug. It forgets sessions and messages that it acknowledged.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw(&self) {
        self.process.as_ref().expect("the broker runs").signal(Signal::CONT);
    }

    /// Makes it stand still; what is sent to it waits. [`stop`](Self::stop) ends it without its having read that.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) {
        self.process.as_ref().expect("the broker runs").signal(Signal::STOP);
    }

    /// Forgets all sessions and messages; it must not run.
    pub fn forget(&self) {
        // A broker that had nothing to keep leaves no file.
        drop(std::fs::remove_file(self.dir.path().join("mosquitto.db")));
    }

    /// What it logged: who connected, subscribed, was refused.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    fn configure(&self) {
        let dir = self.dir.path().display();
        // A small in-flight window, as many brokers have it, so that a reader that acknowledges late is noticed.
        let config = format!(
            "user root\nlistener {} 127.0.0.1\n{}\npersistence true\n\
             persistence_location {dir}/\nmax_inflight_messages 20\nmax_queued_messages 0\nlog_type all\n",
            self.port, self.lines,
        );
        std::fs::write(self.dir.path().join("mosquitto.conf"), config).unwrap();
    }

    async fn try_start(&mut self) -> bool {
        let mut command = Command::new(PROGRAM);
        command.arg("-c").arg(self.dir.path().join("mosquitto.conf"));
        let mut process = Process::start(&mut command, &self.dir.path().join("log"));
        let port = self.port;
        let is_up = wait_for("mosquitto to listen", Duration::from_secs(20), || {
            let has_ended = process.ended().is_some();
            async move {
                let is_listening = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
                if has_ended { Some(false) } else { is_listening.then_some(true) }
            }
        })
        .await;
        self.process = is_up.then_some(process);
        is_up
    }
}
