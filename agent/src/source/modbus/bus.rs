//! One request, one answer, over RTU or TCP, through tokio-modbus.
//!
//! After whatever went wrong the next request begins with a clean slate: over TCP on a new connection, over RTU once the line is
//! quiet. An answer is believed if unit, function, checksum (or number) and length are those of the request.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tokio_modbus::client::{Client as _, Context, rtu, tcp};
use tokio_modbus::slave::SlaveContext as _;
use tokio_modbus::{Error, Request, Response, Slave};

use super::fault::{Exception, Failure, Fault};
use super::line::{Answers, Line};
use super::plan::Span;
use super::settings::{Kind, Settings};
use super::value::Data;
use crate::clock::Clock;
use crate::source::LineCounts;
use crate::source::port::{self, Place, Trouble};

/// The longest frame of a serial line.
const MOST_FRAME_BYTES: u64 = 256;

/// The way to the devices.
#[derive(Debug)]
pub(super) struct Bus {
    port: port::Settings,
    /// For one answer.
    timeout: Duration,
    clock: Clock,
    open: Option<Open>,
    counts: LineCounts,
}

/// What there is while the line is open.
struct Open {
    line: Line,
    /// Made anew where a request was broken off: parts of it could be left in there.
    client: Option<Context>,
    /// Whether anybody has answered on it.
    has_served: bool,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("line", &self.line).finish_non_exhaustive()
    }
}

/// What may be tried once more within a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    Possible,
    Done,
}

impl Bus {
    pub(super) fn new(settings: &Settings, clock: Clock) -> Self {
        let counts = LineCounts::default();
        Self { port: settings.port.clone(), timeout: settings.timeout, clock, open: None, counts }
    }

    /// Opens the port, or connects.
    pub(super) async fn open(&mut self) -> Result<(), Trouble> {
        self.close();
        let port = port::open(&self.port).await?;
        let answers = match self.port.at {
            Place::Path(_) => Answers::Bare { baud: self.port.baud },
            Place::Tcp { .. } => Answers::Numbered,
        };
        let line = Line::new(port.stream, answers, self.clock);
        self.open = Some(Open { line, client: None, has_served: false });
        self.counts.opened += 1;
        Ok(())
    }

    /// Closes it.
    pub(super) fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let traffic = open.line.traffic();
            self.counts.bytes += traffic.bytes;
            self.counts.garbage_bytes += traffic.unasked;
        }
    }

    /// What went over the line since the start.
    pub(super) fn counts(&self) -> LineCounts {
        let mut counts = self.counts;
        if let Some(open) = &self.open {
            let traffic = open.line.traffic();
            counts.bytes += traffic.bytes;
            counts.garbage_bytes += traffic.unasked;
        }
        counts
    }

    /// Waits until the port is unplugged. A connection that the other side closes between two rounds is no trouble: the next
    /// one makes another. Cancel-safe.
    pub(super) async fn unplugged(&mut self) -> Trouble {
        if let (Some(open), Place::Path(_)) = (&self.open, &self.port.at) {
            return lost(&self.port.at, open.line.ended().await);
        }
        std::future::pending().await
    }

    /// Asks one unit.
    pub(super) async fn ask(&mut self, unit: u8, span: &Span) -> Result<Data, Failure> {
        let mut again = Again::Possible;
        loop {
            let answered_by = self.clock.monotonic() + self.timeout;
            let has_served = self.open.as_ref().is_some_and(|open| open.has_served);
            let failure = match self.ask_once(unit, span).await {
                Ok(data) => {
                    self.counts.frames += 1;
                    return Ok(data);
                }
                Err(failure) => failure,
            };
            let is_worth_it = match &failure {
                // A server may close a connection that was idle for long.
                Failure::Device(Fault::Dropped { .. }) => has_served,
                Failure::Device(fault) => fault.is_garbage(),
                Failure::Lost(_) => false,
            };
            if again == Again::Done || !is_worth_it {
                return Err(failure);
            }
            again = Again::Done;
            self.hear_out(answered_by).await?;
        }
    }

    /// On a serial line the answer may still come behind what was none. Asked again before, the device would answer twice, and the
    /// second answer would be taken for that to the next question.
    async fn hear_out(&mut self, answered_by: Instant) -> Result<(), Failure> {
        if let (Some(open), Place::Path(_)) = (&self.open, &self.port.at)
            && let Ok(ended) = timeout_at(answered_by, open.line.ended()).await
        {
            return Err(Failure::Lost(lost(&self.port.at, ended)));
        }
        Ok(())
    }

    async fn ask_once(&mut self, unit: u8, span: &Span) -> Result<Data, Failure> {
        if self.open.is_none() {
            self.open().await.map_err(Failure::Lost)?;
        }
        let Some(open) = &mut self.open else {
            return Err(Failure::Lost(Trouble::of_stream(&self.port.at, None)));
        };
        let slave = Slave(unit);
        let client = open.client.get_or_insert_with(|| match self.port.at {
            Place::Path(_) => rtu::attach_slave(open.line.clone(), slave),
            Place::Tcp { .. } => tcp::attach_slave(open.line.clone(), slave),
        });
        client.set_slave(slave);
        let before = open.line.traffic();
        let answer = timeout(self.timeout, client.call(request(span))).await;
        let after = open.line.traffic();
        let unasked = after.unasked - before.unasked;
        let bytes = after.bytes - before.bytes - unasked;
        let fault = match answer {
            Ok(Ok(Ok(response))) => match data(response, span) {
                Ok(data) => {
                    open.has_served = true;
                    return Ok(data);
                }
                Err(fault) => fault,
            },
            Ok(Ok(Err(exception))) => {
                open.has_served = true;
                self.counts.frames += 1;
                return Err(Failure::Device(Fault::Refused(Exception(exception.into()))));
            }
            Ok(Err(Error::Protocol(_))) => Fault::Foreign,
            Ok(Err(Error::Transport(error))) if is_of_the_answer(&error) => Fault::Garbled { bytes },
            // Only this unit may be the reason; if nobody can be reached any more, the next connection shows it.
            Ok(Err(Error::Transport(error))) if matches!(self.port.at, Place::Tcp { .. }) => {
                Fault::Dropped { reason: error.to_string() }
            }
            Ok(Err(Error::Transport(error))) => return Err(Failure::Lost(lost(&self.port.at, error))),
            // More than a late answer: the line was never quiet enough to ask.
            Err(_) if unasked > MOST_FRAME_BYTES => Fault::Garbled { bytes: bytes + unasked },
            Err(_) if bytes > 0 => Fault::Garbled { bytes },
            Err(_) => Fault::NoAnswer { within: self.timeout },
        };
        self.counts.garbage_bytes += bytes;
        // What was left of the request or of its answer must not meet the next one.
        match self.port.at {
            Place::Path(_) => open.client = None,
            Place::Tcp { .. } => self.close(),
        }
        Err(Failure::Device(fault))
    }
}

/// Whether an error is one of what came, not one of the line: the library does not tell them apart by type.
fn is_of_the_answer(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof, Unsupported};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof | Unsupported)
}

/// What an error of a port means.
fn lost(place: &Place, error: io::Error) -> Trouble {
    let is_end = error.kind() == io::ErrorKind::BrokenPipe;
    Trouble::of_stream(place, (!is_end).then_some(error))
}

fn request(span: &Span) -> Request<'static> {
    match span.kind {
        Kind::Input => Request::ReadInputRegisters(span.address, span.count),
        Kind::Holding => Request::ReadHoldingRegisters(span.address, span.count),
        Kind::Coil => Request::ReadCoils(span.address, span.count),
        Kind::Discrete => Request::ReadDiscreteInputs(span.address, span.count),
    }
}

/// What was answered, if it is what was asked for.
fn data(response: Response, span: &Span) -> Result<Data, Fault> {
    let expected = usize::from(span.count);
    let (data, expected_sent) = match response {
        Response::ReadInputRegisters(registers) | Response::ReadHoldingRegisters(registers) => {
            (Data::Registers(registers), expected)
        }
        // Bits come in whole bytes.
        Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits) => {
            (Data::Bits(bits), expected.next_multiple_of(8))
        }
        _ => return Err(Fault::Foreign),
    };
    if data.len() == expected_sent { Ok(data) } else { Err(Fault::Length { expected, got: data.len() }) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::sleep;

    use super::*;

    /// A frame with its checksum.
    fn frame(bytes: &[u8]) -> Vec<u8> {
        let crc = bytes.iter().fold(0xFFFF_u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xA001 } else { 0 })
        });
        [bytes, &crc.to_le_bytes()].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_the_first_attempt_is_not_taken_for_that_to_the_next_question() {
        let (near, mut far) = duplex(256);
        let settings = Settings {
            name: "rack".to_owned(),
            port: port::Settings::at(Place::Path("/dev/ttyUSB0".into())),
            interval: Settings::DEFAULT_INTERVAL,
            timeout: Settings::DEFAULT_TIMEOUT,
            reads: Vec::new(),
        };
        let mut bus = Bus::new(&settings, Clock::system());
        let line = Line::new(Box::new(near), Answers::Bare { baud: 9_600 }, Clock::system());
        bus.open = Some(Open { line, client: None, has_served: false });
        // Unit 2 takes a while for each request, and keeps what comes meanwhile. Its registers hold their addresses. Unit 1 answers
        // to what it was asked before only now.
        let devices = tokio::spawn(async move {
            let mut late = Some(frame(&[1, 3, 2, 0, 99]));
            let mut request = [0; 8];
            while far.read_exact(&mut request).await.is_ok() {
                if let Some(late) = late.take() {
                    far.write_all(&late).await.unwrap();
                }
                sleep(Duration::from_millis(100)).await;
                let [_, _, high, low, ..] = request;
                far.write_all(&frame(&[2, 3, 2, high, low])).await.unwrap();
            }
        });
        for address in [7, 100, 200] {
            let span = Span { kind: Kind::Holding, address, count: 1, members: vec![0] };
            assert_eq!(bus.ask(2, &span).await.unwrap(), Data::Registers(vec![address]));
        }
        devices.abort();
    }
}
