//! Safety numbers: 60 digits that two people compare, by voice or side by side. Equal digits mean
//! that each has the other's identity and nobody is between them.
//!
//! Each half is libsignal's numeric fingerprint, version 0 of the hash with 5,200 rounds of SHA-512
//! over the key and the user's id; only the keys are others: ours are Ed25519.

use ringpost_protocol::id::UserId;
use sha2::{Digest as _, Sha512};

use super::identity::PublicIdentity;

/// The digits for two users, the same whichever asks; spaces between groups of five are the app's.
/// Takes some milliseconds: 10,400 rounds of SHA-512.
pub fn safety_number(one: (&UserId, &PublicIdentity), other: (&UserId, &PublicIdentity)) -> String {
    let half = |(user, identity): (&UserId, &PublicIdentity)| {
        half(user.as_str().as_bytes(), identity.as_bytes())
    };
    join(half(one), half(other))
}

fn join(one: String, other: String) -> String {
    if one <= other { one + &other } else { other + &one }
}

/// 30 digits.
fn half(user: &[u8], key: &[u8]) -> String {
    let start = Sha512::new().chain_update([0, 0]).chain_update(key).chain_update(user);
    let mut hash = start.chain_update(key).finalize();
    for _ in 1..ROUNDS {
        hash = Sha512::new().chain_update(hash).chain_update(key).finalize();
    }
    let digits = hash.chunks_exact(5).take(6).map(|five| {
        let number = five.iter().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
        format!("{:05}", number % 100_000)
    });
    digits.collect()
}

const ROUNDS: u32 = 5_200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2ee::IdentityKey;

    /// Made with npm `@signalapp/libsignal-client`: `Fingerprint.new(5200, 2, ...)` for the keys
    /// below, alice0 to alice2 and bob0 to bob2. Its keys are X25519 behind the byte 5.
    #[test]
    fn formula_gives_what_libsignal_gives() {
        let vectors = [
            (
                "0573b2d8b76aa9b53660032bc8f5d8bee3a3ae4e3b3a7fd49ade81f7347a34aa68",
                "05fb41b1fcf75c1227fa08876056a5ed07ac44fe0c116ec2de80b8e523959d7824",
                "583767467880818899149959460662730762740886103868331707442605",
            ),
            (
                "0597c3b10b4d6c133a78ea5dcc1cf6421d3f81ae37b1f628ce14ca6fce7730f333",
                "05219e4d800da968d2a5fcb009c784f4746c7138edb9ee4844b739e830b05cf424",
                "659537858499149514570942167128761765604182022552640210268732",
            ),
            (
                "05b307ae8660efaed4d6a65f6640896892ea4a1f0075555c489d1312a2e1677c28",
                "056ca3bf39d976ab36a808531bd7ec2e4b4f8aae3a90134534d50f411d377a2c05",
                "287173509150235790746070541941697594511450039015862056761178",
            ),
        ];
        for (n, (alice, bob, digits)) in vectors.into_iter().enumerate() {
            let alice = half(format!("alice{n}").as_bytes(), &unhex(alice));
            let bob = half(format!("bob{n}").as_bytes(), &unhex(bob));
            assert_eq!(join(alice, bob), digits);
        }
    }

    /// Our own, so that it never changes unnoticed: people have compared it.
    #[test]
    fn number_of_two_users_is_fixed() {
        let [alice, bob] = ["alice", "bob"].map(|user| UserId::new(user).unwrap());
        let [a, b] = [1, 2].map(|seed| IdentityKey::from_seed([seed; 32]).public());
        let number = safety_number((&alice, &a), (&bob, &b));
        assert_eq!(number, NUMBER);
        assert_eq!(number, safety_number((&bob, &b), (&alice, &a)));
        assert_ne!(number, safety_number((&alice, &b), (&bob, &a)));
        let mallory = IdentityKey::from_seed([3; 32]).public();
        assert_ne!(number, safety_number((&alice, &a), (&bob, &mallory)));
    }

    /// From a few lines of Python over hashlib.
    const NUMBER: &str = "075362714455560201043650082844788061801066304434201883017403";

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
        digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
    }
}
