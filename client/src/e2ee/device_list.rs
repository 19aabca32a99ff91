//! A user's devices, signed by the user's identity, so that the server cannot add one.
//!
//! ```text
//! list  1 | user identity 32 | user | version 8 | count 1 | (device | identity 32)* | signature 64
//! ```
//!
//! Devices ascend, so one set has one encoding. A [`Contact`] remembers the newest list and refuses
//! what the server may try with older or other ones. The first list is taken on trust: compare the
//! [safety number](super::safety).

use std::collections::BTreeMap;

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::limits::DEVICES_PER_USER_MAX;

use super::fault::Fault;
use super::identity::{IdentityKey, PublicIdentity, SIGNATURE_BYTES};
use super::pair::Party;
use super::wire::{Reader, put_device, put_user};

/// What a list says; its signature was checked if it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceList {
    pub user: UserId,
    /// Rises by 1 with each list.
    pub version: u64,
    /// 1 to 16.
    pub devices: BTreeMap<DeviceId, PublicIdentity>,
}

/// Another user as this device knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    identity: PublicIdentity,
    list: DeviceList,
    encoded: Vec<u8>,
}

/// A device together with the identity of its user, both from one signed list: what groups deal in.
/// Only [`Contact::member`] makes one, so a list that somebody else signed never gets into a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberDevice {
    party: Party,
    user_identity: PublicIdentity,
}

/// What a new list changed. A device with a new identity is removed and added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<DeviceId>,
    pub removed: Vec<DeviceId>,
}

impl DeviceList {
    /// Signs with the identity of the user.
    pub fn sign(&self, identity: &IdentityKey) -> Result<Vec<u8>, Fault> {
        let count = self.devices.len();
        if count == 0 || count > DEVICES_PER_USER_MAX {
            return Err(Fault::Malformed(WHAT));
        }
        let mut out = vec![VERSION];
        out.extend(identity.public().as_bytes());
        put_user(&mut out, &self.user);
        out.extend(self.version.to_be_bytes());
        out.push(u8::try_from(count).expect("at most DEVICES_PER_USER_MAX"));
        for (device, identity) in &self.devices {
            put_device(&mut out, device);
            out.extend(identity.as_bytes());
        }
        out.extend(identity.sign(DOMAIN, &out));
        Ok(out)
    }

    /// Whose a list is, by its own word.
    pub(crate) fn user_of(bytes: &[u8]) -> Result<UserId, Fault> {
        Ok(Self::open(bytes)?.1.user)
    }

    /// Checks the signature, and says whose it is; whether that is the right one is not known here.
    fn open(bytes: &[u8]) -> Result<(PublicIdentity, Self), Fault> {
        let at = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(Fault::Malformed(WHAT))?;
        let (body, signature) = bytes.split_at(at);
        let mut reader = Reader::new(WHAT, body);
        reader.version(VERSION)?;
        let identity = PublicIdentity::from_bytes(WHAT, reader.array()?)?;
        let (user, version, count) = (reader.user()?, reader.u64()?, reader.u8()?);
        if count == 0 || usize::from(count) > DEVICES_PER_USER_MAX {
            return Err(reader.fault());
        }
        let mut devices = BTreeMap::new();
        for _ in 0..count {
            let device = reader.device()?;
            if devices.last_key_value().is_some_and(|(last, _)| *last >= device) {
                return Err(reader.fault());
            }
            devices.insert(device, PublicIdentity::from_bytes(WHAT, reader.array()?)?);
        }
        reader.finish()?;
        if !identity.verify(DOMAIN, body, signature.try_into().expect("split there")) {
            return Err(Fault::ForgedDeviceList);
        }
        Ok((identity, Self { user, version, devices }))
    }
}

impl Contact {
    /// The first list of this user; also restores [`Self::encoded`].
    pub fn meet(user: &UserId, bytes: &[u8]) -> Result<Self, Fault> {
        let (identity, list) = DeviceList::open(bytes)?;
        if list.user != *user {
            return Err(Fault::ForgedDeviceList);
        }
        Ok(Self { identity, list, encoded: bytes.to_vec() })
    }

    /// A list that the server offers as the newest one.
    pub fn update(&mut self, bytes: &[u8]) -> Result<Changes, Fault> {
        let (identity, list) = DeviceList::open(bytes)?;
        if list.user != self.list.user {
            return Err(Fault::ForgedDeviceList);
        }
        if identity != self.identity {
            return Err(Fault::IdentityChanged);
        }
        let (known, got) = (self.list.version, list.version);
        if got < known {
            return Err(Fault::DeviceListRolledBack { known, got });
        }
        if got == known && list != self.list {
            return Err(Fault::DeviceListConflict { version: got });
        }
        let lacks = |list: &DeviceList, (device, identity): (&DeviceId, &PublicIdentity)| {
            (list.devices.get(device) != Some(identity)).then(|| device.clone())
        };
        let added = list.devices.iter().filter_map(|entry| lacks(&self.list, entry)).collect();
        let removed = self.list.devices.iter().filter_map(|entry| lacks(&list, entry)).collect();
        (self.list, self.encoded) = (list, bytes.to_vec());
        Ok(Changes { added, removed })
    }

    /// The identity of the user: what the safety number is made of.
    pub fn identity(&self) -> PublicIdentity {
        self.identity
    }

    pub fn list(&self) -> &DeviceList {
        &self.list
    }

    /// What to keep on disk.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// A device of this user as a partner of sessions.
    pub fn party(&self, device: &DeviceId) -> Result<Party, Fault> {
        let identity = *self.list.devices.get(device).ok_or(Fault::UnknownDevice)?;
        let address = DeviceAddress { user: self.list.user.clone(), device: device.clone() };
        Ok(Party { address, identity })
    }

    /// A device of this user as one that a group key goes to or comes from.
    pub fn member(&self, device: &DeviceId) -> Result<MemberDevice, Fault> {
        Ok(MemberDevice { party: self.party(device)?, user_identity: self.identity })
    }
}

impl MemberDevice {
    pub fn party(&self) -> &Party {
        &self.party
    }

    /// Of the user who signed the list.
    pub fn user_identity(&self) -> &PublicIdentity {
        &self.user_identity
    }
}

const WHAT: &str = "list of devices";
const VERSION: u8 = 1;
const DOMAIN: &str = "Ringpost device list 1";
