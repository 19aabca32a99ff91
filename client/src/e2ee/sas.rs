//! Verification by a short string: two people compare three numbers that both devices show, and
//! each device then confirms the identities it means. The steps of Matrix's `m.sas.v1`, over
//! vodozemac's `sas`, as one type per step:
//!
//! ```text
//! Asking::start --transaction 16--> Answering::accept
//!        <--commitment 32-- (hash of the key: the answerer cannot choose it later)
//!        --key 32-->        Answering::reveal
//!        <--key 32--        (checked against the commitment)
//! both: Comparing::numbers, the people say "they match", Comparing::confirm --mac 32-->, check
//! ```
//!
//! Somebody in between has one chance in 2^39 to show both sides the same numbers, and each failed
//! try is seen. The keys are drawn by vodozemac from the system.

use ringpost_protocol::id::UserId;
use vodozemac::Curve25519PublicKey;
use vodozemac::sas::{EstablishedSas, Mac, Sas};

use super::fault::Fault;
use super::identity::{PublicIdentity, hash};
use super::wire::{hex, put_user};

/// A user and the identity that a device holds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub user: UserId,
    pub identity: PublicIdentity,
}

/// Who is verified, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct People {
    pub own: Person,
    pub peer: Person,
}

/// The one who asked, before the answer.
pub struct Asking {
    sas: Sas,
    people: People,
    transaction: [u8; 16],
}

/// The one who asked, with the answerer's commitment.
pub struct Committed {
    asking: Asking,
    commitment: [u8; 32],
}

/// The one who was asked.
pub struct Answering {
    sas: Sas,
    people: People,
    transaction: [u8; 16],
}

/// Both have both keys; the people compare.
pub struct Comparing {
    sas: EstablishedSas,
    /// Hash of all that went before, the asker's part first.
    transcript: String,
    people: People,
}

impl Asking {
    /// `transaction`: 16 random bytes, sent to the other side.
    pub fn start(people: People, transaction: [u8; 16]) -> Self {
        Self { sas: Sas::new(), people, transaction }
    }

    /// The other side's commitment came; gives our key, to be sent.
    pub fn reveal(self, commitment: [u8; 32]) -> (Committed, [u8; 32]) {
        let key = self.sas.public_key().to_bytes();
        (Committed { asking: self, commitment }, key)
    }
}

impl Committed {
    /// The other side's key came. [`Fault::CommitmentBroken`] when it is not the one it committed
    /// to.
    pub fn compare(self, key: [u8; 32]) -> Result<Comparing, Fault> {
        let Asking { sas, people, transaction } = self.asking;
        if committed(&transaction, &key) != self.commitment {
            return Err(Fault::CommitmentBroken);
        }
        let own = sas.public_key().to_bytes();
        let transcript = transcript(&transaction, (&people.own, &own), (&people.peer, &key));
        Comparing::new(sas, people, key, transcript)
    }
}

impl Answering {
    /// Answers a start; gives the commitment, to be sent.
    pub fn accept(people: People, transaction: [u8; 16]) -> (Self, [u8; 32]) {
        let sas = Sas::new();
        let commitment = committed(&transaction, sas.public_key().as_bytes());
        (Self { sas, people, transaction }, commitment)
    }

    /// The asker's key came; gives ours, to be sent.
    pub fn reveal(self, key: [u8; 32]) -> Result<(Comparing, [u8; 32]), Fault> {
        let Self { sas, people, transaction } = self;
        let own = sas.public_key().to_bytes();
        let transcript = transcript(&transaction, (&people.peer, &key), (&people.own, &own));
        Ok((Comparing::new(sas, people, key, transcript)?, own))
    }
}

impl Comparing {
    fn new(sas: Sas, people: People, key: [u8; 32], transcript: String) -> Result<Self, Fault> {
        let sas = sas.diffie_hellman(Curve25519PublicKey::from_bytes(key));
        let sas = sas.map_err(|_| Fault::WeakKey("verification"))?;
        Ok(Self { sas, transcript, people })
    }

    /// Three numbers of four digits. Both people see the same or somebody is in between.
    pub fn numbers(&self) -> [u16; 3] {
        self.sas.bytes(&format!("Ringpost sas 1 {}", self.transcript)).decimals().into()
    }

    /// The person says that the numbers match: gives what tells the other device which identities
    /// this one means.
    pub fn confirm(&self) -> Vec<u8> {
        let People { own, peer } = &self.people;
        self.sas.calculate_mac(&meant(own, peer), &self.mac_info(own)).as_bytes().to_vec()
    }

    /// What the other device sent at its [`Self::confirm`]. `Ok`: the peer is verified, if the
    /// person has said here too that the numbers match.
    pub fn check(&self, mac: &[u8]) -> Result<(), Fault> {
        let People { own, peer } = &self.people;
        let mac = Mac::from_slice(mac);
        let checked = self.sas.verify_mac(&meant(peer, own), &self.mac_info(peer), &mac);
        checked.map_err(|_| Fault::VerificationFailed)
    }

    fn mac_info(&self, sender: &Person) -> String {
        format!("Ringpost sas mac 1 {} {}", self.transcript, hex(sender.identity.as_bytes()))
    }
}

fn committed(transaction: &[u8; 16], key: &[u8; 32]) -> [u8; 32] {
    hash("Ringpost sas commitment 1", &[transaction, key])
}

fn transcript(
    transaction: &[u8; 16],
    asker: (&Person, &[u8; 32]),
    answerer: (&Person, &[u8; 32]),
) -> String {
    let mut users = Vec::new();
    put_user(&mut users, &asker.0.user);
    put_user(&mut users, &answerer.0.user);
    // Not the identities: those that differ are to be found by the confirmation, with words.
    hex(&hash("Ringpost sas transcript 1", &[transaction, asker.1, answerer.1, &users]))
}

/// What one side means: itself, and whom it talks to.
fn meant(own: &Person, peer: &Person) -> String {
    hex(&[*own.identity.as_bytes(), *peer.identity.as_bytes()].concat())
}
