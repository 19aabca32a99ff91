//! Senders who do not know all devices of a recipient, or some that are gone.

use bytes::Bytes;
use ringpost_protocol::wire::{
    self, RejectCode, SkipReason, client_frame::Frame, send, server_frame,
};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::raw::Raw;

fn put_list(raw: &mut Raw, version: u64, devices: &[&str]) {
    let devices = devices.iter().map(|device| (*device).to_owned()).collect();
    let signed_list = Bytes::from(format!("signed {version}"));
    let put = wire::DeviceListPut { request_id: version, version, devices, signed_list };
    raw.send(Frame::DeviceListPut(put));
    raw.expect(|frame| match frame {
        server_frame::Frame::Done(done) if done.request_id == version => Some(()),
        server_frame::Frame::Error(error) => panic!("{error:?}"),
        _ => None,
    });
}

fn post(raw: &mut Raw, send_seq: u64, to: &str, version: u64, devices: &[&str]) {
    let envelopes = devices.iter().map(|device| wire::DeviceEnvelope {
        device: (*device).to_owned(),
        envelope: Bytes::from(format!("{send_seq} for {device}")),
    });
    let envelopes = wire::DeviceEnvelopes { envelopes: envelopes.collect() };
    raw.send(Frame::Send(wire::Send {
        send_seq,
        to: Some(send::To::User(to.to_owned())),
        device_list_version: version,
        body: Some(send::Body::PerDevice(envelopes)),
        ..wire::Send::default()
    }));
}

/// The devices that were skipped, as why.
fn skipped(raw: &mut Raw) -> Result<Vec<(String, SkipReason)>, RejectCode> {
    let (_, answer) = raw.expect_answer();
    let accepted = answer.map_err(|rejected| rejected.code())?;
    let skipped = accepted.skipped_devices.into_iter();
    Ok(skipped.map(|one| (one.device.clone(), one.reason())).collect())
}

/// The list that is told without being asked for.
fn told_list(raw: &mut Raw) -> (String, u64, Vec<String>) {
    raw.expect(|frame| match frame {
        server_frame::Frame::DeviceList(list) => {
            assert_eq!(list.request_id, 0);
            assert_eq!(list.signed_list, format!("signed {}", list.version));
            Some((list.user, list.version, list.devices))
        }
        _ => None,
    })
}

fn envelope(raw: &mut Raw) -> String {
    raw.expect(|frame| match frame {
        server_frame::Frame::Deliver(deliver) => {
            Some(String::from_utf8(deliver.envelope.to_vec()).unwrap())
        }
        _ => None,
    })
}

#[test]
fn sender_with_an_old_list_reaches_the_devices_of_the_present_one_and_is_told_the_rest() {
    let mut gateway = Gateway::start(Settings::default());
    for shard in 0..2 {
        let (alice, bob) = (user_at(0, 2, "alice"), user_at(shard, 2, "bob"));
        let mut sender = Raw::open(&gateway, &alice, "phone");
        let [mut phone, mut tablet, mut old] =
            ["phone", "tablet", "old"].map(|device| Raw::open(&gateway, &bob, device));

        let number = 10 * shard as u64;
        // Nothing is checked while there is no list, nor for who names no version.
        post(&mut sender, number + 1, &bob, 7, &["phone", "old"]);
        assert_eq!(skipped(&mut sender), Ok(vec![]));
        assert_eq!(envelope(&mut phone), format!("{} for phone", number + 1));
        put_list(&mut phone, 1, &["old", "phone"]);
        put_list(&mut phone, 2, &["phone", "tablet"]);
        post(&mut sender, number + 2, &bob, 0, &["old"]);
        assert_eq!(skipped(&mut sender), Ok(vec![]));
        assert_eq!(envelope(&mut old), format!("{} for old", number + 1));
        assert_eq!(envelope(&mut old), format!("{} for old", number + 2));

        let stale = |device: &str| (device.to_owned(), SkipReason::Stale);
        post(&mut sender, number + 3, &bob, 1, &["old", "phone"]);
        assert_eq!(skipped(&mut sender), Ok(vec![stale("old"), stale("tablet")]));
        let present = (bob.clone(), 2, vec!["phone".to_owned(), "tablet".to_owned()]);
        assert_eq!(told_list(&mut sender), present);
        post(&mut sender, number + 4, &bob, 2, &["tablet"]);
        assert_eq!(skipped(&mut sender), Ok(vec![]));
        assert_eq!(envelope(&mut phone), format!("{} for phone", number + 3));
        assert_eq!(envelope(&mut tablet), format!("{} for tablet", number + 4));

        // A list that the server has not heard of yet is the sender's business.
        post(&mut sender, number + 5, &bob, 3, &["old"]);
        assert_eq!(skipped(&mut sender), Ok(vec![]));
        assert_eq!(envelope(&mut old), format!("{} for old", number + 5), "not the stale one");

        post(&mut sender, number + 6, &bob, 1, &["old"]);
        assert_eq!(skipped(&mut sender), Err(RejectCode::StaleDevices));
        assert_eq!(told_list(&mut sender), present);
    }
    // Versions are not in memory after a restart: the list is read, and the Sends keep their order.
    gateway.kill();
    gateway.restart();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let mut sender = Raw::open(&gateway, &alice, "phone");
    post(&mut sender, 101, &bob, 1, &["old", "phone"]);
    post(&mut sender, 102, &bob, 2, &["phone"]);
    post(&mut sender, 103, &bob, 0, &["phone"]);
    assert_eq!(skipped(&mut sender).unwrap().len(), 2);
    assert_eq!(told_list(&mut sender).1, 2);
    assert_eq!(skipped(&mut sender), Ok(vec![]));
    assert_eq!(skipped(&mut sender), Ok(vec![]));
    let mut phone = Raw::open(&gateway, &bob, "phone");
    let read: Vec<String> = (0..5).map(|_| envelope(&mut phone)).collect();
    assert_eq!(read[2..], ["101 for phone", "102 for phone", "103 for phone"]);
}

#[test]
fn what_is_for_all_devices_goes_to_those_on_the_list() {
    let mut gateway = Gateway::start(Settings::default());
    let (alice, group) = (user_at(0, 2, "alice"), user_at(0, 2, "group"));
    let users: Vec<String> = (0..2).map(|shard| user_at(shard, 2, "bob")).collect();
    let mut sender = Raw::open(&gateway, &alice, "phone");
    let create = wire::GroupCreate { request_id: 1, group: group.clone(), members: users.clone() };
    sender.send(Frame::GroupCreate(create));
    sender.expect(|frame| match frame {
        server_frame::Frame::GroupState(state) if state.request_id == 1 => Some(()),
        _ => None,
    });
    let mut send_seq = 0;
    let mut write = |sender: &mut Raw, to: send::To, text: &str| {
        send_seq += 1;
        let body = Some(send::Body::Shared(Bytes::from(text.to_owned())));
        sender.send(Frame::Send(wire::Send { send_seq, to: Some(to), body, ..Default::default() }));
        assert_eq!(skipped(sender), Ok(vec![]), "{text}");
    };
    for bob in &users {
        let [mut phone, mut old] = ["phone", "old"].map(|device| Raw::open(&gateway, bob, device));
        let to_bob = || send::To::User(bob.clone());
        write(&mut sender, to_bob(), "for both");
        assert_eq!([&mut phone, &mut old].map(envelope), ["for both", "for both"]);
        put_list(&mut phone, 1, &["phone"]);
        write(&mut sender, to_bob(), "for one");
        write(&mut sender, send::To::Group(group.clone()), "group");
        // One that comes before its user has put it on the list.
        let mut tablet = Raw::open(&gateway, bob, "tablet");
        write(&mut sender, to_bob(), "not for the new one");
        for text in ["for one", "group", "not for the new one"] {
            assert_eq!(envelope(&mut phone), text);
        }
        put_list(&mut phone, 2, &["phone", "tablet"]);
        write(&mut sender, to_bob(), "for two");
        assert_eq!([&mut phone, &mut tablet].map(envelope), ["for two", "for two"]);
        put_list(&mut phone, 3, &["phone", "tablet", "old"]);
        write(&mut sender, to_bob(), "for all");
        assert_eq!([&mut phone, &mut tablet, &mut old].map(envelope), ["for all"; 3]);
        put_list(&mut phone, 4, &["phone"]);
    }
    // Lists are not in memory after a restart: until this one is read, all get it.
    gateway.kill();
    gateway.restart();
    let mut sender = Raw::open(&gateway, &alice, "phone");
    write(&mut sender, send::To::User(users[1].clone()), "for all as far as is known");
    let mut old = Raw::open(&gateway, &users[1], "old");
    while envelope(&mut old) != "for all as far as is known" {}
    let get = wire::DeviceListGet { request_id: 7, user: users[1].clone() };
    sender.send(Frame::DeviceListGet(get));
    let version = sender.expect(|frame| match frame {
        server_frame::Frame::DeviceList(list) => Some(list.version),
        _ => None,
    });
    assert_eq!(version, 4);
    write(&mut sender, send::To::User(users[1].clone()), "for those on the list");
    put_list(&mut old, 5, &["old"]);
    write(&mut sender, send::To::User(users[1].clone()), "for the old one");
    assert_eq!(envelope(&mut old), "for the old one");
}
