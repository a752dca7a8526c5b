//! A cloud that counts: takes batches, checks that no number is missing or doubled, answers with the next one.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, bail, ensure};

/// What has come so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received {
    /// Records of the readings, each once.
    pub(crate) readings: u64,
    pub(crate) windows: u64,
    pub(crate) requests: u64,
    /// Bodies of readings, as they were on the wire.
    pub(crate) readings_bytes: u64,
    /// Everything: heads and bodies, all streams.
    pub(crate) wire_bytes: u64,
    /// The first thing that was wrong, if anything was.
    pub(crate) fault: Option<String>,
    next: HashMap<String, u64>,
}

/// The cloud, as long as it is not dropped.
pub(crate) struct Cloud {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    ended: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Cloud {
    /// Begins to listen; on a port of the system's choice if `port` is 0.
    pub(crate) fn start(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).context("the cloud cannot listen")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { port, shared, accepting: Some(accepting) })
    }

    /// What has come so far.
    pub(crate) fn received(&self) -> Received {
        self.shared.received().clone()
    }

    /// The number of readings that have come.
    pub(crate) fn readings(&self) -> u64 {
        self.shared.received().readings
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        for connection in self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            drop(connection.shutdown(Shutdown::Both));
        }
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

impl Shared {
    fn received(&self) -> std::sync::MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if let Ok(copy) = stream.try_clone() {
            shared.connections.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            if let Err(error) = serve(&stream, &shared)
                && !shared.ended.load(Ordering::SeqCst)
            {
                shared.received().fault.get_or_insert(format!("{error:#}"));
            }
        });
    }
}

/// Serves one connection until it is closed.
fn serve(stream: &TcpStream, shared: &Shared) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    let (mut line, mut body, mut text) = (String::new(), Vec::new(), Vec::with_capacity(4 << 20));
    loop {
        let mut head_bytes = 0;
        let mut body_bytes = 0;
        loop {
            line.clear();
            let count = reader.read_line(&mut line)?;
            if count == 0 {
                return Ok(());
            }
            head_bytes += count;
            let header = line.trim_end();
            if header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                body_bytes = value.trim().parse()?;
            }
        }
        body.resize(body_bytes, 0);
        reader.read_exact(&mut body)?;
        text.clear();
        decompressor.decompress_to_buffer(&body, &mut text).context("a body is no zstd")?;
        let next = shared.received().take(&text, head_bytes, body_bytes)?;
        let answer = format!("{{\"next\":{next}}}");
        write!(&*stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len())?;
    }
}

impl Received {
    /// Takes one batch, and says what is wanted next.
    fn take(&mut self, text: &[u8], head_bytes: usize, body_bytes: usize) -> anyhow::Result<u64> {
        let end = find(text, b"\"records\":[").context("a batch without records")?;
        let head = std::str::from_utf8(&text[..end])?;
        let stream = between(head, "\"stream\":\"", "\"")?.to_owned();
        let first: u64 = between(head, "\"first\":", ",")?.parse()?;
        let last: u64 = between(head, "\"last\":", ",")?.parse()?;
        self.requests += 1;
        self.wire_bytes += (head_bytes + body_bytes) as u64;
        let next = self.next.get(&stream).copied().unwrap_or(1);
        ensure!(first <= next, "{stream}: {first} came where {next} was wanted");
        let mut seq = first;
        let mut records = &text[end + "\"records\":[".len()..];
        while let Some(rest) = records.strip_prefix(b"{\"seq\":") {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let found: u64 = std::str::from_utf8(&rest[..digits])?.parse()?;
            ensure!(found == seq, "{stream}: record {found} came where {seq} was wanted");
            seq += 1;
            // No record is shorter; what is left to be looked through is half of it.
            let skipped = rest.get(100..).unwrap_or_default();
            match find(skipped, b"}},{\"seq\":") {
                Some(place) => records = &skipped[place + 3..],
                None => break,
            }
        }
        if seq != last + 1 {
            bail!("{stream}: the batch {first} to {last} ends before {seq}");
        }
        let fresh = seq.saturating_sub(next);
        match stream.as_str() {
            "readings" => {
                self.readings += fresh;
                self.readings_bytes += body_bytes as u64;
            }
            "windows" => self.windows += fresh,
            _ => {}
        }
        let next = next.max(seq);
        self.next.insert(stream, next);
        Ok(next)
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    let first = what[0];
    let mut from = 0;
    while let Some(place) = text[from..].iter().position(|byte| *byte == first) {
        if text[from + place..].starts_with(what) {
            return Some(from + place);
        }
        from += place + 1;
    }
    None
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> anyhow::Result<&'a str> {
    let (_, rest) = text.split_once(before).with_context(|| format!("a batch without {before}"))?;
    Ok(rest.split_once(after).with_context(|| format!("a batch that ends after {before}"))?.0)
}
