//! `holdfast run`: the daemon, by hand or under systemd.
//!
//! SIGTERM and SIGINT drain and stop cleanly, a second one ends at once. SIGHUP reads the configuration again: a good one
//! takes force by draining the rooms and starting them anew in the same process, with the same store; a bad one changes
//! nothing and says why. While the store cannot write, a reload waits until it can.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, Interval};
use tracing::{error, info, warn};

use super::logging::{self, Logging};
use super::status_line::StatusLine;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::pipeline::{self, Running};
use crate::status::Inputs;
use crate::status::health::Health;
use crate::store;
use crate::store::report::State as StoreState;

/// While the store is read after an unclean stop, systemd is asked for this much more each time.
const MORE_START_TIME: Duration = Duration::from_secs(30);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// If it cannot start, or a room ends by itself.
pub(super) async fn run(path: &Path) -> anyhow::Result<ExitCode> {
    // First of all: SIGHUP would end us, and it may come while the store is being opened.
    let mut signals = Signals::new()?;
    let Some(mut config) = load(path) else { return Ok(ExitCode::from(2)) };
    let logging = logging::start(&config.log)?;
    let (mut before_reload, mut away_since) = (None, None);
    loop {
        let started = tokio::select! {
            started = start(config.clone()) => started,
            // What was opened is closed as it would be after a crash, which loses nothing.
            () = signals.stop() => return Ok(ExitCode::SUCCESS),
        };
        let running = match (started, before_reload.take()) {
            (Ok(running), _) => running,
            (Err(error), Some(before)) => {
                error!(error = %chain(error.as_ref()), "the new configuration cannot take force; going on with the one before");
                config = before;
                continue;
            }
            (Err(error), None) => return Err(error),
        };
        if let Some(since) = away_since.take() {
            info!(away = ?Clock::system().monotonic() - since, "configuration in force");
        }
        tell(&[NotifyState::Ready]);
        match watch(running, &mut signals, path, &mut config, &logging).await? {
            Ended::Stopped => return Ok(ExitCode::SUCCESS),
            Ended::Reloaded { new, since } => {
                before_reload = Some(std::mem::replace(&mut config, *new));
                away_since = Some(since);
            }
        }
    }
}

enum Ended {
    Stopped,
    Reloaded {
        new: Box<Config>,
        /// When the rooms began to end.
        since: Instant,
    },
}

/// What a signal means.
enum Said {
    Stop,
    Reload,
}

/// Watches over the rooms until a signal or a fault.
async fn watch(
    mut running: Running,
    signals: &mut Signals,
    path: &Path,
    config: &mut Config,
    logging: &Logging,
) -> anyhow::Result<Ended> {
    let (mut watchdog, mut status_line) = (watchdog(), StatusLine::new());
    let inputs = running.inputs().clone();
    let mut is_deferred = false;
    loop {
        let said = tokio::select! {
            said = signals.next() => said,
            () = writes_again(inputs.store.clone()), if is_deferred => Said::Reload,
            _ = watchdog.tick() => {
                feed(&inputs);
                continue;
            }
            () = status_line.due() => {
                tell(status_line.news(&inputs).as_slice());
                continue;
            }
            fault = running.failed() => {
                error!(error = %fault, "draining the others and ending; the supervisor is to start the agent again");
                stop(running, signals).await?;
                return Err(fault.into());
            }
        };
        match said {
            Said::Stop => {
                info!("stopping: storing and sending what is under way");
                tell(&[
                    NotifyState::Stopping,
                    NotifyState::Status("stopping: storing and sending what is under way"),
                ]);
                stop(running, signals).await?;
                return Ok(Ended::Stopped);
            }
            Said::Reload if inputs.store.borrow().state == StoreState::Failing => {
                // Draining would end without what is under way, and the new rooms could not begin.
                warn!("configuration not reloaded yet: the store cannot write; it will be as soon as it can");
                is_deferred = true;
            }
            Said::Reload => {
                is_deferred = false;
                // systemd waits for both words, also if nothing comes of it.
                tell(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]);
                if let Some(new) = reload(path, config, logging) {
                    let since = Clock::system().monotonic();
                    return match drain(running, signals, &inputs).await? {
                        Said::Stop => Ok(Ended::Stopped),
                        Said::Reload => Ok(Ended::Reloaded { new: Box::new(new), since }),
                    };
                }
                tell(&[NotifyState::Ready]);
            }
        }
    }
}

/// Drains for a reload, and returns what is to be done then. The watchdog is fed meanwhile.
async fn drain(running: Running, signals: &mut Signals, inputs: &Inputs) -> anyhow::Result<Said> {
    let mut watchdog = watchdog();
    let mut then = Said::Reload;
    let stopping = running.stop_to_restart();
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            stopped = &mut stopping => return match (stopped, then) {
                (Ok(()), then) => Ok(then),
                (Err(error), Said::Stop) => Err(error.into()),
                // What could not be stored was not acknowledged either.
                (Err(error), Said::Reload) => {
                    error!(error = %chain(&error), "the rooms did not end in order; starting them anew all the same");
                    Ok(Said::Reload)
                }
            },
            () = signals.stop() => match then {
                Said::Stop => end_at_once(),
                Said::Reload => {
                    info!("stopping instead of taking the new configuration");
                    tell(&[NotifyState::Stopping]);
                    then = Said::Stop;
                }
            },
            _ = watchdog.tick() => feed(inputs),
        }
    }
}

/// Waits until the store can write.
async fn writes_again(mut report: watch::Receiver<store::Report>) {
    if report.wait_for(|report| report.state != StoreState::Failing).await.is_err() {
        std::future::pending().await
    }
}

/// When the watchdog is to be fed, if systemd keeps one.
fn watchdog() -> Interval {
    tokio::time::interval(
        sd_notify::watchdog_enabled().map_or(Duration::from_secs(3_600), |period| period / 3),
    )
}

/// Feeds the watchdog, unless a room hangs.
fn feed(inputs: &Inputs) {
    if Health::read(inputs, Clock::system().monotonic()).healthy {
        tell(&[NotifyState::Watchdog]);
    }
}

async fn start(config: Config) -> anyhow::Result<Running> {
    let starting = pipeline::start(config, Clock::system());
    tokio::pin!(starting);
    tell(&[NotifyState::Status("starting: opening the store")]);
    let (mut ticks, mut watchdog) = (tokio::time::interval(MORE_START_TIME / 3), watchdog());
    loop {
        tokio::select! {
            running = &mut starting => return running.context("cannot start"),
            // After a reload systemd keeps watching.
            _ = watchdog.tick() => tell(&[NotifyState::Watchdog]),
            _ = ticks.tick() => {
                let micros = u32::try_from(MORE_START_TIME.as_micros()).unwrap_or(u32::MAX);
                tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
            }
        }
    }
}

/// Drains under the pipeline's deadline; a second signal ends at once.
async fn stop(running: Running, signals: &mut Signals) -> anyhow::Result<()> {
    tokio::select! {
        stopped = running.stop() => Ok(stopped?),
        () = signals.stop() => end_at_once(),
    }
}

fn end_at_once() -> ! {
    warn!("second signal: ending at once; what was not acknowledged will be sent again");
    std::process::exit(1)
}

/// The new configuration, if it is a good one and the rooms have to begin anew for it.
fn reload(path: &Path, before: &mut Config, logging: &Logging) -> Option<Config> {
    let mut new = match config::load(path) {
        Ok(loaded) => loaded.config,
        Err(faults) => {
            error!(file = %path.display(), "configuration not reloaded, everything goes on as before:\n{faults}");
            return None;
        }
    };
    if new == *before {
        info!("configuration read again: nothing has changed");
        return None;
    }
    if new.store.data_dir != before.store.data_dir {
        error!(
            data_dir = %before.store.data_dir.display(), wanted = %new.store.data_dir.display(),
            "configuration not reloaded, everything goes on as before: agent.data_dir needs a restart, because what is \
             held in the store would stay behind"
        );
        return None;
    }
    logging.change(&mut new.log, &before.log);
    before.log.clone_from(&new.log);
    if new == *before {
        info!("configuration read again: only what is logged has changed");
        return None;
    }
    if new.agent_id != before.agent_id {
        warn!(before = %before.agent_id, now = %new.agent_id, "the agent has a new id, and with it a new epoch begins");
    }
    info!("configuration read again: restarting the rooms with it");
    Some(new)
}

/// The checked configuration; its faults go to stderr, its notes to the log.
pub(super) fn load(path: &Path) -> Option<Config> {
    use std::io::Write;
    match config::load(path) {
        Ok(loaded) => {
            let mut err = std::io::stderr().lock();
            for note in &loaded.notes {
                // Nobody to tell if stderr is closed.
                drop(writeln!(err, "{note}"));
            }
            Some(loaded.config)
        }
        Err(faults) => {
            drop(writeln!(std::io::stderr(), "{faults}"));
            None
        }
    }
}

/// Tells systemd, if it asked to be told.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify systemd");
    }
}

/// The signals that a daemon answers.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal, whichever.
    async fn next(&mut self) -> Said {
        tokio::select! {
            _ = self.terminate.recv() => Said::Stop,
            _ = self.interrupt.recv() => Said::Stop,
            _ = self.hangup.recv() => Said::Reload,
        }
    }

    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
