//! What is sent next.

use tempfile::TempDir;

use super::settings::{AckRule, BatchLimits, Compression, Required};
use super::*;
use crate::reading::{Origin, Reading, Shape, Timestamp, Value, WindowRecord};
use crate::secret::Secret;
use crate::store::work::{Group, SinkSpec};
use crate::store::{Opened, Published, WindowsPresence, WindowsUpdate};

pub(super) fn settings() -> Settings {
    Settings {
        name: "cloud".into(),
        url: "http://127.0.0.1:9/".into(),
        streams: vec![Stream::Windows, Stream::Readings],
        compression: Compression::None,
        batch: BatchLimits { records: 10, ..BatchLimits::default() },
        retry: Settings::DEFAULT_RETRY,
        timeout: Settings::DEFAULT_TIMEOUT,
        ack: AckRule::Status,
        required: Required::Yes,
        headers: Vec::new(),
        tls: crate::tls::ClientSettings::default(),
    }
}

fn window(n: i64) -> WindowRecord {
    WindowRecord {
        window: "minute".into(),
        device: "d".into(),
        tags: Arc::new(Vec::new()),
        field: "n".into(),
        start: Timestamp(n * 60_000_000),
        end: Timestamp((n + 1) * 60_000_000),
        revision: 0,
        aggregates: Vec::new(),
        replay_of: None,
    }
}

#[tokio::test]
async fn pinned_readings_do_not_go_before_windows_that_are_due() {
    let dir = TempDir::new().unwrap();
    let store_settings = store::Settings::in_dir(dir.path().to_owned());
    let opened = Store::open(
        store_settings,
        "gw",
        "m",
        WindowsPresence::Configured,
        Clock::system(),
        Published::default(),
    );
    let Opened { store, writer, .. } = opened.unwrap();
    let _writer = tokio::spawn(writer.run());
    let settings = settings();
    let spec = SinkSpec {
        name: settings.name.clone(),
        streams: settings.streams.clone(),
        batch: settings.batch,
        required: settings.required,
    };
    store.configure_sinks(vec![spec]).await.unwrap();
    let origin = Arc::new(Origin { source: "plant".into(), device: "d".into(), tags: Vec::new() });
    let shape = Arc::new(Shape { names: vec!["n".into()] });
    let reading = Reading {
        time: Timestamp(1),
        received: Clock::system().wall(),
        origin,
        shape,
        values: vec![Value::Uint(1)],
        line: None,
        remarks: None,
    };
    store.append(Group { readings: vec![reading; 80], ..Group::default() }).await.unwrap();
    let epoch = store.books().borrow().epoch;
    let event = LedgerEvent::Pin((1..=8).map(|n| Seq(n * 10)).collect(), 0);
    let change = LedgerChange { sink: "cloud".into(), stream: Stream::Readings, epoch, event };
    store.change(change).await.unwrap();
    // More windows than fit one batch, as after an outage: no commit pins them by the way.
    let records = (0..25).map(window).collect();
    store.update_windows(WindowsUpdate { records, ..WindowsUpdate::default() }).await.unwrap();

    let mut forward = Forward::new(settings, store, watch::Sender::default(), Clock::system()).unwrap();
    match forward.step(Mode::Go) {
        Step::Pin(view, ..) | Step::Send(view, ..) => assert_eq!(view.stream, Stream::Windows),
        Step::Wait(_) | Step::Done => panic!("there is work"),
    }
}

/// What a sink comes to that begins its answer with `head` and then goes on for ever.
async fn endless(head: &'static str) -> Result<Answer, Failure> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let cloud = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let read = socket.read(&mut [0; 4_096]).await.unwrap();
        assert!(read > 0);
        socket.write_all(head.as_bytes()).await.unwrap();
        // Until the other side hangs up.
        let part = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        while socket.write_all(part.as_bytes()).await.is_ok() {}
    });
    let endpoint = Endpoint::new(&Settings { url, ..settings() }, Clock::system()).unwrap();
    let answer = endpoint.send(Post { key: "k", body: &bytes::Bytes::from_static(b"{}") }).await;
    cloud.await.unwrap();
    answer
}

#[tokio::test]
async fn an_answer_that_never_ends_is_a_refusal_or_none() {
    let refusal = endless("HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(matches!(refusal, Ok(Answer { status: 401, .. })), "{refusal:?}");
    let success = endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(matches!(success, Err(Failure::Endless { status: 200 })), "{success:?}");
}

#[tokio::test]
async fn a_refusal_that_repeats_our_token_is_shown_without_it() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1?key=in-the-query", listener.local_addr().unwrap());
    let cloud = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let read = socket.read(&mut [0; 4_096]).await.unwrap();
        assert!(read > 0);
        let body = "no such token in-the-header for key=in-the-query";
        let answer = format!("HTTP/1.1 401 No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(answer.as_bytes()).await.unwrap();
    });
    let headers = vec![("Authorization".to_owned(), Secret::Inline("Bearer in-the-header".to_owned()))];
    let endpoint = Endpoint::new(&Settings { url, headers, ..settings() }, Clock::system()).unwrap();
    let answer = endpoint.send(Post { key: "k", body: &bytes::Bytes::from_static(b"{}") }).await.unwrap();
    assert_eq!(answer.describe(), "status 401: no such token *** for key=***");
    cloud.await.unwrap();
}
