//! What an operator says about a subscription: which topics, and how their payloads are read.

use std::fmt;
use std::time::Duration;

pub use super::payload::{ColumnFault, Columns, Delimiter, Pattern, PatternError, Payload};
use super::topic::Template;

/// One subscription of an MQTT source, or all that another source takes: checked values.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The topics, and what their levels mean.
    pub topic: Template,
    /// The quality of service asked for, 0, 1 or 2.
    pub qos: u8,
    /// How payloads are read.
    pub payload: Payload,
    /// JSON pointer (RFC 6901) to the device's time; `None`: the time of receipt.
    pub time: Option<Pointer>,
    /// The zone of times that are strings without one.
    pub timezone: Timezone,
    /// JSON pointer to the device's name, where neither the topic nor `device_name` says it.
    pub device: Option<Pointer>,
    /// The device's name, the same for all payloads, where the topic does not carry it.
    pub device_name: Option<Box<str>>,
    /// What to do with what the broker replays at a subscription.
    pub retained: Retained,
    /// JSON pointers to the leaves (or objects) to take; `None`: every scalar leaf but the time and the device.
    pub fields: Option<Vec<Pointer>>,
    /// A time further ahead of a synchronised clock is replaced by the time of receipt.
    pub max_future: Duration,
}

impl Subscription {
    /// `qos` where the operator does not say.
    pub const DEFAULT_QOS: u8 = 1;
    /// `max_future` where the operator does not say: generous for clocks set by hand, too small for a wrong unit.
    pub const DEFAULT_MAX_FUTURE: Duration = Duration::from_secs(300);

    /// A subscription to `topic` with everything else at its default.
    #[must_use]
    pub fn new(topic: Template) -> Self {
        Self {
            topic,
            qos: Self::DEFAULT_QOS,
            payload: Payload::Json,
            time: None,
            timezone: Timezone::utc(),
            device: None,
            device_name: None,
            retained: Retained::Skip,
            fields: None,
            max_future: Self::DEFAULT_MAX_FUTURE,
        }
    }

    /// The pointer to the device's name, if it is the payload that says it: a `{device}` in the topic comes first, then
    /// a fixed name.
    #[must_use]
    pub fn device_in_payload(&self) -> Option<&Pointer> {
        let is_known_before = self.topic.has_device() || self.device_name.is_some();
        self.device.as_ref().filter(|_| !is_known_before && self.payload != Payload::Value)
    }
}

/// What to do with retained messages that a broker replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retained {
    /// Not a new reading: acknowledged and counted as skipped.
    Skip,
    /// Take it as any other.
    Take,
}

/// The zone of times written without one.
#[derive(Clone, Debug, PartialEq)]
pub struct Timezone(pub jiff::tz::TimeZone);

impl Timezone {
    /// Coordinated universal time.
    #[must_use]
    pub fn utc() -> Self {
        Self(jiff::tz::TimeZone::UTC)
    }

    /// The zone of that IANA name, such as `Europe/Berlin`, or `None` if the system does not know it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "UTC" { Some(Self::utc()) } else { jiff::tz::TimeZone::get(name).ok().map(Self) }
    }
}

/// A JSON pointer (RFC 6901), split into its unescaped tokens. The empty pointer means the whole document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<Box<str>>);

/// Why a text is no JSON pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// It does not begin with a slash.
    #[error("a JSON pointer begins with '/', as in \"/ts\" or \"/meta/time\"")]
    NoSlash,
    /// A tilde is followed by neither 0 nor 1.
    #[error("in a JSON pointer '~' is written \"~0\" and '/' within a name \"~1\"")]
    BadEscape,
}

impl Pointer {
    /// Parses `text`.
    ///
    /// # Errors
    /// If `text` is no JSON pointer, or the empty one.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        let rest = text.strip_prefix('/').ok_or(PointerError::NoSlash)?;
        rest.split('/').map(unescape).collect::<Result<_, _>>().map(Self)
    }

    /// The pointer to the member `name` of the whole document.
    #[must_use]
    pub fn to_member(name: &str) -> Self {
        Self(vec![name.into()])
    }

    /// Its tokens, outermost first.
    #[must_use]
    pub fn tokens(&self) -> &[Box<str>] {
        &self.0
    }
}

/// As it is written in a configuration.
impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tokens = self.0.iter();
        tokens.try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

fn unescape(token: &str) -> Result<Box<str>, PointerError> {
    let well_formed = token.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    if !well_formed {
        return Err(PointerError::BadEscape);
    }
    Ok(token.replace("~1", "/").replace("~0", "~").into_boxed_str())
}
