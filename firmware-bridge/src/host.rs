//! The host's half of the link: a state machine without a line, a clock or a disk of its own.
//!
//! Bytes and the time go in; what nodes say comes out, each record once and in order. Whoever uses it stores the records
//! and then says so ([`Host::durable`]); only then they are acknowledged. A [`Position`] per node is all that has to survive a
//! crash: store the last one in the transaction that stores the records, and hand them to [`Host::new`].
//!
//! | what happens | what the host does |
//! |---|---|
//! | a record comes again, since its ack was lost | drops it, acknowledges again |
//! | a record is missing | asks for it; later ones are dropped, and come again |
//! | the node says that records will never come | declares a [`Gap`] |
//! | a record of a node or schema that it does not know (it was started again) | asks for a Hello |
//! | the node was reset | begins a new order of numbers; what the node had not delivered is lost with its memory |
//! | the host crashes before the record is durable | it was not acknowledged, so it comes again |
//! | the host crashes between durable and ack | it comes again, and is recognised by the position |
//! | garbage | counts it |
//!
//! ```
//! use firmware_bridge::host::{Happening, Host, Now, Settings};
//!
//! let mut host = Host::new(Settings::default(), []);
//! let now = Now { monotonic_us: 5, wall_us: 1_795_000_000_000_000, is_synced: true };
//! let mut input: &[u8] = b"whatever the port had";
//! while let Some(happening) = host.next(&mut input, &now) {
//!     if let Happening::Sample(sample) = happening {
//!         // Store it together with `sample.position`; when that is durable:
//!         host.durable(&sample.position);
//!     }
//! }
//! let mut output = Vec::new();
//! host.transmit(&now, &mut output); // Write all of it to the port.
//! ```

pub mod clock;
mod happening;
mod peer;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::string::String;
use std::sync::Arc;
use std::vec::Vec;

use crate::bounded::Text;
use crate::codec::{Before, Decoded, Decoder, HOST_DECODER_BYTES, Message, encode};
use crate::frame::{
    Ack, Event, FromNode, Hello, Level, MAX_HOST_WIRE_BYTES, MAX_WINDOW, Record, Resend, SampleSeq, Tag,
    Time, Unusable, VERSION, Welcome,
};
use crate::value::unpack;

use peer::{Peer, Place};

pub use happening::{Gap, GapReason, Happening, NodeEvent, Position, Sample};
pub use peer::{Node, NodeChannel};
pub use settings::{Confirm, Counts, Recognition, Settings};

/// The time, as the caller's clocks show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds of a clock that is never set.
    pub monotonic_us: u64,
    /// Microseconds since the Unix epoch, UTC.
    pub wall_us: i64,
    /// Whether that is true enough to tell it to nodes.
    pub is_synced: bool,
}

/// The host's half of a line.
#[derive(Debug)]
pub struct Host {
    decoder: Decoder<HOST_DECODER_BYTES>,
    core: Core,
}

/// All but the decoder, in which what is being read lies.
#[derive(Debug)]
struct Core {
    settings: Settings,
    peer: Option<Peer>,
    /// Nodes that were here before: what they sent may still become durable.
    away: Vec<Peer>,
    /// How far each node is durable, and its last turn.
    known: HashMap<Arc<str>, (Position, u64)>,
    /// Counts whatever shows that a node is there: who has the lowest was silent for longest.
    turn: u64,
    lives: u32,
    /// What happened together with what was given out last.
    held: Option<Happened>,
    /// The text of the last log line.
    text: String,
    due: Due,
    counts: Counts,
}

/// What happened, without what is borrowed.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "as above")]
enum Happened {
    Hello(Arc<Node>),
    Sample(Sample),
    Event(NodeEvent),
    Gap(Gap),
    Log { level: Level, uptime_ms: u64 },
}

/// What is to be said, and when it was said last.
#[derive(Debug, Default)]
struct Due {
    welcome: bool,
    ack: bool,
    /// A record that is to be asked for.
    resend: Option<SampleSeq>,
    /// The one that was asked for, and when.
    resend_asked: Option<(SampleSeq, u64)>,
    hello: bool,
    hello_asked_us: Option<u64>,
    /// When to ask for the time.
    time_at_us: Option<u64>,
    /// The question that is open: its stamp, and when it went out.
    time_asked: Option<(u32, u64)>,
    stamp: u32,
}

impl Host {
    /// The host of one line. `known` is how far each node's records are durable, who was silent for longest first.
    #[must_use]
    pub fn new(settings: Settings, known: impl IntoIterator<Item = Position>) -> Self {
        let known = known.into_iter().zip(1..);
        let known: HashMap<_, _> =
            known.map(|(position, turn)| (position.node.clone(), (position, turn))).collect();
        let core = Core {
            settings,
            peer: None,
            away: Vec::new(),
            turn: known.len() as u64,
            known,
            lives: 0,
            held: None,
            text: String::new(),
            // Whoever is there may be at work already, and need not have anything to say for hours.
            due: Due { hello: true, ..Due::default() },
            counts: Counts::default(),
        };
        Self { decoder: Decoder::new(), core }
    }

    /// Takes bytes off the beginning of `input` until something happened; `None` when they are used up.
    pub fn next(&mut self, input: &mut &[u8], now: &Now) -> Option<Happening<'_>> {
        let happened = loop {
            if let Some(held) = self.core.held.take() {
                break held;
            }
            let happened = match self.decoder.next(input)? {
                Decoded::Body(body) => self.core.hear(body, now),
                Decoded::Garbage { bytes } => {
                    self.core.counts.garbage += 1;
                    self.core.counts.garbage_bytes += u64::from(bytes);
                    self.core.lose_thread();
                    None
                }
            };
            if let Some(happened) = happened {
                break happened;
            }
        };
        Some(match happened {
            Happened::Hello(node) => Happening::Hello(node),
            Happened::Sample(sample) => Happening::Sample(sample),
            Happened::Event(event) => Happening::Event(event),
            Happened::Gap(gap) => Happening::Gap(gap),
            Happened::Log { level, uptime_ms } => Happening::Log { level, uptime_ms, text: &self.core.text },
        })
    }

    /// That record and all before it are durable, gaps included. The node will be told.
    pub fn durable(&mut self, position: &Position) {
        self.core.durable(position);
    }

    /// What was given out and is not durable yet will not become so: it is to come again.
    pub fn retract(&mut self) {
        if let Some(peer) = &mut self.core.peer {
            peer.retract();
            self.core.due.resend = peer.is_two_way().then(|| peer.expected());
            self.core.due.resend_asked = None;
        }
        self.core.held = None;
    }

    /// The port was closed, and may lead to another node when it is opened again. What was given out may still become
    /// durable.
    pub fn disconnected(&mut self) {
        self.core.counts = self.counts();
        self.decoder.reset();
        self.core.lose_thread();
        self.core.due.hello = true;
        self.core.due.hello_asked_us = None;
        self.core.due.time_asked = None;
    }

    /// Appends what is to be said to `out`: write all of it to the port. Call it when something happened or became durable,
    /// and at [`Host::next_transmit_us`].
    pub fn transmit(&mut self, now: &Now, out: &mut Vec<u8>) {
        self.core.transmit(now, out);
    }

    /// When [`Host::transmit`] has something to say next, if nothing else happens; by the monotonic clock.
    #[must_use]
    pub fn next_transmit_us(&self) -> Option<u64> {
        let due = &self.core.due;
        if due.welcome || due.ack || due.resend.is_some() || due.hello {
            return Some(0);
        }
        due.time_at_us
    }

    /// The node at the other end, as soon as it has said hello.
    #[must_use]
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.core.peer.as_ref().map(|peer| &peer.node)
    }

    /// Whether a record of the node at the other end that we took before would be recognised, if it came again.
    #[must_use]
    pub fn recognition(&self) -> Recognition {
        self.core.peer.as_ref().map_or(Recognition::Certain, |peer| peer.recognition)
    }

    /// How much slower the node's clock is than ours; see [`clock::NodeClock::drift`].
    #[must_use]
    pub fn drift(&self) -> Option<f64> {
        self.core.peer.as_ref().map(|peer| peer.clock.drift())
    }

    /// How far each node that is known is durable: what has to survive a crash.
    pub fn known(&self) -> impl Iterator<Item = &Position> {
        self.core.known.values().map(|(position, _)| position)
    }

    /// What went over the line. Text has no zero byte that would end it, and is garbage nevertheless.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let garbage_bytes = self.core.counts.garbage_bytes + u64::from(self.decoder.hopeless_bytes());
        Counts { garbage_bytes, ..self.core.counts }
    }
}

impl Core {
    fn hear(&mut self, body: &[u8], now: &Now) -> Option<Happened> {
        self.counts.frames += 1;
        match FromNode::parse(body) {
            Ok(FromNode::Hello(hello)) if hello.acked > SampleSeq::LAST => {
                self.counts.unusable += 1;
                None
            }
            Ok(FromNode::Hello(hello)) => self.greet(&hello, now),
            Ok(FromNode::Record(tag, record, content)) => self.record(tag, &record, content, now),
            Ok(FromNode::Next(next, content)) => match self.peer.as_ref().map(|peer| peer.expand(&next)) {
                Some(Some((seq, uptime_ms))) => self.place(Tag::SAMPLE, seq, uptime_ms, content, now),
                Some(None) => {
                    self.counts.early += 1;
                    self.ask_for_missing(now);
                    None
                }
                None => self.stranger(now),
            },
            Ok(FromNode::Dropped(dropped)) if dropped.up_to > SampleSeq::LAST => {
                self.counts.unusable += 1;
                None
            }
            Ok(FromNode::Dropped(dropped)) => {
                let Some(peer) = self.peer.as_mut().filter(|peer| peer.context == dropped.context) else {
                    return self.stranger(now);
                };
                let first = peer.give_up(dropped.up_to);
                // The node waits for an answer, also if we have all of them.
                self.due.ack |= first.is_none() && peer.is_two_way();
                let wall_us = peer.clock.last_wall_us().unwrap_or(0);
                let position = peer.position(dropped.up_to, wall_us);
                first.map(|first| Happened::Gap(Gap { first, position, reason: GapReason::Dropped }))
            }
            Ok(FromNode::Clock(clock)) => {
                let asked = self.due.time_asked.take_if(|(stamp, _)| *stamp == clock.stamp);
                if let (Some((_, sent_us)), Some(peer)) = (asked, &mut self.peer) {
                    peer.clock.exchanged(clock.uptime_ms, sent_us, now.monotonic_us);
                }
                None
            }
            Ok(FromNode::Log(log)) => {
                self.text.clear();
                self.text.push_str(log.text.as_str());
                Some(Happened::Log { level: log.level, uptime_ms: log.uptime_ms })
            }
            Err(Unusable::Unknown(_) | Unusable::Malformed(_)) => {
                self.counts.unusable += 1;
                None
            }
        }
    }

    /// A node says who it is.
    fn greet(&mut self, hello: &Hello<'_>, now: &Now) -> Option<Happened> {
        let node = Node::of(hello);
        let is_here = |peer: &mut Peer| peer.node.id == node.id;
        let is_another = self.peer.as_mut().is_none_or(|peer| !is_here(peer));
        if is_another && !self.make_room(&node.id) {
            self.counts.refused += 1;
            return None;
        }
        let before = self.peer.take_if(is_here).or_else(|| self.away.extract_if(.., is_here).next());
        self.away.extend(self.peer.take());
        let mut is_news = true;
        let peer = match before {
            Some(mut peer) if peer.is_still(hello) => {
                is_news = peer.greeted(node) || is_another;
                peer
            }
            before => {
                self.lives = self.lives.wrapping_add(1);
                // One that we have met ourselves we know better than from what was stored.
                let stored = self.known.get(&node.id).map(|(position, _)| position);
                let known = stored.filter(|stored| before.is_none() && is_life_of(stored, hello));
                let session = self.settings.session.wrapping_add(self.lives);
                let is_stranger = before.is_none() && stored.is_none();
                let mut peer = Peer::new(hello, node, session, self.lives, known);
                if is_stranger {
                    let unconfirmed = hello.next.before().0.saturating_sub(hello.acked.0);
                    peer.recognition = Recognition::Doubtful { unconfirmed };
                }
                // A new life begins at 0, and not before the last one.
                let last = match &before {
                    Some(before) => before.clock.last_wall_us().map(|wall_us| (0, wall_us)),
                    None => known
                        .map(|known| (known.uptime_ms, known.wall_us))
                        .or(stored.map(|stored| (0, stored.wall_us))),
                };
                peer.keep_order(last);
                peer
            }
        };
        let peer = self.peer.insert(peer);
        peer.clock.arrived(hello.uptime_ms, now.monotonic_us);
        self.turn += 1;
        if let Some((_, turn)) = self.known.get_mut(&peer.node.id) {
            *turn = self.turn;
        }
        self.due.welcome = peer.is_two_way();
        // What was owed to whoever was here before; the Welcome says how far this one is acknowledged.
        self.due.ack = false;
        self.due.resend_asked = None;
        self.due.resend = None;
        self.due.time_at_us = peer.is_two_way().then_some(0);
        is_news.then(|| Happened::Hello(peer.node.clone()))
    }

    /// Room among the nodes that were here before, for the one that is here now, when `id` takes its place. False if there is none:
    /// what all of them sent may still become durable, and who forgot that would take it again.
    fn make_room(&mut self, id: &str) -> bool {
        let is_returning = self.away.iter().any(|peer| *peer.node.id == *id);
        if self.peer.is_none() || is_returning || self.away.len() < self.settings.max_nodes {
            return true;
        }
        let confirm = self.settings.confirm;
        let settled = self.away.iter().position(|peer| confirm == Confirm::Never || peer.is_settled());
        settled.map(|at| self.away.remove(at)).is_some()
    }

    fn record(&mut self, tag: Tag, record: &Record, content: &[u8], now: &Now) -> Option<Happened> {
        if self.peer.as_ref().is_none_or(|peer| peer.context != record.context) {
            return self.stranger(now);
        }
        self.place(tag, record.seq, record.uptime_ms, content, now)
    }

    /// Takes the record if it is the one that comes next.
    fn place(
        &mut self,
        tag: Tag,
        seq: SampleSeq,
        uptime_ms: u64,
        content: &[u8],
        now: &Now,
    ) -> Option<Happened> {
        let peer = self.peer.as_mut()?;
        if seq > SampleSeq::LAST {
            self.counts.unusable += 1;
            return None;
        }
        let lost = match peer.see(seq, uptime_ms) {
            Place::InOrder => None,
            Place::Before => {
                self.counts.repeated += 1;
                self.due.ack = peer.is_two_way();
                return None;
            }
            Place::Beyond(_) if peer.is_two_way() => {
                self.counts.early += 1;
                self.ask_for_missing(now);
                return None;
            }
            Place::Beyond(first) => Some(first),
        };
        if !peer.is_two_way() {
            peer.clock.arrived(uptime_ms, now.monotonic_us);
        }
        let wall_us = peer.clock.wall_us(uptime_ms, now);
        let position = peer.position(seq, wall_us);
        peer.advance(seq);
        let taken = read(tag, content, peer, position);
        match lost {
            None => Some(taken),
            Some(first) => {
                self.held = Some(taken);
                let position = peer.position(seq.before(), wall_us);
                Some(Happened::Gap(Gap { first, position, reason: GapReason::Lost }))
            }
        }
    }

    /// Asks for the record that comes next, unless the answer may still be on its way.
    fn ask_for_missing(&mut self, now: &Now) {
        let Some(peer) = self.peer.as_ref().filter(|peer| peer.is_two_way()) else { return };
        let expected = peer.expected();
        let is_asked = self.due.resend_asked.is_some_and(|(asked, at_us)| {
            asked == expected && now.monotonic_us < at_us.saturating_add(self.settings.ask_again_us)
        });
        if !is_asked {
            self.due.resend = Some(expected);
        }
    }

    fn lose_thread(&mut self) {
        if let Some(peer) = &mut self.peer {
            peer.lose_thread();
        }
    }

    /// Something came from a node, or of a schema, that we do not know.
    fn stranger(&mut self, now: &Now) -> Option<Happened> {
        self.counts.strange += 1;
        self.lose_thread();
        let is_asked = self
            .due
            .hello_asked_us
            .is_some_and(|at_us| now.monotonic_us < at_us.saturating_add(self.settings.ask_again_us));
        self.due.hello |= !is_asked;
        None
    }

    fn durable(&mut self, position: &Position) {
        if let Some(peer) = self.peer.as_mut().filter(|peer| peer.life == position.life) {
            peer.settle(position);
            self.due.ack = peer.is_two_way();
        } else if let Some(peer) = self.away.iter_mut().find(|peer| peer.life == position.life) {
            peer.settle(position);
        }
        self.turn += 1;
        self.known.insert(position.node.clone(), (position.clone(), self.turn));
        while self.known.len() > self.settings.max_nodes.max(1)
            && let Some((oldest, _)) = self.known.iter().min_by_key(|(_, (_, turn))| *turn)
        {
            let oldest = oldest.clone();
            self.known.remove(&oldest);
            self.counts.forgotten += 1;
        }
    }

    fn transmit(&mut self, now: &Now, out: &mut Vec<u8>) {
        let wall_us = now.is_synced.then_some(now.wall_us);
        if std::mem::take(&mut self.due.hello) {
            self.due.hello_asked_us = Some(now.monotonic_us);
            say(Before::Unknown, Tag::REQUEST_HELLO, &(), out);
        }
        let Some(peer) = self.peer.as_ref().filter(|peer| peer.is_two_way()) else { return };
        let session = peer.session;
        // Even a number that the node itself told may be that of a life before, if it says the same boot twice.
        let acked = match self.settings.confirm {
            Confirm::Durable => peer.durable(),
            Confirm::Never => SampleSeq(0),
        };
        if std::mem::take(&mut self.due.welcome) {
            let welcome = Welcome {
                version: VERSION,
                session,
                context: peer.context,
                wall_us,
                window: self.settings.window.clamp(1, MAX_WINDOW),
                acked,
            };
            say(Before::Unknown, Tag::WELCOME, &welcome, out);
            self.due.ack = false;
        }
        if std::mem::take(&mut self.due.ack) && self.settings.confirm == Confirm::Durable {
            say(Before::Frame, Tag::ACK, &Ack { session, up_to: acked }, out);
        }
        if let Some(from) = self.due.resend.take() {
            self.due.resend_asked = Some((from, now.monotonic_us));
            say(Before::Frame, Tag::RESEND, &Resend { session, from }, out);
        }
        if self.due.time_at_us.is_some_and(|at_us| at_us <= now.monotonic_us) {
            self.due.stamp = self.due.stamp.wrapping_add(1);
            self.due.time_asked = Some((self.due.stamp, now.monotonic_us));
            self.due.time_at_us = Some(now.monotonic_us.saturating_add(self.settings.time_every_us));
            say(Before::Frame, Tag::TIME, &Time { stamp: self.due.stamp, wall_us }, out);
        }
    }
}

/// True if `known` can be of the life that says hello: the same boot, unless it has given fewer numbers, or forgotten our
/// acks and the time; then it was reset and says a boot that was used before.
fn is_life_of(known: &Position, hello: &Hello<'_>) -> bool {
    let has_forgotten = hello.acked == SampleSeq(0) && hello.uptime_ms < known.uptime_ms;
    known.boot == hello.boot && known.seq < hello.next && !(has_forgotten && known.seq > SampleSeq(0))
}

/// What a record says.
fn read(tag: Tag, content: &[u8], peer: &Peer, position: Position) -> Happened {
    if tag == Tag::SAMPLE
        && let Ok(values) = unpack(&peer.kinds, content)
    {
        return Happened::Sample(Sample { position, values });
    }
    if tag == Tag::EVENT
        && let Ok((Event { name, value }, _)) = postcard::take_from_bytes::<Event<'_>>(content)
    {
        return Happened::Event(NodeEvent { position, name: Text::as_str(&name).into(), value });
    }
    Happened::Gap(Gap { first: position.seq, position, reason: GapReason::Unreadable })
}

/// Appends a frame to `out`.
fn say(before: Before, tag: Tag, message: &impl Message, out: &mut Vec<u8>) {
    let mut frame = [0; MAX_HOST_WIRE_BYTES];
    // Cannot fail: no message of a host is longer.
    if let Ok(length) = encode(before, tag, message, &[], &mut frame) {
        out.extend_from_slice(frame.get(..length).unwrap_or_default());
    }
}
