//! A real mosquitto, for one test: on a port of its own, with its files in a temporary directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::net::TcpStream;

/// Debian installs it where users do not look.
const PROGRAMS: [&str; 2] = ["/usr/sbin/mosquitto", "mosquitto"];

/// A running broker; ended when dropped.
pub(super) struct Broker {
    child: Option<Child>,
    pub(super) port: u16,
    dir: tempfile::TempDir,
}

impl Broker {
    /// A broker that lets anyone in and keeps sessions across a restart.
    pub(super) async fn start() -> Self {
        Self::with("allow_anonymous true").await
    }

    /// A broker with further lines of configuration; `{dir}` in them stands for its directory.
    pub(super) async fn with(lines: &str) -> Self {
        Self::prepared(lines, |_| ()).await
    }

    /// A broker whose directory is prepared first.
    pub(super) async fn prepared(lines: &str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let port = free_port();
        let own = format!(
            "user root\nlistener {port} 127.0.0.1\npersistence true\npersistence_location {dir}/\n\
             max_inflight_messages 100\nmax_queued_messages 0\n{lines}\n",
            dir = dir.path().display(),
        );
        let config = own.replace("{dir}", &dir.path().display().to_string());
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Self { child: None, port, dir };
        broker.restart().await;
        broker
    }

    /// Starts it, again or for the first time.
    pub(super) async fn restart(&mut self) {
        self.stop();
        let config = self.dir.path().join("mosquitto.conf");
        let started = PROGRAMS.iter().find_map(|program| {
            let mut command = Command::new(program);
            command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().ok()
        });
        self.child = Some(started.expect(
            "these tests need a real broker: install mosquitto (Debian: apt-get install mosquitto), version 2",
        ));
        let up = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), up).await.expect("mosquitto does not listen");
    }

    /// Ends it with SIGTERM, so that it writes down its sessions.
    pub(super) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        child.wait().unwrap();
    }

    /// Ends it and forgets all its sessions and messages.
    pub(super) fn stop_and_forget(&mut self) {
        self.stop();
        // A session that was never written down leaves no file.
        drop(std::fs::remove_file(self.dir.path().join("mosquitto.db")));
    }

    /// A file of its directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client of it, to publish with.
    pub(super) fn publisher(&self) -> Publisher {
        let mut options = MqttOptions::new("publisher", "127.0.0.1", self.port);
        options.set_max_packet_size(64 << 20, 64 << 20);
        let (client, events) = AsyncClient::new(options, 1_000);
        Publisher { client, events }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Whether the broker is to keep a message for those who subscribe later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retain {
    Yes,
    No,
}

/// Publishes, and knows when the broker has it.
pub(super) struct Publisher {
    client: AsyncClient,
    events: EventLoop,
}

impl Publisher {
    /// Publishes `payloads` to `topic` with QoS 1, and returns when the broker has acknowledged them.
    pub(super) async fn publish(&mut self, topic: &str, payloads: &[&str]) {
        for payload in payloads {
            self.client.try_publish(topic, QoS::AtLeastOnce, false, *payload).unwrap();
        }
        self.acknowledged(payloads.len()).await;
    }

    /// Publishes one message as it is wanted, with QoS 1 or 2.
    pub(super) async fn publish_with(&mut self, topic: &str, qos: QoS, retain: Retain, payload: Vec<u8>) {
        self.client.try_publish(topic, qos, retain == Retain::Yes, payload).unwrap();
        self.acknowledged(1).await;
    }

    /// Publishes with QoS 0; returns when it is sent, which with a broker on this machine will do.
    pub(super) async fn publish_unprotected(&mut self, topic: &str, payload: &str) {
        self.client.try_publish(topic, QoS::AtMostOnce, false, payload).unwrap();
        while !matches!(self.next().await, Event::Outgoing(Outgoing::Publish(_))) {}
    }

    async fn acknowledged(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            if let Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)) = self.next().await {
                left -= 1;
            }
        }
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(20), self.events.poll()).await.unwrap().unwrap()
    }
}

/// A port that nobody listens on now.
pub(super) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
