//! Certificates and keys: from files to rustls configurations. All TLS of the agent goes through here.
//!
//! The crypto provider is named here and nowhere else, so nothing depends on which one a process has installed. Files are
//! read anew for each configuration: a renewed certificate is picked up at the next connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// TLS as a client: whom to trust, and who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSettings {
    /// PEM certificates to trust; without it, the system's.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain (PEM), for servers that ask for one.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file` (PEM).
    pub key_file: Option<PathBuf>,
}

/// TLS as a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Our certificate chain (PEM).
    pub cert_file: PathBuf,
    /// Its key (PEM).
    pub key_file: PathBuf,
    /// Clients must show a certificate signed by one of these (PEM).
    pub client_ca_file: Option<PathBuf>,
}

/// Why a TLS configuration cannot be built. Only a person can mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(
        "cannot read {content} from {file:?}; check that it exists and that the service user may read it"
    )]
    Unreadable {
        /// What it should hold.
        content: Content,
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file can be read, but what we look for is not in it.
    #[error("found no {content} in {file:?}; it must be in PEM form, beginning with {}", content.opening())]
    Absent {
        /// What it should hold.
        content: Content,
        /// The file.
        file: PathBuf,
    },
    /// A file is damaged.
    #[error("{file:?} is not well-formed PEM; write it anew from its original")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A CA certificate cannot be used.
    #[error("a certificate in {file:?} cannot be used as a CA; it must be an X.509 v3 certificate")]
    UnusableCa {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// Certificate and key do not go together, or are of a kind we cannot use.
    #[error(
        "certificate {cert_file:?} and key {key_file:?} cannot be used together; check that the key belongs to the first certificate of the file"
    )]
    Unusable {
        /// The certificate's file.
        cert_file: PathBuf,
        /// The key's file.
        key_file: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// Only one of certificate and key is configured.
    #[error("cert_file and key_file go together; only {given:?} is configured")]
    Half {
        /// The one that is.
        given: PathBuf,
    },
    /// The system has no certificates to trust.
    #[error(
        "the system's trusted certificates cannot be found; install the package ca-certificates, or set ca_file"
    )]
    NoSystemRoots,
    /// The client certificates to accept cannot be used.
    #[error("the certificates in {file:?} cannot verify clients")]
    ClientVerifier {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: rustls::server::VerifierBuilderError,
    },
    /// The provider knows no protocol version that we speak: a broken build.
    #[error("the TLS provider offers no protocol version that can be used")]
    Versions(#[source] rustls::Error),
}

/// What a PEM file should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Certificates to trust.
    Ca,
    /// A certificate chain.
    Certificate,
    /// A private key.
    Key,
}

impl Content {
    fn opening(self) -> &'static str {
        match self {
            Self::Ca | Self::Certificate => "-----BEGIN CERTIFICATE-----",
            Self::Key => "-----BEGIN PRIVATE KEY-----",
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ca => "CA certificate",
            Self::Certificate => "certificate",
            Self::Key => "private key",
        })
    }
}

/// The configuration of a TLS client. Reads files; the system's certificates take some milliseconds.
///
/// # Errors
/// If a file cannot be read or used.
pub fn client_config(settings: &ClientSettings) -> Result<Arc<ClientConfig>, Error> {
    let roots = match &settings.ca_file {
        Some(file) => roots_from(file)?,
        None => system_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Versions)?
        .with_root_certificates(roots);
    let config = match (&settings.cert_file, &settings.key_file) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert_file), Some(key_file)) => {
            let (chain, key) = identity(cert_file, key_file)?;
            builder.with_client_auth_cert(chain, key).map_err(|source| Error::Unusable {
                cert_file: cert_file.clone(),
                key_file: key_file.clone(),
                source,
            })?
        }
        (Some(given), None) | (None, Some(given)) => return Err(Error::Half { given: given.clone() }),
    };
    Ok(Arc::new(config))
}

/// The configuration of a TLS server. Reads files.
///
/// # Errors
/// If a file cannot be read or used.
pub fn server_config(settings: &ServerSettings) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Versions)?;
    let builder = match &settings.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = Arc::new(roots_from(file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|source| Error::ClientVerifier { file: file.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let ServerSettings { cert_file, key_file, .. } = settings;
    let (chain, key) = identity(cert_file, key_file)?;
    let config = builder.with_single_cert(chain, key).map_err(|source| Error::Unusable {
        cert_file: cert_file.clone(),
        key_file: key_file.clone(),
        source,
    })?;
    Ok(Arc::new(config))
}

/// TLS as a client that trusts nobody: for connections that are not to use it.
///
/// # Errors
/// Never; the type is that of the others.
pub fn no_client_config() -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Versions)?
        .with_root_certificates(RootCertStore::empty());
    Ok(Arc::new(builder.with_no_client_auth()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn identity(
    cert_file: &Path,
    key_file: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = certificates(Content::Certificate, cert_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read(Content::Key, key_file)?)
        .map_err(|error| refused(Content::Key, key_file, error))?;
    Ok((chain, key))
}

fn roots_from(file: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(Content::Ca, file)? {
        roots.add(certificate).map_err(|source| Error::UnusableCa { file: file.to_owned(), source })?;
    }
    Ok(roots)
}

/// What the system trusts. Single certificates that cannot be used are left out, as other programs do.
fn system_roots() -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let (usable, _unusable) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 { Err(Error::NoSystemRoots) } else { Ok(roots) }
}

/// All certificates of a file; at least one.
fn certificates(content: Content, file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(content, file)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| refused(content, file, error))?;
    if found.is_empty() { Err(Error::Absent { content, file: file.to_owned() }) } else { Ok(found) }
}

fn read(content: Content, file: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(file).map_err(|source| Error::Unreadable { content, file: file.to_owned(), source })
}

fn refused(content: Content, file: &Path, error: pem::Error) -> Error {
    let file = file.to_owned();
    match error {
        pem::Error::NoItemsFound => Error::Absent { content, file },
        source => Error::Damaged { file, source },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use rustls::{ClientConnection, ServerConnection};

    use super::*;

    /// Writes `ca`, and signed by it `server` (for localhost) and `client`, each as `.pem` and `.key`, into `dir`.
    pub(crate) fn make_certificates(dir: &Path) {
        let openssl = |line: &str| {
            let arguments: Vec<&str> = line.split(' ').collect();
            let output = Command::new("openssl").args(&arguments).current_dir(dir).output();
            let output = output.expect("these tests make their certificates with openssl: install it");
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"));
        std::fs::write(dir.join("san"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
        for name in ["server", "client"] {
            openssl(&format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
            openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out {name}.pem"
            ));
        }
    }

    /// A handshake in memory.
    fn shake_hands(client: &ClientSettings, server: &ServerSettings) -> Result<(), rustls::Error> {
        let name = "localhost".try_into().unwrap();
        let mut client = ClientConnection::new(client_config(client).unwrap(), name).unwrap();
        let mut server = ServerConnection::new(server_config(server).unwrap()).unwrap();
        // One more round after the last flight: TLS 1.3 refuses a client's certificate only then.
        for _ in 0..4 {
            let mut flight = Vec::new();
            client.write_tls(&mut flight).unwrap();
            server.read_tls(&mut flight.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut flight = Vec::new();
            server.write_tls(&mut flight).unwrap();
            client.read_tls(&mut flight.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    fn error_of(settings: &ClientSettings) -> String {
        client_config(settings).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_file_is_named_with_what_it_should_hold() {
        let settings = ClientSettings { ca_file: Some("/nonexistent/ca.pem".into()), ..Default::default() };
        let error = error_of(&settings);
        assert!(
            error.starts_with("cannot read CA certificate from \"/nonexistent/ca.pem\"; check"),
            "{error}"
        );
    }

    #[test]
    fn a_file_without_a_certificate_is_told_from_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let settings = ClientSettings { ca_file: Some(file.clone()), ..Default::default() };

        std::fs::write(&file, "no certificate").unwrap();
        let error = error_of(&settings);
        assert!(error.starts_with("found no CA certificate in"), "{error}");

        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
        let error = error_of(&settings);
        assert!(error.contains("is not well-formed PEM"), "{error}");

        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let error = error_of(&settings);
        assert!(error.contains("cannot be used as a CA"), "{error}");
    }

    #[test]
    fn a_certificate_without_its_key_is_an_error() {
        let settings = ClientSettings { cert_file: Some("/tmp/cert.pem".into()), ..Default::default() };
        // The system may have no certificates at all in a minimal container: then that is said first.
        let error = error_of(&settings);
        assert!(error.contains("go together") || error.contains("ca-certificates"), "{error}");
    }

    #[test]
    fn client_and_server_verify_one_another() {
        let dir = tempfile::tempdir().unwrap();
        make_certificates(dir.path());
        let file = |name: &str| dir.path().join(name);
        let anonymous = ClientSettings { ca_file: Some(file("ca.pem")), ..Default::default() };
        let named = ClientSettings {
            cert_file: Some(file("client.pem")),
            key_file: Some(file("client.key")),
            ..anonymous.clone()
        };
        let stranger = ClientSettings { ca_file: Some(file("client.pem")), ..Default::default() };
        let open = ServerSettings {
            cert_file: file("server.pem"),
            key_file: file("server.key"),
            client_ca_file: None,
        };
        let closed = ServerSettings { client_ca_file: Some(file("ca.pem")), ..open.clone() };

        assert_eq!(shake_hands(&anonymous, &open), Ok(()));
        assert_eq!(shake_hands(&named, &closed), Ok(()));
        assert_eq!(shake_hands(&anonymous, &closed), Err(rustls::Error::NoCertificatesPresented));
        assert!(matches!(shake_hands(&stranger, &open), Err(rustls::Error::InvalidCertificate(_))));
    }

    #[test]
    fn a_key_that_does_not_belong_to_the_certificate_is_an_error_that_names_both() {
        let dir = tempfile::tempdir().unwrap();
        make_certificates(dir.path());
        let settings = ServerSettings {
            cert_file: dir.path().join("server.pem"),
            key_file: dir.path().join("client.key"),
            client_ca_file: None,
        };
        let error = server_config(&settings).unwrap_err().to_string();
        assert!(error.contains("server.pem") && error.contains("client.key"), "{error}");
    }
}
