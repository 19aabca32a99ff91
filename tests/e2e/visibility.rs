//! The operator sees nothing: what two devices tell each other is nowhere in the gateway's memory, on
//! its disk, in its log or its metrics. And the same search finds what was not encrypted.

use bytes::Bytes;
use rand::rng;
use ringpost_client::e2ee::{Bundle, IdentityKey, OwnKeys, Pair, Party, PreKeys};
use ringpost_client::{SendOptions, Status};
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::{Recipient, SendBody};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place};
use crate::support::traces::{Traces, in_files, in_memory, in_text, marker};

/// A device with what it needs to talk to another one.
struct Device {
    peer: Peer,
    own: OwnKeys,
    party: Party,
}

impl Device {
    async fn start(gateway: &Gateway, user: &str, place: &Place) -> Self {
        let peer = Peer::connect(gateway, user, "phone", &place.file(user)).await;
        let mut prekeys = PreKeys::new(0, &mut rng());
        prekeys.make_one_time(1, &mut rng());
        let own = OwnKeys { identity: IdentityKey::random(&mut rng()), prekeys };
        let address = DeviceAddress {
            user: UserId::new(user).unwrap(),
            device: DeviceId::new("phone").unwrap(),
        };
        let party = Party { address, identity: own.identity.public() };
        Self { peer, own, party }
    }

    fn bundle(&self) -> Bundle {
        let one_time = self.own.prekeys.pending(&self.own.identity).one_time.first().copied();
        let signed = self.own.prekeys.signed(&self.own.identity);
        Bundle::new(self.own.identity.public(), signed, one_time).unwrap()
    }

    async fn send(&self, pair: &mut Pair, text: &str) {
        let envelope = Bytes::from(pair.encrypt(text.as_bytes()).unwrap());
        send(&self.peer, &pair.peer().address.user, envelope).await;
    }

    /// Opens its messages from the `first` one on.
    async fn receive(&mut self, pair: &mut Pair, first: usize, count: usize) -> Vec<String> {
        let seen = self.peer.wait_messages(first + count).await;
        let envelopes = seen.messages[first..].iter().map(|message| message.envelope.clone());
        envelopes
            .map(|envelope| {
                let plain = pair.decrypt(&mut self.own, &envelope, 0, &mut rng()).unwrap();
                String::from_utf8(plain).unwrap()
            })
            .collect()
    }
}

async fn send(peer: &Peer, user: &UserId, envelope: Bytes) {
    let to = Recipient::User(user.clone());
    peer.client.send(to, SendBody::Shared(envelope), SendOptions::default()).await.unwrap();
}

/// Everything that the operator could look at.
fn search(gateway: &Gateway, markers: &[String]) -> Traces {
    let mut found = in_memory(gateway.process(), markers);
    let (in_files, files) = in_files(gateway.path(), markers);
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    assert!(names.iter().any(|name| name.ends_with("/log")), "{names:?}");
    assert!(names.iter().any(|name| name.contains("/store/")), "{names:?}");
    let (status, metrics) = gateway.get("/metrics");
    assert_eq!(status, 200);
    for (marker, places) in [in_files, in_text(&metrics, markers, "metrics")].into_iter().flatten()
    {
        found.entry(marker).or_default().extend(places);
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_finds_no_word_of_what_is_encrypted_and_every_word_of_what_is_not() {
    let gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let mut alice = Device::start(&gateway, &alice, &place).await;
    let mut bob = Device::start(&gateway, &bob, &place).await;
    let mut to_bob = Pair::new(alice.party.clone(), bob.party.clone());
    let mut to_alice = Pair::new(bob.party.clone(), alice.party.clone());
    to_bob.begin(&alice.own.identity, &bob.bundle(), 0, &mut rng()).unwrap();

    // First messages, an answer, and messages of a session that stands, to an absent device.
    let kinds = ["first", "answer", "later", "waiting"];
    let secret = kinds.map(marker);
    for number in 0..REPEATED {
        alice.send(&mut to_bob, &format!("{number} {}", secret[0])).await;
    }
    let texts = bob.receive(&mut to_alice, 0, REPEATED).await;
    assert!(texts.iter().all(|text| text.ends_with(&secret[0])), "{texts:?}");
    for _ in 0..REPEATED {
        bob.send(&mut to_alice, &secret[1]).await;
    }
    assert_eq!(alice.receive(&mut to_bob, 0, REPEATED).await, vec![secret[1].clone(); REPEATED]);
    for _ in 0..REPEATED {
        alice.send(&mut to_bob, &secret[2]).await;
    }
    let texts = bob.receive(&mut to_alice, REPEATED, REPEATED).await;
    assert_eq!(texts, vec![secret[2].clone(); REPEATED]);
    let bob_user = bob.party.address.user.clone();
    bob.peer.close().await;
    for _ in 0..REPEATED {
        alice.send(&mut to_bob, &secret[3]).await;
    }
    alice.peer.wait_sent(3 * REPEATED).await;
    assert_eq!(search(&gateway, &secret), Traces::new(), "what is encrypted can be seen");

    // The control: the same way without encryption.
    let clear = [marker("clear")];
    for _ in 0..REPEATED {
        send(&alice.peer, &bob_user, Bytes::copy_from_slice(clear[0].as_bytes())).await;
    }
    alice.peer.wait_sent(4 * REPEATED).await;
    let found = search(&gateway, &clear);
    let places = found.get(&clear[0]).map_or(&[][..], Vec::as_slice);
    for kind in ["memory", "file"] {
        let is_there = places.iter().any(|place| place.starts_with(kind));
        assert!(is_there, "the search misses what is in the gateway's {kind}: {places:?}");
    }
    assert_eq!(alice.peer.seen().count(&Status::Connected), 1);
}

/// Of each message, so that buffers which are used again do not hide it.
const REPEATED: usize = 20;
