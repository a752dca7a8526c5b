//! The devices: what is asked of each in a round, and what became of it. Pure.
//!
//! ```text
//!            an answer, or a refusal                  no answer to the first question of a round
//!   well ◄──────────────────────────── asked again ◄──── silent: asked one question, ever less often
//! ```
//!
//! A question that a device refuses or leaves unanswered, while it answers others, is held alone, and asked last when it is due:
//! so a wrong address costs its own field, and a device that is away costs one time-out now and then. What was refused together, and
//! is answered in parts, is asked for together again after a minute, then ever more seldom: a device that was just starting refuses
//! what it has, and one that has a hole among its registers always will.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fault::Fault;
use super::plan::{Span, plan};
use super::settings::{Read, Register};
use super::value::{Data, value};
use crate::backoff::{self, Backoff};
use crate::ingest::{Delivery, Measured};
use crate::reading::{Origin, Shape, Value};

/// A device in trouble is tried at least this often, unless all are read less often.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The first pause, unless the interval is longer.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// When what is asked for in parts is tried as a whole again: one request more, and no value less, if it is refused.
const JOIN_AGAIN: backoff::Settings =
    backoff::Settings { initial: Duration::from_secs(60), max: Duration::from_secs(3_600) };
/// So many shapes are kept of a device whose values come and go.
const MOST_SHAPES: usize = 64;

/// All that answers to one address.
#[derive(Debug)]
pub(super) struct Unit {
    /// The address.
    pub(super) number: u8,
    /// What is read there, at least one.
    pub(super) tables: Vec<Table>,
    pauses: backoff::Settings,
    /// The round in which it answered last, whatever it said.
    heard: Option<Instant>,
    /// Set while it does not answer at all.
    silent: Option<Held>,
}

/// One `read` of the configuration: the makings of one reading.
#[derive(Debug)]
pub(super) struct Table {
    /// The device's name.
    pub(super) device: Arc<str>,
    /// How often something went wrong.
    pub(super) failures: u64,
    registers: Vec<Register>,
    origin: Arc<Origin>,
    questions: Vec<Question>,
    /// Set while less is asked for at a time than could be.
    cut: Option<Cut>,
    /// What was read in this round, one for each register.
    values: Vec<Option<Value>>,
    /// Whether anything was answered in this round.
    is_answered: bool,
    /// Whether something was answered that had failed before.
    is_mended: bool,
    /// The names of readings, by which of the registers are in them. Nearly always one or two.
    shapes: HashMap<Vec<bool>, Arc<Shape>>,
}

/// Something that was refused as a whole.
#[derive(Debug)]
struct Cut {
    /// The round in which it was.
    round: Instant,
    pauses: Backoff,
    /// From that round on the whole is tried again.
    again: Instant,
    /// Whether that was begun.
    is_tried: bool,
}

/// One request.
#[derive(Debug)]
struct Question {
    span: Span,
    /// The round in which it was asked last.
    asked: Option<Instant>,
    held: Option<Held>,
}

/// Something that failed, and is tried again later.
#[derive(Debug)]
struct Held {
    /// What went wrong, for people.
    error: String,
    is_garbage: bool,
    pauses: Backoff,
    /// The round in which it is due.
    again: Instant,
}

impl Held {
    fn longer(
        before: Option<Self>,
        error: String,
        fault: &Fault,
        round: Instant,
        settings: backoff::Settings,
    ) -> Self {
        let mut pauses = before.map_or_else(|| Backoff::new(settings), |held| held.pauses);
        // Rounds are not at the same moment anywhere else, so chance would help nobody.
        let again = round + pauses.after_failure(1.0);
        Self { error, is_garbage: fault.is_garbage(), pauses, again }
    }
}

/// The trouble that a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trouble<'a> {
    /// What went wrong, for people.
    pub(super) error: &'a str,
    /// Whether what comes makes no sense.
    pub(super) is_garbage: bool,
}

/// What to do after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the next question.
    GoOn,
    /// Leave this unit alone until the next round: its answer may still come, and would be taken for another.
    Leave,
}

impl Unit {
    /// All units of `reads`, in the order of the file.
    pub(super) fn all(source: &str, reads: &[Read], interval: Duration) -> Vec<Self> {
        let pauses =
            backoff::Settings { initial: interval.max(FIRST_PAUSE), max: interval.max(LONGEST_PAUSE) };
        let mut units: Vec<Self> = Vec::new();
        for read in reads {
            let table = Table::new(source, read);
            match units.iter_mut().find(|unit| unit.number == read.unit) {
                Some(unit) => unit.tables.push(table),
                None => {
                    units.push(Self {
                        number: read.unit,
                        tables: vec![table],
                        pauses,
                        heard: None,
                        silent: None,
                    });
                }
            }
        }
        units
    }

    /// The line is a new one: what failed is tried again at once.
    pub(super) fn begin_afresh(&mut self, now: Instant) {
        self.make_due(now);
    }

    /// Whether it is asked in this round.
    pub(super) fn is_due(&self, round: Instant) -> bool {
        self.silent.as_ref().is_none_or(|silent| silent.again <= round)
    }

    /// Whether it did not answer the last time, so that others go first.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.is_some()
    }

    /// Whether it, or something of it, failed and has not answered since.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.is_silent() || self.tables.iter().any(|table| table.held().is_some())
    }

    /// Its tables in the order in which they are read: those with something that may fail last.
    pub(super) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.tables.len()).collect();
        order.sort_by_cached_key(|table| usize::from(self.tables[*table].held().is_some()));
        order
    }

    /// The next question of a table in this round: its number, and what to ask for.
    pub(super) fn next(&self, table: usize, round: Instant) -> Option<(usize, &Span)> {
        let table = self.tables.get(table)?;
        let is_open = |question: &Question| question.asked != Some(round);
        let is_well = |question: &Question| is_open(question) && question.held.is_none();
        let is_due = |question: &Question| {
            let held = question.held.as_ref();
            is_open(question) && (self.is_silent() || held.is_some_and(|held| held.again <= round))
        };
        let questions = &table.questions;
        let at = questions.iter().position(is_well).or_else(|| questions.iter().position(is_due))?;
        Some((at, &questions[at].span))
    }

    /// Takes the answer to a question.
    pub(super) fn settle(
        &mut self,
        table: usize,
        question: usize,
        round: Instant,
        answer: Result<Data, Fault>,
    ) -> Step {
        let (number, pauses) = (self.number, self.pauses);
        let table_of = &mut self.tables[table];
        let asked = &mut table_of.questions[question];
        asked.asked = Some(round);
        let fault = match answer {
            Ok(data) => {
                self.heard(round);
                self.tables[table].take(question, &data);
                return Step::GoOn;
            }
            Err(fault) => fault,
        };
        if fault.may_lie_in_the_address()
            && let Some((low, high)) = asked.span.halves(&table_of.registers)
        {
            table_of.questions.splice(question..=question, [low, high].map(Question::new));
            table_of.cut_in(round);
            self.heard(round);
            return Step::GoOn;
        }
        table_of.failures += 1;
        let error = format!("unit {number}, {}: {fault}", asked.span);
        asked.held = Some(Held::longer(asked.held.take(), error.clone(), &fault, round, pauses));
        if fault.was_heard() {
            self.heard(round);
            return Step::GoOn;
        }
        if self.heard != Some(round) {
            self.silent = Some(Held::longer(self.silent.take(), error, &fault, round, pauses));
        }
        Step::Leave
    }

    fn heard(&mut self, round: Instant) {
        self.heard = Some(round);
        if self.silent.take().is_some() {
            // What it left unanswered meanwhile says nothing about the questions.
            self.make_due(round);
        }
    }

    fn make_due(&mut self, round: Instant) {
        for cut in self.tables.iter_mut().filter_map(|table| table.cut.as_mut()) {
            cut.again = round;
        }
        let questions = self.tables.iter_mut().flat_map(|table| &mut table.questions);
        for held in questions.filter_map(|question| question.held.as_mut()).chain(&mut self.silent) {
            held.again = round;
        }
    }

    /// What is wrong with a table, if anything.
    pub(super) fn trouble(&self, table: usize) -> Option<Trouble<'_>> {
        let held = self.silent.as_ref().or_else(|| self.tables.get(table)?.held())?;
        Some(Trouble { error: &held.error, is_garbage: held.is_garbage })
    }
}

impl Table {
    fn new(source: &str, read: &Read) -> Self {
        Self {
            device: read.device.as_str().into(),
            failures: 0,
            origin: Arc::new(Origin {
                source: source.into(),
                device: read.device.as_str().into(),
                tags: Vec::new(),
            }),
            questions: questions(&read.registers),
            cut: None,
            values: vec![None; read.registers.len()],
            is_answered: false,
            is_mended: false,
            shapes: HashMap::new(),
            registers: read.registers.clone(),
        }
    }

    /// Takes the values out of the answer to a question.
    fn take(&mut self, question: usize, data: &Data) {
        let answered = &mut self.questions[question];
        for place in &answered.span.members {
            let register = &self.registers[*place];
            self.values[*place] = value(register, data, answered.span.place_of(register));
        }
        self.is_answered = true;
        self.is_mended |= answered.held.take().is_some();
    }

    /// Less is asked for at a time from now on.
    fn cut_in(&mut self, round: Instant) {
        let before = self.cut.take();
        if before.as_ref().is_some_and(|cut| cut.round == round) {
            // The same refusal, taken further.
            self.cut = before;
            return;
        }
        let mut pauses = before.map_or_else(|| Backoff::new(JOIN_AGAIN), |cut| cut.pauses);
        let again = round + pauses.after_failure(1.0);
        self.cut = Some(Cut { round, pauses, again, is_tried: false });
    }

    /// Asks for all of it together from the next round on, if this one, which is over, gives reason to.
    fn join(&mut self, round: Instant) {
        let is_mended = std::mem::take(&mut self.is_mended);
        if self.held().is_some() || !self.is_answered {
            return;
        }
        let is_cut = self.cut.as_ref().is_some_and(|cut| cut.round == round);
        if !is_cut && self.cut.take_if(|cut| cut.is_tried).is_some() {
            // And it was answered.
            return;
        }
        let is_due = !is_cut && self.cut.as_ref().is_some_and(|cut| cut.again <= round);
        if is_due || is_mended {
            self.questions = questions(&self.registers);
            self.cut.iter_mut().for_each(|cut| cut.is_tried = true);
        }
    }

    /// What was read in this round, which is over for it; `None` if nothing was answered.
    pub(super) fn take_reading(&mut self, round: Instant) -> Option<Measured> {
        self.join(round);
        if !std::mem::take(&mut self.is_answered) {
            return None;
        }
        let present: Vec<bool> = self.values.iter().map(Option::is_some).collect();
        let values: Vec<Value> = self.values.iter_mut().filter_map(Option::take).collect();
        if self.shapes.len() >= MOST_SHAPES {
            self.shapes.clear();
        }
        let registers = &self.registers;
        let shape = self.shapes.entry(present).or_insert_with_key(|present| {
            let names = registers.iter().zip(present).filter(|(_, present)| **present);
            Arc::new(Shape { names: names.map(|(register, _)| register.field.as_str().into()).collect() })
        });
        Some(Measured {
            origin: Arc::clone(&self.origin),
            shape: Arc::clone(shape),
            values,
            time: None,
            delivery: Delivery::AtMostOnce,
            node: None,
        })
    }

    fn held(&self) -> Option<&Held> {
        self.questions.iter().find_map(|question| question.held.as_ref())
    }
}

impl Question {
    fn new(span: Span) -> Self {
        Self { span, asked: None, held: None }
    }
}

fn questions(registers: &[Register]) -> Vec<Question> {
    plan(registers).into_iter().map(Question::new).collect()
}

#[cfg(test)]
mod tests;
