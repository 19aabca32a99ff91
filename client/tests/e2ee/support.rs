//! Devices with keys, and pairs of them.

use rand::rng;
use ringpost_client::e2ee::{Bundle, Fault, IdentityKey, OwnKeys, Pair, Party, PreKeys};
use ringpost_client::protocol::id::{DeviceAddress, DeviceId, UserId};

pub(crate) struct Device {
    pub(crate) own: OwnKeys,
    address: DeviceAddress,
}

impl Device {
    pub(crate) fn new(user: &str, device: &str) -> Self {
        let mut prekeys = PreKeys::new(0, &mut rng());
        prekeys.make_one_time(10, &mut rng());
        let address = DeviceAddress {
            user: UserId::new(user).expect("a user id"),
            device: DeviceId::new(device).expect("a device id"),
        };
        Self { own: OwnKeys { identity: IdentityKey::random(&mut rng()), prekeys }, address }
    }

    pub(crate) fn party(&self) -> Party {
        Party { address: self.address.clone(), identity: self.own.identity.public() }
    }

    /// What the directory gives for this device; always the same one-time key.
    pub(crate) fn bundle(&self, with_one_time: bool) -> Bundle {
        let signed = self.own.prekeys.signed(&self.own.identity);
        let one_time = self.own.prekeys.pending(&self.own.identity).one_time;
        let one_time = one_time.first().copied().filter(|_| with_one_time);
        Bundle::new(self.own.identity.public(), signed, one_time).expect("signed by the device")
    }

    pub(crate) fn open(&mut self, pair: &mut Pair, envelope: &[u8]) -> Result<Vec<u8>, Fault> {
        pair.decrypt(&mut self.own, envelope, 0, &mut rng())
    }
}

/// Alice, Bob, and each one's empty pair with the other.
pub(crate) fn both() -> (Device, Device, Pair, Pair) {
    let (alice, bob) = (Device::new("alice", "phone"), Device::new("bob", "phone"));
    let a = Pair::new(alice.party(), bob.party());
    let b = Pair::new(bob.party(), alice.party());
    (alice, bob, a, b)
}

/// As [`both`], after a message each way.
pub(crate) fn connected() -> (Device, Device, Pair, Pair) {
    let (mut alice, mut bob, mut a, mut b) = both();
    a.begin(&alice.own.identity, &bob.bundle(true), 0, &mut rng()).expect("Bob's bundle");
    let first = a.encrypt(b"hello").expect("a session");
    bob.open(&mut b, &first).expect("the first message");
    let answer = b.encrypt(b"hello").expect("a session");
    alice.open(&mut a, &answer).expect("the answer");
    (alice, bob, a, b)
}
