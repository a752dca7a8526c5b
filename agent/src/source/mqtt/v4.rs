//! A link in MQTT 3.1.1.

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event as Raw, EventLoop, MqttOptions, NetworkOptions,
    Outgoing, Packet, PubAck, PubRec, Publish, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
    TlsConfiguration, Transport, mqttbytes,
};

use super::acks::{Ack, Acks, Receipt};
use super::link::{
    CONNECT_TIMEOUT, Event, Filter, Grant, Link, MAX_PACKET_BYTES, MAX_SENT_BYTES, Message,
    OUTGOING_IN_FLIGHT, Plan, Protection, REQUESTS, Releases, Requests, Session, Taken, Topic,
};
use super::trouble::{Refusal, Stage, Trouble};
use crate::ingest::{Delivery, Replayed, Resent};

/// A connection in MQTT 3.1.1.
pub(super) struct V4 {
    client: AsyncClient,
    events: EventLoop,
    /// How far it has come.
    stage: Stage,
    /// Why the connection ended, while what arrived before is still being handed out.
    ended: Option<Trouble>,
}

impl Link for V4 {
    type Requests = AsyncClient;

    /// One wakes the event loop; the others are written past the queue, many in one system call.
    const QUEUED_ACKS: usize = 1;

    fn open(plan: &Plan) -> Self {
        let mut options = MqttOptions::new(plan.client_id.as_str(), plan.host.as_str(), plan.port);
        options
            .set_clean_session(false)
            .set_manual_acks(true)
            .set_keep_alive(plan.keep_alive)
            .set_inflight(OUTGOING_IN_FLIGHT)
            .set_max_packet_size(MAX_PACKET_BYTES as usize, MAX_SENT_BYTES);
        if let Some((username, password)) = &plan.credentials {
            options.set_credentials(username, password);
        }
        if let Some(tls) = &plan.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
        }
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        events.set_network_options(network);
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
                    Ok(event) => {
                        self.stage = Stage::Settled;
                        return Ok(translate(event));
                    }
                    Err(error) => self.ended = Some(trouble(error, self.stage)),
                }
            }
            // What was read together with the end of the connection is as good as what came before.
            match self.events.state.events.pop_front() {
                Some(event @ Raw::Incoming(Packet::Publish(_))) => return Ok(translate(event)),
                Some(_) => {}
                None => return Err(self.ended.take().unwrap_or(Trouble::Closed(Stage::Settled))),
            }
        }
    }

    async fn send_acks(&mut self, acks: &mut Acks) -> Result<(), Trouble> {
        // An ack in the request queue is older than these: it goes first.
        if acks.queued() > 0 || acks.due().is_none() {
            return Ok(());
        }
        let Some(network) = self.events.network.as_mut() else { return Ok(()) };
        let written = tokio::time::timeout(CONNECT_TIMEOUT, async {
            while let Some(ack) = acks.take_due() {
                network.write(packet(ack)).await?;
            }
            network.flush().await
        });
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(state_trouble(error, self.stage)),
            Err(_elapsed) => Err(Trouble::Silent),
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
        let mut publish = Publish::from_bytes(String::new(), qos, bytes::Bytes::new());
        publish.pkid = ack.packet_id;
        Taken::from_result(&self.try_ack(&publish))
    }

    fn subscribe(&self, filters: &[Filter]) -> Taken {
        let filters =
            filters.iter().map(|filter| SubscribeFilter::new(filter.text.clone(), qos(filter.protection)));
        Taken::from_result(&self.try_subscribe_many(filters))
    }

    fn unsubscribe(&self, filter: &str) -> Taken {
        Taken::from_result(&self.try_unsubscribe(filter))
    }

    fn disconnect(&self) -> Taken {
        Taken::from_result(&self.try_disconnect())
    }
}

fn packet(ack: Ack) -> Packet {
    match ack.receipt {
        Receipt::Puback => Packet::PubAck(PubAck::new(ack.packet_id)),
        Receipt::Pubrec => Packet::PubRec(PubRec::new(ack.packet_id)),
    }
}

fn qos(protection: Protection) -> QoS {
    match protection {
        Protection::None => QoS::AtMostOnce,
        Protection::Acknowledged => QoS::AtLeastOnce,
    }
}

/// Makes rumqttc answer a PUBREL of any packet id, by letting it believe that it has seen each PUBLISH.
fn expect_every_release(events: &mut EventLoop) {
    for packet_id in 1..=u16::MAX {
        let mut publish = Publish::from_bytes(String::new(), QoS::ExactlyOnce, bytes::Bytes::new());
        publish.pkid = packet_id;
        let answer = events.state.handle_incoming_packet(Packet::Publish(publish));
        debug_assert!(matches!(answer, Ok(None)), "with manual acks nothing is answered");
        events.state.events.clear();
    }
}

fn translate(event: Raw) -> Event {
    match event {
        Raw::Incoming(Packet::Publish(publish)) => Event::Message(message(publish)),
        Raw::Outgoing(Outgoing::PubAck(_) | Outgoing::PubRec(_)) => Event::AckSent,
        Raw::Incoming(Packet::ConnAck(connack)) => {
            Event::Connected(if connack.session_present { Session::Resumed } else { Session::New })
        }
        Raw::Incoming(Packet::SubAck(suback)) => {
            Event::Subscribed(suback.return_codes.into_iter().map(grant).collect())
        }
        Raw::Incoming(Packet::UnsubAck(_)) => Event::Unsubscribed,
        Raw::Incoming(_) | Raw::Outgoing(_) => Event::Other,
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
        topic: Topic::Text(publish.topic),
        payload: publish.payload,
        delivery,
        replayed: if publish.retain { Replayed::FromRetained } else { Replayed::No },
        ack: receipt.map(|receipt| Ack { packet_id, receipt }),
    }
}

fn grant(code: SubscribeReasonCode) -> Grant {
    match code {
        SubscribeReasonCode::Success(QoS::AtMostOnce) => Grant::Granted(Protection::None),
        SubscribeReasonCode::Success(QoS::AtLeastOnce | QoS::ExactlyOnce) => {
            Grant::Granted(Protection::Acknowledged)
        }
        SubscribeReasonCode::Failure => Grant::Refused("no reason given; often missing permission"),
    }
}

fn trouble(error: ConnectionError, stage: Stage) -> Trouble {
    match error {
        ConnectionError::MqttState(error) => state_trouble(error, stage),
        ConnectionError::NetworkTimeout => Trouble::NoAnswer,
        ConnectionError::FlushTimeout => Trouble::Silent,
        ConnectionError::Tls(error) => tls_trouble(error),
        ConnectionError::Io(error) => Trouble::from_io(error, stage),
        ConnectionError::ConnectionRefused(code) => refused(code),
        ConnectionError::NotConnAck(_) => {
            Trouble::Protocol { what: "another packet than CONNACK".to_owned() }
        }
        ConnectionError::RequestsDone => Trouble::Closed(stage),
    }
}

fn refused(code: ConnectReturnCode) -> Trouble {
    Trouble::Refused(match code {
        ConnectReturnCode::RefusedProtocolVersion => Refusal::Version,
        ConnectReturnCode::BadClientId => Refusal::ClientId,
        ConnectReturnCode::BadUserNamePassword => Refusal::Credentials,
        ConnectReturnCode::NotAuthorized => Refusal::NotAuthorized,
        ConnectReturnCode::Success | ConnectReturnCode::ServiceUnavailable => Refusal::Unavailable,
    })
}

/// What an error of rumqttc's TLS means; the type is shared by both versions.
pub(super) fn tls_trouble(error: rumqttc::TlsError) -> Trouble {
    match error {
        rumqttc::TlsError::Io(error) => Trouble::from_io(error, Stage::Connecting),
        rumqttc::TlsError::TLS(error) => Trouble::from_tls(error),
        other => Trouble::from_tls(rustls::Error::General(other.to_string())),
    }
}

fn state_trouble(error: StateError, stage: Stage) -> Trouble {
    match error {
        StateError::ConnectionAborted => Trouble::Closed(stage),
        StateError::Io(error) | StateError::Deserialization(mqttbytes::Error::Io(error)) => {
            Trouble::from_io(error, stage)
        }
        StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(packet_bytes)) => {
            Trouble::PacketTooLarge { packet_bytes }
        }
        // We publish nothing: the only packet that can come unasked is the PUBREL of a resumed session.
        StateError::Unsolicited(_) => Trouble::UnknownRelease,
        StateError::AwaitPingResp => Trouble::Silent,
        other => Trouble::Protocol { what: other.to_string() },
    }
}
