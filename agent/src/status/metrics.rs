//! `/metrics`: the status as Prometheus reads it.
//!
//! Two dialects: OpenMetrics for who asks for it (Prometheus does), else the classic text format 0.0.4. They differ in how a
//! counter is declared: `# TYPE x counter` in the first, `# TYPE x_total counter` in the second; the samples are the same.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::model::{AgentState, DamageStatus, LedgerStatus, SinkStatus, SourceStatus, Status};
use crate::reading::ClockState;
use crate::store::nodes::Missed;
use crate::store::report::{BUCKETS_S, State as StoreState};
use crate::{forward, source};

/// Which dialect is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`
    Plain,
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
}

impl Format {
    /// What the header `Accept` asks for.
    #[must_use]
    pub fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Plain }
    }

    /// The value of `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The metrics of `status`.
#[must_use]
pub fn render(status: Status, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { status, format }));
    let mut out = String::with_capacity(16 << 10);
    let written = match format {
        Format::Plain => text::encode_registry(&mut out, &registry),
        Format::OpenMetrics => text::encode(&mut out, &registry),
    };
    written.expect("writing to a String cannot fail");
    out
}

#[derive(Debug)]
struct Metrics {
    status: Status,
    format: Format,
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out { encoder, format: self.format };
        agent(&self.status, &mut out)?;
        clock(&self.status, &mut out)?;
        sources(&self.status, &mut out)?;
        streams(&self.status, &mut out)?;
        sinks(&self.status, &mut out)?;
        store(&self.status, &mut out)?;
        windows(&self.status, &mut out)
    }
}

fn agent(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    let states = AgentState::ALL.map(|state| ([("state", state.name())], u64::from(state == status.state)));
    out.gauge("holdfast_state", "1 for the state the agent is in", states)?;
    let build = [([("version", status.version.as_str())], 1_u64)];
    out.gauge("holdfast_build_info", "The program's version", build)?;
    out.gauge("holdfast_uptime_seconds", "Seconds since the process started", [([], status.uptime_s)])?;
    let balanced = u64::from(status.balanced);
    out.gauge(
        "holdfast_books_balanced",
        "1 if appended = delivered + pending + dead-lettered + shed everywhere",
        [([], balanced)],
    )?;
    let rooms = || status.rooms.iter().map(|(room, of)| ([("room", room.as_str())], of));
    out.gauge(
        "holdfast_room_last_beat_seconds",
        "For how long the room has given no sign of life; 0 if it did when it was asked last",
        rooms().map(|(label, of)| (label, of.silent_s)),
    )?;
    let hung = rooms().map(|(label, of)| (label, u64::from(of.hung)));
    out.gauge("holdfast_room_hung", "1 if the room hangs, and the watchdog is not fed", hung)
}

fn sources(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    type Count = fn(&SourceStatus) -> u64;
    let counters: [(&str, &str, Count); 7] = [
        ("holdfast_source_received", "Messages whose outcome is durable", |source| source.received),
        ("holdfast_source_stored", "Messages stored as readings", |source| source.stored),
        ("holdfast_source_rejected", "Messages that could not be decoded", |source| source.rejected),
        ("holdfast_source_redelivered", "Messages sent again that were settled before", |source| {
            source.redelivered
        }),
        ("holdfast_source_skipped", "Messages with nothing in them to store", |source| source.skipped),
        (
            "holdfast_source_unprotected",
            "Messages that nobody sends again: QoS 0, lines, what was polled",
            |source| source.unprotected,
        ),
        ("holdfast_source_readings", "Readings stored", |source| source.readings),
    ];
    for (name, help, count) in counters {
        let samples = status.sources.iter().map(|(source, of)| ([("source", source.as_str())], count(of)));
        out.counter(name, help, samples)?;
    }
    let up = status.sources.iter().filter_map(|(source, of)| {
        Some(([("source", source.as_str())], u64::from(of.state?.is_connected())))
    });
    out.gauge("holdfast_source_up", "1 if the source is connected or listening", up)?;
    let states = status.sources.iter().flat_map(|(source, of)| {
        let labelled = |state: source::State| [("source", source.as_str()), ("state", state.name())];
        let of_each =
            move |current| source::State::ALL.map(|state| (labelled(state), u64::from(state == current)));
        of.state.map(of_each).into_iter().flatten()
    });
    out.gauge("holdfast_source_state", "1 for the state the source is in", states)?;
    let clients = status.sources.iter().filter_map(|(source, of)| {
        Some(([("source", source.as_str())], u64::try_from(of.clients?).unwrap_or(u64::MAX)))
    });
    out.gauge("holdfast_source_clients", "Clients connected to a listener", clients)?;
    lines(status, out)
}

/// What is to be said of serial lines and of the devices behind sources.
fn lines(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    let missed = status.sources.iter().filter(|(_, of)| of.line.is_some()).flat_map(|(source, of)| {
        let labelled = |reason| [("source", source.as_str()), ("reason", reason)];
        let Missed { dropped, lost, unreadable } = of.missed;
        [(labelled("dropped"), dropped), (labelled("lost"), lost), (labelled("unreadable"), unreadable)]
    });
    out.counter("holdfast_source_missed", "Records of sensor nodes that will never come", missed)?;
    type Count = (&'static str, &'static str, fn(&source::LineCounts) -> u64);
    let counts: [Count; 4] = [
        ("holdfast_source_line_bytes", "Bytes read from a line", |line| line.bytes),
        ("holdfast_source_line_frames", "Frames or lines that came whole", |line| line.frames),
        ("holdfast_source_line_garbage_bytes", "Bytes that made no sense", |line| line.garbage_bytes),
        ("holdfast_source_line_opened", "How often the port was opened", |line| line.opened),
    ];
    for (name, help, count) in counts {
        let of_lines = status.sources.iter().filter_map(|(source, of)| Some((source, of.line?)));
        let samples = of_lines.map(|(source, line)| ([("source", source.as_str())], count(&line)));
        out.counter(name, help, samples)?;
    }
    let skipped = status
        .sources
        .iter()
        .filter_map(|(source, of)| Some(([("source", source.as_str())], of.rounds_skipped?)));
    out.counter("holdfast_source_rounds_skipped", "Rounds of a polled source that were left out", skipped)?;
    let devices = || {
        status.sources.iter().flat_map(|(source, of)| {
            of.devices
                .iter()
                .map(move |(device, of)| ([("source", source.as_str()), ("device", device.as_str())], of))
        })
    };
    let failures = devices().map(|(labels, of)| (labels, of.failures));
    out.counter(
        "holdfast_source_device_failures",
        "How often a device did not answer as it should",
        failures,
    )?;
    let up = devices().map(|(labels, of)| (labels, u64::from(of.last_error.is_none())));
    out.gauge("holdfast_source_device_up", "1 if the device answered last", up)
}

fn streams(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    let label = |stream| [("stream", stream)];
    let appended = status.streams.iter().map(|(stream, of)| (label(stream.as_str()), of.appended));
    out.counter("holdfast_stream_appended", "Records ever appended", appended)?;
    let held = status.streams.iter().map(|(stream, of)| (label(stream.as_str()), of.held_bytes));
    out.gauge("holdfast_stream_held_bytes", "Bytes held", held)?;
    let limits = status.streams.iter();
    let limits = limits.filter_map(|(stream, of)| Some((label(stream.as_str()), of.max_bytes?)));
    out.gauge("holdfast_stream_max_bytes", "The stream's own limit of holdfast_stream_held_bytes", limits)
}

fn sinks(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    let ledgers = || {
        status.sinks.iter().flat_map(|(sink, of)| {
            of.streams.iter().map(move |(stream, ledger)| {
                ([("sink", sink.as_str()), ("stream", stream.as_str())], of, ledger)
            })
        })
    };
    type Count = fn(&LedgerStatus) -> u64;
    let counters: [(&str, &str, Count); 3] = [
        ("holdfast_sink_delivered", "Records that the sink has", |ledger| ledger.delivered),
        ("holdfast_sink_dead_lettered", "Records that the sink refused for good", |ledger| {
            ledger.dead_lettered
        }),
        ("holdfast_sink_shed", "Records that the sink will never get, by rule", |ledger| ledger.shed),
    ];
    for (name, help, count) in counters {
        out.counter(name, help, ledgers().map(|(labels, _, ledger)| (labels, count(ledger))))?;
    }
    // What a removed sink will never fetch would only raise alarms.
    let pending =
        ledgers().filter(|(_, of, _)| of.present).map(|(labels, _, ledger)| (labels, ledger.pending));
    out.gauge("holdfast_sink_pending", "Records still to be delivered", pending)?;

    let present = || {
        let states = status.sinks.iter().filter_map(|(sink, of)| Some((sink.as_str(), of, of.state?)));
        states.map(|(sink, of, state): (&str, &SinkStatus, forward::State)| (sink, of, state))
    };
    let up = present().map(|(sink, _, state)| ([("sink", sink)], u64::from(state == forward::State::Up)));
    out.gauge("holdfast_sink_up", "1 if the sink takes batches", up)?;
    let states = present().flat_map(|(sink, _, current)| {
        forward::State::ALL
            .map(|state| ([("sink", sink), ("state", state.name())], u64::from(state == current)))
    });
    out.gauge("holdfast_sink_state", "1 for the state the sink is in", states)?;
    let requests = present().map(|(sink, of, _)| ([("sink", sink)], of.requests));
    out.counter("holdfast_sink_requests", "Requests sent", requests)?;
    let sent = present().map(|(sink, of, _)| ([("sink", sink)], of.sent_bytes));
    out.counter("holdfast_sink_sent_bytes", "Bytes of request bodies sent", sent)
}

fn clock(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    let is_synced = u64::from(status.clock.state == ClockState::Synced);
    out.gauge("holdfast_clock_synced", "1 if the wall clock is synchronised", [([], is_synced)])?;
    let help = "How far times of receipt are ahead of a wall clock that went back";
    out.gauge("holdfast_clock_ahead_seconds", help, [([], status.clock.ahead_s)])
}

fn store(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    let store = &status.store;
    out.gauge("holdfast_store_bytes", "Bytes on disk of what is held", [([], store.bytes)])?;
    out.gauge("holdfast_store_max_bytes", "The limit of holdfast_store_bytes", [([], store.max_bytes)])?;
    out.gauge(
        "holdfast_store_file_bytes",
        "What the store's file takes on the disk",
        [([], store.file_bytes)],
    )?;
    let states = StoreState::ALL.map(|state| ([("state", state.name())], u64::from(state == store.state)));
    out.gauge("holdfast_store_state", "1 for the state the store is in", states)?;
    out.counter("holdfast_commits", "Durable commits", [([], store.commits)])?;

    let damage = store.damage.as_ref();
    let times = damage.map_or(0, |damage| damage.moved_aside);
    out.counter("holdfast_store_damaged", "Times that a damaged store was moved aside", [([], times)])?;
    let counts = |of: fn(&DamageStatus) -> &BTreeMap<String, u64>| {
        let counts = damage.into_iter().flat_map(of);
        counts.map(|(stream, count)| ([("stream", stream.as_str())], *count))
    };
    let saved = counts(|damage| &damage.saved);
    out.counter("holdfast_store_saved_records", "Records read from a damaged store", saved)?;
    let lost = counts(|damage| &damage.lost);
    out.counter("holdfast_store_lost_records", "Records lost because the disk was damaged", lost)?;

    let bounds = BUCKETS_S.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(store.commit_seconds.counts).collect();
    let mut histogram = out.encoder.encode_descriptor(
        "holdfast_commit_seconds",
        "How long durable commits took",
        None,
        MetricType::Histogram,
    )?;
    let (sum, count) = (store.commit_seconds.sum_s, store.commit_seconds.count());
    histogram.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;

    let dead = &status.dead_letters;
    out.gauge("holdfast_dead_letters", "Dead letters kept", [([], dead.kept)])?;
    out.gauge("holdfast_dead_letters_bytes", "Bytes of dead letters kept", [([], dead.bytes)])?;
    out.counter(
        "holdfast_dead_letters_purged",
        "Dead letters purged to stay within the limit",
        [([], dead.purged)],
    )?;
    out.counter(
        "holdfast_dead_letters_purged_by_hand",
        "Dead letters purged by people",
        [([], dead.purged_by_hand)],
    )?;
    out.counter(
        "holdfast_dead_letters_replayed",
        "Dead letters whose records were appended anew",
        [([], dead.replayed)],
    )
}

fn windows(status: &Status, out: &mut Out<'_>) -> fmt::Result {
    let label = |window| [("window", window)];
    let late = status.windows.iter().map(|(window, of)| (label(window.as_str()), of.late));
    out.counter("holdfast_window_late", "Values that came too late for their window", late)?;
    let series = status.windows.iter().map(|(window, of)| (label(window.as_str()), of.series));
    out.gauge("holdfast_window_series", "Series in memory", series)?;
    let refused = status.windows.iter().map(|(window, of)| (label(window.as_str()), of.refused));
    out.counter("holdfast_window_refused", "Values of series beyond max_series", refused)
}

/// Writes families in either dialect.
struct Out<'a> {
    encoder: DescriptorEncoder<'a>,
    format: Format,
}

impl Out<'_> {
    /// A counter; `name` without `_total`.
    fn counter<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
    ) -> fmt::Result {
        match self.format {
            Format::OpenMetrics => {
                let family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                write_samples(family, samples, |mut metric, value| {
                    metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
                })
            }
            Format::Plain => {
                let name = format!("{name}_total");
                let family = self.encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
                // Written as a gauge is: the name as it stands, without a suffix.
                write_samples(family, samples, |mut metric, value| metric.encode_gauge(&value))
            }
        }
    }

    fn gauge<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'l str, &'l str); N], V)>,
    ) -> fmt::Result {
        let family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        write_samples(family, samples, |mut metric, value| metric.encode_gauge(&value))
    }
}

/// Writes one line per sample.
fn write_samples<'l, const N: usize, V>(
    mut family: MetricEncoder<'_>,
    samples: impl IntoIterator<Item = ([(&'l str, &'l str); N], V)>,
    write: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
) -> fmt::Result {
    for (labels, value) in samples {
        write(family.encode_family(&labels)?, value)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
