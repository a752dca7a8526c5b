//! What a subscription wants of a payload: its pointers, merged into one tree of names.

use super::parts::Part;
use crate::ingest::settings::{Pointer, Subscription};

/// A subscription, prepared for decoding.
#[derive(Debug)]
pub(super) struct Plan {
    /// The top of an object.
    root: Wanted,
    /// What is wanted of each column of a CSV record, or of each group of a pattern.
    pub(super) parts: Box<[Part]>,
    /// The pointer to the time, as it is written; `None`: the time of receipt.
    pub(super) time: Option<Box<str>>,
    /// The pointer to the device's name, as it is written; `None`: the topic or the source says it.
    pub(super) device: Option<Box<str>>,
    /// A time further ahead of a synchronised clock is replaced.
    pub(super) max_future_micros: i64,
}

/// What the pointers say of one place of an object, and of those below it.
#[derive(Debug, Default)]
struct Wanted {
    /// Names below this one at which something is wanted, sorted.
    below: Vec<(Box<str>, Self)>,
    /// The time stands here.
    is_time: bool,
    /// The device's name stands here, and no topic says it.
    is_device: bool,
    /// A leaf here is no field, because it was configured as time or device.
    is_no_field: bool,
    /// All leaves here and below are fields.
    takes: bool,
}

impl Plan {
    /// Prepares `subscription`.
    pub(super) fn new(subscription: &Subscription) -> Self {
        let mut root = Wanted::default();
        match &subscription.fields {
            None => root.takes = true,
            Some(fields) => fields.iter().for_each(|field| root.at(field).takes = true),
        }
        let device = subscription.device_in_payload();
        if let Some(pointer) = &subscription.time {
            let place = root.at(pointer);
            place.is_time = true;
            place.is_no_field = !place.takes;
        }
        if let Some(pointer) = &subscription.device {
            let place = root.at(pointer);
            place.is_device = device.is_some();
            place.is_no_field = !place.takes;
        }
        let top = Scope { wanted: Some(&root), takes: root.takes };
        let parts = subscription.payload.parts().iter().map(|name| Part::new(name, top)).collect();
        let written = |pointer: &Pointer| pointer.to_string().into();
        Self {
            root,
            parts,
            time: subscription.time.as_ref().map(written),
            device: device.map(written),
            max_future_micros: i64::try_from(subscription.max_future.as_micros()).unwrap_or(i64::MAX),
        }
    }

    /// The top of an object.
    pub(super) fn top(&self) -> Scope<'_> {
        Scope { wanted: Some(&self.root), takes: self.root.takes }
    }
}

/// A place in a document, as a walk comes to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    /// What the pointers say of it, if any leads here or further.
    wanted: Option<&'a Wanted>,
    /// True if it lies at or below what is taken.
    takes: bool,
}

impl Scope<'_> {
    /// The place `name` below this one.
    pub(super) fn below(self, name: &str) -> Self {
        let wanted = self.wanted.and_then(|wanted| wanted.below(name));
        Self { wanted, takes: self.takes || wanted.is_some_and(|wanted| wanted.takes) }
    }

    /// True if a leaf here is a field.
    pub(super) fn is_field(self) -> bool {
        self.takes && !self.wanted.is_some_and(|wanted| wanted.is_no_field)
    }

    /// True if the time stands here.
    pub(super) fn is_time(self) -> bool {
        self.wanted.is_some_and(|wanted| wanted.is_time)
    }

    /// True if the device's name stands here.
    pub(super) fn is_device(self) -> bool {
        self.wanted.is_some_and(|wanted| wanted.is_device)
    }
}

impl Wanted {
    fn below(&self, name: &str) -> Option<&Self> {
        match &*self.below {
            [] => None,
            [(only, wanted)] => (**only == *name).then_some(wanted),
            many => {
                let found = many.binary_search_by(|(other, _)| (**other).cmp(name));
                found.ok().map(|at| &many[at].1)
            }
        }
    }

    /// The place of `pointer`, made if there is none yet.
    fn at(&mut self, pointer: &Pointer) -> &mut Self {
        pointer.tokens().iter().fold(self, |place, token| {
            let at = match place.below.binary_search_by(|(other, _)| other.cmp(token)) {
                Ok(at) => at,
                Err(at) => {
                    place.below.insert(at, (token.clone(), Self::default()));
                    at
                }
            };
            &mut place.below[at].1
        })
    }
}
