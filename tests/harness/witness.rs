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
    /// How often each reading was handed over as a new one (DUP = 0).
    handed_over: BTreeMap<Mark, usize>,
    acked: BTreeSet<Mark>,
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

    /// How often the broker handed this reading over as a new one.
    ///
    /// # Panics
    /// If a tap did.
    #[must_use]
    pub fn handed_over(&self, mark: &Mark) -> usize {
        self.0.lock().unwrap().handed_over.get(mark).copied().unwrap_or(0)
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
                (Way::Down, 3) => self.published(first, &body),
                (Way::Up, 4) => self.acked(&body),
                _ => {}
            }
        }
    }
}

impl Line {
    fn published(&mut self, first: u8, body: &[u8]) {
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (topic, rest) = body[2..].split_at(length);
        let (id, payload) =
            if first & 0x06 == 0 { (None, rest) } else { (Some([rest[0], rest[1]]), &rest[2..]) };
        let device = String::from_utf8_lossy(topic).split('/').nth(1).unwrap_or_default().to_owned();
        let payload: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let mark = (device, payload["n"].as_u64().unwrap());
        if first & 0x08 == 0 {
            *self.heard.lock().unwrap().handed_over.entry(mark.clone()).or_default() += 1;
        }
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
