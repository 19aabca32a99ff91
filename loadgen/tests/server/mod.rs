//! A small server of the protocol on blocking sockets and threads, with faults on demand: what the
//! load generator must find.

#[allow(dead_code, reason = "not every test has clients over QUIC")]
pub(crate) mod quic;

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use ringpost_loadgen::scenario::Options;
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::id::{InstallId, MailboxId, SendSeq, Seq, UserId};
use ringpost_protocol::limits::{DELIVERS_UNACKED_MAX, FRAME_BYTES_MAX, HEARTBEAT_FOREGROUND_MS};
use ringpost_protocol::message::{
    DeliverHead, Limits, Outcome, Recipient, RejectCode, Request, SendBody, SendRequest, Welcome,
    put_outcome,
};
use ringpost_protocol::session::ServerSession;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What goes wrong, with the message of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    Lose(u64),
    Double(u64),
    /// Delivered behind its successor in the same mailbox.
    Swap(u64),
    Damage(u64),
    Reject(u64),
    /// Stored, but the connection ends before the answer.
    HangUp(u64),
}

/// A load generator against a server of its own.
pub(crate) fn options(data: &Path, fault: Fault) -> Options {
    Options {
        target: Some(start(data, fault).to_string()),
        data: Some(data.to_owned()),
        metrics: None,
        server_name: None,
        gateway: None,
        shards: None,
        server_cores: None,
        client_cores: None,
        threads: Some(2),
        seed: 3,
        connecting_max: 4,
        tick: Duration::from_micros(200),
    }
}

struct Post {
    fault: Fault,
    stored: u64,
    mailboxes: HashMap<String, Mailbox>,
}

#[derive(Default)]
struct Mailbox {
    last_seq: u64,
    /// Of this user as a sender: the highest send_seq that was handled.
    sent_mark: u64,
    letters: VecDeque<(Seq, Letter)>,
    held: Option<Letter>,
}

#[derive(Clone)]
struct Letter {
    from: String,
    install_id: InstallId,
    send_seq: SendSeq,
    envelope: Bytes,
}

/// Serves until the process ends.
pub(crate) fn start(data: &Path, fault: Fault) -> SocketAddr {
    ringpost_loadgen::tokens::write_credentials(data).unwrap();
    let certificates =
        CertificateDer::pem_file_iter(data.join("cert.pem")).unwrap().collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(data.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.unwrap(), key)
        .unwrap();
    config.alpn_protocols = vec![b"ringpost/1".to_vec()];
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let post = Arc::new(Mutex::new(Post { fault, stored: 0, mailboxes: HashMap::new() }));
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (config, post) = (Arc::clone(&config), Arc::clone(&post));
            thread::spawn(move || Connection::new(socket.unwrap(), config, post).serve());
        }
    });
    address
}

struct Connection {
    socket: TcpStream,
    tls: rustls::ServerConnection,
    post: Arc<Mutex<Post>>,
    session: ServerSession,
    user: String,
    install_id: InstallId,
    acked_up_to: Seq,
    plaintext: BytesMut,
    out: Vec<u8>,
}

impl Connection {
    fn new(socket: TcpStream, config: Arc<rustls::ServerConfig>, post: Arc<Mutex<Post>>) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        socket.set_nodelay(true).unwrap();
        Self {
            socket,
            tls: rustls::ServerConnection::new(config).unwrap(),
            post,
            session: ServerSession::new(0),
            user: String::new(),
            install_id: InstallId(0),
            acked_up_to: Seq(0),
            plaintext: BytesMut::new(),
            out: Vec::new(),
        }
    }

    fn serve(mut self) {
        while self.read() {
            while let Some(frame) = split_frame(&mut self.plaintext, FRAME_BYTES_MAX).unwrap() {
                let go_on = match self.session.handle_frame(0, frame, &mut self.out).unwrap() {
                    Some(Request::Bye) => false,
                    Some(request) => self.handle(request),
                    None => true,
                };
                if !go_on {
                    return;
                }
            }
            self.deliver();
            self.tls.writer().write_all(&self.out).unwrap();
            self.out.clear();
            while self.tls.wants_write() {
                if self.tls.write_tls(&mut self.socket).is_err() {
                    return;
                }
            }
        }
    }

    fn read(&mut self) -> bool {
        match self.tls.read_tls(&mut self.socket) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return false,
        }
        self.tls.process_new_packets().unwrap();
        let mut bytes = Vec::new();
        // WouldBlock is the regular end.
        let _ = self.tls.reader().read_to_end(&mut bytes);
        self.plaintext.extend_from_slice(&bytes);
        true
    }

    /// False to hang up.
    fn handle(&mut self, request: Request) -> bool {
        match request {
            Request::Hello(hello) => {
                assert_eq!(self.tls.alpn_protocol(), Some(b"ringpost/1".as_slice()));
                self.user = subject(&hello.token);
                self.install_id = hello.install_id;
                self.acked_up_to = hello.acked_up_to;
                self.post.lock().unwrap().mailboxes.entry(self.user.clone()).or_default();
                let welcome = Welcome {
                    mailbox_id: MailboxId(7),
                    heartbeat_ms: HEARTBEAT_FOREGROUND_MS,
                    server_time_ms: 1,
                    limits: Limits::of_protocol(),
                    capabilities: 0,
                };
                self.session.welcome(0, u64::MAX, &welcome, &mut self.out);
            }
            Request::Send(send) => {
                let mut post = self.post.lock().unwrap();
                let outcome = post.store(&self.user, self.install_id, &send);
                if post.fault == Fault::HangUp(post.stored) {
                    post.fault = Fault::Nothing;
                    return false;
                }
                put_outcome(&mut self.out, send.send_seq, &outcome);
            }
            Request::Ack { up_to } => {
                self.acked_up_to = up_to;
                let mut post = self.post.lock().unwrap();
                let letters = &mut post.mailboxes.get_mut(&self.user).unwrap().letters;
                letters.retain(|(seq, _)| *seq > up_to);
            }
            _ => {}
        }
        true
    }

    fn deliver(&mut self) {
        if !self.session.is_open() {
            return;
        }
        let post = self.post.lock().unwrap();
        let letters = &post.mailboxes[&self.user].letters;
        for (seq, letter) in letters.iter().take(DELIVERS_UNACKED_MAX) {
            if *seq > self.session.sent_up_to().max(self.acked_up_to) {
                let head = DeliverHead {
                    seq: *seq,
                    from_user: &letter.from,
                    from_device: "load",
                    install_id: letter.install_id,
                    send_seq: letter.send_seq,
                    message_number: ringpost_protocol::id::MessageNumber(letter.send_seq.0),
                    sent_at_ms: 1,
                    group: None,
                    urgent: false,
                };
                self.session.deliver(&mut self.out, &head, &letter.envelope);
            }
        }
    }
}

impl Post {
    fn store(&mut self, from: &str, install_id: InstallId, send: &SendRequest) -> Outcome {
        let (Recipient::User(to), SendBody::Shared(envelope)) = (&send.to, &send.body) else {
            panic!("the load generator sends one envelope to one user");
        };
        let rejected = |code| Outcome::Rejected { code, retry_after_ms: None };
        let accepted = Outcome::Accepted { server_time_ms: 1, skipped: Vec::new() };
        let mark = &mut self.mailboxes.get_mut(from).unwrap().sent_mark;
        if send.send_seq.0 <= *mark {
            return accepted;
        }
        *mark = send.send_seq.0;
        self.stored += 1;
        if self.fault == Fault::Reject(self.stored) {
            return rejected(RejectCode::RateLimited);
        }
        let Some(mailbox) = self.mailboxes.get_mut(UserId::as_str(to)) else {
            return rejected(RejectCode::UnknownRecipient);
        };
        let mut letter = Letter {
            from: from.to_owned(),
            install_id,
            send_seq: send.send_seq,
            envelope: envelope.clone(),
        };
        if self.fault == Fault::Damage(self.stored) {
            let mut bytes = envelope.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            letter.envelope = bytes.into();
        }
        match self.fault {
            Fault::Lose(number) if number == self.stored => {}
            Fault::Swap(number) if number == self.stored => mailbox.held = Some(letter),
            Fault::Double(number) if number == self.stored => {
                mailbox.put(letter.clone());
                mailbox.put(letter);
            }
            _ => mailbox.put(letter),
        }
        accepted
    }
}

impl Mailbox {
    fn put(&mut self, letter: Letter) {
        self.last_seq += 1;
        self.letters.push_back((Seq(self.last_seq), letter));
        if let Some(held) = self.held.take() {
            self.put(held);
        }
    }
}

/// The user in a token; this server believes everybody.
fn subject(token: &str) -> String {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    claims["sub"].as_str().unwrap().to_owned()
}
