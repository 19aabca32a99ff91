//! Groups: what the server can try with keys, messages and the list of members, and what the
//! devices say to it.

use std::collections::{BTreeMap, BTreeSet};

use rand::rng;
use ringpost_client::e2ee::group::Plan;
use ringpost_client::e2ee::roster::{Member, Members};
use ringpost_client::e2ee::{
    Contact, DeviceList, Fault, GroupReceiver, GroupSender, IdentityKey, MemberDevice, Opened,
    Roster,
};
use ringpost_client::limits::{
    GROUP_KEY_MESSAGES_MAX, GROUP_KEY_MS_MAX, GROUP_KEYS_PER_SENDER_MAX, GROUP_WINDOW,
};
use ringpost_client::protocol::id::{DeviceId, UserId};

/// Alice is the administrator; Bob and Carol are members.
struct World {
    keys: BTreeMap<&'static str, IdentityKey>,
    roster: Roster,
}

fn id(user: &str) -> UserId {
    UserId::new(user).unwrap()
}

impl World {
    fn new() -> Self {
        let names = ["alice", "bob", "carol", "dave", "ghost"];
        let keys: BTreeMap<_, _> = names.map(|name| (name, IdentityKey::random(&mut rng()))).into();
        let first = members(&keys, 1, [0; 32], &["alice", "bob", "carol"]);
        let bytes = first.sign(&id("alice"), &keys["alice"]).unwrap();
        let alice = (&id("alice"), &keys["alice"].public());
        let bob = (&id("bob"), &keys["bob"].public());
        let roster = Roster::join(&bytes, bob, alice).unwrap();
        Self { keys, roster }
    }

    /// A new phone of this user, in a list that the user signed.
    fn phone(&self, name: &str) -> MemberDevice {
        listed(name, &self.keys[name])
    }

    fn phones(&self, names: &[&str]) -> BTreeSet<MemberDevice> {
        names.iter().map(|name| self.phone(name)).collect()
    }

    /// The roster that follows, signed by `signer`.
    fn next(&self, signer: &str, names: &[&str]) -> Vec<u8> {
        let (version, parent) = (self.roster.members().version + 1, *self.roster.hash());
        members(&self.keys, version, parent, names).sign(&id(signer), &self.keys[signer]).unwrap()
    }
}

fn members(
    keys: &BTreeMap<&'static str, IdentityKey>,
    version: u64,
    parent: [u8; 32],
    names: &[&str],
) -> Members {
    let member = |name: &&str| {
        (id(name), Member { identity: keys[*name].public(), is_admin: *name == "alice" })
    };
    Members { group: id("group"), version, parent, members: names.iter().map(member).collect() }
}

/// A new phone in a list for this user that `signer` signed.
fn listed(user: &str, signer: &IdentityKey) -> MemberDevice {
    let phone = DeviceId::new("phone").unwrap();
    let devices = BTreeMap::from([(phone.clone(), IdentityKey::random(&mut rng()).public())]);
    let list = DeviceList { user: id(user), version: 1, devices }.sign(signer).unwrap();
    Contact::meet(&id(user), &list).unwrap().member(&phone).unwrap()
}

fn opened(plaintext: &[u8], roster_version: u64) -> Result<Opened, Fault> {
    Ok(Opened { plaintext: plaintext.to_vec(), roster_version })
}

/// A sender key of Alice's phone that a receiver has.
fn keyed(world: &World) -> (MemberDevice, GroupSender, GroupReceiver) {
    let alice = world.phone("alice");
    let sender = GroupSender::new(&world.roster, 0);
    let mut receiver = GroupReceiver::default();
    receiver.accept(&alice, &world.roster, &sender.distribution(&id("group"))).unwrap();
    (alice, sender, receiver)
}

#[test]
fn messages_to_a_group_open_in_any_order_and_once() {
    let world = World::new();
    let (alice, mut sender, mut receiver) = keyed(&world);
    let sent: Vec<_> = (0..10u8).map(|n| sender.encrypt(&world.roster, &[n], 0).unwrap()).collect();
    for n in [4, 0, 9, 1, 8] {
        let got = receiver.decrypt(&alice, &world.roster, &sent[n]);
        assert_eq!(got, opened(&[u8::try_from(n).unwrap()], 1));
    }
    for n in [4, 0, 9, 1, 8] {
        let refused = receiver.decrypt(&alice, &world.roster, &sent[n]);
        assert_eq!(refused, Err(Fault::ReplayedGroupMessage));
    }
    // The window outlives the process.
    let json = serde_json::to_vec(&receiver).unwrap();
    let mut receiver: GroupReceiver = serde_json::from_slice(&json).unwrap();
    let refused = receiver.decrypt(&alice, &world.roster, &sent[9]);
    assert_eq!(refused, Err(Fault::ReplayedGroupMessage));
    assert_eq!(receiver.decrypt(&alice, &world.roster, &sent[2]), opened(&[2], 1));
}

#[test]
fn keys_behind_the_window_are_forgotten() {
    let world = World::new();
    let (alice, mut sender, mut receiver) = keyed(&world);
    let count = GROUP_WINDOW as usize + 2;
    let sent: Vec<_> =
        (0..count).map(|_| sender.encrypt(&world.roster, b"x", 0).unwrap()).collect();
    receiver.decrypt(&alice, &world.roster, &sent[count - 1]).unwrap();
    let gone = receiver.decrypt(&alice, &world.roster, &sent[1]);
    assert_eq!(gone, Err(Fault::MessageKeyGone));
    assert!(receiver.decrypt(&alice, &world.roster, &sent[2]).is_ok());
    // Not only refused: who takes the device later finds no key for it.
    let state = serde_json::to_value(&receiver).unwrap();
    let first = &state["keys"].as_object().unwrap().values().next().unwrap()[0];
    assert_eq!(first["session"]["initial_ratchet"]["counter"], 2);
}

#[test]
fn taking_a_key_again_does_not_reopen_its_messages() {
    let world = World::new();
    let (alice, mut sender, mut receiver) = keyed(&world);
    let again = sender.distribution(&id("group"));
    let sent = sender.encrypt(&world.roster, b"x", 0).unwrap();
    receiver.decrypt(&alice, &world.roster, &sent).unwrap();
    for _ in 0..=GROUP_KEYS_PER_SENDER_MAX {
        receiver.accept(&alice, &world.roster, &again).unwrap();
    }
    let refused = receiver.decrypt(&alice, &world.roster, &sent);
    assert_eq!(refused, Err(Fault::ReplayedGroupMessage));
}

#[test]
fn every_flipped_bit_of_a_group_message_is_noticed_and_changes_nothing() {
    let world = World::new();
    let (alice, mut sender, mut receiver) = keyed(&world);
    let good = sender.encrypt(&world.roster, b"hello", 0).unwrap();
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        let fault = receiver.decrypt(&alice, &world.roster, &bad).unwrap_err();
        let expected = match byte {
            0 | 9..=11 => matches!(fault, Fault::Malformed(_) | Fault::Altered),
            1..=8 => fault == Fault::NoSenderKey,
            _ => matches!(fault, Fault::Altered | Fault::Malformed(_)),
        };
        assert!(expected, "byte {byte}: {fault:?}");
    }
    assert!(receiver.decrypt(&alice, &world.roster, &good).is_ok());
}

#[test]
fn message_under_another_senders_name_is_refused() {
    let world = World::new();
    let (_, mut sender, mut receiver) = keyed(&world);
    let sent = sender.encrypt(&world.roster, b"x", 0).unwrap();
    let bob = world.phone("bob");
    assert_eq!(receiver.decrypt(&bob, &world.roster, &sent), Err(Fault::NoSenderKey));
}

#[test]
fn key_is_replaced_by_count_and_by_age() {
    let world = World::new();
    let (alice, mut sender, mut receiver) = keyed(&world);
    let bobs = world.phones(&["bob"]);
    let Ok(Plan::Distribute(to)) = sender.plan(&world.roster, &bobs, 0) else { panic!() };
    sender.distributed(&to);
    assert_eq!(sender.plan(&world.roster, &bobs, 0), Ok(Plan::Distribute(Vec::new())));
    let old = sender.encrypt(&world.roster, b"x", GROUP_KEY_MS_MAX);
    assert_eq!(old, Err(Fault::SenderKeyExpired));
    assert_eq!(sender.plan(&world.roster, &bobs, GROUP_KEY_MS_MAX), Ok(Plan::Rotate));
    let mut last = Vec::new();
    for _ in 0..GROUP_KEY_MESSAGES_MAX {
        last = sender.encrypt(&world.roster, b"x", 0).unwrap();
    }
    assert_eq!(sender.encrypt(&world.roster, b"x", 0), Err(Fault::SenderKeyExpired));
    assert_eq!(sender.plan(&world.roster, &bobs, 0), Ok(Plan::Rotate));
    assert!(receiver.decrypt(&alice, &world.roster, &last).is_ok());
}

/// The other side of the same limit: a sender that does not keep it.
#[test]
fn message_beyond_the_count_is_refused() {
    let world = World::new();
    let (alice, mut sender, mut receiver) = keyed(&world);
    for _ in 0..GROUP_KEY_MESSAGES_MAX {
        sender.encrypt(&world.roster, b"x", 0).unwrap();
    }
    // vodozemac itself knows no limit.
    let mut state = serde_json::to_value(&sender).unwrap();
    let pickle = serde_json::from_value(state["session"].take()).unwrap();
    let message = vodozemac::megolm::GroupSession::from_pickle(pickle).encrypt(b"x").to_bytes();
    let envelope = [&[0x13][..], &receiver_tag(&receiver), &message].concat();
    let refused = receiver.decrypt(&alice, &world.roster, &envelope);
    assert_eq!(refused, Err(Fault::SenderKeyExpired));
}

fn receiver_tag(receiver: &GroupReceiver) -> Vec<u8> {
    let state = serde_json::to_value(receiver).unwrap();
    let key = &state["keys"].as_object().unwrap().values().next().unwrap()[0];
    serde_json::from_value(key["tag"].clone()).unwrap()
}

#[test]
fn key_is_replaced_when_a_member_or_a_device_goes() {
    let mut world = World::new();
    let mut sender = GroupSender::new(&world.roster, 0);
    let all = world.phones(&["bob", "carol"]);
    let Ok(Plan::Distribute(to)) = sender.plan(&world.roster, &all, 0) else { panic!() };
    assert_eq!(to.len(), 2);
    sender.distributed(&to);
    // A device more: it gets the key; a device less, or another one in its place: a new key.
    let more: BTreeSet<_> = all.iter().cloned().chain(world.phones(&["bob"])).collect();
    let Ok(Plan::Distribute(to)) = sender.plan(&world.roster, &more, 0) else { panic!() };
    assert_eq!(to.len(), 1);
    let less = all.iter().take(1).cloned().collect();
    assert_eq!(sender.plan(&world.roster, &less, 0), Ok(Plan::Rotate));
    assert_eq!(sender.plan(&world.roster, &world.phones(&["bob", "carol"]), 0), Ok(Plan::Rotate));
    let next = world.next("alice", &["alice", "bob"]);
    world.roster.follow(&next).unwrap();
    assert_eq!(sender.encrypt(&world.roster, b"x", 0), Err(Fault::SenderKeyExpired));
    assert_eq!(sender.plan(&world.roster, &less, 0), Ok(Plan::Rotate));
}

#[test]
fn removed_member_neither_reads_nor_writes() {
    let mut world = World::new();
    let carol = world.phone("carol");
    let mut hers = GroupSender::new(&world.roster, 0);
    let mut receiver = GroupReceiver::default();
    receiver.accept(&carol, &world.roster, &hers.distribution(&id("group"))).unwrap();
    let sent = hers.encrypt(&world.roster, b"x", 0).unwrap();
    let before = world.roster.clone();
    let next = world.next("alice", &["alice", "bob"]);
    world.roster.follow(&next).unwrap();
    assert_eq!(receiver.decrypt(&carol, &world.roster, &sent), Err(Fault::NotMember));
    let key = GroupSender::new(&before, 0).distribution(&id("group"));
    assert_eq!(receiver.accept(&carol, &world.roster, &key), Err(Fault::NotMember));
    let devices = BTreeSet::from([carol]);
    assert_eq!(
        GroupSender::new(&world.roster, 0).plan(&world.roster, &devices, 0),
        Err(Fault::NotMember)
    );
}

#[test]
fn ghost_member_added_by_the_server_is_detected() {
    let mut world = World::new();
    let alice = world.phone("alice");
    // The server signs a roster itself, or has a member who is no administrator sign it.
    let mallory = IdentityKey::random(&mut rng());
    let mut ghost = members(&world.keys, 2, *world.roster.hash(), &["alice", "bob", "carol"]);
    let member = Member { identity: mallory.public(), is_admin: false };
    ghost.members.insert(id("ghost"), member);
    for (signer, key) in [("alice", &mallory), ("ghost", &mallory), ("bob", &world.keys["bob"])] {
        let bytes = ghost.sign(&id(signer), key).unwrap();
        assert_eq!(world.roster.follow(&bytes), Err(Fault::ForgedRoster), "{signer}");
    }
    // A device of the ghost among those that would get the key.
    let sender = GroupSender::new(&world.roster, 0);
    let refused = sender.plan(&world.roster, &world.phones(&["bob", "ghost"]), 0);
    assert_eq!(refused, Err(Fault::NotMember));
    // Alice signs two rosters, or her device was shown another one than ours.
    let other = members(&world.keys, 2, *world.roster.hash(), &["alice", "bob", "carol", "dave"]);
    let other = other.sign(&id("alice"), &world.keys["alice"]).unwrap();
    let mut theirs = world.roster.clone();
    theirs.follow(&other).unwrap();
    let next = world.next("alice", &["alice", "bob", "carol"]);
    world.roster.follow(&next).unwrap();
    let key = GroupSender::new(&theirs, 0).distribution(&id("group"));
    let refused = GroupReceiver::default().accept(&alice, &world.roster, &key);
    assert_eq!(refused, Err(Fault::RosterDiffers { theirs: 2, ours: 2 }));
}

#[test]
fn key_for_a_roster_not_seen_yet_waits_and_one_for_the_last_is_taken() {
    let world = World::new();
    let alice = world.phone("alice");
    let mut newer = world.roster.clone();
    newer.follow(&world.next("alice", &["alice", "bob"])).unwrap();
    let mut receiver = GroupReceiver::default();
    let key = GroupSender::new(&newer, 0).distribution(&id("group"));
    let waits = receiver.accept(&alice, &world.roster, &key);
    assert_eq!(waits, Err(Fault::RosterBehind { theirs: 2, ours: 1 }));
    assert_eq!(receiver.accept(&alice, &newer, &key), Ok(()));
    let key = GroupSender::new(&world.roster, 0).distribution(&id("group"));
    assert_eq!(receiver.accept(&alice, &newer, &key), Ok(()));
}

/// The server shows a list of its own in the place of Bob's: the ghost has his name.
#[test]
fn substituted_device_list_of_a_member_is_detected() {
    let world = World::new();
    let ghost = listed("bob", &IdentityKey::random(&mut rng()));
    let sender = GroupSender::new(&world.roster, 0);
    let devices = world.phones(&["carol"]).into_iter().chain([ghost.clone()]).collect();
    assert_eq!(sender.plan(&world.roster, &devices, 0), Err(Fault::IdentityChanged));
    assert_eq!(world.roster.admits(&ghost), Err(Fault::IdentityChanged));
    assert_eq!(world.roster.admits(&world.phone("bob")), Ok(()));
    // Nor does it write in his name, with a key and messages of its own.
    let mut its_key = GroupSender::new(&world.roster, 0);
    let mut receiver = GroupReceiver::default();
    let key = its_key.distribution(&id("group"));
    let refused = receiver.accept(&ghost, &world.roster, &key);
    assert_eq!(refused, Err(Fault::IdentityChanged));
    let sent = its_key.encrypt(&world.roster, b"x", 0).unwrap();
    let refused = receiver.decrypt(&ghost, &world.roster, &sent);
    assert_eq!(refused, Err(Fault::IdentityChanged));
}

#[test]
fn sender_who_does_not_know_the_last_change_is_noticed() {
    let mut world = World::new();
    let (alice, mut sender, mut receiver) = keyed(&world);
    let old = world.roster.clone();
    let next = world.next("alice", &["alice", "bob"]);
    world.roster.follow(&next).unwrap();
    let sent = sender.encrypt(&old, b"Carol reads this", 0).unwrap();
    assert_eq!(receiver.decrypt(&alice, &world.roster, &sent), opened(b"Carol reads this", 1));
    let mut sender = GroupSender::new(&world.roster, 0);
    let key = sender.distribution(&id("group"));
    receiver.accept(&alice, &world.roster, &key).unwrap();
    let sent = sender.encrypt(&world.roster, b"not this", 0).unwrap();
    assert_eq!(receiver.decrypt(&alice, &world.roster, &sent), opened(b"not this", 2));
}

#[test]
fn rosters_follow_each_other_and_nothing_else() {
    let mut world = World::new();
    let first = world.roster.clone();
    let next = world.next("alice", &["alice", "bob", "carol", "dave"]);
    for byte in 0..next.len() {
        let mut bad = next.clone();
        bad[byte] ^= 1;
        assert!(world.roster.follow(&bad).is_err(), "byte {byte}");
    }
    world.roster.follow(&next).unwrap();
    assert_eq!(world.roster.follow(&next), Ok(()), "the same again");
    // An older one, one with a hole before it, one with another parent.
    let old = members(&world.keys, 1, [0; 32], &["alice", "bob"]);
    let old = old.sign(&id("alice"), &world.keys["alice"]).unwrap();
    assert_eq!(world.roster.follow(&old), Err(Fault::RosterRolledBack { known: 2, got: 1 }));
    for (version, parent) in [(4, *world.roster.hash()), (3, *first.hash()), (2, *first.hash())] {
        let bytes = members(&world.keys, version, parent, &["alice", "bob"]);
        let bytes = bytes.sign(&id("alice"), &world.keys["alice"]).unwrap();
        assert_eq!(world.roster.follow(&bytes), Err(Fault::RosterForked), "{version}");
    }
    // A member may go, and take nobody along.
    let names = ["alice", "bob", "dave"];
    assert_eq!(world.roster.clone().follow(&world.next("carol", &names)), Ok(()));
    let refused = world.roster.clone().follow(&world.next("carol", &names[..2]));
    assert_eq!(refused, Err(Fault::ForgedRoster));
}

#[test]
fn first_roster_is_taken_from_a_known_administrator_only() {
    let world = World::new();
    let first = members(&world.keys, 1, [0; 32], &["alice", "bob"]);
    let bytes = first.sign(&id("alice"), &world.keys["alice"]).unwrap();
    let join = |own: &str, signer: &str, key: &IdentityKey| {
        let own = (&id(own), &world.keys[own].public());
        Roster::join(&bytes, own, (&id(signer), &key.public())).map(drop)
    };
    assert_eq!(join("bob", "alice", &world.keys["alice"]), Ok(()));
    assert_eq!(join("dave", "alice", &world.keys["alice"]), Err(Fault::NotMember));
    assert_eq!(join("alice", "bob", &world.keys["bob"]), Err(Fault::ForgedRoster));
    assert_eq!(join("bob", "bob", &world.keys["bob"]), Ok(()), "own other device");
    assert_eq!(join("bob", "alice", &world.keys["dave"]), Err(Fault::ForgedRoster));
}

/// The one who signed the last roster is no longer in it.
#[test]
fn group_is_joined_again_and_restored_after_somebody_left() {
    let mut world = World::new();
    let leave = world.next("carol", &["alice", "bob"]);
    world.roster.follow(&leave).unwrap();
    let (alice, bob) = (world.keys["alice"].public(), world.keys["bob"].public());
    let join = |bytes: &[u8], voucher: (&UserId, &IdentityKey)| {
        Roster::join(bytes, (&id("bob"), &bob), (voucher.0, &voucher.1.public()))
    };
    let mut joined = join(&leave, (&id("alice"), &world.keys["alice"])).unwrap();
    assert_eq!(joined.members(), world.roster.members());
    assert_eq!(joined.hash(), world.roster.hash());
    assert_eq!(joined.follow(&leave), Ok(()), "the same again, though its signer is gone");
    // Not on the word of who left, nor of a member who is no administrator.
    let refused = join(&leave, (&id("carol"), &world.keys["carol"]));
    assert_eq!(refused, Err(Fault::ForgedRoster));
    let own = (&id("alice"), &alice);
    let refused = Roster::join(&leave, own, (&id("bob"), &bob));
    assert_eq!(refused, Err(Fault::ForgedRoster));
    // Signed by a member who may not.
    let by_bob = world.next("bob", &["alice", "bob", "carol"]);
    let refused = join(&by_bob, (&id("alice"), &world.keys["alice"]));
    assert_eq!(refused, Err(Fault::ForgedRoster));
    // From disk, with the versions before it.
    let json = serde_json::to_vec(&world.roster).unwrap();
    let mut restored: Roster = serde_json::from_slice(&json).unwrap();
    assert_eq!(restored, world.roster);
    let next = world.next("alice", &["alice", "bob", "carol"]);
    assert_eq!(restored.follow(&next), Ok(()));
    assert_eq!(join(restored.encoded(), (&id("alice"), &world.keys["alice"])).map(drop), Ok(()));
}
