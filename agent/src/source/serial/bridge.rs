//! What nodes say, as readings; and what is durable, as acknowledgements.
//!
//! The [`Host`] of `firmware-bridge` does the link; this is what it leaves to its user: readings out of samples, positions into
//! the commit that stores them, and back from there to the host.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use firmware_bridge::frame::{Level, SampleSeq};
use firmware_bridge::host::{Counts, Gap, GapReason, Happening, Host, Now, Position, Recognition, Settings};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::speaker::{Speaker, position};
use crate::clock::Clock;
use crate::ingest::Inlet;
use crate::reading::ClockState;
use crate::source::DeviceReport;
use crate::source::limiter::Limiter;
use crate::store::nodes::{MAX_NODES, Missed, NodePosition, Nodes};

/// Lines of nodes that are logged at once, and then one each so long: what a node says must not fill the log, nor wear out the flash.
/// `holdfast serial monitor` shows all of it.
const LOG_LINES: u32 = 20;
const LOG_EVERY: std::time::Duration = std::time::Duration::from_secs(30);
/// One line with nodes at its end; survives the port.
#[derive(Debug)]
pub(super) struct Bridge {
    source: Arc<str>,
    device: Option<Arc<str>>,
    host: Host,
    clock: Clock,
    /// The beginning of the monotonic time that the host is told.
    epoch: Instant,
    /// What was pushed and is not durable yet, by the count of the inlet.
    pending: VecDeque<(u64, Position)>,
    repeated: u64,
    refused: u64,
    /// Whether the books have forgotten a node of this line.
    has_forgotten: bool,
    speaker: Option<Speaker>,
    log: Limiter,
    devices: HashMap<Arc<str>, DeviceReport>,
}

/// What a piece of the stream brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// Frames whose checksum was right.
    pub(super) frames: u64,
    /// Of those, all after the last bytes that were none.
    pub(super) frames_since_garbage: u64,
    /// Bytes that were none.
    pub(super) garbage_bytes: u64,
    /// Whether a node said who it is.
    pub(super) has_greeted: bool,
    /// Pieces of whatever kind: what reading them costs.
    pub(super) pieces: u64,
}

impl Bridge {
    /// Goes on with nodes whose records are durable as the books say.
    pub(super) fn new(source: &Arc<str>, device: Option<Arc<str>>, nodes: &Nodes, clock: Clock) -> Self {
        let mut known: Vec<_> = nodes.of(source).collect();
        known.sort_by_key(|(_, books)| books.commit);
        let known = known.into_iter().flat_map(|(node, books)| {
            let NodePosition { boot, seq, uptime_ms, time } = books.position;
            let known_as = move |name| Position::stored(name, boot, SampleSeq(seq), uptime_ms, time.0);
            // A node without a name stands in the books by that of its line.
            let nameless = (*node == *source).then(|| known_as("".into()));
            [known_as(node.clone())].into_iter().chain(nameless)
        });
        // No fewer than the books have, and one for who is known by two names.
        let settings =
            Settings { session: fastrand::u32(..), max_nodes: MAX_NODES + 1, ..Settings::default() };
        Self {
            source: Arc::clone(source),
            device,
            host: Host::new(settings, known),
            clock,
            epoch: clock.monotonic(),
            pending: VecDeque::new(),
            repeated: 0,
            refused: 0,
            has_forgotten: nodes.forgotten(source).times > 0,
            speaker: None,
            log: Limiter::new(LOG_LINES, LOG_EVERY),
            devices: HashMap::new(),
        }
    }

    /// The port was closed.
    pub(super) fn disconnected(&mut self) {
        self.host.disconnected();
    }

    /// Takes what came. What it brings is pushed into `inlet`, not flushed.
    pub(super) fn take(&mut self, mut bytes: &[u8], inlet: &mut Inlet) -> Heard {
        let (now, before, mut has_greeted) = (self.now(), self.host.counts(), false);
        while let Some(happening) = self.host.next(&mut bytes, &now) {
            match happening {
                Happening::Hello(node) => {
                    let speaker = Speaker::new(&self.source, self.device.as_deref(), node);
                    let mut report = speaker.report();
                    if let Some(trouble) = self.doubt().or_else(|| speaker.misnomer(self.device.as_deref())) {
                        if self.log.allows(self.clock.monotonic()) {
                            warn!(source = %self.source, node = ?speaker.id.node, "{trouble}");
                        }
                        (report.last_error, report.failures) = (Some(trouble), 1);
                    }
                    if self.devices.len() >= MAX_NODES {
                        self.devices.clear();
                    }
                    self.devices.insert(speaker.id.node.clone(), report);
                    self.speaker = Some(speaker);
                    has_greeted = true;
                }
                Happening::Sample(sample) => {
                    let Some(speaker) = &mut self.speaker else { continue };
                    self.pending.push_back((inlet.pushed() + 1, sample.position.clone()));
                    inlet.push_measured(speaker.sample(&sample, &now));
                }
                Happening::Event(event) => {
                    let Some(speaker) = &mut self.speaker else { continue };
                    self.pending.push_back((inlet.pushed() + 1, event.position.clone()));
                    inlet.push_measured(speaker.event(&event, &now));
                }
                Happening::Gap(gap) => {
                    let Some(speaker) = &self.speaker else { continue };
                    if self.log.allows(self.clock.monotonic()) {
                        speaker.warn_of(&gap);
                    }
                    self.pending.push_back((inlet.pushed() + 1, gap.position.clone()));
                    inlet.push_missed(speaker.id.clone(), position(&gap.position), missed(&gap));
                }
                Happening::Log { level, uptime_ms, text } => {
                    if self.log.allows(self.clock.monotonic()) {
                        let node = self.speaker.as_ref().map_or("", |speaker| &speaker.id.node);
                        log(&self.source, node, level, uptime_ms, text);
                    }
                }
            }
        }
        let counts = self.host.counts();
        let repeated = counts.repeated - self.repeated;
        if repeated > 0 {
            self.repeated = counts.repeated;
            inlet.push_repeated(repeated);
        }
        // Each is counted once, whether it is logged or left out.
        let refused_before = std::mem::replace(&mut self.refused, counts.refused);
        if counts.refused > refused_before && self.log.allows(self.clock.monotonic()) {
            warn!(source = %self.source, "more nodes come to this line than can be told apart ({MAX_NODES}); others wait until what those sent is stored");
        }
        if let Some(left_out) = self.log.take_suppressed_when_due(self.clock.monotonic()) {
            warn!(source = %self.source, left_out, "nodes say more than is logged");
        }
        Heard { has_greeted, ..heard(&before, &counts) }
    }

    /// What is to be said of the node that has just said who it is, if it may be one that was forgotten.
    fn doubt(&self) -> Option<String> {
        let has_forgotten = self.has_forgotten || self.host.counts().forgotten > 0;
        match self.host.recognition() {
            Recognition::Doubtful { unconfirmed } if unconfirmed > 0 && has_forgotten => Some(format!(
                "more nodes came to this line than are remembered ({MAX_NODES}), and this is none of those; if it is no new one, some of \
                 the {unconfirmed} records that it has yet to deliver may be stored already"
            )),
            Recognition::Doubtful { .. } | Recognition::Certain => None,
        }
    }

    /// So many of what was pushed into the inlet are durable: the nodes will be told.
    pub(super) fn durable(&mut self, count: u64) {
        while let Some((_, position)) = self.pending.pop_front_if(|(nth, _)| *nth <= count) {
            // The last one of a node stands for those before it.
            let is_followed = self.pending.front().is_some_and(|(nth, next)| {
                *nth <= count
                    && Arc::ptr_eq(&next.node, &position.node)
                    && next.boot == position.boot
                    && next.seq > position.seq
            });
            if !is_followed {
                self.host.durable(&position);
            }
        }
    }

    /// Whether something that was pushed is not durable yet.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Appends what is to be said now.
    pub(super) fn transmit(&mut self, out: &mut Vec<u8>) {
        let now = self.now();
        self.host.transmit(&now, out);
    }

    /// When there is something to say, if nothing else happens.
    pub(super) fn next_transmit(&self) -> Option<Instant> {
        let at_us = self.host.next_transmit_us()?;
        Some(self.epoch + std::time::Duration::from_micros(at_us))
    }

    /// What is known of the nodes.
    pub(super) fn devices(&self) -> impl Iterator<Item = (&Arc<str>, &DeviceReport)> {
        self.devices.iter()
    }

    /// True once a node has said who it is.
    pub(super) fn has_met(&self) -> bool {
        self.speaker.is_some()
    }

    fn now(&self) -> Now {
        let monotonic = self.clock.monotonic().saturating_duration_since(self.epoch);
        Now {
            monotonic_us: u64::try_from(monotonic.as_micros()).unwrap_or(u64::MAX),
            wall_us: self.clock.wall().0,
            is_synced: self.clock.state() == ClockState::Synced,
        }
    }
}

fn missed(gap: &Gap) -> Missed {
    let count = gap.count();
    match gap.reason {
        GapReason::Dropped => Missed { dropped: count, ..Missed::default() },
        GapReason::Lost => Missed { lost: count, ..Missed::default() },
        GapReason::Unreadable => Missed { unreadable: count, ..Missed::default() },
    }
}

fn heard(before: &Counts, after: &Counts) -> Heard {
    let frames = after.frames - before.frames;
    Heard {
        frames,
        frames_since_garbage: frames,
        garbage_bytes: after.garbage_bytes - before.garbage_bytes,
        pieces: frames + after.garbage - before.garbage,
        has_greeted: false,
    }
}

/// A node's line for people. What it says is as hostile as anything that comes over a wire, so it is quoted.
fn log(source: &str, node: &str, level: Level, uptime_ms: u64, text: &str) {
    match level {
        Level::Error => error!(%source, ?node, uptime_ms, ?text, "a node says"),
        Level::Warn => warn!(%source, ?node, uptime_ms, ?text, "a node says"),
        Level::Info => info!(%source, ?node, uptime_ms, ?text, "a node says"),
        Level::Debug => debug!(%source, ?node, uptime_ms, ?text, "a node says"),
    }
}

#[cfg(test)]
mod tests {
    use firmware_bridge::frame::{Channel, MAX_NODE_WIRE_BYTES};
    use firmware_bridge::link::{Identity, Link, Settings as LinkSettings};
    use firmware_bridge::value::{Kind, Value as NodeValue};

    use super::*;
    use crate::ingest::inlet::Outcome;
    use crate::ingest::{Intake, Peer, SourceSpec};
    use crate::reading::{Reading, Timestamp};
    use crate::store::nodes::{NodeChange, NodeId};

    const CHANNELS: &[Channel<'static>] = &[Channel::new("n", "", Kind::Int)];

    /// A node took three samples, of which the books have two, and was told nothing: what is taken of it now, and how many it has
    /// yet to deliver then.
    fn taken_of(node: &str, known_as: &str) -> (u64, u64) {
        let (readings, left) = taken_at(10, node, known_as);
        (readings.len() as u64, left)
    }

    /// The same when the node's clock shows `now_ms`.
    fn taken_at(now_ms: u64, node: &str, known_as: &str) -> (Vec<Reading>, u64) {
        let mut nodes = Nodes::default();
        know(&mut nodes, known_as, 1);
        let (readings, left, _) = taken_with(&nodes, now_ms, node);
        (readings, left)
    }

    /// The books have two records of it.
    fn know(nodes: &mut Nodes, node: &str, commit: u64) {
        let id = NodeId { source: "press".into(), node: node.into() };
        let position = NodePosition { boot: 7, seq: 2, ..NodePosition::default() };
        nodes.apply(&NodeChange { id, position, missed: Missed::default() }, commit);
    }

    /// The same with these books; and what is wrong with the node.
    fn taken_with(nodes: &Nodes, now_ms: u64, node: &str) -> (Vec<Reading>, u64, Option<String>) {
        let mut link =
            Link::<1_024>::new(Identity::new(node, "1", 7, CHANNELS).unwrap(), LinkSettings::DEFAULT);
        (1..=3).for_each(|n| _ = link.sample(5, &[NodeValue::Int(n)]).unwrap());
        let (clock, source) = (Clock::system(), Arc::from("press"));
        let spec = SourceSpec {
            name: Arc::clone(&source),
            subscriptions: [].into(),
            max_payload_bytes: 0,
            in_flight: 0,
            kept_payload_bytes: 0,
        };
        let (intake, mut batches) = Intake::new(clock);
        let mut inlet = intake.open(&Arc::new(spec), Peer::NAMELESS);
        let mut bridge = Bridge::new(&source, None, nodes, clock);
        let mut buffer = [0; MAX_NODE_WIRE_BYTES];
        for _ in 0..4 {
            while let Some(frame) = link.transmit(now_ms, &mut buffer).unwrap() {
                bridge.take(frame, &mut inlet);
            }
            let mut out = Vec::new();
            bridge.transmit(&mut out);
            link.receive(now_ms, &out);
        }
        inlet.flush().unwrap();
        let readings = batches.try_recv().unwrap().items.into_iter().map(|item| match item.outcome {
            Outcome::Reading(reading) => reading,
            other => panic!("{other:?}"),
        });
        let (_, device) = bridge.devices().next().unwrap();
        (readings.collect(), link.unconfirmed(), device.last_error.clone())
    }

    #[tokio::test]
    async fn what_the_books_have_of_a_node_is_not_taken_again_also_if_it_has_no_name() {
        assert_eq!(taken_of("n1", "n1"), (1, 1));
        assert_eq!(taken_of("", "press"), (1, 1), "it is known by its line");
        assert_eq!(taken_of("press", "press"), (1, 1));
        assert_eq!(taken_of("n2", "n1"), (3, 3), "another one");
    }

    #[tokio::test]
    async fn of_more_nodes_than_can_be_remembered_none_is_forgotten_in_silence() {
        let mut nodes = Nodes::default();
        let names: Vec<String> = (0..=MAX_NODES).map(|n| format!("n{n}")).collect();
        for (name, commit) in names[..MAX_NODES].iter().zip(1..) {
            know(&mut nodes, name, commit);
        }
        let taken = |nodes: &Nodes, node: &str| {
            let (readings, _, trouble) = taken_with(nodes, 10, node);
            (readings.len(), trouble.is_some())
        };
        assert_eq!((taken(&nodes, "n0"), taken(&nodes, "n127")), ((1, false), (1, false)));
        assert_eq!(taken(&nodes, "new"), (3, false), "there is no doubt while all are remembered");
        know(&mut nodes, &names[MAX_NODES], 200);
        assert_eq!((taken(&nodes, "n1"), taken(&nodes, "n128")), ((1, false), (1, false)));
        assert_eq!(taken(&nodes, "n0"), (3, true), "it is told that these may be stored already");
    }

    #[tokio::test]
    async fn a_name_that_nobody_can_read_is_written_out_and_told() {
        for (name, device) in
            [("press-7", "press-7"), ("pr\u{e9}s\ns\u{1b}[2J\u{9b}", "pr\u{e9}s\\ns\\u{1b}[2J\\u{9b}")]
        {
            let mut nodes = Nodes::default();
            know(&mut nodes, name, 1);
            let (readings, left, trouble) = taken_with(&nodes, 10, name);
            assert_eq!((readings.len(), left), (1, 1), "it is known by the name that it says");
            assert_eq!(&*readings[0].origin.device, device);
            assert_eq!(trouble.is_some_and(|trouble| trouble.contains(device)), name != device);
        }
    }

    #[tokio::test]
    async fn times_are_those_that_can_be_written_whatever_a_node_says_of_its_clock() {
        for now_ms in [10, u64::MAX / 2_000, u64::MAX - 1_000_000] {
            let (readings, _) = taken_at(now_ms, "n2", "n1");
            let times: Vec<Timestamp> = readings.iter().map(|reading| reading.time).collect();
            assert!(times.iter().all(|time| (Timestamp::MIN..=Timestamp::MAX).contains(time)), "{times:?}");
        }
    }
}
