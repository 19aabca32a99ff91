//! Groups: who may change them, who gets what is sent to them, in which order, and what of it
//! survives.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_client::SendOptions;
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Recipient, SendBody};
use ringpost_protocol::wire::{ErrorCode, GapReason, RejectCode, server_frame};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::member::Member;
use crate::support::peer::{Peer, Place, Seen, Stop};

/// Users on both shards, in the order of their names.
fn users(names: &[&str]) -> Vec<String> {
    names.iter().zip(0..).map(|(name, index)| user_at(index % 2, 2, name)).collect()
}

#[test]
fn administrators_change_a_group_and_members_leave_it() {
    let gateway = Gateway::start(Settings::default());
    for shard in 0..2 {
        let group = user_at(shard, 2, "group");
        let names = users(&["alice", "bob", "carol", "dave"]);
        let [alice, bob, carol, dave] = [&*names[0], &*names[1], &*names[2], &*names[3]];
        let mut admin = Member::open(&gateway, alice, "phone");
        let mut member = Member::open(&gateway, bob, "phone");
        let mut stranger = Member::open(&gateway, dave, "phone");

        assert_eq!(member.show(&group), Err(ErrorCode::NotFound));
        assert_eq!(member.add(&group, &[alice]), Err(ErrorCode::NotFound));
        let made = admin.create(&group, &[bob]).unwrap();
        assert_eq!((made.version, &made.members[..]), (1, &names[..2]));
        assert_eq!(made.admins, names[..1]);
        assert_eq!(admin.create(&group, &[bob]).map(|again| again.version), Ok(1), "a repetition");
        assert_eq!(admin.create(&group, &[carol]), Err(ErrorCode::Conflict));
        assert_eq!(stranger.create(&group, &[]), Err(ErrorCode::Conflict));

        let shown = member.show(&group).unwrap();
        assert_eq!((shown.version, shown.members, shown.admins), (1, made.members, made.admins));
        assert_eq!(stranger.show(&group), Err(ErrorCode::NotAllowed));
        assert_eq!(member.add(&group, &[carol]), Err(ErrorCode::NotAllowed));
        assert_eq!(member.remove(&group, &[alice]), Err(ErrorCode::NotAllowed));
        assert_eq!(stranger.add(&group, &[dave]), Err(ErrorCode::NotAllowed));

        assert_eq!(admin.add_as(&group, &[carol], false, 2), Err(ErrorCode::Conflict));
        assert_eq!(admin.add_as(&group, &[carol], false, 1).unwrap().members, names[..3]);
        assert_eq!(admin.add_as(&group, &[bob], true, 2).unwrap().admins, names[..2]);
        assert_eq!(member.remove(&group, &[carol]).unwrap().version, 4);
        assert_eq!(admin.leave(&group), Ok(()));
        assert_eq!(admin.leave(&group), Ok(()), "a repetition");
        assert_eq!(admin.show(&group), Err(ErrorCode::NotAllowed));
        assert_eq!(member.show(&group).unwrap().members, names[1..2]);
        assert_eq!(member.leave(&group), Ok(()));
        assert_eq!(member.create(&group, &[]), Err(ErrorCode::Conflict), "its id is used up");
    }
}

#[test]
fn a_group_has_at_most_a_hundred_members() {
    let gateway = Gateway::start(Settings::default());
    let mut admin = Member::open(&gateway, "alice", "phone");
    let names: Vec<String> = (0..100).map(|number| format!("member-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(admin.create("group", &names[..99]).unwrap().members.len(), 100);
    assert_eq!(admin.add("group", &names[99..]), Err(ErrorCode::LimitReached));
    assert_eq!(admin.show("group").unwrap().version, 1);
    assert_eq!(admin.remove("group", &names[..99]).unwrap().members, ["alice"]);
    assert_eq!(admin.add("group", &names[..99]).unwrap().members.len(), 100);
}

#[test]
fn members_that_are_connected_hear_of_a_change_and_of_a_removal() {
    let gateway = Gateway::start(Settings::default());
    let names = users(&["alice", "bob", "carol"]);
    let mut members: Vec<Member> =
        names.iter().map(|name| Member::open(&gateway, name, "phone")).collect();
    members[0].create("group", &[&names[1]]).unwrap();
    for member in &mut members[..2] {
        assert_eq!(member.changed("group", 1), 1);
    }
    members[0].add("group", &[&names[2]]).unwrap();
    for member in &mut members {
        assert_eq!(member.changed("group", 2), 2);
    }
    members[0].remove("group", &[&names[1]]).unwrap();
    for member in &mut members {
        assert_eq!(member.changed("group", 3), 3);
    }
    assert_eq!(members[1].show("group"), Err(ErrorCode::NotAllowed));
}

#[test]
fn every_device_of_every_member_gets_it_but_the_one_that_sends() {
    for shard in 0..2 {
        let gateway = Gateway::start(Settings::default());
        let group = user_at(shard, 2, "family");
        let names = users(&["alice", "bob", "carol", "dave"]);
        let mut devices: Vec<Member> = names[..3]
            .iter()
            .flat_map(|name| ["phone", "tablet"].map(|device| (name, device)))
            .map(|(name, device)| Member::open(&gateway, name, device))
            .collect();
        let mut stranger = Member::open(&gateway, &names[3], "phone");
        devices[0].create(&group, &[&names[1], &names[2]]).unwrap();
        assert_eq!(devices[0].send(&group, "hello all"), Ok(vec![]));
        let expected = (group.clone(), names[0].clone(), "hello all".to_owned());
        for device in &mut devices[1..] {
            assert_eq!(device.message(), expected);
        }
        for name in &names[1..3] {
            for device in ["phone", "tablet"] {
                assert_eq!(devices[0].receipt(name, device, 1).group, group);
            }
        }
        assert_eq!(stranger.send(&group, "let me in"), Err(RejectCode::NotAMember));
        assert_eq!(stranger.send("no such group", "hello?"), Err(RejectCode::UnknownRecipient));
        assert!(!delivered(&devices[0].so_far()) && !delivered(&stranger.so_far()));
    }
}

fn delivered(frames: &[server_frame::Frame]) -> bool {
    frames.iter().any(|frame| matches!(frame, server_frame::Frame::Deliver(_)))
}

#[test]
fn a_send_for_another_roster_is_refused_and_a_replay_is_not_stored_again() {
    let gateway = Gateway::start(Settings::default());
    let names = users(&["alice", "bob"]);
    let mut alice = Member::open(&gateway, &names[0], "phone");
    let mut bob = Member::open(&gateway, &names[1], "phone");
    alice.create("group", &[&names[1]]).unwrap();
    alice.add("group", &["carol"]).unwrap();
    assert_eq!(alice.send_for("group", 1, "for two"), Err(RejectCode::StaleRoster));
    assert_eq!(alice.send_for("group", 2, "for three"), Ok(vec![]));
    // The same connection, and another one that says the same.
    alice.repeat(2, "group", 2, "for three");
    assert_eq!(alice.answer(2), Ok(vec![]));
    let mut again = Member::open(&gateway, &names[0], "phone");
    again.repeat(2, "group", 2, "for three");
    assert_eq!(again.answer(2), Ok(vec![]));
    again.repeat(1, "group", 1, "for two");
    assert_eq!(again.answer(1), Err(RejectCode::StaleRoster));
    again.repeat(3, "group", 0, "for whoever it is");
    assert_eq!(again.answer(3), Ok(vec![]));
    assert_eq!(bob.texts(2), ["for three", "for whoever it is"]);
}

#[test]
fn whoever_was_removed_gets_nothing_that_was_sent_later() {
    let gateway = Gateway::start(Settings::default());
    let names = users(&["alice", "bob", "carol", "dave"]);
    let mut members: Vec<Member> =
        names.iter().map(|name| Member::open(&gateway, name, "phone")).collect();
    let others: Vec<&str> = names[1..].iter().map(String::as_str).collect();
    members[0].create("group", &others).unwrap();
    let mut expected = Vec::new();
    for round in 0..20 {
        let text = format!("all {round}");
        members[1].post("group", 0, &text);
        expected.push(text);
        members[0].remove("group", &others[1..]).unwrap();
        let text = format!("two {round}");
        assert_eq!(members[1].send("group", &text), Ok(vec![]));
        expected.push(text);
        assert_eq!(members[3].send("group", "from outside"), Err(RejectCode::NotAMember));
        members[0].add("group", &others[1..]).unwrap();
    }
    members[1].send("group", "end").unwrap();
    assert_eq!(members[0].texts(40), expected);
    for member in &mut members[2..] {
        let texts = std::iter::from_fn(|| Some(member.message().2));
        let texts: Vec<String> = texts.take_while(|text| text != "end").collect();
        // A message that was sent while the removal was under way may come before or after it.
        assert!(texts.iter().all(|text| text.starts_with("all")), "{texts:?}");
    }
}

/// The store of one shard holds what it holds for each mailbox: the others go on.
#[test]
fn a_full_mailbox_is_skipped_and_its_device_learns_of_it() {
    let gateway = Gateway::start(Settings { mailbox_records_max: 32, ..Settings::default() });
    let names = users(&["alice", "bob", "carol"]);
    let mut alice = Member::open(&gateway, &names[0], "phone");
    let mut bob = Member::open(&gateway, &names[1], "phone");
    drop(Member::open(&gateway, &names[2], "phone"));
    alice.create("group", &[&names[1], &names[2]]).unwrap();
    let mut skipped = 0;
    for number in 0..12 {
        let text = number.to_string();
        let devices = alice.send("group", &text).unwrap();
        assert_eq!(bob.message().2, text);
        // What he has acknowledged takes no room any more.
        alice.receipt(&names[1], "phone", number + 1);
        let expected = [(names[2].clone(), "phone".to_owned())];
        // A quarter of the mailbox is for one sender.
        assert!(if number < 8 { devices.is_empty() } else { devices == expected }, "{devices:?}");
        skipped += devices.len();
    }
    assert_eq!(skipped, 4);
    let mut carol = Member::open(&gateway, &names[2], "phone");
    assert_eq!(carol.texts(8), ["0", "1", "2", "3", "4", "5", "6", "7"]);
    let gap = carol.gap();
    assert_eq!((gap.reason(), &*gap.group), (GapReason::Full, "group"));
    // Nobody takes it: then it is rejected, and what comes behind it too.
    alice.remove("group", &[&names[1], &names[2]]).unwrap();
    alice.add("group", &[&names[2]]).unwrap();
    drop(carol);
    while alice.send("group", "more").is_ok() {}
    assert_eq!(alice.send("group", "and more"), Err(RejectCode::SenderShare));
}

/// Eight senders on two shards, two devices each: all see the same messages in the same order, and
/// those of each sender in his.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_see_one_order() {
    let gateway = Gateway::start(Settings { shards: 3, ..Settings::default() });
    let crowd = Crowd::gather(&gateway, 3).await;
    let stop = Stop::default();
    let sending: Vec<_> = crowd.senders().map(|from| crowd.keep_sending(from, 60, &stop)).collect();
    let mut counts = BTreeMap::new();
    for sending in sending {
        let (from, count) = sending.await.unwrap();
        counts.insert(from, count);
    }
    assert!(counts.values().all(|&count| count == 60));
    crowd.check(&counts, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_were_away_get_what_they_missed() {
    let gateway = Gateway::start(Settings::default());
    let names = users(&["alice", "bob", "carol"]);
    let place = Place::new();
    for name in &names[1..] {
        Peer::connect(&gateway, name, "phone", &place.file(name)).await.close().await;
    }
    let mut admin = Member::open(&gateway, &names[0], "tablet");
    admin.create("group", &[&names[1], &names[2]]).unwrap();
    let alice = Peer::connect(&gateway, &names[0], "phone", &place.file("alice")).await;
    for number in 0..100 {
        send(&alice, "group", &number.to_string()).await;
    }
    alice.wait_sent(100).await;
    let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    for name in &names[1..] {
        let away = Peer::connect(&gateway, name, "phone", &place.file(name)).await;
        let seen = away.wait_messages(100).await;
        assert_eq!(seen.texts(), expected);
        let is_of_group = |group: Option<&UserId>| group.is_some_and(|id| id.as_str() == "group");
        assert!(seen.messages.iter().all(|message| is_of_group(message.group.as_ref())));
        let told = |seen: &Seen| {
            let of = |user: &str| seen.receipts.iter().any(|one| one.peer.user.as_str() == user);
            of(name)
        };
        alice.wait("a receipt", told).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_lose_nothing_of_a_group() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut gateway = Gateway::start(Settings::default());
    let crowd = Crowd::gather(&gateway, 2).await;
    let stop = Stop::default();
    let sending: Vec<_> =
        crowd.senders().map(|from| crowd.keep_sending(from, usize::MAX, &stop)).collect();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(random.random_range(100..600))).await;
        gateway.kill();
        gateway.restart();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.set();
    let mut counts = BTreeMap::new();
    for sending in sending {
        let (from, count) = sending.await.unwrap();
        counts.insert(from, count);
    }
    // A Send whose parts were not all stored before a crash is stored again, behind others.
    crowd.check(&counts, false).await;
    // The roster is kept too.
    let mut admin = Member::open(&gateway, &crowd.users[0], "desk");
    assert_eq!(admin.show("group").unwrap().members.len(), crowd.users.len());
}

/// Members of one group, spread over all shards, two devices each. The last one only listens.
struct Crowd {
    users: Vec<String>,
    /// Phones and tablets by turns.
    devices: Vec<Peer>,
    _place: Place,
}

impl Crowd {
    async fn gather(gateway: &Gateway, shards: u16) -> Self {
        let users: Vec<String> =
            (0..5).map(|index| user_at(index % shards, shards, &format!("m{index}"))).collect();
        let place = Place::new();
        let mut devices = Vec::new();
        for user in &users {
            for device in ["phone", "tablet"] {
                let file = place.file(&format!("{user}-{device}"));
                devices.push(Peer::connect(gateway, user, device, &file).await);
            }
        }
        // One who takes no messages must not stay: his mailbox would fill up.
        let mut admin = Member::open(gateway, "founder", "desk");
        admin.create("group", &users.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        admin.leave("group").unwrap();
        Self { users, devices, _place: place }
    }

    /// Those that send: all but the last user's.
    fn senders(&self) -> std::ops::Range<usize> {
        0..self.devices.len() - 2
    }

    /// Numbers, with the sender's, until told to stop.
    fn keep_sending(
        &self,
        from: usize,
        count_max: usize,
        stop: &Stop,
    ) -> tokio::task::JoinHandle<(usize, usize)> {
        let (client, stop) = (self.devices[from].client.clone(), stop.clone());
        let mut own = self.devices[from].watcher();
        tokio::spawn(async move {
            let mut count = 0;
            while count < count_max && !stop.is_set() {
                // No more than so many without an answer, so that nobody's share of a mailbox fills up.
                let _ = own.wait_for(|seen| seen.sent.len() + 20 > count || stop.is_set()).await;
                let to = Recipient::Group(UserId::new("group").unwrap());
                let body = SendBody::Shared(format!("{from} {count}").into());
                match client.send(to, body, SendOptions::default()).await {
                    Ok(_) => count += 1,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
            (from, count)
        })
    }

    /// What each sent has come to all others, once, in his order; and in one order of all, if there
    /// was no crash.
    async fn check(&self, counts: &BTreeMap<usize, usize>, is_one_order: bool) {
        let total: usize = counts.values().sum();
        println!("{total} messages");
        let all = self.devices.last().unwrap().wait_messages(total).await.texts();
        for (index, device) in self.devices.iter().enumerate() {
            let own = counts.get(&index).copied().unwrap_or(0);
            let seen = device.wait_messages(total - own).await;
            let texts = seen.texts();
            assert_eq!(texts.len(), total - own);
            for (from, count) in counts.iter().filter(|(from, _)| **from != index) {
                assert!(*count > 0, "no load");
                let of = texts.iter().filter(|text| text.starts_with(&format!("{from} ")));
                let expected = (0..*count).map(|number| format!("{from} {number}"));
                assert!(of.cloned().eq(expected), "{from} is out of order at {index}");
            }
            let others = all.iter().filter(|text| !text.starts_with(&format!("{index} ")));
            assert!(!is_one_order || texts.iter().eq(others), "{index} sees another order");
            let sent = device.wait_sent(own).await;
            assert!(sent.sent.iter().all(|sent| sent.skipped.is_empty()));
            assert!(seen.gaps.is_empty() && seen.refused.is_empty());
        }
    }
}

async fn send(peer: &Peer, group: &str, text: &str) {
    let to = Recipient::Group(UserId::new(group).unwrap());
    let body = SendBody::Shared(text.to_owned().into());
    peer.client.send(to, body, SendOptions::default()).await.unwrap();
}
