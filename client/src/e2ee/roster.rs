//! The members of a group, signed by an administrator, each list naming the one before by its hash.
//!
//! ```text
//! roster  1 | group | version 8 | parent 32 | count 1 | (user | identity 32 | admin 1)* | signer
//!         | signature 64 by the signer's identity
//! ```
//!
//! Rosters travel from member to member, over the sessions between their devices. The server cannot
//! add a member, nor show two members different lists for long: the hash goes with every
//! [group key](super::group).

use std::collections::{BTreeMap, VecDeque};

use ringpost_protocol::id::UserId;
use serde::{Deserialize, Serialize};

use super::device_list::MemberDevice;
use super::fault::Fault;
use super::identity::{IdentityKey, PublicIdentity, SIGNATURE_BYTES, hash};
use super::wire::{Reader, put_user};
use crate::limits::{GROUP_MEMBERS_MAX, ROSTERS_REMEMBERED_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Of the user.
    pub identity: PublicIdentity,
    pub is_admin: bool,
}

/// What an administrator signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    pub group: UserId,
    /// 1 for the first; rises by 1.
    pub version: u64,
    /// Hash of the roster before; zeroes before the first.
    pub parent: [u8; 32],
    /// 1 to [`GROUP_MEMBERS_MAX`].
    pub members: BTreeMap<UserId, Member>,
}

/// The roster as this device knows it, with the hashes of those before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Roster {
    now: Members,
    hash: [u8; 32],
    /// As it was signed.
    encoded: Vec<u8>,
    /// Hashes of the versions before, newest first.
    before: VecDeque<[u8; 32]>,
}

/// What of a [`Roster`] is kept on disk. The signature was checked before it got there.
#[derive(Serialize, Deserialize)]
struct Stored {
    encoded: Vec<u8>,
    before: VecDeque<[u8; 32]>,
}

struct Signed {
    members: Members,
    signer: UserId,
    body: Vec<u8>,
    signature: [u8; SIGNATURE_BYTES],
}

impl Members {
    pub fn sign(&self, signer: &UserId, key: &IdentityKey) -> Result<Vec<u8>, Fault> {
        let count = self.members.len();
        if count == 0 || count > GROUP_MEMBERS_MAX {
            return Err(Fault::Malformed(WHAT));
        }
        let mut out = vec![VERSION];
        put_user(&mut out, &self.group);
        out.extend(self.version.to_be_bytes());
        out.extend(self.parent);
        out.push(u8::try_from(count).expect("at most GROUP_MEMBERS_MAX"));
        for (user, member) in &self.members {
            put_user(&mut out, user);
            out.extend(member.identity.as_bytes());
            out.push(member.is_admin.into());
        }
        put_user(&mut out, signer);
        out.extend(key.sign(DOMAIN, &out));
        Ok(out)
    }
}

impl Roster {
    /// The first roster this device sees of a group, or the first again after it had left. It must
    /// have come over a session with a device of `voucher`, whose word it is taken on: an
    /// administrator of the group, or the own user, whose identity is known from elsewhere. Who
    /// signed it may have left the group by that; then nobody but the voucher speaks for it.
    pub fn join(
        bytes: &[u8],
        own: (&UserId, &PublicIdentity),
        voucher: (&UserId, &PublicIdentity),
    ) -> Result<Self, Fault> {
        let next = Signed::decode(bytes)?;
        let member = |(user, identity): (&UserId, &PublicIdentity)| {
            next.members.members.get(user).filter(|member| member.identity == *identity)
        };
        let is_trusted = member(voucher).is_some_and(|member| member.is_admin) || voucher == own;
        if !is_trusted {
            return Err(Fault::ForgedRoster);
        }
        match next.members.members.get(&next.signer) {
            Some(signer) if !signer.is_admin => return Err(Fault::ForgedRoster),
            Some(signer) => next.verify(&signer.identity)?,
            None => {}
        }
        if member(own).is_none() {
            return Err(Fault::NotMember);
        }
        let (hash, encoded) = (next.hash(), bytes.to_vec());
        Ok(Self { hash, now: next.members, encoded, before: VecDeque::new() })
    }

    /// The next roster. It is signed by an administrator of this one, or only takes its signer out.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let next = Signed::decode(bytes)?;
        let (known, got) = (self.now.version, next.members.version);
        if next.members.group != self.now.group {
            return Err(Fault::ForgedRoster);
        }
        if got < known {
            return Err(Fault::RosterRolledBack { known, got });
        }
        let hash = next.hash();
        if got == known && hash == self.hash {
            return Ok(());
        }
        let signer = self.now.members.get(&next.signer).ok_or(Fault::ForgedRoster)?;
        next.verify(&signer.identity)?;
        if got != known + 1 || next.members.parent != self.hash {
            return Err(Fault::RosterForked);
        }
        if !signer.is_admin && !self.is_leave(&next) {
            return Err(Fault::ForgedRoster);
        }
        self.before.push_front(self.hash);
        self.before.truncate(ROSTERS_REMEMBERED_MAX);
        (self.now, self.hash, self.encoded) = (next.members, hash, bytes.to_vec());
        Ok(())
    }

    pub fn members(&self) -> &Members {
        &self.now
    }

    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// What another device can [`Self::join`] or [`Self::follow`].
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    pub fn has(&self, user: &UserId) -> bool {
        self.now.members.contains_key(user)
    }

    /// Whether this device may write and read: its user is a member ([`Fault::NotMember`]), and
    /// whoever signed the list that names it is the one whom the administrator meant
    /// ([`Fault::IdentityChanged`]). Else the server could put a list of its own in the place of the
    /// member's, and with it a device that reads along.
    pub fn admits(&self, device: &MemberDevice) -> Result<(), Fault> {
        let member = self.now.members.get(&device.party().address.user);
        match member.ok_or(Fault::NotMember)?.identity == *device.user_identity() {
            true => Ok(()),
            false => Err(Fault::IdentityChanged),
        }
    }

    /// The hash of this version, or of one of the last before it.
    pub(super) fn hash_of(&self, version: u64) -> Option<&[u8; 32]> {
        match self.now.version.checked_sub(version)? {
            0 => Some(&self.hash),
            back => self.before.get(usize::try_from(back - 1).ok()?),
        }
    }

    fn is_leave(&self, next: &Signed) -> bool {
        let mut rest = self.now.members.clone();
        rest.remove(&next.signer);
        rest == next.members.members
    }
}

impl TryFrom<Stored> for Roster {
    type Error = Fault;

    fn try_from(stored: Stored) -> Result<Self, Fault> {
        let Stored { encoded, before } = stored;
        let signed = Signed::decode(&encoded)?;
        Ok(Self { hash: signed.hash(), now: signed.members, encoded, before })
    }
}

impl From<Roster> for Stored {
    fn from(roster: Roster) -> Self {
        Self { encoded: roster.encoded, before: roster.before }
    }
}

impl Signed {
    fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let at = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(Fault::Malformed(WHAT))?;
        let (body, signature) = bytes.split_at(at);
        let mut reader = Reader::new(WHAT, body);
        reader.version(VERSION)?;
        let (group, version) = (reader.user()?, reader.u64()?);
        let (parent, count) = (reader.array()?, reader.u8()?);
        // The last version has no next one.
        if count == 0 || usize::from(count) > GROUP_MEMBERS_MAX || version == u64::MAX {
            return Err(reader.fault());
        }
        let mut members = BTreeMap::new();
        for _ in 0..count {
            let user = reader.user()?;
            if members.last_key_value().is_some_and(|(last, _)| *last >= user) {
                return Err(reader.fault());
            }
            let identity = PublicIdentity::from_bytes(WHAT, reader.array()?)?;
            members.insert(user, Member { identity, is_admin: reader.flag()? });
        }
        let signer = reader.user()?;
        reader.finish()?;
        Ok(Self {
            members: Members { group, version, parent, members },
            signer,
            body: body.to_vec(),
            signature: signature.try_into().expect("split there"),
        })
    }

    fn verify(&self, identity: &PublicIdentity) -> Result<(), Fault> {
        let is_signed = identity.verify(DOMAIN, &self.body, &self.signature);
        if is_signed { Ok(()) } else { Err(Fault::ForgedRoster) }
    }

    fn hash(&self) -> [u8; 32] {
        hash(DOMAIN, &[&self.body])
    }
}

const WHAT: &str = "list of the group's members";
const VERSION: u8 = 1;
const DOMAIN: &str = "Ringpost roster 1";
