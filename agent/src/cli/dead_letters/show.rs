//! `holdfast dead-letters show`: what is known of one on stderr, its bytes on stdout.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use super::{origin, print_line};
use crate::blocking::blocking;
use crate::config::Config;
use crate::status::client::{self, Ways};
use crate::status::dead_letters::Entry;
use crate::status::text::shown;
use crate::store::Store;

/// Which dead letter `holdfast dead-letters show` shows, and how.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// Its id, as `list` shows it
    pub id: u64,
    /// Write the bytes as they are, even to a terminal
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object: what is known, and the bytes as `payload` if they are text, else as `payload_hex`
    #[arg(long, conflicts_with = "raw")]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    #[serde(flatten)]
    payload: Payload<'a>,
}

#[derive(Serialize)]
enum Payload<'a> {
    #[serde(rename = "payload")]
    Text(&'a str),
    #[serde(rename = "payload_hex")]
    Hex(String),
}

impl<'a> Payload<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let hex = || {
            bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
                write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
                hex
            })
        };
        std::str::from_utf8(bytes).map_or_else(|_| Self::Hex(hex()), Self::Text)
    }
}

/// There is no such dead letter.
#[derive(Debug, thiserror::Error)]
#[error("there is no dead letter {id}; see holdfast dead-letters list")]
struct Unknown {
    id: u64,
}

/// How one is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Its bytes as they are.
    Raw,
    /// Its bytes, so that a terminal obeys none of them.
    Escaped,
    /// One JSON object.
    Json,
}

impl Form {
    /// As `args` say, to a terminal or something else.
    #[must_use]
    pub fn of(args: &ShowArgs, to: &impl IsTerminal) -> Self {
        match () {
            () if args.json => Self::Json,
            () if args.raw || !to.is_terminal() => Self::Raw,
            () => Self::Escaped,
        }
    }
}

/// Shows one dead letter: the running agent's, or, if none runs, one in the store.
///
/// # Errors
/// If there is none of that id, neither can be asked, or `out` does not take the answer.
pub async fn show(args: &ShowArgs, form: Form, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let (data_dir, id) = (config.store.data_dir.clone(), args.id);
    let offline = blocking(move || {
        let reader = Store::reader_of(&data_dir)?;
        reader.map(|reader| reader.dead_letter(id)).transpose()
    });
    let (entry, payload) = match offline.await? {
        Some(letter) => {
            let letter = letter.ok_or(Unknown { id })?;
            (Entry::from(&letter), letter.payload)
        }
        None => {
            let path = format!("/api/v1/dead-letters/{id}");
            let entry: Entry = match client::get(&config.admin, &path, Ways::SocketOnly).await {
                Err(client::Error::Refused { status: 404, .. }) => return Err(Unknown { id }.into()),
                answer => answer?,
            };
            (entry, client::get_bytes(&config.admin, &format!("{path}/payload")).await?)
        }
    };
    if form == Form::Json {
        return Ok(print_line(&Shown { entry: &entry, payload: Payload::of(&payload) }, out)?);
    }
    describe(&entry, &mut io::stderr())?;
    write_payload(&payload, form, out)?;
    Ok(())
}

/// Everything but the payload, for people.
fn describe(entry: &Entry, out: &mut impl Write) -> io::Result<()> {
    let Entry { id, time, payload_bytes, kept_bytes, payload_hash, .. } = entry;
    writeln!(out, "dead letter {id}")?;
    writeln!(out, "  refused  {}", shown(time))?;
    writeln!(out, "  from     {}", origin(&entry.origin))?;
    writeln!(out, "  reason   {}", shown(&entry.reason))?;
    if kept_bytes < payload_bytes {
        writeln!(out, "  size     {payload_bytes} bytes, of which the first {kept_bytes} are kept")?;
        writeln!(out, "  xxh3-64  {} (of all of it)", shown(payload_hash))
    } else {
        writeln!(out, "  size     {payload_bytes} bytes")?;
        writeln!(out, "  xxh3-64  {}", shown(payload_hash))
    }
}

fn write_payload(payload: &[u8], form: Form, out: &mut impl Write) -> io::Result<()> {
    match (form, std::str::from_utf8(payload)) {
        (Form::Raw | Form::Json, _) => out.write_all(payload)?,
        (Form::Escaped, Ok(text)) => {
            for line in text.lines() {
                writeln!(out, "{}", shown(line))?;
            }
        }
        (Form::Escaped, Err(_)) => writeln!(out, "{}", payload.escape_ascii())?,
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::dead_letters::Origin;

    #[test]
    fn a_terminal_gets_no_control_character_and_a_file_gets_every_byte() {
        let check = |payload: &[u8], form, expected: &[u8]| {
            let mut out = Vec::new();
            write_payload(payload, form, &mut out).unwrap();
            assert_eq!(out, expected, "{payload:?}");
        };
        check(b"{\"a\":1}\n\x1b[2J", Form::Escaped, b"{\"a\":1}\n\\u{1b}[2J\n");
        check(b"\xff\x1b[2J\"", Form::Escaped, b"\\xff\\x1b[2J\\\"\n");
        check(b"\xff\x1b[2J\n", Form::Raw, b"\xff\x1b[2J\n");
        check(b"", Form::Escaped, b"");
    }

    #[test]
    fn json_has_the_bytes_as_text_or_else_in_digits() {
        let entry = Entry {
            id: 7,
            time: "2026-11-20T04:15:12.123000Z".into(),
            origin: Origin::Source { source: "plant".into(), topic: "a/b".into() },
            reason: "not JSON".into(),
            payload_bytes: 2,
            kept_bytes: 2,
            payload_hash: "00ff".into(),
        };
        let line = |payload: &[u8]| {
            let mut out = Vec::new();
            print_line(&Shown { entry: &entry, payload: Payload::of(payload) }, &mut out).unwrap();
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()
        };
        let text = line(b"\"\n");
        assert_eq!(
            (&text["payload"], &text["source"], &text["id"]),
            (&"\"\n".into(), &"plant".into(), &7.into())
        );
        assert_eq!(text.get("payload_hex"), None);
        let bytes = line(b"\xff\x01");
        assert_eq!((&bytes["payload_hex"], bytes.get("payload")), (&"ff01".into(), None));
    }

    #[test]
    fn what_was_cut_is_said_to_be() {
        let mut entry = Entry {
            id: 7,
            time: "2026-11-20T04:15:12.123000Z".into(),
            origin: Origin::Source { source: "plant".into(), topic: "a/b".into() },
            reason: "not\u{7} JSON".into(),
            payload_bytes: 100,
            kept_bytes: 64,
            payload_hash: "00ff".into(),
        };
        let text = |entry: &Entry| {
            let mut out = Vec::new();
            describe(entry, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let cut = text(&entry);
        assert!(
            cut.contains("100 bytes, of which the first 64 are kept") && cut.contains("(of all of it)"),
            "{cut}"
        );
        assert!(cut.contains(r"not\u{7} JSON") && cut.contains("source plant a/b"), "{cut}");
        entry.kept_bytes = 100;
        assert!(text(&entry).contains("size     100 bytes\n"));
    }
}
