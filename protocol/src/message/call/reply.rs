//! Replies, and what the server tells without being asked: its way out, and the client's way in.

use prost::Message;

use crate::fault::{CallFault, ServerFault};
use crate::frame::put_length;
use crate::id::{DeviceId, UserId};
use crate::limits::{DEVICES_PER_USER_MAX, GROUP_MEMBERS_MAX};
use crate::message::call::put::{device_texts, text, texts};
use crate::message::call::{
    DeviceList, GroupState, KeyBundle, PublicKey, Reply, check_count, check_devices, check_members,
    check_signed_list,
};
use crate::wire::{self, server_frame::Frame};

/// What a frame of the server says about keys, device lists and groups.
pub(crate) enum Told {
    Reply { request_id: u64, reply: Reply },
    KeysLow { remaining_count: u32 },
    DeviceList(DeviceList),
    GroupChanged { group: UserId, version: u64 },
}

/// Answers a call.
pub fn put_reply(out: &mut Vec<u8>, request_id: u64, reply: &Reply) {
    let frame = match reply {
        Reply::Done => Frame::Done(wire::Done { request_id }),
        Reply::KeyBundles { user, bundles } => Frame::KeyBundles(wire::KeyBundles {
            request_id,
            user: text(user),
            bundles: bundles.iter().map(KeyBundle::to_wire).collect(),
        }),
        Reply::KeysLow { remaining_count } => {
            Frame::KeysLow(wire::KeysLow { request_id, remaining_count: *remaining_count })
        }
        Reply::DeviceList(list) => Frame::DeviceList(wire::DeviceList {
            request_id,
            user: text(&list.user),
            version: list.version,
            devices: device_texts(&list.devices),
            signed_list: list.signed_list.clone(),
        }),
        Reply::GroupState(state) => Frame::GroupState(wire::GroupState {
            request_id,
            group: text(&state.group),
            version: state.version,
            members: texts(&state.members),
            admins: texts(&state.admins),
        }),
    };
    put_frame(out, frame);
}

/// Warns a device that its one-time keys run out.
pub fn put_keys_low(out: &mut Vec<u8>, remaining_count: u32) {
    put_reply(out, UNASKED, &Reply::KeysLow { remaining_count });
}

/// The list that a Send did not know.
pub fn put_device_list(out: &mut Vec<u8>, list: DeviceList) {
    put_reply(out, UNASKED, &Reply::DeviceList(list));
}

/// Tells a member that the roster has changed.
pub fn put_group_changed(out: &mut Vec<u8>, group: &str, version: u64) {
    put_frame(out, Frame::GroupChanged(wire::GroupChanged { group: group.to_owned(), version }));
}

/// `None`: the frame is about something else.
pub(crate) fn parse_told(frame: Frame) -> Result<Option<Told>, ServerFault> {
    let (request_id, reply) = match frame {
        Frame::Done(done) => (done.request_id, Reply::Done),
        Frame::KeyBundles(bundles) => (bundles.request_id, parse_bundles(bundles)?),
        Frame::KeysLow(low) => {
            let remaining_count = low.remaining_count;
            if low.request_id == UNASKED {
                return Ok(Some(Told::KeysLow { remaining_count }));
            }
            (low.request_id, Reply::KeysLow { remaining_count })
        }
        Frame::DeviceList(list) => {
            let (request_id, list) = (list.request_id, parse_device_list(list)?);
            if request_id == UNASKED {
                return Ok(Some(Told::DeviceList(list)));
            }
            (request_id, Reply::DeviceList(list))
        }
        Frame::GroupState(state) => (state.request_id, parse_group_state(state)?),
        Frame::GroupChanged(changed) => {
            let group = user_id("group", &changed.group)?;
            return Ok(Some(Told::GroupChanged { group, version: changed.version }));
        }
        _ => return Ok(None),
    };
    Ok(Some(Told::Reply { request_id, reply }))
}

fn parse_bundles(frame: wire::KeyBundles) -> Result<Reply, ServerFault> {
    check_count("bundles", frame.bundles.len(), DEVICES_PER_USER_MAX)?;
    let user = user_id("user", &frame.user)?;
    let mut bundles: Vec<KeyBundle> = Vec::with_capacity(frame.bundles.len());
    for bundle in frame.bundles {
        let missing = CallFault::Missing("signed_prekey");
        let bundle = KeyBundle {
            device: device_id(&bundle.device)?,
            identity_key: bundle.identity_key,
            signed_prekey: bundle.signed_prekey.map(PublicKey::of_wire).ok_or(missing)?,
            one_time_key: bundle.one_time_key.map(PublicKey::of_wire),
        };
        bundle.check()?;
        if bundles.iter().any(|earlier| earlier.device == bundle.device) {
            return Err(CallFault::Repeated("bundles").into());
        }
        bundles.push(bundle);
    }
    Ok(Reply::KeyBundles { user, bundles })
}

fn parse_device_list(list: wire::DeviceList) -> Result<DeviceList, ServerFault> {
    check_count("devices", list.devices.len(), DEVICES_PER_USER_MAX)?;
    let devices: Result<Vec<DeviceId>, _> = list.devices.iter().map(|id| device_id(id)).collect();
    let (user, devices) = (user_id("user", &list.user)?, devices?);
    check_devices("devices", &devices)?;
    check_signed_list(&list.signed_list)?;
    Ok(DeviceList { user, version: list.version, devices, signed_list: list.signed_list })
}

fn parse_group_state(state: wire::GroupState) -> Result<Reply, ServerFault> {
    let read = |ids: &[String]| -> Result<Vec<UserId>, ServerFault> {
        check_count("members", ids.len(), GROUP_MEMBERS_MAX)?;
        let members = ids.iter().map(|id| user_id("members", id));
        let members = members.collect::<Result<Vec<UserId>, ServerFault>>()?;
        check_members(&members, GROUP_MEMBERS_MAX)?;
        Ok(members)
    };
    let (members, admins) = (read(&state.members)?, read(&state.admins)?);
    if !admins.iter().all(|admin| members.contains(admin)) {
        return Err(CallFault::AdminNoMember.into());
    }
    let group = user_id("group", &state.group)?;
    Ok(Reply::GroupState(GroupState { group, version: state.version, members, admins }))
}

impl KeyBundle {
    fn to_wire(&self) -> wire::KeyBundle {
        wire::KeyBundle {
            device: self.device.as_str().to_owned(),
            identity_key: self.identity_key.clone(),
            signed_prekey: Some(self.signed_prekey.to_wire()),
            one_time_key: self.one_time_key.as_ref().map(PublicKey::to_wire),
        }
    }
}

impl PublicKey {
    fn of_wire(key: wire::PublicKey) -> Self {
        Self { key_id: key.key_id, key: key.key, signature: key.signature }
    }
}

fn user_id(field: &'static str, id: &str) -> Result<UserId, ServerFault> {
    UserId::new(id).map_err(|fault| ServerFault::Id { field, fault })
}

fn device_id(id: &str) -> Result<DeviceId, ServerFault> {
    DeviceId::new(id).map_err(|fault| ServerFault::Id { field: "device", fault })
}

fn put_frame(out: &mut Vec<u8>, frame: Frame) {
    let frame = wire::ServerFrame { frame: Some(frame) };
    put_length(out, frame.encoded_len());
    frame.encode_raw(out);
}

/// The request_id of what nobody asked for.
const UNASKED: u64 = 0;
