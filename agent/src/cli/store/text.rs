//! A report of [`crate::store::offline::verify`] for people.

use std::fmt::Write;

use crate::status::text::{Table, bytes, grouped, shown};
use crate::store::offline::{Report, Scanned};

/// The report as text.
pub(super) fn report(report: &Report) -> String {
    let mut out = String::new();
    write(report, &mut out).expect("writing to a String cannot fail");
    out
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(out, "{} ({})", shown(&report.path.to_string_lossy()), bytes(report.bytes))?;
    if let (Some(agent), Some(epoch), Some(commit)) = (&report.agent, report.epoch, report.commit) {
        writeln!(out, "agent {}, epoch {epoch}, commit {}", shown(agent), grouped(commit))?;
    }
    if report.recovered {
        writeln!(
            out,
            "was not closed cleanly; recovered in memory for this look, and for good when an agent starts"
        )?;
    }
    streams(report, out)?;
    sinks(report, out)?;
    if report.commit.is_some() {
        writeln!(
            out,
            "\ndead letters: {} ({}); sources added up: {}",
            grouped(report.dead_letters),
            bytes(report.dead_letter_bytes),
            report.sources
        )?;
    }
    if let Some(Scanned { chunks, records }) = report.scanned {
        writeln!(
            out,
            "\na look through the bytes finds {} whole chunks with {} records, perhaps some that were removed",
            grouped(chunks),
            grouped(records)
        )?;
    }
    verdict(report, out)
}

fn streams(report: &Report, out: &mut String) -> std::fmt::Result {
    if report.streams.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["STREAM", "RECORDS", "CHUNKS", "UNREADABLE", "ON DISK", "NUMBERS"], &[0, 5]);
    for (name, stream) in &report.streams {
        let numbers = match (stream.first, stream.last) {
            (Some(first), Some(last)) => format!("{}..{}", grouped(first.0), grouped(last.0)),
            _ => "none".to_owned(),
        };
        table.row([
            (*name).to_owned(),
            grouped(stream.records),
            grouped(stream.chunks),
            grouped(stream.unreadable_chunks),
            bytes(stream.bytes),
            numbers,
        ]);
    }
    write!(out, "\n{}", table.text())?;
    for (name, stream) in report.streams.iter().filter(|(_, stream)| stream.base > 0) {
        let base = grouped(stream.base);
        writeln!(out, "{name}: an epoch began; numbers as sinks see them are lower by {base}")?;
    }
    Ok(())
}

fn sinks(report: &Report, out: &mut String) -> std::fmt::Result {
    if report.sinks.is_empty() {
        return Ok(());
    }
    let header = ["SINK", "STREAM", "APPENDED", "= DELIVERED", "+ PENDING", "+ DEAD", "+ SHED", "BOOKS"];
    let mut table = Table::new(&header, &[0, 1, 7]);
    for (sink, streams) in &report.sinks {
        for (stream, ledger) in streams {
            let books = match (ledger.balances, ledger.configured) {
                (true, true) => "balanced",
                (true, false) => "balanced, sink removed",
                (false, _) => "NOT BALANCED",
            };
            let counts =
                [ledger.appended, ledger.delivered, ledger.pending, ledger.dead_lettered, ledger.shed];
            let words = [shown(sink).into_owned(), (*stream).to_owned()];
            table.row(words.into_iter().chain(counts.map(grouped)).chain([books.to_owned()]));
        }
    }
    write!(out, "\n{}", table.text())
}

fn verdict(report: &Report, out: &mut String) -> std::fmt::Result {
    if report.sound {
        return writeln!(out, "\nsound: all that is held can be read, and the books balance");
    }
    let count = report.findings.len() as u64 + report.more_findings;
    writeln!(out, "\nNOT SOUND: {} finding{}", grouped(count), if count == 1 { "" } else { "s" })?;
    for finding in &report.findings {
        writeln!(out, "{}", shown(&finding.to_string()))?;
    }
    if report.more_findings > 0 {
        writeln!(out, "and {} more", grouped(report.more_findings))?;
    }
    Ok(())
}
