//! Signed device lists at the home shards of their users: read through a cache, and changed in the
//! directory and then there before the change is answered.

use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{DeviceList, DeviceListPut, ErrorCode, Reply};
use ringpost_ring::Ring;

use super::Shard;
use super::cache::Cache;
use super::conn::ConnKey;
use super::directory::{BUSY, Inquirer};
use super::message::{ListReply, ListRequest, MeshMessage};
use crate::directory::{Answer, Request};
use crate::limits::MESH_CREDITS;
use crate::metrics::Bound;

/// The lists of users whose home this is. Of version 0: the user has none.
pub(super) type ListCache = Cache<DeviceListPut>;

/// Who wants to read a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListReader {
    /// The shard of the connection.
    pub(super) shard: u16,
    pub(super) key: ConnKey,
    pub(super) request_id: u64,
}

impl<R: Ring> Shard<R> {
    /// A connection here wants to read the list of `user`. False: not now.
    pub(super) fn get_list(&mut self, key: ConnKey, request_id: u64, user: UserId) -> bool {
        let reader = ListReader { shard: self.id, key, request_id };
        let to_shard = self.home_of(&user);
        if to_shard == self.id {
            self.read_list(reader, user);
            return true;
        }
        // The directory may take long to answer; half of the credits are never lent to that.
        let is_short = self.mesh.credits(to_shard) <= MESH_CREDITS / 2;
        if is_short || self.mesh.reserve(to_shard).is_err() {
            self.metrics.bound_hits.add(Bound::MeshCredits);
            return false;
        }
        let request = ListRequest { reader, user };
        self.push_mesh(to_shard, MeshMessage::GetList(Box::new(request)));
        true
    }

    /// The home of `user` is here: the list is in memory, or is read now.
    pub(super) fn read_list(&mut self, reader: ListReader, user: UserId) {
        let home = self.home.as_mut().expect("lists are read at home shards");
        if let Some(list) = home.lists.get(&user).cloned() {
            return self.answer_list(reader, user, Some(list));
        }
        let request = Request::GetList { user: user.clone() };
        if self.inquire(Inquirer::List { reader, user: user.clone() }, request).is_err() {
            self.answer_list(reader, user, None);
        }
    }

    /// The directory has read a list.
    pub(super) fn handle_list(&mut self, reader: ListReader, user: UserId, answer: Answer) {
        let Answer::List(list) = answer else { return self.answer_list(reader, user, None) };
        self.install_list(&user, list.clone());
        self.answer_list(reader, user, Some(list));
    }

    /// The directory has answered to a new list.
    pub(super) fn handle_list_put(&mut self, user: &UserId, list: DeviceListPut, answer: &Answer) {
        let home = self.home.as_mut().expect("lists are put at home shards");
        match answer {
            Answer::Stored { .. } => self.install_list(user, list),
            Answer::Failed => home.forget_list(user),
            _ => {}
        }
    }

    /// Answers come in the order of the requests, so that a later one is never older.
    pub(super) fn install_list(&mut self, user: &UserId, list: DeviceListPut) {
        let home = self.home.as_mut().expect("lists are read at home shards");
        home.note_list(user, &list);
        let names: usize = list.devices.iter().map(|device| device.as_str().len()).sum();
        let bytes = list.signed_list.len() + names;
        for _ in 0..home.lists.put(user, list, bytes) {
            self.metrics.bound_hits.add(Bound::DeviceListCache);
        }
    }

    fn answer_list(&mut self, reader: ListReader, user: UserId, list: Option<DeviceListPut>) {
        let list = list.map(|list| {
            let DeviceListPut { version, devices, signed_list } = list;
            DeviceList { user, version, devices, signed_list }
        });
        let reply = ListReply { reader, list };
        if reader.shard == self.id {
            self.tell_list(reply);
        } else {
            self.push_mesh(reader.shard, MeshMessage::List(Box::new(reply)));
        }
    }

    /// A list has come to the shard of its reader.
    pub(super) fn tell_list(&mut self, reply: ListReply) {
        let ListReply { reader: ListReader { key, request_id, .. }, list } = reply;
        self.end_inquiry(key);
        match list {
            Some(list) => self.put_reply(key, request_id, &Reply::DeviceList(list)),
            None => self.refuse_call(key, ErrorCode::LimitReached, BUSY, request_id),
        }
    }
}
