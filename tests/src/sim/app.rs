//! The app on a device: it sends, keeps what it is told, and confirms it sooner or later.

use ringpost_client::ledger::SendFault;
use ringpost_client::{EventId, NewSend, News};
use ringpost_protocol::id::{DeviceAddress, MailboxId, SendSeq, Seq, UserId};
use ringpost_protocol::message::{Delivery, Recipient, SendBody};

use super::client::Client;
use super::fate::Sending;
use super::oracle::{MessageIndex, Oracle, index_of};
use super::ring::Host;
use super::stale::Addressed;
use super::workload::Draft;

/// A message that a connection has brought.
pub struct Brought {
    mailbox: MailboxId,
    seq: Seq,
    from: DeviceAddress,
    group: Option<UserId>,
    send_seq: SendSeq,
    message: Option<MessageIndex>,
}

impl Brought {
    pub fn of(mailbox: MailboxId, delivery: &Delivery) -> Self {
        Self {
            mailbox,
            seq: delivery.seq,
            from: delivery.from.clone(),
            group: delivery.group.clone(),
            send_seq: delivery.send_seq,
            message: index_of(&delivery.envelope),
        }
    }
}

impl Client {
    /// False: the outbox is full.
    pub fn app_sends(&mut self, host: &mut Host, oracle: &mut Oracle, draft: Draft) -> bool {
        let message = oracle.next_message();
        let Draft { mut send, named, ttl_ms, roster_version } = draft;
        let group = match &send.to {
            Recipient::Group(group) => Some(group.clone()),
            Recipient::User(_) => None,
        };
        let coverage = &mut host.coverage;
        coverage.sends_mortal += u64::from(ttl_ms > 0);
        coverage.sends_to_unknown += u64::from(named.is_empty() && group.is_none());
        coverage.sends_per_device += u64::from(matches!(send.body, SendBody::PerDevice(_)));
        let to = send.to.clone();
        let (addressed, envelope_bytes) = match (&send.to, &send.body) {
            (Recipient::User(user), SendBody::PerDevice(envelopes)) => {
                let list_version = self.scribe.list_version(user);
                send.options.device_list_version = list_version;
                coverage.sends_listed += u64::from(list_version > 0);
                let names = envelopes.iter().map(|(name, _)| name.clone()).collect();
                let bytes = envelopes.iter().map(|(_, envelope)| envelope.len()).max();
                let addressed = Addressed::Devices { user: user.clone(), names, list_version };
                (addressed, bytes.unwrap_or(0))
            }
            (_, SendBody::Shared(envelope)) => (Addressed::All, envelope.len()),
            (Recipient::Group(_), SendBody::PerDevice(_)) => unreachable!("never to a group"),
        };
        let Ok(id) = self.ledger_mut().enqueue(send) else { return false };
        let batch = self.ledger().last_batch();
        let sending = Sending { ttl_ms, addressed, envelope_bytes, now_ns: host.clock.now_ns() };
        match group {
            Some(group) => {
                oracle.sent_to_group(self.index, (group, roster_version), id, sending);
            }
            None => oracle.sent(self.index, &named, id, sending),
        }
        self.promised.push((batch, message));
        host.tell(|| format!("client {} sends message {message} to {to:?} as {id:?}", self.index));
        true
    }

    /// The library refuses what no gateway would take.
    pub fn app_sends_too_large(&mut self, host: &mut Host, oracle: &mut Oracle, send: NewSend) {
        host.coverage.sends_too_large += 1;
        let taken = self.ledger_mut().enqueue(send);
        oracle.require(matches!(taken, Err(SendFault::EnvelopeTooLarge { .. })), || {
            format!("an envelope above the limit gave {taken:?}")
        });
    }

    /// The app confirms what it has put off.
    pub fn confirm_all(&mut self) {
        for id in std::mem::take(&mut self.unconfirmed) {
            self.ledger_mut().confirm(id);
        }
    }

    pub(super) fn app_hears(&mut self, oracle: &mut Oracle, now_ns: u64, id: EventId, news: News) {
        if let Some(before) = self.told.get(&id) {
            oracle.require(*before == news, || format!("{id:?} was given to two pieces of news"));
        } else {
            match &news {
                News::Message(message) => oracle.told(self.index, message),
                News::Sent(sent) => oracle.accepted(self.index, sent, now_ns),
                News::Refused(refused) => oracle.refused(self.index, refused, now_ns),
                News::Delivered(receipt) => {
                    oracle.receipt(self.index, receipt);
                }
                News::Gap(gap) => oracle.gap(self.index, gap.reason, now_ns),
                News::Sealed(_) => unreachable!("only a messenger makes them"),
            }
            self.told.insert(id, news);
        }
        if self.random.chance(700) {
            self.ledger_mut().confirm(id);
        } else {
            self.unconfirmed.push(id);
        }
    }

    /// What lies at or before the durable cursor counts as taken: the next Ack or Hello says so.
    pub(super) fn note_taken(&mut self, oracle: &mut Oracle) {
        let identity = self.ledger().identity();
        let index = self.index;
        self.brought.retain(|brought| {
            let is_taken =
                brought.mailbox == identity.mailbox_id && brought.seq <= identity.acked_up_to;
            if is_taken && let Some(message) = brought.message {
                let Brought { from, group, send_seq, .. } = brought;
                oracle.taken((index, from, group.as_ref()), *send_seq, message);
            }
            !is_taken
        });
    }
}
