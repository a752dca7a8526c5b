//! `holdfast demo`: everything in one process, on the loopback, in a folder that is removed at the end.
//!
//! ```text
//! sensors (MQTT) -> the agent's own listener ─┬─> store, windows -> HTTP -> receiver (the cloud)
//! node (frames) -> pty, the serial source ────┘
//! ```
//!
//! At the end three witnesses are compared: what the sensors saw acknowledged, the agent's books, and the receiver's files.

mod agent;
mod node;
mod screen;
mod sensors;
mod signals;
#[cfg(test)]
mod tests;
mod verdict;

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::receive::{self, Behaviour, Outage};
use crate::store::Books;
use crate::stream::{Seq, Stream};
use crate::wire;
use agent::{Running, SERIAL};
use node::{NODE, Plug, Wired};
use screen::{Glance, Kind, Phase, Screen};
use sensors::{Fleet, Plan, Tally};
use verdict::{Received, Verdict};

/// The demo agent's id.
const AGENT: &str = "demo";
/// The node is unplugged for this long, or for a third of a shorter run.
const UNPLUGGED: Duration = Duration::from_secs(3);
/// That is in the middle of the outage, or of the run; of one without an end it begins after this.
const UNPLUGGED_AFTER: Duration = Duration::from_secs(10);
/// The line is redrawn, and the outage begun and ended, this often.
const TICK: Duration = Duration::from_millis(250);
/// The outage begins after this, or after a third of a shorter run.
const OUTAGE_AFTER: Duration = Duration::from_secs(5);
/// Everything is delivered when nothing has been pending or new for this long: longer than a silent device's windows wait.
const SETTLED_AFTER: Duration = Duration::from_millis(2_500);
/// What is not delivered by then counts as off.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// See it work: simulated sensors, a sensor node on a serial line, the agent, a receiver that plays the cloud, and the status page, in one process.
///
/// Nothing leaves this machine, nothing needs to be installed, and the files are removed at the end. When the time is
/// over (or on Ctrl-C) the sensors stop, the agent delivers what it holds, and the books of all three are compared: exit 0
/// if they balance, 1 if they do not.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How long the sensors measure, such as "30s" or "5m"; without it until Ctrl-C
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Cut the cloud off for this long, to see the agent buffer and recover; begins after 5 s, or a third of a shorter run
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub cloud_outage: Option<Duration>,

    /// How many sensors; every other one speaks MQTT 5, the rest 3.1.1
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=900))]
    pub sensors: u16,

    /// Readings a second, of all sensors together
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,

    /// The same seed gives the same signals
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,

    /// Where the status page is, on the loopback; port 0 lets the system choose, as happens when the default is taken
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub listen_admin: Option<SocketAddr>,
}

impl Args {
    /// `--listen-admin` where nobody says.
    const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9_550);

    /// When the outage begins and ends, counted from the start.
    fn outage(&self) -> Option<(Duration, Duration)> {
        let begin = self.duration.map_or(OUTAGE_AFTER, |duration| OUTAGE_AFTER.min(duration / 3));
        self.cloud_outage.map(|outage| (begin, begin + outage))
    }

    /// When the node is unplugged and plugged in again, counted from the start.
    fn unplugged(&self) -> (Duration, Duration) {
        let length = self.duration.map_or(UNPLUGGED, |duration| UNPLUGGED.min(duration / 3));
        let middle = match (self.outage(), self.duration) {
            (Some((begin, end)), _) => (begin + end) / 2,
            (None, Some(duration)) => duration / 2,
            (None, None) => UNPLUGGED_AFTER + length / 2,
        };
        let begin = middle.saturating_sub(length / 2);
        (begin, begin + length)
    }
}

/// Runs until `--duration` is over or `stop`, then delivers, compares and cleans up.
///
/// # Errors
/// If something cannot be started, or the agent ends by itself.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let out = std::io::stdout();
    let kind = if out.is_terminal() { Kind::Terminal } else { Kind::Plain };
    let start = async |config: String| agent::start(&config).await;
    let verdict = show(&args, stop, &mut Screen::new(out, kind), start).await?;
    Ok(if verdict.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The demo on `screen`, with an agent that `start` makes of a configuration.
async fn show<W: Write>(
    args: &Args,
    stop: CancellationToken,
    screen: &mut Screen<W>,
    start: impl AsyncFnOnce(String) -> anyhow::Result<Running>,
) -> anyhow::Result<Verdict> {
    let folder = Folder::make()?;
    let cloud_dir = folder.0.join("cloud");
    let receiver = receive::bind((Ipv4Addr::LOCALHOST, 0).into(), &cloud_dir).await?;
    let (cloud_address, outage) = (receiver.local_addr(), receiver.outage());
    let (stop_cloud, mut cloud) = (CancellationToken::new(), JoinSet::new());
    cloud.spawn(receiver.run(stop_cloud.clone()));

    let node = Wired::start(&folder.0, args.seed).context("cannot give the node a port")?;
    let config = config(&folder.0, free_admin(args.listen_admin), node.path(), cloud_address);
    let running = start(config).await.context("cannot start the agent")?;
    let plan = Plan { sensors: args.sensors, rate: args.rate, seed: args.seed };
    let fleet = Fleet::start(plan, running.direct);
    screen.say(&introduction(args, &running, node.path(), cloud_address, &folder.0))?;

    let mut stage = Stage { running, fleet, node, outage, screen, start: Clock::system().monotonic() };
    stage.measure(args, &stop).await?;
    let (sensors, books) = stage.drain().await?;
    stop_cloud.cancel();
    while let Some(ended) = cloud.join_next().await {
        ended.context("the receiver failed")??;
    }
    let received = Received::read(&cloud_dir.join(AGENT)).context("cannot read the receiver's files")?;
    let verdict = verdict::judge(&sensors, &books, &received);
    screen.say(&ending(&verdict, &sensors, &received))?;
    Ok(verdict)
}

/// What takes part while the sensors measure.
struct Stage<'s, W> {
    running: Running,
    fleet: Fleet,
    node: Wired,
    outage: Outage,
    screen: &'s mut Screen<W>,
    start: Instant,
}

impl<W: Write> Stage<'_, W> {
    /// Until the time is over or `stop`; then the cloud and the node are back, whatever was planned.
    async fn measure(&mut self, args: &Args, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let elapsed = self.start.elapsed();
            if args.duration.is_some_and(|duration| elapsed >= duration) {
                break;
            }
            let cut_off = args.outage().is_some_and(|(begin, end)| (begin..end).contains(&elapsed));
            self.set_cloud(if cut_off { Behaviour::Unreachable } else { Behaviour::Normal })?;
            let (begin, end) = args.unplugged();
            self.set_node(if (begin..end).contains(&elapsed) { Plug::Out } else { Plug::In })?;
            self.show(Phase::Measuring).await?;
        }
        self.set_node(Plug::In)?;
        self.set_cloud(Behaviour::Normal)
    }

    /// Stops the sensors and the node, lets the agent deliver what it holds, and stops it. What each sensor did, and the last books.
    async fn drain(mut self) -> anyhow::Result<(Vec<(String, Tally)>, Arc<Books>)> {
        self.show(Phase::Draining).await?;
        let deadline = self.start.elapsed() + DRAIN_DEADLINE;
        let mut settled_since = self.start.elapsed();
        let mut appended = Vec::new();
        let mut sensors = self.fleet.stop().await;
        sensors.push((NODE.to_owned(), self.node.stop().await));
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            let elapsed = self.start.elapsed();
            let books = self.books();
            let now: Vec<Seq> = books.streams.iter().map(|stream| stream.next).collect();
            if now != appended || pending(&books) > 0 {
                settled_since = elapsed;
                appended = now;
            }
            self.show(Phase::Draining).await?;
            if elapsed >= settled_since + SETTLED_AFTER || elapsed >= deadline {
                break;
            }
        }
        self.screen.keep_line()?;
        self.running.stop.await.context("the agent did not stop cleanly")?;
        let books = Arc::clone(&self.running.books.borrow());
        Ok((sensors, books))
    }

    fn set_cloud(&mut self, behaviour: Behaviour) -> anyhow::Result<()> {
        if self.outage.behaviour() == behaviour {
            return Ok(());
        }
        self.outage.set(behaviour);
        self.screen.say(match behaviour {
            Behaviour::Normal => "-- the cloud is back: the agent delivers what it kept",
            Behaviour::Unavailable | Behaviour::Unreachable => {
                "-- the cloud is cut off: the agent goes on acknowledging, and keeps everything"
            }
        })?;
        Ok(())
    }

    fn set_node(&mut self, plug: Plug) -> anyhow::Result<()> {
        if self.node.plug(plug).context("cannot plug in the node")? {
            self.screen.say(match plug {
                Plug::Out => "-- the node is unplugged: it goes on measuring, and keeps everything",
                Plug::In => "-- the node is plugged in again: it delivers what it kept",
            })?;
        }
        Ok(())
    }

    async fn show(&mut self, phase: Phase) -> anyhow::Result<()> {
        anyhow::ensure!(self.running.books.has_changed().is_ok(), "the agent has ended by itself");
        let books = self.books();
        let readings = books.sinks.values().filter_map(|sink| sink.streams.get(&Stream::Readings));
        let next = books.stream(Stream::Readings).next;
        let glance = Glance {
            elapsed: self.start.elapsed(),
            acked: self.fleet.total().acked + self.node.tally().await.acked,
            stored: next.0 - 1,
            delivered: readings.clone().map(|ledger| ledger.delivered).sum(),
            pending: readings.map(|ledger| ledger.pending(next)).sum(),
            windows: books.stream(Stream::Windows).appended(),
            sink: self.running.sink.borrow().state,
            cloud: self.outage.behaviour(),
            serial: self.running.serial.borrow().state,
            phase,
        };
        Ok(self.screen.progress(&glance)?)
    }

    fn books(&self) -> Arc<Books> {
        Arc::clone(&self.running.books.borrow())
    }
}

/// What all sinks still have to get of all streams.
fn pending(books: &Books) -> u64 {
    let of_sink = |sink: &crate::store::ledger::SinkBooks| -> u64 {
        sink.streams.iter().map(|(stream, ledger)| ledger.pending(books.stream(*stream).next)).sum()
    };
    books.sinks.values().map(of_sink).sum()
}

/// The demo agent's configuration: what an operator would write.
fn config(folder: &Path, admin: SocketAddr, port: &Path, cloud: SocketAddr) -> String {
    let port = quoted(&port.to_string_lossy());
    let data_dir = quoted(&folder.join("agent").to_string_lossy());
    let fields: Vec<String> = signals::MEASURED.into_iter().map(quoted).collect();
    let fields = fields.join(", ");
    format!(
        r#"[agent]
id = "{AGENT}"
data_dir = {data_dir}
clock = "trusted"

[admin]
listen = "{admin}"

[sources.direct]
type = "mqtt-listen"
listen = "127.0.0.1:0"
[[sources.direct.subscribe]]
topic = "demo/{{area}}/{{device}}"
time = "/ts"

[sources.{SERIAL}]
type = "serial"
path = {port}
protocol = "bridge"

[windows.ten_seconds]
size = "10s"
lateness = "1s"
idle = "2s"
aggregates = ["count", "mean", "min", "max", "p95"]
fields = [{fields}]

[sinks.cloud]
type = "http"
url = "http://{cloud}/v1/telemetry"
streams = ["alerts", "windows", "readings"]
batch = {{ records = 1000, bytes = "256KiB", wait = "500ms" }}
retry = {{ initial = "250ms", max = "2s" }}
timeout = "5s"
"#
    )
}

/// A basic string of TOML: what JSON writes is one too.
fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    wire::write_text(text, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the page goes: an address that was asked for as it is, the default only if nobody else is there.
fn free_admin(asked: Option<SocketAddr>) -> SocketAddr {
    let is_free = |address: SocketAddr| std::net::TcpListener::bind(address).is_ok();
    match asked {
        Some(address) => address,
        None if is_free(Args::DEFAULT_ADMIN) => Args::DEFAULT_ADMIN,
        None => SocketAddr::new(Args::DEFAULT_ADMIN.ip(), 0),
    }
}

fn introduction(args: &Args, running: &Running, port: &Path, cloud: SocketAddr, folder: &Path) -> String {
    let page = running.admin.map_or_else(|| "nowhere".to_owned(), |address| format!("http://{address}/"));
    let end = args.duration.map_or_else(|| "with Ctrl-C".to_owned(), |after| format!("after {after:?}"));
    format!(
        "Holdfast demo: {} sensors -> MQTT, 1 node -> serial line -> agent -> HTTP -> receiver, all of it here\n\
         \x20 status page  {page}\n\
         \x20 listener     mqtt://{} (publish JSON to demo/AREA/DEVICE with QoS 1, if you like)\n\
         \x20 serial line  {} (a microcontroller's firmware, in this process)\n\
         \x20 receiver     http://{cloud}/\n\
         \x20 files        {} (removed at the end)\n\
         \x20 ends         {end}\n",
        args.sensors,
        running.direct,
        port.display(),
        folder.display(),
    )
}

fn ending(verdict: &Verdict, sensors: &[(String, Tally)], received: &Received) -> String {
    let acked: u64 = sensors.iter().map(|(_, tally)| tally.acked).sum();
    let there: usize = received.messages.values().map(std::collections::HashSet::len).sum();
    let Verdict { table, faults } = verdict;
    if faults.is_empty() {
        return format!(
            "\n{table}\nbooks balanced: {acked} messages acknowledged to the sensors and the node, {there} readings in the receiver's \
             files, each once"
        );
    }
    format!("\n{table}\nthis is off:\n  {}", faults.join("\n  "))
}

/// The demo's folder. Goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let name = format!("holdfast-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make the demo's folder {path:?}"))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot remove the demo's folder");
        }
    }
}

/// A whole number and its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is no duration; write a number and ms, s, m or h, as in \"30s\"");
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(expected()),
    };
    // A year is longer than any demo, and far from where sums of times overflow.
    let most_ms = 365 * 24 * 3_600_000;
    match number.checked_mul(unit_ms) {
        Some(ms @ 1..) if ms <= most_ms => Ok(Duration::from_millis(ms)),
        Some(_) | None => Err(expected()),
    }
}

/// An address that only this machine reaches; "0" is any free port.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = match text.parse::<u16>() {
        Ok(port) => SocketAddr::new(Args::DEFAULT_ADMIN.ip(), port),
        Err(_) => text.parse().map_err(|_| format!("{text:?} is no address; write HOST:PORT, or a port"))?,
    };
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!("{address} is not on the loopback; the demo stays on this machine"))
    }
}
