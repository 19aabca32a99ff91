//! Signatures that were found right. Whoever reconnects brings the token that he brought before, and
//! verifying its signature costs a fifth of his login; looking it up, nearly nothing.
//!
//! Only the signature is remembered, and only under the key set that it was checked against: all that
//! a token claims is looked at each time, so an expired one is refused as ever, and what another key
//! set brings begins anew. A token is named by its whole SHA-256: who finds another one of the same
//! name could as well forge the signature.

use std::collections::HashSet;
use std::mem;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use crate::limits::TOKENS_REMEMBERED_MAX;

/// A bounded set of tokens, one for all shards: a client comes back to any of them. Locked at a login,
/// never on the path of a message, and in stripes, so that shards rarely meet.
#[derive(Debug)]
pub(super) struct Remembered {
    stripes: Box<[Mutex<Stripe>]>,
}

type Name = [u8; SHA256_OUTPUT_LEN];

/// The older half is forgotten as a whole when the newer one is full.
#[derive(Debug, Default)]
struct Stripe {
    newer: HashSet<Name>,
    older: HashSet<Name>,
}

impl Remembered {
    /// Whether the signature of `token` is right, by memory or else by `verify`.
    pub(super) fn or_verify(&self, token: &str, verify: impl FnOnce() -> bool) -> bool {
        let name = name_of(token);
        if self.stripe(&name, |stripe| stripe.recall(&name)) {
            return true;
        }
        // Without the lock: others would wait for it.
        let is_right = verify();
        if is_right {
            self.stripe(&name, |stripe| stripe.remember(name));
        }
        is_right
    }

    fn stripe<T>(&self, name: &Name, with: impl FnOnce(&mut Stripe) -> T) -> T {
        let stripe = &self.stripes[usize::from(name[0]) % self.stripes.len()];
        // Every change of a stripe is whole even if what follows it panics.
        with(&mut stripe.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Remembered {
    fn default() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }
}

impl Stripe {
    fn recall(&mut self, name: &Name) -> bool {
        if self.newer.contains(name) {
            return true;
        }
        let is_known = self.older.contains(name);
        if is_known {
            self.remember(*name);
        }
        is_known
    }

    fn remember(&mut self, name: Name) {
        if self.newer.len() >= HALF_OF_STRIPE {
            self.older = mem::take(&mut self.newer);
        }
        self.newer.insert(name);
    }
}

fn name_of(token: &str) -> Name {
    let digest = digest(&SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("a digest has its length")
}

const STRIPES: usize = 64;
const HALF_OF_STRIPE: usize = TOKENS_REMEMBERED_MAX / STRIPES / 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_signature_is_verified_once_and_a_wrong_one_each_time() {
        let remembered = Remembered::default();
        let mut verified = Vec::new();
        for (token, is_right) in [("a.b.c", true), ("a.b.d", false)].repeat(3) {
            let answer = remembered.or_verify(token, || {
                verified.push(token);
                is_right
            });
            assert_eq!(answer, is_right, "{token}");
        }
        assert_eq!(verified, ["a.b.c", "a.b.d", "a.b.d", "a.b.d"]);
    }

    #[test]
    fn a_bounded_number_is_remembered_the_latest_ones_first() {
        let mut stripe = Stripe::default();
        let name = |number: usize| name_of(&number.to_string());
        for number in 0..10 * HALF_OF_STRIPE {
            stripe.remember(name(number));
            assert!(stripe.recall(&name(0)), "who comes often is not forgotten");
            assert!(stripe.newer.len() + stripe.older.len() <= 2 * HALF_OF_STRIPE);
        }
        let last = 10 * HALF_OF_STRIPE - 1;
        assert!(stripe.recall(&name(last)) && stripe.recall(&name(last - HALF_OF_STRIPE / 2)));
        assert!(!stripe.recall(&name(1)) && !stripe.recall(&name(last - 2 * HALF_OF_STRIPE)));
    }
}
