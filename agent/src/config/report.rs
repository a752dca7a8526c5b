//! Gathers faults and notes while a file is read, with their places, and decides what of the file may be shown.

use std::cell::RefCell;
use std::collections::BTreeSet;
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
    /// The whole file.
    pub(super) text: &'a str,
    /// Where its lines are.
    pub(super) lines: Lines<'a>,
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

    /// All faults in the order of the file. Beside syntax errors, faults that follow from them are left out.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        let broken: BTreeSet<_> = faults
            .iter()
            .filter(|(_, fault)| fault.problem.is_syntax())
            .filter_map(|(_, fault)| fault.position.map(|position| position.line))
            .collect();
        if !broken.is_empty() {
            faults.retain(|(_, fault)| {
                let line = fault.position.map_or(1, |position| position.line);
                // After a broken line, an unknown key may be the rest of a value, and a secret.
                let is_rest =
                    matches!(fault.problem, Problem::UnknownKey { .. }) && broken.contains(&(line - 1));
                let follows = is_rest || fault.problem.may_follow_from_syntax();
                fault.problem.is_syntax() || (!broken.contains(&line) && !follows)
            });
        }
        faults.sort_by_cached_key(|(start, _)| *start);
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

/// `text` on one line, without what a terminal would obey, not too long.
pub(super) fn clip(text: &str) -> String {
    let mut shown: String =
        text.chars().take(SHOWN_CHARS).map(|char| if char.is_control() { ' ' } else { char }).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}
