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

use postcard::ser_flavors::Size;
use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};
use tokio::time::Instant;
use tracing::warn;

use super::chunk::{self, Packed};
use super::damage::Before;
use super::draft::{Draft, Row};
use super::file::{self, DEAD_LETTERS, Error, File, READINGS, STATE};
use super::ledger::Books;
use super::note::Note;
use super::pins::NextBatches;
use super::recent::{Change, Recent};
use super::salvage::Slice;
use super::settings::Settings;
use super::work::{LedgerEvent, SinkSpec, Work};
use super::{CheckpointBase, checkpoint, damage, letters, lost, retention};
use crate::causes::chain;
use crate::reading::{ClockState, Timestamp};
use crate::stream::{Seq, Stream};

/// The row of `state` with whose the store is.
pub(super) const IDENTITY_ROW: &str = "identity";
/// The row of `state` with what the peers sent.
pub(super) const RECENT_ROW: &str = "recent";
/// A whole copy of what the peers sent is written after this many commits, if they brought as many messages as it holds: then
/// each message is written twice, whatever the number of peers...
const RECENT_EVERY_COMMITS: u64 = 256;
/// ...or this many bytes of readings, so that opening the store reads few chunks and old ones may go...
const RECENT_EVERY_BYTES: u64 = 16 << 20;
/// What a message takes in that copy.
const RECENT_MESSAGE_BYTES: u64 = 11;
/// ...or this many messages that only rows without readings carry.
const RECENT_EVERY_CARRIED: usize = 16_384;

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
    next_batches: NextBatches,
    bytes_per_reading: f64,
    pub(super) trimmed_at_commit: u64,
    /// Bytes on disk of the last row of the readings that holds any.
    last_row_bytes: u64,
    /// Whether the last commit left the store over its limit.
    is_over: bool,
    /// When the newest reading was received, as of loading.
    pub(super) newest_received: Option<Timestamp>,
    /// The time that ages are reckoned by, and whether the clock is right; `None`: that of the commit, and it is.
    pub(super) ages_by: Option<(Timestamp, ClockState)>,
    /// The next commit looks for what can go.
    pub(super) trims_next: bool,
    /// What the damaged file that is being read was.
    pub(super) before: Option<Before>,
}

/// Whether anybody computes windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowsPresence {
    /// Readings are kept until a checkpoint has passed them.
    Configured,
    /// Nothing waits for a checkpoint.
    None,
}

/// Whether this commit writes a whole copy of what peers sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecentCopy {
    Saved,
    AsBefore,
}

/// As of when the row of `state` tells what the peers sent.
#[derive(Clone, Copy, Debug, Default)]
struct RecentSaved {
    commit: u64,
    /// Readings before this need not be kept for it.
    position: Seq,
    bytes_since: u64,
    messages_since: usize,
}

impl State {
    /// Reads the state that the last commit left.
    pub(super) fn load(file: &File, settings: Settings, windows: WindowsPresence) -> Result<Self, Error> {
        let (note, carried, recent, recent_saved, last_row_bytes, newest_received) = file.read(|transaction| {
            let readings = transaction.open_table(READINGS)?;
            let state = transaction.open_table(STATE)?;
            let saved = state.get(RECENT_ROW)?;
            let saved: Option<(u64, Seq, Vec<Change>)> = saved
                .map(|row| postcard::from_bytes(row.value()))
                .transpose()
                .map_err(|_| Error::unreadable("the row of recent messages"))?;
            let (saved_commit, position, snapshot) = saved.unwrap_or_default();

            let mut notes: Vec<Note> = Vec::new();
            let mut last_is_empty = false;
            let mut last_row_bytes = 0;
            let mut newest_received = None;
            for row in readings.iter()?.rev() {
                let (key, value) = row?;
                let seq = Seq(key.value());
                let chunk = match chunk::Chunk::parse(value.value()) {
                    Ok(chunk) => chunk,
                    // Of an older one only what peers sent is missed: a message that comes again may be stored again.
                    Err(source) if !notes.is_empty() => {
                        warn!(%seq, error = %chain(&source), "one chunk of readings cannot be read; what of it is still wanted will be declared lost");
                        continue;
                    }
                    // Damage can be helped; a newer store cannot, and would keep the agent from starting.
                    Err(chunk::Error::Newer { .. }) if chunk::is_spoiled_version(value.value()) => {
                        return Err(Error::unreadable("the version of the last chunk"));
                    }
                    Err(source) => return Err(Error::Chunk { stream: Stream::Readings, seq, source }),
                };
                if chunk.header.count > 0 && last_row_bytes == 0 {
                    last_row_bytes = retention::disk_bytes(value.value().len());
                    newest_received = Some(chunk.header.newest_received);
                }
                if chunk.note.is_empty() {
                    continue;
                }
                let note =
                    Note::decode(chunk.note).map_err(|_| Error::unreadable("the note of the last commit"))?;
                if notes.is_empty() {
                    last_is_empty = chunk.header.count == 0;
                } else if note.books.commit <= saved_commit {
                    break;
                }
                notes.push(note);
            }
            // A page that was written to another's place, or an old one that came back, breaks no checksum.
            if let Some(Note { books, .. }) = notes.first() {
                let rows = readings.len()?;
                let held = books.stream(Stream::Readings).held_chunks + u64::from(last_is_empty);
                let windows = transaction.open_table(file::WINDOWS)?.len()?;
                if rows != held || windows != books.stream(Stream::Windows).held_chunks {
                    return Err(Error::Damaged {
                        what: format!("it holds {rows} rows of readings and {windows} of windows, other than its books say"),
                    });
                }
            }
            let carried = notes.first().filter(|_| last_is_empty).map(|note| note.recent.clone());
            let mut recent = Recent::default();
            let later = notes.iter().rev().filter(|note| note.books.commit > saved_commit);
            for change in snapshot.iter().chain(later.flat_map(|note| &note.recent)) {
                recent.apply(change);
            }
            let messages_since = notes.iter().map(|note| messages(&note.recent)).sum();
            let saved = RecentSaved { commit: saved_commit, position, bytes_since: 0, messages_since };
            let (note, carried) = (notes.into_iter().next(), carried.unwrap_or_default());
            Ok((note, carried, recent, saved, last_row_bytes, newest_received))
        })?;
        let books = note.map(|note| note.books).unwrap_or_default();
        if windows == WindowsPresence::None {
            checkpoint::forget_windows(file)?;
        }
        let beginning = Self::beginning(books, recent, settings, windows);
        Ok(Self { last_row_bytes, newest_received, carried, recent_saved, ..beginning })
    }

    /// The state of a store that is about to be made, in place of a damaged one. Its first commit writes all of it.
    pub(super) fn beginning(
        books: Books,
        recent: Recent,
        settings: Settings,
        windows: WindowsPresence,
    ) -> Self {
        let recent_saved = RecentSaved {
            commit: books.commit,
            position: books.stream(Stream::Readings).next,
            // So that a copy is due.
            bytes_since: u64::MAX / 2,
            messages_since: 0,
        };
        Self {
            trimmed_at_commit: books.commit,
            last_row_bytes: 0,
            is_over: false,
            newest_received: None,
            ages_by: None,
            trims_next: false,
            books,
            recent,
            sinks: Vec::new(),
            settings,
            windows,
            carried: Vec::new(),
            recent_saved,
            next_batches: NextBatches::default(),
            bytes_per_reading: 48.0,
            before: None,
        }
    }

    /// What the damaged file was that is read next, and what late answers say of it.
    fn before(&self, file: &File, work: &Work) -> Result<Option<Before>, Error> {
        let Some(damaged) = self.books.damage.files.first() else { return Ok(None) };
        let known = match &self.before {
            Some(before) => Some(before.clone()),
            // If nobody remembers, who reads the file finds out, beside the commits.
            None => damage::kept_before(file, &damaged.name)?,
        };
        let Some(mut before) = known else { return Ok(None) };
        for change in &work.ledger {
            if let LedgerEvent::Advance(next) = change.event {
                before.advance(&change.sink, change.stream, change.epoch, next);
            }
        }
        Ok(Some(before))
    }

    /// Makes `work` durable. On an error nothing has changed here; the same work may be committed again.
    pub(super) fn commit(
        &mut self,
        file: &File,
        work: &Work,
        now: Instant,
        wall: Timestamp,
    ) -> Result<retention::Pressure, Error> {
        let letters = letters::find(file, work.letters.as_ref())?;
        let (ages_by, clock) = self.ages_by.unwrap_or((wall, ClockState::Synced));
        // The age of results that are stored while the clock is not right is unknown.
        let wall = if clock == ClockState::Synced { wall } else { Timestamp(0) };
        let before = self.before(file, work)?;
        let mut draft = Draft::after(&self.books, wall, self.settings.dead_letters.max_payload_bytes);
        draft.ages_by = ages_by;
        let sinks = work.sinks.as_deref().unwrap_or(&self.sinks);
        if work.sinks.is_some() {
            draft.books.configure_sinks(sinks);
        }
        // First, so that what is pinned in this commit is corrected by it.
        if let Some(boot) = work.boot {
            draft.books.learn_boot(boot);
        }
        let mut bytes_per_reading = self.bytes_per_reading;
        if let Some(group) = &work.group {
            draft.add_group(group, &mut bytes_per_reading);
        }
        if let Some(update) = &work.windows {
            draft.add_windows(update);
        }
        letters::replay(&mut draft, &letters, &mut bytes_per_reading);
        if let (Some(slice), Some(before)) = (&work.salvaged, &before) {
            draft.add_salvaged(slice, before, &mut bytes_per_reading);
        }
        if self.windows == WindowsPresence::None {
            draft.books.checkpoint.position = draft.books.stream(Stream::Readings).next;
            draft.books.checkpoint.windows_next = draft.books.stream(Stream::Windows).next;
        }
        for change in &work.ledger {
            draft.change_ledger(change);
        }
        // After the answers that came in the epoch before: what they say is true in the new one, too.
        if let Some((epoch, _)) = &work.epoch {
            draft.books.begin_epoch(*epoch);
        }
        let next_batches = self.next_batches.pin(&self.books, &mut draft.books, sinks, work, now);

        // The copy tells how things stood before this commit: it needs no copy in memory, which is large with many peers.
        let (recent_commit, recent_position) = (self.books.commit, self.books.stream(Stream::Readings).next);
        // A row that is lost may have told what peers sent, and here that is still known.
        let may_lose = work.suspects.iter().any(|(stream, _)| *stream == Stream::Readings);
        let copy = if may_lose || self.is_recent_due(work, draft.readings_bytes) {
            RecentCopy::Saved
        } else {
            RecentCopy::AsBefore
        };

        let pressure = file.write(|transaction| {
            if copy == RecentCopy::Saved {
                let row = (recent_commit, recent_position, self.recent.snapshot());
                // Straight into redb's buffer: it may be many megabytes.
                let length =
                    postcard::serialize_with_flavor(&row, Size::default()).expect("counting never fails");
                let mut state = transaction.open_table(STATE)?;
                let mut place = state.insert_reserve(RECENT_ROW, length)?;
                postcard::to_slice(&row, place.as_mut()).expect("it is as long as was counted");
            }
            if let Some((_, identity)) = &work.epoch {
                let row = postcard::to_stdvec(identity).expect("a Vec takes any bytes");
                transaction.open_table(STATE)?.insert(IDENTITY_ROW, row.as_slice())?;
            }
            for (stream, seq) in &work.suspects {
                let head = self.books.stream(*stream).next;
                lost::declare(transaction, &mut draft.books, head, sinks, *stream, *seq)?;
            }
            for (key, value) in &work.remember {
                transaction.open_table(STATE)?.insert(key.as_str(), value.as_slice())?;
            }
            if before != self.before {
                damage::write_before(transaction, &self.books.damage, before.as_ref())?;
            }
            if let Some(Slice { name, end: Some(_), .. }) = &work.salvaged {
                transaction.open_table(STATE)?.remove(damage::row_key(name).as_str())?;
            }
            if let Some(update) = &work.windows {
                checkpoint::write_mark(transaction, update, draft.books.commit)?;
                let is_whole =
                    update.checkpoint.as_ref().is_some_and(|saved| saved.base == CheckpointBase::Empty);
                draft.books.damage.is_checkpoint_void &= !is_whole;
                if !draft.books.damage.is_checkpoint_void {
                    checkpoint::write_checkpoint(transaction, update)?;
                }
            }
            if let Some(change) = &work.letters {
                letters::remove(transaction, &mut draft.books.dead_letters, change, &letters)?;
            }
            write_letters(transaction, &mut draft, self.settings.dead_letters.max_size_bytes)?;

            let limits = retention::Limits {
                settings: &self.settings,
                sinks,
                last_row_bytes: draft.last_row_bytes().unwrap_or(self.last_row_bytes),
                recent_position: match copy {
                    RecentCopy::Saved => recent_position,
                    RecentCopy::AsBefore => self.recent_saved.position,
                },
                wall: ages_by,
                clock,
                trim_now: self.trims_next
                    || draft.books.commit >= self.trimmed_at_commit + retention::TRIM_EVERY_COMMITS,
            };
            let pressure = retention::enforce(transaction, &mut draft.books, &limits)?;
            draft.books.forget_missed();
            self.write_rows(transaction, &mut draft, copy)?;
            Ok(pressure)
        })?;

        self.settle(draft, work, copy, pressure);
        self.before = before.filter(|_| work.salvaged.as_ref().is_none_or(|slice| slice.end.is_none()));
        self.next_batches = next_batches;
        self.bytes_per_reading = bytes_per_reading;
        Ok(pressure)
    }

    /// About as many bytes of the file as are in use, and no less.
    pub(super) fn live_bytes(&self, file: &File) -> Result<u64, Error> {
        /// A series' state with a sketch, and a letter's payload rounded up by redb.
        const CHECKPOINT_ROW_BYTES: u64 = 2 << 10;
        let letters = self.books.dead_letters;
        let letters = letters.kept * 256 + letters.kept_bytes * 2;
        let recent = (self.recent.messages() as u64 * RECENT_MESSAGE_BYTES).next_power_of_two();
        let series = checkpoint::rows(file)? * CHECKPOINT_ROW_BYTES;
        Ok(self.books.held_bytes() + letters + recent + series)
    }

    /// The commit is durable: it is the state now.
    fn settle(&mut self, draft: Draft, work: &Work, copy: RecentCopy, pressure: retention::Pressure) {
        let last_row_bytes = draft.last_row_bytes();
        let before = std::mem::replace(&mut self.books, draft.books);
        let wrote_records = self.books.stream(Stream::Readings).next > before.stream(Stream::Readings).next;
        if copy == RecentCopy::Saved {
            self.carried = Vec::new();
            self.recent_saved = RecentSaved {
                commit: before.commit,
                position: before.stream(Stream::Readings).next,
                ..RecentSaved::default()
            };
        }
        draft.recent.iter().for_each(|change| self.recent.apply(change));
        self.recent_saved.bytes_since += draft.readings_bytes;
        self.recent_saved.messages_since += messages(&draft.recent);
        if wrote_records {
            self.carried = Vec::new();
        } else {
            self.carried.extend(draft.recent);
        }
        if let Some(sinks) = &work.sinks {
            self.sinks.clone_from(sinks);
        }
        self.is_over = pressure.over;
        self.last_row_bytes = last_row_bytes.unwrap_or(self.last_row_bytes);
        if pressure.trimmed {
            self.trimmed_at_commit = self.books.commit;
            self.trims_next = false;
        }
    }

    fn is_recent_due(&self, work: &Work, readings_bytes: u64) -> bool {
        // Never so seldom that a full store holds much that may not go.
        let max_bytes = RECENT_EVERY_BYTES.min(self.settings.max_size_of(Stream::Readings) / 8);
        let saved = &self.recent_saved;
        let carried =
            messages(&self.carried) + work.group.as_ref().map_or(0, |group| messages(&group.recent));
        let is_old = self.books.commit >= saved.commit + RECENT_EVERY_COMMITS;
        // Over a limit all the same: what could go may be needed for its notes alone.
        let is_over =
            (self.is_over || self.trims_next) && saved.position < self.books.stream(Stream::Readings).next;
        is_over
            || (is_old && saved.messages_since >= self.recent.messages())
            || saved.bytes_since + readings_bytes > max_bytes
            || (carried >= RECENT_EVERY_CARRIED && !self.carried.is_empty())
    }

    fn write_rows(
        &self,
        transaction: &WriteTransaction,
        draft: &mut Draft,
        saved: RecentCopy,
    ) -> Result<(), Error> {
        let has_readings = draft.rows.iter().any(|row| row.stream == Stream::Readings);
        if !has_readings {
            let first = draft.books.stream(Stream::Readings).next;
            let packed = Packed::new(Vec::new());
            draft.rows.push(Row { stream: Stream::Readings, first, count: 0, newest: Timestamp(0), packed });
        }
        let recent = match saved {
            RecentCopy::Saved => draft.recent.clone(),
            RecentCopy::AsBefore => self.carried.iter().chain(&draft.recent).cloned().collect(),
        };
        let note = draft.note(recent);
        let mut readings = transaction.open_table(READINGS)?;
        let last = draft.rows.iter().rposition(|row| row.stream == Stream::Readings);
        for (index, row) in std::mem::take(&mut draft.rows).into_iter().enumerate() {
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

/// Messages in `changes`; a change of a session alone counts as one, too.
fn messages(changes: &[Change]) -> usize {
    changes.iter().map(|change| change.messages.len() + 1).sum()
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
        books.forget(oldest.value().len());
        books.purged += 1;
    }
    Ok(())
}
