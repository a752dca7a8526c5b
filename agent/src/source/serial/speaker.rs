//! The node that speaks on a line: what it says of itself, and its samples and events as readings.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use firmware_bridge::frame::Flow;
use firmware_bridge::host::{Gap, GapReason, Node, NodeEvent, Now, Position, Sample};
use firmware_bridge::value::Kind;
use tracing::warn;

use crate::ingest::{Delivery, Measured};
use crate::reading::{Origin, Shape, Timestamp, Value};
use crate::source::{DeviceReport, measured};
use crate::store::nodes::{NodeId, NodePosition};

/// Shapes kept: which channels have no value differs from sample to sample, but rarely in many ways.
const MAX_SHAPES: usize = 64;
/// While our clock is not right, a record that is no older than this counts as measured when it was received: such times are
/// corrected once the clock is right.
const FRESH_US: i64 = 2_000_000;
/// The fields of an event.
const EVENT_FIELD: &str = "event";
const EVENT_VALUE_FIELD: &str = "value";

/// The node whose records come now.
#[derive(Debug)]
pub(super) struct Speaker {
    node: Arc<Node>,
    pub(super) id: NodeId,
    origin: Arc<Origin>,
    names: Vec<Box<str>>,
    shapes: HashMap<u16, Arc<Shape>>,
    event: [Arc<Shape>; 2],
}

impl Speaker {
    pub(super) fn new(source: &Arc<str>, device: Option<&str>, node: Arc<Node>) -> Self {
        // A node without a name is known by its line.
        let name: Arc<str> = if node.id.is_empty() { Arc::clone(source) } else { node.id.clone() };
        let device = device.map_or_else(|| readable(&name), Cow::Borrowed);
        let origin = Origin { source: source.as_ref().into(), device: (&*device).into(), tags: Vec::new() };
        let shape =
            |names: &[&str]| Arc::new(Shape { names: names.iter().map(|name| (*name).into()).collect() });
        Self {
            id: NodeId { source: Arc::clone(source), node: name },
            origin: Arc::new(origin),
            names: unique_names(&node),
            shapes: HashMap::new(),
            event: [shape(&[EVENT_FIELD]), shape(&[EVENT_FIELD, EVENT_VALUE_FIELD])],
            node,
        }
    }

    /// What is wrong with its name, if readings are of the device that it names.
    pub(super) fn misnomer(&self, device: Option<&str>) -> Option<String> {
        let is_misnamed = device.is_none() && *self.origin.device != *self.id.node;
        is_misnamed.then(|| {
            let device = &self.origin.device;
            format!(
                "its name has control characters, which no device may be called; its readings are of the device {device}: mend the \
                 name in its firmware, or set device"
            )
        })
    }

    /// What it says of itself, for people.
    pub(super) fn report(&self) -> DeviceReport {
        let Node { firmware, version, boot, flow, .. } = &*self.node;
        let channels = self.node.channels.iter().zip(&self.names).map(|(channel, name)| {
            let unit = if channel.unit.is_empty() { String::new() } else { format!(" [{}]", channel.unit) };
            let note = if matches!(channel.kind, Kind::Other(_)) { " (of a kind unknown here)" } else { "" };
            format!("{name}{unit}{note}")
        });
        let flow = match flow {
            Flow::TwoWay => "",
            Flow::OneWay => ", transmits only",
        };
        let channels = channels.collect::<Vec<_>>().join(", ");
        let about = format!("firmware {firmware}, link {version}, boot {boot}{flow}: {channels}");
        DeviceReport { about, ..DeviceReport::default() }
    }

    pub(super) fn sample(&mut self, sample: &Sample, now: &Now) -> Measured {
        let (mut values, mut present) = (Vec::with_capacity(self.names.len()), 0_u16);
        for (channel, value) in sample.values.as_slice().iter().enumerate().take(self.names.len()) {
            if let Some(value) = measured::value(value) {
                present |= 1 << channel;
                values.push(value);
            }
        }
        let shape = self.shape(present);
        self.measured(shape, values, &sample.position, now)
    }

    pub(super) fn event(&mut self, event: &NodeEvent, now: &Now) -> Measured {
        let mut values = vec![Value::Text(event.name.as_ref().into())];
        values.extend(measured::value(&event.value));
        let shape = Arc::clone(&self.event[values.len() - 1]);
        self.measured(shape, values, &event.position, now)
    }

    fn measured(&self, shape: Arc<Shape>, values: Vec<Value>, at: &Position, now: &Now) -> Measured {
        let time = Timestamp(at.wall_us);
        // What no calendar has follows from a counter that cannot be one.
        let is_time = (Timestamp::MIN..=Timestamp::MAX).contains(&time);
        let is_corrected_later = !now.is_synced && now.wall_us.saturating_sub(at.wall_us) < FRESH_US;
        let delivery = match self.node.flow {
            Flow::TwoWay => Delivery::Numbered,
            Flow::OneWay => Delivery::AtMostOnce,
        };
        Measured {
            origin: Arc::clone(&self.origin),
            shape,
            values,
            time: (is_time && !is_corrected_later).then_some(time),
            delivery,
            node: Some((self.id.clone(), position(at))),
        }
    }

    /// The names of the channels that have a value.
    fn shape(&mut self, present: u16) -> Arc<Shape> {
        if let Some(shape) = self.shapes.get(&present) {
            return Arc::clone(shape);
        }
        let names = self.names.iter().enumerate();
        let names = names.filter(|(channel, _)| present & (1 << channel) != 0).map(|(_, name)| name.clone());
        let shape = Arc::new(Shape { names: names.collect() });
        if self.shapes.len() < MAX_SHAPES {
            self.shapes.insert(present, Arc::clone(&shape));
        }
        shape
    }

    pub(super) fn warn_of(&self, gap: &Gap) {
        let (source, node, first, last) = (&self.id.source, &self.id.node, gap.first.0, gap.position.seq.0);
        let why = match gap.reason {
            GapReason::Dropped => "the node had no room for them while they could not be delivered",
            GapReason::Lost => "the line lost them, and the node only transmits",
            GapReason::Unreadable => {
                "they are of a kind that this version does not know; is the firmware newer?"
            }
        };
        warn!(%source, ?node, first, last, "records of a node will never come: {why}");
    }
}

/// A node's name as one that people can read: what steers a terminal, or ends a line in a file, is written out.
fn readable(name: &str) -> Cow<'_, str> {
    if !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// The names of the channels, made unique: a reading has no two fields of one name.
pub(crate) fn unique_names(node: &Node) -> Vec<Box<str>> {
    let mut taken: HashSet<Box<str>> = HashSet::new();
    let unique = node.channels.iter().enumerate().map(|(channel, of)| {
        let given: Box<str> =
            if of.name.is_empty() { format!("channel{channel}").into() } else { of.name.as_ref().into() };
        let mut name = given.clone();
        let mut suffix = channel;
        while !taken.insert(name.clone()) {
            name = format!("{given}_{suffix}").into();
            suffix += 1;
        }
        name
    });
    unique.collect()
}

/// Where a record stands, as the books have it.
pub(super) fn position(of: &Position) -> NodePosition {
    NodePosition { boot: of.boot, seq: of.seq.0, uptime_ms: of.uptime_ms, time: Timestamp(of.wall_us) }
}
