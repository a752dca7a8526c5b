//! How the state of windows is written: rows of a checkpoint, and the note of an update.
//!
//! ```text
//!   window:  1 name                  the definition's fingerprint, where it began, its counts
//!   device:  2 name device tags      watermark, and the open windows of every field
//!   sealed:  3 name hash             what stays of a device that gave way
//!   seen:    4 name                  what went out under the name; stays when the window is removed
//! ```
//!
//! Keys and values are postcard behind one byte: the kind of key, or the version of the value. A value of another version
//! cannot be read; its window then starts anew, as if it had been configured for the first time.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::aggregate::Plan;
use super::devices::Names;
use super::series::{Device, DeviceState, Idle, Seen, Series, Spans};
use super::settings::Settings;
use super::windows::IdleMark;
use crate::reading::Tags;
use crate::store::LASTING_ROWS;
use crate::stream::Seq;

/// The version of all rows and notes.
const VERSION: u8 = 1;

const KIND_WINDOW: u8 = 1;
const KIND_DEVICE: u8 = 2;
const KIND_SEALED: u8 = 3;
const KIND_SEEN: u8 = LASTING_ROWS;

/// What a row is about.
#[derive(Debug)]
pub(crate) enum Key {
    /// A window definition.
    Window(Arc<str>),
    /// One device in a window.
    Device(Arc<str>, Device),
    /// A device that gave way.
    Sealed(Arc<str>, u64),
    /// What went out under the name of a window.
    Seen(Arc<str>),
}

impl Key {
    pub(crate) fn window(name: &str) -> Vec<u8> {
        encode(KIND_WINDOW, &name)
    }

    pub(crate) fn device(window: &str, device: &Device) -> Vec<u8> {
        encode(KIND_DEVICE, &(window, &*device.name, &*device.tags))
    }

    pub(crate) fn sealed(window: &str, hash: u64) -> Vec<u8> {
        encode(KIND_SEALED, &(window, hash))
    }

    pub(crate) fn seen(name: &str) -> Vec<u8> {
        encode(KIND_SEEN, &name)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match *kind {
            KIND_WINDOW => Self::Window(postcard::from_bytes(rest).ok()?),
            KIND_DEVICE => {
                let (window, name, tags): (Arc<str>, Arc<str>, Tags) = postcard::from_bytes(rest).ok()?;
                Self::Device(window, Device { name, tags: Arc::new(tags) })
            }
            KIND_SEALED => {
                let (window, hash) = postcard::from_bytes(rest).ok()?;
                Self::Sealed(window, hash)
            }
            KIND_SEEN => Self::Seen(postcard::from_bytes(rest).ok()?),
            _ => return None,
        })
    }
}

/// One window definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowRow {
    pub(crate) fingerprint: u64,
    pub(crate) from: Seq,
    pub(crate) max_series: usize,
    pub(crate) late: u64,
    pub(crate) refused: u64,
}

impl WindowRow {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        encode(VERSION, self)
    }
}

/// What went out under the name of a window. Without it, a window that is changed, or removed and added again, would emit revisions
/// that went out with other contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenRow {
    /// Before the definition began that was configured last.
    pub(crate) before: Seen,
    /// By now.
    pub(crate) now: Seen,
}

impl SeenRow {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        encode(VERSION, self)
    }
}

/// One device in one window.
#[derive(Debug, Deserialize)]
pub(crate) struct DeviceRow {
    newest: i64,
    sealed: Option<i64>,
    last_seq: u64,
    pub(crate) source: Arc<str>,
    idle: Idle,
    series: Vec<Series>,
}

/// [`DeviceRow`], borrowed.
#[derive(Serialize)]
struct DeviceRowRef<'a> {
    newest: i64,
    sealed: Option<i64>,
    last_seq: u64,
    source: &'a str,
    idle: Idle,
    series: &'a [Series],
}

impl DeviceRow {
    pub(crate) fn bytes_of(state: &DeviceState, sources: &[Arc<str>]) -> Vec<u8> {
        let source = sources.get(state.source as usize).map_or("", |source| source);
        let DeviceState { newest, sealed, last_seq, idle, series, .. } = state;
        let row = DeviceRowRef {
            newest: *newest,
            sealed: *sealed,
            last_seq: *last_seq,
            source,
            idle: *idle,
            series,
        };
        encode(VERSION, &row)
    }

    pub(crate) fn into_state(mut self, source: u32, names: &mut Names) -> DeviceState {
        for series in &mut self.series {
            series.field = names.get(&series.field);
        }
        DeviceState::restored(self.newest, self.sealed, self.last_seq, source, self.idle, self.series)
    }
}

/// What stays of a device that gave way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedRow {
    /// The end of the last window that was emitted for it.
    pub(crate) end: i64,
    /// It gave way after those of lower order.
    pub(crate) order: u64,
}

impl SealedRow {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        encode(VERSION, self)
    }
}

/// A checkpoint, sorted by window.
#[derive(Debug, Default)]
pub(crate) struct SavedWindows {
    by_name: BTreeMap<Arc<str>, Saved>,
    unreadable: Vec<Vec<u8>>,
}

/// All rows of one window.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    /// `None` also if any row of the window cannot be read.
    pub(crate) window: Option<WindowRow>,
    pub(crate) devices: Vec<(Device, DeviceRow)>,
    pub(crate) sealed: Vec<(u64, SealedRow)>,
    pub(crate) seen: Option<SeenRow>,
    keys: Vec<Vec<u8>>,
    is_damaged: bool,
}

impl SavedWindows {
    pub(crate) fn read(rows: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let mut windows = Self::default();
        for (key, value) in rows {
            let Some(about) = Key::read(&key) else {
                windows.unreadable.push(key);
                continue;
            };
            let (Key::Window(name) | Key::Device(name, _) | Key::Sealed(name, _) | Key::Seen(name)) = &about;
            let saved = windows.by_name.entry(Arc::clone(name)).or_default();
            // It outlives the window: it is none of the rows that go with it.
            let lasts = matches!(about, Key::Seen(_));
            saved.is_damaged |= saved.take_row(about, &value).is_none();
            if !lasts {
                saved.keys.push(key);
            }
        }
        for (name, saved) in &mut windows.by_name {
            if saved.is_damaged {
                tracing::error!(window = %name, "the state of a window cannot be read; it starts anew at the head");
                saved.window = None;
            }
        }
        windows
    }

    /// What went out under this name; `None` if nothing did, or somebody took the window.
    pub(crate) fn seen(&self, name: &str) -> Option<&SeenRow> {
        self.by_name.get(name)?.seen.as_ref()
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Saved> {
        self.by_name.remove(name)
    }

    /// The keys of all rows that nobody took.
    pub(crate) fn into_keys(self) -> impl Iterator<Item = Vec<u8>> {
        self.by_name.into_values().flat_map(|saved| saved.keys).chain(self.unreadable)
    }
}

impl Saved {
    fn take_row(&mut self, about: Key, value: &[u8]) -> Option<()> {
        match about {
            Key::Window(_) => self.window = Some(decode(value)?),
            Key::Device(_, device) => self.devices.push((device, decode(value)?)),
            Key::Sealed(_, hash) => self.sealed.push((hash, decode(value)?)),
            Key::Seen(_) => self.seen = Some(decode(value)?),
        }
        Some(())
    }

    /// The keys of its rows, but for that of the window itself, which is to be written anew.
    pub(crate) fn into_keys_but_window(self) -> impl Iterator<Item = Vec<u8>> {
        self.keys.into_iter().filter(|key| key.first() != Some(&KIND_WINDOW))
    }
}

/// Equal as long as a window's results mean the same. What only says when they come (`idle`) or how many there may be
/// (`max_series`) is left out: changing it disturbs nothing.
pub(crate) fn fingerprint(settings: &Settings, spans: &Spans, plan: &Plan) -> u64 {
    let names: Vec<&str> = plan.names().collect();
    let Spans { size, slide, lateness, allowed_lateness, before: _ } = spans;
    let meaning = (size, slide, lateness, allowed_lateness, names, &settings.sources, &settings.fields);
    xxh3_64(&encode(VERSION, &meaning))
}

/// What an update says of idle devices; empty if it says nothing.
pub(crate) fn note_of(marks: &[IdleMark]) -> Vec<u8> {
    if marks.is_empty() {
        return Vec::new();
    }
    let marks: Vec<(Seq, Vec<u8>)> = marks.iter().map(|mark| (mark.position, mark.key())).collect();
    encode(VERSION, &marks)
}

/// The marks of a note, or `None` if it cannot be read.
pub(crate) fn marks_of(note: &[u8]) -> Option<Vec<IdleMark>> {
    if note.is_empty() {
        return Some(Vec::new());
    }
    let marks: Vec<(Seq, Vec<u8>)> = decode(note)?;
    marks
        .into_iter()
        .map(|(position, key)| match Key::read(&key)? {
            Key::Device(window, device) => Some(IdleMark { position, window, device }),
            Key::Window(_) | Key::Sealed(..) | Key::Seen(_) => None,
        })
        .collect()
}

fn encode<T: Serialize>(head: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![head]).expect("rows are plain data, and a Vec takes any length")
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    let (version, rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    postcard::from_bytes(rest).ok()
}
