//! One GET of a key set: bounded in time and bytes, no redirects, HTTP/1.1.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CACHE_CONTROL, HOST, HeaderMap, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::KeySetUrl;
use crate::limits::KEY_SET_BYTES_MAX;

/// What the server answered.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) body: Bytes,
    /// How long it may be used.
    pub(super) max_age_s: Option<u64>,
}

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub enum FetchFault {
    #[error("cannot connect to {host}:{port}: {error}")]
    Connect { host: String, port: u16, error: io::Error },
    #[error("TLS with {host}: {error}")]
    Tls { host: String, error: io::Error },
    #[error("cannot read the certificate authorities {path}: {text}")]
    Authorities { path: String, text: String },
    #[error("this host trusts no certificate authority")]
    NoAuthorities,
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answered {0} and not 200")]
    Status(StatusCode),
    #[error("its answer is longer than {KEY_SET_BYTES_MAX} bytes")]
    TooLong,
    #[error("no whole answer within {ms} ms")]
    TooSlow { ms: u128 },
}

/// Fetches from one URL.
#[derive(Clone)]
pub(super) struct Fetcher {
    pub(super) url: KeySetUrl,
    /// `None`: plain HTTP.
    tls: Option<Arc<ClientConfig>>,
    time_max: Duration,
}

impl Fetcher {
    /// Reads the certificate authorities if the URL needs them.
    pub(super) fn new(url: &KeySetUrl, time_max: Duration) -> Result<Self, FetchFault> {
        let tls = url.is_encrypted().then(|| client_config(url.ca_path())).transpose()?;
        Ok(Self { url: url.clone(), tls, time_max })
    }

    pub(super) async fn fetch(&self) -> Result<Fetched, FetchFault> {
        let late = || FetchFault::TooSlow { ms: self.time_max.as_millis() };
        tokio::time::timeout(self.time_max, self.get()).await.map_err(|_| late())?
    }

    async fn get(&self) -> Result<Fetched, FetchFault> {
        let (host, port) = (self.url.host(), self.url.port());
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| FetchFault::Connect { host: host.to_owned(), port, error })?;
        let Some(config) = &self.tls else { return self.ask(stream).await };
        let fault = |error| FetchFault::Tls { host: host.to_owned(), error };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| fault(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let connector = TlsConnector::from(Arc::clone(config));
        self.ask(connector.connect(name, stream).await.map_err(fault)?).await
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    ) -> Result<Fetched, FetchFault> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(self.url.path_and_query())
            .header(HOST, self.url.authority())
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, concat!("ringpost/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .expect("the URL was parsed");
        let answer = async {
            let response = sender.send_request(request).await?;
            read(response).await
        };
        // The connection is driven beside the answer. How it ends matters only if that is not whole,
        // and then the answer has a fault of its own.
        tokio::pin!(connection, answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<Fetched, FetchFault> {
    if response.status() != StatusCode::OK {
        return Err(FetchFault::Status(response.status()));
    }
    let max_age_s = max_age_s(response.headers());
    let body = Limited::new(response.into_body(), KEY_SET_BYTES_MAX).collect().await;
    match body {
        Ok(body) => Ok(Fetched { body: body.to_bytes(), max_age_s }),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchFault::TooLong),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(FetchFault::Http(*error)),
            Err(_) => unreachable!("a body fails by its length or by HTTP"),
        },
    }
}

/// Of Cache-Control (RFC 9111, section 5.2.2); what must not be kept is as old as can be.
fn max_age_s(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives = values.flat_map(|value| value.split(',')).map(str::trim);
    let ages = directives.filter_map(|directive| {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.to_ascii_lowercase().as_str() {
            "max-age" => value.trim_matches('"').parse().ok(),
            "no-store" | "no-cache" => Some(0),
            _ => None,
        }
    });
    ages.min()
}

/// Trusts what this host trusts, and the authorities in `ca_path`.
fn client_config(ca_path: Option<&Path>) -> Result<Arc<ClientConfig>, FetchFault> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_path {
        let fault = |text| FetchFault::Authorities { path: path.display().to_string(), text };
        let pem = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| fault(format!("{error:?}")))?;
        let count = certificates.len();
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 || added < count {
            return Err(fault("it must hold certificates as BEGIN CERTIFICATE blocks".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err(FetchFault::NoAuthorities);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl FetchFault {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Connect { .. } | Self::TooSlow { .. } => {
                "see that this host reaches auth.jwks_url, or give it the keys by auth.jwks_path"
            }
            Self::Tls { .. } => {
                "its server needs TLS 1.3 and a certificate that this host trusts; name a private \
                 authority by auth.jwks_ca_path"
            }
            Self::Authorities { .. } => "point auth.jwks_ca_path at a readable PEM file",
            Self::NoAuthorities => {
                "install the package ca-certificates, or name an authority by auth.jwks_ca_path"
            }
            Self::Http(_) | Self::Status(_) | Self::TooLong => {
                "auth.jwks_url must answer with a JWK set, without a redirect"
            }
        }
    }
}
