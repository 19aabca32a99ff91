use std::net::{IpAddr, Ipv4Addr};

use ringpost_protocol::id::UserId;
use serde_json::Value;

use super::*;
use crate::limits::AUDIT_REFUSED_PER_SECOND_MAX;

const PAGE: &str = include_str!("../../AUDIT.md");

fn client(user: Option<&str>) -> Client {
    Client {
        address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)),
        user: user.map(|user| UserId::new(user).unwrap()),
        device: "phone".to_owned(),
        key_id: Some("key-1".to_owned()),
    }
}

fn refused() -> AuditEvent {
    AuditEvent::LoginRefused { client: client(None), reason: "token has expired".to_owned() }
}

/// One of each.
fn all() -> Vec<AuditEvent> {
    let reason = || "why".to_owned();
    let listen = "127.0.0.1:7443".parse().unwrap();
    vec![
        AuditEvent::LoginAccepted(client(Some("alice"))),
        refused(),
        AuditEvent::RenewalRefused { client: client(Some("alice")), reason: reason() },
        AuditEvent::Replaced(client(Some("alice"))),
        AuditEvent::LoginRefusedMore { count: 7 },
        AuditEvent::Refusals { seconds: 60, counts: vec![("user_sends".to_owned(), 3)] },
        AuditEvent::Started { version: "1", listen, shards: 2, confirm_clock: true },
        AuditEvent::Draining { signal: "SIGTERM" },
        AuditEvent::Stopped { reason: reason() },
        AuditEvent::Reloaded { restart_needed: vec!["shards"] },
        AuditEvent::ReloadRefused { reason: reason() },
        AuditEvent::KeysChanged { key_ids: vec!["key-1".to_owned()] },
    ]
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn log(place: &Path) -> (AuditLog, PathBuf) {
    let path = place.join("audit.jsonl");
    let file = AuditFile::open(Some(&path)).unwrap();
    (AuditLog::start(file, Pseudonyms::of(place).unwrap()).unwrap(), path)
}

#[test]
fn the_page_names_every_event_and_field() {
    let place = tempfile::tempdir().unwrap();
    let (log, path) = log(place.path());
    for event in all() {
        log.record(event);
    }
    log.flush();
    let written = lines(&path);
    assert_eq!(written.len(), all().len());
    for line in written {
        let event = line["event"].as_str().unwrap();
        let row = PAGE.lines().find(|row| row.starts_with(&format!("| `{event}` ")));
        let row = row.unwrap_or_else(|| panic!("{event} is not on the page"));
        for field in line.as_object().unwrap().keys() {
            let named = row.contains(&format!("`{field}`"));
            assert!(named || ["event", "unix_ms"].contains(&field.as_str()), "{event}.{field}");
        }
    }
    let mut exposed = String::new();
    log.expose(&mut exposed);
    let count = format!("\nringpost_audit_lines_total {}\n", all().len());
    assert!(exposed.contains(&count), "{exposed}");
}

#[test]
fn users_have_pseudonyms_that_last() {
    let place = tempfile::tempdir().unwrap();
    let (log, path) = log(place.path());
    log.record(AuditEvent::LoginAccepted(client(Some("alice"))));
    log.record(AuditEvent::LoginAccepted(client(Some("bob"))));
    log.flush();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("alice") && !text.contains("bob"), "{text}");
    let names: Vec<_> = lines(&path).iter().map(|line| line["user"].clone()).collect();
    assert_ne!(names[0], names[1]);
    let name = |place: &Path| Pseudonyms::of(place).unwrap().name(&UserId::new("alice").unwrap());
    assert_eq!(names[0], name(place.path()), "also after a restart");
    assert_eq!(name(place.path()).len(), 16);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_ne!(names[0], name(elsewhere.path()), "not the same for two gateways");
    std::fs::write(place.path().join("audit-salt"), "short").unwrap();
    assert!(Pseudonyms::of(place.path()).is_err());
}

#[test]
fn a_file_that_was_moved_away_is_made_anew() {
    let place = tempfile::tempdir().unwrap();
    let (log, path) = log(place.path());
    log.record(AuditEvent::Draining { signal: "1" });
    log.flush();
    let moved = place.path().join("audit.jsonl.1");
    std::fs::rename(&path, &moved).unwrap();
    log.record(AuditEvent::Draining { signal: "2" });
    log.flush();
    log.change_file(AuditFile::open(Some(&path)).unwrap());
    log.record(AuditEvent::Draining { signal: "3" });
    log.flush();
    assert_eq!(lines(&moved).len(), 2);
    assert_eq!(lines(&path)[0]["signal"], "3");
    // Off: nothing is written, and nothing counts as dropped.
    log.change_file(AuditFile::open(None).unwrap());
    log.record(AuditEvent::Draining { signal: "4" });
    log.flush();
    assert_eq!(lines(&path).len(), 1);
    assert_eq!(log.shared.dropped.load(Ordering::Relaxed), 0);
    assert!(AuditFile::open(Some(&place.path().join("none/audit"))).is_err());
}

#[test]
fn strangers_cannot_fill_the_disk() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("audit.jsonl");
    let file = AuditFile::open(Some(&path)).unwrap();
    let (jobs, queue) = mpsc::channel();
    for index in 0..=AUDIT_REFUSED_PER_SECOND_MAX + 4 {
        jobs.send(Job::Write { unix_ms: 5_000 + index % 1_000, event: refused() }).unwrap();
    }
    jobs.send(Job::Write { unix_ms: 5_999, event: AuditEvent::Draining { signal: "x" } }).unwrap();
    jobs.send(Job::Write { unix_ms: 6_000, event: refused() }).unwrap();
    drop(jobs);
    let shared = Arc::<Shared>::default();
    Writer::new(queue, Arc::clone(&shared), file.0, Pseudonyms::of(place.path()).unwrap()).run();
    let lines = lines(&path);
    let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count() as u64;
    assert_eq!(count("login_refused"), AUDIT_REFUSED_PER_SECOND_MAX + 1);
    assert_eq!(count("draining"), 1, "what others do is always told");
    let more = lines.iter().find(|line| line["event"] == "login_refused_more").unwrap();
    assert_eq!(more["count"], 5);
}

#[test]
fn what_finds_no_room_is_counted() {
    let place = tempfile::tempdir().unwrap();
    let (jobs, _queue) = mpsc::sync_channel(2);
    let log = AuditLog { jobs, shared: Arc::default() };
    for _ in 0..5 {
        log.record(refused());
    }
    assert_eq!(log.shared.dropped.load(Ordering::Relaxed), 3);

    let full = AuditFile::open(Some(Path::new("/dev/full"))).unwrap();
    let log = AuditLog::start(full, Pseudonyms::of(place.path()).unwrap()).unwrap();
    log.record(refused());
    log.flush();
    assert_eq!(log.shared.dropped.load(Ordering::Relaxed), 1);
}
