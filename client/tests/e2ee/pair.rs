//! Two devices, one ratchet: what an attacker who owns the server and the network can try, and what
//! the devices say to it.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use ringpost_client::e2ee::bundle::{OneTimePreKey, SignedPreKey};
use ringpost_client::e2ee::{Bundle, Fault, IdentityKey, Pair};
use ringpost_client::limits::{
    FIRST_MESSAGES_PER_DEVICE_MAX, PREKEY_GRACE_MS, SESSION_UNANSWERED_MESSAGES_MAX,
    SESSION_UNCONFIRMED_MS_MAX, SESSIONS_PER_PAIR_MAX, SIGNED_PREKEY_MS, SKIPPED_KEYS_MAX,
};

use crate::support::{Device, both, connected};

#[test]
fn messages_flow_both_ways_with_and_without_one_time_prekeys() {
    for one_time in [true, false] {
        let (mut alice, mut bob, mut a, mut b) = both();
        a.begin(&alice.own.identity, &bob.bundle(one_time), 0, &mut rand::rng()).unwrap();
        for round in 0..5u8 {
            for n in 0..3u8 {
                let sent = a.encrypt(&[round, n]).unwrap();
                assert_eq!(bob.open(&mut b, &sent), Ok(vec![round, n]));
            }
            let sent = b.encrypt(&[round]).unwrap();
            assert_eq!(alice.open(&mut a, &sent), Ok(vec![round]));
        }
    }
}

#[test]
fn first_messages_are_repeated_until_the_first_answer() {
    let (mut alice, mut bob, mut a, mut b) = both();
    a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
    let (one, two) = (a.encrypt(b"one").unwrap(), a.encrypt(b"two").unwrap());
    assert_eq!(bob.open(&mut b, &two), Ok(b"two".to_vec()));
    assert_eq!(bob.open(&mut b, &one), Ok(b"one".to_vec()));
    let answer = b.encrypt(b"three").unwrap();
    alice.open(&mut a, &answer).unwrap();
    let normal = a.encrypt(b"four").unwrap();
    assert!(normal.len() + 60 < one.len(), "{} {}", normal.len(), one.len());
    assert_eq!(bob.open(&mut b, &normal), Ok(b"four".to_vec()));
}

#[test]
fn every_flipped_bit_of_a_message_is_noticed_and_changes_nothing() {
    let (mut alice, mut bob, mut a, mut b) = connected();
    let good = a.encrypt(b"pay 10 to Carol").unwrap();
    for byte in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[byte] ^= bit;
            let fault = bob.open(&mut b, &bad).unwrap_err();
            let expected = match byte {
                0 => matches!(fault, Fault::Malformed(_)),
                1..=8 => fault == Fault::NoSession,
                _ => matches!(
                    fault,
                    Fault::Altered
                        | Fault::Malformed(_)
                        | Fault::WeakKey(_)
                        | Fault::GapTooBig { .. }
                ),
            };
            assert!(expected, "byte {byte}: {fault:?}");
        }
    }
    let tail = good.len() - 20;
    let mut bad = good.clone();
    bad[tail] ^= 4;
    assert_eq!(bob.open(&mut b, &bad), Err(Fault::Altered));
    assert_eq!(bob.open(&mut b, &good), Ok(b"pay 10 to Carol".to_vec()));
    let answer = b.encrypt(b"ok").unwrap();
    assert_eq!(alice.open(&mut a, &answer), Ok(b"ok".to_vec()));
}

/// vodozemac by itself takes a step of the ratchet on a forged one.
#[test]
fn refused_message_leaves_the_state_as_it_was() {
    for with_answer in [false, true] {
        let (alice, mut bob, mut a, mut b) = both();
        a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
        let mut bad = a.encrypt(b"one").unwrap();
        bob.open(&mut b, &bad).unwrap();
        if with_answer {
            b.encrypt(b"two").unwrap();
        }
        bad[80] ^= 1; // the ratchet key
        let before = serde_json::to_string(b.state()).unwrap();
        assert_eq!(bob.open(&mut b, &bad), Err(Fault::Altered));
        assert_eq!(serde_json::to_string(b.state()).unwrap(), before);
    }
}

#[test]
fn flipped_first_message_burns_no_one_time_key() {
    let (alice, mut bob, mut a, mut b) = both();
    a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
    let good = a.encrypt(b"hello").unwrap();
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        assert!(bob.open(&mut b, &bad).is_err(), "byte {byte}");
        assert_eq!(b.encrypt(b""), Err(Fault::NoSession), "no session before a plaintext");
    }
    assert_eq!(bob.open(&mut b, &good), Ok(b"hello".to_vec()));
}

#[test]
fn replayed_first_message_is_refused_with_and_without_one_time_keys() {
    for one_time in [true, false] {
        let (alice, mut bob, mut a, mut b) = both();
        a.begin(&alice.own.identity, &bob.bundle(one_time), 0, &mut rand::rng()).unwrap();
        let first = a.encrypt(b"hello").unwrap();
        bob.open(&mut b, &first).unwrap();
        assert_eq!(bob.open(&mut b, &first), Err(Fault::MessageKeyGone), "the session is there");
        // The session is gone, so the message would begin it again.
        let mut empty = Pair::new(bob.party(), alice.party());
        assert_eq!(bob.open(&mut empty, &first), Err(Fault::ReplayedFirstMessage));
        bob.own.prekeys.rotate(SIGNED_PREKEY_MS, &mut rand::rng());
        assert_eq!(bob.open(&mut empty, &first), Err(Fault::ReplayedFirstMessage));
        bob.own.prekeys.expire(SIGNED_PREKEY_MS + PREKEY_GRACE_MS);
        assert_eq!(bob.open(&mut empty, &first), Err(Fault::PreKeyGone));
    }
}

#[test]
fn one_time_key_opens_one_session() {
    let (alice, mut bob, mut a, mut b) = both();
    let bundle = bob.bundle(true);
    a.begin(&alice.own.identity, &bundle, 0, &mut rand::rng()).unwrap();
    bob.open(&mut b, &a.encrypt(b"hello").unwrap()).unwrap();
    // A server that hands the same one out twice.
    let carol = Device::new("carol", "phone");
    let mut c = Pair::new(carol.party(), bob.party());
    c.begin(&carol.own.identity, &bundle, 0, &mut rand::rng()).unwrap();
    let mut from_carol = Pair::new(bob.party(), carol.party());
    let sent = c.encrypt(b"hello").unwrap();
    assert_eq!(bob.open(&mut from_carol, &sent), Err(Fault::PreKeyGone));
}

#[test]
fn message_that_waited_over_a_rotation_opens() {
    let (alice, mut bob, mut a, mut b) = both();
    a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
    let first = a.encrypt(b"hello").unwrap();
    bob.own.prekeys.rotate(SIGNED_PREKEY_MS, &mut rand::rng());
    assert_eq!(bob.open(&mut b, &first), Ok(b"hello".to_vec()));
}

#[test]
fn reordered_and_lost_messages_open_and_repeated_ones_do_not() {
    let (_, mut bob, mut a, mut b) = connected();
    let sent: Vec<_> = (0..10u8).map(|n| a.encrypt(&[n]).unwrap()).collect();
    for n in [3, 1, 9, 0, 7, 2] {
        assert_eq!(bob.open(&mut b, &sent[n]), Ok(vec![u8::try_from(n).unwrap()]));
    }
    for n in [3, 1, 9, 0, 7, 2] {
        assert_eq!(bob.open(&mut b, &sent[n]), Err(Fault::MessageKeyGone), "{n}");
    }
    // The chain after next has begun; the rest of this one is still read.
    let (mut alice, mut bob, mut a, mut b) = connected();
    let late = a.encrypt(b"late").unwrap();
    for _ in 0..3 {
        bob.open(&mut b, &a.encrypt(b"ping").unwrap()).unwrap();
        alice.open(&mut a, &b.encrypt(b"pong").unwrap()).unwrap();
    }
    assert_eq!(bob.open(&mut b, &late), Ok(b"late".to_vec()));
}

#[test]
fn forty_skipped_keys_are_kept_in_a_chain() {
    let (_, mut bob, mut a, mut b) = connected();
    let skipped = usize::try_from(SKIPPED_KEYS_MAX).unwrap();
    let sent: Vec<_> = (0..skipped + 2).map(|_| a.encrypt(b"x").unwrap()).collect();
    bob.open(&mut b, sent.last().unwrap()).unwrap();
    assert_eq!(bob.open(&mut b, &sent[0]), Err(Fault::MessageKeyGone));
    assert!(bob.open(&mut b, &sent[1]).is_ok());
    assert!(bob.open(&mut b, &sent[skipped]).is_ok());
}

#[test]
fn sender_stops_before_the_gap_becomes_too_big_and_a_new_session_mends_it() {
    let (alice, mut bob, mut a, mut b) = connected();
    bob.open(&mut b, &a.encrypt(b"last that arrives").unwrap()).unwrap();
    let mut last = Vec::new();
    while !a.needs_bundle(0) {
        last = a.encrypt(b"lost").unwrap();
    }
    assert_eq!(a.encrypt(b"x"), Err(Fault::SessionStale));
    assert_eq!(bob.open(&mut b, &last), Ok(b"lost".to_vec()), "the biggest gap is bridged");
    a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
    assert_eq!(bob.open(&mut b, &a.encrypt(b"anew").unwrap()), Ok(b"anew".to_vec()));
}

/// Without our own limit: what the other side says to somebody who goes on.
#[test]
fn gap_above_two_thousand_is_refused() {
    let (mut alice, mut bob, mut a, mut b) = connected();
    bob.open(&mut b, &a.encrypt(b"index 0").unwrap()).unwrap();
    let json = serde_json::to_string(a.state()).unwrap();
    let mut lost = 0;
    let mut state: serde_json::Value = serde_json::from_str(&json).unwrap();
    while lost < SESSION_UNANSWERED_MESSAGES_MAX + 1 {
        a.encrypt(b"lost").unwrap_or_else(|_| {
            state = serde_json::to_value(a.state()).unwrap();
            state["sessions"][0]["unanswered_count"] = 0.into();
            let state = serde_json::from_value(state.clone()).unwrap();
            a = Pair::restore(alice.party(), bob.party(), state).unwrap();
            a.encrypt(b"lost").unwrap()
        });
        lost += 1;
    }
    let sent = a.encrypt(b"too far").unwrap();
    assert_eq!(bob.open(&mut b, &sent), Err(Fault::GapTooBig { count: u64::from(lost) }));
    assert!(alice.open(&mut a, &b.encrypt(b"still works").unwrap()).is_ok());
}

#[test]
fn both_sides_begin_at_once_and_settle_on_one_session() {
    for _ in 0..8 {
        let (mut alice, mut bob, mut a, mut b) = both();
        a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
        b.begin(&bob.own.identity, &alice.bundle(true), 0, &mut rand::rng()).unwrap();
        for round in 0..3u8 {
            let (from_a, from_b) =
                (a.encrypt(&[round, 0]).unwrap(), b.encrypt(&[round, 1]).unwrap());
            assert_eq!(bob.open(&mut b, &from_a), Ok(vec![round, 0]));
            assert_eq!(alice.open(&mut a, &from_b), Ok(vec![round, 1]));
        }
        let (from_a, from_b) = (a.encrypt(b"x").unwrap(), b.encrypt(b"y").unwrap());
        assert_eq!(from_a[..9], from_b[..9], "one session");
    }
}

#[test]
fn side_that_lost_its_session_begins_anew_and_is_followed() {
    let (mut alice, mut bob, mut a, _) = connected();
    let mut b = Pair::new(bob.party(), alice.party());
    let lost = a.encrypt(b"for the lost session").unwrap();
    assert_eq!(bob.open(&mut b, &lost), Err(Fault::NoSession));
    b.begin(&bob.own.identity, &alice.bundle(true), 0, &mut rand::rng()).unwrap();
    alice.open(&mut a, &b.encrypt(b"anew").unwrap()).unwrap();
    assert_eq!(bob.open(&mut b, &a.encrypt(b"follows").unwrap()), Ok(b"follows".to_vec()));
}

#[test]
fn stale_sessions_are_replaced_and_bounded() {
    let (alice, mut bob, mut a, mut b) = both();
    assert!(a.needs_bundle(0));
    let mut sent = Vec::new();
    for n in 0..=SESSIONS_PER_PAIR_MAX as u64 {
        let now_ms = n * SESSION_UNCONFIRMED_MS_MAX;
        assert!(a.needs_bundle(now_ms));
        a.begin(&alice.own.identity, &bob.bundle(false), now_ms, &mut rand::rng()).unwrap();
        assert!(!a.needs_bundle(now_ms + SESSION_UNCONFIRMED_MS_MAX - 1));
        sent.push(a.encrypt(b"hello").unwrap());
    }
    for first in &sent {
        assert!(bob.open(&mut b, first).is_ok());
    }
    // The first of them is gone, and stays gone.
    assert_eq!(bob.open(&mut b, &sent[0]), Err(Fault::ReplayedFirstMessage));
    assert_eq!(bob.open(&mut b, sent.last().unwrap()), Err(Fault::MessageKeyGone));
}

#[test]
fn swapped_identity_key_is_noticed_on_both_sides() {
    let (alice, mut bob, mut a, mut b) = both();
    let mallory = Device::new("bob", "phone");
    let swapped = mallory.bundle(true);
    let refused = a.begin(&alice.own.identity, &swapped, 0, &mut rand::rng());
    assert_eq!(refused, Err(Fault::IdentityChanged));
    // A message that claims to be Alice's, from somebody with other keys.
    let mut m = Pair::new(mallory.party(), bob.party());
    m.begin(&mallory.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
    let forged = m.encrypt(b"hello").unwrap();
    assert_eq!(bob.open(&mut b, &forged), Err(Fault::IdentityChanged));
    // With Alice's public key in the header: the roots differ.
    let mut forged = forged;
    forged[1..33].copy_from_slice(alice.party().identity.as_bytes());
    assert_eq!(bob.open(&mut b, &forged), Err(Fault::Altered));
}

/// Bob's identity, Mallory's prekey: the server would read along.
#[test]
fn prekey_that_the_device_did_not_sign_is_refused() {
    let (_, bob, ..) = both();
    let mallory = IdentityKey::from_seed([66; 32]);
    let signed = Device::new("mallory", "x").bundle(false).signed().to_owned();
    let refused = Bundle::new(bob.own.identity.public(), signed, None);
    assert_eq!(refused, Err(Fault::ForgedPreKey));
    let own = *bob.bundle(false).signed();
    let signed = SignedPreKey { key: mallory.public().into(), ..own };
    assert!(Bundle::new(bob.own.identity.public(), signed, None).is_err());
}

/// The server swaps the one-time key, which is not signed: nobody reads anything.
#[test]
fn swapped_one_time_key_makes_a_session_that_nobody_can_open() {
    let (alice, mut bob, mut a, mut b) = both();
    let bundle = bob.bundle(true);
    let one_time = OneTimePreKey { key: [9; 32], ..*bundle.one_time().unwrap() };
    let bundle = Bundle::new(bundle.identity(), *bundle.signed(), Some(one_time)).unwrap();
    a.begin(&alice.own.identity, &bundle, 0, &mut rand::rng()).unwrap();
    assert_eq!(bob.open(&mut b, &a.encrypt(b"x").unwrap()), Err(Fault::Altered));
}

/// Same keys, other addresses: a server that delivers to another account of the same device key.
#[test]
fn session_is_bound_to_both_addresses() {
    let (alice, mut bob, mut a, _) = both();
    a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rand::rng()).unwrap();
    let first = a.encrypt(b"hello").unwrap();
    let mut elsewhere = alice.party();
    elsewhere.address = Device::new("alice", "tablet").party().address;
    let mut wrong = Pair::new(bob.party(), elsewhere);
    assert_eq!(bob.open(&mut wrong, &first), Err(Fault::Altered));
    let mut right = Pair::new(bob.party(), alice.party());
    assert!(bob.open(&mut right, &first).is_ok());
}

#[test]
fn reflected_message_is_refused() {
    let (mut alice, _, mut a, _) = connected();
    let sent = a.encrypt(b"mine").unwrap();
    assert_eq!(alice.open(&mut a, &sent), Err(Fault::Altered));
}

#[test]
fn state_goes_through_the_disk_at_every_step() {
    let (mut alice, mut bob, mut a, mut b) = connected();
    for n in 0..5u8 {
        bob.open(&mut b, &a.encrypt(&[n]).unwrap()).unwrap();
        alice.open(&mut a, &b.encrypt(&[n]).unwrap()).unwrap();
        for (pair, own, peer) in [(&mut a, &alice, &bob), (&mut b, &bob, &alice)] {
            let json = serde_json::to_vec(pair.state()).unwrap();
            let state = serde_json::from_slice(&json).unwrap();
            *pair = Pair::restore(own.party(), peer.party(), state).unwrap();
        }
        for device in [&mut alice, &mut bob] {
            let json = serde_json::to_vec(&device.own).unwrap();
            device.own = serde_json::from_slice(&json).unwrap();
        }
    }
}

#[test]
fn sessions_of_one_device_never_serve_another() {
    let (alice, bob, a, _) = connected();
    let carol = Device::new("carol", "phone");
    let state = || serde_json::from_value(serde_json::to_value(a.state()).unwrap()).unwrap();
    let mut moved = bob.party();
    moved.address = Device::new("bob", "tablet").party().address;
    for (own, peer) in [(alice.party(), carol.party()), (carol.party(), bob.party())] {
        assert_eq!(Pair::restore(own, peer, state()).err(), Some(Fault::SealBroken));
    }
    assert_eq!(Pair::restore(alice.party(), moved, state()).err(), Some(Fault::SealBroken));
    assert!(Pair::restore(alice.party(), bob.party(), state()).is_ok());
}

/// Whoever asks for keys again and again makes this device keep no more than a few sessions.
#[test]
fn device_that_begins_anew_all_the_time_is_refused_in_the_end() {
    let (alice, mut bob, mut a, mut b) = both();
    for _ in 0..FIRST_MESSAGES_PER_DEVICE_MAX {
        a.begin(&alice.own.identity, &bob.bundle(false), 0, &mut rand::rng()).unwrap();
        bob.open(&mut b, &a.encrypt(b"hello").unwrap()).unwrap();
    }
    let kept = serde_json::to_value(b.state()).unwrap();
    assert_eq!(kept["sessions"].as_array().unwrap().len(), SESSIONS_PER_PAIR_MAX);
    let last = a.encrypt(b"the session is there").unwrap();
    a.begin(&alice.own.identity, &bob.bundle(false), 0, &mut rand::rng()).unwrap();
    assert_eq!(bob.open(&mut b, &a.encrypt(b"x").unwrap()), Err(Fault::TooManySessions));
    assert!(bob.open(&mut b, &last).is_ok());
}

/// Both begin at once and go on writing; what each sends comes in order, at any time.
#[test]
fn sessions_begun_at_once_become_one_whatever_comes_when() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..100 {
        let (mut alice, mut bob, mut a, mut b) = both();
        a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rng).unwrap();
        b.begin(&bob.own.identity, &alice.bundle(true), 0, &mut rng).unwrap();
        let [mut to_a, mut to_b] = [(); 2].map(|()| VecDeque::new());
        for _ in 0..20 {
            match rng.random_range(0..4) {
                0 => to_b.push_back(a.encrypt(b"from a").unwrap()),
                1 => to_a.push_back(b.encrypt(b"from b").unwrap()),
                2 => drop(to_a.pop_front().map(|sent| alice.open(&mut a, &sent).unwrap())),
                _ => drop(to_b.pop_front().map(|sent| bob.open(&mut b, &sent).unwrap())),
            }
        }
        for round in 0..2 {
            to_b.push_back(a.encrypt(&[round]).unwrap());
            to_a.push_back(b.encrypt(&[round]).unwrap());
            to_b.drain(..).for_each(|sent| drop(bob.open(&mut b, &sent).unwrap()));
            to_a.drain(..).for_each(|sent| drop(alice.open(&mut a, &sent).unwrap()));
        }
        let (from_a, from_b) = (a.encrypt(b"x").unwrap(), b.encrypt(b"y").unwrap());
        assert_eq!(from_a[..9], from_b[..9], "one session");
    }
}
