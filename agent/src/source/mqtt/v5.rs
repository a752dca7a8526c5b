//! A link in MQTT 5.

use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, DisconnectReasonCode, Filter as RawFilter, Packet, Publish, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event as Raw, EventLoop, MqttOptions, StateError};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};

use super::acks::{Ack, Acks, Receipt};
use super::link::{
    CONNECT_TIMEOUT, Event, Filter, Grant, Link, MAX_PACKET_BYTES, Message, OUTGOING_IN_FLIGHT, Plan,
    Protection, RECEIVE_MAXIMUM, REQUESTS, Releases, Requests, Session, Taken, Topic,
};
use super::trouble::{Dismissal, Refusal, Stage, Trouble};
use super::v4::tls_trouble;
use crate::ingest::{Delivery, Replayed, Resent};

/// rumqttc's v5 client pings without a pause if it has no keep-alive, and panics below its own minimum.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(5);
/// What the protocol can say; stands for "none".
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(65_535);

/// A connection in MQTT 5.
pub(super) struct V5 {
    client: AsyncClient,
    events: EventLoop,
    /// How far it has come.
    stage: Stage,
    /// Why the connection ended, while what arrived before is still being handed out.
    ended: Option<Trouble>,
}

impl Link for V5 {
    type Requests = AsyncClient;

    const QUEUED_ACKS: usize = REQUESTS;

    fn open(plan: &Plan) -> Self {
        let mut options = MqttOptions::new(plan.client_id.as_str(), plan.host.as_str(), plan.port);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options
            .set_clean_start(false)
            .set_session_expiry_interval(Some(u32::MAX))
            .set_manual_acks(true)
            .set_keep_alive(keep_alive(plan.keep_alive))
            .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
            .set_network_options(network)
            .set_max_packet_size(Some(MAX_PACKET_BYTES))
            .set_receive_maximum(Some(RECEIVE_MAXIMUM))
            // rumqttc hands out messages before it has resolved their alias.
            .set_topic_alias_max(Some(0))
            .set_outgoing_inflight_upper_limit(OUTGOING_IN_FLIGHT);
        if let Some((username, password)) = &plan.credentials {
            options.set_credentials(username, password);
        }
        if let Some(tls) = &plan.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
        }
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        if plan.releases == Releases::Any {
            expect_every_release(&mut events);
        }
        Self { client, events, stage: Stage::Connecting, ended: None }
    }

    fn requests(&self) -> AsyncClient {
        self.client.clone()
    }

    async fn poll(&mut self) -> Result<Event, Trouble> {
        loop {
            if self.ended.is_none() {
                match self.events.poll().await {
                    Ok(event) => return Ok(self.translate(event)),
                    Err(error) => self.ended = Some(trouble(error, self.stage)),
                }
            }
            // What was read together with the end of the connection is as good as what came before.
            match self.events.state.events.pop_front() {
                Some(event @ Raw::Incoming(Packet::Publish(_))) => return Ok(self.translate(event)),
                Some(_) => {}
                None => return Err(self.ended.take().unwrap_or(Trouble::Closed(Stage::Settled))),
            }
        }
    }

    async fn send_acks(&mut self, acks: &mut Acks) -> Result<(), Trouble> {
        acks.queue_due(&self.client, Self::QUEUED_ACKS);
        Ok(())
    }
}

impl V5 {
    fn translate(&mut self, event: Raw) -> Event {
        match event {
            Raw::Incoming(Packet::Publish(publish)) => Event::Message(message(publish)),
            Raw::Outgoing(Outgoing::PubAck(_) | Outgoing::PubRec(_)) => Event::AckSent,
            Raw::Incoming(Packet::ConnAck(connack)) => {
                self.stage = Stage::Settled;
                // "No keep-alive" from the broker would make rumqttc ping without a pause.
                if connack.properties.and_then(|properties| properties.server_keep_alive) == Some(0) {
                    self.events.options.set_keep_alive(KEEP_ALIVE_MAX);
                }
                Event::Connected(if connack.session_present { Session::Resumed } else { Session::New })
            }
            Raw::Incoming(Packet::SubAck(suback)) => {
                Event::Subscribed(suback.return_codes.into_iter().map(grant).collect())
            }
            Raw::Incoming(Packet::UnsubAck(_)) => Event::Unsubscribed,
            Raw::Incoming(_) | Raw::Outgoing(_) => Event::Other,
        }
    }
}

impl Requests for AsyncClient {
    fn ack(&self, ack: Ack) -> Taken {
        let qos = match ack.receipt {
            Receipt::Puback => QoS::AtLeastOnce,
            Receipt::Pubrec => QoS::ExactlyOnce,
        };
        // All that counts here is the packet id; nothing of this allocates.
        let publish = Publish { qos, pkid: ack.packet_id, ..Publish::default() };
        Taken::from_result(&self.try_ack(&publish))
    }

    fn subscribe(&self, filters: &[Filter]) -> Taken {
        let filters = filters.iter().map(|filter| {
            let qos = match filter.protection {
                Protection::None => QoS::AtMostOnce,
                Protection::Acknowledged => QoS::AtLeastOnce,
            };
            RawFilter::new(filter.text.clone(), qos)
        });
        Taken::from_result(&self.try_subscribe_many(filters))
    }

    fn unsubscribe(&self, filter: &str) -> Taken {
        Taken::from_result(&self.try_unsubscribe(filter))
    }

    fn disconnect(&self) -> Taken {
        Taken::from_result(&self.try_disconnect())
    }
}

fn keep_alive(wanted: Duration) -> Duration {
    if wanted.is_zero() { KEEP_ALIVE_MAX } else { wanted.clamp(KEEP_ALIVE_MIN, KEEP_ALIVE_MAX) }
}

/// Makes rumqttc answer a PUBREL of any packet id, by letting it believe that it has seen each PUBLISH.
fn expect_every_release(events: &mut EventLoop) {
    for pkid in 1..=u16::MAX {
        let publish = Publish { qos: QoS::ExactlyOnce, pkid, ..Publish::default() };
        let answer = events.state.handle_incoming_packet(Packet::Publish(publish));
        debug_assert!(matches!(answer, Ok(None)), "with manual acks nothing is answered");
        events.state.events.clear();
    }
}

fn message(publish: Publish) -> Message {
    let packet_id = publish.pkid;
    let resent = if publish.dup { Resent::Perhaps } else { Resent::No };
    let acknowledged = Delivery::Acknowledged { packet_id, resent };
    let (delivery, receipt) = match publish.qos {
        QoS::AtMostOnce => (Delivery::AtMostOnce, None),
        QoS::AtLeastOnce => (acknowledged, Some(Receipt::Puback)),
        QoS::ExactlyOnce => (acknowledged, Some(Receipt::Pubrec)),
    };
    Message {
        topic: Topic::Bytes(publish.topic),
        payload: publish.payload,
        delivery,
        replayed: if publish.retain { Replayed::FromRetained } else { Replayed::No },
        ack: receipt.map(|receipt| Ack { packet_id, receipt }),
    }
}

fn grant(code: SubscribeReasonCode) -> Grant {
    Grant::Refused(match code {
        SubscribeReasonCode::Success(QoS::AtMostOnce) => return Grant::Granted(Protection::None),
        SubscribeReasonCode::Success(QoS::AtLeastOnce | QoS::ExactlyOnce) => {
            return Grant::Granted(Protection::Acknowledged);
        }
        SubscribeReasonCode::NotAuthorized => "not authorized",
        SubscribeReasonCode::TopicFilterInvalid => "the topic is not valid there",
        SubscribeReasonCode::QuotaExceeded => "too many subscriptions",
        SubscribeReasonCode::SharedSubscriptionsNotSupported => "no shared subscriptions there",
        SubscribeReasonCode::WildcardSubscriptionsNotSupported => "no wildcards there",
        SubscribeReasonCode::Failure
        | SubscribeReasonCode::Unspecified
        | SubscribeReasonCode::ImplementationSpecific
        | SubscribeReasonCode::PkidInUse
        | SubscribeReasonCode::SubscriptionIdNotSupported => "no reason given; often missing permission",
    })
}

fn trouble(error: ConnectionError, stage: Stage) -> Trouble {
    match error {
        ConnectionError::MqttState(error) => state_trouble(error, stage),
        ConnectionError::Timeout(_) => Trouble::NoAnswer,
        ConnectionError::Tls(error) => tls_trouble(error),
        ConnectionError::Io(error) => Trouble::from_io(error, stage),
        ConnectionError::ConnectionRefused(code) => Trouble::Refused(refusal(code)),
        ConnectionError::NotConnAck(_) => {
            Trouble::Protocol { what: "another packet than CONNACK".to_owned() }
        }
        ConnectionError::RequestsDone => Trouble::Closed(stage),
    }
}

fn state_trouble(error: StateError, stage: Stage) -> Trouble {
    match error {
        StateError::ConnectionAborted => Trouble::Closed(stage),
        StateError::Io(error) | StateError::Deserialization(mqttbytes::Error::Io(error)) => {
            Trouble::from_io(error, stage)
        }
        StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded { pkt_size, .. })
        | StateError::IncomingPacketTooLarge { pkt_size, .. } => {
            Trouble::PacketTooLarge { packet_bytes: pkt_size }
        }
        // We publish nothing: the only packet that can come unasked is the PUBREL of a resumed session.
        StateError::Unsolicited(_) => Trouble::UnknownRelease,
        StateError::AwaitPingResp => Trouble::Silent,
        StateError::ServerDisconnect { reason_code, .. } => Trouble::Dismissed(dismissal(reason_code)),
        StateError::ConnFail { reason } => Trouble::Refused(refusal(reason)),
        other => Trouble::Protocol { what: other.to_string() },
    }
}

fn refusal(code: ConnectReturnCode) -> Refusal {
    match code {
        ConnectReturnCode::RefusedProtocolVersion | ConnectReturnCode::UnsupportedProtocolVersion => {
            Refusal::Version
        }
        ConnectReturnCode::BadClientId | ConnectReturnCode::ClientIdentifierNotValid => Refusal::ClientId,
        ConnectReturnCode::BadUserNamePassword => Refusal::Credentials,
        ConnectReturnCode::NotAuthorized => Refusal::NotAuthorized,
        ConnectReturnCode::Banned => Refusal::Banned,
        ConnectReturnCode::BadAuthenticationMethod => Refusal::Method,
        ConnectReturnCode::UseAnotherServer | ConnectReturnCode::ServerMoved => Refusal::Moved,
        ConnectReturnCode::QuotaExceeded | ConnectReturnCode::ConnectionRateExceeded => Refusal::Quota,
        ConnectReturnCode::Success
        | ConnectReturnCode::ServiceUnavailable
        | ConnectReturnCode::ServerUnavailable
        | ConnectReturnCode::ServerBusy
        | ConnectReturnCode::UnspecifiedError
        | ConnectReturnCode::ImplementationSpecificError => Refusal::Unavailable,
        ConnectReturnCode::MalformedPacket
        | ConnectReturnCode::ProtocolError
        | ConnectReturnCode::TopicNameInvalid
        | ConnectReturnCode::PacketTooLarge
        | ConnectReturnCode::PayloadFormatInvalid
        | ConnectReturnCode::RetainNotSupported
        | ConnectReturnCode::QoSNotSupported => Refusal::Packet,
    }
}

fn dismissal(code: DisconnectReasonCode) -> Dismissal {
    match code {
        DisconnectReasonCode::SessionTakenOver => Dismissal::TakenOver,
        DisconnectReasonCode::NotAuthorized => Dismissal::NotAuthorized,
        DisconnectReasonCode::UseAnotherServer | DisconnectReasonCode::ServerMoved => Dismissal::Moved,
        DisconnectReasonCode::TopicFilterInvalid
        | DisconnectReasonCode::SharedSubscriptionNotSupported
        | DisconnectReasonCode::SubscriptionIdentifiersNotSupported
        | DisconnectReasonCode::WildcardSubscriptionsNotSupported => Dismissal::Unsupported,
        DisconnectReasonCode::ServerShuttingDown => Dismissal::ShuttingDown,
        DisconnectReasonCode::AdministrativeAction => Dismissal::Administrator,
        DisconnectReasonCode::ServerBusy
        | DisconnectReasonCode::MessageRateTooHigh
        | DisconnectReasonCode::QuotaExceeded
        | DisconnectReasonCode::ConnectionRateExceeded => Dismissal::Quota,
        DisconnectReasonCode::KeepAliveTimeout => Dismissal::KeepAlive,
        _ => Dismissal::Other,
    }
}
