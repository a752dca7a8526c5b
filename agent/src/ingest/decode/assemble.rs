//! From what an object, a record or a bare value has to a reading: who sent it, when, and what else is to be said.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::json::Object;
use super::names::Shapes;
use super::plan::Plan;
use super::rejection::Rejection;
use super::route::{Held, Sender, Taken, named_in_payload};
use super::value;
use crate::reading::{ClockLine, Origin, Reading, Remarks, Shape, Timestamp};

/// Room for so many values more than there are is not worth a reallocation.
const SPARE_VALUES: usize = 8;

/// What the readings of one message have in common.
#[derive(Debug)]
pub(super) struct Assembly<'a> {
    pub(super) source: &'a str,
    pub(super) plan: &'a Plan,
    pub(super) zone: &'a TimeZone,
    pub(super) received: Timestamp,
    pub(super) line: Option<&'a Arc<ClockLine>>,
    pub(super) taken: &'a mut Taken,
    pub(super) shapes: &'a mut Shapes,
    pub(super) held: &'a mut Held,
}

impl Assembly<'_> {
    /// The names to expect: those of the reading before.
    pub(super) fn expected_shape(&self) -> Option<Arc<Shape>> {
        self.taken.shape.clone()
    }

    /// The reading of `object`, or `None` if it has no value.
    pub(super) fn reading(&mut self, object: &mut Object) -> Result<Option<Reading>, Rejection> {
        if object.values.is_empty() {
            return Ok(None);
        }
        let said = match (&self.plan.time, object.time) {
            (Some(pointer), None) => {
                return Err(Rejection::TimeMissing { pointer: pointer.as_ref().into() });
            }
            (_, time) => time,
        };
        let origin = self.origin(object)?;
        self.finish(object, origin, said).map(Some)
    }

    fn finish(
        &mut self,
        object: &mut Object,
        origin: Arc<Origin>,
        said: Option<Timestamp>,
    ) -> Result<Reading, Rejection> {
        let shape = object.names.finish(self.shapes, self.held)?;
        if !self.taken.shape.as_ref().is_some_and(|last| Arc::ptr_eq(last, &shape)) {
            self.taken.shape = Some(Arc::clone(&shape));
        }
        let (time, remarks) = self.time(said);
        let mut values = std::mem::take(&mut object.values);
        // Room was made for as many values as the reading before had. Where that was far too much (devices that send
        // what changed, now and then all), a reading that waits for the disk shall not hold it.
        if values.capacity() > 2 * values.len() + SPARE_VALUES {
            values.shrink_to_fit();
        }
        Ok(Reading {
            time,
            received: self.received,
            line: self.line.cloned(),
            origin,
            shape,
            values,
            remarks,
        })
    }

    /// The reading of the bare value `text`, or `None` if it is none.
    pub(super) fn bare_value(
        &mut self,
        text: &str,
        object: &mut Object,
    ) -> Result<Option<Reading>, Rejection> {
        let Some(value) = value::parse(text, &self.taken.field)? else {
            return Ok(None);
        };
        object.begin(self);
        object.names.push(&self.taken.field);
        object.values.push(value);
        let origin = self.origin(object)?;
        self.finish(object, origin, None).map(Some)
    }

    fn origin(&mut self, object: &Object) -> Result<Arc<Origin>, Rejection> {
        match &mut self.taken.sender {
            Sender::Known(origin) => Ok(Arc::clone(origin)),
            Sender::InPayload { tags, known } if object.has_device => {
                named_in_payload(known, self.source, &object.device, tags, self.held)
            }
            Sender::InPayload { .. } => {
                let pointer = self.plan.device.as_deref().unwrap_or_default().into();
                Err(Rejection::DeviceMissing { pointer })
            }
            Sender::Rejected(reason) => Err(reason.clone()),
        }
    }

    /// When it was measured, if the device said `said`.
    ///
    /// A device that is far ahead of our clock is wrong if our clock is right. If ours was never set, who knows: the
    /// device's word stands, and the record says so.
    fn time(&self, said: Option<Timestamp>) -> (Timestamp, Option<Box<Remarks>>) {
        let is_ahead = |time: Timestamp| time.micros_since(self.received) > self.plan.max_future_micros;
        match said {
            Some(time) if self.line.is_none() && is_ahead(time) => {
                let remarks = Remarks { original_time: said, ..Remarks::default() };
                (self.received, Some(Box::new(remarks)))
            }
            said => (said.unwrap_or(self.received), None),
        }
    }
}
