//! A Send at the home of its recipient, or of members of its group: into the mailboxes that have
//! room.

use bytes::Bytes;
use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, UserId,
};
use ringpost_protocol::message::{
    DeviceList, Outcome, Recipient, RejectCode, SendBody, SkipReason,
};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;
use ringpost_storage::{GapReason, MAILBOXES_PER_RECORD_MAX, NewMessage, Room, StoreFull};

use super::backlog::Request;
use super::blocks::Refusal;
use super::fanout::{GroupPart, PartOutcome, PartReply, Skipped};
use super::home::{Awaiting, Home};
use super::message::{DeviceIndex, StoreReply, StoreRequest};
use super::stale::Freshness;
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
        match home.freshness(&request) {
            Freshness::Fresh => self.store_known(request, None),
            Freshness::Stale(list) => self.store_known(request, Some(list)),
            Freshness::Unknown => self.await_list(request),
        }
    }

    /// `list`: the present one, if the sender does not know it.
    pub(super) fn store_known(&mut self, request: StoreRequest, list: Option<Box<DeviceList>>) {
        let home = self.home.as_mut().expect("requests go to home shards");
        let mut deposited = std::mem::take(&mut home.deposited);
        deposited.clear();
        if let Err(refusal) = home.deposit(&request, list.as_deref(), self.time, &mut deposited) {
            home.deposited = deposited;
            return self.refuse_stale(&request, refusal, list);
        }
        let skipped = self.await_deposit(deposited, true);
        let outcome = Outcome::Accepted { server_time_ms: self.time.unix_ms, skipped };
        let StoreRequest { origin, to, .. } = request;
        let reply = StoreReply { origin, to: Recipient::User(to), outcome, list };
        if is_active(Mutant::SpeakBeforeSync) {
            return self.reply(reply);
        }
        let home = self.home.as_mut().expect("requests go to home shards");
        home.state.open_mut().await_durable(Awaiting::Stored(reply));
    }

    /// Takes a message for members of a group whose home this is.
    pub(super) fn handle_part(&mut self, part: Box<GroupPart>) {
        let home = self.home.as_mut().expect("members live at home shards");
        if !home.state.is_open() {
            return self.hold(Request::Part(part));
        }
        let mut deposited = std::mem::take(&mut home.deposited);
        deposited.clear();
        let refusal = home.deposit_part(&part, self.time, &mut deposited).err();
        let has_appended = refusal.is_none() || !deposited.full.is_empty() && !part.is_whole;
        if let Some(refusal) = refusal.as_ref().filter(|refusal| refusal.is_retryable()) {
            self.metrics.bound_hits.add(bound_of(refusal));
        }
        self.metrics.group_mailboxes += deposited.fresh.len() as u64;
        let skipped = self.await_deposit(deposited, has_appended);
        let outcome = match refusal {
            Some(Outcome::Rejected { code, retry_after_ms }) => {
                PartOutcome::Refused { code, retry_after_ms, skipped }
            }
            _ => PartOutcome::Stored { skipped },
        };
        let reply = PartReply { fanout: part.fanout, outcome };
        if !has_appended || is_active(Mutant::SpeakBeforeSync) {
            return self.reply_part(part.home, reply);
        }
        let home = self.home.as_mut().expect("members live at home shards");
        let awaiting = Awaiting::Part { home: part.home, reply: Box::new(reply) };
        home.state.open_mut().await_durable(awaiting);
    }

    /// What was deposited is delivered once it is durable; if nothing was, nothing becomes durable.
    /// Gives the devices that got nothing.
    fn await_deposit(&mut self, mut deposited: Deposited, has_appended: bool) -> Skipped {
        let home = self.home.as_mut().expect("its store took something");
        let open = home.state.open_mut();
        if has_appended {
            for &index in deposited.fresh.iter().chain(&deposited.full) {
                open.await_durable(Awaiting::Fresh(index));
            }
        }
        for _ in &deposited.full {
            let full = deposited.any_mailbox_full;
            self.metrics.bound_hits.add(if full { Bound::Mailbox } else { Bound::SenderShare });
        }
        let skipped = std::mem::take(&mut deposited.skipped);
        home.deposited = deposited;
        skipped
    }

    /// Nothing of it was stored.
    pub(super) fn refuse(&mut self, request: &StoreRequest, refusal: Outcome) {
        self.refuse_stale(request, refusal, None);
    }

    fn refuse_stale(
        &mut self,
        request: &StoreRequest,
        refusal: Outcome,
        list: Option<Box<DeviceList>>,
    ) {
        let StoreRequest { origin, to, .. } = request;
        if refusal.is_retryable() {
            self.metrics.bound_hits.add(bound_of(&refusal));
            let home = self.home.as_mut().expect("requests go to home shards");
            let has_others_behind = origin.shard != self.id || home.list_waits.is_served();
            if has_others_behind && !is_active(Mutant::HomeBlockMissing) {
                home.blocks.arm(*origin, to, Refusal::Outcome(refusal.clone()));
            }
        }
        self.reply(StoreReply {
            origin: *origin,
            to: Recipient::User(to.clone()),
            outcome: refusal,
            list,
        });
    }
}

impl Home {
    /// Stores a message in every mailbox that has room. `Err`: none had.
    fn deposit(
        &mut self,
        request: &StoreRequest,
        list: Option<&DeviceList>,
        time: Time,
        deposited: &mut Deposited,
    ) -> Result<(), Outcome> {
        let Some(devices) = self.users.get(&request.to) else {
            return Err(rejected(RejectCode::UnknownRecipient, None));
        };
        let letter = Letter::of_request(request, time);
        match &request.body {
            SendBody::Shared(envelope) => {
                let mut others = std::mem::take(&mut deposited.others);
                others.extend(self.readers(devices, &request.from));
                self.store_envelope(&letter, envelope, &others, time, deposited);
                deposited.others = others;
            }
            SendBody::PerDevice(envelopes) => {
                for (name, envelope) in envelopes {
                    let is_gone = list.is_some_and(|list| !list.devices.contains(name));
                    match self.find(&request.to, name) {
                        _ if is_gone => deposited.skip(&request.to, name, SkipReason::Stale),
                        Some(index) => {
                            self.store_envelope(&letter, envelope, &[index], time, deposited);
                        }
                        None => deposited.skip(&request.to, name, SkipReason::Unknown),
                    }
                }
                if let Some(list) = list {
                    deposited.skip_missing(list, envelopes, &request.from);
                }
            }
        }
        if !deposited.fresh.is_empty() {
            self.leave_gaps(None, deposited);
            return Ok(());
        }
        Err(deposited.refusal())
    }

    /// The same for the devices of several members: one record names all their mailboxes. A device
    /// that gets nothing has its gap also when no other does here, as others may elsewhere.
    fn deposit_part(
        &mut self,
        part: &GroupPart,
        time: Time,
        deposited: &mut Deposited,
    ) -> Result<(), Outcome> {
        let letter = Letter::of_part(part);
        let mut others = std::mem::take(&mut deposited.others);
        let devices = part.members.iter().filter_map(|user| self.users.get(user)).flatten();
        others.extend(self.readers(devices, &part.send.from));
        for devices in others.chunks(MAILBOXES_PER_RECORD_MAX) {
            self.store_envelope(&letter, &part.send.envelope, devices, time, deposited);
        }
        deposited.others = others;
        if !deposited.fresh.is_empty() || !part.is_whole {
            self.leave_gaps(Some(part.send.group.as_str()), deposited);
        }
        if deposited.fresh.is_empty() { Err(deposited.refusal()) } else { Ok(()) }
    }

    /// Which of these devices something for all of them is for: those on their user's list, but not
    /// the one that sends it.
    fn readers<'a>(
        &'a self,
        devices: impl IntoIterator<Item = &'a DeviceIndex>,
        from: &'a DeviceAddress,
    ) -> impl Iterator<Item = DeviceIndex> {
        devices.into_iter().copied().filter(|&index| {
            let device = self.device(index);
            device.is_listed && device.address != *from
        })
    }

    fn leave_gaps(&mut self, group: Option<&str>, deposited: &Deposited) {
        for &index in deposited.full.iter().filter(|_| !is_active(Mutant::SkippedWithoutGap)) {
            let mailbox = self.device(index).mailbox;
            self.state.open_mut().store.append_gap(mailbox, GapReason::Full, group);
        }
    }

    fn store_envelope(
        &mut self,
        letter: &Letter<'_>,
        envelope: &[u8],
        devices: &[DeviceIndex],
        time: Time,
        deposited: &mut Deposited,
    ) {
        let sender_hash = letter.from.hash32();
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
            deposited.skip(&device.address.user, &device.address.device, SkipReason::Full);
            deposited.full.push(index);
        }
        if deposited.mailboxes.is_empty() {
            return;
        }
        let store = &mut self.state.open_mut().store;
        let clock_ms = store.expiry_clock_ms(time.now_ms);
        let appended = store.append_message(&NewMessage {
            from: letter.from,
            install_id: letter.install_id,
            send_seq: letter.send_seq,
            message_number: letter.message_number,
            sent_at_ms: letter.sent_at_ms,
            expires_at_ms: clock_ms.saturating_add(letter.ttl_ms),
            urgent: letter.urgent,
            group: letter.group,
            mailboxes: &deposited.mailboxes,
            envelope,
        });
        if let Err(full) = appended {
            for index in deposited.fresh.split_off(first) {
                let DeviceAddress { user, device } = &self.device(index).address;
                deposited.skip(user, device, SkipReason::Full);
                deposited.full.push(index);
            }
            deposited.overloaded |= full != StoreFull::Disk;
            deposited.disk_full |= full == StoreFull::Disk;
        }
    }
}

/// A message without its envelope.
struct Letter<'a> {
    from: &'a DeviceAddress,
    install_id: InstallId,
    send_seq: SendSeq,
    message_number: MessageNumber,
    sent_at_ms: u64,
    ttl_ms: u64,
    urgent: bool,
    group: Option<&'a str>,
}

impl<'a> Letter<'a> {
    fn of_request(request: &'a StoreRequest, time: Time) -> Self {
        Self {
            from: &request.from,
            install_id: request.origin.install_id,
            send_seq: request.origin.send_seq,
            message_number: request.message_number,
            sent_at_ms: time.unix_ms,
            ttl_ms: request.ttl_ms,
            urgent: request.urgent,
            group: None,
        }
    }

    fn of_part(part: &'a GroupPart) -> Self {
        let send = &*part.send;
        Self {
            from: &send.from,
            install_id: send.origin.install_id,
            send_seq: send.origin.send_seq,
            message_number: send.message_number,
            sent_at_ms: part.sent_at_ms,
            ttl_ms: send.ttl_ms,
            urgent: send.urgent,
            group: Some(send.group.as_str()),
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
    /// The sender does not know the present device list.
    stale: bool,
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
        self.stale = false;
    }

    /// Why nothing was stored.
    fn refusal(&self) -> Outcome {
        if self.disk_full {
            return rejected(RejectCode::StorageFull, Some(STORAGE_FULL_RETRY_MS));
        }
        if self.overloaded {
            return rejected(RejectCode::Overloaded, Some(OVERLOAD_RETRY_MS));
        }
        if self.full.is_empty() && self.stale {
            return rejected(RejectCode::StaleDevices, None);
        }
        if self.full.is_empty() {
            return rejected(RejectCode::UnknownRecipient, None);
        }
        let code =
            if self.any_mailbox_full { RejectCode::MailboxFull } else { RejectCode::SenderShare };
        rejected(code, Some(MAILBOX_FULL_RETRY_MS))
    }

    /// Devices that the sender does not know of.
    fn skip_missing(
        &mut self,
        list: &DeviceList,
        envelopes: &[(DeviceId, Bytes)],
        from: &DeviceAddress,
    ) {
        self.stale = true;
        let is_sender = |device: &DeviceId| list.user == from.user && *device == from.device;
        let missing = list.devices.iter().filter(|device| {
            !is_sender(device) && envelopes.iter().all(|(named, _)| named != *device)
        });
        for device in missing {
            self.skip(&list.user, device, SkipReason::Stale);
        }
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
