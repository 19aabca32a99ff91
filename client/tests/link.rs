//! A client on real sockets against a server in miniature, over each transport.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringpost_client::protocol::id::SendSeq;
use ringpost_client::protocol::message::ErrorCode;
use ringpost_client::reconnect::ReconnectConfig;
use ringpost_client::{
    Client, ClientConfig, Closed, Event, EventId, News, PathConfig, SendOptions, Status,
    TokenFault, TokenSource, Transports,
};
use support::gateway::{Gateway, Order};
use support::{text, user};
use tokio::time::timeout;

/// Each of these tests runs over TLS and over QUIC.
macro_rules! over_each_transport {
    ($($test:ident)*) => {
        mod tls {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Transports::TlsOnly).await;
            })*
        }
        mod quic {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Transports::QuicOnly).await;
            })*
        }
    };
}

over_each_transport! {
    sends_receives_confirms_and_replays_after_a_lost_connection
    what_is_sent_without_a_connection_goes_out_later
    a_refused_token_is_replaced_once
    a_replaced_client_stays_away_until_asked
    the_wait_of_a_go_away_is_kept
    a_server_of_another_protocol_is_refused
}

async fn open(
    transports: Transports,
    gateway: &Gateway,
    store: &Path,
    token_source: Arc<dyn TokenSource>,
) -> Client {
    let path = PathConfig { transports, ..PathConfig::default() };
    let reconnect = ReconnectConfig { first_ms: 20, ..ReconnectConfig::default() };
    let config = ClientConfig { token_source, reconnect, ..gateway.client_config(store, path) };
    Client::open(config).await.unwrap()
}

fn tokens() -> Arc<dyn TokenSource> {
    Arc::new(|| std::future::ready(Ok("token".to_owned())))
}

async fn next(client: &Client) -> Event {
    let event = timeout(Duration::from_secs(20), client.next_event()).await;
    event.expect("an event comes in time").expect("the client is open")
}

async fn next_news(client: &Client) -> (EventId, News) {
    loop {
        if let Event::News { id, news } = next(client).await {
            return (id, news);
        }
    }
}

async fn next_status(client: &Client, wanted: impl Fn(&Status) -> bool) -> Status {
    loop {
        match next(client).await {
            Event::Status(status) if wanted(&status) => return status,
            _ => {}
        }
    }
}

fn body(news: &News) -> &[u8] {
    match news {
        News::Message(message) => &message.envelope,
        other => panic!("a message was expected, not {other:?}"),
    }
}

async fn sends_receives_confirms_and_replays_after_a_lost_connection(transports: Transports) {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(transports, &gateway, store.path(), tokens()).await;
    next_status(&client, |status| *status == Status::Connected).await;
    let send = |body: &'static str| client.send(user("bob"), text(body), SendOptions::default());
    let first = send("one").await.unwrap();
    let (id, news) = next_news(&client).await;
    assert!(matches!(news, News::Sent(sent) if sent.id == first));
    client.confirm(id).await.unwrap();

    gateway.push(1, "hello");
    gateway.push(2, "again");
    let (id, news) = next_news(&client).await;
    assert_eq!(body(&news), b"hello");
    client.confirm(id).await.unwrap();
    assert_eq!(body(&next_news(&client).await.1), b"again");

    // Stored, but the answer is lost with the connection.
    gateway.state.lock().unwrap().is_mute = true;
    send("two").await.unwrap();
    send("three").await.unwrap();
    while gateway.state.lock().unwrap().sends_seen.len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gateway.state.lock().unwrap().is_mute = false;
    gateway.order(Order::Drop);
    for number in [2, 3] {
        let (id, news) = next_news(&client).await;
        assert!(matches!(news, News::Sent(sent) if sent.send_seq == SendSeq(number)));
        client.confirm(id).await.unwrap();
    }
    client.close().await;
    assert_eq!(client.confirm(id).await, Err(Closed));
    {
        let state = gateway.state.lock().unwrap();
        let stored: Vec<&str> = state.stored.iter().map(|row| row.2.as_str()).collect();
        assert_eq!(stored, ["one", "two", "three"]);
        let numbers: Vec<u64> = state.sends_seen.iter().map(|row| row.0.0).collect();
        assert_eq!(numbers, [1, 2, 3, 2, 3]);
        assert!(state.entries.is_empty(), "all was acknowledged");
    }

    // The one message that was not confirmed comes again, the others do not.
    let client = open(transports, &gateway, store.path(), tokens()).await;
    let (id, news) = next_news(&client).await;
    assert_eq!(body(&news), b"again");
    client.confirm(id).await.unwrap();
    gateway.push(3, "third");
    assert_eq!(body(&next_news(&client).await.1), b"third");
}

async fn what_is_sent_without_a_connection_goes_out_later(transports: Transports) {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let away: Arc<dyn TokenSource> =
        Arc::new(|| std::future::ready(Err(TokenFault::Unavailable("offline".into()))));
    let client = open(transports, &gateway, store.path(), away).await;
    client.send(user("bob"), text("later"), SendOptions::default()).await.unwrap();
    next_status(&client, |status| matches!(status, Status::Disconnected { .. })).await;
    client.close().await;
    let client = open(transports, &gateway, store.path(), tokens()).await;
    let (_, news) = next_news(&client).await;
    assert!(matches!(news, News::Sent(_)));
    assert_eq!(gateway.state.lock().unwrap().stored[0].2, "later");
}

async fn a_refused_token_is_replaced_once(transports: Transports) {
    let gateway = Gateway::start(b"ringpost/1").await;
    gateway.order(Order::Refuse(ErrorCode::TokenInvalid));
    let store = tempfile::tempdir().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let source = asked.clone();
    let counting: Arc<dyn TokenSource> = Arc::new(move || {
        source.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok("token".to_owned()))
    });
    let client = open(transports, &gateway, store.path(), counting).await;
    next_status(&client, |status| matches!(status, Status::TokenRefused { .. })).await;
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    gateway.order(Order::Serve);
    let quiet = timeout(Duration::from_millis(300), client.next_event()).await;
    assert!(quiet.is_err(), "no attempt without being asked: {quiet:?}");
    client.reconnect().await.unwrap();
    next_status(&client, |status| *status == Status::Connected).await;
}

async fn a_replaced_client_stays_away_until_asked(transports: Transports) {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(transports, &gateway, store.path(), tokens()).await;
    next_status(&client, |status| *status == Status::CaughtUp).await;
    gateway.order(Order::Refuse(ErrorCode::Replaced));
    next_status(&client, |status| *status == Status::Replaced).await;
    gateway.order(Order::Serve);
    assert!(timeout(Duration::from_millis(300), client.next_event()).await.is_err());
    client.reconnect().await.unwrap();
    next_status(&client, |status| *status == Status::Connected).await;
}

async fn the_wait_of_a_go_away_is_kept(transports: Transports) {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(transports, &gateway, store.path(), tokens()).await;
    next_status(&client, |status| *status == Status::CaughtUp).await;
    gateway.order(Order::GoAway(321));
    let is_end = |status: &Status| matches!(status, Status::Disconnected { .. });
    let status = next_status(&client, is_end).await;
    assert!(matches!(status, Status::Disconnected { retry_in_ms: 321, .. }), "{status:?}");
    gateway.order(Order::Serve);
    next_status(&client, |status| *status == Status::Connected).await;
}

async fn a_server_of_another_protocol_is_refused(transports: Transports) {
    let gateway = Gateway::start(b"http/1.1").await;
    let store = tempfile::tempdir().unwrap();
    let client = open(transports, &gateway, store.path(), tokens()).await;
    let is_end = |status: &Status| matches!(status, Status::Disconnected { .. });
    next_status(&client, is_end).await;
    assert!(gateway.state.lock().unwrap().hellos.is_empty());
}
