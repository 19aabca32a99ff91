//! People who use the messenger: everything encrypted, nothing set up by hand.

use std::time::Duration;

use ringpost_client::messenger::{Conversation, News};
use ringpost_protocol::id::DeviceId;
use tokio::time::timeout;

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

/// An app that is put to sleep when everything is flushed leaves nothing behind, neither what was read
/// nor a change of a group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_is_what_the_server_has_answered() {
    let mut gateway = Gateway::start(Settings::default());
    let (alice, bob, group) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"), id("friends"));
    let place = Place::new();
    register(&gateway, &bob, &place.file("bob")).await;
    let mut a = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    let mut b = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    a.messenger.create_group(&group, vec![id(&bob)]).await.unwrap();
    a.send(&bob, "hello").await;
    a.flushed().await;
    let text = b.read("hello").await;
    let is_group = |news: &News| matches!(news, News::Group { is_member: true, .. });
    b.told("the group", is_group).await;
    b.flushed().await;

    assert_eq!(gateway.stop().code(), Some(0));
    let soon = Duration::from_millis(200);
    b.messenger.mark_read(text.conversation, vec![text.id]).await.unwrap();
    assert!(timeout(soon, b.messenger.flushed()).await.is_err(), "nobody has heard of it");
    gateway.restart();
    b.flushed().await;

    assert_eq!(gateway.stop().code(), Some(0));
    b.messenger.leave_group(&group).await.unwrap();
    assert!(timeout(soon, b.messenger.flushed()).await.is_err(), "nobody has heard of it");
    gateway.restart();
    b.flushed().await;
    b.close().await;
    let is_tick =
        |news: &News| matches!(news, News::Read { messages, .. } if messages == &[text.id]);
    a.told("read", is_tick).await;
    let is_alone = |news: &News| matches!(news, News::Group { members, .. } if members.len() == 1);
    a.told("alone", is_alone).await;
    a.close().await;
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

/// Bob knows one list of Alice's devices and writes while she has another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_reaches_a_device_that_its_writer_did_not_know_and_not_one_that_is_gone() {
    let gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let place = Place::new();
    let mut phone = App::open(&gateway, &alice, "phone", &place.file("phone")).await;
    phone.published().await;
    let writer = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    writer.send(&alice, "for one").await;
    phone.read("for one").await;

    let mut tablet = App::open(&gateway, &alice, "tablet", &place.file("tablet")).await;
    phone.link(&mut tablet).await;
    for text in ["for both", "and once more"] {
        writer.send(&alice, text).await;
    }
    for device in [&mut phone, &mut tablet] {
        device.read("and once more").await;
        let texts = device.news.iter().filter(|news| matches!(news, News::Text(_)));
        assert!(texts.count() <= 3, "{:?}", device.news);
    }
    assert!(tablet.news.iter().any(|it| matches!(it, News::Text(it) if it.text == "for both")));

    tablet.close().await;
    phone.messenger.remove_device(&DeviceId::new("tablet").unwrap()).await.unwrap();
    phone.wait_devices(&alice, 1).await;
    writer.send(&alice, "for one again").await;
    phone.read("for one again").await;
    let mut tablet = App::open(&gateway, &alice, "tablet", &place.file("tablet")).await;
    tablet.catch_up().await;
    assert!(!tablet.texts().contains(&"for one again"), "{:?}", tablet.news);
    assert_eq!(writer.refusals() + phone.refusals(), 0, "{:?} {:?}", writer.news, phone.news);
}

/// Everybody writes while the administrator adds and removes somebody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_to_a_group_are_for_the_members_of_the_moment() {
    let gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let carol = user_at(0, 2, "carol");
    let place = Place::new();
    let mut admin = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    let mut member = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    let mut other = App::open(&gateway, &carol, "phone", &place.file("carol")).await;
    for app in [&admin, &member, &other] {
        app.published().await;
    }
    let group = id("family");
    admin.messenger.create_group(&group, vec![id(&bob)]).await.unwrap();
    member.wait("the group", |news| matches!(news, News::Group { .. })).await;
    for round in 0..3 {
        member.messenger.send_group(&group, &format!("for two {round}")).await.unwrap();
        admin.read(&format!("for two {round}")).await;
        admin.messenger.add_members(&group, vec![id(&carol)]).await.unwrap();
        // At once, whichever roster it has: it is read by both, or by Alice alone.
        member.messenger.send_group(&group, &format!("between {round}")).await.unwrap();
        other.wait("in", |news| matches!(news, News::Group { is_member: true, .. })).await;
        admin.read(&format!("between {round}")).await;
        member
            .wait("three", |it| matches!(it, News::Group { members, .. } if members.len() == 3))
            .await;
        member.messenger.send_group(&group, &format!("for three {round}")).await.unwrap();
        admin.read(&format!("for three {round}")).await;
        other.read(&format!("for three {round}")).await;
        admin.messenger.remove_members(&group, vec![id(&carol)]).await.unwrap();
        other.wait("out", |news| matches!(news, News::Group { is_member: false, .. })).await;
    }
    let is_for_two = |news: &News| matches!(news, News::Text(it) if it.text.starts_with("for two"));
    assert!(!other.news.iter().any(is_for_two), "{:?}", other.news);
    for app in [&admin, &member, &other] {
        assert_eq!(app.refusals(), 0, "{:?}", app.news);
    }
}
