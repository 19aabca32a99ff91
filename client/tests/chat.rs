//! The terminal client without encryption, driven by a script.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rcgen::KeyPair;
use ringpost_client::protocol::id::SendSeq;
use support::gateway::Gateway;
use support::{Entry, device};

fn start(gateway: &Gateway, data: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost-chat"))
        .args(["--plain", "--user", "alice", "--server", &gateway.address])
        .arg("--data")
        .arg(data)
        .arg("--store")
        .arg(data.join("store"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

fn wait_for(out: &mut BufReader<ChildStdout>, wanted: &str) {
    let mut seen = Vec::new();
    for line in out.lines() {
        let line = line.unwrap();
        if line == wanted {
            return;
        }
        seen.push(line);
    }
    panic!("{wanted:?} did not come, but {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_go_out_and_come_in() {
    let gateway = Gateway::start(b"ringpost/1").await;
    let data = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(data.path().join(name), text).unwrap();
    write("ca.pem", &gateway.roots_pem);
    write("token-key.pem", KeyPair::generate().unwrap().serialize_pem().as_bytes());
    write("jwks.json", br#"{"keys": [{"kty": "EC", "kid": "k"}]}"#);

    let (mut child, mut out) = start(&gateway, data.path());
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "bob: hello: you").unwrap();
    wait_for(&mut out, "-- sent #1");
    writeln!(input, "/to bob\nplain: text").unwrap();
    wait_for(&mut out, "-- sent #2");
    gateway.push(1, "hi");
    wait_for(&mut out, "bob: hi");
    let install_id = gateway.state.lock().unwrap().hellos[0].0;
    let receipt = Entry::Receipt { peer: device("bob"), install_id, up_to: SendSeq(2) };
    gateway.state.lock().unwrap().push(receipt);
    gateway.push(2, "two\u{1b}[2Jlines\n-- sent #9");
    wait_for(&mut out, "-- delivered #1 to bob");
    wait_for(&mut out, "-- delivered #2 to bob");
    wait_for(&mut out, "bob: two [2Jlines -- sent #9");
    writeln!(input, "/quit").unwrap();
    assert!(child.wait().unwrap().success());

    // The end of the input waits for the answer; what came meanwhile is shown once.
    gateway.push(3, "later");
    let (mut child, mut out) = start(&gateway, data.path());
    wait_for(&mut out, "bob: later");
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "bob: last").unwrap();
    drop(input);
    wait_for(&mut out, "-- sent #3");
    assert!(child.wait().unwrap().success());
    let state = gateway.state.lock().unwrap();
    let stored: Vec<&str> = state.stored.iter().map(|row| row.2.as_str()).collect();
    assert_eq!(stored, ["hello: you", "plain: text", "last"]);
}
