//! How each message is written.
//!
//! Exactly as postcard would: the tests compare every byte. By hand, because postcard's varints index slices, so the
//! compiler leaves a panic in the firmware that can never happen; and it takes a third of the flash. Reading is postcard's.

use crate::bounded::Text;
use crate::frame::{Ack, Channel, Clock, Dropped, Event, Hello, Log, Next, Record, Resend, Time, Welcome};
use crate::value::Value;

/// Where bytes go.
pub trait Sink {
    /// Takes a byte; what it does when it is full is its own affair.
    fn byte(&mut self, byte: u8);
}

/// The parts of which messages consist.
pub(crate) trait Write: Sink {
    fn bytes(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.byte(*byte));
    }

    /// Seven bits at a time, the lowest first; the highest bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value > 0x7F {
            self.byte(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.byte(value.to_le_bytes()[0]);
    }

    /// Small numbers of either sign become small numbers.
    fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    fn text<const MAX: usize>(&mut self, text: Text<'_, MAX>) {
        self.varint(text.as_str().len() as u64);
        self.bytes(text.as_str().as_bytes());
    }

    fn maybe(&mut self, value: Option<i64>) {
        match value {
            None => self.byte(0),
            Some(value) => {
                self.byte(1);
                self.zigzag(value);
            }
        }
    }
}

impl<S: Sink + ?Sized> Write for S {}

/// Something that can be written: the messages of [`frame`](crate::frame), and `()`.
pub trait Message {
    /// Appends it to `out`.
    #[doc(hidden)]
    fn write(&self, out: &mut impl Sink);
}

/// Nothing follows the tag.
impl Message for () {
    fn write(&self, _out: &mut impl Sink) {}
}

impl<'a, C: AsRef<[Channel<'a>]>> Message for Hello<'a, C> {
    fn write(&self, out: &mut impl Sink) {
        out.byte(self.version);
        out.text(self.node);
        out.text(self.firmware);
        out.varint(self.boot.into());
        out.byte(self.flow.into());
        out.varint(self.uptime_ms);
        out.varint(self.acked.0);
        out.varint(self.next.0);
        out.varint(self.schema.into());
        let channels = self.channels.as_ref();
        out.varint(channels.len() as u64);
        for channel in channels {
            out.text(channel.name);
            out.text(channel.unit);
            out.byte(channel.kind.into());
        }
    }
}

impl Message for Record {
    fn write(&self, out: &mut impl Sink) {
        out.bytes(&self.context.0);
        out.varint(self.seq.0);
        out.varint(self.uptime_ms);
    }
}

impl Message for Next {
    fn write(&self, out: &mut impl Sink) {
        out.bytes(&self.mark);
        out.varint(self.after_ms.into());
    }
}

impl Message for Event<'_> {
    fn write(&self, out: &mut impl Sink) {
        out.text(self.name);
        match self.value {
            Value::Missing => out.byte(0),
            Value::Bool(value) => out.bytes(&[1, value.into()]),
            Value::Int(value) => {
                out.byte(2);
                out.zigzag(value);
            }
            Value::Single(value) => {
                out.byte(3);
                out.bytes(&value.to_le_bytes());
            }
            Value::Double(value) => {
                out.byte(4);
                out.bytes(&value.to_le_bytes());
            }
        }
    }
}

impl Message for Dropped {
    fn write(&self, out: &mut impl Sink) {
        out.bytes(&self.context.0);
        out.varint(self.up_to.0);
        out.varint(self.total);
    }
}

impl Message for Clock {
    fn write(&self, out: &mut impl Sink) {
        out.varint(self.stamp.into());
        out.varint(self.uptime_ms);
    }
}

impl Message for Log<'_> {
    fn write(&self, out: &mut impl Sink) {
        out.byte(self.level.into());
        out.varint(self.uptime_ms);
        out.text(self.text);
    }
}

impl Message for Welcome {
    fn write(&self, out: &mut impl Sink) {
        out.byte(self.version);
        out.varint(self.session.into());
        out.bytes(&self.context.0);
        out.maybe(self.wall_us);
        out.varint(self.window.into());
        out.varint(self.acked.0);
    }
}

impl Message for Ack {
    fn write(&self, out: &mut impl Sink) {
        out.varint(self.session.into());
        out.varint(self.up_to.0);
    }
}

impl Message for Time {
    fn write(&self, out: &mut impl Sink) {
        out.varint(self.stamp.into());
        out.maybe(self.wall_us);
    }
}

impl Message for Resend {
    fn write(&self, out: &mut impl Sink) {
        out.varint(self.session.into());
        out.varint(self.from.0);
    }
}

/// Bytes in memory. What does not fit is counted all the same.
pub(crate) struct Bytes<'o> {
    out: &'o mut [u8],
    length: usize,
}

impl<'o> Bytes<'o> {
    pub(crate) fn new(out: &'o mut [u8]) -> Self {
        Self { out, length: 0 }
    }

    /// How many bytes were written, if all of them have fitted.
    pub(crate) fn finish(self) -> Option<usize> {
        (self.length <= self.out.len()).then_some(self.length)
    }
}

impl Sink for Bytes<'_> {
    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.out.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;
    use std::string::String;

    use super::*;
    use crate::bounded::List;
    use crate::frame::{Channels, Context, Flow, Level, SampleSeq, VERSION};
    use crate::value::Kind;

    fn check(message: &(impl Message + Serialize)) {
        let mut ours = [0; 1_000];
        let mut out = Bytes::new(&mut ours);
        message.write(&mut out);
        let length = out.finish().unwrap();
        let mut theirs = [0; 1_000];
        assert_eq!(ours[..length], *postcard::to_slice(message, &mut theirs).unwrap());
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Missing),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<f32>().prop_map(Value::Single),
            any::<f64>().prop_map(Value::Double)
        ]
    }

    proptest! {
        #[test]
        fn every_message_is_written_as_postcard_would(
            numbers: (u64, u64, u64, u32, u32, u16), shift in 0..64_u32, wall_us: Option<i64>, code: u8,
            context: [u8; 4], texts: (String, String), value in value(), channels in 0..=16_usize
        ) {
            let (a, b, c, d, e, f) = numbers;
            let (a, b, c, d, e) = (a >> shift, b >> shift, c >> shift, d >> (shift / 2), e >> (shift / 2));
            let wall_us = wall_us.map(|wall_us| wall_us >> shift);
            let context = Context(context);
            let channel =
                Channel { name: Text::cut(&texts.0), unit: Text::cut(&texts.1), kind: Kind::from(code) };
            let mut list = Channels::new();
            (0..channels).for_each(|_| list.push(channel).unwrap());
            let hello = Hello {
                version: VERSION, node: Text::cut(&texts.0), firmware: Text::cut(&texts.1), boot: d,
                flow: Flow::from(code & 1), uptime_ms: a, acked: SampleSeq(b), next: SampleSeq(c), schema: e,
                channels: list,
            };
            check(&hello);
            check(&Record { context, seq: SampleSeq(a), uptime_ms: b });
            check(&Next { mark: f.to_le_bytes(), after_ms: d });
            check(&Event { name: Text::cut(&texts.0), value });
            check(&Dropped { context, up_to: SampleSeq(a), total: b });
            check(&Clock { stamp: d, uptime_ms: a });
            check(&Log { level: Level::from(code & 3), uptime_ms: a, text: Text::cut(&texts.1) });
            let acked = SampleSeq(a);
            check(&Welcome { version: VERSION, session: d, context, wall_us, window: f, acked });
            check(&Ack { session: d, up_to: SampleSeq(a) });
            check(&Time { stamp: d, wall_us });
            check(&Resend { session: d, from: SampleSeq(a) });
            let slice = list;
            check(&Hello { channels: List::from_slice(slice.as_slice()).unwrap(), ..hello });
        }
    }
}
