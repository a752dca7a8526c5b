//! A serial line of 921 600 baud behind a pty: a sensor node, or a device that writes lines, that never fall silent.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use firmware_bridge::frame::{Channel, MAX_NODE_WIRE_BYTES};
use firmware_bridge::link::{Identity, Link, Settings};
use firmware_bridge::value::{Kind, Value};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::clock::{now, pause};
use crate::load::Sent;
use crate::process::as_f64;

/// Ten bits a character.
pub(crate) const BYTES_PER_SECOND: u32 = 92_160;
/// Memory of the node: some seconds, so that what is lost is not its fault.
const RING_BYTES: usize = 256 << 10;
/// 18 bytes of values a sample: four singles, and a number of two bytes.
const CHANNELS: &[Channel<'static>] = &[
    Channel::new("n", "", Kind::Int),
    Channel::new("temperature", "°C", Kind::Single),
    Channel::new("humidity", "%", Kind::Single),
    Channel::new("pressure", "hPa", Kind::Single),
    Channel::new("vibration", "g", Kind::Single),
];
/// How often bytes go out: what a UART's FIFO and a USB frame make of it, too.
const TURN: Duration = Duration::from_millis(1);
/// Nobody answers for so long: something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is spoken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Speech {
    /// The node's half of the link.
    Bridge,
    /// Values between commas.
    Csv,
    /// An object a line.
    Json,
}

impl Speech {
    /// The keys of a source that understands it.
    pub(crate) fn keys(self) -> &'static str {
        match self {
            Self::Bridge => "protocol = \"bridge\"",
            Self::Csv => {
                "protocol = \"lines\"\npayload = \"csv\"\ncolumns = [\"n\", \"temperature\", \"humidity\", \"pressure\"]"
            }
            Self::Json => "protocol = \"lines\"",
        }
    }
}

/// The end of the line that is not the agent's.
#[derive(Debug)]
pub(crate) struct Line {
    master: File,
    path: PathBuf,
}

impl Line {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let mut settings = tcgetattr(&master)?;
        settings.make_raw();
        tcsetattr(&master, OptionalActions::Now, &settings)?;
        fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
        let path = ptsname(&master, Vec::new())?.into_string().context("a port without a name")?;
        Ok(Self { master: master.into(), path: path.into() })
    }

    /// Where the port is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Speaks for so long, at the full speed of the line.
    pub(crate) fn speak(&mut self, speech: Speech, lasting: Duration) -> anyhow::Result<Sent> {
        match speech {
            Speech::Bridge => self.be_a_node(lasting),
            Speech::Csv => self.write_lines(lasting, |n, line| {
                writeln!(line, "{n},{}.{:02},48.25,1013.{}", 20 + n % 9, n % 100, n % 10)
            }),
            Speech::Json => self.write_lines(lasting, |n, line| {
                writeln!(line, "{{\"n\":{n},\"temperature\":{}.{:02}}}", 20 + n % 9, n % 100)
            }),
        }
    }

    fn write_lines(
        &mut self,
        lasting: Duration,
        write: impl Fn(u64, &mut Vec<u8>) -> std::io::Result<()>,
    ) -> anyhow::Result<Sent> {
        let (started, mut sent_bytes, mut lines, mut out) = (now(), 0, 0, Vec::new());
        while started.elapsed() < lasting {
            while sent_bytes < carried(started) {
                lines += 1;
                let before = out.len();
                write(lines, &mut out)?;
                sent_bytes += (out.len() - before) as u64;
            }
            self.write(&mut out)?;
            pause(TURN);
        }
        while !out.is_empty() {
            ensure!(started.elapsed() < lasting + PATIENCE, "nobody reads");
            self.write(&mut out)?;
            pause(TURN);
        }
        Ok(Sent { started, took: started.elapsed(), messages: lines, payload_bytes: sent_bytes })
    }

    fn be_a_node(&mut self, lasting: Duration) -> anyhow::Result<Sent> {
        let identity = Identity::new("bench", "1", 1, CHANNELS)?;
        let mut link = Box::new(Link::<RING_BYTES>::new(identity, Settings::default()));
        let (born, mut out, mut buffer) = (now(), Vec::new(), [0; MAX_NODE_WIRE_BYTES]);
        let (mut started, mut sent_bytes, mut samples, mut is_waiting) = (born, 0, 0, true);
        loop {
            let uptime_ms = u64::try_from(born.elapsed().as_millis())?;
            self.hear(|bytes| link.receive(uptime_ms, bytes))?;
            if is_waiting && link.is_joined() {
                (started, is_waiting, sent_bytes) = (now(), false, 0);
            }
            let is_over = !is_waiting && started.elapsed() >= lasting;
            if is_over && link.unconfirmed() == 0 {
                break;
            }
            let patience = if is_waiting { PATIENCE } else { lasting + PATIENCE };
            ensure!(started.elapsed() < patience, "{} samples are not acknowledged", link.unconfirmed());
            // As many as the line would carry, whether the other side takes them or not.
            while !is_waiting && !is_over && samples * 30 < carried(started) {
                samples += 1;
                let n = i64::try_from(samples % 8_000)?;
                let singles = [21.53, 48.25, 1013.25, 0.125].map(|value: f32| Value::Single(value));
                let taken = link.sample(uptime_ms, &[&[Value::Int(n)], singles.as_slice()].concat())?;
                ensure!(taken.dropped == 0, "the node had to drop samples");
            }
            while let Some(frame) = link.transmit(uptime_ms, &mut buffer).ok().context("a large frame")? {
                out.extend_from_slice(frame);
                sent_bytes += frame.len() as u64;
            }
            self.write(&mut out)?;
            pause(TURN);
        }
        let rate = as_f64(sent_bytes) / lasting.as_secs_f64();
        ensure!(
            rate < f64::from(BYTES_PER_SECOND) * 1.02,
            "{rate:.0} bytes a second: samples were sent again"
        );
        Ok(Sent { started, took: started.elapsed(), messages: samples, payload_bytes: sent_bytes })
    }

    /// Writes what the port takes now.
    fn write(&mut self, out: &mut Vec<u8>) -> anyhow::Result<()> {
        match self.master.write(out) {
            Ok(count) => drop(out.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => bail!("cannot write to the port: {error}"),
        }
        Ok(())
    }

    fn hear(&mut self, mut take: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let mut buffer = [0; 512];
        loop {
            match self.master.read(&mut buffer) {
                Ok(count) => take(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => bail!("cannot read from the port: {error}"),
            }
        }
    }
}

/// What the line has carried since then.
fn carried(since: Instant) -> u64 {
    let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    micros.saturating_mul(u64::from(BYTES_PER_SECOND)) / 1_000_000
}
