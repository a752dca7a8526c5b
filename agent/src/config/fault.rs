//! What can be wrong with a configuration, where, and how it is said.
//!
//! A [`Fault`] prints as `FILE:LINE:COLUMN: key.path: what is there; what was expected; did you mean`. No message ever
//! shows a secret: what stands in a secret's place is described, not quoted.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::lines::Position;
use super::units::{show_duration, show_size};

/// Where a key or value stands, and what it is called.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// Its path, such as `sinks.cloud.retry.max`; empty for the file as a whole.
    pub(super) key: String,
    /// Its bytes in the file.
    pub(super) span: Range<usize>,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The file, as the operator named it.
    pub file: Arc<str>,
    /// Where; `None` if the file could not be read at all.
    pub position: Option<Position>,
    /// The path of the key, such as `sinks.cloud.retry.max`; may be empty.
    pub key: String,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.position)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.problem.fmt(f)
    }
}

/// All that is wrong with a file, in the order of the file; never empty.
#[derive(Clone, Debug)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Writes `FILE:LINE:COLUMN: `.
pub(super) fn write_place(f: &mut fmt::Formatter<'_>, file: &str, position: Option<Position>) -> fmt::Result {
    match position {
        Some(Position { line, column }) => write!(f, "{file}:{line}:{column}: "),
        None => write!(f, "{file}: "),
    }
}

/// What is wrong. `text` is what stands in the file, quoted as it stands there, or a description if it must not be shown.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot read the configuration: {reason}; name another with --config FILE")]
    Unreadable {
        /// What the system said.
        reason: String,
    },
    /// The file is not text.
    #[error("byte {byte:#04x} is not UTF-8; save the file as UTF-8 text")]
    NotUtf8 {
        /// The first bad byte.
        byte: u8,
    },
    /// The file is not TOML.
    #[error("{}{message}", text.as_ref().map(|text| format!("{text}: ")).unwrap_or_default())]
    Syntax {
        /// What the parser said.
        message: String,
        /// What it stumbled on, unless that may be a secret.
        text: Option<String>,
    },
    /// A string without quotes.
    #[error("{} needs quotes; a string is written {}", text.as_deref().unwrap_or("this text"),
        text.as_ref().map_or_else(|| "\"…\"".to_owned(), |text| format!("\"{text}\"")))]
    Unquoted {
        /// The text, unless it may be a secret.
        text: Option<String>,
    },
    /// No such key.
    #[error("unknown key {key:?}; {}expected one of {}", did_you_mean(nearest.as_deref()), expected.join(", "))]
    UnknownKey {
        /// The key.
        key: String,
        /// The known key it resembles.
        nearest: Option<String>,
        /// All known keys.
        expected: Vec<&'static str>,
    },
    /// A key that must be there is not.
    #[error("is missing; expected {expected}")]
    Missing {
        /// What should stand here.
        expected: &'static str,
    },
    /// A value of another type.
    #[error("{text} is {found}; expected {expected}")]
    WrongType {
        /// The value.
        text: String,
        /// Its type, with an article.
        found: &'static str,
        /// What should stand here.
        expected: &'static str,
    },
    /// A value of the right type that means nothing.
    #[error("{text} is not understood; {}expected {expected}", did_you_mean(nearest.as_deref()))]
    Invalid {
        /// The value.
        text: String,
        /// The valid value it resembles.
        nearest: Option<String>,
        /// What should stand here.
        expected: String,
    },
    /// A duration out of bounds.
    #[error("{text} is out of range; expected {} to {}", show_duration(*min), show_duration(*max))]
    DurationRange {
        /// The value.
        text: String,
        /// The least.
        min: Duration,
        /// The most.
        max: Duration,
    },
    /// A size out of bounds.
    #[error("{text} is out of range; expected {} to {}", show_size(*min), show_size(*max))]
    SizeRange {
        /// The value.
        text: String,
        /// The least, in bytes.
        min: u64,
        /// The most, in bytes.
        max: u64,
    },
    /// A number out of bounds.
    #[error("{text} is out of range; expected {min} to {max}")]
    NumberRange {
        /// The value.
        text: String,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Two components of one name.
    #[error(
        "the name {name:?} is taken by the {kind} in line {line}; expected a name that no other source, window or sink has"
    )]
    DuplicateName {
        /// The name.
        name: String,
        /// What has it: source, window or sink.
        kind: &'static str,
        /// Where that is.
        line: usize,
    },
    /// The same thing twice in a list.
    #[error("{text} stands here twice; expected each once")]
    Twice {
        /// The thing.
        text: String,
    },
    /// A window of an unknown source.
    #[error(
        "{name:?} is no configured source, so no source feeds this window; {}expected {}",
        did_you_mean(nearest.as_deref()),
        one_of_sources(sources)
    )]
    NoSuchSource {
        /// The name.
        name: String,
        /// The source it resembles.
        nearest: Option<String>,
        /// All sources.
        sources: Vec<String>,
    },
    /// A window, but nothing to feed it.
    #[error("no source feeds this window; expected at least one [sources.<name>], or no window")]
    NothingFeedsWindow,
    /// Pauses that would have to shrink.
    #[error("initial is {}, above max, {}; lower initial or raise max", show_duration(*initial), show_duration(*max))]
    InitialAboveMax {
        /// The first ceiling.
        initial: Duration,
        /// The last one.
        max: Duration,
    },
    /// A stream may hold no more than the store.
    #[error("{given} is above store.{key}, {max}, which holds for all streams; lower this or raise that")]
    AboveStore {
        /// What stands here.
        given: String,
        /// The key of the store's limit.
        key: &'static str,
        /// The store's limit.
        max: String,
    },
    /// Windows with holes between them.
    #[error("slide is {}, above size, {}; readings between two windows would be in none", show_duration(*slide), show_duration(*size))]
    SlideAboveSize {
        /// The distance of two starts.
        slide: Duration,
        /// The span.
        size: Duration,
    },
    /// Too many windows at once.
    #[error(
        "slide is {}, so each reading is in {overlap} windows; expected at most {max} (size {} needs a slide of at least {})",
        show_duration(*slide), show_duration(*size), show_duration(*least)
    )]
    SlideTooSmall {
        /// The distance of two starts.
        slide: Duration,
        /// The span.
        size: Duration,
        /// In how many windows a reading would be.
        overlap: u128,
        /// In how many it may be.
        max: u32,
        /// The least slide for this size.
        least: Duration,
    },
    /// Open to the network without anybody having said so.
    #[error("{address} is reachable from other hosts and asks nobody who he is; {remedy}")]
    Open {
        /// The address.
        address: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Two listeners on one address.
    #[error("{address} is taken by {other}; expected another port")]
    AddressTaken {
        /// The address.
        address: String,
        /// The key that has it.
        other: String,
    },
    /// Two sources on one line.
    #[error(
        "{port} is taken by {other}; two that read one line take each other's bytes: expected another port, or one source for all that is on it"
    )]
    LineTaken {
        /// The port.
        port: String,
        /// The source that has it.
        other: String,
    },
    /// Two sensors at one address of a bus.
    #[error(
        "address {address:#04x} of this bus is taken by {other}; two chips at one address answer at once, so each needs its own"
    )]
    SensorAddressTaken {
        /// The address.
        address: u8,
        /// The sensor that has it.
        other: String,
    },
    /// Two clients that would throw each other out.
    #[error(
        "{client_id:?} is also the client id of sources.{other} at the same broker, which would disconnect the one when the other connects; expected a client_id of its own"
    )]
    ClientIdTaken {
        /// The client id.
        client_id: String,
        /// The other source.
        other: String,
    },
    /// A password in a URL.
    #[error("the URL holds a user name or password, which URLs leak into logs; {remedy}")]
    UserinfoInUrl {
        /// Where credentials go instead.
        remedy: &'static str,
    },
    /// TLS settings that would not be used.
    #[error("tls has no effect on a {scheme}:// URL; write {scheme}s:// or remove tls")]
    TlsUnused {
        /// The scheme.
        scheme: String,
    },
    /// A certificate without key, or the other way about.
    #[error("{present} without {absent}; expected both or neither")]
    HalfPair {
        /// The key that is there.
        present: &'static str,
        /// The key that is not.
        absent: &'static str,
    },
    /// Two keys that exclude each other.
    #[error("{key} has no meaning here: {why}")]
    Pointless {
        /// The key.
        key: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// A file that must be there is not.
    #[error("file {path:?} {reason}; expected {expected}")]
    BadFile {
        /// The path that was tried.
        path: String,
        /// What the system said of it, or what is wrong with its contents.
        reason: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A register that does not exist.
    #[error(
        "it ends at address {last}, and the last there is is {most}; expected a lower address, or less of it"
    )]
    BeyondLastAddress {
        /// Where it would end.
        last: u64,
        /// The last address.
        most: u64,
    },
    /// More is to be polled than the line can carry.
    #[error(
        "interval is {}, and what is read takes {} on the wire at {baud} baud at least; raise interval or baud, or read less",
        show_duration(*interval), show_duration(*round)
    )]
    RoundTooLong {
        /// How often it is to be read.
        interval: Duration,
        /// How long that takes.
        round: Duration,
        /// The speed of the line.
        baud: u32,
    },
    /// A host name that is no agent id.
    #[error(
        "is not set, and the host name, {host_name:?}, cannot stand in for it; expected id = \"…\", 1 to 64 characters of A-Z a-z 0-9 . _ -"
    )]
    NoAgentId {
        /// The host name.
        host_name: String,
    },
}

impl Problem {
    /// True if the text is no TOML there.
    pub(super) fn is_syntax(&self) -> bool {
        matches!(self, Self::Syntax { .. } | Self::Unquoted { .. })
    }

    /// True for what a broken line elsewhere may have caused: it is not reported beside syntax errors.
    pub(super) fn may_follow_from_syntax(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. }
                | Self::NoSuchSource { .. }
                | Self::NothingFeedsWindow
                | Self::HalfPair { .. }
                | Self::Open { .. }
                | Self::NoAgentId { .. }
                | Self::Pointless { .. }
        )
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("did you mean {nearest:?}? ")).unwrap_or_default()
}

fn one_of_sources(sources: &[String]) -> String {
    if sources.is_empty() {
        "a source, but none is configured".to_owned()
    } else {
        format!("one of {}", sources.join(", "))
    }
}
