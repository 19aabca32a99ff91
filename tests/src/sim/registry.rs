//! What the directory has made durable, and since when: keys, device lists and rosters that clients
//! are shown are held against it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_engine::directory::{Answer, Request, Roster};
use ringpost_engine::limits::{CONNECTION_REQUESTS_MAX, ONE_TIME_KEYS_LOW};
use ringpost_protocol::id::{DeviceAddress, UserId};
use ringpost_protocol::message::{
    Call, DeviceList, DeviceListPut, ErrorCode, GroupState, KeyBundle, Reply,
};

use super::connection::Asked;
use super::oracle::Oracle;

/// Versions rise by one, so the place of each says its number.
#[derive(Debug, Default)]
pub struct Registry {
    rosters: BTreeMap<UserId, Vec<(u64, Roster)>>,
    lists: BTreeMap<UserId, Vec<(u64, DeviceListPut)>>,
    /// Versions of lists that somebody was told of, and since when: nobody who asks later is shown
    /// an older one.
    lists_told: BTreeMap<UserId, Vec<(u64, u64)>>,
    /// Since when the gateway is known to have a user's list in memory. A new process has none.
    lists_in_memory: BTreeMap<UserId, u64>,
    process_started_ns: u64,
    /// The highest number that each device has asked to publish a key under.
    published: BTreeMap<DeviceAddress, u32>,
    /// One-time keys that anybody was given.
    handed_out: BTreeSet<Bytes>,
}

/// A roster that was in force, and its version; there is none before the first.
pub type InForce<'a> = (u64, Option<&'a Roster>);

impl Registry {
    /// The rosters that were in force at some time between two moments.
    pub fn in_force(&self, group: &UserId, from_ns: u64, to_ns: u64) -> Vec<InForce<'_>> {
        let versions = self.rosters.get(group).map_or(&[][..], Vec::as_slice);
        let states = std::iter::once((0, None))
            .chain((1..).zip(versions.iter().map(|(since, roster)| Some((*since, roster)))));
        let overlapping = states.filter_map(|(version, state): (u64, Option<(u64, &Roster)>)| {
            let since_ns = state.map_or(0, |(since_ns, _)| since_ns);
            let next = versions.get(usize::try_from(version).expect("few"));
            let until_ns = next.map_or(u64::MAX, |(since_ns, _)| *since_ns);
            let overlaps = since_ns <= to_ns && from_ns <= until_ns;
            overlaps.then_some((version, state.map(|(_, roster)| roster)))
        });
        overlapping.collect()
    }

    /// The roster of a version, if it was ever in force.
    pub fn roster(&self, group: &UserId, version: u64) -> Option<&Roster> {
        of_version(self.rosters.get(group)?, version)
    }

    /// The newest roster.
    pub fn newest(&self, group: &UserId) -> Option<&Roster> {
        Some(&self.rosters.get(group)?.last()?.1)
    }

    /// The list of a version, if it was ever stored.
    pub(super) fn list(&self, user: &UserId, version: u64) -> Option<&DeviceListPut> {
        of_version(self.lists.get(user)?, version)
    }

    /// The version of a user's list at a moment.
    pub(super) fn list_version(&self, user: &UserId, at_ns: u64) -> u64 {
        let lists = self.lists.get(user).map_or(&[][..], Vec::as_slice);
        lists.iter().filter(|(since_ns, _)| *since_ns < at_ns).count() as u64
    }

    /// The highest version of a user's list that anybody was told of before.
    pub(super) fn list_told(&self, user: &UserId, at_ns: u64) -> u64 {
        let told = self.lists_told.get(user).into_iter().flatten();
        let before = told.filter(|(since_ns, _)| *since_ns < at_ns);
        before.map(|(_, version)| *version).max().unwrap_or_default()
    }

    pub(super) fn tell_list(&mut self, user: &UserId, version: u64, now_ns: u64) {
        let told = self.lists_told.entry(user.clone()).or_default();
        if told.last().is_none_or(|(_, last)| *last < version) {
            told.push((now_ns, version));
        }
    }

    /// The gateway begins to serve, and has read nothing yet.
    pub fn process_started(&mut self, now_ns: u64) {
        self.process_started_ns = now_ns;
        self.lists_in_memory.clear();
    }

    /// A call was answered that the present process must have answered if it was asked since it began.
    fn note_in_memory(&mut self, user: &UserId, asked_ns: u64, now_ns: u64) {
        if asked_ns > self.process_started_ns {
            self.lists_in_memory.entry(user.clone()).or_insert(now_ns);
        }
    }

    /// Whether the gateway had the list of a user in memory at that time, and has it still.
    pub(super) fn is_in_memory(&self, user: &UserId, at_ns: u64) -> bool {
        self.lists_in_memory.get(user).is_some_and(|since_ns| *since_ns < at_ns)
    }

    /// A device asks to publish keys.
    pub fn asked_to_publish(&mut self, owner: &DeviceAddress, key_id: u32) {
        let highest = self.published.entry(owner.clone()).or_default();
        *highest = (*highest).max(key_id);
    }
}

fn of_version<T>(versions: &[(u64, T)], version: u64) -> Option<&T> {
    let index = usize::try_from(version.checked_sub(1)?).ok()?;
    versions.get(index).map(|(_, value)| value)
}

/// A one-time key, which says whose it is.
pub fn one_time_key(owner: usize, key_id: u32) -> Bytes {
    let owner = u32::try_from(owner).expect("few clients");
    [owner.to_be_bytes(), key_id.to_be_bytes()].concat().into()
}

impl Oracle {
    /// The directory has made this durable.
    pub fn committed(&mut self, now_ns: u64, request: &Request, answer: &Answer) {
        let version = match (request, answer) {
            (Request::PutRoster { group, roster, .. }, Answer::Stored { version }) => {
                self.reached.rosters_changed += 1;
                let versions = self.registry.rosters.entry(group.clone()).or_default();
                versions.push((now_ns, roster.clone()));
                (*version, versions.len())
            }
            (Request::PutList { user, list }, Answer::Stored { version }) => {
                self.reached.lists_changed += 1;
                let versions = self.registry.lists.entry(user.clone()).or_default();
                versions.push((now_ns, list.clone()));
                (*version, versions.len())
            }
            (Request::PutRoster { .. }, Answer::Conflict { version }) => {
                return self.violated(format!("{request:?} met the version {version}"));
            }
            _ => return,
        };
        self.require(version.0 == version.1 as u64, || {
            format!("{request:?} was stored as version {version:?}")
        });
    }

    /// A call of `client` was answered.
    pub fn replied(&mut self, client: usize, asked: &Asked, reply: &Reply, now_ns: u64) {
        let user = self.devices[client].user.clone();
        match (&asked.call, reply) {
            (Call::KeysPublish(_), Reply::Done) => self.reached.keys_published += 1,
            (Call::KeyCount, Reply::KeysLow { .. }) => {}
            (Call::KeysFetch { user: of, .. }, Reply::KeyBundles { user, bundles }) => {
                self.require(of == user, || format!("client {client} asked for {of:?}: {user:?}"));
                for bundle in bundles {
                    self.taken_bundle(client, of, bundle);
                }
            }
            (Call::DeviceListPut(list), Reply::Done) => {
                let is_stored = self.registry.list(&user, list.version) == Some(list);
                self.registry.tell_list(&user, list.version, now_ns);
                self.registry.note_in_memory(&user, asked.at_ns, now_ns);
                self.require(is_stored, || format!("a list of client {client} is not stored"));
            }
            (Call::DeviceListGet { user }, Reply::DeviceList(list)) => {
                self.shown_list(client, user, asked.at_ns, list);
                self.registry.tell_list(user, list.version, now_ns);
                self.registry.note_in_memory(user, asked.at_ns, now_ns);
            }
            (Call::GroupLeave { group }, Reply::Done) => {
                let states = self.registry.in_force(group, asked.at_ns, now_ns);
                let has_left = states.iter().any(|(_, roster)| {
                    roster.is_some_and(|roster| !roster.members.contains(&user))
                });
                self.require(has_left, || format!("client {client} has not left {group:?}"));
            }
            (call, Reply::GroupState(state)) => {
                self.shown_roster(client, call, state, asked.at_ns, now_ns);
            }
            (call, reply) => {
                self.violated(format!("client {client} asked {call:?} and was told {reply:?}"));
            }
        }
    }

    fn taken_bundle(&mut self, client: usize, user: &UserId, bundle: &KeyBundle) {
        self.reached.bundles_taken += 1;
        let owner = DeviceAddress { user: user.clone(), device: bundle.device.clone() };
        let Some(index) = self.devices.iter().position(|device| *device == owner) else {
            return self.violated(format!("client {client} was given keys of {owner:?}"));
        };
        let Some(key) = &bundle.one_time_key else { return };
        self.reached.keys_handed_out += 1;
        let published = self.registry.published.get(&owner).copied().unwrap_or_default();
        let is_right = key.key == one_time_key(index, key.key_id) && key.key_id <= published;
        self.require(is_right, || format!("{key:?} is no key of client {index}"));
        let is_first = self.registry.handed_out.insert(key.key.clone());
        self.require(is_first, || {
            format!("one-time key {} of client {index} was handed out twice", key.key_id)
        });
    }

    pub(super) fn shown_list(
        &mut self,
        client: usize,
        user: &UserId,
        asked_ns: u64,
        list: &DeviceList,
    ) {
        let is_right = match self.registry.list(user, list.version) {
            Some(stored) => {
                stored.devices == list.devices && stored.signed_list == list.signed_list
            }
            None => list.version == 0 && list.devices.is_empty(),
        };
        let least = self.registry.list_told(user, asked_ns);
        self.require(is_right && *user == list.user && list.version >= least, || {
            format!("client {client} was shown {list:?}, which is not stored, or before {least}")
        });
    }

    fn shown_roster(
        &mut self,
        client: usize,
        call: &Call,
        state: &GroupState,
        from_ns: u64,
        now_ns: u64,
    ) {
        let user = &self.devices[client].user;
        let contains = |of: &UserId| state.members.contains(of);
        let fits = match call {
            Call::GroupGet { .. } => contains(user),
            Call::GroupCreate { members, .. } => contains(user) && members.iter().all(contains),
            Call::GroupAdd { members, .. } => members.iter().all(contains),
            Call::GroupRemove { members, .. } => !members.iter().any(contains),
            _ => false,
        };
        let states = self.registry.in_force(&state.group, from_ns, now_ns);
        let is_in_force = states.iter().any(|&(version, roster)| {
            let is_same =
                |roster: &Roster| roster.members == state.members && roster.admins == state.admins;
            version == state.version && roster.is_some_and(is_same)
        });
        let is_group = group_of(call) == Some(&state.group);
        self.require(fits && is_group && is_in_force, || {
            format!("client {client} asked {call:?} and was shown {state:?}, not in force then")
        });
    }

    /// A call of `client` was refused.
    pub fn call_refused(
        &mut self,
        client: usize,
        (asked, unanswered): (&Asked, usize),
        (code, text): (ErrorCode, &str),
        now_ns: u64,
    ) {
        let user = &self.devices[client].user;
        let call = &asked.call;
        let states = group_of(call)
            .map(|group| self.registry.in_force(group, asked.at_ns, now_ns))
            .unwrap_or_default();
        let mut rosters = states.iter().filter_map(|&(version, roster)| Some((version, roster?)));
        let is_right = match (code, call) {
            // The server counts those that it has answered no more, also if the answer is not here.
            (ErrorCode::LimitReached, _) if text.contains("requests of this connection") => {
                unanswered >= usize::from(CONNECTION_REQUESTS_MAX)
            }
            (ErrorCode::LimitReached, _) => true,
            (ErrorCode::Conflict, Call::DeviceListPut(list)) => {
                let newest = self.registry.list_version(user, now_ns + 1);
                list.version != self.registry.list_version(user, asked.at_ns) + 1
                    || list.version != newest + 1
            }
            (ErrorCode::Conflict, Call::GroupCreate { .. }) => rosters.next().is_some(),
            (
                ErrorCode::Conflict,
                Call::GroupAdd { version, .. } | Call::GroupRemove { version, .. },
            ) => *version != 0 && rosters.any(|(other, _)| other != *version),
            (ErrorCode::NotFound, _) => states.iter().any(|(_, roster)| roster.is_none()),
            (ErrorCode::NotAllowed, Call::GroupGet { .. }) => {
                rosters.any(|(_, roster)| !roster.members.contains(user))
            }
            (ErrorCode::NotAllowed, _) => rosters.any(|(_, roster)| !roster.admins.contains(user)),
            _ => false,
        };
        let text = || format!("client {client} asked {call:?} and was refused: {code:?} {text}");
        if !is_right {
            let text = text();
            self.violated(text);
        }
        self.reached.calls_refused += 1;
    }

    /// A client is told without having asked.
    pub fn group_changed(&mut self, client: usize, group: &UserId, version: u64) {
        let is_known = self.registry.roster(group, version).is_some();
        self.require(is_known, || {
            format!("client {client} was told of version {version} of {group:?}, not durable")
        });
    }

    pub fn keys_low(&mut self, client: usize, remaining: u32) {
        self.reached.keys_low_told += 1;
        self.require(remaining < ONE_TIME_KEYS_LOW, || {
            format!("client {client} was warned of {remaining} keys left")
        });
    }
}

fn group_of(call: &Call) -> Option<&UserId> {
    match call {
        Call::GroupCreate { group, .. }
        | Call::GroupAdd { group, .. }
        | Call::GroupRemove { group, .. }
        | Call::GroupLeave { group }
        | Call::GroupGet { group } => Some(group),
        _ => None,
    }
}
