//! Every rule, over the tables in memory and over those in a file.

use std::collections::BTreeSet;

use ringpost_protocol::message::PublicKey;

use super::*;
use crate::directory::{Directory, Embedded, InMemory};

/// Runs `test` on each kind of directory.
pub(in crate::directory) fn on_each(test: impl Fn(&mut dyn Directory)) {
    test(&mut InMemory::default());
    let place = tempfile::tempdir().unwrap();
    test(&mut Embedded::open(place.path()).unwrap());
}

pub(in crate::directory) fn ask(directory: &mut dyn Directory, request: Request) -> Answer {
    ask_at(directory, 1_000, request)
}

fn ask_at(directory: &mut dyn Directory, now_ms: u64, request: Request) -> Answer {
    let mut answers = directory.apply(now_ms, &[request]).unwrap();
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

pub(in crate::directory) fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

pub(in crate::directory) fn device(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

fn owner(user_id: &str, device_id: &str) -> DeviceAddress {
    DeviceAddress { user: user(user_id), device: device(device_id) }
}

fn key(key_id: u32, signature_bytes: usize) -> PublicKey {
    let signature = vec![7; signature_bytes].into();
    PublicKey { key_id, key: key_id.to_be_bytes().to_vec().into(), signature }
}

pub(in crate::directory) fn publish(
    address: (&str, &str),
    identity: u8,
    one_time: std::ops::Range<u32>,
) -> Request {
    let keys = KeysPublish {
        identity_key: Some(vec![identity; 32].into()),
        signed_prekey: Some(key(1, 64)),
        one_time_keys: one_time.map(|key_id| key(key_id, 0)).collect(),
    };
    Request::Publish { owner: owner(address.0, address.1), keys }
}

pub(in crate::directory) fn fetch(of: &str) -> Request {
    fetch_devices(of, &[], None)
}

fn fetch_devices(of: &str, devices: &[&str], except: Option<&str>) -> Request {
    Request::Fetch {
        user: user(of),
        devices: devices.iter().map(|id| device(id)).collect(),
        except: except.map(device),
        keys_per_hour: PerHour::UNLIMITED,
    }
}

/// Device, one-time key and what is left of each bundle.
pub(in crate::directory) fn taken(answer: &Answer) -> Vec<(&str, Option<u32>, u32)> {
    let Answer::Bundles(bundles) = answer else { panic!("{answer:?}") };
    let taken = bundles.iter().map(|TakenBundle { bundle, stock, .. }| {
        let key_id = bundle.one_time_key.as_ref().map(|key| key.key_id);
        (bundle.device.as_str(), key_id, *stock)
    });
    taken.collect()
}

fn list(version: u64, devices: &[&str]) -> DeviceListPut {
    let devices = devices.iter().map(|id| device(id)).collect();
    DeviceListPut { version, devices, signed_list: vec![3; 80].into() }
}

#[test]
fn each_one_time_key_is_handed_out_once_and_then_the_signed_prekey_alone() {
    on_each(|directory| {
        let published = ask(directory, publish(("bob", "phone"), 1, 10..13));
        assert_eq!(published, Answer::Published { stock: 3 });
        assert_eq!(directory.stock(), 3);
        // Also within one batch.
        let answers = directory.apply(0, &[fetch("bob"), fetch("bob"), fetch("bob")]).unwrap();
        let given: BTreeSet<_> = answers.iter().map(|answer| taken(answer)[0]).collect();
        let all = [("phone", Some(10), 2), ("phone", Some(11), 1), ("phone", Some(12), 0)];
        assert_eq!(given, BTreeSet::from(all));
        let alone = ask(directory, fetch("bob"));
        assert_eq!(taken(&alone), [("phone", None, 0)]);
        let Answer::Bundles(bundles) = alone else { panic!() };
        assert_eq!(bundles[0].bundle.signed_prekey.key_id, 1);
        assert_eq!(bundles[0].bundle.identity_key, vec![1; 32]);
        assert!(!bundles[0].is_limited);
        assert_eq!(
            ask(directory, publish(("bob", "phone"), 1, 13..14)),
            Answer::Published { stock: 1 }
        );
        assert_eq!(taken(&ask(directory, fetch("bob"))), [("phone", Some(13), 0)]);
        assert_eq!(directory.stock(), 0);
    });
}

#[test]
fn published_again_after_a_lost_answer_nothing_is_there_twice() {
    on_each(|directory| {
        ask(directory, publish(("bob", "phone"), 1, 10..20));
        assert_eq!(taken(&ask(directory, fetch("bob")))[0].1, Some(10));
        let again = ask(directory, publish(("bob", "phone"), 1, 10..22));
        assert_eq!(again, Answer::Published { stock: 11 });
        let rest: Vec<_> = (0..11).map(|_| taken(&ask(directory, fetch("bob")))[0].1).collect();
        assert_eq!(rest, (11..22).map(Some).collect::<Vec<_>>());
    });
}

#[test]
fn new_identity_takes_the_old_keys_with_it() {
    on_each(|directory| {
        ask(directory, publish(("bob", "phone"), 1, 10..20));
        let published = ask(directory, publish(("bob", "phone"), 2, 2..4));
        assert_eq!(published, Answer::Published { stock: 2 });
        assert_eq!(directory.stock(), 2);
        assert_eq!(taken(&ask(directory, fetch("bob"))), [("phone", Some(2), 1)]);
        // Its signed prekey is gone until the new identity has signed one.
        let keys = KeysPublish { identity_key: Some(vec![3; 32].into()), ..KeysPublish::default() };
        ask(directory, Request::Publish { owner: owner("bob", "phone"), keys });
        assert_eq!(taken(&ask(directory, fetch("bob"))), []);
    });
}

#[test]
fn keys_need_an_identity_and_the_stock_is_bounded() {
    on_each(|directory| {
        let keys = KeysPublish { one_time_keys: vec![key(1, 0)], ..KeysPublish::default() };
        let nobody = Request::Publish { owner: owner("bob", "phone"), keys };
        assert_eq!(ask(directory, nobody), Answer::NoIdentity);
        let bound = u32::try_from(ONE_TIME_KEYS_MAX).unwrap();
        ask(directory, publish(("bob", "phone"), 1, 0..bound));
        assert_eq!(
            ask(directory, publish(("bob", "phone"), 1, bound..bound + 1)),
            Answer::StockFull
        );
        assert_eq!(
            ask(directory, Request::Count { owner: owner("bob", "phone") }),
            Answer::Stock(Some(bound))
        );
        assert_eq!(
            ask(directory, Request::Count { owner: owner("bob", "pad") }),
            Answer::Stock(None)
        );
        for index in 1..DEVICES_PER_USER_MAX {
            let name = format!("device {index}");
            assert!(matches!(
                ask(directory, publish(("bob", &name), 1, 0..1)),
                Answer::Published { .. }
            ));
        }
        assert_eq!(ask(directory, publish(("bob", "one more"), 1, 0..1)), Answer::StockFull);
        assert!(matches!(
            ask(directory, publish(("bob", "phone"), 1, 0..1)),
            Answer::Published { .. }
        ));
    });
}

#[test]
fn one_bundle_for_each_wanted_device_of_this_user_alone() {
    on_each(|directory| {
        for (name, id) in [("bob", "a"), ("bob", "b"), ("bo", "bb"), ("bobb", "a")] {
            ask(directory, publish((name, id), 1, 0..5));
        }
        let devices = |request| -> Vec<String> {
            let answer = ask(directory, request);
            taken(&answer).iter().map(|(id, ..)| (*id).to_owned()).collect()
        };
        let mut devices = devices;
        assert_eq!(devices(fetch("bob")), ["a", "b"]);
        assert_eq!(devices(fetch_devices("bob", &["b", "nothing"], None)), ["b"]);
        assert_eq!(devices(fetch_devices("bob", &[], Some("a"))), ["b"]);
        assert_eq!(devices(fetch("nobody")), Vec::<String>::new());
    });
}

#[test]
fn device_lists_follow_one_another_and_removed_devices_give_no_bundles() {
    on_each(|directory| {
        for id in ["a", "b", "c"] {
            ask(directory, publish(("bob", id), 1, 0..5));
        }
        let put = |list| Request::PutList { user: user("bob"), list };
        assert_eq!(
            ask(directory, Request::GetList { user: user("bob") }),
            Answer::List(DeviceListPut::default())
        );
        assert_eq!(ask(directory, put(list(2, &["a"]))), Answer::Conflict { version: 0 });
        assert_eq!(ask(directory, put(list(1, &["a", "b"]))), Answer::Stored { version: 1 });
        assert_eq!(taken(&ask(directory, fetch("bob"))), [("a", Some(0), 4), ("b", Some(0), 4)]);
        assert_eq!(ask(directory, put(list(1, &["a"]))), Answer::Conflict { version: 1 });
        assert_eq!(ask(directory, put(list(2, &["a", "c"]))), Answer::Stored { version: 2 });
        assert_eq!(
            ask(directory, Request::GetList { user: user("bob") }),
            Answer::List(list(2, &["a", "c"]))
        );
        assert_eq!(taken(&ask(directory, fetch("bob"))), [("a", Some(1), 3), ("c", Some(0), 4)]);
        assert_eq!(taken(&ask(directory, fetch_devices("bob", &["b"], None))), []);
        assert_eq!(
            ask(directory, Request::Count { owner: owner("bob", "b") }),
            Answer::Stock(None)
        );
        assert_eq!(directory.stock(), 7);
    });
}

#[test]
fn device_that_is_taken_off_the_list_and_comes_back_hands_out_no_key_twice() {
    on_each(|directory| {
        let mut version = 0;
        let mut lists = |directory: &mut dyn Directory, devices: &[&str]| {
            version += 1;
            let put = Request::PutList { user: user("bob"), list: list(version, devices) };
            assert_eq!(ask(directory, put), Answer::Stored { version });
        };
        lists(directory, &["a", "b"]);
        ask(directory, publish(("bob", "a"), 1, 0..5));
        ask(directory, publish(("bob", "b"), 2, 0..5));
        assert_eq!(taken(&ask(directory, fetch("bob"))), [("a", Some(0), 4), ("b", Some(0), 4)]);
        lists(directory, &["a"]);
        lists(directory, &["a", "b"]);
        assert_eq!(taken(&ask(directory, fetch_devices("bob", &["b"], None))), []);
        // It has not noted that these are published, and is the same device.
        let again = ask(directory, publish(("bob", "b"), 2, 0..8));
        assert_eq!(again, Answer::Published { stock: 3 });
        assert_eq!(taken(&ask(directory, fetch_devices("bob", &["b"], None))), [("b", Some(5), 2)]);
        // Another one of that name begins anew.
        lists(directory, &["a"]);
        let anew = ask(directory, publish(("bob", "b"), 3, 0..2));
        assert_eq!(anew, Answer::Published { stock: 2 });
        assert_eq!(directory.stock(), 4 + 2);
        // There are never too many that are remembered.
        for number in 0..REMOVED_DEVICES_MAX + 4 {
            let name = format!("gone{number}");
            lists(directory, &["a", &name]);
            ask(directory, publish(("bob", &name), 9, 0..1));
        }
        lists(directory, &["a"]);
        let count = ask(directory, Request::Count { owner: owner("bob", "gone3") });
        assert_eq!(count, Answer::Stock(None));
        assert_eq!(
            ask(directory, publish(("bob", "gone0"), 9, 0..1)),
            Answer::Published { stock: 1 }
        );
        assert_eq!(
            ask(directory, publish(("bob", "gone19"), 9, 0..1)),
            Answer::Published { stock: 0 }
        );
    });
}

#[test]
fn rosters_change_only_from_the_expected_version() {
    on_each(|directory| {
        let roster = Roster { members: vec![user("a"), user("b")], admins: vec![user("a")] };
        let put = |expected_version| Request::PutRoster {
            group: user("g"),
            expected_version,
            roster: roster.clone(),
        };
        let none = Answer::Roster { version: 0, roster: Roster::default() };
        assert_eq!(ask(directory, Request::GetRoster { group: user("g") }), none);
        assert_eq!(ask(directory, put(1)), Answer::Conflict { version: 0 });
        assert_eq!(ask(directory, put(0)), Answer::Stored { version: 1 });
        assert_eq!(ask(directory, put(0)), Answer::Conflict { version: 1 });
        assert_eq!(ask(directory, put(1)), Answer::Stored { version: 2 });
        let stored = Answer::Roster { version: 2, roster: roster.clone() };
        assert_eq!(ask(directory, Request::GetRoster { group: user("g") }), stored);
        // A user's list of the same name is another thing.
        let list = ask(directory, Request::GetList { user: user("g") });
        assert_eq!(list, Answer::List(DeviceListPut::default()));
    });
}

#[test]
fn nobody_drains_the_keys_of_a_device_in_a_short_time() {
    on_each(|directory| {
        ask(directory, publish(("bob", "phone"), 1, 0..50));
        ask(directory, publish(("eve", "phone"), 1, 0..50));
        let limited = |of: &str| Request::Fetch {
            user: user(of),
            devices: Vec::new(),
            except: None,
            keys_per_hour: PerHour(10),
        };
        let given = |directory: &mut dyn Directory, of, now_ms| -> usize {
            let answers = (0..20).map(|_| ask_at(directory, now_ms, limited(of)));
            answers.filter(|answer| taken(answer)[0].1.is_some()).count()
        };
        assert_eq!(given(directory, "bob", 1_000), 10);
        assert_eq!(given(directory, "eve", 1_000), 10);
        assert_eq!(given(directory, "bob", 1_000 + 720_000), 2);
        let answer = ask_at(directory, 1_000 + 720_000, limited("bob"));
        let Answer::Bundles(bundles) = answer else { panic!() };
        assert!(bundles[0].is_limited && bundles[0].stock == 38);
    });
}
