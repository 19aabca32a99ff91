//! People who use the messenger: everything encrypted, nothing set up by hand.

use ringpost_client::messenger::{Conversation, News};

use crate::support::app::{App, id, register};
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::Place;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_people_who_are_never_online_together_talk() {
    let mut gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let place = Place::new();
    register(&gateway, &bob, &place.file("bob")).await;

    for round in 0..3 {
        let mut app = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
        app.send(&bob, &format!("question {round}")).await;
        app.sent().await;
        app.close().await;
        // Neither the gateway's restarts nor the app's are noticed.
        if round == 1 {
            assert_eq!(gateway.stop().code(), Some(0));
            gateway.restart();
        }
        let mut app = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
        let question = app.read(&format!("question {round}")).await;
        let conversation = question.conversation.clone();
        assert_eq!(conversation, Conversation::Direct(id(&alice)));
        app.messenger.mark_read(conversation, vec![question.id]).await.unwrap();
        app.send(&alice, &format!("answer {round}")).await;
        app.sent().await;
        assert_eq!(app.refusals(), 0, "{:?}", app.news);
        app.close().await;
        let mut app = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
        let answer = app.read(&format!("answer {round}")).await;
        assert!(answer.time > question.time && answer.missing.is_empty());
        let is_tick =
            |news: &News| matches!(news, News::Read { messages, .. } if messages == &[question.id]);
        if !app.news.iter().any(is_tick) {
            app.wait("read", is_tick).await;
        }
        assert_eq!(app.refusals(), 0, "{:?}", app.news);
        app.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_see_the_same_safety_number_and_first_messages_cross() {
    let gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let place = Place::new();
    let mut a = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    let mut b = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    // Before either has published anything.
    a.send(&bob, "hello Bob").await;
    b.send(&alice, "hello Alice").await;
    a.read("hello Alice").await;
    b.read("hello Bob").await;
    for n in 0..20 {
        a.send(&bob, &format!("a{n}")).await;
        b.send(&alice, &format!("b{n}")).await;
    }
    b.read("a19").await;
    a.read("b19").await;
    let number = a.messenger.safety_number(&id(&bob)).await.unwrap().unwrap();
    assert_eq!(b.messenger.safety_number(&id(&alice)).await.unwrap(), Some(number));
    assert_eq!(a.refusals() + b.refusals(), 0, "{:?} {:?}", a.news, b.news);
    a.close().await;
    b.close().await;
}

/// Nobody comes back for a while and the stock of one-time keys is used up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_message_without_a_one_time_key_is_read() {
    let limits = "user_key_reads_per_hour = 0, device_one_time_keys_per_hour = 0";
    let gateway = Gateway::start(Settings { limits, ..Settings::default() });
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let place = Place::new();
    register(&gateway, &bob, &place.file("bob")).await;
    let mut app = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    loop {
        let client = app.messenger.client();
        let bundles = client.fetch_keys(id(&bob), Vec::new()).await.unwrap();
        if bundles[0].one_time_key.is_none() {
            break;
        }
    }
    app.send(&bob, "hello").await;
    app.sent().await;
    app.close().await;
    let mut app = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    app.read("hello").await;
    app.published().await;
    app.close().await;
}
