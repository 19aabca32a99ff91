//! SIGHUP: what is new holds for what comes, and nobody is disconnected.

use std::thread;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use ringpost_client::Transports;
use ringpost_protocol::wire::{ErrorCode, RejectCode, client_frame};
use rustls::HandshakeKind;
use tokio::task::block_in_place;

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::{Keys, user_at};
use crate::support::load::Load;
use crate::support::quic::Quic;
use crate::support::raw::{Raw, send_frame, tls_config, tls_config_trusting};
use crate::support::{PATIENCE, wait_until};

/// Keys of somebody else.
struct Others {
    directory: tempfile::TempDir,
    keys: Keys,
}

impl Others {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::prepare(directory.path());
        Self { directory, keys }
    }

    /// Copies one of their files over the gateway's.
    fn put(&self, name: &str, gateway: &Gateway) {
        std::fs::copy(self.directory.path().join(name), gateway.path().join(name)).unwrap();
    }
}

/// A Send on an open connection, and whether it was accepted.
fn send(raw: &mut Raw, send_seq: u64, to: &str) -> Result<(), RejectCode> {
    raw.send(client_frame::Frame::Send(send_frame(send_seq, to, "hello")));
    let (answered, outcome) = raw.expect_answer();
    assert_eq!(answered, send_seq);
    outcome.map(|_| ()).map_err(|rejected| rejected.code())
}

#[test]
fn a_new_certificate_is_for_new_connections() {
    let gateway = Gateway::start(Settings::default());
    let old_roots = tls_config(&gateway, &[b"ringpost/1"]);
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let mut before = Raw::connect_with(&gateway, &old_roots).unwrap();
    before.hello(&gateway.keys.token(&alice, "phone"), "phone");
    before.expect_welcome();
    Raw::open(&gateway, &bob, "phone");
    assert_eq!(send(&mut before, 1, &bob), Ok(()));
    let expires = gateway.metric("ringpost_certificate_not_after_timestamp_seconds");
    assert!(expires > 1e9, "{expires}");

    let others = Others::new();
    for name in ["cert.pem", "key.pem"] {
        others.put(name, &gateway);
    }
    assert!(gateway.reload(&gateway.config()), "{}", gateway.log());

    let new_roots = tls_config_trusting(&others.keys.roots_pem, &[b"ringpost/1"]);
    // Several, so that every shard is met.
    for _ in 0..8 {
        Raw::connect_with(&gateway, &new_roots).unwrap();
        let stranger = tls_config(&gateway, &[b"ringpost/1"]);
        assert!(Raw::connect_with(&gateway, &stranger).is_err(), "the old one is still shown");
    }
    assert_eq!(send(&mut before, 2, &bob), Ok(()), "the old connection goes on");
    let resumed = Raw::connect_with(&gateway, &old_roots).unwrap();
    assert_eq!(resumed.tls().handshake_kind(), Some(HandshakeKind::Resumed), "tickets go on");
    assert_eq!(gateway.metric("ringpost_config_last_reload_successful"), 1.0);
}

/// Acceptance test 20: the certificate is swapped under load, again and again, over both transports;
/// nobody is dropped, and tickets of before are good. The keys of tickets change every six hours, which
/// `engine/src/transport/tls/tickets.rs` and `transport/quic/tests/tickets.rs` test with other clocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_swapped_under_load_and_nobody_is_dropped() {
    let gateway = Gateway::start(Settings::default());
    let files = ["cert.pem", "key.pem"].map(|name| gateway.path().join(name));
    let own = files.each_ref().map(|path| std::fs::read(path).unwrap());
    let early = tls_config(&gateway, &[b"ringpost/1"]);
    // A connection takes its ticket along, and gets the next one.
    let resumes = || {
        let mut raw = Raw::connect_with(&gateway, &early).unwrap();
        raw.hello("no token", "phone");
        raw.expect_end(ErrorCode::TokenInvalid);
        raw.tls().handshake_kind() == Some(HandshakeKind::Resumed)
    };
    assert!(!block_in_place(resumes), "it has none yet");
    let oldest = Quic::open(&gateway, "carol", "phone").await;
    for transports in [Transports::TlsOnly, Transports::QuicOnly] {
        let load = Load::start_over(transports, &gateway).await;
        for _ in 0..3 {
            load.wait_for_progress(50).await;
            let others = Others::new();
            for name in ["cert.pem", "key.pem"] {
                others.put(name, &gateway);
            }
            assert!(block_in_place(|| gateway.reload(&gateway.config())), "{}", gateway.log());
            let roots = &others.keys.roots_pem;
            Quic::connect_to(gateway.address(), roots).await.expect("it is the new one");
            let old = Quic::try_connect(&gateway).await;
            assert!(old.is_err(), "the old one is still shown");
            assert!(block_in_place(resumes), "tickets go on");
        }
        load.wait_for_progress(50).await;
        assert_eq!(load.reconnects(), 0, "over {transports:?}");
        load.finish(PATIENCE).await.unwrap();
        for (path, content) in files.iter().zip(&own) {
            std::fs::write(path, content).unwrap();
        }
        assert!(block_in_place(|| gateway.reload(&gateway.config())), "{}", gateway.log());
    }
    assert!(oldest.connection.close_reason().is_none(), "it goes on");
}

#[test]
fn a_new_key_set_decides_about_new_logins() {
    let gateway = Gateway::start(Settings::default());
    let mut before = Raw::open(&gateway, "alice", "phone");
    let others = Others::new();
    let new_token = others.keys.token("carol", "phone");
    let mut early = Raw::connect(&gateway);
    early.hello(&new_token, "phone");
    early.expect_end(ErrorCode::TokenInvalid);

    others.put("jwks.json", &gateway);
    assert!(gateway.reload(&gateway.config()), "{}", gateway.log());
    for _ in 0..8 {
        let mut new = Raw::connect(&gateway);
        new.hello(&new_token, "phone");
        new.expect_welcome();
        let mut old = Raw::connect(&gateway);
        old.hello(&gateway.keys.token("bob", "phone"), "phone");
        old.expect_end(ErrorCode::TokenInvalid);
    }
    assert_eq!(send(&mut before, 1, "carol"), Ok(()), "who was let in stays");
    before.send(client_frame::Frame::TokenRenew(ringpost_protocol::wire::TokenRenew {
        token: gateway.keys.token("alice", "phone"),
    }));
    before.expect_end(ErrorCode::TokenInvalid);
}

#[test]
fn limits_change_under_open_connections() {
    let gateway = Gateway::start(Settings { shards: 1, ..Settings::default() });
    drop(Raw::open(&gateway, "bob", "phone"));
    let mut alice = Raw::open(&gateway, "alice", "phone");
    for send_seq in 1..=5 {
        assert_eq!(send(&mut alice, send_seq, "bob"), Ok(()));
    }
    let limits = |text: &str| {
        let config = gateway.config();
        let line = config.lines().find(|line| line.starts_with("limits")).unwrap().to_owned();
        config.replace(&line, &format!("limits = {{ {text} }}"))
    };
    let tight = limits("mailbox_records_max = 8, frame_bytes_max = 16384");
    assert!(gateway.reload(&tight), "{}", gateway.log());
    // A quarter of a mailbox is two messages, and five are there.
    assert_eq!(send(&mut alice, 6, "bob"), Err(RejectCode::SenderShare));
    let mut carol = Raw::connect(&gateway);
    carol.hello(&gateway.keys.token("carol", "phone"), "phone");
    assert_eq!(carol.expect_welcome().limits.unwrap().frame_bytes_max, 16384);
    // A frame that is longer than the new bound ends the new connection, not the old one.
    let long = || client_frame::Frame::Send(send_frame(7, "nobody", &"x".repeat(20_000)));
    carol.send(long());
    carol.expect_end(ErrorCode::FrameTooLong);
    alice.send(long());
    assert!(alice.expect_answer().1.is_err(), "nobody is unknown");

    // Full: accepting stops, and goes on when there is room.
    wait_until("carol is gone", || (gateway.metric("ringpost_connections") == 1.0).then_some(()));
    assert!(gateway.reload(&limits("connections_per_shard_max = 1")), "{}", gateway.log());
    thread::scope(|scope| {
        let late = scope.spawn(|| Raw::open(&gateway, "dave", "phone"));
        assert_eq!(gateway.metric("ringpost_connections"), 1.0);
        assert!(!late.is_finished());
        assert!(gateway.reload(&gateway.config()), "{}", gateway.log());
        late.join().unwrap();
    });
    assert!(send(&mut alice, 8, "dave").is_ok());
}

#[test]
fn a_certificate_that_no_client_would_take_is_refused() {
    let gateway = Gateway::start(Settings::default());
    let pair = KeyPair::generate().unwrap();
    std::fs::write(gateway.path().join("key.pem"), pair.serialize_pem()).unwrap();
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let times = [
        (now - day * 400, now - day * 3, "has expired"),
        (now + day, now + day * 90, "is not valid yet"),
    ];
    for (not_before, not_after, told) in times {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (not_before.into(), not_after.into());
        let certificate = params.self_signed(&pair).unwrap().pem();
        std::fs::write(gateway.path().join("cert.pem"), certificate).unwrap();
        assert!(!gateway.reload(&gateway.config()), "{told}");
        assert!(gateway.log().contains(told), "{}", gateway.log());
        Raw::open(&gateway, "alice", "phone"); // by the certificate of before
    }
}

#[test]
fn a_fault_keeps_the_whole_running_configuration() {
    let gateway = Gateway::start(Settings::default());
    let mut before = Raw::open(&gateway, "alice", "phone");
    let good = gateway.config();
    let others = Others::new();
    // Everything else in these files is new and right.
    others.put("jwks.json", &gateway);
    let tight = good.replace("mailbox_records_max = 1000", "mailbox_records_max = 4");
    let lines = tight.lines().count();
    let refused = |config: &str, words: &[&str]| {
        let old = gateway.log().len();
        assert!(!gateway.reload(config));
        let log = gateway.log().split_off(old);
        for word in words.iter().chain(&["running configuration stays"]) {
            assert!(log.contains(word), "no {word:?} in {log}");
        }
        assert_eq!(gateway.metric("ringpost_config_last_reload_successful"), 0.0);
    };
    let place = format!("ringpost.toml:{}:", lines + 1);
    refused(&format!("{tight}listen : 7\n"), &[&place]);
    refused(&format!("{tight}tls.no_such_key = 7\n"), &["ringpost.toml"]);
    refused(&format!("{tight}no_such_key = 7\n"), &[&place, "no_such_key"]);
    refused(&tight.replace("shards = 2", "shards = 0"), &["shards = 0", "1 to 256"]);
    refused(&tight.replace("cert.pem", "missing.pem"), &["missing.pem"]);
    others.put("key.pem", &gateway);
    refused(&tight, &["does not belong"]);
    others.put("cert.pem", &gateway);
    std::fs::write(gateway.path().join("jwks.json"), "{").unwrap();
    refused(&tight, &["jwks.json", "JWK"]);

    for (number, _) in [(); 8].iter().enumerate() {
        let user = format!("user-{number}");
        Raw::open(&gateway, &user, "phone"); // certificate and keys of old
        assert_eq!(send(&mut before, number as u64 + 1, "user-0"), Ok(()), "limits of old");
    }

    // At last everything fits; the number of shards cannot change, which is said.
    others.put("jwks.json", &gateway);
    let quiet = tight.replace("shards = 2", "shards = 3").replace("\"debug\"", "\"warn\"");
    let old = gateway.log().len();
    assert!(gateway.reload(&quiet), "{}", gateway.log());
    assert_eq!(gateway.metric("ringpost_config_last_reload_successful"), 1.0);
    assert_eq!(gateway.metric("ringpost_shards"), 2.0);
    let new_roots = tls_config_trusting(&others.keys.roots_pem, &[b"ringpost/1"]);
    let mut after = Raw::connect_with(&gateway, &new_roots).unwrap();
    after.hello("no token", "phone");
    after.expect_end(ErrorCode::TokenInvalid);
    let log = gateway.log().split_off(old);
    assert!(log.contains("next start") && log.contains("\"shards\""), "{log}");
    assert!(!log.contains("DEBUG"), "the filter holds: {log}");
}
