//! TLS under QUIC: rustls for as long as the handshake lasts.
//!
//! QUIC encrypts its packets itself. After the handshake it wants one thing of TLS, keys for the
//! next key update, and a connection lives on for hours: so rustls is let go with its buffers and
//! record keys as soon as the tickets are written, and the keys for the next update, which may never
//! come, are made when they are used. That is a third of what an idle connection holds.

use std::any::Any;
use std::io::Cursor;
use std::sync::{Arc, OnceLock};

use crate::transport::quic::with_fewer_ids;
use bytes::BytesMut;
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::crypto::{
    self, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::quic::{KeyChange, PacketKeySet, Secrets, ServerConnection, Version};

/// Begins handshakes.
pub(super) struct Handshakes {
    config: Arc<rustls::ServerConfig>,
    /// For everything that happens outside of a handshake.
    stateless: QuicServerConfig,
}

impl Handshakes {
    pub(super) fn new(config: Arc<rustls::ServerConfig>) -> Self {
        let stateless = QuicServerConfig::try_from(Arc::clone(&config))
            .expect("the provider has the suite of first packets, AES-128-GCM");
        Self { config, stateless }
    }
}

impl crypto::ServerConfig for Handshakes {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.stateless.initial_keys(version, id)
    }

    fn retry_tag(&self, version: u32, id: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.stateless.retry_tag(version, id, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        parameters: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let mut encoded = Vec::new();
        parameters.write(&mut encoded);
        let tls = ServerConnection::new(Arc::clone(&self.config), Version::V1, encoded)
            .expect("TLS 1.3 alone, suites for QUIC, no early data");
        Box::new(Session { tls: Some(Box::new(tls)), next: None, handshakes: self, version })
    }
}

/// The TLS side of one connection.
struct Session {
    /// `None` after the handshake.
    tls: Option<Box<ServerConnection>>,
    next: Option<Next>,
    handshakes: Arc<Handshakes>,
    version: u32,
}

/// What the keys of the next update come from.
enum Next {
    Secrets(Box<Secrets>),
    /// The update before it.
    After(Arc<Update>),
}

impl crypto::Session for Session {
    fn initial_keys(&self, id: &ConnectionId, _: Side) -> Keys {
        let keys = crypto::ServerConfig::initial_keys(&*self.handshakes, self.version, id);
        keys.unwrap_or_else(|_| unreachable!("this session began with that version"))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn crypto::PacketKey>)> {
        None // early data is refused
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    fn read_handshake(&mut self, data: &[u8]) -> Result<bool, TransportError> {
        let Some(tls) = &mut self.tls else {
            // RFC 9001, section 6: also of a key update, the only message that TLS would allow.
            let reason = "TLS has nothing to say after the handshake".to_owned();
            let code = TransportErrorCode::crypto(ALERT_UNEXPECTED_MESSAGE);
            return Err(TransportError { code, frame: None, reason });
        };
        tls.read_hs(data).map_err(|fault| TransportError {
            code: tls.alert().map_or(TransportErrorCode::PROTOCOL_VIOLATION, |alert| {
                TransportErrorCode::crypto(alert.into())
            }),
            frame: None,
            reason: fault.to_string(),
        })?;
        Ok(false) // nobody asks for what the client said
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let encoded = self.tls.as_ref().and_then(|tls| tls.quic_transport_parameters());
        let read =
            |data| TransportParameters::read(Side::Server, &mut Cursor::new(with_fewer_ids(data)));
        Ok(encoded.map(read).transpose()?)
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        let tls = self.tls.as_mut()?;
        match tls.write_hs(buffer) {
            Some(KeyChange::Handshake { keys }) => Some(boxed(keys)),
            Some(KeyChange::OneRtt { keys, next }) => {
                self.next = Some(Next::Secrets(Box::new(next)));
                Some(boxed(keys))
            }
            None => {
                if buffer.is_empty() && !tls.is_handshaking() {
                    self.tls = None;
                }
                None
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn crypto::PacketKey>>> {
        let secrets = match self.next.take()? {
            Next::Secrets(secrets) => *secrets,
            Next::After(update) => update.made().secrets.clone(),
        };
        let update = Arc::new(Update { secrets, made: OnceLock::new() });
        self.next = Some(Next::After(Arc::clone(&update)));
        Some(KeyPair {
            local: Box::new(UpdateKey { update: Arc::clone(&update), end: End::Ours }),
            remote: Box::new(UpdateKey { update, end: End::Theirs }),
        })
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false // only clients get one
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

fn boxed(keys: rustls::quic::Keys) -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(keys.local.header),
            remote: Box::new(keys.remote.header),
        },
        packet: KeyPair {
            local: Box::new(keys.local.packet),
            remote: Box::new(keys.remote.packet),
        },
    }
}

/// A key update, whose keys are made when one of them is used.
struct Update {
    secrets: Secrets,
    made: OnceLock<Made>,
}

struct Made {
    keys: PacketKeySet,
    /// Of the update behind it.
    secrets: Secrets,
}

impl Update {
    fn made(&self) -> &Made {
        self.made.get_or_init(|| {
            let mut secrets = self.secrets.clone();
            Made { keys: secrets.next_packet_keys(), secrets }
        })
    }
}

/// One of the two keys of an update.
struct UpdateKey {
    update: Arc<Update>,
    end: End,
}

/// Who encrypts with a key.
#[derive(Clone, Copy)]
enum End {
    Ours,
    Theirs,
}

impl UpdateKey {
    #[expect(clippy::borrowed_box, reason = "quinn-proto implements its trait for the box")]
    fn key(&self) -> &Box<dyn rustls::quic::PacketKey> {
        let keys = &self.update.made().keys;
        match self.end {
            End::Ours => &keys.local,
            End::Theirs => &keys.remote,
        }
    }
}

impl crypto::PacketKey for UpdateKey {
    fn encrypt(&self, packet: u64, buffer: &mut [u8], header_bytes: usize) {
        crypto::PacketKey::encrypt(self.key(), packet, buffer, header_bytes);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        crypto::PacketKey::decrypt(self.key(), packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key().tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key().confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key().integrity_limit()
    }
}

// RFC 8446, section 6.
const ALERT_UNEXPECTED_MESSAGE: u8 = 10;

#[cfg(test)]
mod tests {
    use quinn_proto::crypto::{ServerConfig as _, Session as _};
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::quic::ClientConnection;

    use super::*;
    use crate::transport::tls::{ALPN, ServerConfig, test_client_config};

    /// Of the transport, which TLS carries and does not read: disable_active_migration.
    const PARAMETERS: [u8; 2] = [0x0c, 0];

    fn client(certificate: rustls::pki_types::CertificateDer<'static>) -> ClientConnection {
        let config = test_client_config(&certificate, ALPN);
        let name = ServerName::try_from("localhost").unwrap();
        ClientConnection::new(Arc::new(config), Version::V1, name, PARAMETERS.to_vec()).unwrap()
    }

    /// Does the handshake; what the client makes the keys of later updates from.
    fn shake_hands(client: &mut ClientConnection, server: &mut Session) -> Secrets {
        let mut secrets = None;
        for _ in 0..4 {
            for _ in 0..4 {
                let mut data = Vec::new();
                if let Some(KeyChange::OneRtt { next, .. }) = client.write_hs(&mut data) {
                    secrets = Some(next);
                }
                server.read_handshake(&data).unwrap();
            }
            for _ in 0..4 {
                let mut data = Vec::new();
                server.write_handshake(&mut data);
                client.read_hs(&data).unwrap();
                if server.tls.is_none() {
                    return secrets.unwrap();
                }
            }
        }
        panic!("TLS was not let go");
    }

    fn session() -> (ClientConnection, Session) {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = key.cert.der().clone();
        let private = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
        let config = ServerConfig::new(vec![certificate.clone()], private).unwrap();
        let parameters = PARAMETERS.to_vec();
        let tls = ServerConnection::new(Arc::clone(&config.0), Version::V1, parameters).unwrap();
        let handshakes = Arc::new(Handshakes::new(Arc::clone(&config.0)));
        assert!(handshakes.initial_keys(1, &ConnectionId::new(&[1; 8])).is_ok());
        let tls = Some(Box::new(tls));
        (client(certificate), Session { tls, next: None, handshakes, version: 1 })
    }

    #[test]
    fn nothing_but_secrets_is_left_and_tls_messages_are_refused() {
        let (mut client, mut server) = session();
        assert!(server.is_handshaking());
        shake_hands(&mut client, &mut server);
        assert!(!server.is_handshaking() && !client.is_handshaking());
        assert_eq!(client.tls13_tickets_received(), 1);
        let key_update = [24, 0, 0, 1, 0];
        let fault = server.read_handshake(&key_update).unwrap_err();
        assert_eq!(fault.code, TransportErrorCode::crypto(ALERT_UNEXPECTED_MESSAGE));
        assert!(server.write_handshake(&mut Vec::new()).is_none());
    }

    /// The keys of each update are those of rustls, also when they are used late or not at all.
    #[test]
    fn keys_of_updates_agree_with_the_other_end() {
        let (mut client, mut server) = session();
        let mut secrets = shake_hands(&mut client, &mut server);
        for update in 0..4 {
            let (own, theirs) = (server.next_1rtt_keys().unwrap(), secrets.next_packet_keys());
            if update == 1 {
                continue;
            }
            let mut packet = b"hdrhello".to_vec();
            packet.resize(packet.len() + own.local.tag_len(), 0);
            own.local.encrypt(7, &mut packet, 3);
            let (header, payload) = packet.split_at_mut(3);
            assert_eq!(theirs.remote.decrypt_in_place(7, header, payload).unwrap(), b"hello");

            let mut payload = b"world".to_vec();
            let tag = theirs.local.encrypt_in_place(8, header, &mut payload).unwrap();
            payload.extend_from_slice(tag.as_ref());
            let mut payload = BytesMut::from(&payload[..]);
            own.remote.decrypt(8, header, &mut payload).unwrap();
            assert_eq!(&payload[..], b"world");
            assert!(own.remote.decrypt(8, header, &mut BytesMut::from(&[0; 30][..])).is_err());
        }
    }
}
