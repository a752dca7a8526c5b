//! Names of fields, without allocating them anew for each reading.
//!
//! Most messages on a topic have the same fields in the same order. So the names of a message are compared, one by one
//! as they come, with the [`Shape`] of the message before; only where they differ are they gathered and looked up
//! among the shapes known so far.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::rejection::{Rejection, start_of};
use super::route::Held;
use crate::reading::Shape;

/// What an allocation costs beside its content, roughly.
const ALLOCATION_BYTES: usize = 16;

/// Shapes that were seen, so that equal ones are shared between topics.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    by_hash: HashMap<u64, Arc<Shape>>,
}

/// The names of one object, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// What the names will be if this message is like the one before.
    expected: Option<Arc<Shape>>,
    count: usize,
    /// True once a name differed: from then on `text` and `ends` hold all of them.
    differ: bool,
    text: Vec<u8>,
    ends: Vec<usize>,
}

#[cfg(test)]
impl Shapes {
    /// How many shapes are known.
    pub(super) fn len(&self) -> usize {
        self.by_hash.len()
    }
}

impl Names {
    /// Forgets the names so far and expects those of `shape`.
    pub(super) fn begin(&mut self, shape: Option<Arc<Shape>>) {
        self.differ = shape.is_none();
        self.expected = shape;
        self.count = 0;
        self.text.clear();
        self.ends.clear();
    }

    /// How many names are expected.
    pub(super) fn expected(&self) -> usize {
        self.expected.as_ref().map_or(0, |shape| shape.names.len())
    }

    /// Adds the next name.
    pub(super) fn push(&mut self, name: &str) {
        if !self.differ {
            let expected = self.expected.as_ref().and_then(|shape| shape.names.get(self.count));
            if expected.is_some_and(|expected| **expected == *name) {
                self.count += 1;
                return;
            }
            self.spell_out();
        }
        self.spell(name);
        self.count += 1;
    }

    /// The shape of these names, out of `shapes` where it is known; where not, it is remembered there.
    ///
    /// # Errors
    /// If two names are equal.
    pub(super) fn finish(&mut self, shapes: &mut Shapes, held: &mut Held) -> Result<Arc<Shape>, Rejection> {
        if !self.differ {
            match self.expected.take() {
                Some(shape) if shape.names.len() == self.count => return Ok(shape),
                shape => self.expected = shape,
            }
            self.spell_out();
        }
        let hash = self.hash();
        if let Some(known) = shapes.by_hash.get(&hash).filter(|known| self.are_those_of(known)) {
            return Ok(Arc::clone(known));
        }
        let shape = Arc::new(self.new_shape()?);
        // A single message, an array of odd objects, can bring more shapes than are to be held.
        if !held.is_too_much() {
            shapes.by_hash.insert(hash, Arc::clone(&shape));
            held.add_bytes(self.text.len() + self.count * (size_of::<Box<str>>() + ALLOCATION_BYTES));
            held.add_bytes(size_of::<Shape>() + 4 * ALLOCATION_BYTES);
        }
        Ok(shape)
    }

    /// Gives back memory that a rare giant took.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.text.clear();
        self.ends.clear();
        self.text.shrink_to(bytes);
        self.ends.shrink_to(bytes / size_of::<usize>());
    }

    /// Gathers the names that were as expected until now.
    fn spell_out(&mut self) {
        self.differ = true;
        if let Some(shape) = self.expected.take() {
            shape.names.iter().take(self.count).for_each(|name| self.spell(name));
        }
    }

    fn spell(&mut self, name: &str) {
        self.text.extend_from_slice(name.as_bytes());
        self.ends.push(self.text.len());
    }

    fn hash(&self) -> u64 {
        self.ends.iter().fold(xxh3_64(&self.text), |hash, end| {
            (hash.rotate_left(5) ^ *end as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        })
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.text[*start..*end])
    }

    fn are_those_of(&self, shape: &Shape) -> bool {
        shape.names.len() == self.count && self.iter().eq(shape.names.iter().map(|name| name.as_bytes()))
    }

    fn new_shape(&self) -> Result<Shape, Rejection> {
        let mut seen = HashSet::with_capacity(self.count);
        let mut names = Vec::with_capacity(self.count);
        for name in self.iter() {
            // Names come from `&str`s, so nothing is lost.
            let text = String::from_utf8_lossy(name);
            if !seen.insert(name) {
                return Err(Rejection::DuplicateField { field: start_of(&text) });
            }
            names.push(text.into());
        }
        Ok(Shape { names })
    }
}
