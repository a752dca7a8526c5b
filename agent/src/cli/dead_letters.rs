//! `holdfast dead-letters`: what was refused for good, and is kept for people.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use crate::config::Config;
use crate::status::Settings;
use crate::status::client::{self, Ways};
use crate::status::dead_letters::{Entry, Origin, Page};
use crate::status::text::{Table, bytes, shown};
use crate::store::{DeadLetter, Store};

mod change;
mod show;

pub use self::change::{PurgeArgs, ReplayArgs, purge, replay};
pub use self::show::{Form, ShowArgs, show};

/// Asked for at once; an agent gives at most this many.
const PAGE: usize = 1_000;
/// A reason longer than this is cut in the table; `--json` has all of it.
const REASON_CHARS: usize = 100;

/// How `holdfast dead-letters list` answers.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Prints the dead letters, oldest first: the running agent's, or, if none runs, those in the store.
///
/// # Errors
/// If neither can be asked, or `out` does not take the answer.
pub async fn list(args: &ListArgs, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    match Store::dead_letters(&config.store.data_dir)? {
        Some(letters) if args.json => print_json(&letters, out)?,
        Some(letters) => print(&letters, out)?,
        None => ask(args, &config.admin, out).await?,
    }
    Ok(())
}

/// Asks the agent that runs with `settings` for its dead letters and prints them, oldest first.
pub(crate) async fn ask(args: &ListArgs, settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    let mut entries = Vec::new();
    let mut after = Some(0);
    while let Some(id) = after {
        let path = format!("/api/v1/dead-letters?after={id}&limit={PAGE}");
        let page: Page = client::get(settings, &path, Ways::SocketOnly).await?;
        // An agent that answers with the same page again must not keep us for ever.
        after = page.next_after.filter(|next| *next > id);
        if args.json {
            print_lines(&page.dead_letters, out)?;
        } else {
            entries.extend(page.dead_letters);
        }
    }
    if !args.json {
        print_table(&entries, out)?;
    }
    Ok(())
}

/// Prints dead letters as a table, for a store that no agent has open.
///
/// # Errors
/// If `out` does not take it.
pub fn print(list: &[DeadLetter], out: &mut impl Write) -> io::Result<()> {
    print_table(&entries(list), out)
}

/// Prints dead letters as JSON, one object per line, for a store that no agent has open.
///
/// # Errors
/// If `out` does not take it.
pub fn print_json(list: &[DeadLetter], out: &mut impl Write) -> io::Result<()> {
    print_lines(&entries(list), out)
}

fn entries(list: &[DeadLetter]) -> Vec<Entry> {
    list.iter().map(Entry::from).collect()
}

fn print_lines(entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    entries.iter().try_for_each(|entry| print_line(entry, out))
}

fn print_line(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn print_table(entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    if entries.is_empty() {
        return writeln!(out, "no dead letters");
    }
    let mut table = Table::new(&["ID", "TIME", "FROM", "SIZE", "REASON"], &[1, 2, 4]);
    for entry in entries {
        table.row([
            entry.id.to_string(),
            shown(&entry.time).into_owned(),
            origin(&entry.origin),
            bytes(entry.payload_bytes),
            cut(&shown(&entry.reason)),
        ]);
    }
    write!(out, "{}", table.text())
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Source { source, topic } => format!("source {} {}", shown(source), cut(&shown(topic))),
        Origin::Sink { sink, stream, first, last, status, .. } => {
            let numbers = if first == last { first.to_string() } else { format!("{first}-{last}") };
            format!("sink {} {} {numbers} (answer {status})", shown(sink), shown(stream))
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Timestamp;
    use crate::store::DeadLetterOrigin;
    use crate::stream::{Seq, SeqRange, Stream};

    fn letters() -> Vec<DeadLetter> {
        let letter = |id, origin, reason: &str| DeadLetter {
            id,
            time: Timestamp(1_795_148_112_123_000),
            origin,
            reason: reason.to_owned(),
            record: None,
            payload: b"secret".to_vec(),
            payload_bytes: 2_048,
            payload_hash: 0xabc,
        };
        let source = DeadLetterOrigin::Source { source: "plant".into(), topic: "a/\u{1b}[2Jb".into() };
        let range = SeqRange { first: Seq(7), last: Seq(7) };
        let epoch = crate::stream::Epoch(uuid::Uuid::nil());
        let (sink, stream) = ("cloud".into(), Stream::Readings);
        let sink = DeadLetterOrigin::Sink { sink, stream, epoch, range, status: 422 };
        vec![letter(1, source, "not JSON"), letter(2, sink, &"é".repeat(300))]
    }

    #[test]
    fn the_table_shows_where_each_comes_from_and_no_control_character() {
        let mut out = Vec::new();
        print(&letters(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains(r"source plant a/\u{1b}[2Jb"), "{text}");
        assert!(lines[1].contains("2.0 KiB  not JSON"), "{text}");
        assert!(lines[2].contains("sink cloud readings 7 (answer 422)"), "{text}");
        assert!(lines[2].ends_with(&format!("{}…", "é".repeat(100))), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn json_has_one_object_per_line_that_reads_back() {
        let mut out = Vec::new();
        print_json(&letters(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let read: Vec<Entry> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, entries(&letters()));
        assert!(!text.contains("secret"));
    }

    #[test]
    fn nothing_is_said_so() {
        let mut out = Vec::new();
        print(&[], &mut out).unwrap();
        assert_eq!(out, b"no dead letters\n");
    }
}
