//! Limits: who sends or connects too fast, says nothing, or does not read, and that nobody else
//! notices.

use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use ringpost_protocol::message::RejectCode;
use ringpost_protocol::wire::{self, ErrorCode, client_frame, server_frame};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place};
use crate::support::raw::{Raw, framed, send_frame, tls_config};
use crate::support::{PATIENCE, wait_until};

fn limited(limits: &'static str) -> Gateway {
    Gateway::start(Settings { limits, ..Settings::default() })
}

fn bound_hits(gateway: &Gateway, bound: &str) -> f64 {
    gateway.metric(&format!("ringpost_bound_hits_total{{bound=\"{bound}\"}}"))
}

fn refused(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("ringpost_connections_refused_total{{reason=\"{reason}\"}}"))
}

fn sends(numbers: std::ops::RangeInclusive<u64>, to: &str) -> Vec<u8> {
    numbers.flat_map(|n| framed(client_frame::Frame::Send(send_frame(n, to, "text")))).collect()
}

fn rejection(answer: Result<wire::Accepted, wire::Rejected>) -> Option<(RejectCode, u64)> {
    answer.err().map(|rejected| (rejected.code(), rejected.retry_after_ms.unwrap()))
}

#[test]
fn a_user_is_refused_on_all_devices_and_in_order() {
    for shard in 0..2 {
        let gateway =
            limited("address_exempt = [], user_sends_per_second = 1, user_sends_burst = 5");
        let (alice, bob) = (user_at(shard, 2, "alice"), user_at(1, 2, "bob"));
        drop(Raw::open(&gateway, &bob, "phone"));
        let mut phone = Raw::open(&gateway, &alice, "phone");
        let mut tablet = Raw::open(&gateway, &alice, "tablet");
        phone.send_bytes(&sends(1..=12, &bob));
        let mut answers: Vec<_> = (0..12).map(|_| phone.expect_answer()).collect();
        answers.sort_by_key(|(send_seq, _)| *send_seq);
        let accepted = answers.iter().take_while(|(_, answer)| answer.is_ok()).count();
        assert!((5..12).contains(&accepted), "{answers:?}");
        let mut refusals = answers.into_iter().skip(accepted).map(|(_, answer)| rejection(answer));
        let (code, retry_after_ms) = refusals.next().unwrap().unwrap();
        assert_eq!(code, RejectCode::RateLimited);
        assert!((1..=1_000).contains(&retry_after_ms), "{retry_after_ms}");
        assert!(refusals.all(|refusal| refusal == Some((code, retry_after_ms))), "one refusal");

        // The bucket is the user's.
        tablet.send_bytes(&sends(1..=12, &bob));
        let on_tablet = (0..12).filter_map(|_| rejection(tablet.expect_answer().1)).count();
        assert!(on_tablet > 0, "the tablet has a bucket of its own");

        // There is room again, but the first one refused has not been sent again.
        thread::sleep(Duration::from_millis(2_500));
        phone.send_bytes(&sends(13..=13, &bob));
        assert_eq!(rejection(phone.expect_answer().1), Some((code, retry_after_ms)));
        let retry = wire::Send { after_reject: true, ..send_frame(14, &bob, "text") };
        phone.send(client_frame::Frame::Send(retry));
        assert_eq!(rejection(phone.expect_answer().1), None);
        assert!(bound_hits(&gateway, "user_sends") >= 2.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_gets_everything_through_in_order() {
    let gateway = limited("address_exempt = [], user_sends_per_second = 20, user_sends_burst = 3");
    let place = Place::new();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let bob = Peer::connect(&gateway, &bob, "phone", &place.file("bob")).await;
    let alice = Peer::connect(&gateway, &alice, "phone", &place.file("alice")).await;
    for number in 0..12 {
        alice.send(&bob.user, &number.to_string()).await;
    }
    let expected: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    assert_eq!(bob.wait_messages(12).await.texts(), expected);
    assert_eq!(alice.wait_sent(12).await.refused, []);
    assert!(bound_hits(&gateway, "user_sends") >= 1.0);
}

#[test]
fn frames_beyond_the_rate_wait_and_are_answered() {
    let gateway = limited(
        "address_exempt = [], connection_frames_per_second = 100, connection_frames_burst = 20, \
         receive_frames_per_turn = 16",
    );
    let mut alice = Raw::open(&gateway, "alice", "phone");
    let pings = framed(client_frame::Frame::Ping(wire::Ping {})).repeat(120);
    alice.send_bytes(&pings);
    alice.send_bytes(&pings);
    for _ in 0..240 {
        alice.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(()));
    }
    assert!(bound_hits(&gateway, "connection_frames") >= 1.0);
    assert!(bound_hits(&gateway, "receive_frames") >= 1.0);

    // What came before the end is handled, though it does not fit into one turn.
    let mut carol = Raw::open(&gateway, "carol", "phone");
    carol.send_bytes(&pings);
    carol.send_close_notify();
    let answers: Vec<_> = std::iter::from_fn(|| carol.read_frame()).collect();
    let is_pong = |frame: &&server_frame::Frame| matches!(frame, server_frame::Frame::Pong(_));
    assert_eq!(answers.iter().filter(is_pong).count(), 120, "{answers:?}");
}

#[test]
fn an_address_has_so_many_connections() {
    let gateway = limited("address_exempt = [], address_connections_max = 3");
    let config = tls_config(&gateway, &[b"ringpost/1"]);
    let mut held: Vec<_> =
        (0..3).map(|n| Raw::open(&gateway, &format!("user-{n}"), "phone")).collect();
    assert!(Raw::connect_with(&gateway, &config).is_err());
    assert!(refused(&gateway, "address_connections") >= 1.0);
    assert_eq!(gateway.metric("ringpost_addresses"), 1.0);
    held.pop();
    wait_until("a place is free", || Raw::connect_with(&gateway, &config).ok().map(drop));
    // Those that are there did not notice.
    held[0].send(client_frame::Frame::Ping(wire::Ping {}));
    held[0].expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(()));
}

#[test]
fn an_address_connects_so_fast() {
    let gateway =
        limited("address_exempt = [], address_accepts_per_second = 1, address_accepts_burst = 3");
    let config = tls_config(&gateway, &[b"ringpost/1"]);
    let connect = || Raw::connect_with(&gateway, &config).ok();
    wait_until("one is refused", || connect().is_none().then_some(()));
    assert!(refused(&gateway, "address_rate") >= 1.0);
    wait_until("another one is not", connect);
}

#[test]
fn half_open_connections_end_and_make_room() {
    let gateway = Gateway::start(Settings {
        shards: 1,
        limits: "handshake_ms_max = 6000, handshakes_pending_max = 2",
        ..Settings::default()
    });
    let silent: Vec<_> =
        (0..2).map(|_| TcpStream::connect_timeout(&gateway.address(), PATIENCE).unwrap()).collect();
    wait_until("they count", || {
        (gateway.metric("ringpost_handshakes_pending") == 2.0).then_some(())
    });
    // The oldest one makes room before its time is over.
    let mut alice = Raw::open(&gateway, "alice", "phone");
    assert!(bound_hits(&gateway, "handshakes_pending") >= 1.0);
    assert_eq!(gateway.metric("ringpost_hello_refused_total{code=\"timeout\"}"), 0.0);
    for mut socket in silent {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // Ended in order, or reset.
        let _ = socket.read_to_end(&mut rest);
    }
    assert_eq!(gateway.metric("ringpost_handshakes_pending"), 0.0);

    // The handshake alone is not enough.
    let mut mute = Raw::connect(&gateway);
    mute.expect_end(ErrorCode::HelloTimeout);
    assert!(gateway.metric("ringpost_hello_refused_total{code=\"timeout\"}") >= 1.0);
    alice.send(client_frame::Frame::Ping(wire::Ping {}));
    alice.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(()));
}

#[test]
fn a_reader_that_stops_is_ended_and_slows_nobody() {
    let gateway = limited("send_stall_ms_max = 1500");
    let mut bob = Raw::open(&gateway, "bob", "phone");
    let mut alice = Raw::open(&gateway, "alice", "phone");
    let (carol, mut dave) =
        (Raw::open(&gateway, "carol", "phone"), Raw::open(&gateway, "dave", "phone"));
    let text = "x".repeat(60_000);
    for send_seq in 1..=12 {
        alice.send(client_frame::Frame::Send(send_frame(send_seq, "bob", &text)));
        assert!(alice.expect_answer().1.is_ok());
    }
    let mut carol = carol;
    let mut rounds = 0;
    wait_until("the reader is ended", || {
        rounds += 1;
        carol.send(client_frame::Frame::Send(send_frame(rounds, "dave", "quick")));
        let deliver = dave.expect(|frame| match frame {
            server_frame::Frame::Deliver(deliver) => Some(deliver),
            _ => None,
        });
        dave.send(client_frame::Frame::Ack(wire::Ack { up_to_seq: deliver.seq }));
        (gateway.metric("ringpost_slow_consumers_total") == 1.0).then_some(())
    });
    assert!(rounds > 1 && bound_hits(&gateway, "outbound_bytes") >= 1.0);

    // Nothing is lost: it comes again.
    let mut bob_again = Raw::open(&gateway, "bob", "phone");
    for _ in 0..12 {
        bob_again.expect(|frame| matches!(frame, server_frame::Frame::Deliver(_)).then_some(()));
    }
    // Of the old one only what was on its way.
    bob.expect(|frame| matches!(frame, server_frame::Frame::Deliver(_)).then_some(()));
}

#[test]
fn who_does_not_read_the_answers_is_not_read() {
    let gateway = limited("send_stall_ms_max = 3000");
    let mut alice = Raw::open(&gateway, "alice", "phone");
    let pings = framed(client_frame::Frame::Ping(wire::Ping {})).repeat(20_000);
    let writer = thread::spawn(move || {
        loop {
            alice.send_bytes(&pings); // until the connection is ended
        }
    });
    wait_until("it is not read", || (bound_hits(&gateway, "answers") >= 1.0).then_some(()));
    wait_until("it is ended", || {
        (gateway.metric("ringpost_slow_consumers_total") == 1.0).then_some(())
    });
    assert!(writer.join().is_err(), "its socket is gone");
    assert!(bound_hits(&gateway, "receive_bytes") >= 1.0);
}
