//! What a device can do wrong, and what a person can do about it.

use std::fmt;
use std::time::Duration;

use crate::source::port;

/// Why a request brought no data.
#[derive(Debug)]
pub(super) enum Failure {
    /// The device did not answer as it should; others may.
    Device(Fault),
    /// There is no line to anybody.
    Lost(port::Trouble),
}

/// What a device did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Refused(Exception),
    #[error(
        "no answer within {within:?}; check the device's power and wiring, that it is the unit, and that no other has the same"
    )]
    NoAnswer { within: Duration },
    #[error(
        "what came is no valid answer ({bytes} bytes); check baud, parity and stop_bits, the wiring and its termination"
    )]
    Garbled { bytes: u64 },
    #[error(
        "something else answered: another unit, or to another request; check that no two devices have one unit"
    )]
    Foreign,
    #[error(
        "the connection was closed in place of an answer ({reason}); check unit, and how many connections the server allows"
    )]
    Dropped { reason: String },
    #[error("the answer holds {got} values, {expected} were asked for")]
    Length { expected: usize, got: usize },
}

impl Fault {
    /// Whether the device may have answered, had the request been a smaller one.
    pub(super) fn may_lie_in_the_address(&self) -> bool {
        match self {
            Self::Refused(exception) => matches!(exception.0, 2 | 3),
            Self::NoAnswer { .. }
            | Self::Garbled { .. }
            | Self::Foreign
            | Self::Dropped { .. }
            | Self::Length { .. } => false,
        }
    }

    /// Whether the device was heard: it is there, and would answer something else.
    pub(super) fn was_heard(&self) -> bool {
        match self {
            // 10, 11: a gateway answered in its place.
            Self::Refused(exception) => !matches!(exception.0, 10 | 11),
            Self::Length { .. } => true,
            Self::NoAnswer { .. } | Self::Garbled { .. } | Self::Foreign | Self::Dropped { .. } => false,
        }
    }

    /// Whether bytes came that make no sense, so that asking once more is worth it.
    pub(super) fn is_garbage(&self) -> bool {
        match self {
            Self::Garbled { .. } | Self::Foreign | Self::Length { .. } => true,
            Self::Refused(_) | Self::NoAnswer { .. } | Self::Dropped { .. } => false,
        }
    }
}

/// A refusal, by its number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception(pub(super) u8);

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, remedy) = match self.0 {
            1 => ("illegal function", "the device has nothing of this kind; check kind"),
            2 => ("illegal data address", "check the address, some manuals count from 1"),
            3 => ("illegal data value", "check address and type, the device does not give so much at once"),
            4 => ("device failure", "the device could not do it"),
            5 => ("acknowledged", "the device needs longer for its answer; it is asked again"),
            6 => ("device busy", "it is asked again"),
            7 => ("negative acknowledgement", "the device could not do it"),
            8 => ("memory parity error", "the device's memory is damaged"),
            9 => ("reserved exception", "the device's manual may know it"),
            10 => ("gateway path unavailable", "check unit, and the gateway's settings"),
            11 => (
                "gateway target does not answer",
                "check power and wiring of the device behind the gateway, and unit",
            ),
            _ => ("unknown exception", "the device's manual may know it"),
        };
        write!(f, "{name} (exception {}); {remedy}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exception_of_the_protocol_has_a_name() {
        let names: Vec<String> = (1..=11)
            .map(|code| Fault::Refused(Exception(code)).to_string().split_once(" (").unwrap().0.to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "illegal function",
                "illegal data address",
                "illegal data value",
                "device failure",
                "acknowledged",
                "device busy",
                "negative acknowledgement",
                "memory parity error",
                "reserved exception",
                "gateway path unavailable",
                "gateway target does not answer",
            ]
        );
        let text = Exception(99).to_string();
        assert!(text.starts_with("unknown exception (exception 99); "), "{text}");
    }
}
