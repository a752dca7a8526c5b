//! As much HTTP/1.1 as the tests need, written out by hand, so that a server can misbehave at any byte.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// First line, headers (names in lower case) and body of a request or an answer.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The first line.
    pub line: String,
    /// The headers.
    pub headers: BTreeMap<String, String>,
    /// The body, as it was sent.
    pub body: Vec<u8>,
}

impl Message {
    /// The status of an answer.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an answer has a status")
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Reads one message; `None` at the end of the connection.
    ///
    /// # Errors
    /// If it breaks off.
    pub async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Self>> {
        let mut message = Self { line: line(from).await?, ..Self::default() };
        if message.line.is_empty() {
            return Ok(None);
        }
        loop {
            let line = line(from).await?;
            let Some((name, value)) = line.split_once(':') else { break };
            message.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        match message.headers.get("content-length").and_then(|length| length.parse::<usize>().ok()) {
            Some(length) => {
                message.body.resize(length, 0);
                from.read_exact(&mut message.body).await?;
            }
            None if message.line.starts_with("HTTP/") => {
                from.read_to_end(&mut message.body).await?;
            }
            None => {}
        }
        Ok(Some(message))
    }
}

async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line).await?;
    Ok(line.trim_end().to_owned())
}

/// GET over TCP, with this `Host`.
///
/// # Errors
/// If nobody answers.
pub async fn get(address: &str, host: &str, path: &str) -> io::Result<Message> {
    exchange(TcpStream::connect(address).await?, host, path).await
}

/// GET over a Unix socket.
///
/// # Errors
/// If nobody answers.
pub async fn get_unix(socket: &Path, path: &str) -> io::Result<Message> {
    exchange(UnixStream::connect(socket).await?, "localhost", path).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> io::Result<Message> {
    let mut stream = tokio::io::BufReader::new(stream);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Message::read(&mut stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
