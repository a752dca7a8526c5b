//! The command line: arguments, exit codes; one file per command.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed at run time, 2 bad usage or configuration.

pub mod check;
pub mod dead_letters;
pub mod demo;
mod logging;
mod out;
pub mod passwd;
pub mod receive;
mod run;
pub mod serial;
pub mod status;
mod status_line;
mod store;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use self::out::Out;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::{LogFormat, LogSettings};

/// Threads that run tasks. The work is small; on a gateway with four cores two are left to others.
const WORKERS: usize = 2;
/// Work on other threads may take so long to end once everything else has.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Edge telemetry agent: nothing acknowledged is lost, nothing is stored twice, and the books balance.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    ///
    /// SIGTERM and SIGINT drain and stop cleanly, a second one ends at once. SIGHUP reads the configuration again.
    Run(ConfigFile),
    /// Check the configuration and say what it means
    Check(ConfigFile),
    Demo(demo::Args),
    Receive(receive::Args),
    /// Show what the running agent says of itself
    Status {
        #[command(flatten)]
        args: status::StatusArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    #[command(subcommand)]
    Serial(serial::Command),
    /// Look at the store while no agent uses it: verify it, write its records out, make the file smaller
    #[command(subcommand)]
    Store(store::Command),
    /// What was refused for good and is kept for people
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Add or change a user of a listener
    ///
    /// The password is read from standard input.
    Passwd {
        /// The users file of the listener
        file: PathBuf,
        /// The user's name
        #[arg(value_parser = passwd::user_name)]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum DeadLetters {
    /// List them, oldest first
    List {
        #[command(flatten)]
        args: dead_letters::ListArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Show one: what is known of it on stderr, its bytes on stdout
    Show {
        #[command(flatten)]
        args: dead_letters::ShowArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Decode or send them anew, under new numbers
    ///
    /// Payloads are decoded with the configuration as it is now; records go to the sinks that lack them. What cannot be replayed
    /// stays. Without ids: all, and what stays is no failure.
    Replay {
        #[command(flatten)]
        args: dead_letters::ReplayArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Remove them for good
    Purge {
        #[command(flatten)]
        args: dead_letters::PurgeArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// Which configuration.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/holdfast/holdfast.toml")]
    config: PathBuf,
}

/// All commands with their options, as manual pages and completions are made of.
#[must_use]
pub fn description() -> clap::Command {
    Arguments::command()
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    // clap answers bad usage with 2, and help with 0.
    let arguments = Arguments::parse();
    match answer(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            let text = chain(error.as_ref());
            // Nobody to tell if stderr is closed.
            drop(writeln!(std::io::stderr(), "holdfast: {text}"));
            ExitCode::from(1)
        }
    }
}

fn answer(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(file) => check::run(&file.config, &mut Out::new()).map(ExitCode::from),
        Command::Passwd { file, name } => passwd::run(&file, &name).map(|()| ExitCode::SUCCESS),
        Command::Run(file) => {
            let runtime = runtime()?;
            let ended = runtime.block_on(run::run(&file.config));
            // Work that hangs on a disk must not hold up the end.
            runtime.shutdown_timeout(LAST_WORK);
            ended
        }
        Command::Demo(args) => runtime()?.block_on(async {
            // Quiet, so that the progress stays readable; who wants more says so.
            let filter = std::env::var("HOLDFAST_LOG").unwrap_or_else(|_| "error".to_owned());
            logging::start(&LogSettings { filter, format: LogFormat::Text })?;
            demo::run(args, on_signal()?).await
        }),
        Command::Receive(args) => runtime()?.block_on(async {
            logging::start(&LogSettings::default())?;
            receive::run(args, on_signal()?).await
        }),
        Command::Status { args, config } => {
            let Some(config) = run::load(&config.config) else { return Ok(ExitCode::from(2)) };
            let mut out = Out::new();
            runtime()?.block_on(status::run(&args, &config.admin, &mut out)).map(|()| ExitCode::SUCCESS)
        }
        Command::Serial(command) => {
            let mut out = std::io::stdout();
            runtime()?
                .block_on(async { serial::run(&command, Clock::system(), &on_signal()?, &mut out).await })
        }
        Command::Store(command) => store::run(&command),
        Command::DeadLetters(command) => dead_letters(&command),
    }
}

fn dead_letters(command: &DeadLetters) -> anyhow::Result<ExitCode> {
    let (DeadLetters::List { config, .. }
    | DeadLetters::Show { config, .. }
    | DeadLetters::Replay { config, .. }
    | DeadLetters::Purge { config, .. }) = command;
    let Some(config) = run::load(&config.config) else { return Ok(ExitCode::from(2)) };
    store::quiet_redb();
    let mut out = Out::new();
    runtime()?.block_on(async {
        match command {
            DeadLetters::List { args, .. } => {
                dead_letters::list(args, &config, &mut out).await.map(|()| ExitCode::SUCCESS)
            }
            DeadLetters::Show { args, .. } => {
                let form = dead_letters::Form::of(args, &std::io::stdout());
                dead_letters::show(args, form, &config, &mut out).await.map(|()| ExitCode::SUCCESS)
            }
            DeadLetters::Replay { args, .. } => dead_letters::replay(args, &config, &mut out).await,
            DeadLetters::Purge { args, .. } => dead_letters::purge(args, &config, &mut out).await,
        }
    })
}

/// tokio panics if the system refuses it a thread, and then waits for ever for those that it got. So the program ends before that; what
/// comes of a panic later is the rooms' affair.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {
        let advice = "raise TasksMax= of the service, or `ulimit -u`";
        drop(writeln!(std::io::stderr(), "holdfast: the system refuses it a thread; {advice}"));
        std::process::exit(1);
    }));
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    std::panic::set_hook(before);
    Ok(built?)
}

/// A token that the first SIGTERM or SIGINT cancels; a second one ends the program at once.
fn on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut signals = run::Signals::new()?;
    let cancelled = stop.clone();
    tokio::spawn(async move {
        signals.stop().await;
        cancelled.cancel();
        signals.stop().await;
        std::process::exit(1);
    });
    Ok(stop)
}
