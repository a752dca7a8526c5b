//! The database file: opening it, and the edge where redb's errors and panics end.
//!
//! redb blocks, so everything here is called from blocking tasks. After an I/O error redb refuses all work until the
//! database is dropped and opened again; after a panic on a damaged page the same is the safe thing to do. Both are
//! [`File::reopen`].

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};

use super::{chunk, damage};
use crate::stream::{Seq, Stream};

/// Chunks of the readings; the last one's note is the state of the store.
pub(super) const READINGS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("readings");
/// Chunks of the window results.
pub(super) const WINDOWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("windows");
/// Chunks of the alerts.
pub(super) const ALERTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("alerts");
/// What is written rarely: identity, what peers sent as of some commit, subscriptions of sources.
pub(super) const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");
/// The windows' checkpoint.
pub(super) const SERIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("series");
/// Dead letters by id.
pub(super) const DEAD_LETTERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("dead_letters");

/// redb's page cache. Measured: 4 MiB is as fast here as its default of 1 GiB, which lets memory follow the data.
const CACHE_BYTES: usize = 4 << 20;
/// The file's name in the data directory.
pub(super) const FILE_NAME: &str = "store.redb";
/// Who may read the file, which holds all that devices said: its owner.
const FILE_MODE: u32 = 0o600;
/// The data directory, where we make it: as systemd makes it, since the group may use the admin socket, which may lie in it.
const DIR_MODE: u32 = 0o750;

/// The table of a stream.
pub(super) fn table(stream: Stream) -> TableDefinition<'static, u64, &'static [u8]> {
    match stream {
        Stream::Readings => READINGS,
        Stream::Windows => WINDOWS,
        Stream::Alerts => ALERTS,
    }
}

/// What can go wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error(
        "the store {path:?} is in use by another process; stop that agent, or give this one another data_dir"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// There is none.
    #[error("there is no store {path:?}; check agent.data_dir: an agent makes it there when it starts")]
    NoStore {
        /// The file looked for.
        path: PathBuf,
    },
    /// The folder cannot be made or used.
    #[error("cannot use the data directory {path:?}; check that it exists and belongs to the service user")]
    Directory {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The disk failed, or the database is closed because it did.
    #[error("the disk failed")]
    Io(#[source] Box<redb::Error>),
    /// What is on the disk makes no sense.
    #[error("the store is damaged: {what}")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// A chunk is not what was written.
    #[error("the store is damaged at {stream} {seq}")]
    Chunk {
        /// The stream.
        stream: Stream,
        /// The number looked for.
        seq: Seq,
        /// What is wrong with it.
        source: chunk::Error,
    },
    /// A newer version wrote it.
    #[error(
        "the store has format {found}, this version knows {known}; run the version that wrote it, or newer"
    )]
    Newer {
        /// The format found.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
}

impl Error {
    /// Something that was written here cannot be read.
    pub(super) fn unreadable(what: &str) -> Self {
        Self::Damaged { what: format!("{what} cannot be read") }
    }

    fn of(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => Self::Full,
            redb::Error::Corrupted(what) => Self::Damaged { what },
            // What redb says of a file that is none of its own; no disk says this.
            redb::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
                Self::Damaged { what: io.to_string() }
            }
            other => Self::Io(Box::new(other)),
        }
    }
}

/// Any error of redb, as ours.
macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::of(error.into())
            }
        }
    )*};
}
from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::CompactionError,
    DatabaseError,
    redb::SetDurabilityError
);

/// The open database.
#[derive(Debug)]
pub(super) struct File {
    medium: Medium,
    database: RwLock<Option<Database>>,
}

impl File {
    /// Opens `store.redb` in `dir`, or makes it. `progress` hears how far a recovery has come, from 0 to 1.
    ///
    /// # Errors
    /// If another process has it, if the folder cannot be used, or if the file is damaged.
    pub(super) fn open(dir: &Path, progress: impl Fn(f64) + 'static) -> Result<Self, Error> {
        make_dir(dir)?;
        let path = dir.join(FILE_NAME);
        if !path.exists() {
            if damage::left_aside(dir).is_some() {
                return Err(Error::Damaged {
                    what: "it was moved aside and nothing took its place yet".into(),
                });
            }
            create(&path, |_| Ok(()))?;
        }
        Self::on(Medium::File(path), progress)
    }

    /// Opens what lies on `medium`, or makes the tables there if nothing does.
    pub(super) fn on(medium: Medium, progress: impl Fn(f64) + 'static) -> Result<Self, Error> {
        let database = medium.open(progress)?;
        if database.begin_read()?.list_tables()?.next().is_none() {
            make_tables(&database)?;
        }
        Ok(Self { medium, database: RwLock::new(Some(database)) })
    }

    /// Opens `store.redb` in `dir` if it is there.
    ///
    /// # Errors
    /// As [`File::open`], and if it is not there.
    pub(super) fn open_existing(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE_NAME);
        match std::fs::metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoStore { path });
            }
            Err(source) => return Err(Error::Directory { path, source }),
        }
        Self::on(Medium::File(path), |_| {})
    }

    /// Runs `work` in a read transaction.
    ///
    /// # Errors
    /// What `work` or redb answers; a panic of redb's comes back as [`Error::Damaged`].
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.guarded(|database| work(&database.begin_read()?))
    }

    /// Runs `work` in a write transaction and commits it: durable when this returns.
    ///
    /// # Errors
    /// As [`File::read`]; nothing was written, or, after a failed sync, perhaps all of it.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.guarded(|database| {
            let transaction = database.begin_write()?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        })
    }

    /// Drops the database and opens it again: the way out after an I/O error.
    ///
    /// # Errors
    /// If it cannot be opened (yet).
    pub(super) fn reopen(&self) -> Result<(), Error> {
        self.reopen_after(|| Ok(()))
    }

    /// Drops the database, lets `replace` put another file in its place, and opens that. Who has a handle reads from the new one.
    ///
    /// # Errors
    /// If `replace` fails, or the new file cannot be opened.
    pub(super) fn reopen_after(&self, replace: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let before = database.take();
        // Dropping writes, too; a panic there says what we know already.
        drop(catch_unwind(AssertUnwindSafe(move || drop(before))));
        replace()?;
        *database = Some(self.medium.open(|_| {})?);
        Ok(())
    }

    /// Runs `work` with the database to itself: nobody reads or writes meanwhile.
    ///
    /// # Errors
    /// As [`File::read`].
    pub(super) fn alone<T>(&self, work: impl FnOnce(&mut Database) -> Result<T, Error>) -> Result<T, Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_mut() else {
            return Err(Error::Io(Box::new(redb::Error::DatabaseClosed)));
        };
        catch_unwind(AssertUnwindSafe(|| work(database))).unwrap_or_else(|panic| {
            Err(Error::Damaged { what: format!("redb stopped at {}", panic_text(panic.as_ref())) })
        })
    }

    /// Drops the database. redb writes when that happens, and a damaged page may make it panic.
    pub(super) fn close(&self) {
        let before = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(catch_unwind(AssertUnwindSafe(move || drop(before))));
    }

    /// Makes the file as small as it can be. Nobody reads or writes meanwhile; a crash in the middle is harmless, because what
    /// moves does so in transactions.
    ///
    /// # Errors
    /// If the disk fails; the file has to be opened again then.
    pub(super) fn compact(&self) -> Result<(), Error> {
        self.alone(|database| {
            database.compact()?;
            Ok(())
        })
    }

    /// What the file takes on the disk; `None` if that cannot be said.
    pub(super) fn disk_bytes(&self) -> Option<u64> {
        /// The unit of `st_blocks`, whatever the file system's own is (stat(2)).
        const BLOCK_BYTES: u64 = 512;
        match &self.medium {
            Medium::File(path) => Some(std::fs::metadata(path).ok()?.blocks() * BLOCK_BYTES),
            Medium::Backend(_) => None,
        }
    }

    /// Whether it is a file that another can take the place of.
    pub(super) fn is_replaceable(&self) -> bool {
        matches!(self.medium, Medium::File(_))
    }

    fn guarded<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else {
            return Err(Error::Io(Box::new(redb::Error::DatabaseClosed)));
        };
        catch_unwind(AssertUnwindSafe(|| work(database))).unwrap_or_else(|panic| {
            Err(Error::Damaged { what: format!("redb stopped at {}", panic_text(panic.as_ref())) })
        })
    }
}

/// Makes the data directory, if it is not there.
///
/// # Errors
/// If it cannot be made.
pub fn make_dir(dir: &Path) -> Result<(), Error> {
    let fault = |source| Error::Directory { path: dir.to_owned(), source };
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(fault)?;
    }
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made.map_err(fault),
    }
}

/// Makes the file under another name first: a power cut while redb writes its first pages leaves a file that does not open. `fill`
/// writes what is to be in it from the first moment on.
pub(super) fn create(path: &Path, fill: impl FnOnce(&File) -> Result<(), Error>) -> Result<(), Error> {
    let temporary = path.with_extension("redb.new");
    let io = |source| Error::Directory { path: temporary.clone(), source };
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    // Before redb opens it: it would leave the permissions to the umask, and what devices say is not everyone's.
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary).map_err(io)?;
    let database = builder().create(&temporary).map_err(|error| open_error(error, &temporary))?;
    make_tables(&database)?;
    let file = File { medium: Medium::File(temporary.clone()), database: RwLock::new(Some(database)) };
    fill(&file)?;
    drop(file);
    std::fs::rename(&temporary, path).map_err(io)?;
    let dir = path.parent().expect("the file lies in the data directory");
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

/// Makes all tables, so that nobody has to ask whether one is there.
fn make_tables(database: &Database) -> Result<(), Error> {
    let transaction = database.begin_write()?;
    for stream in Stream::ALL {
        transaction.open_table(table(stream))?;
    }
    transaction.open_table(STATE)?;
    transaction.open_table(SERIES)?;
    transaction.open_table(DEAD_LETTERS)?;
    Ok(transaction.commit()?)
}

/// What a store lies on.
pub enum Medium {
    /// A file.
    File(PathBuf),
    /// Anything else: a disk of tests and simulations, which fails when it is told to. Opens what lies on it, or makes it, after
    /// dropping what is cached of it, as is done with a file.
    Backend(OpenBackend),
}

/// See [`Medium::Backend`].
pub type OpenBackend = Box<dyn Fn(&redb::Builder) -> Result<Database, DatabaseError> + Send + Sync>;

impl Medium {
    fn open(&self, progress: impl Fn(f64) + 'static) -> Result<Database, Error> {
        let mut builder = builder();
        builder.set_repair_callback(move |session| progress(session.progress()));
        let opened = catch_unwind(AssertUnwindSafe(|| match self {
            // redb would make a new database of an empty file, and nobody would know that there was another.
            Self::File(path) if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) => {
                Err(Error::Damaged { what: "the file is empty".into() })
            }
            Self::File(path) => {
                drop_cache(path);
                builder.open(path).map_err(|error| open_error(error, path))
            }
            Self::Backend(open) => open(&builder).map_err(|error| open_error(error, Path::new("backend"))),
        }));
        opened.unwrap_or_else(|panic| {
            Err(Error::Damaged { what: format!("redb stopped at {}", panic_text(panic.as_ref())) })
        })
    }
}

impl std::fmt::Debug for Medium {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Backend(_) => f.write_str("Backend"),
        }
    }
}

/// Lets the system forget what it has read or written of the file at `path`, so that what is read from now on is what the disk holds.
///
/// After a failed fsync Linux keeps the pages that it could not write, and marks them clean: they are read as if they were
/// durable, no later fsync writes them, and the next power cut takes them. A commit that failed so must not be found "there
/// after all". This holds for the process after ours, too. What is still to be written is not dropped. A system that cannot do it
/// is no worse off than before.
fn drop_cache(path: &Path) {
    let Ok(file) = std::fs::File::open(path) else { return };
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok();
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn open_error(error: DatabaseError, path: &Path) -> Error {
    match error {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(source))
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Error::Directory { path: path.to_owned(), source }
        }
        other => Error::of(other.into()),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("an unknown place")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_stored_is_for_the_owner_alone() {
        let outside = tempfile::tempdir().unwrap();
        let dir = outside.path().join("var").join("holdfast");
        drop(File::open(&dir, |_| {}).unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.join(FILE_NAME)), FILE_MODE);
        assert_eq!(mode(&dir) & 0o027, 0, "the group may pass, others may not");

        // An operator's own choice stays.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        drop(File::open(&dir, |_| {}).unwrap());
        assert_eq!(mode(&dir), 0o755);
    }
}
