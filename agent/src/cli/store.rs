//! `holdfast store`: work on a store that no agent has open.

mod progress;
mod text;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use self::progress::{Bar, Shown};
use super::{ConfigFile, run as agent};
use crate::causes::chain;
use crate::config::Config;
use crate::reading::Timestamp;
use crate::status::text::{bytes, grouped};
use crate::store::offline::{self, Edge, ExportError, Exported, Selection};
use crate::stream::Stream;

/// What to do with the store. It must not be in use: stop the agent first.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check structure, checksums and numbers, and recount the books from the data
    ///
    /// Changes nothing. Exits with 1 and says what is off, where, and what to do, if anything is.
    Verify {
        #[command(flatten)]
        args: VerifyArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Write records as NDJSON, one a line, as sinks get them
    ///
    /// Changes nothing in the store. Numbers are those of the current epoch; records of earlier epochs, which every sink has, are left
    /// out. A chunk that cannot be read is named on stderr and passed over; the exit code is 1 then.
    Export {
        #[command(flatten)]
        args: ExportArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Make the file smaller by what was freed in it
    ///
    /// The agent uses freed space again by itself, so this is needed only to give it back to the disk. A crash in the middle
    /// harms nothing. A damaged store is left as it is.
    Compact(ConfigFile),
    /// Begin a new epoch at the next start: do this when you have put back a backup
    ///
    /// Otherwise numbers that were given after the backup are given once more, to other records, and a receiver may take those for
    /// repeats. Nothing that is stored is lost or changed by it, and doing it without need does no harm.
    NewEpoch(ConfigFile),
}

/// How `holdfast store verify` answers.
#[derive(Args, Clone, Debug)]
pub(super) struct VerifyArgs {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What to export, and where to.
#[derive(Args, Clone, Debug)]
pub(super) struct ExportArgs {
    /// Which stream: readings, windows or alerts
    #[arg(long, value_name = "STREAM", default_value = "readings", value_parser = stream)]
    stream: Stream,
    /// Where to begin: a number (`seq`) or a time, as 2026-11-20T04:15:00Z; both are included
    ///
    /// A time is compared with `time` of a reading, and with `start` of a window result.
    #[arg(long, value_name = "SEQ|TIME", value_parser = edge)]
    from: Option<Edge>,
    /// Where to end: a number, which is included, or a time, which is not
    #[arg(long, value_name = "SEQ|TIME", value_parser = edge)]
    to: Option<Edge>,
    /// Write to this file instead of standard output; it appears when it is whole
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn stream(text: &str) -> Result<Stream, String> {
    Stream::from_name(text).ok_or_else(|| "expected readings, windows or alerts".to_owned())
}

fn edge(text: &str) -> Result<Edge, String> {
    if let Ok(number) = text.parse() {
        return Ok(Edge::Number(number));
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(Edge::Time(Timestamp(time.as_microsecond()))),
        Err(_) => Err("expected a number, or a time with its zone, as 2026-11-20T04:15:00Z".to_owned()),
    }
}

/// Does what was asked.
pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let (Command::Verify { config, .. }
    | Command::Export { config, .. }
    | Command::Compact(config)
    | Command::NewEpoch(config)) = command;
    let Some(config) = agent::load(&config.config) else { return Ok(ExitCode::from(2)) };
    quiet_redb();
    match command {
        Command::Verify { args, .. } => verify(args, &config),
        Command::Export { args, .. } => export(args, &config),
        Command::Compact(_) => compact(&config.store.data_dir),
        Command::NewEpoch(_) => new_epoch(&config.store.data_dir),
    }
}

/// redb panics on damaged pages. That is caught and said in the results; a backtrace beside them would only frighten.
pub(super) fn quiet_redb() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("/redb-")) {
            before(panic);
        }
    }));
}

fn verify(args: &VerifyArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let takes = |name: &str, stream: Stream| {
        config.sinks.iter().find(|sink| sink.name == name).map(|sink| sink.streams.contains(&stream))
    };
    let bar = Bar::new(Shown::Yes);
    let report = offline::verify(&config.store.data_dir, &takes, &bar.progress());
    bar.clear();
    let report = report.context("cannot verify the store")?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        text::report(&report)
    };
    quietly(io::stdout().lock().write_all(text.as_bytes())).context("cannot write the report")?;
    Ok(if report.sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn export(args: &ExportArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let is_backwards = match (args.from, args.to) {
        (Some(Edge::Number(from)), Some(Edge::Number(to))) => from > to,
        (Some(Edge::Time(from)), Some(Edge::Time(to))) => from > to,
        _ => false,
    };
    if is_backwards {
        note("--from lies behind --to");
        return Ok(ExitCode::from(2));
    }
    let selection = Selection { stream: args.stream, from: args.from, to: args.to };
    let is_on_screen = args.output.is_none() && io::stdout().is_terminal();
    let bar = Bar::new(if is_on_screen { Shown::No } else { Shown::Yes });
    let progress = bar.progress();
    let mut damaged = |error: &crate::store::Error| bar.above(&format!("holdfast: {}", chain(error)));
    let mut write = |out: &mut dyn Write| {
        offline::export(&config.store.data_dir, &selection, out, &mut damaged, &progress)
    };
    let exported = match &args.output {
        None => write(&mut io::stdout().lock()).map_err(anyhow::Error::from),
        Some(path) => to_file(path, |file| write(file)),
    };
    bar.clear();
    match exported {
        Ok(exported) => Ok(said(&exported, args)),
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.context("cannot export the store")),
    }
}

/// Says what was exported; what could not be read makes the exit code 1.
fn said(exported: &Exported, args: &ExportArgs) -> ExitCode {
    let Exported { records, earlier, damaged } = *exported;
    note(&format!("{} records of {} exported", grouped(records), args.stream));
    if earlier > 0 {
        note(&format!("{} records of earlier epochs were left out; every sink had them", grouped(earlier)));
    }
    if damaged > 0 {
        note(&format!("{} chunks could not be read; see: holdfast store verify", grouped(damaged)));
    }
    if damaged > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

/// Writes a file that is there whole or not at all. What is there and no file, such as a pipe or a device, is written to: nothing takes
/// its place.
fn to_file(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<Exported, ExportError>,
) -> anyhow::Result<Exported> {
    if path.is_dir() {
        bail!("--output has to name a file, and {} is a folder", path.display());
    }
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let file = File::options().write(true).open(path);
        let mut file = file.with_context(|| format!("cannot write to {}", path.display()))?;
        return Ok(write(&mut file)?);
    }
    // Through a link, so that the link stays one.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().context("--output has to name a file")?.to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let make = || format!("cannot write {}", partial.display());
    let mut file = File::create(&partial).with_context(make)?;
    let written = write(&mut file).map_err(anyhow::Error::from).and_then(|exported| {
        file.sync_all().with_context(make)?;
        std::fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(make)?;
        Ok(exported)
    });
    if written.is_err() {
        // Half an export misleads; if it cannot be removed, its name says what it is.
        drop(std::fs::remove_file(&partial));
    }
    written
}

fn compact(dir: &Path) -> anyhow::Result<ExitCode> {
    let bar = Bar::new(Shown::Yes);
    let compacted = offline::compact(dir, &bar.progress());
    bar.clear();
    let compacted = compacted.context("cannot compact the store")?;
    let ((length, length_now), (disk, disk_now)) = (compacted.bytes, compacted.disk_bytes);
    let text = format!(
        "{} freed: {} on the disk before, {} now (the file's length: {} before, {} now)\n",
        bytes(compacted.freed_bytes()),
        bytes(disk),
        bytes(disk_now),
        bytes(length),
        bytes(length_now)
    );
    quietly(io::stdout().lock().write_all(text.as_bytes())).context("cannot say what was freed")?;
    Ok(ExitCode::SUCCESS)
}

fn new_epoch(dir: &Path) -> anyhow::Result<ExitCode> {
    let agent = offline::new_epoch(dir).context("cannot mark the store")?;
    let text = format!("the next start of agent {agent} with this store begins a new epoch\n");
    quietly(io::stdout().lock().write_all(text.as_bytes())).context("cannot say what was done")?;
    Ok(ExitCode::SUCCESS)
}

/// A line for people, beside the results.
fn note(text: &str) {
    // Nobody to tell if stderr is closed.
    drop(writeln!(io::stderr(), "{text}"));
}

/// Who reads no further, as `head` does, has what he wants.
fn quietly(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let output = error.downcast_ref::<ExportError>();
    matches!(output, Some(ExportError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_takes_the_place_of_a_file_and_of_nothing_else() {
        use std::io::Read;
        use std::os::unix::fs::FileTypeExt;

        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |path: &Path| {
            to_file(path, |file| {
                file.write_all(b"records").map_err(ExportError::Output)?;
                Ok(Exported::default())
            })
        };
        std::fs::write(path("file"), "before").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        write(&path("link")).unwrap();
        assert!(std::fs::symlink_metadata(path("link")).unwrap().is_symlink());
        assert_eq!(std::fs::read(path("file")).unwrap(), b"records");

        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), fifo, mode, 0).unwrap();
        let mut reader = File::options().read(true).write(true).open(path("pipe")).unwrap();
        write(&path("pipe")).unwrap();
        assert!(std::fs::metadata(path("pipe")).unwrap().file_type().is_fifo());
        let mut read = [0; 7];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"records");

        assert!(write(dir.path()).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside them");
    }

    #[test]
    fn an_edge_is_a_number_or_a_time_with_its_zone() {
        assert_eq!(edge("17"), Ok(Edge::Number(17)));
        assert_eq!(edge("1970-01-01T01:00:01+01:00"), Ok(Edge::Time(Timestamp(1_000_000))));
        assert!(edge("2026-11-20T04:15:00").is_err() && edge("-1").is_err() && edge("yesterday").is_err());
    }
}
