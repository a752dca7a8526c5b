//! A request body, from bytes to a checked batch. Pure.
//!
//! In: what came over the network. Out: a [`Batch`] of which every number from `first` to `last` is exactly one of a
//! record and a member of a gap, in ascending order; or a [`Refusal`] that says what is wrong, and where.

use std::io::Read;
use std::ops::Range;

use axum::http::StatusCode;
use bytes::Bytes;

use crate::stream::Epoch;
use crate::wire;

/// A body may be this long, compressed and uncompressed: 64 MiB. An agent's batches are 256 KiB unless it is told
/// otherwise; this only keeps a bomb from taking the memory.
pub(super) const MAX_BODY_BYTES: usize = 64 << 20;

/// A zstd frame may ask for a window of at most this (as a power of two): more than the longest body has no use.
const MAX_ZSTD_WINDOW_LOG: u32 = 26;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// The encoding that a `Content-Encoding` header names.
    pub(super) fn from_header(value: &str) -> Option<Self> {
        match value.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The byte that stands for it in the journal.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Identity => 0,
            Self::Gzip => 1,
            Self::Zstd => 2,
        }
    }

    /// The encoding of that byte.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Identity, Self::Gzip, Self::Zstd].into_iter().find(|encoding| encoding.code() == code)
    }
}

/// A batch that holds together. Owns its body; records are spans of it.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) agent: String,
    pub(super) epoch: Epoch,
    pub(super) stream: String,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) previous: Option<wire::Previous>,
    pub(super) gaps: Vec<wire::BatchGap>,
    pub(super) records: Vec<Record>,
    body: Bytes,
}

/// One record of a batch.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) seq: u64,
    span: Range<usize>,
}

impl Batch {
    /// Reads and checks a body as it came over the network.
    pub(super) fn read(raw: &Bytes, encoding: Encoding) -> Result<Self, Refusal> {
        let body = decompress(raw, encoding)?;
        // Serde takes an array for a struct as well; the format does not.
        if first_byte(&body) != Some(b'{') {
            return Err(Refusal::NoObject);
        }
        let batch: wire::Batch<'_> = serde_json::from_slice(&body)?;
        if batch.format != wire::FORMAT {
            return Err(Refusal::Format { format: batch.format });
        }
        check_agent(&batch.agent)?;
        check_stream(&batch.stream)?;
        let records =
            batch.records.iter().map(|raw| Record::read(raw.get(), &body)).collect::<Result<Vec<_>, _>>()?;
        let wire::Batch { agent, epoch, stream, first, last, previous, gaps, .. } = batch;
        check_numbers(first, last, &records, &gaps)?;
        Ok(Self { agent, epoch, stream, first, last, previous, gaps, records, body })
    }

    /// The record exactly as it was sent.
    pub(super) fn text(&self, record: &Record) -> &[u8] {
        &self.body[record.span.clone()]
    }
}

impl Record {
    /// `text` is a part of `body`.
    fn read(text: &str, body: &[u8]) -> Result<Self, Refusal> {
        if !text.starts_with('{') {
            return Err(Refusal::NoObject);
        }
        let head: wire::RecordHead = serde_json::from_str(text)?;
        let start = text.as_ptr().addr() - body.as_ptr().addr();
        Ok(Self { seq: head.seq, span: start..start + text.len() })
    }
}

/// Why a request is refused. What is the sender's fault for good is a 400: the sender splits the batch until the
/// refused records are alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the body is longer than {MAX_BODY_BYTES} bytes; send smaller batches")]
    TooLong,
    #[error("the body did not arrive within {seconds} s")]
    TooSlow { seconds: u64 },
    #[error("the body did not arrive whole")]
    Incomplete,
    #[error("content-encoding {encoding:?} is not known; use zstd, gzip or identity")]
    Encoding { encoding: String },
    #[error("content-type {content_type:?} is not known; use application/json")]
    ContentType { content_type: String },
    #[error("cannot decompress the body as {encoding:?}: {source}")]
    Damaged { encoding: Encoding, source: std::io::Error },
    #[error("the batch is not valid JSON of the format: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a batch and each of its records is a JSON object")]
    NoObject,
    #[error("format {format} is not known; this receiver reads format {}", wire::FORMAT)]
    Format { format: u32 },
    #[error("agent {agent:?} is no agent id: 1 to 64 of A-Z a-z 0-9 . _ - and not dots alone")]
    Agent { agent: String },
    #[error("stream {stream:?} is no stream name: 1 to 64 of A-Z a-z 0-9 _ - and not \"gaps\"")]
    Stream { stream: String },
    #[error("first {first}, last {last}: numbers begin at 1, end below 2^63, and first is not above last")]
    Range { first: u64, last: u64 },
    #[error("number {seq} of {what} lies outside of first {first} to last {last}")]
    Outside { what: Part, seq: u64, first: u64, last: u64 },
    #[error("gap {first} to {last} ends before it begins")]
    GapBackwards { first: u64, last: u64 },
    #[error("gap {first} to {last} has a reason longer than {MAX_REASON_BYTES} bytes")]
    GapReason { first: u64, last: u64 },
    #[error("number {seq} of {what} comes where {wanted} was due: each number once, in ascending order")]
    Again { what: Part, seq: u64, wanted: u64 },
    #[error("number {seq} is neither a record of the batch nor in one of its gaps")]
    Missing { seq: u64 },
}

impl Refusal {
    /// The status of the answer.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Encoding { .. } | Self::ContentType { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Incomplete
            | Self::Damaged { .. }
            | Self::Json(_)
            | Self::NoObject
            | Self::Format { .. }
            | Self::Agent { .. }
            | Self::Stream { .. }
            | Self::Range { .. }
            | Self::Outside { .. }
            | Self::GapBackwards { .. }
            | Self::GapReason { .. }
            | Self::Again { .. }
            | Self::Missing { .. } => StatusCode::BAD_REQUEST,
        }
    }
}

/// A part of a batch that has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Record,
    Gap,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Record => "a record",
            Self::Gap => "a gap",
        })
    }
}

/// Reasons are short words; this bounds what a stranger may write into `gaps.ndjson`.
const MAX_REASON_BYTES: usize = 128;

fn decompress(raw: &Bytes, encoding: Encoding) -> Result<Bytes, Refusal> {
    let damaged = |source| Refusal::Damaged { encoding, source };
    match encoding {
        Encoding::Identity if raw.len() > MAX_BODY_BYTES => Err(Refusal::TooLong),
        Encoding::Identity => Ok(raw.clone()),
        Encoding::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(&raw[..]), encoding),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&raw[..]).map_err(damaged)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(damaged)?;
            read_bounded(decoder, encoding)
        }
    }
}

fn read_bounded(decoder: impl Read, encoding: Encoding) -> Result<Bytes, Refusal> {
    let mut body = Vec::new();
    let limit = u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX);
    decoder.take(limit + 1).read_to_end(&mut body).map_err(|source| Refusal::Damaged { encoding, source })?;
    if body.len() > MAX_BODY_BYTES { Err(Refusal::TooLong) } else { Ok(body.into()) }
}

fn first_byte(body: &[u8]) -> Option<u8> {
    body.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}

/// An agent's id names a folder, so "." and ".." must not pass.
fn check_agent(agent: &str) -> Result<(), Refusal> {
    let well_formed = (1..=64).contains(&agent.len())
        && agent.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && agent.bytes().any(|byte| byte != b'.');
    if well_formed { Ok(()) } else { Err(Refusal::Agent { agent: shortened(agent) }) }
}

/// A stream's name names a file beside `gaps.ndjson`.
fn check_stream(stream: &str) -> Result<(), Refusal> {
    let well_formed = (1..=64).contains(&stream.len())
        && stream.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        && stream != "gaps";
    if well_formed { Ok(()) } else { Err(Refusal::Stream { stream: shortened(stream) }) }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Every number from `first` to `last` is in exactly one place, and places ascend.
fn check_numbers(first: u64, last: u64, records: &[Record], gaps: &[wire::BatchGap]) -> Result<(), Refusal> {
    if first == 0 || first > last || last >= 1 << 63 {
        return Err(Refusal::Range { first, last });
    }
    let mut cover = Cover { first, last, wanted: first };
    let mut gaps = gaps.iter().peekable();
    for record in records {
        while let Some(gap) = gaps.next_if(|gap| gap.first <= record.seq) {
            cover.gap(gap)?;
        }
        cover.place(Part::Record, record.seq, record.seq)?;
    }
    for gap in gaps {
        cover.gap(gap)?;
    }
    if cover.wanted <= last { Err(Refusal::Missing { seq: cover.wanted }) } else { Ok(()) }
}

/// How far the numbers of a batch are accounted for.
struct Cover {
    first: u64,
    last: u64,
    wanted: u64,
}

impl Cover {
    fn gap(&mut self, gap: &wire::BatchGap) -> Result<(), Refusal> {
        let wire::BatchGap { first, last, ref reason } = *gap;
        if first > last {
            return Err(Refusal::GapBackwards { first, last });
        }
        if reason.len() > MAX_REASON_BYTES {
            return Err(Refusal::GapReason { first, last });
        }
        self.place(Part::Gap, first, last)
    }

    fn place(&mut self, what: Part, from: u64, to: u64) -> Result<(), Refusal> {
        if let Some(seq) = [from, to].into_iter().find(|seq| !(self.first..=self.last).contains(seq)) {
            return Err(Refusal::Outside { what, seq, first: self.first, last: self.last });
        }
        if from < self.wanted {
            return Err(Refusal::Again { what, seq: from, wanted: self.wanted });
        }
        if from > self.wanted {
            return Err(Refusal::Missing { seq: self.wanted });
        }
        self.wanted = to + 1;
        Ok(())
    }
}
