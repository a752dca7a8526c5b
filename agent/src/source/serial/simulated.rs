//! A sensor node without hardware: the node's half of the link on a thread, behind a pty. For the demo and for tests.
//!
//! ```text
//!   thread: samples ──► Link ──► master ┃ pty ┃ port ──► the agent's serial source
//! ```

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use firmware_bridge::frame::{Channel, MAX_NODE_WIRE_BYTES};
use firmware_bridge::link::{Identity, Link, Settings as LinkSettings};
use firmware_bridge::value::Value;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::source::pty::Pty;

/// What a large microcontroller can spare: some minutes of samples at one a second.
const RING_BYTES: usize = 8_192;
/// The longest sleep: how long a command may wait.
const NAP: Duration = Duration::from_millis(20);
/// The size of a version text that is certain to fit.
const FIRMWARE: &str = "simulated";

/// What a node is, and what it measures.
pub struct Settings {
    /// Its name.
    pub id: &'static str,
    /// Its channels.
    pub channels: &'static [Channel<'static>],
    /// The time between two samples; at zero it takes none by itself.
    pub interval: Duration,
    /// The values of the nth sample of a life, from 1.
    pub measure: Box<dyn FnMut(u64) -> Vec<Value> + Send>,
}

/// A node at work. Ends with this.
#[derive(Debug)]
pub struct Node {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

#[derive(Debug)]
enum Command {
    Plug(Pty),
    Unplug,
    /// Another life, with that boot counter.
    Reset(u32),
    Sample(u64),
    Rest,
    /// Asks how many records the host does not have yet, and how many were taken in this life.
    Count(Sender<(u64, u64)>),
}

impl Node {
    /// A node in its first life, not plugged in yet. Its port will be found at `path`.
    ///
    /// # Errors
    /// If its name or channels do not fit a frame, or the system has no thread left.
    pub fn start(path: PathBuf, settings: Settings, clock: Clock) -> io::Result<Self> {
        let (commands, told) = channel();
        let worker = Worker::new(settings, clock).map_err(io::Error::other)?;
        let thread = std::thread::Builder::new().name("node".to_owned()).spawn(move || worker.run(&told))?;
        Ok(Self { commands, thread: Some(thread), path })
    }

    /// Plugs it in. Each time it is another pty, under the same name.
    ///
    /// # Errors
    /// If there is no pty, or no link to it can be made.
    pub fn plug_in(&self) -> io::Result<()> {
        let pty = Pty::new()?;
        pty.set_nonblocking()?;
        remove(&self.path)?;
        symlink(pty.path(), &self.path)?;
        self.tell(Command::Plug(pty));
        Ok(())
    }

    /// Unplugs it; it goes on sampling.
    ///
    /// # Errors
    /// If the link cannot be removed.
    pub fn unplug(&self) -> io::Result<()> {
        self.tell(Command::Unplug);
        remove(&self.path)
    }

    /// Resets it: what it had not delivered is gone.
    pub fn reset(&self, boot: u32) {
        self.tell(Command::Reset(boot));
    }

    /// Takes so many samples at once.
    pub fn sample(&self, count: u64) {
        self.tell(Command::Sample(count));
    }

    /// From now on it takes no samples by itself.
    pub fn rest(&self) {
        self.tell(Command::Rest);
    }

    /// How many records the host has not acknowledged yet, and how many samples this life has taken; `None` if the thread is gone.
    #[must_use]
    pub fn count(&self) -> Option<(u64, u64)> {
        let (answer, answered) = channel();
        self.tell(Command::Count(answer));
        answered.recv().ok()
    }

    /// Where its port is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn tell(&self, command: Command) {
        // A thread that is gone is seen by who asks it something.
        drop(self.commands.send(command));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The thread ends when nobody can tell it anything any more.
        let (nobody, _) = channel();
        self.commands = nobody;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(remove(&self.path));
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

struct Worker {
    settings: Settings,
    clock: Clock,
    link: Link<'static, RING_BYTES>,
    pty: Option<Pty>,
    reset_at: Instant,
    taken: u64,
    /// What the line has not taken yet.
    out: Vec<u8>,
}

impl Worker {
    fn new(settings: Settings, clock: Clock) -> Result<Self, firmware_bridge::bounded::TooLong> {
        let link = link(&settings, 1)?;
        let reset_at = clock.monotonic();
        Ok(Self { settings, clock, link, pty: None, reset_at, taken: 0, out: Vec::new() })
    }

    fn run(mut self, told: &Receiver<Command>) {
        loop {
            loop {
                match told.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.sample_when_due();
            self.speak();
            if self.pty.is_some() {
                self.listen();
            } else {
                match told.recv_timeout(self.nap()) {
                    Ok(command) => self.obey(command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Plug(pty) => self.pty = Some(pty),
            Command::Unplug => {
                self.pty = None;
                self.out.clear();
            }
            Command::Reset(boot) => {
                self.reset_at = self.clock.monotonic();
                self.taken = 0;
                self.out.clear();
                // The name fitted before.
                if let Ok(link) = link(&self.settings, boot) {
                    self.link = link;
                }
            }
            Command::Sample(count) => (0..count).for_each(|_| self.sample()),
            Command::Rest => self.settings.interval = Duration::ZERO,
            Command::Count(answer) => drop(answer.send((self.link.unconfirmed(), self.taken))),
        }
    }

    fn sample_when_due(&mut self) {
        if self.settings.interval.is_zero() {
            return;
        }
        let since = self.clock.monotonic().saturating_duration_since(self.reset_at);
        let due = since.as_micros() / self.settings.interval.as_micros().max(1);
        while u128::from(self.taken) < due {
            self.sample();
        }
    }

    fn sample(&mut self) {
        self.taken += 1;
        let (uptime_ms, values) = (self.uptime_ms(), (self.settings.measure)(self.taken));
        // Values that are not those of the schema are a mistake of whoever measures; the node goes on.
        self.link.sample(uptime_ms, &values).ok();
    }

    /// Gives the line what it takes; what it does not take waits.
    fn speak(&mut self) {
        let uptime_ms = self.uptime_ms();
        let Some(pty) = &mut self.pty else { return };
        let mut buffer = [0; MAX_NODE_WIRE_BYTES];
        loop {
            while !self.out.is_empty() {
                match pty.write_some(&self.out) {
                    Ok(count) if count > 0 => drop(self.out.drain(..count)),
                    _ => return,
                }
            }
            match self.link.transmit(uptime_ms, &mut buffer) {
                Ok(Some(frame)) => self.out.extend_from_slice(frame),
                _ => return,
            }
        }
    }

    fn listen(&mut self) {
        let nap = self.nap();
        let uptime_ms = self.uptime_ms();
        let Some(pty) = &mut self.pty else { return };
        let seen = {
            let mut fds = [PollFd::new(&*pty, PollFlags::IN)];
            let nap = Timespec::try_from(nap).ok();
            poll(&mut fds, nap.as_ref()).map_or(PollFlags::empty(), |_| fds[0].revents())
        };
        if seen.contains(PollFlags::HUP) {
            // Nobody has the port open, which a poll says at once and for as long as it lasts.
            std::thread::park_timeout(nap);
        }
        if !seen.contains(PollFlags::IN) {
            return;
        }
        let mut buffer = [0; 512];
        if let Ok(count) = pty.read(&mut buffer) {
            self.link.receive(uptime_ms, &buffer[..count]);
        }
    }

    /// Until the next sample or frame is due.
    fn nap(&self) -> Duration {
        let interval = if self.settings.interval.is_zero() { NAP } else { self.settings.interval };
        let uptime_ms = self.uptime_ms();
        let frame = self
            .link
            .next_transmit_ms()
            .map_or(NAP, |at_ms| Duration::from_millis(at_ms.saturating_sub(uptime_ms)));
        let pending = if self.out.is_empty() { NAP } else { Duration::from_millis(1) };
        interval.min(frame).min(pending).min(NAP)
    }

    fn uptime_ms(&self) -> u64 {
        let since = self.clock.monotonic().saturating_duration_since(self.reset_at);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

fn link(
    settings: &Settings,
    boot: u32,
) -> Result<Link<'static, RING_BYTES>, firmware_bridge::bounded::TooLong> {
    let identity = Identity::new(settings.id, FIRMWARE, boot, settings.channels)?;
    Ok(Link::new(identity, LinkSettings::default()))
}
