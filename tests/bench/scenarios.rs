//! What is measured. Each scenario has a fresh store, a fresh cloud and a fresh agent.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::agent::{Agent, Setup, Source, free_port};
use crate::broker::Broker;
use crate::clock::{now, pause, wait};
use crate::cloud::Cloud;
use crate::emulated;
use crate::line::{Line, Speech};
use crate::load::{Load, Sent};
use crate::payload::Payload;
use crate::process::{Usage, as_f64, device_written_bytes, load_average};
use crate::table::{Table, Target};

const MB: f64 = 1e6;
/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(900);
/// Of redb's writes only that of the file's header, one for each commit, is no whole page: 320 bytes.
const HEADER_ROUNDING_BYTES: u64 = 4_096 - 320;
/// Messages that a publisher keeps unacknowledged.
pub(crate) const IN_FLIGHT: u64 = 100;
/// Readings of the backlog: a minute's outage at 3 000 a second.
const BACKLOG: u64 = 180_000;

/// What the command line says.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) agent: PathBuf,
    pub(crate) readings: u64,
    pub(crate) backlog_mib: u64,
    /// Where stores lie: a real disk, or the figures of the disk mean nothing.
    pub(crate) dir: PathBuf,
    /// Profiles the saturated runs into this folder.
    pub(crate) perf: Option<PathBuf>,
    /// Where `scripts/dist` builds, a folder for each target.
    pub(crate) built: PathBuf,
    /// Where it leaves packages.
    pub(crate) packages: PathBuf,
}

/// One scenario.
pub(crate) struct Scenario {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    run: fn(&Options, &mut Table, &'static str) -> anyhow::Result<()>,
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    Scenario { key: "a", name: "saturated through mosquitto", run: through_mosquitto },
    Scenario { key: "b", name: "saturated, own listener", run: own_listener },
    Scenario { key: "c", name: "3 000/s through mosquitto", run: paced },
    Scenario { key: "d", name: "50/s for a minute", run: trickle },
    Scenario { key: "e", name: "backlog of 180 000", run: backlog },
    Scenario { key: "f", name: "idle", run: idle },
    Scenario { key: "g", name: "start", run: start },
    Scenario { key: "h", name: "binary", run: binary },
    Scenario { key: "i", name: "1 000/s, own listener", run: steady },
    Scenario { key: "serial", name: "serial line, 921 600 baud", run: serial },
];

/// What `scripts/dist` has built; not measured unless it is asked for.
pub(crate) const OF_DIST: &[Scenario] = &[
    Scenario { key: "packages", name: "packages", run: packages },
    Scenario {
        key: "amd64",
        name: "amd64 in QEMU",
        run: |o, t, n| emulated::measure(&emulated::AMD64, o, t, n),
    },
    Scenario {
        key: "arm64",
        name: "arm64 in QEMU",
        run: |o, t, n| emulated::measure(&emulated::ARM64, o, t, n),
    },
    Scenario {
        key: "armhf",
        name: "armhf in QEMU",
        run: |o, t, n| emulated::measure(&emulated::ARMHF, o, t, n),
    },
];

impl Scenario {
    pub(crate) fn run(&self, options: &Options, table: &mut Table) -> anyhow::Result<()> {
        // Nobody to tell if stderr is closed.
        drop(writeln!(std::io::stderr(), "({}) {} [load average {}]", self.key, self.name, load_average()));
        (self.run)(options, table, self.name).with_context(|| format!("({}) {}", self.key, self.name))
    }
}

/// An agent with all that is around it. Fields are dropped in this order.
pub(crate) struct Stage {
    agent: Agent,
    cloud: Cloud,
    broker: Option<Broker>,
    port: u16,
    before: Usage,
    device_before: u64,
    commits_before: u64,
    profiler: Option<Child>,
    dir: TempDir,
}

impl Stage {
    fn with_broker(options: &Options, window: &'static str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(&options.dir)?;
        let broker = Broker::start(dir.path())?;
        let port = broker.port;
        Self::new(options, dir, Source::Broker(port), Some(broker), window)
    }

    pub(crate) fn with_listener(options: &Options, window: &'static str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(&options.dir)?;
        let port = free_port()?;
        Self::new(options, dir, Source::Listener(port), None, window)
    }

    fn new(
        options: &Options,
        dir: TempDir,
        source: Source,
        broker: Option<Broker>,
        window: &'static str,
    ) -> anyhow::Result<Self> {
        let cloud = Cloud::start(0)?;
        let setup = setup(options, &dir, source, cloud.port, window);
        let agent = setup.start(Duration::from_secs(30))?;
        let port = match setup.source {
            Source::Broker(port) | Source::Listener(port) => port,
            Source::Line(..) => 0,
        };
        let before = agent.usage()?;
        let commits_before = agent.number("/store/commits")?;
        let device_before = device_written_bytes(dir.path())?;
        Ok(Self { agent, cloud, broker, port, before, device_before, commits_before, profiler: None, dir })
    }

    pub(crate) fn load(&self, messages: u64) -> Load {
        Load { port: self.port, messages, payload: Payload::Usual }
    }

    /// Records where the agent spends its time, until it ends.
    fn profile(&mut self, options: &Options, name: &str) -> anyhow::Result<()> {
        let Some(dir) = &options.perf else { return Ok(()) };
        std::fs::create_dir_all(dir)?;
        let child = Command::new("perf")
            .args(["record", "-q", "-e", "cpu-clock", "-F", "999", "-o"])
            .arg(dir.join(format!("{name}.data")))
            .args(["-p", &self.agent.pid().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start perf")?;
        self.profiler = Some(child);
        pause(Duration::from_millis(500));
        Ok(())
    }

    fn stop_profiler(&mut self) -> anyhow::Result<()> {
        if let Some(mut profiler) = self.profiler.take() {
            let pid = rustix::process::Pid::from_child(&profiler);
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
            profiler.wait()?;
        }
        Ok(())
    }

    /// Waits until the cloud has everything; how long that took since the load began.
    pub(crate) fn delivered(&self, sent: &Sent) -> anyhow::Result<Duration> {
        wait("delivery", Duration::from_millis(5), LIMIT, || {
            let is_wrong = self.cloud.received().fault.is_some();
            (is_wrong || self.cloud.readings() >= sent.messages).then(|| sent.started.elapsed())
        })
        .and_then(|took| {
            let received = self.cloud.received();
            ensure!(received.fault.is_none(), "the cloud: {}", received.fault.unwrap_or_default());
            Ok(took)
        })
    }

    fn used(&self) -> anyhow::Result<Usage> {
        let now = self.agent.usage()?;
        Ok(Usage {
            cpu_s: now.cpu_s - self.before.cpu_s,
            dirtied_bytes: now.dirtied_bytes - self.before.dirtied_bytes,
            passed_bytes: now.passed_bytes - self.before.passed_bytes,
            ..now
        })
    }

    /// What the agent and the disk have done since the start.
    fn written(&self) -> anyhow::Result<Written> {
        let commits = self.agent.number("/store/commits")? - self.commits_before;
        let device_bytes = device_written_bytes(self.dir.path())? - self.device_before;
        let passed_bytes = self.used()?.passed_bytes;
        let wire_bytes = self.cloud.received().wire_bytes;
        Ok(Written {
            commits,
            file_bytes: passed_bytes.saturating_sub(wire_bytes) + commits * HEADER_ROUNDING_BYTES,
            device_bytes,
        })
    }

    /// Nothing was left out, and the agent thinks so, too.
    pub(crate) fn check_books(&self, messages: u64) -> anyhow::Result<()> {
        let stored = self.agent.number("/sources/plant/stored")?;
        ensure!(stored == messages, "{messages} messages sent, {stored} stored");
        let received = self.cloud.received().readings;
        ensure!(received == messages, "{messages} messages sent, {received} delivered");
        Ok(())
    }
}

/// What was written since the start.
struct Written {
    commits: u64,
    /// Into the store's file, by whole pages: what the agent passed to write calls less what went to the cloud.
    file_bytes: u64,
    /// To the device, by everybody on the machine, the file system's journal included.
    device_bytes: u64,
}

fn setup(options: &Options, dir: &TempDir, source: Source, cloud_port: u16, window: &'static str) -> Setup {
    Setup {
        binary: options.agent.clone(),
        dir: dir.path().to_owned(),
        source,
        cloud_port,
        window,
        max_size: "2GiB",
    }
}

fn through_mosquitto(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let mut stage = Stage::with_broker(options, "10s")?;
    stage.profile(options, "mosquitto")?;
    saturate(&mut stage, options.readings, table, name, Target::None)
}

fn own_listener(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let mut stage = Stage::with_listener(options, "10s")?;
    stage.profile(options, "listener")?;
    saturate(&mut stage, options.readings, table, name, Target::AtLeast(50_000.0))
}

fn saturate(
    stage: &mut Stage,
    readings: u64,
    table: &mut Table,
    name: &'static str,
    rate: Target,
) -> anyhow::Result<()> {
    let sent = stage.load(readings).saturate(IN_FLIGHT)?;
    let delivered = stage.delivered(&sent)?;
    stage.stop_profiler()?;
    let used = stage.used()?;
    stage.check_books(readings)?;
    let received = stage.cloud.received();
    let written = stage.written()?;
    let count = as_f64(readings);

    if stage.broker.is_none() {
        table.add(name, "acknowledged", count / sent.took.as_secs_f64(), "/s", rate);
    }
    table.add(name, "delivered", count / delivered.as_secs_f64(), "/s", rate);
    table.add(name, "CPU per million readings", used.cpu_s / count * 1e6, "s", Target::AtMost(7.0));
    table.add(name, "peak RSS", as_f64(used.peak_rss_bytes) / MB, "MB", Target::AtMost(40.0));
    table.add(name, "RSS afterwards", as_f64(used.rss_bytes) / MB, "MB", Target::None);
    let payload = as_f64(sent.payload_bytes);
    let (file, device) = (as_f64(written.file_bytes), as_f64(written.device_bytes));
    table.add(name, "disk bytes per payload byte", file / payload, "", Target::AtMost(2.0));
    table.add(name, "the same, whole device and everybody on it", device / payload, "", Target::None);
    table.add(
        name,
        "written per commit",
        file / 1_024.0 / as_f64(written.commits.max(1)),
        "KiB",
        Target::None,
    );
    table.add(name, "payload bytes per reading", payload / count, "B", Target::None);
    let bodies = as_f64(received.readings_bytes);
    table.add(name, "wire bytes per reading, bodies", bodies / count, "B", Target::AtMost(12.0));
    let wire = as_f64(received.wire_bytes);
    table.add(name, "wire bytes per reading, all streams and heads", wire / count, "B", Target::None);
    table.add(name, "requests", as_f64(received.requests), "", Target::None);
    table.add(name, "window results delivered", as_f64(received.windows), "", Target::None);
    table.add(name, "readings per commit", count / as_f64(written.commits.max(1)), "", Target::None);
    Ok(())
}

fn paced(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let stage = Stage::with_broker(options, "10s")?;
    let readings = (options.readings / 5).min(90_000);
    let sent = stage.load(readings).pace(3_000)?;
    stage.delivered(&sent)?;
    let used = stage.used()?;
    stage.check_books(readings)?;
    let written = stage.written()?;
    let count = as_f64(readings);
    let seconds = sent.took.as_secs_f64();
    table.add(name, "rate", count / seconds, "/s", Target::None);
    table.add(name, "CPU per million readings", used.cpu_s / count * 1e6, "s", Target::None);
    table.add(name, "peak RSS", as_f64(used.peak_rss_bytes) / MB, "MB", Target::None);
    let per_payload = as_f64(written.file_bytes) / as_f64(sent.payload_bytes);
    table.add(name, "disk bytes per payload byte", per_payload, "", Target::None);
    table.add(name, "commits", as_f64(written.commits) / seconds, "/s", Target::None);
    let bodies = as_f64(stage.cloud.received().readings_bytes);
    table.add(name, "wire bytes per reading, bodies", bodies / count, "B", Target::AtMost(12.0));
    Ok(())
}

fn trickle(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let stage = Stage::with_broker(options, "1m")?;
    let readings = 50 * 60;
    let sent = stage.load(readings).pace(50)?;
    let (used, written) = (stage.used()?, stage.written()?);
    let seconds = sent.started.elapsed().as_secs_f64();
    stage.delivered(&sent)?;
    stage.check_books(readings)?;
    let commits = as_f64(written.commits);
    table.add(name, "commits", commits / seconds, "/s", Target::AtMost(1.5));
    let kib = as_f64(written.file_bytes) / 1_024.0;
    table.add(name, "written", kib / seconds, "KiB/s", Target::AtMost(70.0));
    table.add(name, "written per commit", kib / commits.max(1.0), "KiB", Target::None);
    let device = as_f64(written.device_bytes) / 1_024.0 / seconds;
    table.add(name, "written to the device by everybody", device, "KiB/s", Target::None);
    table.add(name, "CPU", used.cpu_s / seconds * 100.0, "% of a core", Target::None);
    Ok(())
}

fn backlog(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let (port, cloud_port) = (free_port()?, free_port()?);
    let setup = setup(options, &dir, Source::Listener(port), cloud_port, "10s");
    let agent = setup.start(Duration::from_secs(30))?;
    let load = Load { port, messages: BACKLOG, payload: Payload::Usual };
    let sent = load.saturate(IN_FLIGHT)?;
    // The pauses between attempts have grown to their longest.
    pause(Duration::from_secs(3));
    let before = agent.usage()?;
    let back = now();
    let cloud = Cloud::start(cloud_port)?;
    let first = wait("the first batch", Duration::from_millis(1), LIMIT, || {
        (cloud.readings() > 0).then(|| back.elapsed())
    })?;
    let all = wait("the drain", Duration::from_millis(1), LIMIT, || {
        (cloud.received().fault.is_some() || cloud.readings() >= sent.messages).then(|| back.elapsed())
    })?;
    let received = cloud.received();
    ensure!(received.fault.is_none(), "the cloud: {}", received.fault.unwrap_or_default());
    let after = agent.usage()?;
    table.add(name, "drained after the cloud is back", all.as_secs_f64(), "s", Target::AtMost(8.0));
    table.add(name, "of this, until the first batch", first.as_secs_f64(), "s", Target::None);
    let rate = as_f64(BACKLOG) / (all - first).as_secs_f64();
    table.add(name, "rate of the drain", rate, "/s", Target::None);
    let cpu = (after.cpu_s - before.cpu_s) / as_f64(BACKLOG) * 1e6;
    table.add(name, "CPU of the drain per million", cpu, "s", Target::None);
    table.add(name, "peak RSS", as_f64(after.peak_rss_bytes) / MB, "MB", Target::None);
    Ok(())
}

fn idle(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let stage = Stage::with_listener(options, "10s")?;
    pause(Duration::from_secs(5));
    let usage = stage.agent.usage()?;
    table.add(name, "RSS", as_f64(usage.rss_bytes) / MB, "MB", Target::AtMost(12.0));
    table.add(name, "CPU", (usage.cpu_s - stage.before.cpu_s) / 5.0 * 100.0, "% of a core", Target::None);
    Ok(())
}

fn start(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push(Stage::with_listener(options, "10s")?.agent.ready_after);
    }
    times.sort();
    table.add(name, "empty store, until ready (median of 5)", millis(times[2]), "ms", Target::AtMost(100.0));

    let dir = tempfile::tempdir_in(&options.dir)?;
    let (port, cloud_port) = (free_port()?, free_port()?);
    let setup = setup(options, &dir, Source::Listener(port), cloud_port, "10s");
    let agent = setup.start(Duration::from_secs(30))?;
    loop {
        let held = agent.number("/store/bytes")? >> 20;
        if held >= options.backlog_mib {
            break;
        }
        let missing = ((options.backlog_mib - held) * 220).clamp(500, 20_000);
        Load { port, messages: missing, payload: Payload::Bulky }.saturate(IN_FLIGHT)?;
    }
    let held = as_f64(agent.number("/store/bytes")?) / as_f64(1 << 20);
    agent.kill()?;
    let path = dir.path().join("data/store.redb");
    let file = std::fs::metadata(&path)?.len();
    forget_cached(&path)?;
    let agent = setup.start(Duration::from_secs(120))?;
    table.add(name, "backlog", held, "MiB", Target::None);
    table.add(name, "its file", as_f64(file) / as_f64(1 << 20), "MiB", Target::None);
    let ready = agent.ready_after.as_secs_f64();
    table.add(name, "with the backlog, cold, after kill -9", ready, "s", Target::AtMost(5.0));
    let usage = agent.usage()?;
    table.add(
        name,
        "with the backlog, peak RSS until ready",
        as_f64(usage.peak_rss_bytes) / MB,
        "MB",
        Target::None,
    );
    Ok(())
}

/// Drops the file from the page cache, as a reboot does.
fn forget_cached(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::open(path)?;
    file.sync_all()?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Full speed for so long.
const SPEECH: Duration = Duration::from_secs(20);

fn serial(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let spoken = [
        (Speech::Bridge, ["samples of a node", "CPU, a node", "commits, a node"]),
        (Speech::Csv, ["lines of CSV", "CPU, CSV", "commits, CSV"]),
        (Speech::Json, ["lines of JSON", "CPU, JSON", "commits, JSON"]),
    ];
    for (speech, [rate, cpu, commits]) in spoken {
        let dir = tempfile::tempdir_in(&options.dir)?;
        let mut line = Line::new()?;
        let source = Source::Line(line.path().to_owned(), speech);
        let mut stage = Stage::new(options, dir, source, None, "10s")?;
        stage.before = stage.agent.usage()?;
        let sent = line.speak(speech, SPEECH)?;
        let used = stage.used()?;
        stage.delivered(&sent)?;
        stage.check_books(sent.messages)?;
        let seconds = SPEECH.as_secs_f64();
        table.add(name, rate, as_f64(sent.messages) / seconds, "/s", Target::None);
        table.add(name, cpu, used.cpu_s / seconds * 100.0, "% of a core", Target::AtMost(5.0));
        let count = as_f64(stage.agent.number("/store/commits")? - stage.commits_before);
        table.add(name, commits, count / seconds, "/s", Target::None);
    }
    Ok(())
}

fn binary(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let bytes = std::fs::metadata(&options.agent)?.len();
    table.add(name, "size, stripped", as_f64(bytes) / MB, "MB", Target::AtMost(9.0));
    Ok(())
}

/// For so long; windows of ten seconds come and go, and with them what they take of the memory.
const STEADY_S: u32 = 60;

fn steady(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    const RATE: u32 = 1_000;
    let stage = Stage::with_listener(options, "10s")?;
    let readings = u64::from(RATE * STEADY_S);
    let sent = stage.load(readings).pace(RATE)?;
    let (used, written) = (stage.used()?, stage.written()?);
    let seconds = sent.started.elapsed().as_secs_f64();
    stage.delivered(&sent)?;
    stage.check_books(readings)?;
    table.add(name, "rate", as_f64(readings) / sent.took.as_secs_f64(), "/s", Target::None);
    table.add(name, "CPU", used.cpu_s / seconds * 100.0, "% of a core", Target::None);
    table.add(name, "RSS", as_f64(used.rss_bytes) / MB, "MB", Target::None);
    table.add(name, "peak RSS", as_f64(used.peak_rss_bytes) / MB, "MB", Target::None);
    table.add(name, "commits", as_f64(written.commits) / seconds, "/s", Target::None);
    table.add(name, "written", as_f64(written.file_bytes) / 1_024.0 / seconds, "KiB/s", Target::None);
    Ok(())
}

fn packages(options: &Options, table: &mut Table, name: &'static str) -> anyhow::Result<()> {
    let mut found = 0;
    for (arch, ending) in [("amd64", "_amd64.deb"), ("arm64", "_arm64.deb"), ("armhf", "_armhf.deb")] {
        let folder = std::fs::read_dir(&options.packages)
            .with_context(|| format!("cannot read {}", options.packages.display()))?;
        for file in folder {
            let file = file?;
            if file.file_name().to_string_lossy().ends_with(ending) {
                table.add(name, arch, as_f64(file.metadata()?.len()) / MB, "MB", Target::None);
                found += 1;
            }
        }
    }
    ensure!(found > 0, "no packages in {}; scripts/dist makes them", options.packages.display());
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
