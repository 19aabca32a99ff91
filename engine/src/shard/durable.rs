//! What an open store says: what is durable goes on its way.

use ringpost_ring::Ring;
use ringpost_storage::StoreEvent;

use super::Shard;
use super::backlog::Request;
use super::fanout::{PartOutcome, PartReply};
use super::home::Awaiting;

impl<R: Ring> Shard<R> {
    /// Gives the store its completions, takes its events, starts its operations.
    pub(super) fn drive_open_store(&mut self) {
        let now_ms = self.time.now_ms;
        let home = self.home.as_mut().expect("checked by the caller");
        let Some(open) = home.state.try_open_mut() else { return };
        while let Some((id, result)) = open.disk.poll_finished() {
            open.store.handle_disk(now_ms, id, result);
        }
        loop {
            let home = self.home.as_mut().expect("checked above");
            let Some(open) = home.state.try_open_mut() else { return }; // it has failed
            let Some(event) = open.store.poll_event() else { break };
            self.handle_store_event(event);
        }
        let home = self.home.as_mut().expect("checked above");
        let open = home.state.open_mut();
        while let Some((id, op)) = open.store.poll_disk(now_ms) {
            open.disk.start(&mut self.ring, id, op);
        }
    }

    fn handle_store_event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Durable { up_to } => loop {
                let home = self.home.as_mut().expect("its store spoke");
                let awaiting = &mut home.state.open_mut().awaiting;
                if awaiting.front().is_none_or(|&(record, _)| record > up_to) {
                    break;
                }
                let Some((_, awaiting)) = awaiting.pop_front() else { break };
                self.durable(awaiting);
            },
            StoreEvent::ReadDone { id, result } => self.handle_read(id, result),
            StoreEvent::Replaced { mailbox } => self.show_gap(mailbox),
            StoreEvent::Damaged { segment, entries } => {
                tracing::error!(%segment, entries, "stored records are damaged; gaps say so");
                self.metrics.read_faults += entries;
            }
            StoreEvent::DiskFull { .. } => {
                let shard = self.id;
                tracing::error!(shard, "the disk is full: Sends are refused until there is room");
            }
            StoreEvent::DiskRecovered => {
                let shard = self.id;
                tracing::warn!(shard, "the disk has room again: Sends are taken");
            }
            StoreEvent::Failed(fault) => self.store_failed(&fault.to_string()),
        }
    }

    fn durable(&mut self, awaiting: Awaiting) {
        match awaiting {
            Awaiting::Stored(reply) => self.reply(reply),
            Awaiting::Part { home, reply } => self.reply_part(home, *reply),
            Awaiting::Fresh(device) => self.deliver(device),
            Awaiting::Registered(key) => self.welcome(key),
            Awaiting::ReceiptStored { shard, receipt } => {
                self.receipt_stored(shard, receipt.reply_to);
            }
        }
    }

    pub(super) fn never_durable(&mut self, awaiting: Awaiting) {
        match awaiting {
            Awaiting::Stored(reply) => self.outcome_unknown(reply.origin, reply.to),
            Awaiting::Part { home, reply } => {
                let reply = PartReply { fanout: reply.fanout, outcome: PartOutcome::Unknown };
                self.reply_part(home, reply);
            }
            // The walk that it belongs to starts over.
            Awaiting::ReceiptStored { shard, receipt } if shard == self.id => {
                self.receipt_settled(receipt.reply_to);
            }
            Awaiting::ReceiptStored { shard, receipt } => {
                self.hold(Request::Receipt { from: shard, receipt });
            }
            // All connections are sent away.
            Awaiting::Fresh(_) | Awaiting::Registered(_) => {}
        }
    }
}
