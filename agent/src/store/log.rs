//! Room 4: the commit. Everything that waits becomes one durable transaction.
//!
//! In: [`Work`]. Out: the books after it. Promised: all or nothing, and the books are those of the data. A commit of
//! readings alone writes one row (see [`super::note`]); window results, dead letters and checkpoints add theirs.
//!
//! ```text
//!   group ──► chunks ─┐
//!   windows ► chunks ─┼─► auto-pin ─► shed, trim ─► note ─► commit (one sync)
//!   sinks   ► ledgers ┘
//! ```

use std::collections::HashMap;
use std::time::Duration;

use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};
use tokio::time::Instant;

use super::chunk::Packed;
use super::file::{self, DEAD_LETTERS, Error, File, READINGS, SERIES, STATE, WINDOWS};
use super::ledger::{Books, Ledger, Presence, SinkBooks};
use super::note::Note;
use super::recent::{Change, Recent};
use super::retention;
use super::settings::Settings;
use super::work::{Group, LedgerChange, LedgerEvent, Letter, SinkSpec, Work};
use super::{CheckpointBase, DeadLetter, WindowsUpdate, chunk, codec};
use crate::forward::settings::BatchLimits;
use crate::reading::{Reading, Timestamp};
use crate::stream::{GapReason, Seq, SeqRange, Stream};
use crate::wire;

/// The row of `state` with what the peers sent.
const RECENT_ROW: &str = "recent";
/// Rows of `state` with notes of updates of the windows that appended nothing, by commit; gone with the next checkpoint.
const MARKS: std::ops::Range<&str> = "mark/".."mark0";
/// A whole copy of what the peers sent is written after this many commits...
const RECENT_EVERY_COMMITS: u64 = 256;
/// ...or this many bytes of readings, so that opening the store reads few chunks and old ones may go...
const RECENT_EVERY_BYTES: u64 = 16 << 20;
/// ...or this many messages that only rows without readings carry.
const RECENT_EVERY_CARRIED: usize = 16_384;
/// Readings of one group before the first chunk tells how well they compress.
const FIRST_CHUNK_READINGS: usize = 1_024;

/// The store's state, owned by the writer. Always equal to what is durable.
#[derive(Debug)]
pub(super) struct State {
    pub(super) books: Books,
    pub(super) recent: Recent,
    pub(super) sinks: Vec<SinkSpec>,
    pub(super) settings: Settings,
    /// Whether windows are configured: if not, nothing waits for their checkpoint.
    pub(super) windows: WindowsPresence,
    /// What the last row of the readings carries, if it has no records and the next commit replaces it.
    carried: Vec<Change>,
    recent_saved: RecentSaved,
    unpinned: HashMap<(String, Stream), Unpinned>,
    bytes_per_reading: f64,
    pub(super) trimmed_at_commit: u64,
}

/// Whether anybody computes windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowsPresence {
    Configured,
    None,
}

/// As of when the row of `state` tells what the peers sent.
#[derive(Clone, Copy, Debug, Default)]
struct RecentSaved {
    commit: u64,
    /// Readings before this need not be kept for it.
    position: Seq,
    bytes_since: u64,
}

/// What a sink's next batch would hold, while nothing of it is pinned. Known only for what was appended since start.
#[derive(Clone, Copy, Debug)]
struct Unpinned {
    first: Seq,
    end: Seq,
    bytes: usize,
    since: Instant,
}

/// A row on its way into the table of its stream.
struct Row {
    stream: Stream,
    first: Seq,
    count: u32,
    newest: Timestamp,
    packed: Packed,
}

/// What one commit is about to make true.
struct Draft {
    books: Books,
    rows: Vec<Row>,
    recent: Vec<Change>,
    letters: Vec<DeadLetter>,
    /// Bytes on disk of the readings.
    readings_bytes: u64,
}

impl State {
    /// Reads the state that the last commit left.
    pub(super) fn load(file: &File, settings: Settings, windows: WindowsPresence) -> Result<Self, Error> {
        let (note, carried, recent, recent_saved) = file.read(|transaction| {
            let readings = transaction.open_table(READINGS)?;
            let state = transaction.open_table(STATE)?;
            let saved = state.get(RECENT_ROW)?;
            let saved: Option<(u64, Seq, Vec<Change>)> = saved
                .map(|row| postcard::from_bytes(row.value()))
                .transpose()
                .map_err(|_| damaged("the row of recent messages"))?;
            let (saved_commit, position, snapshot) = saved.unwrap_or_default();

            let mut notes: Vec<Note> = Vec::new();
            let mut last_is_empty = false;
            for row in readings.iter()?.rev() {
                let (key, value) = row?;
                let seq = Seq(key.value());
                let of_chunk = |source| Error::Chunk { stream: Stream::Readings, seq, source };
                let chunk = chunk::Chunk::parse(value.value()).map_err(of_chunk)?;
                if chunk.note.is_empty() {
                    continue;
                }
                let note = Note::decode(chunk.note).map_err(|_| damaged("the note of the last commit"))?;
                if notes.is_empty() {
                    last_is_empty = chunk.header.count == 0;
                } else if note.books.commit <= saved_commit {
                    break;
                }
                notes.push(note);
            }
            let carried = notes.first().filter(|_| last_is_empty).map(|note| note.recent.clone());
            let mut recent = Recent::default();
            let later = notes.iter().rev().filter(|note| note.books.commit > saved_commit);
            for change in snapshot.iter().chain(later.flat_map(|note| &note.recent)) {
                recent.apply(change);
            }
            let saved = RecentSaved { commit: saved_commit, position, bytes_since: 0 };
            Ok((notes.into_iter().next(), carried.unwrap_or_default(), recent, saved))
        })?;
        let books = note.map(|note| note.books).unwrap_or_default();
        if windows == WindowsPresence::None {
            forget_windows(file)?;
        }
        Ok(Self {
            trimmed_at_commit: books.commit,
            books,
            recent,
            sinks: Vec::new(),
            settings,
            windows,
            carried,
            recent_saved,
            unpinned: HashMap::new(),
            bytes_per_reading: 48.0,
        })
    }

    /// Makes `work` durable. On an error nothing has changed here; the same work may be committed again.
    pub(super) fn commit(
        &mut self,
        file: &File,
        work: &Work,
        now: Instant,
        wall: Timestamp,
    ) -> Result<retention::Pressure, Error> {
        let mut draft = Draft {
            books: self.books.clone(),
            rows: Vec::new(),
            recent: Vec::new(),
            letters: Vec::new(),
            readings_bytes: 0,
        };
        draft.books.commit += 1;

        let sinks = work.sinks.as_deref().unwrap_or(&self.sinks);
        if work.sinks.is_some() {
            draft.books.configure_sinks(sinks);
        }
        let mut bytes_per_reading = self.bytes_per_reading;
        if let Some(group) = &work.group {
            draft.add_group(group, &mut bytes_per_reading);
        }
        if let Some(update) = &work.windows {
            draft.add_windows(update);
        }
        if self.windows == WindowsPresence::None {
            draft.books.checkpoint.position = draft.books.stream(Stream::Readings).next;
            draft.books.checkpoint.windows_next = draft.books.stream(Stream::Windows).next;
        }
        for change in &work.ledger {
            draft.change_ledger(change);
        }
        let unpinned = self.auto_pin(&mut draft.books, sinks, work, now);

        let position = draft.books.stream(Stream::Readings).next;
        let recent_after = self.is_recent_due(work, draft.readings_bytes).then(|| {
            let mut recent = self.recent.clone();
            draft.recent.iter().for_each(|change| recent.apply(change));
            recent
        });

        let pressure = file.write(|transaction| {
            if let Some(recent) = &recent_after {
                let row = (draft.books.commit, position, recent.snapshot());
                let row = postcard::to_stdvec(&row).expect("a Vec takes any bytes");
                transaction.open_table(STATE)?.insert(RECENT_ROW, row.as_slice())?;
            }
            for (key, value) in &work.remember {
                transaction.open_table(STATE)?.insert(key.as_str(), value.as_slice())?;
            }
            if let Some(update) = &work.windows {
                write_mark(transaction, update, draft.books.commit)?;
                write_checkpoint(transaction, update)?;
            }
            write_letters(transaction, &mut draft, self.settings.dead_letters.max_size_bytes)?;

            let limits = retention::Limits {
                settings: &self.settings,
                sinks,
                recent_position: if recent_after.is_some() { position } else { self.recent_saved.position },
                wall,
                trim_now: draft.books.commit >= self.trimmed_at_commit + retention::TRIM_EVERY_COMMITS,
            };
            let pressure = retention::enforce(transaction, &mut draft.books, &limits)?;
            self.write_rows(transaction, &mut draft, recent_after.is_some())?;
            Ok(pressure)
        })?;

        self.settle(draft, work, recent_after, pressure);
        self.unpinned = unpinned;
        self.bytes_per_reading = bytes_per_reading;
        Ok(pressure)
    }

    /// The commit is durable: it is the state now.
    fn settle(
        &mut self,
        draft: Draft,
        work: &Work,
        recent_after: Option<Recent>,
        pressure: retention::Pressure,
    ) {
        let before = std::mem::replace(&mut self.books, draft.books);
        let wrote_records = self.books.stream(Stream::Readings).next > before.stream(Stream::Readings).next;
        if let Some(recent) = recent_after {
            self.recent = recent;
            self.carried = Vec::new();
            self.recent_saved = RecentSaved {
                commit: self.books.commit,
                position: self.books.stream(Stream::Readings).next,
                bytes_since: 0,
            };
        } else {
            draft.recent.iter().for_each(|change| self.recent.apply(change));
            self.recent_saved.bytes_since += draft.readings_bytes;
            if wrote_records {
                self.carried = Vec::new();
            } else {
                self.carried.extend(draft.recent);
            }
        }
        if let Some(sinks) = &work.sinks {
            self.sinks.clone_from(sinks);
        }
        if pressure.trimmed {
            self.trimmed_at_commit = self.books.commit;
        }
    }

    fn is_recent_due(&self, work: &Work, readings_bytes: u64) -> bool {
        // Never so seldom that a full store holds much that may not go.
        let max_bytes = RECENT_EVERY_BYTES.min(self.settings.max_size_bytes / 8);
        let entries =
            |changes: &[Change]| changes.iter().map(|change| change.messages.len() + 1).sum::<usize>();
        let carried = entries(&self.carried) + work.group.as_ref().map_or(0, |group| entries(&group.recent));
        self.books.commit >= self.recent_saved.commit + RECENT_EVERY_COMMITS
            || self.recent_saved.bytes_since + readings_bytes > max_bytes
            || (carried >= RECENT_EVERY_CARRIED && !self.carried.is_empty())
    }

    /// Pins what is ready to be sent, so that no commit has to be made for it. See [`Unpinned`].
    fn auto_pin(
        &self,
        books: &mut Books,
        sinks: &[SinkSpec],
        work: &Work,
        now: Instant,
    ) -> HashMap<(String, Stream), Unpinned> {
        let mut all = HashMap::new();
        for stream in Stream::ALL {
            let appended = SeqSpan { from: self.books.stream(stream).next, to: books.stream(stream).next };
            let (bytes, since, sparse) = appended_weight(stream, work, now);
            for sink in sinks.iter().filter(|sink| sink.streams.contains(&stream)) {
                let Some(ledger) = books.sinks.get_mut(&sink.name).and_then(|s| s.streams.get_mut(&stream))
                else {
                    continue;
                };
                let key = (sink.name.clone(), stream);
                let known = self.unpinned.get(&key).filter(|known| known.end == appended.from);
                let mut waiting = known.copied().unwrap_or(Unpinned {
                    first: appended.from,
                    end: appended.from,
                    bytes: 0,
                    since,
                });
                if ledger.unpinned() != waiting.first {
                    // Something was pinned meanwhile, or there is a backlog that the sink cuts into batches itself.
                    waiting = Unpinned { first: appended.from, end: appended.from, bytes: 0, since };
                }
                waiting.end = appended.to;
                waiting.bytes += bytes;
                let is_contiguous = ledger.unpinned() == waiting.first;
                if is_contiguous && ledger.pins.is_empty() && waiting.is_ready(&sink.batch, now, sparse) {
                    ledger.pin(&[Seq(waiting.end.0 - 1)]);
                    continue;
                }
                if waiting.end > waiting.first {
                    all.insert(key, waiting);
                }
            }
        }
        all
    }

    fn write_rows(
        &self,
        transaction: &WriteTransaction,
        draft: &mut Draft,
        recent_saved: bool,
    ) -> Result<(), Error> {
        let has_readings = draft.rows.iter().any(|row| row.stream == Stream::Readings);
        if !has_readings {
            let first = draft.books.stream(Stream::Readings).next;
            let packed = Packed::new(Vec::new());
            draft.rows.push(Row { stream: Stream::Readings, first, count: 0, newest: Timestamp(0), packed });
        }
        let recent = if recent_saved {
            Vec::new()
        } else {
            self.carried.iter().chain(&draft.recent).cloned().collect()
        };
        let note = Note { books: draft.books.clone(), recent }.encode();

        let mut readings = transaction.open_table(READINGS)?;
        let last = draft.rows.iter().rposition(|row| row.stream == Stream::Readings);
        let rows: Vec<Row> = draft
            .rows
            .iter_mut()
            .map(|row| Row {
                stream: row.stream,
                first: row.first,
                count: row.count,
                newest: row.newest,
                packed: std::mem::replace(&mut row.packed, Packed::new(Vec::new())),
            })
            .collect();
        for (index, row) in rows.into_iter().enumerate() {
            let note: &[u8] = if Some(index) == last { &note } else { &[] };
            let key = row.first.0;
            let bytes = row.packed.write(row.stream, row.first, row.count, row.newest, note);
            match row.stream {
                Stream::Readings => drop(readings.insert(key, bytes.as_slice())?),
                Stream::Windows | Stream::Alerts => {
                    drop(transaction.open_table(file::table(row.stream))?.insert(key, bytes.as_slice())?);
                }
            }
        }
        Ok(())
    }
}

/// Numbers appended by a commit, perhaps none.
#[derive(Clone, Copy)]
struct SeqSpan {
    from: Seq,
    to: Seq,
}

impl Unpinned {
    /// Whether a batch of this may be pinned now: within the limits, and either full, old enough, or with nothing to
    /// wait for.
    fn is_ready(&self, limits: &BatchLimits, now: Instant, sparse: bool) -> bool {
        let records = self.end.0 - self.first.0;
        let fits = records > 0 && records <= limits.records && self.bytes <= limits.bytes;
        // A commit is made each `commit_interval`; one that comes a little early should not make the batch wait for the next.
        let waited = now.duration_since(self.since) + Duration::from_millis(50) >= limits.wait;
        fits && (records == limits.records || waited || sparse)
    }
}

/// An upper bound of the bytes that what this commit appends to `stream` takes in a batch; since when the oldest of it waits;
/// whether more is expected soon.
fn appended_weight(stream: Stream, work: &Work, now: Instant) -> (usize, Instant, bool) {
    match stream {
        Stream::Readings => work.group.as_ref().map_or((0, now, false), |group| {
            let bytes = group.readings.iter().map(wire::reading_bound).sum();
            (bytes, group.since.unwrap_or(now), group.sparse)
        }),
        Stream::Windows => work.windows.as_ref().map_or((0, now, false), |update| {
            (update.records.iter().map(wire::window_bound).sum(), now, false)
        }),
        Stream::Alerts => (0, now, false),
    }
}

impl Draft {
    fn add_group(&mut self, group: &Group, bytes_per_reading: &mut f64) {
        for (source, counts) in &group.counts {
            self.books.sources.entry(source.clone()).or_default().add(counts);
        }
        self.recent.extend_from_slice(&group.recent);
        for letter in &group.rejected {
            self.add_letter(letter);
        }
        let mut rest = group.readings.as_slice();
        while !rest.is_empty() {
            let (taken, row) = self.pack_readings(rest, bytes_per_reading);
            rest = &rest[taken..];
            self.rows.push(row);
        }
    }

    /// As many of `readings` as make one chunk of the best size.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate of a small positive number"
    )]
    fn pack_readings(&mut self, readings: &[Reading], bytes_per_reading: &mut f64) -> (usize, Row) {
        let estimate = (chunk::MAX_BYTES as f64 * 0.94 / *bytes_per_reading) as usize;
        let mut count = readings.len().min(estimate.clamp(1, 64 * FIRST_CHUNK_READINGS));
        loop {
            let taken = &readings[..count];
            let mut body = Vec::with_capacity(count * 64);
            codec::encode_readings(taken, &mut body);
            let packed = Packed::new(body);
            if packed.chunk_bytes() > chunk::MAX_BYTES - 4_096 && count > 1 {
                count = count * 9 / 10;
                *bytes_per_reading *= 1.1;
                continue;
            }
            if count > 64 {
                let seen = packed.chunk_bytes() as f64 / count as f64;
                *bytes_per_reading += (seen - *bytes_per_reading) * 0.25;
            }
            let newest = taken.iter().map(|reading| reading.received).max().unwrap_or_default();
            return (count, self.row(Stream::Readings, count, newest, packed));
        }
    }

    fn add_windows(&mut self, update: &WindowsUpdate) {
        let mut note = update.note.as_slice();
        let mut rest = update.records.as_slice();
        // A result takes 60 to 100 bytes, so this stays below the size at which redb wastes least.
        while !rest.is_empty() {
            let (records, later) = rest.split_at(rest.len().min(512));
            let mut body = Vec::new();
            codec::encode_windows(update.position.0, note, records, &mut body);
            let row = self.row(Stream::Windows, records.len(), Timestamp(0), Packed::new(body));
            self.rows.push(row);
            note = &[];
            rest = later;
        }
        if update.checkpoint.is_some() {
            self.books.checkpoint.position = update.position;
            self.books.checkpoint.windows_next = self.books.stream(Stream::Windows).next;
        }
    }

    /// Gives the next `count` numbers of `stream` to `packed`.
    fn row(&mut self, stream: Stream, count: usize, newest: Timestamp, packed: Packed) -> Row {
        let books = &mut self.books.streams[stream.index()];
        let first = books.next;
        books.next = first.plus(count as u64);
        let disk_bytes = retention::disk_bytes(packed.chunk_bytes());
        books.held_bytes += disk_bytes;
        if stream == Stream::Readings {
            self.readings_bytes += disk_bytes;
        }
        books.held_chunks += 1;
        let count = u32::try_from(count).expect("a chunk holds far fewer than 2^32 records");
        Row { stream, first, count, newest, packed }
    }

    fn change_ledger(&mut self, change: &LedgerChange) {
        let head = self.books.stream(change.stream).next;
        let sink = self.books.sinks.entry(change.sink.clone()).or_default();
        let ledger = sink.streams.entry(change.stream).or_default();
        match &change.event {
            LedgerEvent::Advance(next) => ledger.advance(*next, head),
            LedgerEvent::Pin(lasts) => {
                let lasts: Vec<Seq> = lasts.iter().copied().filter(|last| *last < head).collect();
                ledger.pin(&lasts);
            }
            LedgerEvent::Split => ledger.split_first_pin(),
            LedgerEvent::DeadLetter(seq, letter) => {
                if ledger.dead_letter(*seq) {
                    self.add_letter(letter);
                }
            }
        }
    }

    fn add_letter(&mut self, letter: &Letter) {
        let books = &mut self.books.dead_letters;
        books.last_id += 1;
        self.letters.push(DeadLetter {
            id: books.last_id,
            time: letter.time,
            origin: letter.origin.clone(),
            reason: letter.reason.clone(),
            payload: letter.payload.clone(),
            payload_bytes: letter.payload_bytes,
            payload_hash: letter.payload_hash,
        });
    }
}

impl Books {
    /// Makes the ledgers those of `sinks`. A new sink starts at the oldest record held; what came before is shed for it.
    fn configure_sinks(&mut self, sinks: &[SinkSpec]) {
        for (name, books) in &mut self.sinks {
            if !sinks.iter().any(|sink| sink.name == *name) {
                books.presence = Presence::Removed;
            }
        }
        for sink in sinks {
            let returns = self.sinks.contains_key(&sink.name);
            let books = self.sinks.entry(sink.name.clone()).or_insert_with(SinkBooks::default);
            books.presence = Presence::Configured;
            for stream in &sink.streams {
                let reason = if returns && books.streams.contains_key(stream) {
                    GapReason::Removed
                } else {
                    GapReason::BeforeSink
                };
                let ledger = books.streams.entry(*stream).or_insert_with(Ledger::new);
                let oldest = self.streams[stream.index()].oldest;
                if oldest > Seq::FIRST && ledger.cursor < oldest {
                    // What was trimmed while the sink was away can be in no batch any more, pinned or not.
                    ledger.unpin_before(oldest);
                    ledger.shed(SeqRange { first: Seq::FIRST, last: Seq(oldest.0 - 1) }, reason);
                }
            }
        }
    }
}

/// Keeps the note of an update that appends nothing in which it could ride.
fn write_mark(transaction: &WriteTransaction, update: &WindowsUpdate, commit: u64) -> Result<(), Error> {
    if update.note.is_empty() || !update.records.is_empty() || update.checkpoint.is_some() {
        return Ok(());
    }
    let row = postcard::to_stdvec(&(update.position, &update.note)).expect("a Vec takes any bytes");
    transaction.open_table(STATE)?.insert(format!("mark/{commit:020}").as_str(), row.as_slice())?;
    Ok(())
}

fn write_checkpoint(transaction: &WriteTransaction, update: &WindowsUpdate) -> Result<(), Error> {
    let Some(checkpoint) = &update.checkpoint else { return Ok(()) };
    if checkpoint.base == CheckpointBase::Empty {
        transaction.delete_table(SERIES)?;
    }
    transaction.open_table(STATE)?.retain_in(MARKS, |_, _| false)?;
    let mut series = transaction.open_table(SERIES)?;
    for key in &checkpoint.removed {
        series.remove(key.as_slice())?;
    }
    for (key, row) in &checkpoint.changed {
        series.insert(key.as_slice(), row.as_slice())?;
    }
    Ok(())
}

/// Writes the new dead letters, and purges the oldest above the quota.
fn write_letters(transaction: &WriteTransaction, draft: &mut Draft, max_bytes: u64) -> Result<(), Error> {
    if draft.letters.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(DEAD_LETTERS)?;
    let books = &mut draft.books.dead_letters;
    for letter in &draft.letters {
        let bytes = postcard::to_stdvec(letter).expect("a Vec takes any bytes");
        table.insert(letter.id, bytes.as_slice())?;
        books.kept += 1;
        books.kept_bytes += bytes.len() as u64;
    }
    while books.kept_bytes > max_bytes && books.kept > 1 {
        let Some((_, oldest)) = table.pop_first()? else { break };
        books.kept -= 1;
        books.kept_bytes = books.kept_bytes.saturating_sub(oldest.value().len() as u64);
        books.purged += 1;
    }
    Ok(())
}

fn damaged(what: &str) -> Error {
    Error::Damaged { what: format!("{what} cannot be read") }
}

/// Removes the checkpoint of windows that are configured no more: it would be wrong when they return.
fn forget_windows(file: &File) -> Result<(), Error> {
    let is_empty = file.read(|transaction| Ok(transaction.open_table(SERIES)?.is_empty()?))?;
    if is_empty {
        return Ok(());
    }
    file.write(|transaction| {
        transaction.open_table(STATE)?.retain_in(MARKS, |_, _| false)?;
        Ok(transaction.open_table(SERIES)?.retain(|_, _| false)?)
    })
}

/// Reads the windows' checkpoint and what was emitted since.
pub(super) fn windows_snapshot(file: &File, books: &Books) -> Result<super::WindowsSnapshot, Error> {
    file.read(|transaction| {
        let series = transaction.open_table(SERIES)?;
        let rows = series
            .iter()?
            .map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
            .collect::<Result<_, _>>()?;
        let mut emitted = Vec::new();
        let table = transaction.open_table(WINDOWS)?;
        for row in table.range(books.checkpoint.windows_next.0..)? {
            let (key, value) = row?;
            let seq = Seq(key.value());
            let of_chunk = |source| Error::Chunk { stream: Stream::Windows, seq, source };
            let chunk = chunk::Chunk::parse(value.value()).map_err(of_chunk)?;
            let body = chunk.body().map_err(of_chunk)?;
            let (position, note, records) = codec::decode_windows(&body)
                .map_err(|source| of_chunk(chunk::Error::Body { first: seq, source }))?;
            emitted.push(super::Emitted { position: Seq(position), records, note });
        }
        for row in transaction.open_table(STATE)?.range(MARKS)? {
            let (_, value) = row?;
            let (position, note) =
                postcard::from_bytes(value.value()).map_err(|_| damaged("a mark of the windows"))?;
            emitted.push(super::Emitted { position, records: Vec::new(), note });
        }
        emitted.sort_by_key(|update| update.position);
        Ok(super::WindowsSnapshot { position: books.checkpoint.position, rows, emitted })
    })
}
