//! Bytes to packets: one vocabulary over rumqttc's codecs for MQTT 3.1.1 and 5. (The way back is in `answer.rs`.)
//!
//! The codecs parse; what they let pass or get wrong for a server is put right here: an empty DISCONNECT of
//! MQTT 5, topics that are not UTF-8 or not topics, packets that are cheap to send and dear to parse. Whatever the
//! bytes are, the answer is a packet, "more bytes", or a [`Fault`]; never a panic.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::mqttbytes::{self, v4};
use rumqttc::v5::mqttbytes::v5;

use super::fault::Fault;

/// Longer packets are cut off. Announced to clients of MQTT 5.
pub(super) const MAX_PACKET_BYTES: usize = 16 << 20;
/// A CONNECT holds at most a will, an id, a name and a password, each at most 64 KiB; and nobody is known yet.
pub(super) const MAX_CONNECT_BYTES: usize = 256 << 10;
/// Everything but a PUBLISH is short: parsed, a packet of a million filters takes thirty times its size.
const MAX_CONTROL_BYTES: usize = 64 << 10;
/// The properties of a PUBLISH, for the same reason.
const MAX_PROPERTIES_BYTES: usize = 64 << 10;

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const DISCONNECT: u8 = 14;

/// The protocol a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// What a client may send once it is connected.
#[derive(Debug)]
pub(super) enum Packet {
    Publish(Publish),
    /// PUBREL.
    Release {
        packet_id: u16,
    },
    Subscribe {
        packet_id: u16,
        filters: usize,
    },
    Unsubscribe {
        packet_id: u16,
        filters: usize,
    },
    Ping,
    Disconnect(Parting),
}

/// How a client takes its leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// The will is void.
    Quietly,
    /// The will is to be published all the same (MQTT 5, reason code 0x04 and every error).
    WithWill,
}

/// A PUBLISH; its topic is checked.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    pub(super) resent: bool,
    pub(super) retain: bool,
}

/// Quality of service, with the packet identifier where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "MQTT's own words")]
pub(super) enum Qos {
    AtMostOnce,
    AtLeastOnce { packet_id: u16 },
    ExactlyOnce { packet_id: u16 },
}

/// A CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Connect {
    pub(super) version: Version,
    pub(super) client_id: String,
    pub(super) start: Start,
    /// Zero: the client need never speak.
    pub(super) keep_alive: Duration,
    pub(super) login: Option<Login>,
    pub(super) will: Option<Will>,
    /// How long the client's session outlives its connection.
    pub(super) session_expiry: Duration,
    /// Whether an authentication method of MQTT 5 was asked for.
    pub(super) asks_method: bool,
}

/// Whether a client wants its earlier session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Fresh,
    Resume,
}

/// Who a client says it is.
#[derive(PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What is to be published when a client goes without a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Will {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    pub(super) delay: Duration,
}

/// Where the first packet of a buffer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// It is all there, this long.
    Complete(usize),
    /// More bytes are needed; the whole packet will take this many, as far as can be told yet.
    Partial(usize),
}

/// Finds the end of the first packet in `buffer`.
///
/// # Errors
/// If its length is malformed, or above what packets of its type may have.
pub(super) fn frame(buffer: &[u8]) -> Result<Frame, Fault> {
    let limit_bytes = match buffer.first().map(|byte| byte >> 4) {
        Some(PUBLISH) => MAX_PACKET_BYTES,
        Some(CONNECT) => MAX_CONNECT_BYTES,
        _ => MAX_CONTROL_BYTES,
    };
    // Here, and only here, the codec's "insufficient bytes" means what it says: within a packet it means malformed.
    match mqttbytes::check(buffer.iter(), limit_bytes) {
        Ok(header) => Ok(Frame::Complete(header.frame_length())),
        Err(mqttbytes::Error::InsufficientBytes(more)) => Ok(Frame::Partial(buffer.len() + more)),
        Err(mqttbytes::Error::PayloadSizeLimitExceeded(packet_bytes)) => {
            Err(Fault::PacketTooLarge { packet_bytes, limit_bytes })
        }
        Err(error) => Err(Fault::malformed(error)),
    }
}

/// What the first packet of a connection turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// A CONNECT.
    Connect(Box<Connect>),
    /// A CONNECT of a protocol we do not speak; the answer is to be in this one's words.
    OtherProtocol(Version),
}

/// Reads the CONNECT that fills the first `length` bytes of `buffer`.
///
/// # Errors
/// If it is no CONNECT.
pub(super) fn read_connect(buffer: &mut BytesMut, length: usize) -> Result<Hello, Fault> {
    match protocol(&buffer[..length]).ok_or(Fault::NoConnect)? {
        Protocol::Known(Version::V4) => {
            match v4::Packet::read(buffer, MAX_CONNECT_BYTES).map_err(Fault::malformed)? {
                v4::Packet::Connect(connect) => Ok(Hello::Connect(Box::new(connect_v4(connect)))),
                _ => Err(Fault::NoConnect),
            }
        }
        Protocol::Known(Version::V5) => {
            let packet = v5::Packet::read(buffer, None).map_err(Fault::malformed)?;
            match packet {
                v5::Packet::Connect(connect, will, login) => {
                    connect_v5(connect, will, login).map(|connect| Hello::Connect(Box::new(connect)))
                }
                _ => Err(Fault::NoConnect),
            }
        }
        Protocol::Other(words) => Ok(Hello::OtherProtocol(words)),
    }
}

enum Protocol {
    Known(Version),
    Other(Version),
}

/// The protocol that a CONNECT names, or `None` if it is none of MQTT's.
fn protocol(packet: &[u8]) -> Option<Protocol> {
    let length_bytes = packet.get(1..5)?.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    let mut rest = packet.get(1 + length_bytes..)?;
    if packet[0] != CONNECT << 4 || rest.len() < 2 {
        return None;
    }
    let name_bytes = usize::from(rest.get_u16());
    let (name, level) = (rest.get(..name_bytes)?, *rest.get(name_bytes)?);
    match (name, level) {
        (b"MQTT", 4) => Some(Protocol::Known(Version::V4)),
        (b"MQTT", 5) => Some(Protocol::Known(Version::V5)),
        (b"MQTT", 6..) => Some(Protocol::Other(Version::V5)),
        // MQTT 3.1, and bridges of mosquitto, which set the highest bit of it.
        (b"MQIsdp" | b"MQTT", _) => Some(Protocol::Other(Version::V4)),
        _ => None,
    }
}

fn connect_v4(connect: v4::Connect) -> Connect {
    let start = if connect.clean_session { Start::Fresh } else { Start::Resume };
    Connect {
        version: Version::V4,
        client_id: connect.client_id,
        start,
        keep_alive: Duration::from_secs(connect.keep_alive.into()),
        login: connect.login.map(|login| Login { user: login.username, password: login.password }),
        will: connect.last_will.map(|will| Will {
            topic: will.topic,
            payload: Bytes::copy_from_slice(&will.message),
            retain: will.retain,
            delay: Duration::ZERO,
        }),
        session_expiry: if start == Start::Fresh { Duration::ZERO } else { Duration::MAX },
        asks_method: false,
    }
}

fn connect_v5(
    connect: v5::Connect,
    will: Option<v5::LastWill>,
    login: Option<v5::Login>,
) -> Result<Connect, Fault> {
    let properties = connect.properties.as_ref();
    let session_expiry = match properties.and_then(|properties| properties.session_expiry_interval) {
        Some(u32::MAX) => Duration::MAX,
        seconds => Duration::from_secs(seconds.unwrap_or(0).into()),
    };
    let will = will.map(|will| {
        let delay = will.properties.and_then(|properties| properties.delay_interval).unwrap_or(0);
        // Copies: slices would keep the network buffer alive as long as the connection.
        Ok(Will {
            topic: text(&will.topic)?,
            payload: Bytes::copy_from_slice(&will.message),
            retain: will.retain,
            delay: Duration::from_secs(delay.into()),
        })
    });
    Ok(Connect {
        version: Version::V5,
        start: if connect.clean_start { Start::Fresh } else { Start::Resume },
        keep_alive: Duration::from_secs(connect.keep_alive.into()),
        login: login.map(|login| Login { user: login.username, password: login.password }),
        will: will.transpose()?,
        session_expiry,
        asks_method: properties.is_some_and(|properties| properties.authentication_method.is_some()),
        client_id: connect.client_id,
    })
}

/// Reads the packet that fills the first `length` bytes of `buffer`.
///
/// # Errors
/// If it is malformed, or one that a connected client never sends.
pub(super) fn read(version: Version, buffer: &mut BytesMut, length: usize) -> Result<Packet, Fault> {
    match version {
        Version::V4 => read_v4(buffer),
        Version::V5 => read_v5(buffer, length),
    }
}

fn read_v4(buffer: &mut BytesMut) -> Result<Packet, Fault> {
    use v4::Packet as From;
    Ok(match v4::Packet::read(buffer, MAX_PACKET_BYTES).map_err(Fault::malformed)? {
        From::Publish(publish) => Packet::Publish(Publish {
            topic: checked_topic(publish.topic)?,
            payload: publish.payload,
            qos: match publish.qos {
                mqttbytes::QoS::AtMostOnce => Qos::AtMostOnce,
                mqttbytes::QoS::AtLeastOnce => Qos::AtLeastOnce { packet_id: publish.pkid },
                mqttbytes::QoS::ExactlyOnce => Qos::ExactlyOnce { packet_id: publish.pkid },
            },
            resent: publish.dup,
            retain: publish.retain,
        }),
        From::PubRel(release) => Packet::Release { packet_id: release.pkid },
        From::Subscribe(subscribe) => {
            Packet::Subscribe { packet_id: subscribe.pkid, filters: subscribe.filters.len() }
        }
        From::Unsubscribe(unsubscribe) => {
            Packet::Unsubscribe { packet_id: unsubscribe.pkid, filters: unsubscribe.topics.len() }
        }
        From::PingReq => Packet::Ping,
        From::Disconnect => Packet::Disconnect(Parting::Quietly),
        From::Connect(_) => return Err(Fault::Unexpected { packet: "a second CONNECT" }),
        From::PubAck(_) | From::PubRec(_) | From::PubComp(_) => {
            return Err(Fault::Unexpected { packet: "an acknowledgement of what was never sent" });
        }
        From::ConnAck(_) | From::SubAck(_) | From::UnsubAck(_) | From::PingResp => {
            return Err(Fault::Unexpected { packet: "a packet that only servers send" });
        }
    })
}

fn read_v5(buffer: &mut BytesMut, length: usize) -> Result<Packet, Fault> {
    use v5::Packet as From;
    // The codec takes a DISCONNECT without a reason code, the usual one, or without properties for malformed.
    if length <= 3 && buffer[0] >> 4 == DISCONNECT {
        let reason = buffer.split_to(length).get(2).copied();
        let quietly = matches!(reason, None | Some(0));
        return Ok(Packet::Disconnect(if quietly { Parting::Quietly } else { Parting::WithWill }));
    }
    if length > MAX_PROPERTIES_BYTES {
        check_properties(&buffer[..length])?;
    }
    Ok(match v5::Packet::read(buffer, None).map_err(Fault::malformed)? {
        From::Publish(publish) => {
            let alias = publish.properties.as_ref().and_then(|properties| properties.topic_alias);
            if let Some(alias) = alias {
                return Err(Fault::TopicAlias { alias });
            }
            Packet::Publish(Publish {
                topic: checked_topic(text(&publish.topic)?)?,
                payload: publish.payload,
                qos: match publish.qos {
                    rumqttc::v5::mqttbytes::QoS::AtMostOnce => Qos::AtMostOnce,
                    rumqttc::v5::mqttbytes::QoS::AtLeastOnce => Qos::AtLeastOnce { packet_id: publish.pkid },
                    rumqttc::v5::mqttbytes::QoS::ExactlyOnce => Qos::ExactlyOnce { packet_id: publish.pkid },
                },
                resent: publish.dup,
                retain: publish.retain,
            })
        }
        From::PubRel(release) => Packet::Release { packet_id: release.pkid },
        From::Subscribe(subscribe) => {
            Packet::Subscribe { packet_id: subscribe.pkid, filters: subscribe.filters.len() }
        }
        From::Unsubscribe(unsubscribe) => {
            Packet::Unsubscribe { packet_id: unsubscribe.pkid, filters: unsubscribe.filters.len() }
        }
        From::PingReq(_) => Packet::Ping,
        From::Disconnect(disconnect) => Packet::Disconnect(match disconnect.reason_code {
            v5::DisconnectReasonCode::NormalDisconnection => Parting::Quietly,
            _ => Parting::WithWill,
        }),
        From::Connect(..) => return Err(Fault::Unexpected { packet: "a second CONNECT" }),
        From::Auth(_) => return Err(Fault::Unexpected { packet: "an AUTH" }),
        From::PubAck(_) | From::PubRec(_) | From::PubComp(_) => {
            return Err(Fault::Unexpected { packet: "an acknowledgement of what was never sent" });
        }
        From::ConnAck(_) | From::SubAck(_) | From::UnsubAck(_) | From::PingResp(_) => {
            return Err(Fault::Unexpected { packet: "a packet that only servers send" });
        }
    })
}

/// Refuses a PUBLISH whose properties, parsed, would take many times its size.
fn check_properties(packet: &[u8]) -> Result<(), Fault> {
    let properties_bytes = || {
        let mut rest = packet.get(1..)?;
        variable_length(&mut rest)?;
        let topic_bytes = usize::from(rest.try_get_u16().ok()?);
        let packet_id_bytes = if packet[0] & 0b0110 == 0 { 0 } else { 2 };
        rest = rest.get(topic_bytes + packet_id_bytes..)?;
        variable_length(&mut rest)
    };
    match properties_bytes() {
        Some(packet_bytes) if packet_bytes > MAX_PROPERTIES_BYTES => {
            Err(Fault::PacketTooLarge { packet_bytes, limit_bytes: MAX_PROPERTIES_BYTES })
        }
        // What is malformed the codec will find.
        Some(_) | None => Ok(()),
    }
}

/// A variable byte integer (MQTT 5.0, section 1.5.5).
fn variable_length(rest: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let byte = rest.try_get_u8().ok()?;
        value |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn text(bytes: &[u8]) -> Result<String, Fault> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Fault::TopicInvalid)
}

/// A topic to publish to has no wildcards, no U+0000, and at least one character (MQTT 5.0, section 4.7).
pub(super) fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.bytes().any(|byte| matches!(byte, b'+' | b'#' | 0))
}

fn checked_topic(topic: String) -> Result<String, Fault> {
    if is_topic(&topic) { Ok(topic) } else { Err(Fault::TopicInvalid) }
}

#[cfg(test)]
mod tests;
