//! What was received and the app has not confirmed, and how far the server may forget.

use std::collections::{BTreeMap, HashMap, VecDeque};

use ringpost_protocol::id::{DeviceAddress, InstallId, MailboxId, MessageNumber, Seq, UserId};
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::event::{EventId, Gap, Message, News, Receipt};
use crate::limits::BACKLOG_MAX;
use crate::store::book::Change;

/// Order, and so one remembered number, holds within each of these.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct MarkKey {
    pub(super) from: DeviceAddress,
    pub(super) install_id: InstallId,
    pub(super) group: Option<UserId>,
}

/// Something from our mailbox; each has a place in it that an Ack can cover.
pub(super) enum Arrival {
    Message(Message, MessageNumber),
    Receipt(Receipt),
    Gap(Gap),
    /// Of another installation of this device: acknowledged, not told.
    ForeignReceipt,
}

/// What happened to an arrival, or to the mark that the mailbox is empty.
pub(super) enum Intake {
    /// To be told to the app once durable.
    News(EventId, News),
    CaughtUp,
}

/// How far the mailbox has been taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    pub(super) mailbox_id: MailboxId,
    pub(super) acked_up_to: Seq,
}

pub(super) struct Inbox {
    /// Highest number taken of each sender; with changes that are not durable yet.
    marks: HashMap<MarkKey, MessageNumber>,
    /// Bytes of each piece of unconfirmed news.
    unconfirmed: BTreeMap<EventId, usize>,
    bytes: usize,
    rows_max: usize,
    bytes_max: usize,
    next_event_id: u64,
    /// With changes that are not durable yet.
    cursor: Cursor,
    /// Arrived, but the inbox is full: not taken, so not acknowledged either. `None`: CaughtUp.
    backlog: VecDeque<Option<(Seq, Arrival)>>,
}

impl Inbox {
    pub(super) fn new(rows_max: usize, bytes_max: usize, next_id: u64, cursor: Cursor) -> Self {
        assert!(next_id > 0, "event ids count from 1");
        Self {
            marks: HashMap::new(),
            unconfirmed: BTreeMap::new(),
            bytes: 0,
            rows_max,
            bytes_max,
            next_event_id: next_id,
            cursor,
            backlog: VecDeque::new(),
        }
    }

    pub(super) fn restore(
        &mut self,
        news: &[(EventId, News)],
        marks: Vec<(MarkKey, MessageNumber)>,
    ) {
        for (id, news) in news {
            let bytes = news_bytes(news);
            self.unconfirmed.insert(*id, bytes);
            self.bytes += bytes;
        }
        self.marks.extend(marks);
    }

    /// The server named our mailbox. Another one than before: it has never heard our Acks.
    pub(super) fn enter_mailbox(&mut self, mailbox_id: MailboxId) {
        if self.cursor.mailbox_id != mailbox_id {
            self.cursor = Cursor { mailbox_id, acked_up_to: Seq(0) };
        }
    }

    /// What waits for room will be delivered again.
    pub(super) fn leave_mailbox(&mut self) {
        self.backlog.clear();
    }

    /// Queues an arrival behind earlier ones. False: the server sent more than it may.
    #[must_use]
    pub(super) fn arrive(&mut self, arrival: Option<(Seq, Arrival)>) -> bool {
        self.backlog.push_back(arrival);
        self.backlog.len() <= BACKLOG_MAX
    }

    /// Takes the next arrival for which there is room.
    pub(super) fn take(&mut self, changes: &mut Vec<Change>) -> Option<Intake> {
        loop {
            if self.backlog.front()?.is_some() && self.is_full() {
                return None;
            }
            let Some((seq, arrival)) = self.backlog.pop_front()? else {
                return Some(Intake::CaughtUp);
            };
            if seq <= self.cursor.acked_up_to {
                continue;
            }
            self.cursor.acked_up_to = seq;
            if let Some(news) = self.news(arrival, changes) {
                let id = self.add(&news, changes);
                return Some(Intake::News(id, news));
            }
        }
    }

    /// Keeps news until it is confirmed.
    pub(super) fn add(&mut self, news: &News, changes: &mut Vec<Change>) -> EventId {
        let id = EventId(self.next_event_id);
        self.next_event_id += 1;
        let bytes = news_bytes(news);
        self.unconfirmed.insert(id, bytes);
        self.bytes += bytes;
        changes.push(Change::PutNews(id, news.clone()));
        id
    }

    /// Puts other news in the place of some that are not confirmed yet.
    pub(super) fn replace(&mut self, id: EventId, news: News, changes: &mut Vec<Change>) {
        let bytes = self.unconfirmed.get_mut(&id).expect("only what is unconfirmed is translated");
        self.bytes -= std::mem::replace(bytes, news_bytes(&news));
        self.bytes += *bytes;
        // What it replaces is on disk only when it was there before a restart.
        let is_it = |change: &Change| matches!(change, Change::PutNews(of, _) if *of == id);
        if let Some(at) = changes.iter().rposition(is_it) {
            changes.remove(at);
        }
        changes.push(Change::PutNews(id, news));
    }

    /// False: already confirmed, or never given.
    pub(super) fn confirm(&mut self, id: EventId, changes: &mut Vec<Change>) -> bool {
        let Some(bytes) = self.unconfirmed.remove(&id) else { return false };
        self.bytes -= bytes;
        changes.push(Change::DropNews(id));
        true
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    pub(super) fn next_event_id(&self) -> u64 {
        self.next_event_id
    }

    pub(super) fn len(&self) -> usize {
        self.unconfirmed.len()
    }

    fn is_full(&self) -> bool {
        self.unconfirmed.len() >= self.rows_max || self.bytes >= self.bytes_max
    }

    /// `None`: a message that was taken before.
    fn news(&mut self, arrival: Arrival, changes: &mut Vec<Change>) -> Option<News> {
        match arrival {
            Arrival::Receipt(receipt) => Some(News::Delivered(receipt)),
            Arrival::Gap(gap) => Some(News::Gap(gap)),
            Arrival::ForeignReceipt => None,
            Arrival::Message(message, number) => {
                let key = MarkKey {
                    from: message.from.clone(),
                    install_id: message.install_id,
                    group: message.group.clone(),
                };
                let mark = self.marks.entry(key.clone()).or_default();
                if number <= *mark && !is_active(Mutant::ReceiveMarkIgnored) {
                    return None;
                }
                *mark = number;
                changes.push(Change::PutMark(key, number));
                Some(News::Message(message))
            }
        }
    }
}

fn news_bytes(news: &News) -> usize {
    match news {
        News::Message(message) => message.envelope.len(),
        News::Sealed(record) => record.len(),
        News::Sent(_) | News::Refused(_) | News::Delivered(_) | News::Gap(_) => 0,
    }
}
