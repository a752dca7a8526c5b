//! What a client is told: one vocabulary over rumqttc's codecs for MQTT 3.1.1 and 5. Appends to a buffer, never fails.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

use super::fault::Fault;
use super::packet::{MAX_PACKET_BYTES, Version};
use super::session::RECEIVE_MAXIMUM;

/// What is said to a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    /// PUBACK.
    Received,
    /// PUBREC.
    Recorded,
}

/// Whether a message was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// No subscription takes its topic. MQTT 3.1.1 has no words for that: it is acknowledged.
    Unrouted,
}

/// Whether a PUBREL named a packet that was waiting for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    Known,
    Unknown,
}

impl Version {
    /// Appends a PUBACK or PUBREC.
    pub(super) fn write_ack(self, ack: Ack, packet_id: u16, taken: Taken, out: &mut BytesMut) {
        match (self, ack) {
            (Self::V4, Ack::Received) => written(&v4::PubAck::new(packet_id).write(out)),
            (Self::V4, Ack::Recorded) => written(&v4::PubRec::new(packet_id).write(out)),
            (Self::V5, Ack::Received) => {
                let reason = match taken {
                    Taken::Yes => v5::PubAckReason::Success,
                    Taken::Unrouted => v5::PubAckReason::TopicNameInvalid,
                };
                written(&v5::PubAck { pkid: packet_id, reason, properties: None }.write(out));
            }
            (Self::V5, Ack::Recorded) => {
                let reason = match taken {
                    Taken::Yes => v5::PubRecReason::Success,
                    Taken::Unrouted => v5::PubRecReason::TopicNameInvalid,
                };
                written(&v5::PubRec { pkid: packet_id, reason, properties: None }.write(out));
            }
        }
    }

    /// Appends a PUBCOMP.
    pub(super) fn write_complete(self, packet_id: u16, release: Release, out: &mut BytesMut) {
        match self {
            Self::V4 => written(&v4::PubComp::new(packet_id).write(out)),
            Self::V5 => {
                let reason = match release {
                    Release::Known => v5::PubCompReason::Success,
                    Release::Unknown => v5::PubCompReason::PacketIdentifierNotFound,
                };
                written(&v5::PubComp { pkid: packet_id, reason, properties: None }.write(out));
            }
        }
    }

    /// Appends a SUBACK that refuses every filter.
    pub(super) fn write_no_subscription(self, packet_id: u16, filters: usize, out: &mut BytesMut) {
        match self {
            Self::V4 => {
                let codes = vec![v4::SubscribeReasonCode::Failure; filters];
                written(&v4::SubAck::new(packet_id, codes).write(out));
            }
            Self::V5 => {
                let return_codes = vec![v5::SubscribeReasonCode::NotAuthorized; filters];
                written(&v5::SubAck { pkid: packet_id, return_codes, properties: None }.write(out));
            }
        }
    }

    /// Appends an UNSUBACK.
    pub(super) fn write_unsubscribed(self, packet_id: u16, filters: usize, out: &mut BytesMut) {
        match self {
            Self::V4 => written(&v4::UnsubAck::new(packet_id).write(out)),
            Self::V5 => {
                let reasons = vec![v5::UnsubAckReason::NoSubscriptionExisted; filters];
                written(&v5::UnsubAck { pkid: packet_id, reasons, properties: None }.write(out));
            }
        }
    }

    /// Appends a PINGRESP.
    pub(super) fn write_pong(self, out: &mut BytesMut) {
        match self {
            Self::V4 => written(&v4::PingResp.write(out)),
            Self::V5 => written(&v5::PingResp::write(out)),
        }
    }

    /// Appends the DISCONNECT that says why; MQTT 3.1.1 has none from a server.
    pub(super) fn write_disconnect(self, fault: &Fault, out: &mut BytesMut) {
        if let (Self::V5, Some(reason_code)) = (self, fault.reason()) {
            // By hand, with a property length of zero: without one, rumqttc as a client takes it for incomplete, and with one
            // rumqttc's writer leaves the reason out.
            out.extend_from_slice(&[0xE0, 2, reason_code as u8, 0]);
        }
    }

    /// Appends the CONNACK that lets a client in.
    pub(super) fn write_welcome(self, welcome: Welcome, out: &mut BytesMut) {
        match self {
            Self::V4 => {
                let ack = v4::ConnAck::new(v4::ConnectReturnCode::Success, welcome.session_present);
                written(&ack.write(out));
            }
            Self::V5 => {
                let properties = v5::ConnAckProperties {
                    receive_max: Some(RECEIVE_MAXIMUM),
                    max_packet_size: u32::try_from(MAX_PACKET_BYTES).ok(),
                    assigned_client_identifier: welcome.assigned_id,
                    wildcard_subscription_available: Some(0),
                    subscription_identifiers_available: Some(0),
                    shared_subscription_available: Some(0),
                    ..no_properties()
                };
                let ack = v5::ConnAck {
                    session_present: welcome.session_present,
                    code: v5::ConnectReturnCode::Success,
                    properties: Some(properties),
                };
                written(&ack.write(out));
            }
        }
    }

    /// Appends the CONNACK that keeps a client out.
    pub(super) fn write_refusal(self, refusal: Refusal, out: &mut BytesMut) {
        match self {
            Self::V4 => written(&v4::ConnAck::new(refusal.code_v4(), false).write(out)),
            Self::V5 => {
                let ack = v5::ConnAck { session_present: false, code: refusal.code_v5(), properties: None };
                written(&ack.write(out));
            }
        }
    }
}

/// What a client is told when it is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) session_present: bool,
    /// The id of a client that brought none.
    pub(super) assigned_id: Option<String>,
}

/// Why a client is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it speaks neither MQTT 3.1.1 nor MQTT 5")]
    Protocol,
    #[error(
        "its client id is longer than 256 bytes, holds control characters, or is missing where one is needed"
    )]
    ClientId,
    #[error("its will's topic is no topic to publish to")]
    WillTopic,
    #[error("it asks for an authentication method, and there are none")]
    Method,
    #[error("its user name or password is wrong")]
    Credentials,
    #[error("it gave no user name")]
    Anonymous,
    #[error("max_clients are connected")]
    Full,
    #[error("it could not be served in time")]
    Busy,
    #[error("the agent is stopping")]
    Stopping,
}

impl Refusal {
    fn code_v4(self) -> v4::ConnectReturnCode {
        match self {
            Self::Protocol => v4::ConnectReturnCode::RefusedProtocolVersion,
            Self::ClientId => v4::ConnectReturnCode::BadClientId,
            Self::Credentials => v4::ConnectReturnCode::BadUserNamePassword,
            Self::Anonymous | Self::Method | Self::WillTopic => v4::ConnectReturnCode::NotAuthorized,
            Self::Full | Self::Busy | Self::Stopping => v4::ConnectReturnCode::ServiceUnavailable,
        }
    }

    fn code_v5(self) -> v5::ConnectReturnCode {
        match self {
            Self::Protocol => v5::ConnectReturnCode::UnsupportedProtocolVersion,
            Self::ClientId => v5::ConnectReturnCode::ClientIdentifierNotValid,
            Self::WillTopic => v5::ConnectReturnCode::TopicNameInvalid,
            Self::Method => v5::ConnectReturnCode::BadAuthenticationMethod,
            Self::Credentials => v5::ConnectReturnCode::BadUserNamePassword,
            Self::Anonymous => v5::ConnectReturnCode::NotAuthorized,
            Self::Full => v5::ConnectReturnCode::QuotaExceeded,
            Self::Busy => v5::ConnectReturnCode::ServerBusy,
            Self::Stopping => v5::ConnectReturnCode::ServerUnavailable,
        }
    }
}

/// The codec refuses only packets above 256 MiB; ours are shorter than what they answer.
fn written<E>(result: &Result<usize, E>) {
    debug_assert!(result.is_ok(), "answers are short");
}

fn no_properties() -> v5::ConnAckProperties {
    v5::ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}
