//! Who publishes how many keys, and who takes them.

use std::time::Duration;

use anyhow::{Result, ensure};

/// Owners of keys, and takers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysPlan {
    /// Users with one device each that publish keys.
    pub owners: u32,
    /// Users that fetch those of random owners.
    pub takers: u32,
    /// One-time keys in a full stock.
    pub keys: u32,
    /// Fetches of one taker that are unanswered at once.
    pub window: usize,
    /// Of the fetches while owners refill their stocks.
    pub duration: Duration,
    pub seed: u64,
}

impl KeysPlan {
    pub fn check(&self) -> Result<()> {
        ensure!(self.owners >= 1, "--owners must be at least 1");
        ensure!(self.takers >= 1, "--takers must be at least 1");
        ensure!(
            (1..=KEYS_MAX).contains(&self.keys),
            "--keys must be 1 to {KEYS_MAX}: a device has no more in stock"
        );
        ensure!(
            (1..=WINDOW_MAX).contains(&self.window),
            "--window must be 1 to {WINDOW_MAX}: a device may have no more requests unanswered"
        );
        ensure!(
            self.takers as usize * self.window <= UNANSWERED_MAX,
            "--takers x --window must be at most {UNANSWERED_MAX}: a shard refuses more"
        );
        ensure!(!self.duration.is_zero(), "--duration must be above zero");
        Ok(())
    }

    /// Connections.
    pub fn devices(&self) -> u32 {
        self.owners.saturating_add(self.takers)
    }
}

/// The gateway's bounds: the stock of a device, and requests of one connection and of one shard.
const KEYS_MAX: u32 = 1_000;
const WINDOW_MAX: usize = 32;
const UNANSWERED_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_would_refuse_is_refused() {
        let plan = KeysPlan {
            owners: 10,
            takers: 250,
            keys: 1_000,
            window: 4,
            duration: Duration::from_secs(1),
            seed: 1,
        };
        assert!(plan.check().is_ok());
        for wrong in [
            KeysPlan { owners: 0, ..plan.clone() },
            KeysPlan { takers: 0, ..plan.clone() },
            KeysPlan { takers: 251, ..plan.clone() },
            KeysPlan { keys: 1_001, ..plan.clone() },
            KeysPlan { keys: 0, ..plan.clone() },
            KeysPlan { takers: 1, window: 33, ..plan.clone() },
            KeysPlan { duration: Duration::ZERO, ..plan.clone() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
