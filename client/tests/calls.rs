//! Calls of an app, against a server in miniature that answers as told.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use ringpost_client::protocol::id::{DeviceId, UserId};
use ringpost_client::protocol::message::{
    Call, DeviceList, DeviceListPut, ErrorCode, GroupState, KeyBundle, KeysPublish, PublicKey,
    Reply, put_device_list, put_group_changed, put_keys_low,
};
use ringpost_client::{CallError, Client, Event, Hint, PathConfig, Transports};
use support::app::wait_until;
use support::gateway::{Gateway, Order};
use tokio::time::timeout;

async fn open(gateway: &Gateway, store: &Path) -> Client {
    let path = PathConfig { transports: Transports::TlsOnly, ..PathConfig::default() };
    Client::open(gateway.client_config(store, path)).await.unwrap()
}

fn answer(gateway: &Gateway, answer: Result<Reply, (ErrorCode, &'static str)>) {
    gateway.state.lock().unwrap().answers.push_back(answer);
}

fn asked(gateway: &Gateway) -> Vec<Call> {
    gateway.state.lock().unwrap().calls.iter().map(|(_, call)| call.clone()).collect()
}

async fn wait_asked(gateway: &Gateway, count: usize) {
    wait_until("the call arrives", || gateway.state.lock().unwrap().calls.len() == count).await;
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn key(key_id: u32, signature: &'static [u8]) -> PublicKey {
    let (key, signature) = (Bytes::from_static(&[7; 32]), Bytes::from_static(signature));
    PublicKey { key_id, key, signature }
}

fn list(user_name: &str) -> DeviceList {
    let signed_list = Bytes::from_static(b"signed");
    DeviceList { user: user(user_name), version: 3, devices: vec![], signed_list }
}

fn state() -> GroupState {
    let members = vec![user("alice"), user("bob")];
    GroupState { group: user("g"), version: 5, members, admins: vec![user("alice")] }
}

#[tokio::test]
async fn each_call_reaches_the_server_and_brings_its_reply() {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(&gateway, store.path()).await;
    let (bob, group, phone) = (user("bob"), user("g"), DeviceId::new("phone").unwrap());

    let keys = KeysPublish { one_time_keys: vec![key(1, b""), key(2, b"")], ..Default::default() };
    answer(&gateway, Ok(Reply::Done));
    client.publish_keys(keys.clone()).await.unwrap();
    let bundle = KeyBundle {
        device: phone.clone(),
        identity_key: Bytes::from_static(&[1; 32]),
        signed_prekey: key(9, &[5; 64]),
        one_time_key: Some(key(2, b"")),
    };
    let bundles = vec![bundle.clone()];
    answer(&gateway, Ok(Reply::KeyBundles { user: bob.clone(), bundles }));
    assert_eq!(client.fetch_keys(bob.clone(), vec![phone.clone()]).await, Ok(vec![bundle]));
    answer(&gateway, Ok(Reply::KeysLow { remaining_count: 41 }));
    assert_eq!(client.key_count().await, Ok(41));
    let put = DeviceListPut { version: 1, devices: vec![phone.clone()], signed_list: Bytes::new() };
    answer(&gateway, Ok(Reply::Done));
    client.put_device_list(put.clone()).await.unwrap();
    answer(&gateway, Ok(Reply::DeviceList(list("bob"))));
    assert_eq!(client.device_list(bob.clone()).await, Ok(list("bob")));
    for _ in 0..4 {
        answer(&gateway, Ok(Reply::GroupState(state())));
    }
    let members = vec![bob.clone()];
    assert_eq!(client.group_create(group.clone(), members.clone()).await, Ok(state()));
    assert_eq!(client.group_add(group.clone(), members.clone(), true, 4).await, Ok(state()));
    assert_eq!(client.group_remove(group.clone(), members.clone(), 0).await, Ok(state()));
    assert_eq!(client.group_get(group.clone()).await, Ok(state()));
    answer(&gateway, Ok(Reply::Done));
    client.group_leave(group.clone()).await.unwrap();

    let expected = [
        Call::KeysPublish(keys),
        Call::KeysFetch { user: bob.clone(), devices: vec![phone] },
        Call::KeyCount,
        Call::DeviceListPut(put),
        Call::DeviceListGet { user: bob },
        Call::GroupCreate { group: group.clone(), members: members.clone() },
        Call::GroupAdd {
            group: group.clone(),
            members: members.clone(),
            as_admins: true,
            version: 4,
        },
        Call::GroupRemove { group: group.clone(), members, version: 0 },
        Call::GroupGet { group: group.clone() },
        Call::GroupLeave { group },
    ];
    assert_eq!(asked(&gateway), expected);
    client.close().await;
    assert_eq!(client.key_count().await, Err(CallError::Closed));
}

#[tokio::test]
async fn refusals_say_why() {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(&gateway, store.path()).await;
    answer(&gateway, Err((ErrorCode::Conflict, "version 8 is stored")));
    let error = client.group_leave(user("g")).await.unwrap_err();
    let text = "version 8 is stored".to_owned();
    assert_eq!(error, CallError::Refused { code: ErrorCode::Conflict, text });
    answer(&gateway, Err((ErrorCode::Unsupported, "not served")));
    assert_eq!(client.key_count().await, Err(CallError::Unsupported));
    answer(&gateway, Ok(Reply::DeviceList(list("mallory"))));
    assert_eq!(client.device_list(user("bob")).await, Err(CallError::WrongReply));
    let nobody = client.group_add(user("g"), vec![], false, 0).await;
    assert!(matches!(nobody, Err(CallError::Invalid(_))), "{nobody:?}");
    assert_eq!(asked(&gateway).len(), 3, "what breaks the protocol is not sent");
}

#[tokio::test]
async fn a_lost_connection_ends_a_change_and_repeats_a_question() {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(&gateway, store.path()).await;
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { client.group_leave(user("g")).await }
    });
    wait_asked(&gateway, 1).await;
    let counting = tokio::spawn({
        let client = client.clone();
        async move { client.key_count().await }
    });
    wait_asked(&gateway, 2).await;
    answer(&gateway, Ok(Reply::KeysLow { remaining_count: 6 }));
    gateway.order(Order::Drop);
    assert_eq!(leaving.await.unwrap(), Err(CallError::ConnectionLost));
    gateway.order(Order::Serve);
    assert_eq!(counting.await.unwrap(), Ok(6));
    let calls = gateway.state.lock().unwrap().calls.clone();
    assert!(matches!(&calls[..], [_, (_, Call::KeyCount), (_, Call::KeyCount)]), "{calls:?}");
    assert_ne!(calls[1].0, calls[2].0, "every request has an id of its own");
}

#[tokio::test]
async fn a_call_without_a_connection_waits_for_one() {
    let gateway = Gateway::start(b"ringpost/1").await;
    gateway.order(Order::Refuse(ErrorCode::HelloTimeout));
    let store = tempfile::tempdir().unwrap();
    let client = open(&gateway, store.path()).await;
    answer(&gateway, Ok(Reply::Done));
    let publishing = tokio::spawn(async move { client.publish_keys(KeysPublish::default()).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!publishing.is_finished());
    gateway.order(Order::Serve);
    publishing.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_the_server_tells_unasked_becomes_hints() {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(&gateway, store.path()).await;
    let mut unasked = Vec::new();
    put_keys_low(&mut unasked, 9);
    put_keys_low(&mut unasked, 8);
    put_device_list(&mut unasked, list("bob"));
    put_group_changed(&mut unasked, "g", 6);
    gateway.state.lock().unwrap().unasked = unasked;
    gateway.order(Order::Serve);
    let mut hints = Vec::new();
    let told = async {
        while hints.last() != Some(&Hint::GroupChanged { group: user("g"), version: 6 }) {
            if let Some(Event::Hint(hint)) = client.next_event().await {
                hints.push(hint);
            }
        }
    };
    timeout(Duration::from_secs(20), told).await.expect("the hints come in time");
    assert!(hints.contains(&Hint::DeviceList(list("bob"))), "{hints:?}");
    assert!(hints.contains(&Hint::KeysLow { remaining_count: 8 }), "{hints:?}");
    let stale = hints.contains(&Hint::KeysLow { remaining_count: 9 });
    assert!(!stale, "only the last of several is told: {hints:?}");
}
