//! Calls: requests with a `request_id` and their replies, for keys, device lists and groups. The
//! same types on both ends, within their bounds once they have been parsed or checked.
//!
//! Signatures and keys are opaque here: only their lengths are looked at.

use std::fmt;

use bytes::Bytes;

use crate::fault::CallFault;
use crate::id::{DeviceId, UserId};
use crate::limits::{
    DEVICES_PER_USER_MAX, GROUP_MEMBERS_MAX, KEY_BYTES_MAX, ONE_TIME_KEYS_PER_PUBLISH_MAX,
    SIGNATURE_BYTES, SIGNED_LIST_BYTES_MAX,
};

pub(crate) use parse::{is_call, parse_call};
pub(crate) use put::call_frame;
pub(crate) use reply::{Told, parse_told};
pub use reply::{put_device_list, put_group_changed, put_keys_low, put_reply};

mod parse;
mod put;
mod reply;
#[cfg(test)]
mod tests;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq)]
pub enum Call {
    /// Stores this device's keys; answered by [`Reply::Done`].
    KeysPublish(KeysPublish),
    /// Takes one bundle for each device of a user, or for those named; [`Reply::KeyBundles`].
    KeysFetch { user: UserId, devices: Vec<DeviceId> },
    /// One-time keys of this device that remain; [`Reply::KeysLow`].
    KeyCount,
    /// Stores the user's signed list; [`Reply::Done`].
    DeviceListPut(DeviceListPut),
    /// [`Reply::DeviceList`].
    DeviceListGet { user: UserId },
    /// `members` without the caller; [`Reply::GroupState`].
    GroupCreate { group: UserId, members: Vec<UserId> },
    /// At least one member; [`Reply::GroupState`].
    GroupAdd {
        group: UserId,
        members: Vec<UserId>,
        as_admins: bool,
        /// That the change starts from; 0: whatever it is.
        version: u64,
    },
    /// At least one member; [`Reply::GroupState`], once the new version is in force.
    GroupRemove {
        group: UserId,
        members: Vec<UserId>,
        /// That the change starts from; 0: whatever it is.
        version: u64,
    },
    /// [`Reply::Done`].
    GroupLeave { group: UserId },
    /// [`Reply::GroupState`].
    GroupGet { group: UserId },
}

/// What a server answers when it does not refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    KeyBundles { user: UserId, bundles: Vec<KeyBundle> },
    KeysLow { remaining_count: u32 },
    DeviceList(DeviceList),
    GroupState(GroupState),
}

/// Keys that a device publishes. What is absent stays as it was; one-time keys are added.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct KeysPublish {
    /// 1 ..= KEY_BYTES_MAX bytes.
    pub identity_key: Option<Bytes>,
    pub signed_prekey: Option<PublicKey>,
    /// At most ONE_TIME_KEYS_PER_PUBLISH_MAX with rising numbers, unsigned.
    pub one_time_keys: Vec<PublicKey>,
}

/// A public key under the number that its owner gave it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PublicKey {
    pub key_id: u32,
    /// 1 ..= KEY_BYTES_MAX bytes.
    pub key: Bytes,
    /// SIGNATURE_BYTES bytes of a signed prekey, none of a one-time key.
    pub signature: Bytes,
}

/// What begins a session with one device.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBundle {
    pub device: DeviceId,
    /// 1 ..= KEY_BYTES_MAX bytes.
    pub identity_key: Bytes,
    pub signed_prekey: PublicKey,
    /// Handed out to nobody else; absent when the stock is empty.
    pub one_time_key: Option<PublicKey>,
}

/// A new device list of the caller.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct DeviceListPut {
    /// One more than the stored one, so not 0.
    pub version: u64,
    /// At most DEVICES_PER_USER_MAX, different.
    pub devices: Vec<DeviceId>,
    /// At most SIGNED_LIST_BYTES_MAX bytes.
    pub signed_list: Bytes,
}

/// A user's device list.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceList {
    pub user: UserId,
    /// 0: the user has none.
    pub version: u64,
    pub devices: Vec<DeviceId>,
    /// Worth what its signature is worth.
    pub signed_list: Bytes,
}

/// The roster of a group, as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    pub group: UserId,
    /// Rises by one with each change.
    pub version: u64,
    /// At most GROUP_MEMBERS_MAX, different.
    pub members: Vec<UserId>,
    /// Those of them who are administrators.
    pub admins: Vec<UserId>,
}

impl Call {
    /// Whether it is within the bounds that end a connection. A client asks before it sends.
    pub fn check(&self) -> Result<(), CallFault> {
        match self {
            Self::KeysPublish(publish) => publish.check(),
            Self::KeysFetch { devices, .. } => check_devices("devices", devices),
            Self::DeviceListPut(put) => put.check(),
            Self::GroupCreate { members, .. } => check_members(members, GROUP_MEMBERS_MAX - 1),
            Self::GroupAdd { members, .. } | Self::GroupRemove { members, .. } => {
                if members.is_empty() {
                    return Err(CallFault::Missing("members"));
                }
                check_members(members, GROUP_MEMBERS_MAX)
            }
            Self::KeyCount
            | Self::DeviceListGet { .. }
            | Self::GroupLeave { .. }
            | Self::GroupGet { .. } => Ok(()),
        }
    }

    /// Whether this is what the server says to such a call when it does not refuse.
    pub fn is_answered_by(&self, reply: &Reply) -> bool {
        match self {
            Self::KeysPublish(_) | Self::DeviceListPut(_) | Self::GroupLeave { .. } => {
                matches!(reply, Reply::Done)
            }
            Self::KeysFetch { user, .. } => {
                matches!(reply, Reply::KeyBundles { user: of, .. } if of == user)
            }
            Self::KeyCount => matches!(reply, Reply::KeysLow { .. }),
            Self::DeviceListGet { user } => {
                matches!(reply, Reply::DeviceList(list) if list.user == *user)
            }
            Self::GroupCreate { group, .. }
            | Self::GroupAdd { group, .. }
            | Self::GroupRemove { group, .. }
            | Self::GroupGet { group } => {
                matches!(reply, Reply::GroupState(state) if state.group == *group)
            }
        }
    }
}

impl KeysPublish {
    fn check(&self) -> Result<(), CallFault> {
        if let Some(key) = &self.identity_key {
            check_key("identity_key", key)?;
        }
        if let Some(key) = &self.signed_prekey {
            key.check_signed("signed_prekey")?;
        }
        let keys = &self.one_time_keys;
        check_count("one_time_keys", keys.len(), ONE_TIME_KEYS_PER_PUBLISH_MAX)?;
        for key in keys {
            key.check_unsigned("one_time_keys")?;
        }
        if keys.windows(2).any(|pair| pair[0].key_id >= pair[1].key_id) {
            return Err(CallFault::NotRising("one_time_keys"));
        }
        Ok(())
    }
}

impl PublicKey {
    fn check_signed(&self, field: &'static str) -> Result<(), CallFault> {
        if self.signature.len() != SIGNATURE_BYTES {
            return Err(CallFault::Signature(field));
        }
        check_key(field, &self.key)
    }

    fn check_unsigned(&self, field: &'static str) -> Result<(), CallFault> {
        if !self.signature.is_empty() {
            return Err(CallFault::Signature(field));
        }
        check_key(field, &self.key)
    }
}

impl KeyBundle {
    fn check(&self) -> Result<(), CallFault> {
        check_key("identity_key", &self.identity_key)?;
        self.signed_prekey.check_signed("signed_prekey")?;
        self.one_time_key.as_ref().map_or(Ok(()), |key| key.check_unsigned("one_time_key"))
    }
}

impl DeviceListPut {
    fn check(&self) -> Result<(), CallFault> {
        if self.version == 0 {
            return Err(CallFault::Missing("version"));
        }
        check_devices("devices", &self.devices)?;
        check_signed_list(&self.signed_list)
    }
}

fn check_key(field: &'static str, key: &[u8]) -> Result<(), CallFault> {
    match key.len() {
        0 => Err(CallFault::Missing(field)),
        bytes if bytes > KEY_BYTES_MAX => {
            Err(CallFault::TooLong { field, bytes, bytes_max: KEY_BYTES_MAX })
        }
        _ => Ok(()),
    }
}

fn check_signed_list(list: &[u8]) -> Result<(), CallFault> {
    if list.len() > SIGNED_LIST_BYTES_MAX {
        let (bytes, bytes_max) = (list.len(), SIGNED_LIST_BYTES_MAX);
        return Err(CallFault::TooLong { field: "signed_list", bytes, bytes_max });
    }
    Ok(())
}

fn check_devices(field: &'static str, devices: &[DeviceId]) -> Result<(), CallFault> {
    check_count(field, devices.len(), DEVICES_PER_USER_MAX)?;
    check_different(field, devices)
}

fn check_members(members: &[UserId], count_max: usize) -> Result<(), CallFault> {
    check_count("members", members.len(), count_max)?;
    check_different("members", members)
}

fn check_count(field: &'static str, count: usize, count_max: usize) -> Result<(), CallFault> {
    if count > count_max {
        return Err(CallFault::TooMany { field, count_max });
    }
    Ok(())
}

/// At most 100 entries: comparing all pairs is cheaper than a table.
fn check_different<T: PartialEq>(field: &'static str, all: &[T]) -> Result<(), CallFault> {
    if (1..all.len()).any(|index| all[..index].contains(&all[index])) {
        return Err(CallFault::Repeated(field));
    }
    Ok(())
}

// Ids shorten themselves; of keys and signed lists a log may have the length.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeysPublish(publish) => publish.fmt(f),
            Self::KeysFetch { user, devices } => write!(f, "KeysFetch({user:?}, {devices:?})"),
            Self::KeyCount => write!(f, "KeyCount"),
            Self::DeviceListPut(put) => put.fmt(f),
            Self::DeviceListGet { user } => write!(f, "DeviceListGet({user:?})"),
            Self::GroupCreate { group, members } => {
                write!(f, "GroupCreate({group:?}, {} members)", members.len())
            }
            Self::GroupAdd { group, members, .. } => {
                write!(f, "GroupAdd({group:?}, {} members)", members.len())
            }
            Self::GroupRemove { group, members, .. } => {
                write!(f, "GroupRemove({group:?}, {} members)", members.len())
            }
            Self::GroupLeave { group } => write!(f, "GroupLeave({group:?})"),
            Self::GroupGet { group } => write!(f, "GroupGet({group:?})"),
        }
    }
}

impl fmt::Debug for KeysPublish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeysPublish")
            .field("has_identity_key", &self.identity_key.is_some())
            .field("signed_prekey", &self.signed_prekey)
            .field("one_time_keys", &self.one_time_keys.len())
            .finish()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {} bytes)", self.key_id, self.key.len())
    }
}

impl fmt::Debug for KeyBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBundle")
            .field("device", &self.device)
            .field("signed_prekey", &self.signed_prekey)
            .field("one_time_key", &self.one_time_key)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DeviceListPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceListPut")
            .field("version", &self.version)
            .field("devices", &self.devices)
            .field("signed_list_bytes", &self.signed_list.len())
            .finish()
    }
}

impl fmt::Debug for DeviceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceList")
            .field("user", &self.user)
            .field("version", &self.version)
            .field("devices", &self.devices)
            .field("signed_list_bytes", &self.signed_list.len())
            .finish()
    }
}
