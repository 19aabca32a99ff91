//! The TLS layer, seen by rustls.

use rustls::HandshakeKind;
use rustls::NamedGroup;

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::raw::{Raw, tls_config};

#[test]
fn the_handshake_is_hybrid_and_names_the_protocol() {
    let gateway = Gateway::start(Settings::default());
    let raw = Raw::open(&gateway, "alice", "phone");
    let group = raw.tls().negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(raw.tls().alpn_protocol(), Some(&b"ringpost/1"[..]));
    assert_eq!(raw.tls().protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn the_protocol_must_be_offered() {
    let gateway = Gateway::start(Settings::default());
    let refused: [&[&[u8]]; 3] = [&[], &[b"h2"], &[b"ringpost/2", b"http/1.1"]];
    for offered in refused {
        let config = tls_config(&gateway, offered);
        let error = Raw::connect_with(&gateway, &config).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("alert"), "{error}");
    }
    let config = tls_config(&gateway, &[b"h2", b"ringpost/1"]);
    Raw::connect_with(&gateway, &config).unwrap();
    assert!(gateway.metric("ringpost_handshakes_failed_total") >= 3.0);
}

#[test]
fn a_session_resumes_on_whichever_shard_accepts() {
    let gateway = Gateway::start(Settings::default());
    let config = tls_config(&gateway, &[b"ringpost/1"]);
    for attempt in 0..16_u16 {
        let mut raw = Raw::connect_with(&gateway, &config).unwrap();
        // Each time home on another shard than the last, so the kernel's choice and ours differ.
        let user = user_at(attempt % 2, 2, "alice");
        raw.hello(&gateway.keys.token(&user, "phone"), "phone");
        raw.expect_welcome();
        let expected = if attempt == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
        assert_eq!(raw.tls().handshake_kind(), Some(expected), "attempt {attempt}");
    }
    assert!(gateway.metric("ringpost_moves_total") > 0.0, "some were accepted elsewhere");
}
