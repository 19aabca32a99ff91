//! Two terminals: the development gateway as a newcomer starts it, and `ringpost-chat`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;

use crate::support::PATIENCE;
use crate::support::binaries::binaries;
use crate::support::gateway::{own_address, read_announcement, terminate, wait_for_exit};
use crate::support::peer::Place;

/// Ends the process with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Chat {
    process: Guard,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Chat {
    fn start(user: &str, gateway: SocketAddr, data: &Path, store: &Path) -> Self {
        let mut child = Command::new(&binaries().chat)
            .args(["--user", user, "--server-name", "localhost", "--server", &gateway.to_string()])
            .arg("--data")
            .arg(data)
            .arg("--store")
            .arg(store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (line, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                if line.send(text).is_err() {
                    return;
                }
            }
        });
        let mut chat = Self { process: Guard(child), input, lines, seen: Vec::new() };
        chat.expect("-- connected");
        chat
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn expect(&mut self, wanted: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|fault| {
                panic!("no {wanted:?} ({fault}), but {:?}", self.seen);
            });
            let found = line == wanted;
            self.seen.push(line);
            if found {
                return;
            }
        }
    }

    /// Closes the terminal; gives every line it has shown.
    fn quit(mut self) -> Vec<String> {
        self.say("/quit");
        assert!(wait_for_exit(&mut self.process.0).success());
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        self.seen
    }
}

#[test]
fn two_terminals_talk() {
    let place = Place::new();
    let data = place.file("data");
    let free_port = format!("{}:0", own_address());
    let mut gateway = Guard(
        Command::new(&binaries().gateway)
            .arg("--data")
            .arg(&data)
            .args(["--listen", &free_port, "--admin-listen", &free_port])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let (address, _) = read_announcement(&mut gateway.0).expect("it starts");
    let start = |user: &str| Chat::start(user, address, &data, &place.file(user));
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
