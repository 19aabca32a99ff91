//! Keys of QUIC packets that are small while nobody uses them.
//!
//! A key that is ready for use is a key schedule and tables: more than two kilobytes for the four
//! keys of a connection, most of which are idle. Here a key is its secret, and what is made of the
//! secrets that were used last is kept by each thread, in bounded number. To make one ready costs a
//! quarter of a microsecond, the first time in a burst of packets.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead;
use rustls::crypto::cipher::{AeadKey, Iv, Nonce};
use rustls::quic::{self, Tag};
use rustls::{CipherSuite, CipherSuiteCommon, Error, SupportedCipherSuite, Tls13CipherSuite};
use zeroize::Zeroize;

/// The same suite, with keys of this file under QUIC. TLS over TCP is not changed.
pub(super) fn with_small_keys(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let small = SUITES.iter().find(|small| small.common.suite == suite.suite());
    small.map_or(suite, SupportedCipherSuite::Tls13)
}

static SUITES: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let suites = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
    suites.iter().filter_map(|suite| suite.tls13()).filter_map(small).collect()
});

fn small(suite: &Tls13CipherSuite) -> Option<Tls13CipherSuite> {
    let algorithm = match suite.common.suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => &AES_128,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => &AES_256,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => &CHACHA20,
        _ => return None,
    };
    Some(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: suite.common.confidentiality_limit,
        },
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: Some(algorithm),
    })
}

/// How the packets of a suite are sealed.
struct Algorithm {
    packet: &'static aead::Algorithm,
    header: &'static aead::quic::Algorithm,
    /// Packets under one key, sealed and forged: RFC 9001, section 6.6.
    sealed_max: u64,
    forged_max: u64,
}

static AES_128: Algorithm = Algorithm {
    packet: &aead::AES_128_GCM,
    header: &aead::quic::AES_128,
    sealed_max: 1 << 23,
    forged_max: 1 << 52,
};
static AES_256: Algorithm = Algorithm {
    packet: &aead::AES_256_GCM,
    header: &aead::quic::AES_256,
    sealed_max: 1 << 23,
    forged_max: 1 << 52,
};
static CHACHA20: Algorithm = Algorithm {
    packet: &aead::CHACHA20_POLY1305,
    header: &aead::quic::CHACHA20,
    sealed_max: u64::MAX,
    forged_max: 1 << 36,
};

impl quic::Algorithm for Algorithm {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn quic::PacketKey> {
        let (algorithm, secret) = (self.shared(), Secret::new(&key));
        let iv = iv.as_ref().try_into().expect("a nonce has one length");
        Box::new(PacketKey { algorithm, secret, iv })
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn quic::HeaderProtectionKey> {
        Box::new(HeaderKey { algorithm: self.shared(), secret: Secret::new(&key) })
    }

    fn aead_key_len(&self) -> usize {
        self.packet.key_len()
    }
}

impl Algorithm {
    fn shared(&self) -> &'static Self {
        let all = [&AES_128, &AES_256, &CHACHA20];
        all.into_iter().find(|one| one.packet == self.packet).expect("there are no others")
    }
}

struct Secret {
    /// No two are the same: what is kept is found by it.
    id: u64,
    bytes: [u8; SECRET_BYTES_MAX],
}

impl Secret {
    fn new(key: &AeadKey) -> Self {
        let mut bytes = [0; SECRET_BYTES_MAX];
        bytes[..key.as_ref().len()].copy_from_slice(key.as_ref());
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), bytes }
    }
}

struct PacketKey {
    algorithm: &'static Algorithm,
    secret: Secret,
    iv: [u8; NONCE_BYTES],
}

impl PacketKey {
    fn nonce(&self, packet: u64) -> aead::Nonce {
        aead::Nonce::assume_unique_for_key(Nonce::new(&Iv::from(self.iv), packet).0)
    }

    fn with<T>(&self, call: impl FnOnce(&aead::LessSafeKey) -> T) -> T {
        let make = || {
            let bytes = &self.secret.bytes[..self.algorithm.packet.key_len()];
            let key = aead::UnboundKey::new(self.algorithm.packet, bytes);
            aead::LessSafeKey::new(key.expect("rustls asked for its length"))
        };
        PACKET_KEYS.with_borrow_mut(|keys| call(keys.get(self.secret.id, make)))
    }
}

impl quic::PacketKey for PacketKey {
    fn encrypt_in_place(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut [u8],
    ) -> Result<Tag, Error> {
        let (nonce, header) = (self.nonce(packet), aead::Aad::from(header));
        let sealed = self.with(|key| key.seal_in_place_separate_tag(nonce, header, payload));
        sealed.map(|tag| Tag::from(tag.as_ref())).map_err(|_| Error::EncryptError)
    }

    fn decrypt_in_place<'a>(
        &self,
        packet: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        let (nonce, header) = (self.nonce(packet), aead::Aad::from(header));
        let opened =
            self.with(|key| key.open_in_place(nonce, header, payload).map(|data| data.len()));
        let length_bytes = opened.map_err(|_| Error::DecryptError)?;
        Ok(&payload[..length_bytes])
    }

    fn tag_len(&self) -> usize {
        self.algorithm.packet.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.algorithm.sealed_max
    }

    fn integrity_limit(&self) -> u64 {
        self.algorithm.forged_max
    }
}

impl Drop for PacketKey {
    fn drop(&mut self) {
        // After the thread's own end there is nothing left to forget.
        let _ = PACKET_KEYS.try_with(|keys| keys.borrow_mut().forget(self.secret.id));
        self.secret.bytes.zeroize();
        self.iv.zeroize();
    }
}

struct HeaderKey {
    algorithm: &'static Algorithm,
    secret: Secret,
}

impl HeaderKey {
    /// RFC 9001, section 5.4.1.
    fn apply(
        &self,
        sample: &[u8],
        first: &mut u8,
        number: &mut [u8],
        is_protected: bool,
    ) -> Result<(), Error> {
        let make = || {
            let bytes = &self.secret.bytes[..self.algorithm.header.key_len()];
            let key = aead::quic::HeaderProtectionKey::new(self.algorithm.header, bytes);
            key.expect("rustls asked for its length")
        };
        let mask =
            HEADER_KEYS.with_borrow_mut(|keys| keys.get(self.secret.id, make).new_mask(sample));
        let [first_mask, number_mask @ ..] =
            mask.map_err(|_| Error::General("a sample of another length".into()))?;
        if number.len() > number_mask.len() {
            return Err(Error::General("a longer packet number than there is".into()));
        }
        let changed = *first ^ (first_mask & if *first & LONG_HEADER == 0 { 0x1f } else { 0x0f });
        // How long the number is stands under the protection too.
        let clear = if is_protected { changed } else { *first };
        let number_bytes = usize::from(clear & 0x03) + 1;
        *first = changed;
        for (byte, mask) in number.iter_mut().zip(number_mask).take(number_bytes) {
            *byte ^= mask;
        }
        Ok(())
    }
}

impl quic::HeaderProtectionKey for HeaderKey {
    fn encrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, number, false)
    }

    fn decrypt_in_place(
        &self,
        sample: &[u8],
        first: &mut u8,
        number: &mut [u8],
    ) -> Result<(), Error> {
        self.apply(sample, first, number, true)
    }

    fn sample_len(&self) -> usize {
        self.algorithm.header.sample_len()
    }
}

impl Drop for HeaderKey {
    fn drop(&mut self) {
        let _ = HEADER_KEYS.try_with(|keys| keys.borrow_mut().forget(self.secret.id));
        self.secret.bytes.zeroize();
    }
}

/// What was made of the secrets that a thread used last. A secret has one place, which it shares:
/// those of connections that talk at the same time follow each other, and so are at different ones.
struct Ready<K> {
    places: Vec<Option<Box<(u64, K)>>>,
}

impl<K> Ready<K> {
    const fn new() -> Self {
        Self { places: Vec::new() }
    }

    fn get(&mut self, id: u64, make: impl FnOnce() -> K) -> &K {
        if self.places.is_empty() {
            self.places.resize_with(READY_KEYS_MAX, || None);
        }
        let place = &mut self.places[place_of(id)];
        let kept = match place.take() {
            Some(kept) if kept.0 == id => kept,
            _ => Box::new((id, make())),
        };
        &place.insert(kept).1
    }

    fn forget(&mut self, id: u64) {
        if let Some(place) = self.places.get_mut(place_of(id))
            && place.as_ref().is_some_and(|kept| kept.0 == id)
        {
            *place = None;
        }
    }
}

fn place_of(id: u64) -> usize {
    let places = READY_KEYS_MAX as u64;
    usize::try_from(id % places).expect("below the number of places")
}

thread_local! {
    static PACKET_KEYS: RefCell<Ready<aead::LessSafeKey>> = const { RefCell::new(Ready::new()) };
    static HEADER_KEYS: RefCell<Ready<aead::quic::HeaderProtectionKey>> =
        const { RefCell::new(Ready::new()) };
}

/// Shared by all threads: a key may be used by another one than that which made it.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Of each kind, and of each thread: with both, about a megabyte.
const READY_KEYS_MAX: usize = 1024;
const SECRET_BYTES_MAX: usize = 32;
const NONCE_BYTES: usize = 12;
const LONG_HEADER: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    fn packet_key(number: usize) -> Box<dyn quic::PacketKey> {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        quic::Algorithm::packet_key(&AES_256, AeadKey::from(key), Iv::from([7; 12]))
    }

    fn from_hex<const N: usize>(text: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..][..2], 16).unwrap())
    }

    /// RFC 9001, appendix A.5.
    #[test]
    fn the_packet_of_the_standard() {
        let key = AeadKey::from(from_hex::<32>(
            "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8",
        ));
        let iv = Iv::from(from_hex::<12>("e0459b3474bdd0e44a41c144"));
        let header_key = AeadKey::from(from_hex::<32>(
            "25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4",
        ));
        let key = quic::Algorithm::packet_key(&CHACHA20, key, iv);
        let header_key = quic::Algorithm::header_protection_key(&CHACHA20, header_key);

        let (mut header, mut payload) = (from_hex::<4>("4200bff4"), vec![1]);
        let tag = key.encrypt_in_place(654_360_564, &header, &mut payload).unwrap();
        payload.extend_from_slice(tag.as_ref());
        let sample = payload[1..17].to_vec();
        let [first, number @ ..] = &mut header;
        header_key.encrypt_in_place(&sample, first, number).unwrap();
        let packet = [&header[..], &payload].concat();
        assert_eq!(packet, from_hex::<21>("4cfe4189655e5cd55c41f69080575d7999c25a5bfb"));

        // The receiver does not know yet how long the number is, and offers all that may be of it.
        let [first, rest @ ..] = &mut packet.clone()[..] else { panic!("it has bytes") };
        header_key.decrypt_in_place(&sample, first, &mut rest[..4]).unwrap();
        assert_eq!([&[*first], &rest[..3]].concat(), from_hex::<4>("4200bff4"));
        assert_eq!(rest[3..], payload[..]);
        assert_eq!(
            key.decrypt_in_place(654_360_564, &[0x42, 0, 0xbf, 0xf4], &mut payload),
            Ok(&[1][..])
        );
        assert!(header_key.encrypt_in_place(&sample[1..], first, &mut rest[..3]).is_err());
        assert!(header_key.encrypt_in_place(&sample, first, &mut rest[..5]).is_err());
    }

    /// More keys than are kept ready, in every order: each opens what it sealed, and nothing else.
    #[test]
    fn keys_that_share_a_place_are_not_mixed_up() {
        let keys: Vec<_> = (0..3 * READY_KEYS_MAX).map(packet_key).collect();
        let sealed = |key: &dyn quic::PacketKey| {
            let mut payload = b"hello".to_vec();
            let tag = key.encrypt_in_place(7, b"header", &mut payload).unwrap();
            payload.extend_from_slice(tag.as_ref());
            payload
        };
        let packets: Vec<_> = keys.iter().map(|key| sealed(&**key)).collect();
        for round in [1, 1025, 5] {
            for at in 0..keys.len() {
                let at = at * round % keys.len();
                let mut payload = packets[at].clone();
                assert_eq!(
                    keys[at].decrypt_in_place(7, b"header", &mut payload),
                    Ok(&b"hello"[..])
                );
                let other = (at + 1) % keys.len();
                let mut payload = packets[at].clone();
                assert!(keys[other].decrypt_in_place(7, b"header", &mut payload).is_err());
            }
        }
        PACKET_KEYS.with_borrow(|ready| {
            assert_eq!(ready.places.iter().flatten().count(), READY_KEYS_MAX);
        });
        drop(keys);
        PACKET_KEYS.with_borrow(|ready| assert_eq!(ready.places.iter().flatten().count(), 0));
    }

    #[test]
    fn keys_are_small_and_every_suite_has_them() {
        assert!(size_of::<PacketKey>() <= 64 && size_of::<HeaderKey>() <= 48);
        for suite in rustls::crypto::aws_lc_rs::default_provider().cipher_suites {
            let small = with_small_keys(suite);
            assert_eq!(small, suite);
            let (small, suite) = (small.tls13().unwrap(), suite.tls13().unwrap());
            let (small, large) = (small.quic.unwrap(), suite.quic.unwrap());
            assert_eq!(small.aead_key_len(), large.aead_key_len());
            if small.aead_key_len() == SECRET_BYTES_MAX {
                let make = |by: &dyn quic::Algorithm| {
                    by.packet_key(AeadKey::from([9; 32]), Iv::from([9; 12]))
                };
                let (small, large) = (make(small), make(large));
                assert_eq!(small.confidentiality_limit(), large.confidentiality_limit());
                assert_eq!(small.integrity_limit(), large.integrity_limit());
                assert_eq!(small.tag_len(), large.tag_len());
            }
        }
    }
}
