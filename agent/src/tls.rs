//! Certificates and keys: from files to rustls configurations. All TLS of the agent goes through here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

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

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file cannot be read, or holds nothing of use.
    #[error("cannot read {file:?} as PEM; check the path, its permissions and its contents")]
    Pem {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificates and key do not make a configuration.
    #[error("the certificate {file:?} cannot be used with its key and CA")]
    Unusable {
        /// The certificate's file.
        file: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The configuration of a server, with client certificates demanded if a CA for them is named.
///
/// # Errors
/// If a file cannot be read, or its contents do not fit together.
pub fn server_config(settings: &ServerSettings) -> Result<Arc<ServerConfig>, Error> {
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unusable {
        file: settings.cert_file.clone(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_file(&settings.key_file)
        .map_err(|source| Error::Pem { file: settings.key_file.clone(), source })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|source| unusable(source.into()))?;
    let builder = match &settings.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|source| unusable(source.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|source| unusable(source.into()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder
        .with_single_cert(certificates(&settings.cert_file)?, key)
        .map_err(|source| unusable(source.into()))?;
    Ok(Arc::new(config))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|source| Error::Pem { file: file.to_owned(), source })
}
