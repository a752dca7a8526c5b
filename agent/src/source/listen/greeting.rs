//! How a client comes in: TLS, CONNECT, who it is, and whether there is a place for it.
//!
//! Nothing but bytes within limits and within seconds is taken from whoever has not been let in.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use super::answer::{Refusal, Welcome};
use super::clients::Entry;
use super::connection::Shared;
use super::fault::Fault;
use super::line::{Exchanged, Line, Reading};
use super::packet::{self, Connect, Frame, Hello, Start, Version};
use super::users::{Users, Verdict};
use crate::ingest::Peer;

/// From the first byte to the whole of a TLS handshake, and again of a CONNECT.
const GREETING: Duration = Duration::from_secs(10);
/// What a wrong password costs its sender beside argon2.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// A longer CONNECT is read only within [`LONG_CONNECTS_BYTES`]. Names, passwords and wills are commonly a tenth of it.
const LONG_CONNECT_BYTES: usize = 8 << 10;
/// What long CONNECTs of all clients together may take while they arrive and are looked at: of whoever has not been let in. Without it
/// two thousand connections took 400 MB.
pub(super) const LONG_CONNECTS_BYTES: usize = 16 * packet::MAX_CONNECT_BYTES;
/// Longer ids are refused: they are kept with every chunk's redelivery entries.
const MAX_CLIENT_ID_BYTES: usize = 256;

/// Finishes the TLS handshake.
pub(super) async fn handshake(
    acceptor: &TlsAcceptor,
    socket: TcpStream,
    shared: &Shared,
) -> Result<TlsStream<TcpStream>, Fault> {
    select! {
        () = shared.stop.cancelled() => Err(Fault::Stopping),
        shaken = timeout(GREETING, acceptor.accept(socket)) => {
            shaken.map_err(|_| Fault::Hesitant)?.map_err(Fault::Broken)
        }
    }
}

/// Reads the CONNECT and answers it: who comes in has a place, and its CONNACK is on the way.
pub(super) async fn welcome(
    line: &mut Line,
    shared: &Arc<Shared>,
) -> Result<(Box<Connect>, Entry, Peer), Fault> {
    // Its place is held until it is let in or refused.
    let (hello, _place) = timeout(GREETING, hello(line, shared)).await.map_err(|_| Fault::Hesitant)??;
    let mut connect = match hello {
        Hello::Connect(connect) => connect,
        Hello::OtherProtocol(words) => return Err(refuse(line, words, Refusal::Protocol)),
    };
    let version = connect.version;
    let admitted = admit(&connect, shared).await;
    if let Err(refusal) = admitted {
        return Err(refuse(line, version, refusal));
    }
    // A client without a name cannot be recognised: not even one that we give a name, for that is good for one connection.
    let peer = Peer::named(&shared.source.name, &connect.client_id);
    let mut assigned_id = None;
    if connect.client_id.is_empty() {
        connect.client_id = format!("auto-{}", uuid::Uuid::new_v4().simple());
        assigned_id = Some(connect.client_id.clone());
    }
    let entry = shared.clients.enter(&connect.client_id, connect.start);
    let mut entry = entry.map_err(|_| refuse(line, version, Refusal::Full))?;
    entry.alone().await;
    let session_present =
        shared.clients.session_present(&connect.client_id, &connect, &peer, &*shared.memory);
    version.write_welcome(Welcome { session_present, assigned_id }, &mut line.outbox);
    Ok((connect, entry, peer))
}

/// The CONNECT, and what it takes of [`LONG_CONNECTS_BYTES`].
async fn hello(line: &mut Line, shared: &Shared) -> Result<(Hello, Option<OwnedSemaphorePermit>), Fault> {
    let mut place = None;
    loop {
        if line.inbox.first().is_some_and(|byte| *byte != 0x10) {
            return Err(Fault::NoConnect);
        }
        match packet::frame(&line.inbox)? {
            Frame::Complete(length) => return Ok((packet::read_connect(&mut line.inbox, length)?, place)),
            Frame::Partial(bytes) if bytes > LONG_CONNECT_BYTES && place.is_none() => {
                let price = u32::try_from(bytes).unwrap_or(u32::MAX);
                let room = Arc::clone(&shared.long_connects).acquire_many_owned(price);
                select! {
                    () = shared.stop.cancelled() => return Err(Fault::Stopping),
                    room = room => place = room.ok(),
                }
                continue;
            }
            Frame::Partial(_) => {}
        }
        select! {
            () = shared.stop.cancelled() => return Err(Fault::Stopping),
            exchanged = line.exchange(Reading::Wanted) => match exchanged.map_err(Fault::Broken)? {
                Exchanged::Closed => return Err(Fault::Gone),
                Exchanged::Read | Exchanged::Wrote => {}
            },
        }
    }
}

async fn admit(connect: &Connect, shared: &Shared) -> Result<(), Refusal> {
    let id = &connect.client_id;
    // MQTT 3.1.1, section 3.1.3.1: a client without a name can have no session.
    let nameless_session = id.is_empty() && connect.version == Version::V4 && connect.start == Start::Resume;
    if nameless_session || id.len() > MAX_CLIENT_ID_BYTES || id.chars().any(char::is_control) {
        return Err(Refusal::ClientId);
    }
    if connect.asks_method {
        return Err(Refusal::Method);
    }
    if connect.will.as_ref().is_some_and(|will| !packet::is_topic(&will.topic)) {
        return Err(Refusal::WillTopic);
    }
    let checked = async {
        match &shared.users {
            None => Ok(()),
            Some(users) => authenticate(connect, users, shared).await,
        }
    };
    select! {
        () = shared.stop.cancelled() => Err(Refusal::Stopping),
        checked = timeout(GREETING, checked) => checked.unwrap_or(Err(Refusal::Busy)),
    }
}

async fn authenticate(connect: &Connect, users: &Users, shared: &Shared) -> Result<(), Refusal> {
    if let Some(reloaded) = users.refresh() {
        let error = reloaded.err().map(|error| error.to_string());
        match &error {
            None => info!(source = %shared.source.name, "the users file changed and was read again"),
            Some(error) => warn!(source = %shared.source.name, "the users of before stay: {error}"),
        }
        shared.report.send_modify(|report| report.last_error = error);
    }
    let login = connect.login.as_ref().filter(|login| !login.user.is_empty()).ok_or(Refusal::Anonymous)?;
    match users.verify(&login.user, &login.password).await {
        Verdict::Right => Ok(()),
        Verdict::Wrong => {
            sleep(REFUSAL_PAUSE).await;
            Err(Refusal::Credentials)
        }
    }
}

fn refuse(line: &mut Line, version: Version, refusal: Refusal) -> Fault {
    version.write_refusal(refusal, &mut line.outbox);
    Fault::Refused(refusal)
}
