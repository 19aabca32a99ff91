//! What an app asks for beside messages: it publishes keys, takes those of others, keeps its device
//! list, and makes and changes groups.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_engine::limits::CONNECTION_REQUESTS_MAX;
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::{
    Call, ClientEvent, DeviceListPut, ErrorCode, GroupState, KeysPublish, PublicKey, Reply,
};

use super::client::Client;
use super::clock::Stream;
use super::connection::Asked;
use super::oracle::Oracle;
use super::registry::one_time_key;
use super::ring::Host;
use super::shape::Shape;

/// What one app keeps for that; it survives everything.
pub struct Scribe {
    client: usize,
    address: DeviceAddress,
    random: Stream,
    last_request: u64,
    /// The first one-time key that is not known to be published.
    pending_from: u32,
    /// Of the own list; `None`: it must be asked for.
    own_version: Option<u64>,
    /// Versions of device lists that it has seen, when it names them to the gateway and leaves devices
    /// out of its own.
    lists: Option<(Stream, BTreeMap<UserId, u64>)>,
    /// Rosters as this app has last seen them.
    pub(super) views: BTreeMap<UserId, GroupState>,
}

impl Scribe {
    pub fn new(seed: u64, client: usize, address: DeviceAddress, shape: &Shape) -> Self {
        let lists = Stream::new(seed, &format!("lists {client}"));
        Self {
            lists: shape.names_lists.then(|| (lists, BTreeMap::new())),
            client,
            address,
            random: Stream::new(seed, &format!("scribe {client}")),
            last_request: FIRST_REQUEST,
            pending_from: 1,
            own_version: None,
            views: BTreeMap::new(),
        }
    }

    /// What it asks for now.
    fn wishes(&mut self, shape: &Shape) -> Vec<Call> {
        let mut calls = Vec::new();
        if self.random.chance(250) {
            calls.push(self.publish());
        }
        for _ in 0..self.random.index(4) {
            calls.push(Call::KeysFetch { user: self.any_user(shape), devices: self.any_devices() });
        }
        if self.random.chance(if shape.names_lists { 300 } else { 100 }) {
            calls.push(self.list_call(shape));
        }
        if self.random.chance(20) {
            // More than a connection may have unanswered.
            let count = usize::from(CONNECTION_REQUESTS_MAX) + 8;
            calls.extend(std::iter::repeat_n(Call::KeyCount, count));
        }
        if !shape.groups.is_empty() && self.random.chance(600) {
            let group = shape.groups[self.random.index(shape.groups.len())].clone();
            calls.extend(self.group_call(shape, group));
        }
        calls
    }

    fn publish(&mut self) -> Call {
        let count = u32::try_from(self.random.between(1, 12)).expect("few");
        let key = |key_id| PublicKey {
            key_id,
            key: one_time_key(self.client, key_id),
            signature: Bytes::new(),
        };
        Call::KeysPublish(KeysPublish {
            identity_key: Some(one_time_key(self.client, 0)),
            signed_prekey: Some(PublicKey { signature: vec![9; 64].into(), ..key(0) }),
            one_time_keys: (self.pending_from..self.pending_from + count).map(key).collect(),
        })
    }

    fn list_call(&mut self, shape: &Shape) -> Call {
        let is_own = self.random.chance(600);
        let Some(version) = self.own_version.filter(|_| is_own) else {
            let user = if is_own { self.address.user.clone() } else { self.any_user(shape) };
            return Call::DeviceListGet { user };
        };
        let devices = shape.siblings(self.client).into_iter();
        let mut devices: Vec<DeviceId> =
            devices.map(|sibling| shape.devices[sibling].device.clone()).collect();
        if self.random.chance(300) {
            devices.push(DeviceId::new("watch").expect("a short name"));
        }
        if let Some((random, _)) = &mut self.lists {
            devices.retain(|_| !random.chance(250));
        }
        let signed_list = self.random.next_u64().to_be_bytes().to_vec().into();
        Call::DeviceListPut(DeviceListPut { version: version + 1, devices, signed_list })
    }

    /// The version that a message for devices of `user` names; 0: none.
    pub(super) fn list_version(&mut self, user: &UserId) -> u64 {
        let Some((random, seen)) = &mut self.lists else { return 0 };
        let seen = seen.get(user).copied().unwrap_or(0);
        match random.index(10) {
            0..=1 => 0,
            2 => seen + 1, // the gateway may hear of it later
            _ => seen,
        }
    }

    /// It was shown the list of a user.
    pub(super) fn saw_list(&mut self, user: &UserId, version: u64) {
        if let Some((_, seen)) = &mut self.lists {
            seen.insert(user.clone(), version);
        }
    }

    fn group_call(&mut self, shape: &Shape, group: UserId) -> Option<Call> {
        let Some(view) = self.views.get(&group) else {
            let others = shape.users().into_iter().filter(|user| *user != self.address.user);
            let members = others.filter(|_| self.random.chance(600)).collect();
            return Some(match self.random.chance(600) {
                true => Call::GroupCreate { group, members },
                false => Call::GroupGet { group },
            });
        };
        // Otherwise whatever it is.
        let version = if self.random.chance(300) { view.version } else { 0 };
        let members = vec![self.any_user(shape)];
        Some(match self.random.index(10) {
            0..=4 => {
                let as_admins = self.random.chance(500);
                Call::GroupAdd { group, members, as_admins, version }
            }
            5..=6 => Call::GroupRemove { group, members, version },
            7 if self.random.chance(300) => Call::GroupLeave { group },
            _ => Call::GroupGet { group },
        })
    }

    /// None: all that have keys.
    fn any_devices(&mut self) -> Vec<DeviceId> {
        let is_named = self.random.chance(200);
        is_named.then(|| DeviceId::new("phone").expect("a short name")).into_iter().collect()
    }

    fn any_user(&mut self, shape: &Shape) -> UserId {
        shape.devices[self.random.index(shape.devices.len())].user.clone()
    }

    /// A call of the present connection was answered.
    pub(super) fn hears(&mut self, asked: Asked, event: &ClientEvent) {
        let reply = match event {
            ClientEvent::Replied { reply, .. } => reply,
            ClientEvent::Error { code, .. } => return self.hears_refusal(&asked.call, *code),
            _ => return,
        };
        match (asked.call, reply) {
            // Now and then it forgets that before it has noted it, and publishes them again.
            (Call::KeysPublish(published), _) if !self.random.chance(150) => {
                let last = published.one_time_keys.last().expect("at least one");
                self.pending_from = self.pending_from.max(last.key_id + 1);
            }
            (Call::DeviceListPut(list), _) => self.own_version = Some(list.version),
            (Call::DeviceListGet { user }, Reply::DeviceList(list)) => {
                self.saw_list(&user, list.version);
                if user == self.address.user {
                    self.own_version = Some(list.version);
                }
            }
            (Call::GroupLeave { group }, _) => {
                self.views.remove(&group);
            }
            (_, Reply::GroupState(state)) => {
                self.views.insert(state.group.clone(), state.clone());
            }
            _ => {}
        }
    }

    fn hears_refusal(&mut self, call: &Call, code: ErrorCode) {
        match (call, code) {
            (Call::DeviceListPut(_), _) => self.own_version = None,
            (Call::GroupGet { group }, ErrorCode::NotAllowed) => {
                self.views.remove(group);
            }
            _ => {}
        }
    }
}

impl Client {
    /// The app asks for whatever it wants beside messages.
    pub fn app_asks(&mut self, host: &mut Host, oracle: &mut Oracle, shape: &Shape) {
        let now_ns = host.clock.now_ns();
        let Some(conn) = &mut self.conn else { return };
        if !conn.welcomed || conn.leaving.is_some() || !shape.has_directory {
            return;
        }
        for call in self.scribe.wishes(shape) {
            let is_publish = |call: &Call| matches!(call, Call::KeysPublish(_));
            if is_publish(&call) && conn.calls.values().any(|asked| is_publish(&asked.call)) {
                continue; // one after the other, as numbers rise
            }
            if let Call::KeysPublish(keys) = &call {
                let last = keys.one_time_keys.last().expect("at least one");
                oracle.registry.asked_to_publish(&self.scribe.address, last.key_id);
            }
            self.scribe.last_request += 1;
            let request_id = self.scribe.last_request;
            host.tell(|| format!("client {} asks {request_id}: {call:?}", self.index));
            conn.session.call(request_id, &call).expect("within the bounds");
            conn.calls.insert(request_id, Asked { call, at_ns: now_ns });
        }
    }
}

/// Above those that connections use themselves.
const FIRST_REQUEST: u64 = 1_000;
