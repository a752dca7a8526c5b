//! Why a message is rejected, with the values that tell its sender what to mend.

/// Of a text that is quoted in a reason, this many characters: enough to recognise it, no more than a log line bears.
const QUOTED_CHARS: usize = 80;

/// Why a message is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No subscription takes its topic.
    #[error("no subscription of this source takes this topic")]
    NoSubscription,
    /// It is longer than the source allows.
    #[error("the payload is longer than max_payload, {limit_bytes} bytes")]
    PayloadTooLarge {
        /// The configured limit.
        limit_bytes: usize,
    },
    /// It is not UTF-8.
    #[error("the payload is not UTF-8: byte {at} fits no character")]
    NotUtf8 {
        /// The first offending byte, from 0.
        at: usize,
    },
    /// It is not JSON.
    #[error("the payload is not JSON: {what} at line {line} column {column}")]
    NotJson {
        /// What the JSON reader says.
        what: String,
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1; 0 at the beginning of a line.
        column: usize,
    },
    /// Arrays and objects within one another, too many.
    #[error("the payload nests deeper than {limit} levels")]
    TooDeep {
        /// Levels that are read.
        limit: usize,
    },
    /// JSON, but neither an object nor an array.
    #[error(
        "the payload is {found}, not a JSON object; for bare values set payload = \"value\" at the subscription"
    )]
    BareValue {
        /// What it is.
        found: &'static str,
    },
    /// Something in the array is no object.
    #[error("element {index} of the array is {found}; an array holds one object per reading")]
    NotAnObject {
        /// Its index, from 0.
        index: usize,
        /// What it is.
        found: &'static str,
    },
    /// An object of an array is at fault, and with it the whole message.
    #[error("element {index} of the array: {reason}")]
    Element {
        /// Its index, from 0.
        index: usize,
        /// Its fault.
        reason: Box<Self>,
    },
    /// A whole number that neither i64 nor u64 can hold.
    #[error("the integer at \"{field}\" needs more than 64 bits; send it as a string or as a float")]
    IntegerTooLarge {
        /// The name of the field.
        field: String,
    },
    /// A bare number that no float can hold.
    #[error("the number {text} is beyond what a 64-bit float can hold")]
    NumberTooLarge {
        /// The number.
        text: String,
    },
    /// One object has a key twice.
    #[error("the key \"{key}\" stands twice in one object")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Two leaves come to the same name.
    #[error("two values come to the same field name, \"{field}\"; nested names are joined by \".\"")]
    DuplicateField {
        /// The name.
        field: String,
    },
    /// More fields than one reading may have.
    #[error("one reading has more than {limit} fields")]
    TooManyFields {
        /// How many it may have.
        limit: usize,
    },
    /// An array of more readings than one message may bring.
    #[error("the array has more than {limit} readings; send it in several messages")]
    TooManyReadings {
        /// How many it may have.
        limit: usize,
    },
    /// More records than one message may bring.
    #[error("the payload has more than {limit} records; send it in several messages")]
    TooManyRecords {
        /// How many it may have.
        limit: usize,
    },
    /// A record of a CSV payload is at fault, and with it the whole message.
    #[error("record {number}: {reason}")]
    Record {
        /// Its number, from 1; a first line of names counts, empty lines do not.
        number: usize,
        /// Its fault.
        reason: Box<Self>,
    },
    /// A record has more or fewer values than there are columns.
    #[error(
        "the number of values is {found}, that of names in `columns` {columns}; name each value, with \"\" for one to skip"
    )]
    ValueCount {
        /// How many values it has.
        found: usize,
        /// How many columns are configured.
        columns: usize,
    },
    /// A quoted value that does not end.
    #[error("value {number} begins with a quote that nothing closes")]
    QuoteOpen {
        /// The number of the value in its record, from 1.
        number: usize,
    },
    /// Something stands behind a quoted value.
    #[error(
        "value {number} goes on with {by:?} behind its closing quote; a quote within quotes is written \"\""
    )]
    QuoteFollowed {
        /// The number of the value in its record, from 1.
        number: usize,
        /// What follows.
        by: char,
    },
    /// The pattern does not match.
    #[error("`pattern` matches nowhere in \"{start}\"")]
    NoMatch {
        /// How the payload begins.
        start: String,
    },
    /// A pattern is not tried on so much.
    #[error("the payload is {bytes} bytes long; `pattern` is tried on at most {limit_bytes}")]
    TooLongForPattern {
        /// Its length.
        bytes: usize,
        /// How long it may be.
        limit_bytes: usize,
    },
    /// A name of a field that is too long.
    #[error("a field name is {bytes} bytes long; at most {limit_bytes} are taken: \"{start}…\"")]
    FieldNameTooLong {
        /// Its length.
        bytes: usize,
        /// How long it may be.
        limit_bytes: usize,
        /// How it begins.
        start: String,
    },
    /// Nothing, or null, where the time should be.
    #[error("there is no time at \"{pointer}\"; a subscription without `time` takes the time of receipt")]
    TimeMissing {
        /// The configured pointer.
        pointer: String,
    },
    /// What stands for the time is none.
    #[error(
        "where the time should be stands {found}; a time is a number since 1970 or a text like \
         \"2026-11-20T04:15:12Z\" or \"2026-11-20 04:15:12\""
    )]
    TimeUnreadable {
        /// What stands there.
        found: String,
    },
    /// The time lies where RFC 3339 cannot write it.
    #[error("the time {found} lies outside the years 0000 to 9999")]
    TimeOutOfRange {
        /// What stands there.
        found: String,
    },
    /// Nothing, or null, where the device's name should be.
    #[error(
        "there is no device name at \"{pointer}\"; a subscription without `device` takes the source's name"
    )]
    DeviceMissing {
        /// The configured pointer.
        pointer: String,
    },
    /// What stands for the device's name is neither text nor number.
    #[error("the device name at \"{pointer}\" is {found}; a name is a string or a number")]
    DeviceNotAName {
        /// The configured pointer.
        pointer: String,
        /// What it is.
        found: &'static str,
    },
    /// The device's name is empty.
    #[error("the device name is empty")]
    DeviceEmpty,
    /// The device's name is too long.
    #[error("the device name is {bytes} bytes long; at most {limit_bytes} are taken")]
    DeviceTooLong {
        /// Its length.
        bytes: usize,
        /// How long it may be.
        limit_bytes: usize,
    },
    /// A captured level of the topic is too long for a tag.
    #[error("the topic's level for {{{name}}} is {bytes} bytes long; at most {limit_bytes} are taken")]
    TagTooLong {
        /// The name of the capture.
        name: String,
        /// Its length.
        bytes: usize,
        /// How long it may be.
        limit_bytes: usize,
    },
}

/// `text` in quotes, cut at a length that a reason bears.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((cut, _)) => format!("{:?}…", text.split_at(cut).0),
        None => format!("{text:?}"),
    }
}

/// `text` cut at a length that a reason bears.
pub(super) fn start_of(text: &str) -> String {
    text.chars().take(QUOTED_CHARS).collect()
}
