//! A handshake and a cipher for QUIC that hide nothing and depend on nothing but their input, for the
//! simulator. What they do have is authentication, such as it is: a packet that was damaged, or that
//! belongs to another connection or another phase, does not open.
//!
//! Each message of the handshake is a byte that names it, two bytes of length, and the transport
//! parameters of its sender, or nothing:
//!
//! ```text
//! client -> server  Initial    Hello(parameters)
//! server -> client  Initial    Hello(parameters)     both have the keys of the next space now
//!                   Handshake  Done
//! client -> server  Handshake  Done
//! ```

use std::any::Any;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use quinn_proto::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, HmacKey, KeyPair, Keys,
    PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{
    ConnectError, ConnectionId, Side, TimeSource, TransportError, TransportErrorCode,
};

use super::with_fewer_ids;

/// Instead of TLS, at both ends.
#[derive(Clone, Copy, Debug)]
pub struct PlainQuic;

impl ServerConfig for PlainQuic {
    fn initial_keys(
        &self,
        _version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        Ok(keys(digest(&[dst_cid]), INITIAL, Side::Server))
    }

    fn retry_tag(&self, _version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        tag(RETRY, 0, &[orig_dst_cid, packet])
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        Box::new(PlainSession::new(Side::Server, params))
    }
}

impl ClientConfig for PlainQuic {
    fn start_session(
        self: Arc<Self>,
        _version: u32,
        _server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(PlainSession::new(Side::Client, params)))
    }
}

/// For the reset tokens of clients.
impl HmacKey for PlainQuic {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&tag(RESET, 0, &[data]));
    }

    fn signature_len(&self) -> usize {
        16
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        if signature == tag(RESET, 0, &[data]) { Ok(()) } else { Err(CryptoError) }
    }
}

/// A clock at which nothing gets older.
pub(super) struct Standstill;

impl TimeSource for Standstill {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

struct PlainSession {
    side: Side,
    /// Transport parameters as they are sent.
    own: Vec<u8>,
    peer: Option<Vec<u8>>,
    /// Of a message that has not come whole.
    inbound: Vec<u8>,
    /// The phase that outgoing messages are in.
    phase: u64,
    /// The hello was written.
    has_greeted: bool,
    peer_is_done: bool,
    /// Times that the keys were updated.
    updates: u64,
}

impl PlainSession {
    fn new(side: Side, params: &TransportParameters) -> Self {
        let mut own = Vec::new();
        params.write(&mut own);
        Self {
            side,
            own,
            peer: None,
            inbound: Vec::new(),
            phase: INITIAL,
            has_greeted: false,
            peer_is_done: false,
            updates: 0,
        }
    }

    /// Both hellos make the secret: no two connections have the same ids in them.
    fn secret(&self) -> u64 {
        let peer = self.peer.as_deref().unwrap_or_default();
        match self.side {
            Side::Client => digest(&[&self.own, peer]),
            Side::Server => digest(&[peer, &self.own]),
        }
    }

    fn next_keys(&mut self) -> Keys {
        self.phase += 1;
        keys(self.secret(), self.phase, self.side)
    }

    /// One message off `inbound`, if it is whole.
    fn next_message(&mut self) -> Option<(u8, Vec<u8>)> {
        let [kind, high, low, ..] = self.inbound[..] else { return None };
        let end = 3 + usize::from(u16::from_be_bytes([high, low]));
        let body = self.inbound.get(3..end)?.to_vec();
        self.inbound.drain(..end);
        Some((kind, body))
    }
}

fn write_message(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let length = u16::try_from(body.len()).expect("transport parameters are short");
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
}

impl Session for PlainSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        keys(digest(&[dst_cid]), INITIAL, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.peer.as_ref().map(|_| Box::new(()) as Box<dyn Any>)
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.side.is_client().then_some(false)
    }

    fn is_handshaking(&self) -> bool {
        !self.peer_is_done || self.phase < ONE_RTT
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inbound.extend_from_slice(buf);
        let mut is_news = false;
        while let Some((kind, body)) = self.next_message() {
            match kind {
                HELLO if self.peer.is_none() => {
                    self.peer = Some(body);
                    is_news = true;
                }
                DONE if self.peer.is_some() && !self.peer_is_done => self.peer_is_done = true,
                _ => return Err(TransportErrorCode::PROTOCOL_VIOLATION.into()),
            }
        }
        Ok(is_news)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(peer) = &self.peer else { return Ok(None) };
        let peer = if self.side.is_server() { &with_fewer_ids(peer) } else { peer };
        Ok(Some(TransportParameters::read(self.side, &mut &peer[..])?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        match (self.side, self.phase) {
            (Side::Client, INITIAL) if !self.has_greeted => {
                self.has_greeted = true;
                write_message(buf, HELLO, &self.own);
                None
            }
            (Side::Server, INITIAL) if self.peer.is_some() => {
                write_message(buf, HELLO, &self.own);
                Some(self.next_keys())
            }
            (Side::Client, INITIAL) if self.peer.is_some() => Some(self.next_keys()),
            (Side::Server, HANDSHAKE) => {
                write_message(buf, DONE, &[]);
                Some(self.next_keys())
            }
            (Side::Client, HANDSHAKE) if self.peer_is_done => {
                write_message(buf, DONE, &[]);
                Some(self.next_keys())
            }
            _ => None,
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.updates += 1;
        Some(keys(self.secret(), ONE_RTT + self.updates, self.side).packet)
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        payload.split_last_chunk::<16>().is_some_and(|(token, found)| {
            // In one piece, as the server had it.
            *found == tag(RETRY, 0, &[orig_dst_cid, &[header, token].concat()])
        })
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        for (block, bytes) in (0u64..).zip(output.chunks_mut(8)) {
            let digest =
                digest(&[&self.secret().to_le_bytes(), &block.to_le_bytes(), label, context]);
            bytes.copy_from_slice(&digest.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}

fn keys(secret: u64, phase: u64, side: Side) -> Keys {
    let key = |side: Side| -> Box<dyn PacketKey> {
        let side = [u8::from(side.is_client())];
        Box::new(PlainKey(digest(&[&secret.to_le_bytes(), &phase.to_le_bytes(), &side])))
    };
    Keys {
        header: KeyPair { local: Box::new(PlainHeader), remote: Box::new(PlainHeader) },
        packet: KeyPair { local: key(side), remote: key(!side) },
    }
}

/// Leaves a packet readable, and marks it.
struct PlainKey(u64);

impl PacketKey for PlainKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let (packet_bytes, place) =
            buf.split_last_chunk_mut::<16>().expect("quinn leaves room for the tag");
        let (header, payload) = packet_bytes.split_at(header_len);
        *place = tag(self.0, packet, &[header, payload]);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        let (plain, found) = payload.split_last_chunk::<16>().ok_or(CryptoError)?;
        if *found != tag(self.0, packet, &[header, plain]) {
            return Err(CryptoError);
        }
        payload.truncate(payload.len() - 16);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        16
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}

struct PlainHeader;

impl HeaderKey for PlainHeader {
    fn decrypt(&self, _pn_offset: usize, _packet: &mut [u8]) {}

    fn encrypt(&self, _pn_offset: usize, _packet: &mut [u8]) {}

    fn sample_size(&self) -> usize {
        16
    }
}

fn tag(key: u64, number: u64, parts: &[&[u8]]) -> [u8; 16] {
    let low = parts.iter().fold(key ^ digest(&[&number.to_le_bytes()]), |state, part| {
        absorb(absorb(state, &part.len().to_le_bytes()), part)
    });
    let mut tag = [0; 16];
    tag[..8].copy_from_slice(&low.to_le_bytes());
    tag[8..].copy_from_slice(&absorb(low, &key.to_le_bytes()).to_le_bytes());
    tag
}

fn digest(parts: &[&[u8]]) -> u64 {
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |state, part| {
        absorb(absorb(state, &part.len().to_le_bytes()), part)
    })
}

/// Not a cryptographic hash: nobody attacks a simulation.
fn absorb(mut state: u64, bytes: &[u8]) -> u64 {
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        state ^= state >> 32;
    }
    state
}

const HELLO: u8 = 1;
const DONE: u8 = 2;

const INITIAL: u64 = 0;
const HANDSHAKE: u64 = 1;
const ONE_RTT: u64 = 2;

/// Keys of what belongs to no connection.
const RETRY: u64 = 0x5245_5452_5921;
const RESET: u64 = 0x5245_5345_5421;

#[cfg(test)]
mod tests {
    use quinn_proto::{ConnectionId, ConnectionIdGenerator as _, HashedConnectionIdGenerator};

    use super::*;

    /// Parameters differ by the ids in them, whoever's they are.
    fn params(side: Side) -> TransportParameters {
        let mut params = Vec::new();
        let id = HashedConnectionIdGenerator::new().generate_cid();
        // initial_source_connection_id
        params.extend_from_slice(&[0x0f, u8::try_from(id.len()).unwrap()]);
        params.extend_from_slice(&id);
        TransportParameters::read(side, &mut &params[..]).unwrap()
    }

    fn client() -> Box<dyn Session> {
        let params = params(Side::Server);
        ClientConfig::start_session(Arc::new(PlainQuic), 1, "gateway", &params).unwrap()
    }

    fn server() -> Box<dyn Session> {
        ServerConfig::start_session(Arc::new(PlainQuic), 1, &params(Side::Client))
    }

    /// What `from` says in one phase, as far as `to` has it in two pieces; and the keys after it.
    fn exchange(from: &mut dyn Session, to: &mut dyn Session) -> Option<Keys> {
        let mut message = Vec::new();
        let keys = from.write_handshake(&mut message);
        let (head, rest) = message.split_at(message.len() / 2);
        to.read_handshake(head).unwrap();
        to.read_handshake(rest).unwrap();
        keys
    }

    fn sealed(keys: &Keys, number: u64) -> Vec<u8> {
        let mut packet = b"header and payload".to_vec();
        packet.resize(packet.len() + 16, 0);
        keys.packet.local.encrypt(number, &mut packet, 6);
        packet
    }

    fn opens(keys: &Keys, number: u64, packet: &[u8]) -> bool {
        let (header, payload) = packet.split_at(6);
        let mut payload = BytesMut::from(payload);
        let opened = keys.packet.remote.decrypt(number, header, &mut payload).is_ok();
        opened && payload == b" and payload"[..]
    }

    fn handshake() -> [[Keys; 2]; 2] {
        let (mut client, mut server) = (client(), server());
        assert!(exchange(&mut *client, &mut *server).is_none());
        let in_handshake = exchange(&mut *server, &mut *client).unwrap();
        let client_in_handshake = exchange(&mut *client, &mut *server).unwrap();
        let in_data = exchange(&mut *server, &mut *client).unwrap();
        assert!(server.is_handshaking() && client.is_handshaking());
        let client_in_data = exchange(&mut *client, &mut *server).unwrap();
        assert!(!server.is_handshaking() && !client.is_handshaking());
        assert!(server.transport_parameters().unwrap().is_some());
        [[client_in_handshake, in_handshake], [client_in_data, in_data]]
    }

    #[test]
    fn both_ends_have_the_keys_of_each_phase() {
        let [[client, server], [client_data, server_data]] = handshake();
        for (one, other) in [(&client, &server), (&server, &client), (&client_data, &server_data)] {
            assert!(opens(other, 3, &sealed(one, 3)));
        }
    }

    #[test]
    fn nothing_else_opens() {
        let [[client, server], [_, server_data]] = handshake();
        let [[_, strange_server], _] = handshake();
        let packet = sealed(&client, 3);
        assert!(!opens(&server, 4, &packet), "another number");
        assert!(!opens(&client, 3, &packet), "its own");
        assert!(!opens(&server_data, 3, &packet), "another phase");
        assert!(!opens(&strange_server, 3, &packet), "another connection");
        for at in 0..packet.len() {
            let mut damaged = packet.clone();
            damaged[at] ^= 1;
            assert!(!opens(&server, 3, &damaged), "byte {at}");
        }
    }

    #[test]
    fn a_message_out_of_turn_ends_the_handshake() {
        assert!(client().read_handshake(&[DONE, 0, 0]).is_err());
        assert!(server().read_handshake(&[9, 0, 0]).is_err());
    }

    #[test]
    fn a_retry_is_the_servers() {
        let id = ConnectionId::new(b"12345678");
        let tag = ServerConfig::retry_tag(&PlainQuic, 1, &id, b"headertoken");
        let payload = [&b"token"[..], &tag].concat();
        assert!(client().is_valid_retry(&id, b"header", &payload));
        assert!(!client().is_valid_retry(&id, b"hEader", &payload));
    }
}
