//! Records of the app's own database, sealed with a key that the app keeps elsewhere, such as the
//! keychain of the phone.
//!
//! ```text
//! record  1 | nonce 24 | XChaCha20-Poly1305(JSON of the value), the place as associated data
//! ```
//!
//! The nonce is random, so the same state sealed twice does not look the same (24 bytes never
//! repeat by chance; draft-irtf-cfrg-xchacha-03). The place, a table and a row, keeps a record from
//! being moved to another one. An older record of the same place still opens: the database must not
//! be taken back to an older state.

use std::io;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use rand::CryptoRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::fault::Fault;
use super::identity::{Secret, hash};
use super::wire::hex;

/// Seals `value` for the row `place`.
pub fn seal<T: Serialize>(
    key: &Secret,
    place: &[u8],
    value: &T,
    rng: &mut impl CryptoRng,
) -> Vec<u8> {
    let msg = plaintext(value);
    let mut nonce = [0; NONCE_BYTES];
    rng.fill_bytes(&mut nonce);
    let sealed = cipher(key)
        .encrypt(&XNonce::from(nonce), Payload { msg: &msg, aad: place })
        .expect("a record is far below 256 GiB");
    [&[VERSION][..], &nonce, &sealed].concat()
}

/// Name of a row that shows nothing of what is in it to one without the key.
pub fn place<T: Serialize>(key: &Secret, row: &T) -> String {
    let row = plaintext(row);
    hex(&hash("Ringpost row 1", &[key.as_bytes(), &row]))
}

/// Opens what [`seal`] made for the same place with the same key.
pub fn open<T: DeserializeOwned>(key: &Secret, place: &[u8], record: &[u8]) -> Result<T, Fault> {
    let (head, msg) = record.split_at_checked(1 + NONCE_BYTES).ok_or(Fault::SealBroken)?;
    if head[0] != VERSION {
        return Err(Fault::SealBroken);
    }
    let nonce: [u8; NONCE_BYTES] = head[1..].try_into().expect("split there");
    let opened = cipher(key).decrypt(&XNonce::from(nonce), Payload { msg, aad: place });
    let opened = Zeroizing::new(opened.map_err(|_| Fault::SealBroken)?);
    serde_json::from_slice(&opened).map_err(|_| Fault::SealBroken)
}

/// Written into memory of the right size: growing would leave copies of secrets behind.
fn plaintext<T: Serialize>(value: &T) -> Zeroizing<Vec<u8>> {
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value).expect(SERIALIZABLE);
    let mut out = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *out, value).expect(SERIALIZABLE);
    assert_eq!(out.len(), length.0, "the same value has the same length");
    out
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn cipher(key: &Secret) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&Key::from(*key.as_bytes()))
}

const SERIALIZABLE: &str = "states have text keys and no failing parts";
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_open_at_their_place_with_their_key_only() {
        let key = Secret::from_bytes([1; 32]);
        let record = seal(&key, b"pairs/bob", &"state", &mut rand::rng());
        assert_eq!(open(&key, b"pairs/bob", &record), Ok("state".to_owned()));
        let moved = open::<String>(&key, b"pairs/carol", &record);
        assert_eq!(moved, Err(Fault::SealBroken));
        let other = Secret::from_bytes([2; 32]);
        assert_eq!(open::<String>(&other, b"pairs/bob", &record), Err(Fault::SealBroken));
        for at in 0..record.len() {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert_eq!(open::<String>(&key, b"pairs/bob", &bad), Err(Fault::SealBroken));
            let cut = open::<String>(&key, b"pairs/bob", &record[..at]);
            assert_eq!(cut, Err(Fault::SealBroken));
        }
    }

    #[test]
    fn plaintext_is_written_once() {
        let value = vec!["secret"; 1_000];
        let msg = plaintext(&value);
        assert_eq!(msg.capacity(), msg.len());
        assert_eq!(*msg, serde_json::to_vec(&value).unwrap());
    }

    #[test]
    fn same_state_never_looks_the_same_and_shows_nothing() {
        let key = Secret::from_bytes([1; 32]);
        let [a, b] = [(); 2].map(|()| seal(&key, b"place", &"marker", &mut rand::rng()));
        assert_ne!(a, b);
        assert!(!a.windows(6).any(|part| part == b"marker"));
    }
}
