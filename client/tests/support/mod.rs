//! A server in miniature: one mailbox, the real server session, answers as told.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use ringpost_client::protocol::fault::PeerFault;
use ringpost_client::protocol::frame::split_frame;
use ringpost_client::protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, SendSeq, Seq, UserId,
};
use ringpost_client::protocol::limits::FRAME_BYTES_MAX;
use ringpost_client::protocol::message::{
    Call, DeliverHead, DeliveredHead, ErrorCode, GapReason, Limits, Outcome, Recipient, RejectCode,
    Reply, Request, SendBody, SendRequest, Welcome, put_caught_up, put_error, put_outcome,
    put_reply,
};
use ringpost_client::protocol::session::ServerSession;

pub(crate) mod app;
pub(crate) mod gateway;
pub(crate) mod tcp_relay;
pub(crate) mod udp_relay;

pub(crate) enum Entry {
    Message { from: DeviceAddress, send_seq: SendSeq, text: String },
    Gap,
    Receipt { peer: DeviceAddress, install_id: InstallId, up_to: SendSeq },
}

pub(crate) struct FakeServer {
    pub(crate) mailbox_id: MailboxId,
    pub(crate) entries: VecDeque<(Seq, Entry)>,
    pub(crate) next_seq: u64,
    /// Everything stored, in order; a replay after [`Self::forget`] is stored again.
    pub(crate) stored: Vec<(SendSeq, Recipient, String)>,
    pub(crate) outcomes: BTreeMap<SendSeq, Outcome>,
    /// Mailboxes that are full.
    pub(crate) full: BTreeSet<Recipient>,
    /// Mailboxes that take so many more.
    pub(crate) room: BTreeMap<Recipient, usize>,
    /// Users that do not exist.
    pub(crate) unknown: BTreeSet<Recipient>,
    /// Whether a Send is processed, but its answer is lost.
    pub(crate) is_mute: bool,
    /// The same for single Sends.
    pub(crate) lost_answers: BTreeSet<SendSeq>,
    pub(crate) sends_seen: Vec<(SendSeq, bool)>,
    pub(crate) hellos: Vec<(InstallId, MailboxId, Seq)>,
    pub(crate) calls: Vec<(u64, Call)>,
    /// To the next calls; without one a call stays unanswered.
    pub(crate) answers: VecDeque<Result<Reply, (ErrorCode, &'static str)>>,
    /// Sent to every connection when it is woken.
    pub(crate) unasked: Vec<u8>,
}

pub(crate) struct ServerConn {
    pub(crate) session: ServerSession,
    inbound: BytesMut,
    blocked: BTreeSet<Recipient>,
    is_open: bool,
}

impl FakeServer {
    pub(crate) fn new() -> Self {
        Self {
            mailbox_id: MailboxId(77),
            entries: VecDeque::new(),
            next_seq: 1,
            stored: Vec::new(),
            outcomes: BTreeMap::new(),
            full: BTreeSet::new(),
            room: BTreeMap::new(),
            unknown: BTreeSet::new(),
            is_mute: false,
            lost_answers: BTreeSet::new(),
            sends_seen: Vec::new(),
            hellos: Vec::new(),
            calls: Vec::new(),
            answers: VecDeque::new(),
            unasked: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.entries.push_back((Seq(self.next_seq), entry));
        self.next_seq += 1;
    }

    /// A crash of the server: what it stored stays, what it remembered does not.
    pub(crate) fn forget(&mut self) {
        self.outcomes.clear();
    }

    pub(crate) fn handle(
        &mut self,
        conn: &mut ServerConn,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), PeerFault> {
        conn.inbound.extend_from_slice(data);
        while let Some(frame) = split_frame(&mut conn.inbound, FRAME_BYTES_MAX)? {
            match conn.session.handle_frame(0, frame, out)? {
                Some(Request::Hello(hello)) => {
                    self.hellos.push((hello.install_id, hello.mailbox_id, hello.acked_up_to));
                    if hello.mailbox_id == self.mailbox_id {
                        self.drop_entries(hello.acked_up_to);
                    }
                    let welcome = Welcome {
                        mailbox_id: self.mailbox_id,
                        heartbeat_ms: 30_000,
                        server_time_ms: 1,
                        limits: Limits::of_protocol(),
                        capabilities: 0,
                    };
                    conn.session.welcome(0, u64::MAX, &welcome, out);
                    conn.is_open = true;
                    self.deliver(conn, out);
                    put_caught_up(out);
                }
                Some(Request::Send(send)) => {
                    let send_seq = send.send_seq;
                    let outcome = self.take(conn, send);
                    if !self.is_mute && !self.lost_answers.contains(&send_seq) {
                        put_outcome(out, send_seq, &outcome);
                    }
                }
                Some(Request::Ack { up_to }) => self.drop_entries(up_to),
                Some(Request::Call { request_id, call }) => {
                    self.calls.push((request_id, *call));
                    match self.answers.pop_front() {
                        Some(Ok(reply)) => put_reply(out, request_id, &reply),
                        Some(Err((code, text))) => put_error(out, code, text, false, request_id),
                        None => {}
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Delivers what the connection has not seen.
    pub(crate) fn deliver(&self, conn: &mut ServerConn, out: &mut Vec<u8>) {
        if !conn.is_open {
            return;
        }
        out.extend_from_slice(&self.unasked);
        for (seq, entry) in &self.entries {
            if *seq <= conn.session.sent_up_to() {
                continue;
            }
            match entry {
                Entry::Message { from, send_seq, text } => {
                    let head = DeliverHead {
                        seq: *seq,
                        from_user: from.user.as_str(),
                        from_device: from.device.as_str(),
                        install_id: InstallId(5),
                        send_seq: *send_seq,
                        message_number: ringpost_protocol::id::MessageNumber(send_seq.0),
                        sent_at_ms: 1,
                        group: None,
                        urgent: false,
                    };
                    conn.session.deliver(out, &head, text.as_bytes());
                }
                Entry::Gap => conn.session.gap(out, *seq, GapReason::Full, None),
                Entry::Receipt { peer, install_id, up_to } => {
                    let head = DeliveredHead {
                        seq: *seq,
                        peer,
                        group: None,
                        install_id: *install_id,
                        up_to_send_seq: *up_to,
                    };
                    conn.session.delivered(out, &head);
                }
            }
        }
    }

    fn take(&mut self, conn: &mut ServerConn, send: SendRequest) -> Outcome {
        self.sends_seen.push((send.send_seq, send.after_reject));
        if let Some(outcome) = self.outcomes.get(&send.send_seq) {
            if outcome.is_retryable() {
                conn.blocked.insert(send.to);
            }
            return outcome.clone();
        }
        let last = self.outcomes.last_key_value().map(|(send_seq, _)| *send_seq);
        assert!(last.is_none_or(|last| send.send_seq > last), "numbers rise");
        if send.after_reject {
            conn.blocked.remove(&send.to);
        }
        let refused = |code| Outcome::Rejected { code, retry_after_ms: Some(1_000) };
        let outcome = if self.unknown.contains(&send.to) {
            Outcome::Rejected { code: RejectCode::UnknownRecipient, retry_after_ms: None }
        } else if conn.blocked.contains(&send.to) || !self.takes(&send.to) {
            conn.blocked.insert(send.to.clone());
            refused(RejectCode::MailboxFull)
        } else {
            let SendBody::Shared(envelope) = send.body else { panic!("tests send shared ones") };
            let text = String::from_utf8(envelope.to_vec()).unwrap();
            self.stored.push((send.send_seq, send.to, text));
            Outcome::Accepted { server_time_ms: 1, skipped: Vec::new() }
        };
        self.outcomes.insert(send.send_seq, outcome.clone());
        outcome
    }

    /// Whether a mailbox has room, which is then used.
    fn takes(&mut self, to: &Recipient) -> bool {
        if self.full.contains(to) {
            return false;
        }
        let Some(room) = self.room.get_mut(to) else { return true };
        let takes = *room > 0;
        *room = room.saturating_sub(1);
        takes
    }

    fn drop_entries(&mut self, up_to: Seq) {
        self.entries.retain(|(seq, _)| *seq > up_to);
    }
}

impl ServerConn {
    pub(crate) fn new() -> Self {
        Self {
            session: ServerSession::new(0),
            inbound: BytesMut::new(),
            blocked: BTreeSet::new(),
            is_open: false,
        }
    }
}

pub(crate) fn user(name: &str) -> Recipient {
    Recipient::User(UserId::new(name).unwrap())
}

pub(crate) fn device(user: &str) -> DeviceAddress {
    DeviceAddress { user: UserId::new(user).unwrap(), device: DeviceId::new("d").unwrap() }
}

pub(crate) fn text(body: &str) -> SendBody {
    SendBody::Shared(Bytes::copy_from_slice(body.as_bytes()))
}
