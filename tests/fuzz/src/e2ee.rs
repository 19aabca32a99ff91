//! Everything of end-to-end encryption that parses what the server or another device made up.
//!
//! The first byte of an input picks the parser. Lists are signed here, with a key that the reader
//! knows, so that the fuzzer gets behind the signature; a good message is damaged, so that it gets
//! behind the decoder. Nothing may panic, a refusal changes nothing, and what decodes encodes to the
//! same.

use std::collections::BTreeMap;

use ed25519_dalek::{Signer as _, SigningKey};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use ringpost_client::e2ee::identity::Secret;
use ringpost_client::e2ee::{
    Bundle, Contact, Content, DeviceList, Fault, GroupReceiver, GroupSender, IdentityKey,
    MemberDevice, OwnKeys, Pair, Party, Payload, PreKeys, Roster, seal,
};
use ringpost_client::protocol::id::{DeviceAddress, DeviceId, UserId};

use crate::script::Script;
use crate::seeds::Seed;

/// Where it is fuzzed, vodozemac takes every MAC and signature for right, so that the fuzzer gets
/// behind them.
const AUTHENTICATES: bool = !cfg!(fuzzing);

pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let kind = script.byte() % 9;
    let rest = script.rest();
    match kind {
        0 => bundle(rest),
        1 => device_list(rest),
        2 => roster(rest),
        3 => payload(rest),
        4 => message(rest.to_vec()),
        5 => message(damaged(first_message(), rest)),
        6 => group_key(rest),
        7 => group_message(rest),
        _ => {
            let opened = seal::open::<String>(&Secret::from_bytes([1; 32]), b"place", rest);
            assert_eq!(opened, Err(Fault::SealBroken));
        }
    }
}

fn bundle(bytes: &[u8]) {
    let whole = |bytes: &[u8]| Bundle::decode(bytes).map(|bundle| bundle.encode());
    if let Ok(again) = whole(bytes) {
        assert_eq!(again, bytes);
    }
    // With a signature that is right.
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 133 {
        bytes[1..33].copy_from_slice(key(1).public().as_bytes());
        let (body, signature) = bytes[..133].split_at_mut(69);
        signature.copy_from_slice(&sign(1, "Ringpost signed prekey 1", &body[37..]));
        if let Ok(again) = whole(&bytes) {
            assert_eq!(again, bytes);
        }
    }
}

fn device_list(body: &[u8]) {
    let mut bytes = body.to_vec();
    if bytes.len() >= 33 {
        bytes[1..33].copy_from_slice(key(1).public().as_bytes());
    }
    bytes.extend(sign(1, "Ringpost device list 1", &bytes));
    let bob = user("bob");
    if let Ok(contact) = Contact::meet(&bob, &bytes) {
        assert_eq!(contact.list().sign(&key(1)).as_deref(), Ok(&bytes[..]));
        assert_eq!(contact.clone().update(&bytes), Ok(Default::default()));
    }
    assert!(Contact::meet(&bob, body).is_err(), "not signed");
}

fn roster(body: &[u8]) {
    let bytes = [body, &sign(1, "Ringpost roster 1", body)].concat();
    let admin = key(1).public();
    let alice = user("alice");
    if let Ok(mut roster) = Roster::join(&bytes, (&alice, &admin), (&alice, &admin)) {
        assert_eq!(roster.encoded(), bytes);
        assert_eq!(roster.follow(&bytes), Ok(()));
        let stored = serde_json::to_vec(&roster).expect("bytes and numbers");
        assert_eq!(serde_json::from_slice::<Roster>(&stored).expect("just written"), roster);
    }
    let mut known = known_roster();
    let before = known.clone();
    if known.follow(&bytes).is_err() {
        assert_eq!(known, before);
    }
}

fn payload(bytes: &[u8]) {
    let Ok(payload) = Payload::decode(bytes) else { return };
    if payload.content != Content::Unknown {
        let again = payload.encode().expect("it was within the limits");
        assert_eq!(Payload::decode(&again), Ok(payload));
    }
}

/// To a device without a session, and to one that has opened the good message.
fn message(envelope: Vec<u8>) {
    let good = first_message();
    let (mut bob, mut pair) = (own(2), pair("bob", 2, "alice", 1));
    let mut rng = StdRng::seed_from_u64(9);
    let before = state(&bob, &pair);
    match pair.decrypt(&mut bob, &envelope, 0, &mut rng) {
        Ok(_) if !AUTHENTICATES => return,
        Ok(_) => assert_eq!(envelope, good),
        Err(_) => assert_eq!(state(&bob, &pair), before),
    }
    let opened = pair.decrypt(&mut bob, &good, 0, &mut rng);
    assert_eq!(opened.is_ok(), envelope != good);
    let before = state(&bob, &pair);
    assert!(pair.decrypt(&mut bob, &envelope, 0, &mut rng).is_err());
    assert_eq!(state(&bob, &pair), before);
}

fn group_key(bytes: &[u8]) {
    let (roster, sender) = (known_roster(), phone("alice", 1));
    let mut receiver = GroupReceiver::default();
    // The reader takes only a key that names the roster it knows.
    let head = [&[1][..], &[5], b"group", &1_u64.to_be_bytes(), roster.hash()].concat();
    for bytes in [bytes.to_vec(), [&head, bytes].concat()] {
        let _ = receiver.accept(&sender, &roster, &bytes);
    }
}

fn group_message(damage: &[u8]) {
    let (roster, sender) = (known_roster(), phone("alice", 1));
    let mut out = GroupSender::new(&roster, 0);
    let mut receiver = GroupReceiver::default();
    let key = out.distribution(&user("group"));
    receiver.accept(&sender, &roster, &key).expect("a good key");
    let good = out.encrypt(&roster, b"hello", 0).expect("a new key");
    let bad = damaged(good.clone(), damage);
    let is_open = receiver.decrypt(&sender, &roster, &bad).is_ok();
    if AUTHENTICATES {
        assert_eq!(is_open, bad == good);
        assert_eq!(receiver.decrypt(&sender, &roster, &good).is_ok(), bad != good);
    }
    let _ = receiver.decrypt(&sender, &roster, damage);
}

/// The same each time: nothing in it is drawn by vodozemac.
fn first_message() -> Vec<u8> {
    let (alice, bob) = (own(1), own(2));
    let signed = bob.prekeys.signed(&bob.identity);
    let one_time = bob.prekeys.pending(&bob.identity).one_time[0];
    let bundle = Bundle::new(bob.identity.public(), signed, Some(one_time)).expect("signed");
    let mut pair = pair("alice", 1, "bob", 2);
    let mut rng = StdRng::seed_from_u64(8);
    pair.begin(&alice.identity, &bundle, 0, &mut rng).expect("good keys");
    pair.encrypt(b"hello").expect("a new session")
}

/// Three bytes each: a place and what is flipped there.
fn damaged(mut message: Vec<u8>, damage: &[u8]) -> Vec<u8> {
    for step in damage.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([step[0], step[1]])) % message.len();
        message[at] ^= step[2];
    }
    message
}

fn known_roster() -> Roster {
    let mut body = vec![1, 5];
    body.extend(b"group");
    body.extend(1_u64.to_be_bytes());
    body.extend([0; 32]);
    body.extend([1, 5]);
    body.extend(b"alice");
    body.extend(key(1).public().as_bytes());
    body.extend([1, 5]);
    body.extend(b"alice");
    body.extend(sign(1, "Ringpost roster 1", &body));
    let alice = user("alice");
    Roster::join(&body, (&alice, &key(1).public()), (&alice, &key(1).public()))
        .expect("a good roster")
}

fn state(own: &OwnKeys, pair: &Pair) -> String {
    format!("{own:?} {}", serde_json::to_string(pair.state()).expect("text keys"))
}

fn own(seed: u8) -> OwnKeys {
    let mut rng = StdRng::seed_from_u64(seed.into());
    let mut prekeys = PreKeys::new(0, &mut rng);
    prekeys.make_one_time(1, &mut rng);
    OwnKeys { identity: key(seed), prekeys }
}

fn pair(own: &str, own_seed: u8, peer: &str, peer_seed: u8) -> Pair {
    Pair::new(party(own, own_seed), party(peer, peer_seed))
}

/// In a list that the user signed.
fn phone(name: &str, seed: u8) -> MemberDevice {
    let device = DeviceId::new("phone").expect("a device id");
    let devices = BTreeMap::from([(device.clone(), key(seed).public())]);
    let list = DeviceList { user: user(name), version: 1, devices }.sign(&key(seed));
    let contact = Contact::meet(&user(name), &list.expect("one device")).expect("just signed");
    contact.member(&device).expect("listed")
}

fn party(name: &str, seed: u8) -> Party {
    let device = DeviceId::new("phone").expect("a device id");
    let address = DeviceAddress { user: user(name), device };
    Party { address, identity: key(seed).public() }
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user id")
}

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed([seed; 32])
}

fn sign(seed: u8, domain: &str, message: &[u8]) -> [u8; 64] {
    let separated = [domain.as_bytes(), &[0], message].concat();
    SigningKey::from_bytes(&[seed; 32]).sign(&separated).to_bytes()
}

/// One for each parser, good where that is possible.
pub fn seeds() -> Vec<Seed> {
    let named = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let mut list = vec![1];
    list.extend([0; 32]);
    list.extend([3, b'b', b'o', b'b', 0, 0, 0, 0, 0, 0, 0, 1, 1, 5]);
    list.extend(b"phone");
    list.extend(key(3).public().as_bytes());
    let known = known_roster().members().sign(&user("alice"), &key(1)).expect("in bounds");
    let mut text = vec![1, 0x0A, 3, b'b', b'o', b'b', 0x1A, 16];
    text.extend([7; 16]);
    text.extend([0x20, 1, 0x3A, 2, b'h', b'i', 0x80, 0, 0]);
    let roster = &known[..known.len() - 64];
    vec![
        ("bundle", named(0, &[&[1], &[0; 36][..], &[9; 32], &[0; 64], &[0]].concat())),
        ("list", named(1, &list)),
        ("roster", named(2, roster)),
        ("text", named(3, &text)),
        ("message", named(4, &first_message())),
        ("flipped", named(5, &[0, 200, 1])),
        ("group-key", named(6, &[1; 229])),
        ("group-flipped", named(7, &[0, 30, 1])),
        ("sealed", named(8, &[1; 60])),
    ]
}
