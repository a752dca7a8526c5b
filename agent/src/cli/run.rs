//! `holdfast run`: the daemon, by hand or under systemd.
//!
//! SIGTERM and SIGINT drain and stop cleanly, a second one ends at once. SIGHUP reads the configuration again: a good one
//! takes force by draining the rooms and starting them anew in the same process, with the same store; a bad one changes
//! nothing and says why.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::logging;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::pipeline::{self, Running};

/// While the store is read after an unclean stop, systemd is asked for this much more each time.
const MORE_START_TIME: Duration = Duration::from_secs(30);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// If it cannot start, or a room ends by itself.
pub(super) async fn run(path: &Path) -> anyhow::Result<ExitCode> {
    let Some(mut config) = load(path) else { return Ok(ExitCode::from(2)) };
    logging::start(&config.log)?;
    let mut signals = Signals::new()?;
    let mut before_reload = None;
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
        tell(&[NotifyState::Ready]);
        match watch(running, &mut signals, path, &config).await? {
            Ended::Stopped => return Ok(ExitCode::SUCCESS),
            Ended::Reloaded(new) => before_reload = Some(std::mem::replace(&mut config, *new)),
        }
    }
}

enum Ended {
    Stopped,
    Reloaded(Box<Config>),
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
    config: &Config,
) -> anyhow::Result<Ended> {
    let mut watchdog = tokio::time::interval(
        sd_notify::watchdog_enabled().map_or(Duration::from_secs(3_600), |period| period / 3),
    );
    loop {
        tokio::select! {
            said = signals.next() => match said {
                Said::Stop => {
                    info!("stopping: storing and sending what is under way");
                    tell(&[NotifyState::Stopping]);
                    stop(running, signals).await?;
                    return Ok(Ended::Stopped);
                }
                Said::Reload => if let Some(new) = reload(path, config) {
                    tell(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]);
                    stop(running, signals).await?;
                    return Ok(Ended::Reloaded(Box::new(new)));
                }
            },
            _ = watchdog.tick() => {
                if crate::status::health::Health::read(running.inputs(), Clock::system().monotonic()).healthy {
                    tell(&[NotifyState::Watchdog]);
                }
            }
            fault = running.failed() => {
                error!(error = %fault, "draining the others and ending; the supervisor is to start the agent again");
                stop(running, signals).await?;
                return Err(fault.into());
            }
        }
    }
}

async fn start(config: Config) -> anyhow::Result<Running> {
    let starting = pipeline::start(config, Clock::system());
    tokio::pin!(starting);
    let mut ticks = tokio::time::interval(MORE_START_TIME / 3);
    loop {
        tokio::select! {
            running = &mut starting => return running.context("cannot start"),
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
        () = signals.stop() => {
            warn!("second signal: ending at once; what was not acknowledged will be sent again");
            std::process::exit(1);
        }
    }
}

/// The new configuration, if it is a good one and says anything new.
fn reload(path: &Path, before: &Config) -> Option<Config> {
    let new = match config::load(path) {
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
