//! Two terminals: the development gateway as a newcomer starts it, and `ringpost-chat`.

use std::process::Command;

use crate::support::binaries::binaries;
use crate::support::gateway::{terminate, wait_for_exit};
use crate::support::peer::Place;
use crate::support::terminal::{Terminal, chat_command, start_development_gateway};

#[test]
fn two_terminals_talk() {
    let place = Place::new();
    let data = place.file("data");
    let (mut gateway, address) = start_development_gateway(&data);
    let start = |user: &str| Terminal::start(chat_command(user, address, &data, &place.file(user)));
    let (mut alice, mut bob) = (start("alice"), start("bob"));
    alice.say("bob: hello bob");
    bob.expect("alice: hello bob");
    alice.expect("-- sent #1");
    alice.expect("-- delivered #1 to bob");
    bob.say("/to alice");
    bob.say("hello: alice");
    alice.expect("bob: hello: alice");
    let lines = bob.quit();
    assert_eq!(lines.iter().filter(|line| line.starts_with("alice: ")).count(), 1);

    for number in 0..20 {
        alice.say(&format!("bob: while you were away {number}"));
    }
    alice.expect("-- sent #21");
    let mut bob = start("bob");
    bob.expect("alice: while you were away 19");
    alice.expect("-- delivered #21 to bob");
    let lines = bob.quit();
    let got: Vec<&String> = lines.iter().filter(|line| line.starts_with("alice: ")).collect();
    let expected: Vec<String> =
        (0..20).map(|number| format!("alice: while you were away {number}")).collect();
    assert_eq!(got, expected.iter().collect::<Vec<_>>(), "each once, in order");
    alice.quit();

    terminate(&gateway.0);
    assert_eq!(wait_for_exit(&mut gateway.0).code(), Some(0));
    let token = Command::new(&binaries().gateway)
        .args(["token", "--user", "alice", "--device", "phone", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(token.status.success());
    assert_eq!(String::from_utf8(token.stdout).unwrap().trim().split('.').count(), 3);
}

/// A second device is linked, sees what the first one sees, and is taken out; and who types is seen.
#[test]
fn two_terminals_of_one_person() {
    let place = Place::new();
    let data = place.file("data");
    let (_gateway, address) = start_development_gateway(&data);
    let start = |user: &str, device: &str| {
        let store = place.file(&format!("{user}-{device}"));
        let mut command = chat_command(user, address, &data, &store);
        command.args(["--device", device]);
        Terminal::start(command)
    };
    let (mut desk, mut bob) = (start("alice", "desk"), start("bob", "desk"));
    desk.say("bob: hello bob");
    bob.expect("alice: hello bob");
    let mut tablet = start("alice", "tablet");
    tablet.say("/link");
    let shown = tablet.expect_such("a code", |line| line.contains(": /link "));
    let (_, code) = shown.split_once(": /link ").unwrap();
    desk.say("/link ringpost-link-1:nonsense");
    desk.expect_such("a refusal", |line| line.contains("code of the new device cannot be read"));
    desk.say(&format!("/link {code}"));
    desk.expect("-- your devices are now: desk, tablet");
    tablet.expect("-- this device is one of yours now");
    tablet.say("/link");
    tablet.expect("-- this device is one of yours already");
    tablet.say("/devices");
    tablet.expect("-- devices of alice: desk, tablet");

    tablet.say("bob: from the tablet");
    bob.expect("alice: from the tablet");
    desk.expect("alice to bob: from the tablet");
    bob.say("alice: hello both");
    for terminal in [&mut desk, &mut tablet] {
        terminal.expect("bob: hello both");
    }
    bob.say("/devices alice");
    bob.expect("-- devices of alice: desk, tablet");
    bob.say("/typing alice");
    desk.expect("-- bob is typing");

    desk.say("/unlink tablet");
    desk.expect("-- your devices are now: desk");
    desk.say("bob: my tablet is lost");
    bob.expect("alice: my tablet is lost");
    bob.say("/devices alice");
    bob.expect("-- devices of alice: desk");
    bob.say("alice: a secret then");
    desk.expect("bob: a secret then");
    let seen = tablet.quit();
    assert!(!seen.iter().any(|line| line.contains("secret")), "{seen:?}");
    // Nobody has read their own message to themselves.
    let seen = desk.quit();
    assert!(!seen.iter().any(|line| line.contains("by alice")), "{seen:?}");
    bob.quit();
}
