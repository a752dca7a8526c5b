//! One device in one window definition: its watermark and its open windows, per field.
//!
//! ```text
//!              add                   watermark ≥ end              watermark ≥ end + allowed lateness
//!   (nothing) ─────▶ open ──────────────▶ closed, revision n ──────────▶ gone
//!                    │  ▲                   │  ▲
//!                    └──┘ idle: emitted,    └──┘ a late value: emitted at once, revision n + 1
//!                         stays open
//! ```
//!
//! A window is emitted only if something was added since it was emitted before.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::aggregate::{Plan, Tally};
use crate::reading::{Tags, Timestamp, WindowRecord};

/// The spans of a window definition, in microseconds of event time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans {
    pub(crate) size: i64,
    pub(crate) slide: i64,
    pub(crate) lateness: i64,
    pub(crate) allowed_lateness: i64,
    /// What went out under this name before these windows began.
    pub(crate) before: Seen,
}

/// What went out under the name of a window, of whatever devices, by whatever definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The end of the last window.
    pub(crate) until: i64,
    /// No revision was as high as this.
    pub(crate) revisions: u32,
}

impl Default for Seen {
    fn default() -> Self {
        Self { until: i64::MIN, revisions: 0 }
    }
}

impl Seen {
    /// One more went out.
    pub(crate) fn add(&mut self, end: i64, revision: u32) {
        self.join(Self { until: end, revisions: revision.saturating_add(1) });
    }

    /// Whatever `other` has seen, too.
    pub(crate) fn join(&mut self, other: Self) {
        self.until = self.until.max(other.until);
        self.revisions = self.revisions.max(other.revisions);
    }
}

/// The starts of the windows that a value goes to: from `newest` backwards by the slide, while above `above`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Starts {
    newest: i64,
    above: i64,
    /// Whether some window of the value is gone already.
    pub(crate) missed: Missed,
}

/// Whether a value came too late for a window it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// All its windows still take it.
    None,
    /// At least one is gone.
    Some,
}

impl Starts {
    /// True if no window takes the value.
    pub(crate) fn is_empty(self) -> bool {
        self.newest <= self.above
    }
}

/// Whose results they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: Arc<str>,
    pub(crate) tags: Arc<Tags>,
}

/// What is known of one device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceState {
    /// The newest event time seen from it.
    pub(crate) newest: i64,
    /// Windows that end by then were given up with an earlier state of this device and do not come back.
    pub(crate) sealed: Option<i64>,
    /// The sequence number of its last reading.
    pub(crate) last_seq: u64,
    /// The source of its last reading: an index into the names of [`super::windows::Windows`].
    pub(crate) source: u32,
    /// Whether its windows were emitted because it was silent, and it has not spoken since.
    pub(crate) idle: Idle,
    /// Its fields that have windows, about in the order in which a reading lists them.
    pub(crate) series: Vec<Series>,
    /// Nothing is to be done for any window before the watermark gets here.
    due: i64,
    /// Whether it differs from the last checkpoint.
    pub(crate) changed: bool,
    /// Under which sequence number it waits to be found silent; [`NOT_QUEUED`](Self::NOT_QUEUED) if it does not.
    pub(crate) queued: u64,
}

/// Whether a device is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Idle {
    /// It has spoken lately.
    No,
    /// Its open windows were emitted provisionally, and it has not spoken since.
    Yes,
}

/// One field of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) field: Arc<str>,
    /// Its windows that still take values, by start.
    open: Vec<Open>,
}

/// One window of one series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    start: i64,
    /// The revision of its next result.
    emitted: u32,
    /// Whether something was added since.
    fresh: bool,
    tally: Tally,
}

impl Spans {
    /// The first revision of a window: above those that an earlier definition may have emitted of it.
    fn first_revision(&self, start: i64) -> u32 {
        if start < self.before.until { self.before.revisions } else { 0 }
    }

    /// The windows that a value of time `at` goes to, if those that end by `gone` take nothing any more.
    pub(crate) fn starts(&self, at: i64, gone: Option<i64>) -> Starts {
        let newest = at.div_euclid(self.slide).saturating_mul(self.slide);
        let oldest_above = at.saturating_sub(self.size);
        let gone_above = gone.map_or(i64::MIN, |gone| gone.saturating_sub(self.size));
        // The oldest window of the value starts at the first multiple of the slide above `oldest_above`.
        let oldest = oldest_above.div_euclid(self.slide).saturating_add(1).saturating_mul(self.slide);
        let missed = if oldest <= gone_above { Missed::Some } else { Missed::None };
        Starts { newest, above: oldest_above.max(gone_above), missed }
    }
}

impl DeviceState {
    pub(crate) const NOT_QUEUED: u64 = u64::MAX;

    /// A device that has said nothing yet.
    pub(crate) fn new(sealed: Option<i64>) -> Self {
        Self::restored(i64::MIN, sealed, 0, 0, Idle::No, Vec::new())
    }

    /// A device as it was saved.
    pub(crate) fn restored(
        newest: i64,
        sealed: Option<i64>,
        last_seq: u64,
        source: u32,
        idle: Idle,
        series: Vec<Series>,
    ) -> Self {
        // Due at once: the first look finds out when there is something to do.
        let due = i64::MIN;
        let queued = Self::NOT_QUEUED;
        Self { newest, sealed, last_seq, source, idle, series, due, changed: false, queued }
    }

    /// What it counts for against `max_series`: a device without windows still holds a watermark.
    pub(crate) fn weight(&self) -> usize {
        self.series.len().max(1)
    }

    /// Where the series of `field` is. `expected` is a guess: readings of a device list their fields in one order.
    pub(crate) fn find(&self, field: &str, expected: usize) -> Option<usize> {
        let is_it = |index: &usize| *self.series[*index].field == *field;
        let expected = expected.min(self.series.len());
        (expected..self.series.len()).chain(0..expected).find(is_it)
    }

    /// Makes a series for `field`, at `expected` if that is possible; where it is now.
    pub(crate) fn insert(&mut self, field: Arc<str>, expected: usize) -> usize {
        let index = expected.min(self.series.len());
        self.series.insert(index, Series { field, open: Vec::new() });
        index
    }

    /// Puts a value into its windows.
    pub(crate) fn add(
        &mut self,
        index: usize,
        at: Timestamp,
        value: f64,
        starts: Starts,
        spans: &Spans,
        plan: &Plan,
    ) {
        let watermark = self.watermark(spans);
        let open = &mut self.series[index].open;
        let mut place = open.len();
        let mut start = starts.newest;
        while start > starts.above {
            while place > 0 && open[place - 1].start > start {
                place -= 1;
            }
            if place > 0 && open[place - 1].start == start {
                place -= 1;
            } else {
                // Most series have one or two windows open: room for just as many as there are.
                open.reserve_exact(1);
                let emitted = spans.first_revision(start);
                open.insert(place, Open { start, emitted, fresh: false, tally: plan.tally() });
            }
            open[place].tally.add(at, value);
            open[place].fresh = true;
            // A value for a closed window makes that window due at once, an open one is due at its end.
            let end = start.saturating_add(spans.size);
            self.due = self.due.min(if end <= watermark { i64::MIN } else { end });
            let Some(before) = start.checked_sub(spans.slide) else { return };
            start = before;
        }
    }

    /// The event time that has come for this device.
    pub(crate) fn watermark(&self, spans: &Spans) -> i64 {
        self.newest.saturating_sub(spans.lateness)
    }

    /// True if [`close`](Self::close) has something to do.
    pub(crate) fn is_due(&self, spans: &Spans) -> bool {
        self.watermark(spans) >= self.due
    }

    /// Emits the windows that the watermark has closed, and drops those that no value can change any more.
    pub(crate) fn close(&mut self, device: &Device, spans: &Spans, emission: &mut Emission<'_>) {
        let watermark = self.watermark(spans);
        let gone = self.gone(spans);
        let mut due = i64::MAX;
        for series in &mut self.series {
            let field = &series.field;
            let mut gone_count = 0;
            for open in &mut series.open {
                let end = open.start.saturating_add(spans.size);
                if end > watermark {
                    due = due.min(end);
                    break;
                }
                if open.fresh {
                    emission.emit(device, field, open, end);
                }
                if end <= gone {
                    gone_count += 1;
                } else {
                    due = due.min(end.saturating_add(spans.allowed_lateness));
                }
            }
            series.open.drain(..gone_count);
        }
        self.series.retain(|series| !series.open.is_empty());
        self.due = due;
    }

    /// Emits every window that has something new, and leaves it open.
    pub(crate) fn emit_open(&mut self, device: &Device, spans: &Spans, emission: &mut Emission<'_>) {
        for series in &mut self.series {
            for open in series.open.iter_mut().filter(|open| open.fresh) {
                emission.emit(device, &series.field, open, open.start.saturating_add(spans.size));
            }
        }
    }

    /// The end of its last window: a state that begins anew must not emit any window up to there.
    pub(crate) fn last_end(&self, spans: &Spans) -> i64 {
        let last_starts = self.series.iter().filter_map(|series| Some(series.open.last()?.start));
        let last_end = last_starts.max().map(|start| start.saturating_add(spans.size));
        last_end.map_or(self.gone(spans), |end| end.max(self.gone(spans)))
    }

    /// Windows that end by then take nothing any more.
    pub(crate) fn gone(&self, spans: &Spans) -> i64 {
        let by_time = self.watermark(spans).saturating_sub(spans.allowed_lateness);
        self.sealed.map_or(by_time, |sealed| sealed.max(by_time))
    }
}

/// Where results go, and what they consist of.
pub(crate) struct Emission<'a> {
    pub(crate) window: &'a Arc<str>,
    pub(crate) plan: &'a Plan,
    pub(crate) seen: &'a mut Seen,
    pub(crate) records: &'a mut Vec<WindowRecord>,
}

impl Emission<'_> {
    fn emit(&mut self, device: &Device, field: &Arc<str>, open: &mut Open, end: i64) {
        self.records.push(WindowRecord {
            window: Arc::clone(self.window),
            device: Arc::clone(&device.name),
            tags: Arc::clone(&device.tags),
            field: Arc::clone(field),
            start: Timestamp(open.start),
            end: Timestamp(end),
            revision: open.emitted,
            aggregates: open.tally.results(self.plan),
            replay_of: None,
        });
        self.seen.add(end, open.emitted);
        open.emitted = open.emitted.saturating_add(1);
        open.fresh = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spans: Spans, at: i64, expected: &[i64]) {
        let starts = spans.starts(at, None);
        let mut found = Vec::new();
        let mut start = starts.newest;
        while start > starts.above {
            found.push(start);
            start -= spans.slide;
        }
        found.reverse();
        assert_eq!(found, expected, "windows of {at}");
    }

    fn spans(size: i64, slide: i64) -> Spans {
        Spans { size, slide, lateness: 0, allowed_lateness: 0, before: Seen::default() }
    }

    #[test]
    fn a_value_at_the_start_is_in_and_at_the_end_is_out() {
        check(spans(10, 10), 20, &[20]);
        check(spans(10, 10), 29, &[20]);
        check(spans(10, 10), 30, &[30]);
        check(spans(10, 10), -1, &[-10]);
    }

    #[test]
    fn a_value_is_in_every_window_that_slides_over_it() {
        check(spans(10, 5), 20, &[15, 20]);
        check(spans(10, 5), 24, &[15, 20]);
        check(spans(10, 3), 20, &[12, 15, 18]);
        check(spans(10, 3), 21, &[12, 15, 18, 21]);
    }

    #[test]
    fn the_ends_of_time_do_no_harm() {
        let spans = spans(10, 3);
        for at in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
            let mut state = DeviceState::new(None);
            let plan = Plan::new(&[]);
            let index = state.insert("t".into(), 0);
            state.add(index, Timestamp(at), 1.0, spans.starts(at, None), &spans, &plan);
        }
    }
}
