//! JSON payloads: one walk over the text, without building a tree.
//!
//! The JSON reader calls a visitor for each value; the visitor knows where it stands (the joined name of the place,
//! and what the subscription wants there) and puts leaves straight into the reading. A message is taken whole or not
//! at all, so validity never depends on `fields`: keys that stand twice and oversized integers reject it anywhere.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::assemble::Assembly;
use super::huge::Huge;
use super::keys::{Keys, Mark, Twice};
use super::names::Names;
use super::plan::Scope;
use super::rejection::{Rejection, quoted, start_of};
use super::route::field_name_too_long;
use super::time::{self, Fault};
use super::{MAX_DEPTH, MAX_FIELD_NAME_BYTES, MAX_FIELDS, MAX_READINGS};
use crate::reading::{Reading, Timestamp, Value};

/// What the JSON reader says when it meets the bracket that is one too deep.
const TOO_DEEP: &str = "recursion limit exceeded";
/// Scratch memory beyond this is given back after the message that needed it.
const KEPT_SCRATCH_BYTES: usize = 64 << 10;

/// What a JSON document holds.
#[derive(Debug)]
pub(super) enum Document {
    /// One object, and its reading if it has a value.
    Object(Option<Reading>),
    /// An array of objects, and the readings of those that have values.
    Array(Vec<Reading>),
    /// `null`.
    Null,
}

/// Memory that is used for every message anew.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The joined name of the place that is being read.
    path: String,
    keys: Keys,
    /// A quoted CSV value without what escapes its quotes.
    pub(super) unescaped: String,
    /// What the object being read has.
    pub(super) object: Object,
}

/// What an object has, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Object {
    pub(super) names: Names,
    pub(super) values: Vec<Value>,
    pub(super) time: Option<Timestamp>,
    pub(super) has_device: bool,
    /// The device's name, if `has_device`.
    pub(super) device: String,
}

/// Reads the document `text`.
pub(super) fn read(
    text: &str,
    scratch: &mut Scratch,
    assembly: &mut Assembly<'_>,
) -> Result<Document, Rejection> {
    scratch.path.clear();
    scratch.keys.clear();
    let mut walk = Walk { text, scratch, assembly, fault: None, huge: Huge::default() };
    let mut reader = serde_json::Deserializer::from_str(text);
    let document = Top { walk: &mut walk, element: None }.deserialize(&mut reader);
    let document = document.and_then(|document| reader.end().map(|()| document));
    let fault = walk.fault.take();
    walk.scratch.shrink();
    document.map_err(|error| fault.unwrap_or_else(|| not_json(&error)))
}

impl Scratch {
    /// Gives back memory that a rare giant took.
    pub(super) fn shrink(&mut self) {
        for text in [&mut self.path, &mut self.unescaped, &mut self.object.device] {
            if text.capacity() > KEPT_SCRATCH_BYTES {
                *text = String::new();
            }
        }
        self.keys.shrink(KEPT_SCRATCH_BYTES);
        self.object.names.shrink(KEPT_SCRATCH_BYTES);
    }
}

fn not_json(error: &serde_json::Error) -> Rejection {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let what = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    if what == TOO_DEEP {
        return Rejection::TooDeep { limit: MAX_DEPTH };
    }
    Rejection::NotJson { what: what.to_owned(), line, column }
}

/// A walk through one document.
struct Walk<'w, 'a> {
    text: &'w str,
    scratch: &'w mut Scratch,
    assembly: &'w mut Assembly<'a>,
    /// Why the walk was broken off.
    fault: Option<Rejection>,
    huge: Huge,
}

impl<'a> Walk<'_, 'a> {
    /// Breaks the walk off. The error carries nothing; the reason waits in the walk.
    fn fail<E: serde::de::Error>(&mut self, reason: Rejection) -> E {
        self.fault = Some(reason);
        E::custom("rejected")
    }

    /// Reads an object that is a reading, at the top of the document or as an element of the array there.
    fn reading<'de, A: MapAccess<'de>>(
        &mut self,
        element: Option<usize>,
        map: A,
    ) -> Result<Option<Reading>, A::Error> {
        self.scratch.object.begin(self.assembly);
        let reading = match self.object(self.assembly.plan.top(), map) {
            Ok(()) => match self.assembly.reading(&mut self.scratch.object) {
                Ok(reading) => return Ok(reading),
                Err(reason) => Err(self.fail(reason)),
            },
            Err(error) => Err(error),
        };
        if let Some(index) = element {
            let reason = self.fault.take().map(Box::new);
            self.fault = reason.map(|reason| Rejection::Element { index, reason });
        }
        reading
    }

    /// Reads the keys and values of an object. The path ends where its keys begin.
    fn object<'de, A: MapAccess<'de>>(&mut self, scope: Scope<'a>, mut map: A) -> Result<(), A::Error> {
        let mark = self.scratch.keys.open();
        let start = self.scratch.path.len();
        while let Some(scope) = map.next_key_seed(Key { walk: self, mark, scope })? {
            map.next_value_seed(Place { walk: self, scope })?;
            self.scratch.path.truncate(start);
        }
        let closed = self.scratch.keys.close(mark);
        closed.map_err(|Twice(key)| self.fail(Rejection::DuplicateKey { key }))
    }

    /// Adds a field under the current path.
    fn push<E: serde::de::Error>(&mut self, value: Value) -> Result<(), E> {
        let Scratch { path, object, .. } = &mut *self.scratch;
        if path.len() > MAX_FIELD_NAME_BYTES {
            let reason = field_name_too_long(path);
            return Err(self.fail(reason));
        }
        if object.values.len() == MAX_FIELDS {
            return Err(self.fail(Rejection::TooManyFields { limit: MAX_FIELDS }));
        }
        object.names.push(path);
        object.values.push(value);
        Ok(())
    }

    /// Notes the time, which is written as `found`.
    fn time<E: serde::de::Error>(
        &mut self,
        time: Result<Timestamp, Fault>,
        found: impl FnOnce() -> String,
    ) -> Result<(), E> {
        self.scratch.object.time = Some(match time {
            Ok(time) => time,
            Err(Fault::Unreadable) => return Err(self.fail(Rejection::TimeUnreadable { found: found() })),
            Err(Fault::OutOfRange) => return Err(self.fail(Rejection::TimeOutOfRange { found: found() })),
        });
        Ok(())
    }

    /// Notes the device's name.
    fn device(&mut self, name: &str) {
        let object = &mut self.scratch.object;
        object.has_device = true;
        object.device.clear();
        object.device.push_str(name);
    }
}

impl Object {
    /// Begins anew, with the names that `assembly` expects.
    pub(super) fn begin(&mut self, assembly: &Assembly<'_>) {
        self.names.begin(assembly.expected_shape());
        self.values = Vec::with_capacity(self.names.expected());
        self.time = None;
        self.has_device = false;
    }
}

/// The document, or an element of the array that it is.
struct Top<'t, 'w, 'a> {
    walk: &'t mut Walk<'w, 'a>,
    /// The index of the element; `None`: the document itself.
    element: Option<usize>,
}

impl Top<'_, '_, '_> {
    fn no_object<E: serde::de::Error>(self, found: &'static str) -> E {
        self.walk.fail(match self.element {
            None => Rejection::BareValue { found },
            Some(index) => Rejection::NotAnObject { index, found },
        })
    }
}

impl<'de> DeserializeSeed<'de> for Top<'_, '_, '_> {
    type Value = Document;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Document, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, '_, '_> {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Document, A::Error> {
        self.walk.reading(self.element, map).map(Document::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Document, A::Error> {
        if self.element.is_some() {
            return Err(self.no_object("an array"));
        }
        let mut readings = Vec::new();
        for index in 0.. {
            let top = Top { walk: &mut *self.walk, element: Some(index) };
            match elements.next_element_seed(top)? {
                Some(Document::Object(reading)) => {
                    if reading.is_some() && readings.len() == MAX_READINGS {
                        return Err(self.walk.fail(Rejection::TooManyReadings { limit: MAX_READINGS }));
                    }
                    readings.extend(reading);
                }
                Some(Document::Null | Document::Array(_)) => {}
                None => break,
            }
        }
        Ok(Document::Array(readings))
    }

    /// `null` says nothing, at the top as anywhere.
    fn visit_unit<E: serde::de::Error>(self) -> Result<Document, E> {
        Ok(Document::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Document, E> {
        Err(self.no_object("a boolean"))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Document, E> {
        Err(self.no_object("a number"))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Document, E> {
        Err(self.no_object("a number"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Document, E> {
        Err(self.no_object("a number"))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Document, E> {
        Err(self.no_object("a string"))
    }
}

/// A key: extends the path, and finds out what is wanted there.
struct Key<'t, 'w, 'a> {
    walk: &'t mut Walk<'w, 'a>,
    mark: Mark,
    /// What is wanted of the object.
    scope: Scope<'a>,
}

impl<'de, 'a> DeserializeSeed<'de> for Key<'_, '_, 'a> {
    type Value = Scope<'a>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Scope<'a>, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Key<'_, '_, 'a> {
    type Value = Scope<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Scope<'a>, E> {
        if let Err(Twice(key)) = self.walk.scratch.keys.add(self.mark, key) {
            return Err(self.walk.fail(Rejection::DuplicateKey { key }));
        }
        self.walk.scratch.path.push_str(key);
        Ok(self.scope.below(key))
    }
}

/// A place within an object: a leaf, or an object or array of more places.
struct Place<'t, 'w, 'a> {
    walk: &'t mut Walk<'w, 'a>,
    /// What is wanted here.
    scope: Scope<'a>,
}

impl Place<'_, '_, '_> {
    /// Adds `value` to the fields if it is to be one.
    fn leaf<E: serde::de::Error>(self, value: Value) -> Result<(), E> {
        if self.scope.is_field() { self.walk.push(value) } else { Ok(()) }
    }

    /// Here stands something that can be neither time nor device: an error if it is to be one.
    fn refuse<E: serde::de::Error>(&mut self, found: &'static str) -> Result<(), E> {
        if self.scope.is_time() {
            return Err(self.walk.fail(Rejection::TimeUnreadable { found: found.into() }));
        }
        if self.scope.is_device() {
            let pointer = self.walk.assembly.plan.device.as_deref().unwrap_or_default().into();
            return Err(self.walk.fail(Rejection::DeviceNotAName { pointer, found }));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(mut self, value: bool) -> Result<(), E> {
        self.refuse("a boolean")?;
        self.leaf(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        if self.scope.is_time() {
            self.walk.time(time::from_i64(value), || value.to_string())?;
        }
        if self.scope.is_device() {
            self.walk.device(itoa::Buffer::new().format(value));
        }
        self.leaf(Value::Int(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        if let Ok(value) = i64::try_from(value) {
            return self.visit_i64(value);
        }
        if self.scope.is_time() {
            self.walk.time(time::from_u64(value), || value.to_string())?;
        }
        if self.scope.is_device() {
            self.walk.device(itoa::Buffer::new().format(value));
        }
        self.leaf(Value::Uint(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        if self.walk.huge.is_integer(value, self.walk.text) {
            let field = start_of(&self.walk.scratch.path);
            return Err(self.walk.fail(Rejection::IntegerTooLarge { field }));
        }
        if self.scope.is_time() {
            self.walk.time(time::from_f64(value), || value.to_string())?;
        }
        if self.scope.is_device() {
            self.walk.device(&value.to_string());
        }
        self.leaf(Value::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        if self.scope.is_time() {
            let time = time::from_text(value, self.walk.assembly.zone);
            self.walk.time(time, || quoted(value))?;
        }
        if self.scope.is_device() {
            self.walk.device(value);
        }
        if self.scope.is_field() { self.walk.push(Value::Text(value.into())) } else { Ok(()) }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<(), A::Error> {
        self.refuse("an object")?;
        self.walk.scratch.path.push('.');
        self.walk.object(self.scope, map)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        self.refuse("an array")?;
        self.walk.scratch.path.push('.');
        let start = self.walk.scratch.path.len();
        let mut digits = itoa::Buffer::new();
        for index in 0_usize.. {
            let name = digits.format(index);
            self.walk.scratch.path.push_str(name);
            let scope = self.scope.below(name);
            let element = elements.next_element_seed(Place { walk: &mut *self.walk, scope })?;
            self.walk.scratch.path.truncate(start);
            if element.is_none() {
                break;
            }
        }
        Ok(())
    }
}
