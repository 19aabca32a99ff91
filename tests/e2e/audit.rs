//! The audit log of a real gateway: who came in, who did not, and what the operator did.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringpost_protocol::wire::{self, ErrorCode, client_frame};
use serde_json::Value;

use crate::support::binaries::binaries;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::{Keys, now_unix_ms};
use crate::support::raw::Raw;
use crate::support::wait_until;

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for the first line about `event` that has not been asked for.
fn next(path: &Path, event: &str, seen: &mut usize) -> Value {
    wait_until(event, || {
        let all = lines(path);
        let index = all[*seen..].iter().position(|line| line["event"] == event)?;
        *seen += index + 1;
        Some(all[*seen - 1].clone())
    })
}

fn name_of(gateway: &Gateway, user: &str) -> String {
    let output = Command::new(&binaries().gateway)
        .args(["audit-name", "--user", user, "--data"])
        .arg(gateway.path().join("store"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn logins_and_what_the_operator_does_are_told() {
    let mut gateway = Gateway::start(Settings { audits: true, ..Settings::default() });
    let path: PathBuf = gateway.path().join("audit.jsonl");
    let stranger = tempfile::tempdir().unwrap();
    let stranger = Keys::prepare(stranger.path());
    let mut seen = 0;
    let started = next(&path, "started", &mut seen);
    assert_eq!(started["shards"], 2);
    assert_eq!(started["listen"], gateway.address().to_string());

    let mut first = Raw::open(&gateway, "alice", "phone");
    let login = next(&path, "login_accepted", &mut seen);
    assert_eq!(
        (&login["device"], &login["user"]),
        (&"phone".into(), &name_of(&gateway, "alice").into())
    );
    let address: std::net::IpAddr = login["address"].as_str().unwrap().parse().unwrap();
    assert!(address.is_loopback());
    let token = gateway.keys.token("alice", "phone");
    let key_id = login["kid"].as_str().unwrap();
    assert!(!key_id.is_empty() && login["unix_ms"].as_u64().unwrap() <= now_unix_ms());

    let _second = Raw::open(&gateway, "alice", "phone");
    let replaced = next(&path, "replaced", &mut seen);
    assert_eq!(replaced["user"], login["user"]);
    first.expect_end(ErrorCode::Replaced);

    // A token that proves nothing names nobody; one for another device does.
    let refused = |hello_device: &str, token: &str, seen: &mut usize| {
        let mut raw = Raw::connect(&gateway);
        raw.hello(token, hello_device);
        let _ = raw.read_frame();
        next(&path, "login_refused", seen)
    };
    let line = refused("phone", &stranger.token("alice", "phone"), &mut seen);
    assert_eq!((&line["user"], &line["device"]), (&Value::Null, &"phone".into()));
    assert!(line["reason"].as_str().unwrap().contains("unknown key"), "{line}");
    assert!(line["kid"].is_string());
    let line = refused("tablet", &token, &mut seen);
    assert_eq!(line["user"], login["user"]);
    let old = gateway.keys.token_for("alice", "phone", "ringpost", now_unix_ms() - 7_200_000);
    let line = refused("phone", &old, &mut seen);
    assert_eq!(line["reason"], "token has expired");
    let line = refused("phone", "nonsense", &mut seen);
    assert_eq!(line["kid"], Value::Null);

    let mut stays = Raw::open(&gateway, "carol", "phone");
    let token = stranger.token("carol", "phone");
    stays.send(client_frame::Frame::TokenRenew(wire::TokenRenew { token }));
    let line = next(&path, "renewal_refused", &mut seen);
    assert_eq!(line["user"], name_of(&gateway, "carol"));

    // Moved away; SIGHUP makes it anew, also with a configuration that is refused.
    let moved = gateway.path().join("audit.jsonl.1");
    std::fs::rename(&path, &moved).unwrap();
    assert!(!gateway.reload("nonsense"));
    let refused = next(&path, "reload_refused", &mut 0);
    assert!(refused["reason"].as_str().unwrap().contains("ringpost.toml:1:"), "{refused}");
    std::fs::copy(&stranger.files.jwks, gateway.path().join("jwks.json")).unwrap();
    let mut seen = 1;
    assert!(gateway.reload(&gateway.config().replace("shards = 2", "shards = 4")));
    let kids = next(&path, "keys_changed", &mut seen)["kids"].as_array().unwrap().clone();
    assert_eq!(kids.len(), 1);
    // It was started with port 0, twice, and the file has the ports it took.
    let keys = serde_json::json!(["listen", "admin_listen", "shards"]);
    assert_eq!(next(&path, "reloaded", &mut seen)["restart_needed"], keys);

    assert_eq!(gateway.stop().code(), Some(0));
    assert_eq!(next(&path, "draining", &mut seen)["signal"], "SIGTERM");
    assert_eq!(next(&path, "stopped", &mut seen)["reason"], "drained");
    for file in [&path, &moved] {
        let text = std::fs::read_to_string(file).unwrap();
        for secret in ["alice", "carol", "eyJ"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[test]
fn a_log_is_begun_and_ended_by_a_reload() {
    let gateway = Gateway::start(Settings::default());
    let path = gateway.path().join("audit.jsonl");
    Raw::open(&gateway, "alice", "phone");
    assert!(gateway.reload(&format!("{}audit.path = \"audit.jsonl\"\n", gateway.config())));
    Raw::open(&gateway, "bob", "phone");
    let mut seen = 0;
    assert_eq!(next(&path, "login_accepted", &mut seen)["user"], name_of(&gateway, "bob"));
    let elsewhere = format!("{}audit.path = \"none/audit.jsonl\"\n", gateway.config());
    assert!(!gateway.reload(&elsewhere), "there is no such directory");
    assert!(gateway.metric("ringpost_audit_lines_total") >= 2.0);
    assert!(gateway.reload(&gateway.config()));
    let count = lines(&path).len();
    Raw::open(&gateway, "carol", "phone");
    assert_eq!(lines(&path).len(), count);
    assert_eq!(gateway.metric("ringpost_audit_dropped_total"), 0.0);
}
