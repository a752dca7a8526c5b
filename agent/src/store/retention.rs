//! What is held, for how long, and what goes first.
//!
//! Trimming removes what every sink has; it is done now and then, because each time costs a page. Shedding gives up
//! what some sink still wants, because the store is full or the record too old: the oldest readings first, then window
//! results, then alerts. A stream may have limits of its own; what goes by them goes first. Never touched: what a pinned batch needs, what the windows' durable checkpoint has not passed,
//! and the last chunk of the readings, which carries the state of the store.

use std::time::Duration;

use redb::{ReadableTable, WriteTransaction};

use super::boots::Boots;
use super::file::{self, Error, File};
use super::ledger::Books;
use super::settings::{Settings, WhenFull};
use super::work::{Required, SinkSpec};
use super::{chunk, codec};
use crate::clock::Clock;
use crate::reading::{ClockState, Reading, Timestamp};
use crate::stream::{GapReason, Seq, SeqRange, Stream};

/// Trimming in every commit costs a page each time, in every 64th next to nothing.
pub(super) const TRIM_EVERY_COMMITS: u64 = 64;
/// redb's overhead around a row in its page.
const ROW_OVERHEAD_BYTES: usize = 96;
const PAGE_BYTES: usize = 4_096;

/// What retention goes by.
pub(super) struct Limits<'a> {
    pub(super) settings: &'a Settings,
    pub(super) sinks: &'a [SinkSpec],
    /// Readings before this are not needed to recognise redeliveries.
    pub(super) recent_position: Seq,
    /// The time that ages are reckoned by.
    pub(super) wall: Timestamp,
    /// Whether the clock is right now.
    pub(super) clock: ClockState,
    /// Bytes on disk of the last row of the readings, which stays whatever the limits say. A store that holds no more than
    /// this is not over its limit: nothing could ever bring it below.
    pub(super) last_row_bytes: u64,
    /// Whether it is time to trim even without need.
    pub(super) trim_now: bool,
}

/// How full the store is after a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pressure {
    /// Something was given up in this commit.
    pub(super) shed: u64,
    /// It is over its limit, or the readings over theirs, and nothing more can be given up now.
    pub(super) over: bool,
    /// A checkpoint of the windows would allow more to go.
    pub(super) wants_checkpoint: bool,
    /// It is far over its limit and waits for that checkpoint.
    pub(super) far_over: bool,
    /// Rows were looked through for what can go.
    pub(super) trimmed: bool,
}

/// Bytes on disk of a row: above a page redb rounds up to a power of two of pages.
pub(super) fn disk_bytes(row_bytes: usize) -> u64 {
    let bytes = row_bytes + ROW_OVERHEAD_BYTES;
    let rounded = if bytes > PAGE_BYTES { bytes.next_power_of_two() } else { bytes };
    rounded as u64
}

impl Books {
    /// `range` is gone, and something before it is not.
    pub(super) fn add_hole(&mut self, stream: Stream, range: SeqRange) {
        let holes = &mut self.holes[stream.index()];
        let at = holes.partition_point(|hole| hole.first < range.first);
        holes.insert(at, range);
        holes.dedup_by(|later, earlier| {
            let joins = earlier.last.next() == later.first;
            if joins {
                earlier.last = later.last;
            }
            joins
        });
    }

    /// Bytes on disk of all that is held.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.held_bytes).sum()
    }

    /// Whether more than `percent` of a limit of size is used, be it the store's or a stream's own.
    pub(super) fn fills(&self, percent: u64, settings: &Settings) -> bool {
        let is_above = |bytes: u64, max: u64| bytes > max / 100 * percent + max % 100 * percent / 100;
        is_above(self.held_bytes(), settings.max_size_bytes)
            || Stream::ALL.into_iter().any(|stream| {
                let own = settings.own_max_size(stream);
                own.is_some_and(|max| is_above(self.stream(stream).held_bytes, max))
            })
    }
}

/// Trims and sheds as far as the limits ask for it.
pub(super) fn enforce(
    transaction: &WriteTransaction,
    books: &mut Books,
    limits: &Limits<'_>,
) -> Result<Pressure, Error> {
    let mut pressure = Pressure::default();
    let settings = limits.settings;
    let max_bytes = settings.max_size_bytes;
    if !limits.trim_now && !books.fills(100, settings) {
        return Ok(pressure);
    }
    pressure.trimmed = true;
    for stream in Stream::ALL {
        Sweep { stream, limits }.trim(transaction, books)?;
    }
    for stream in Stream::ALL {
        let sweep = Sweep { stream, limits };
        pressure.shed += sweep.shed(transaction, books, Limit::Age, &|_, newest| sweep.is_too_old(newest))?;
    }
    for stream in Stream::ALL {
        let Some(own) = settings.own_max_size(stream) else { continue };
        let is_above = |books: &Books, _| books.stream(stream).held_bytes > own;
        pressure.shed += Sweep { stream, limits }.shed(transaction, books, Limit::OwnSize, &is_above)?;
    }
    if books.held_bytes() > max_bytes {
        for stream in Stream::ALL {
            let is_above = |books: &Books, _| books.held_bytes() > max_bytes;
            pressure.shed += Sweep { stream, limits }.shed(transaction, books, Limit::Size, &is_above)?;
        }
    }
    weigh(&mut pressure, books, limits);
    Ok(pressure)
}

/// Says how full the store is once all is gone that may go.
///
/// Window results above a limit of their own never hold up readings, which are far more: they only ask for the checkpoint
/// behind which they may go.
fn weigh(pressure: &mut Pressure, books: &Books, limits: &Limits<'_>) {
    let settings = limits.settings;
    let readings = books.stream(Stream::Readings);
    let readings_max = settings.own_max_size(Stream::Readings).unwrap_or(u64::MAX);
    let is_over = |held: u64, max: u64| held.saturating_sub(limits.last_row_bytes) > max;
    pressure.over =
        is_over(books.held_bytes(), settings.max_size_bytes) || is_over(readings.held_bytes, readings_max);
    let windows = books.stream(Stream::Windows);
    let windows_wait = books.checkpoint.windows_next < windows.next
        && settings.own_max_size(Stream::Windows).is_some_and(|max| windows.held_bytes > max);
    let readings_wait = pressure.over && books.checkpoint.position < readings.next;
    pressure.wants_checkpoint = readings_wait || windows_wait;
    let is_far = |held: u64, max: u64| held > max.saturating_add(max / 4);
    pressure.far_over = readings_wait
        && (is_far(books.held_bytes(), settings.max_size_bytes) || is_far(readings.held_bytes, readings_max));
}

/// Which limit asks for something to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// `max_age`, the store's or the stream's.
    Age,
    /// The store's `max_size`.
    Size,
    /// The stream's own `max_size`.
    OwnSize,
}

impl Limit {
    fn reason(self) -> GapReason {
        match self {
            Self::Age => GapReason::ShedAge,
            Self::Size | Self::OwnSize => GapReason::ShedSize,
        }
    }

    /// Whether `when_full = "block"` forbids to give up by this limit what is still wanted. Nobody but us has window results,
    /// so no sender could hold them for us: by a limit of their own they go all the same.
    fn is_blocked(self, stream: Stream, when_full: WhenFull) -> bool {
        when_full == WhenFull::Block
            && match self {
                Self::Age => false,
                Self::Size => true,
                Self::OwnSize => stream == Stream::Readings,
            }
    }
}

/// Whether the oldest row of some stream is too old. It need not be one that may go.
pub(super) fn has_aged(
    file: &File,
    books: &Books,
    settings: &Settings,
    (now, clock): (Timestamp, ClockState),
) -> Result<bool, Error> {
    file.read(|transaction| {
        for stream in Stream::ALL {
            let table = transaction.open_table(file::table(stream))?;
            let oldest = found(&table, &books.holes[stream.index()], books.stream(stream).oldest)?;
            let Some(oldest) = oldest else { continue };
            let max_age = settings.max_age_of(stream);
            let newest =
                true_newest(&table, &oldest, &books.boots, clock, |newest| is_too_old(newest, max_age, now))?;
            if is_too_old(newest, max_age, now) {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

/// When the newest reading of a row was received. What the row's header says counts if by it the row is not too old; else
/// the readings are asked, because some may have been stamped by a clock that was behind: then by their true time, or as if
/// received just now, if it is not known though the clock is right by now.
fn true_newest(
    table: &impl ReadableTable<u64, &'static [u8]>,
    row: &Found,
    boots: &Boots,
    clock: ClockState,
    is_too_old: impl Fn(Timestamp) -> bool,
) -> Result<Timestamp, Error> {
    let said = row.newest_received;
    if Clock::is_plausible(said) && !is_too_old(said) {
        return Ok(said);
    }
    let Some(value) = table.get(row.range.first.0)? else { return Ok(said) };
    // What cannot be read has no readings to ask.
    let Ok(chunk) = chunk::Chunk::parse(value.value()) else { return Ok(said) };
    if chunk.header.stream != Stream::Readings {
        return Ok(said);
    }
    let readings = chunk.body().ok().and_then(|body| codec::decode_readings(&body).ok()).unwrap_or_default();
    let received = |reading: &Reading| match &reading.line {
        None => reading.received,
        Some(line) => match boots.at(line.boot, u32::MAX) {
            Some(booted_at) => line.corrected(reading.received, booted_at),
            None if clock == ClockState::Synced => Timestamp::MAX,
            None => reading.received,
        },
    };
    Ok(readings.iter().map(received).max().unwrap_or(said))
}

fn is_too_old(newest: Timestamp, max_age: Duration, now: Timestamp) -> bool {
    let max_age = i64::try_from(max_age.as_micros()).unwrap_or(i64::MAX);
    // What was received before the clock was set is of unknown age; a step from 1970 to today must shed nothing.
    Clock::is_plausible(newest) && now.micros_since(newest) > max_age
}

/// One pass over the rows of a stream.
struct Sweep<'a> {
    stream: Stream,
    limits: &'a Limits<'a>,
}

impl Sweep<'_> {
    /// Rows that end at or before this may go, whoever has them.
    fn free_until(&self, books: &Books) -> Seq {
        match self.stream {
            Stream::Readings => books.checkpoint.position.min(self.limits.recent_position),
            Stream::Windows => books.checkpoint.windows_next,
            Stream::Alerts => books.stream(Stream::Alerts).next,
        }
    }

    fn takers(&self) -> impl Iterator<Item = &SinkSpec> {
        self.limits.sinks.iter().filter(|sink| sink.streams.contains(&self.stream))
    }

    fn is_too_old(&self, newest: Timestamp) -> bool {
        is_too_old(newest, self.limits.settings.max_age_of(self.stream), self.limits.wall)
    }

    /// Removes rows that every sink has.
    fn trim(&self, transaction: &WriteTransaction, books: &mut Books) -> Result<(), Error> {
        // Without any sink everything waits for the first one.
        if self.limits.sinks.is_empty() {
            return Ok(());
        }
        let settled = self
            .takers()
            .filter_map(|sink| books.sinks.get(&sink.name)?.streams.get(&self.stream))
            .map(|ledger| ledger.cursor)
            .min()
            .unwrap_or(books.stream(self.stream).next);
        let until = settled.min(self.free_until(books));
        self.remove(transaction, books, Ages::DoNot, |_, range, _| {
            if range.last < until { Fate::Remove } else { Fate::Stop }
        })?;
        Ok(())
    }

    /// Gives up rows, the oldest first, while `more` says so of the books and the row's newest receipt.
    fn shed(
        &self,
        transaction: &WriteTransaction,
        books: &mut Books,
        limit: Limit,
        more: &dyn Fn(&Books, Timestamp) -> bool,
    ) -> Result<u64, Error> {
        let free_until = self.free_until(books);
        let ages = if limit == Limit::Age { Ages::Matter } else { Ages::DoNot };
        let gone = self.remove(transaction, books, ages, |books, range, newest| {
            if range.last >= free_until || !more(books, newest) {
                return Fate::Stop;
            }
            let ledgers = || {
                self.takers().filter_map(|sink| {
                    let ledger = books.sinks.get(&sink.name)?.streams.get(&self.stream)?;
                    Some((sink, ledger))
                })
            };
            if ledgers().any(|(_, ledger)| ledger.is_pinned(range)) {
                return Fate::Keep;
            }
            let wanted_by_required =
                ledgers().any(|(sink, ledger)| sink.required == Required::Yes && !ledger.is_settled(range));
            let is_blocked = limit.is_blocked(self.stream, self.limits.settings.when_full);
            if is_blocked && (wanted_by_required || self.limits.sinks.is_empty()) {
                return Fate::Stop;
            }
            Fate::Shed
        })?;
        // Ledgers change after the sweep, because the sweep reads them.
        for sink in self.takers() {
            let books = books.sinks.get_mut(&sink.name).and_then(|sink| sink.streams.get_mut(&self.stream));
            if let Some(ledger) = books {
                for range in &gone {
                    ledger.shed(*range, limit.reason());
                }
            }
        }
        Ok(gone.iter().map(|range| range.count()).sum())
    }

    /// Goes through the rows from the oldest on and does what `fate` says of each. Returns what was shed.
    fn remove(
        &self,
        transaction: &WriteTransaction,
        books: &mut Books,
        ages: Ages,
        mut fate: impl FnMut(&Books, SeqRange, Timestamp) -> Fate,
    ) -> Result<Vec<SeqRange>, Error> {
        let mut shed = Vec::new();
        let mut table = transaction.open_table(file::table(self.stream))?;
        let index = self.stream.index();
        let next = books.streams[index].next;
        let mut from = books.streams[index].oldest;
        let mut oldest_kept = None;
        loop {
            let Some(row) = found(&table, &books.holes[index], from)? else { break };
            let newest_received = match ages {
                Ages::Matter => true_newest(&table, &row, &books.boots, self.limits.clock, |newest| {
                    self.is_too_old(newest)
                })?,
                Ages::DoNot => row.newest_received,
            };
            let Found { range, row_bytes, .. } = row;
            // The last chunk of the readings carries the state; it stays until the next commit has written another.
            if self.stream == Stream::Readings && range.last.next() >= next {
                break;
            }
            let fate = fate(books, range, newest_received);
            match fate {
                Fate::Stop => {
                    oldest_kept.get_or_insert(range.first);
                    break;
                }
                Fate::Keep => {
                    oldest_kept.get_or_insert(range.first);
                }
                Fate::Remove | Fate::Shed => {
                    table.remove(range.first.0)?;
                    if oldest_kept.is_some() {
                        books.add_hole(self.stream, range);
                    }
                    let stream = &mut books.streams[index];
                    stream.held_bytes = stream.held_bytes.saturating_sub(disk_bytes(row_bytes));
                    stream.held_chunks = stream.held_chunks.saturating_sub(1);
                    if fate == Fate::Shed {
                        shed.push(range);
                    }
                }
            }
            from = range.last.next();
        }
        let oldest = oldest_kept.unwrap_or(from);
        books.streams[index].oldest = oldest;
        books.holes[index].retain(|hole| hole.last >= oldest);
        Ok(shed)
    }
}

/// Whether a sweep goes by when rows were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ages {
    Matter,
    DoNot,
}

/// A row that holds records.
struct Found {
    range: SeqRange,
    newest_received: Timestamp,
    row_bytes: usize,
}

/// The first row with records from `from` on. Its numbers go to the next row, or to what is known to be gone: nothing vouches for
/// what a header says, and a row that is taken for longer or shorter than it is would stay for ever, or take others with it.
fn found(
    table: &impl ReadableTable<u64, &'static [u8]>,
    holes: &[SeqRange],
    from: Seq,
) -> Result<Option<Found>, Error> {
    let mut rows = table.range(from.0..)?;
    let Some(row) = rows.next() else { return Ok(None) };
    let (key, value) = row?;
    let key = Seq(key.value());
    let row_bytes = value.value().len();
    let header = chunk::Header::parse(value.value()).ok().filter(|header| header.first == key);
    let newest_received = header.as_ref().map_or(Timestamp(0), |header| header.newest_received);
    let range = match rows.next().transpose()? {
        Some((next, _)) => {
            let hole = holes.get(holes.partition_point(|hole| hole.first <= key));
            let end = hole.map_or(next.value(), |hole| hole.first.0.min(next.value()));
            Some(SeqRange { first: key, last: Seq(end - 1) })
        }
        None => header.and_then(|header| header.range()),
    };
    Ok(range.map(|range| Found { range, newest_received, row_bytes }))
}

/// What happens to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It goes; everybody has it.
    Remove,
    /// It goes; who misses it is told.
    Shed,
    /// It stays, and the next is looked at.
    Keep,
    /// It stays, and so do all after it.
    Stop,
}
