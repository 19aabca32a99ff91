//! End-to-end encryption, without network, clock or storage: bytes, keys and the time in, bytes out.
//!
//! What it is: *X3DH (Signal, revision 1) with Ed25519 identities as in OMEMO 2, followed by the
//! Double Ratchet of Olm as vodozemac implements it; groups use Megolm, a sender-key scheme.* It is
//! not compatible with Signal on the wire. The server sees public keys, signatures that it need not
//! check, and ciphertext.
//!
//! [`Messenger`](crate::messenger::Messenger) uses it; [`Client::send`](crate::Client::send) does not.
//!
//! Randomness for identities, prekeys, ephemeral keys and nonces is the caller's; the later keys of
//! a ratchet and those of groups are drawn by vodozemac from the system.

pub mod fault;
pub mod identity;
pub mod bundle;
pub mod prekey;
pub mod pair;
pub mod device_list;
pub mod roster;
pub mod group;
pub mod safety;
pub mod sas;
pub mod payload;
pub mod clock;
pub mod seal;

mod session;
mod wire;
mod x3dh;

pub use bundle::Bundle;
pub use device_list::{Contact, DeviceList, MemberDevice};
pub use fault::Fault;
pub use group::{GroupReceiver, GroupSender, Opened};
pub use identity::{IdentityKey, PublicIdentity};
pub use pair::{OwnKeys, Pair, PairState, Party};
pub use payload::{Content, Payload};
pub use prekey::PreKeys;
pub use roster::Roster;
pub(crate) use session::is_first;
pub(crate) use wire::{hex, unhex};
