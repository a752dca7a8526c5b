//! `holdfast serial monitor`: opens the port, and again when it was lost; shows what the viewer sees.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::Args;
use super::seen::Seen;
use super::viewer::{Speech, Viewer};
use crate::causes::chain;
use crate::clock::{Clock, until};
use crate::reading::ClockState;
use crate::source::port::{self, Duplex, Place, Port, Trouble};

/// Silence and leftovers are looked after this often.
const TICK: Duration = Duration::from_millis(200);
/// The pause between two attempts to open a port that is not there.
const RETRY: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 4_096;
/// The rest of what was to be sent is dropped when the line has not taken it by then: it would be out of date.
const WRITE_WAIT: Duration = Duration::from_secs(1);

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stopped,
    Over,
    Counted,
    /// Nobody looks any more.
    Unseen,
}

/// Shows what comes until it is enough.
///
/// # Errors
/// If the port cannot be used, or `out` fails.
pub(super) async fn run(
    args: &Args,
    clock: Clock,
    stop: &CancellationToken,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let mut monitor = Monitor::new(args, clock, out);
    let ending = match monitor.watch(stop).await {
        Ok(ending) => ending,
        Err(Failure::Port(trouble)) => return Err(explained(trouble, &args.at)),
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ending::Unseen,
        Err(Failure::Output(error)) => return Err(error).context("cannot show what comes"),
    };
    if ending == Ending::Unseen {
        return Ok(ExitCode::SUCCESS);
    }
    let (now, mut seen) = (monitor.now(), Vec::new());
    monitor.viewer.end(&now, &mut seen);
    match monitor.show(&seen) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let is_failure = ending == Ending::Over && !monitor.viewer.has_understood();
    Ok(if is_failure { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What cannot be waited for.
enum Failure {
    Port(Trouble),
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

struct Monitor<'m, W> {
    args: &'m Args,
    clock: Clock,
    out: &'m mut W,
    viewer: Viewer,
    start: Instant,
}

impl<'m, W: Write> Monitor<'m, W> {
    fn new(args: &'m Args, clock: Clock, out: &'m mut W) -> Self {
        let speech = match &args.at {
            _ if args.listen_only => Speech::Silent,
            Place::Path(_) => Speech::Alone,
            Place::Tcp { .. } => Speech::Shared,
        };
        let advice = match &args.at {
            Place::Path(_) => format!(
                "; neither frames nor text: try another --baud (it is {}; common are 9600, 19200, 57600, 115200), and --parity",
                args.baud
            ),
            Place::Tcp { .. } => {
                "; neither frames nor text: check the speed and the parity that the serial server is set to"
                    .to_owned()
            }
        };
        let start = clock.monotonic();
        let now = time(clock, start);
        let viewer = Viewer::new(args.protocol.expected(), speech, fastrand::u32(..), advice, &now);
        Self { args, clock, out, viewer, start }
    }

    async fn watch(&mut self, stop: &CancellationToken) -> Result<Ending, Failure> {
        let settings = self.args.port();
        let end = self.args.duration.map(|duration| self.start + duration);
        let mut said = None;
        loop {
            let opened = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ending::Stopped),
                () = until(end) => return Ok(Ending::Over),
                opened = port::open(&settings) => opened,
            };
            let trouble = match opened {
                Ok(port) => {
                    said = None;
                    match self.attend(port, end, stop).await? {
                        Ok(ending) => return Ok(ending),
                        Err(trouble) => trouble,
                    }
                }
                Err(trouble) => trouble,
            };
            if !is_passing(&trouble) {
                return Err(Failure::Port(trouble));
            }
            let reason = chain(&trouble);
            if said.as_ref() != Some(&reason) {
                self.show(&[Seen::Waiting { reason: reason.clone() }])?;
                said = Some(reason);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ending::Stopped),
                () = until(end) => return Ok(Ending::Over),
                () = sleep(RETRY) => {}
            }
        }
    }

    /// One open port.
    async fn attend(
        &mut self,
        port: Port,
        end: Option<Instant>,
        stop: &CancellationToken,
    ) -> Result<Result<Ending, Trouble>, Failure> {
        let (mut reader, mut writer) = tokio::io::split(port.stream);
        let ended = self.look(&mut reader, &mut writer, end, stop).await;
        // What a line does not take would hold up the end.
        reader.unsplit(writer).forget_output();
        ended
    }

    async fn look(
        &mut self,
        reader: &mut ReadHalf<Box<dyn Duplex>>,
        writer: &mut WriteHalf<Box<dyn Duplex>>,
        end: Option<Instant>,
        stop: &CancellationToken,
    ) -> Result<Result<Ending, Trouble>, Failure> {
        let place = &self.args.at;
        let (mut buffer, mut to_send, mut seen) = (vec![0; READ_BYTES], Vec::new(), Vec::new());
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.viewer.opened(&self.now());
        seen.push(Seen::Open { port: place.to_string(), sends: !self.args.listen_only });
        loop {
            self.show(&seen)?;
            seen.clear();
            if self.args.count.is_some_and(|count| self.viewer.messages() >= count) {
                return Ok(Ok(Ending::Counted));
            }
            self.viewer.transmit(&self.now(), &mut to_send);
            let lost = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ok(Ending::Stopped)),
                () = until(end) => return Ok(Ok(Ending::Over)),
                written = tokio::time::timeout(WRITE_WAIT, writer.write(&to_send)), if !to_send.is_empty() => {
                    match written {
                        Ok(Ok(count)) if count > 0 => {
                            to_send.drain(..count);
                            continue;
                        }
                        Err(_) => {
                            to_send.clear();
                            continue;
                        }
                        Ok(written) => written.err(),
                    }
                }
                read = reader.read(&mut buffer) => match read {
                    Ok(count) if count > 0 => {
                        let now = self.now();
                        self.viewer.take(&buffer[..count], &now, &mut seen);
                        continue;
                    }
                    read => read.err(),
                },
                _ = ticks.tick() => {
                    let now = self.now();
                    self.viewer.tick(&now, &mut seen);
                    continue;
                }
            };
            self.viewer.closed(&self.now(), &mut seen);
            self.show(&seen)?;
            return Ok(Err(Trouble::of_stream(place, lost)));
        }
    }

    fn show(&mut self, seen: &[Seen]) -> io::Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        let (at, mut text) = (self.clock.wall(), String::new());
        for seen in seen {
            if self.args.json {
                text.push_str(&seen.json(at)?);
            } else {
                text.push_str(&seen.line(at));
            }
            text.push('\n');
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    fn now(&self) -> firmware_bridge::host::Now {
        time(self.clock, self.start)
    }
}

fn time(clock: Clock, start: Instant) -> firmware_bridge::host::Now {
    let monotonic = clock.monotonic().saturating_duration_since(start);
    firmware_bridge::host::Now {
        monotonic_us: u64::try_from(monotonic.as_micros()).unwrap_or(u64::MAX),
        wall_us: clock.wall().0,
        is_synced: clock.state() == ClockState::Synced,
    }
}

/// True for what may pass by itself. A port that another program has is not waited for: it would be snatched from an agent that is
/// being reloaded.
fn is_passing(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Absent { .. } | Trouble::Gone { .. } | Trouble::Failed { .. } => true,
        // A serial server that does not answer; a device file that fails does so for good.
        Trouble::Io { place, .. } => matches!(place, Place::Tcp { .. }),
        Trouble::Permission { .. }
        | Trouble::Forbidden { .. }
        | Trouble::Busy { .. }
        | Trouble::NoPort { .. }
        | Trouble::Refused { .. } => false,
    }
}

fn explained(trouble: Trouble, at: &Place) -> anyhow::Error {
    if matches!(trouble, Trouble::Busy { .. }) {
        return anyhow!(
            "{at} is in use by another program, most likely the running agent: stop it, or remove the source from its configuration \
             and reload; `holdfast status` shows its sources, `fuser -v {at}` who has the port"
        );
    }
    trouble.into()
}
