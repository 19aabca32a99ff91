//! Many phones, one server: mailboxes, a directory, groups; all of it in one thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redb::{Database, StorageBackend as _};
use ringpost_protocol::fault::CallFault;
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId,
};
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::message::{
    DeliverHead, DeliveredHead, DeviceList, Limits, Mode, Outcome, Recipient, RejectCode, Request,
    SendBody, SendRequest, SkipReason, Welcome, put_caught_up, put_device_list, put_outcome,
};
use ringpost_protocol::session::{ClientHello, ClientSession, ServerSession};

use crate::calls::CallError;
use crate::e2ee::bundle::{OneTimePreKey, SignedPreKey};
use crate::e2ee::{Bundle, Content, Fault, PublicIdentity};
use crate::event::{Event as Raw, EventId, News as RawNews};
use crate::ledger::{Ledger, LedgerConfig};
use crate::messenger::desk::{Desk, open_news};
use crate::messenger::directory::{Answer, Errand};
use crate::messenger::errand::unanswered;
use crate::messenger::row::Step;
use crate::messenger::{Conversation, MessageId, News, Text};
use crate::store::disk::MemoryDisk;

pub(super) struct Phone {
    pub(super) address: DeviceAddress,
    disk: MemoryDisk,
    pub(super) ledger: Ledger,
    pub(super) desk: Desk,
    wire: Option<(ClientSession, Conn)>,
    /// What the app keeps before it confirms: given again, it is the same.
    told: BTreeSet<EventId>,
    pub(super) news: Vec<News>,
}

struct Conn {
    session: ServerSession,
    inbound: BytesMut,
    is_open: bool,
}

#[derive(Clone)]
enum Entry {
    Message { from: DeviceAddress, install_id: InstallId, send: Stored, envelope: Bytes },
    Receipt { peer: DeviceAddress, group: Option<UserId>, install_id: InstallId, up_to: SendSeq },
}

#[derive(Clone)]
struct Stored {
    send_seq: SendSeq,
    number: MessageNumber,
    group: Option<UserId>,
}

#[derive(Default)]
struct Mailbox {
    entries: VecDeque<(Seq, Entry)>,
    last_seq: u64,
    install_id: InstallId,
    outcomes: BTreeMap<SendSeq, Outcome>,
}

pub(super) struct Keys {
    pub(super) identity: PublicIdentity,
    pub(super) signed: SignedPreKey,
    pub(super) one_time: VecDeque<OneTimePreKey>,
}

#[derive(Default)]
pub(super) struct Server {
    mailboxes: BTreeMap<DeviceAddress, Mailbox>,
    pub(super) lists: BTreeMap<UserId, Vec<u8>>,
    list_versions: BTreeMap<UserId, u64>,
    list_devices: BTreeMap<UserId, Vec<DeviceId>>,
    roster_versions: BTreeMap<UserId, u64>,
    /// Sends that were refused, or stored for some devices only, as they were out of date.
    pub(super) stale_sends: usize,
    /// Does not push the lists that senders do not know.
    pub(super) is_silent: bool,
    pub(super) keys: BTreeMap<DeviceAddress, Keys>,
    pub(super) groups: BTreeMap<UserId, BTreeSet<UserId>>,
    /// Everything that went through it.
    pub(super) seen: Vec<Bytes>,
    /// Makes no more groups.
    pub(super) is_full: bool,
    /// Lists that it was asked for.
    pub(super) asked_lists: usize,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) server: Server,
    pub(super) phones: BTreeMap<&'static str, Phone>,
    pub(super) now_ms: u64,
    /// Decides where phones lose power, if they do.
    pub(super) power: Option<StdRng>,
}

pub(super) fn id(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub(super) fn phone(user: &str) -> DeviceAddress {
    DeviceAddress { user: id(user), device: DeviceId::new("phone").unwrap() }
}

pub(super) fn with(user: &str) -> Conversation {
    Conversation::Direct(id(user))
}

impl Phone {
    fn new(address: DeviceAddress, now_ms: u64) -> Self {
        let disk = MemoryDisk::new();
        let (ledger, desk) = open(&disk, &address, now_ms);
        Self { address, disk, ledger, desk, wire: None, told: BTreeSet::new(), news: Vec::new() }
    }

    fn crash(&mut self, now_ms: u64) {
        self.disk.crash();
        self.wire = None;
        (self.ledger, self.desk) = open(&self.disk, &self.address, now_ms);
    }

    fn commit(&mut self, now_ms: u64) {
        self.desk.turn(now_ms, &mut self.ledger);
        self.ledger.commit(now_ms).unwrap();
        while let Some(event) = self.ledger.poll_event() {
            if let Raw::News { id, news: RawNews::Sealed(sealed) } = event {
                if self.told.insert(id) {
                    self.news.push(open_news(self.desk.key(), &sealed).unwrap());
                }
                self.ledger.confirm(id);
            }
        }
    }

    /// All that is on its disk.
    pub(super) fn disk_bytes(&self) -> Vec<u8> {
        let backend = self.disk.backend();
        let mut bytes = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
        backend.read(0, &mut bytes).unwrap();
        bytes
    }

    pub(super) fn reopen_with(&self, key: [u8; 32]) -> Option<Fault> {
        self.disk.crash();
        let database = Database::builder().create_with_backend(self.disk.backend()).unwrap();
        let mut ledger = Ledger::open(database, LedgerConfig::default(), 1).unwrap();
        Desk::open(key, self.address.clone(), 0, &mut ledger).err()
    }

    pub(super) fn texts(&self) -> Vec<&Text> {
        let texts = self.news.iter().filter_map(|news| match news {
            News::Text(text) => Some(text),
            _ => None,
        });
        texts.collect()
    }

    pub(super) fn read_texts(&self) -> Vec<&str> {
        self.texts().into_iter().map(|text| text.text.as_str()).collect()
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        let reasons = self.news.iter().filter_map(|news| match news {
            News::Undecryptable { reason, .. }
            | News::Refused { reason, .. }
            | News::IdentityChanged { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        reasons.collect()
    }
}

fn open(disk: &MemoryDisk, address: &DeviceAddress, now_ms: u64) -> (Ledger, Desk) {
    let database = Database::builder().create_with_backend(disk.backend()).unwrap();
    let mut ledger = Ledger::open(database, LedgerConfig::default(), rand::random()).unwrap();
    let desk = Desk::open([7; 32], address.clone(), now_ms, &mut ledger).unwrap();
    ledger.commit(now_ms).unwrap();
    (ledger, desk)
}

impl World {
    pub(super) fn of(names: &[&'static str]) -> Self {
        let mut world = Self { now_ms: 1_700_000_000_000, ..Self::default() };
        for name in names {
            world.phones.insert(name, Phone::new(phone(name), world.now_ms));
        }
        world
    }

    /// From now on phones lose power now and then, between any two steps.
    pub(super) fn cut_power(&mut self, seed: u64) {
        self.power = Some(StdRng::seed_from_u64(seed));
    }

    /// A new device of a user, by a name of its own.
    pub(super) fn add(&mut self, name: &'static str, user: &str, device: &str) {
        let address = DeviceAddress { user: id(user), device: DeviceId::new(device).unwrap() };
        self.phones.insert(name, Phone::new(address, self.now_ms));
    }

    pub(super) fn phone(&mut self, name: &str) -> &mut Phone {
        self.phones.get_mut(name).unwrap()
    }

    pub(super) fn say(&mut self, from: &str, to: Conversation, text: &str) -> MessageId {
        let now_ms = self.now_ms;
        let phone = self.phones.get_mut(from).unwrap();
        let id = phone.desk.write(now_ms, to, Content::Text(text.into())).unwrap();
        phone.commit(now_ms);
        id
    }

    pub(super) fn crash(&mut self, name: &str) {
        let now_ms = self.now_ms;
        self.phone(name).crash(now_ms);
    }

    /// One phone is online until nothing more happens, then goes.
    pub(super) fn visit(&mut self, name: &str) {
        for _ in 0..15 {
            self.step(name);
        }
        self.phone(name).wire = None;
        self.phone(name).ledger.connection_ended();
    }

    /// Everybody in turn, a few times.
    pub(super) fn settle(&mut self) {
        for _ in 0..6 {
            let names: Vec<_> = self.phones.keys().copied().collect();
            for name in names {
                self.visit(name);
            }
        }
    }

    /// Connects when it is not, does all errands, sends and receives once.
    pub(super) fn step(&mut self, name: &str) {
        self.now_ms += 100;
        let now_ms = self.now_ms;
        let power = &mut self.power;
        let mut is_cut = || power.as_mut().is_some_and(|rng| rng.random_ratio(1, 5));
        let phone = self.phones.get_mut(name).unwrap();
        if phone.wire.is_none() {
            connect(phone, now_ms);
        }
        phone.commit(now_ms);
        self.server.exchange(phone, now_ms);
        let mut errands = 0;
        while let Some((wish, errand)) = phone.desk.next_errand(now_ms) {
            errands += 1;
            assert!(errands < 100, "{name} asks without end: {errand:?}");
            if is_cut() {
                return phone.crash(now_ms);
            }
            phone.commit(now_ms);
            let answer = self.server.answer(&phone.address, &errand);
            if is_cut() {
                return phone.crash(now_ms);
            }
            let ledger = &mut phone.ledger;
            phone.desk.handle_answer(now_ms, ledger, &wish, &errand, answer);
            phone.commit(now_ms);
        }
        for _ in 0..3 {
            self.server.exchange(phone, now_ms);
            if is_cut() {
                return phone.crash(now_ms);
            }
            phone.commit(now_ms);
            if is_cut() {
                return phone.crash(now_ms);
            }
        }
    }
}

fn connect(phone: &mut Phone, now_ms: u64) {
    let identity = phone.ledger.identity();
    let hello = ClientHello {
        token: "t".into(),
        device: phone.address.device.clone(),
        install_id: identity.install_id,
        mailbox_id: identity.mailbox_id,
        acked_up_to: identity.acked_up_to,
        mode: Mode::Foreground,
        capabilities: 0,
    };
    let session = ServerSession::new(now_ms);
    let conn = Conn { session, inbound: BytesMut::new(), is_open: false };
    phone.wire = Some((ClientSession::new(now_ms, hello), conn));
    phone.desk.handle_connected();
}

impl Server {
    fn answer(&mut self, from: &DeviceAddress, errand: &Errand) -> Answer {
        match errand {
            Errand::CountKeys => {
                let count = self.keys.get(from).map_or(0, |keys| keys.one_time.len());
                Answer::KeyCount(count.try_into().unwrap())
            }
            Errand::PublishKeys { identity, keys } => {
                let known = self.keys.remove(from);
                let signed =
                    keys.signed.or_else(|| known.as_ref().map(|known| known.signed)).unwrap();
                let mut one_time = known.map_or_else(VecDeque::new, |known| known.one_time);
                let new = keys.one_time.iter().filter(|key| one_time.iter().all(|k| k != *key));
                let new: Vec<_> = new.copied().collect();
                one_time.extend(new);
                self.keys.insert(from.clone(), Keys { identity: *identity, signed, one_time });
                Answer::Done
            }
            Errand::PutList { version, signed, devices } => {
                let stored = self.list_versions.get(&from.user).copied().unwrap_or(0);
                if *version != stored + 1 {
                    return Answer::Refused("conflict".into());
                }
                self.put_list(from, signed.clone(), devices.clone());
                Answer::Done
            }
            Errand::GetList(user) => {
                self.asked_lists += 1;
                Answer::List(self.lists.get(user).cloned())
            }
            Errand::FetchKeys(user, devices) => {
                let bundles = devices.iter().filter_map(|device| self.bundle(user, device));
                Answer::Bundles(bundles.collect())
            }
            Errand::GetRoster(group) => match self.groups.get(group) {
                Some(members) if members.contains(&from.user) => {
                    Answer::Roster(self.roster_version(group), members.clone())
                }
                _ => Answer::Refused("no member".into()),
            },
            // Not sent: the server would end the connection.
            Errand::Group(_, Step::Add(users)) if users.is_empty() => {
                unanswered(errand, &CallError::Invalid(CallFault::Missing("users").into()))
            }
            Errand::Group(_, Step::Create(_)) if self.is_full => Answer::Refused("full".into()),
            Errand::Group(group, step) => {
                self.change(from, group, step);
                Answer::Done
            }
        }
    }

    fn bundle(
        &mut self,
        user: &UserId,
        device: &DeviceId,
    ) -> Option<(DeviceId, Result<Bundle, Fault>)> {
        let address = DeviceAddress { user: user.clone(), device: device.clone() };
        let keys = self.keys.get_mut(&address)?;
        let one_time = keys.one_time.pop_front();
        Some((device.clone(), Bundle::new(keys.identity, keys.signed, one_time)))
    }

    pub(super) fn put_list(
        &mut self,
        from: &DeviceAddress,
        signed: Vec<u8>,
        devices: Vec<DeviceId>,
    ) {
        *self.list_versions.entry(from.user.clone()).or_default() += 1;
        self.lists.insert(from.user.clone(), signed);
        self.list_devices.insert(from.user.clone(), devices);
    }

    fn roster_version(&self, group: &UserId) -> u64 {
        self.roster_versions.get(group).copied().unwrap_or(1)
    }

    fn change(&mut self, from: &DeviceAddress, group: &UserId, step: &Step) {
        let members = self.groups.entry(group.clone()).or_default();
        let before = members.clone();
        match step {
            Step::Create(users) => {
                members.insert(from.user.clone());
                members.extend(users.iter().cloned());
            }
            Step::Add(users) => members.extend(users.iter().cloned()),
            Step::Remove(users) => members.retain(|user| !users.contains(user)),
            Step::Leave => drop(members.remove(&from.user)),
        }
        if *members != before {
            *self.roster_versions.entry(group.clone()).or_default() += 1;
        }
    }

    fn exchange(&mut self, phone: &mut Phone, now_ms: u64) {
        let Some((session, conn)) = &mut phone.wire else { return };
        while phone.ledger.transmit(session) {}
        let (mut up, mut down) = (Vec::new(), Vec::new());
        session.poll_transmit(now_ms, &mut up);
        self.handle(&phone.address, conn, &up, &mut down);
        self.deliver(&phone.address, conn, &mut down);
        session.handle_data(now_ms, &mut BytesMut::from(&down[..])).unwrap();
        while let Some(event) = session.poll_event() {
            phone.desk.handle_event(&mut phone.ledger, &event);
            phone.ledger.handle_event(now_ms, event).unwrap();
        }
    }

    fn handle(&mut self, from: &DeviceAddress, conn: &mut Conn, data: &[u8], out: &mut Vec<u8>) {
        conn.inbound.extend_from_slice(data);
        while let Some(frame) = split_frame(&mut conn.inbound, FRAME_BYTES_MAX).unwrap() {
            match conn.session.handle_frame(0, frame, out).unwrap() {
                Some(Request::Hello(hello)) => {
                    let mailbox = self.mailboxes.entry(from.clone()).or_default();
                    mailbox.install_id = hello.install_id;
                    if hello.mailbox_id == MailboxId(7) {
                        self.acknowledge(from, hello.acked_up_to);
                    }
                    let welcome = Welcome {
                        mailbox_id: MailboxId(7),
                        heartbeat_ms: 30_000,
                        server_time_ms: 1,
                        limits: Limits::of_protocol(),
                        capabilities: 0,
                    };
                    conn.session.welcome(0, u64::MAX, &welcome, out);
                    conn.is_open = true;
                    self.deliver(from, conn, out);
                    put_caught_up(out);
                }
                Some(Request::Send(send)) => {
                    let send_seq = send.send_seq;
                    let stale = self.stale_list(&send);
                    let outcome = self.take(from, send);
                    put_outcome(out, send_seq, &outcome);
                    if let Some(list) = stale.filter(|_| !self.is_silent) {
                        put_device_list(out, list);
                    }
                }
                Some(Request::Ack { up_to }) => self.acknowledge(from, up_to),
                _ => {}
            }
        }
    }

    /// The present list, if a sender does not know it.
    fn stale_list(&self, send: &SendRequest) -> Option<DeviceList> {
        let Recipient::User(user) = &send.to else { return None };
        let version = *self.list_versions.get(user)?;
        let is_stale = send.device_list_version != 0 && send.device_list_version < version;
        let (devices, signed_list) =
            (self.list_devices[user].clone(), self.lists[user].clone().into());
        is_stale.then(|| DeviceList { user: user.clone(), version, devices, signed_list })
    }

    fn take(&mut self, from: &DeviceAddress, send: SendRequest) -> Outcome {
        let mailbox = self.mailboxes.get(from).unwrap();
        if let Some(outcome) = mailbox.outcomes.get(&send.send_seq) {
            return outcome.clone();
        }
        let install_id = mailbox.install_id;
        let is_other = |to: &&DeviceAddress| *to != from;
        let (group, to): (_, Vec<(DeviceAddress, Bytes)>) = match (&send.to, &send.body) {
            (Recipient::User(user), SendBody::PerDevice(envelopes)) => {
                let address = |device: &DeviceId| DeviceAddress {
                    user: user.clone(),
                    device: device.clone(),
                };
                let to = envelopes.iter().map(|(device, bytes)| (address(device), bytes.clone()));
                (None, to.collect())
            }
            (Recipient::Group(group), SendBody::Shared(envelope)) => {
                let members = self.groups.get(group).cloned().unwrap_or_default();
                let to = self.mailboxes.keys().filter(|to| members.contains(&to.user));
                let to = to.filter(is_other).map(|to| (to.clone(), envelope.clone()));
                (Some(group.clone()), to.collect())
            }
            other => panic!("a messenger does not send {other:?}"),
        };
        let is_old = send.roster_version != 0
            && group
                .as_ref()
                .is_some_and(|group| self.roster_version(group) != send.roster_version);
        let present = self.stale_list(&send);
        self.stale_sends += usize::from(is_old || present.is_some());
        let mut skipped = Vec::new();
        if let Some(DeviceList { user, devices, .. }) = &present {
            let named = |device: &DeviceId| to.iter().any(|(to, _)| to.device == *device);
            let is_sender = |device: &DeviceId| from.user == *user && from.device == *device;
            let missing = devices.iter().filter(|device| !named(device) && !is_sender(device));
            let gone = to.iter().map(|(to, _)| &to.device).filter(|of| !devices.contains(of));
            skipped.extend(
                missing.chain(gone).cloned().map(|of| (user.clone(), of, SkipReason::Stale)),
            );
        }
        let mut stored_count = 0;
        for (to, envelope) in to {
            let is_gone = present.as_ref().is_some_and(|list| !list.devices.contains(&to.device));
            if is_old || is_gone {
                continue;
            }
            self.seen.push(envelope.clone());
            let Some(mailbox) = self.mailboxes.get_mut(&to) else { continue };
            let (send_seq, number) = (send.send_seq, send.message_number);
            let stored = Stored { send_seq, number, group: group.clone() };
            mailbox.push(Entry::Message { from: from.clone(), install_id, send: stored, envelope });
            stored_count += 1;
        }
        let outcome = match stored_count {
            0 if is_old => {
                Outcome::Rejected { code: RejectCode::StaleRoster, retry_after_ms: None }
            }
            0 if present.is_some() => {
                Outcome::Rejected { code: RejectCode::StaleDevices, retry_after_ms: None }
            }
            0 => Outcome::Rejected { code: RejectCode::UnknownRecipient, retry_after_ms: None },
            _ => Outcome::Accepted { server_time_ms: 1, skipped },
        };
        let mailbox = self.mailboxes.get_mut(from).unwrap();
        mailbox.outcomes.insert(send.send_seq, outcome.clone());
        outcome
    }

    fn acknowledge(&mut self, device: &DeviceAddress, up_to: Seq) {
        let mailbox = self.mailboxes.get_mut(device).unwrap();
        let mut gone = Vec::new();
        while mailbox.entries.front().is_some_and(|(seq, _)| *seq <= up_to) {
            gone.push(mailbox.entries.pop_front().unwrap().1);
        }
        for entry in gone {
            let Entry::Message { from, install_id, send, .. } = entry else { continue };
            let (peer, group, up_to) = (device.clone(), send.group, send.send_seq);
            let receipt = Entry::Receipt { peer, group, install_id, up_to };
            self.mailboxes.get_mut(&from).unwrap().push(receipt);
        }
    }

    fn deliver(&self, to: &DeviceAddress, conn: &mut Conn, out: &mut Vec<u8>) {
        if !conn.is_open {
            return;
        }
        for (seq, entry) in &self.mailboxes[to].entries {
            if *seq <= conn.session.sent_up_to() {
                continue;
            }
            match entry {
                Entry::Message { from, install_id, send, envelope } => {
                    let head = DeliverHead {
                        seq: *seq,
                        from_user: from.user.as_str(),
                        from_device: from.device.as_str(),
                        install_id: *install_id,
                        send_seq: send.send_seq,
                        message_number: send.number,
                        sent_at_ms: 1,
                        group: send.group.as_ref().map(UserId::as_str),
                        urgent: false,
                    };
                    conn.session.deliver(out, &head, envelope);
                }
                Entry::Receipt { peer, group, install_id, up_to } => {
                    let head = DeliveredHead {
                        seq: *seq,
                        peer,
                        group: group.as_ref().map(UserId::as_str),
                        install_id: *install_id,
                        up_to_send_seq: *up_to,
                    };
                    conn.session.delivered(out, &head);
                }
            }
        }
    }

    /// What an attacker who owns the server puts into a mailbox.
    pub(super) fn inject(
        &mut self,
        to: &DeviceAddress,
        from: &DeviceAddress,
        group: Option<&str>,
        envelope: &[u8],
    ) {
        let mailbox = self.mailboxes.get_mut(to).unwrap();
        let number = 1_000_000 + mailbox.last_seq;
        let send = Stored {
            send_seq: SendSeq(number),
            number: MessageNumber(number),
            group: group.map(id),
        };
        let envelope = Bytes::copy_from_slice(envelope);
        let install_id = InstallId(number);
        mailbox.push(Entry::Message { from: from.clone(), install_id, send, envelope });
    }

    /// Envelopes that wait for a device.
    pub(super) fn envelopes(&mut self, to: &DeviceAddress) -> Vec<&mut Bytes> {
        let entries = self.mailboxes.get_mut(to).unwrap().entries.iter_mut();
        let envelopes = entries.filter_map(|(_, entry)| match entry {
            Entry::Message { envelope, .. } => Some(envelope),
            Entry::Receipt { .. } => None,
        });
        envelopes.collect()
    }
}

impl Mailbox {
    fn push(&mut self, entry: Entry) {
        self.last_seq += 1;
        self.entries.push_back((Seq(self.last_seq), entry));
    }
}
