//! Why a connection ends that the client did not end itself.

use rumqttc::v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::answer::Refusal;

/// Why a connection is cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("what it sent is not MQTT: no CONNECT came first")]
    NoConnect,
    #[error("it sent a malformed packet: {reason}")]
    Malformed { reason: String },
    #[error("it sent {packet}")]
    Unexpected { packet: &'static str },
    #[error("it sent a packet of {packet_bytes} bytes, above {limit_bytes}")]
    PacketTooLarge { packet_bytes: usize, limit_bytes: usize },
    #[error("it published to a topic that is empty, not UTF-8, or holds a wildcard or U+0000")]
    TopicInvalid,
    #[error("it used the topic alias {alias}, and was told that there are none")]
    TopicAlias { alias: u16 },
    #[error("it published more than {limit} messages without waiting for acknowledgements")]
    ReceiveMaximum { limit: u16 },
    #[error("it was refused: {0}")]
    Refused(Refusal),
    #[error("no packet came within its keep-alive time and half as much again")]
    Silent,
    #[error("it did not speak, or not to the end, in time")]
    Hesitant,
    #[error("it does not read its acknowledgements")]
    NotReading,
    #[error("another connection took over its client id")]
    TakenOver,
    #[error("the agent is stopping")]
    Stopping,
    #[error("the connection broke: {0}")]
    Broken(std::io::Error),
    #[error("it closed the connection without a word")]
    Gone,
}

impl Fault {
    /// A packet that rumqttc's codec could not read.
    pub(super) fn malformed(error: impl std::fmt::Display) -> Self {
        Self::Malformed { reason: error.to_string() }
    }

    /// What MQTT 5 has to say about it; `None` where nobody would hear it, or nothing has been agreed yet.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Malformed { .. } => Some(Reason::MalformedPacket),
            Self::Unexpected { .. } => Some(Reason::ProtocolError),
            Self::PacketTooLarge { .. } => Some(Reason::PacketTooLarge),
            Self::TopicInvalid => Some(Reason::TopicNameInvalid),
            Self::TopicAlias { .. } => Some(Reason::TopicAliasInvalid),
            Self::ReceiveMaximum { .. } => Some(Reason::ReceiveMaximumExceeded),
            Self::Silent => Some(Reason::KeepAliveTimeout),
            Self::Hesitant => Some(Reason::UnspecifiedError),
            Self::TakenOver => Some(Reason::SessionTakenOver),
            Self::Stopping => Some(Reason::ServerShuttingDown),
            Self::NoConnect | Self::Refused(_) | Self::NotReading | Self::Broken(_) | Self::Gone => None,
        }
    }
}
