//! The parts of a payload that lie side by side: columns of a CSV record, groups of a pattern.
//!
//! Their names are known beforehand, so what is wanted of each is looked up once, not for every payload.

use jiff::tz::TimeZone;

use super::json::Object;
use super::plan::Scope;
use super::rejection::{Rejection, quoted};
use super::time::{self, Fault};
use super::value::{self, NumberForm};
use crate::reading::{Timestamp, Value};

/// One column or group.
#[derive(Debug)]
pub(super) struct Part {
    /// Empty: nobody wants it.
    pub(super) name: Box<str>,
    is_time: bool,
    is_device: bool,
    is_field: bool,
}

impl Part {
    /// The part `name` of a payload of which `top` is wanted.
    pub(super) fn new(name: &str, top: Scope<'_>) -> Self {
        let scope = top.below(name);
        let is_named = !name.is_empty();
        Self {
            name: name.into(),
            is_time: is_named && scope.is_time(),
            is_device: is_named && scope.is_device(),
            is_field: is_named && scope.is_field(),
        }
    }

    /// Puts what stands in it, `text`, where it belongs. An empty text says nothing, as `null` in JSON.
    pub(super) fn take(&self, text: &str, zone: &TimeZone, object: &mut Object) -> Result<(), Rejection> {
        if text.is_empty() {
            return Ok(());
        }
        if self.is_time {
            object.time = Some(time(text, zone)?);
        }
        if self.is_device {
            object.has_device = true;
            object.device.clear();
            object.device.push_str(text);
        }
        if self.is_field
            && let Some(value) = value::parse(text, &self.name)?
        {
            object.names.push(&self.name);
            object.values.push(value);
        }
        Ok(())
    }
}

/// The time that `text` says, a number or a date and a time of day: unlike in JSON nothing but its look tells which.
fn time(text: &str, zone: &TimeZone) -> Result<Timestamp, Rejection> {
    let time = match NumberForm::of(text) {
        Some(NumberForm::Integer) => match value::parse_integer(text) {
            Some(Value::Int(number)) => time::from_i64(number),
            Some(Value::Uint(number)) => time::from_u64(number),
            _ => Err(Fault::OutOfRange),
        },
        Some(NumberForm::Float) => text.parse().map_or(Err(Fault::Unreadable), time::from_f64),
        None => time::from_text(text, zone),
    };
    time.map_err(|fault| match fault {
        Fault::Unreadable => Rejection::TimeUnreadable { found: quoted(text) },
        Fault::OutOfRange => Rejection::TimeOutOfRange { found: quoted(text) },
    })
}
