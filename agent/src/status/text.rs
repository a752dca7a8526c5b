//! The status in words: for the command line, and for browsers without JavaScript.
//!
//! Every name and error in it may come from a stranger. [`shown`] takes the teeth out of control characters, so that
//! no device can write escape sequences to an operator's terminal.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use super::model::{Access, AgentState, RoomStatus, SinkStatus, SourceStatus, Status};
use crate::reading::ClockState;
use crate::{forward, source, store};

/// The agent's state in a sentence or two, and which sources are away.
#[must_use]
pub(super) fn summary(
    state: AgentState,
    access: Access,
    store: &store::Report,
    sources: &BTreeMap<String, SourceStatus>,
    sinks: &BTreeMap<String, SinkStatus>,
) -> String {
    let mut text = state_summary(state, access, store, sinks);
    let away: Vec<&str> =
        sources.iter().filter(|(_, of)| is_away(of)).map(|(name, _)| name.as_str()).collect();
    if !away.is_empty() {
        let verb = if away.len() == 1 { "is" } else { "are" };
        write!(text, " Source {} {verb} not connected.", away.join(", "))
            .expect("writing to a String cannot fail");
    }
    text
}

/// Which rooms of the program hang, as a sentence to be added; empty if none does.
#[must_use]
pub(super) fn hung(rooms: &BTreeMap<String, RoomStatus>) -> String {
    let hung: Vec<&str> = rooms.iter().filter(|(_, of)| of.hung).map(|(name, _)| name.as_str()).collect();
    match hung.as_slice() {
        [] => String::new(),
        [room] => format!(" A part of the program hangs: {room}."),
        rooms => format!(" Parts of the program hang: {}.", rooms.join(", ")),
    }
}

fn is_away(source: &SourceStatus) -> bool {
    match source.state {
        Some(source::State::Starting | source::State::Blocked) | None => false,
        Some(state) => !state.is_connected(),
    }
}

fn state_summary(
    state: AgentState,
    access: Access,
    store: &store::Report,
    sinks: &BTreeMap<String, SinkStatus>,
) -> String {
    match state {
        AgentState::Online if sinks.values().all(|sink| !sink.present) => {
            "Everything received is stored; no sink is configured.".to_owned()
        }
        AgentState::Online => "Everything received is stored, and every sink takes it.".to_owned(),
        AgentState::Buffering => {
            let down: Vec<&str> = down(sinks).map(|(name, _)| name).collect();
            let waiting: u64 = down_pending(sinks);
            let verb = if down.len() == 1 { "does" } else { "do" };
            let names = down.join(", ");
            format!(
                "{names} {verb} not take data now. Nothing is lost: {} wait here.",
                counted(waiting, "record")
            )
        }
        AgentState::Shedding => {
            "The store is full. The oldest records are given up, and every sink is told which.".to_owned()
        }
        AgentState::Blocked if access == Access::Closed => match store.recovering {
            Some(progress) => format!(
                "The store is being opened after an unclean stop: {} of {} read. Senders are held back until then.",
                bytes(progress.done_bytes),
                bytes(progress.total_bytes)
            ),
            None => "The store is being opened. Senders are held back until then.".to_owned(),
        },
        AgentState::Blocked => {
            "The store takes no more. Senders are held back and keep their data until there is room."
                .to_owned()
        }
        AgentState::StorageFailing => {
            let error = store.last_error.as_deref().unwrap_or("it does not take writes");
            format!("The disk fails: {error}. Nothing is acknowledged until it recovers.")
        }
    }
}

fn down(sinks: &BTreeMap<String, SinkStatus>) -> impl Iterator<Item = (&str, &SinkStatus)> {
    let is_down = |sink: &SinkStatus| sink.state.is_some_and(|state| state != forward::State::Up);
    sinks.iter().filter(move |(_, sink)| is_down(sink)).map(|(name, sink)| (name.as_str(), sink))
}

fn down_pending(sinks: &BTreeMap<String, SinkStatus>) -> u64 {
    down(sinks).flat_map(|(_, sink)| sink.streams.values()).map(|ledger| ledger.pending).sum()
}

/// The status on one screen.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    write_all(status, &mut out).expect("writing to a String cannot fail");
    out
}

fn write_all(status: &Status, out: &mut String) -> std::fmt::Result {
    let epoch = status.epoch.map_or_else(|| "none yet".to_owned(), |epoch| epoch.to_string());
    writeln!(
        out,
        "{}  holdfast {}  up {}  epoch {epoch}",
        shown(&status.agent),
        shown(&status.version),
        seconds(status.uptime_s)
    )?;
    writeln!(out, "{}  {}\n", status.state.name().to_uppercase(), shown(&status.summary))?;
    write_clock(status, out)?;
    write_store(status, out)?;
    write_sources(&status.sources, out)?;
    write_sinks(status, out)?;
    write_windows(status, out)?;
    let dead = &status.dead_letters;
    write!(out, "DEAD LETTERS  {} kept ({})", grouped(dead.kept), bytes(dead.bytes))?;
    if dead.purged > 0 {
        write!(out, ", {} purged to stay within the limit", grouped(dead.purged))?;
    }
    if dead.purged_by_hand > 0 {
        write!(out, ", {} purged by hand", grouped(dead.purged_by_hand))?;
    }
    if dead.replayed > 0 {
        write!(out, ", {} replayed", grouped(dead.replayed))?;
    }
    writeln!(out, "{}", if dead.kept > 0 { "; see: holdfast dead-letters list" } else { "" })
}

/// Nothing, as long as the clock is right.
fn write_clock(status: &Status, out: &mut String) -> std::fmt::Result {
    let clock = &status.clock;
    if clock.state == ClockState::Unsynced {
        writeln!(out, "CLOCK  not synchronised: readings are marked")?;
    }
    if clock.ahead_s > 1.0 {
        writeln!(out, "CLOCK  went back: times of receipt are {} ahead of it", seconds(clock.ahead_s))?;
    }
    Ok(())
}

fn write_store(status: &Status, out: &mut String) -> std::fmt::Result {
    let store = &status.store;
    let state = store.state.name();
    let fill = percent(store.bytes, store.max_bytes);
    writeln!(out, "STORE  {state}, {} of {} ({fill})", bytes(store.bytes), bytes(store.max_bytes))?;
    if let Some(error) = &store.last_error {
        writeln!(out, "  last error: {}", shown(error))?;
    }
    if let Some(damage) = &store.damage {
        let (saved, lost): (u64, u64) = (damage.saved.values().sum(), damage.lost.values().sum());
        write!(out, "  damaged: {} saved, {} lost", counted(saved, "record"), grouped(lost))?;
        if let Some(time) = &damage.last {
            write!(out, "; moved aside {}, last {}", counted(damage.moved_aside, "time"), shown(time))?;
        }
        if damage.lost_dead_letters > 0 {
            write!(out, "; {} lost", counted(damage.lost_dead_letters, "dead letter"))?;
        }
        for file in &damage.reading {
            write!(out, "; {} is still being read", shown(file))?;
        }
        writeln!(out)?;
    }
    let mut table = Table::new(&["STREAM", "APPENDED", "OLDEST", "NEXT", "HELD"], &[0]);
    for (name, stream) in &status.streams {
        table.row([
            shown(name).into_owned(),
            grouped(stream.appended),
            stream.oldest_seq.to_string(),
            stream.next_seq.to_string(),
            stream.max_bytes.map_or_else(
                || bytes(stream.held_bytes),
                |max| format!("{} of {}", bytes(stream.held_bytes), bytes(max)),
            ),
        ]);
    }
    writeln!(out, "{}", table.text())
}

fn write_sources(sources: &BTreeMap<String, SourceStatus>, out: &mut String) -> std::fmt::Result {
    let header = ["SOURCE", "STATE", "RECEIVED", "= STORED", "+ REJECTED", "+ REDELIVERED", "+ SKIPPED"];
    let mut table = Table::new(&header, &[0, 1]);
    for (name, source) in sources {
        let counts = [source.received, source.stored, source.rejected, source.redelivered, source.skipped];
        let state = source.state.map_or("removed", source::State::name);
        let words = [shown(name).into_owned(), state.to_owned()];
        table.row(words.into_iter().chain(counts.map(grouped)));
        if let Some(error) = &source.last_error {
            table.remark(format!("  last error: {}", shown(error)));
        }
        for (device, of) in &source.devices {
            if let Some(error) = &of.last_error {
                table.remark(format!("  {}: {}", shown(device), shown(error)));
            }
            if of.missed.total() > 0 {
                let missed = grouped(of.missed.total());
                table.remark(format!("  {}: {missed} records will never come", shown(device)));
            }
        }
    }
    writeln!(out, "{}", table.text())
}

fn write_sinks(status: &Status, out: &mut String) -> std::fmt::Result {
    let header =
        ["SINK", "STATE", "STREAM", "APPENDED", "= DELIVERED", "+ PENDING", "+ DEAD", "+ SHED", "BOOKS"];
    let mut table = Table::new(&header, &[0, 1, 2, 8]);
    for (name, sink) in &status.sinks {
        let state = sink.state.map_or("removed", forward::State::name);
        let mut words = [shown(name).into_owned(), state.to_owned()];
        for (stream, ledger) in &sink.streams {
            let appended = status.streams.get(stream).map_or(0, |stream| stream.appended);
            let counts = [appended, ledger.delivered, ledger.pending, ledger.dead_lettered, ledger.shed];
            let books = if ledger.balances(appended) { "balanced" } else { "NOT BALANCED" };
            let numbers = counts.map(grouped);
            let row = words.into_iter().chain([shown(stream).into_owned()]).chain(numbers);
            table.row(row.chain([books.to_owned()]));
            words = [String::new(), String::new()];
        }
        if sink.streams.is_empty() {
            table.row(words);
        }
        if let Some(error) = &sink.last_error {
            table.remark(format!("  last error: {}", shown(error)));
        }
        if let Some(due) = sink.next_attempt_s {
            table.remark(format!("  next attempt in {due:.1} s"));
        }
    }
    writeln!(out, "{}", table.text())
}

fn write_windows(status: &Status, out: &mut String) -> std::fmt::Result {
    if status.windows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["WINDOW", "SERIES", "LATE", "REFUSED"], &[0]);
    for (name, window) in &status.windows {
        let counts = [window.series, window.late, window.refused].map(grouped);
        table.row([shown(name).into_owned()].into_iter().chain(counts));
    }
    writeln!(out, "{}", table.text())
}

/// Columns as wide as their widest cell, numbers to the right.
pub(crate) struct Table {
    lines: Vec<Line>,
    left: Vec<usize>,
}

enum Line {
    Row(Vec<String>),
    Remark(String),
}

impl Table {
    /// A table with a header; the columns `left` are aligned to the left, all others to the right.
    pub(crate) fn new(header: &[&str], left: &[usize]) -> Self {
        let header = header.iter().map(|&cell| cell.to_owned()).collect();
        Self { lines: vec![Line::Row(header)], left: left.to_vec() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.lines.push(Line::Row(cells.into_iter().collect()));
    }

    /// Adds a line across all columns.
    fn remark(&mut self, text: String) {
        self.lines.push(Line::Remark(text));
    }

    /// The table, one line per row, each ended by a newline.
    pub(crate) fn text(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for line in &self.lines {
            let Line::Row(cells) = line else { continue };
            for (column, cell) in cells.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let mut out = String::new();
        for line in &self.lines {
            match line {
                Line::Row(cells) => out.push_str(self.row_text(cells, &widths).trim_end()),
                Line::Remark(text) => out.push_str(text),
            }
            out.push('\n');
        }
        out
    }

    fn row_text(&self, cells: &[String], widths: &[usize]) -> String {
        let aligned = cells.iter().zip(widths).enumerate().map(|(column, (cell, &width))| {
            if self.left.contains(&column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        aligned.collect::<Vec<_>>().join("  ")
    }
}

/// `text` with control characters, and those that turn the direction of writing, as visible escapes.
#[must_use]
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_odd) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_odd(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// True for control characters and those that turn the direction of writing.
pub(crate) fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `12345678` as `12 345 678`.
#[must_use]
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(count))
}

/// `1536` as `1.5 KiB`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "no limit".to_owned();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// `3725.5` as `1 h 2 min`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped; a cast of floats saturates"
)]
fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", whole % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::fixture;

    #[tokio::test]
    async fn one_screen_shows_states_sources_ledgers_and_the_balance() {
        let (rooms, inputs) = fixture::rooms();
        rooms.cloud.send_modify(|report| report.last_error = Some("503 Service Unavailable".into()));
        let text = render(&Status::read(&inputs));
        let line = |start: &str| {
            let found = text.lines().find(|line| line.starts_with(start));
            found
                .unwrap_or_else(|| panic!("no {start} in\n{text}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(line("ONLINE"), "ONLINE Everything received is stored, and every sink takes it.");
        assert_eq!(line("plant"), "plant connected 1 012 1 000 4 6 2");
        assert_eq!(line("gone"), "gone removed 1 012 1 000 4 6 2");
        assert_eq!(line("cloud"), "cloud up readings 1 000 985 10 1 4 balanced");
        assert_eq!(line("old"), "old removed readings 1 000 10 990 0 0 balanced");
        assert_eq!(line("  last error"), "last error: 503 Service Unavailable");
        assert_eq!(line("DEAD"), "DEAD LETTERS 5 kept (777 B); see: holdfast dead-letters list");
        assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[tokio::test]
    async fn no_control_character_reaches_the_terminal() {
        let (rooms, inputs) = fixture::rooms();
        rooms.plant.send_modify(|report| report.last_error = Some("\u{1b}]0;owned\u{7}\n\u{202e}x".into()));
        let text = render(&Status::read(&inputs));
        assert!(text.contains(r"\u{1b}]0;owned\u{7}\n\u{202e}x"), "{text}");
        assert!(text.chars().all(|c| !c.is_control() || c == '\n'), "{text:?}");
    }

    #[test]
    fn numbers_read_easily() {
        assert_eq!([0, 999, 1_000, 12_345_678].map(grouped), ["0", "999", "1 000", "12 345 678"]);
        assert_eq!([0, 1_023, 1_536, 1 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "1.0 GiB"]);
        let times = [0.4, 59.9, 61.0, 3_725.0, 200_000.0, -1.0].map(seconds);
        assert_eq!(times, ["0 s", "59 s", "1 min 1 s", "1 h 2 min", "2 d 7 h", "0 s"]);
        assert_eq!(percent(1, 0), "no limit");
        assert_eq!(percent(512, 1_024), "50.0 %");
    }
}
