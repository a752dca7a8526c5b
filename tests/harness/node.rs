//! A sensor node: the real link of `firmware-bridge`, at work on a thread, behind whatever it is plugged into.
//!
//! It measures when it is told to, and can be made deaf, so that a test decides what was sent, what was acknowledged, and what
//! was lost on the way. Its samples count in `n`, on through all its lives.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use firmware_bridge::frame::{Channel, MAX_NODE_WIRE_BYTES};
use firmware_bridge::link::{Identity, Link, Settings};
use firmware_bridge::value::{Kind, Value};
use holdfast::source::pty::Pty;
use tokio::time::Instant;

/// What a node measures.
const CHANNELS: &[Channel<'static>] =
    &[Channel::new("n", "", Kind::Int), Channel::new("temperature", "°C", Kind::Single)];
/// Memory for unacknowledged samples.
const RING_BYTES: usize = 8_192;
/// So many samples fit into it for certain, whatever their values.
pub const RING_SAMPLES: u64 = 400;
/// How often it looks at its line.
const TURN: Duration = Duration::from_millis(1);

/// The node; ends with this.
#[derive(Debug)]
pub struct Node {
    state: Arc<Mutex<State>>,
    worker: Option<JoinHandle<()>>,
}

/// What a node is plugged into.
#[derive(Debug)]
pub enum Line {
    /// A port.
    Pty(Pty),
    /// A serial server, which passes on what it gets.
    Tcp(TcpStream),
}

#[derive(Debug)]
struct State {
    name: &'static str,
    link: Link<'static, RING_BYTES>,
    line: Option<Line>,
    is_deaf: bool,
    /// What the line has not taken yet.
    out: Vec<u8>,
    reset_at: Instant,
    taken: u64,
    dropped: u64,
    has_ended: bool,
}

impl Node {
    /// A node in its first life, plugged into nothing.
    ///
    /// # Panics
    /// If the name is too long.
    #[must_use]
    pub fn start(name: &'static str) -> Self {
        let state = State {
            name,
            link: link(name, 1),
            line: None,
            is_deaf: false,
            out: Vec::new(),
            reset_at: Instant::now(),
            taken: 0,
            dropped: 0,
            has_ended: false,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let worker = std::thread::spawn(move || {
            while !shared.lock().unwrap().has_ended {
                shared.lock().unwrap().turn();
                std::thread::park_timeout(TURN);
            }
        });
        Self { state, worker: Some(worker) }
    }

    /// Plugs it in; what it was plugged into before is cut.
    pub fn plug_into(&self, line: Line) {
        let mut state = self.state();
        state.out.clear();
        state.line = Some(line);
    }

    /// Pulls the plug.
    pub fn unplug(&self) {
        let mut state = self.state();
        state.out.clear();
        state.line = None;
    }

    /// From now on it does not hear what it is told: its receive line is broken.
    pub fn deafen(&self) {
        self.state().is_deaf = true;
    }

    /// It hears again what it is told from now on.
    pub fn undeafen(&self) {
        let mut state = self.state();
        if let Some(line) = &mut state.line {
            while line.receive(&mut [0; 512]).is_some_and(|count| count > 0) {}
        }
        state.is_deaf = false;
    }

    /// Takes so many samples.
    pub fn sample(&self, count: u64) {
        let mut state = self.state();
        for _ in 0..count {
            state.sample();
        }
    }

    /// The same, as far as it can keep them: none is dropped for want of memory.
    pub fn sample_what_fits(&self, count: u64) {
        let mut state = self.state();
        let room = RING_SAMPLES.saturating_sub(state.link.unconfirmed());
        for _ in 0..count.min(room) {
            state.sample();
        }
    }

    /// Resets it: another life, with that boot counter. Returns how many samples it had not delivered, which are gone.
    pub fn reset(&self, boot: u32) -> u64 {
        let mut state = self.state();
        let lost = state.link.unconfirmed();
        state.link = link(state.name, boot);
        state.out.clear();
        state.reset_at = Instant::now();
        lost
    }

    /// How many samples it was not told the safe arrival of.
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.state().link.unconfirmed()
    }

    /// How many samples it has taken in all its lives.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.state().taken
    }

    /// How many of them it had to drop because its memory was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// True once the host knows it.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.state().link.is_joined()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.state().has_ended = true;
        if let Some(worker) = self.worker.take() {
            drop(worker.join());
        }
    }
}

impl State {
    fn turn(&mut self) {
        let uptime_ms = self.uptime_ms();
        let Some(line) = &mut self.line else { return };
        let mut buffer = [0; 512];
        while !self.is_deaf
            && let Some(count) = line.receive(&mut buffer)
            && count > 0
        {
            self.link.receive(uptime_ms, &buffer[..count]);
        }
        let mut frame = [0; MAX_NODE_WIRE_BYTES];
        loop {
            while !self.out.is_empty() {
                match line.send(&self.out) {
                    Some(count) if count > 0 => drop(self.out.drain(..count)),
                    _ => return,
                }
            }
            match self.link.transmit(uptime_ms, &mut frame).unwrap() {
                Some(frame) => self.out.extend_from_slice(frame),
                None => return,
            }
        }
    }

    fn sample(&mut self) {
        self.taken += 1;
        let values = [Value::Int(self.taken.cast_signed()), Value::Single(21.53)];
        let uptime_ms = self.uptime_ms();
        let taken = self.link.sample(uptime_ms, &values).unwrap();
        self.dropped += u64::from(taken.dropped);
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.reset_at.elapsed().as_millis()).unwrap()
    }
}

impl Line {
    /// Sends what the line takes now; `None` if that is nothing. Whether nobody is there a node does not know.
    fn send(&mut self, bytes: &[u8]) -> Option<usize> {
        let sent = match self {
            Self::Pty(pty) => pty.write_some(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        };
        sent.ok()
    }

    /// What has come; `None` if nothing has.
    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        let received = match self {
            Self::Pty(pty) => pty.read(into),
            Self::Tcp(stream) => stream.read(into),
        };
        received.ok()
    }
}

impl From<Pty> for Line {
    fn from(pty: Pty) -> Self {
        Self::Pty(pty)
    }
}

fn link(name: &'static str, boot: u32) -> Link<'static, RING_BYTES> {
    Link::new(Identity::new(name, "1.0.0", boot, CHANNELS).unwrap(), Settings::default())
}
