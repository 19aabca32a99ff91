//! The flags of `handover`.

use std::time::Duration;

use clap::Args;
use ringpost_loadgen::plan::ChatPlan;
use ringpost_loadgen::plan::handover::HandoverPlan;

use super::{CommonFlags, seconds};

#[derive(Args)]
pub(crate) struct HandoverFlags {
    /// Connected users; each has one partner.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) connections: u32,
    /// Messages a second of all of them together.
    #[arg(long, value_name = "R", default_value_t = 1_000)]
    pub(crate) rate: u64,
    /// How often each user's network changes.
    #[arg(long, value_name = "K", default_value_t = 10)]
    pub(crate) rebinds: u32,
    /// Seconds, of each transport.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(crate) duration: Duration,
    /// Bytes of one message.
    #[arg(long, value_name = "B", default_value_t = 200)]
    pub(crate) payload: usize,
    /// Seconds to wait for stragglers after the load.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(crate) grace: Duration,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

impl HandoverFlags {
    pub(crate) fn plan(&self) -> HandoverPlan {
        HandoverPlan {
            chat: ChatPlan {
                connections: self.connections,
                rate_per_s: self.rate,
                duration: self.duration,
                payload_bytes: self.payload,
                window: 1,
                kill_rounds: 0,
                seed: self.common.seed,
            },
            rebinds: self.rebinds,
            grace: self.grace,
        }
    }
}
