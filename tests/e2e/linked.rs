//! One person with several devices: linked by a code, in step with one another, and taken out again.

use ringpost_client::messenger::{Conversation, News};
use ringpost_protocol::id::DeviceId;

use crate::support::app::{App, id};
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::Place;

/// Alice and Bob, with a place for the databases of their devices.
struct People {
    gateway: Gateway,
    place: Place,
    alice: String,
    bob: String,
}

impl People {
    fn start() -> Self {
        let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
        let gateway = Gateway::start(Settings::default());
        Self { gateway, place: Place::new(), alice, bob }
    }

    async fn open(&self, user: &str, device: &str) -> App {
        let database = self.place.file(&format!("{user}-{device}"));
        App::open(&self.gateway, user, device, &database).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_one_person_keep_in_step() {
    let mut people = People::start();
    let (alice, bob) = (people.alice.clone(), people.bob.clone());
    let mut b = people.open(&bob, "phone").await;
    let mut phone = people.open(&alice, "phone").await;
    phone.send(&bob, "before").await;
    b.read("before").await;

    let mut tablet = people.open(&alice, "tablet").await;
    phone.link(&mut tablet).await;
    // The third one by the second.
    let mut laptop = people.open(&alice, "laptop").await;
    tablet.link(&mut laptop).await;
    for app in [&phone, &tablet, &laptop, &b] {
        app.wait_devices(&alice, 3).await;
    }
    // What one sends the others show as their own, in its place.
    for from in ["phone", "laptop"] {
        let text = format!("from the {from}");
        let mut apps = [("phone", &mut phone), ("tablet", &mut tablet), ("laptop", &mut laptop)];
        for (_, app) in apps.iter().filter(|(name, _)| *name == from) {
            app.send(&bob, &text).await;
        }
        let read = b.read(&text).await;
        for (_, app) in apps.iter_mut().filter(|(name, _)| *name != from) {
            let copy = app.read(&text).await;
            assert_eq!((copy.from, copy.id, copy.time), (id(&alice), read.id, read.time));
            assert_eq!(copy.conversation, Conversation::Direct(id(&bob)));
        }
    }
    b.send(&alice, "to all three").await;
    for app in [&mut phone, &mut tablet, &mut laptop] {
        app.read("to all three").await;
    }

    // One is away while the gateway starts again, and finds everything.
    laptop.close().await;
    tablet.close().await;
    assert_eq!(people.gateway.stop().code(), Some(0));
    people.gateway.restart();
    b.send(&alice, "while they were away").await;
    phone.read("while they were away").await;
    phone.send(&bob, "an answer").await;
    b.read("an answer").await;
    let mut tablet = people.open(&alice, "tablet").await;
    let mut laptop = people.open(&alice, "laptop").await;
    for app in [&mut tablet, &mut laptop] {
        app.read("while they were away").await;
        app.read("an answer").await;
    }
    // And what was read on one of them is read.
    let read = laptop.read("while they were away").await;
    laptop.messenger.mark_read(read.conversation, vec![read.id]).await.unwrap();
    for app in [&mut phone, &mut tablet] {
        let is_tick = |news: &News| match news {
            News::Read { messages, by, .. } => *by == id(&alice) && messages == &[read.id],
            _ => false,
        };
        app.told("read on the laptop", is_tick).await;
    }
    assert_eq!(b.reasons(), [""; 0]);
    assert_eq!(phone.reasons(), [""; 0]);
    for app in [b, phone, tablet, laptop] {
        app.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_device_reads_nothing_more() {
    let mut people = People::start();
    let (alice, bob) = (people.alice.clone(), people.bob.clone());
    let group = id("group");
    let mut b = people.open(&bob, "phone").await;
    let mut phone = people.open(&alice, "phone").await;
    let mut tablet = people.open(&alice, "tablet").await;
    b.published().await;
    phone.published().await;
    phone.link(&mut tablet).await;
    phone.messenger.create_group(&group, vec![id(&bob)]).await.unwrap();
    phone.messenger.send_group(&group, "group before").await.unwrap();
    phone.send(&bob, "before").await;
    for app in [&mut b, &mut tablet] {
        app.read("before").await;
        app.read("group before").await;
    }
    b.messenger.send_group(&group, "to all").await.unwrap();
    phone.read("to all").await;
    tablet.read("to all").await;

    // It is away when it is taken out, and comes back later.
    tablet.close().await;
    phone.messenger.remove_device(&DeviceId::new("tablet").unwrap()).await.unwrap();
    b.wait_devices(&alice, 1).await;
    b.send(&alice, "secret").await;
    b.messenger.send_group(&group, "group secret").await.unwrap();
    phone.read("secret").await;
    phone.read("group secret").await;
    phone.send(&bob, "own secret").await;
    phone.messenger.send_group(&group, "own group secret").await.unwrap();
    b.read("own secret").await;
    b.read("own group secret").await;
    assert_eq!(people.gateway.stop().code(), Some(0));
    people.gateway.restart();
    let mut tablet = people.open(&alice, "tablet").await;
    tablet.catch_up().await;
    assert_eq!(tablet.texts(), [""; 0]);

    // Nor is it believed any more.
    tablet.send(&bob, "still me").await;
    let told = |news: &News| matches!(news, News::Undecryptable { from, .. } if from.device.as_str() == "tablet");
    let News::Undecryptable { reason, .. } = b.wait("not believed", told).await else {
        unreachable!("looked at")
    };
    assert_eq!(reason, "This device is not in the contact's signed list of devices.");
    b.send(&alice, "more secrets").await;
    phone.read("more secrets").await;
    tablet.close().await;
    let mut tablet = people.open(&alice, "tablet").await;
    tablet.catch_up().await;
    assert_eq!(tablet.texts(), [""; 0]);
    assert!(!b.texts().contains(&"still me"));
    for app in [b, phone, tablet] {
        app.close().await;
    }
}
