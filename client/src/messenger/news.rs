//! What the app is told, in its own terms.

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::GapReason;
use serde::{Deserialize, Serialize};

pub use crate::e2ee::clock::MessageId;
pub use crate::e2ee::payload::Conversation;
use crate::event::{EventId, Status};

/// What [`Messenger::next_event`](super::Messenger::next_event) gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Kept in the database, sealed, and given again after a restart, until confirmed with its id.
    News { id: EventId, news: News },
    /// About the connection; not kept.
    Status(Status),
}

/// News that must not be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    Text(Text),
    /// The server has stored it for the recipients: one tick.
    Sent {
        message: MessageId,
    },
    /// It will never be sent; `reason` is a sentence for the user.
    NotSent {
        message: MessageId,
        reason: String,
    },
    /// A device of `by` has these: two ticks.
    Delivered {
        conversation: Conversation,
        messages: Vec<MessageId>,
        by: UserId,
    },
    /// `by` has looked at these. The own user: on another of our devices.
    Read {
        conversation: Conversation,
        messages: Vec<MessageId>,
        by: UserId,
    },
    /// Fleeting; nothing to keep.
    Typing {
        conversation: Conversation,
        by: UserId,
        is_typing: bool,
    },
    /// This contact's identity is another one than before; nothing is sent to it, and nothing of it
    /// is shown, until [`Messenger::accept_identity`](super::Messenger::accept_identity).
    IdentityChanged {
        user: UserId,
        reason: String,
    },
    /// The server offered keys or a list that it had forged, or one of the past. Nothing was used.
    Refused {
        user: UserId,
        reason: String,
    },
    /// A message came that cannot be shown; `reason` is a sentence for the user. So is what a member
    /// wrote before being removed, where the removal was heard of first: only the server knows which
    /// of the two came first, and could otherwise let somebody who was removed go on speaking.
    Undecryptable {
        from: DeviceAddress,
        group: Option<UserId>,
        reason: String,
    },
    /// Messages to us are missing: the server could not keep them.
    Missing {
        group: Option<UserId>,
        reason: Loss,
    },
    /// This contact wants to compare numbers:
    /// [`Messenger::start_verification`](super::Messenger::start_verification) agrees.
    VerificationAsked {
        user: UserId,
    },
    /// To be compared with those that `user` sees, side by side or by voice, and then
    /// [`Messenger::finish_verification`](super::Messenger::finish_verification). Three numbers of
    /// four digits. They are gone after a restart.
    Compare {
        user: UserId,
        numbers: [u16; 3],
    },
    /// Both people saw the same numbers, and each device means the identities that the other one means.
    Verified {
        user: UserId,
    },
    /// The comparison has come to nothing; `reason` is a sentence for the user.
    VerificationFailed {
        user: UserId,
        reason: String,
    },
    /// This device is one of the user's now; contacts and groups follow.
    Linked,
    /// These are the user's devices from now on: one was linked or removed, here or on another one. A
    /// user who did neither has lost the identity key to somebody.
    Devices {
        devices: Vec<DeviceId>,
    },
    /// A group has these members now. `is_member` false: we are no longer one of them.
    Group {
        group: UserId,
        members: Vec<UserId>,
        is_member: bool,
    },
    /// The server did not do what was asked for this group; `reason` is a sentence.
    GroupRefused {
        group: UserId,
        reason: String,
    },
}

/// A message of a person.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    pub id: MessageId,
    pub conversation: Conversation,
    /// The own user when it was written on another of our devices.
    pub from: UserId,
    pub text: String,
    /// Sort by this and then by the id: every member's app shows the same order, and no answer stands
    /// before its question.
    pub time: u64,
    /// Messages that the writer had seen last and that are not here, or too old to be remembered.
    pub missing: Vec<MessageId>,
    /// The writer's clock, Unix milliseconds.
    pub written_ms: u64,
    /// When the server stored it, Unix milliseconds.
    pub sent_at_ms: u64,
    /// The writer did not know the last change of the group's members: one who was removed by it may
    /// have read this.
    pub is_for_old_members: bool,
}

/// Why messages are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    MailboxFull,
    Expired,
    Damaged,
}

impl From<GapReason> for Loss {
    fn from(reason: GapReason) -> Self {
        match reason {
            GapReason::Full => Self::MailboxFull,
            GapReason::Expired => Self::Expired,
            GapReason::Damaged | GapReason::Unspecified => Self::Damaged,
        }
    }
}

impl std::fmt::Debug for Text {
    /// Never shows what was written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text")
            .field("conversation", &self.conversation)
            .field("from", &self.from)
            .field("text_bytes", &self.text.len())
            .finish_non_exhaustive()
    }
}
