//! Groups of phones.

use super::world::{World, id};
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
