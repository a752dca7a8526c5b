//! The HTTP side: requests to batches, outcomes to answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::{debug, error, warn};

use super::Error;
use super::batch::{Batch, Encoding, MAX_BODY_BYTES, Refusal};
use super::books::StreamBooks;
use super::folder::Folder;
use super::outage::{Behaviour, Outage};
use crate::wire::Answer;

/// A body must have arrived after this: 60 s, twice the agent's own time-out for a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests whose bodies are in memory at once; others wait.
const REQUESTS_AT_ONCE: usize = 32;

/// What all requests share.
#[derive(Debug)]
pub(super) struct Desk {
    folder: Mutex<Folder>,
    places: Semaphore,
    outage: Outage,
}

impl Desk {
    pub(super) fn new(folder: Folder, outage: Outage) -> Self {
        Self { folder: Mutex::new(folder), places: Semaphore::new(REQUESTS_AT_ONCE), outage }
    }

    pub(super) fn outage(&self) -> &Outage {
        &self.outage
    }

    /// Does `what` with the folder, off the async threads: it may wait for the disk.
    pub(super) async fn with_folder<T: Send + 'static>(
        self: &Arc<Self>,
        what: impl FnOnce(&mut Folder) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let desk = Arc::clone(self);
        off_thread(move || {
            let mut folder = desk.folder.lock().unwrap_or_else(|poisoned| {
                let mut folder = poisoned.into_inner();
                folder.distrust();
                folder
            });
            desk.folder.clear_poison();
            what(&mut folder)
        })
        .await?
    }
}

/// Runs `what` where it may block.
async fn off_thread<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(what).await.map_err(|failure| {
        if failure.is_panic() {
            error!(%failure, "a bug: the receiver goes on after a recovery");
        }
        Error::Interrupted
    })
}

/// Everything the receiver answers. Any path takes batches, so that an agent's URL may say what it likes.
pub(super) fn router(desk: Arc<Desk>) -> Router {
    Router::new().fallback(answer).layer(DefaultBodyLimit::max(MAX_BODY_BYTES)).with_state(desk)
}

async fn answer(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    if desk.outage.behaviour() != Behaviour::Normal {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::CONNECTION, "close")]).into_response();
    }
    let (method, path) = (request.method(), request.uri().path());
    if method == Method::POST {
        take(&desk, request).await.unwrap_or_else(refused)
    } else if method != Method::GET && method != Method::HEAD {
        not_allowed("GET, HEAD, POST")
    } else if path == "/healthz" {
        "ok\n".into_response()
    } else if path == "/" {
        overview(&desk).await
    } else {
        not_allowed("POST")
    }
}

async fn take(desk: &Arc<Desk>, request: Request) -> Result<Response, Refusal> {
    check_content_type(request.headers())?;
    let encoding = content_encoding(request.headers())?;
    let place = desk.places.acquire().await.expect("the semaphore is never closed");
    let raw = read_body(request).await?;
    let taken = enter(desk, raw, encoding).await?;
    drop(place);
    Ok(match taken {
        Ok(next) => json(StatusCode::OK, &Answer { next }),
        Err(failure) => unavailable(&failure),
    })
}

/// The outer error is the sender's fault, the inner one ours.
async fn enter(desk: &Arc<Desk>, raw: Bytes, encoding: Encoding) -> Result<Result<u64, Error>, Refusal> {
    // Reading a batch takes as long as writing it, and must not keep other connections waiting.
    let (batch, raw) = match off_thread(move || Batch::read(&raw, encoding).map(|batch| (batch, raw))).await {
        Ok(read) => read?,
        Err(failure) => return Ok(Err(failure)),
    };
    let next = desk
        .with_folder(move |folder| {
            let next = folder.take(&batch, &raw, encoding);
            let Batch { agent, stream, first, last, .. } = &batch;
            debug!(agent, stream, first, last, ?next, "batch");
            next
        })
        .await;
    Ok(next)
}

async fn read_body(request: Request) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Refusal::TooLong),
        Ok(Err(_)) => Err(Refusal::Incomplete),
        Err(_) => Err(Refusal::TooSlow { seconds: BODY_TIMEOUT.as_secs() }),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = header_text(headers, &header::CONTENT_TYPE);
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Refusal::ContentType { content_type: text })
    }
}

fn content_encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let text = header_text(headers, &header::CONTENT_ENCODING);
    Encoding::from_header(&text).ok_or(Refusal::Encoding { encoding: text })
}

/// The values of a header as HTTP reads several of one name: joined by commas.
fn header_text(headers: &HeaderMap, name: &HeaderName) -> String {
    let values: Vec<_> =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    values.join(", ")
}

async fn overview(desk: &Arc<Desk>) -> Response {
    #[derive(Serialize)]
    struct Overview {
        streams: Vec<StreamBooks>,
    }
    match desk.with_folder(Folder::books).await {
        Ok(streams) => json(StatusCode::OK, &Overview { streams }),
        Err(failure) => unavailable(&failure),
    }
}

#[derive(Serialize)]
struct Fault {
    error: String,
}

fn refused(refusal: Refusal) -> Response {
    warn!(error = %refusal, "refused a request");
    let mut response = json(refusal.status(), &Fault { error: refusal.to_string() });
    if matches!(refusal, Refusal::Encoding { .. }) {
        // RFC 9110, section 15.5.16.
        response
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, HeaderValue::from_static("zstd, gzip, identity"));
    }
    response
}

fn unavailable(failure: &Error) -> Response {
    json(StatusCode::SERVICE_UNAVAILABLE, &Fault { error: failure.to_string() })
}

fn not_allowed(allow: &'static str) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, allow)]).into_response()
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(failure) => {
            error!(%failure, "cannot write an answer");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
