//! One shard of the gateway with TLS, two of its clients, and messages from one to the other: all in
//! memory, on one thread.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ringpost_engine::control::auth::Verifier;
use ringpost_engine::limits::{AddressTable, LimitSet, Rate};
use ringpost_engine::mesh::{Mesh, Queues};
use ringpost_engine::shard::{Shard, ShardConfig, ShardParts, ShardSettings, StoreDirectory, Turn};
use ringpost_engine::transport::{Acceptor, tls};
use ringpost_loadgen::client::{Client, Identity};
use ringpost_loadgen::tokens::{TokenMint, tls_config, write_credentials};
use ringpost_protocol::id::{DeviceId, InstallId, UserId};
use ringpost_protocol::message::{ClientEvent, Outcome};
use ringpost_ring::{Group, Listener, Socket, host};
use ringpost_storage::StoreConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::fixture;
use crate::memory_ring::{MemoryRing, ShardRing};

/// The shard and its clients.
pub struct Exchange {
    ring: MemoryRing,
    shard: Shard<ShardRing>,
    /// How a turn of the shard is made: whoever measures gives one that is measured.
    turn: fn(&mut Shard<ShardRing>) -> Turn,
    sender: Peer,
    receiver: Peer,
    envelope: Vec<u8>,
    /// Messages sent, answered and delivered.
    sent: u64,
    answered: u64,
    delivered: u64,
    scratch: BytesMut,
    plaintext: Vec<u8>,
}

struct Peer {
    client: Client,
    socket: Socket,
    caught_up: bool,
}

impl Exchange {
    /// Starts the shard and logs both clients in. Envelopes have `envelope_bytes`.
    pub fn new(
        envelope_bytes: usize,
        turn: fn(&mut Shard<ShardRing>) -> Turn,
    ) -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let data = directory.path();
        write_credentials(data)?;
        let ring = MemoryRing::new(host::unix_ms());
        let certificates = CertificateDer::pem_file_iter(data.join("cert.pem"))?;
        let key = PrivateKeyDer::from_pem_file(data.join("key.pem"))?;
        let config = tls::ServerConfig::new(certificates.collect::<Result<_, _>>()?, key)?;
        let settings = ShardSettings {
            quic: None,
            acceptor: Acceptor::Tls(config),
            verifier: Arc::new(Verifier::load(&data.join("jwks.json"), AUDIENCE)?),
            limits: Arc::new(limits()),
            reconnect_jitter_ms: 0,
            audits: false,
        };
        let mut shard = shard(&ring, settings)?;
        for _ in 0..TURNS_TO_OPEN_MAX {
            turn(&mut shard);
        }
        let (mint, config) = (TokenMint::load(data, TOKEN_LIFETIME)?, tls_config(data)?);
        let peer = |name: &str| -> Result<Peer, Box<dyn Error>> {
            let mut client = Client::new(Identity {
                token: mint.mint(name, DEVICE)?,
                user: UserId::new(name)?,
                device: DeviceId::new(DEVICE)?,
                install_id: InstallId(1),
            });
            client.connect(0, &config, ServerName::try_from("localhost")?)?;
            Ok(Peer { client, socket: ring.connect(), caught_up: false })
        };
        let (sender, receiver) = (peer("ann")?, peer("bob")?);
        let mut exchange = Self {
            ring,
            shard,
            turn,
            sender,
            receiver,
            envelope: fixture::envelope(envelope_bytes),
            sent: 0,
            answered: 0,
            delivered: 0,
            scratch: BytesMut::new(),
            plaintext: Vec::new(),
        };
        exchange.run_until(|it| it.sender.caught_up && it.receiver.caught_up)?;
        Ok(exchange)
    }

    /// `window` messages together: each is accepted, delivered and acknowledged when it returns.
    pub fn pass(&mut self, window: u64) -> Result<(), Box<dyn Error>> {
        let to = self.receiver.client.address().clone();
        for _ in 0..window {
            self.sent += 1;
            self.sender.client.send(&to, &self.envelope, 0, self.sent, 0);
        }
        self.run_until(|it| it.delivered == it.sent && it.answered == it.sent)
    }

    fn run_until(&mut self, is_done: fn(&Self) -> bool) -> Result<(), Box<dyn Error>> {
        for _ in 0..TURNS_MAX {
            self.talk(End::Sender)?;
            self.talk(End::Receiver)?;
            if is_done(self) && !self.ring.is_ready() {
                return Ok(());
            }
            self.ring.advance(TURN_NS);
            if (self.turn)(&mut self.shard) != Turn::Continue {
                return Err("the shard gave up".into());
            }
        }
        Err("nothing comes any more".into())
    }

    /// A client reads what there is, and says what it has to say.
    fn talk(&mut self, end: End) -> Result<(), Box<dyn Error>> {
        let peer = match end {
            End::Sender => &mut self.sender,
            End::Receiver => &mut self.receiver,
        };
        let mut ciphertext = Vec::new();
        self.ring.take(peer.socket, &mut ciphertext);
        peer.client.handle_received(0, &ciphertext, &mut self.scratch)?;
        while let Some(event) = peer.client.poll_event() {
            match event {
                ClientEvent::Welcome(welcome) => peer.client.handle_welcome(&welcome),
                ClientEvent::CaughtUp => peer.caught_up = true,
                ClientEvent::Answered { send_seq, outcome } => {
                    if !matches!(outcome, Outcome::Accepted { .. }) {
                        return Err(format!("refused: {outcome:?}").into());
                    }
                    peer.client.handle_answer(send_seq, &outcome).ok_or("answered twice")?;
                    self.answered += 1;
                }
                ClientEvent::Deliver(delivery) => {
                    peer.client.handle_seq(delivery.seq);
                    self.delivered += 1;
                }
                ClientEvent::Delivered { seq, .. } => peer.client.handle_seq(seq),
                ClientEvent::Pong => {}
                other => return Err(format!("unexpected: {other:?}").into()),
            }
        }
        ciphertext.clear();
        peer.client.poll_transmit(0, &mut self.plaintext, &mut ciphertext);
        if !ciphertext.is_empty() {
            self.ring.send(peer.socket, ciphertext);
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum End {
    Sender,
    Receiver,
}

/// Rates that are looked at and never reached: time hardly passes here.
fn limits() -> LimitSet {
    let plenty = Rate { per_second: 1 << 28, burst: 1 << 28 };
    LimitSet {
        connection_frames: plenty,
        connection_bytes: plenty,
        user_sends: plenty,
        ..LimitSet::default()
    }
}

/// The only shard, with a fresh store.
fn shard(ring: &MemoryRing, settings: ShardSettings) -> Result<Shard<ShardRing>, Box<dyn Error>> {
    let list = Box::new(|| Ok(Vec::new()));
    let store = StoreDirectory { path: "/nowhere".into(), list };
    let config = ShardConfig {
        shard: 0,
        storage_shards: 1,
        confirm_clock: false,
        random_seed: 0x5eed,
        proxy_trusted: None,
    };
    let parts = ShardParts {
        ring: ring.for_shard(),
        listener: Some(Listener(0)),
        datagrams: None,
        mesh: Mesh::new(0, Queues::new(Group::new(1)?)),
        settings,
        addresses: AddressTable::new(64, 1),
        directory: None,
        store: Some((StoreConfig::new(0, 0x5eed), store)),
        events: Box::new(|_| ()),
    };
    Ok(Shard::new(config, parts))
}

const AUDIENCE: &str = "ringpost";
const DEVICE: &str = "phone";
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// A turn of the shard takes so long; no timer of a session fires during a run.
const TURN_NS: u64 = 5_000;
/// Opening an empty store takes a handful.
const TURNS_TO_OPEN_MAX: usize = 100;
const TURNS_MAX: usize = 1_000;
