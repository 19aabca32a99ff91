//! Ciphertext in, plaintext out, and back. No IO: bytes come from the ring's leases and go into
//! its send operations.

pub mod proxy;
pub mod quic;
pub mod tls;

#[cfg(feature = "plain-transport")]
pub mod plain;

use bytes::BytesMut;

use crate::control::tls_files::TlsFiles;

/// What encrypts one connection.
pub enum Transport {
    Tls(Box<tls::Tls>),
    /// The stream of a QUIC connection, which has encrypted already.
    Quic,
    /// No encryption at all: TLS cannot be driven from a seed, so the simulator runs without it.
    /// The feature is never part of a shipped binary.
    #[cfg(feature = "plain-transport")]
    Plain(plain::Plain),
}

/// Makes the transport of a new connection.
#[derive(Clone)]
pub enum Acceptor {
    Tls(tls::ServerConfig),
    #[cfg(feature = "plain-transport")]
    Plain,
}

/// The peer broke the transport's protocol; an alert may wait to be sent.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransportFault(pub(crate) String);

/// What a call to [`Transport::handle_ciphertext`] left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// More may come.
    Open,
    /// The peer has said that it sends no more.
    Closed,
}

impl Acceptor {
    /// The same with another certificate, for connections that are accepted from now on.
    pub fn with_certificate(&self, files: TlsFiles) -> Result<Self, tls::ConfigFault> {
        match self {
            Self::Tls(config) => {
                Ok(Self::Tls(config.with_certificate(files.certificates, files.key)?))
            }
            #[cfg(feature = "plain-transport")]
            Self::Plain => Ok(Self::Plain),
        }
    }

    /// `quic` with the certificate of this one.
    pub fn share_with(&self, quic: &quic::QuicConfig) -> quic::QuicConfig {
        match self {
            Self::Tls(config) => quic.with_tls(config),
            #[cfg(feature = "plain-transport")]
            Self::Plain => quic.clone(),
        }
    }

    /// The same certificate for HTTPS; `None`: nothing is encrypted here.
    pub fn for_https(&self) -> Option<std::sync::Arc<rustls::ServerConfig>> {
        match self {
            Self::Tls(config) => Some(config.for_https()),
            #[cfg(feature = "plain-transport")]
            Self::Plain => None,
        }
    }

    pub fn accept(&self) -> Result<Transport, TransportFault> {
        match self {
            Self::Tls(config) => Ok(Transport::Tls(Box::new(tls::Tls::accept(config)?))),
            #[cfg(feature = "plain-transport")]
            Self::Plain => Ok(Transport::Plain(plain::Plain)),
        }
    }
}

impl Transport {
    /// Opens what arrived and appends the plaintext. On a fault, what [`Transport::seal`] gives is
    /// the alert for the peer.
    pub fn handle_ciphertext(
        &mut self,
        data: &[u8],
        plaintext: &mut BytesMut,
    ) -> Result<Peer, TransportFault> {
        match self {
            Self::Tls(tls) => tls.handle_ciphertext(data, plaintext),
            Self::Quic => {
                plaintext.extend_from_slice(data);
                Ok(Peer::Open)
            }
            #[cfg(feature = "plain-transport")]
            Self::Plain(plain) => plain.handle_ciphertext(data, plaintext),
        }
    }

    /// Whether application data may flow.
    pub fn is_handshaking(&self) -> bool {
        match self {
            Self::Tls(tls) => tls.is_handshaking(),
            Self::Quic => false,
            #[cfg(feature = "plain-transport")]
            Self::Plain(_) => false,
        }
    }

    /// Seals `plaintext` and appends it, after whatever the transport itself has to say.
    pub fn seal(&mut self, plaintext: &[u8], ciphertext: &mut Vec<u8>) {
        match self {
            Self::Tls(tls) => tls.seal(plaintext, ciphertext),
            Self::Quic => ciphertext.extend_from_slice(plaintext),
            #[cfg(feature = "plain-transport")]
            Self::Plain(plain) => plain.seal(plaintext, ciphertext),
        }
    }

    /// Bytes that [`Transport::seal`] makes of so many, unless it has something to say itself.
    pub fn sealed_bytes(&self, plaintext_bytes: usize) -> usize {
        match self {
            Self::Quic => plaintext_bytes,
            _ => tls::sealed_bytes(plaintext_bytes),
        }
    }

    /// Whether [`Transport::seal`] has something to send without any plaintext.
    pub fn wants_seal(&self) -> bool {
        match self {
            Self::Tls(tls) => tls.wants_seal(),
            Self::Quic => false,
            #[cfg(feature = "plain-transport")]
            Self::Plain(_) => false,
        }
    }

    /// Queues the end of our direction (close_notify, RFC 8446 section 6.1) behind `last`, which it
    /// takes, or leaves to be sealed where nothing marks the end: a peer reads nothing behind it.
    pub fn close(&mut self, last: &mut Vec<u8>) {
        match self {
            Self::Tls(tls) => tls.close(last),
            Self::Quic => {}
            #[cfg(feature = "plain-transport")]
            Self::Plain(_) => {}
        }
    }
}
