//! What messages on one topic have in common, remembered so that it is worked out once per topic and device.
//!
//! Everything remembered lies in one place with one bound, and is forgotten all at once when the bound is reached: who
//! sends under ever new topics, devices or fields costs time, never memory.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::names::Shapes;
use super::rejection::Rejection;
use super::{MAX_DEVICE_BYTES, MAX_FIELD_NAME_BYTES};
use crate::ingest::settings::Subscription;
use crate::ingest::topic::Captures;
use crate::reading::{Origin, Shape, Tags};

/// Topics and devices remembered: well above what one gateway sees, so that forgetting is rare.
const MAX_ENTRIES: usize = 4_096;
/// Bytes remembered, roughly: a decoder belongs to a connection, and there may be many.
const MAX_BYTES: usize = 2 << 20;
/// The name of a bare value's field where no level of the topic names it.
const VALUE_FIELD: &str = "value";

/// The memory of a decoder. Bounded.
#[derive(Debug)]
pub(super) struct Memory {
    routes: Vec<Route>,
    by_topic: HashMap<Arc<str>, usize, Seeded>,
    shapes: Shapes,
    held: Held,
    last: Option<usize>,
    seeded: Seeded,
}

/// What is remembered of a topic.
#[derive(Debug)]
pub(super) struct Route {
    topic: Arc<str>,
    /// The subscription that takes it, if any, and what its levels say.
    pub(super) taken: Option<Taken>,
}

/// What is remembered of a topic that a subscription takes.
#[derive(Debug)]
pub(super) struct Taken {
    /// The index of the subscription.
    pub(super) subscription: usize,
    /// Who sends.
    pub(super) sender: Sender,
    /// The name of a bare value's field.
    pub(super) field: Box<str>,
    /// The shape of the last reading.
    pub(super) shape: Option<Arc<Shape>>,
}

/// Who sends on a topic.
#[derive(Debug)]
pub(super) enum Sender {
    /// Always the same.
    Known(Arc<Origin>),
    /// The payload says it.
    InPayload {
        /// What the topic says of each device.
        tags: Tags,
        /// The devices so far.
        known: HashSet<ByDevice, Seeded>,
    },
    /// The topic cannot be taken.
    Rejected(Rejection),
}

/// An origin, found by its device.
#[derive(Debug)]
pub(super) struct ByDevice(Arc<Origin>);

/// How much is remembered.
#[derive(Debug, Default)]
pub(super) struct Held {
    entries: usize,
    bytes: usize,
}

impl Held {
    /// Counts one topic or device more that takes roughly `bytes`.
    fn add_entry(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// Counts `bytes` more.
    pub(super) fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// True if nothing more should be remembered.
    pub(super) fn is_too_much(&self) -> bool {
        self.entries > MAX_ENTRIES || self.bytes > MAX_BYTES
    }
}

impl Memory {
    pub(super) fn new() -> Self {
        let seeded = Seeded::new();
        Self {
            routes: Vec::new(),
            by_topic: HashMap::with_hasher(seeded),
            shapes: Shapes::default(),
            held: Held::default(),
            last: None,
            seeded,
        }
    }

    /// The route of `topic` as an index; valid until the next call.
    pub(super) fn find(&mut self, topic: &str, source: &str, subscriptions: &[Subscription]) -> usize {
        if let Some(last) = self.last.filter(|last| *self.routes[*last].topic == *topic) {
            return last;
        }
        let at = match self.by_topic.get(topic) {
            Some(at) => *at,
            None => self.add(topic, source, subscriptions),
        };
        self.last = Some(at);
        at
    }

    /// The route at `at`, and beside it what decoding adds to.
    pub(super) fn route(&mut self, at: usize) -> (&mut Route, &mut Shapes, &mut Held) {
        (&mut self.routes[at], &mut self.shapes, &mut self.held)
    }

    /// How many shapes are remembered.
    #[cfg(test)]
    pub(super) fn shapes_held(&self) -> usize {
        self.shapes.len()
    }

    /// How many topics and devices are remembered.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        let devices = self.routes.iter().filter_map(|route| match &route.taken.as_ref()?.sender {
            Sender::InPayload { known, .. } => Some(known.len()),
            Sender::Known(_) | Sender::Rejected(_) => None,
        });
        self.routes.len() + devices.sum::<usize>()
    }

    fn add(&mut self, topic: &str, source: &str, subscriptions: &[Subscription]) -> usize {
        if self.held.is_too_much() {
            self.forget();
        }
        let matched = subscriptions.iter().enumerate().find_map(|(index, subscription)| {
            let captures = subscription.topic.matches(topic)?;
            let sender = Sender::new(source, subscription, captures, self.seeded);
            let field = captures.field().unwrap_or(VALUE_FIELD).into();
            Some(Taken { subscription: index, sender, field, shape: None })
        });
        let topic: Arc<str> = topic.into();
        // The topic is held once, its levels perhaps once more as device, field and tags.
        self.held.add_entry(2 * topic.len() + size_of::<Route>() + size_of::<Origin>() + 64);
        let at = self.routes.len();
        self.by_topic.insert(Arc::clone(&topic), at);
        self.routes.push(Route { topic, taken: matched });
        at
    }

    /// Forgets everything; capacity is given back too.
    fn forget(&mut self) {
        *self = Self { seeded: self.seeded, by_topic: HashMap::with_hasher(self.seeded), ..Self::new() };
    }

    /// Forgets everything if it is too much. Indices of routes end here.
    pub(super) fn keep_bounds(&mut self) {
        if self.held.is_too_much() {
            self.forget();
        }
    }
}

impl Sender {
    fn new(source: &str, subscription: &Subscription, captures: Captures<'_>, seeded: Seeded) -> Self {
        if let Some(field) = captures.field().filter(|field| field.len() > MAX_FIELD_NAME_BYTES) {
            return Self::Rejected(field_name_too_long(field));
        }
        let device = captures.device().or(subscription.device_name.as_deref());
        let checked = tags(captures).and_then(|tags| match device {
            Some(device) => check_device(device).map(|()| (tags, Some(device))),
            None => Ok((tags, None)),
        });
        match checked {
            Err(reason) => Self::Rejected(reason),
            Ok((tags, Some(device))) => Self::Known(origin(source, device, tags)),
            Ok((tags, None)) if subscription.device_in_payload().is_some() => {
                Self::InPayload { tags, known: HashSet::with_hasher(seeded) }
            }
            Ok((tags, None)) => Self::Known(origin(source, source, tags)),
        }
    }
}

/// The origin of `device`, which the payload named, on a topic that says `tags` of it.
pub(super) fn named_in_payload(
    known: &mut HashSet<ByDevice, Seeded>,
    source: &str,
    device: &str,
    tags: &Tags,
    held: &mut Held,
) -> Result<Arc<Origin>, Rejection> {
    if let Some(ByDevice(origin)) = known.get(device) {
        return Ok(Arc::clone(origin));
    }
    check_device(device)?;
    let origin = origin(source, device, tags.clone());
    let tag_bytes: usize = tags.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    // A single message, an array of many devices, can bring more than are to be held.
    if !held.is_too_much() {
        held.add_entry(source.len() + device.len() + tag_bytes + size_of::<Origin>() + 64);
        known.insert(ByDevice(Arc::clone(&origin)));
    }
    Ok(origin)
}

/// The rejection of a field's name of this length.
pub(super) fn field_name_too_long(name: &str) -> Rejection {
    Rejection::FieldNameTooLong {
        bytes: name.len(),
        limit_bytes: MAX_FIELD_NAME_BYTES,
        start: super::rejection::start_of(name),
    }
}

fn origin(source: &str, device: &str, tags: Tags) -> Arc<Origin> {
    Arc::new(Origin { source: source.into(), device: device.into(), tags })
}

fn check_device(device: &str) -> Result<(), Rejection> {
    match device.len() {
        0 => Err(Rejection::DeviceEmpty),
        bytes if bytes > MAX_DEVICE_BYTES => {
            Err(Rejection::DeviceTooLong { bytes, limit_bytes: MAX_DEVICE_BYTES })
        }
        _ => Ok(()),
    }
}

fn tags(captures: Captures<'_>) -> Result<Tags, Rejection> {
    let mut tags = Tags::new();
    for (name, level) in captures.tags() {
        if level.len() > MAX_DEVICE_BYTES {
            let (name, bytes) = (name.into(), level.len());
            return Err(Rejection::TagTooLong { name, bytes, limit_bytes: MAX_DEVICE_BYTES });
        }
        tags.push((name.into(), level.into()));
    }
    tags.sort_unstable();
    Ok(tags)
}

impl Borrow<str> for ByDevice {
    fn borrow(&self) -> &str {
        &self.0.device
    }
}

impl Hash for ByDevice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.device.hash(state);
    }
}

impl PartialEq for ByDevice {
    fn eq(&self, other: &Self) -> bool {
        self.0.device == other.0.device
    }
}

impl Eq for ByDevice {}

/// Hashes texts by xxh3 from a random seed, so that nobody can send topics that collide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seeded {
    seed: u64,
}

impl Seeded {
    fn new() -> Self {
        Self { seed: RandomState::new().hash_one(0_u8) }
    }
}

impl BuildHasher for Seeded {
    type Hasher = TextHasher;

    fn build_hasher(&self) -> TextHasher {
        TextHasher(self.seed)
    }
}

/// The hasher of [`Seeded`].
#[derive(Debug)]
pub(super) struct TextHasher(u64);

impl Hasher for TextHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// The end of a text; all keys are one text, so it says nothing.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
