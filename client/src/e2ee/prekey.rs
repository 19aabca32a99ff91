//! The secrets behind a device's prekeys, and when to make new ones.
//!
//! A signed prekey is replaced every [`SIGNED_PREKEY_MS`] and kept for [`PREKEY_GRACE_MS`] more: a
//! first message may wait that long in a mailbox. A one-time secret goes when the first message made
//! with it has authenticated, never before, or anybody could burn it with rubbish. One device may
//! begin [`FIRST_MESSAGES_PER_DEVICE_MAX`] sessions under one signed prekey, so it cannot use up the
//! memory of those that others begin.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::CryptoRng;
use serde::{Deserialize, Serialize};

use super::bundle::{OneTimePreKey, SignedPreKey};
use super::fault::Fault;
use super::identity::{IdentityKey, PublicIdentity, Secret};
use super::x3dh::FirstHeader;
use crate::limits::{
    FIRST_MESSAGES_PER_DEVICE_MAX, FIRST_MESSAGES_REMEMBERED_MAX, ONE_TIME_PREKEYS_LOW,
    ONE_TIME_PREKEYS_TARGET, ONE_TIME_SECRETS_MAX, PREKEY_GRACE_MS, SIGNED_PREKEY_MS,
    SIGNED_PREKEYS_RETIRED_MAX,
};

/// All prekeys of this device. Persist after every change: [`Self::pending`] may be published only
/// when its secrets are on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreKeys {
    current: SignedSecret,
    /// Oldest first.
    retired: VecDeque<Retired>,
    one_time: BTreeMap<u32, Secret>,
    next_id: u32,
    /// One-time prekeys from this id on are not known to be at the server.
    unpublished_from: u32,
    is_signed_published: bool,
}

/// What [`PreKeys::upkeep`] asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Call [`PreKeys::rotate`].
    pub rotate: bool,
    /// Call [`PreKeys::expire`]: a secret is kept longer than it is good for.
    pub expire: bool,
    /// Call [`PreKeys::make_one_time`] with this number when it is not 0.
    pub one_time_count: u32,
    /// Publish what [`PreKeys::pending`] gives, after both of the above.
    pub publish: bool,
}

/// The keys that the server may not have yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub signed: Option<SignedPreKey>,
    pub one_time: Vec<OneTimePreKey>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SignedSecret {
    id: u32,
    secret: Secret,
    made_ms: u64,
    /// First messages that this key has opened: whose, and their ephemeral keys. Without a one-time
    /// key nothing else tells a first message from its copy.
    seen: BTreeSet<(PublicIdentity, [u8; 32])>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Retired {
    key: SignedSecret,
    retired_ms: u64,
}

impl PreKeys {
    /// A signed prekey and no one-time prekeys; [`Self::upkeep`] asks for those.
    pub fn new(now_ms: u64, rng: &mut impl CryptoRng) -> Self {
        Self {
            current: SignedSecret::random(1, now_ms, rng),
            retired: VecDeque::new(),
            one_time: BTreeMap::new(),
            next_id: 2,
            unpublished_from: 2,
            is_signed_published: false,
        }
    }

    /// What is due. `server_count` is the server's stock of one-time prekeys, from its KeysLow.
    pub fn upkeep(&self, now_ms: u64, server_count: u32) -> Upkeep {
        let rotate = now_ms.saturating_sub(self.current.made_ms) >= SIGNED_PREKEY_MS
            || self.current.seen.len() >= FIRST_MESSAGES_REMEMBERED_MAX / 2;
        let stock = server_count.saturating_add(self.unpublished_count());
        let one_time_count = match stock < ONE_TIME_PREKEYS_LOW {
            true => ONE_TIME_PREKEYS_TARGET - stock,
            false => 0,
        };
        let publish = rotate
            || one_time_count > 0
            || !self.is_signed_published
            || self.unpublished_count() > 0;
        let expire = self.retired.iter().any(|old| old.is_over(now_ms));
        Upkeep { rotate, expire, one_time_count, publish }
    }

    /// Makes a new signed prekey, and forgets those whose grace period is over.
    pub fn rotate(&mut self, now_ms: u64, rng: &mut impl CryptoRng) {
        let id = self.take_id();
        let key = std::mem::replace(&mut self.current, SignedSecret::random(id, now_ms, rng));
        self.retired.push_back(Retired { key, retired_ms: now_ms });
        self.is_signed_published = false;
        self.expire(now_ms);
        if self.retired.len() > SIGNED_PREKEYS_RETIRED_MAX {
            self.retired.pop_front();
        }
    }

    /// Forgets signed prekeys whose grace period is over.
    pub fn expire(&mut self, now_ms: u64) {
        self.retired.retain(|old| !old.is_over(now_ms));
    }

    /// Makes `count` one-time prekeys. Beyond [`ONE_TIME_SECRETS_MAX`] the oldest secrets go.
    pub fn make_one_time(&mut self, count: u32, rng: &mut impl CryptoRng) {
        for _ in 0..count.min(ONE_TIME_PREKEYS_TARGET) {
            let id = self.take_id();
            self.one_time.insert(id, Secret::random(rng));
        }
        while self.one_time.len() > ONE_TIME_SECRETS_MAX {
            self.one_time.pop_first();
        }
    }

    /// Gives the same until [`Self::confirm`], so publishing may be repeated after a crash.
    pub fn pending(&self, identity: &IdentityKey) -> Pending {
        let one_time = self.unpublished();
        Pending {
            signed: (!self.is_signed_published).then(|| self.signed(identity)),
            one_time: one_time
                .map(|(&id, secret)| OneTimePreKey { id, key: secret.public() })
                .collect(),
        }
    }

    /// The present signed prekey.
    pub fn signed(&self, identity: &IdentityKey) -> SignedPreKey {
        SignedPreKey::sign(identity, self.current.id, self.current.secret.public())
    }

    /// The server has stored these.
    pub fn confirm(&mut self, published: &Pending) {
        self.is_signed_published |=
            published.signed.is_some_and(|signed| signed.id == self.current.id);
        for key in &published.one_time {
            self.unpublished_from = self.unpublished_from.max(key.id.saturating_add(1));
        }
    }

    /// Secrets that a first message names, still here afterwards.
    pub(super) fn secrets(
        &self,
        header: &FirstHeader,
        now_ms: u64,
    ) -> Result<(Secret, Option<Secret>), Fault> {
        let signed = self.find(header.signed_id, now_ms).ok_or(Fault::PreKeyGone)?;
        if signed.seen.contains(&(header.identity, header.ephemeral)) {
            return Err(Fault::ReplayedFirstMessage);
        }
        if signed.begun_by(&header.identity) >= FIRST_MESSAGES_PER_DEVICE_MAX {
            return Err(Fault::TooManySessions);
        }
        let one_time = match header.one_time_id {
            Some(id) => Some(self.one_time.get(&id).ok_or(Fault::PreKeyGone)?.clone()),
            None if signed.seen.len() >= FIRST_MESSAGES_REMEMBERED_MAX => {
                return Err(Fault::FirstMessagesExhausted);
            }
            None => None,
        };
        Ok((signed.secret.clone(), one_time))
    }

    /// The first message with this header has authenticated.
    pub(super) fn spend(&mut self, header: &FirstHeader) {
        if let Some(id) = header.one_time_id {
            self.one_time.remove(&id);
        }
        let all = self.retired.iter_mut().map(|old| &mut old.key);
        let signed = all.chain([&mut self.current]).find(|key| key.id == header.signed_id);
        let signed = signed.expect("the caller has its secret from here");
        // With a one-time key the copy is refused anyway; remembering it only names the reason.
        if signed.seen.len() < FIRST_MESSAGES_REMEMBERED_MAX {
            signed.seen.insert((header.identity, header.ephemeral));
        }
    }

    fn find(&self, id: u32, now_ms: u64) -> Option<&SignedSecret> {
        let retired = self.retired.iter().filter(|old| !old.is_over(now_ms)).map(|old| &old.key);
        retired.chain([&self.current]).find(|key| key.id == id)
    }

    fn unpublished(&self) -> impl Iterator<Item = (&u32, &Secret)> {
        self.one_time.range(self.unpublished_from..)
    }

    fn unpublished_count(&self) -> u32 {
        u32::try_from(self.unpublished().count()).expect("bounded by ONE_TIME_SECRETS_MAX")
    }

    /// Ids are never 0 and never used twice in the life of a device.
    fn take_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = id.checked_add(1).expect("a device makes fewer than 2^32 prekeys");
        id
    }
}

impl Retired {
    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.retired_ms) >= PREKEY_GRACE_MS
    }
}

impl SignedSecret {
    fn begun_by(&self, device: &PublicIdentity) -> usize {
        self.seen.range((*device, [0; 32])..=(*device, [0xFF; 32])).count()
    }

    fn random(id: u32, made_ms: u64, rng: &mut impl CryptoRng) -> Self {
        Self { id, secret: Secret::random(rng), made_ms, seen: BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(signed_id: u32, one_time_id: Option<u32>, ephemeral: u8) -> FirstHeader {
        let identity = IdentityKey::from_seed([1; 32]).public();
        FirstHeader { identity, ephemeral: [ephemeral; 32], signed_id, one_time_id }
    }

    #[test]
    fn upkeep_fills_the_stock_and_asks_again_only_when_it_is_low() {
        let (mut keys, rng) = (PreKeys::new(0, &mut rand::rng()), &mut rand::rng());
        let identity = IdentityKey::random(rng);
        let due = keys.upkeep(0, 0);
        let one_time_count = ONE_TIME_PREKEYS_TARGET;
        assert_eq!(due, Upkeep { one_time_count, publish: true, ..Upkeep::default() });
        keys.make_one_time(due.one_time_count, rng);
        // Made and not published: nothing more is made, the same is published.
        assert_eq!(keys.upkeep(0, 0), Upkeep { publish: true, ..Upkeep::default() });
        let pending = keys.pending(&identity);
        assert_eq!(pending, keys.pending(&identity));
        assert_eq!(pending.one_time.len(), ONE_TIME_PREKEYS_TARGET as usize);
        assert!(pending.one_time.iter().all(|key| key.id != 0));
        keys.confirm(&pending);
        assert_eq!(keys.upkeep(0, ONE_TIME_PREKEYS_TARGET), Upkeep::default());
        assert_eq!(keys.upkeep(0, ONE_TIME_PREKEYS_LOW), Upkeep::default());
        let missing = ONE_TIME_PREKEYS_TARGET - ONE_TIME_PREKEYS_LOW + 1;
        assert_eq!(keys.upkeep(0, ONE_TIME_PREKEYS_LOW - 1).one_time_count, missing);
        assert!(keys.upkeep(SIGNED_PREKEY_MS, ONE_TIME_PREKEYS_TARGET).rotate);
    }

    #[test]
    fn rotated_signed_prekey_opens_messages_for_the_grace_period_and_no_longer() {
        let (mut keys, rng) = (PreKeys::new(0, &mut rand::rng()), &mut rand::rng());
        let old = header(1, None, 5);
        keys.rotate(SIGNED_PREKEY_MS, rng);
        let over_ms = SIGNED_PREKEY_MS + PREKEY_GRACE_MS;
        keys.expire(over_ms - 1);
        assert!(keys.secrets(&old, over_ms - 1).is_ok());
        assert!(!keys.upkeep(over_ms - 1, ONE_TIME_PREKEYS_TARGET).expire);
        // Also when nobody has tidied up yet.
        assert_eq!(keys.secrets(&old, over_ms).err(), Some(Fault::PreKeyGone));
        assert!(keys.upkeep(over_ms, ONE_TIME_PREKEYS_TARGET).expire);
        keys.expire(over_ms);
        assert!(keys.retired.is_empty());
        assert!(keys.secrets(&header(2, None, 5), over_ms).is_ok());
    }

    #[test]
    fn first_message_without_a_one_time_key_is_remembered_for_the_life_of_the_signed_prekey() {
        let (mut keys, rng) = (PreKeys::new(0, &mut rand::rng()), &mut rand::rng());
        let first = header(1, None, 5);
        keys.spend(&first);
        assert_eq!(keys.secrets(&first, 0).err(), Some(Fault::ReplayedFirstMessage));
        keys.rotate(SIGNED_PREKEY_MS, rng);
        let text = serde_json::to_string(&keys).unwrap();
        let keys: PreKeys = serde_json::from_str(&text).unwrap();
        assert_eq!(keys.secrets(&first, 0).err(), Some(Fault::ReplayedFirstMessage));
    }

    /// Forgetting the oldest instead would let its message be replayed.
    #[test]
    fn full_memory_of_first_messages_refuses_more_and_asks_for_a_new_key() {
        let mut keys = PreKeys::new(0, &mut rand::rng());
        for n in 0..FIRST_MESSAGES_REMEMBERED_MAX {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&n.to_be_bytes());
            let identity = IdentityKey::from_seed(seed).public();
            keys.spend(&FirstHeader { identity, ..header(1, None, 0) });
        }
        let refused = keys.secrets(&header(1, None, 0xEE), 0).err();
        assert_eq!(refused, Some(Fault::FirstMessagesExhausted));
        assert!(keys.upkeep(0, ONE_TIME_PREKEYS_TARGET).rotate);
        keys.make_one_time(1, &mut rand::rng());
        assert!(keys.secrets(&header(1, Some(2), 0xEE), 0).is_ok());
    }

    #[test]
    fn one_device_cannot_use_up_the_memory_of_first_messages() {
        let mut keys = PreKeys::new(0, &mut rand::rng());
        for n in 0..u8::try_from(FIRST_MESSAGES_PER_DEVICE_MAX).unwrap() {
            let first = header(1, None, n);
            assert!(keys.secrets(&first, 0).is_ok());
            keys.spend(&first);
        }
        assert_eq!(keys.secrets(&header(1, None, 0xEE), 0).err(), Some(Fault::TooManySessions));
        let identity = IdentityKey::from_seed([2; 32]).public();
        let other = FirstHeader { identity, ..header(1, None, 0xEE) };
        assert!(keys.secrets(&other, 0).is_ok());
        // The next signed prekey begins anew.
        keys.rotate(SIGNED_PREKEY_MS, &mut rand::rng());
        assert!(keys.secrets(&header(2, None, 0xEE), 0).is_ok());
    }

    #[test]
    fn one_time_secret_goes_only_when_it_is_spent() {
        let mut keys = PreKeys::new(0, &mut rand::rng());
        keys.make_one_time(1, &mut rand::rng());
        let first = header(1, Some(2), 5);
        assert!(keys.secrets(&first, 0).is_ok());
        assert!(keys.secrets(&first, 0).is_ok());
        keys.spend(&first);
        assert_eq!(keys.secrets(&header(1, Some(2), 6), 0).err(), Some(Fault::PreKeyGone));
        assert_eq!(keys.secrets(&first, 0).err(), Some(Fault::ReplayedFirstMessage));
    }

    #[test]
    fn secrets_are_bounded_when_the_server_loses_its_stock() {
        let mut keys = PreKeys::new(0, &mut rand::rng());
        for _ in 0..20 {
            keys.make_one_time(ONE_TIME_PREKEYS_TARGET, &mut rand::rng());
        }
        assert_eq!(keys.one_time.len(), ONE_TIME_SECRETS_MAX);
    }
}
