//! Devices and their mailboxes at their home shard: attach a connection, store, deliver.

use std::collections::VecDeque;

use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::id::{DeviceAddress, InstallId, MailboxId, SendSeq, Seq, UserId};
use ringpost_protocol::limits::{DELIVERS_UNACKED_MAX, DEVICES_PER_USER_MAX};
use ringpost_protocol::message::{self, DeliverHead, DeliveredHead, Limits, Welcome};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_protocol::session::ServerSession;
use ringpost_protocol::window::SendMemory;
use ringpost_ring::Ring;
use ringpost_storage::{
    DeviceRecord, Fault, GapReason, ReadId, ReadStart, StoredMessage, StoredRecord,
};

use super::conn::{Conn, ConnKey, Phase};
use super::home::{Awaiting, OpenStore, ReadFor};
use super::message::{DeviceIndex, Login};
use super::receipts::AckWalk;
use super::{Shard, Time};
use crate::audit::AuditEvent;
use crate::limits::{DEVICES_PER_SHARD_MAX, OUTBOUND_BYTES_MAX};
use crate::metrics::Bound;

/// One device of a user, with or without a connection.
pub(super) struct Device {
    pub(super) address: DeviceAddress,
    /// Number of its user in this shard.
    pub(super) user: u32,
    pub(super) mailbox: MailboxId,
    /// As far as the device list of its user is known here: see [`super::stale`].
    pub(super) is_listed: bool,
    pub(super) attached: Option<Box<Attached>>,
    pub(super) ack: Option<Box<AckWalk>>,
    pub(super) memory: Option<Box<SendMemory>>,
    pub(super) last_send_ms: u64,
}

/// The connection that a device has now.
pub(super) struct Attached {
    pub(super) conn: ConnKey,
    pub(super) login: Box<Login>,
    /// Delivered on this connection up to here.
    pub(super) cursor: Seq,
    /// Delivered on this connection and not yet acknowledged, oldest first.
    pub(super) unacked: VecDeque<Unacked>,
    pub(super) caught_up: bool,
    /// Who sent the last message: mostly also the next one, whose receipt then shares this address.
    last_sender: Option<DeviceAddress>,
    /// Delivery goes on when the record of this entry has been read.
    pub(super) reading: Option<(ReadId, Seq)>,
}

pub(super) struct Unacked {
    pub(super) seq: Seq,
    /// Who gets a receipt; none for gaps and for receipts themselves.
    pub(super) source: Option<Source>,
}

/// The Send that a delivered message came from.
pub(super) struct Source {
    pub(super) from: DeviceAddress,
    pub(super) install_id: InstallId,
    pub(super) group: Option<UserId>,
    pub(super) send_seq: SendSeq,
}

impl<R: Ring> Shard<R> {
    /// Gives a verified connection to its device, which it registers first if need be.
    pub(super) fn attach(&mut self, key: ConnKey, login: Login) -> Result<(), PeerFault> {
        let address =
            DeviceAddress { user: login.claims.user.clone(), device: login.claims.device.clone() };
        let index = match self.register(&address) {
            Ok(index) => index,
            Err(fault) => {
                self.audit_refused(key, &login.hello, Some(&login.claims), &fault);
                return Err(fault);
            }
        };
        let home = self.home.as_mut().expect("arrives at its home");
        let device = home.device_mut(index);
        let known = login.hello.mailbox_id == device.mailbox;
        let acked_up_to = if known { login.hello.acked_up_to } else { Seq(0) };
        let mailbox = device.mailbox;
        match &mut device.memory {
            Some(memory) => memory.connection_started(login.hello.install_id),
            None => device.memory = Some(Box::new(SendMemory::new(login.hello.install_id))),
        }
        let store = home.store();
        let mut cursor = acked_up_to.min(store.tail(mailbox)).max(store.acked(mailbox));
        if is_active(Mutant::ReplayFromWrongSeq) {
            cursor = store.next(mailbox, cursor).unwrap_or(cursor);
        }
        let attached = Attached {
            conn: key,
            login: Box::new(login),
            cursor,
            unacked: VecDeque::new(),
            caught_up: false,
            last_sender: None,
            reading: None,
        };
        home.attached.insert(mailbox, index);
        let replaced = home.device_mut(index).attached.replace(Box::new(attached));
        let conn = self.conns.get_mut(key).expect("just arrived");
        conn.phase = Phase::Registering { device: index };
        if replaced.is_some() {
            self.audit_login(index, AuditEvent::Replaced);
        }
        let home = self.home.as_mut().expect("arrives at its home");
        let open = home.state.open_mut();
        if open.unsynced_records() == 0 || is_active(Mutant::WelcomeBeforeSync) {
            self.welcome(key);
        } else {
            open.await_durable(Awaiting::Registered(key));
        }
        if let Some(old) = replaced
            && !is_active(Mutant::ReplacedConnectionKept)
        {
            self.fail(old.conn, &PeerFault::Replaced);
        }
        Ok(())
    }

    fn register(&mut self, address: &DeviceAddress) -> Result<DeviceIndex, PeerFault> {
        let home = self.home.as_mut().expect("arrives at its home");
        if let Some(index) = home.find(&address.user, &address.device) {
            return Ok(index);
        }
        let of_user = home.users.get(&address.user).map_or(0, Vec::len);
        if of_user >= DEVICES_PER_USER_MAX || home.devices.len() >= DEVICES_PER_SHARD_MAX {
            self.metrics.bound_hits.add(Bound::DevicesPerShard);
            return Err(PeerFault::DevicesFull);
        }
        // Zero means "none" on the wire.
        let mailbox = MailboxId(self.random.next_u64().max(1));
        home.state.open_mut().store.put_device(&DeviceRecord {
            address: address.clone(),
            mailbox,
            created_unix_ms: self.time.unix_ms,
        });
        let index = home.insert(address.clone(), mailbox);
        home.note_registered(index);
        Ok(index)
    }

    /// The device's record is durable: the session opens, and delivery begins.
    pub(super) fn welcome(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Registering { device: index } = conn.phase else { return };
        conn.phase = Phase::Open { device: index };
        let home = self.home.as_mut().expect("registered at its home");
        let device = home.device_mut(index);
        let attached = device.attached.as_ref().expect("a registering connection is attached");
        let hello = &attached.login.hello;
        let welcome = Welcome {
            mailbox_id: device.mailbox,
            heartbeat_ms: hello.mode.heartbeat_ms(),
            server_time_ms: self.time.unix_ms,
            limits: Limits::with_frame_bytes_max(conn.frame_bytes_max),
            capabilities: 0,
        };
        let cursor = attached.cursor;
        let expires_unix_ms = attached.login.claims.expires_unix_ms;
        conn.session.welcome(self.time.now_ms, expires_unix_ms, &welcome, &mut conn.out);
        self.metrics.hello_accepted += 1;
        self.audit_login(index, AuditEvent::LoginAccepted);
        self.mark_dirty(key);
        self.schedule(key);
        self.rearm.push(key);
        self.acknowledge(index, cursor);
        self.deliver(index);
        self.count_keys(key, index);
        self.process_input(key);
    }

    /// The connection of a device ends. A newer one may already have taken its place.
    pub(super) fn detach(&mut self, index: DeviceIndex, key: ConnKey) {
        let home = self.home.as_mut().expect("devices live at home");
        let device = &mut home.devices[index.0 as usize];
        if device.attached.as_ref().is_some_and(|attached| {
            attached.conn == key || is_active(Mutant::StaleGenerationAccepted)
        }) {
            device.attached = None;
            home.attached.remove(&device.mailbox);
        }
    }

    /// Hands out what the mailbox holds, as far as the connection takes it.
    pub(super) fn deliver(&mut self, index: DeviceIndex) {
        let home = self.home.as_mut().expect("devices live at home");
        let device = &mut home.devices[index.0 as usize];
        let Some(attached) = device.attached.as_mut() else { return };
        let key = attached.conn;
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.device().is_none() {
            return;
        }
        let open = home.state.open_mut();
        let before_bytes = conn.out.len();
        while attached.reading.is_none() {
            if conn.out.len() >= OUTBOUND_BYTES_MAX {
                self.metrics.bound_hits.add(Bound::OutboundBytes);
                break;
            }
            if attached.unacked.len() >= DELIVERS_UNACKED_MAX {
                self.metrics.bound_hits.add(Bound::DeliversUnacked);
                break;
            }
            let Some(seq) = open.store.next(device.mailbox, attached.cursor) else {
                if !std::mem::replace(&mut attached.caught_up, true) {
                    message::put_caught_up(&mut conn.out);
                }
                break;
            };
            match open.store.read(device.mailbox, seq) {
                ReadStart::Ready(record) => {
                    if is_active(Mutant::ReceiptForExpired) {
                        open.owe_expired(&mut device.ack, &record, self.time);
                    }
                    self.spare_out.lend(&mut conn.out);
                    match open.hand_out(device.mailbox, attached, conn, seq, &record, self.time) {
                        HandOut::Delivered { waited_ms } => self.metrics.count_delivery(waited_ms),
                        HandOut::Expired => {}
                        HandOut::Held => {
                            open.await_durable(Awaiting::Fresh(index));
                            break;
                        }
                    }
                }
                ReadStart::Pending(id) => {
                    attached.reading = Some((id, seq));
                    open.reads.insert(id, ReadFor::Delivery(index));
                }
                ReadStart::Gone => attached.cursor = seq,
            }
        }
        if conn.out.len() > before_bytes {
            self.mark_dirty(key);
        }
    }

    /// Delivery waited for a record on disk.
    pub(super) fn deliver_read(
        &mut self,
        index: DeviceIndex,
        id: ReadId,
        result: Result<StoredRecord, Fault>,
    ) {
        let home = self.home.as_mut().expect("devices live at home");
        let device = &mut home.devices[index.0 as usize];
        let Some(attached) = device.attached.as_mut() else { return };
        let is_own =
            |&mut (own, _): &mut (ReadId, Seq)| own == id || is_active(Mutant::StaleReadDelivered);
        let Some((_, seq)) = attached.reading.take_if(is_own) else {
            return; // for a connection that is gone
        };
        let key = attached.conn;
        // A receipt may have been replaced while it was read: its record must not take the place of
        // the entry that is next now.
        let open = home.state.open_mut();
        let is_next = open.store.next(device.mailbox, attached.cursor) == Some(seq);
        if let (Some(conn), true) = (self.conns.get_mut(key), is_next) {
            match result {
                Ok(record) if conn.device().is_some() => {
                    match open.hand_out(device.mailbox, attached, conn, seq, &record, self.time) {
                        HandOut::Delivered { waited_ms } => {
                            self.metrics.count_delivery(waited_ms);
                            self.mark_dirty(key);
                        }
                        HandOut::Expired => {}
                        // Not before: it would be read again and again.
                        HandOut::Held => return open.await_durable(Awaiting::Fresh(index)),
                    }
                }
                Ok(_) => {}
                // A gap has taken its place, behind what is there already.
                Err(_) => attached.cursor = seq,
            }
        }
        self.deliver(index);
    }

    /// A gap has taken the place of an entry that the store lost or that expired.
    pub(super) fn show_gap(&mut self, mailbox: MailboxId) {
        let home = self.home.as_mut().expect("its store spoke");
        let Some(&index) = home.attached.get(&mailbox) else { return };
        let open = home.state.open_mut();
        if open.unsynced_records() == 0 {
            self.deliver(index);
        } else {
            open.await_durable(Awaiting::Fresh(index));
        }
    }
}

/// What became of the next entry of a mailbox.
enum HandOut {
    Delivered {
        /// Of a message.
        waited_ms: Option<u64>,
    },
    /// A gap takes its place, which comes later.
    Expired,
    /// It may not go out before such a gap is durable: a device that acknowledges it acknowledges
    /// what was in front of it, too, and after a crash that would be the message again, as if it had
    /// been delivered.
    Held,
}

impl OpenStore {
    /// Gives the next entry of a mailbox to its connection, if it may go.
    fn hand_out(
        &mut self,
        mailbox: MailboxId,
        attached: &mut Attached,
        conn: &mut Conn,
        seq: Seq,
        record: &StoredRecord,
        time: Time,
    ) -> HandOut {
        if let StoredRecord::Message(message) = record
            && self.has_expired(message, time)
        {
            self.store.expire(mailbox, seq, message.group.as_deref());
            attached.cursor = seq;
            return HandOut::Expired;
        }
        if self.store.awaits_gap(mailbox) {
            return HandOut::Held;
        }
        let waited_ms = attached.put(&mut conn.session, &mut conn.out, seq, record, time.unix_ms);
        HandOut::Delivered { waited_ms }
    }

    pub(super) fn has_expired(&self, message: &StoredMessage, time: Time) -> bool {
        message.expires_at_ms <= self.store.expiry_clock_ms(time.now_ms)
    }
}

impl Attached {
    /// Encodes the next entry of the mailbox and notes what its acknowledgement will set off. Gives
    /// how long a message has waited.
    fn put(
        &mut self,
        session: &mut ServerSession,
        out: &mut Vec<u8>,
        seq: Seq,
        record: &StoredRecord,
        unix_ms: u64,
    ) -> Option<u64> {
        let mut waited_ms = None;
        let source = match record {
            StoredRecord::Message(message) => {
                let head = DeliverHead {
                    seq,
                    from_user: &message.from_user,
                    from_device: &message.from_device,
                    install_id: message.install_id,
                    send_seq: message.send_seq,
                    message_number: message.message_number,
                    sent_at_ms: message.sent_at_ms,
                    group: message.group.as_deref(),
                    urgent: message.urgent,
                };
                session.deliver(out, &head, &message.envelope);
                waited_ms = Some(unix_ms.saturating_sub(message.sent_at_ms));
                Source::of(message, &mut self.last_sender)
            }
            StoredRecord::Receipt(receipt) => {
                let head = DeliveredHead {
                    seq,
                    peer: &receipt.peer,
                    group: receipt.group.as_ref().map(UserId::as_str),
                    install_id: receipt.install_id,
                    up_to_send_seq: receipt.up_to_send_seq,
                };
                session.delivered(out, &head);
                None
            }
            StoredRecord::Gap { reason, group } => {
                let reason = match reason {
                    GapReason::Full => message::GapReason::Full,
                    GapReason::Expired => message::GapReason::Expired,
                    GapReason::Damaged => message::GapReason::Damaged,
                };
                session.gap(out, seq, reason, group.as_deref());
                None
            }
        };
        self.cursor = seq;
        self.unacked.push_back(Unacked { seq, source });
        waited_ms
    }
}
