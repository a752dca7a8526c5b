//! `holdfast dead-letters replay` and `purge`: by the running agent, or, if none runs, in the store.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::print_line;
use crate::clock::Clock;
use crate::config::Config;
use crate::pipeline::letters::Offline;
use crate::status::Settings;
use crate::status::client;
use crate::status::dead_letters::{Purged, Replayed, Selection, Stayed};
use crate::status::text::shown;

/// Ids asked for at once: more would not fit one request.
const MAX_IDS: usize = 1_000;

/// Which dead letters `holdfast dead-letters replay` replays.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Ids, as `list` shows them; without any: all
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,
    /// Print one JSON object: how many were replayed, and each that stayed with the reason
    #[arg(long)]
    pub json: bool,
}

/// Which dead letters `holdfast dead-letters purge` removes.
#[derive(Args, Clone, Debug)]
pub struct PurgeArgs {
    /// Ids, as `list` shows them; without any: all
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,
    /// Do not ask, even at a terminal, before all are removed
    #[arg(long)]
    pub yes: bool,
    /// Print one JSON object: how many were purged, and how many of those named were not there
    #[arg(long)]
    pub json: bool,
}

/// What `replay --json` prints.
#[derive(Serialize)]
struct ReplayTold<'a> {
    replayed: u64,
    stayed: &'a [Stayed],
}

/// What `purge --json` prints.
#[derive(Serialize)]
struct PurgeTold {
    purged: u64,
    not_there: u64,
}

/// Who does it.
enum Place<'a> {
    /// The running agent, asked at its socket.
    Agent(&'a Settings),
    /// This process, in a store that no agent has open.
    Store(Offline),
}

impl<'a> Place<'a> {
    async fn of(config: &'a Config) -> anyhow::Result<Self> {
        let offline = Offline::open(config, Clock::system()).await?;
        Ok(offline.map_or(Self::Agent(&config.admin), Self::Store))
    }

    async fn replay(&self, which: Selection) -> anyhow::Result<Replayed> {
        Ok(match self {
            Self::Agent(settings) => client::post(settings, "/api/v1/dead-letters/replay", &which).await?,
            Self::Store(offline) => offline.replay(which).await?,
        })
    }

    async fn purge(&self, which: Selection) -> anyhow::Result<Purged> {
        Ok(match self {
            Self::Agent(settings) => client::post(settings, "/api/v1/dead-letters/purge", &which).await?,
            Self::Store(offline) => offline.purge(which).await?,
        })
    }

    async fn close(self) {
        if let Self::Store(offline) = self {
            offline.close().await;
        }
    }
}

/// Replays dead letters, and says how many stayed and why. Code 1 if one of those named stayed.
///
/// # Errors
/// If nobody can do it, or `out` does not take the answer. What was done before stays done.
pub async fn replay(args: &ReplayArgs, config: &Config, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let place = Place::of(config).await?;
    let (mut replayed, mut stayed) = (0, Vec::new());
    let result = replay_all(&place, &args.ids, &mut replayed, &mut stayed).await;
    place.close().await;
    if args.json {
        print_line(&ReplayTold { replayed, stayed: &stayed }, out)?;
    } else {
        tell_replayed(replayed, &stayed, &args.ids, out)?;
    }
    result?;
    let is_done = args.ids.is_empty() || stayed.is_empty();
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

async fn replay_all(
    place: &Place<'_>,
    ids: &[u64],
    replayed: &mut u64,
    stayed: &mut Vec<Stayed>,
) -> anyhow::Result<()> {
    for selection in selections(ids) {
        let mut next = Some(selection);
        while let Some(which) = next {
            let done = place.replay(which.clone()).await?;
            *replayed += done.replayed;
            stayed.extend(done.stayed);
            // An agent that asks for the same again must not keep us for ever.
            next = done.next.filter(|next| *next != which);
        }
    }
    Ok(())
}

/// What to ask for, one after another.
fn selections(ids: &[u64]) -> Vec<Selection> {
    if ids.is_empty() { vec![Selection::of(&[])] } else { ids.chunks(MAX_IDS).map(Selection::of).collect() }
}

fn tell_replayed(replayed: u64, stayed: &[Stayed], ids: &[u64], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{} replayed", counted(replayed))?;
    if ids.is_empty() {
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for letter in stayed {
            *reasons.entry(&letter.why).or_default() += 1;
        }
        for (why, count) in reasons {
            writeln!(out, "{count} stayed: {}", shown(why))?;
        }
        return Ok(());
    }
    for Stayed { id, why, detail } in stayed {
        let detail = detail.as_deref().map(|detail| format!(": {}", shown(detail))).unwrap_or_default();
        writeln!(out, "{id} not replayed: {}{detail}", shown(why))?;
    }
    Ok(())
}

/// Purges dead letters, and says how many there were. Code 1 if one of those named was not there, or a person at the terminal
/// would rather keep them.
///
/// # Errors
/// If nobody can do it, or `out` does not take the answer.
pub async fn purge(args: &PurgeArgs, config: &Config, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let may_ask = args.ids.is_empty() && !args.yes && io::stdin().is_terminal();
    if may_ask && !agreed(&mut io::stdin().lock(), &mut io::stderr())? {
        tell_purged(args, 0, 0, "nothing", out)?;
        return Ok(ExitCode::from(1));
    }
    let place = Place::of(config).await?;
    let mut purged = 0;
    let mut result = Ok(());
    for selection in selections(&args.ids) {
        match place.purge(selection).await {
            Ok(done) => purged += done.purged,
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    place.close().await;
    let mut ids = args.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    let named = ids.len() as u64;
    // Of what was not asked for after an error nobody knows whether it was there.
    let not_there = if result.is_ok() { named.saturating_sub(purged) } else { 0 };
    tell_purged(args, purged, not_there, &counted(purged), out)?;
    result?;
    Ok(if not_there == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn tell_purged(
    args: &PurgeArgs,
    purged: u64,
    not_there: u64,
    counted: &str,
    out: &mut impl Write,
) -> io::Result<()> {
    if args.json {
        return print_line(&PurgeTold { purged, not_there }, out);
    }
    writeln!(out, "{counted} purged")?;
    if not_there > 0 {
        writeln!(out, "{not_there} of those named were not there")?;
    }
    Ok(())
}

/// Asks a person.
fn agreed(answers: &mut impl io::BufRead, questions: &mut impl Write) -> io::Result<bool> {
    write!(questions, "purge all dead letters for good? [y/N] ")?;
    questions.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn counted(letters: u64) -> String {
    if letters == 1 { "1 dead letter".to_owned() } else { format!("{letters} dead letters") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(replayed: u64, stayed: &[Stayed], ids: &[u64]) -> String {
        let mut out = Vec::new();
        tell_replayed(replayed, stayed, ids, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_stayed_is_grouped_by_reason_or_said_of_each_that_was_named() {
        let stayed: Vec<Stayed> =
            [(3, "cut", None), (4, "not decoded", Some("line 1\u{1b}")), (5, "cut", None)]
                .map(|(id, why, detail)| Stayed { id, why: why.into(), detail: detail.map(str::to_owned) })
                .into();
        assert_eq!(told(1, &stayed, &[]), "1 dead letter replayed\n2 stayed: cut\n1 stayed: not decoded\n");
        assert_eq!(
            told(0, &stayed[..2], &[3, 4]),
            "0 dead letters replayed\n3 not replayed: cut\n4 not replayed: not decoded: line 1\\u{1b}\n"
        );
    }

    #[test]
    fn json_tells_all_of_it_on_one_line() {
        let stayed = [Stayed { id: 3, why: "cut".into(), detail: None }];
        let mut out = Vec::new();
        print_line(&ReplayTold { replayed: 1, stayed: &stayed }, &mut out).unwrap();
        let args = PurgeArgs { ids: vec![1, 2], yes: false, json: true };
        tell_purged(&args, 1, 1, "1 dead letter", &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected =
            "{\"replayed\":1,\"stayed\":[{\"id\":3,\"why\":\"cut\"}]}\n{\"purged\":1,\"not_there\":1}\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn only_a_clear_yes_purges_everything() {
        for (answer, expected) in [("y\n", true), ("yes\n", true), ("\n", false), ("", false), ("n\n", false)]
        {
            assert_eq!(agreed(&mut answer.as_bytes(), &mut Vec::new()).unwrap(), expected, "{answer:?}");
        }
    }

    #[test]
    fn many_ids_are_asked_for_in_several_requests() {
        let ids: Vec<u64> = (1..=2_500).collect();
        assert_eq!(selections(&ids).len(), 3);
        assert_eq!(selections(&[]), [Selection::All(crate::status::dead_letters::Span::default())]);
    }
}
