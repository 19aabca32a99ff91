//! What connections ask of the directory, at the home shard of their users.
//!
//! A request goes out at once or is refused: it never waits here, and its connection goes on. Its
//! answer comes through the inbound queue, and only then is its client told.

use ringpost_protocol::id::{DeviceAddress, UserId};
use ringpost_protocol::message::{self, Call, DeviceListPut, ErrorCode, GoAwayReason, Reply};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;
use slab::Slab;

use super::Shard;
use super::conn::ConnKey;
use super::lists::ListReader;
use super::message::{DeviceIndex, KeysLowNews, MeshMessage};
use crate::directory::{Answer, Answered, DirectoryPort, Request, TakenBundle};
use crate::limits::{CONNECTION_REQUESTS_MAX, DIRECTORY_REQUESTS_MAX, ONE_TIME_KEYS_LOW};
use crate::metrics::Bound;

/// Requests to the directory that are not answered.
pub(super) struct Inquiries {
    port: Option<Box<dyn DirectoryPort>>,
    waiting: Slab<Inquirer>,
}

/// Who waits for an answer.
pub(super) enum Inquirer {
    /// A frame of a connection.
    Frame { key: ConnKey, request_id: u64 },
    /// The same, and the answer is about this user.
    About { key: ConnKey, request_id: u64, user: UserId },
    /// A connection that has put a list of its user.
    PutList { key: ConnKey, request_id: u64, user: UserId, list: DeviceListPut },
    /// Somebody who reads a list that is not in memory.
    List { reader: ListReader, user: UserId },
    /// Sends to this user, which wait for its list.
    ListWaits { user: UserId },
    /// The requests to a group, which wait for its roster.
    Reading { group: UserId },
    /// The same, while a new version is being stored.
    Writing { group: UserId },
    /// A connection that was welcomed: it is told if its device has few keys left.
    Welcomed { key: ConnKey },
}

impl Inquiries {
    pub(super) fn new(port: Option<Box<dyn DirectoryPort>>) -> Self {
        Self { port, waiting: Slab::new() }
    }

    pub(super) fn has_port(&self) -> bool {
        self.port.is_some()
    }

    pub(super) fn unanswered(&self) -> usize {
        self.waiting.len()
    }
}

impl<R: Ring> Shard<R> {
    /// Takes a request of a connection: its answer comes later, or it is refused now.
    pub(super) fn handle_call(
        &mut self,
        key: ConnKey,
        device: DeviceIndex,
        request_id: u64,
        call: Call,
    ) {
        if self.inquiries.port.is_none() {
            return self.refuse_call(key, ErrorCode::Unsupported, "not served", request_id);
        }
        let conn = self.conns.get(key).expect("its frame is being handled");
        if conn.inquiries >= CONNECTION_REQUESTS_MAX {
            self.metrics.bound_hits.add(Bound::DirectoryRequests);
            let text = "too many requests of this connection are unanswered";
            return self.refuse_call(key, ErrorCode::LimitReached, text, request_id);
        }
        // A change is a durable write, as a Send is, and counts as one.
        let is_change = matches!(call, Call::KeysPublish(_) | Call::DeviceListPut(_));
        if is_change && self.take_send(key, device).is_err() {
            return self.refuse_call(key, ErrorCode::LimitReached, TOO_FAST, request_id);
        }
        let home = self.home.as_ref().expect("an open connection is at home");
        let owner = home.device(device).address.clone();
        let (inquirer, request) = match call {
            Call::KeysPublish(keys) => {
                (Inquirer::Frame { key, request_id }, Request::Publish { owner, keys })
            }
            Call::KeyCount => (Inquirer::Frame { key, request_id }, Request::Count { owner }),
            Call::KeysFetch { user, devices } => {
                if !self.may_read(key, device, &user) {
                    let code = ErrorCode::LimitReached;
                    return self.refuse_call(key, code, TOO_MANY_READ, request_id);
                }
                let except = (user == owner.user).then_some(owner.device);
                let keys_per_hour = self.limits.device_one_time_keys;
                let inquirer = Inquirer::About { key, request_id, user: user.clone() };
                (inquirer, Request::Fetch { user, devices, except, keys_per_hour })
            }
            Call::DeviceListPut(list) => {
                let user = owner.user;
                let inquirer =
                    Inquirer::PutList { key, request_id, user: user.clone(), list: list.clone() };
                (inquirer, Request::PutList { user, list })
            }
            Call::DeviceListGet { user } => {
                return self.begin_get_list(key, device, request_id, user);
            }
            _ => return self.refuse_call(key, ErrorCode::Unsupported, "not served", request_id),
        };
        if self.inquire(inquirer, request).is_err() {
            return self.refuse_call(key, ErrorCode::LimitReached, BUSY, request_id);
        }
        self.begin_inquiry(key);
    }

    fn begin_get_list(&mut self, key: ConnKey, device: DeviceIndex, request_id: u64, user: UserId) {
        if !self.may_read(key, device, &user) {
            return self.refuse_call(key, ErrorCode::LimitReached, TOO_MANY_READ, request_id);
        }
        self.begin_inquiry(key); // it may be answered in the same call
        if !self.get_list(key, request_id, user) {
            self.end_inquiry(key);
            self.refuse_call(key, ErrorCode::LimitReached, BUSY, request_id);
        }
    }

    pub(super) fn begin_inquiry(&mut self, key: ConnKey) {
        let conn = self.conns.get_mut(key).expect("its frame is being handled");
        conn.inquiries += 1;
    }

    /// Whether the user of `device` may read something of `user`: so that nobody reads through all
    /// users. What is his own is free.
    fn may_read(&mut self, key: ConnKey, device: DeviceIndex, user: &UserId) -> bool {
        if self.conns.get(key).is_none_or(|conn| conn.is_exempt) {
            return true;
        }
        let home = self.home.as_mut().expect("an open connection is at home");
        let reader = home.device(device);
        if reader.address.user == *user {
            return true;
        }
        let reader = reader.user as usize;
        let rate = self.limits.user_key_reads;
        let taken = home.key_rates[reader].take_of_hour(rate, self.time.now_ms, 1);
        if taken.is_err() {
            self.metrics.bound_hits.add(Bound::UserKeyReads);
        }
        taken.is_ok()
    }

    /// Asks the directory. `Err`: as many requests as allowed are unanswered.
    pub(super) fn inquire(&mut self, inquirer: Inquirer, request: Request) -> Result<(), Inquirer> {
        let Inquiries { port, waiting } = &mut self.inquiries;
        let Some(port) = port else { return Err(inquirer) };
        if waiting.len() >= DIRECTORY_REQUESTS_MAX {
            self.metrics.bound_hits.add(Bound::DirectoryRequests);
            return Err(inquirer);
        }
        let ticket = waiting.insert(inquirer);
        port.ask(u32::try_from(ticket).expect("bounded by DIRECTORY_REQUESTS_MAX"), request);
        Ok(())
    }

    pub(super) fn handle_answered(&mut self, answered: Answered) {
        let Answered { ticket, answer } = answered;
        match self.inquiries.waiting.remove(ticket as usize) {
            Inquirer::Frame { key, request_id } => {
                self.end_inquiry(key);
                self.answer_frame(key, request_id, answer);
            }
            Inquirer::About { key, request_id, user } => {
                self.end_inquiry(key);
                self.answer_about(key, request_id, &user, answer);
            }
            Inquirer::PutList { key, request_id, user, list } => {
                self.end_inquiry(key);
                self.handle_list_put(&user, list, &answer);
                self.answer_frame(key, request_id, answer);
            }
            Inquirer::List { reader, user } => self.handle_list(reader, user, answer),
            Inquirer::ListWaits { user } => self.handle_awaited_list(&user, answer),
            Inquirer::Reading { group } => self.roster_answered(&group, answer),
            Inquirer::Writing { group } => self.roster_written(&group, &answer),
            Inquirer::Welcomed { key } => {
                if let Answer::Stock(Some(stock)) = answer {
                    self.warn_of_stock(key, stock);
                }
            }
        }
    }

    pub(super) fn end_inquiry(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && !is_active(Mutant::RequestSlotLeaked)
        {
            conn.inquiries -= 1;
        }
    }

    fn answer_frame(&mut self, key: ConnKey, request_id: u64, answer: Answer) {
        match answer {
            Answer::Published { .. } | Answer::Stored { .. } => {
                self.put_reply(key, request_id, &Reply::Done);
            }
            Answer::Stock(stock) => {
                let reply = Reply::KeysLow { remaining_count: stock.unwrap_or(0) };
                self.put_reply(key, request_id, &reply);
            }
            Answer::NoIdentity => {
                let text = "no identity key is published";
                self.refuse_call(key, ErrorCode::NotFound, text, request_id);
            }
            Answer::StockFull => {
                let text = "the stock of one-time keys, or the number of devices, is too large";
                self.refuse_call(key, ErrorCode::LimitReached, text, request_id);
            }
            Answer::Conflict { version } => {
                let text = format!("the stored version is {version}");
                self.refuse_call(key, ErrorCode::Conflict, &text, request_id);
            }
            Answer::Failed => self.directory_failed(key),
            Answer::Bundles(_) | Answer::List(_) | Answer::Roster { .. } => {
                unreachable!("answers of requests about a user or a group")
            }
        }
    }

    fn answer_about(&mut self, key: ConnKey, request_id: u64, user: &UserId, answer: Answer) {
        match answer {
            Answer::Bundles(taken) => {
                self.tell_owners(user, &taken);
                let bundles = taken.into_iter().map(|taken| taken.bundle).collect();
                let reply = Reply::KeyBundles { user: user.clone(), bundles };
                self.put_reply(key, request_id, &reply);
            }
            Answer::Failed => self.directory_failed(key),
            other => unreachable!("no answer of a request about a user: {other:?}"),
        }
    }

    /// Nobody knows whether a request was carried out; its client asks again on another connection.
    fn directory_failed(&mut self, key: ConnKey) {
        self.send_away(key, GoAwayReason::Storage);
    }

    pub(super) fn refuse_call(
        &mut self,
        key: ConnKey,
        code: ErrorCode,
        text: &str,
        request_id: u64,
    ) {
        self.put(key, |out| message::put_error(out, code, text, false, request_id));
    }

    pub(super) fn put_reply(&mut self, key: ConnKey, request_id: u64, reply: &Reply) {
        self.put(key, |out| message::put_reply(out, request_id, reply));
    }

    /// Puts a frame out on a welcomed connection, if it is still there.
    pub(super) fn put(&mut self, key: ConnKey, frame: impl FnOnce(&mut Vec<u8>)) {
        if let Some(conn) = self.conns.get_mut(key)
            && conn.device().is_some()
        {
            self.spare_out.lend(&mut conn.out);
            frame(&mut conn.out);
            self.mark_dirty(key);
        }
    }

    /// A connection is welcomed: it hears of its stock if that is low. Left out when the directory is
    /// busy: the warnings as keys are taken come all the same.
    pub(super) fn count_keys(&mut self, key: ConnKey, device: DeviceIndex) {
        let is_busy = self.inquiries.waiting.len() >= DIRECTORY_REQUESTS_MAX / 2;
        if self.inquiries.port.is_some() && !is_busy {
            let home = self.home.as_ref().expect("an open connection is at home");
            let owner = home.device(device).address.clone();
            let _ = self.inquire(Inquirer::Welcomed { key }, Request::Count { owner });
        }
    }

    fn warn_of_stock(&mut self, key: ConnKey, remaining: u32) {
        if remaining < ONE_TIME_KEYS_LOW {
            self.put(key, |out| message::put_keys_low(out, remaining));
        }
    }

    /// Devices whose keys were taken hear of it when few are left.
    fn tell_owners(&mut self, user: &UserId, taken: &[TakenBundle]) {
        let to_shard = self.home_of(user);
        for news in taken.iter().filter_map(|taken| KeysLowNews::of(user, taken)) {
            if to_shard == self.id {
                self.warn_owner(&news.owner, news.remaining);
            } else if self.mesh.reserve(to_shard).is_ok() {
                self.push_mesh(to_shard, MeshMessage::KeysLow(Box::new(news)));
            } else {
                // The next key taken, or the next Welcome, tells it.
                self.metrics.bound_hits.add(Bound::MeshCredits);
            }
        }
    }

    /// Another shard has given out keys of a device that lives here.
    pub(super) fn handle_keys_low(&mut self, from: u16, news: KeysLowNews) {
        self.push_mesh(from, MeshMessage::KeysLowTaken);
        self.warn_owner(&news.owner, news.remaining);
    }

    pub(super) fn warn_owner(&mut self, owner: &DeviceAddress, remaining: u32) {
        let home = self.home.as_ref().expect("keys are low at the home of their owner");
        let attached = home
            .find(&owner.user, &owner.device)
            .and_then(|index| home.device(index).attached.as_ref());
        if let Some(key) = attached.map(|attached| attached.conn) {
            self.warn_of_stock(key, remaining);
        }
    }
}

pub(super) const TOO_FAST: &str = "this user asks too fast";
pub(super) const BUSY: &str = "the directory is busy: try again in a while";
const TOO_MANY_READ: &str = "this user has read keys or device lists of too many users";
