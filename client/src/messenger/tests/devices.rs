//! Several devices of one user.

use ringpost_protocol::id::DeviceId;

use super::world::{World, id, phone, with};
use crate::e2ee::{Content, DeviceList, IdentityKey, Payload, hex};
use crate::messenger::{Conversation, News};

/// Alice has a phone and a tablet, and has written to Bob.
fn linked() -> World {
    let mut world = World::of(&["alice", "bob"]);
    world.say("alice", with("bob"), "before");
    world.settle();
    link_tablet(&mut world);
    world
}

fn link_tablet(world: &mut World) {
    world.add("tablet", "alice", "tablet");
    world.settle();
    let code = world.phone("tablet").desk.link_code().unwrap();
    world.phone("alice").desk.link_device(&code).unwrap();
    world.settle();
}

/// The server tells a sender of a new list when it names stale devices; here at once.
fn push_list(world: &mut World, to: &str, user: &str) {
    let list = world.server.lists[&id(user)].clone();
    let phone = world.phone(to);
    phone.desk.handle_list(&mut phone.ledger, &id(user), &list);
}

#[test]
fn new_device_is_linked_by_its_code_and_reads_and_writes() {
    let mut world = linked();
    assert!(world.phone("tablet").news.contains(&News::Linked));
    assert_eq!(world.phone("tablet").desk.link_code(), None);
    let both = ["phone", "tablet"].map(|device| DeviceId::new(device).unwrap()).to_vec();
    let of_devices = |news: &&News| matches!(news, News::Devices { .. });
    let told: Vec<_> = world.phone("alice").news.iter().filter(of_devices).cloned().collect();
    assert_eq!(told, [News::Devices { devices: both }], "when it is in force");
    let of_alice = |world: &mut World, name: &str| world.phone(name).desk.devices(&id("alice"));
    for name in ["tablet", "bob"] {
        assert_eq!(of_alice(&mut world, name).unwrap().len(), 2, "{name}");
    }
    world.say("bob", with("alice"), "to both");
    world.settle();
    for name in ["alice", "tablet"] {
        assert_eq!(world.phone(name).read_texts(), ["to both"], "{name}");
    }
    // What one of them writes the other one shows as its own.
    world.say("tablet", with("bob"), "from the tablet");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["before", "from the tablet"]);
    let copy = world.phone("alice").texts()[1].clone();
    assert_eq!((copy.from, copy.conversation), (id("alice"), with("bob")));
    let (alice, bob) = world.phone("tablet").desk.identities(&id("bob")).unwrap();
    assert_eq!(world.phone("bob").desk.identities(&id("alice")).unwrap(), (bob, alice));
}

/// The code is read before the new device has published anything.
#[test]
fn new_device_is_linked_before_its_keys_are_at_the_server() {
    for others in [false, true] {
        let mut world = World::of(&["alice", "bob"]);
        world.say("alice", with("bob"), "before");
        world.settle();
        if others {
            link_tablet(&mut world);
        }
        world.add("laptop", "alice", "laptop");
        let code = world.phone("laptop").desk.link_code().unwrap();
        let by = if others { "tablet" } else { "alice" };
        world.phone(by).desk.link_device(&code).unwrap();
        world.visit(by);
        world.settle();
        assert!(world.phone("laptop").news.contains(&News::Linked), "{others}");
        // Bob has no session with the tablet, but with the phone.
        let known = world.phone("bob").desk.devices(&id("alice")).unwrap();
        assert_eq!(known.len(), if others { 3 } else { 2 });
    }
}

#[test]
fn both_devices_take_part_in_groups() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    world.phone("alice").desk.create_group(&id("group"), vec![id("bob")]).unwrap();
    world.settle();
    link_tablet(&mut world);
    push_list(&mut world, "bob", "alice");
    let group = Conversation::Group(id("group"));
    world.say("bob", group.clone(), "to both");
    world.settle();
    world.say("tablet", group, "from the tablet");
    world.settle();
    assert_eq!(world.phone("alice").read_texts(), ["to both", "from the tablet"]);
    assert_eq!(world.phone("tablet").read_texts(), ["to both"]);
    assert_eq!(world.phone("bob").read_texts(), ["from the tablet"]);
}

#[test]
fn removed_device_gets_nothing_more() {
    let mut world = linked();
    push_list(&mut world, "bob", "alice");
    let tablet = DeviceId::new("tablet").unwrap();
    let alice = world.phone("alice");
    alice.desk.remove_device(&tablet).unwrap();
    assert!(alice.desk.take_fresh(), "the errands hear of it");
    assert!(alice.desk.waiting.is_empty(), "told before it is in force");
    let (_, signed) = alice.desk.next_own_list().unwrap();
    alice.desk.take_own_list(&mut alice.ledger, &signed);
    alice.desk.settle_changes(0);
    // Only this list has changed.
    let to: Vec<_> = alice.desk.waiting.values().map(|waiting| &waiting.to).collect();
    assert_eq!(to, [&with("alice"), &with("bob")]);
    for waiting in alice.desk.waiting.values() {
        let Content::Lists(lists) = Payload::decode(&waiting.payload).unwrap().content else {
            panic!("no lists");
        };
        assert_eq!(lists.len(), 1);
        assert_eq!(DeviceList::user_of(&lists[0]), Ok(id("alice")));
    }
    world.server.put_list(&phone("alice"), signed, vec![phone("alice").device]);
    world.settle();
    let devices = vec![phone("alice").device];
    assert_eq!(world.phone("alice").news.last(), Some(&News::Devices { devices }));
    // The server may keep it to itself: Bob has it from Alice.
    world.say("bob", with("alice"), "for the phone");
    world.settle();
    assert_eq!(world.phone("alice").read_texts(), ["for the phone"]);
    assert_eq!(world.phone("tablet").read_texts(), Vec::<&str>::new());
    // And what it writes is not believed.
    world.say("tablet", with("bob"), "still me");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["before"]);
}

/// A device that nobody has linked: its owner is told, and nobody shows what it writes.
#[test]
fn device_that_is_not_linked_is_not_believed() {
    let mut world = World::of(&["alice", "bob"]);
    world.say("alice", with("bob"), "before");
    world.settle();
    world.add("thief", "alice", "thief");
    world.settle();
    assert_eq!(world.phone("thief").reasons().len(), 1);
    world.say("thief", with("bob"), "send me money");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["before"]);
    assert_eq!(world.phone("bob").reasons().len(), 1);
}

/// Without the secret of the code: a server that answers in the name of the own user.
#[test]
fn code_of_another_device_links_nothing() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    world.add("tablet", "alice", "tablet");
    world.settle();
    let code = world.phone("tablet").desk.link_code().unwrap();
    let (start, last) = code.split_at(code.len() - 1);
    let other = format!("{start}{}", if last == "0" { "1" } else { "0" });
    world.phone("alice").desk.link_device(&other).unwrap();
    world.settle();
    assert!(!world.phone("tablet").news.contains(&News::Linked));
    assert!(world.phone("tablet").desk.link_code().is_some());
    assert!(world.phone("bob").desk.link_device(&code).is_err(), "another user");
    // The last byte of the secret by one digit, or with a sign.
    let (short, signed) = (&code[..code.len() - 1], format!("{}+f", &code[..code.len() - 2]));
    let own_id = code.replacen(&hex(b"tablet"), &hex(b"phone"), 1);
    let alice = world.phone("alice");
    assert!(alice.desk.link_device(&own_id).is_err(), "the old device itself");
    for bad in ["", "ringpost-link-1", "ringpost-link-1:00", &code[1..], short, &signed] {
        assert!(world.phone("alice").desk.link_device(bad).is_err());
    }
}

/// Envelopes for two devices that do not fit into one Send.
#[test]
fn long_text_to_several_devices_is_sent_and_delivered_once() {
    let mut world = linked();
    push_list(&mut world, "bob", "alice");
    world.phone("bob").news.clear();
    let text = "x".repeat(40 * 1024);
    let message = world.say("bob", with("alice"), &text);
    world.settle();
    for name in ["alice", "tablet"] {
        assert_eq!(world.phone(name).read_texts(), [&text], "{name}");
    }
    let by = id("alice");
    let delivered = News::Delivered { conversation: with("alice"), messages: vec![message], by };
    assert_eq!(world.phone("bob").news, [News::Sent { message }, delivered]);
}

/// The tablet is a reader too, but none of the members whose ticks are waited for.
#[test]
fn both_other_members_of_a_group_tick_when_the_own_tablet_was_first() {
    let mut world = linked();
    world.add("carol", "carol", "phone");
    world.settle();
    let alice = world.phone("alice");
    alice.desk.create_group(&id("group"), vec![id("bob"), id("carol")]).unwrap();
    world.settle();
    push_list(&mut world, "bob", "alice");
    let group = Conversation::Group(id("group"));
    let message = world.say("alice", group.clone(), "hello");
    for name in ["alice", "tablet", "bob", "alice", "carol", "alice"] {
        world.visit(name);
    }
    let by = world.phone("alice").news.iter().filter_map(|news| match news {
        News::Delivered { messages, by, .. } if *messages == [message] => Some(by.clone()),
        _ => None,
    });
    assert_eq!(by.collect::<Vec<_>>(), [id("bob"), id("carol")]);
}

/// While nobody has linked it, a new device takes whatever list the server shows it of its user.
#[test]
fn device_that_saw_two_lists_before_it_was_linked_opens_again() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    world.add("tablet", "alice", "tablet");
    world.say("tablet", with("bob"), "hello");
    world.settle();
    let tablet = world.phone("tablet");
    assert!(tablet.desk.pairs.contains_key(&phone("alice")));
    let mallory = IdentityKey::from_seed([66; 32]);
    let devices = [(phone("alice").device, mallory.public())].into();
    let list = DeviceList { user: id("alice"), version: 1, devices }.sign(&mallory).unwrap();
    tablet.desk.handle_list(&mut tablet.ledger, &id("alice"), &list);
    world.say("tablet", with("bob"), "still here");
    world.crash("tablet");
    let tablet = world.phone("tablet");
    let (_, seen) = tablet.desk.identities(&id("alice")).unwrap();
    assert_eq!(seen, mallory.public());
}
