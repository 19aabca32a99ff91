//! A device: the production session and ledger on a disk that forgets. Its app is in [`super::app`].

use std::collections::BTreeMap;

use redb::Database;
use ringpost_client::ledger::{Ledger, LedgerConfig};
use ringpost_client::store::Batch;
use ringpost_client::store::disk::MemoryDisk;
use ringpost_client::{Event as AppEvent, EventId, News};
use ringpost_protocol::id::{DeviceAddress, Seq};
use ringpost_protocol::message::{ClientEvent, Mode};

use super::app::Brought;
use super::clock::{MS, Stream};
use super::connection::{Connection, Login};
use super::net::LinkId;
use super::oracle::{MessageIndex, Oracle};
use super::ring::Host;
use super::scribe::Scribe;
use super::shape::Shape;
use super::world::Event;

pub struct Client {
    pub(super) index: usize,
    address: DeviceAddress,
    disk: MemoryDisk,
    /// Its disk needs up to this for a commit.
    disk_ns: u64,
    ledger: Option<Ledger>,
    writing: Option<Batch>,
    /// Counts crashes: a write that finishes in an older life is nothing.
    life: u64,
    pub conn: Option<Connection>,
    /// Connections that were left without a word and still hear what is sent to them.
    left: Vec<Connection>,
    reconnect_at_ms: u64,
    failure_count: u32,
    /// Does not read until an event says so; what has arrived meanwhile.
    unread: Option<Vec<Event>>,
    /// What the app keeps: it survives everything.
    pub(super) told: BTreeMap<EventId, News>,
    pub(super) unconfirmed: Vec<EventId>,
    /// Sent by the app, with the batch that makes it durable.
    pub(super) promised: Vec<(u64, MessageIndex)>,
    /// Brought by connections, and not yet known to be taken durably.
    pub(super) brought: Vec<Brought>,
    timer_ticket: u64,
    timer_at_ms: u64,
    pub(super) random: Stream,
    pub(super) scribe: Scribe,
    /// Goodbye was said; it does not come back.
    retired: bool,
}

impl Client {
    pub fn new(index: usize, address: DeviceAddress, seed: u64, shape: &Shape) -> Self {
        let mut random = Stream::new(seed, &format!("client {index}"));
        let disk = MemoryDisk::new();
        let ledger = open(&disk, random.next_u64());
        let is_late = shape.late && random.chance(300);
        Self {
            index,
            scribe: Scribe::new(seed, index, address.clone(), shape),
            address,
            disk,
            disk_ns: shape.client_disk_ns,
            ledger: Some(ledger),
            writing: None,
            life: 0,
            conn: None,
            left: Vec::new(),
            reconnect_at_ms: if is_late { random.between(1_000, 20_000) } else { 0 },
            failure_count: 0,
            unread: None,
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
            && self.conn.as_ref().is_some_and(|conn| {
                conn.caught_up && conn.leaving.is_none() && conn.calls.is_empty()
            })
    }

    /// What it waits for, for the report of a world that does not settle.
    pub fn state(&self) -> String {
        let conn = self.conn.as_ref().map(|conn| {
            format!(
                "link {} welcomed {} caught up {} calls {:?} {:?}",
                conn.link, conn.welcomed, conn.caught_up, conn.calls, conn.session
            )
        });
        format!("client {}: outbox {}, {conn:?}", self.index, self.ledger().outbox_len())
    }

    pub fn outbox_len(&self) -> usize {
        self.ledger().outbox_len()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().expect("open but for the moment of a crash")
    }

    pub(super) fn ledger_mut(&mut self) -> &mut Ledger {
        self.ledger.as_mut().expect("open but for the moment of a crash")
    }

    /// Everything that follows from the last input.
    pub fn drive(&mut self, host: &mut Host, oracle: &mut Oracle) {
        let now_ms = host.clock.now_ms();
        if self.writing.is_none()
            && let Some(batch) = self.ledger_mut().begin_commit(now_ms)
        {
            self.writing = Some(batch);
            let (client, life) = (self.index, self.life);
            let delay_ns = self.random.delay(self.disk_ns);
            host.clock.plan_in(delay_ns, Event::ClientWritten { client, life });
        }
        if let Some(conn) = &mut self.conn {
            let ledger = self.ledger.as_mut().expect("open");
            while ledger.transmit(&mut conn.session) {}
            let mut out = Vec::new();
            conn.session.poll_transmit(now_ms, &mut out);
            if !out.is_empty() {
                let out = oracle.transmitted(out);
                host.clock.note(&[1, self.index as u64, out.len() as u64]);
                host.client_write(conn.link, &out);
            }
        }
        while let Some(event) = self.ledger_mut().poll_event() {
            if let AppEvent::News { id, news } = event {
                host.tell(|| format!("app {} hears {id:?} {news:?}", self.index));
                self.app_hears(oracle, host.clock.now_ns(), id, news);
            }
        }
        self.plan_timer(host);
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

    pub fn handle_data(&mut self, host: &mut Host, oracle: &mut Oracle, link: LinkId, data: &[u8]) {
        if let Some(position) = self.left.iter().position(|conn| conn.link == link) {
            let (now_ms, now_ns) = (host.clock.now_ms(), host.clock.now_ns());
            let conn = &mut self.left[position];
            let index = self.index;
            conn.take(oracle, index, now_ms, data);
            while let Some(event) = conn.session.poll_event() {
                conn.watch(oracle, (index, now_ns), &event);
                conn.answered(oracle, (index, now_ns), &event);
            }
            return self.note_replaced(host);
        }
        let Some(conn) = self.conn.as_mut().filter(|conn| conn.link == link) else { return };
        let (now_ms, now_ns) = (host.clock.now_ms(), host.clock.now_ns());
        conn.take(oracle, self.index, now_ms, data);
        while let Some(conn) = &mut self.conn {
            let Some(event) = conn.session.poll_event() else { break };
            conn.watch(oracle, (self.index, now_ns), &event);
            if let Some(asked) = conn.answered(oracle, (self.index, now_ns), &event) {
                self.scribe.hears(asked, &event);
            }
            host.tell(|| format!("client {} link {link}: {event:?}", self.index));
            match &event {
                ClientEvent::Welcome(_) => {
                    self.failure_count = 0;
                    self.note_replaced(host);
                }
                ClientEvent::Deliver(delivery) => {
                    self.brought.push(Brought::of(conn.mailbox, delivery));
                }
                ClientEvent::DeviceList(list) => self.scribe.saw_list(&list.user, list.version),
                ClientEvent::GoAway { reconnect_after_ms, .. } => {
                    conn.leaving = Some((*reconnect_after_ms, now_ms + 5_000));
                }
                ClientEvent::Error { fatal: true, code, .. } => {
                    let is_token = format!("{code:?}").starts_with("Token");
                    host.coverage.tokens_refused += u64::from(is_token);
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

    /// Of the connections that were left, those that the gateway attached before the present one get
    /// nothing that was sent from now on.
    fn note_replaced(&mut self, host: &Host) {
        let Some(conn) = &self.conn else { return };
        let (now_ns, clock_steps) = (host.clock.now_ns(), host.faults.counts.clock_steps);
        for left in self.left.iter_mut().filter(|left| left.came_before(conn, clock_steps)) {
            left.replaced_ns.get_or_insert(now_ns);
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

    /// Leaves, and stays away for long.
    pub fn go_away(&mut self, host: &mut Host, oracle: &mut Oracle) {
        let until_ms = host.clock.now_ms() + self.random.between(2_000, 40_000);
        self.go_away_until(host, oracle, until_ms);
    }

    pub fn go_away_until(&mut self, host: &mut Host, oracle: &mut Oracle, until_ms: u64) {
        host.faults.counts.absences += 1;
        let vanishes = self.random.chance(500);
        self.leave(host, oracle, vanishes);
        self.reconnect_at_ms = until_ms;
        self.plan_timer(host);
    }

    /// Acknowledges what it was never sent: its connection must end, and nothing else.
    pub fn acknowledge_unsent(&mut self, host: &mut Host) {
        // No world opens its stores so often.
        let up_to = Seq(u64::MAX >> host.faults.misbehaviour.below(4));
        let Some(conn) = &mut self.conn else { return };
        let Some(frames) = conn.false_ack(up_to) else { return };
        host.faults.counts.false_acks += 1;
        host.client_write(conn.link, &frames);
    }

    /// Does not read for a while: the network fills up.
    pub fn stop_reading(&mut self, host: &mut Host) {
        if self.unread.is_none() {
            host.faults.counts.slow_readers += 1;
            self.unread = Some(Vec::new());
            host.paths[self.index].is_blind = true;
            let duration_ns = self.random.between(500, 40_000) * MS;
            host.clock.plan_in(duration_ns, Event::ClientReads { client: self.index });
        }
    }

    /// Does not read now.
    pub fn is_blind(&self) -> bool {
        self.unread.is_some()
    }

    /// Keeps `event` until the client reads again.
    pub fn hold_back(&mut self, event: Event) {
        self.unread.get_or_insert_default().push(event);
    }

    pub fn handle_reads(&mut self, host: &mut Host) {
        for event in self.unread.take().unwrap_or_default() {
            host.clock.plan_in(0, event);
        }
        host.paths[self.index].is_blind = false;
        host.quic_reads(self.index);
    }

    /// The app comes to the front.
    pub fn set_mode(&mut self, host: &mut Host, oracle: &mut Oracle, mode: Mode) {
        let now_ms = host.clock.now_ms();
        if let Some(conn) = self.conn.as_mut().filter(|conn| conn.welcomed) {
            conn.session.set_mode(now_ms, mode);
            self.drive(host, oracle);
        }
    }

    /// Brings a newer token, if the present one is going to expire.
    pub fn renew(&mut self, host: &mut Host, oracle: &mut Oracle, token: &str) {
        if let Some(conn) = self.conn.as_mut().filter(|conn| conn.welcomed && conn.token_is_short) {
            conn.token_is_short = false;
            conn.session.renew_token(token);
            host.coverage.tokens_renewed += 1;
            self.drive(host, oracle);
        }
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

    pub fn connect(&mut self, host: &mut Host, oracle: &mut Oracle, shard: u16, login: Login) {
        let link = if host.faults.picks_quic() {
            host.quic_connect(self.index)
        } else {
            host.connect(self.index, shard)
        };
        let identity = self.ledger().identity();
        host.tell(|| format!("client {} connects, link {link}, {identity:?}", self.index));
        let device = self.address.device.clone();
        host.coverage.connections += 1;
        host.coverage.background_connections += u64::from(login.mode != Mode::Foreground);
        let (now_ms, clock_steps) = (host.clock.now_ms(), host.faults.counts.clock_steps);
        self.conn = Some(Connection::new(link, now_ms, clock_steps, login, device, identity));
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
