//! The configuration: one TOML file becomes checked [`Settings`](Config) for every room.
//!
//! Two steps: what was written, each value with its place (`reader.rs`), then what it means (one file per kind of
//! table). All faults are reported at once, in the order of the file; after that nobody checks again. Defaults are
//! written once, in the rooms' own settings. Secrets are never printed, neither as values nor in messages.

mod environment;
mod fault;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod lines;
mod nearest;
mod node;
mod note;
mod payloads;
mod reader;
mod report;
mod sinks;
mod sources;
mod subscriptions;
mod syntax;
pub(crate) mod units;
mod urls;
mod windows;

#[cfg(test)]
mod mutation;
#[cfg(test)]
mod shipped;
#[cfg(test)]
mod tests;

pub use environment::{Environment, System};
pub use fault::{Fault, Faults, Problem};
pub use lines::Position;
pub use node::{LogFormat, LogSettings};
pub use note::{Note, Remark, Severity};

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fault::Place;
use lines::Lines;
use reader::{Given, Section, invalid};
use report::Report;
use syntax::Readable;
use toml::de::DeTable;

use crate::clock::Trust;
use crate::stream::Stream;
use crate::{forward, source, status, store, window};

/// All that an operator can say: checked values. Two are equal if a reload would change nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The agent's id: names it at the receivers.
    pub agent_id: String,
    /// Who says whether the wall clock is right.
    pub clock: Trust,
    /// The admin listener and socket.
    pub admin: status::Settings,
    /// Logging.
    pub log: LogSettings,
    /// The store, the dead letters, and the data directory.
    pub store: store::Settings,
    /// Sources, in the order of the file.
    pub sources: Vec<source::Settings>,
    /// Windows, in the order of the file.
    pub windows: Vec<window::Settings>,
    /// Sinks, in the order of the file.
    pub sinks: Vec<forward::Settings>,
}

/// A valid configuration, and what its operator should know of it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Warnings first, then notes.
    pub notes: Vec<Note>,
}

/// Reads and checks the file at `path`, on the machine this runs on.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path) -> Result<Loaded, Faults> {
    let file = path.display().to_string();
    match System.read(path) {
        Ok(bytes) => parse_bytes(&bytes, &file, &System),
        Err(error) => {
            let problem = Problem::Unreadable { reason: error.to_string() };
            Err(Faults(vec![Fault { file: file.into(), position: None, key: String::new(), problem }]))
        }
    }
}

/// [`parse`], for what may not be text.
fn parse_bytes(bytes: &[u8], file: &str, environment: &dyn Environment) -> Result<Loaded, Faults> {
    let error = match str::from_utf8(bytes) {
        Ok(text) => return parse(text, file, environment),
        Err(error) => error,
    };
    let (valid, rest) = bytes.split_at(error.valid_up_to());
    let valid = str::from_utf8(valid).unwrap_or_default();
    let fault = Fault {
        file: Arc::from(file),
        position: Some(Lines::of(valid).position(valid.len())),
        key: String::new(),
        problem: Problem::NotUtf8 { byte: rest.first().copied().unwrap_or_default() },
    };
    Err(Faults(vec![fault]))
}

/// Checks the configuration `text` that came from `file`. What it needs to know of the machine it asks `environment`.
///
/// Paths are taken from the folder of `file` if they are relative; secret files from `$CREDENTIALS_DIRECTORY`.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(text: &str, file: &str, environment: &dyn Environment) -> Result<Loaded, Faults> {
    let readable = Readable::of(text);
    let report = Report::new(text, file, environment);
    let table = readable.table(&report);
    let config = table.as_ref().and_then(|table| config(&report, table.get_ref()));
    match config {
        Some(config) if !report.has_faults() => Ok(Loaded { config, notes: report.take_notes() }),
        Some(_) | None => Err(Faults(report.into_faults())),
    }
}

/// The settings in `table`. `None` only where a fault was reported.
fn config<'a>(report: &Report<'a>, table: &DeTable<'a>) -> Option<Config> {
    let root = Section::root(report, table);
    let (agent_id, data_dir, clock) = node::agent(&root);
    let admin = node::admin(&root, &data_dir);
    let log = node::log(&root);
    let store = node::store(&root, data_dir);

    let components = Components::of(&root);
    components.check_names(report);
    root.finish();

    let sources: Vec<_> = components
        .sources
        .iter()
        .filter_map(|(name, section)| {
            let value = sources::source(name.value, section, &agent_id)?;
            Some((Given { value, place: name.place.clone() }, section))
        })
        .collect();
    sources::check_together(&sources, admin.listen);
    let source_names: Vec<&str> = components.sources.iter().map(|(name, _)| name.value).collect();
    let windows: Vec<_> = components
        .windows
        .iter()
        .filter_map(|(name, section)| windows::window(name.value, section, &source_names))
        .collect();
    let sinks: Vec<_> =
        components.sinks.iter().filter_map(|(name, section)| sinks::sink(name.value, section)).collect();

    let sources = sources.into_iter().map(|(source, _)| source.value).collect();
    let config = Config { agent_id, clock, admin, log, store, sources, windows, sinks };
    remark_on_flow(report, &config);
    Some(config)
}

/// The tables of all components, each with its name.
struct Components<'r, 'a> {
    sources: Vec<(Given<&'r str>, Section<'r, 'a>)>,
    windows: Vec<(Given<&'r str>, Section<'r, 'a>)>,
    sinks: Vec<(Given<&'r str>, Section<'r, 'a>)>,
}

impl<'r, 'a> Components<'r, 'a> {
    fn of(root: &Section<'r, 'a>) -> Self {
        let all = |key, expected| {
            let named =
                |(name, item): (Given<&'r str>, reader::Item<'r, 'a>)| Some((name, item.section(expected)?));
            root.section(key, expected).entries().into_iter().filter_map(named).collect()
        };
        Self {
            sources: all("sources", "a table such as [sources.plant]"),
            windows: all("windows", "a table such as [windows.minute]"),
            sinks: all("sinks", "a table such as [sinks.cloud]"),
        }
    }

    /// Names appear in metrics, client ids and files side by side, so they are plain and each is there once.
    fn check_names(&self, report: &Report<'_>) {
        let mut taken: BTreeMap<&str, (&'static str, usize)> = BTreeMap::new();
        let kinds = [("source", &self.sources), ("window", &self.windows), ("sink", &self.sinks)];
        let mut names: Vec<_> =
            kinds.into_iter().flat_map(|(kind, all)| all.iter().map(move |(name, _)| (kind, name))).collect();
        names.sort_by_cached_key(|(_, name)| name.place.span.start);
        for (kind, name) in names {
            if !node::is_name(name.value) {
                invalid(report, &name.place, None, format!("a name of {}", node::NAME_FORM));
            }
            if let Some((kind, line)) = taken.get(name.value) {
                let problem = Problem::DuplicateName { name: name.value.to_owned(), kind, line: *line };
                report.fault(&name.place, problem);
            } else {
                taken.insert(name.value, (kind, report.line(&name.place)));
            }
        }
    }
}

/// Notes what comes from nowhere and what goes nowhere.
fn remark_on_flow(report: &Report<'_>, config: &Config) {
    let whole = Place::default();
    if config.sources.is_empty() {
        report.note(&whole, Remark::NoSource);
    }
    if config.sinks.is_empty() {
        report.note(&whole, Remark::NoSink);
        return;
    }
    let is_taken = |stream| config.sinks.iter().any(|sink| sink.streams.contains(&stream));
    if !config.sources.is_empty() && !is_taken(Stream::Readings) {
        report.note(&whole, Remark::StreamGoesNowhere { stream: Stream::Readings.name() });
    }
    if !config.windows.is_empty() && !is_taken(Stream::Windows) {
        report.note(&whole, Remark::StreamGoesNowhere { stream: Stream::Windows.name() });
    }
}
