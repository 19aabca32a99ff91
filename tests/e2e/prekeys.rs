//! Public keys in the directory: published, taken once each, and over kill -9.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ringpost_protocol::wire::{self, ErrorCode, client_frame, server_frame};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::raw::Raw;
use crate::support::wait_until;

const UNLIMITED: &str = "user_key_reads_per_hour = 0, device_one_time_keys_per_hour = 0";

fn key(key_id: u32, signature_bytes: usize) -> wire::PublicKey {
    let key = Bytes::from(key_id.to_be_bytes().repeat(8));
    wire::PublicKey { key_id, key, signature: vec![9; signature_bytes].into() }
}

fn publish_frame(request_id: u64, one_time: std::ops::Range<u32>) -> client_frame::Frame {
    client_frame::Frame::KeysPublish(wire::KeysPublish {
        request_id,
        identity_key: vec![1; 32].into(),
        signed_prekey: Some(key(1, 64)),
        one_time_keys: one_time.map(|key_id| key(key_id, 0)).collect(),
    })
}

fn fetch_frame(request_id: u64, user: &str) -> client_frame::Frame {
    let user = user.to_owned();
    client_frame::Frame::KeysFetch(wire::KeysFetch { request_id, user, devices: Vec::new() })
}

fn publish(raw: &mut Raw, one_time: std::ops::Range<u32>) {
    raw.send(publish_frame(77, one_time));
    raw.expect(|frame| match frame {
        server_frame::Frame::Done(done) if done.request_id == 77 => Some(()),
        server_frame::Frame::Error(error) => panic!("{error:?}"),
        _ => None,
    });
}

fn fetch(raw: &mut Raw, user: &str) -> wire::KeyBundles {
    raw.send(fetch_frame(5, user));
    raw.expect(|frame| match frame {
        server_frame::Frame::KeyBundles(bundles) => Some(bundles),
        server_frame::Frame::Error(error) => panic!("{error:?}"),
        _ => None,
    })
}

/// What is left, as a warning says or an answer.
fn keys_low(raw: &mut Raw, request_id: u64) -> u32 {
    raw.expect(|frame| match frame {
        server_frame::Frame::KeysLow(low) if low.request_id == request_id => {
            Some(low.remaining_count)
        }
        _ => None,
    })
}

fn count(raw: &mut Raw) -> u32 {
    raw.send(client_frame::Frame::KeyCount(wire::KeyCount { request_id: 8 }));
    keys_low(raw, 8)
}

fn error(raw: &mut Raw) -> wire::Error {
    raw.expect(|frame| match frame {
        server_frame::Frame::Error(error) => Some(error),
        _ => None,
    })
}

#[test]
fn stock_runs_low_is_told_runs_out_and_is_refilled() {
    let gateway = Gateway::start(Settings { limits: UNLIMITED, ..Settings::default() });
    // The owner and who takes live on the same shard, and on different ones.
    for shard in 0..2 {
        let (alice, bob) = (user_at(0, 2, "alice"), user_at(shard, 2, "bob"));
        let mut owner = Raw::open(&gateway, &bob, "phone");
        assert_eq!(count(&mut owner), 0);
        publish(&mut owner, 10..32);
        assert_eq!(count(&mut owner), 22);
        let mut taker = Raw::open(&gateway, &alice, "phone");
        for left in (0..22).rev() {
            let bundles = fetch(&mut taker, &bob);
            assert_eq!((bundles.request_id, &bundles.user), (5, &bob));
            let [bundle] = &bundles.bundles[..] else { panic!("{bundles:?}") };
            assert_eq!(bundle.device, "phone");
            assert_eq!(bundle.signed_prekey, Some(key(1, 64)));
            assert_eq!(bundle.one_time_key, Some(key(31 - left, 0)));
            if left < 20 {
                assert_eq!(keys_low(&mut owner, 0), left, "the owner is warned");
            }
        }
        let exhausted = fetch(&mut taker, &bob);
        assert_eq!(exhausted.bundles[0].one_time_key, None);
        assert_eq!(exhausted.bundles[0].signed_prekey, Some(key(1, 64)));
        drop(owner);
        let mut owner = Raw::open(&gateway, &bob, "phone");
        assert_eq!(keys_low(&mut owner, 0), 0, "told at the next Welcome too");
        publish(&mut owner, 32..132);
        assert_eq!(count(&mut owner), 100);
        assert_eq!(fetch(&mut taker, &bob).bundles[0].one_time_key, Some(key(32, 0)));
        assert!(fetch(&mut taker, "nobody").bundles.is_empty());
    }
    assert!(gateway.metric("ringpost_directory_commits_total") > 0.0);
    assert_eq!(gateway.metric("ringpost_one_time_keys"), 198.0);
    assert_eq!(gateway.metric("ringpost_one_time_keys_exhausted_total"), 2.0);
}

#[test]
fn nine_takers_and_kills_in_between_get_no_key_twice() {
    let mut gateway = Gateway::start(Settings { limits: UNLIMITED, ..Settings::default() });
    let bob = user_at(1, 2, "bob");
    let mut owner = Raw::open(&gateway, &bob, "phone");
    for first in (0..1_000).step_by(100) {
        publish(&mut owner, first..first + 100);
    }
    assert_eq!(count(&mut owner), 1_000);
    drop(owner);
    let taken = Mutex::new(Vec::<u32>::new());
    for kill in 0..4 {
        let is_over = AtomicBool::new(false);
        let before = taken.lock().unwrap().len();
        thread::scope(|scope| {
            for taker in 0..9 {
                let mut raw = Raw::open(&gateway, &format!("taker {taker}"), "phone");
                let (bob, taken, is_over) = (&bob, &taken, &is_over);
                scope.spawn(move || take_until(&mut raw, bob, taken, is_over));
            }
            wait_until("keys are taken", || {
                (taken.lock().unwrap().len() > before + 90).then_some(())
            });
            thread::sleep(Duration::from_millis(5 * kill));
            gateway.kill();
            is_over.store(true, Ordering::Relaxed);
        });
        gateway.restart();
    }
    let mut raw = Raw::open(&gateway, "taker 9", "phone");
    let mut taken = taken.into_inner().unwrap();
    let during_kills = taken.len();
    while let Some(key) = fetch(&mut raw, &bob).bundles[0].one_time_key.take() {
        taken.push(key.key_id);
    }
    let different: BTreeSet<_> = taken.iter().collect();
    assert_eq!(different.len(), taken.len(), "a key was handed out twice");
    println!("{during_kills} taken while it was killed 4 times, {} in all", taken.len());
    // An answer that was lost with its connection is a key that nobody has: at most what a taker had
    // unanswered at each kill.
    assert!(taken.len() <= 1_000 && taken.len() >= 1_000 - 4 * 9 * IN_FLIGHT, "{}", taken.len());
}

/// Requests that each taker has unanswered.
const IN_FLIGHT: usize = 4;

fn take_until(raw: &mut Raw, user: &str, taken: &Mutex<Vec<u32>>, is_over: &AtomicBool) {
    let request = |raw: &mut Raw| raw.try_send(fetch_frame(1, user)).is_ok();
    if !(0..IN_FLIGHT).all(|_| request(raw)) {
        return;
    }
    while !is_over.load(Ordering::Relaxed) {
        let Ok(Some(frame)) = raw.try_read_frame() else { return };
        if let server_frame::Frame::KeyBundles(bundles) = frame {
            let key = bundles.bundles[0].one_time_key.as_ref();
            taken.lock().unwrap().extend(key.map(|key| key.key_id));
            if !request(raw) {
                return;
            }
        }
    }
    // What had arrived before the kill counts too.
    while let Ok(Some(frame)) = raw.try_read_frame() {
        if let server_frame::Frame::KeyBundles(bundles) = frame {
            let key = bundles.bundles[0].one_time_key.as_ref();
            taken.lock().unwrap().extend(key.map(|key| key.key_id));
        }
    }
}

#[test]
fn requests_that_cannot_be_carried_out_are_refused_one_by_one() {
    let limits = "address_exempt = [], user_key_reads_per_hour = 3, \
                  device_one_time_keys_per_hour = 2";
    let gateway = Gateway::start(Settings { limits, ..Settings::default() });
    let mut bob = Raw::open(&gateway, "bob", "phone");
    bob.send(client_frame::Frame::KeysPublish(wire::KeysPublish {
        request_id: 3,
        one_time_keys: vec![key(1, 0)],
        ..wire::KeysPublish::default()
    }));
    let refused = error(&mut bob);
    assert_eq!((refused.code(), refused.request_id), (ErrorCode::NotFound, 3));
    assert!(!refused.fatal);
    publish(&mut bob, 10..60);
    let mut alice = Raw::open(&gateway, "alice", "phone");
    let one_time: Vec<bool> =
        (0..3).map(|_| fetch(&mut alice, "bob").bundles[0].one_time_key.is_some()).collect();
    assert_eq!(one_time, [true, true, false], "nobody drains them");
    alice.send(fetch_frame(9, "bob"));
    let refused = error(&mut alice);
    assert_eq!((refused.code(), refused.request_id), (ErrorCode::LimitReached, 9));
    assert!(!refused.fatal && !refused.text.is_empty());
    // One's own keys are free, and the device that asks is left out.
    assert!(fetch(&mut alice, "alice").bundles.is_empty());
    assert_eq!(gateway.metric("ringpost_one_time_keys_limited_total"), 1.0);
    let hits = "ringpost_bound_hits_total{bound=\"user_key_reads\"}";
    assert_eq!(gateway.metric(hits), 1.0);
    for round in 1..10 {
        publish(&mut bob, round * 100..round * 100 + 100);
    }
    bob.send(publish_frame(4, 2_000..2_100));
    let refused = error(&mut bob);
    assert_eq!((refused.code(), refused.request_id), (ErrorCode::LimitReached, 4));
    assert_eq!(count(&mut bob), 948);
}

/// What is written to the directory costs a sync, as a message does.
#[test]
fn who_publishes_too_fast_is_refused() {
    let limits = "address_exempt = [], user_sends_per_second = 1, user_sends_burst = 3";
    let gateway = Gateway::start(Settings { limits, ..Settings::default() });
    let mut bob = Raw::open(&gateway, "bob", "phone");
    publish(&mut bob, 0..5);
    put_list(&mut bob, 1, &["phone"]).unwrap();
    let codes: Vec<_> = (0..8)
        .map(|_| put_list(&mut bob, 1, &["phone"]).unwrap_err().code())
        .filter(|&code| code != ErrorCode::Conflict)
        .collect();
    assert!(!codes.is_empty() && codes.iter().all(|&code| code == ErrorCode::LimitReached));
    assert!(gateway.metric("ringpost_bound_hits_total{bound=\"user_sends\"}") > 0.0);
    assert_eq!(count(&mut bob), 5, "what is read is no write");
}

fn put_list(raw: &mut Raw, version: u64, devices: &[&str]) -> Result<(), wire::Error> {
    raw.send(client_frame::Frame::DeviceListPut(wire::DeviceListPut {
        request_id: 6,
        version,
        devices: devices.iter().map(|&device| device.to_owned()).collect(),
        signed_list: version.to_be_bytes().to_vec().into(),
    }));
    raw.expect(|frame| match frame {
        server_frame::Frame::Done(_) => Some(Ok(())),
        server_frame::Frame::Error(error) => Some(Err(error)),
        _ => None,
    })
}

/// Version and devices.
fn get_list(raw: &mut Raw, user: &str) -> (u64, Vec<String>) {
    let user = user.to_owned();
    let get = wire::DeviceListGet { request_id: 11, user: user.clone() };
    raw.send(client_frame::Frame::DeviceListGet(get));
    let list = raw.expect(|frame| match frame {
        server_frame::Frame::DeviceList(list) => Some(list),
        server_frame::Frame::Error(error) => panic!("{error:?}"),
        _ => None,
    });
    assert_eq!((list.request_id, list.user), (11, user));
    let signed = if list.version == 0 { vec![] } else { list.version.to_be_bytes().to_vec() };
    assert_eq!(list.signed_list, signed);
    (list.version, list.devices)
}

#[test]
fn device_lists_are_read_from_every_shard_as_they_are_now() {
    let mut gateway = Gateway::start(Settings { limits: UNLIMITED, ..Settings::default() });
    let bob = user_at(1, 2, "bob");
    for shard in 0..2 {
        let alice = user_at(shard, 2, "alice");
        let bob = format!("{bob} {shard}");
        let bob = user_at(1, 2, &bob);
        let mut reader = Raw::open(&gateway, &alice, "phone");
        assert_eq!(get_list(&mut reader, &bob), (0, vec![]), "also kept in memory");
        let (mut phone, mut pad) =
            (Raw::open(&gateway, &bob, "phone"), Raw::open(&gateway, &bob, "pad"));
        publish(&mut phone, 1..5);
        publish(&mut pad, 1..5);
        put_list(&mut phone, 1, &["phone", "pad"]).unwrap();
        let both = vec!["phone".to_owned(), "pad".to_owned()];
        assert_eq!(get_list(&mut reader, &bob), (1, both.clone()));
        let refused = put_list(&mut pad, 1, &["pad"]).unwrap_err();
        assert_eq!((refused.code(), refused.request_id), (ErrorCode::Conflict, 6));
        assert!(!refused.fatal);
        assert_eq!(get_list(&mut reader, &bob), (1, both));
        assert_eq!(fetch(&mut reader, &bob).bundles.len(), 2);
        put_list(&mut phone, 2, &["phone"]).unwrap();
        assert_eq!(get_list(&mut reader, &bob), (2, vec!["phone".to_owned()]));
        let bundles = fetch(&mut reader, &bob).bundles;
        assert_eq!(bundles.len(), 1, "nobody begins a session with a removed device");
        assert_eq!(bundles[0].device, "phone");
        drop((reader, phone, pad));
        gateway.kill();
        gateway.restart();
        let mut reader = Raw::open(&gateway, &alice, "phone");
        assert_eq!(get_list(&mut reader, &bob), (2, vec!["phone".to_owned()]));
    }
    assert!(gateway.metric("ringpost_device_lists_cached") >= 1.0);
}
