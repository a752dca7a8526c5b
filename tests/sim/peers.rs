//! Those who send: a broker, and clients of the listener. At least once, with packet ids that are used again, a window of
//! messages in flight, connections that break at any moment and sessions that are lost.
//!
//! Modelled where the bytes of MQTT end and its promises begin: what comes over a connection is pushed into the very
//! inlet that the real sources push into, and acknowledged when that says that it is durable.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast::ingest::{Arrival, Delivery, Flushed, Inlet, Peer as Sender, Replayed, Resent};
use holdfast::source::{self, Settings, State as SourceState};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::world::{BEGINNING, Kind, Message, State, World};

/// How long a connection that ends waits for room, and for what it owes.
const DRAIN: Duration = Duration::from_secs(5);
/// The source that is a client of a broker.
pub(crate) const BROKER: &str = "plant";
/// The source that listens.
pub(crate) const LISTENER: &str = "direct";

/// A session at the broker, or a client of the listener.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) source: &'static str,
    client: String,
    devices: Vec<String>,
    window: usize,
    next_packet_id: u16,
    /// Not acknowledged, as far as it knows; in order.
    pub(crate) in_flight: VecDeque<(u16, usize)>,
    /// Not published yet.
    pub(crate) queue: VecDeque<usize>,
    link: Option<Link>,
    /// Whether the agent has a task for a connection of it.
    is_served: bool,
}

/// A connection. What is on its way when it breaks is lost.
#[derive(Clone, Debug)]
struct Link {
    wire: VecDeque<Packet>,
    wake: Arc<Notify>,
    /// Taken by the agent.
    is_accepted: bool,
}

/// What a peer finds when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    /// What it had in flight is sent again.
    Kept,
    /// Packet ids begin anew; what was in flight is gone, or published anew.
    Lost,
}

#[derive(Clone, Copy, Debug)]
enum Packet {
    SessionLost,
    Publish { message: usize, packet_id: Option<u16>, resent: Resent },
}

impl Peer {
    pub(crate) fn new(nth: usize, window: usize) -> Self {
        let (source, devices) = match nth {
            0 => (BROKER, (0..4).map(|n| format!("p{n}")).collect()),
            _ => (LISTENER, vec![format!("c{nth}")]),
        };
        Self {
            source,
            client: format!("client-{nth}"),
            devices,
            window,
            next_packet_id: 1,
            in_flight: VecDeque::new(),
            queue: VecDeque::new(),
            link: None,
            is_served: false,
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// All it had to say was acknowledged.
    pub(crate) fn is_done(&self) -> bool {
        self.queue.is_empty()
            && self.in_flight.is_empty()
            && self.link.as_ref().is_none_or(|l| l.wire.is_empty())
    }

    /// The next packet id that is free. They come round soon, as those of small devices do.
    fn packet_id(&mut self) -> u16 {
        let ids = u16::try_from(self.window + 3).expect("windows are small");
        loop {
            let id = self.next_packet_id;
            self.next_packet_id = id % ids + 1;
            if !self.in_flight.iter().any(|(taken, _)| *taken == id) {
                return id;
            }
        }
    }
}

/// A sensor has something to say.
pub(crate) fn say(state: &mut State, peer: usize, count: usize) {
    for _ in 0..count {
        let device = {
            let devices = &state.peers[peer].devices;
            devices[state.random.usize(..devices.len())].clone()
        };
        let kind = match state.random.u32(..30) {
            0 => Kind::Broken,
            1 => Kind::Empty,
            _ => Kind::Good,
        };
        let readings = match kind {
            Kind::Good if state.chance(10) => state.random.usize(2..5),
            Kind::Good => 1,
            Kind::Broken | Kind::Empty => 0,
        };
        let has_time = state.chance(90);
        let readings = (0..readings).map(|_| {
            let behind = state.random.i64(0..4_000_000);
            let at = has_time.then(|| BEGINNING + state.elapsed() - behind);
            (at, f64::from(state.random.i32(-1_000..1_000)) / 2.0)
        });
        let readings = readings.collect();
        let is_protected = !state.chance(5);
        let message = Message { peer, device, kind, readings, is_protected, order: None, is_acked: false };
        state.messages.push(message);
        state.peers[peer].queue.push_back(state.messages.len() - 1);
    }
    publish(state, peer);
}

/// Publishes as far as the window allows.
fn publish(state: &mut State, nth: usize) {
    let peer = &mut state.peers[nth];
    while peer.link.is_some()
        && peer.in_flight.len() < peer.window
        && let Some(message) = peer.queue.pop_front()
    {
        let said = &mut state.messages[message];
        said.order = Some(state.published);
        state.published += 1;
        let packet_id = said.is_protected.then(|| peer.packet_id());
        peer.in_flight.extend(packet_id.map(|id| (id, message)));
        let link = peer.link.as_mut().expect("it was there a moment ago");
        link.wire.push_back(Packet::Publish { message, packet_id, resent: Resent::No });
        link.wake.notify_one();
    }
}

/// Connects, in the session that there was or in a new one.
pub(crate) fn connect(world: &World, nth: usize, session: Session) {
    world.with(|state| {
        if state.peers[nth].link.is_some() {
            return;
        }
        state.tell("connect", &[nth as u64, u64::from(session == Session::Lost)]);
        let mut wire = VecDeque::new();
        if session == Session::Lost {
            state.peers[nth].next_packet_id = 1;
            let lost = std::mem::take(&mut state.peers[nth].in_flight);
            for (_, message) in lost.into_iter().rev() {
                // Gone with the session, or published anew by who sent it: then it is another message.
                if state.chance(50) {
                    let anew = Message { order: None, is_acked: false, ..state.messages[message].clone() };
                    state.messages.push(anew);
                    state.peers[nth].queue.push_front(state.messages.len() - 1);
                }
            }
            if state.peers[nth].source == BROKER {
                wire.push_back(Packet::SessionLost);
            }
        }
        let peer = &mut state.peers[nth];
        wire.extend(peer.in_flight.iter().map(|(id, message)| Packet::Publish {
            message: *message,
            packet_id: Some(*id),
            resent: Resent::Perhaps,
        }));
        peer.link = Some(Link { wire, wake: Arc::new(Notify::new()), is_accepted: false });
        publish(state, nth);
    });
    world.knock.notify_waiters();
}

/// The connection breaks; what is on its way is lost.
pub(crate) fn disconnect(state: &mut State, nth: usize) {
    if let Some(link) = state.peers[nth].link.take() {
        state.tell("disconnect", &[nth as u64, link.wire.len() as u64]);
        link.wake.notify_one();
    }
}

/// The agent is gone: so are all connections.
pub(crate) fn agent_gone(state: &mut State) {
    state.boot += 1;
    for nth in 0..state.peers.len() {
        disconnect(state, nth);
        state.peers[nth].is_served = false;
    }
}

/// The agent says that `message` is durable.
fn acked(state: &mut State, nth: usize, link: &Arc<Notify>, packet_id: u16, message: usize) {
    state.tell("ack", &[nth as u64, packet_id.into(), message as u64]);
    state.messages[message].is_acked = true;
    if !Connection::is_link(state, nth, link) {
        return;
    }
    if state.chance(2) {
        // It gets lost, and the connection with it.
        return disconnect(state, nth);
    }
    let peer = &mut state.peers[nth];
    match peer.in_flight.pop_front() {
        Some(oldest) if oldest == (packet_id, message) => publish(state, nth),
        other => state.violate(format!(
            "acks out of order: packet {packet_id} of message {message} is acknowledged, the oldest in flight is {other:?}"
        )),
    }
}

/// What is run in place of a source.
pub(crate) fn source(
    world: World,
    settings: &Settings,
    rooms: source::Rooms,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let name: &'static str = if settings.name() == BROKER { BROKER } else { LISTENER };
    Box::pin(async move {
        let mut connections = JoinSet::new();
        rooms.report.send_modify(|report| {
            report.settled = true;
            report.state = if name == LISTENER { SourceState::Connected } else { SourceState::Disconnected };
        });
        let boot = world.with(|state| state.boot);
        loop {
            let knock = world.knock.notified();
            while let Some((nth, link)) = world.with(|state| accept(state, name)) {
                let client = world.with(|state| state.peers[nth].client.clone());
                let inlet = rooms.intake.open(&rooms.source, Sender::named(name, &client));
                let connection =
                    Connection { world: world.clone(), boot, nth, link, inlet, owed: VecDeque::new() };
                let (stop, report) = (rooms.stop.clone(), rooms.report.clone());
                connections.spawn(async move {
                    if name == BROKER {
                        report.send_modify(|report| report.state = SourceState::Connected);
                    }
                    connection.serve(stop.cancelled()).await;
                    if name == BROKER {
                        report.send_modify(|report| report.state = SourceState::Disconnected);
                    }
                });
            }
            tokio::select! {
                biased;
                () = rooms.stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                () = knock => {}
            }
        }
        while connections.join_next().await.is_some() {}
    })
}

/// The next connection to be served, one of a peer at a time.
fn accept(state: &mut State, source: &str) -> Option<(usize, Arc<Notify>)> {
    let waits = |peer: &Peer| {
        peer.source == source && !peer.is_served && peer.link.as_ref().is_some_and(|link| !link.is_accepted)
    };
    let nth = state.peers.iter().position(waits)?;
    let peer = &mut state.peers[nth];
    peer.is_served = true;
    let link = peer.link.as_mut().expect("it was there a moment ago");
    link.is_accepted = true;
    link.wake.notify_one();
    Some((nth, Arc::clone(&link.wake)))
}

/// The agent's end of a connection.
struct Connection {
    world: World,
    boot: u64,
    nth: usize,
    /// Tells one connection of the peer from another.
    link: Arc<Notify>,
    inlet: Inlet,
    /// Position in the inlet, packet id and message of each ack to come.
    owed: VecDeque<(u64, u16, usize)>,
}

impl Connection {
    async fn serve(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut durable = self.inlet.durable();
        let link = Arc::clone(&self.link);
        let mut is_full = false;
        let mut is_stopping = false;
        while self.is_up() && !is_stopping {
            tokio::select! {
                biased;
                () = &mut stop => is_stopping = true,
                Ok(()) = durable.changed() => self.settle(*durable.borrow_and_update()),
                flushed = self.inlet.flushed(), if is_full => match flushed {
                    Ok(()) => is_full = false,
                    Err(_closed) => break,
                },
                () = link.notified(), if !is_full => match self.read() {
                    Some(full) => is_full = full,
                    None => break,
                },
            }
        }
        // What was read is handed over, so that a repeat on the next connection comes after it.
        let handed_over = timeout(DRAIN, self.inlet.flushed()).await;
        if is_stopping && handed_over.is_ok() {
            let owed = async {
                while !self.owed.is_empty() && self.is_up() && durable.changed().await.is_ok() {
                    let up_to = *durable.borrow_and_update();
                    self.settle(up_to);
                }
            };
            drop(timeout(DRAIN, owed).await);
        }
        self.world.with(|state| {
            if state.boot != self.boot {
                return;
            }
            if is_stopping && Self::is_link(state, self.nth, &self.link) {
                disconnect(state, self.nth);
            }
            state.peers[self.nth].is_served = false;
        });
        self.world.knock.notify_waiters();
    }

    fn is_link(state: &State, nth: usize, link: &Arc<Notify>) -> bool {
        state.peers[nth].link.as_ref().is_some_and(|now| Arc::ptr_eq(&now.wake, link))
    }

    fn is_up(&self) -> bool {
        self.world.with(|state| state.boot == self.boot && Self::is_link(state, self.nth, &self.link))
    }

    /// Acknowledges what is durable.
    fn settle(&mut self, durable: u64) {
        while let Some((_, packet_id, message)) = self.owed.pop_front_if(|owed| owed.0 <= durable) {
            self.world.with(|state| {
                if state.boot == self.boot {
                    acked(state, self.nth, &self.link, packet_id, message);
                }
            });
        }
    }

    /// Reads some of what came. True if there is no room for more; `None` if the agent takes nothing any more.
    fn read(&mut self) -> Option<bool> {
        let packets: Vec<(Packet, Option<Message>)> = self.world.with(|state| {
            if state.boot != self.boot || !Self::is_link(state, self.nth, &self.link) {
                return Vec::new();
            }
            let wire = state.peers[self.nth].link.as_ref().map_or(0, |link| link.wire.len());
            let count = if wire == 0 { 0 } else { state.random.usize(1..=wire) };
            let link = state.peers[self.nth].link.as_mut().expect("it is up");
            let taken: Vec<Packet> = link.wire.drain(..count).collect();
            if !link.wire.is_empty() {
                link.wake.notify_one();
            }
            let said = |packet: &Packet| match packet {
                Packet::Publish { message, .. } => Some(state.messages[*message].clone()),
                Packet::SessionLost => None,
            };
            taken.into_iter().map(|packet| (packet, said(&packet))).collect()
        });
        let padding = self.world.with(|state| state.plan.padding);
        for (packet, said) in packets {
            match packet {
                Packet::SessionLost => self.inlet.session_lost(),
                Packet::Publish { message, packet_id, resent } => {
                    let Some(said) = said else { continue };
                    let (topic, payload) = said.on_the_wire(message, padding);
                    let delivery = match packet_id {
                        Some(packet_id) => Delivery::Acknowledged { packet_id, resent },
                        None => Delivery::AtMostOnce,
                    };
                    let arrival = Arrival { topic: &topic, payload, delivery, replayed: Replayed::No };
                    self.inlet.push(&arrival);
                    self.owed.extend(packet_id.map(|id| (self.inlet.pushed(), id, message)));
                }
            }
        }
        match self.inlet.flush() {
            Ok(Flushed::All) => Some(false),
            Ok(Flushed::NoRoom) => Some(true),
            Err(_closed) => None,
        }
    }
}

impl Message {
    fn on_the_wire(&self, id: usize, padding: usize) -> (String, Bytes) {
        let object = |k: usize, (time, value): &(Option<i64>, f64)| {
            let time = time.map_or(String::new(), |time| format!(",\"ts\":{time}"));
            let padding = text(id, padding);
            format!("{{\"id\":{id},\"k\":{k},\"v\":{value}{time},\"pad\":\"{padding}\"}}")
        };
        let payload = match (self.kind, self.readings.as_slice()) {
            (Kind::Broken, _) => format!("{{\"id\":{id}"),
            (Kind::Empty, _) | (Kind::Good, []) => "{\"nothing\":null,\"no\":{}}".to_owned(),
            (Kind::Good, [one]) => object(0, one),
            (Kind::Good, many) => {
                let objects: Vec<String> = many.iter().enumerate().map(|(k, one)| object(k, one)).collect();
                format!("[{}]", objects.join(","))
            }
        };
        let has_time = self.readings.first().is_some_and(|(time, _)| time.is_some());
        let topic = if has_time { "timed" } else { "untimed" };
        (format!("{topic}/{}", self.device), payload.into())
    }
}

/// Text that hardly compresses, the same for the same message.
fn text(id: usize, length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(id as u64);
    std::iter::repeat_with(|| random.alphanumeric()).take(length).collect()
}
