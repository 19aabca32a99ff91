//! The operator sees nothing: what two devices tell each other is nowhere in the gateway's memory, on
//! its disk, in its log or its metrics. And the same search finds what was not encrypted.

use bytes::Bytes;
use rand::rng;
use ringpost_client::e2ee::{Bundle, IdentityKey, OwnKeys, Pair, Party, PreKeys};
use ringpost_client::messenger::{Conversation, News};
use ringpost_client::{SendOptions, Status};
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::{Recipient, SendBody};

use crate::support::app::{App, id};
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
    find_what_is_clear(&gateway, &alice.peer, &bob_user).await;
    assert_eq!(alice.peer.seen().count(&Status::Connected), 1);
}

/// The control: the same way without encryption, to somebody who is away.
async fn find_what_is_clear(gateway: &Gateway, from: &Peer, to: &UserId) {
    let clear = [marker("clear")];
    let sent_before = from.seen().sent.len();
    for _ in 0..REPEATED {
        send(from, to, Bytes::copy_from_slice(clear[0].as_bytes())).await;
    }
    from.wait_sent(sent_before + REPEATED).await;
    let found = search(gateway, &clear);
    let places = found.get(&clear[0]).map_or(&[][..], Vec::as_slice);
    for kind in ["memory", "file"] {
        let is_there = places.iter().any(|place| place.starts_with(kind));
        assert!(is_there, "the search misses what is in the gateway's {kind}: {places:?}");
    }
}

/// Everything that the messenger does: with a marker in each text and name, and with what the devices
/// tell each other by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_finds_nothing_of_what_people_do() {
    let gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let mut a = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    let mut b = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    b.published().await;
    let kinds = ["pair", "answer", "tablet", "group", "groupname", "safety", "waiting", "left"];
    let secret = kinds.map(marker);
    let [pair, answer, on_tablet, in_group, group_name, safety, waiting, left] = &secret;

    write(&mut a, &mut b, &Conversation::Direct(id(&bob)), pair).await;
    write(&mut b, &mut a, &Conversation::Direct(id(&alice)), answer).await;
    let mut tablet = App::open(&gateway, &alice, "tablet", &place.file("tablet")).await;
    a.link(&mut tablet).await;
    write(&mut tablet, &mut b, &Conversation::Direct(id(&bob)), on_tablet).await;
    a.read(&last(on_tablet)).await;

    // A group has a name for people; the server knows its id.
    let group = id("group");
    a.messenger.create_group(&group, vec![id(&bob)]).await.unwrap();
    let to_group = Conversation::Group(group.clone());
    write(&mut a, &mut b, &to_group, group_name).await;
    write(&mut b, &mut a, &to_group, in_group).await;
    tablet.read(&last(in_group)).await;

    for conversation in [Conversation::Direct(id(&bob)), to_group] {
        assert!(a.messenger.typing(conversation, true).await.unwrap());
        b.wait("typing", |news| matches!(news, News::Typing { .. })).await;
    }
    let number = a.messenger.safety_number(&id(&bob)).await.unwrap().unwrap();
    let said = format!("{safety} {number}");
    write(&mut a, &mut b, &Conversation::Direct(id(&bob)), &said).await;
    assert!(b.messenger.compare_safety_number(&id(&alice), &number).await.unwrap());
    b.messenger.start_verification(&id(&alice)).await.unwrap();
    a.wait("asked", |news| matches!(news, News::VerificationAsked { .. })).await;
    a.messenger.start_verification(&id(&bob)).await.unwrap();
    b.wait("numbers", |news| matches!(news, News::Compare { .. })).await;

    a.messenger.remove_device(&DeviceId::new("tablet").unwrap()).await.unwrap();
    b.wait_devices(&alice, 1).await;
    write(&mut b, &mut a, &Conversation::Direct(id(&alice)), left).await;
    b.close().await;
    for number in 0..REPEATED {
        let message = a.send(&bob, &format!("{number} {waiting}")).await;
        a.wait("sent", |news| *news == News::Sent { message }).await;
    }
    assert_eq!(a.reasons(), [""; 0]);
    assert_eq!(search(&gateway, &secret), Traces::new(), "what is encrypted can be seen");
    let clear = Peer::connect(&gateway, "carol", "phone", &place.file("carol")).await;
    find_what_is_clear(&gateway, &clear, &id(&bob)).await;
    a.close().await;
}

/// Says it many times; the other one reads it and says so.
async fn write(from: &mut App, to: &mut App, conversation: &Conversation, text: &str) {
    for number in 0..REPEATED {
        let text = format!("{number} {text}");
        match conversation {
            Conversation::Direct(user) => from.messenger.send(user, &text).await.unwrap(),
            Conversation::Group(group) => from.messenger.send_group(group, &text).await.unwrap(),
        };
    }
    let read = to.read(&last(text)).await;
    to.messenger.mark_read(read.conversation, vec![read.id]).await.unwrap();
    let is_tick =
        |news: &News| matches!(news, News::Read { messages, .. } if messages == &[read.id]);
    from.told("read", is_tick).await;
}

fn last(text: &str) -> String {
    format!("{} {text}", REPEATED - 1)
}

/// Of each message, so that buffers which are used again do not hide it.
const REPEATED: usize = 20;
