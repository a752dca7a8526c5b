//! The agent: the release binary as a child process, and what it says of itself.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::clock::{now, wait};
use crate::line::{BYTES_PER_SECOND, Speech};
use crate::process::Usage;

/// How an agent is set up: always one window with its default aggregates over all fields, and one HTTP sink with zstd.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) binary: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) source: Source,
    pub(crate) cloud_port: u16,
    pub(crate) window: &'static str,
    pub(crate) max_size: &'static str,
}

/// Where readings come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A broker on this port.
    Broker(u16),
    /// The agent's own listener on this port.
    Listener(u16),
    /// The port at this path, where that is spoken.
    Line(PathBuf, Speech),
}

/// A running agent; killed when it is dropped.
pub(crate) struct Agent {
    child: Child,
    admin_port: u16,
    /// From the start of the process until it said that it is ready.
    pub(crate) ready_after: Duration,
    pub(crate) log: PathBuf,
}

impl Setup {
    /// Starts the agent, and waits until it is ready.
    pub(crate) fn start(&self, limit: Duration) -> anyhow::Result<Agent> {
        let admin_port = free_port()?;
        let config = self.dir.join("holdfast.toml");
        std::fs::write(&config, self.config(admin_port))?;
        let log = self.dir.join("agent.log");
        let started = now();
        let child = Command::new(&self.binary)
            .args([Path::new("run"), Path::new("--config"), &config])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let mut agent = Agent { child, admin_port, ready_after: Duration::ZERO, log };
        agent.wait_until_ready(started, limit)?;
        Ok(agent)
    }

    fn config(&self, admin_port: u16) -> String {
        let Self { source, cloud_port, window, max_size, dir, .. } = self;
        let mut text = String::new();
        const TELEMETRY: &str =
            "[[sources.plant.subscribe]]\ntopic = \"sensors/{device}/telemetry\"\ntime = \"/ts\"";
        let source = match source {
            Source::Broker(port) => {
                format!("type = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{port}\"\n{TELEMETRY}")
            }
            Source::Listener(port) => {
                format!("type = \"mqtt-listen\"\nlisten = \"127.0.0.1:{port}\"\n{TELEMETRY}")
            }
            Source::Line(path, speech) => {
                let (path, baud, keys) = (path.display(), BYTES_PER_SECOND * 10, speech.keys());
                format!("type = \"serial\"\npath = \"{path}\"\nbaud = {baud}\n{keys}")
            }
        };
        write!(
            text,
            r#"[agent]
id = "bench"
data_dir = "{dir}/data"
clock = "trusted"
[admin]
listen = "127.0.0.1:{admin_port}"
socket = "{dir}/admin.sock"
[store]
max_size = "{max_size}"
[sources.plant]
{source}
[windows.w]
size = "{window}"
lateness = "2s"
[sinks.cloud]
type = "http"
url = "http://127.0.0.1:{cloud_port}/ingest"
# So that a drain is not measured by the length of a pause.
retry = {{ initial = "500ms", max = "1s" }}
"#,
            dir = dir.display()
        )
        .expect("a String takes any text");
        text
    }
}

impl Agent {
    fn wait_until_ready(&mut self, started: Instant, limit: Duration) -> anyhow::Result<()> {
        let log = self.log.clone();
        wait("the agent, to be ready", Duration::from_millis(1), limit, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Some(Err(anyhow::anyhow!("the agent ended, {status}:\n{log}")));
            }
            let answer = self.get("/readyz").ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(Ok(()))
        })??;
        self.ready_after = started.elapsed();
        Ok(())
    }

    /// What the process has used so far.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.child.id())
    }

    /// Its process id, for a profiler.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The status, as JSON.
    pub(crate) fn status(&self) -> anyhow::Result<serde_json::Value> {
        let answer = self.get("/api/v1/status")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        Ok(serde_json::from_str(body)?)
    }

    /// A number of the status.
    pub(crate) fn number(&self, pointer: &str) -> anyhow::Result<u64> {
        let status = self.status()?;
        status.pointer(pointer).and_then(serde_json::Value::as_u64).with_context(|| format!("no {pointer}"))
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nconnection: close\r\n\r\n",
            self.admin_port
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(!answer.is_empty(), "no answer");
        Ok(answer)
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A port that nobody has at the moment.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
