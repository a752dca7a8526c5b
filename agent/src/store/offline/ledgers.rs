//! Recounting the books: what every sink's ledger says, number by number, against itself and against what is held. Pure.

use super::findings::{Finding, Findings, Kind};
use super::rows::Walked;
use super::runs;
use crate::store::ledger::{Books, Ledger, Presence, SourceCounts, StreamBooks};
use crate::stream::{Gap, GapReason, Seq, SeqRange, Stream};

/// Whether a ledger's records must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// What the sink still has to get is kept for it.
    Yes,
    /// It is not configured, or does not take this stream any more: its ledger is frozen and holds nothing back.
    No,
}

/// Whether the records that `sink` still wants of `stream` must be held; `takes` says what the configuration says, if it knows the
/// sink.
pub(super) fn holds(presence: Presence, takes: Option<bool>) -> Holds {
    match (presence, takes) {
        (Presence::Removed, _) | (Presence::Configured, Some(false)) => Holds::No,
        (Presence::Configured, Some(true) | None) => Holds::Yes,
    }
}

/// The numbers that `ledger` declares as gaps, as a set.
fn declared(ledger: &Ledger) -> Vec<SeqRange> {
    runs::set(gaps(ledger).map(|gap| gap.range))
}

fn gaps(ledger: &Ledger) -> impl Iterator<Item = &Gap> {
    ledger.pins.iter().flat_map(|pin| &pin.gaps).chain(&ledger.ahead)
}

/// The numbers that the sink still has to get.
fn wanted(ledger: &Ledger, next: Seq) -> Vec<SeqRange> {
    let open: Vec<SeqRange> = runs::run(ledger.cursor, next).into_iter().collect();
    runs::without(&open, &declared(ledger))
}

/// How many records the sink still has to get, counted number by number.
pub(super) fn pending(ledger: &Ledger, next: Seq) -> u64 {
    runs::count(&wanted(ledger, next))
}

/// Recounts one ledger.
pub(super) fn check_ledger(
    (sink, stream): (&str, Stream),
    ledger: &Ledger,
    books: &StreamBooks,
    findings: &mut Findings,
) {
    let mut off = |what: String| {
        findings.add(Finding::new(Kind::Ledger, format!("sink {sink:?}: {what}")).of(stream));
    };
    let (first, next) = (books.first(), books.next);
    if ledger.cursor < first || ledger.cursor > next {
        off(format!("the cursor is {}, outside {first}..{next}", ledger.cursor));
    }
    let mut start = ledger.cursor;
    for pin in &ledger.pins {
        if pin.last < start || pin.last >= next {
            off(format!("a batch ends at {}; it begins at {start}, and {next} is not stored yet", pin.last));
        }
        check_gaps(&pin.gaps, start, pin.last, &mut off);
        start = Seq(pin.last.0.saturating_add(1)).max(start);
    }
    check_gaps(&ledger.ahead, start, Seq(next.0.saturating_sub(1)), &mut off);

    let is_in_order = ledger.missed.is_sorted_by(|earlier, later| earlier.last < later.first);
    let is_past_end = ledger.missed.last().is_some_and(|range| range.last >= next);
    if !is_in_order || is_past_end || ledger.missed.iter().any(|range| range.first > range.last) {
        off(format!("what it never gets is not in order below {next}: {:?}", ledger.missed));
    }

    let pending = pending(ledger, next);
    let settled = [ledger.delivered, ledger.dead_lettered, ledger.shed];
    let sum = settled.iter().fold(pending, |sum, part| sum.saturating_add(*part));
    if sum != books.appended() {
        off(format!(
            "{} appended are not {} delivered + {pending} pending + {} dead-lettered + {} shed",
            books.appended(),
            ledger.delivered,
            ledger.dead_lettered,
            ledger.shed
        ));
    }
    if ledger.pending(next) != pending {
        off(format!("{} are said to be pending; number by number they are {pending}", ledger.pending(next)));
    }
    for (name, counted, is_of) in counters(ledger) {
        let waiting: u64 = gaps(ledger).filter(|gap| is_of(gap.reason)).map(|gap| gap.range.count()).sum();
        if waiting > counted {
            off(format!("{waiting} numbers wait to be declared {name}, of {counted} ever counted so"));
        }
    }
}

type IsOf = fn(GapReason) -> bool;

/// Each counter of a ledger with the gaps that it counts.
fn counters(ledger: &Ledger) -> [(&'static str, u64, IsOf); 3] {
    [
        ("dead letters", ledger.dead_lettered, |reason| reason == GapReason::DeadLetter),
        ("delivered before", ledger.delivered, |reason| reason == GapReason::Replay),
        ("shed", ledger.shed, |reason| !matches!(reason, GapReason::DeadLetter | GapReason::Replay)),
    ]
}

fn check_gaps(gaps: &[Gap], first: Seq, last: Seq, off: &mut impl FnMut(String)) {
    let mut from = first;
    for Gap { range, reason } in gaps {
        if range.first > range.last || range.first < from || range.last > last {
            off(format!(
                "the gap {}..{} ({}) does not lie in order within {first}..{last}",
                range.first,
                range.last,
                reason.name()
            ));
        }
        from = from.max(Seq(range.last.0.saturating_add(1)));
    }
}

/// Finds what the sink still wants and is not there to be sent.
pub(super) fn check_wanted(
    (sink, stream): (&str, Stream),
    ledger: &Ledger,
    books: &StreamBooks,
    walked: &Walked,
    findings: &mut Findings,
) {
    let missing = runs::without(&wanted(ledger, books.next), &walked.readable);
    let unreadable = runs::both(&missing, &walked.unreadable);
    let mut add = |runs: &[SeqRange], what: String| {
        if let (Some(first), Some(last)) = (runs.first(), runs.last()) {
            let range = SeqRange { first: first.first, last: last.last };
            findings.add(Finding::new(Kind::Wanted, what).of(stream).at(range));
        }
    };
    let count = runs::count(&unreadable);
    add(&unreadable, format!("sink {sink:?} still has to get {count} of these, which cannot be read"));
    for run in runs::without(&missing, &unreadable) {
        let count = run.count();
        add(
            &[run],
            format!(
                "sink {sink:?} still has to get these {count}, which are neither held nor declared missing"
            ),
        );
    }
}

/// Adds up the messages of one source.
pub(super) fn check_source(source: &str, counts: &SourceCounts, findings: &mut Findings) {
    let SourceCounts { received, stored, rejected, redelivered, skipped, unprotected, .. } = *counts;
    let sum = [stored, rejected, redelivered, skipped].iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
    if received != sum {
        let what = format!(
            "source {source:?}: {received} received are not {stored} stored + {rejected} rejected + \
             {redelivered} redelivered + {skipped} skipped"
        );
        findings.add(Finding::new(Kind::Source, what));
    }
    if unprotected > received {
        let what = format!("source {source:?}: {unprotected} of {received} messages came with QoS 0");
        findings.add(Finding::new(Kind::Source, what));
    }
}

/// What the books say of a stream against what its rows say.
pub(super) fn check_stream(stream: Stream, books: &Books, walked: &Walked, findings: &mut Findings) {
    let of_stream = books.stream(stream);
    let holes = &books.holes[stream.index()];
    let mut add = |kind, range: Option<SeqRange>, what: String| {
        let finding = Finding::new(kind, what).of(stream);
        findings.add(match range {
            Some(range) => finding.at(range),
            None => finding,
        });
    };
    let StreamBooks { base, next, oldest, held_bytes, held_chunks } = *of_stream;
    if oldest > next || base >= next.0 {
        add(
            Kind::Order,
            None,
            format!("the oldest number is {oldest}, the next {next}, the epoch began after {base}"),
        );
    }
    for pair in holes.windows(2) {
        if pair[1].first <= pair[0].last {
            add(Kind::Order, Some(pair[1]), "the numbers given up are not in order".to_owned());
        }
    }
    let gone = runs::set(holes.iter().copied());
    let there = runs::set(walked.readable.iter().chain(&walked.unreadable).copied());
    let span: Vec<SeqRange> = runs::run(oldest, next).into_iter().collect();
    for run in runs::without(&there, &span) {
        let what = format!("these are held, while the books say that {oldest}..{next} are");
        add(Kind::Order, Some(run), what);
    }
    for run in runs::both(&there, &gone) {
        add(Kind::Order, Some(run), "these are held, while the books say that they were given up".to_owned());
    }
    for run in runs::without(&runs::without(&span, &there), &gone) {
        add(
            Kind::Missing,
            Some(run),
            format!("{} records are not held and were never given up", run.count()),
        );
    }
    if (walked.chunks, walked.bytes) != (held_chunks, held_bytes) {
        let what = format!(
            "the books count {held_chunks} chunks of {held_bytes} bytes; there are {} of {}",
            walked.chunks, walked.bytes
        );
        add(Kind::Held, None, what);
    }
}

/// Where the windows' checkpoint is, within what there is.
pub(super) fn check_checkpoint(books: &Books, findings: &mut Findings) {
    let places = [
        (Stream::Readings, books.checkpoint.position, "the windows have read"),
        (Stream::Windows, books.checkpoint.windows_next, "the windows' checkpoint knows results"),
    ];
    for (stream, place, what) in places {
        let StreamBooks { oldest, next, .. } = *books.stream(stream);
        if place < oldest || place > next {
            let what = format!("{what} up to {place}, while {oldest}..{next} are held");
            findings.add(Finding::new(Kind::Checkpoint, what).of(stream));
        }
    }
}
