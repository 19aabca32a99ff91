//! What must hold of device lists: which devices a message is for, and what a sender who knows an older
//! list is told.

use ringpost_engine::limits::LIST_WAITING_REQUESTS_MAX;
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::{DeviceList, DeviceListPut, RejectCode, SkipReason};

use super::fate::Fate;
use super::oracle::{MessageIndex, Oracle};
use super::registry::Registry;

/// Which devices a message is for.
#[derive(Clone, Debug)]
pub enum Addressed {
    /// All that are on their users' lists.
    All,
    /// Those that are named, if they are on the list of this version; 0: whatever it says.
    Devices { user: UserId, names: Vec<DeviceId>, list_version: u64 },
}

impl Registry {
    /// The lists of a user that the gateway may have gone by between two moments: from the newest that
    /// anybody had been told of, as it is in force then, to the newest that was durable.
    fn possible_lists(&self, user: &UserId, from_ns: u64, to_ns: u64) -> Vec<&DeviceListPut> {
        let versions = self.list_told(user, from_ns).max(1)..=self.list_version(user, to_ns + 1);
        versions.filter_map(|version| self.list(user, version)).collect()
    }

    /// Whether every list that the gateway may have gone by is newer than `version`.
    fn is_surely_newer(&self, user: &UserId, version: u64, from_ns: u64) -> bool {
        self.list_told(user, from_ns) > version
    }
}

impl Oracle {
    /// A message was accepted between its sending and now, and these devices were skipped.
    pub(super) fn listed_accepted(
        &mut self,
        message: MessageIndex,
        skipped: &[(UserId, DeviceId, SkipReason)],
        now_ns: u64,
    ) {
        self.forget_unlisted(message, now_ns);
        let fate = &self.messages[message];
        let stale: Vec<(&UserId, &DeviceId)> = skipped
            .iter()
            .filter(|(_, _, reason)| *reason == SkipReason::Stale)
            .map(|(user, device, _)| (user, device))
            .collect();
        let mut faults = Vec::new();
        let newer = self.newer_lists(fate, now_ns);
        for &(of, device) in &stale {
            let is_right = newer.iter().any(|list| self.is_stale(fate, list, of, device));
            if !is_right {
                faults.push(format!("message {message} skipped {device:?}, which was not stale"));
            }
        }
        if let Addressed::Devices { user, names, list_version } = &fate.addressed
            && *list_version > 0
            && self.registry.is_surely_newer(user, *list_version, fate.sent_ns)
            && !self.directory_failed
            && !self.may_be_unchecked(message, user)
        {
            let devices = newer.iter().flat_map(|list| &list.devices).chain(names);
            let untold = devices
                .filter(|device| newer.iter().all(|list| self.is_stale(fate, list, user, device)))
                .find(|device| !stale.contains(&(user, device)));
            if let Some(device) = untold {
                faults
                    .push(format!("nobody was told that {device:?} of message {message} is stale"));
            }
        }
        for fault in faults {
            self.violated(fault);
        }
    }

    /// Whether the list had to be read, and since this message was sent more Sends may have waited for
    /// that at one time than the gateway keeps: it takes the others as they are.
    fn may_be_unchecked(&self, message: MessageIndex, to: &UserId) -> bool {
        let may_wait = !self.registry.is_in_memory(to, self.messages[message].sent_ns);
        let mut unsettled = self.unsettled[message..].iter();
        may_wait && unsettled.any(|&count| count > LIST_WAITING_REQUESTS_MAX)
    }

    /// A message to a user was refused for good.
    pub(super) fn listed_refused(&mut self, message: MessageIndex, code: RejectCode, now_ns: u64) {
        self.forget_unlisted(message, now_ns);
        let fate = &self.messages[message];
        let is_owed = |user: &UserId, name: &DeviceId| {
            let is_it = |address: &DeviceAddress| address.user == *user && address.device == *name;
            fate.owed.iter().any(|&client| is_it(&self.devices[client]))
        };
        let is_right = match (code, &fate.addressed) {
            (RejectCode::UnknownRecipient, _) => fate.owed.is_empty(),
            (RejectCode::StaleDevices, Addressed::Devices { user, names, .. }) => {
                let has_none = |list: &&DeviceListPut| {
                    !names.iter().any(|name| list.devices.contains(name) && is_owed(user, name))
                };
                self.newer_lists(fate, now_ns).iter().any(has_none)
            }
            _ => false,
        };
        let owed = fate.owed.clone();
        self.reached.sends_stale += u64::from(code == RejectCode::StaleDevices);
        self.require(is_right, || {
            format!("message {message} was refused ({code:?}) though {owed:?} exist")
        });
    }

    /// A client was told a list without asking, as it did not know it.
    pub(super) fn pushed_list(&mut self, client: usize, list: &DeviceList, now_ns: u64) {
        self.reached.lists_pushed += 1;
        self.shown_list(client, &list.user, 0, list);
        self.registry.tell_list(&list.user, list.version, now_ns);
    }

    /// Something for all devices need not come to one that may have been off its user's list.
    pub(super) fn forget_unlisted(&mut self, message: MessageIndex, now_ns: u64) {
        let fate = &self.messages[message];
        if !matches!(fate.addressed, Addressed::All) {
            return;
        }
        let is_listed = |&client: &usize| {
            let DeviceAddress { user, device } = &self.devices[client];
            let lists = self.registry.possible_lists(user, fate.sent_ns, now_ns);
            lists.iter().all(|list| list.devices.contains(device))
        };
        let owed = fate.owed.iter().copied().filter(is_listed).collect();
        self.messages[message].owed = owed;
    }

    /// Lists that its sender may not have known.
    fn newer_lists(&self, fate: &Fate, now_ns: u64) -> Vec<&DeviceListPut> {
        let Addressed::Devices { user, list_version, .. } = &fate.addressed else {
            return Vec::new();
        };
        let mut lists = self.registry.possible_lists(user, fate.sent_ns, now_ns);
        lists.retain(|list| *list_version > 0 && list.version > *list_version);
        lists
    }

    /// Whether a message has an envelope for a device that is not on the list, or none for one that is.
    fn is_stale(&self, fate: &Fate, list: &DeviceListPut, of: &UserId, device: &DeviceId) -> bool {
        let Addressed::Devices { user, names, .. } = &fate.addressed else { return false };
        let sender = &self.devices[fate.from];
        let is_sender = sender.user == *of && sender.device == *device;
        let (is_named, is_on) = (names.contains(device), list.devices.contains(device));
        user == of && if is_on { !is_named && !is_sender } else { is_named }
    }

    /// Whether lists changed between a message's sending and its acceptance.
    pub(super) fn saw_lists_change(&self, fate: &Fate, to: usize) -> bool {
        let user = &self.devices[to].user;
        let (from_ns, to_ns) = (fate.sent_ns, fate.accepted_ns);
        self.registry.list_told(user, from_ns) != self.registry.list_version(user, to_ns + 1)
    }
}
