//! The client's way out.

use crate::id::{DeviceId, UserId};
use crate::message::call::{Call, PublicKey};
use crate::wire::{self, client_frame::Frame};

/// The frame that says it.
pub(crate) fn call_frame(request_id: u64, call: &Call) -> Frame {
    match call {
        Call::KeysPublish(publish) => Frame::KeysPublish(wire::KeysPublish {
            request_id,
            identity_key: publish.identity_key.clone().unwrap_or_default(),
            signed_prekey: publish.signed_prekey.as_ref().map(PublicKey::to_wire),
            one_time_keys: publish.one_time_keys.iter().map(PublicKey::to_wire).collect(),
        }),
        Call::KeysFetch { user, devices } => Frame::KeysFetch(wire::KeysFetch {
            request_id,
            user: text(user),
            devices: device_texts(devices),
        }),
        Call::KeyCount => Frame::KeyCount(wire::KeyCount { request_id }),
        Call::DeviceListPut(put) => Frame::DeviceListPut(wire::DeviceListPut {
            request_id,
            version: put.version,
            devices: device_texts(&put.devices),
            signed_list: put.signed_list.clone(),
        }),
        Call::DeviceListGet { user } => {
            Frame::DeviceListGet(wire::DeviceListGet { request_id, user: text(user) })
        }
        Call::GroupCreate { group, members } => Frame::GroupCreate(wire::GroupCreate {
            request_id,
            group: text(group),
            members: texts(members),
        }),
        Call::GroupAdd { group, members, as_admins, version } => Frame::GroupAdd(wire::GroupAdd {
            request_id,
            group: text(group),
            members: texts(members),
            as_admins: *as_admins,
            version: *version,
        }),
        Call::GroupRemove { group, members, version } => Frame::GroupRemove(wire::GroupRemove {
            request_id,
            group: text(group),
            members: texts(members),
            version: *version,
        }),
        Call::GroupLeave { group } => {
            Frame::GroupLeave(wire::GroupLeave { request_id, group: text(group) })
        }
        Call::GroupGet { group } => {
            Frame::GroupGet(wire::GroupGet { request_id, group: text(group) })
        }
    }
}

impl PublicKey {
    pub(super) fn to_wire(&self) -> wire::PublicKey {
        let (key, signature) = (self.key.clone(), self.signature.clone());
        wire::PublicKey { key_id: self.key_id, key, signature }
    }
}

pub(super) fn text(id: &UserId) -> String {
    id.as_str().to_owned()
}

pub(super) fn texts(ids: &[UserId]) -> Vec<String> {
    ids.iter().map(text).collect()
}

pub(super) fn device_texts(devices: &[DeviceId]) -> Vec<String> {
    devices.iter().map(|device| device.as_str().to_owned()).collect()
}
