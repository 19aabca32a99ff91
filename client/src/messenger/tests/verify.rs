//! Two people compare short numbers.

use super::world::{Phone, World, id, with};
use crate::e2ee::{DeviceList, IdentityKey};
use crate::messenger::{News, WriteFault};

fn acquainted() -> World {
    let mut world = World::of(&["alice", "bob"]);
    world.settle();
    world.say("alice", with("bob"), "hello");
    world.settle();
    world.say("bob", with("alice"), "hello");
    world.settle();
    world
}

fn other(name: &str) -> &'static str {
    if name == "alice" { "bob" } else { "alice" }
}

fn start(world: &mut World, name: &str) {
    let (now_ms, user) = (world.now_ms, id(other(name)));
    world.phone(name).desk.start_verification(now_ms, &user).unwrap();
}

fn finish(world: &mut World, name: &str, is_same: bool) -> Result<(), WriteFault> {
    let (now_ms, user) = (world.now_ms, id(other(name)));
    let Phone { desk, ledger, .. } = world.phone(name);
    desk.finish_verification(now_ms, ledger, &user, is_same)
}

fn numbers(world: &mut World, name: &str) -> Vec<[u16; 3]> {
    let numbers = world.phone(name).news.iter().filter_map(|news| match news {
        News::Compare { numbers, .. } => Some(*numbers),
        _ => None,
    });
    numbers.collect()
}

fn is_verified(world: &mut World, name: &str) -> bool {
    world.phone(name).desk.is_verified(&id(other(name)))
}

fn failures(world: &mut World, name: &str) -> Vec<String> {
    let reasons = world.phone(name).news.iter().filter_map(|news| match news {
        News::VerificationFailed { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    reasons.collect()
}

/// Both see numbers, once.
fn comparing() -> World {
    let mut world = acquainted();
    start(&mut world, "alice");
    world.settle();
    assert!(world.phone("bob").news.contains(&News::VerificationAsked { user: id("alice") }));
    assert_eq!(numbers(&mut world, "alice"), [[0; 3]; 0], "before Bob agrees");
    start(&mut world, "bob");
    world.settle();
    world
}

#[test]
fn who_sees_the_same_numbers_is_verified_until_the_identity_changes() {
    let mut world = comparing();
    let shown = numbers(&mut world, "alice");
    assert_eq!((shown.len(), &shown), (1, &numbers(&mut world, "bob")));
    finish(&mut world, "bob", true).unwrap();
    world.settle();
    assert!(
        !is_verified(&mut world, "alice") && !is_verified(&mut world, "bob"),
        "one is not both"
    );
    finish(&mut world, "alice", true).unwrap();
    world.settle();
    for name in ["alice", "bob"] {
        let news = News::Verified { user: id(other(name)) };
        assert_eq!(world.phone(name).news.iter().filter(|told| **told == news).count(), 1);
        world.crash(name);
        assert!(is_verified(&mut world, name), "{name} keeps it");
    }
    // Another list of the same identity changes nothing; another identity does.
    let alice = world.phone("alice");
    let mut list = alice.desk.contacts[&id("bob")].contact.list().clone();
    list.version += 1;
    let next = list.sign(&world.phone("bob").desk.own.user).unwrap();
    list.version += 1;
    let swapped = DeviceList { ..list }.sign(&IdentityKey::from_seed([66; 32])).unwrap();
    for (list, is_verified) in [(next, true), (swapped, false)] {
        let Phone { desk, ledger, .. } = world.phone("alice");
        desk.handle_list(ledger, &id("bob"), &list);
        assert_eq!(desk.is_verified(&id("bob")), is_verified);
    }
    let alice = world.phone("alice");
    alice.desk.accept_identity(&id("bob")).unwrap();
    assert!(!alice.desk.is_verified(&id("bob")), "the new one is not");
}

#[test]
fn who_sees_other_numbers_is_not_verified_any_more_and_the_other_one_is_told() {
    let mut world = comparing();
    world.phone("bob").desk.set_verified(&id("alice"), true);
    finish(&mut world, "alice", true).unwrap();
    finish(&mut world, "bob", false).unwrap();
    world.settle();
    assert!(!is_verified(&mut world, "alice") && !is_verified(&mut world, "bob"));
    let told = failures(&mut world, "alice");
    assert!(matches!(&told[..], [one] if one.contains("other numbers")), "{told:?}");
    assert_eq!(finish(&mut world, "alice", true), Err(WriteFault::NothingToCompare));
}

/// Who holds another identity for the other one finds out by the confirmation, if nobody looked.
#[test]
fn confirmation_of_another_identity_is_told_to_both() {
    let mut world = acquainted();
    world.phone("bob").desk.own.user = IdentityKey::from_seed([66; 32]);
    start(&mut world, "alice");
    world.settle();
    start(&mut world, "bob");
    world.settle();
    finish(&mut world, "alice", true).unwrap();
    world.settle();
    assert!(!is_verified(&mut world, "alice") && !is_verified(&mut world, "bob"));
    let told = failures(&mut world, "bob");
    assert!(matches!(&told[..], [one] if one.contains("different identity")), "{told:?}");
    let told = failures(&mut world, "alice");
    assert!(matches!(&told[..], [one] if one.contains("broken off")), "{told:?}");
}

#[test]
fn who_asks_at_once_or_has_forgotten_the_question_compares_all_the_same() {
    for crashed in ["nobody", "alice", "bob"] {
        let mut world = acquainted();
        start(&mut world, "alice");
        if crashed != "nobody" {
            world.settle();
            world.crash(crashed);
        }
        if crashed != "bob" {
            start(&mut world, "alice");
        }
        if crashed == "alice" {
            world.settle();
        }
        start(&mut world, "bob");
        world.settle();
        let shown = numbers(&mut world, "alice");
        assert_eq!((shown.len(), &shown), (1, &numbers(&mut world, "bob")), "{crashed}");
        for name in ["alice", "bob"] {
            finish(&mut world, name, true).unwrap();
        }
        world.settle();
        assert!(is_verified(&mut world, "alice") && is_verified(&mut world, "bob"), "{crashed}");
    }
}

#[test]
fn only_the_device_where_the_person_agrees_compares() {
    let mut world = acquainted();
    world.add("tablet", "bob", "tablet");
    world.settle();
    let code = world.phone("tablet").desk.link_code().unwrap();
    world.phone("bob").desk.link_device(&code).unwrap();
    world.settle();
    start(&mut world, "alice");
    world.settle();
    let asked = News::VerificationAsked { user: id("alice") };
    for name in ["bob", "tablet"] {
        assert!(world.phone(name).news.contains(&asked), "{name}");
    }
    let now_ms = world.now_ms;
    for name in ["tablet", "bob"] {
        world.phone(name).desk.start_verification(now_ms, &id("alice")).unwrap();
    }
    world.settle();
    let shown = [numbers(&mut world, "tablet"), numbers(&mut world, "bob")].concat();
    assert_eq!(shown, numbers(&mut world, "alice"), "one of them, whichever was first");
}

#[test]
fn hints_that_one_types_are_few_and_only_for_who_is_there() {
    let mut world = acquainted();
    let say = |world: &mut World, is_typing: bool| {
        world.step("alice");
        let now_ms = world.now_ms;
        let Phone { desk, ledger, .. } = world.phone("alice");
        desk.tell_typing(now_ms, ledger, with("bob"), is_typing).unwrap()
    };
    assert_eq!(
        [false, true, true].map(|is_typing| say(&mut world, is_typing)),
        [false, true, false]
    );
    assert_eq!(
        [false, false, true].map(|is_typing| say(&mut world, is_typing)),
        [true, false, false]
    );
    world.now_ms += crate::limits::TYPING_MS_MIN;
    assert!(say(&mut world, true));
    world.now_ms += crate::limits::HEARD_MS_MAX;
    assert!(!say(&mut world, true), "Bob may be away");
    world.settle();
    world.say("bob", with("alice"), "I am here");
    world.settle();
    assert!(say(&mut world, true));
    // Without a connection it would be old when it leaves.
    world.now_ms += crate::limits::TYPING_MS_MIN;
    let now_ms = world.now_ms;
    let Phone { desk, ledger, .. } = world.phone("alice");
    ledger.connection_ended();
    assert!(!desk.tell_typing(now_ms, ledger, with("bob"), true).unwrap());
    assert!(!desk.tell_typing(now_ms, ledger, with("nobody"), true).unwrap());
}
