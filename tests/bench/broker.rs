//! A mosquitto for the load: it keeps nothing on disk, and limits nothing.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::agent::free_port;
use crate::clock::wait;

/// A broker, ended when it is dropped.
pub(crate) struct Broker {
    pub(crate) port: u16,
    child: Child,
}

impl Broker {
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        let config = dir.join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n\
             max_inflight_messages 1000\nmax_queued_messages 0\n"
        );
        std::fs::write(&config, text)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(&config)
            .env("PATH", format!("{path}:/usr/sbin"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start mosquitto; install it, or leave its scenarios out with --only")?;
        let broker = Self { port, child };
        wait("mosquitto", Duration::from_millis(5), Duration::from_secs(10), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        })?;
        Ok(broker)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
