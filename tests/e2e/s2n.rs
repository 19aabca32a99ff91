//! QUIC, seen by another implementation: s2n-quic, directly and behind a NAT that forgets.

use std::net::{Ipv4Addr, SocketAddr};

use ringpost_protocol::wire::{self, client_frame, server_frame};
use s2n_quic::client::Connect;
use s2n_quic::provider::tls::rustls;
use s2n_quic::stream::BidirectionalStream;
use s2n_quic::{Client, Connection, connection};
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::handover::udp_relay::UdpRelay;
use crate::support::PATIENCE;
use crate::support::frames::{self, Inbound};
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::quic::Quic;
use crate::support::raw::{framed, hello_frame, send_frame};

struct Peer {
    stream: BidirectionalStream,
    inbound: Inbound,
    // Both end when they are dropped.
    _connection: Connection,
    _client: Client,
}

async fn dial(
    gateway: &Gateway,
    address: SocketAddr,
    alpn: &str,
) -> Result<(Client, Connection), connection::Error> {
    let roots = str::from_utf8(&gateway.keys.roots_pem).unwrap();
    let tls = rustls::Client::builder().with_certificate(roots).unwrap();
    let tls = tls.with_application_protocols([alpn].iter()).unwrap().build().unwrap();
    let client = Client::builder().with_tls(tls).unwrap();
    let client = client.with_io((Ipv4Addr::LOCALHOST, 0)).unwrap().start().unwrap();
    let connect = Connect::new(address).with_server_name("localhost");
    let connection = timeout(PATIENCE, client.connect(connect)).await.expect("it ends")?;
    Ok((client, connection))
}

impl Peer {
    /// Connects and is welcomed.
    async fn open(gateway: &Gateway, address: SocketAddr, user: &str) -> Self {
        let (client, mut connection) = dial(gateway, address, "ringpost/1").await.unwrap();
        let stream = connection.open_bidirectional_stream().await.unwrap();
        let inbound = Inbound::default();
        let mut peer = Self { stream, inbound, _connection: connection, _client: client };
        let hello = hello_frame(&gateway.keys.token(user, "phone"), "phone");
        peer.send(client_frame::Frame::Hello(hello)).await;
        peer.expect(|frame| matches!(frame, server_frame::Frame::Welcome(_)).then_some(())).await;
        peer
    }

    async fn send(&mut self, frame: client_frame::Frame) {
        self.stream.send(framed(frame).into()).await.unwrap();
    }

    /// Skips other frames up to the next one that `wanted` takes.
    async fn expect<T>(&mut self, wanted: impl Fn(server_frame::Frame) -> Option<T>) -> T {
        loop {
            if let Some(frame) = self.inbound.next() {
                if let Some(found) = wanted(frame) {
                    return found;
                }
                continue;
            }
            let received = timeout(PATIENCE, self.stream.receive()).await.expect("more comes");
            self.inbound.push(&received.unwrap().expect("it goes on"));
        }
    }

    /// One message there and one back.
    async fn talk(&mut self, own: &str, other: &mut Quic, other_user: &str, number: u64) {
        let body = format!("number {number}");
        self.send(client_frame::Frame::Send(send_frame(number, other_user, &body))).await;
        let (send_seq, answer) = self.expect(frames::answer).await;
        assert!(send_seq == number && answer.is_ok());
        let deliver = other.expect_message().await;
        assert_eq!(deliver.envelope, body.as_bytes());
        other.send(client_frame::Frame::Ack(wire::Ack { up_to_seq: deliver.seq })).await;

        other.send(client_frame::Frame::Send(send_frame(number, own, &body))).await;
        let deliver = self.expect(frames::message).await;
        assert_eq!(deliver.envelope, body.as_bytes());
        self.send(client_frame::Frame::Ack(wire::Ack { up_to_seq: deliver.seq })).await;
        other.expect_answer().await.1.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2n_quic_talks_through_a_nat_that_forgets() {
    let gateway = Gateway::start(Settings { shards: 4, ..Settings::default() });
    let (alice, bob) = (user_at(1, 4, "alice"), user_at(2, 4, "bob"));
    let relay = UdpRelay::start(gateway.address());
    let mut peer = Peer::open(&gateway, relay.address(), &alice).await;
    let mut other = Quic::open(&gateway, &bob, "phone").await;
    peer.talk(&alice, &mut other, &bob, 1).await;
    for number in 2..6 {
        // Another port, and every second time another address.
        let host = if number % 2 == 0 { 1 } else { u8::try_from(number).unwrap() };
        relay.rebind(Ipv4Addr::new(127, 0, 0, host));
        peer.talk(&alice, &mut other, &bob, number).await;
    }
    let [handshakes, moves, foreign] = block_in_place(|| {
        [
            "ringpost_quic_handshakes_total",
            "ringpost_quic_path_changes_total",
            "ringpost_datagrams_foreign_total",
        ]
        .map(|name| gateway.metric(name))
    });
    assert_eq!((handshakes, foreign), (2.0, 0.0));
    assert!(moves >= 4.0, "{moves}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2n_quic_is_refused_with_another_protocol() {
    let gateway = Gateway::start(Settings::default());
    let refused = dial(&gateway, gateway.address(), "h3").await.err();
    assert!(matches!(refused, Some(connection::Error::Transport { .. })), "{refused:?}");
}
