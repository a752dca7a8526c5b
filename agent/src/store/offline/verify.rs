//! Verifying a store: structure, checksums, sequences, and the ledger recounted from the data.
//!
//! Each part reads in a transaction of its own, so that a damaged page ends that part with a finding and not the others. The
//! pure half is in [`super::ledgers`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redb::{ReadableDatabase, ReadableTable, TableHandle};
use serde::Serialize;

use super::findings::{Finding, Findings, Kind};
use super::ledgers::{self, Holds};
use super::rows::{self, Walked};
use super::scan::{self, Scanned};
use super::{Closed, Looking, Phase, Progress};
use crate::causes::chain;
use crate::store::file::{self, DEAD_LETTERS, Error, FILE_NAME, SERIES, STATE};
use crate::store::format::{self, FORMAT, Found};
use crate::store::ledger::{Books, Identity, Presence};
use crate::store::log::{IDENTITY_ROW, RECENT_ROW};
use crate::store::recent::Change;
use crate::store::{DeadLetter, checkpoint};
use crate::stream::{Epoch, Seq, Stream};

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// True if nothing is off.
    pub sound: bool,
    /// True if the store was not closed cleanly; that is no finding: redb recovers when it is opened.
    pub recovered: bool,
    /// Whose it is.
    pub agent: Option<String>,
    /// The epoch of its numbers.
    pub epoch: Option<Epoch>,
    /// The last commit.
    pub commit: Option<u64>,
    /// What each stream holds, by name.
    pub streams: BTreeMap<&'static str, StreamReport>,
    /// Each sink's ledgers, recounted, by sink and stream.
    pub sinks: BTreeMap<String, BTreeMap<&'static str, LedgerReport>>,
    /// How many sources were added up.
    pub sources: usize,
    /// Dead letters that can be read.
    pub dead_letters: u64,
    /// Their bytes.
    pub dead_letter_bytes: u64,
    /// What a look through the bytes found, where redb cannot open the file or its pages are damaged.
    pub scanned: Option<Scanned>,
    /// What is off: at most a few of each kind.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more_findings: u64,
}

/// What a stream holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StreamReport {
    /// Records that can be read.
    pub records: u64,
    /// Chunks.
    pub chunks: u64,
    /// Chunks that cannot be read.
    pub unreadable_chunks: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// The first number held, as stored.
    pub first: Option<Seq>,
    /// The last.
    pub last: Option<Seq>,
    /// Records appended in this epoch.
    pub appended: u64,
    /// By how much the numbers stored are higher than those that sinks see.
    pub base: u64,
}

/// One sink's ledger of one stream; `pending` is recounted number by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LedgerReport {
    /// Records appended in this epoch.
    pub appended: u64,
    /// Records that the sink has.
    pub delivered: u64,
    /// Records still to be delivered.
    pub pending: u64,
    /// Records refused for good.
    pub dead_lettered: u64,
    /// Records it will never get, by rule.
    pub shed: u64,
    /// False if the sink is configured no more.
    pub configured: bool,
    /// `appended = delivered + pending + dead_lettered + shed`.
    pub balances: bool,
}

/// Verifies the store in `dir`, changing nothing. `takes` says which streams a sink takes by the configuration, if that knows it: what
/// it takes no more need not be held.
///
/// # Errors
/// If there is no store, if it is in use or of a newer format, or if the system does not let us read it.
pub fn verify(
    dir: &Path,
    takes: &dyn Fn(&str, Stream) -> Option<bool>,
    progress: &Progress,
) -> Result<Report, Error> {
    let path = dir.join(FILE_NAME);
    let mut report = Report { bytes: super::existing(&path)?, path, ..Report::default() };
    let mut findings = Findings::default();
    match Looking::at(dir, progress) {
        Ok(looking) => {
            report.recovered = looking.closed == Closed::Uncleanly;
            let mut look = Look { looking: &looking, findings: &mut findings, report: &mut report };
            look.all(takes, progress)?;
            looking.file.close();
        }
        Err(error @ (Error::Damaged { .. } | Error::Io(_))) => {
            findings.add(Finding::new(Kind::Unopenable, format!("cannot be opened: {}", chain(&error))));
        }
        Err(error) => return Err(error),
    }
    let is_damaged = |finding: &Finding| matches!(finding.kind, Kind::Unopenable | Kind::Pages | Kind::Table);
    if findings.list.iter().any(is_damaged) {
        // If the bytes cannot be read either, the finding says enough.
        report.scanned = scan::scan(&report.path, progress).ok();
    }
    report.sound = findings.list.is_empty();
    report.findings = findings.list;
    report.more_findings = findings.more;
    Ok(report)
}

/// One look at everything.
struct Look<'a> {
    looking: &'a Looking,
    findings: &'a mut Findings,
    report: &'a mut Report,
}

impl Look<'_> {
    fn all(
        &mut self,
        takes: &dyn Fn(&str, Stream) -> Option<bool>,
        progress: &Progress,
    ) -> Result<(), Error> {
        if !self.pages() {
            return Ok(());
        }
        self.identity()?;
        let walked = self.chunks(progress);
        let [readings, _, _] = &walked;
        let Some(books) = readings.books.clone() else {
            self.no_books(&walked);
            return Ok(());
        };
        self.books(&books, &walked, takes);
        self.part("series", |look| look.series());
        self.part("recent messages", |look| look.recent(&books));
        self.part("marks of the windows", |look| look.marks(&books));
        self.part("dead letters", |look| look.dead_letters(&books));
        Ok(())
    }

    /// Runs one part; an error of redb is a finding.
    fn part(&mut self, what: &str, part: impl FnOnce(&mut Self) -> Result<(), Error>) {
        if let Err(error) = part(self) {
            let what = format!("{what} cannot be read to the end: {}", chain(&error));
            self.findings.add(Finding::new(Kind::Table, what));
        }
    }

    /// redb's own check of all pages. What it would put right it puts right in memory; we then look at the file as it is. False
    /// if it does not open again.
    fn pages(&mut self) -> bool {
        self.looking.meter.begin(Phase::Pages, self.looking.bytes);
        let checked = self.looking.file.alone(|database| Ok(database.check_integrity()?));
        let what = match checked {
            Ok(true) => None,
            Ok(false) => Some("redb's pages are not as they were written; it could mend them, perhaps by going back a commit".to_owned()),
            Err(error) => Some(format!("redb's pages cannot be checked: {}", chain(&error))),
        };
        let Some(what) = what else { return true };
        self.findings.add(Finding::new(Kind::Pages, what));
        self.looking.meter.begin(Phase::Opening, self.looking.bytes);
        let reopened = self.looking.file.reopen();
        if let Err(error) = &reopened {
            self.findings
                .add(Finding::new(Kind::Unopenable, format!("does not open again: {}", chain(error))));
        }
        reopened.is_ok()
    }

    /// The tables, the format, and whose it is.
    fn identity(&mut self) -> Result<(), Error> {
        let read = self.looking.file.read(|transaction| {
            let state = transaction.open_table(STATE)?;
            let row = |key: &str| Ok::<_, Error>(state.get(key)?.map(|row| row.value().to_vec()));
            Ok((row(format::ROW)?, row(IDENTITY_ROW)?))
        });
        let tables = self.looking.file.alone(|database| {
            let transaction = database.begin_read()?;
            Ok(transaction.list_tables()?.map(|table| table.name().to_owned()).collect::<Vec<_>>())
        });
        let expected = Stream::ALL.map(|stream| file::table(stream).name().to_owned());
        let others = [STATE.name(), SERIES.name(), DEAD_LETTERS.name()].map(str::to_owned);
        match tables {
            Ok(tables) => {
                for name in expected.into_iter().chain(others).filter(|name| !tables.contains(name)) {
                    self.findings.add(Finding::new(Kind::Table, format!("the table {name:?} is missing")));
                }
            }
            Err(error) => self
                .findings
                .add(Finding::new(Kind::Table, format!("the tables cannot be listed: {}", chain(&error)))),
        }
        let (format, identity) = match read {
            Ok(rows) => rows,
            Err(error) => {
                let what = format!("what the store is cannot be read: {}", chain(&error));
                self.findings.add(Finding::new(Kind::Identity, what));
                return Ok(());
            }
        };
        match format.as_deref().map(Found::read) {
            Some(Found::Newer(found)) => return Err(Error::Newer { found, known: FORMAT }),
            Some(Found::Current | Found::Older(_)) => {}
            Some(Found::Mended) => {
                let what = "the row with the format is damaged, and what it was is known all the same";
                self.findings.add(Finding::new(Kind::Identity, what));
            }
            Some(Found::Spoiled) => {
                self.findings.add(Finding::new(Kind::Identity, "the format cannot be read"));
            }
            None => self.findings.add(Finding::new(Kind::Identity, "the format is not there")),
        }
        match identity.as_deref().map(postcard::from_bytes::<Identity>) {
            Some(Ok(identity)) => self.report.agent = Some(identity.agent),
            Some(Err(_)) => {
                self.findings.add(Finding::new(Kind::Identity, "whose the store is cannot be read"));
            }
            None => self.findings.add(Finding::new(Kind::Identity, "whose the store is is not there")),
        }
        Ok(())
    }

    fn chunks(&mut self, progress: &Progress) -> [Walked; 3] {
        self.looking.meter.begin(Phase::Chunks, self.looking.bytes);
        let (mut done, total) = (0, self.looking.bytes);
        let mut all: [Walked; 3] = Default::default();
        for stream in Stream::ALL {
            let walked = &mut all[stream.index()];
            let looking = self.looking;
            self.part(stream.name(), |look| {
                looking.file.read(|transaction| {
                    rows::walk(transaction, stream, walked, look.findings, &mut |bytes| {
                        done += bytes;
                        progress.tell(Phase::Chunks, done, total);
                    })
                })
            });
        }
        let books = all[Stream::Readings.index()].books.clone();
        for stream in Stream::ALL {
            let next = books.as_ref().map(|books| books.stream(stream).next);
            all[stream.index()].end(stream, next, self.findings);
            let walked = &all[stream.index()];
            let numbers = || walked.readable.iter().chain(&walked.unreadable);
            let of_stream = books.as_ref().map(|books| *books.stream(stream));
            let held = StreamReport {
                records: walked.records,
                chunks: walked.chunks,
                unreadable_chunks: walked.unreadable_chunks,
                bytes: walked.bytes,
                first: numbers().map(|run| run.first).min(),
                last: numbers().map(|run| run.last).max(),
                appended: of_stream.map_or(0, |books| books.next.0.saturating_sub(books.first().0)),
                base: of_stream.map_or(0, |books| books.base),
            };
            self.report.streams.insert(stream.name(), held);
        }
        all
    }

    /// No last commit: right only for a store in which nothing was ever committed.
    fn no_books(&mut self, walked: &[Walked; 3]) {
        let is_new = walked.iter().all(|walked| walked.chunks == 0) && self.report.agent.is_none();
        let what = if is_new {
            "no agent has committed anything yet"
        } else {
            "the state of the last commit cannot be read; books, dead letters and checkpoints were not looked at"
        };
        self.findings.add(Finding::new(Kind::Note, what));
    }

    /// The books of the last commit, recounted.
    fn books(&mut self, books: &Books, walked: &[Walked; 3], takes: &dyn Fn(&str, Stream) -> Option<bool>) {
        self.report.epoch = Some(books.epoch);
        self.report.commit = Some(books.commit);
        self.report.sources = books.sources.len();
        if books.epoch.0.is_nil() {
            self.findings.add(Finding::new(Kind::Identity, "no epoch has begun"));
        }
        for stream in Stream::ALL {
            ledgers::check_stream(stream, books, &walked[stream.index()], self.findings);
        }
        ledgers::check_checkpoint(books, self.findings);
        for (name, counts) in &books.sources {
            ledgers::check_source(name, counts, self.findings);
        }
        for (name, sink) in &books.sinks {
            for (stream, ledger) in &sink.streams {
                let (stream, of_stream) = (*stream, books.stream(*stream));
                ledgers::check_ledger((name, stream), ledger, of_stream, self.findings);
                if ledgers::holds(sink.presence, takes(name, stream)) == Holds::Yes {
                    let walked = &walked[stream.index()];
                    ledgers::check_wanted((name, stream), ledger, of_stream, walked, self.findings);
                }
                let mut row = LedgerReport {
                    appended: of_stream.next.0.saturating_sub(of_stream.first().0),
                    delivered: ledger.delivered,
                    pending: ledgers::pending(ledger, of_stream.next),
                    dead_lettered: ledger.dead_lettered,
                    shed: ledger.shed,
                    configured: sink.presence == Presence::Configured,
                    balances: false,
                };
                let parts = [row.delivered, row.pending, row.dead_lettered, row.shed];
                let sum = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(*part));
                row.balances = sum == Some(row.appended);
                self.report.sinks.entry(name.clone()).or_default().insert(stream.name(), row);
            }
        }
    }

    /// The rows of the windows' checkpoint: what is in them only the windows know.
    fn series(&mut self) -> Result<(), Error> {
        self.looking.file.read(|transaction| {
            for row in transaction.open_table(SERIES)?.iter()? {
                row?;
            }
            Ok(())
        })
    }

    fn marks(&mut self, books: &Books) -> Result<(), Error> {
        let findings = &mut *self.findings;
        self.looking.file.read(|transaction| {
            for row in transaction.open_table(STATE)?.range(checkpoint::MARKS)? {
                let (key, value) = row?;
                let what = match postcard::from_bytes::<(Seq, Vec<u8>)>(value.value()) {
                    Ok((position, _)) if position <= books.stream(Stream::Readings).next => continue,
                    Ok((position, _)) => format!("{} is at {position}, which is not stored yet", key.value()),
                    Err(_) => format!("{} cannot be read", key.value()),
                };
                findings.add(Finding::new(Kind::Checkpoint, what));
            }
            Ok(())
        })
    }

    fn recent(&mut self, books: &Books) -> Result<(), Error> {
        let row = self.looking.file.read(|transaction| {
            let state = transaction.open_table(STATE)?;
            Ok(state.get(RECENT_ROW)?.map(|row| postcard::from_bytes::<(u64, Seq, Vec<Change>)>(row.value())))
        })?;
        let stream = books.stream(Stream::Readings);
        let off = match row {
            // Without a copy every row that was ever written has to be there.
            None => (stream.oldest > Seq::FIRST)
                .then(|| "what peers sent before the oldest reading is lost".to_owned()),
            Some(Err(_)) => Some("what peers sent last cannot be read".to_owned()),
            Some(Ok((commit, position, _))) if commit > books.commit || position > stream.next => {
                Some(format!("what peers sent is as of commit {commit} at {position}, which is to come"))
            }
            Some(Ok((_, position, _))) => (position < stream.oldest)
                .then(|| format!("what peers sent between {position} and {} is lost", stream.oldest)),
        };
        if let Some(what) = off {
            self.findings.add(Finding::new(Kind::Recent, what));
        }
        Ok(())
    }

    fn dead_letters(&mut self, books: &Books) -> Result<(), Error> {
        let (findings, report) = (&mut *self.findings, &mut *self.report);
        let (books, lost) = (&books.dead_letters, books.damage.lost_letters);
        let (mut kept, mut kept_bytes) = (0, 0);
        self.looking.file.read(|transaction| {
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (id, value) = row?;
                let (id, bytes) = (id.value(), value.value());
                kept += 1;
                kept_bytes += bytes.len() as u64;
                let what = match postcard::from_bytes::<DeadLetter>(bytes) {
                    Ok(letter) if letter.id != id => {
                        format!("dead letter {} lies in the row of {id}", letter.id)
                    }
                    Ok(_) if id > books.last_id => {
                        format!("dead letter {id} is there, while {} was the last", books.last_id)
                    }
                    Ok(_) => {
                        report.dead_letters += 1;
                        report.dead_letter_bytes += bytes.len() as u64;
                        continue;
                    }
                    Err(_) => format!("dead letter {id} cannot be read"),
                };
                findings.add(Finding::new(Kind::DeadLetter, what));
            }
            Ok(())
        })?;
        if (kept, kept_bytes) != (books.kept, books.kept_bytes) {
            let what = format!(
                "the books count {} dead letters of {} bytes; there are {kept} of {kept_bytes}",
                books.kept, books.kept_bytes
            );
            findings.add(Finding::new(Kind::DeadLetter, what));
        }
        let gone = [books.purged, books.purged_by_hand, books.replayed, lost];
        if gone.iter().fold(books.kept, |sum, part| sum.saturating_add(*part)) != books.last_id {
            let what = format!(
                "{} dead letters ever came; that are not {} kept + {} purged + {} purged by hand + {} replayed + {lost} lost",
                books.last_id, books.kept, books.purged, books.purged_by_hand, books.replayed
            );
            findings.add(Finding::new(Kind::DeadLetter, what));
        }
        Ok(())
    }
}
