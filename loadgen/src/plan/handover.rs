//! Clients that change their network while they talk.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{ChatPlan, mix};

/// The chat goes on all the while, in an open loop; first over QUIC, then over TCP.
#[derive(Clone, Debug, PartialEq)]
pub struct HandoverPlan {
    /// Of each of the two.
    pub chat: ChatPlan,
    /// Changes of each client's network.
    pub rebinds: u32,
    /// How long to wait for what is still missing at the end, when nothing comes.
    pub grace: Duration,
}

impl HandoverPlan {
    pub fn check(&self) -> Result<()> {
        self.chat.check()?;
        ensure!(self.chat.rate_per_s > 0, "--rate must be above zero: the loop is open");
        ensure!(self.rebinds >= 1, "--rebinds must be at least 1");
        let per_s = f64::from(self.chat.connections) * f64::from(self.rebinds)
            / self.chat.duration.as_secs_f64();
        ensure!(
            per_s <= REBINDS_PER_S_MAX,
            "{per_s:.0} changes a second of all clients together are too many, \
             {REBINDS_PER_S_MAX} is the limit: raise --duration or lower --rebinds"
        );
        Ok(())
    }

    /// For these connections, by their number in the whole plan: (nanoseconds after the start of the
    /// load, index among them), a random moment in each of equal parts of the duration.
    pub fn changes(&self, connections: &[u32]) -> Vec<(u64, u32)> {
        let part_ns = self.chat.duration.as_nanos() / u128::from(self.rebinds.max(1));
        let part_ns = u64::try_from(part_ns).unwrap_or(u64::MAX);
        let moment = |connection: u32, round: u32| {
            let key = u64::from(connection) << 32 | u64::from(round);
            u64::from(round) * part_ns + mix(self.chat.seed ^ mix(key ^ CHANGES)) % part_ns.max(1)
        };
        (0u32..)
            .zip(connections)
            .flat_map(|(index, &connection)| {
                (0..self.rebinds).map(move |round| (moment(connection, round), index))
            })
            .collect()
    }
}

/// Each leaves a socket behind for a second.
const REBINDS_PER_S_MAX: f64 = 20_000.0;
/// Keeps the random times apart from those of the messages.
const CHANGES: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> HandoverPlan {
        HandoverPlan {
            chat: ChatPlan {
                connections: 100,
                rate_per_s: 100,
                duration: Duration::from_secs(10),
                payload_bytes: 200,
                window: 1,
                kill_rounds: 0,
                seed: 1,
            },
            rebinds: 5,
            grace: Duration::from_secs(10),
        }
    }

    #[test]
    fn each_client_changes_in_each_part_of_the_time() {
        let changes = plan().changes(&[7, 9]);
        assert_eq!(changes.len(), 10);
        for (index, of_one) in
            [0, 1].map(|index| (index, changes.iter().filter(move |row| row.1 == index)))
        {
            for (round, (at_ns, _)) in (0u64..).zip(of_one) {
                let part = round * 2_000_000_000..(round + 1) * 2_000_000_000;
                assert!(part.contains(at_ns), "client {index}, round {round}: {at_ns}");
            }
        }
        assert_ne!(changes[0].0, changes[5].0);
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert!(plan().check().is_ok());
        assert!(HandoverPlan { rebinds: 0, ..plan() }.check().is_err());
        assert!(HandoverPlan { rebinds: 10_000, ..plan() }.check().is_err());
        let closed = ChatPlan { rate_per_s: 0, ..plan().chat };
        assert!(HandoverPlan { chat: closed, ..plan() }.check().is_err());
    }
}
