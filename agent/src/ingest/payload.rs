//! How a payload is read, and what has to be known for it: columns and their delimiter, or a pattern. Checked values.

use std::collections::HashSet;
use std::sync::Arc;

use regex_lite::{CaptureLocations, Regex, RegexBuilder};

use super::decode::{MAX_FIELD_NAME_BYTES, MAX_FIELDS};

/// The longest pattern. Twenty named numbers take some 600 bytes.
const MAX_PATTERN_BYTES: usize = 4_096;
/// The largest pattern once compiled, some 1 500 states. A search costs at worst its states times the characters of the
/// payload, so this and the length of payloads together bound the time that any payload can take.
const MAX_COMPILED_BYTES: usize = 64 << 10;

/// How a payload is read.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A JSON object, or an array of objects.
    Json,
    /// A bare number, boolean or text.
    Value,
    /// Records of values, one a line (RFC 4180), whose names are known beforehand.
    Csv(Columns, Delimiter),
    /// Text, in which a pattern finds the values.
    Regex(Pattern),
}

impl Payload {
    /// The names of its columns or groups, in order; empty for one that is left out. None at all where the payload
    /// names its fields itself, or has but one.
    #[must_use]
    pub fn parts(&self) -> &[Box<str>] {
        match self {
            Self::Json | Self::Value => &[],
            Self::Csv(columns, _) => &columns.0,
            Self::Regex(pattern) => &pattern.groups,
        }
    }

    /// What separates the values of a record.
    pub(super) fn delimiter(&self) -> Option<Delimiter> {
        match self {
            Self::Csv(_, delimiter) => Some(*delimiter),
            Self::Json | Self::Value | Self::Regex(_) => None,
        }
    }

    /// The pattern, if that is how it is read.
    pub(super) fn pattern(&self) -> Option<&Pattern> {
        match self {
            Self::Regex(pattern) => Some(pattern),
            Self::Json | Self::Value | Self::Csv(..) => None,
        }
    }
}

/// The columns of CSV records: at least one has a name, no two the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(Arc<[Box<str>]>);

/// Why some names are no columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnFault {
    /// None has a name.
    #[error("no column has a name, so no value would be taken; name at least one")]
    NoneNamed,
    /// A name that an earlier column has.
    #[error("two columns have one name; name each once, and the one to skip \"\"")]
    Twice {
        /// The index of the later one, from 0.
        index: usize,
    },
    /// A name that is too long for a field.
    #[error("a column's name is longer than {limit_bytes} bytes; shorten it", limit_bytes = MAX_FIELD_NAME_BYTES)]
    TooLong {
        /// Its index, from 0.
        index: usize,
    },
    /// More columns than a reading may have fields.
    #[error("there are more than {limit} columns; send fewer values in a record", limit = MAX_FIELDS)]
    TooMany,
}

impl Columns {
    /// The columns of these names, in order; the values of one named "" are skipped.
    ///
    /// # Errors
    /// The first fault of the names.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, ColumnFault> {
        let names: Arc<[Box<str>]> = names.into_iter().map(Box::from).collect();
        if names.len() > MAX_FIELDS {
            return Err(ColumnFault::TooMany);
        }
        let mut seen = HashSet::new();
        for (index, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            if name.len() > MAX_FIELD_NAME_BYTES {
                return Err(ColumnFault::TooLong { index });
            }
            if !seen.insert(&**name) {
                return Err(ColumnFault::Twice { index });
            }
        }
        if seen.is_empty() { Err(ColumnFault::NoneNamed) } else { Ok(Self(names)) }
    }
}

/// What separates the values of a CSV record: one ASCII character that stands in no number, name or quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delimiter(u8);

impl Delimiter {
    /// `delimiter` where the operator does not say.
    pub const COMMA: Self = Self(b',');

    /// The delimiter that is `text`, or `None` if that is none.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let [byte] = *text.as_bytes() else { return None };
        let is_in_values = matches!(byte, b'"' | b'.' | b'+' | b'-');
        let is_one = matches!(byte, b'\t' | b' ') || byte.is_ascii_punctuation() && !is_in_values;
        is_one.then_some(Self(byte))
    }

    /// As a byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        self.0
    }
}

/// A pattern whose named groups are fields. Its classes, such as `\d` and `\w`, are those of ASCII, and its matching takes
/// time linear in the payload. Clones share what is compiled.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Arc<Regex>,
    /// The names of the groups, by index; empty for those without, as the first, which is the whole match.
    groups: Arc<[Box<str>]>,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It cannot be compiled, or is too large.
    #[error(transparent)]
    Faulty(#[from] regex_lite::Error),
    /// It names nothing.
    #[error("it has no named group, so no value would be taken; a group is named as in (?<name>...)")]
    NothingNamed,
    /// The pattern is too long.
    #[error("it is {bytes} bytes long; at most {limit_bytes} are taken")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// How long it may be.
        limit_bytes: usize,
    },
    /// The name of a group is too long for a field.
    #[error("the name of a group is {bytes} bytes long; at most {limit_bytes} are taken")]
    NameTooLong {
        /// Its length.
        bytes: usize,
        /// How long it may be.
        limit_bytes: usize,
    },
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// If `text` is no pattern, has no named group, or is too large.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong { bytes: text.len(), limit_bytes: MAX_PATTERN_BYTES });
        }
        let regex = RegexBuilder::new(text).size_limit(MAX_COMPILED_BYTES).build()?;
        let groups: Arc<[Box<str>]> =
            regex.capture_names().map(|name| Box::from(name.unwrap_or_default())).collect();
        if groups.iter().all(|name| name.is_empty()) {
            return Err(PatternError::NothingNamed);
        }
        let too_long = groups.iter().map(|name| name.len()).find(|bytes| *bytes > MAX_FIELD_NAME_BYTES);
        match too_long {
            Some(bytes) => Err(PatternError::NameTooLong { bytes, limit_bytes: MAX_FIELD_NAME_BYTES }),
            None => Ok(Self { regex: Arc::new(regex), groups }),
        }
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }

    /// Room for where the groups of a match lie.
    pub(super) fn locations(&self) -> CaptureLocations {
        self.regex.capture_locations()
    }

    /// Finds the first match in `text`; `locations`, which must be this pattern's, then say where. False if there is none.
    #[must_use]
    pub(super) fn find(&self, text: &str, locations: &mut CaptureLocations) -> bool {
        self.regex.captures_read(locations, text).is_some()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_names_each_its_own() {
        let columns = |names: &[&str]| Columns::new(names.iter().copied()).map(drop);
        assert_eq!(columns(&["a", "", "b", ""]), Ok(()));
        assert_eq!(columns(&["a", "b", "a"]), Err(ColumnFault::Twice { index: 2 }));
        assert_eq!(columns(&[]), Err(ColumnFault::NoneNamed));
        assert_eq!(columns(&["", ""]), Err(ColumnFault::NoneNamed));
        assert_eq!(columns(&["", &"n".repeat(MAX_FIELD_NAME_BYTES)]), Ok(()));
        let too_long = columns(&["", &"n".repeat(MAX_FIELD_NAME_BYTES + 1)]);
        assert_eq!(too_long, Err(ColumnFault::TooLong { index: 1 }));
        assert_eq!(columns(&["", "x"].repeat(MAX_FIELDS)), Err(ColumnFault::TooMany));
    }

    #[test]
    fn a_delimiter_is_a_character_that_stands_in_no_value() {
        for text in [",", ";", "\t", " ", "|", ":", "/", "'"] {
            assert_eq!(Delimiter::new(text).map(|one| one.byte()), Some(text.as_bytes()[0]), "{text:?}");
        }
        for text in ["", ",,", "\"", ".", "-", "+", "0", "e", "\n", "\r", "\0", "ß", "\\t", "tab"] {
            assert_eq!(Delimiter::new(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_pattern_names_something_and_is_bounded() {
        let groups = |text: &str| Pattern::new(text).map(|pattern| pattern.groups.join(","));
        assert_eq!(groups("T=(?<t>.*),(x)?(?P<h.a>y)").as_deref(), Ok(",t,,h.a"));
        assert_eq!(groups("T=(.*)"), Err(PatternError::NothingNamed));
        assert_eq!(groups(""), Err(PatternError::NothingNamed));
        for faulty in
            ["(?<t>.*", "(?<t>a)(?<t>b)", "(?<t>[z-a])", "(?<>x)", "(?<t>(a{1000}){1000})", "(?<t>\\p{L})"]
        {
            assert!(matches!(groups(faulty), Err(PatternError::Faulty(_))), "{faulty}");
        }
        let bytes = MAX_PATTERN_BYTES + 1;
        let long = groups(&format!("(?<t>{})", "x".repeat(bytes - 6)));
        assert_eq!(long, Err(PatternError::TooLong { bytes, limit_bytes: MAX_PATTERN_BYTES }));
        let long = groups(&format!("(?<{}>x)", "n".repeat(1_025)));
        assert_eq!(long, Err(PatternError::NameTooLong { bytes: 1_025, limit_bytes: 1_024 }));
        assert_eq!(Pattern::new("(?<a>x)").unwrap(), Pattern::new("(?<a>x)").unwrap());
        assert_ne!(Pattern::new("(?<a>x)").unwrap(), Pattern::new("(?<a>y)").unwrap());
    }
}
