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
