//! The handle to the store: what rooms may ask for, and what they may watch.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::ballast::Ballast;
use super::boots::Boot;
use super::compaction::{self, Occasion};
use super::damage::{self, Opening};
use super::file::{self, Error, File, Medium, STATE};
use super::ledger::{Books, Identity};
use super::letters::{LettersChange, LettersDone};
use super::log::{self, State, WindowsPresence};
use super::reader::Reader;
use super::recent::Recent;
use super::report::{Recovering, Report};
use super::settings::Settings;
use super::work::{Group, LedgerChange, LedgerEvent, SinkSpec, Work};
use super::writer::{Ends, Writer};
use super::{WindowsSnapshot, WindowsUpdate, checkpoint, format};
use crate::causes::chain;
use crate::clock::Clock;
use crate::reading::Timestamp;
use crate::stream::{Epoch, Seq, Stream};

/// Requests that may wait. Each asker waits for his answer, so there are never many.
const REQUESTS_WAITING: usize = 256;

/// The store has ended, or the agent is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has closed")]
pub struct Closed;

/// What rooms ask of the writer, and where they wait for it.
pub(super) enum Request {
    Group(Group, oneshot::Sender<()>),
    Windows(WindowsUpdate, oneshot::Sender<()>),
    Ledger(LedgerChange, Option<oneshot::Sender<()>>),
    Remember(String, Vec<u8>, oneshot::Sender<()>),
    Sinks(Vec<SinkSpec>, oneshot::Sender<()>),
    Epoch(Epoch, oneshot::Sender<()>),
    /// From now on the windows do not wait for company.
    Hurry,
    Letters(LettersChange, oneshot::Sender<LettersDone>),
    Boot(Boot, oneshot::Sender<()>),
}

/// A handle to the store. Cheap to clone; the writer ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct Store {
    requests: mpsc::Sender<Request>,
    reader: Reader,
    identity: Arc<Identity>,
    books: watch::Receiver<Arc<Books>>,
    report: watch::Receiver<Report>,
    wants_checkpoint: watch::Receiver<bool>,
    head: watch::Receiver<Seq>,
    newest_received: Option<Timestamp>,
}

/// Where the store publishes what others read; made before the store, so that its opening can be watched.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The books as of the last commit.
    pub books: watch::Sender<Arc<Books>>,
    /// What the store says of itself.
    pub report: watch::Sender<Report>,
}

/// What opening gives.
pub struct Opened {
    /// The handle.
    pub store: Store,
    /// The task, to be run.
    pub writer: Writer,
    /// What peers sent last, for the ingest room.
    pub recent: Recent,
}

impl Store {
    /// Opens the store for `agent` on `machine`, or makes it. Blocks; after an unclean stop it reads the whole file.
    /// How far that has come is published in `published`, and logged.
    ///
    /// # Errors
    /// If the store is in use, of a newer format, or cannot be read.
    pub fn open(
        settings: Settings,
        agent: &str,
        machine: &str,
        windows: WindowsPresence,
        clock: Clock,
        published: Published,
    ) -> Result<Opened, Error> {
        let report = published.report.clone();
        report.send_modify(|report| {
            report.max_bytes = settings.max_size_bytes;
            report.max_stream_bytes = settings.streams.map(|own| own.max_size_bytes);
        });
        let total_bytes =
            std::fs::metadata(settings.data_dir.join(file::FILE_NAME)).map_or(0, |file| file.len());
        let progress = move |part: f64| {
            let done_bytes = part_of(total_bytes, part);
            info!(done_bytes, total_bytes, "store was not closed cleanly; reading it through");
            report.send_modify(|report| report.recovering = Some(Recovering { done_bytes, total_bytes }));
        };
        let progress = Arc::new(progress);
        let open = || {
            let progress = Arc::clone(&progress);
            Loaded::of(File::open(&settings.data_dir, move |part| progress(part))?, &settings, windows)
        };
        let loaded = match open() {
            // The disk may answer when it is asked once more.
            Err(Error::Io(_)) => open(),
            first => first,
        };
        let loaded = match loaded {
            Err(error) if error.is_damage() => {
                warn!(error = %chain(&error), "the store is damaged and cannot be opened");
                let identity = Identity { agent: agent.to_owned(), machine: machine.to_owned() };
                let opening = Opening {
                    settings: &settings,
                    windows,
                    identity: &identity,
                    now: clock.monotonic(),
                    wall: clock.wall(),
                };
                opening.begin_anew(None, &*progress)?;
                open()?
            }
            loaded => loaded?,
        };
        Ballast::in_dir(&settings.data_dir).make();
        damage::tidy(&settings.data_dir, &loaded.state.books.damage.files, settings.max_size_bytes);
        Self::open_file(loaded, (agent, machine), clock, published)
    }

    /// As [`Store::open`], on a disk of tests or simulations; `owner` is agent and machine.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(
        medium: Medium,
        settings: Settings,
        owner: (&str, &str),
        windows: WindowsPresence,
        clock: Clock,
        published: Published,
    ) -> Result<Opened, Error> {
        let loaded = Loaded::of(File::on(medium, |_| {})?, &settings, windows)?;
        Self::open_file(loaded, owner, clock, published)
    }

    /// As [`Store::open`], with the file that was opened; `owner` is agent and machine.
    fn open_file(
        loaded: Loaded,
        owner: (&str, &str),
        clock: Clock,
        published: Published,
    ) -> Result<Opened, Error> {
        let Loaded { file, identity: before, mut state } = loaded;
        let identity = Identity { agent: owner.0.to_owned(), machine: owner.1.to_owned() };
        if before.as_ref() != Some(&identity) {
            let epoch = Epoch(uuid::Uuid::new_v4());
            if let Some(before) = before {
                warn!(?before, now = ?identity, %epoch, "the store comes from another agent or machine; a new epoch begins");
            }
            let work = Work { epoch: Some((epoch, identity.clone())), ..Work::default() };
            state.commit(&file, &work, clock.monotonic(), clock.wall())?;
        }
        let file_bytes = compact_if_it_pays(&file, &state)?;
        let recent = state.recent.clone();

        let (requests, waiting) = mpsc::channel(REQUESTS_WAITING);
        let Published { books, report } = published;
        books.send_replace(Arc::new(state.books.clone()));
        report.send_modify(|report| {
            report.bytes = state.books.held_bytes();
            report.file_bytes = file_bytes;
            report.recovering = None;
        });
        let (wants_checkpoint, checkpoint_wanted) = watch::channel(false);
        let (head, head_seen) = watch::channel(state.books.stream(Stream::Readings).next);
        let reader = Reader::new(file);
        let identity = Arc::new(identity);
        let store = Self {
            requests,
            reader: reader.clone(),
            identity: Arc::clone(&identity),
            books: books.subscribe(),
            report: report.subscribe(),
            wants_checkpoint: checkpoint_wanted,
            head: head_seen,
            newest_received: state.newest_received,
        };
        let ends = Ends { requests: waiting, reader, identity, books, report, wants_checkpoint, head };
        let writer = Writer::new(state, ends, clock);
        Ok(Opened { store, writer, recent })
    }

    /// The dead letters of a store that no agent has open; `None` if one has. Blocks.
    ///
    /// # Errors
    /// If there is no store in `data_dir`, or it cannot be read.
    pub fn dead_letters(data_dir: &std::path::Path) -> Result<Option<Vec<super::DeadLetter>>, Error> {
        Self::reader_of(data_dir)?.map(|reader| reader.dead_letters(0, usize::MAX)).transpose()
    }

    /// For reading a store that no agent has open; `None` if one has, or if the store is not for whoever runs this: a member of
    /// the service's group, say, who may only ask the agent. Blocks.
    ///
    /// # Errors
    /// If there is no store in `data_dir`, it is of a newer version, or it cannot be read.
    pub fn reader_of(data_dir: &std::path::Path) -> Result<Option<Reader>, Error> {
        match File::open_existing(data_dir) {
            Ok(file) => {
                format::refuse_newer(&file)?;
                Ok(Some(Reader::new(Arc::new(file))))
            }
            Err(Error::InUse { .. }) => Ok(None),
            Err(Error::Directory { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Who the store is.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The books as of the last commit; changes with every commit.
    #[must_use]
    pub fn books(&self) -> watch::Receiver<Arc<Books>> {
        self.books.clone()
    }

    /// What the store says of itself.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<Report> {
        self.report.clone()
    }

    /// True while a checkpoint of the windows would free room that is needed.
    #[must_use]
    pub fn wants_checkpoint(&self) -> watch::Receiver<bool> {
        self.wants_checkpoint.clone()
    }

    /// The number after the last durable reading.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Seq> {
        self.head.clone()
    }

    /// When the newest reading held was received, as of opening.
    #[must_use]
    pub fn newest_received(&self) -> Option<Timestamp> {
        self.newest_received
    }

    /// For reading records back.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Stores a group; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn append(&self, group: Group) -> Result<(), Closed> {
        self.ask(|done| Request::Group(group, done)).await
    }

    /// Stores results of windows, with the next commit; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn update_windows(&self, update: WindowsUpdate) -> Result<(), Closed> {
        self.ask(|done| Request::Windows(update, done)).await
    }

    /// Changes a ledger at once; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn change(&self, change: LedgerChange) -> Result<(), Closed> {
        self.ask(|done| Request::Ledger(change, Some(done))).await
    }

    /// `sink` has everything of `stream` before `next`: goes into some commit soon, and nobody waits for it.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn advance(&self, sink: &str, epoch: Epoch, stream: Stream, next: Seq) -> Result<(), Closed> {
        let change = LedgerChange { sink: sink.to_owned(), stream, epoch, event: LedgerEvent::Advance(next) };
        self.requests.send(Request::Ledger(change, None)).await.map_err(|_| Closed)
    }

    /// Makes `sinks` those that are configured; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn configure_sinks(&self, sinks: Vec<SinkSpec>) -> Result<(), Closed> {
        self.ask(|done| Request::Sinks(sinks, done)).await
    }

    /// Begins a new epoch, unless `current` is not the epoch any more; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn leave_epoch(&self, current: Epoch) -> Result<(), Closed> {
        self.ask(|done| Request::Epoch(current, done)).await
    }

    /// Replays or purges dead letters; durable when this returns. Who goes away meanwhile leaves it undone, or done.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn change_letters(&self, change: LettersChange) -> Result<LettersDone, Closed> {
        let (done, durable) = oneshot::channel();
        self.requests.send(Request::Letters(change, done)).await.map_err(|_| Closed)?;
        durable.await.map_err(|_| Closed)
    }

    /// Keeps when the machine was started: batches fixed from now on are corrected by it. Durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn learn_boot(&self, boot: Boot) -> Result<(), Closed> {
        self.ask(|done| Request::Boot(boot, done)).await
    }

    /// The agent stops: from now on what the windows ask is committed at once.
    pub fn hurry(&self) {
        // Full of requests: then there is a commit soon.
        self.requests.try_send(Request::Hurry).ok();
    }

    /// Keeps `value` under `key`; durable when this returns.
    ///
    /// # Errors
    /// If the store has closed.
    pub async fn remember(&self, key: &str, value: Vec<u8>) -> Result<(), Closed> {
        let key = format!("memory/{key}");
        self.ask(|done| Request::Remember(key, value, done)).await
    }

    /// What was remembered under `key`. Blocks.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn recall(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.reader.file.read(|transaction| {
            let row = transaction
                .open_table(STATE)?
                .get(format!("memory/{key}").as_str())?
                .map(|row| row.value().to_vec());
            Ok(row)
        })
    }

    /// Where the windows were: their checkpoint, and what was emitted since. Blocks.
    ///
    /// # Errors
    /// If the disk fails or what is on it is damaged.
    pub fn windows_snapshot(&self) -> Result<WindowsSnapshot, Error> {
        let books = Arc::clone(&self.books.borrow());
        checkpoint::windows_snapshot(&self.reader.file, &books)
    }

    /// `seq` could not be read although it should be there: the writer looks, and declares lost what is. Does not block.
    pub fn suspect(&self, stream: Stream, seq: Seq) {
        self.reader.suspect(stream, seq);
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<()>) -> Request) -> Result<(), Closed> {
        let (done, durable) = oneshot::channel();
        self.requests.send(request(done)).await.map_err(|_| Closed)?;
        durable.await.map_err(|_| Closed)
    }
}

/// Makes the file smaller if it is far larger than what is in it. Returns what it takes on the disk.
fn compact_if_it_pays(file: &File, state: &State) -> Result<u64, Error> {
    let file_bytes = file.disk_bytes().unwrap_or(0);
    let live_bytes = state.live_bytes(file)?;
    if !compaction::pays(Occasion::Start, file_bytes, live_bytes, 0) {
        return Ok(file_bytes);
    }
    info!(file_bytes, live_bytes, "store's file is far larger than what is in it; compacting it");
    if let Err(error) = file.compact() {
        // A disk that is too full for it, say. What is stored is as it was.
        warn!(error = %chain(&error), "store's file could not be compacted");
        file.reopen()?;
    }
    let file_bytes = file.disk_bytes().unwrap_or(0);
    info!(file_bytes, "store's file is compacted");
    Ok(file_bytes)
}

/// A store that was opened and read.
struct Loaded {
    file: Arc<File>,
    /// Whose it was, if it is not new.
    identity: Option<Identity>,
    state: State,
}

impl Loaded {
    /// Reads everything that a start needs, so that what cannot be read shows now.
    fn of(file: File, settings: &Settings, windows: WindowsPresence) -> Result<Self, Error> {
        let identity = identity(&file)?;
        let mut state = State::load(&file, settings.clone(), windows)?;
        // Whose it is was written in its first commit.
        if identity.is_some() && state.books.commit == 0 {
            return Err(Error::unreadable("its books"));
        }
        // The windows begin with what the checkpoint has; where it was void, that is nothing.
        state.books.damage.is_checkpoint_void = false;
        if windows == WindowsPresence::Configured {
            checkpoint::windows_snapshot(&file, &state.books)?;
        }
        Ok(Self { file: Arc::new(file), identity, state })
    }
}

/// Whose the store was, if it is not new.
pub(super) fn identity(file: &File) -> Result<Option<Identity>, Error> {
    format::take_over(file)?;
    let identity = file.read(|transaction| {
        let state = transaction.open_table(STATE)?;
        Ok(state.get(log::IDENTITY_ROW)?.map(|row| row.value().to_vec()))
    })?;
    Ok(identity.and_then(|row| postcard::from_bytes(&row).ok()))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a progress bar, not a count"
)]
fn part_of(total_bytes: u64, part: f64) -> u64 {
    (total_bytes as f64 * part.clamp(0.0, 1.0)) as u64
}
