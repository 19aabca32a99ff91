//! Calls and their replies, made from a script, and what they mean by the generated code alone.

use bytes::Bytes;
use ringpost_protocol::id::{DeviceId, UserId};
use ringpost_protocol::message::{
    Call, DeviceList, DeviceListPut, GroupState, KeyBundle, KeysPublish, PublicKey, Reply,
};
use ringpost_protocol::wire;
use ringpost_protocol::wire::{client_frame, server_frame};

use crate::client_frames::{USERS, text};
use crate::script::Script;

pub(crate) fn call(script: &mut Script<'_>) -> client_frame::Frame {
    use client_frame::Frame;
    let (request_id, name) = (script.number(), text(script, &USERS));
    match script.byte() % 10 {
        0 => Frame::KeysPublish(wire::KeysPublish {
            request_id,
            identity_key: Bytes::copy_from_slice(script.bytes()),
            signed_prekey: script.flag().then(|| key(script)),
            one_time_keys: (0..script.byte() % 104).map(|_| key(script)).collect(),
        }),
        1 => Frame::KeysFetch(wire::KeysFetch { request_id, user: name, devices: names(script) }),
        2 => Frame::KeyCount(wire::KeyCount { request_id }),
        3 => Frame::DeviceListPut(wire::DeviceListPut {
            request_id,
            version: script.number(),
            devices: names(script),
            signed_list: Bytes::copy_from_slice(script.bytes()),
        }),
        4 => Frame::DeviceListGet(wire::DeviceListGet { request_id, user: name }),
        5 => {
            let members = names(script);
            Frame::GroupCreate(wire::GroupCreate { request_id, group: name, members })
        }
        6 => {
            let members = names(script);
            Frame::GroupAdd(wire::GroupAdd {
                request_id,
                group: name,
                members,
                as_admins: script.flag(),
                version: script.number(),
            })
        }
        7 => {
            let members = names(script);
            let version = script.number();
            Frame::GroupRemove(wire::GroupRemove { request_id, group: name, members, version })
        }
        8 => Frame::GroupLeave(wire::GroupLeave { request_id, group: name }),
        _ => Frame::GroupGet(wire::GroupGet { request_id, group: name }),
    }
}

pub(crate) fn reply(script: &mut Script<'_>) -> server_frame::Frame {
    use server_frame::Frame;
    let (request_id, name) = (script.number(), text(script, &USERS));
    match script.byte() % 6 {
        0 => Frame::KeyBundles(wire::KeyBundles {
            request_id,
            user: name,
            bundles: (0..script.byte() % 20)
                .map(|index| wire::KeyBundle {
                    device: format!("d{}", index % 17),
                    identity_key: Bytes::copy_from_slice(script.bytes()),
                    signed_prekey: script.flag().then(|| key(script)),
                    one_time_key: script.flag().then(|| key(script)),
                })
                .collect(),
        }),
        1 => Frame::KeysLow(wire::KeysLow { request_id, remaining_count: 3 }),
        2 => Frame::DeviceList(wire::DeviceList {
            request_id,
            user: name,
            version: script.number(),
            devices: names(script),
            signed_list: Bytes::copy_from_slice(script.bytes()),
        }),
        3 => {
            let (version, members) = (script.number(), names(script));
            let admins = members.iter().take(usize::from(script.byte() % 4)).cloned().collect();
            Frame::GroupState(wire::GroupState {
                request_id,
                group: name,
                version,
                members,
                admins,
            })
        }
        4 => Frame::GroupChanged(wire::GroupChanged { group: name, version: 1 }),
        _ => Frame::Done(wire::Done { request_id }),
    }
}

/// `None` when it breaks a rule, or is no call.
pub(crate) fn meaning_of_call(frame: client_frame::Frame) -> Option<(u64, Call)> {
    use client_frame::Frame;
    let (request_id, call) = match frame {
        Frame::KeysPublish(frame) => (frame.request_id, meaning_of_publish(frame)?),
        Frame::KeysFetch(frame) => {
            let call =
                Call::KeysFetch { user: user(&frame.user)?, devices: devices(frame.devices)? };
            (frame.request_id, call)
        }
        Frame::KeyCount(frame) => (frame.request_id, Call::KeyCount),
        Frame::DeviceListPut(frame) => {
            let legal = frame.version > 0 && frame.signed_list.len() <= 8192;
            let (version, devices) = (legal.then_some(frame.version)?, devices(frame.devices)?);
            let signed_list = frame.signed_list;
            let put = DeviceListPut { version, devices, signed_list };
            (frame.request_id, Call::DeviceListPut(put))
        }
        Frame::DeviceListGet(frame) => {
            (frame.request_id, Call::DeviceListGet { user: user(&frame.user)? })
        }
        Frame::GroupCreate(frame) => {
            let (group, members) = (user(&frame.group)?, members(frame.members, 0, 99)?);
            (frame.request_id, Call::GroupCreate { group, members })
        }
        Frame::GroupAdd(frame) => {
            let (group, members) = (user(&frame.group)?, members(frame.members, 1, 100)?);
            let (as_admins, version) = (frame.as_admins, frame.version);
            (frame.request_id, Call::GroupAdd { group, members, as_admins, version })
        }
        Frame::GroupRemove(frame) => {
            let (group, members) = (user(&frame.group)?, members(frame.members, 1, 100)?);
            let version = frame.version;
            (frame.request_id, Call::GroupRemove { group, members, version })
        }
        Frame::GroupLeave(frame) => {
            (frame.request_id, Call::GroupLeave { group: user(&frame.group)? })
        }
        Frame::GroupGet(frame) => (frame.request_id, Call::GroupGet { group: user(&frame.group)? }),
        _ => return None,
    };
    (request_id != 0).then_some((request_id, call))
}

fn meaning_of_publish(frame: wire::KeysPublish) -> Option<Call> {
    if frame.identity_key.len() > 64 || frame.one_time_keys.len() > 100 {
        return None;
    }
    let identity_key = Some(frame.identity_key).filter(|key| !key.is_empty());
    let signed_prekey = match frame.signed_prekey {
        Some(key) => Some(meaning_of_key(key, 64)?),
        None => None,
    };
    let one_time_keys: Option<Vec<PublicKey>> =
        frame.one_time_keys.into_iter().map(|key| meaning_of_key(key, 0)).collect();
    let one_time_keys = one_time_keys?;
    if !one_time_keys.is_sorted_by(|one, next| one.key_id < next.key_id) {
        return None;
    }
    Some(Call::KeysPublish(KeysPublish { identity_key, signed_prekey, one_time_keys }))
}

/// `None` when it breaks a rule, or is no reply.
pub(crate) fn meaning_of_reply(frame: server_frame::Frame) -> Option<(u64, Reply)> {
    use server_frame::Frame;
    Some(match frame {
        Frame::Done(frame) => (frame.request_id, Reply::Done),
        Frame::KeysLow(frame) => {
            (frame.request_id, Reply::KeysLow { remaining_count: frame.remaining_count })
        }
        Frame::KeyBundles(frame) => {
            let bundles: Option<Vec<KeyBundle>> =
                frame.bundles.into_iter().map(meaning_of_bundle).collect();
            let bundles = bundles.filter(|bundles| bundles.len() <= 16)?;
            all_different(&mut bundles.iter().map(|bundle| &bundle.device).collect::<Vec<_>>())?;
            (frame.request_id, Reply::KeyBundles { user: user(&frame.user)?, bundles })
        }
        Frame::DeviceList(frame) => {
            let signed_list = Some(frame.signed_list).filter(|list| list.len() <= 8192)?;
            let (user, devices) = (user(&frame.user)?, devices(frame.devices)?);
            let list = DeviceList { user, version: frame.version, devices, signed_list };
            (frame.request_id, Reply::DeviceList(list))
        }
        Frame::GroupState(frame) => {
            let (group, members) = (user(&frame.group)?, members(frame.members, 0, 100)?);
            let admins = members_of(frame.admins, &members)?;
            let state = GroupState { group, version: frame.version, members, admins };
            (frame.request_id, Reply::GroupState(state))
        }
        _ => return None,
    })
}

fn meaning_of_bundle(bundle: wire::KeyBundle) -> Option<KeyBundle> {
    let one_time_key = match bundle.one_time_key {
        Some(key) => Some(meaning_of_key(key, 0)?),
        None => None,
    };
    Some(KeyBundle {
        device: DeviceId::new(&bundle.device).ok()?,
        identity_key: Some(bundle.identity_key).filter(|key| (1..=64).contains(&key.len()))?,
        signed_prekey: meaning_of_key(bundle.signed_prekey?, 64)?,
        one_time_key,
    })
}

fn meaning_of_key(key: wire::PublicKey, signature_bytes: usize) -> Option<PublicKey> {
    let legal = (1..=64).contains(&key.key.len()) && key.signature.len() == signature_bytes;
    legal.then_some(PublicKey { key_id: key.key_id, key: key.key, signature: key.signature })
}

fn devices(names: Vec<String>) -> Option<Vec<DeviceId>> {
    let devices: Option<Vec<_>> = names.iter().map(|name| DeviceId::new(name).ok()).collect();
    let devices = devices.filter(|devices| devices.len() <= 16)?;
    all_different(&mut devices.clone())?;
    Some(devices)
}

fn members(names: Vec<String>, min: usize, max: usize) -> Option<Vec<UserId>> {
    let members: Option<Vec<_>> = names.iter().map(|name| user(name)).collect();
    let members = members.filter(|members| (min..=max).contains(&members.len()))?;
    all_different(&mut members.clone())?;
    Some(members)
}

fn members_of(names: Vec<String>, of: &[UserId]) -> Option<Vec<UserId>> {
    members(names, 0, 100).filter(|admins| admins.iter().all(|admin| of.contains(admin)))
}

fn all_different<T: Ord>(all: &mut [T]) -> Option<()> {
    all.sort_unstable();
    all.windows(2).all(|pair| pair[0] != pair[1]).then_some(())
}

pub(crate) fn user(name: &str) -> Option<UserId> {
    UserId::new(name).ok()
}

fn names(script: &mut Script<'_>) -> Vec<String> {
    let count = script.byte() % 104;
    (0..count)
        .map(|index| if script.flag() { text(script, &USERS) } else { format!("n{index}") })
        .collect()
}

fn key(script: &mut Script<'_>) -> wire::PublicKey {
    let signature_bytes = if script.flag() { 64 } else { 0 };
    wire::PublicKey {
        key_id: u32::from(script.byte()),
        key: Bytes::copy_from_slice(script.bytes()),
        signature: vec![5; signature_bytes].into(),
    }
}
