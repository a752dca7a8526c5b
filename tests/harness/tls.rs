//! TLS around what speaks without: certificates for one test, and an end of it in front of a server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A CA (`ca.pem`), and what it signed: `server` for localhost, and `client`; each as `.pem` and `.key`.
#[derive(Debug)]
pub struct Papers {
    dir: TempDir,
}

impl Papers {
    /// Papers that nobody else trusts, good for two days.
    ///
    /// # Panics
    /// If openssl is not there, or fails.
    #[must_use]
    pub fn new() -> Self {
        let papers = Self { dir: tempfile::tempdir().unwrap() };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        papers.openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"));
        std::fs::write(papers.file("san"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
        for name in ["server", "client"] {
            papers.openssl(&format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
            papers.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out {name}.pem"
            ));
        }
        papers
    }

    /// The path of one of them.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(self.dir.path()).output();
        let output = output.expect("certificates are made with openssl: install it");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Default for Papers {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes TLS off: what comes to its port goes on in the clear to another.
#[derive(Debug)]
pub struct Front {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    server: JoinHandle<()>,
}

impl Front {
    /// In front of `to`, with the papers of `server`.
    ///
    /// # Panics
    /// If there is no port to be had, or the papers are not right.
    pub async fn of(to: u16, papers: &Papers) -> Self {
        let acceptor =
            TlsAcceptor::from(Arc::new(config(&papers.file("server.pem"), &papers.file("server.key"))));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                // A client that does not trust us ends it; it says so itself.
                connections.spawn(async move {
                    let mut clear = TcpStream::connect(("127.0.0.1", to)).await?;
                    let mut stream = acceptor.accept(stream).await?;
                    tokio::io::copy_bidirectional(&mut stream, &mut clear).await
                });
            }
        });
        Self { port, server }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn config(certificate: &Path, key: &Path) -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().collect::<Result<_, _>>().unwrap();
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap()
}
