//! Room 7: the request, and what came back.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use tracing::debug;

use super::answer::{Answer, retry_after};
use super::settings::{Compression, Settings};
use crate::blocking::blocking;
use crate::clock::Clock;
use crate::{secret, tls};

/// Of an answer's body, this much is read; more is no answer to a batch but a page for people.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// A success that is longer is given up as broken off: it would be paid for, to the end of the time-out, at each attempt.
const MAX_READ_BYTES: usize = 16 << 20;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Why no client can be made for a sink.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Its certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Its URL or settings cannot be used.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
}

/// One request to a sink.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// The value of the header `Idempotency-Key`.
    pub key: &'a str,
    /// The batch, compressed as configured.
    pub body: &'a Bytes,
}

/// What an attempt comes to, at some later time.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send + 'a>>;

/// How batches reach a sink: HTTP, or what a simulation puts in its place.
pub trait Transport: Send + Sync {
    /// Sends a batch and reads the whole answer. Gives up by itself after the sink's `timeout`.
    fn send<'a>(&'a self, post: Post<'a>) -> Sending<'a>;
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A header's secret cannot be read, or is no header value.
    #[error("cannot set the header {name}")]
    Header {
        /// Its name.
        name: String,
        /// Why.
        source: HeaderError,
    },
    /// Not reached, broken off, or too slow.
    #[error("{0}")]
    Request(String),
    /// A success whose body does not end.
    #[error("status {status}, with an answer of more than {} MiB; check that the URL is that of an ingest endpoint", MAX_READ_BYTES >> 20)]
    Endless {
        /// Its status.
        status: u16,
    },
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Its secret cannot be read.
    #[error(transparent)]
    Secret(#[from] secret::Error),
    /// It is no header.
    #[error("its name or value has characters that a header must not have")]
    Characters,
}

/// A connection to one sink.
#[derive(Debug)]
pub(super) struct Endpoint {
    client: reqwest::Client,
    url: String,
    timeout: Duration,
    encoding: Option<HeaderValue>,
    headers: Vec<(String, secret::Secret)>,
    clock: Clock,
}

impl Transport for Endpoint {
    fn send<'a>(&'a self, post: Post<'a>) -> Sending<'a> {
        Box::pin(self.post(post))
    }
}

impl Endpoint {
    pub(super) fn new(settings: &Settings, clock: Clock) -> Result<Self, SetupError> {
        // Always given, because without one the client would look for a crypto provider of the process.
        let tls = if settings.url.starts_with("https:") {
            tls::client_config(&settings.tls)?
        } else {
            tls::no_client_config()?
        };
        let builder = reqwest::Client::builder()
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(settings.timeout.min(Duration::from_secs(10)))
            .timeout(settings.timeout)
            .pool_max_idle_per_host(1)
            .tcp_nodelay(true)
            .tls_backend_preconfigured((*tls).clone());
        Ok(Self {
            client: builder.build().map_err(SetupError::Client)?,
            url: settings.url.clone(),
            timeout: settings.timeout,
            encoding: match settings.compression {
                Compression::Zstd => Some(HeaderValue::from_static("zstd")),
                Compression::Gzip => Some(HeaderValue::from_static("gzip")),
                Compression::None => None,
            },
            headers: settings.headers.clone(),
            clock,
        })
    }

    async fn post(&self, post: Post<'_>) -> Result<Answer, Failure> {
        let mut headers = self.secret_headers().await?;
        let secrets: Vec<HeaderValue> = headers.values().cloned().collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(encoding) = &self.encoding {
            headers.insert(CONTENT_ENCODING, encoding.clone());
        }
        let key = HeaderValue::from_str(post.key).expect("an agent's id has only plain characters");
        headers.insert(IDEMPOTENCY_KEY, key);

        let request = self.client.post(&self.url).headers(headers).body(post.body.clone());
        let mut response = request.send().await.map_err(|error| self.failure(error))?;
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        // By the clock of who names the time, if it is told: ours may not be set.
        let now = header(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        let now = now.unwrap_or_else(|| self.clock.as_system_time());
        let retry_after = header(RETRY_AFTER).and_then(|value| retry_after(value, now));
        let mut body = Vec::new();
        let mut read_bytes = 0;
        // To the end: an answer that breaks off is none.
        while let Some(part) = response.chunk().await.map_err(|error| self.failure(error))? {
            read_bytes += part.len();
            if body.len() < MAX_ANSWER_BYTES {
                body.extend_from_slice(&part[..part.len().min(MAX_ANSWER_BYTES - body.len())]);
            } else if !(200..300).contains(&status) {
                // A refusal says what it says at its beginning; some go on for ever.
                break;
            }
            if read_bytes > MAX_READ_BYTES {
                return Err(Failure::Endless { status });
            }
        }
        if !(200..300).contains(&status) {
            body = self.without_secrets(&body, &secrets);
        }
        debug!(key = %post.key, status, "batch answered");
        Ok(Answer { status, body, retry_after })
    }

    /// The configured headers; secrets are read anew, so that a rotated one is used at once.
    async fn secret_headers(&self) -> Result<HeaderMap, Failure> {
        let is_file = |(_, value): &(_, secret::Secret)| matches!(value, secret::Secret::File(_));
        if self.headers.iter().any(is_file) {
            // A file may lie on a disk that hangs.
            let headers = self.headers.clone();
            return blocking(move || revealed(&headers)).await;
        }
        revealed(&self.headers)
    }

    /// A refusal is shown to people, and some repeat what they refuse: the token.
    fn without_secrets(&self, body: &[u8], headers: &[HeaderValue]) -> Vec<u8> {
        /// "Bearer" and "Basic" are no secrets, and nothing of this length is a good one.
        const LEAST_SECRET_BYTES: usize = 8;
        let query = self.url.split_once('?').map_or("", |(_, query)| query);
        let in_headers =
            headers.iter().filter_map(|value| value.to_str().ok()).flat_map(str::split_whitespace);
        let in_url = query.split(['&', '=', '#']);
        let mut text = String::from_utf8_lossy(body).into_owned();
        for secret in in_headers.chain(in_url).filter(|secret| secret.len() >= LEAST_SECRET_BYTES) {
            text = text.replace(secret, "***");
        }
        text.into_bytes()
    }

    /// In words, without the URL, which may hold a token.
    fn failure(&self, error: reqwest::Error) -> Failure {
        let what = match () {
            () if error.is_timeout() => format!("no answer within {:?}", self.timeout),
            () if error.is_connect() => "cannot connect".to_owned(),
            () => "the connection broke off".to_owned(),
        };
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Failure::Request(format!("{what}: {cause}"))
    }
}

fn revealed(headers: &[(String, secret::Secret)]) -> Result<HeaderMap, Failure> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let of = |source| Failure::Header { name: name.clone(), source };
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| of(HeaderError::Characters))?;
        let value = value.reveal().map_err(|error| of(error.into()))?;
        let mut value = HeaderValue::from_str(&value).map_err(|_| of(HeaderError::Characters))?;
        value.set_sensitive(true);
        map.insert(key, value);
    }
    Ok(map)
}
