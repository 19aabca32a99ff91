//! Senders who do not know the present devices of a user, or the present members of a group.

use ringpost_protocol::id::DeviceId;

use super::world::{World, id, with};
use crate::e2ee::{Content, Fault};
use crate::limits::GROUPS_PER_VOUCHER_MAX;
use crate::messenger::{Conversation, News};

fn group() -> Conversation {
    Conversation::Group(id("group"))
}

/// Alice has a phone and a tablet; Bob knows the phone only.
fn unseen_tablet() -> World {
    let mut world = World::of(&["alice", "bob"]);
    world.say("bob", with("alice"), "before");
    world.settle();
    link(&mut world, "tablet", "tablet");
    world.phone("bob").news.clear();
    world
}

fn link(world: &mut World, name: &'static str, device: &str) {
    world.add(name, "alice", device);
    world.settle();
    let code = world.phone(name).desk.link_code().unwrap();
    world.phone("alice").desk.link_device(&code).unwrap();
    among_alices(world, name);
}

/// Bob is told, but not online.
fn among_alices(world: &mut World, name: &str) {
    for _ in 0..4 {
        world.visit("alice");
        world.visit(name);
    }
}

fn sent_count(world: &mut World, name: &str) -> usize {
    let is_sent = |news: &&News| matches!(news, News::Sent { .. });
    world.phone(name).news.iter().filter(is_sent).count()
}

#[test]
fn text_reaches_the_device_that_its_writer_did_not_know_and_nobody_twice() {
    for is_silent in [false, true] {
        let mut world = unseen_tablet();
        world.server.is_silent = is_silent;
        world.say("bob", with("alice"), "one");
        world.say("bob", with("alice"), "two");
        world.settle();
        assert_eq!(world.server.stale_sends, 2);
        assert_eq!(world.phone("alice").read_texts(), ["before", "one", "two"]);
        assert_eq!(world.phone("tablet").read_texts(), ["one", "two"]);
        assert_eq!(sent_count(&mut world, "bob"), 2);
        let bob = world.phone("bob");
        assert!(bob.desk.posted.is_empty() && bob.desk.parts.is_empty());
        assert!(bob.desk.waiting.is_empty() && bob.reasons().is_empty());
        world.say("bob", with("alice"), "three");
        world.settle();
        assert_eq!(world.server.stale_sends, 2);
        assert_eq!(world.phone("tablet").read_texts(), ["one", "two", "three"]);
    }
}

#[test]
fn text_for_a_removed_device_only_goes_to_the_one_in_its_place() {
    let mut world = unseen_tablet();
    world.say("bob", with("alice"), "to both");
    world.settle();
    link(&mut world, "laptop", "laptop");
    let tablet = DeviceId::new("tablet").unwrap();
    world.phone("alice").desk.remove_device(&tablet).unwrap();
    among_alices(&mut world, "laptop");
    world.say("bob", with("alice"), "without the tablet");
    world.settle();
    assert_eq!(world.phone("tablet").read_texts(), ["to both"]);
    assert_eq!(world.phone("laptop").read_texts(), ["without the tablet"]);
    assert_eq!(world.phone("alice").read_texts().last(), Some(&"without the tablet"));
    assert_eq!(sent_count(&mut world, "bob"), 2);
}

/// Carol is added, and removed again, while Bob is offline and has the old roster.
#[test]
fn text_to_a_group_is_encrypted_anew_for_the_members_of_the_moment() {
    let mut world = World::of(&["alice", "bob", "carol"]);
    world.settle();
    world.phone("alice").desk.create_group(&id("group"), vec![id("bob")]).unwrap();
    world.settle();
    world.say("bob", group(), "for two");
    world.settle();
    world.phone("alice").desk.add_members(&id("group"), vec![id("carol")]).unwrap();
    world.visit("alice");
    // Bob's phone writes before it has seen the roster with Carol.
    world.say("bob", group(), "for three");
    world.settle();
    assert_eq!(world.server.stale_sends, 1);
    assert_eq!(world.phone("alice").read_texts(), ["for two", "for three"]);
    assert_eq!(world.phone("carol").read_texts(), ["for three"]);
    world.phone("alice").desk.remove_members(&id("group"), vec![id("carol")]).unwrap();
    world.visit("alice");
    world.say("bob", group(), "for two again");
    world.say("bob", group(), "and one more");
    world.settle();
    let texts = ["for two", "for three", "for two again", "and one more"];
    assert_eq!(world.phone("alice").read_texts(), texts);
    assert_eq!(world.phone("carol").read_texts(), ["for three"]);
    assert_eq!(sent_count(&mut world, "bob"), 4);
    for name in ["alice", "bob", "carol"] {
        assert_eq!(world.phone(name).reasons(), Vec::<String>::new(), "{name}");
    }
}

/// Who shares a group with a user is told of the user's devices: the key of the group went out before.
#[test]
fn text_to_a_group_is_read_on_a_new_device_and_not_on_one_that_is_gone() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    world.phone("alice").desk.create_group(&id("group"), vec![id("bob")]).unwrap();
    world.settle();
    world.say("bob", group(), "for one");
    world.settle();
    link(&mut world, "tablet", "tablet");
    world.settle();
    world.say("bob", group(), "for both");
    world.settle();
    assert_eq!(world.phone("tablet").read_texts(), ["for both"]);
    let tablet = DeviceId::new("tablet").unwrap();
    world.phone("alice").desk.remove_device(&tablet).unwrap();
    world.settle();
    // The server still gives it everything.
    world.say("bob", group(), "for one again");
    world.settle();
    assert_eq!(world.phone("tablet").read_texts(), ["for both"]);
    assert_eq!(world.phone("alice").read_texts(), ["for one", "for both", "for one again"]);
}

#[test]
fn two_devices_that_change_their_list_at_once_both_have_their_way() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    link(&mut world, "tablet", "tablet");
    world.add("laptop", "alice", "laptop");
    world.add("watch", "alice", "watch");
    world.settle();
    for (old, new) in [("alice", "laptop"), ("tablet", "watch")] {
        let code = world.phone(new).desk.link_code().unwrap();
        world.phone(old).desk.link_device(&code).unwrap();
    }
    world.settle();
    for name in ["alice", "tablet", "laptop", "watch"] {
        let devices = world.phone(name).desk.devices(&id("alice")).unwrap();
        assert_eq!(devices.len(), 4, "{name}");
        assert!(world.phone(name).desk.own.changes.is_empty(), "{name}");
    }
    for name in ["laptop", "watch"] {
        assert!(world.phone(name).news.contains(&News::Linked), "{name}");
    }
}

#[test]
fn groups_that_were_left_are_forgotten_and_strangers_fill_a_part_only() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    let groups: Vec<_> = (0..=GROUPS_PER_VOUCHER_MAX).map(|n| id(&format!("group {n}"))).collect();
    for group in &groups {
        world.phone("alice").desk.create_group(group, vec![id("bob")]).unwrap();
        world.visit("alice");
        world.visit("bob");
    }
    world.settle();
    let bob = world.phone("bob");
    assert_eq!(bob.desk.groups.len(), GROUPS_PER_VOUCHER_MAX);
    assert_eq!(bob.reasons(), [Fault::TooManyGroups.to_string()]);
    for group in &groups[..3] {
        bob.desk.leave_group(group).unwrap();
    }
    world.settle();
    assert_eq!(world.phone("bob").desk.groups.len(), GROUPS_PER_VOUCHER_MAX - 3);
    world.crash("bob");
    assert_eq!(world.phone("bob").desk.groups.len(), GROUPS_PER_VOUCHER_MAX - 3);
    assert!(world.phone("bob").desk.has_left(&groups[0]));
    // And back again.
    world.phone("alice").desk.add_members(&groups[0], vec![id("bob")]).unwrap();
    world.settle();
    assert!(!world.phone("bob").desk.has_left(&groups[0]));
    world.say("alice", Conversation::Group(groups[0].clone()), "welcome back");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["welcome back"]);
}

#[test]
fn roster_is_signed_once_however_often_there_is_no_room_to_tell_it() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    world.phone("alice").desk.create_group(&id("group"), vec![]).unwrap();
    world.settle();
    let now_ms = world.now_ms;
    let alice = world.phone("alice");
    // Nobody knows this user's keys.
    while alice.desk.has_waiting_room(1, 40 * 1024) {
        let text = Content::Text("x".repeat(20 * 1024));
        alice.desk.write(now_ms, with("nobody"), text).unwrap();
    }
    let small = Content::Text("x".repeat(900));
    while alice.desk.write(now_ms, with("nobody"), small.clone()).is_ok() {}
    alice.desk.add_members(&id("group"), vec![id("bob")]).unwrap();
    world.settle();
    let roster = world.phone("alice").desk.groups[&id("group")].roster.clone().unwrap();
    assert_eq!(roster.members().version, 1);
}

#[test]
fn power_goes_at_any_time_while_devices_and_members_change() {
    for seed in 0..2 {
        let mut world = World::of(&["alice", "bob", "carol"]);
        world.settle();
        world.phone("alice").desk.create_group(&id("group"), vec![id("bob")]).unwrap();
        world.settle();
        world.say("bob", group(), "zero");
        world.say("bob", with("alice"), "first");
        world.settle();
        link(&mut world, "tablet", "tablet");
        world.phone("tablet").news.clear();
        world.phone("alice").desk.add_members(&id("group"), vec![id("carol")]).unwrap();
        world.visit("alice");
        world.cut_power(seed);
        for n in 0..3 {
            world.say("bob", group(), &format!("group {n}"));
            world.say("bob", with("alice"), &format!("alice {n}"));
            for name in ["bob", "alice", "bob", "tablet", "carol"] {
                world.step(name);
            }
        }
        world.power = None;
        world.settle();
        for (name, count) in [("tablet", 6), ("alice", 8), ("carol", 3)] {
            let mut texts = world.phone(name).read_texts();
            texts.sort_unstable();
            let all = texts.len();
            texts.dedup();
            assert_eq!((texts.len(), all), (count, count), "seed {seed} {name} {texts:?}");
            assert_eq!(world.phone(name).reasons(), Vec::<String>::new(), "seed {seed} {name}");
        }
    }
}
