//! The flags of `group`.

use clap::Args;
use ringpost_loadgen::plan::group::GroupPlan;

use super::CommonFlags;

#[derive(Args)]
pub(crate) struct GroupFlags {
    /// Members of the group, all connected.
    #[arg(long, value_name = "M", default_value_t = 100)]
    pub(crate) members: u32,
    /// Devices of each member.
    #[arg(long, value_name = "D", default_value_t = 1)]
    pub(crate) devices_per_member: u32,
    /// Messages of random members, each of whom sends one after the other.
    #[arg(long, value_name = "K", default_value_t = 1_000)]
    pub(crate) messages: u64,
    /// Bytes of one message.
    #[arg(long, value_name = "B", default_value_t = 200)]
    pub(crate) payload: usize,
    /// Members who are taken out of the group, or come back, while the others send.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) changes: u32,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

impl GroupFlags {
    pub(crate) fn plan(&self) -> GroupPlan {
        GroupPlan {
            members: self.members,
            devices_per_member: self.devices_per_member,
            messages: self.messages,
            payload_bytes: self.payload,
            changes: self.changes,
            seed: self.common.seed,
        }
    }
}
