//! The other end: how commands ask the running agent.
//!
//! One request per connection over HTTP/1.1, written out by hand: a client library for the Unix socket would cost more
//! code than these lines.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::Settings;

/// How long one answer may take: the agent answers from memory, or reads a page of dead letters.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Longer answers are not ours.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither socket nor address.
    #[error("the admin interface is off; set admin.socket or admin.listen in the configuration")]
    NotConfigured,
    /// Nobody there.
    #[error("holdfast is not running: nobody answers at {}", places.join(" nor at "))]
    NotRunning {
        /// Where was asked.
        places: Vec<String>,
    },
    /// Somebody there, but not for us.
    #[error("may not ask the agent at {}; run as root, or as a member of the group that owns the socket", socket.display())]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// This is only to be had at the socket.
    #[error("this is answered only at the admin socket; set admin.socket in the configuration")]
    NeedsSocket,
    /// The connection broke.
    #[error("asking the agent at {place} failed")]
    Broken {
        /// Where was asked.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("the agent at {place} does not answer within {within:?}; it may be stuck, see its log")]
    Silent {
        /// Where was asked.
        place: String,
        /// How long was waited.
        within: Duration,
    },
    /// It said no.
    #[error("the agent at {place} answers {status}: {message}")]
    Refused {
        /// Where was asked.
        place: String,
        /// The status of the answer.
        status: u16,
        /// What it said.
        message: String,
    },
    /// It is not an answer of an agent.
    #[error("what answers at {place} is no holdfast of this version")]
    NotAnAgent {
        /// Where was asked.
        place: String,
    },
}

/// Which ways a question may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// The socket, else TCP.
    Any,
    /// The socket alone: TCP does not know the answer.
    SocketOnly,
}

/// Asks the agent that runs with `settings` for `path`.
///
/// # Errors
/// If it does not run, may not be asked, or does not answer in the way an agent does.
pub async fn get<T: DeserializeOwned>(settings: &Settings, path: &str, ways: Ways) -> Result<T, Error> {
    let (place, body) = request(settings, &Question::Get(path), ways).await?;
    serde_json::from_slice(&body).map_err(|_| Error::NotAnAgent { place })
}

/// Asks for the bytes at `path`, which are answered at the socket alone.
///
/// # Errors
/// As [`get`].
pub async fn get_bytes(settings: &Settings, path: &str) -> Result<Vec<u8>, Error> {
    request(settings, &Question::Get(path), Ways::SocketOnly).await.map(|(_, body)| body)
}

/// Asks for a change, with `body` as JSON; only at the socket.
///
/// # Errors
/// As [`get`]. Whether the change was made is not known if the connection broke.
pub async fn post<T: DeserializeOwned>(
    settings: &Settings,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Error> {
    let body = serde_json::to_string(body).expect("what is asked has only texts as keys");
    let (place, answer) = request(settings, &Question::Post(path, &body), Ways::SocketOnly).await?;
    serde_json::from_slice(&answer).map_err(|_| Error::NotAnAgent { place })
}

/// What is asked.
enum Question<'a> {
    /// A path.
    Get(&'a str),
    /// A path and a body of JSON.
    Post(&'a str, &'a str),
}

impl Question<'_> {
    fn text(&self, host: &str) -> String {
        let rest = format!("Host: {host}\r\nAccept: application/json\r\nConnection: close\r\n");
        match self {
            Self::Get(path) => format!("GET {path} HTTP/1.1\r\n{rest}\r\n"),
            Self::Post(path, body) => format!(
                "POST {path} HTTP/1.1\r\n{rest}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        }
    }
}

/// The raw body, and where it comes from.
async fn request(
    settings: &Settings,
    question: &Question<'_>,
    ways: Ways,
) -> Result<(String, Vec<u8>), Error> {
    let mut places = Vec::new();
    if let Some(socket) = &settings.socket {
        let place = socket.display().to_string();
        match UnixStream::connect(socket).await {
            Ok(stream) => return ask(stream, place, &question.text("localhost")).await,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && settings.listen.is_none() => {
                return Err(Error::NotAllowed { socket: socket.clone() });
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && ways == Ways::SocketOnly => {
                return Err(Error::NotAllowed { socket: socket.clone() });
            }
            Err(_) => places.push(place),
        }
    }
    match settings.listen {
        Some(listen) if ways == Ways::Any => {
            let address = reachable(listen);
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    return ask(stream, address.to_string(), &question.text(&address.to_string())).await;
                }
                Err(_) => places.push(address.to_string()),
            }
        }
        Some(_) if places.is_empty() => return Err(Error::NeedsSocket),
        Some(_) | None => {}
    }
    Err(if places.is_empty() { Error::NotConfigured } else { Error::NotRunning { places } })
}

/// Where to reach who listens at `listen`: everywhere includes here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    place: String,
    request: &str,
) -> Result<(String, Vec<u8>), Error> {
    let answer = match tokio::time::timeout(ANSWER_WITHIN, exchange(stream, request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(source)) => return Err(Error::Broken { place, source }),
        Err(_) => return Err(Error::Silent { place, within: ANSWER_WITHIN }),
    };
    let Some((status, body)) = parsed(&answer) else { return Err(Error::NotAnAgent { place }) };
    if status == 200 {
        return Ok((place, body.to_vec()));
    }
    let message = serde_json::from_slice::<super::http::Fault>(body).map(|fault| fault.error);
    Err(Error::Refused { place, status, message: message.unwrap_or_else(|_| "no reason given".to_owned()) })
}

/// Sends the request and reads until the other side closes.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Status and body of an HTTP/1 answer whose body has a stated length; `None` if it is cut off or something else.
fn parsed(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    (body.len() == length).then_some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_answers_count() {
        let check = |answer: &str, expected: Option<(u16, &str)>| {
            let parsed = parsed(answer.as_bytes());
            assert_eq!(parsed, expected.map(|(status, body)| (status, body.as_bytes())), "{answer:?}");
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some((200, "hi")));
        check("HTTP/1.1 503 Service Unavailable\r\na: b\r\ncontent-length:0\r\n\r\n", Some((503, "")));
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", None);
        check("HTTP/1.1 200 OK\r\n\r\nhi", None);
        check("SSH-2.0-OpenSSH\r\n\r\n", None);
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", None);
        check("", None);
    }

    #[tokio::test]
    async fn who_is_not_running_is_named_with_every_place_that_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        // A port that was free a moment ago and has no listener now.
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let socket = dir.path().join("admin.sock");
        let settings = Settings { listen: Some(free), socket: Some(socket.clone()) };
        let error = get::<serde_json::Value>(&settings, "/", Ways::Any).await.unwrap_err();
        let expected =
            format!("holdfast is not running: nobody answers at {} nor at {free}", socket.display());
        assert_eq!(error.to_string(), expected);

        let off = Settings { listen: None, socket: None };
        let error = get::<serde_json::Value>(&off, "/", Ways::Any).await.unwrap_err();
        assert!(matches!(error, Error::NotConfigured));
    }
}
