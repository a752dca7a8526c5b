//! Logs go to stderr; under systemd each line begins with its priority, as journald reads it.

use std::fmt;

use tracing::{Event, Level, Subscriber, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogSettings};

/// What is logged, to be changed while it is.
#[derive(Debug)]
pub(super) struct Logging(reload::Handle<Targets, Registry>);

/// Begins to log as configured. A second call changes nothing.
///
/// # Errors
/// If the filter cannot be read.
pub(super) fn start(settings: &LogSettings) -> anyhow::Result<Logging> {
    let (filter, handle) = reload::Layer::new(settings.filter.parse::<Targets>()?);
    // journald tells a service where its stderr goes.
    let is_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match (settings.format, is_journal) {
        (LogFormat::Json, _) => layer.json().boxed(),
        (LogFormat::Text, true) => layer.event_format(Journal).boxed(),
        (LogFormat::Text, false) => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            layer.with_ansi(ansi).with_target(false).boxed()
        }
    };
    let started = Registry::default().with(layer.with_filter(filter)).try_init();
    // Somebody logs already: a test, or the demo.
    drop(started);
    Ok(Logging(handle))
}

impl Logging {
    /// Logs as `wanted` from now on. What cannot change without a restart is said, and set back to what it was.
    pub(super) fn change(&self, wanted: &mut LogSettings, before: &LogSettings) {
        if wanted.format != before.format {
            warn!("log.format changes with the next restart");
            wanted.format = before.format;
        }
        if wanted.filter == before.filter {
            return;
        }
        let changed = wanted.filter.parse::<Targets>().map_err(|error| error.to_string());
        let changed = changed.and_then(|filter| self.0.reload(filter).map_err(|error| error.to_string()));
        match changed {
            Ok(()) => info!(level = %wanted.filter, "what is logged has changed"),
            Err(error) => warn!(%error, "what is logged cannot be changed now"),
        }
    }
}

/// Lines as journald wants them: priority in front (sd-daemon(3)), no time, which the journal has.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(out, "<{priority}>")?;
        Format::default()
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_ansi(false)
            .format_event(context, out, event)
    }
}
