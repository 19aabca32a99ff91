//! The directory: public keys of devices, signed device lists, rosters of groups. What changes
//! seldom, is read often, and is shared by all shards.
//!
//! ```text
//! shard 0 --DirectoryPort--> \                          / --> inbound queue of shard 0
//! shard 1 --DirectoryPort-->  one queue --> directory --> --> inbound queue of shard 1
//! control (REST) ----------> /              thread      \ --> control
//! ```
//!
//! The thread takes all that waits as one batch, makes one durable commit of it, and only then
//! answers: nothing is acknowledged, and no one-time key handed out, before that is on disk. A shard
//! never waits for it, and has at most [`DIRECTORY_REQUESTS_MAX`] requests unanswered, for whose
//! answers its inbound queue keeps room.
//!
//! [`Directory`] is what stands behind the thread: the one in the data directory ([`Embedded`]), or
//! another one later. What a request means is in `rules`, over tables of bytes, so that it is the
//! same for the embedded one and for the one in memory that tests use ([`InMemory`]).
//!
//! [`DIRECTORY_REQUESTS_MAX`]: crate::limits::DIRECTORY_REQUESTS_MAX

mod request;
mod record;
mod handouts;
mod rules;
mod embedded;
mod memory;
mod thread;
mod counts;

pub use counts::DirectoryMetrics;
pub use embedded::Embedded;
pub(crate) use handouts::Handouts;
pub use memory::InMemory;
pub use request::{Answer, Request, Roster, TakenBundle};
pub use thread::{Answered, ControlPort, DirectoryPort, Running, ShardQueue, start};

/// Keys, device lists and rosters, on something that survives.
pub trait Directory: Send {
    /// Carries out `requests` in their order, and answers each. When it returns, all of it is
    /// durable; after an error none of it may be spoken of, and [`Directory::recover`] comes next.
    /// `now_ms` is monotonic.
    fn apply(&mut self, now_ms: u64, requests: &[Request]) -> Result<Vec<Answer>, DirectoryFault>;

    /// One-time keys of all devices after the last batch.
    fn stock(&self) -> u64;

    /// Tries to become usable again after an error.
    fn recover(&mut self) -> Result<(), DirectoryFault>;
}

/// Why the directory cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryFault {
    #[error("cannot open the directory {}: {error}", path.display())]
    Open { path: std::path::PathBuf, error: redb::Error },
    #[error("cannot create the directory {}: {error}", path.display())]
    Create { path: std::path::PathBuf, error: std::io::Error },
    #[error("the disk of the directory is full")]
    DiskFull,
    #[error("the directory failed: {0}")]
    Failed(redb::Error),
    #[error("the directory has not recovered from its last failure")]
    Closed,
    #[error("cannot start the thread of the directory: {0}")]
    Thread(std::io::Error),
}

impl DirectoryFault {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Open { error: redb::Error::DatabaseAlreadyOpen, .. } => {
                "another process has it open: stop that one"
            }
            Self::Open { error: redb::Error::Io(_), .. } | Self::Create { .. } => {
                "data_dir and what is in it must belong to the user that runs the gateway, and its \
                 disk must have room"
            }
            Self::Open { .. } => {
                "restore the file from a backup of data_dir; if there is none, move it away: devices \
                 publish their keys again, groups and device lists are lost"
            }
            Self::DiskFull => "free room on the file system of data_dir",
            Self::Failed(_) | Self::Closed => {
                "look at the disk of data_dir; what was acknowledged is kept"
            }
            Self::Thread(_) => "raise the limit of threads of this user (TasksMax=, ulimit -u)",
        }
    }
}
