//! One connection of a client: the production session, watched by the oracle.

use std::collections::BTreeMap;

use bytes::BytesMut;
use prost::Message as _;
use ringpost_client::ledger::Identity;
use ringpost_protocol::id::{DeviceId, MailboxId, Seq};
use ringpost_protocol::message::{Call, ClientEvent, Mode};
use ringpost_protocol::session::{ClientHello, ClientSession};
use ringpost_protocol::wire::{self, client_frame::Frame};

use super::net::LinkId;
use super::oracle::Oracle;

/// How a connection introduces itself.
pub struct Login {
    pub token: String,
    pub mode: Mode,
    /// The token is somebody else's: it must not be welcomed.
    pub is_forged: bool,
    /// The token ends while the connection may still be used.
    pub is_short: bool,
}

/// A call that was made.
#[derive(Debug)]
pub struct Asked {
    pub call: Call,
    pub at_ns: u64,
}

pub struct Connection {
    pub link: LinkId,
    pub session: ClientSession,
    pub inbound: BytesMut,
    pub mailbox: MailboxId,
    is_forged: bool,
    pub token_is_short: bool,
    /// Mailbox and cursor of the Hello.
    said: (MailboxId, Seq),
    /// The last entry of the mailbox that came.
    last_seq: Seq,
    pub welcomed: bool,
    /// When the gateway welcomed it, by the gateway's clock.
    welcomed_unix_ms: u64,
    /// Times that the gateway's clock was set before this connection was made.
    clock_steps: u64,
    pub caught_up: bool,
    /// Wait that the server asked for, and when to leave.
    pub leaving: Option<(u64, u64)>,
    pub replaced_ns: Option<u64>,
    /// It has acknowledged what it was never sent.
    has_lied: bool,
    /// Sends that the session saw answered, and whose answers were not looked at yet.
    pub settled: usize,
    /// Without an answer, by their request ids: each has one, or the connection ends.
    pub calls: BTreeMap<u64, Asked>,
}

impl Connection {
    pub fn new(
        link: LinkId,
        now_ms: u64,
        clock_steps: u64,
        login: Login,
        device: DeviceId,
        identity: Identity,
    ) -> Self {
        let hello = ClientHello {
            token: login.token,
            device,
            install_id: identity.install_id,
            mailbox_id: identity.mailbox_id,
            acked_up_to: identity.acked_up_to,
            mode: login.mode,
            capabilities: 0,
        };
        Self {
            link,
            session: ClientSession::new(now_ms, hello),
            inbound: BytesMut::new(),
            mailbox: identity.mailbox_id,
            is_forged: login.is_forged,
            token_is_short: login.is_short,
            said: (identity.mailbox_id, identity.acked_up_to),
            last_seq: Seq::default(),
            welcomed: false,
            welcomed_unix_ms: 0,
            clock_steps,
            caught_up: false,
            leaving: None,
            replaced_ns: None,
            has_lied: false,
            settled: 0,
            calls: BTreeMap::new(),
        }
    }

    /// Whether the gateway attached this connection before `newer`, as far as its Welcomes tell: not
    /// when they are of one moment, or when the gateway's clock was set meanwhile. The order in
    /// which a client makes its connections, or hears of them, says nothing.
    pub fn came_before(&self, newer: &Self, clock_steps: u64) -> bool {
        self.welcomed
            && newer.welcomed
            && self.clock_steps.min(newer.clock_steps) == clock_steps
            && self.welcomed_unix_ms < newer.welcomed_unix_ms
    }

    /// An acknowledgement of what no server has sent yet, and behind it a request that only a server
    /// which goes on would answer. `None`: not now.
    pub fn false_ack(&mut self, up_to: Seq) -> Option<Vec<u8>> {
        if !self.welcomed || self.leaving.is_some() || self.has_lied {
            return None;
        }
        self.has_lied = true;
        let ack = wire::Ack { up_to_seq: up_to.0 };
        let get = wire::GroupGet { request_id: REQUEST_AFTER_LIE, group: "g".into() };
        let mut out = Vec::new();
        for frame in [Frame::Ack(ack), Frame::GroupGet(get)] {
            let frame = wire::ClientFrame { frame: Some(frame) };
            frame.encode_length_delimited(&mut out).expect("a Vec grows");
        }
        Some(out)
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

    /// Shows the answer to a call to the oracle, and gives that call.
    pub fn answered(
        &mut self,
        oracle: &mut Oracle,
        (client, now_ns): (usize, u64),
        event: &ClientEvent,
    ) -> Option<Asked> {
        let (ClientEvent::Replied { request_id, .. }
        | ClientEvent::Error { fatal: false, request_id, .. }) = event
        else {
            return None;
        };
        if *request_id == 0 || self.has_lied && *request_id == REQUEST_AFTER_LIE {
            return None;
        }
        let unanswered = self.calls.len();
        let Some(asked) = self.calls.remove(request_id) else {
            oracle.violated(format!("client {client} got an answer to no call: {event:?}"));
            return None;
        };
        match event {
            ClientEvent::Replied { reply, .. } => oracle.replied(client, &asked, reply, now_ns),
            ClientEvent::Error { code, text, .. } => {
                oracle.call_refused(client, (&asked, unanswered), (*code, text), now_ns);
            }
            _ => {}
        }
        Some(asked)
    }

    /// Shows an event of the session to the oracle.
    pub fn watch(
        &mut self,
        oracle: &mut Oracle,
        (client, now_ns): (usize, u64),
        event: &ClientEvent,
    ) {
        match event {
            ClientEvent::Welcome(welcome) => {
                self.welcomed = true;
                self.welcomed_unix_ms = welcome.server_time_ms;
                self.mailbox = welcome.mailbox_id;
                oracle.require(!self.is_forged, || {
                    format!("client {client} was welcomed with a token of another device")
                });
                // What its Hello has acknowledged never comes again.
                if self.said.0 == welcome.mailbox_id {
                    self.last_seq = self.said.1;
                }
                oracle.welcomed(client);
            }
            ClientEvent::CaughtUp => self.caught_up = true,
            ClientEvent::Answered { send_seq, .. } => {
                oracle.require(self.settled > 0, || {
                    format!("client {client} got an answer that nothing asked for: {send_seq:?}")
                });
                self.settled = self.settled.saturating_sub(1);
            }
            ClientEvent::Gap { seq, .. } | ClientEvent::Delivered { seq, .. } => {
                self.note_seq(oracle, client, *seq);
            }
            ClientEvent::Deliver(delivery) => {
                self.note_seq(oracle, client, delivery.seq);
                oracle.delivered((client, now_ns), self.mailbox, delivery, self.replaced_ns);
            }
            ClientEvent::GroupChanged { group, version } => {
                oracle.group_changed(client, group, *version);
            }
            ClientEvent::DeviceList(list) => oracle.pushed_list(client, list, now_ns),
            ClientEvent::KeysLow { remaining_count } => oracle.keys_low(client, *remaining_count),
            ClientEvent::Error { fatal, code, request_id, .. } if self.has_lied => {
                oracle.require(*fatal || *request_id != REQUEST_AFTER_LIE, || {
                    format!("client {client} acknowledged what it was never sent: {code:?}")
                });
            }
            _ => {}
        }
    }

    fn note_seq(&mut self, oracle: &mut Oracle, client: usize, seq: Seq) {
        let before = std::mem::replace(&mut self.last_seq, seq);
        oracle.require(before < seq, || {
            format!("client {client} was brought {seq:?} after {before:?} or its acknowledgement")
        });
    }
}

/// No other request has an id.
const REQUEST_AFTER_LIE: u64 = 77;
