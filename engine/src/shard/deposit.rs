//! A Send at the home of its recipient: into the mailboxes that have room.

use ringpost_protocol::id::{DeviceId, UserId};
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
        let deposited = match home.deposit(&request, self.time) {
            Ok(deposited) => deposited,
            Err(refusal) => return self.refuse(&request, refusal),
        };
        let Deposited { fresh, full, skipped, .. } = deposited;
        let open = home.state.open_mut();
        for index in fresh.into_iter().chain(full) {
            open.await_durable(Awaiting::Fresh(index));
        }
        let outcome = Outcome::Accepted { server_time_ms: self.time.unix_ms, skipped };
        let StoreRequest { origin, to, .. } = request;
        let reply = StoreReply { origin, to: Recipient::User(to), outcome };
        if is_active(Mutant::SpeakBeforeSync) {
            return self.reply(reply);
        }
        open.await_durable(Awaiting::Stored(reply));
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
    fn deposit(&mut self, request: &StoreRequest, time: Time) -> Result<Deposited, Outcome> {
        let unknown = rejected(RejectCode::UnknownRecipient, None);
        let Some(devices) = self.users.get(&request.to).cloned() else { return Err(unknown) };
        let mut deposited = Deposited::default();
        match &request.body {
            SendBody::Shared(envelope) => {
                let others = devices
                    .into_iter()
                    .filter(|&index| self.device(index).address != request.from)
                    .collect::<Vec<_>>();
                self.store_envelope(request, envelope, &others, time, &mut deposited);
            }
            SendBody::PerDevice(envelopes) => {
                for (name, envelope) in envelopes {
                    let known = self.find(&request.to, name);
                    match known {
                        Some(index) => {
                            self.store_envelope(request, envelope, &[index], time, &mut deposited);
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
            return Ok(deposited);
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
        let mut free = Vec::with_capacity(devices.len());
        for &index in devices {
            let device = self.device(index);
            let room = self.store().room(device.mailbox, sender_hash, envelope.len());
            if room == Room::Free || is_active(Mutant::MailboxBoundIgnored) {
                free.push(index);
                continue;
            }
            deposited.any_mailbox_full |= room == Room::Full;
            deposited.skip(&request.to, &device.address.device, SkipReason::Full);
            deposited.full.push(index);
        }
        if free.is_empty() {
            return;
        }
        let mailboxes: Vec<_> = free.iter().map(|&index| self.device(index).mailbox).collect();
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
            mailboxes: &mailboxes,
            envelope,
        });
        match appended {
            Ok(_) => deposited.fresh.extend(free),
            Err(full) => {
                for index in free {
                    let name = self.device(index).address.device.clone();
                    deposited.skip(&request.to, &name, SkipReason::Full);
                    deposited.full.push(index);
                }
                deposited.overloaded |= full != StoreFull::Disk;
                deposited.disk_full |= full == StoreFull::Disk;
            }
        }
    }
}

#[derive(Default)]
struct Deposited {
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
}

impl Deposited {
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
        _ => Bound::MailboxRecords,
    }
}

pub(super) fn rejected(code: RejectCode, retry_after_ms: Option<u64>) -> Outcome {
    Outcome::Rejected { code, retry_after_ms }
}
