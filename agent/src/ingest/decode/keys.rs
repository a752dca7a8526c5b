//! The keys of the objects that are open at the moment, to find one that stands twice.

use super::rejection::start_of;

/// Up to so many keys of an object each new one is compared with all before it; beyond, they are sorted at the end.
/// Comparing is quadratic, but for the few keys of a sensor cheaper than any hashing.
const COMPARED_KEYS: usize = 16;

/// Keys of an object and of the objects around it, innermost last.
#[derive(Debug, Default)]
pub(super) struct Keys {
    text: Vec<u8>,
    /// Where each key lies in `text`.
    spans: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
}

/// Where an object's keys begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    text: usize,
    spans: usize,
}

/// The key that stands twice.
#[derive(Debug)]
pub(super) struct Twice(pub(super) String);

impl Keys {
    /// An object begins.
    pub(super) fn open(&self) -> Mark {
        Mark { text: self.text.len(), spans: self.spans.len() }
    }

    /// Adds a key of the object that began at `object`.
    pub(super) fn add(&mut self, object: Mark, key: &str) -> Result<(), Twice> {
        let siblings = &self.spans[object.spans..];
        if siblings.len() < COMPARED_KEYS
            && siblings.iter().any(|span| self.text[span.start..span.end] == *key.as_bytes())
        {
            return Err(Twice(start_of(key)));
        }
        let start = self.text.len();
        self.text.extend_from_slice(key.as_bytes());
        self.spans.push(Span { start, end: self.text.len() });
        Ok(())
    }

    /// The object that began at `object` ends.
    pub(super) fn close(&mut self, object: Mark) -> Result<(), Twice> {
        let text = &self.text;
        let siblings = &mut self.spans[object.spans..];
        if siblings.len() > COMPARED_KEYS {
            let key = |span: &Span| &text[span.start..span.end];
            siblings.sort_unstable_by(|a, b| key(a).cmp(key(b)));
            if let Some(twice) = siblings.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
                return Err(Twice(start_of(&String::from_utf8_lossy(key(&twice[0])))));
            }
        }
        self.spans.truncate(object.spans);
        self.text.truncate(object.text);
        Ok(())
    }

    /// Forgets all objects.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.spans.clear();
    }

    /// Gives back memory that a rare giant took.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.clear();
        self.text.shrink_to(bytes);
        self.spans.shrink_to(bytes / size_of::<Span>());
    }
}
