//! What an acknowledgement sets off: receipts to the senders first, then the watermark.
//!
//! The watermark may become durable only after the receipts are (protocol rule 8), else a crash in
//! between would lose a receipt for good. So an acknowledgement is a *walk* over the entries that it
//! covers: gather who is owed a receipt, have the receipts stored at the senders' homes, and only
//! then append the watermark. One walk per device runs at a time; what is acknowledged meanwhile is
//! covered by its next round.

use ringpost_protocol::id::{DeviceAddress, DeviceId, Seq, UserId};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;
use ringpost_storage::{Fault, ReadId, ReadStart, ReceiptRecord, StoredMessage, StoredRecord};

use super::backlog::Request;
use super::home::{Awaiting, Home, OpenStore, ReadFor};
use super::mailbox::Source;
use super::message::{DeviceIndex, MeshMessage, ReceiptRequest};
use super::{Shard, Time};
use crate::limits::RECEIPTS_PER_WALK_MAX;

/// An acknowledgement in progress: `done <= position <= wanted`.
pub(super) struct AckWalk {
    /// What the device has acknowledged.
    wanted: Seq,
    /// Entries up to here have been looked at.
    position: Seq,
    /// The watermark has been appended up to here.
    done: Seq,
    /// Receipts for the entries up to `position`, one per sender's installation, not yet sent.
    owed: Vec<Source>,
    /// Receipts sent and not yet durable.
    outstanding: u32,
    /// The entry being read from disk, the next after `position`.
    reading: Option<Seq>,
    /// Stands in a queue of waiters.
    waiting: bool,
}

/// What the walk needs next.
enum Step {
    Wait,
    Receipt(Box<Source>),
    Watermark(Seq),
    Over,
}

impl AckWalk {
    fn new(acked: Seq) -> Self {
        Self {
            wanted: acked,
            position: acked,
            done: acked,
            owed: Vec::new(),
            outstanding: 0,
            reading: None,
            waiting: false,
        }
    }

    fn owe(&mut self, source: Source) {
        let same = self.owed.iter_mut().find(|owed| {
            owed.from == source.from
                && owed.install_id == source.install_id
                && owed.group == source.group
        });
        match same {
            Some(owed) => owed.send_seq = owed.send_seq.max(source.send_seq),
            None => self.owed.push(source),
        }
    }

    /// The store was opened again and has kept an acknowledgement up to `acked`: looks at everything
    /// behind that once more. What is on the way to other shards still comes back.
    pub(super) fn restart(&mut self, acked: Seq) {
        (self.position, self.done) = (acked, acked);
        self.wanted = self.wanted.max(acked);
        self.owed.clear();
        self.reading = None;
    }

    fn next_step(&mut self) -> Step {
        if self.waiting || self.reading.is_some() {
            return Step::Wait;
        }
        if let Some(source) = self.owed.pop() {
            return Step::Receipt(Box::new(source));
        }
        if self.outstanding > 0 && !is_active(Mutant::ReceiptLostOnRestart) {
            return Step::Wait;
        }
        if self.position > self.done {
            self.done = self.position;
            return Step::Watermark(self.done);
        }
        Step::Over
    }
}

impl Source {
    /// `None`: the record names nobody that could be told. The store checks its records' checksums;
    /// what is wrong all the same must not end the process. `last`: who sent the
    /// one before.
    pub(super) fn of(message: &StoredMessage, last: &mut Option<DeviceAddress>) -> Option<Self> {
        let (user, device) = (&*message.from_user, &*message.from_device);
        let is_same =
            |from: &DeviceAddress| from.user.as_str() == user && from.device.as_str() == device;
        if !last.as_ref().is_some_and(is_same) {
            let (user, device) = (UserId::new(user).ok()?, DeviceId::new(device).ok()?);
            *last = Some(DeviceAddress { user, device });
        }
        let from = last.clone()?;
        let group = message.group.as_ref().map(|group| UserId::new(group)).transpose().ok()?;
        let StoredMessage { install_id, mut send_seq, .. } = *message;
        if is_active(Mutant::ReceiptTooFar) {
            send_seq.0 += 1;
        }
        Some(Self { from, install_id, group, send_seq })
    }
}

impl Home {
    /// Looks at the entries after `position`, until the acknowledgement's end, a bound, or a record
    /// that must be read first.
    fn gather(&mut self, index: DeviceIndex) {
        let device = &mut self.devices[index.0 as usize];
        let Some(walk) = device.ack.as_mut() else { return };
        let open = self.state.open_mut();
        if walk.waiting || walk.reading.is_some() || walk.outstanding > 0 {
            return;
        }
        let mut unacked = device.attached.as_mut().map(|attached| &mut attached.unacked);
        while walk.position < walk.wanted && walk.owed.len() < RECEIPTS_PER_WALK_MAX {
            let next = open.store.next(device.mailbox, walk.position);
            let Some(seq) = next.filter(|&seq| seq <= walk.wanted) else {
                walk.position = walk.wanted;
                break;
            };
            if let Some(unacked) = &mut unacked {
                while unacked.front().is_some_and(|entry| entry.seq < seq) {
                    unacked.pop_front(); // replaced in the store meanwhile
                }
            }
            let delivered = match &mut unacked {
                Some(unacked) if unacked.front().is_some_and(|entry| entry.seq == seq) => {
                    unacked.pop_front()
                }
                _ => None,
            };
            let source = match delivered {
                Some(entry) => entry.source,
                // Acknowledged by Hello, so delivered on an earlier connection.
                None => match open.store.read(device.mailbox, seq) {
                    ReadStart::Ready(StoredRecord::Message(message)) => {
                        Source::of(&message, &mut None)
                    }
                    ReadStart::Ready(_) | ReadStart::Gone => None,
                    ReadStart::Pending(id) => {
                        walk.reading = Some(seq);
                        open.reads.insert(id, ReadFor::Ack(index));
                        return;
                    }
                },
            };
            walk.position = seq;
            if let Some(source) = source {
                walk.owe(source);
            }
        }
        if let Some(unacked) = unacked {
            while unacked.front().is_some_and(|entry| entry.seq <= walk.position) {
                unacked.pop_front();
            }
        }
    }
}

impl<R: Ring> Shard<R> {
    /// The device has everything up to `up_to`.
    pub(super) fn acknowledge(&mut self, index: DeviceIndex, up_to: Seq) {
        let home = self.home.as_mut().expect("devices live at home");
        let device = &mut home.devices[index.0 as usize];
        let store = &home.state.open().store;
        let acked = store.acked(device.mailbox);
        if up_to <= acked || store.len(device.mailbox) == 0 {
            return;
        }
        let walk = device.ack.get_or_insert_with(|| Box::new(AckWalk::new(acked)));
        walk.wanted = walk.wanted.max(up_to);
        self.walk_on(index);
    }

    /// Takes the walk of a device further. What it passes leaves the window of unacknowledged
    /// messages, and nothing else may come to hand out the next ones: the device has acknowledged
    /// all it got, and waits.
    fn walk_on(&mut self, index: DeviceIndex) {
        self.drive_ack(index);
        let home = self.home.as_ref().expect("devices live at home");
        if home.state.is_open() {
            self.deliver(index);
        }
    }

    /// Takes the walk of a device as far as it goes now. While the store is not open it waits.
    pub(super) fn drive_ack(&mut self, index: DeviceIndex) {
        loop {
            let home = self.home.as_mut().expect("devices live at home");
            if !home.state.is_open() {
                return;
            }
            home.gather(index);
            let device = &mut home.devices[index.0 as usize];
            let Some(walk) = device.ack.as_mut() else { return };
            match walk.next_step() {
                Step::Wait => return,
                Step::Receipt(source) => self.send_receipt(index, *source),
                Step::Watermark(_) if is_active(Mutant::AckNotWritten) => {}
                Step::Watermark(up_to) => {
                    home.state.open_mut().store.ack(device.mailbox, up_to);
                }
                Step::Over => {
                    device.ack = None;
                    return;
                }
            }
        }
    }

    /// There is room again at the shard that the walk waited for.
    pub(super) fn resume_ack(&mut self, index: DeviceIndex) {
        let home = self.home.as_mut().expect("devices live at home");
        if let Some(walk) = home.device_mut(index).ack.as_mut() {
            walk.waiting = false;
        }
        self.walk_on(index);
    }

    fn send_receipt(&mut self, index: DeviceIndex, source: Source) {
        let to_shard = self.home_of(&source.from.user);
        let has_room = self.has_room_for_receipt(to_shard);
        let home = self.home.as_mut().expect("devices live at home");
        let device = home.device_mut(index);
        let walk = device.ack.as_mut().expect("the walk sends it");
        if !has_room {
            walk.owed.push(source);
            walk.waiting = true;
            self.wait_with_receipt(to_shard, index);
            return;
        }
        walk.outstanding += 1;
        let receipt = ReceiptRequest {
            reply_to: index,
            sender: source.from,
            install_id: source.install_id,
            peer: device.address.clone(),
            group: source.group,
            up_to_send_seq: source.send_seq,
        };
        if to_shard != self.id {
            self.push_receipt(to_shard, receipt);
        } else if !home.put_receipt(self.id, Box::new(receipt)) {
            self.receipt_settled(index);
        }
    }

    /// Stores a receipt for a device whose home this is.
    pub(super) fn handle_receipt(&mut self, shard: u16, receipt: Box<ReceiptRequest>) {
        let device = receipt.reply_to;
        let home = self.home.as_mut().expect("requests go to home shards");
        if !home.state.is_open() {
            self.hold(Request::Receipt { from: shard, receipt });
        } else if !home.put_receipt(shard, receipt) {
            self.push_mesh(shard, MeshMessage::ReceiptStored { device });
        }
    }

    /// A receipt is durable: tells the shard of the device that acknowledged.
    pub(super) fn receipt_stored(&mut self, shard: u16, device: DeviceIndex) {
        if shard == self.id {
            self.handle_receipt_stored(device);
        } else {
            self.push_mesh(shard, MeshMessage::ReceiptStored { device });
        }
    }

    pub(super) fn handle_receipt_stored(&mut self, index: DeviceIndex) {
        self.receipt_settled(index);
        self.walk_on(index);
    }

    pub(super) fn receipt_settled(&mut self, index: DeviceIndex) {
        let home = self.home.as_mut().expect("devices live at home");
        let walk = home.device_mut(index).ack.as_mut().expect("a walk outlives its receipts");
        walk.outstanding -= 1;
    }

    /// A record that was on disk has been read.
    pub(super) fn handle_read(&mut self, id: ReadId, result: Result<StoredRecord, Fault>) {
        let home = self.home.as_mut().expect("reads belong to a store");
        let reason = home.state.open_mut().reads.remove(&id).expect("every read has a reason");
        if let Err(fault) = &result {
            tracing::error!(%fault, "a stored record cannot be read");
            self.metrics.read_faults += 1;
        }
        match reason {
            ReadFor::Delivery(index) => self.deliver_read(index, id, result),
            ReadFor::Ack(index) => {
                let device = &mut home.devices[index.0 as usize];
                let walk = device.ack.as_mut().expect("a walk outlives its reads");
                let seq = walk.reading.take().expect("the walk waits for this read");
                walk.position = seq;
                // What cannot be read any more cannot be receipted; it was delivered all the same.
                if let Ok(StoredRecord::Message(message)) = result
                    && let Some(source) = Source::of(&message, &mut None)
                {
                    walk.owe(source);
                }
                self.walk_on(index);
            }
        }
    }
}

impl OpenStore {
    /// What must never be: a receipt for a message that expired before its device got it.
    pub(super) fn owe_expired(
        &self,
        ack: &mut Option<Box<AckWalk>>,
        record: &StoredRecord,
        time: Time,
    ) {
        if let StoredRecord::Message(message) = record
            && self.has_expired(message, time)
            && let Some(source) = Source::of(message, &mut None)
        {
            ack.get_or_insert_with(|| Box::new(AckWalk::new(Seq(0)))).owe(source);
        }
    }
}

impl Home {
    /// False: no such device any more, so nothing will be stored.
    fn put_receipt(&mut self, shard: u16, receipt: Box<ReceiptRequest>) -> bool {
        let Some(index) = self.find(&receipt.sender.user, &receipt.sender.device) else {
            return false;
        };
        let mailbox = self.device(index).mailbox;
        let record = ReceiptRecord {
            peer: receipt.peer.clone(),
            group: receipt.group.clone(),
            install_id: receipt.install_id,
            up_to_send_seq: receipt.up_to_send_seq,
        };
        let open = self.state.open_mut();
        open.store.put_receipt(mailbox, &record);
        open.await_durable(Awaiting::Fresh(index));
        open.await_durable(Awaiting::ReceiptStored { shard, receipt });
        true
    }
}
