//! One user's device without its socket: TLS (over QUIC that is below it), the protocol's client
//! session, and what a client keeps across connections (its numbers, its acknowledgements, its unanswered Sends).

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::BytesMut;
use ringpost_protocol::id::{DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId};
use ringpost_protocol::limits::SENDS_UNANSWERED_MAX;
use ringpost_protocol::message::{Call, ClientEvent, Mode, Outcome, Recipient, Welcome};
use ringpost_protocol::session::{ClientHello, ClientSend, ClientSession, SendContent};
use rustls::pki_types::ServerName;

use crate::tokens::TokenMint;

/// Who a client is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub user: UserId,
    pub device: DeviceId,
    pub install_id: InstallId,
    pub token: String,
}

impl Identity {
    /// The one device of `user`.
    pub fn new(user: &str, install_id: u64, mint: &TokenMint) -> Result<Self> {
        Self::of_device(user, DEVICE, install_id, mint)
    }

    /// One of the devices of `user`.
    pub fn of_device(user: &str, device: &str, install_id: u64, mint: &TokenMint) -> Result<Self> {
        Ok(Self {
            token: mint.mint(user, device)?,
            user: UserId::new(user).context("a name of a user")?,
            device: DeviceId::new(device).context("a name of a device")?,
            install_id: InstallId(install_id.max(1)),
        })
    }
}

/// A client, connected or not.
pub struct Client {
    identity: Identity,
    /// This user as others name it.
    address: Recipient,
    mailbox_id: MailboxId,
    /// The highest seq seen: this client commits at once.
    acked_up_to: Seq,
    last_send_seq: u64,
    /// Sends without an answer, oldest first; their numbers follow each other.
    unanswered: VecDeque<Unanswered>,
    /// The next Send tells the server that we know of a refusal.
    after_reject: bool,
    conn: Option<Box<Conn>>,
}

/// A Send on its way; enough to build it again for a replay.
#[derive(Clone, Copy, Debug)]
pub struct Unanswered {
    pub stream: u32,
    pub sequence: u64,
    pub intended_ns: u64,
    answered: bool,
}

struct Conn {
    seal: Seal,
    session: ClientSession,
    /// Plaintext of a frame that is not complete yet.
    partial: Vec<u8>,
    /// Sends that the server lets unanswered; 0 before Welcome.
    unanswered_max: usize,
    /// Bye is queued; close_notify follows it.
    leaving: bool,
}

/// Who encrypts.
enum Seal {
    Tls(Box<rustls::ClientConnection>),
    /// The stream below: QUIC.
    Below,
}

impl Client {
    pub fn new(identity: Identity) -> Self {
        Self {
            address: Recipient::User(identity.user.clone()),
            identity,
            mailbox_id: MailboxId(0),
            acked_up_to: Seq(0),
            last_send_seq: 0,
            unanswered: VecDeque::new(),
            after_reject: false,
            conn: None,
        }
    }

    /// How others send to this user.
    pub fn address(&self) -> &Recipient {
        &self.address
    }

    /// Starts TLS and the session on a fresh TCP connection; Hello is queued behind the handshake.
    pub fn connect(
        &mut self,
        now_ms: u64,
        config: &Arc<rustls::ClientConfig>,
        server: ServerName<'static>,
    ) -> Result<()> {
        let mut tls = rustls::ClientConnection::new(Arc::clone(config), server)
            .context("start the TLS handshake")?;
        // What is queued is bounded by the window of unanswered Sends.
        tls.set_buffer_limit(None);
        self.begin(now_ms, Seal::Tls(Box::new(tls)));
        Ok(())
    }

    /// Starts the session on a stream that encrypts by itself.
    pub fn connect_sealed(&mut self, now_ms: u64) {
        self.begin(now_ms, Seal::Below);
    }

    fn begin(&mut self, now_ms: u64, seal: Seal) {
        let hello = ClientHello {
            token: self.identity.token.clone(),
            device: self.identity.device.clone(),
            install_id: self.identity.install_id,
            mailbox_id: self.mailbox_id,
            acked_up_to: self.acked_up_to,
            mode: Mode::Foreground,
            capabilities: 0,
        };
        let session = ClientSession::new(now_ms, hello);
        let conn = Conn { seal, session, partial: Vec::new(), unanswered_max: 0, leaving: false };
        self.conn = Some(Box::new(conn));
    }

    /// Drops the connection's state; what a client keeps stays.
    pub fn disconnect(&mut self) {
        self.conn = None;
    }

    /// Handles bytes from the socket; events are then polled. `scratch` is shared by all clients.
    pub fn handle_received(
        &mut self,
        now_ms: u64,
        mut ciphertext: &[u8],
        scratch: &mut BytesMut,
    ) -> Result<()> {
        let Some(conn) = self.conn.as_deref_mut() else { return Ok(()) };
        scratch.clear();
        scratch.extend_from_slice(&conn.partial);
        conn.partial.clear();
        match &mut conn.seal {
            Seal::Tls(tls) => {
                while !ciphertext.is_empty() {
                    tls.read_tls(&mut ciphertext).context("TLS takes no more bytes")?;
                    tls.process_new_packets().context("TLS")?;
                    read_plaintext(tls, scratch)?;
                }
            }
            Seal::Below => scratch.extend_from_slice(ciphertext),
        }
        conn.session.handle_data(now_ms, scratch).context("the server broke the protocol")?;
        conn.partial.extend_from_slice(scratch);
        Ok(())
    }

    /// Whether something is to be sent because of the time.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<bool> {
        let Some(conn) = self.conn.as_deref_mut() else { return Ok(false) };
        let due = conn.session.poll_timeout() <= now_ms;
        if due {
            conn.session.handle_timeout(now_ms).context("the server is silent")?;
        }
        Ok(due)
    }

    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.conn.as_deref_mut()?.session.poll_event()
    }

    /// Takes note of Welcome; after it Sends may go out.
    pub fn handle_welcome(&mut self, welcome: &Welcome) {
        if self.mailbox_id != welcome.mailbox_id {
            // Another store: acknowledgements of the old one mean nothing there.
            self.mailbox_id = welcome.mailbox_id;
            self.acked_up_to = Seq(0);
        }
        if let Some(conn) = self.conn.as_deref_mut() {
            let unanswered_max = welcome.limits.sends_unanswered_max as usize;
            conn.unanswered_max = unanswered_max.clamp(1, SENDS_UNANSWERED_MAX);
        }
    }

    /// Takes note of a Deliver, Gap or Delivered; the Ack goes out with the next transmit.
    pub fn handle_seq(&mut self, seq: Seq) {
        self.acked_up_to = self.acked_up_to.max(seq);
        if let Some(conn) = self.conn.as_deref_mut() {
            conn.session.ack(seq);
        }
    }

    /// Whether TLS over TCP has begun and is not done.
    pub fn is_handshaking(&self) -> bool {
        let seal = self.conn.as_deref().map(|conn| &conn.seal);
        matches!(seal, Some(Seal::Tls(tls)) if tls.is_handshaking())
    }

    /// Whether TLS over TCP went on with a session of an earlier connection.
    pub fn is_resumed(&self) -> bool {
        let Some(Seal::Tls(tls)) = self.conn.as_deref().map(|conn| &conn.seal) else {
            return false;
        };
        tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// Asks the server for a sign of life on a path that has changed.
    pub fn probe(&mut self, now_ms: u64) {
        if let Some(conn) = self.conn.as_deref_mut() {
            conn.session.probe(now_ms, PROBE_MS_MAX);
        }
    }

    /// Finds the Send that this answers; `None` when nobody waits for it.
    pub fn handle_answer(&mut self, send_seq: SendSeq, outcome: &Outcome) -> Option<Unanswered> {
        let oldest = self.last_send_seq + 1 - self.unanswered.len() as u64;
        let index = usize::try_from(send_seq.0.checked_sub(oldest)?).ok()?;
        let send = self.unanswered.get_mut(index).filter(|send| !send.answered)?;
        send.answered = true;
        let answered = *send;
        while self.unanswered.front().is_some_and(|send| send.answered) {
            self.unanswered.pop_front();
        }
        self.after_reject |= matches!(outcome, Outcome::Rejected { .. });
        Some(answered)
    }

    /// Whether a Send may go out now.
    pub fn is_ready(&self) -> bool {
        self.conn.as_deref().is_some_and(|conn| self.unanswered.len() < conn.unanswered_max)
    }

    /// Sends without an answer.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Sends a new message; only when [`Client::is_ready`].
    pub fn send(
        &mut self,
        to: &Recipient,
        envelope: &[u8],
        stream: u32,
        sequence: u64,
        intended_ns: u64,
    ) {
        let send_seq = self.next_send(stream, sequence, intended_ns);
        let after_reject = std::mem::take(&mut self.after_reject);
        self.put_send(send_seq, (to, 0), envelope, after_reject);
    }

    /// The same to a group, whose roster is meant to have this version.
    pub fn send_as_of(
        &mut self,
        roster_version: u64,
        group: &Recipient,
        envelope: &[u8],
        sequence: u64,
        intended_ns: u64,
    ) {
        let send_seq = self.next_send(0, sequence, intended_ns);
        let after_reject = std::mem::take(&mut self.after_reject);
        self.put_send(send_seq, (group, roster_version), envelope, after_reject);
    }

    fn next_send(&mut self, stream: u32, sequence: u64, intended_ns: u64) -> SendSeq {
        assert!(self.is_ready(), "the caller asks first");
        self.last_send_seq += 1;
        self.unanswered.push_back(Unanswered { stream, sequence, intended_ns, answered: false });
        SendSeq(self.last_send_seq)
    }

    /// After Welcome: the unanswered Sends, with their numbers, to be sent again in this order.
    pub fn replays(&self) -> Vec<(SendSeq, Unanswered)> {
        let oldest = self.last_send_seq + 1 - self.unanswered.len() as u64;
        (oldest..)
            .map(SendSeq)
            .zip(self.unanswered.iter().copied())
            .filter(|(_, send)| !send.answered)
            .collect()
    }

    /// Sends one of [`Client::replays`] again.
    pub fn replay(&mut self, send_seq: SendSeq, to: &Recipient, envelope: &[u8]) {
        self.put_send(send_seq, (to, 0), envelope, false);
    }

    /// Asks for something; the answer is an event.
    pub fn call(&mut self, request_id: u64, call: &Call) -> Result<()> {
        let conn = self.conn.as_deref_mut().context("not connected")?;
        conn.session.call(request_id, call).context("the server would not take it")
    }

    /// Says goodbye; the connection ends when the server has closed it.
    pub fn bye(&mut self) {
        if let Some(conn) = self.conn.as_deref_mut() {
            conn.session.bye();
            conn.leaving = true;
        }
    }

    /// Appends what is to be sent to `ciphertext`. `plaintext` is shared scratch memory.
    pub fn poll_transmit(
        &mut self,
        now_ms: u64,
        plaintext: &mut Vec<u8>,
        ciphertext: &mut Vec<u8>,
    ) {
        let Some(conn) = self.conn.as_deref_mut() else { return };
        let Seal::Tls(tls) = &mut conn.seal else {
            conn.session.poll_transmit(now_ms, ciphertext);
            return;
        };
        plaintext.clear();
        if conn.session.poll_transmit(now_ms, plaintext) {
            tls.writer().write_all(plaintext).expect("the buffer has no limit");
        }
        if std::mem::take(&mut conn.leaving) {
            tls.send_close_notify();
        }
        while tls.wants_write() {
            tls.write_tls(ciphertext).expect("writing to memory does not fail");
        }
    }

    /// Seals bytes that are no whole frame: what an honest client never sends.
    pub fn seal(&mut self, plaintext: &[u8], ciphertext: &mut Vec<u8>) {
        let Some(Seal::Tls(tls)) = self.conn.as_deref_mut().map(|conn| &mut conn.seal) else {
            return;
        };
        tls.writer().write_all(plaintext).expect("the buffer has no limit");
        while tls.wants_write() {
            tls.write_tls(ciphertext).expect("writing to memory does not fail");
        }
    }

    fn put_send(
        &mut self,
        send_seq: SendSeq,
        (to, roster_version): (&Recipient, u64),
        envelope: &[u8],
        after_reject: bool,
    ) {
        let Some(conn) = self.conn.as_deref_mut() else { return };
        let send = ClientSend {
            send_seq,
            message_number: MessageNumber::default(),
            to,
            roster_version,
            device_list_version: 0,
            body: SendContent::Shared(envelope),
            ttl_ms: 0,
            urgent: false,
            after_reject,
        };
        conn.session.send(&send).expect("sizes and unanswered Sends are bounded before");
    }
}

fn read_plaintext(tls: &mut rustls::ClientConnection, out: &mut BytesMut) -> Result<()> {
    let mut reader = tls.reader();
    loop {
        let length = match reader.fill_buf() {
            // A close_notify: the socket's own end follows.
            Ok([]) => return Ok(()),
            Ok(plaintext) => {
                out.extend_from_slice(plaintext);
                plaintext.len()
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("TLS"),
        };
        reader.consume(length);
    }
}

/// A path that gives no sign of life for so long is lost, as in the client library.
const PROBE_MS_MAX: u64 = ringpost_client::limits::PROBE_MS_MAX;
/// Each user has one device, of this name, but in a group.
pub const DEVICE: &str = "load";
