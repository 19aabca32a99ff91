//! Sends to devices that are not all the recipient has, or not his any more.
//!
//! What is for all devices of a user goes to those on the list, once the user has one and it is known
//! here: a phone that was removed, or is not linked yet, could not read it, and its mailbox would only
//! fill up.
//!
//! A Send may name the version of the device list that its envelopes are for. The home shard keeps
//! the versions of its users' lists in memory, 8 bytes each: as long as they agree nothing more is
//! looked at. When the sender's is older, what is for devices of the present list is stored, the
//! rest is named as stale, and the list goes back with the answer. A newer one than ours is not our
//! business: its owner may have told it to the sender before it came here.
//!
//! A version is not known until the list was read once since the start, and then the Sends to that
//! user wait for the directory, in their order. They are few: the messages of others must not wait
//! for the directory's sake. Beyond that, and when the directory fails, nothing is checked, as if the
//! sender had named no version: a list that is out of date costs less than mail that does not go.

use std::collections::VecDeque;

use hashbrown::HashMap;
use ringpost_protocol::id::{DeviceId, UserId};
use ringpost_protocol::message::{
    self, DeviceList, DeviceListPut, Recipient, RejectCode, SendBody,
};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;

use super::Shard;
use super::deposit::rejected;
use super::directory::Inquirer;
use super::home::Home;
use super::message::{DeviceIndex, Origin, StoreRequest};
use crate::directory::{Answer, Request};
use crate::limits::{LIST_WAITING_REQUESTS_MAX, OVERLOAD_RETRY_MS};
use crate::metrics::Bound;

/// Of one user's device list; 0: there is none.
#[derive(Clone, Copy)]
pub(super) struct ListVersion(u64);

/// Whether a sender knows the recipient's devices.
pub(super) enum Freshness {
    Fresh,
    /// This is the present list.
    Stale(Box<DeviceList>),
    /// The list must be read first.
    Unknown,
}

/// Sends in the order of their arrival, by the user whose list is being read.
#[derive(Default)]
pub(super) struct ListWaits {
    by_user: HashMap<UserId, VecDeque<StoreRequest>>,
    count: usize,
    /// Those that waited for one list are being stored.
    is_served: bool,
}

impl Default for ListVersion {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl ListVersion {
    const UNKNOWN: Self = Self(u64::MAX);
}

impl ListWaits {
    /// Whether a Send to `user` must wait behind others.
    fn has(&self, user: &UserId) -> bool {
        self.count > 0 && self.by_user.contains_key(user)
    }

    fn is_full(&self) -> bool {
        self.count >= LIST_WAITING_REQUESTS_MAX
    }

    fn push(&mut self, request: StoreRequest) {
        debug_assert!(!self.is_full(), "the caller has looked");
        self.count += 1;
        self.by_user.entry(request.to.clone()).or_default().push_back(request);
    }

    /// Whether a Send that is refused now may have others behind it that were taken before, also of a
    /// sender in this shard.
    pub(super) fn is_served(&self) -> bool {
        self.is_served
    }

    fn take_all(&mut self) -> Vec<StoreRequest> {
        self.count = 0;
        let mut lists: Vec<_> = self.by_user.drain().collect();
        lists.sort_unstable_by(|(one, _), (other, _)| one.cmp(other)); // the same in every run
        lists.into_iter().flat_map(|(_, requests)| requests).collect()
    }

    fn take(&mut self, user: &UserId) -> VecDeque<StoreRequest> {
        let requests = self.by_user.remove(user).unwrap_or_default();
        self.count -= requests.len();
        requests
    }
}

impl Home {
    /// This is the list of `user` now.
    pub(super) fn note_list(&mut self, user: &UserId, list: &DeviceListPut) {
        // Who has no device here gets nothing.
        for &index in self.users.get(user).into_iter().flatten() {
            let device = &mut self.devices[index.0 as usize];
            device.is_listed = is_on(list, &device.address.device);
            self.list_versions[device.user as usize] = ListVersion(list.version);
        }
    }

    /// Nobody knows which list of `user` is stored.
    pub(super) fn forget_list(&mut self, user: &UserId) {
        self.lists.remove(user);
        let Some(first) = self.users.get(user).and_then(|devices| devices.first()) else { return };
        let user = self.device(*first).user as usize;
        self.list_versions[user] = ListVersion::UNKNOWN;
    }

    /// A device is new here; its user may have a list already.
    pub(super) fn note_registered(&mut self, index: DeviceIndex) {
        let device = &mut self.devices[index.0 as usize];
        match self.lists.get(&device.address.user) {
            Some(list) => device.is_listed = is_on(list, &device.address.device),
            None => self.list_versions[device.user as usize] = ListVersion::UNKNOWN,
        }
    }

    pub(super) fn freshness(&mut self, request: &StoreRequest) -> Freshness {
        if self.list_waits.has(&request.to) {
            return Freshness::Unknown;
        }
        let theirs = request.device_list_version;
        let is_checked = theirs != 0 && matches!(request.body, SendBody::PerDevice(_));
        if !is_checked || is_active(Mutant::StaleListIgnored) {
            return Freshness::Fresh;
        }
        let Some(first) = self.users.get(&request.to).and_then(|devices| devices.first()) else {
            return Freshness::Fresh;
        };
        let user = self.device(*first).user as usize;
        if self.list_versions[user].0 <= theirs {
            return Freshness::Fresh;
        }
        let Some(list) = self.lists.get(&request.to) else { return Freshness::Unknown };
        // Not known until now if the list is older here than the user's first device.
        self.list_versions[user] = ListVersion(list.version);
        Freshness::of(&request.to, list, theirs)
    }
}

/// Whether a device is on a list. Version 0 says that there is none.
fn is_on(list: &DeviceListPut, device: &DeviceId) -> bool {
    list.version == 0 || list.devices.contains(device)
}

impl Freshness {
    fn of(user: &UserId, list: &DeviceListPut, theirs: u64) -> Self {
        if list.version <= theirs {
            return Self::Fresh;
        }
        let DeviceListPut { version, devices, signed_list } = list.clone();
        Self::Stale(Box::new(DeviceList { user: user.clone(), version, devices, signed_list }))
    }
}

impl<R: Ring> Shard<R> {
    /// Keeps a Send until the list of its recipient is read.
    pub(super) fn await_list(&mut self, request: StoreRequest) {
        let home = self.home.as_mut().expect("requests go to home shards");
        let is_read = home.list_waits.has(&request.to);
        if home.list_waits.is_full() {
            self.metrics.bound_hits.add(Bound::DeviceListWaiting);
            if !is_read {
                return self.store_known(request, None);
            }
            // It must not overtake those that wait.
            let refusal = rejected(RejectCode::Overloaded, Some(OVERLOAD_RETRY_MS));
            return self.refuse(&request, refusal);
        }
        let user = request.to.clone();
        home.list_waits.push(request);
        if is_read {
            return;
        }
        let read = Request::GetList { user: user.clone() };
        if self.inquire(Inquirer::ListWaits { user: user.clone() }, read).is_err() {
            self.store_unchecked(&user);
        }
    }

    /// The directory has read a list that Sends wait for.
    pub(super) fn handle_awaited_list(&mut self, user: &UserId, answer: Answer) {
        let Answer::List(list) = answer else { return self.store_unchecked(user) };
        let home = self.home.as_mut().expect("lists are read at home shards");
        let requests = home.list_waits.take(user);
        self.install_list(user, list);
        self.store_waiting(requests);
    }

    /// The list cannot be read now.
    fn store_unchecked(&mut self, user: &UserId) {
        let home = self.home.as_mut().expect("requests go to home shards");
        let mut requests = home.list_waits.take(user);
        for request in &mut requests {
            request.device_list_version = 0;
        }
        self.store_waiting(requests);
    }

    /// One that is refused holds those behind it: their sender could not know when they came. Of a
    /// sender in this shard, too, which knows of the refusal when all of them are through.
    fn store_waiting(&mut self, requests: VecDeque<StoreRequest>) {
        let home = self.home.as_mut().expect("requests go to home shards");
        home.list_waits.is_served = true;
        for request in requests {
            self.handle_store(request);
        }
        let home = self.home.as_mut().expect("requests go to home shards");
        home.list_waits.is_served = false;
        home.blocks.forget(self.id);
    }

    /// The store fails, and may have lost Sends that those came behind: all must be replayed in order.
    pub(super) fn give_up_list_waits(&mut self) {
        if is_active(Mutant::ListWaitsOutliveStore) {
            return;
        }
        let home = self.home.as_mut().expect("its store failed");
        for StoreRequest { origin, to, .. } in home.list_waits.take_all() {
            self.outcome_unknown(origin, Recipient::User(to));
        }
    }

    /// Gives a sender the list that it did not know, if it is still there.
    pub(super) fn push_list(&mut self, origin: Origin, list: DeviceList) {
        let home = self.home.as_ref().expect("requests come from home shards");
        let attached = home.device(origin.device).attached.as_ref();
        if let Some(key) = attached.map(|attached| attached.conn) {
            self.put(key, |out| message::put_device_list(out, list));
        }
    }
}

#[cfg(test)]
mod tests;
