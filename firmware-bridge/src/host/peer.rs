//! What a host knows of the node at the other end: which records it has, which come next, which it may acknowledge.

use std::sync::Arc;
use std::vec::Vec;

use crate::frame::{Context, Flow, Hello, Next, SampleSeq, schema_hash};
use crate::value::Kind;

use super::clock::NodeClock;
use super::{Position, Recognition};

/// What a node said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub id: Arc<str>,
    /// The version of its firmware.
    pub firmware: Arc<str>,
    /// The version of the link that it speaks.
    pub version: u8,
    /// Which life of the node this is.
    pub boot: u32,
    /// Whether it hears us.
    pub flow: Flow,
    /// The hash of its schema.
    pub schema: u32,
    /// What it measures.
    pub channels: Arc<[NodeChannel]>,
}

/// One thing that a node measures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeChannel {
    /// Its name.
    pub name: Arc<str>,
    /// The unit of its values; empty if they have none.
    pub unit: Arc<str>,
    /// Which values it has.
    pub kind: Kind,
}

impl Node {
    pub(super) fn of(hello: &Hello<'_>) -> Self {
        let channels = hello.channels.as_slice().iter().map(|channel| NodeChannel {
            name: channel.name.as_str().into(),
            unit: channel.unit.as_str().into(),
            kind: channel.kind,
        });
        Self {
            id: hello.node.as_str().into(),
            firmware: hello.firmware.as_str().into(),
            version: hello.version,
            boot: hello.boot,
            flow: hello.flow,
            schema: schema_hash(hello.channels.as_slice()),
            channels: channels.collect(),
        }
    }

    /// What its records are marked with.
    pub(super) fn context(&self) -> Context {
        Context::of(&self.id, self.boot, self.schema)
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the one that comes next.
    InOrder,
    /// We have it already.
    Before,
    /// Others are missing before it, the first of which is this one.
    Beyond(SampleSeq),
}

/// The node at the other end.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: Arc<Node>,
    pub(super) kinds: Vec<Kind>,
    pub(super) context: Context,
    pub(super) session: u32,
    /// Tells positions of this life from those of one before that used the same boot.
    pub(super) life: u32,
    pub(super) clock: NodeClock,
    pub(super) recognition: Recognition,
    /// The record that comes next.
    expected: SampleSeq,
    /// All up to here is durable.
    durable: SampleSeq,
    /// When that was, by the node's clock and by ours.
    durable_times: Option<(u64, i64)>,
    /// The last record seen on the line, and its time: what a [`Next`] goes on from.
    seen: Option<(SampleSeq, u64)>,
    /// The time of the last record that was seen at all.
    uptime_ms: u64,
}

impl Peer {
    /// A node that has said hello; `known` is how far its records are durable, if this is the life that it knows.
    pub(super) fn new(
        hello: &Hello<'_>,
        node: Node,
        session: u32,
        life: u32,
        known: Option<&Position>,
    ) -> Self {
        // What another host has acknowledged will not come again.
        let durable = known.map_or(hello.acked, |known| known.seq);
        Self {
            kinds: node.channels.iter().map(|channel| channel.kind).collect(),
            context: node.context(),
            node: Arc::new(node),
            session,
            life,
            clock: NodeClock::default(),
            recognition: Recognition::Certain,
            expected: durable.next(),
            durable,
            durable_times: None,
            seen: None,
            uptime_ms: known.map_or(0, |known| known.uptime_ms),
        }
    }

    /// True if the node that says hello is this one and was not reset, also if it says a boot that was used before: then it
    /// has given fewer numbers, or forgotten our acks and the time.
    pub(super) fn is_still(&self, hello: &Hello<'_>) -> bool {
        let is_earlier = hello.uptime_ms < self.uptime_ms;
        let has_forgotten = hello.acked == SampleSeq(0) && self.durable > SampleSeq(0) && is_earlier;
        hello.boot == self.node.boot && hello.next >= self.expected && !has_forgotten
    }

    /// It says hello again. True if it says something else than before, such as another schema.
    pub(super) fn greeted(&mut self, node: Node) -> bool {
        // It goes on with a record in full.
        self.lose_thread();
        let is_news = *self.node != node;
        if is_news {
            self.kinds = node.channels.iter().map(|channel| channel.kind).collect();
            self.context = node.context();
            self.node = Arc::new(node);
        }
        is_news
    }

    pub(super) fn is_two_way(&self) -> bool {
        self.node.flow == Flow::TwoWay
    }

    /// The record that comes next.
    pub(super) fn expected(&self) -> SampleSeq {
        self.expected
    }

    /// All up to here is durable.
    pub(super) fn durable(&self) -> SampleSeq {
        self.durable
    }

    /// True if all that was taken of it is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.durable >= self.expected.before()
    }

    /// The position of record `seq`.
    pub(super) fn position(&self, seq: SampleSeq, wall_us: i64) -> Position {
        let (node, uptime_ms) = (self.node.id.clone(), self.uptime_ms);
        Position { node, boot: self.node.boot, seq, uptime_ms, wall_us, life: self.life }
    }

    /// The number and the time of a record in short; `None` if the one before it was not seen.
    pub(super) fn expand(&self, next: &Next) -> Option<(SampleSeq, u64)> {
        let (before, uptime_ms) = self.seen?;
        let seq = before.next();
        (next.mark == self.context.mark(seq))
            .then(|| (seq, uptime_ms.saturating_add(u64::from(next.after_ms))))
    }

    /// Whatever comes next does not follow what was seen: something was lost, or another node has spoken.
    pub(super) fn lose_thread(&mut self) {
        self.seen = None;
    }

    /// A record was seen on the line.
    pub(super) fn see(&mut self, seq: SampleSeq, uptime_ms: u64) -> Place {
        self.seen = Some((seq, uptime_ms));
        self.uptime_ms = uptime_ms;
        if seq < self.expected {
            return Place::Before;
        }
        if seq > self.expected {
            return Place::Beyond(self.expected);
        }
        Place::InOrder
    }

    /// The record that came next is taken, or given up.
    pub(super) fn advance(&mut self, to: SampleSeq) {
        self.expected = self.expected.max(to.next());
    }

    /// Records up to `up_to` will not come; returns the first one that we do not have, if there is one.
    pub(super) fn give_up(&mut self, up_to: SampleSeq) -> Option<SampleSeq> {
        let first = self.expected;
        self.advance(up_to);
        (first <= up_to).then_some(first)
    }

    /// Records up to `position` are durable.
    pub(super) fn settle(&mut self, position: &Position) {
        self.durable = self.durable.max(position.seq).min(self.expected.before());
        self.recognition = Recognition::Certain;
        self.durable_times = Some((position.uptime_ms, position.wall_us));
    }

    /// No record is placed before that: the node's time and ours.
    pub(super) fn keep_order(&mut self, times: Option<(u64, i64)>) {
        self.durable_times = times;
        self.clock.resume(times);
    }

    /// What was received and is not durable will not become so: it is to come again.
    pub(super) fn retract(&mut self) {
        self.expected = self.durable.next();
        self.seen = None;
        self.keep_order(self.durable_times);
    }
}
