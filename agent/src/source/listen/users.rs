//! Who may publish: a TOML file of `name = "argon2 hash"`, as `holdfast passwd` writes it.
//!
//! The file is read again when it changes; if it is then wrong, the users known before stay. Checking a password costs
//! what argon2 is made to cost, so one is checked at a time (bounded memory), and a pair found right is remembered as
//! a keyed digest, so that a thousand sensors that reconnect at once do not cost a thousand checks. A name that does not
//! exist costs as much as a wrong password.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use argon2::password_hash::phc::Output;
use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, PasswordHasher, Version};
use tokio::sync::Semaphore;

/// What `holdfast passwd` makes argon2id take: 7 MiB and five passes. One of the equivalent choices of the OWASP
/// password storage cheat sheet; the usual 19 MiB and two passes cost a small gateway more memory for the same protection.
const HASH_KIB: u32 = 7 * 1_024;
const HASH_PASSES: u32 = 5;
/// A hash that asks for more is refused: checking it would be the largest thing the agent does.
const MAX_HASH_KIB: u32 = 64 * 1_024;
/// The memory of the digest under which checked pairs are remembered: microseconds, where a check takes milliseconds.
const DIGEST_KIB: u32 = 8;
const DIGEST_BYTES: usize = 32;

/// Why the users' file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read users file {file:?}; check that it exists and that the service user may read it")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML of the expected shape.
    #[error(
        "users file {file:?} is not TOML of lines like name = \"$argon2id$…\"; write it with `holdfast passwd`"
    )]
    NotToml {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// One hash is none that we can check.
    #[error(
        "users file {file:?}: the hash of {name:?} is no argon2 hash in PHC form of at most {MAX_HASH_KIB} KiB; set it \
         anew with `holdfast passwd`"
    )]
    BadHash {
        /// The file.
        file: PathBuf,
        /// Whose hash.
        name: String,
    },
    /// A password cannot be hashed.
    #[error("cannot hash the password")]
    Hash(#[source] argon2::password_hash::Error),
}

/// Whether a client is who it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
}

/// The users of one listener.
#[derive(Debug)]
pub(super) struct Users {
    file: PathBuf,
    loaded: Mutex<Loaded>,
    /// One check at a time: each takes megabytes and a core.
    checking: Semaphore,
    /// What checks work in, kept from one to the next: the allocator keeps such a piece for each thread that ever had one, which
    /// took 110 MiB when many passwords were tried.
    memory: Arc<Mutex<Vec<Block>>>,
    key: [u8; DIGEST_BYTES],
}

#[derive(Debug)]
struct Loaded {
    stamp: Stamp,
    hashes: HashMap<String, Arc<str>>,
    /// The digest of the password last found right, by user.
    checked: HashMap<String, [u8; DIGEST_BYTES]>,
}

/// What tells a changed file from the one that was read.
type Stamp = Option<(SystemTime, u64)>;

impl Users {
    /// Reads `file`.
    ///
    /// # Errors
    /// If it cannot be used.
    pub(super) fn open(file: &Path) -> Result<Self, Error> {
        let stamp = stamp(file);
        let loaded = Loaded { stamp, hashes: read(file)?, checked: HashMap::new() };
        let mut key = [0; DIGEST_BYTES];
        key[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        Ok(Self {
            file: file.to_owned(),
            loaded: Mutex::new(loaded),
            checking: Semaphore::new(1),
            memory: Arc::default(),
            key,
        })
    }

    /// Reads the file again if it has changed since; `None` if it has not.
    pub(super) fn refresh(&self) -> Option<Result<(), Error>> {
        let stamp = stamp(&self.file);
        if self.lock().stamp == stamp {
            return None;
        }
        let hashes = read(&self.file);
        let mut loaded = self.lock();
        loaded.stamp = stamp;
        Some(hashes.map(|hashes| {
            loaded.hashes = hashes;
            loaded.checked.clear();
        }))
    }

    /// Whether `password` is that of `user`.
    pub(super) async fn verify(&self, user: &str, password: &str) -> Verdict {
        let digest = self.digest(user, password);
        let (hash, exists) = {
            let loaded = self.lock();
            if loaded.checked.get(user).is_some_and(|checked| *checked == digest) {
                return Verdict::Right;
            }
            match loaded.hashes.get(user) {
                Some(hash) => (Arc::clone(hash), true),
                // Somebody else's hash takes as long and is never right for this name.
                None => match loaded.hashes.values().next() {
                    Some(hash) => (Arc::clone(hash), false),
                    None => return Verdict::Wrong,
                },
            }
        };
        let Ok(_turn) = self.checking.acquire().await else { return Verdict::Wrong };
        let (checked_hash, password) = (Arc::clone(&hash), password.to_owned());
        let memory = Arc::clone(&self.memory);
        let matches = tokio::task::spawn_blocking(move || {
            // What another check left in it is overwritten.
            matches(&checked_hash, &password, &mut memory.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let matches = matches.await;
        if !exists || !matches.unwrap_or(false) {
            return Verdict::Wrong;
        }
        let mut loaded = self.lock();
        // Only if the file still says what was checked.
        if loaded.hashes.get(user) == Some(&hash) {
            loaded.checked.insert(user.to_owned(), digest);
        }
        Verdict::Right
    }

    /// A digest of the pair under this process's random key: argon2 at its cheapest, which needs no other library.
    fn digest(&self, user: &str, password: &str) -> [u8; DIGEST_BYTES] {
        let mut digest = [0; DIGEST_BYTES];
        let mut pair = Vec::with_capacity(8 + user.len() + password.len());
        pair.extend_from_slice(&(user.len() as u64).to_le_bytes());
        pair.extend_from_slice(user.as_bytes());
        pair.extend_from_slice(password.as_bytes());
        let params =
            Params::new(DIGEST_KIB, 1, 1, Some(DIGEST_BYTES)).expect("constants within argon2's bounds");
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(&pair, &self.key, &mut digest)
            .expect("a pair of MQTT strings is far shorter than argon2's bound");
        digest
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        // Each change under the lock is one assignment; a panic elsewhere leaves it whole.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hash of `password` to keep in a users' file.
///
/// # Errors
/// If the system gives no random salt.
pub fn hash(password: &str) -> Result<String, Error> {
    let params = Params::new(HASH_KIB, HASH_PASSES, 1, None).expect("constants within argon2's bounds");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(password.as_bytes()).map_err(Error::Hash)?;
    Ok(hash.to_string())
}

/// The users in a file's `text`.
///
/// # Errors
/// If it is not a users' file; `file` is for the message.
pub fn parse(text: &str, file: &Path) -> Result<BTreeMap<String, String>, Error> {
    let hashes: BTreeMap<String, String> = toml::from_str(text)
        .map_err(|source| Error::NotToml { file: file.to_owned(), source: Box::new(source) })?;
    match hashes.iter().find(|(_, hash)| !can_check(hash)) {
        Some((name, _)) => Err(Error::BadHash { file: file.to_owned(), name: name.clone() }),
        None => Ok(hashes),
    }
}

fn read(file: &Path) -> Result<HashMap<String, Arc<str>>, Error> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| Error::Unreadable { file: file.to_owned(), source })?;
    Ok(parse(&text, file)?.into_iter().map(|(name, hash)| (name, hash.into())).collect())
}

fn stamp(file: &Path) -> Stamp {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn can_check(hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    let affordable = Params::try_from(&hash).is_ok_and(|params| params.m_cost() <= MAX_HASH_KIB);
    affordable
        && Algorithm::try_from(hash.algorithm.as_str()).is_ok()
        && hash.salt.is_some()
        && hash.hash.is_some()
}

/// As argon2's own `verify_password`, but in `memory`, which grows to what the hash takes.
fn matches(hash: &str, password: &str, memory: &mut Vec<Block>) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    let version = hash.version.map_or(Ok(Version::default()), Version::try_from);
    let (Ok(algorithm), Ok(params), Ok(version)) =
        (Algorithm::try_from(hash.algorithm.as_str()), Params::try_from(&hash), version)
    else {
        return false;
    };
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else { return false };
    if memory.len() < params.block_count() {
        memory.resize(params.block_count(), Block::default());
    }
    let mut computed = vec![0; expected.as_bytes().len()];
    Argon2::new(algorithm, version, params)
        .hash_password_into_with_memory(password.as_bytes(), salt, &mut computed, memory.as_mut_slice())
        .is_ok()
        // `Output` is compared in constant time.
        && Output::new(&computed).is_ok_and(|computed| computed == *expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("users.toml");
        std::fs::write(&file, text).unwrap();
        (dir, file)
    }

    #[tokio::test]
    async fn only_the_right_password_of_the_right_user_is_right() {
        let (_dir, file) = users(&format!("ada = \"{}\"\n", hash("secret").unwrap()));
        let users = Users::open(&file).unwrap();
        for _ in 0..2 {
            assert_eq!(users.verify("ada", "secret").await, Verdict::Right);
            assert_eq!(users.verify("ada", "Secret").await, Verdict::Wrong);
            assert_eq!(users.verify("eve", "secret").await, Verdict::Wrong);
        }
        assert_eq!(users.lock().checked.len(), 1, "what was right is remembered, what was wrong is not");
    }

    #[tokio::test]
    async fn a_changed_file_counts_and_a_broken_one_does_not() {
        let (_dir, file) = users(&format!("ada = \"{}\"\n", hash("old").unwrap()));
        let users = Users::open(&file).unwrap();
        assert_eq!(users.verify("ada", "old").await, Verdict::Right);
        assert!(users.refresh().is_none());

        std::fs::write(&file, format!("# new\nada = \"{}\"\n", hash("new").unwrap())).unwrap();
        assert!(users.refresh().unwrap().is_ok());
        assert_eq!(users.verify("ada", "old").await, Verdict::Wrong);
        assert_eq!(users.verify("ada", "new").await, Verdict::Right);

        std::fs::write(&file, "ada = 1").unwrap();
        assert!(matches!(users.refresh().unwrap(), Err(Error::NotToml { .. })));
        assert!(users.refresh().is_none(), "said once");
        assert_eq!(users.verify("ada", "new").await, Verdict::Right);
    }

    #[test]
    fn passwords_are_checked_as_argon2_does_it_whatever_the_memory_held() {
        use argon2::PasswordVerifier as _;

        let mut memory = Vec::new();
        for (algorithm, kib, passes) in
            [(Algorithm::Argon2id, 64, 1), (Algorithm::Argon2i, 16, 3), (Algorithm::Argon2d, 32, 2)]
        {
            for lanes in [1, 2] {
                let params = Params::new(kib, passes, lanes, None).unwrap();
                let argon2 = Argon2::new(algorithm, Version::V0x13, params);
                let hash = argon2.hash_password(b"right").unwrap();
                let text = hash.to_string();
                for password in ["right", "wrong", ""] {
                    let expected = Argon2::default().verify_password(password.as_bytes(), &hash).is_ok();
                    assert_eq!(matches(&text, password, &mut memory), expected, "{text} {password}");
                }
            }
        }
    }

    #[test]
    fn a_file_is_refused_for_what_could_not_be_checked() {
        let check = |hash: &str| {
            let text = format!("ada = \"{hash}\"");
            assert!(matches!(parse(&text, Path::new("f")), Err(Error::BadHash { .. })), "{hash}");
        };
        check("secret");
        check("$2b$12$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu");
        check(
            "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$c29tZWhhc2hzb21laGFzaHNvbWVoYXNoc29tZWhhc2g",
        );
        check("$argon2id$v=19$m=8192,t=2,p=1$c29tZXNhbHRzb21lc2FsdA");
        assert!(parse("", Path::new("f")).unwrap().is_empty());
    }
}
