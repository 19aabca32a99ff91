//! Tickets with which a client resumes its session, on whichever shard, and after a restart too: their
//! keys come from a secret that outlives the process, a new one every six hours.
//!
//! A resumed session has a key exchange of its own, so who learns the secret later reads nothing of
//! what was said. Until it is changed they could show a ticket's owner a false gateway, as with the
//! key of the certificate.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf;
use rustls::server::ProducesTickets;

/// Makes and opens tickets.
pub(super) struct Tickets {
    root: hkdf::Prk,
}

impl Tickets {
    pub(super) fn from_secret(secret: &[u8]) -> Self {
        Self { root: hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret) }
    }

    /// The key of one period, made when it is needed: two hashes, where a handshake costs a thousand.
    fn key(&self, period: u64) -> RandomizedNonceKey {
        let mut key = [0; 32];
        let info = [&b"ticket"[..], &period.to_be_bytes()];
        let filled = self.root.expand(&info, &AES_256_GCM).and_then(|okm| okm.fill(&mut key));
        filled.expect("a key is far shorter than what one expansion gives");
        RandomizedNonceKey::new(&AES_256_GCM, &key).expect("its length is right")
    }

    fn seal(&self, plain: &[u8], unix_s: u64) -> Option<Vec<u8>> {
        let period = unix_s / PERIOD_S;
        let name = period.to_be_bytes();
        let mut sealed = plain.to_vec();
        let key = self.key(period);
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        Some([&name, &nonce.as_ref()[..], &sealed].concat())
    }

    /// `None`: it is none of ours, or too old. The client gets a full handshake.
    fn open(&self, ticket: &[u8], unix_s: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<8>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let period = u64::from_be_bytes(*name);
        if (unix_s / PERIOD_S).checked_sub(period)? > 1 {
            return None;
        }
        let mut plain = sealed.to_vec();
        let (nonce, aad) = (Nonce::from(nonce), Aad::from(*name));
        let length = self.key(period).open_in_place(nonce, aad, &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// As long as the one that is given out last in its period is good.
    fn lifetime(&self) -> u32 {
        u32::try_from(PERIOD_S).expect("hours")
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, unix_s())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, unix_s())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

const SALT: &[u8] = b"ringpost tls tickets 1";
/// How long one key makes tickets. They are good in the next period too.
const PERIOD_S: u64 = 6 * 3_600;
const NONCE_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_across_a_restart_and_one_change_of_the_key() {
        let tickets = Tickets::from_secret(&[1; 32]);
        let ticket = tickets.seal(b"session", 10 * PERIOD_S).unwrap();
        let again = Tickets::from_secret(&[1; 32]);
        for later_s in [0, PERIOD_S - 1, PERIOD_S, 2 * PERIOD_S - 1] {
            assert_eq!(again.open(&ticket, 10 * PERIOD_S + later_s).unwrap(), b"session");
        }
        assert_eq!(again.open(&ticket, 12 * PERIOD_S), None, "two changes later");
        assert_eq!(again.open(&ticket, 10 * PERIOD_S - 1), None, "of a clock that went back");
        assert_eq!(Tickets::from_secret(&[2; 32]).open(&ticket, 10 * PERIOD_S), None);
        assert_ne!(tickets.seal(b"session", 10 * PERIOD_S).unwrap(), ticket, "each is its own");
    }

    #[test]
    fn a_ticket_that_was_touched_opens_nothing() {
        let tickets = Tickets::from_secret(&[1; 32]);
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).unwrap(), b"session");
        for index in 0..ticket.len() {
            let mut touched = ticket.clone();
            touched[index] ^= 1;
            assert_eq!(tickets.decrypt(&touched), None, "byte {index}");
            assert_eq!(tickets.decrypt(&ticket[..index]), None);
        }
    }
}
