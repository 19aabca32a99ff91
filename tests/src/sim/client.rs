//! A device: the production session and ledger on a disk that forgets, and an app that keeps what
//! it is told.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::Database;
use ringpost_client::ledger::{Ledger, LedgerConfig};
use ringpost_client::store::Batch;
use ringpost_client::store::disk::MemoryDisk;
use ringpost_client::{Event as AppEvent, EventId, NewSend, News, SendOptions};
use ringpost_protocol::id::{DeviceAddress, MailboxId, SendSeq, Seq, UserId};
use ringpost_protocol::message::{ClientEvent, Recipient, SendBody};

use super::clock::{MS, Stream};
use super::connection::Connection;
use super::net::LinkId;
use super::oracle::{MessageIndex, Oracle, envelope};
use super::ring::Host;
use super::world::Event;

pub struct Client {
    index: usize,
    address: DeviceAddress,
    disk: MemoryDisk,
    ledger: Option<Ledger>,
    writing: Option<Batch>,
    /// Counts crashes: a write that finishes in an older life is nothing.
    life: u64,
    pub conn: Option<Connection>,
    /// Connections that were left without a word and still hear what is sent to them.
    left: Vec<Connection>,
    reconnect_at_ms: u64,
    failure_count: u32,
    /// What the app keeps: it survives everything.
    told: BTreeMap<EventId, News>,
    unconfirmed: Vec<EventId>,
    /// Sent by the app, with the batch that makes it durable.
    promised: Vec<(u64, MessageIndex)>,
    /// Brought by connections, and not yet known to be taken durably.
    brought: Vec<(MailboxId, Seq, DeviceAddress, SendSeq)>,
    timer_ticket: u64,
    timer_at_ms: u64,
    random: Stream,
    /// Goodbye was said; it does not come back.
    retired: bool,
}

impl Client {
    pub fn new(index: usize, address: DeviceAddress, seed: u64) -> Self {
        let mut random = Stream::new(seed, &format!("client {index}"));
        let disk = MemoryDisk::new();
        let ledger = open(&disk, random.next_u64());
        Self {
            index,
            address,
            disk,
            ledger: Some(ledger),
            writing: None,
            life: 0,
            conn: None,
            left: Vec::new(),
            reconnect_at_ms: 0,
            failure_count: 0,
            told: BTreeMap::new(),
            unconfirmed: Vec::new(),
            promised: Vec::new(),
            brought: Vec::new(),
            timer_ticket: 0,
            timer_at_ms: u64::MAX,
            random,
            retired: false,
        }
    }

    pub fn address(&self) -> &DeviceAddress {
        &self.address
    }

    /// Whether nothing is left to do for it.
    pub fn is_idle(&self) -> bool {
        self.writing.is_none()
            && self.ledger().outbox_len() == 0
            && self.conn.as_ref().is_some_and(|conn| conn.caught_up && conn.leaving.is_none())
    }

    /// What it waits for, for the report of a world that does not settle.
    pub fn state(&self) -> String {
        let conn = self.conn.as_ref().map(|conn| {
            format!(
                "link {} welcomed {} caught up {} {:?}",
                conn.link, conn.welcomed, conn.caught_up, conn.session
            )
        });
        format!("client {}: outbox {}, {conn:?}", self.index, self.ledger().outbox_len())
    }

    fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().expect("open but for the moment of a crash")
    }

    fn ledger_mut(&mut self) -> &mut Ledger {
        self.ledger.as_mut().expect("open but for the moment of a crash")
    }

    /// The app sends some messages.
    pub fn app_sends(&mut self, host: &mut Host, oracle: &mut Oracle, to: usize, count: u64) {
        let user: UserId = oracle.devices[to].user.clone();
        for _ in 0..count {
            let message = oracle.next_message();
            let bytes = if self.random.chance(30) { 20_000 } else { 600 };
            let body = envelope(message, self.random.index(bytes));
            let send = NewSend {
                to: Recipient::User(user.clone()),
                body: SendBody::Shared(Bytes::from(body)),
                options: SendOptions { ttl_ms: 0, urgent: self.random.chance(100) },
            };
            let Ok(id) = self.ledger_mut().enqueue(send) else { break };
            let batch = self.ledger().last_batch();
            oracle.sent(self.index, to, id, host.clock.now_ns());
            self.promised.push((batch, message));
            host.tell(|| {
                format!("client {} sends message {message} to {to} as {id:?}", self.index)
            });
        }
        self.confirm_all();
        self.drive(host, oracle);
    }

    fn confirm_all(&mut self) {
        for id in std::mem::take(&mut self.unconfirmed) {
            self.ledger_mut().confirm(id);
        }
    }

    /// Everything that follows from the last input.
    pub fn drive(&mut self, host: &mut Host, oracle: &mut Oracle) {
        let now_ms = host.clock.now_ms();
        if self.writing.is_none()
            && let Some(batch) = self.ledger_mut().begin_commit(now_ms)
        {
            self.writing = Some(batch);
            let (client, life) = (self.index, self.life);
            let delay_ns = self.random.delay(5 * MS);
            host.clock.plan_in(delay_ns, Event::ClientWritten { client, life });
        }
        if let Some(conn) = &mut self.conn {
            let ledger = self.ledger.as_mut().expect("open");
            while ledger.transmit(&mut conn.session) {}
            let mut out = Vec::new();
            conn.session.poll_transmit(now_ms, &mut out);
            if !out.is_empty() {
                host.clock.note(&[1, self.index as u64, out.len() as u64]);
                host.client_write(conn.link, &out);
            }
        }
        while let Some(event) = self.ledger_mut().poll_event() {
            if let AppEvent::News { id, news } = event {
                host.tell(|| format!("app {} hears {id:?} {news:?}", self.index));
                self.app_hears(oracle, id, news);
            }
        }
        self.plan_timer(host);
    }

    fn app_hears(&mut self, oracle: &mut Oracle, id: EventId, news: News) {
        if let Some(before) = self.told.get(&id) {
            oracle.require(*before == news, || format!("{id:?} was given to two pieces of news"));
        } else {
            match &news {
                News::Message(message) => oracle.told(self.index, message),
                News::Sent(sent) => oracle.accepted(self.index, sent),
                News::Refused(refused) => oracle.refused(self.index, refused),
                News::Delivered(receipt) => {
                    oracle.receipt(self.index, &receipt.peer, receipt.up_to_send_seq);
                }
                News::Gap(_) => oracle.gap_count += 1,
            }
            self.told.insert(id, news);
        }
        if self.random.chance(700) {
            self.ledger_mut().confirm(id);
        } else {
            self.unconfirmed.push(id);
        }
    }

    pub fn handle_written(&mut self, host: &mut Host, oracle: &mut Oracle, life: u64) {
        if life != self.life {
            return;
        }
        let batch = self.writing.take().expect("a write finishes once");
        let written = batch.write().expect("the disk in memory takes every write");
        self.ledger_mut().finish_commit(written);
        let durable = self.ledger().batches_written();
        self.promised.retain(|(batch, _)| *batch > durable);
        self.note_taken(oracle);
        self.drive(host, oracle);
    }

    /// What lies at or before the durable cursor counts as taken: the next Ack or Hello says so.
    fn note_taken(&mut self, oracle: &mut Oracle) {
        let identity = self.ledger().identity();
        let index = self.index;
        self.brought.retain(|(mailbox, seq, from, send_seq)| {
            let is_taken = *mailbox == identity.mailbox_id && *seq <= identity.acked_up_to;
            if is_taken {
                oracle.taken(index, from, *send_seq);
            }
            !is_taken
        });
    }

    pub fn handle_data(&mut self, host: &mut Host, oracle: &mut Oracle, link: LinkId, data: &[u8]) {
        if let Some(position) = self.left.iter().position(|conn| conn.link == link) {
            let now_ms = host.clock.now_ms();
            let conn = &mut self.left[position];
            let index = self.index;
            conn.take(oracle, index, now_ms, data);
            while let Some(event) = conn.session.poll_event() {
                conn.watch(oracle, index, &event);
            }
            return;
        }
        let Some(conn) = self.conn.as_mut().filter(|conn| conn.link == link) else { return };
        let now_ms = host.clock.now_ms();
        conn.take(oracle, self.index, now_ms, data);
        while let Some(conn) = &mut self.conn {
            let Some(event) = conn.session.poll_event() else { break };
            conn.watch(oracle, self.index, &event);
            host.tell(|| format!("client {} link {link}: {event:?}", self.index));
            match &event {
                ClientEvent::Welcome(_) => {
                    self.failure_count = 0;
                    let now_ns = host.clock.now_ns();
                    // One that was never welcomed may still come, and then it is the newer one.
                    for left in self.left.iter_mut().filter(|left| left.welcomed) {
                        left.replaced_ns.get_or_insert(now_ns);
                    }
                }
                ClientEvent::Deliver(delivery) => {
                    let (from, send_seq) = (delivery.from.clone(), delivery.send_seq);
                    self.brought.push((conn.mailbox, delivery.seq, from, send_seq));
                }
                ClientEvent::GoAway { reconnect_after_ms, .. } => {
                    conn.leaving = Some((*reconnect_after_ms, now_ms + 5_000));
                }
                ClientEvent::Error { fatal: true, .. } => {
                    // Replaced by a connection of its own that was slow: the app asks again.
                    let wait_ms = self.random.between(0, 3_000);
                    self.end(host, wait_ms);
                    break;
                }
                _ => {}
            }
            if let Err(flooded) = self.ledger_mut().handle_event(now_ms, event) {
                oracle.violated(flooded.to_string());
            }
        }
        self.drive(host, oracle);
    }

    pub fn handle_end(&mut self, host: &mut Host, oracle: &mut Oracle, link: LinkId) {
        self.left.retain(|conn| conn.link != link);
        if let Some(conn) = &self.conn
            && conn.link == link
        {
            let wait_ms = conn.leaving.map(|(wait_ms, _)| wait_ms);
            let wait_ms = wait_ms.unwrap_or_else(|| self.backoff_ms());
            self.end(host, wait_ms);
            self.drive(host, oracle);
        }
    }

    fn backoff_ms(&mut self) -> u64 {
        self.failure_count += 1;
        self.random.below(200 << self.failure_count.min(5))
    }

    fn end(&mut self, host: &mut Host, wait_ms: u64) {
        let Some(conn) = self.conn.take() else { return };
        host.tell(|| format!("client {} ends link {}", self.index, conn.link));
        host.client_close(conn.link);
        self.ledger_mut().connection_ended();
        self.reconnect_at_ms = host.clock.now_ms() + wait_ms;
    }

    /// Leaves the connection without a word, as a phone that changes networks.
    pub fn leave(&mut self, host: &mut Host, oracle: &mut Oracle, vanishes: bool) {
        let Some(conn) = self.conn.take() else { return };
        if vanishes {
            host.client_vanish(conn.link);
        } else {
            self.left.push(conn);
        }
        self.ledger_mut().connection_ended();
        self.reconnect_at_ms = host.clock.now_ms() + self.random.below(500);
        self.drive(host, oracle);
    }

    /// Ends the connection in order.
    pub fn close(&mut self, host: &mut Host, oracle: &mut Oracle) {
        let wait_ms = self.random.below(2_000);
        self.end(host, wait_ms);
        self.drive(host, oracle);
    }

    /// Says goodbye for good.
    pub fn retire(&mut self, host: &mut Host) {
        self.retired = true;
        let now_ms = host.clock.now_ms();
        if let Some(conn) = &mut self.conn {
            conn.session.bye();
            let mut out = Vec::new();
            conn.session.poll_transmit(now_ms, &mut out);
            host.client_write(conn.link, &out);
        }
        self.end(host, u64::MAX / 2);
        for conn in std::mem::take(&mut self.left) {
            host.client_close(conn.link);
        }
    }

    /// The process dies, or the whole device. The write in progress took place or did not.
    pub fn crash(&mut self, host: &mut Host, oracle: &mut Oracle) {
        if let Some(batch) = self.writing.take()
            && self.random.chance(500)
        {
            batch.write().expect("the disk in memory takes every write");
        }
        self.life += 1;
        host.tell(|| format!("client {} crashes", self.index));
        self.disk.crash();
        self.ledger = None;
        for conn in self.conn.take().into_iter().chain(std::mem::take(&mut self.left)) {
            if self.random.chance(500) {
                host.client_reset(conn.link);
            } else {
                host.client_vanish(conn.link);
            }
        }
        self.ledger = Some(open(&self.disk, self.random.next_u64()));
        for (_, message) in std::mem::take(&mut self.promised) {
            oracle.maybe_lost(message);
        }
        self.unconfirmed.clear();
        self.note_taken(oracle);
        self.reconnect_at_ms = host.clock.now_ms() + self.random.below(3_000);
        self.drive(host, oracle);
    }

    /// `Some`: time to connect.
    pub fn handle_timer(&mut self, host: &mut Host, oracle: &mut Oracle, ticket: u64) -> bool {
        if ticket != self.timer_ticket {
            return false;
        }
        self.timer_at_ms = u64::MAX;
        let now_ms = host.clock.now_ms();
        match &mut self.conn {
            None if self.reconnect_at_ms <= now_ms => return !self.retired,
            None => {}
            Some(conn) => match conn.leaving {
                Some((wait_ms, until_ms)) if until_ms <= now_ms => self.end(host, wait_ms),
                _ => {
                    if conn.session.handle_timeout(now_ms).is_err() {
                        let wait_ms = self.backoff_ms();
                        self.end(host, wait_ms);
                    }
                }
            },
        }
        self.drive(host, oracle);
        false
    }

    pub fn connect(&mut self, host: &mut Host, oracle: &mut Oracle, shard: u16, token: String) {
        let link = host.connect(self.index, shard);
        let identity = self.ledger().identity();
        host.tell(|| format!("client {} connects, link {link}, {identity:?}", self.index));
        let device = self.address.device.clone();
        self.conn = Some(Connection::new(link, host.clock.now_ms(), token, device, identity));
        self.drive(host, oracle);
    }

    fn plan_timer(&mut self, host: &mut Host) {
        let conn_ms = match &self.conn {
            None if self.retired => u64::MAX,
            None => self.reconnect_at_ms,
            Some(conn) => {
                let leave_ms = conn.leaving.map_or(u64::MAX, |(_, until_ms)| until_ms);
                conn.session.poll_timeout().min(leave_ms)
            }
        };
        let ledger_ms = self.ledger().poll_timeout().filter(|_| self.writing.is_none());
        let at_ms = conn_ms.min(ledger_ms.unwrap_or(u64::MAX));
        if at_ms != self.timer_at_ms && at_ms < u64::MAX / 4 {
            self.timer_at_ms = at_ms;
            self.timer_ticket += 1;
            let event = Event::ClientTimer { client: self.index, ticket: self.timer_ticket };
            host.clock.plan(at_ms * MS, event);
        }
    }
}

fn open(disk: &MemoryDisk, new_install_id: u64) -> Ledger {
    let database = Database::builder().create_with_backend(disk.backend());
    let database = database.expect("the disk in memory opens");
    Ledger::open(database, LedgerConfig::default(), new_install_id)
        .expect("what the ledger wrote it can read")
}
