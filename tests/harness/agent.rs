//! The agent: the shipped binary as a child process, asked through its admin socket.

use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::books::Status;
use crate::http::{self, Message};
use crate::process::{self, Process};
use crate::{DEADLINE, free_port, wait_for};

/// How many of the last lines of the log are shown with a failure.
const SHOWN_LOG_LINES: usize = 40;

/// One agent with its folder, running or not.
#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    dir: TempDir,
    process: Option<Process>,
    admin_port: u16,
    /// `clock` of `[agent]`.
    clock: &'static str,
    /// Set in its environment.
    environment: Vec<(&'static str, OsString)>,
    privileges: Privileges,
    /// Shown with a failure.
    last_status: Mutex<Option<Status>>,
}

impl Agent {
    /// An agent `gw-e2e` with its store and socket in a temporary folder, and `config` for the rest. Not started.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    pub fn new(program: &str, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = Self {
            program: program.into(),
            dir,
            process: None,
            admin_port: free_port(),
            clock: "trusted",
            environment: Vec::new(),
            privileges: Privileges::Ours,
            last_status: Mutex::default(),
        };
        agent.configure(config);
        agent
    }

    /// An agent that was started and is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn started(program: &str, config: &str) -> Self {
        let mut agent = Self::new(program, config);
        agent.start().await;
        agent
    }

    /// The same, but it asks the kernel whether the clock is synchronised: on the machine of the tests it may or may not be.
    ///
    /// # Panics
    /// If the disk does not let us.
    #[must_use]
    pub fn asking_the_kernel(mut self, config: &str) -> Self {
        self.clock = "kernel";
        self.configure(config);
        self
    }

    /// The same, but nobody's permissions or locks are overridden for it, even if the tests run as root.
    #[must_use]
    pub fn unprivileged(mut self) -> Self {
        self.privileges = Privileges::None;
        self
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((name, value.into()));
    }

    /// Writes another configuration; it counts from the next start or reload on.
    ///
    /// # Panics
    /// If the disk does not let us.
    pub fn configure(&self, config: &str) {
        self.configure_as("gw-e2e", config);
    }

    /// The same under another name.
    ///
    /// # Panics
    /// If the disk does not let us.
    pub fn configure_as(&self, id: &str, config: &str) {
        let (dir, port, clock) = (self.dir.path().display(), self.admin_port, self.clock);
        let text = format!(
            "[agent]\nid = \"{id}\"\ndata_dir = \"{dir}/data\"\nclock = \"{clock}\"\n\
             [admin]\nlisten = \"127.0.0.1:{port}\"\nsocket = \"{dir}/admin.sock\"\n{config}"
        );
        std::fs::write(self.config(), text).unwrap();
    }

    /// From the next start on, it is watched as by systemd: what it tells comes in at the socket.
    ///
    /// # Panics
    /// If the socket cannot be made.
    pub fn watched(&mut self, period: Duration) -> UnixDatagram {
        let path = self.file("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let (path, period) = (path.display().to_string(), period.as_micros().to_string());
        self.set("NOTIFY_SOCKET", path);
        self.set("WATCHDOG_USEC", period);
        socket
    }

    /// Waits until it took a new configuration for the `nth` time.
    ///
    /// # Panics
    /// If it does not.
    pub async fn reloaded(&self, nth: usize) {
        wait_for("the new configuration to take force", DEADLINE, async || {
            (self.log().matches("configuration in force").count() >= nth).then_some(())
        })
        .await;
        wait_for("the agent to be ready", DEADLINE, || is_ready_at(self.socket())).await;
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.file("holdfast.toml")
    }

    /// Where its page is.
    #[must_use]
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin_port)
    }

    /// The most memory it ever had, in KiB.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn peak_kib(&self) -> u64 {
        let id = self.process.as_ref().expect("the agent runs").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// A file in the agent's folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&mut self) {
        let mut command = self.privileges.command(&self.program);
        command.arg("run").arg("--config").arg(self.config()).env_remove("NOTIFY_SOCKET");
        command.envs(self.environment.iter().cloned());
        self.process = Some(Process::start(&mut command, &self.log_file()));
    }

    /// Waits until it says that it is ready.
    ///
    /// # Panics
    /// If it does not.
    pub async fn ready(&mut self) {
        let socket = self.socket();
        wait_for("the agent to be ready", DEADLINE, || {
            if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                panic!("the agent ended with {status}:\n{}", self.log());
            }
            is_ready(&socket)
        })
        .await;
    }

    /// As a supervisor: starts it again if it has ended by itself. Returns how it had.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn restart_if_ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.ended()?;
        self.spawn();
        Some(status)
    }

    /// Pulls the plug.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        self.process.as_mut().expect("the agent runs").kill();
        self.process = None;
    }

    /// SIGTERM; returns how it ended.
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.take().expect("the agent runs").terminate(DEADLINE).await
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn end(&mut self) -> ExitStatus {
        self.process.take().expect("the agent runs").end(DEADLINE).await
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("the agent runs").signal(signal);
    }

    /// Makes it stand still.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it over its socket.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn get(&self, path: &str) -> Message {
        http::get_unix(&self.socket(), path).await.unwrap()
    }

    /// Its status.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn status(&self) -> Status {
        self.try_status().await.expect("the agent answers")
    }

    async fn try_status(&self) -> Option<Status> {
        let answer = http::get_unix(&self.socket(), "/api/v1/status").await.ok()?;
        serde_json::from_slice(&answer.body).ok().map(Status)
    }

    /// Waits until its status fulfils `condition`, and returns it.
    ///
    /// # Panics
    /// If it never does.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Status {
        wait_for(what, DEADLINE, async || {
            let status = self.try_status().await?;
            let is_it = condition(&status);
            *self.last_status.lock().unwrap() = Some(status.clone());
            is_it.then_some(status)
        })
        .await
    }

    /// Waits until the sink `cloud` has everything of `stream`, which is `appended` records; the books balance then.
    ///
    /// # Panics
    /// If that never happens.
    pub async fn drained(&self, stream: &str, appended: u64) -> Status {
        let what = format!("{appended} {stream} to be delivered");
        let status = self
            .wait_for(&what, |status| {
                status.appended(stream) >= appended && status.ledger(stream, "pending") == 0
            })
            .await;
        status.assert_balanced();
        status
    }

    /// Runs another command of the program with this agent's configuration.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--config").arg(self.config()).env_remove("NOTIFY_SOCKET");
        process::run(command).await
    }

    /// What it logged so far, of all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.file("admin.sock")
    }

    fn log_file(&self) -> PathBuf {
        self.file("log")
    }
}

/// What an agent may do beyond what the permissions of files allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privileges {
    /// What the tests may.
    Ours,
    /// Nothing.
    None,
}

impl Privileges {
    fn command(self, program: &Path) -> Command {
        if self == Self::Ours || !rustix::process::geteuid().is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.arg("--bounding-set=-dac_override,-dac_read_search,-sys_admin").arg(program);
        command
    }
}

impl Drop for Agent {
    #[expect(clippy::print_stdout, reason = "shown with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines.get(lines.len().saturating_sub(SHOWN_LOG_LINES)..).unwrap_or_default();
            if let Ok(Some(status)) = self.last_status.lock().as_deref() {
                println!("the last status: {:#}", status.0);
            }
            println!("the agent's log ends:\n{}", shown.join("\n"));
        }
    }
}

async fn is_ready_at(socket: PathBuf) -> Option<()> {
    is_ready(&socket).await
}

async fn is_ready(socket: &Path) -> Option<()> {
    let answer = http::get_unix(socket, "/readyz").await.ok()?;
    (answer.status() == 200).then_some(())
}

/// Runs the program with any arguments.
///
/// # Panics
/// If it cannot be started.
pub async fn command(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env_remove("NOTIFY_SOCKET");
    process::run(command).await
}

/// Waits until a file exists and ends with a line feed, and returns it.
///
/// # Panics
/// If it never does.
pub async fn written(file: &Path) -> String {
    wait_for(&format!("something in {}", file.display()), DEADLINE, async || {
        std::fs::read_to_string(file).ok().filter(|text| text.ends_with('\n'))
    })
    .await
}
