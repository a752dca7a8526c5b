//! The admin interface over HTTP: on TCP for reading, on a Unix socket for what is not everyone's.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::dead_letters::{DeadLetters, Entry, Page, Selection};
use super::health::{Health, Readiness};
use super::host::Hosts;
use super::listen::{Bounded, SocketFile, bind_socket};
use super::{Inputs, Settings, Status, metrics, page};
use crate::store::DeadLetter;

/// Dead letters listed in one answer where the client does not say.
const DEFAULT_LIMIT: usize = 100;
/// Dead letters listed in one answer at most.
const MAX_LIMIT: usize = 1_000;
/// How long answers under way may take when we stop.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Why the admin interface cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened at.
    #[error("cannot listen at admin.listen {listen}; stop what uses it or choose another port")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot create admin.socket {}; its folder must exist and be writable", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is in its place.
    #[error("admin.socket {} is there already and is no socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process answers there.
    #[error("admin.socket {} is in use by {by}; stop it or choose another path", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
        /// Who answers there.
        by: String,
    },
    /// The server ended.
    #[error("the admin interface ended")]
    Serve {
        /// What the system said.
        source: io::Error,
    },
}

/// What every answer that is no success says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What went wrong, for people.
    pub error: String,
}

/// The admin interface, bound and not yet served.
#[derive(Debug)]
pub struct Admin {
    tcp: Option<(TcpListener, SocketAddr)>,
    socket: Option<(UnixListener, SocketFile)>,
}

impl Admin {
    /// Binds what `settings` ask for.
    ///
    /// # Errors
    /// If the address or the socket's path cannot be had.
    pub async fn bind(settings: &Settings) -> Result<Self, Error> {
        let tcp = match settings.listen {
            Some(listen) => {
                let fault = |source| Error::Listen { listen, source };
                let listener = TcpListener::bind(listen).await.map_err(fault)?;
                let address = listener.local_addr().map_err(fault)?;
                Some((listener, address))
            }
            None => None,
        };
        let socket = match &settings.socket {
            Some(path) => Some(bind_socket(path).await?),
            None => None,
        };
        Ok(Self { tcp, socket })
    }

    /// Where the page is, if there is one; with the real port where 0 was configured.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address)| *address)
    }

    /// Answers until `stop` is cancelled, and then a moment longer what is under way.
    ///
    /// # Errors
    /// If a listener breaks for good.
    pub async fn serve<D: DeadLetters>(
        self,
        inputs: Inputs,
        dead_letters: D,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let inputs = Arc::new(inputs);
        let tcp = async {
            // Turned off, it ends with the others: a room that ends by itself is a fault.
            let Some((listener, address)) = self.tcp else {
                stop.cancelled().await;
                return Ok(());
            };
            let hosts = Hosts::new(address, &machine_name());
            serve(Either::Left(listener), tcp_routes(Arc::clone(&inputs), hosts), stop.clone()).await
        };
        let socket = async {
            // The file goes when the serving ends.
            let Some((listener, _file)) = self.socket else {
                stop.cancelled().await;
                return Ok(());
            };
            serve(Either::Right(listener), socket_routes(Arc::clone(&inputs), dead_letters), stop.clone())
                .await
        };
        let all = async { tokio::try_join!(tcp, socket).map(|((), ())| ()) };
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_ANSWERS_WITHIN).await;
        };
        let ended = tokio::select! {
            biased;
            ended = all => ended,
            () = late => Ok(()),
        };
        ended.map_err(|source| Error::Serve { source })
    }
}

async fn serve(
    listener: Either<TcpListener, UnixListener>,
    routes: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    axum::serve(Bounded::new(listener), routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn tcp_routes(inputs: Arc<Inputs>, hosts: Hosts) -> Router {
    let checked = middleware::from_fn_with_state(Arc::new(hosts), check_host);
    finished(routes(inputs)).layer(checked)
}

fn socket_routes<D: DeadLetters>(inputs: Arc<Inputs>, dead_letters: D) -> Router {
    let letters = Router::new()
        .route("/api/v1/dead-letters", get(list_dead_letters::<D>))
        .route("/api/v1/dead-letters/{id}", get(show_dead_letter::<D>))
        .route("/api/v1/dead-letters/{id}/payload", get(show_payload::<D>))
        .route("/api/v1/dead-letters/replay", post(replay_dead_letters::<D>))
        .route("/api/v1/dead-letters/purge", post(purge_dead_letters::<D>))
        .with_state(Arc::new(dead_letters));
    finished(routes(inputs).merge(letters))
}

/// What both ways answer.
fn routes(inputs: Arc<Inputs>) -> Router {
    Router::new()
        .route("/", get(show_page))
        .route("/api/v1/status", get(show_status))
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(show_health))
        .route("/readyz", get(show_readiness))
        .with_state(inputs)
}

/// What goes for every route.
fn finished(routes: Router) -> Router {
    routes
        .fallback(async || {
            fault(
                StatusCode::NOT_FOUND,
                "there is nothing here; see /api/v1/status, /metrics, /healthz, /readyz",
            )
        })
        .method_not_allowed_fallback(async || {
            fault(
                StatusCode::METHOD_NOT_ALLOWED,
                "this can only be read, with GET; what changes something is asked with POST, at the socket",
            )
        })
        .layer(middleware::map_response(harden))
}

async fn show_page(State(inputs): State<Arc<Inputs>>) -> Response {
    let page = page::render(&Status::read(&inputs));
    let mut response = answer(StatusCode::OK, "text/html; charset=utf-8", page.html);
    if let Ok(policy) = HeaderValue::from_str(&page.policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

async fn show_status(State(inputs): State<Arc<Inputs>>) -> Response {
    json(StatusCode::OK, &Status::read(&inputs))
}

async fn show_metrics(State(inputs): State<Arc<Inputs>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::wanted(accept);
    let text = metrics::render(Status::read(&inputs), format);
    answer(StatusCode::OK, format.content_type(), text)
}

async fn show_health(State(inputs): State<Arc<Inputs>>) -> Response {
    let health = Health::read(&inputs, inputs.clock.monotonic());
    let status = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &health)
}

async fn show_readiness(State(inputs): State<Arc<Inputs>>) -> Response {
    let readiness = Readiness::read(&inputs);
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &readiness)
}

async fn list_dead_letters<D: DeadLetters>(State(dead_letters): State<Arc<D>>, uri: Uri) -> Response {
    let Some((after, limit)) = span(uri.query().unwrap_or_default()) else {
        return fault(StatusCode::BAD_REQUEST, "expected ?after=ID&limit=COUNT, both whole numbers");
    };
    match dead_letters.list(after, limit).await {
        Ok(letters) => {
            let is_more = letters.len() >= limit;
            let next_after = letters.last().filter(|_| is_more).map(|last| last.id);
            json(
                StatusCode::OK,
                &Page { dead_letters: letters.iter().map(Entry::from).collect(), next_after },
            )
        }
        Err(error) => fault(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

async fn show_dead_letter<D: DeadLetters>(State(letters): State<Arc<D>>, Path(id): Path<String>) -> Response {
    match find(&*letters, &id).await {
        Ok(letter) => json(StatusCode::OK, &Entry::from(&letter)),
        Err(response) => *response,
    }
}

async fn show_payload<D: DeadLetters>(State(letters): State<Arc<D>>, Path(id): Path<String>) -> Response {
    match find(&*letters, &id).await {
        Ok(letter) => answer(StatusCode::OK, "application/octet-stream", letter.payload),
        Err(response) => *response,
    }
}

/// The dead letter of that id, or what is answered instead.
async fn find<D: DeadLetters>(letters: &D, id: &str) -> Result<DeadLetter, Box<Response>> {
    let Ok(id) = id.parse() else {
        return Err(Box::new(fault(StatusCode::BAD_REQUEST, "the id of a dead letter is a whole number")));
    };
    match letters.find(id).await {
        Ok(Some(letter)) => Ok(letter),
        Ok(None) => {
            let error = format!("there is no dead letter {id}; it may have been purged or replayed");
            Err(Box::new(fault(StatusCode::NOT_FOUND, &error)))
        }
        Err(error) => Err(Box::new(fault(StatusCode::SERVICE_UNAVAILABLE, &error))),
    }
}

async fn replay_dead_letters<D: DeadLetters>(State(letters): State<Arc<D>>, body: Bytes) -> Response {
    match selection(&body) {
        Ok(which) => done(letters.replay(which).await),
        Err(response) => *response,
    }
}

async fn purge_dead_letters<D: DeadLetters>(State(letters): State<Arc<D>>, body: Bytes) -> Response {
    match selection(&body) {
        Ok(which) => done(letters.purge(which).await),
        Err(response) => *response,
    }
}

/// What a body selects, or what is answered instead. Nothing is taken for all.
fn selection(body: &[u8]) -> Result<Selection, Box<Response>> {
    let expected = "expected {\"ids\":[1,2]} or {\"all\":{}}";
    serde_json::from_slice(body).map_err(|_| Box::new(fault(StatusCode::BAD_REQUEST, expected)))
}

fn done<T: Serialize>(result: Result<T, String>) -> Response {
    match result {
        Ok(done) => json(StatusCode::OK, &done),
        Err(error) => fault(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

/// `after=3&limit=10`, in any order, each with a default; `None` for anything else.
fn span(query: &str) -> Option<(u64, usize)> {
    let (mut after, mut limit) = (0, DEFAULT_LIMIT);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            ("after", value) => after = value.parse().ok()?,
            ("limit", value) => limit = value.parse().ok()?,
            _ => return None,
        }
    }
    Some((after, limit.clamp(1, MAX_LIMIT)))
}

/// Answers only who asked for us by a name of ours.
async fn check_host(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    // HTTP/2 is not spoken, so the name is in the header; a request with an absolute target has it there, too.
    // Of several headers, which a browser never sends, each has to be ours: who comes after us may look at another one.
    let mut in_headers = request.headers().get_all(header::HOST).iter().peekable();
    let in_target = request.uri().authority().map(axum::http::uri::Authority::as_str);
    let is_ours = in_headers.peek().is_some()
        && in_headers.all(|host| host.to_str().is_ok_and(|host| hosts.allow(host)))
        && in_target.is_none_or(|host| hosts.allow(host));
    if is_ours {
        return next.run(request).await;
    }
    let mut response = fault(
        StatusCode::MISDIRECTED_REQUEST,
        "asked for under a name that is not ours; use the address, localhost or the machine's own name",
    );
    set_headers(&mut response);
    response
}

async fn harden(mut response: Response) -> Response {
    set_headers(&mut response);
    response
}

/// Nothing of ours is to be kept, framed, guessed at or read by another site.
fn set_headers(response: &mut Response) {
    let headers = response.headers_mut();
    let fixed = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(policy);
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => answer(status, "application/json", text),
        Err(error) => fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot write the answer: {error}")),
    }
}

fn fault(status: StatusCode, error: &str) -> Response {
    let text = serde_json::json!({ "error": error }).to_string();
    answer(status, "application/json", text)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body.into()).into_response()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
