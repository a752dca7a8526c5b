//! Dead letters at the word of people, where decoding and the store meet.
//!
//! In: which letters, over the admin socket or from a command on a store that no agent has open. Out: records appended anew, letters
//! removed, and for each letter that stays the reason. A payload is decoded with the configuration as it is now; a record that a
//! sink refused is read back from what was sent. Promised: bounded memory (a replay goes in parts, each one transaction), and no
//! payload in any log.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tracing::info;

use super::{Error as StartError, open_store, spec};
use crate::blocking::blocking;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::Config;
use crate::few;
use crate::ingest::Subscription;
use crate::ingest::decode::{Decoded, Decoder, Rejection};
use crate::reading::{ClockLine, Reading, Remarks, ReplayOf};
use crate::status::dead_letters::{DeadLetters, Purged, Replayed, Selection, Span, Stayed};
use crate::store::letters::{LettersChange, LettersDone, Records, Replay, Which};
use crate::store::{self, Books, DeadLetter, DeadLetterOrigin, Opened, Published, Reader, Store};
use crate::stream::{Seq, Stream};
use crate::wire::{self, Unreadable};

/// Dead letters replayed in one transaction.
const PART_LETTERS: usize = 256;
/// Bytes of payload replayed in one transaction, unless a single one is larger: what they come to takes some ten times as much.
const PART_BYTES: usize = 256 << 10;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store is not open yet, or not any more.
    #[error("the store is not open: the agent is starting or stopping; try again in a moment")]
    NotOpen,
    /// There is no room.
    #[error("the store is full and takes nothing until there is room")]
    Full,
    /// The disk fails.
    #[error("the disk does not take writes; nothing was changed")]
    Failing,
    /// The disk began to fail.
    #[error(
        "the disk does not take writes; whether anything was changed, holdfast dead-letters list tells once it does"
    )]
    Failed,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The store ended meanwhile.
    #[error(transparent)]
    Closed(#[from] store::Closed),
    /// The store cannot be opened.
    #[error(transparent)]
    Start(#[from] Box<StartError>),
}

/// Why a dead letter stays.
#[derive(Debug, thiserror::Error)]
enum Stays {
    #[error("there is no dead letter of this id")]
    Unknown,
    #[error("its source is not configured any more")]
    NoSource,
    #[error("no subscription of its source takes its topic")]
    NoSubscription,
    #[error("it still cannot be decoded")]
    Undecodable(#[source] Rejection),
    #[error("there is no value in it")]
    NoValue,
    #[error("it was kept cut, see [dead_letters] max_payload")]
    Cut,
    #[error("the record cannot be read back")]
    Unreadable(#[source] Unreadable),
    #[error("it is not the record it is said to be")]
    Mistaken,
    #[error("the sink that refused it is not configured any more")]
    NoSink,
}

impl Stays {
    fn of(self, id: u64) -> Stayed {
        let detail = std::error::Error::source(&self).map(chain);
        Stayed { id, why: self.to_string(), detail }
    }
}

/// What decodes, reads and changes dead letters. Cheap to clone; keeps the store open.
#[derive(Clone)]
pub(super) struct Letters {
    store: Store,
    sources: Arc<BTreeMap<String, Source>>,
    /// One part at a time, so that memory is bounded whoever asks.
    turn: Arc<Mutex<()>>,
}

/// How payloads of a source are decoded.
struct Source {
    name: Arc<str>,
    subscriptions: Arc<[Subscription]>,
    max_payload_bytes: usize,
}

impl Letters {
    pub(super) fn new(store: &Store, config: &Config) -> Self {
        let sources = config.sources.iter().map(|settings| {
            let source = Source {
                name: settings.name().into(),
                subscriptions: settings.subscriptions().into(),
                max_payload_bytes: settings.max_payload_bytes(),
            };
            (settings.name().to_owned(), source)
        });
        Self { store: store.clone(), sources: Arc::new(few::map(sources)), turn: Arc::default() }
    }

    async fn list(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let reader = self.store.reader();
        Ok(blocking(move || reader.dead_letters(after, limit)).await?)
    }

    async fn find(&self, id: u64) -> Result<Option<DeadLetter>, Error> {
        let reader = self.store.reader();
        Ok(blocking(move || reader.dead_letter(id)).await?)
    }

    /// Replays the first part of `which`.
    async fn replay(&self, which: Selection) -> Result<Replayed, Error> {
        self.check_writable()?;
        let _turn = self.turn.lock().await;
        let books = Arc::clone(&self.store.books().borrow());
        let (reader, sources) = (self.store.reader(), Arc::clone(&self.sources));
        let prepared = blocking(move || {
            let part = Part::read(&reader, which, books.dead_letters.last_id)?;
            Ok::<_, store::Error>(part.prepared(&sources, &books))
        });
        let Prepared { replays, stayed, next } = prepared.await?;
        let replayed = if replays.is_empty() {
            0
        } else {
            let LettersDone { replayed, .. } = self.change(LettersChange::Replay(replays)).await?;
            info!(replayed, "dead letters replayed");
            replayed
        };
        Ok(Replayed { replayed, stayed, next })
    }

    async fn purge(&self, which: Selection) -> Result<Purged, Error> {
        self.check_writable()?;
        let last_id = self.store.books().borrow().dead_letters.last_id;
        let which = match which {
            Selection::Ids(ids) => Which::These(ids),
            Selection::All(Span { after, up_to }) => Which::Between(after, up_to.unwrap_or(last_id)),
        };
        let LettersDone { purged, .. } = self.change(LettersChange::Purge(which)).await?;
        info!(purged, "dead letters purged");
        Ok(Purged { purged })
    }

    /// Waits until `change` is durable, but not for a disk that fails meanwhile.
    async fn change(&self, change: LettersChange) -> Result<LettersDone, Error> {
        tokio::select! {
            biased;
            done = self.store.change_letters(change) => Ok(done?),
            () = failing(self.store.report()) => Err(Error::Failed),
        }
    }

    /// Who asks is not left waiting for a disk or a cloud.
    fn check_writable(&self) -> Result<(), Error> {
        match self.store.report().borrow().state {
            store::report::State::Ok | store::report::State::Shedding => Ok(()),
            store::report::State::Blocked => Err(Error::Full),
            store::report::State::Failing => Err(Error::Failing),
        }
    }
}

/// Waits until the disk fails.
async fn failing(mut report: watch::Receiver<store::Report>) {
    if report.wait_for(|report| report.state == store::report::State::Failing).await.is_err() {
        std::future::pending().await
    }
}

/// The letters that are replayed together.
struct Part {
    letters: Vec<DeadLetter>,
    unknown: Vec<u64>,
    next: Option<Selection>,
}

/// What a part comes to.
struct Prepared {
    replays: Vec<Replay>,
    stayed: Vec<Stayed>,
    next: Option<Selection>,
}

impl Part {
    /// Reads the first letters of `which`. Blocks.
    fn read(reader: &Reader, which: Selection, last_id: u64) -> Result<Self, store::Error> {
        let mut part = Self { letters: Vec::new(), unknown: Vec::new(), next: None };
        let mut bytes = 0;
        match which {
            Selection::Ids(mut ids) => {
                // A letter that is named twice is replayed once.
                ids.sort_unstable();
                ids.dedup();
                let mut taken = 0;
                while taken < ids.len() && taken < PART_LETTERS && bytes < PART_BYTES {
                    match reader.dead_letter(ids[taken])? {
                        Some(letter) => {
                            bytes += letter.payload.len();
                            part.letters.push(letter);
                        }
                        None => part.unknown.push(ids[taken]),
                    }
                    taken += 1;
                }
                let rest = ids.split_off(taken);
                part.next = (!rest.is_empty()).then_some(Selection::Ids(rest));
            }
            Selection::All(Span { mut after, up_to }) => {
                let up_to = up_to.unwrap_or(last_id);
                while part.letters.len() < PART_LETTERS && bytes < PART_BYTES {
                    let letter = reader.dead_letters(after, 1)?.pop().filter(|letter| letter.id <= up_to);
                    let Some(letter) = letter else { return Ok(part) };
                    after = letter.id;
                    bytes += letter.payload.len();
                    part.letters.push(letter);
                }
                part.next = (after < up_to).then_some(Selection::All(Span { after, up_to: Some(up_to) }));
            }
        }
        Ok(part)
    }

    /// What each letter comes to, or why it stays.
    fn prepared(self, sources: &BTreeMap<String, Source>, books: &Books) -> Prepared {
        let mut stayed: Vec<Stayed> = self.unknown.into_iter().map(|id| Stays::Unknown.of(id)).collect();
        let mut decoders = BTreeMap::new();
        let mut replays = Vec::new();
        for letter in self.letters {
            let records = match &letter.origin {
                DeadLetterOrigin::Source { source, topic } => sources
                    .get(source)
                    .ok_or(Stays::NoSource)
                    .and_then(|source| decoded(&letter, source, topic, &mut decoders)),
                DeadLetterOrigin::Sink { .. } => read_back(&letter, books),
            };
            match records {
                Ok(records) => replays.push((group(&letter.origin), Replay { id: letter.id, records })),
                Err(why) => stayed.push(why.of(letter.id)),
            }
        }
        // What the same sinks lack goes together: one gap for the others, and not one for each record.
        replays.sort_by(|(a, _), (b, _)| a.cmp(b));
        let replays = replays.into_iter().map(|(_, replay)| replay).collect();
        Prepared { replays, stayed, next: self.next }
    }
}

/// Letters with the same answer are lacked by the same sinks, mostly.
fn group(origin: &DeadLetterOrigin) -> Option<String> {
    match origin {
        DeadLetterOrigin::Source { .. } => None,
        DeadLetterOrigin::Sink { sink, .. } => Some(sink.clone()),
    }
}

/// Decodes a payload as if it came now, but with the times of then.
fn decoded(
    letter: &DeadLetter,
    source: &Source,
    topic: &str,
    decoders: &mut BTreeMap<Arc<str>, Decoder>,
) -> Result<Records, Stays> {
    check_whole(letter)?;
    if letter.payload.len() > source.max_payload_bytes {
        return Err(Stays::Undecodable(Rejection::PayloadTooLarge { limit_bytes: source.max_payload_bytes }));
    }
    let decoder = decoders
        .entry(Arc::clone(&source.name))
        .or_insert_with(|| Decoder::new(&source.name, Arc::clone(&source.subscriptions)));
    let line = (!Clock::is_plausible(letter.time)).then(|| Arc::new(ClockLine::unknown(letter.time)));
    let mut readings = match decoder.decode(topic, &letter.payload, letter.time, line.as_ref()) {
        Decoded::Reading(reading) => vec![reading],
        Decoded::Readings(readings) => readings,
        Decoded::Nothing => return Err(Stays::NoValue),
        Decoded::Rejected(Rejection::NoSubscription) => return Err(Stays::NoSubscription),
        Decoded::Rejected(reason) => return Err(Stays::Undecodable(reason)),
    };
    for reading in &mut readings {
        remarks(reading).replayed = true;
    }
    Ok(Records::Readings(readings))
}

/// Reads a record that a sink refused.
fn read_back(letter: &DeadLetter, books: &Books) -> Result<Records, Stays> {
    let DeadLetterOrigin::Sink { sink, stream, epoch, range, .. } = &letter.origin else {
        return Err(Stays::Mistaken);
    };
    check_whole(letter)?;
    let is_taken =
        |sink: &store::ledger::SinkBooks| sink.is_configured() && sink.streams.contains_key(stream);
    let is_wanted = books.sinks.get(sink).is_some_and(is_taken)
        || letter.record.is_some_and(|seq| books.is_lacked(*stream, seq));
    if !is_wanted {
        return Err(Stays::NoSink);
    }
    let check = |seq: Seq| {
        let is_it = seq == range.first && range.first == range.last;
        if is_it { Ok(ReplayOf { epoch: *epoch, seq }) } else { Err(Stays::Mistaken) }
    };
    match stream {
        Stream::Readings => {
            let (seq, mut reading) = wire::read_reading(&letter.payload).map_err(Stays::Unreadable)?;
            let of = check(seq)?;
            let remarks = remarks(&mut reading);
            remarks.replayed = true;
            // The first number it had is the one that a receiver may know.
            remarks.replay_of.get_or_insert(of);
            Ok(Records::Readings(vec![reading]))
        }
        Stream::Windows => {
            let (seq, mut record) = wire::read_window(&letter.payload).map_err(Stays::Unreadable)?;
            let of = check(seq)?;
            record.replay_of.get_or_insert(Box::new(of));
            Ok(Records::Window(Box::new(record)))
        }
        Stream::Alerts => Err(Stays::Mistaken),
    }
}

fn check_whole(letter: &DeadLetter) -> Result<(), Stays> {
    if letter.payload.len() as u64 == letter.payload_bytes { Ok(()) } else { Err(Stays::Cut) }
}

fn remarks(reading: &mut Reading) -> &mut Remarks {
    reading.remarks.get_or_insert_default()
}

/// The dead letters of the running agent: there as soon as the store is open, and until the agent stops.
#[derive(Clone)]
pub(super) struct StoredLetters(watch::Sender<Option<Letters>>);

impl Default for StoredLetters {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl StoredLetters {
    pub(super) fn open(&self, letters: Letters) {
        self.0.send_replace(Some(letters));
    }

    /// Lets go of the store, which ends when nobody holds it.
    pub(super) fn close(&self) {
        self.0.send_replace(None);
    }

    fn get(&self) -> Result<Letters, String> {
        self.0.borrow().clone().ok_or_else(|| Error::NotOpen.to_string())
    }
}

fn told<T>(result: Result<T, Error>) -> Result<T, String> {
    result.map_err(|error| chain(&error))
}

impl DeadLetters for StoredLetters {
    async fn list(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>, String> {
        told(self.get()?.list(after, limit).await)
    }

    async fn find(&self, id: u64) -> Result<Option<DeadLetter>, String> {
        told(self.get()?.find(id).await)
    }

    async fn replay(&self, which: Selection) -> Result<Replayed, String> {
        told(self.get()?.replay(which).await)
    }

    async fn purge(&self, which: Selection) -> Result<Purged, String> {
        told(self.get()?.purge(which).await)
    }
}

/// The dead letters of a store that no agent has open, for one command.
pub struct Offline {
    letters: Letters,
    writer: JoinHandle<()>,
}

impl Offline {
    /// Opens the store as the agent would; `None` if an agent has it open.
    ///
    /// # Errors
    /// If there is no store, it cannot be opened, or the disk takes no writes.
    pub async fn open(config: &Config, clock: Clock) -> Result<Option<Self>, Error> {
        let data_dir = config.store.data_dir.clone();
        // Looked at first: a command makes no store where there is none.
        let is_free = blocking(move || Store::reader_of(&data_dir).map(|reader| reader.is_some()));
        let is_free = is_free.await.map_err(|error| Box::new(error.into()))?;
        if !is_free {
            return Ok(None);
        }
        let Opened { store, writer, .. } =
            match open_store(config, None, None, clock, Published::default()).await {
                Ok(opened) => opened,
                Err(StartError::Store(store::Error::InUse { .. })) => return Ok(None),
                Err(error) => return Err(Box::new(error).into()),
            };
        let writer = tokio::spawn(writer.run());
        let configured = tokio::select! {
            biased;
            configured = store.configure_sinks(config.sinks.iter().map(spec).collect()) => configured.is_ok(),
            () = failing(store.report()) => false,
        };
        if !configured {
            writer.abort();
            return Err(Error::Failing);
        }
        Ok(Some(Self { letters: Letters::new(&store, config), writer }))
    }

    /// Replays the first part of `which`.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub async fn replay(&self, which: Selection) -> Result<Replayed, Error> {
        self.letters.replay(which).await
    }

    /// Purges `which`.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn purge(&self, which: Selection) -> Result<Purged, Error> {
        self.letters.purge(which).await
    }

    /// Closes the store cleanly; on a disk that fails, as a crash does.
    pub async fn close(mut self) {
        let report = self.letters.store.report();
        drop(self.letters);
        tokio::select! {
            biased;
            // It ends by itself now; what it did is durable already.
            _ended = &mut self.writer => {}
            () = failing(report) => self.writer.abort(),
        }
    }
}

#[cfg(test)]
mod tests;
