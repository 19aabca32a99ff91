//! Two people who are never online together.

use ringpost_protocol::id::{InstallId, SendSeq};

use super::world::{World, id, phone, with};
use crate::event::Message;
use crate::messenger::News;
use crate::messenger::row::Row;

#[test]
fn two_people_who_are_never_online_together_exchange_messages() {
    let mut world = World::of(&["alice", "bob"]);
    world.visit("bob");
    let first = world.say("alice", with("bob"), "hello marker");
    world.visit("alice");
    world.visit("bob");
    assert_eq!(world.phone("bob").read_texts(), ["hello marker"]);
    world.say("bob", with("alice"), "hello yourself");
    world.visit("bob");
    world.visit("alice");
    assert_eq!(world.phone("alice").read_texts(), ["hello yourself"]);
    let news = &world.phone("alice").news;
    let delivered =
        |news: &News| matches!(news, News::Delivered { messages, .. } if messages == &[first]);
    assert!(news.contains(&News::Sent { message: first }), "{news:?}");
    assert!(news.iter().any(delivered), "{news:?}");
    let question = world.phone("bob").texts()[0].clone();
    let answer = world.phone("alice").texts()[0].clone();
    assert!(question.time < answer.time && answer.missing.is_empty());
    assert!(!world.server.seen.iter().any(|bytes| bytes.windows(6).any(|part| part == b"marker")));
}

#[test]
fn first_message_goes_with_and_without_a_one_time_prekey() {
    for is_exhausted in [false, true] {
        let mut world = World::of(&["alice", "bob"]);
        world.visit("bob");
        let keys = world.server.keys.get_mut(&phone("bob")).unwrap();
        assert_eq!(keys.one_time.len(), 100);
        if is_exhausted {
            keys.one_time.clear();
        }
        world.say("alice", with("bob"), "hello");
        world.settle();
        assert_eq!(world.phone("bob").read_texts(), ["hello"]);
        let kept = world.server.keys[&phone("bob")].one_time.len();
        assert_eq!(kept, if is_exhausted { 100 } else { 99 }, "refilled when it ran out");
    }
}

#[test]
fn message_to_somebody_who_has_no_keys_yet_waits_on_disk() {
    let mut world = World::of(&["alice", "bob"]);
    world.say("alice", with("bob"), "one");
    world.say("alice", with("bob"), "two");
    world.visit("alice");
    assert!(world.server.seen.is_empty());
    world.crash("alice");
    world.visit("bob");
    world.settle();
    assert_eq!(world.phone("bob").read_texts(), ["one", "two"]);
}

/// Both phones lose power between any two steps: nothing is lost, doubled or unreadable.
#[test]
fn power_goes_at_any_time_and_everything_arrives_once() {
    for seed in 0..4 {
        let mut world = World::of(&["alice", "bob"]);
        world.cut_power(seed);
        for n in 0..10 {
            world.say("alice", with("bob"), &format!("a{n}"));
            world.say("bob", with("alice"), &format!("b{n}"));
            for _ in 0..3 {
                world.step("alice");
                world.step("bob");
            }
        }
        world.power = None;
        world.settle();
        let told = |letter: &str| (0..10).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
        for (name, other) in [("alice", "b"), ("bob", "a")] {
            let texts = world.phone(name).read_texts();
            assert_eq!(texts, told(other), "seed {seed}");
            assert_eq!(world.phone(name).reasons(), Vec::<String>::new(), "seed {seed}");
        }
    }
}

#[test]
fn text_to_oneself_on_the_only_device_is_sent_at_once() {
    let mut world = World::of(&["alice"]);
    let message = world.say("alice", with("alice"), "buy milk");
    world.visit("alice");
    assert_eq!(world.phone("alice").news, [News::Sent { message }]);
    assert!(world.server.seen.is_empty());
}

/// All secrets of the prekeys are in that row.
#[test]
fn own_keys_are_written_only_when_a_first_message_spends_some() {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    let list = world.server.lists[&id("alice")].clone();
    let bob = world.phone("bob");
    bob.desk.handle_list(&mut bob.ledger, &id("alice"), &list);
    for is_first in [true, false] {
        world.visit("bob");
        world.say("alice", with("bob"), "hello");
        world.visit("alice");
        let envelope = world.server.envelopes(&phone("bob"))[0].clone();
        let message = Message {
            from: phone("alice"),
            install_id: InstallId(1),
            send_seq: SendSeq(1),
            sent_at_ms: 1,
            group: None,
            urgent: false,
            envelope,
        };
        let now_ms = world.now_ms;
        let bob = world.phone("bob");
        let news = bob.desk.receive(now_ms, &mut bob.ledger, message);
        assert!(matches!(news, Some(News::Text(_))), "{news:?}");
        assert!(bob.desk.dirty.contains(&Row::Pair(phone("alice"))));
        assert_eq!(bob.desk.dirty.contains(&Row::Own), is_first);
        // The answer ends the first messages.
        world.say("bob", with("alice"), "hello");
        world.settle();
    }
}
