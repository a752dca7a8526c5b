//! Gathers faults and notes while a file is read, with their places, and decides what of the file may be shown.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Environment;
use super::fault::{Fault, Place, Problem};
use super::lines::Lines;
use super::note::{Note, Remark};

/// Of a wrong value, at most this many characters are shown: enough to find it, and one line.
const SHOWN_CHARS: usize = 60;

/// Gathers what is found, and knows what readers need to know beside the table.
pub(super) struct Report<'a> {
    file: Arc<str>,
    text: &'a str,
    lines: Lines<'a>,
    faults: RefCell<Vec<(usize, Fault)>>,
    notes: RefCell<Vec<Note>>,
    /// The machine.
    pub(super) environment: &'a dyn Environment,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str, file: &str, environment: &'a dyn Environment) -> Self {
        Self {
            file: file.into(),
            text,
            lines: Lines::of(text),
            faults: RefCell::default(),
            notes: RefCell::default(),
            environment,
        }
    }

    pub(super) fn fault(&self, place: &Place, problem: Problem) {
        let fault = Fault {
            file: Arc::clone(&self.file),
            position: Some(self.lines.position(place.span.start)),
            key: place.key.clone(),
            problem,
        };
        self.faults.borrow_mut().push((place.span.start, fault));
    }

    pub(super) fn note(&self, place: &Place, remark: Remark) {
        // What concerns the file as a whole has no place in it.
        let position = (!place.key.is_empty()).then(|| self.lines.position(place.span.start));
        let note = Note { file: Arc::clone(&self.file), position, key: place.key.clone(), remark };
        self.notes.borrow_mut().push(note);
    }

    /// Reports what the TOML parser found.
    pub(super) fn syntax(&self, errors: &[toml::de::Error]) {
        let mut said = BTreeSet::new();
        for error in errors {
            let span = error.span().unwrap_or(self.text.len()..self.text.len());
            if !said.insert(span.start) {
                continue;
            }
            let problem = self.syntax_problem(error.message(), span.clone());
            self.fault(&Place { key: String::new(), span }, problem);
        }
    }

    fn syntax_problem(&self, message: &str, span: Range<usize>) -> Problem {
        if message == "duplicate key" {
            let text = clip(self.text.get(span).unwrap_or_default());
            return Problem::Twice { text };
        }
        let text = self.shown_syntax(span.start, span.end);
        if message.starts_with("string values must be quoted") {
            Problem::Unquoted { text }
        } else {
            Problem::Syntax { message: message.to_owned(), text: text.map(|text| format!("`{text}`")) }
        }
    }

    /// What a syntax error stumbled on, if it cannot be a secret: a key, or the value of a key that holds none.
    fn shown_syntax(&self, start: usize, end: usize) -> Option<String> {
        let (line, before) = self.lines.line_at(start);
        let text = self.text.get(start..end).filter(|text| !text.is_empty())?;
        let key = line.split_once('=').map_or("", |(key, _)| key).trim();
        let in_key = !before.contains('=') && line.contains('=');
        (in_key || PLAIN_KEYS.contains(&key)).then(|| clip(text))
    }

    /// True if what the parser recovered is worth checking: not if a broken header or an open bracket or quote made
    /// whole lines belong to something else.
    pub(super) fn is_worth_checking(&self, errors: &[toml::de::Error]) -> bool {
        errors.iter().all(|error| {
            let (line, _) = self.lines.line_at(error.span().map_or(self.text.len(), |span| span.start));
            let header = line.trim_start().starts_with('[');
            !header && !error.message().contains("unclosed") && !error.message().contains("multi-line")
        })
    }

    /// All faults in the order of the file. Beside syntax errors, faults that follow from them are left out.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        let is_syntax =
            |fault: &Fault| matches!(fault.problem, Problem::Syntax { .. } | Problem::Unquoted { .. });
        let broken: BTreeSet<_> = faults
            .iter()
            .filter(|(_, fault)| is_syntax(fault))
            .filter_map(|(_, fault)| fault.position.map(|position| position.line))
            .collect();
        if !broken.is_empty() {
            faults.retain(|(_, fault)| {
                let in_broken_line = fault.position.is_some_and(|position| broken.contains(&position.line));
                is_syntax(fault) || (!in_broken_line && !fault.problem.may_follow_from_syntax())
            });
        }
        faults.sort_by_key(|(start, _)| *start);
        faults.into_iter().map(|(_, fault)| fault).collect()
    }

    /// All notes, in the order of the file; warnings first.
    pub(super) fn take_notes(&self) -> Vec<Note> {
        let mut notes = self.notes.take();
        notes.sort_by_key(|note| (note.remark.severity() as u8, note.position));
        notes
    }

    pub(super) fn has_faults(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    /// The line a place is in.
    pub(super) fn line(&self, place: &Place) -> usize {
        self.lines.position(place.span.start).line
    }

    /// `path`, if relative, from the folder of the configuration file.
    pub(super) fn beside_file(&self, path: &str) -> PathBuf {
        Path::new(&*self.file).parent().map_or_else(|| PathBuf::from(path), |folder| folder.join(path))
    }

    /// What stands at `place`, on one line.
    pub(super) fn shown(&self, place: &Place) -> String {
        clip(self.text.get(place.span.clone()).unwrap_or_default())
    }
}

/// Keys whose values are never secret, so that a syntax error may show them.
const PLAIN_KEYS: [&str; 38] = [
    "id",
    "data_dir",
    "listen",
    "socket",
    "open",
    "level",
    "format",
    "max_size",
    "max_age",
    "when_full",
    "commit_interval",
    "max_payload",
    "type",
    "protocol",
    "keep_alive",
    "client_id",
    "topic",
    "qos",
    "payload",
    "time",
    "timezone",
    "device",
    "retained",
    "fields",
    "max_future",
    "max_clients",
    "size",
    "slide",
    "lateness",
    "allowed_lateness",
    "idle",
    "max_series",
    "aggregates",
    "sources",
    "streams",
    "compression",
    "timeout",
    "required",
];

/// `text` on one line, without what a terminal would obey, not too long.
pub(super) fn clip(text: &str) -> String {
    let mut shown: String =
        text.chars().take(SHOWN_CHARS).map(|char| if char.is_control() { ' ' } else { char }).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}
