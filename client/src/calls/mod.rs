//! Calls: what is asked of the server and answered at once, about keys, device lists and groups.
//! Unlike a message nothing of it is kept in the database.
//!
//! A call that is made without a connection waits for one. Each ends with its answer, with the loss of
//! the connection that it was sent on, or after [`CALL_MS_MAX`]. What is to be known before one is
//! repeated after [`CallError::ConnectionLost`] or [`CallError::TimedOut`], as it may have been done:
//!
//! | call | repeated |
//! |---|---|
//! | `key_count`, `device_list`, `group_get` | changes nothing; sent again by itself when a connection is lost |
//! | `fetch_keys` | safe; each time takes another one-time key of every device |
//! | `publish_keys` | safe with the same keys: the server leaves out one-time keys whose numbers it has had |
//! | `put_device_list` | refused with CONFLICT when it was done: read the list |
//! | `group_create` | safe with the same members |
//! | `group_add`, `group_remove` | safe with version 0; otherwise CONFLICT when it was done: read the group |
//! | `group_leave` | refused with NOT_FOUND or NOT_ALLOWED when it was done |

use ringpost_protocol::id::{DeviceId, UserId};
use ringpost_protocol::message::{
    Call, DeviceList, DeviceListPut, ErrorCode, GroupState, KeyBundle, KeysPublish, Reply,
};
use ringpost_protocol::session::CallRefused;
use tokio::sync::oneshot;

use crate::Client;
use crate::driver::Command;
use crate::limits::{CALL_MS_MAX, CALLS_MAX};

pub(crate) mod table;

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server has decided. `text` is for a developer.
    #[error("the server refuses ({code:?}): {text}")]
    Refused { code: ErrorCode, text: String },
    #[error("this server does not serve such calls")]
    Unsupported,
    /// It was sent; whether it was done is not known.
    #[error("the connection was lost before the answer came")]
    ConnectionLost,
    /// When `was_sent`, it is not known whether it was done.
    #[error("no answer within {CALL_MS_MAX} ms")]
    TimedOut { was_sent: bool },
    #[error("{CALLS_MAX} calls wait for their answers already")]
    TooMany,
    /// It was not sent: the server would have ended the connection.
    #[error(transparent)]
    Invalid(#[from] CallRefused),
    #[error("the server gave an answer to something else")]
    WrongReply,
    #[error("the client is closed")]
    Closed,
}

impl CallError {
    /// Whether the same call may succeed a while later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::ConnectionLost | Self::TimedOut { .. } | Self::TooMany => true,
            Self::Refused { code, .. } => *code == ErrorCode::LimitReached,
            Self::Unsupported | Self::Invalid(_) | Self::WrongReply | Self::Closed => false,
        }
    }
}

impl Client {
    /// Adds one-time keys of this device to its stock at the server, and replaces what else is there.
    pub async fn publish_keys(&self, keys: KeysPublish) -> Result<(), CallError> {
        done(self.call(Call::KeysPublish(keys)).await?)
    }

    /// Takes one bundle for each device of a user, or of those named: at most 16, each once. A device
    /// that has published nothing is missing from the answer.
    pub async fn fetch_keys(
        &self,
        user: UserId,
        devices: Vec<DeviceId>,
    ) -> Result<Vec<KeyBundle>, CallError> {
        match self.call(Call::KeysFetch { user, devices }).await? {
            Reply::KeyBundles { bundles, .. } => Ok(bundles),
            _ => Err(CallError::WrongReply),
        }
    }

    /// One-time keys of this device that the server still has.
    pub async fn key_count(&self) -> Result<u32, CallError> {
        match self.call(Call::KeyCount).await? {
            Reply::KeysLow { remaining_count } => Ok(remaining_count),
            _ => Err(CallError::WrongReply),
        }
    }

    /// Stores this user's signed device list. CONFLICT: the stored version is not one below.
    pub async fn put_device_list(&self, list: DeviceListPut) -> Result<(), CallError> {
        done(self.call(Call::DeviceListPut(list)).await?)
    }

    /// The device list of a user as the server has it; the signature is the caller's to check.
    pub async fn device_list(&self, user: UserId) -> Result<DeviceList, CallError> {
        match self.call(Call::DeviceListGet { user }).await? {
            Reply::DeviceList(list) => Ok(list),
            _ => Err(CallError::WrongReply),
        }
    }

    /// Makes a group of this user, its administrator, and at most 99 others.
    pub async fn group_create(
        &self,
        group: UserId,
        members: Vec<UserId>,
    ) -> Result<GroupState, CallError> {
        roster(self.call(Call::GroupCreate { group, members }).await?)
    }

    /// Adds members, or makes members administrators. `version`: that of the roster the change
    /// starts from; 0: whatever it is.
    pub async fn group_add(
        &self,
        group: UserId,
        members: Vec<UserId>,
        as_admins: bool,
        version: u64,
    ) -> Result<GroupState, CallError> {
        roster(self.call(Call::GroupAdd { group, members, as_admins, version }).await?)
    }

    /// Removes members; once answered nothing that is sent to the group reaches them. `version` as
    /// above.
    pub async fn group_remove(
        &self,
        group: UserId,
        members: Vec<UserId>,
        version: u64,
    ) -> Result<GroupState, CallError> {
        roster(self.call(Call::GroupRemove { group, members, version }).await?)
    }

    /// Leaves a group.
    pub async fn group_leave(&self, group: UserId) -> Result<(), CallError> {
        done(self.call(Call::GroupLeave { group }).await?)
    }

    /// The roster of a group as the server has it.
    pub async fn group_get(&self, group: UserId) -> Result<GroupState, CallError> {
        roster(self.call(Call::GroupGet { group }).await?)
    }

    /// Any call. The reply is of the kind that answers it. Dropping the future does not take the call
    /// back.
    pub async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Call(call, reply)).await.map_err(|_| CallError::Closed)?;
        answer.await.unwrap_or(Err(CallError::Closed))
    }
}

fn done(reply: Reply) -> Result<(), CallError> {
    if reply == Reply::Done { Ok(()) } else { Err(CallError::WrongReply) }
}

fn roster(reply: Reply) -> Result<GroupState, CallError> {
    match reply {
        Reply::GroupState(state) => Ok(state),
        _ => Err(CallError::WrongReply),
    }
}
