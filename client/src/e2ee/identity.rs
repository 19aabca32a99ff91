//! Identity keys: Ed25519 (RFC 8032), used for X25519 as well (RFC 7748) over the birational map
//! between the two curves, as OMEMO 2 does.
//!
//! There are two kinds, both of this type. A *user's* signs the list of the user's devices and the
//! rosters of groups; the safety number is made of it. A *device's* signs its prekeys and takes part
//! in X3DH; the device list ties it to the user.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::fault::Fault;

/// 32 secret bytes; wiped when dropped, never printed.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

/// The secret half of an identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IdentityKey {
    seed: Secret,
}

/// The public half: a canonical Ed25519 point that is not of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "[u8; 32]", into = "[u8; 32]")]
pub struct PublicIdentity([u8; 32]);

/// Length of a signature in bytes.
pub const SIGNATURE_BYTES: usize = 64;

impl Secret {
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Take care of copies.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn agreement(&self) -> StaticSecret {
        StaticSecret::from(self.0)
    }

    /// Its X25519 public key.
    pub(super) fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.agreement()).to_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl IdentityKey {
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self { seed: Secret::random(rng) }
    }

    /// From an Ed25519 seed (RFC 8032, 5.1.5).
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { seed: Secret(seed) }
    }

    /// For another device of the same user.
    pub(crate) fn seed(&self) -> &[u8; 32] {
        self.seed.as_bytes()
    }

    pub fn public(&self) -> PublicIdentity {
        PublicIdentity(self.signing().verifying_key().to_bytes())
    }

    /// Signs `domain`, a zero byte and `message`. No domain contains a zero byte, so what is signed
    /// for one purpose is never valid for another.
    pub(super) fn sign(&self, domain: &str, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.signing().sign(&separated(domain, message)).to_bytes()
    }

    /// The X25519 secret of this identity: the clamped first half of SHA-512 of the seed.
    pub(super) fn agreement(&self) -> StaticSecret {
        StaticSecret::from(self.signing().to_scalar_bytes())
    }

    fn signing(&self) -> SigningKey {
        SigningKey::from_bytes(self.seed.as_bytes())
    }
}

impl PublicIdentity {
    /// `what` names the origin in the fault.
    pub fn from_bytes(what: &'static str, bytes: [u8; 32]) -> Result<Self, Fault> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| Fault::Malformed(what))?;
        // A second encoding of the same point would be a second identity.
        if key.to_edwards().compress().to_bytes() != bytes {
            return Err(Fault::Malformed(what));
        }
        if key.is_weak() { Err(Fault::WeakKey(what)) } else { Ok(Self(bytes)) }
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn agreement(&self) -> PublicKey {
        PublicKey::from(self.verifying().to_montgomery().to_bytes())
    }

    /// Strict: no malleable signature, no key of small order (RFC 8032, 5.1.7, without cofactor).
    pub(super) fn verify(
        &self,
        domain: &str,
        message: &[u8],
        signature: &[u8; SIGNATURE_BYTES],
    ) -> bool {
        let signature = Signature::from_bytes(signature);
        self.verifying().verify_strict(&separated(domain, message), &signature).is_ok()
    }

    fn verifying(&self) -> VerifyingKey {
        VerifyingKey::from_bytes(&self.0).expect("checked when it was made")
    }
}

impl TryFrom<[u8; 32]> for PublicIdentity {
    type Error = Fault;

    fn try_from(bytes: [u8; 32]) -> Result<Self, Fault> {
        Self::from_bytes("identity key", bytes)
    }
}

impl From<PublicIdentity> for [u8; 32] {
    fn from(identity: PublicIdentity) -> Self {
        identity.0
    }
}

impl fmt::Debug for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicIdentity({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// SHA-256 of `domain`, a zero byte and the parts, each of a length that is fixed or in it.
pub(super) fn hash(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(domain).chain_update([0]);
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

fn separated(domain: &str, message: &[u8]) -> Vec<u8> {
    [domain.as_bytes(), &[0], message].concat()
}
