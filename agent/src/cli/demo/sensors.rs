//! The demo's sensors: each device is an MQTT client of its own, every other one speaks MQTT 5, the rest 3.1.1. A message
//! counts as acknowledged when its PUBACK has come, which the agent sends only after the reading is on disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::Packet as PacketV5;
use rumqttc::{Packet, v5};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::signals::Device;
use crate::clock::Clock;

/// Messages a sensor holds while it cannot send; when it has more, it measures more slowly.
const WAITING_MESSAGES: usize = 64;
/// The pause before a sensor connects again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(300);
/// After the stop, this long a sensor waits for the acks it has not got.
const ACK_DEADLINE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Long enough for any demo; so the agent knows a sensor again that lost its connection.
const SESSION_EXPIRY_S: u32 = 3_600;

/// How many sensors there are, and how fast they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) sensors: u16,
    /// Readings a second of all sensors together.
    pub(super) rate: u32,
    pub(super) seed: u64,
}

/// What a sensor did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Messages it gave to its connection.
    pub(super) published: u64,
    /// Messages that the agent acknowledged.
    pub(super) acked: u64,
}

/// The sensors, each in a task of its own.
#[derive(Debug)]
pub(super) struct Fleet {
    tallies: Vec<(String, watch::Receiver<Tally>)>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Fleet {
    /// Starts sensors that publish to `agent`.
    pub(super) fn start(plan: Plan, agent: SocketAddr) -> Self {
        let (mut tasks, mut tallies, stop) = (JoinSet::new(), Vec::new(), CancellationToken::new());
        let start = Clock::system().monotonic();
        let period = Duration::from_secs(u64::from(plan.sensors)) / plan.rate.max(1);
        for index in 0..plan.sensors {
            let device = Device::new(usize::from(index), plan.seed);
            let (tally, seen) = watch::channel(Tally::default());
            tallies.push((device.name().to_owned(), seen));
            let sensor = Sensor {
                device,
                tally: Arc::new(tally),
                start,
                first: start + period * u32::from(index) / u32::from(plan.sensors),
                period,
                stop: stop.clone(),
            };
            tasks.spawn(async move {
                if index % 2 == 0 { sensor.run_v5(agent).await } else { sensor.run_v311(agent).await }
            });
        }
        Self { tallies, tasks, stop }
    }

    /// What all of them did so far.
    pub(super) fn total(&self) -> Tally {
        self.tallies.iter().map(|(_, tally)| *tally.borrow()).fold(Tally::default(), |sum, tally| Tally {
            published: sum.published + tally.published,
            acked: sum.acked + tally.acked,
        })
    }

    /// Lets them measure no more and wait (a while) for their acks; what each did, by name.
    pub(super) async fn stop(&mut self) -> Vec<(String, Tally)> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(failure) = ended {
                debug!(%failure, "a sensor failed");
            }
        }
        self.tallies.iter().map(|(name, tally)| (name.clone(), *tally.borrow())).collect()
    }
}

struct Sensor {
    device: Device,
    tally: Arc<watch::Sender<Tally>>,
    start: Instant,
    first: Instant,
    period: Duration,
    stop: CancellationToken,
}

impl Sensor {
    async fn run_v311(self, agent: SocketAddr) {
        let mut options = rumqttc::MqttOptions::new(self.device.name(), agent.ip().to_string(), agent.port());
        options.set_keep_alive(KEEP_ALIVE).set_clean_session(false);
        let (client, mut events) = rumqttc::AsyncClient::new(options, WAITING_MESSAGES);
        let tally = Arc::clone(&self.tally);
        let poll = async {
            loop {
                match events.poll().await {
                    Ok(rumqttc::Event::Incoming(Packet::PubAck(_))) => acked(&tally),
                    Ok(_) => {}
                    Err(error) => pause(&error).await,
                }
            }
        };
        // The poll is never cancelled in the middle of a packet: it lives until the last ack has come.
        tokio::select! {
            () = poll => {}
            () = self.publish(Client::V311(client)) => {}
        }
    }

    async fn run_v5(self, agent: SocketAddr) {
        let mut options = v5::MqttOptions::new(self.device.name(), agent.ip().to_string(), agent.port());
        options.set_keep_alive(KEEP_ALIVE).set_clean_start(false);
        options.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
        let (client, mut events) = v5::AsyncClient::new(options, WAITING_MESSAGES);
        let tally = Arc::clone(&self.tally);
        let poll = async {
            loop {
                match events.poll().await {
                    Ok(v5::Event::Incoming(PacketV5::PubAck(_))) => acked(&tally),
                    Ok(_) => {}
                    Err(error) => pause(&error).await,
                }
            }
        };
        tokio::select! {
            () = poll => {}
            () = self.publish(Client::V5(client)) => {}
        }
    }

    /// Measures and sends until the stop, then waits for the acks still missing.
    async fn publish(mut self, client: Client) {
        let topic = self.device.topic();
        let mut ticks = tokio::time::interval_at(self.first, self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let unix_ms = Clock::system().wall().0 / 1_000;
            let message = self.device.message(self.start.elapsed().as_secs_f64(), unix_ms);
            // Counted before it is sent, as its ack may come before `send` returns.
            self.tally.send_modify(|tally| tally.published += 1);
            if !client.publish(&topic, message).await {
                return;
            }
        }
        let mut seen = self.tally.subscribe();
        let all_acked = seen.wait_for(|tally| tally.acked >= tally.published);
        if tokio::time::timeout(ACK_DEADLINE, all_acked).await.is_err() {
            debug!(sensor = self.device.name(), "stopped without all acks");
        }
    }
}

/// The sending end of a connection.
enum Client {
    V311(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

impl Client {
    /// Waits while the connection has more than enough to send; false if it is gone.
    async fn publish(&self, topic: &str, message: Vec<u8>) -> bool {
        match self {
            Self::V311(client) => {
                client.publish(topic, rumqttc::QoS::AtLeastOnce, false, message).await.is_ok()
            }
            Self::V5(client) => {
                client.publish(topic, v5::mqttbytes::QoS::AtLeastOnce, false, message).await.is_ok()
            }
        }
    }
}

fn acked(tally: &watch::Sender<Tally>) {
    tally.send_modify(|tally| tally.acked += 1);
}

async fn pause(error: &impl std::fmt::Display) {
    debug!(%error, "a sensor lost its connection");
    tokio::time::sleep(RECONNECT_PAUSE).await;
}
