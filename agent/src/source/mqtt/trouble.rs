//! What can go wrong between us and a broker, and what a person can do about it.
//!
//! None of it ends the source: each trouble has a state in the status, and the next attempt comes after a pause.

use std::io;

use super::link::MAX_PAYLOAD_BYTES;
use crate::source::State;
use crate::{secret, tls};

/// Why a connection failed or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("cannot read the password")]
    Password(#[source] secret::Error),
    #[error("cannot set up TLS")]
    Tls(#[source] tls::Error),
    #[error(
        "client_id is empty, so the broker cannot keep a session for us; set one that no other client has"
    )]
    NoClientId,
    #[error("cannot connect; check that host and port are the broker's, and that it runs")]
    Unreachable(#[source] io::Error),
    #[error(
        "no answer in time; check that an MQTT broker listens there, and whether it expects TLS (mqtts://)"
    )]
    NoAnswer,
    #[error("TLS handshake failed; check that the port is the broker's TLS port")]
    Handshake(#[source] rustls::Error),
    #[error(
        "the broker's certificate is not trusted; set tls.ca_file to the CA that signed it, and use a host name that it was issued for"
    )]
    NotTrusted(#[source] rustls::Error),
    #[error("the broker refused our TLS certificate; check tls.cert_file and tls.key_file")]
    NotTrustedThere(#[source] rustls::Error),
    #[error("the broker refused the connection: {0}")]
    Refused(Refusal),
    #[error("the broker closed the connection{}", .0.hint())]
    Closed(Stage),
    #[error("the broker ended the connection: {0}")]
    Dismissed(Dismissal),
    #[error(
        "the broker sends a packet of {packet_bytes} bytes; payloads of up to {} are read. A broker that speaks 3.1.1 sends \
         it again at each connect: remove it there, have the broker limit its packets, or set protocol = \"5\"",
        MAX_PAYLOAD_BYTES
    )]
    PacketTooLarge { packet_bytes: usize },
    #[error(
        "the broker sent what is no valid MQTT here ({what}); check that protocol is the broker's version"
    )]
    Protocol { what: String },
    #[error(
        "the broker released a QoS 2 message of an earlier session; it is answered at the next connection"
    )]
    UnknownRelease,
    #[error("the broker answers no more")]
    Silent,
    #[error("the broker does not answer our subscription")]
    NoSuback,
    #[error("the broker sent more messages than there are packet identifiers without waiting for their acks")]
    TooManyInFlight,
}

/// How far a connection had come when it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// We had no CONNACK.
    Connecting,
    /// We had no answer to a SUBSCRIBE.
    Subscribing,
    /// All was well, for a moment.
    Fresh,
    /// All was well for some time.
    Settled,
}

impl Stage {
    fn hint(self) -> &'static str {
        match self {
            Self::Connecting => {
                " before it took us; check that the port is not for TLS only or asks for a client certificate, and that \
                 protocol is a version it speaks"
            }
            Self::Subscribing => {
                " instead of answering our subscription; check that this client may subscribe to its topics, and that no \
                 other client uses the same client_id"
            }
            Self::Fresh => " at once; check that no other client uses the same client_id",
            Self::Settled => "",
        }
    }
}

/// Why a broker refused a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it does not speak this version of MQTT; set protocol to \"3.1.1\" or \"5\"")]
    Version,
    #[error("it does not accept the client identifier; set client_id to one that it allows")]
    ClientId,
    #[error("bad user name or password; check username and password")]
    Credentials,
    #[error(
        "not authorized; check username and password, and what the broker allows this user and client_id"
    )]
    NotAuthorized,
    #[error("this client is banned; lift the ban at the broker")]
    Banned,
    #[error("it asks for another way to log in; use a user with a password or a client certificate")]
    Method,
    #[error("it has moved to another address; change url")]
    Moved,
    #[error("it is not available at the moment")]
    Unavailable,
    #[error("too many connections or too much traffic at the moment")]
    Quota,
    #[error("it does not like our CONNECT packet")]
    Packet,
}

/// Why a broker (MQTT 5) sent DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Dismissal {
    #[error("another client has connected with our client_id; give each client its own")]
    TakenOver,
    #[error("not authorized; check what the broker allows this user and client_id")]
    NotAuthorized,
    #[error("it has moved to another address; change url")]
    Moved,
    #[error("it does not support what we subscribe to; check the subscriptions' topics")]
    Unsupported,
    #[error("it is shutting down")]
    ShuttingDown,
    #[error("an administrator did it")]
    Administrator,
    #[error("too much traffic, or too many connections")]
    Quota,
    #[error("it missed our pings")]
    KeepAlive,
    #[error("it gave no reason that helps")]
    Other,
}

impl Trouble {
    /// The state that the source is in while this lasts.
    pub(super) fn state(&self) -> State {
        match self {
            Self::Password(_)
            | Self::Tls(_)
            | Self::NoClientId
            | Self::NotTrusted(_)
            | Self::NotTrustedThere(_) => State::Misconfigured,
            Self::Refused(refusal) => refusal.state(),
            Self::Dismissed(dismissal) => dismissal.state(),
            Self::PacketTooLarge { .. } => State::PacketTooLarge,
            Self::Unreachable(_)
            | Self::NoAnswer
            | Self::Handshake(_)
            | Self::Closed(_)
            | Self::Protocol { .. }
            | Self::UnknownRelease
            | Self::Silent
            | Self::NoSuback
            | Self::TooManyInFlight => State::Disconnected,
        }
    }

    /// What an error of the socket means; `stage` is how far the connection had come as far as the link knows.
    pub(super) fn from_io(error: io::Error, stage: Stage) -> Self {
        let error = match error.downcast::<rustls::Error>() {
            Ok(tls) => return Self::from_tls(tls),
            Err(error) => error,
        };
        let is_closed = matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        );
        if is_closed { Self::Closed(stage) } else { Self::Unreachable(error) }
    }

    /// What an error of TLS means.
    pub(super) fn from_tls(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                Self::NotTrusted(error)
            }
            rustls::Error::AlertReceived(_) => Self::NotTrustedThere(error),
            other => Self::Handshake(other),
        }
    }
}

impl Refusal {
    fn state(self) -> State {
        match self {
            Self::Version
            | Self::ClientId
            | Self::Credentials
            | Self::NotAuthorized
            | Self::Banned
            | Self::Method
            | Self::Moved
            | Self::Packet => State::Misconfigured,
            Self::Unavailable | Self::Quota => State::Disconnected,
        }
    }
}

impl Dismissal {
    fn state(self) -> State {
        match self {
            Self::TakenOver | Self::NotAuthorized | Self::Moved | Self::Unsupported => State::Misconfigured,
            Self::ShuttingDown | Self::Administrator | Self::Quota | Self::KeepAlive | Self::Other => {
                State::Disconnected
            }
        }
    }
}
