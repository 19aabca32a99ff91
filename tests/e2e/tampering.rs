//! What an operator can try who owns the gateway, and what the people are told. The gateway is the
//! real one: all of it can be done through its door by one who makes the tokens.

use bytes::Bytes;
use rand::seq::SliceRandom;
use ringpost_client::e2ee::bundle::SignedPreKey;
use ringpost_client::e2ee::{DeviceList, IdentityKey, PreKeys};
use ringpost_client::messenger::{News, Text};
use ringpost_protocol::id::DeviceId;
use ringpost_protocol::wire;

use crate::support::app::{App, id};
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::operator::{Operator, SPY};
use crate::support::peer::Place;

/// Two people whose apps are closed.
struct Victims {
    gateway: Gateway,
    place: Place,
    alice: String,
    bob: String,
}

impl Victims {
    /// Both have keys at the server and have not met.
    async fn strangers() -> Self {
        let limits = "user_key_reads_per_hour = 0, device_one_time_keys_per_hour = 0";
        let gateway = Gateway::start(Settings { limits, ..Settings::default() });
        let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
        let victims = Self { gateway, place: Place::new(), alice, bob };
        for app in [victims.alice().await, victims.bob().await] {
            app.published().await;
            app.close().await;
        }
        victims
    }

    /// They have written to each other.
    async fn acquainted() -> Self {
        let victims = Self::strangers().await;
        let (mut alice, mut bob) = (victims.alice().await, victims.bob().await);
        alice.send(&victims.bob, "hello Bob").await;
        bob.read("hello Bob").await;
        bob.send(&victims.alice, "hello Alice").await;
        alice.read("hello Alice").await;
        alice.close().await;
        bob.close().await;
        victims
    }

    async fn open(&self, user: &str) -> App {
        App::open(&self.gateway, user, PHONE, &self.place.file(user)).await
    }

    async fn alice(&self) -> App {
        self.open(&self.alice).await
    }

    async fn bob(&self) -> App {
        self.open(&self.bob).await
    }

    /// Alice writes these while Bob is away.
    async fn alice_writes(&self, texts: &[&str]) {
        let mut alice = self.alice().await;
        for text in texts {
            alice.send(&self.bob, text).await;
            alice.sent().await;
        }
        alice.close().await;
    }

    fn phones(&self) -> [(&str, &str); 2] {
        [(&self.alice, PHONE), (&self.bob, PHONE)]
    }

    fn operator(&self) -> Operator<'_> {
        Operator::of(&self.gateway)
    }
}

fn mallory() -> IdentityKey {
    IdentityKey::from_seed([66; 32])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_ciphertext_is_told_and_the_next_message_is_read() {
    let victims = Victims::acquainted().await;
    let ([alice, bob], operator) = (victims.phones(), victims.operator());
    victims.alice_writes(&["pay 10"]).await;
    let mut envelope = operator.take(bob).pop().unwrap().to_vec();
    *envelope.last_mut().unwrap() ^= 1;
    operator.put(alice, bob, &[envelope.into()]);
    victims.alice_writes(&["pay 20"]).await;
    let mut b = victims.bob().await;
    let Text { missing, .. } = b.read("pay 20").await;
    assert_eq!(missing.len(), 1, "the one that was lost shows");
    assert_eq!(b.texts(), ["pay 20"]);
    let altered = "This message was changed on its way, was not meant for this device, or came far \
                   too late.";
    assert_eq!(b.reasons(), [altered]);
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_first_message_is_told_and_not_shown_again() {
    for is_exhausted in [false, true] {
        let victims = Victims::strangers().await;
        let ([alice, bob], operator) = (victims.phones(), victims.operator());
        if is_exhausted {
            let a = victims.alice().await;
            while a.messenger.client().fetch_keys(id(&victims.bob), Vec::new()).await.unwrap()[0]
                .one_time_key
                .is_some()
            {}
            a.close().await;
        }
        victims.alice_writes(&["pay 10"]).await;
        let first = operator.look(bob);
        operator.put(alice, bob, &first);
        let replayed = "This message was read before, or came so late that its key is gone.";
        let mut b = victims.bob().await;
        b.wait("told", |news| matches!(news, News::Undecryptable { .. })).await;
        assert_eq!((b.texts(), b.reasons()), (vec!["pay 10"], vec![replayed]));
        b.close().await;
        // A restart of the app changes nothing.
        operator.put(alice, bob, &first);
        let mut b = victims.bob().await;
        b.wait("told again", |news| matches!(news, News::Undecryptable { .. })).await;
        assert_eq!((b.texts(), b.reasons()), (vec![], vec![replayed]));
        b.close().await;
    }
}

/// It is the server that gives the order; whatever it does to it, everything is read, and shown in
/// the order that the writers saw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reordered_messages_are_read_and_shown_in_order() {
    for is_first in [true, false] {
        let victims = match is_first {
            true => Victims::strangers().await,
            false => Victims::acquainted().await,
        };
        let ([alice, bob], operator) = (victims.phones(), victims.operator());
        let texts: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        victims.alice_writes(&texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let mut envelopes = operator.take(bob);
        assert_eq!(envelopes.len(), texts.len());
        envelopes.shuffle(&mut rand::rng());
        operator.put(alice, bob, &envelopes);
        let mut b = victims.bob().await;
        let mut read = Vec::new();
        for text in &texts {
            read.push(b.read(text).await);
        }
        assert!(read.is_sorted_by_key(|text| text.time), "sorted by time they are as written");
        assert_eq!(b.reasons(), [""; 0]);
        b.send(&victims.alice, "got them").await;
        victims.alice().await.read("got them").await;
        b.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_device_list_is_told_and_its_device_gets_nothing() {
    let victims = Victims::acquainted().await;
    let ([alice, bob], operator) = (victims.phones(), victims.operator());
    // Bob's, with one device more, under Bob's signature of something else.
    let good = operator.list(&victims.bob).signed_list;
    let identities = |list: &Bytes| {
        let mut identity = [0; 32];
        identity.copy_from_slice(&list[1..33]);
        identity
    };
    let devices = [PHONE, SPY].map(|name| (DeviceId::new(name).unwrap(), mallory().public()));
    let list = DeviceList { user: id(&victims.bob), version: 2, devices: devices.into() };
    let mut forged = list.sign(&mallory()).unwrap();
    forged[1..33].copy_from_slice(&identities(&good));
    operator.replace_list(&victims.bob, &[PHONE, SPY], forged.into());
    operator.have_looked_up(&victims.bob, alice);

    let mut a = victims.alice().await;
    a.wait("told", |news| matches!(news, News::Refused { .. })).await;
    let reason = "The list of this contact's devices was not signed by the contact. Somebody may be \
                  trying to add a device that reads along; the list was not used.";
    assert_eq!(a.reasons(), [reason]);
    a.send(&victims.bob, "to you alone").await;
    a.sent().await;
    assert_eq!(a.messenger.devices(&id(&victims.bob)).await.unwrap().unwrap().len(), 1);
    a.close().await;
    assert_eq!(operator.look((&victims.bob, SPY)).len(), 0);
    assert_eq!(operator.look(bob).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_device_list_is_told_and_not_used() {
    let victims = Victims::acquainted().await;
    let ([alice, _], operator) = (victims.phones(), victims.operator());
    let old = operator.list(&victims.bob).signed_list;
    let mut b = victims.bob().await;
    let tablet = victims.place.file("tablet");
    let mut tablet = App::open(&victims.gateway, &victims.bob, "tablet", &tablet).await;
    b.link(&mut tablet).await;
    let mut a = victims.alice().await;
    tablet.send(&victims.alice, "my new tablet").await;
    a.read("my new tablet").await;
    for app in [a, b, tablet] {
        app.close().await;
    }
    operator.replace_list(&victims.bob, &[PHONE], old);
    operator.have_looked_up(&victims.bob, alice);
    let mut a = victims.alice().await;
    a.wait("told", |news| matches!(news, News::Refused { .. })).await;
    let reason = "An old list of this contact's devices was offered (version 1, known is 2). It was \
                  not used: it may name a device that was removed.";
    assert_eq!(a.reasons(), [reason]);
    assert_eq!(a.messenger.devices(&id(&victims.bob)).await.unwrap().unwrap().len(), 2);
    a.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_added_by_the_server_reads_nothing_and_is_told() {
    let victims = Victims::acquainted().await;
    let (operator, mallory) = (victims.operator(), user_at(0, 2, "mallory"));
    let group = id("group");
    let ghost = victims.open(&mallory).await;
    ghost.published().await;
    let (mut a, mut b) = (victims.alice().await, victims.bob().await);
    a.messenger.create_group(&group, vec![id(&victims.bob)]).await.unwrap();
    a.messenger.send_group(&group, "before").await.unwrap();
    b.read("before").await;

    operator.add_member(&victims.alice, "group", &mallory);
    a.messenger.send_group(&group, "secret of Alice").await.unwrap();
    b.read("secret of Alice").await;
    b.messenger.send_group(&group, "secret of Bob").await.unwrap();
    a.read("secret of Bob").await;
    for app in [&a, &b] {
        let members = app.messenger.members(&group).await.unwrap().unwrap();
        assert_eq!(members, [id(&victims.alice), id(&victims.bob)]);
    }
    ghost.close().await;
    let envelopes = operator.look((&mallory, PHONE));
    println!("{} envelopes came to the ghost", envelopes.len());
    let mut ghost = victims.open(&mallory).await;
    ghost.catch_up().await;
    assert_eq!(ghost.texts(), [""; 0]);
    ghost.close().await;

    // It has something to say itself.
    operator.put_group((&mallory, PHONE), "group", &Bytes::from_static(b"let me in"));
    for app in [&mut a, &mut b] {
        let is_ghost =
            |news: &News| matches!(news, News::Refused { user, .. } if *user == id(&mallory));
        app.wait("told of the ghost", is_ghost).await;
        let reason = "Somebody whom the group's administrator has not added writes to it. Nothing \
                      of it is shown unless a signed list of the members says otherwise.";
        assert_eq!(app.reasons(), [reason]);
    }
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_another_identity_are_told_and_nothing_is_sent() {
    for is_signed in [true, false] {
        let victims = Victims::strangers().await;
        let ([_, bob], operator) = (victims.phones(), victims.operator());
        let prekeys = PreKeys::new(0, &mut rand::rng());
        let SignedPreKey { id: key_id, key, signature } = prekeys.signed(&mallory());
        let signed_prekey = wire::PublicKey {
            key_id,
            key: Bytes::copy_from_slice(&key),
            signature: Bytes::copy_from_slice(&signature),
        };
        // With an identity of its own, or under the right one.
        let identity_key = match is_signed {
            true => Bytes::copy_from_slice(mallory().public().as_bytes()),
            false => Bytes::new(),
        };
        let signed_prekey = Some(signed_prekey);
        let keys = wire::KeysPublish { identity_key, signed_prekey, ..Default::default() };
        operator.replace_keys(bob, keys);

        let mut a = victims.alice().await;
        a.send(&victims.bob, "secret").await;
        a.wait("told", |news| matches!(news, News::Refused { .. })).await;
        let reason = match is_signed {
            true => IDENTITY_CHANGED,
            false => {
                "The key offered for this device was not signed by the device. Somebody may be \
                 trying to read along; nothing was sent."
            }
        };
        assert_eq!(a.reasons(), [reason]);
        a.close().await;
        assert_eq!(operator.look(bob).len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_identity_stops_everything_until_the_person_decides() {
    let victims = Victims::acquainted().await;
    let ([alice, bob], operator) = (victims.phones(), victims.operator());
    let mut a = victims.alice().await;
    let number = a.messenger.safety_number(&id(&victims.bob)).await.unwrap().unwrap();
    a.close().await;
    let devices = [(DeviceId::new(PHONE).unwrap(), mallory().public())].into();
    let list = DeviceList { user: id(&victims.bob), version: 2, devices };
    let swapped = list.sign(&mallory()).unwrap();
    operator.replace_list(&victims.bob, &[PHONE], swapped.into());
    operator.have_looked_up(&victims.bob, alice);

    a = victims.alice().await;
    a.wait("told", |news| matches!(news, News::IdentityChanged { .. })).await;
    assert_eq!(a.reasons(), [IDENTITY_CHANGED]);
    for _ in 0..2 {
        let refused = a.messenger.send(&id(&victims.bob), "secret").await.unwrap_err();
        assert_eq!(refused.to_string(), IDENTITY_CHANGED);
        a.close().await;
        a = victims.alice().await; // restarted, it has not forgotten
    }
    a.messenger.accept_identity(&id(&victims.bob)).await.unwrap();
    let other = a.messenger.safety_number(&id(&victims.bob)).await.unwrap().unwrap();
    assert_ne!(number, other, "to be compared again");
    a.close().await;
    assert_eq!(operator.look(bob).len(), 0);
}

const PHONE: &str = "phone";
const IDENTITY_CHANGED: &str = "This contact's identity is not the one known before. It may be a \
                                new phone, or somebody else: compare the safety number before you \
                                go on.";
