//! The source against far ends that speak bytes: late, garbled, foreign and short answers, and lines that end.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::ingest::inlet::{Batch, Outcome};
use crate::ingest::{Intake, SourceSpec};
use crate::reading::{Reading, Value};
use crate::source::port::Place;
use crate::source::pty::{self, Pty};
use crate::source::{Report, State};

/// Nothing in these tests takes so long, on any machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long an answer may take. Long enough for a busy machine, short enough for a test.
const ANSWER: Duration = Duration::from_millis(300);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// A running source.
struct Bench {
    report: watch::Receiver<Report>,
    batches: mpsc::Receiver<Batch>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Bench {
    /// Reads one register, 7, of each of these units, as `unit-<unit>`.
    fn new(at: Place, units: &[u8]) -> Self {
        let format = Format::Number { number: Number::U16, order: Order::default(), scale: None };
        let register = Register { field: "v".to_owned(), kind: Kind::Holding, address: 7, format };
        let read = |unit: &u8| Read {
            unit: *unit,
            device: format!("unit-{unit}"),
            registers: vec![register.clone()],
        };
        let settings = Settings {
            name: "rack".to_owned(),
            port: port::Settings::at(at),
            interval: Duration::from_millis(100),
            timeout: ANSWER,
            reads: units.iter().map(read).collect(),
        };
        let clock = Clock::system();
        let (intake, batches) = Intake::new(clock);
        let (sender, report) = watch::channel(Report::default());
        let stop = CancellationToken::new();
        let source = SourceSpec {
            name: "rack".into(),
            subscriptions: [].into(),
            max_payload_bytes: 0,
            in_flight: 0,
            kept_payload_bytes: 0,
        };
        let rooms = Rooms { source: Arc::new(source), intake, report: sender, stop: stop.clone(), clock };
        Self { report, batches, stop, running: tokio::spawn(run(settings, rooms)) }
    }

    /// The next reading: whose, and its value.
    async fn reading(&mut self) -> (String, i64) {
        let mut batch = within("a reading", self.batches.recv()).await.unwrap();
        assert_eq!(batch.items.len(), 1);
        let Outcome::Reading(Reading { origin, values, .. }) = batch.items.remove(0).outcome else {
            panic!()
        };
        let [Value::Int(value)] = values[..] else { panic!("{values:?}") };
        (origin.device.to_string(), value)
    }

    /// Waits for a report like that.
    async fn reported(&mut self, what: &str, is_it: impl Fn(&Report) -> bool) -> Report {
        within(what, self.report.wait_for(|report| is_it(report))).await.unwrap().clone()
    }

    fn error(report: &Report, device: &str) -> String {
        report.devices[device].last_error.clone().unwrap_or_default()
    }

    /// It stops within a second, whatever it waits for.
    async fn stopped(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(1), self.running).await.expect("it stops at once").unwrap();
    }
}

const CRC: fn(&[u8]) -> [u8; 2] = |bytes| {
    let mut crc = 0xFFFF_u16;
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 };
        }
    }
    crc.to_le_bytes()
};

/// The far end of a serial line.
struct Line {
    far: pty::Stream,
    path: PathBuf,
    /// While nobody has a port open, its other end fails.
    _near: File,
}

impl Line {
    fn new() -> Self {
        let pty = Pty::new().unwrap();
        let (path, near) = (pty.path().to_owned(), pty.hold().unwrap());
        Self { far: pty.into_stream().unwrap(), path, _near: near }
    }

    fn place(&self) -> Place {
        Place::Path(self.path.clone())
    }

    /// The next request: for which unit.
    async fn asked(&mut self) -> u8 {
        let mut request = [0; 8];
        within("a request", self.far.read_exact(&mut request)).await.unwrap();
        let [unit, rest @ ..] = request;
        assert_eq!(rest[..5], [3, 0, 7, 0, 1], "{request:?}");
        assert_eq!(rest[5..], CRC(&request[..6]));
        unit
    }

    async fn send(&mut self, bytes: &[u8]) {
        within("sending", self.far.write_all(bytes)).await.unwrap();
    }

    /// Unit `unit` says what is in the register.
    async fn answer(&mut self, unit: u8, value: u8) {
        self.send(&answer(unit, value)).await;
    }
}

fn answer(unit: u8, value: u8) -> Vec<u8> {
    let mut frame = vec![unit, 3, 2, 0, value];
    let crc = CRC(&frame);
    frame.extend(crc);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_nobody_elses() {
    let mut line = Line::new();
    let mut bench = Bench::new(line.place(), &[1, 2]);
    assert_eq!(line.asked().await, 1);
    // It answers only once the other was asked.
    assert_eq!(line.asked().await, 2);
    line.answer(1, 11).await;
    assert_eq!(line.asked().await, 2, "what came was not of unit 2: asked once more");
    line.answer(2, 22).await;
    assert_eq!(bench.reading().await, ("unit-2".to_owned(), 22));
    let report =
        bench.reported("unit 1 to be in trouble", |report| report.state == State::DeviceErrors).await;
    assert!(
        Bench::error(&report, "unit-1").starts_with("unit 1, holding register 7: no answer within 300ms")
    );
    assert_eq!(Bench::error(&report, "unit-2"), "");
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_next_question_is_thrown_away() {
    let mut line = Line::new();
    let mut bench = Bench::new(line.place(), &[1]);
    for value in 1..=3 {
        assert_eq!(line.asked().await, 1);
        line.answer(1, value).await;
        assert_eq!(bench.reading().await, ("unit-1".to_owned(), value.into()));
        // Again, unasked.
        line.answer(1, 99).await;
    }
    let report =
        bench.reported("all to be well", |report| report.line.is_some_and(|line| line.frames == 3)).await;
    assert_eq!(report.state, State::Connected);
    let counts = report.line.unwrap();
    assert_eq!((counts.opened, counts.bytes - counts.garbage_bytes), (1, 21));
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_answer_is_asked_for_once_more() {
    let mut line = Line::new();
    let mut bench = Bench::new(line.place(), &[1]);
    assert_eq!(line.asked().await, 1);
    let mut garbled = answer(1, 5);
    garbled[4] ^= 1;
    line.send(&garbled).await;
    assert_eq!(line.asked().await, 1);
    line.answer(1, 5).await;
    assert_eq!(bench.reading().await, ("unit-1".to_owned(), 5));
    let report =
        bench.reported("the answer", |report| report.line.is_some_and(|line| line.frames == 1)).await;
    assert_eq!((report.state, report.devices["unit-1"].failures), (State::Connected, 0));
    assert!(report.line.unwrap().garbage_bytes >= 7);
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_on_which_nothing_makes_sense_is_garbage() {
    let mut line = Line::new();
    let mut bench = Bench::new(line.place(), &[1]);
    let answering = tokio::spawn(async move {
        loop {
            line.asked().await;
            line.send(&[0xF8; 40]).await;
        }
    });
    let report = bench.reported("garbage", |report| report.state == State::Garbage).await;
    let error = Bench::error(&report, "unit-1");
    assert!(
        error.starts_with("unit 1, holding register 7: what came is no valid answer (40 bytes)"),
        "{error}"
    );
    answering.abort();
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_unplugged_between_rounds_is_noticed_at_once() {
    let mut line = Line::new();
    let mut bench = Bench::new(line.place(), &[1]);
    line.asked().await;
    line.answer(1, 1).await;
    bench.reading().await;
    drop(line);
    let report = bench.reported("the end", |report| report.state == State::Unplugged).await;
    assert!(report.last_error.unwrap().contains("unplugged") && report.settled);
    bench.stopped().await;
}

/// A Modbus TCP server: `serve` is called with each connection.
async fn server() -> (TcpListener, Place) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Place::Tcp { host: "127.0.0.1".to_owned(), port })
}

/// The next request on a connection: its number, and for which unit.
async fn request(connection: &mut TcpStream) -> ([u8; 2], u8) {
    let mut request = [0; 12];
    within("a request", connection.read_exact(&mut request)).await.unwrap();
    assert_eq!(request[2..6], [0, 0, 0, 6]);
    assert_eq!(request[7..], [3, 0, 7, 0, 1]);
    ([request[0], request[1]], request[6])
}

async fn respond(connection: &mut TcpStream, number: [u8; 2], unit: u8, registers: &[u8]) {
    let count = u8::try_from(registers.len() * 2).unwrap();
    let mut frame = vec![number[0], number[1], 0, 0, 0, 3 + count, unit, 3, count];
    frame.extend(registers.iter().flat_map(|register| [0, *register]));
    connection.write_all(&frame).await.unwrap();
}

async fn accepted(listener: &TcpListener) -> TcpStream {
    within("a connection", listener.accept()).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_idle_connections_is_no_trouble() {
    let (listener, place) = server().await;
    let mut bench = Bench::new(place, &[1]);
    for value in 1..=3 {
        let mut connection = accepted(&listener).await;
        let (number, unit) = request(&mut connection).await;
        respond(&mut connection, number, unit, &[value]).await;
        assert_eq!(bench.reading().await, ("unit-1".to_owned(), value.into()));
    }
    let report = bench.reported("a round", |report| report.state != State::Starting).await;
    assert_eq!((report.state, report.last_error), (State::Connected, None));
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_request_is_not_taken() {
    let (listener, place) = server().await;
    let mut bench = Bench::new(place, &[1]);
    let mut connection = accepted(&listener).await;
    let (number, unit) = request(&mut connection).await;
    respond(&mut connection, [number[0], number[1].wrapping_add(1)], unit, &[99]).await;
    let mut connection = accepted(&listener).await;
    let (number, unit) = request(&mut connection).await;
    respond(&mut connection, number, unit, &[5]).await;
    assert_eq!(bench.reading().await, ("unit-1".to_owned(), 5));
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_length_is_an_error_of_the_device() {
    let (listener, place) = server().await;
    let mut bench = Bench::new(place, &[1]);
    let serving = tokio::spawn(async move {
        loop {
            let mut connection = accepted(&listener).await;
            let (number, unit) = request(&mut connection).await;
            respond(&mut connection, number, unit, &[1, 2]).await;
        }
    });
    let report = bench.reported("the error", |report| report.state == State::Garbage).await;
    let error = Bench::error(&report, "unit-1");
    assert!(error.ends_with("the answer holds 2 values, 1 were asked for"), "{error}");
    serving.abort();
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_at_which_the_server_hangs_up_costs_the_others_nothing() {
    let (listener, place) = server().await;
    let mut bench = Bench::new(place, &[1, 2, 3]);
    let serving = tokio::spawn(async move {
        loop {
            let mut connection = accepted(&listener).await;
            loop {
                let (number, unit) = request(&mut connection).await;
                if unit == 2 {
                    break;
                }
                respond(&mut connection, number, unit, &[unit]).await;
            }
        }
    });
    for _ in 0..3 {
        assert_eq!(bench.reading().await, ("unit-1".to_owned(), 1));
        assert_eq!(bench.reading().await, ("unit-3".to_owned(), 3));
    }
    let report = bench.reported("the error", |report| report.state == State::DeviceErrors).await;
    let error = Bench::error(&report, "unit-2");
    assert!(error.contains("the connection was closed in place of an answer"), "{error}");
    serving.abort();
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_answer_is_no_end_of_the_connection() {
    let (listener, place) = server().await;
    let mut bench = Bench::new(place, &[1]);
    let serving = tokio::spawn(async move {
        loop {
            let mut connection = accepted(&listener).await;
            let (number, unit) = request(&mut connection).await;
            // Of the right length as the header has it, with two registers announced and half of one sent.
            let frame = [number[0], number[1], 0, 0, 0, 4, unit, 3, 4, 0];
            connection.write_all(&frame).await.unwrap();
            // Until it is closed.
            drop(connection.read(&mut [0]).await);
        }
    });
    let report = bench.reported("the error", |report| report.state == State::Garbage).await;
    assert!(Bench::error(&report, "unit-1").contains("no valid answer (10 bytes)"), "{report:?}");
    serving.abort();
    bench.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_found_when_it_comes() {
    let (listener, place) = server().await;
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut bench = Bench::new(place, &[1]);
    let report = bench.reported("the refusal", |report| report.state == State::Disconnected).await;
    assert!(report.last_error.unwrap().starts_with("tcp://127.0.0.1:") && report.settled);
    let listener = TcpListener::bind(address).await.unwrap();
    let mut connection = accepted(&listener).await;
    let (number, unit) = request(&mut connection).await;
    respond(&mut connection, number, unit, &[5]).await;
    assert_eq!(bench.reading().await, ("unit-1".to_owned(), 5));
    bench.reported("the connection", |report| report.state == State::Connected).await;
    bench.stopped().await;
}
