//! The client's delivery logic, without network, clock or randomness.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use redb::Database;
use ringpost_protocol::id::{InstallId, MailboxId, MessageNumber, SendSeq, Seq};
use ringpost_protocol::limits::{DEVICES_PER_USER_MAX, ENVELOPE_BYTES_MAX};
use ringpost_protocol::message::{ClientEvent, Outcome, Recipient, RejectCode, SendBody};
use ringpost_protocol::session::{ClientSend, ClientSession, SendContent, SendRefused};

use crate::event::{Event, EventId, Gap, Hint, Message, NewSend, Receipt, SendId, Status};
use crate::limits::{
    HINTS_MAX, INBOX_BYTES_MAX, INBOX_ROWS_MAX, OUTBOX_BYTES_MAX, OUTBOX_ROWS_MAX, STATUSES_MAX,
};
use crate::store::book::{self, Batch, Change, StoreFault, Written};
use crate::store::inbox::{Arrival, Cursor, Inbox, Intake};
use crate::store::outbox::Outbox;
use crate::store::row::CounterRow;

pub use crate::store::outbox::OutboxFull;

/// Bounds of the queues; see [`crate::limits`] for the highest ones.
#[derive(Clone, Copy, Debug)]
pub struct LedgerConfig {
    pub outbox_rows_max: usize,
    pub outbox_bytes_max: usize,
    pub inbox_rows_max: usize,
    pub inbox_bytes_max: usize,
}

/// Why a message was not taken into the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendFault {
    #[error(transparent)]
    OutboxFull(#[from] OutboxFull),
    #[error("the envelopes have {bytes} bytes, {ENVELOPE_BYTES_MAX} is the limit")]
    EnvelopeTooLarge { bytes: usize },
    #[error("a message needs 1 to {DEVICES_PER_USER_MAX} envelopes, this one has {count}")]
    EnvelopeCount { count: usize },
    #[error("a message names a device twice")]
    DeviceRepeated,
    #[error("a message to a group takes one shared envelope")]
    GroupPerDevice,
}

/// The server delivers more than it may leave unacknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent more unacknowledged deliveries than the protocol allows")]
pub struct Flooded;

/// What a Hello tells the server, all of it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub install_id: InstallId,
    pub mailbox_id: MailboxId,
    pub acked_up_to: Seq,
}

/// Outbox, inbox and counters of one installation.
///
/// Per connection: make a session from [`Self::identity`]; give every event of the session to
/// [`Self::handle_event`]; call [`Self::connection_ended`] at its end, or
/// [`Self::connection_moves`] when another one follows without a pause.
///
/// After any input: [`Self::commit`] (or [`Self::begin_commit`], [`Batch::write`] elsewhere,
/// [`Self::finish_commit`]), then [`Self::transmit`] until it gives false, and
/// [`Self::poll_event`] for the app. Nothing comes out of these before what it rests on
/// is durable, so the process may die between any two calls. Come back at [`Self::poll_timeout`].
///
/// After an error of a commit the ledger must be dropped: memory and disk may differ.
pub struct Ledger {
    database: Arc<Database>,
    install_id: InstallId,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    /// Of the batch that is forming.
    pub(super) changes: Vec<Change>,
    pub(super) events: Vec<Event>,
    /// News, and the statuses between them, that wait for a translator.
    pub(super) raw: VecDeque<Event>,
    pub(super) is_translated: bool,
    /// As they were read, for the one whose they are.
    pub(super) records: Vec<(String, Vec<u8>)>,
    /// Outbox and inbox together.
    pub(super) rows_max: usize,
    /// Of the batch that is being written.
    writing: Option<Vec<Event>>,
    /// Counters of the last durable batch.
    durable: CounterRow,
    batches_written: u64,
    /// For the app.
    pub(super) ready: VecDeque<Event>,
    transmit: VecDeque<SendSeq>,
    /// Numbers up to here are in `transmit` or were sent on this connection.
    transmitted_up_to: SendSeq,
    /// What the Welcome of the present connection named.
    mailbox_id: Option<MailboxId>,
    /// The next Welcome continues the connection that the app knows of.
    is_moving: bool,
    /// The app was told that it is, on the connection that it knows of.
    is_caught_up: bool,
}

impl Ledger {
    /// Reads the database, or begins a new installation in an empty one. `new_install_id` must be
    /// random; it is used only in the latter case.
    pub fn open(
        database: Database,
        config: LedgerConfig,
        new_install_id: u64,
    ) -> Result<Self, StoreFault> {
        let contents = book::load(&database)?;
        let counters = contents.counters.unwrap_or(CounterRow {
            install_id: new_install_id,
            mailbox_id: 0,
            acked_up_to: 0,
            next_send_id: 1,
            next_send_seq: 1,
            next_event_id: 1,
        });
        if counters.next_send_id.min(counters.next_send_seq).min(counters.next_event_id) == 0 {
            return Err(StoreFault::Content("a counter is zero".into()));
        }
        let mut outbox = Outbox::new(
            config.outbox_rows_max,
            config.outbox_bytes_max,
            counters.next_send_id,
            counters.next_send_seq,
        );
        outbox
            .restore(contents.sends, contents.numbers)
            .map_err(|text| StoreFault::Content(text.into()))?;
        // Before anything that waits gets a number: a refusal of the last life is not remembered, only
        // that something behind it still has its number.
        let mut changes = Vec::new();
        outbox.take_back_overtakers(&mut changes);
        let cursor = Cursor {
            mailbox_id: MailboxId(counters.mailbox_id),
            acked_up_to: Seq(counters.acked_up_to),
        };
        let mut inbox = Inbox::new(
            config.inbox_rows_max,
            config.inbox_bytes_max,
            counters.next_event_id,
            cursor,
        );
        inbox.restore(&contents.news, contents.marks);
        let ledger = Self {
            database: Arc::new(database),
            install_id: InstallId(counters.install_id),
            outbox,
            inbox,
            changes,
            events: Vec::new(),
            raw: VecDeque::new(),
            is_translated: false,
            records: contents.records,
            rows_max: config.outbox_rows_max + config.inbox_rows_max,
            writing: None,
            durable: counters,
            batches_written: 0,
            ready: contents.news.into_iter().map(|(id, news)| Event::News { id, news }).collect(),
            transmit: VecDeque::new(),
            transmitted_up_to: SendSeq(0),
            mailbox_id: None,
            is_moving: false,
            is_caught_up: false,
        };
        if contents.counters.is_none() {
            // The installation must have its number before anybody hears of it.
            Batch { database: ledger.database.clone(), counters, changes: Vec::new() }.write()?;
        }
        Ok(ledger)
    }

    /// For the Hello of the next connection.
    pub fn identity(&self) -> Identity {
        Identity {
            install_id: self.install_id,
            mailbox_id: MailboxId(self.durable.mailbox_id),
            acked_up_to: Seq(self.durable.acked_up_to),
        }
    }

    /// Takes a message into the outbox. It is durable, and may be promised, when the batch
    /// [`Self::last_batch`] is.
    pub fn enqueue(&mut self, send: NewSend) -> Result<SendId, SendFault> {
        check(&send)?;
        // An app that confirms nothing must not grow the inbox by sending.
        let (outbox_len, inbox_len) = (self.outbox.len(), self.inbox.len());
        if outbox_len + inbox_len >= self.rows_max {
            return Err(OutboxFull { rows: outbox_len, bytes: self.outbox.bytes() }.into());
        }
        Ok(self.outbox.enqueue(send, &mut self.changes)?)
    }

    /// The app has dealt with this news; it is never given again once the batch
    /// [`Self::last_batch`] is durable. An unknown id is ignored: confirming twice is no fault.
    pub fn confirm(&mut self, id: EventId) {
        if self.inbox.confirm(id, &mut self.changes) {
            self.take_arrivals();
        }
    }

    /// Takes one event of the session.
    pub fn handle_event(&mut self, now_ms: u64, event: ClientEvent) -> Result<(), Flooded> {
        match event {
            ClientEvent::Welcome(welcome) => self.welcome(welcome.mailbox_id),
            ClientEvent::Answered { send_seq, outcome } => {
                self.answered(now_ms, send_seq, outcome);
            }
            ClientEvent::Deliver(delivery) => {
                let message = Message {
                    from: delivery.from,
                    install_id: delivery.install_id,
                    send_seq: delivery.send_seq,
                    sent_at_ms: delivery.sent_at_ms,
                    group: delivery.group,
                    urgent: delivery.urgent,
                    envelope: delivery.envelope,
                };
                self.arrive(delivery.seq, Arrival::Message(message, delivery.message_number))?;
            }
            ClientEvent::Gap { seq, group, reason } => {
                self.arrive(seq, Arrival::Gap(Gap { group, reason }))?;
            }
            ClientEvent::Delivered { seq, peer, group, install_id, up_to_send_seq } => {
                let arrival = if install_id == self.install_id {
                    Arrival::Receipt(Receipt { peer, group, up_to_send_seq })
                } else {
                    Arrival::ForeignReceipt
                };
                self.arrive(seq, arrival)?;
            }
            ClientEvent::CaughtUp => {
                let has_room = self.inbox.arrive(None);
                self.take_arrivals();
                return if has_room { Ok(()) } else { Err(Flooded) };
            }
            ClientEvent::KeysLow { remaining_count } => {
                self.hint(Hint::KeysLow { remaining_count });
            }
            ClientEvent::DeviceList(list) => self.hint(Hint::DeviceList(list)),
            ClientEvent::GroupChanged { group, version } => {
                self.hint(Hint::GroupChanged { group, version });
            }
            ClientEvent::Pong
            | ClientEvent::GoAway { .. }
            | ClientEvent::Error { .. }
            | ClientEvent::Replied { .. } => {}
        }
        Ok(())
    }

    /// Tells the app about the connection, in order with the news.
    pub fn report(&mut self, status: Status) {
        self.tell(Event::Status(status));
    }

    fn hint(&mut self, hint: Hint) {
        let is_replaced = |event: &Event| matches!(event, Event::Hint(old) if hint.replaces(old));
        self.events.retain(|event| !is_replaced(event));
        self.ready.retain(|event| !is_replaced(event));
        self.events.push(Event::Hint(hint));
    }

    /// Whether the server has welcomed the present connection.
    pub fn is_connected(&self) -> bool {
        self.mailbox_id.is_some()
    }

    pub fn connection_ended(&mut self) {
        self.is_moving = false;
        self.mailbox_id = None;
        self.transmit.clear();
        self.inbox.leave_mailbox();
    }

    /// Another connection takes the place of the present one. Unless it ends before its Welcome, the
    /// app does not hear of it.
    pub fn connection_moves(&mut self) {
        self.connection_ended();
        self.is_moving = true;
    }

    /// Everything that gathered, to be written. `None`: nothing to write, or a batch is being
    /// written; so calling it after every input and after every finished batch is enough.
    pub fn begin_commit(&mut self, now_ms: u64) -> Option<Batch> {
        if self.writing.is_some() {
            return None;
        }
        self.outbox.release(now_ms, &mut self.changes);
        let counters = self.counters();
        if self.changes.is_empty() && counters == self.durable {
            let events = std::mem::take(&mut self.events);
            self.give(events);
            return None;
        }
        self.writing = Some(std::mem::take(&mut self.events));
        let changes = std::mem::take(&mut self.changes);
        Some(Batch { database: self.database.clone(), counters, changes })
    }

    pub fn finish_commit(&mut self, written: Written) {
        let events = self.writing.take().expect("a batch is written after begin_commit gave it");
        self.give(events);
        self.durable = written.0;
        self.batches_written += 1;
        self.queue_transmit();
    }

    /// Writes all that gathered, here and now.
    pub fn commit(&mut self, now_ms: u64) -> Result<(), StoreFault> {
        if let Some(batch) = self.begin_commit(now_ms) {
            let written = batch.write()?;
            self.finish_commit(written);
        }
        Ok(())
    }

    /// Everything done so far is durable once [`Self::batches_written`] has reached this.
    pub fn last_batch(&self) -> u64 {
        let forming = u64::from(!self.changes.is_empty());
        self.batches_written + u64::from(self.writing.is_some()) + forming
    }

    pub fn batches_written(&self) -> u64 {
        self.batches_written
    }

    /// Hands the session the next Send, in the order of the numbers, and what may be acknowledged.
    /// False: there is no further Send, or the server allows no further unanswered one.
    pub fn transmit(&mut self, session: &mut ClientSession) -> bool {
        self.acknowledge(session);
        while let Some(send_seq) = self.transmit.front() {
            let Some(numbered) = self.outbox.numbered(*send_seq) else {
                // Answered before it was sent here: there is nothing left to replay.
                self.transmit.pop_front();
                continue;
            };
            let send = ClientSend {
                send_seq: *send_seq,
                message_number: MessageNumber(numbered.id.0),
                to: &numbered.send.to,
                roster_version: numbered.send.options.roster_version,
                device_list_version: numbered.send.options.device_list_version,
                body: match &numbered.send.body {
                    SendBody::Shared(envelope) => SendContent::Shared(envelope),
                    SendBody::PerDevice(list) => SendContent::PerDevice(list),
                },
                ttl_ms: numbered.send.options.ttl_ms,
                urgent: numbered.send.options.urgent,
                after_reject: numbered.after_reject,
            };
            match session.send(&send) {
                Ok(()) => {
                    self.transmit.pop_front();
                    return true;
                }
                Err(SendRefused::WindowFull) => return false,
                // Within the protocol's bounds, but this server's are lower.
                Err(SendRefused::TooLarge { .. }) => {
                    let send_seq = *send_seq;
                    self.transmit.pop_front();
                    let outcome =
                        Outcome::Rejected { code: RejectCode::TooLarge, retry_after_ms: None };
                    self.answered(0, send_seq, outcome);
                }
            }
        }
        false
    }

    /// A Send has its outcome. The time counts for one that is to be retried.
    fn answered(&mut self, now_ms: u64, send_seq: SendSeq, outcome: Outcome) {
        if let Some(news) = self.outbox.answer(now_ms, send_seq, outcome, &mut self.changes) {
            let id = self.inbox.add(&news, &mut self.changes);
            self.tell(Event::News { id, news });
        }
    }

    fn tell(&mut self, event: Event) {
        match self.is_translated {
            true => self.raw.push_back(event),
            false => self.events.push(event),
        }
    }

    fn acknowledge(&self, session: &mut ClientSession) {
        // An old batch may name a mailbox that this connection is not about.
        if self.mailbox_id == Some(MailboxId(self.durable.mailbox_id)) {
            session.ack(Seq(self.durable.acked_up_to));
        }
    }

    /// The next event for the app. News are given again after a restart until confirmed.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    /// When [`Self::begin_commit`] has something to do without further input.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.outbox.poll_timeout()
    }

    /// Messages in the outbox.
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Unconfirmed news.
    pub fn inbox_len(&self) -> usize {
        self.inbox.len()
    }

    fn welcome(&mut self, mailbox_id: MailboxId) {
        self.inbox.enter_mailbox(mailbox_id);
        self.mailbox_id = Some(mailbox_id);
        self.outbox.take_back_overtakers(&mut self.changes);
        self.transmit.clear();
        self.transmitted_up_to = SendSeq(0);
        self.queue_transmit();
        if !std::mem::take(&mut self.is_moving) {
            self.is_caught_up = false;
            self.report(Status::Connected);
        }
    }

    fn arrive(&mut self, seq: Seq, arrival: Arrival) -> Result<(), Flooded> {
        let has_room = self.inbox.arrive(Some((seq, arrival)));
        self.take_arrivals();
        if has_room { Ok(()) } else { Err(Flooded) }
    }

    fn take_arrivals(&mut self) {
        while let Some(intake) = self.inbox.take(&mut self.changes) {
            match intake {
                Intake::News(id, news) => self.tell(Event::News { id, news }),
                Intake::CaughtUp if std::mem::replace(&mut self.is_caught_up, true) => {}
                Intake::CaughtUp => self.report(Status::CaughtUp),
            }
        }
    }

    fn give(&mut self, events: Vec<Event>) {
        self.ready.extend(events);
        // News are bounded by the inbox; an app that sleeps while the connection comes and goes
        // needs only the last word about it.
        self.drop_oldest(STATUSES_MAX, |event| matches!(event, Event::Status(_)));
        self.drop_oldest(HINTS_MAX, |event| matches!(event, Event::Hint(_)));
    }

    fn drop_oldest(&mut self, count_max: usize, is_kind: impl Fn(&Event) -> bool) {
        let count = self.ready.iter().filter(|event| is_kind(event)).count();
        for _ in count_max..count {
            let oldest = self.ready.iter().position(&is_kind).expect("counted above");
            self.ready.remove(oldest);
        }
    }

    /// Numbers that became durable may go out.
    fn queue_transmit(&mut self) {
        if self.mailbox_id.is_none() {
            return;
        }
        let durable_up_to = SendSeq(self.durable.next_send_seq - 1);
        self.transmit.extend(self.outbox.numbers(self.transmitted_up_to, durable_up_to));
        self.transmitted_up_to = durable_up_to;
    }

    fn counters(&self) -> CounterRow {
        let cursor = self.inbox.cursor();
        CounterRow {
            install_id: self.install_id.0,
            mailbox_id: cursor.mailbox_id.0,
            acked_up_to: cursor.acked_up_to.0,
            next_send_id: self.outbox.next_send_id(),
            next_send_seq: self.outbox.next_send_seq(),
            next_event_id: self.inbox.next_event_id(),
        }
    }
}

/// A Send that breaks the protocol would end every connection it is replayed on, so it must not
/// reach the outbox.
fn check(send: &NewSend) -> Result<(), SendFault> {
    let (count, bytes) = match &send.body {
        SendBody::Shared(envelope) => (1, envelope.len()),
        SendBody::PerDevice(list) => {
            if matches!(send.to, Recipient::Group(_)) {
                return Err(SendFault::GroupPerDevice);
            }
            let mut devices = HashSet::new();
            if !list.iter().all(|(device, _)| devices.insert(device)) {
                return Err(SendFault::DeviceRepeated);
            }
            (list.len(), list.iter().map(|(_, envelope)| envelope.len()).sum())
        }
    };
    if count == 0 || count > DEVICES_PER_USER_MAX {
        return Err(SendFault::EnvelopeCount { count });
    }
    if bytes > ENVELOPE_BYTES_MAX {
        return Err(SendFault::EnvelopeTooLarge { bytes });
    }
    Ok(())
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            outbox_rows_max: OUTBOX_ROWS_MAX,
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            inbox_rows_max: INBOX_ROWS_MAX,
            inbox_bytes_max: INBOX_BYTES_MAX,
        }
    }
}
