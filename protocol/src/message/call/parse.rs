//! The server's way in. Lists are bounded while they are read, before they take memory.

use bytes::Bytes;

use crate::fault::{CallFault, PeerFault};
use crate::field::{Fields, Value};
use crate::id::{DeviceId, IdFault, UserId};
use crate::limits::{DEVICES_PER_USER_MAX, GROUP_MEMBERS_MAX, ONE_TIME_KEYS_PER_PUBLISH_MAX};
use crate::message::call::{Call, DeviceListPut, KeysPublish, PublicKey};

/// The body of the frame with this number, which [`is_call`]. Keys and lists share the memory of
/// `frame`.
pub(crate) fn parse_call(
    frame: &Bytes,
    number: u32,
    body: &[u8],
) -> Result<(u64, Call), PeerFault> {
    let mut parts = Parts::default();
    let mut fields = Fields::new(body);
    while let Some((field, value)) = fields.next()? {
        match (number, field) {
            (_, 1) => parts.request_id = value.varint()?,
            (KEYS_PUBLISH, _) => parts.publish_field(frame, field, value)?,
            (DEVICE_LIST_PUT, _) => parts.list_field(frame, field, value)?,
            (KEY_COUNT, _) => {}
            (_, 2) => parts.id = Some(value.text()?),
            (KEYS_FETCH, 3) => push_device(&mut parts.list.devices, value)?,
            (GROUP_CREATE | GROUP_ADD | GROUP_REMOVE, 3) => parts.push_member(value)?,
            (GROUP_ADD, 4) => parts.as_admins = value.varint()? != 0,
            (GROUP_ADD, 5) | (GROUP_REMOVE, 4) => parts.version = value.varint()?,
            _ => {}
        }
    }
    let request_id = parts.request_id;
    if request_id == 0 {
        return Err(CallFault::Missing("request_id").into());
    }
    let call = parts.into_call(number)?;
    call.check()?;
    Ok((request_id, call))
}

/// Whether a ClientFrame with this number is a call.
pub(crate) fn is_call(number: u32) -> bool {
    (KEYS_PUBLISH..=DEVICE_LIST_GET).contains(&number)
        || (GROUP_CREATE..=GROUP_GET).contains(&number)
}

/// What the fields of any call make up.
#[derive(Default)]
struct Parts<'a> {
    request_id: u64,
    /// User or group.
    id: Option<&'a str>,
    members: Vec<UserId>,
    as_admins: bool,
    version: u64,
    publish: KeysPublish,
    list: DeviceListPut,
}

impl<'a> Parts<'a> {
    fn publish_field(
        &mut self,
        frame: &Bytes,
        field: u32,
        value: Value<'a>,
    ) -> Result<(), PeerFault> {
        match field {
            2 => {
                let key = frame.slice_ref(value.bytes()?);
                self.publish.identity_key = Some(key).filter(|key| !key.is_empty());
            }
            3 => {
                // A message field that comes twice is merged, by the rules of protobuf.
                let key = self.publish.signed_prekey.take().unwrap_or_default();
                self.publish.signed_prekey = Some(key.merged(frame, value)?);
            }
            4 => {
                let keys = &mut self.publish.one_time_keys;
                has_room("one_time_keys", keys.len(), ONE_TIME_KEYS_PER_PUBLISH_MAX)?;
                keys.push(PublicKey::default().merged(frame, value)?);
            }
            _ => {}
        }
        Ok(())
    }

    fn list_field(&mut self, frame: &Bytes, field: u32, value: Value<'a>) -> Result<(), PeerFault> {
        match field {
            2 => self.list.version = value.varint()?,
            3 => push_device(&mut self.list.devices, value)?,
            4 => self.list.signed_list = frame.slice_ref(value.bytes()?),
            _ => {}
        }
        Ok(())
    }

    fn push_member(&mut self, value: Value<'a>) -> Result<(), PeerFault> {
        has_room("members", self.members.len(), GROUP_MEMBERS_MAX)?;
        let member = UserId::new(value.text()?);
        self.members.push(member.map_err(|fault| PeerFault::Id { field: "members", fault })?);
        Ok(())
    }

    fn into_call(self, number: u32) -> Result<Call, PeerFault> {
        let (members, devices, version) = (self.members, self.list.devices, self.version);
        let as_admins = self.as_admins;
        let user = || named("user", self.id);
        let group = || named("group", self.id);
        Ok(match number {
            KEYS_PUBLISH => Call::KeysPublish(self.publish),
            KEYS_FETCH => Call::KeysFetch { user: user()?, devices },
            KEY_COUNT => Call::KeyCount,
            DEVICE_LIST_PUT => Call::DeviceListPut(DeviceListPut { devices, ..self.list }),
            DEVICE_LIST_GET => Call::DeviceListGet { user: user()? },
            GROUP_CREATE => Call::GroupCreate { group: group()?, members },
            GROUP_ADD => Call::GroupAdd { group: group()?, members, as_admins, version },
            GROUP_REMOVE => Call::GroupRemove { group: group()?, members, version },
            GROUP_LEAVE => Call::GroupLeave { group: group()? },
            GROUP_GET => Call::GroupGet { group: group()? },
            _ => return Err(PeerFault::UnknownFrame(number)),
        })
    }
}

impl PublicKey {
    fn merged(mut self, frame: &Bytes, value: Value<'_>) -> Result<Self, PeerFault> {
        let mut fields = Fields::new(value.bytes()?);
        while let Some((field, value)) = fields.next()? {
            match field {
                // A uint32 keeps the low bits, by the rules of protobuf.
                1 => {
                    let low = value.varint()? & u64::from(u32::MAX);
                    self.key_id = u32::try_from(low).expect("its low 32 bits");
                }
                2 => self.key = frame.slice_ref(value.bytes()?),
                3 => self.signature = frame.slice_ref(value.bytes()?),
                _ => {}
            }
        }
        Ok(self)
    }
}

fn push_device(devices: &mut Vec<DeviceId>, value: Value<'_>) -> Result<(), PeerFault> {
    has_room("devices", devices.len(), DEVICES_PER_USER_MAX)?;
    let device = DeviceId::new(value.text()?);
    devices.push(device.map_err(|fault| PeerFault::Id { field: "devices", fault })?);
    Ok(())
}

fn has_room(field: &'static str, count: usize, count_max: usize) -> Result<(), CallFault> {
    if count < count_max { Ok(()) } else { Err(CallFault::TooMany { field, count_max }) }
}

/// An absent id is one of 0 bytes.
fn named(field: &'static str, id: Option<&str>) -> Result<UserId, PeerFault> {
    let id: Result<UserId, IdFault> = UserId::new(id.unwrap_or_default());
    id.map_err(|fault| PeerFault::Id { field, fault })
}

// Field numbers of ClientFrame.
const KEYS_PUBLISH: u32 = 24;
const KEYS_FETCH: u32 = 25;
const KEY_COUNT: u32 = 26;
const DEVICE_LIST_PUT: u32 = 27;
const DEVICE_LIST_GET: u32 = 28;
const GROUP_CREATE: u32 = 32;
const GROUP_ADD: u32 = 33;
const GROUP_REMOVE: u32 = 34;
const GROUP_LEAVE: u32 = 35;
const GROUP_GET: u32 = 36;
