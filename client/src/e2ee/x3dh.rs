//! X3DH (Signal, revision 1) with Ed25519 identities, in front of the ratchet of Olm.
//!
//! ```text
//! initiator A, responder B                                     IK identity, EK ephemeral,
//!   DH1 = X25519(IK_A, SPK_B)    DH2 = X25519(EK_A, IK_B)      SPK signed prekey,
//!   DH3 = X25519(EK_A, SPK_B)    DH4 = X25519(EK_A, OPK_B)     OPK one-time prekey, if any
//!   SK   = HKDF-SHA256(salt = 32 x 00, ikm = 32 x FF | DH1 | DH2 | DH3 | DH4, info = INFO)
//!   root = HKDF-SHA256(salt = SK, ikm = IK_A | IK_B | context, info = BINDING)
//! ```
//!
//! The last line stands for the associated data of X3DH, 3.3, which Olm's MAC does not take: the
//! sides have the same root only if they mean the same identities and the same context. Then the
//! Double Ratchet begins as its section 3.3 says, T_A being A's first ratchet key:
//! `HKDF(salt = root, ikm = X25519(T_A, SPK_B), info = "OLM_RATCHET")` gives root and first chain.

use hkdf::Hkdf;
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use vodozemac::Curve25519PublicKey;
use vodozemac::olm;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::bundle::Bundle;
use super::fault::Fault;
use super::identity::{IdentityKey, PublicIdentity, Secret};
use super::wire::Reader;

/// What the initiator sends in the clear, so that the responder finds its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FirstHeader {
    pub(super) identity: PublicIdentity,
    /// X25519.
    pub(super) ephemeral: [u8; 32],
    pub(super) signed_id: u32,
    /// `None` when the responder's one-time prekeys had run out. Never 0.
    pub(super) one_time_id: Option<u32>,
}

/// What both sides share; begins one ratchet.
pub(super) struct Root(Zeroizing<[u8; 32]>);

/// Length of an encoded [`FirstHeader`].
pub(super) const FIRST_HEADER_BYTES: usize = 32 + 32 + 4 + 4;

/// Begins a session. `context` must be the same on both sides: it says which devices are meant.
pub(super) fn initiate(
    own: &IdentityKey,
    bundle: &Bundle,
    context: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<(FirstHeader, Root), Fault> {
    let ephemeral = Secret::random(rng);
    let (secret, signed) = (ephemeral.agreement(), PublicKey::from(bundle.signed().key));
    let mut shared = Shared::new(BUNDLE);
    shared.add(&own.agreement(), &signed)?;
    shared.add(&secret, &bundle.identity().agreement())?;
    shared.add(&secret, &signed)?;
    if let Some(one_time) = bundle.one_time() {
        shared.add(&secret, &PublicKey::from(one_time.key))?;
    }
    let header = FirstHeader {
        identity: own.public(),
        ephemeral: ephemeral.public(),
        signed_id: bundle.signed().id,
        one_time_id: bundle.one_time().map(|key| key.id),
    };
    let root = shared.root(&header.identity, &bundle.identity(), context);
    Ok((header, root))
}

/// The other side of [`initiate`]. Proves nothing yet: whoever knows the public keys can send a
/// header; only a message that decrypts shows who wrote it.
pub(super) fn respond(
    own: &IdentityKey,
    header: &FirstHeader,
    signed: &Secret,
    one_time: Option<&Secret>,
    context: &[u8],
) -> Result<Root, Fault> {
    let (secret, ephemeral) = (signed.agreement(), PublicKey::from(header.ephemeral));
    let mut shared = Shared::new(MESSAGE);
    shared.add(&secret, &header.identity.agreement())?;
    shared.add(&own.agreement(), &ephemeral)?;
    shared.add(&secret, &ephemeral)?;
    if let Some(one_time) = one_time {
        shared.add(&one_time.agreement(), &ephemeral)?;
    }
    Ok(shared.root(&header.identity, &own.public(), context))
}

impl Root {
    /// The initiator's ratchet: it can send at once.
    pub(super) fn initiator_ratchet(
        self,
        bundle: &Bundle,
        rng: &mut impl CryptoRng,
    ) -> Result<olm::Session, Fault> {
        let ratchet = Secret::random(rng);
        let agreed = agree(BUNDLE, &ratchet.agreement(), &PublicKey::from(bundle.signed().key))?;
        let mut both = Zeroizing::new([0; 64]);
        expand(self.0.as_ref(), agreed.as_ref(), b"OLM_RATCHET", both.as_mut());
        let (root, chain) = both.split_at(32);
        let halves = (root.try_into().expect("32 of 64"), chain.try_into().expect("32 of 64"));
        Ok(olm_session(halves.0, halves.1, *ratchet.as_bytes()))
    }

    /// The responder's ratchet. Its sending chain is noise until it has decrypted a message, so it
    /// must not be kept, nor encrypt, before that.
    pub(super) fn responder_ratchet(
        self,
        signed: &Secret,
        rng: &mut impl CryptoRng,
    ) -> olm::Session {
        olm_session(*self.0, *Secret::random(rng).as_bytes(), *signed.as_bytes())
    }

    /// Both sides' value.
    #[cfg(test)]
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FirstHeader {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.identity.as_bytes());
        out.extend(self.ephemeral);
        out.extend(self.signed_id.to_be_bytes());
        out.extend(self.one_time_id.unwrap_or(0).to_be_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            identity: PublicIdentity::from_bytes(MESSAGE, reader.array()?)?,
            ephemeral: reader.array()?,
            signed_id: reader.u32()?,
            one_time_id: Some(reader.u32()?).filter(|&id| id != 0),
        })
    }
}

/// The input of the first HKDF, as it grows.
struct Shared {
    material: Zeroizing<Vec<u8>>,
    /// Whose keys a fault is about.
    what: &'static str,
}

impl Shared {
    fn new(what: &'static str) -> Self {
        let mut material = Vec::with_capacity(32 * 5); // never moves, so no copy stays behind
        material.extend([0xFF; 32]);
        Self { material: Zeroizing::new(material), what }
    }

    fn add(&mut self, secret: &StaticSecret, public: &PublicKey) -> Result<(), Fault> {
        self.material.extend(agree(self.what, secret, public)?.as_ref());
        Ok(())
    }

    fn root(self, initiator: &PublicIdentity, responder: &PublicIdentity, context: &[u8]) -> Root {
        let mut key = Zeroizing::new([0; 32]);
        expand(&[0; 32], &self.material, INFO, key.as_mut());
        let binding = [initiator.as_bytes(), responder.as_bytes().as_ref(), context].concat();
        let mut root = Zeroizing::new([0; 32]);
        expand(key.as_ref(), &binding, BINDING, root.as_mut());
        Root(root)
    }
}

/// X25519. An all-zero result means a point of small order: the other side would know the secret
/// whoever we are (RFC 7748, 6.1).
fn agree(
    what: &'static str,
    secret: &StaticSecret,
    public: &PublicKey,
) -> Result<Zeroizing<[u8; 32]>, Fault> {
    let shared = secret.diffie_hellman(public);
    if shared.was_contributory() {
        Ok(Zeroizing::new(shared.to_bytes()))
    } else {
        Err(Fault::WeakKey(what))
    }
}

/// HKDF-SHA256 (RFC 5869).
fn expand(salt: &[u8], material: &[u8], info: &[u8], out: &mut [u8]) {
    let hkdf = Hkdf::<Sha256>::new(Some(salt), material);
    hkdf.expand(info, out).expect("at most 255 blocks are asked for");
}

/// vodozemac's session keys only name a session in messages of a kind that are not used here.
fn olm_session(root: [u8; 32], chain: [u8; 32], ratchet: [u8; 32]) -> olm::Session {
    let unused = Curve25519PublicKey::from_bytes([0; 32]);
    let keys = olm::SessionKeys { identity_key: unused, base_key: unused, one_time_key: unused };
    let version = olm::SessionConfig::version_1();
    olm::Session::from_root_key_material(version, keys, root, chain, ratchet)
}

const BUNDLE: &str = "set of keys of the other device";
const MESSAGE: &str = "first message";
const INFO: &[u8] = b"Ringpost X3DH 1";
const BINDING: &[u8] = b"Ringpost root 1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2ee::bundle::{OneTimePreKey, SignedPreKey};

    struct Pair {
        alice: IdentityKey,
        bob: IdentityKey,
        signed: Secret,
        one_time: Secret,
    }

    fn pair() -> Pair {
        let mut rng = rand::rng();
        Pair {
            alice: IdentityKey::random(&mut rng),
            bob: IdentityKey::random(&mut rng),
            signed: Secret::random(&mut rng),
            one_time: Secret::random(&mut rng),
        }
    }

    impl Pair {
        fn bundle(&self, one_time: Option<[u8; 32]>) -> Bundle {
            let signed = SignedPreKey::sign(&self.bob, 1, self.signed.public());
            let one_time = one_time.map(|key| OneTimePreKey { id: 2, key });
            Bundle::new(self.bob.public(), signed, one_time).unwrap()
        }
    }

    #[test]
    fn both_sides_reach_the_same_root_and_only_with_the_same_keys_and_context() {
        let pair = pair();
        for one_time in [None, Some(&pair.one_time)] {
            let bundle = pair.bundle(one_time.map(Secret::public));
            let (header, root) =
                initiate(&pair.alice, &bundle, b"context", &mut rand::rng()).unwrap();
            let answer = |header: &FirstHeader, one_time, context: &[u8]| {
                *respond(&pair.bob, header, &pair.signed, one_time, context).unwrap().as_bytes()
            };
            assert_eq!(answer(&header, one_time, b"context"), *root.as_bytes());
            assert_ne!(answer(&header, one_time, b"contexT"), *root.as_bytes());
            let wrong = if one_time.is_some() { None } else { Some(&pair.one_time) };
            assert_ne!(answer(&header, wrong, b"context"), *root.as_bytes());
            let identity = IdentityKey::from_seed([3; 32]).public();
            let swapped = FirstHeader { identity, ..header };
            assert_ne!(answer(&swapped, one_time, b"context"), *root.as_bytes());
        }
    }

    /// Without the second HKDF both identities are in the root only through DH1 and DH2, which an
    /// attacker who holds a signed prekey can make equal for two identities.
    #[test]
    fn root_binds_both_identities() {
        let shared = || {
            let mut shared = Shared::new(MESSAGE);
            shared.material.extend([7; 96]);
            shared
        };
        let [a, b, c] = [1, 2, 3].map(|seed| IdentityKey::from_seed([seed; 32]).public());
        let root = |a, b, context: &[u8]| *shared().root(a, b, context).as_bytes();
        assert_eq!(root(&a, &b, b""), root(&a, &b, b""));
        assert_ne!(root(&a, &b, b""), root(&a, &c, b""));
        assert_ne!(root(&a, &b, b""), root(&c, &b, b""));
        assert_ne!(root(&a, &b, b""), root(&b, &a, b""));
        assert_ne!(root(&a, &b, b""), root(&a, &b, b"x"));
    }

    /// Curve25519's points of small order (RFC 7748, 7; the list of cr.yp.to/ecdh.html).
    #[test]
    fn all_zero_results_are_refused() {
        let pair = pair();
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            let bundle = pair.bundle(Some(point));
            let refused = initiate(&pair.alice, &bundle, b"", &mut rand::rng());
            assert_eq!(refused.err(), Some(Fault::WeakKey(BUNDLE)));
            let identity = pair.alice.public();
            let header =
                FirstHeader { identity, ephemeral: point, signed_id: 1, one_time_id: None };
            let refused = respond(&pair.bob, &header, &pair.signed, None, b"");
            assert_eq!(refused.err(), Some(Fault::WeakKey(MESSAGE)));
        }
    }
}
