//! The delivery logic against a server in miniature, with crashes at every boundary.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redb::Database;
use ringpost_client::ledger::{Ledger, LedgerConfig, SendFault};
use ringpost_client::protocol::id::{DeviceId, InstallId, MailboxId, SendSeq, Seq};
use ringpost_client::protocol::message::{Mode, RejectCode};
use ringpost_client::protocol::session::{ClientHello, ClientSession};
use ringpost_client::store::disk::MemoryDisk;
use ringpost_client::{Event, EventId, NewSend, News, SendId, SendOptions, Status};
use support::{Entry, FakeServer, ServerConn, device, text, user};

/// A client on a disk that forgets, its connection, and what its app has kept.
struct World {
    disk: MemoryDisk,
    config: LedgerConfig,
    ledger: Ledger,
    wire: Option<(ClientSession, ServerConn)>,
    server: FakeServer,
    now_ms: u64,
    /// What the app was told, by event; the same event may be told again until confirmed.
    told: BTreeMap<EventId, News>,
    confirmed: BTreeSet<EventId>,
    statuses: Vec<Status>,
}

fn open(disk: &MemoryDisk, config: LedgerConfig) -> Ledger {
    let database = Database::builder().create_with_backend(disk.backend()).unwrap();
    Ledger::open(database, config, 4242).unwrap()
}

impl World {
    fn new() -> Self {
        Self::with_config(LedgerConfig::default())
    }

    fn with_config(config: LedgerConfig) -> Self {
        let disk = MemoryDisk::new();
        Self {
            ledger: open(&disk, config),
            disk,
            config,
            wire: None,
            server: FakeServer::new(),
            now_ms: 0,
            told: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            statuses: Vec::new(),
        }
    }

    fn crash(&mut self) {
        self.disk.crash();
        self.wire = None;
        self.ledger = open(&self.disk, self.config);
    }

    fn disconnect(&mut self) {
        if self.wire.take().is_some() {
            self.ledger.connection_ended();
        }
    }

    fn connect(&mut self) {
        self.disconnect();
        let identity = self.ledger.identity();
        let hello = ClientHello {
            token: "t".into(),
            device: DeviceId::new("d").unwrap(),
            install_id: identity.install_id,
            mailbox_id: identity.mailbox_id,
            acked_up_to: identity.acked_up_to,
            mode: Mode::Foreground,
            capabilities: 0,
        };
        self.wire = Some((ClientSession::new(self.now_ms, hello), ServerConn::new()));
    }

    fn send(&mut self, to: &str, body: &str) -> SendId {
        let send = NewSend { to: user(to), body: text(body), options: SendOptions::default() };
        self.ledger.enqueue(send).unwrap()
    }

    fn message(&mut self, from: &str, send_seq: u64, text: &str) {
        let send_seq = SendSeq(send_seq);
        self.server.push(Entry::Message { from: device(from), send_seq, text: text.into() });
    }

    fn commit(&mut self) {
        self.ledger.commit(self.now_ms).unwrap();
    }

    /// Both directions once; commits nothing.
    fn exchange(&mut self) {
        let Some((session, conn)) = &mut self.wire else { return };
        while self.ledger.transmit(session) {}
        let (mut up, mut down) = (Vec::new(), Vec::new());
        session.poll_transmit(self.now_ms, &mut up);
        self.server.handle(conn, &up, &mut down).unwrap();
        self.server.deliver(conn, &mut down);
        session.handle_data(self.now_ms, &mut BytesMut::from(&down[..])).unwrap();
        while let Some(event) = session.poll_event() {
            self.ledger.handle_event(self.now_ms, event).unwrap();
        }
    }

    /// Takes an event; `confirm` as a real app would, after keeping it.
    fn tell(&mut self, confirm: bool) -> bool {
        let Some(event) = self.ledger.poll_event() else { return false };
        match event {
            Event::Status(status) => self.statuses.push(status),
            Event::Hint(_) => {}
            Event::News { id, news } => {
                assert!(!self.confirmed.contains(&id), "confirmed news came again");
                let before = self.told.insert(id, news.clone());
                assert!(before.is_none_or(|before| before == news), "an event id is given once");
                if confirm {
                    self.ledger.confirm(id);
                    self.commit();
                    self.confirmed.insert(id);
                }
            }
        }
        true
    }

    /// Until nothing moves.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.exchange();
            self.commit();
            while self.tell(true) {}
        }
    }

    fn received(&self) -> Vec<String> {
        let messages = self.told.values().filter_map(|news| match news {
            News::Message(message) => Some(String::from_utf8(message.envelope.to_vec()).unwrap()),
            _ => None,
        });
        messages.collect()
    }

    fn stored(&self, to: &str) -> Vec<&str> {
        let to = user(to);
        self.server.stored.iter().filter(|row| row.1 == to).map(|row| row.2.as_str()).collect()
    }

    /// What a recipient makes of what was stored: one remembered number drops replays.
    fn taken_by(&self, to: &str) -> Vec<&str> {
        let (to, mut mark) = (user(to), SendSeq(0));
        let rows = self.server.stored.iter().filter(|row| row.1 == to);
        rows.filter(|row| {
            let is_new = row.0 > mark;
            mark = mark.max(row.0);
            is_new
        })
        .map(|row| row.2.as_str())
        .collect()
    }

    fn numbers(&self) -> Vec<u64> {
        self.server.sends_seen.iter().map(|(send_seq, _)| send_seq.0).collect()
    }
}

#[test]
fn nothing_leaves_before_it_is_durable() {
    let mut world = World::new();
    world.connect();
    world.settle();
    world.send("bob", "a");
    world.exchange();
    assert!(world.server.stored.is_empty());
    world.crash();
    world.connect();
    world.settle();
    assert!(world.server.stored.is_empty(), "never promised, so gone");
    world.message("bob", 1, "x");
    world.exchange();
    assert_eq!(world.ledger.poll_event(), None);
    world.exchange();
    assert_eq!(world.server.entries.len(), 1, "not acknowledged");
    world.commit();
    world.exchange();
    assert_eq!(world.server.entries.len(), 0);
}

#[test]
fn unanswered_sends_are_replayed_in_order_under_their_numbers() {
    let mut world = World::new();
    world.connect();
    world.settle();
    world.server.is_mute = true;
    for body in ["a", "b", "c"] {
        world.send("bob", body);
    }
    world.commit();
    world.exchange();
    assert_eq!(world.stored("bob"), ["a", "b", "c"]);
    world.crash();
    world.send("bob", "d");
    world.server.is_mute = false;
    world.connect();
    world.settle();
    assert_eq!(world.numbers(), [1, 2, 3, 1, 2, 3, 4]);
    assert_eq!(world.stored("bob"), ["a", "b", "c", "d"]);
    assert_eq!(world.ledger.outbox_len(), 0);
}

#[test]
fn a_refused_message_is_retried_under_a_new_number_with_what_stood_behind_it() {
    let mut world = World::new();
    world.connect();
    world.settle();
    world.server.full.insert(user("bob"));
    let first = world.send("bob", "a");
    world.send("bob", "b");
    world.send("carol", "x");
    world.settle();
    assert_eq!(world.stored("carol"), ["x"]);
    assert_eq!(world.numbers(), [1, 2, 3]);
    world.send("bob", "c");
    world.now_ms += 999;
    world.settle();
    assert_eq!(world.numbers(), [1, 2, 3], "not before the server's time");
    world.server.full.clear();
    world.now_ms += 1;
    assert_eq!(world.ledger.poll_timeout(), Some(world.now_ms));
    world.settle();
    assert_eq!(world.stored("bob"), ["a", "b", "c"]);
    let retried = &world.server.sends_seen[3..];
    assert_eq!(retried[0], (SendSeq(4), true));
    assert!(retried[1..].iter().all(|(_, after_reject)| !after_reject));
    let sent = world.told.values().find_map(|news| match news {
        News::Sent(sent) if sent.id == first => Some(sent.send_seq),
        _ => None,
    });
    assert_eq!(sent, Some(SendSeq(4)), "the same id, the new number");
}

/// A recipient that fetches six messages in every second, and a sender with many.
#[test]
fn what_a_mailbox_takes_in_a_round_goes_out_in_one_flight_and_little_more() {
    let mut world = World::new();
    world.connect();
    world.settle();
    for index in 0..96 {
        world.send("bob", &index.to_string());
    }
    let mut rounds = 0;
    while world.ledger.outbox_len() > 0 {
        world.server.room.insert(user("bob"), 6);
        let before = world.server.sends_seen.len();
        world.commit();
        world.exchange();
        if rounds > 0 {
            let flight = &world.server.sends_seen[before..];
            assert_eq!(flight.len(), 6, "at once, without an answer to the first");
            assert!(flight[0].1 && flight[1..].iter().all(|(_, after_reject)| !after_reject));
        }
        world.settle();
        world.now_ms += 1_000;
        rounds += 1;
    }
    assert_eq!(rounds, 16);
    let expected: Vec<String> = (0..96).map(|index| index.to_string()).collect();
    assert_eq!(world.stored("bob"), expected);
    assert!(world.server.sends_seen.len() < 96 + 3 * 96, "{}", world.server.sends_seen.len());
}

#[test]
fn a_mailbox_that_stays_full_is_asked_with_one_message_at_a_time() {
    let mut world = World::new();
    world.connect();
    world.settle();
    world.server.room.insert(user("bob"), 3);
    for index in 0..20 {
        world.send("bob", &index.to_string());
    }
    world.settle();
    assert_eq!(world.server.sends_seen.len(), 20);
    let mut flights = Vec::new();
    for _ in 0..5 {
        world.now_ms += 60_000;
        let before = world.server.sends_seen.len();
        world.settle();
        flights.push(world.server.sends_seen.len() - before);
    }
    assert_eq!(flights, [3, 1, 1, 1, 1]);
    world.server.room.clear();
    world.now_ms += 60_000;
    world.settle();
    assert_eq!(world.stored("bob").len(), 20);
}

#[test]
fn what_stood_behind_a_refusal_does_not_overtake_on_the_next_connection() {
    let mut world = World::new();
    world.connect();
    world.settle();
    world.server.full.insert(user("bob"));
    world.send("bob", "a");
    world.send("bob", "b");
    // The answer to the second is lost, with everything that the server remembers.
    world.server.lost_answers.insert(SendSeq(2));
    world.commit();
    world.exchange();
    world.commit();
    world.server.lost_answers.clear();
    world.server.full.clear();
    world.server.forget();
    world.crash();
    world.connect();
    world.settle();
    assert_eq!(world.stored("bob"), ["a", "b"]);
}

#[test]
fn a_final_refusal_is_told_and_blocks_nobody() {
    let mut world = World::new();
    world.server.unknown.insert(user("nobody"));
    world.connect();
    let id = world.send("nobody", "a");
    world.send("bob", "b");
    world.settle();
    assert!(world.told.values().any(|news| matches!(news,
        News::Refused(refused) if refused.id == id && refused.code == RejectCode::UnknownRecipient)));
    assert_eq!(world.stored("bob"), ["b"]);
    assert_eq!(world.ledger.outbox_len(), 0);
}

#[test]
fn no_more_are_numbered_than_may_be_unanswered() {
    let mut world = World::new();
    world.connect();
    world.settle();
    world.server.is_mute = true;
    for index in 0..300 {
        world.send("bob", &index.to_string());
    }
    world.settle();
    assert_eq!(world.server.sends_seen.len(), 256);
    world.server.is_mute = false;
    world.connect();
    world.settle();
    let expected: Vec<String> = (0..300).map(|index| index.to_string()).collect();
    assert_eq!(world.stored("bob"), expected);
}

#[test]
fn a_retry_that_finds_the_window_full_waits_for_an_answer() {
    let mut world = World::new();
    world.connect();
    world.settle();
    world.server.full.insert(user("bob"));
    world.send("bob", "refused");
    world.settle();
    world.server.full.clear();
    world.server.is_mute = true;
    for index in 0..256 {
        world.send("carol", &index.to_string());
    }
    world.settle();
    world.now_ms += 1_000;
    world.settle();
    assert_eq!(world.ledger.poll_timeout(), None, "waking up could not help");
    world.server.is_mute = false;
    world.connect();
    world.settle();
    assert_eq!(world.stored("bob"), ["refused"]);
}

#[test]
fn a_duplicate_is_dropped_and_acknowledged() {
    let mut world = World::new();
    world.message("bob", 7, "x");
    world.connect();
    world.settle();
    world.message("bob", 7, "x");
    world.message("bob", 3, "older");
    world.message("carol", 3, "y");
    world.settle();
    world.crash();
    world.message("bob", 7, "x");
    world.connect();
    world.settle();
    assert_eq!(world.received(), ["x", "y"]);
    assert!(world.server.entries.is_empty());
}

#[test]
fn unconfirmed_news_come_again_and_confirmed_ones_do_not() {
    let mut world = World::new();
    world.message("bob", 1, "x");
    world.message("bob", 2, "y");
    world.server.push(Entry::Gap);
    world.connect();
    world.exchange();
    world.exchange();
    world.commit();
    assert!(world.tell(false), "the connection");
    assert!(world.tell(true));
    assert!(world.tell(false));
    world.crash();
    let mut again = Vec::new();
    while let Some(Event::News { id, .. }) = world.ledger.poll_event() {
        again.push(id.0);
    }
    assert_eq!(again, [2, 3]);
    assert_eq!(world.ledger.inbox_len(), 2);
}

#[test]
fn another_mailbox_starts_from_zero() {
    let mut world = World::new();
    world.server.next_seq = 100;
    world.message("bob", 1, "x");
    world.connect();
    world.settle();
    world.server.mailbox_id = MailboxId(78);
    world.server.next_seq = 1;
    world.message("bob", 2, "y");
    world.connect();
    world.settle();
    assert_eq!(world.received(), ["x", "y"]);
    assert!(world.server.entries.is_empty());
    world.crash();
    world.connect();
    world.settle();
    let hellos = &world.server.hellos;
    assert_eq!(hellos[0], (InstallId(4242), MailboxId(0), Seq(0)));
    assert_eq!(hellos[1], (InstallId(4242), MailboxId(77), Seq(100)));
    assert_eq!(hellos[2], (InstallId(4242), MailboxId(78), Seq(1)));
}

#[test]
fn receipts_of_another_installation_are_acknowledged_in_silence() {
    let mut world = World::new();
    for install_id in [4242, 1] {
        let (peer, up_to) = (device("bob"), SendSeq(9));
        world.server.push(Entry::Receipt { peer, install_id: InstallId(install_id), up_to });
    }
    world.connect();
    world.settle();
    assert_eq!(world.told.len(), 1);
    assert!(world.server.entries.is_empty());
}

#[test]
fn a_full_inbox_leaves_the_rest_at_the_server() {
    let config = LedgerConfig { inbox_rows_max: 3, ..LedgerConfig::default() };
    let mut world = World::with_config(config);
    for send_seq in 1..=10 {
        world.message("bob", send_seq, &send_seq.to_string());
    }
    world.connect();
    for _ in 0..3 {
        world.exchange();
        world.commit();
    }
    assert_eq!(world.server.entries.len(), 7);
    world.settle();
    assert_eq!(world.received().len(), 10);
    assert!(world.server.entries.is_empty());
    assert_eq!(world.statuses.last(), Some(&Status::CaughtUp));
}

#[test]
fn the_outbox_is_bounded() {
    let config = LedgerConfig { outbox_rows_max: 2, outbox_bytes_max: 10, ..Default::default() };
    let mut world = World::with_config(config);
    let send =
        |body: &str| NewSend { to: user("bob"), body: text(body), options: SendOptions::default() };
    world.send("bob", "12345678");
    let full = |result| matches!(result, Err(SendFault::OutboxFull(_)));
    assert!(full(world.ledger.enqueue(send("123"))));
    world.send("bob", "12");
    assert!(full(world.ledger.enqueue(send(""))));
    world.connect();
    world.settle();
    world.send("bob", "12345678");
}

/// Anything may happen between any two steps; in the end everybody has everything once, in order.
#[test]
fn random_crashes_lose_nothing_and_double_nothing() {
    for seed in 0..60 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut world = World::new();
        let mut promised: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut pending: Vec<(&str, String)> = Vec::new();
        let mut pushed = Vec::new();
        for step in 0..300 {
            let peer = ["bob", "carol"][random.random_range(0..2)];
            match random.random_range(0..20) {
                0..=4 => {
                    let body = format!("{peer} {step}");
                    world.send(peer, &body);
                    pending.push((peer, body));
                }
                5..=6 => {
                    pushed.push(format!("from {step}"));
                    world.message("bob", step + 1, &format!("from {step}"));
                }
                7..=10 => world.exchange(),
                11..=13 => {
                    world.commit();
                    for (peer, body) in pending.drain(..) {
                        promised.entry(peer).or_default().push(body);
                    }
                }
                14 => {
                    world.tell(random.random_bool(0.5));
                    for (peer, body) in pending.drain(..) {
                        // Confirming commits; without it the next step does.
                        world.commit();
                        promised.entry(peer).or_default().push(body);
                    }
                }
                15 => world.connect(),
                16 => {
                    world.crash();
                    pending.clear();
                }
                // A server that forgot may refuse what it has stored before, which nobody can tell
                // apart afterwards: one kind of trouble a seed.
                17 if seed % 2 == 0 => {
                    world.server.forget();
                    world.disconnect();
                }
                17 => {
                    if !world.server.full.remove(&user(peer)) {
                        world.server.full.insert(user(peer));
                    }
                }
                18 => world.server.is_mute = random.random_bool(0.3),
                _ => world.now_ms += random.random_range(0..5_000),
            }
        }
        world.commit();
        for (peer, body) in pending.drain(..) {
            promised.entry(peer).or_default().push(body);
        }
        world.server.full.clear();
        world.server.is_mute = false;
        // What was told and not confirmed comes again.
        world.crash();
        world.connect();
        for _ in 0..4 {
            world.settle();
            world.now_ms += 60_000;
        }
        assert_eq!(world.received(), pushed, "seed {seed}");
        for (peer, bodies) in promised {
            assert_eq!(world.taken_by(peer), bodies, "seed {seed}");
        }
        assert_eq!((world.ledger.outbox_len(), world.ledger.inbox_len()), (0, 0), "seed {seed}");
    }
}
