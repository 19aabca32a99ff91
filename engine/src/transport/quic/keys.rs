//! The keys that every shard of a gateway shares, and that survive a restart.

use std::sync::Arc;

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::crypto::{HandshakeTokenKey, HmacKey};

/// Bytes of the secret from which the keys come.
pub const SECRET_BYTES: usize = 32;

/// What makes the gateway after a restart the same one for its clients.
#[derive(Clone)]
pub struct QuicKeys {
    /// Lets a gateway that has forgotten a connection tell its client so.
    pub(super) reset: Arc<dyn HmacKey>,
    /// Seals the tokens by which a client proves its address.
    pub(super) token: Arc<dyn HandshakeTokenKey>,
    /// Hides in a connection id which shard it names. The steering program needs it too.
    pub(super) cid: [u8; 16],
}

impl QuicKeys {
    /// Derives the keys from a secret that is random, kept by the gateway and never shown: who has
    /// it can end every connection.
    pub fn from_secret(secret: &[u8; SECRET_BYTES]) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
        let reset: [u8; 32] = derive(&root, b"stateless reset");
        let token: [u8; 32] = derive(&root, b"address token");
        let token = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &token);
        Self {
            reset: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)),
            token: Arc::new(token),
            cid: derive(&root, b"connection id"),
        }
    }
}

fn derive<const N: usize>(root: &hkdf::Prk, label: &[u8]) -> [u8; N] {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut key = [0; N];
    let filled = root.expand(&[label], Length(N)).and_then(|okm| okm.fill(&mut key));
    filled.expect("a key is far shorter than what one expansion gives");
    key
}

const SALT: &[u8] = b"ringpost quic keys 1";

#[cfg(test)]
mod tests {
    use super::*;

    fn reset_token(keys: &QuicKeys) -> Vec<u8> {
        let mut token = vec![0; keys.reset.signature_len()];
        keys.reset.sign(b"12345678", &mut token);
        token
    }

    #[test]
    fn the_same_secret_gives_the_same_keys_and_another_one_others() {
        let (one, again) = (QuicKeys::from_secret(&[1; 32]), QuicKeys::from_secret(&[1; 32]));
        let other = QuicKeys::from_secret(&[2; 32]);
        assert_eq!(one.cid, again.cid);
        assert_ne!(one.cid, other.cid);
        assert_eq!(reset_token(&one), reset_token(&again));
        assert_ne!(reset_token(&one), reset_token(&other));
        let mut sealed = b"address".to_vec();
        one.token.aead_from_hkdf(b"nonce").seal(&mut sealed, b"").unwrap();
        let opened = |keys: &QuicKeys| {
            let mut data = sealed.clone();
            let key = keys.token.aead_from_hkdf(b"nonce");
            key.open(&mut data, b"").map(|opened| opened.to_vec()).ok()
        };
        assert_eq!(opened(&again).as_deref(), Some(&b"address"[..]));
        assert_eq!(opened(&other), None);
    }

    #[test]
    fn keys_for_different_ends_have_nothing_in_common() {
        let keys = QuicKeys::from_secret(&[7; 32]);
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&[7; 32]);
        let reset: [u8; 32] = derive(&root, b"stateless reset");
        let token: [u8; 32] = derive(&root, b"address token");
        assert_ne!(reset, token);
        assert_ne!(reset[..16], keys.cid);
        assert_ne!(token[..16], keys.cid);
    }
}
