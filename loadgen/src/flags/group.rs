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
    pub(crate) devices: u32,
    /// Messages of random members, each of whom sends one after the other.
    #[arg(long, value_name = "K", default_value_t = 1_000)]
    pub(crate) messages: u64,
    /// Bytes of one message.
    #[arg(long, value_name = "B", default_value_t = 200)]
    pub(crate) payload: usize,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

impl GroupFlags {
    pub(crate) fn plan(&self) -> GroupPlan {
        GroupPlan {
            members: self.members,
            devices_per_member: self.devices,
            messages: self.messages,
            payload_bytes: self.payload,
            seed: self.common.seed,
        }
    }
}
