use bytes::{Bytes, BytesMut};
use prost::Message;

use super::*;
use crate::fault::{PeerFault, ServerFault};
use crate::frame::split_frame;
use crate::id::IdFault;
use crate::limits::FRAME_BYTES_MAX;
use crate::message::{ClientEvent, Request, parse_client_frame, parse_server_frame};
use crate::wire::{self, client_frame, server_frame};

/// What the server makes of it, whether or not a client may say it.
fn parse(frame: client_frame::Frame) -> Result<Request, PeerFault> {
    let frame = wire::ClientFrame { frame: Some(frame) };
    parse_client_frame(frame.encode_to_vec().into())
}

fn told(bytes: &[u8]) -> Result<Option<ClientEvent>, ServerFault> {
    let frame = split_frame(&mut BytesMut::from(bytes), FRAME_BYTES_MAX).unwrap().unwrap();
    parse_server_frame(&frame)
}

fn told_frame(frame: server_frame::Frame) -> Result<Option<ClientEvent>, ServerFault> {
    let frame = wire::ServerFrame { frame: Some(frame) };
    parse_server_frame(&frame.encode_to_vec().into())
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn users(count: usize) -> Vec<UserId> {
    (0..count).map(|index| user(&format!("u{index}"))).collect()
}

fn devices(count: usize) -> Vec<DeviceId> {
    (0..count).map(|index| DeviceId::new(&format!("d{index}")).unwrap()).collect()
}

fn key(key_id: u32, key_bytes: usize, signature_bytes: usize) -> PublicKey {
    PublicKey { key_id, key: vec![7; key_bytes].into(), signature: vec![9; signature_bytes].into() }
}

fn one_time_keys(count: u32) -> Vec<PublicKey> {
    (0..count).map(|key_id| key(key_id, 32, 0)).collect()
}

fn put(version: u64, count: usize, bytes: usize) -> Call {
    let signed_list = vec![3; bytes].into();
    Call::DeviceListPut(DeviceListPut { version, devices: devices(count), signed_list })
}

fn add(group: &UserId, members: Vec<UserId>) -> Call {
    Call::GroupAdd { group: group.clone(), members, as_admins: false, version: 0 }
}

/// Each at its bounds, and near nothing.
fn legal() -> Vec<Call> {
    let (bob, group) = (user("bob"), user(&"g".repeat(128)));
    vec![
        Call::KeysPublish(KeysPublish::default()),
        Call::KeysPublish(KeysPublish {
            identity_key: Some(vec![1; 64].into()),
            signed_prekey: Some(key(u32::MAX, 64, 64)),
            one_time_keys: one_time_keys(100),
        }),
        Call::KeysFetch { user: bob.clone(), devices: vec![] },
        Call::KeysFetch { user: bob.clone(), devices: devices(16) },
        Call::KeyCount,
        put(1, 0, 0),
        put(u64::MAX, 16, 8192),
        Call::DeviceListGet { user: bob },
        Call::GroupCreate { group: group.clone(), members: vec![] },
        Call::GroupCreate { group: group.clone(), members: users(99) },
        add(&group, users(100)),
        Call::GroupAdd { group: group.clone(), members: users(1), as_admins: true, version: 300 },
        Call::GroupRemove { group: group.clone(), members: users(1), version: 400 },
        Call::GroupLeave { group: group.clone() },
        Call::GroupGet { group },
    ]
}

fn publish(with: impl Fn(&mut KeysPublish)) -> Call {
    let mut publish = KeysPublish::default();
    with(&mut publish);
    Call::KeysPublish(publish)
}

fn illegal() -> Vec<(Call, CallFault)> {
    let (bob, group) = (user("bob"), user("g"));
    let twice = |mut all: Vec<UserId>| {
        all.push(all[0].clone());
        all
    };
    let too_many = |field, count_max| CallFault::TooMany { field, count_max };
    let too_long = |field, bytes_max| CallFault::TooLong { field, bytes: bytes_max + 1, bytes_max };
    vec![
        (
            publish(|keys| keys.identity_key = Some(vec![1; 65].into())),
            too_long("identity_key", 64),
        ),
        (publish(|keys| keys.signed_prekey = Some(key(1, 65, 64))), too_long("signed_prekey", 64)),
        (
            publish(|keys| keys.signed_prekey = Some(key(1, 0, 64))),
            CallFault::Missing("signed_prekey"),
        ),
        (
            publish(|keys| keys.signed_prekey = Some(key(1, 32, 63))),
            CallFault::Signature("signed_prekey"),
        ),
        (publish(|keys| keys.one_time_keys = one_time_keys(101)), too_many("one_time_keys", 100)),
        (
            publish(|keys| keys.one_time_keys = vec![key(1, 32, 64)]),
            CallFault::Signature("one_time_keys"),
        ),
        (
            publish(|keys| keys.one_time_keys = vec![key(1, 0, 0)]),
            CallFault::Missing("one_time_keys"),
        ),
        (
            publish(|keys| keys.one_time_keys = vec![key(5, 32, 0), key(5, 31, 0)]),
            CallFault::NotRising("one_time_keys"),
        ),
        (Call::KeysFetch { user: bob.clone(), devices: devices(17) }, too_many("devices", 16)),
        (
            Call::KeysFetch { user: bob, devices: [devices(2), devices(1)].concat() },
            CallFault::Repeated("devices"),
        ),
        (put(0, 1, 1), CallFault::Missing("version")),
        (put(1, 17, 1), too_many("devices", 16)),
        (put(1, 1, 8193), too_long("signed_list", 8192)),
        (Call::GroupCreate { group: group.clone(), members: users(100) }, too_many("members", 99)),
        (
            Call::GroupCreate { group: group.clone(), members: twice(users(3)) },
            CallFault::Repeated("members"),
        ),
        (add(&group, vec![]), CallFault::Missing("members")),
        (add(&group, users(101)), too_many("members", 100)),
        (Call::GroupRemove { group, members: vec![], version: 0 }, CallFault::Missing("members")),
    ]
}

#[test]
fn the_server_reads_the_call_that_the_client_made() {
    for call in legal() {
        assert_eq!(call.check(), Ok(()));
        let parsed = parse(call_frame(u64::MAX, &call));
        assert_eq!(parsed, Ok(Request::Call { request_id: u64::MAX, call: Box::new(call) }));
    }
}

#[test]
fn calls_outside_their_bounds_are_refused_on_both_ends() {
    for (call, fault) in illegal() {
        assert_eq!(call.check(), Err(fault), "{call:?}");
        assert_eq!(parse(call_frame(1, &call)), Err(PeerFault::Call(fault)), "{call:?}");
    }
    let missing = PeerFault::Call(CallFault::Missing("request_id"));
    assert_eq!(parse(call_frame(0, &Call::KeyCount)), Err(missing));
}

#[test]
fn ids_in_calls_are_checked_and_long_lists_are_not_read_to_their_end() {
    use client_frame::Frame;
    let nobody = Frame::KeysFetch(wire::KeysFetch { request_id: 1, ..Default::default() });
    let id = |field, fault| Err(PeerFault::Id { field, fault });
    assert_eq!(parse(nobody), id("user", IdFault::UserLength(0)));
    let group = |members| {
        let group = "g".to_owned();
        parse(Frame::GroupAdd(wire::GroupAdd {
            request_id: 1,
            group,
            members,
            ..Default::default()
        }))
    };
    assert_eq!(group(vec![String::new()]), id("members", IdFault::UserLength(0)));
    let many: Vec<String> = (0..200)
        .map(|index| if index < 100 { format!("u{index}") } else { String::new() })
        .collect();
    let fault = CallFault::TooMany { field: "members", count_max: 100 };
    assert_eq!(group(many), Err(PeerFault::Call(fault)));
}

fn replies() -> Vec<Reply> {
    let bundle = |device: &DeviceId, one_time_key| KeyBundle {
        device: device.clone(),
        identity_key: vec![1; 32].into(),
        signed_prekey: key(3, 32, 64),
        one_time_key,
    };
    let bundles = devices(16);
    vec![
        Reply::Done,
        Reply::KeyBundles { user: user("bob"), bundles: vec![] },
        Reply::KeyBundles {
            user: user("bob"),
            bundles: bundles
                .iter()
                .enumerate()
                .map(|(index, device)| bundle(device, (index > 0).then(|| key(9, 32, 0))))
                .collect(),
        },
        Reply::KeysLow { remaining_count: 0 },
        Reply::DeviceList(list(16)),
        Reply::GroupState(state(users(100), users(100))),
    ]
}

fn state(members: Vec<UserId>, admins: Vec<UserId>) -> GroupState {
    GroupState { group: user("g"), version: 7, members, admins }
}

fn list(count: usize) -> DeviceList {
    let signed_list = vec![4; 8192].into();
    DeviceList { user: user("bob"), version: 2, devices: devices(count), signed_list }
}

#[test]
fn the_client_reads_the_reply_that_the_server_made() {
    for reply in replies() {
        let mut out = Vec::new();
        put_reply(&mut out, 300, &reply);
        let event = ClientEvent::Replied { request_id: 300, reply };
        assert_eq!(told(&out), Ok(Some(event)));
    }
}

#[test]
fn what_nobody_asked_for_is_no_reply() {
    let mut out = Vec::new();
    put_keys_low(&mut out, 12);
    assert_eq!(told(&out), Ok(Some(ClientEvent::KeysLow { remaining_count: 12 })));
    out.clear();
    put_device_list(&mut out, list(3));
    assert_eq!(told(&out), Ok(Some(ClientEvent::DeviceList(list(3)))));
    out.clear();
    put_group_changed(&mut out, "g", 8);
    let changed = ClientEvent::GroupChanged { group: user("g"), version: 8 };
    assert_eq!(told(&out), Ok(Some(changed)));
}

#[test]
fn replies_outside_their_bounds_are_the_servers_fault() {
    let bad = [
        (Reply::DeviceList(list(17)), CallFault::TooMany { field: "devices", count_max: 16 }),
        (
            Reply::GroupState(state(users(101), vec![])),
            CallFault::TooMany { field: "members", count_max: 100 },
        ),
        (Reply::GroupState(state(users(1), users(2))), CallFault::AdminNoMember),
    ];
    for (reply, fault) in bad {
        let mut out = Vec::new();
        put_reply(&mut out, 1, &reply);
        assert_eq!(told(&out), Err(ServerFault::Call(fault)));
    }
    let bundle = wire::KeyBundle {
        device: "phone".into(),
        identity_key: Bytes::from_static(b"key"),
        ..Default::default()
    };
    let user = "bob".to_owned();
    let bundles = wire::KeyBundles { request_id: 1, user, bundles: vec![bundle] };
    let missing = ServerFault::Call(CallFault::Missing("signed_prekey"));
    assert_eq!(told_frame(server_frame::Frame::KeyBundles(bundles)), Err(missing));
}

#[test]
fn each_call_has_one_kind_of_reply() {
    let answers: Vec<Vec<usize>> = legal()
        .iter()
        .map(|call| {
            let fits = replies().iter().map(|reply| call.is_answered_by(reply)).collect::<Vec<_>>();
            (0..fits.len()).filter(|index| fits[*index]).collect()
        })
        .collect();
    let (done, bundles, low, list) = (vec![0], vec![1, 2], vec![3], vec![4]);
    // The group of the calls is not that of the reply.
    let other_group = vec![];
    let expected = [
        &done,
        &done,
        &bundles,
        &bundles,
        &low,
        &done,
        &done,
        &list,
        &other_group,
        &other_group,
        &other_group,
        &other_group,
        &other_group,
        &done,
        &other_group,
    ];
    assert!(answers.iter().eq(expected), "{answers:?}");
    let state = Reply::GroupState(state(vec![], vec![]));
    assert!(Call::GroupGet { group: user("g") }.is_answered_by(&state));
}

#[test]
fn no_key_reaches_a_log() {
    let shown = format!("{:?} {:?}", legal(), replies());
    for secret in ["7, 7, 7", "\\x07", "u57", "[1, 1", "\\x01"] {
        assert!(!shown.contains(secret), "{secret}");
    }
}
