//! What a broker handed to the agent, and what the agent acknowledged to it: overheard on the line (MQTT 3.1.1).
//!
//! A broker that is killed forgets what it acknowledged and hands out again what it had handed out. Neither is the agent's
//! doing, so behind a broker this is the measure, not what the sensors know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::journal::Mark;
use crate::proxy::{Tap, Taps, Way};

/// Shared by all connections.
#[derive(Clone, Debug, Default)]
pub struct Witness(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    handed_over: BTreeMap<Mark, Vec<HandOver>>,
    /// What came last under each packet id, on whichever connection, since the broker had no session.
    last: BTreeMap<[u8; 2], Mark>,
    acked: BTreeSet<Mark>,
}

/// One PUBLISH.
#[derive(Clone, Debug)]
struct HandOver {
    /// `None` with QoS 0.
    packet_id: Option<[u8; 2]>,
    is_dup: bool,
    /// What came under the same packet id before, if it was something else.
    instead_of: Option<Mark>,
    /// False if it must be recognised: DUP = 1, and nothing else came under its packet id since it did.
    is_new: bool,
}

impl Witness {
    /// What listens in at a proxy between agent and broker.
    #[must_use]
    pub fn taps(&self) -> Taps {
        let heard = Arc::clone(&self.0);
        Arc::new(move || {
            let heard = Arc::clone(&heard);
            Box::new(Line { heard, up: Vec::new(), down: Vec::new(), under_way: BTreeMap::new() })
        })
    }

    /// What the agent acknowledged to the broker.
    ///
    /// # Panics
    /// If a tap did.
    #[must_use]
    pub fn acked(&self) -> BTreeSet<Mark> {
        self.0.lock().unwrap().acked.clone()
    }

    /// How often the broker handed this reading over without its being possible to recognise it: with DUP = 0, or with DUP = 1
    /// under a packet id that this reading did not come under last. The latter is no rarity: what a broker has written into a dying
    /// connection it calls a repeat the next time, and what a sensor sends it again after a restart is another message to it.
    ///
    /// # Panics
    /// If a tap did.
    #[must_use]
    pub fn handed_over(&self, mark: &Mark) -> usize {
        let heard = self.0.lock().unwrap();
        heard.handed_over.get(mark).map_or(0, |all| all.iter().filter(|one| one.is_new).count())
    }

    /// Every hand-over of this reading, to be shown with a failure.
    ///
    /// # Panics
    /// If a tap did.
    #[must_use]
    pub fn story(&self, mark: &Mark) -> String {
        let heard = self.0.lock().unwrap();
        let story = heard.handed_over.get(mark).into_iter().flatten().map(|one| {
            let HandOver { packet_id, is_dup, instead_of, is_new } = one;
            format!("id {packet_id:?}, dup {is_dup}, before it {instead_of:?}, new {is_new}; ")
        });
        story.collect()
    }
}

/// One connection.
struct Line {
    heard: Arc<Mutex<Heard>>,
    up: Vec<u8>,
    down: Vec<u8>,
    /// By packet id.
    under_way: BTreeMap<[u8; 2], Mark>,
}

impl Tap for Line {
    fn sent(&mut self, way: Way, bytes: &[u8]) {
        let waiting = match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        };
        waiting.extend_from_slice(bytes);
        while let Some((first, body)) = next_packet(match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }) {
            match (way, first >> 4) {
                (Way::Down, 2) => self.connected(&body),
                (Way::Down, 3) => self.published(first, &body),
                (Way::Up, 4) => self.acked(&body),
                _ => {}
            }
        }
    }
}

impl Line {
    /// CONNACK: without a session the packet ids mean nothing any more.
    fn connected(&mut self, body: &[u8]) {
        if body[0] & 1 == 0 {
            self.heard.lock().unwrap().last.clear();
        }
    }

    fn published(&mut self, first: u8, body: &[u8]) {
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (topic, rest) = body[2..].split_at(length);
        let (id, payload) =
            if first & 0x06 == 0 { (None, rest) } else { (Some([rest[0], rest[1]]), &rest[2..]) };
        let device = String::from_utf8_lossy(topic).split('/').nth(1).unwrap_or_default().to_owned();
        let payload: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let mark = (device, payload["n"].as_u64().unwrap());
        let is_dup = first & 0x08 != 0;
        let mut heard = self.heard.lock().unwrap();
        let before = id.and_then(|id| heard.last.insert(id, mark.clone()));
        let is_new = !is_dup || before.as_ref() != Some(&mark);
        let instead_of = before.filter(|before| *before != mark);
        heard.handed_over.entry(mark.clone()).or_default().push(HandOver {
            packet_id: id,
            is_dup,
            instead_of,
            is_new,
        });
        drop(heard);
        if let Some(id) = id {
            self.under_way.insert(id, mark);
        }
    }

    fn acked(&mut self, body: &[u8]) {
        let mark =
            self.under_way.remove(&[body[0], body[1]]).expect("only what was handed over is acknowledged");
        self.heard.lock().unwrap().acked.insert(mark);
    }
}

/// Takes one whole packet off the front: its first byte, and what follows its length.
fn next_packet(waiting: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (mut length, mut shift, mut at) = (0, 0, 1);
    loop {
        let byte = *waiting.get(at)?;
        length |= usize::from(byte & 0x7f) << shift;
        (shift, at) = (shift + 7, at + 1);
        if byte & 0x80 == 0 {
            break;
        }
    }
    if waiting.len() < at + length {
        return None;
    }
    let rest = waiting.split_off(at + length);
    let packet = std::mem::replace(waiting, rest);
    Some((packet[0], packet[at..].to_vec()))
}
