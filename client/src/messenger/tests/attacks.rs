//! What one who owns the server and the network can try, and what the people are told.

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, DeviceId, InstallId, SendSeq};

use super::world::{World, id, phone, with};
use crate::e2ee::bundle::SignedPreKey;
use crate::e2ee::{DeviceList, Fault, IdentityKey};
use crate::event::Message;
use crate::limits::HELD_ROWS_MAX;
use crate::messenger::{Conversation, News, WriteFault};

/// Alice and Bob have written to each other.
fn acquainted() -> World {
    let mut world = World::of(&["alice", "bob"]);
    world.visit("bob");
    world.say("alice", with("bob"), "hello");
    world.settle();
    world.say("bob", with("alice"), "hello");
    world.settle();
    world
}

fn mallory() -> IdentityKey {
    IdentityKey::from_seed([66; 32])
}

/// A list for Bob that names a device of Mallory's.
fn list(version: u64) -> DeviceList {
    let device = phone("bob").device;
    let devices = [(device, mallory().public())].into();
    DeviceList { user: id("bob"), version, devices }
}

#[test]
fn flipped_ciphertext_is_told_and_the_next_message_is_read() {
    let mut world = acquainted();
    world.say("alice", with("bob"), "pay 10");
    world.visit("alice");
    let mut envelopes = world.server.envelopes(&phone("bob"));
    let mut bad = envelopes[0].to_vec();
    *bad.last_mut().unwrap() ^= 1;
    *envelopes[0] = bad.into();
    world.say("alice", with("bob"), "pay 20");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["hello", "pay 20"]);
    assert_eq!(world.phone("bob").reasons(), [Fault::Altered.to_string()]);
    // The one that was lost shows.
    assert_eq!(world.phone("bob").texts()[1].missing.len(), 1);
}

#[test]
fn replayed_first_message_is_told_and_not_shown_again() {
    for is_exhausted in [false, true] {
        let mut world = World::of(&["alice", "bob"]);
        world.visit("bob");
        if is_exhausted {
            world.server.keys.get_mut(&phone("bob")).unwrap().one_time.clear();
        }
        world.say("alice", with("bob"), "pay 10");
        world.visit("alice");
        let first = world.server.envelopes(&phone("bob"))[0].clone();
        world.settle();
        world.server.inject(&phone("bob"), &phone("alice"), None, &first);
        world.settle();
        assert_eq!(world.phone("bob").read_texts(), ["pay 10"]);
        assert_eq!(world.phone("bob").reasons(), [Fault::MessageKeyGone.to_string()]);
    }
}

#[test]
fn keys_of_another_identity_are_not_used() {
    let mut world = World::of(&["alice", "bob"]);
    world.visit("bob");
    let keys = world.server.keys.get_mut(&phone("bob")).unwrap();
    keys.identity = mallory().public();
    keys.signed = SignedPreKey::sign(&mallory(), 1, [9; 32]);
    world.say("alice", with("bob"), "secret");
    world.visit("alice");
    assert_eq!(world.phone("alice").reasons(), [Fault::IdentityChanged.to_string()]);
    assert!(world.server.seen.is_empty(), "nothing was sent");
}

#[test]
fn prekey_that_the_device_did_not_sign_is_not_used() {
    let mut world = World::of(&["alice", "bob"]);
    world.visit("bob");
    world.server.keys.get_mut(&phone("bob")).unwrap().signed.key[0] ^= 1;
    world.say("alice", with("bob"), "secret");
    world.visit("alice");
    assert_eq!(world.phone("alice").reasons(), [Fault::ForgedPreKey.to_string()]);
    assert!(world.server.seen.is_empty(), "nothing was sent");
}

#[test]
fn forged_and_old_device_lists_are_told_and_not_used() {
    let mut world = acquainted();
    let good = world.server.lists[&id("bob")].clone();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let alice = world.phone("alice");
    alice.desk.handle_list(&mut alice.ledger, &id("bob"), &forged);
    world.settle();
    assert_eq!(world.phone("alice").reasons(), [Fault::ForgedDeviceList.to_string()]);
    world.say("alice", with("bob"), "still to you");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["hello", "still to you"]);
}

#[test]
fn swapped_identity_stops_everything_until_the_person_decides() {
    let mut world = acquainted();
    let swapped = list(2).sign(&mallory()).unwrap();
    let alice = world.phone("alice");
    alice.desk.handle_list(&mut alice.ledger, &id("bob"), &swapped);
    let refused = alice.desk.write(0, with("bob"), crate::e2ee::Content::Text("secret".into()));
    assert_eq!(refused, Err(WriteFault::Fault(Fault::IdentityChanged)));
    world.visit("alice");
    world.crash("alice");
    world.settle();
    assert_eq!(world.phone("alice").reasons(), [Fault::IdentityChanged.to_string()]);
    let alice = world.phone("alice");
    let before = alice.desk.identities(&id("bob")).unwrap();
    alice.desk.accept_identity(&id("bob")).unwrap();
    let after = alice.desk.identities(&id("bob")).unwrap();
    assert_eq!(after.1, mallory().public());
    assert_ne!(before, after, "another safety number");
}

/// The first list is taken on trust: comparing the safety numbers shows it.
#[test]
fn identity_swapped_before_the_first_contact_shows_in_the_safety_number() {
    for is_swapped in [false, true] {
        let mut world = World::of(&["alice", "bob"]);
        world.settle();
        if is_swapped {
            world.server.lists.insert(id("bob"), list(1).sign(&mallory()).unwrap());
        }
        world.say("alice", with("bob"), "hello");
        world.say("bob", with("alice"), "hello");
        world.settle();
        let (alice, bob) = world.phone("alice").desk.identities(&id("bob")).unwrap();
        let theirs = world.phone("bob").desk.identities(&id("alice")).unwrap();
        assert_eq!((bob, alice) == theirs, !is_swapped);
    }
}

#[test]
fn message_delivered_into_another_conversation_is_not_shown_there() {
    let mut world = World::of(&["alice", "bob", "carol"]);
    world.settle();
    world.phone("alice").desk.create_group(&id("group"), vec![id("bob"), id("carol")]).unwrap();
    world.say("alice", Conversation::Group(id("group")), "to all");
    world.settle();
    world.say("alice", with("bob"), "to Bob alone");
    world.visit("alice");
    let mut envelopes = world.server.envelopes(&phone("bob"));
    let private = envelopes.pop().unwrap().clone();
    world.server.inject(&phone("bob"), &phone("alice"), Some("group"), &private);
    world.server.inject(&phone("bob"), &phone("carol"), None, &private);
    world.server.inject(&phone("carol"), &phone("alice"), None, &private);
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["to all", "to Bob alone"]);
    assert_eq!(world.phone("bob").reasons().len(), 2);
    assert_eq!(world.phone("carol").read_texts(), ["to all"]);
    assert_eq!(world.phone("carol").reasons().len(), 1);
}

#[test]
fn who_was_added_to_a_group_by_the_server_is_reported() {
    let mut world = World::of(&["alice", "bob", "mallory"]);
    world.settle();
    world.phone("alice").desk.create_group(&id("group"), vec![id("bob")]).unwrap();
    world.settle();
    world.server.inject(&phone("bob"), &phone("mallory"), Some("group"), b"let me in");
    world.settle();
    let reasons = world.phone("bob").reasons();
    assert!(matches!(&reasons[..], [one] if one.contains("has not added")), "{reasons:?}");
    assert_eq!(world.phone("bob").read_texts(), Vec::<&str>::new());
}

#[test]
fn device_that_lost_its_sessions_says_so_and_is_written_to_anew() {
    let mut world = acquainted();
    world.phone("bob").desk.pairs.clear();
    world.say("alice", with("bob"), "lost");
    world.settle();
    assert_eq!(world.phone("bob").reasons(), [Fault::NoSession.to_string()]);
    world.say("alice", with("bob"), "read");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["hello", "read"]);
    assert_eq!(world.phone("alice").reasons(), Vec::<String>::new());
}

#[test]
fn disk_shows_nothing_and_opens_with_its_key_only() {
    let mut world = World::of(&["alice", "bob"]);
    world.say("alice", with("bob"), "marker that waits");
    world.visit("bob");
    world.settle();
    world.say("bob", with("alice"), "marker that came");
    world.settle();
    for name in ["alice", "bob"] {
        let bytes = world.phone(name).disk_bytes();
        assert!(!bytes.windows(6).any(|part| part == b"marker"), "{name}");
    }
    let alice = world.phone("alice");
    assert!(matches!(alice.news.first(), Some(News::Sent { .. })));
    assert_eq!(alice.reopen_with([8; 32]), Some(Fault::SealBroken));
    assert_eq!(alice.reopen_with([7; 32]), None);
}

/// A list that is no list: it is told, and asked for again only after a while.
#[test]
fn unusable_first_list_is_not_asked_for_without_end() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    let good = world.server.lists.insert(id("bob"), vec![0]).unwrap();
    world.server.asked_lists = 0;
    world.say("alice", with("bob"), "hello");
    world.visit("alice");
    assert_eq!(world.server.asked_lists, 2, "in 1.5 s, with a second before the next try");
    assert_eq!(world.phone("alice").reasons().len(), 1);
    world.server.lists.insert(id("bob"), good);
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["hello"]);
}

/// Messages of people whose devices are not known yet are held; one of them sends without end.
#[test]
fn who_sends_without_end_drives_out_nothing_of_others() {
    let mut world = World::of(&["alice"]);
    world.settle();
    let now_ms = world.now_ms;
    let alice = world.phone("alice");
    let mut receive = |user: &str, device: usize| {
        let message = Message {
            from: DeviceAddress {
                user: id(user),
                device: DeviceId::new(&format!("device{device}")).unwrap(),
            },
            install_id: InstallId(1),
            send_seq: SendSeq(1),
            sent_at_ms: 1,
            group: None,
            urgent: false,
            envelope: Bytes::from_static(b"for later"),
        };
        assert_eq!(alice.desk.receive(now_ms, &mut alice.ledger, message), None);
    };
    receive("carol", 0);
    for n in 0..HELD_ROWS_MAX + 10 {
        receive("mallory", n % 16);
    }
    world.visit("alice");
    world.crash("alice");
    let alice = world.phone("alice");
    assert_eq!(alice.desk.held.len(), HELD_ROWS_MAX);
    assert!(alice.desk.held.values().any(|held| held.from.user == id("carol")));
    let of_mallory = alice.news.iter().filter(|news| match news {
        News::Undecryptable { from, .. } => from.user == id("mallory"),
        _ => false,
    });
    assert_eq!(of_mallory.count(), 11, "each is told");
}
