//! Keys by URL: rotation, faults of their server, restarts without it.

use ringpost_protocol::wire::{ErrorCode, server_frame};

use crate::support::gateway::{Gateway, Settings};
use crate::support::key_server::KeyServer;
use crate::support::keys::Keys;
use crate::support::raw::Raw;
use crate::support::wait_until;

/// Whether a token of these keys is good for a login now.
fn lets_in(gateway: &Gateway, keys: &Keys, user: &str) -> bool {
    let mut raw = Raw::connect(gateway);
    raw.hello(&keys.token(user, "phone"), "phone");
    match raw.read_frame() {
        Some(server_frame::Frame::Welcome(_)) => true,
        Some(server_frame::Frame::Error(error)) => {
            assert_eq!(error.code(), ErrorCode::TokenInvalid);
            false
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_by_url_rotate_and_outlive_their_server() {
    let places = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [old, new] = [0, 1].map(|index: usize| Keys::prepare(places[index].path()));
    let server = KeyServer::start();
    let settings = Settings { jwks_url: Some(server.url()), ..Settings::default() };

    // Nothing was ever fetched.
    let log = Gateway::try_start(settings.clone()).err().expect("it does not start without keys");
    for word in ["500", "fix: ", "jwks_url", &server.url()] {
        assert!(log.contains(word), "no {word:?} in {log}");
    }

    server.show(&old);
    let mut gateway = Gateway::start(settings);
    assert!(lets_in(&gateway, &old, "alice"));
    assert!(!lets_in(&gateway, &gateway.keys, "alice"), "the file beside it does not count");

    // Unknown to the gateway until a token names it.
    server.show(&new);
    wait_until("the new key counts", || lets_in(&gateway, &new, "bob").then_some(()));
    assert!(!lets_in(&gateway, &old, "carol"), "the old one is withdrawn");
    assert!(gateway.metric("ringpost_key_set_fetches_total{result=\"ok\"}") >= 1.0);

    // Its server breaks: a reload keeps the keys, and so does a restart.
    server.fail();
    assert!(gateway.reload(&gateway.config()), "{}", gateway.log());
    let failed = "ringpost_key_set_fetches_total{result=\"failed\"}";
    wait_until("a fetch fails", || (gateway.metric(failed) > 0.0).then_some(()));
    assert!(lets_in(&gateway, &new, "bob"));
    assert_eq!(gateway.stop().code(), Some(0));
    gateway.restart();
    assert!(gateway.log().contains("those kept from the last fetch"), "{}", gateway.log());
    assert!(lets_in(&gateway, &new, "bob"));

    // It comes back by itself.
    server.show(&old);
    wait_until("the server is asked again", || lets_in(&gateway, &old, "alice").then_some(()));
    assert!(gateway.metric("ringpost_key_set_age_seconds") < 600.0);

    // Another URL must answer before it counts.
    let elsewhere = gateway.config().replace("jwks.json", "elsewhere.json");
    server.fail();
    assert!(!gateway.reload(&elsewhere), "{}", gateway.log());
    assert!(lets_in(&gateway, &old, "alice"));
    let by_file = gateway
        .config()
        .replace(&format!("jwks_url = \"{}\"", server.url()), "jwks_path = \"jwks.json\"");
    assert!(gateway.reload(&by_file), "{}", gateway.log());
    assert!(lets_in(&gateway, &gateway.keys, "alice"));
    assert!(!lets_in(&gateway, &old, "alice"));
}
