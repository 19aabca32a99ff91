//! The tutorial, as it stands: what is to be typed is typed, what is said to appear appears.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use crate::support::peer::Place;
use crate::support::terminal::{Terminal, chat_command, start_development_gateway};

/// A fenced block: what stands behind its fence, and its lines.
type Block = (Vec<String>, Vec<String>);

struct Reader {
    place: Place,
    gateway: SocketAddr,
    terminals: BTreeMap<String, Terminal>,
    /// The last one that somebody saw.
    safety_number: Option<String>,
    /// Of the new device.
    code: Option<String>,
    /// What each saw in the short comparison.
    short_numbers: Vec<String>,
}

#[test]
fn the_tutorial_does_what_it_says() {
    let place = Place::new();
    let (_gateway, gateway) = start_development_gateway(&place.file("data"));
    let mut reader = Reader {
        place,
        gateway,
        terminals: BTreeMap::new(),
        safety_number: None,
        code: None,
        short_numbers: Vec::new(),
    };
    let blocks = blocks(include_str!("../../client/TUTORIAL.md"));
    assert!(blocks.len() >= 8, "{}", blocks.len());
    for (words, lines) in blocks {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["sh"] => assert_eq!(lines, ["cargo run --release"], "the gateway that runs here"),
            ["sh", "tablet"] => {
                let tablet = "alice --device tablet --store chat-data/tablet";
                assert_eq!(lines, [format!("{START}{tablet}")]);
                reader.start("tablet");
            }
            ["sh", user] => {
                assert_eq!(lines, [format!("{START}{user}")]);
                reader.start(user);
            }
            [user, "again"] => {
                reader.start(user);
                reader.play(user, &lines);
            }
            [user] => reader.play(user, &lines),
            _ => panic!("what is a block of {words:?}?"),
        }
    }
    assert!(reader.safety_number.is_some_and(|number| number.len() == 60));
    let [first, second] = &reader.short_numbers[..] else { panic!("two people compare") };
    assert_eq!(first, second);
}

impl Reader {
    fn start(&mut self, user: &str) {
        let (data, store) = (self.place.file("data"), self.place.file(user));
        let person = if user == "tablet" { "alice" } else { user };
        let mut command = chat_command(person, self.gateway, &data, &store);
        if user == "tablet" {
            command.args(["--device", "tablet"]);
        }
        let terminal = Terminal::start(command);
        let earlier = self.terminals.insert(user.to_owned(), terminal);
        assert!(earlier.is_none(), "{user} has left before");
    }

    fn play(&mut self, user: &str, lines: &[String]) {
        for line in lines {
            let terminal = self.terminals.get_mut(user).expect("started before");
            match line.strip_prefix("> ") {
                Some("/quit") => {
                    self.terminals.remove(user).expect("looked at above").quit();
                }
                Some(typed) => {
                    let number = self.safety_number.as_deref();
                    let number = number.unwrap_or("a number that nobody has read out");
                    let code = self.code.as_deref().unwrap_or("a code that nobody has shown");
                    terminal.say(&typed.replace("NUMBER", number).replace("CODE", code));
                }
                None => {
                    let start = line.strip_suffix("...");
                    let shown = terminal.expect_such(line, |shown| match start {
                        Some(start) => shown.starts_with(start),
                        None => shown == line,
                    });
                    let digits = || shown.chars().filter(char::is_ascii_digit).collect();
                    if shown.starts_with("-- safety number") {
                        self.safety_number = Some(digits());
                    } else if shown.starts_with("-- numbers of") {
                        self.short_numbers.push(digits());
                    } else if let Some((_, code)) = shown.split_once(": /link ") {
                        self.code = Some(code.to_owned());
                    }
                }
            }
        }
    }
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(words), None) => {
                open = Some((words.split(' ').map(str::to_owned).collect(), Vec::new()));
            }
            (None, Some((_, lines))) => lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    blocks
}

#[test]
fn a_script_says_whether_the_conversation_went_as_written() {
    let place = Place::new();
    let data = place.file("data");
    let (_gateway, gateway) = start_development_gateway(&data);
    let script = |user, text| scripted(&place, gateway, user, text);
    // Bob exists from here on.
    Terminal::start(chat_command("bob", gateway, &data, &place.file("bob"))).quit();
    let alice = script("alice", "# a comment\nbob: hello\nexpect -- sent #1\nexpect bob: hi\n");
    let bob = script("bob", "expect alice: hello\nalice: hi\nexpect -- read #1 by alice\n");
    let (alice, bob) = (Terminal::start(alice), Terminal::start(bob));
    assert!(alice.wait().contains(&"bob: hi".to_owned()));
    assert!(bob.wait().contains(&"alice: hello".to_owned()));

    let wrong = place.file("wrong");
    let mut never = chat_command("carol", gateway, &data, &wrong);
    never.arg("--script").arg(place.file("nowhere"));
    assert!(!never.output().unwrap().status.success(), "a script that is not there");
}

/// What was kept from an earlier run is sent, too, and its answer is not taken for another one's.
#[test]
fn a_script_ends_when_its_own_texts_are_answered() {
    let place = Place::new();
    let data = place.file("data");
    let (_gateway, gateway) = start_development_gateway(&data);
    // Nobody is called bob yet.
    let mut early = Terminal::start(chat_command("alice", gateway, &data, &place.file("alice")));
    (1..=20).for_each(|number| early.say(&format!("bob: kept {number}")));
    assert!(!early.quit().contains(&"-- sent #1".to_owned()));
    let bob = scripted(&place, gateway, "bob", "expect alice: kept 20\nexpect alice: new 20\n");
    let bob = Terminal::start(bob);
    let texts: String = (1..=20).map(|number| format!("bob: new {number}\n")).collect();
    let shown = Terminal::start(scripted(&place, gateway, "alice", &texts)).wait();
    assert!((1..=20).all(|number| shown.contains(&format!("-- sent #{number}"))), "{shown:?}");
    bob.wait();
}

/// Three people and the real gateway: a group is made, talks, and goes on without one of them.
#[test]
fn a_group_talks_and_goes_on_without_who_was_taken_out() {
    let place = Place::new();
    let data = place.file("data");
    let (_gateway, gateway) = start_development_gateway(&data);
    for user in ["bob", "carol"] {
        Terminal::start(chat_command(user, gateway, &data, &place.file(user))).quit();
    }
    let start =
        |user, lines: &[&str]| Terminal::start(scripted(&place, gateway, user, &lines.join("\n")));
    let bob = start(
        "bob",
        &[
            "expect alice in group1: hello all",
            "/name group1 friends",
            "friends: hi from bob",
            "expect alice in friends: and again",
            "expect carol in friends: bye",
            "expect alice in friends: two of us",
        ],
    );
    let carol = start(
        "carol",
        &[
            "expect bob in group1: hi from bob",
            "expect alice in group1: and again",
            "group1: bye",
            "expect -- you are no longer in group1",
        ],
    );
    let alice = start(
        "alice",
        &[
            "/group friends bob carol",
            "friends: hello all",
            "expect bob in friends: hi from bob",
            "friends: and again",
            "expect carol in friends: bye",
            "/remove friends carol",
            "expect -- friends: alice, bob",
            "friends: two of us",
            "expect -- read #3 by bob",
        ],
    );
    assert!(alice.wait().contains(&"-- friends: alice, bob, carol".to_owned()));
    assert!(bob.wait().contains(&"alice in friends: two of us".to_owned()));
    let seen = carol.wait();
    assert!(!seen.iter().any(|line| line.contains("two of us")), "{seen:?}");
}

/// The chat of somebody who says what stands in `text`.
fn scripted(place: &Place, gateway: SocketAddr, user: &str, text: &str) -> Command {
    let path = place.file(&format!("{user}.script"));
    std::fs::write(&path, text).unwrap();
    let mut command = chat_command(user, gateway, &place.file("data"), &place.file(user));
    command.arg("--script").arg(path);
    command
}

const START: &str = "cargo run --release -p ringpost-client --bin ringpost-chat -- --user ";
