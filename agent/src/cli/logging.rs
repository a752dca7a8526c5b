//! Logs go to stderr; under systemd each line begins with its priority, as journald reads it.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogSettings};

/// Begins to log as configured. A second call changes nothing.
///
/// # Errors
/// If the filter cannot be read.
pub(super) fn start(settings: &LogSettings) -> anyhow::Result<()> {
    let filter: Targets = settings.filter.parse()?;
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
    Ok(())
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
