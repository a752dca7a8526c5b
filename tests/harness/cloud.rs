//! A cloud that does as it is told: an HTTP server in the test, with a script that decides each answer.
//!
//! It writes down every request, and takes batches as the contract wants it of a receiver: one integer `next` for each
//! agent, epoch and stream. It also watches what a receiver has no need to: that a batch which is sent again is the same to
//! the byte, that every number of a batch is a record or lies in a gap, and that batches leave no hole between them.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::http::Message;
use crate::{DEADLINE, free_port, wait_for};

/// What the cloud does with one batch.
#[derive(Clone, Debug)]
pub struct Answer {
    takes: Takes,
    reply: Reply,
    after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    All,
    /// Only the records up to this number.
    Until(u64),
    Nothing,
}

#[derive(Clone, Debug)]
enum Reply {
    /// 200 with `{"next":N}`.
    Next,
    /// This status, these further headers, this body.
    Says { status: u16, headers: String, body: String },
    /// Nothing, until the other side gives up.
    Hang,
    /// The connection is closed without a word.
    Drop,
    /// The connection is closed in the middle of a 200.
    Half,
}

impl Answer {
    /// The batch is taken and acknowledged as `holdfast receive` does it.
    #[must_use]
    pub fn take() -> Self {
        Self { takes: Takes::All, reply: Reply::Next, after: Duration::ZERO }
    }

    /// The records up to `last` are taken, and `{"next":N}` says so.
    #[must_use]
    pub fn take_until(last: u64) -> Self {
        Self { takes: Takes::Until(last), ..Self::take() }
    }

    /// Nothing is taken; the answer has this status and body.
    #[must_use]
    pub fn refuse(status: u16, body: &str) -> Self {
        Self { takes: Takes::Nothing, ..Self::take() }.saying(status, body)
    }

    /// The same, but with this status and body.
    #[must_use]
    pub fn saying(mut self, status: u16, body: &str) -> Self {
        self.reply = Reply::Says { status, headers: String::new(), body: body.to_owned() };
        self
    }

    /// The same, with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Reply::Says { headers, .. } = &mut self.reply {
            headers.push_str(&format!("{name}: {value}\r\n"));
        }
        self
    }

    /// The same, but nobody ever answers.
    #[must_use]
    pub fn hanging(mut self) -> Self {
        self.reply = Reply::Hang;
        self
    }

    /// The same, but the connection is closed instead of an answer.
    #[must_use]
    pub fn dropping(mut self) -> Self {
        self.reply = Reply::Drop;
        self
    }

    /// The same, but the connection is closed in the middle of a 200.
    #[must_use]
    pub fn half_said(mut self) -> Self {
        self.reply = Reply::Half;
        self
    }

    /// The same, but so much later: a slow cloud.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Self {
        self.after = pause;
        self
    }
}

/// One request, and what it was answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// The header `Idempotency-Key`.
    pub key: String,
    /// All headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body after decompression.
    pub decoded: Vec<u8>,
    /// The batch.
    pub batch: Value,
    /// When it came.
    pub at: Instant,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
}

impl Request {
    /// The stream.
    #[must_use]
    pub fn stream(&self) -> &str {
        self.batch["stream"].as_str().unwrap_or_default()
    }

    /// The first number.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.batch["first"].as_u64().unwrap_or_default()
    }

    /// The last number.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.batch["last"].as_u64().unwrap_or_default()
    }

    /// The records.
    #[must_use]
    pub fn records(&self) -> &[Value] {
        self.batch["records"].as_array().map(Vec::as_slice).unwrap_or_default()
    }
}

/// A gap that was declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first missing number.
    pub first: u64,
    /// The last missing number.
    pub last: u64,
    /// Why.
    pub reason: String,
}

type Script = Box<dyn FnMut(&Request) -> Answer + Send>;

struct State {
    script: Script,
    requests: Vec<Request>,
    next: BTreeMap<(String, String, String), u64>,
    records: BTreeMap<String, Vec<Value>>,
    gaps: BTreeMap<String, Vec<Gap>>,
    bodies: HashMap<String, Vec<u8>>,
    faults: Vec<String>,
}

/// The cloud.
pub struct Cloud {
    port: u16,
    state: Arc<Mutex<State>>,
    server: Option<JoinHandle<()>>,
}

impl Cloud {
    /// A cloud that takes everything.
    ///
    /// # Panics
    /// If it finds no port.
    pub async fn start() -> Self {
        let state = State {
            script: Box::new(|_| Answer::take()),
            requests: Vec::new(),
            next: BTreeMap::new(),
            records: BTreeMap::new(),
            gaps: BTreeMap::new(),
            bodies: HashMap::new(),
            faults: Vec::new(),
        };
        let mut cloud = Self { port: free_port(), state: Arc::new(Mutex::new(state)), server: None };
        cloud.reopen().await;
        cloud
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where batches are to be posted.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1/telemetry", self.port)
    }

    /// A sink `cloud` that posts here, with short pauses, and these further lines.
    #[must_use]
    pub fn sink(&self, lines: &str) -> String {
        format!(
            "[sinks.cloud]\ntype = \"http\"\nurl = \"{}\"\n\
             retry = {{ initial = \"50ms\", max = \"200ms\" }}\n{lines}\n",
            self.url()
        )
    }

    /// From now on, `script` decides each answer.
    ///
    /// # Panics
    /// If an earlier script did.
    pub fn script(&self, script: impl FnMut(&Request) -> Answer + Send + 'static) {
        self.state().script = Box::new(script);
    }

    /// Nobody listens any more; connections are cut.
    pub fn close(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }

    /// Listens again.
    ///
    /// # Panics
    /// If the port is not to be had.
    pub async fn reopen(&mut self) {
        let port = self.port;
        let listener = wait_for("the cloud's port", DEADLINE, async || {
            TcpListener::bind(("127.0.0.1", port)).await.ok()
        })
        .await;
        let state = Arc::clone(&self.state);
        self.server = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&state)));
            }
        }));
    }

    /// All requests so far.
    ///
    /// # Panics
    /// If a script did.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// How many requests so far.
    ///
    /// # Panics
    /// If a script did.
    #[must_use]
    pub fn request_count(&self) -> usize {
        self.state().requests.len()
    }

    /// The records taken of a stream, in order.
    ///
    /// # Panics
    /// If a script did.
    #[must_use]
    pub fn records(&self, stream: &str) -> Vec<Value> {
        self.state().records.get(stream).cloned().unwrap_or_default()
    }

    /// The gaps declared of a stream, in order.
    ///
    /// # Panics
    /// If a script did.
    #[must_use]
    pub fn gaps(&self, stream: &str) -> Vec<Gap> {
        self.state().gaps.get(stream).cloned().unwrap_or_default()
    }

    /// Waits until at least so many records of a stream are taken.
    ///
    /// # Panics
    /// If they do not come.
    pub async fn has(&self, stream: &str, count: usize) {
        let what = format!("{count} {stream} at the cloud");
        wait_for(&what, DEADLINE, async || (self.count(stream) >= count).then_some(())).await;
    }

    /// How many records of a stream are taken.
    ///
    /// # Panics
    /// If a script did.
    #[must_use]
    pub fn count(&self, stream: &str) -> usize {
        self.state().records.get(stream).map_or(0, Vec::len)
    }

    /// Waits until `condition` holds of the requests so far.
    ///
    /// # Panics
    /// If it never does.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&[Request]) -> bool) {
        wait_for(what, DEADLINE, async || condition(&self.state().requests).then_some(())).await;
    }

    /// Fails if any batch was not as the contract says, or a repeated one was not the same.
    ///
    /// # Panics
    /// If so.
    pub fn assert_well_formed(&self) {
        let state = self.state();
        assert!(state.faults.is_empty(), "the cloud complains: {:#?}", state.faults);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.close();
    }
}

/// One connection.
async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) -> io::Result<()> {
    let mut stream = BufStream::new(stream);
    while let Some(message) = Message::read(&mut stream).await? {
        let (answer, place) = state.lock().unwrap().decide(&message);
        tokio::time::sleep(answer.after).await;
        let next = state.lock().unwrap().take(place, answer.takes);
        let (status, headers, body) = match answer.reply {
            Reply::Next => {
                (200, "Content-Type: application/json\r\n".to_owned(), format!("{{\"next\":{next}}}"))
            }
            Reply::Says { status, headers, body } => (status, headers, body),
            Reply::Hang => return std::future::pending().await,
            Reply::Drop => return Ok(()),
            Reply::Half => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"next\":").await?;
                return stream.flush().await;
            }
        };
        state.lock().unwrap().answered(place, status);
        let head = format!("HTTP/1.1 {status} Said\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.flush().await?;
    }
    Ok(())
}

impl State {
    /// Writes a request down, and asks the script.
    fn decide(&mut self, message: &Message) -> (Answer, usize) {
        let header = |name: &str| message.headers.get(name).cloned().unwrap_or_default();
        let decoded = decode(&header("content-encoding"), &message.body);
        let batch = serde_json::from_slice(&decoded).unwrap_or(Value::Null);
        let request = Request {
            key: header("idempotency-key"),
            headers: message.headers.clone(),
            decoded,
            batch,
            at: Instant::now(),
            status: None,
        };
        self.check(&request);
        let answer = (self.script)(&request);
        self.requests.push(request);
        (answer, self.requests.len() - 1)
    }

    /// What goes for every batch, whatever it is answered.
    fn check(&mut self, request: &Request) {
        let batch = &request.batch;
        let text = |name: &str| batch[name].as_str().unwrap_or_default();
        let (first, last) = (request.first(), request.last());
        let key = format!("{}/{}/{}/{first}-{last}", text("agent"), text("epoch"), text("stream"));
        let mut faults = Vec::new();
        if key != request.key {
            faults.push(format!("the key {} is not {key}", request.key));
        }
        if batch["format"] != 1 || first == 0 || last < first {
            faults.push(format!("{key} is no batch: {batch}"));
        }
        let before = self.bodies.entry(key.clone()).or_insert_with(|| request.decoded.clone());
        if *before != request.decoded {
            faults.push(format!("{key} was sent again with another body"));
        }
        let mut expected = first;
        let mut gaps = read_gaps(batch).into_iter().peekable();
        for record in request.records() {
            while let Some(gap) = gaps.next_if(|gap| gap.first == expected) {
                expected = gap.last + 1;
            }
            if record["seq"] != expected {
                faults.push(format!("{key} has {} where {expected} belongs", record["seq"]));
            }
            expected += 1;
        }
        while let Some(gap) = gaps.next_if(|gap| gap.first == expected) {
            expected = gap.last + 1;
        }
        if expected != last + 1 || gaps.next().is_some() {
            faults.push(format!("{key} does not account for every number"));
        }
        self.faults.extend(faults);
    }

    /// Notes the answer. What was refused for good need not come again as it was: a record of it may be a gap by then.
    fn answered(&mut self, place: usize, status: u16) {
        let request = &mut self.requests[place];
        request.status = Some(status);
        if matches!(status, 400 | 413 | 422) {
            self.bodies.remove(&request.key);
        }
    }

    /// Takes what is new, and says what is wanted next.
    fn take(&mut self, place: usize, takes: Takes) -> u64 {
        let request = &self.requests[place];
        let text = |name: &str| request.batch[name].as_str().unwrap_or_default().to_owned();
        let stream = text("stream");
        let next = self.next.entry((text("agent"), text("epoch"), stream.clone())).or_insert(1);
        let until = match takes {
            Takes::All => request.last(),
            Takes::Until(last) => last.min(request.last()),
            Takes::Nothing => return *next,
        };
        if request.first() > *next {
            self.faults.push(format!("{} leaves a hole: {next} is wanted", request.key));
        }
        let is_new = |seq: u64| seq >= *next && seq <= until;
        let records = self.records.entry(stream.clone()).or_default();
        records.extend(
            request.records().iter().filter(|record| is_new(record["seq"].as_u64().unwrap())).cloned(),
        );
        let gaps = self.gaps.entry(stream).or_default();
        // Of one that is taken in part, that part: the rest comes again.
        let part = |gap: Gap| Gap { first: gap.first.max(*next), last: gap.last.min(until), ..gap };
        gaps.extend(read_gaps(&request.batch).into_iter().map(part).filter(|gap| gap.first <= gap.last));
        *next = (*next).max(until + 1);
        *next
    }
}

fn read_gaps(batch: &Value) -> Vec<Gap> {
    let gaps = batch["gaps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let read = |gap: &Value| Gap {
        first: gap["first"].as_u64().unwrap_or_default(),
        last: gap["last"].as_u64().unwrap_or_default(),
        reason: gap["reason"].as_str().unwrap_or_default().to_owned(),
    };
    gaps.iter().map(read).collect()
}

fn decode(encoding: &str, body: &[u8]) -> Vec<u8> {
    match encoding {
        "zstd" => zstd::stream::decode_all(body).unwrap_or_default(),
        "gzip" => {
            let mut decoded = Vec::new();
            // What cannot be read is no batch, and complained of as such.
            drop(flate2::read::GzDecoder::new(body).read_to_end(&mut decoded));
            decoded
        }
        _ => body.to_vec(),
    }
}
