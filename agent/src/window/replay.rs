//! After a stop without a checkpoint: what was emitted since the last one, so that it is not emitted again.
//!
//! The readings since the checkpoint are read once more, and devices that had been found silent are found silent again at
//! the very positions at which they were. So the same results come out; those that are in the log already are held back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::state::marks_of;
use super::windows::IdleMark;
use crate::reading::{Tags, Timestamp, WindowRecord};
use crate::store::Emitted;
use crate::stream::Seq;

/// What the log knows already.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// For each window emitted, its last result.
    emitted: HashMap<Span, WindowRecord>,
    marks: VecDeque<IdleMark>,
    /// From here on nothing is known.
    end: Option<Seq>,
    /// Results that came out otherwise than they are in the log.
    pub(crate) differing: u64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Span {
    window: Arc<str>,
    device: Arc<str>,
    tags: Arc<Tags>,
    field: Arc<str>,
    start: Timestamp,
}

impl Span {
    fn of(record: &WindowRecord) -> Self {
        Self {
            window: Arc::clone(&record.window),
            device: Arc::clone(&record.device),
            tags: Arc::clone(&record.tags),
            field: Arc::clone(&record.field),
            start: record.start,
        }
    }
}

impl Replay {
    /// What was emitted since the checkpoint, in order.
    pub(crate) fn new(emitted: Vec<Emitted>) -> Self {
        let mut replay = Self { end: emitted.last().map(|update| update.position), ..Self::default() };
        for update in emitted {
            match marks_of(&update.note) {
                Some(marks) => replay.marks.extend(marks),
                None => tracing::error!(
                    position = update.position.0,
                    "a note of the windows cannot be read; provisional results may differ after this restart"
                ),
            }
            for record in update.records {
                replay.emitted.insert(Span::of(&record), record);
            }
        }
        replay
    }

    /// The next device that was found silent before the reading `seq` was added.
    pub(crate) fn next_mark(&mut self, seq: Seq) -> Option<IdleMark> {
        self.marks.pop_front_if(|mark| mark.position <= seq)
    }

    /// True once everything that the log knows has come out again.
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_none()
    }

    /// Takes out of `records` what the log has already.
    pub(crate) fn hold_back(&mut self, records: &mut Vec<WindowRecord>) {
        records.retain(|record| match self.emitted.get(&Span::of(record)) {
            Some(known) if record.revision < known.revision => false,
            Some(known) if record.revision == known.revision => {
                self.differing += u64::from(record != known);
                false
            }
            Some(_) | None => true,
        });
    }

    /// Everything before `position` was added, and every mark up to it is done: what is not needed any more goes.
    pub(crate) fn reached(&mut self, position: Seq) {
        if self.end.is_some_and(|end| end <= position) {
            self.end = None;
            self.emitted = HashMap::new();
            self.marks = VecDeque::new();
        }
    }
}
