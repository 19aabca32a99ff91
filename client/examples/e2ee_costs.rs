//! What end-to-end encryption costs: microseconds of each step and bytes added to a message.
//!
//! ```text
//! cargo run --release -p ringpost-client --example e2ee_costs
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;

use rand::rng;
use ringpost_client::e2ee::identity::Secret;
use ringpost_client::e2ee::roster::{Member, Members};
use ringpost_client::e2ee::safety::safety_number;
use ringpost_client::e2ee::{
    Bundle, Contact, DeviceList, GroupReceiver, GroupSender, IdentityKey, OwnKeys, Pair, Party,
    PreKeys, Roster, seal,
};
use ringpost_client::protocol::id::{DeviceAddress, DeviceId, UserId};

const ROUNDS: u32 = 200;
const TEXT: [u8; 256] = [b'x'; 256];

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Device {
    own: OwnKeys,
    party: Party,
}

fn main() -> Outcome<()> {
    pair()?;
    group()?;
    let [alice, bob] = [device("alice")?, device("bob")?];
    let (a, b) = (&alice.party, &bob.party);
    each("safety number", 10, || {
        safety_number((&a.address.user, &a.identity), (&b.address.user, &b.identity));
        Ok(())
    })
}

fn pair() -> Outcome<()> {
    let (alice, mut bob) = (device("alice")?, device("bob")?);
    bob.own.prekeys.make_one_time(1, &mut rng());
    let one_time = bob.own.prekeys.pending(&bob.own.identity).one_time.first().copied();
    let signed = bob.own.prekeys.signed(&bob.own.identity);
    let bundle = Bundle::new(bob.party.identity, signed, one_time)?;
    let mut a = Pair::new(alice.party.clone(), bob.party.clone());
    each("begin a session", ROUNDS, || {
        Ok(a.begin(&alice.own.identity, &bundle, 0, &mut rng())?)
    })?;
    let first = a.encrypt(&TEXT)?;
    let before = serde_json::to_string(&bob.own)?;
    let empty = || Pair::new(bob.party.clone(), alice.party.clone());
    let mut b = empty();
    each("accept a session, with its first message", ROUNDS, || {
        b = empty();
        let mut own = serde_json::from_str(&before)?;
        Ok(b.decrypt(&mut own, &first, 0, &mut rng()).map(drop)?)
    })?;
    let mut own_alice = alice.own;
    let answer = b.encrypt(&TEXT)?;
    a.decrypt(&mut own_alice, &answer, 0, &mut rng())?;
    let mut sent = Vec::new();
    each("encrypt 256 bytes", ROUNDS, || {
        sent.push(a.encrypt(&TEXT)?);
        Ok(())
    })?;
    let mut own: OwnKeys = serde_json::from_str(&before)?;
    let mut waiting = sent.iter();
    each("decrypt 256 bytes", ROUNDS, || {
        let next = waiting.next().ok_or("one for each round")?;
        Ok(b.decrypt(&mut own, next, 0, &mut rng()).map(drop)?)
    })?;
    let key = Secret::random(&mut rng());
    each("seal the state of a pair", ROUNDS, || {
        seal::seal(&key, b"pair", b.state(), &mut rng());
        Ok(())
    })?;
    let sealed = seal::seal(&key, b"pair", b.state(), &mut rng());
    println!("bytes added: first message {}, normal {}", added(&first), added(&sent[0]));
    println!("bytes of a sealed pair: {}", sealed.len());
    Ok(())
}

fn group() -> Outcome<()> {
    let alice = device("alice")?;
    let user = alice.party.address.user.clone();
    let member = Member { identity: alice.party.identity, is_admin: true };
    let members = Members {
        group: UserId::new("group")?,
        version: 1,
        parent: [0; 32],
        members: BTreeMap::from([(user.clone(), member)]),
    };
    let signed = members.sign(&user, &alice.own.identity)?;
    let own = (&user, &alice.party.identity);
    let roster = Roster::join(&signed, own, own)?;
    let phone = alice.party.address.device.clone();
    let devices = BTreeMap::from([(phone.clone(), alice.party.identity)]);
    let list = DeviceList { user: user.clone(), version: 1, devices }.sign(&alice.own.identity)?;
    let device = Contact::meet(&user, &list)?.member(&phone)?;
    let mut sender = GroupSender::new(&roster, 0);
    let mut receiver = GroupReceiver::default();
    let key = sender.distribution(&members.group);
    receiver.accept(&device, &roster, &key)?;
    let mut sent = Vec::new();
    each("encrypt 256 bytes to a group", ROUNDS, || {
        sent.push(sender.encrypt(&roster, &TEXT, 0)?);
        Ok(())
    })?;
    let mut waiting = sent.iter();
    each("decrypt 256 bytes of a group", ROUNDS, || {
        let next = waiting.next().ok_or("one for each round")?;
        Ok(receiver.decrypt(&device, &roster, next).map(drop)?)
    })?;
    println!("bytes added: group message {}, group key {}", added(&sent[0]), key.len());
    Ok(())
}

fn each(name: &str, rounds: u32, mut step: impl FnMut() -> Outcome<()>) -> Outcome<()> {
    let start = Instant::now();
    for _ in 0..rounds {
        step()?;
    }
    println!("{name}: {} us", start.elapsed().as_micros() / u128::from(rounds));
    Ok(())
}

fn added(envelope: &[u8]) -> usize {
    envelope.len() - TEXT.len()
}

fn device(user: &str) -> Outcome<Device> {
    let own =
        OwnKeys { identity: IdentityKey::random(&mut rng()), prekeys: PreKeys::new(0, &mut rng()) };
    let address = DeviceAddress { user: UserId::new(user)?, device: DeviceId::new("phone")? };
    let party = Party { address, identity: own.identity.public() };
    Ok(Device { own, party })
}
