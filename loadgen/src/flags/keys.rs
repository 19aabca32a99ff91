//! The flags of `keys`.

use std::time::Duration;

use clap::Args;
use ringpost_loadgen::plan::keys::KeysPlan;

use super::{CommonFlags, seconds};

#[derive(Args)]
pub(crate) struct KeysFlags {
    /// Users who publish keys, of one device each.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) owners: u32,
    /// Users who fetch those of random owners.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) takers: u32,
    /// One-time keys in a full stock.
    #[arg(long, value_name = "K", default_value_t = 500)]
    pub(crate) keys: u32,
    /// Fetches of one taker that are unanswered at once.
    #[arg(long, value_name = "W", default_value_t = 4)]
    pub(crate) window: usize,
    /// Seconds for which keys are fetched and refilled, before the stocks are emptied.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

impl KeysFlags {
    pub(crate) fn plan(&self) -> KeysPlan {
        KeysPlan {
            owners: self.owners,
            takers: self.takers,
            keys: self.keys,
            window: self.window,
            duration: self.duration,
            seed: self.common.seed,
        }
    }
}
