//! `holdfast passwd FILE NAME`: sets one user's password in a users' file of the MQTT listener.
//!
//! The password is read from standard input, unseen where that is a terminal. The file is replaced in one step; its
//! other lines, comments too, stay as they are. A running agent reads the file again by itself.

use std::fs::{self, File};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use toml::de::DeTable;

use crate::source::listen::users;

/// What a new file is made with: `chgrp` to the service's group is all that is left to do.
const NEW_FILE_MODE: u32 = 0o640;

/// A user's name, as an argument.
pub(super) fn user_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("a user name is a text without control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Asks for a password and writes its hash for `name` into `file`.
///
/// # Errors
/// If the file is no users' file or cannot be written, or no password is given.
pub fn run(file: &Path, name: &str) -> anyhow::Result<()> {
    let before = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    // Before the question: nobody types a password twice to learn that the file is wrong.
    users::parse(&before, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("cannot write {}: there is no folder {}", file.display(), folder.display());
    }
    let password = if io::stdin().is_terminal() { asked_twice(name)? } else { line()? };
    ensure!(!password.is_empty(), "the password is empty; nothing was changed");
    let after = with_user(&before, name, &users::hash(&password)?);
    users::parse(&after, file).context("the file would not be readable afterwards; nothing was changed")?;
    replace(file, &after).with_context(|| format!("cannot write {}", file.display()))
}

/// `text` with the line of `name` set to `hash`, or with such a line more.
fn with_user(text: &str, name: &str, hash: &str) -> String {
    let mut entry = String::new();
    push_key(name, &mut entry);
    entry.push_str(" = \"");
    entry.push_str(hash);
    entry.push_str("\"\n");
    let mut after = String::with_capacity(text.len() + entry.len());
    let mut replaced = false;
    for line in text.split_inclusive('\n') {
        if is_of(line, name) {
            after.push_str(&entry);
            replaced = true;
        } else {
            after.push_str(line);
        }
    }
    if !replaced {
        if !after.is_empty() && !after.ends_with('\n') {
            after.push('\n');
        }
        after.push_str(&entry);
    }
    after
}

/// Whether `line` is the one that sets `name`, however its key is quoted.
fn is_of(line: &str, name: &str) -> bool {
    DeTable::parse(line).is_ok_and(|table| table.get_ref().contains_key(name))
}

/// A bare key where TOML allows one, else a quoted one.
fn push_key(name: &str, out: &mut String) {
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
        out.push_str(name);
        return;
    }
    out.push('"');
    for character in name.chars() {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
}

/// Puts `text` in the place of `file` in one step, with the owner and the permissions that it had.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    // Through a link, so that the link stays one.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let before = fs::metadata(&file).ok();
    let mut beside = file.clone().into_os_string();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = || -> anyhow::Result<()> {
        let mut new = File::create_new(&beside)?;
        let mode = before.as_ref().map_or(NEW_FILE_MODE, |before| before.permissions().mode());
        new.set_permissions(fs::Permissions::from_mode(mode))?;
        // Only root may give files away; whoever may not owns it anyway.
        match (&before, fs::metadata(file.parent().unwrap_or(&file))) {
            (Some(before), _) => fchown(&new, Some(before.uid()), Some(before.gid())).ok(),
            // A new one in the service's folder is for the service, although root writes it.
            (None, Ok(folder)) => fchown(&new, None, Some(folder.gid())).ok(),
            (None, Err(_)) => None,
        };
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, &file)?;
        Ok(())
    };
    written().inspect_err(|_| {
        // What was half written is of no use; that it stays behind harms nobody.
        fs::remove_file(&beside).ok();
    })
}

fn asked_twice(name: &str) -> anyhow::Result<String> {
    let first = unseen(&format!("Password for {name}: "))?;
    let second = unseen("Again: ")?;
    if first != second {
        bail!("the two passwords differ; nothing was changed");
    }
    Ok(first)
}

/// Asks on the terminal, without showing what is typed.
fn unseen(question: &str) -> anyhow::Result<String> {
    let mut terminal = io::stderr();
    terminal.write_all(question.as_bytes())?;
    terminal.flush()?;
    let hidden = Hidden::new()?;
    let answer = line();
    drop(hidden);
    terminal.write_all(b"\n")?;
    answer
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn new() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("cannot ask the terminal for its settings")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet).context("cannot keep the password unseen")?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // The terminal is gone, then; there is nothing to show on it.
        tcsetattr(io::stdin(), OptionalActions::Flush, &self.0).ok();
    }
}

fn line() -> anyhow::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("cannot read the password from standard input")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_set_and_everything_else_stays() {
        let check = |before: &str, name: &str, after: &str| assert_eq!(with_user(before, name, "H"), after);
        check("", "ada", "ada = \"H\"\n");
        check("# who may\nada = \"x\"\nbob = \"y\"\n", "ada", "# who may\nada = \"H\"\nbob = \"y\"\n");
        check("\"ada\" = \"x\"", "ada", "ada = \"H\"\n");
        check("bob = \"y\"", "ada", "bob = \"y\"\nada = \"H\"\n");
        check("# ada = \"x\"\n", "ada", "# ada = \"x\"\nada = \"H\"\n");
        check("", "ada@home \"x\\", "\"ada@home \\\"x\\\\\" = \"H\"\n");
    }

    #[test]
    fn what_cannot_be_written_is_said_before_anybody_types() {
        let dir = tempfile::tempdir().unwrap();
        let error = run(&dir.path().join("none/users.toml"), "ada").unwrap_err().to_string();
        assert!(error.contains("there is no folder"), "{error}");
        assert!(user_name("").is_err() && user_name("a\nb").is_err() && user_name("ada@home").is_ok());
    }

    #[test]
    fn a_replaced_file_keeps_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("users.toml");
        replace(&file, "a = \"1\"\n").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, NEW_FILE_MODE);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        replace(&file, "a = \"2\"\n").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = \"2\"\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_new_file_belongs_to_the_group_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        // Only root may give a folder to any group; everybody else has one group at least.
        let group = fs::metadata(dir.path()).unwrap().gid();
        let other = if fchown(File::open(dir.path()).unwrap(), None, Some(group + 1)).is_ok() {
            group + 1
        } else {
            group
        };
        let file = dir.path().join("users.toml");
        replace(&file, "a = \"1\"\n").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().gid(), other);
    }

    #[test]
    fn what_was_set_is_verified_by_the_listener() {
        let hash = users::hash("geheim").unwrap();
        let text = with_user("", "gw/7", &hash);
        assert_eq!(users::parse(&text, Path::new("f")).unwrap()["gw/7"], hash);
    }
}
