//! A Send at the home of its recipient: into the mailboxes that have room.

use ringpost_protocol::id::{DeviceId, MailboxId, UserId};
use ringpost_protocol::message::{Outcome, Recipient, RejectCode, SendBody, SkipReason};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;
use ringpost_storage::{GapReason, NewMessage, Room, StoreFull};

use super::backlog::Request;
use super::home::{Awaiting, Home};
use super::message::{DeviceIndex, StoreReply, StoreRequest};
use super::route::Refusal;
use super::{Shard, Time};
use crate::limits::{MAILBOX_FULL_RETRY_MS, OVERLOAD_RETRY_MS, STORAGE_FULL_RETRY_MS};
use crate::metrics::Bound;

impl<R: Ring> Shard<R> {
    /// Takes a message for a user whose home this is.
    pub(super) fn handle_store(&mut self, request: StoreRequest) {
        let home = self.home.as_mut().expect("requests go to home shards");
        match home.blocks.check(&request) {
            Some(Refusal::Outcome(refusal)) => return self.refuse(&request, refusal),
            Some(Refusal::Unknown) => {
                return self.outcome_unknown(request.origin, Recipient::User(request.to));
            }
            None => {}
        }
        if !home.state.is_open() {
            return self.hold(Request::Store(Box::new(request)));
        }
        let mut deposited = std::mem::take(&mut home.deposited);
        deposited.clear();
        if let Err(refusal) = home.deposit(&request, self.time, &mut deposited) {
            home.deposited = deposited;
            return self.refuse(&request, refusal);
        }
        let open = home.state.open_mut();
        for &index in deposited.fresh.iter().chain(&deposited.full) {
            open.await_durable(Awaiting::Fresh(index));
        }
        for _ in &deposited.full {
            let full = deposited.any_mailbox_full;
            self.metrics.bound_hits.add(if full { Bound::Mailbox } else { Bound::SenderShare });
        }
        let skipped = std::mem::take(&mut deposited.skipped);
        home.deposited = deposited;
        let outcome = Outcome::Accepted { server_time_ms: self.time.unix_ms, skipped };
        let StoreRequest { origin, to, .. } = request;
        let reply = StoreReply { origin, to: Recipient::User(to), outcome };
        if is_active(Mutant::SpeakBeforeSync) {
            return self.reply(reply);
        }
        let home = self.home.as_mut().expect("requests go to home shards");
        home.state.open_mut().await_durable(Awaiting::Stored(reply));
    }

    /// Nothing of it was stored.
    pub(super) fn refuse(&mut self, request: &StoreRequest, refusal: Outcome) {
        let StoreRequest { origin, to, .. } = request;
        if refusal.is_retryable() {
            self.metrics.bound_hits.add(bound_of(&refusal));
            if origin.shard != self.id && !is_active(Mutant::HomeBlockMissing) {
                let home = self.home.as_mut().expect("requests go to home shards");
                home.blocks.arm(*origin, to, Refusal::Outcome(refusal.clone()));
            }
        }
        self.reply(StoreReply {
            origin: *origin,
            to: Recipient::User(to.clone()),
            outcome: refusal,
        });
    }
}

impl Home {
    /// Stores a message in every mailbox that has room. `Err`: none had.
    fn deposit(
        &mut self,
        request: &StoreRequest,
        time: Time,
        deposited: &mut Deposited,
    ) -> Result<(), Outcome> {
        let unknown = rejected(RejectCode::UnknownRecipient, None);
        let Some(devices) = self.users.get(&request.to) else { return Err(unknown) };
        match &request.body {
            SendBody::Shared(envelope) => {
                let mut others = std::mem::take(&mut deposited.others);
                let others_of = |&&index: &&DeviceIndex| self.device(index).address != request.from;
                others.extend(devices.iter().filter(others_of));
                self.store_envelope(request, envelope, &others, time, deposited);
                deposited.others = others;
            }
            SendBody::PerDevice(envelopes) => {
                for (name, envelope) in envelopes {
                    let known = self.find(&request.to, name);
                    match known {
                        Some(index) => {
                            self.store_envelope(request, envelope, &[index], time, deposited);
                        }
                        None => deposited.skip(&request.to, name, SkipReason::Unknown),
                    }
                }
            }
        }
        if !deposited.fresh.is_empty() {
            for &index in deposited.full.iter().filter(|_| !is_active(Mutant::SkippedWithoutGap)) {
                let mailbox = self.device(index).mailbox;
                self.state.open_mut().store.append_gap(mailbox, GapReason::Full, None);
            }
            return Ok(());
        }
        if deposited.disk_full {
            return Err(rejected(RejectCode::StorageFull, Some(STORAGE_FULL_RETRY_MS)));
        }
        if deposited.overloaded {
            return Err(rejected(RejectCode::Overloaded, Some(OVERLOAD_RETRY_MS)));
        }
        if deposited.full.is_empty() {
            return Err(unknown);
        }
        let code = if deposited.any_mailbox_full {
            RejectCode::MailboxFull
        } else {
            RejectCode::SenderShare
        };
        Err(rejected(code, Some(MAILBOX_FULL_RETRY_MS)))
    }

    fn store_envelope(
        &mut self,
        request: &StoreRequest,
        envelope: &[u8],
        devices: &[DeviceIndex],
        time: Time,
        deposited: &mut Deposited,
    ) {
        let sender_hash = request.from.hash32();
        let first = deposited.fresh.len();
        deposited.mailboxes.clear();
        for &index in devices {
            let device = self.device(index);
            let room = self.store().room(device.mailbox, sender_hash, envelope.len());
            if room == Room::Free || is_active(Mutant::MailboxBoundIgnored) {
                deposited.fresh.push(index);
                deposited.mailboxes.push(device.mailbox);
                continue;
            }
            deposited.any_mailbox_full |= room == Room::Full;
            deposited.skip(&request.to, &device.address.device, SkipReason::Full);
            deposited.full.push(index);
        }
        if deposited.mailboxes.is_empty() {
            return;
        }
        let store = &mut self.state.open_mut().store;
        let clock_ms = store.expiry_clock_ms(time.now_ms);
        let appended = store.append_message(&NewMessage {
            from: &request.from,
            install_id: request.origin.install_id,
            send_seq: request.origin.send_seq,
            message_number: request.message_number,
            sent_at_ms: time.unix_ms,
            expires_at_ms: clock_ms.saturating_add(request.ttl_ms),
            urgent: request.urgent,
            group: None,
            mailboxes: &deposited.mailboxes,
            envelope,
        });
        if let Err(full) = appended {
            for index in deposited.fresh.split_off(first) {
                let name = &self.device(index).address.device;
                deposited.skip(&request.to, name, SkipReason::Full);
                deposited.full.push(index);
            }
            deposited.overloaded |= full != StoreFull::Disk;
            deposited.disk_full |= full == StoreFull::Disk;
        }
    }
}

#[derive(Default)]
pub(super) struct Deposited {
    /// Devices that got something.
    fresh: Vec<DeviceIndex>,
    /// Devices that got nothing, for want of room in the mailbox or the store.
    full: Vec<DeviceIndex>,
    /// One of them has no room for anybody.
    any_mailbox_full: bool,
    skipped: Vec<(UserId, DeviceId, SkipReason)>,
    /// The store took something no more.
    overloaded: bool,
    /// The store takes no messages until the disk has room.
    disk_full: bool,
    /// The recipient's devices, without the sender's own.
    others: Vec<DeviceIndex>,
    /// Those of the record being appended.
    mailboxes: Vec<MailboxId>,
}

impl Deposited {
    /// Nothing is deposited yet; the memory stays.
    fn clear(&mut self) {
        let Self { fresh, full, skipped, others, mailboxes, .. } = self;
        fresh.clear();
        full.clear();
        skipped.clear();
        others.clear();
        mailboxes.clear();
        (self.any_mailbox_full, self.overloaded, self.disk_full) = (false, false, false);
    }

    fn skip(&mut self, user: &UserId, device: &DeviceId, reason: SkipReason) {
        self.skipped.push((user.clone(), device.clone(), reason));
    }
}

fn bound_of(refusal: &Outcome) -> Bound {
    match refusal {
        Outcome::Rejected { code: RejectCode::SenderShare, .. } => Bound::SenderShare,
        Outcome::Rejected { code: RejectCode::Overloaded, .. } => Bound::UnsyncedRecords,
        Outcome::Rejected { code: RejectCode::StorageFailed, .. } => Bound::StoreWaiting,
        Outcome::Rejected { code: RejectCode::StorageFull, .. } => Bound::DiskRoom,
        _ => Bound::Mailbox,
    }
}

pub(super) fn rejected(code: RejectCode, retry_after_ms: Option<u64>) -> Outcome {
    Outcome::Rejected { code, retry_after_ms }
}
