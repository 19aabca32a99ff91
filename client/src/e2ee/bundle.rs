//! The public keys of a device: what it publishes, and what another device takes to begin a session.
//!
//! ```text
//! bundle  1 | identity 32 | signed id 4 | key 32 | signature 64 | 0, or 1 | one-time id 4 | key 32
//! ```

use super::fault::Fault;
use super::identity::{IdentityKey, PublicIdentity, SIGNATURE_BYTES};
use super::wire::Reader;

/// A signed prekey. Any number of sessions may begin with it until the next one replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedPreKey {
    pub id: u32,
    /// X25519.
    pub key: [u8; 32],
    /// By the identity of the device.
    pub signature: [u8; SIGNATURE_BYTES],
}

/// A prekey that begins one session. Not signed: it adds secrecy, not identity (X3DH, 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneTimePreKey {
    /// Never 0.
    pub id: u32,
    /// X25519.
    pub key: [u8; 32],
}

/// What the directory hands out for one device. The signature was checked when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle {
    identity: PublicIdentity,
    signed: SignedPreKey,
    one_time: Option<OneTimePreKey>,
}

impl SignedPreKey {
    pub(crate) fn sign(identity: &IdentityKey, id: u32, key: [u8; 32]) -> Self {
        Self { id, key, signature: identity.sign(DOMAIN, &key) }
    }
}

impl Bundle {
    /// Checks the signature: [`Fault::ForgedPreKey`].
    pub fn new(
        identity: PublicIdentity,
        signed: SignedPreKey,
        one_time: Option<OneTimePreKey>,
    ) -> Result<Self, Fault> {
        if !identity.verify(DOMAIN, &signed.key, &signed.signature) {
            return Err(Fault::ForgedPreKey);
        }
        if one_time.is_some_and(|key| key.id == 0) {
            return Err(Fault::Malformed(WHAT));
        }
        Ok(Self { identity, signed, one_time })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.version(VERSION)?;
        let identity = PublicIdentity::from_bytes(WHAT, reader.array()?)?;
        let signed =
            SignedPreKey { id: reader.u32()?, key: reader.array()?, signature: reader.array()? };
        let one_time = match reader.flag()? {
            true => Some(OneTimePreKey { id: reader.u32()?, key: reader.array()? }),
            false => None,
        };
        reader.finish()?;
        Self::new(identity, signed, one_time)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.identity.as_bytes());
        out.extend(self.signed.id.to_be_bytes());
        out.extend(self.signed.key);
        out.extend(self.signed.signature);
        out.push(self.one_time.is_some().into());
        if let Some(one_time) = self.one_time {
            out.extend(one_time.id.to_be_bytes());
            out.extend(one_time.key);
        }
        out
    }

    pub fn identity(&self) -> PublicIdentity {
        self.identity
    }

    pub fn signed(&self) -> &SignedPreKey {
        &self.signed
    }

    pub fn one_time(&self) -> Option<&OneTimePreKey> {
        self.one_time.as_ref()
    }
}

const WHAT: &str = "set of keys of the other device";
const VERSION: u8 = 1;
/// Without it a signature made for another purpose over 32 bytes would pass for a prekey.
const DOMAIN: &str = "Ringpost signed prekey 1";

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(one_time: bool) -> (IdentityKey, Bundle) {
        let identity = IdentityKey::from_seed([1; 32]);
        let signed = SignedPreKey::sign(&identity, 7, [9; 32]);
        let one_time = one_time.then_some(OneTimePreKey { id: 3, key: [5; 32] });
        let bundle = Bundle::new(identity.public(), signed, one_time).unwrap();
        (identity, bundle)
    }

    #[test]
    fn bundles_survive_their_encoding() {
        for one_time in [false, true] {
            let (_, bundle) = bundle(one_time);
            let bytes = bundle.encode();
            assert_eq!(Bundle::decode(&bytes), Ok(bundle));
            for cut in 0..bytes.len() {
                assert!(Bundle::decode(&bytes[..cut]).is_err());
            }
            assert_eq!(Bundle::decode(&[&bytes[..], &[0]].concat()), Err(Fault::Malformed(WHAT)));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_signed_prekey_is_noticed() {
        let (_, bundle) = bundle(false);
        let bytes = bundle.encode();
        for byte in 37..bytes.len() - 1 {
            let mut forged = bytes.clone();
            forged[byte] ^= 1;
            assert_eq!(Bundle::decode(&forged), Err(Fault::ForgedPreKey), "byte {byte}");
        }
    }

    #[test]
    fn signature_of_a_signed_prekey_is_valid_for_nothing_else() {
        let (identity, bundle) = bundle(false);
        let signature = identity.sign("Ringpost device list 1", &bundle.signed.key);
        let signed = SignedPreKey { signature, ..bundle.signed };
        assert_eq!(Bundle::new(identity.public(), signed, None), Err(Fault::ForgedPreKey));
    }

    #[test]
    fn identities_of_small_order_are_refused() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(PublicIdentity::from_bytes(WHAT, neutral), Err(Fault::WeakKey(WHAT)));
    }
}
