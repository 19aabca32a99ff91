//! Groups of phones.

use super::world::{World, id};
use crate::calls::CallError;
use crate::messenger::directory::{Answer, Errand};
use crate::messenger::errand::unanswered;
use crate::messenger::row::Step;
use crate::messenger::{Conversation, News};

fn group() -> Conversation {
    Conversation::Group(id("group"))
}

fn world() -> World {
    let mut world = World::of(&["alice", "bob", "carol"]);
    world.settle();
    let alice = world.phone("alice");
    alice.desk.create_group(&id("group"), vec![id("bob"), id("carol")]).unwrap();
    world
}

#[test]
fn three_people_talk_in_a_group() {
    let mut world = world();
    world.say("alice", group(), "welcome");
    world.settle();
    world.say("bob", group(), "thanks");
    world.settle();
    world.say("carol", group(), "me too");
    world.settle();
    for (name, expected) in [
        ("alice", ["thanks", "me too"]),
        ("bob", ["welcome", "me too"]),
        ("carol", ["welcome", "thanks"]),
    ] {
        assert_eq!(world.phone(name).read_texts(), expected, "{name}");
        assert_eq!(world.phone(name).reasons(), Vec::<String>::new(), "{name}");
    }
    let delivered = world.phone("alice").news.iter();
    let by: Vec<_> = delivered
        .filter_map(|news| match news {
            News::Delivered { by, conversation, .. } if *conversation == group() => {
                Some(by.clone())
            }
            _ => None,
        })
        .collect();
    assert_eq!(by, [id("bob"), id("carol")]);
}

#[test]
fn who_is_added_reads_from_then_on_and_who_is_removed_no_more() {
    let mut world = world();
    world.add("dave", "dave", "phone");
    world.say("alice", group(), "before");
    world.settle();
    world.phone("alice").desk.add_members(&id("group"), vec![id("dave")]).unwrap();
    world.settle();
    world.say("bob", group(), "with Dave");
    world.settle();
    world.phone("alice").desk.remove_members(&id("group"), vec![id("carol")]).unwrap();
    world.settle();
    // A server that still sends her everything.
    world.server.groups.get_mut(&id("group")).unwrap().insert(id("carol"));
    world.say("bob", group(), "without Carol");
    world.settle();
    assert_eq!(world.phone("dave").read_texts(), ["with Dave", "without Carol"]);
    assert_eq!(world.phone("carol").read_texts(), ["before", "with Dave"]);
    assert_eq!(world.phone("alice").read_texts(), ["with Dave", "without Carol"]);
    let is_out = |news: &News| matches!(news, News::Group { is_member: false, .. });
    assert!(world.phone("carol").news.iter().any(is_out));
    // And takes her back.
    world.phone("alice").desk.add_members(&id("group"), vec![id("carol")]).unwrap();
    world.settle();
    world.say("carol", group(), "here again");
    world.settle();
    for name in ["alice", "bob", "dave"] {
        assert_eq!(world.phone(name).read_texts().last(), Some(&"here again"), "{name}");
    }
}

#[test]
fn who_leaves_is_signed_out_by_the_administrator() {
    let mut world = world();
    world.say("alice", group(), "welcome");
    world.settle();
    world.phone("bob").desk.leave_group(&id("group")).unwrap();
    world.settle();
    assert_eq!(
        world.phone("carol").desk.members(&id("group")),
        Some(vec![id("alice"), id("carol")])
    );
    world.server.groups.get_mut(&id("group")).unwrap().insert(id("bob"));
    world.say("carol", group(), "Bob is gone");
    world.settle();
    assert_eq!(world.phone("alice").read_texts(), ["Bob is gone"]);
    assert_eq!(world.phone("bob").read_texts(), ["welcome"]);
    let now_ms = world.now_ms;
    let text = crate::e2ee::Content::Text("I am back".into());
    world.phone("bob").desk.write(now_ms, group(), text).unwrap();
    world.settle();
    let is_not_sent = |news: &News| matches!(news, News::NotSent { .. });
    assert!(world.phone("bob").news.iter().any(is_not_sent));
}

/// The server lists somebody whom the administrator never named.
#[test]
fn ghost_member_of_the_server_gets_no_key() {
    let mut world = world();
    world.add("ghost", "ghost", "phone");
    world.settle();
    world.server.groups.get_mut(&id("group")).unwrap().insert(id("ghost"));
    for name in ["alice", "bob", "carol"] {
        world.say(name, group(), "secret");
        world.settle();
    }
    assert_eq!(world.phone("ghost").read_texts(), Vec::<&str>::new());
    assert_eq!(world.phone("carol").read_texts(), ["secret", "secret"]);
}

#[test]
fn power_goes_at_any_time_and_the_group_reads_everything_once() {
    for seed in 0..2 {
        let mut world = World::of(&["alice", "bob", "carol"]);
        world.settle();
        world.cut_power(seed);
        let alice = world.phone("alice");
        alice.desk.create_group(&id("group"), vec![id("bob"), id("carol")]).unwrap();
        world.say("alice", group(), "a");
        for _ in 0..10 {
            for name in ["alice", "bob", "carol"] {
                world.step(name);
            }
        }
        world.power = None;
        world.settle();
        world.cut_power(seed + 100);
        for n in 0..4 {
            world.say("bob", group(), &format!("b{n}"));
            world.say("carol", group(), &format!("c{n}"));
            for _ in 0..2 {
                for name in ["alice", "bob", "carol"] {
                    world.step(name);
                }
            }
        }
        world.power = None;
        world.settle();
        for (name, count) in [("alice", 8), ("bob", 5), ("carol", 5)] {
            let mut texts = world.phone(name).read_texts();
            assert_eq!(texts.len(), count, "seed {seed} {name} {texts:?}");
            texts.sort_unstable();
            texts.dedup();
            assert_eq!(texts.len(), count, "seed {seed} {name}");
            assert_eq!(world.phone(name).reasons(), Vec::<String>::new(), "seed {seed} {name}");
        }
    }
}

/// A call that the server would end the connection for: it never goes out, however often it is tried.
#[test]
fn step_that_cannot_be_asked_for_is_told_and_blocks_nothing() {
    let mut world = world();
    world.settle();
    world.phone("alice").desk.add_members(&id("group"), Vec::new()).unwrap();
    world.say("alice", group(), "after it");
    world.settle();
    let is_refused = |news: &&News| matches!(news, News::GroupRefused { .. });
    assert_eq!(world.phone("alice").news.iter().filter(is_refused).count(), 1);
    assert_eq!(world.phone("bob").read_texts(), ["after it"]);
}

#[test]
fn call_is_tried_again_only_when_another_try_may_go_better() {
    let errand = Errand::Group(id("group"), Step::Leave);
    for fault in [CallError::Unsupported, CallError::WrongReply] {
        let reason = fault.to_string();
        assert_eq!(unanswered(&errand, &fault), Answer::Refused(reason));
    }
    for fault in [CallError::ConnectionLost, CallError::TooMany, CallError::Closed] {
        assert_eq!(unanswered(&errand, &fault), Answer::Failed);
    }
}

#[test]
fn group_key_outlives_a_full_outbox() {
    let mut world = world();
    world.say("alice", group(), "first");
    world.settle();
    let has_key =
        |world: &mut World| world.phone("alice").desk.groups[&id("group")].sender.is_some();
    assert!(has_key(&mut world));
    let text = "x".repeat(40 * 1024);
    while world.phone("alice").desk.waiting.is_empty() {
        world.say("alice", group(), &text);
    }
    assert!(has_key(&mut world));
}

#[test]
fn texts_to_a_group_that_was_never_made_are_told_not_to_be_sent() {
    let mut world = world();
    world.server.is_full = true;
    let message = world.say("alice", group(), "anybody here?");
    world.settle();
    let news = &world.phone("alice").news;
    let is_refused = |news: &News| matches!(news, News::GroupRefused { .. });
    assert!(news.iter().any(is_refused), "{news:?}");
    let is_not_sent =
        |news: &News| matches!(news, News::NotSent { message: of, .. } if *of == message);
    assert!(news.iter().any(is_not_sent), "{news:?}");
    // Also after a restart the same id is free for another try.
    world.crash("alice");
    assert!(world.phone("alice").desk.groups.is_empty());
    world.server.is_full = false;
    world.phone("alice").desk.create_group(&id("group"), vec![id("bob")]).unwrap();
    world.say("alice", group(), "now");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["now"]);
}
