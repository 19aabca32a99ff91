//! Senders who do not know the present devices of a user, or the present members of a group.

use ringpost_protocol::id::DeviceId;

use super::world::{World, id, with};
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
    let now_ms = world.now_ms;
    world.phone("alice").desk.link_device(now_ms, &code).unwrap();
    world.settle();
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
    let now_ms = world.now_ms;
    world.phone("alice").desk.remove_device(now_ms, &tablet).unwrap();
    world.settle();
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

#[test]
fn power_goes_at_any_time_while_devices_and_members_change() {
    for seed in 0..2 {
        let mut world = World::of(&["alice", "bob", "carol"]);
        world.settle();
        world.phone("alice").desk.create_group(&id("group"), vec![id("bob")]).unwrap();
        world.settle();
        world.say("bob", group(), "zero");
        world.say("bob", with("alice"), "zero");
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
