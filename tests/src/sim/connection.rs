//! One connection of a client: the production session, watched by the oracle.

use bytes::BytesMut;
use ringpost_client::ledger::Identity;
use ringpost_protocol::id::{DeviceId, MailboxId};
use ringpost_protocol::message::{ClientEvent, Mode};
use ringpost_protocol::session::{ClientHello, ClientSession};

use super::net::LinkId;
use super::oracle::Oracle;

pub struct Connection {
    pub link: LinkId,
    pub session: ClientSession,
    pub inbound: BytesMut,
    pub mailbox: MailboxId,
    pub welcomed: bool,
    pub caught_up: bool,
    /// Wait that the server asked for, and when to leave.
    pub leaving: Option<(u64, u64)>,
    pub replaced_ns: Option<u64>,
    /// Sends that the session saw answered, and whose answers were not looked at yet.
    pub settled: usize,
}

impl Connection {
    pub fn new(
        link: LinkId,
        now_ms: u64,
        token: String,
        device: DeviceId,
        identity: Identity,
    ) -> Self {
        let hello = ClientHello {
            token,
            device,
            install_id: identity.install_id,
            mailbox_id: identity.mailbox_id,
            acked_up_to: identity.acked_up_to,
            mode: Mode::Foreground,
            capabilities: 0,
        };
        Self {
            link,
            session: ClientSession::new(now_ms, hello),
            inbound: BytesMut::new(),
            mailbox: identity.mailbox_id,
            welcomed: false,
            caught_up: false,
            leaving: None,
            replaced_ns: None,
            settled: 0,
        }
    }

    /// Takes what arrived; the events are in the session then.
    pub fn take(&mut self, oracle: &mut Oracle, client: usize, now_ms: u64, data: &[u8]) {
        self.inbound.extend_from_slice(data);
        let before = self.session.unanswered();
        if let Err(fault) = self.session.handle_data(now_ms, &mut self.inbound) {
            oracle.violated(format!("client {client}: the server broke the protocol: {fault}"));
        }
        self.settled += before - self.session.unanswered();
    }

    /// Shows an event of the session to the oracle.
    pub fn watch(&mut self, oracle: &mut Oracle, client: usize, event: &ClientEvent) {
        match event {
            ClientEvent::Welcome(welcome) => {
                self.welcomed = true;
                self.mailbox = welcome.mailbox_id;
                oracle.welcomed(client);
            }
            ClientEvent::CaughtUp => self.caught_up = true,
            ClientEvent::Answered { send_seq, .. } => {
                oracle.require(self.settled > 0, || {
                    format!("client {client} got an answer that nothing asked for: {send_seq:?}")
                });
                self.settled = self.settled.saturating_sub(1);
            }
            ClientEvent::Deliver(delivery) => {
                oracle.delivered(client, self.mailbox, delivery, self.replaced_ns);
            }
            _ => {}
        }
    }
}
