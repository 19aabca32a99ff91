//! Two people make sure that nobody is between them, and see each other type.

use ringpost_client::messenger::{Conversation, News};

use crate::support::app::{App, id};
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::Place;

/// Both agree to compare; gives the numbers.
async fn compare((a, alice): (&mut App, &str), (b, bob): (&mut App, &str)) -> [u16; 3] {
    a.messenger.start_verification(&id(bob)).await.unwrap();
    b.wait("asked", |news| *news == News::VerificationAsked { user: id(alice) }).await;
    b.messenger.start_verification(&id(alice)).await.unwrap();
    let numbers = |news| match news {
        News::Compare { numbers, .. } => numbers,
        news => unreachable!("{news:?}"),
    };
    let is_it = |news: &News| matches!(news, News::Compare { .. });
    let seen = numbers(a.wait("numbers", is_it).await);
    assert_eq!(numbers(b.wait("numbers", is_it).await), seen);
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_compare_short_numbers_and_stay_verified() {
    let gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let place = Place::new();
    let mut a = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    let mut b = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    let stranger = a.messenger.start_verification(&id(&bob)).await.unwrap_err();
    assert_eq!(stranger.to_string(), "Nothing is known of this contact yet. Write to it first.");
    a.send(&bob, "hello").await;
    b.read("hello").await;

    // One of them sees other numbers, or says so.
    let first = compare((&mut a, &alice), (&mut b, &bob)).await;
    b.messenger.finish_verification(&id(&alice), false).await.unwrap();
    a.messenger.finish_verification(&id(&bob), true).await.unwrap();
    let failed = |news: &News| matches!(news, News::VerificationFailed { .. });
    let News::VerificationFailed { reason, .. } = a.wait("told", failed).await else {
        unreachable!("looked at")
    };
    let expected = "The other person sees other numbers. Somebody may be between you: do not trust \
                    what you read here until you have compared the safety number.";
    assert_eq!(reason, expected);
    assert!(!a.messenger.is_verified(&id(&bob)).await.unwrap());
    assert!(!b.messenger.is_verified(&id(&alice)).await.unwrap());

    let second = compare((&mut b, &bob), (&mut a, &alice)).await;
    assert_ne!(first, second, "they are drawn anew");
    a.messenger.finish_verification(&id(&bob), true).await.unwrap();
    b.messenger.finish_verification(&id(&alice), true).await.unwrap();
    a.wait("verified", |news| *news == News::Verified { user: id(&bob) }).await;
    b.wait("verified", |news| *news == News::Verified { user: id(&alice) }).await;
    a.close().await;
    let a = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    assert!(a.messenger.is_verified(&id(&bob)).await.unwrap(), "after a restart, too");

    // By the long number it can be done as well, and undone.
    let number = b.messenger.safety_number(&id(&alice)).await.unwrap().unwrap();
    let (start, end) = number.split_at(30);
    for (heard, is_same) in [("1234", false), (&*format!("{start} {end}"), true)] {
        assert_eq!(a.messenger.compare_safety_number(&id(&bob), heard).await, Ok(is_same));
        assert_eq!(a.messenger.is_verified(&id(&bob)).await, Ok(is_same));
    }
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_there_sees_that_somebody_types() {
    let gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let (place, group) = (Place::new(), id("group"));
    let mut a = App::open(&gateway, &alice, "phone", &place.file("alice")).await;
    let mut b = App::open(&gateway, &bob, "phone", &place.file("bob")).await;
    b.published().await;
    a.messenger.create_group(&group, vec![id(&bob)]).await.unwrap();
    a.messenger.send_group(&group, "hello all").await.unwrap();
    a.send(&bob, "hello").await;
    let both = [Conversation::Direct(id(&bob)), Conversation::Group(group.clone())];
    b.read("hello").await;
    b.read("hello all").await;
    b.send(&alice, "hello Alice").await;
    b.messenger.send_group(&group, "hello from Bob").await.unwrap();
    a.read("hello Alice").await;
    a.read("hello from Bob").await;
    for conversation in both {
        for _ in 0..100 {
            // Each key.
            a.messenger.typing(conversation.clone(), true).await.unwrap();
        }
        assert!(a.messenger.typing(conversation.clone(), false).await.unwrap());
        let seen = match conversation {
            Conversation::Direct(_) => Conversation::Direct(id(&alice)),
            group => group,
        };
        for is_typing in [true, false] {
            let (conversation, by) = (seen.clone(), id(&alice));
            let hint = News::Typing { conversation, by, is_typing };
            b.wait("typing", |news| *news == hint).await;
        }
    }
    let hints = b.news.iter().filter(|news| matches!(news, News::Typing { .. })).count();
    assert!(hints <= 8, "{hints} of 200 keys");
    assert_eq!([a.reasons(), b.reasons()].concat(), [""; 0]);
    a.close().await;
    b.close().await;
}
