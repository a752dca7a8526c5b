use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::reading::Timestamp;
use crate::status::client::{self, Ways};
use crate::status::dead_letters::{Purged, Replayed, Stayed};
use crate::status::fixture::{Rooms, rooms};
use crate::status::listen::MAX_CONNECTIONS;
use crate::store::{DeadLetter, DeadLetterOrigin};

/// Five dead letters, or a store that cannot be read.
struct Letters(Result<u64, String>);

impl DeadLetters for Letters {
    async fn list(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>, String> {
        let count = self.0.clone()?;
        Ok((after + 1..=count).take(limit).map(letter).collect())
    }

    async fn find(&self, id: u64) -> Result<Option<DeadLetter>, String> {
        let count = self.0.clone()?;
        Ok((1..=count).contains(&id).then(|| letter(id)))
    }

    async fn replay(&self, which: Selection) -> Result<Replayed, String> {
        let stayed = Stayed { id: 9, why: "gone".into(), detail: None };
        Ok(Replayed { replayed: self.0.clone()?, stayed: vec![stayed], next: Some(which) })
    }

    async fn purge(&self, which: Selection) -> Result<Purged, String> {
        let count = self.0.clone()?;
        Ok(Purged { purged: if which == Selection::of(&[]) { count } else { 1 } })
    }
}

fn letter(id: u64) -> DeadLetter {
    DeadLetter {
        id,
        time: Timestamp(0),
        origin: DeadLetterOrigin::Source { source: "plant".into(), topic: "a/b".into() },
        reason: "not JSON".into(),
        record: None,
        payload: b"hello".to_vec(),
        payload_bytes: 5,
        payload_hash: 1,
    }
}

/// An agent's admin interface on a free port and a socket in a temporary folder.
struct Running {
    rooms: Rooms,
    settings: Settings,
    stop: CancellationToken,
    served: JoinHandle<Result<(), Error>>,
    dir: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        Self::with(Letters(Ok(5))).await
    }

    async fn with(letters: Letters) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            socket: Some(dir.path().join("admin.sock")),
        };
        let admin = Admin::bind(&settings).await.unwrap();
        settings.listen = admin.address();
        let (rooms, inputs) = rooms();
        let stop = CancellationToken::new();
        let served = tokio::spawn(admin.serve(inputs, letters, stop.clone()));
        Self { rooms, settings, stop, served, dir }
    }

    fn socket(&self) -> &Path {
        self.settings.socket.as_deref().unwrap()
    }

    /// Status, head and body of the answer to `request`, sent as it is over TCP.
    async fn tcp(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.settings.listen.unwrap()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        answer_of(stream).await
    }

    /// The answer to a well-formed request for `path`.
    async fn get(&self, path: &str) -> (u16, String, String) {
        self.tcp(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
    }

    /// The same over the socket.
    async fn get_at_socket(&self, path: &str) -> (u16, String, String) {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        answer_of(stream).await
    }
}

async fn answer_of(mut stream: impl AsyncReadExt + Unpin) -> (u16, String, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test]
async fn both_ways_answer_every_path_with_its_type() {
    let running = Running::start().await;
    let paths = [
        ("/", "text/html; charset=utf-8"),
        ("/api/v1/status", "application/json"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/healthz", "application/json"),
        ("/readyz", "application/json"),
    ];
    for (path, kind) in paths {
        for (status, head, body) in [running.get(path).await, running.get_at_socket(path).await] {
            assert_eq!(status, 200, "{path} {body}");
            assert!(head.contains(&format!("content-type: {kind}")), "{head}");
            assert!(!body.contains("hunter2"), "{body}");
            for hardening in [
                "cache-control: no-store",
                "x-content-type-options: nosniff",
                "content-security-policy: default-src 'none'",
            ] {
                assert!(head.contains(hardening), "{path}: {head}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_there_or_would_change_something_is_refused_in_json() {
    let running = Running::start().await;
    for path in ["/nothing", "/api/v1/dead-letters", "/api/v1/status/"] {
        let (status, _, body) = running.get(path).await;
        let fault: Fault = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 404, "{path} {fault:?}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!(
            "{method} /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        let (status, head, body) = running.tcp(&request).await;
        assert_eq!(status, 405, "{method} {body}");
        assert!(head.contains("allow: get,head") && head.contains("no-store"), "{head}");
        serde_json::from_str::<Fault>(&body).unwrap();
    }
}

#[tokio::test]
async fn a_name_that_is_not_ours_gets_nothing_over_tcp() {
    let running = Running::start().await;
    let foreign = [
        "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET /api/v1/status HTTP/1.1\r\nHost: evil.example:80\r\nConnection: close\r\n\r\n",
        "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "GET /nothing HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET /healthz HTTP/1.0\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    ];
    for request in foreign {
        let (status, head, body) = running.tcp(request).await;
        assert_eq!(status, 421, "{request}");
        assert!(head.contains("nosniff") && !body.contains("gw-lab-01"), "{head} {body}");
    }
}

#[tokio::test]
async fn health_and_readiness_follow_the_rooms() {
    let running = Running::start().await;
    running.rooms.plant.send_replace(crate::source::Report::default());
    let (status, _, body) = running.get("/readyz").await;
    let readiness: Readiness = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 503);
    assert_eq!(readiness.missing, ["source plant: neither connected nor failed yet"]);

    let now = crate::clock::Clock::system().monotonic();
    let long_ago = now.checked_sub(Duration::from_secs(60)).unwrap();
    running.rooms.heartbeat.send_replace(long_ago);
    let (status, _, body) = running.get("/healthz").await;
    assert_eq!(status, 503);
    assert!(!serde_json::from_str::<Health>(&body).unwrap().healthy);
}

#[tokio::test]
async fn dead_letters_are_listed_at_the_socket_page_by_page_without_payloads() {
    let running = Running::start().await;
    let page = async |query: &str| {
        let path = format!("/api/v1/dead-letters{query}");
        client::get::<Page>(&running.settings, &path, Ways::SocketOnly).await
    };
    let first = page("?after=0&limit=2").await.unwrap();
    assert_eq!(first.dead_letters.iter().map(|entry| entry.id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(first.next_after, Some(2));
    let rest = page("?limit=10&after=2").await.unwrap();
    assert_eq!(rest.dead_letters.iter().map(|entry| entry.id).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(rest.next_after, None);
    assert_eq!(page("").await.unwrap().dead_letters.len(), 5);
    for wrong in ["?after=x", "?limit=-1", "?evil=1", "?after"] {
        let error = page(wrong).await.unwrap_err();
        assert!(matches!(error, client::Error::Refused { status: 400, .. }), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn one_dead_letter_is_shown_with_the_bytes_of_its_payload() {
    let running = Running::start().await;
    let path = |rest: &str| format!("/api/v1/dead-letters/{rest}");
    let entry: Entry = client::get(&running.settings, &path("2"), Ways::SocketOnly).await.unwrap();
    assert_eq!((entry.id, entry.kept_bytes), (2, 5));
    assert_eq!(client::get_bytes(&running.settings, &path("2/payload")).await.unwrap(), b"hello");
    let (_, head, _) = running.get_at_socket(&path("2/payload")).await;
    assert!(head.contains("content-type: application/octet-stream") && head.contains("nosniff"), "{head}");
    for (rest, expected) in
        [("6", 404), ("6/payload", 404), ("x", 400), ("-1", 400), ("..", 400), ("replay", 405)]
    {
        assert_eq!(running.get_at_socket(&path(rest)).await.0, expected, "{rest}");
        assert_eq!(running.get(&path(rest)).await.0, 404, "{rest} over TCP");
    }
}

#[tokio::test]
async fn what_changes_dead_letters_is_asked_at_the_socket_alone() {
    let running = Running::start().await;
    let path = |what: &str| format!("/api/v1/dead-letters/{what}");
    let some = Selection::of(&[1, 2]);
    let replayed: Replayed = client::post(&running.settings, &path("replay"), &some).await.unwrap();
    assert_eq!((replayed.replayed, replayed.next), (5, Some(some.clone())));
    for (which, count) in [(some, 1), (Selection::of(&[]), 5)] {
        let purged: Purged = client::post(&running.settings, &path("purge"), &which).await.unwrap();
        assert_eq!(purged.purged, count);
    }
    for body in ["", "{}", "{\"ids\":[-1]}", "{\"all\":{\"befor\":3}}", "[1]", "null"] {
        let mut stream = UnixStream::connect(running.socket()).await.unwrap();
        let head = format!("Host: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(format!("POST {} HTTP/1.1\r\n{head}", path("purge")).as_bytes()).await.unwrap();
        assert_eq!(answer_of(stream).await.0, 400, "{body}");
    }
    for what in ["purge", "replay"] {
        let body = "{\"all\":{}}";
        let head =
            format!("Host: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(running.tcp(&format!("POST {} HTTP/1.1\r\n{head}", path(what))).await.0, 404, "{what}");
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_read_says_why() {
    let running = Running::with(Letters(Err("the store is not open".into()))).await;
    let error =
        client::get::<Page>(&running.settings, "/api/v1/dead-letters", Ways::SocketOnly).await.unwrap_err();
    assert!(error.to_string().ends_with("answers 503: the store is not open"), "{error}");
}

#[tokio::test]
async fn the_command_gets_the_status_over_the_socket_and_else_over_tcp() {
    use crate::cli::status::{StatusArgs, run};
    let running = Running::start().await;
    let without_socket =
        Settings { socket: Some(running.dir.path().join("none")), ..running.settings.clone() };
    for settings in [&running.settings, &without_socket] {
        let mut text = Vec::new();
        run(&StatusArgs { json: false }, settings, &mut text).await.unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("gw-lab-01") && text.contains("ONLINE") && text.contains("balanced"), "{text}");
        let mut json = Vec::new();
        run(&StatusArgs { json: true }, settings, &mut json).await.unwrap();
        assert_eq!(serde_json::from_slice::<Status>(&json).unwrap().agent, "gw-lab-01");
    }
    let mut list = Vec::new();
    let args = crate::cli::dead_letters::ListArgs { json: false };
    crate::cli::dead_letters::ask(&args, &running.settings, &mut list).await.unwrap();
    assert_eq!(String::from_utf8(list).unwrap().lines().count(), 6);
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_goes_when_the_serving_ends() {
    let running = Running::start().await;
    let mode = std::fs::metadata(running.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let socket = running.socket().to_owned();
    running.stop.cancel();
    running.served.await.unwrap().unwrap();
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_socket_left_over_is_replaced_and_one_in_use_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let settings = Settings { listen: None, socket: Some(path.clone()) };
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left over, as after a kill");

    let admin = Admin::bind(&settings).await.unwrap();
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    let error = Admin::bind(&settings).await.unwrap_err();
    let by = format!("process {}", std::process::id());
    assert!(matches!(&error, Error::SocketInUse { by: who, .. } if who.starts_with(&by)), "{error}");
    drop(admin);

    std::fs::write(&path, "a file of somebody").unwrap();
    let error = Admin::bind(&settings).await.unwrap_err();
    assert!(matches!(error, Error::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file of somebody");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings { listen: taken.local_addr().ok(), socket: None };
    let error = Admin::bind(&settings).await.unwrap_err();
    assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
}

#[tokio::test]
async fn stopping_does_not_wait_for_who_says_nothing() {
    let running = Running::start().await;
    let _silent = TcpStream::connect(running.settings.listen.unwrap()).await.unwrap();
    let _half = UnixStream::connect(running.socket()).await.unwrap();
    running.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), running.served).await;
    ended.expect("it ends by itself").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_sends_no_request_is_cut_off_and_makes_room_for_others() {
    let running = Running::start().await;
    let address = running.settings.listen.unwrap();
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        silent.push(stream);
    }
    // Waits in the queue until the time of the silent ones is up.
    let (status, _, _) = running.get("/healthz").await;
    assert!(status == 200 || status == 503, "{status}");
    for mut stream in silent {
        let mut rest = Vec::new();
        // Closed or reset, either way without an answer.
        let read = stream.read_to_end(&mut rest).await;
        assert!(read.is_err() || rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off() {
    let running = Running::start().await;
    let mut stream = TcpStream::connect(running.settings.listen.unwrap()).await.unwrap();
    let line = format!("X-Long: {}\r\n", "a".repeat(1_000));
    let mut sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").await;
    let mut lines = 0;
    while sent.is_ok() && lines < 100_000 {
        sent = stream.write_all(line.as_bytes()).await;
        lines += 1;
    }
    assert!(sent.is_err(), "{lines} lines were taken");
}

#[test]
fn spans_have_defaults_and_bounds() {
    let check = |query: &str, expected: Option<(u64, usize)>| assert_eq!(span(query), expected, "{query}");
    check("", Some((0, DEFAULT_LIMIT)));
    check("after=7", Some((7, DEFAULT_LIMIT)));
    check("limit=99999999", Some((0, MAX_LIMIT)));
    check("limit=0&after=18446744073709551615", Some((u64::MAX, 1)));
    check("after=18446744073709551616", None);
}
