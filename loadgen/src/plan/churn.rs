//! Clients that vanish and return, a gateway that is killed, apps that are killed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{ChatPlan, random_times};

/// The chat goes on all the while, in an open loop.
#[derive(Clone, Debug, PartialEq)]
pub struct ChurnPlan {
    pub chat: ChatPlan,
    /// Clients a second, of all together, that vanish without a word.
    pub vanish_per_s: f64,
    /// They return after a random time up to this one.
    pub absence_max: Duration,
    /// How long to wait for what is still missing at the end, when nothing comes.
    pub grace: Duration,
    /// How often our own gateway is killed and started again.
    pub kill_gateway_rounds: u32,
    /// How often one of the processes with durable clients is killed and started again.
    pub kill_client_rounds: u32,
    /// Processes with durable clients; 0: none.
    pub client_processes: u32,
    pub users_per_process: u32,
    /// Messages a second of all durable clients together.
    pub durable_rate_per_s: u64,
}

impl ChurnPlan {
    pub fn check(&self) -> Result<()> {
        self.chat.check()?;
        ensure!(self.chat.rate_per_s > 0, "--rate must be above zero: the loop is open");
        ensure!(
            self.vanish_per_s >= 0.0 && self.vanish_per_s <= VANISH_PER_S_MAX,
            "--vanish must be 0 to {VANISH_PER_S_MAX} a second"
        );
        if self.client_processes > 0 {
            ensure!(
                (2..=PROCESSES_MAX).contains(&self.client_processes),
                "--client-processes must be 0 or 2 to {PROCESSES_MAX}: each talks to another one"
            );
            ensure!(
                (1..=USERS_MAX).contains(&self.users_per_process),
                "--users-per-process must be 1 to {USERS_MAX}"
            );
            ensure!(self.durable_rate_per_s > 0, "--durable-rate must be above zero");
        }
        ensure!(
            self.kill_client_rounds == 0 || self.client_processes > 0,
            "--kill-client-rounds needs --client-processes"
        );
        Ok(())
    }

    /// When to kill the gateway.
    pub fn gateway_kills(&self) -> Vec<Duration> {
        random_times(self.chat.seed ^ GATEWAY, self.chat.duration, self.kill_gateway_rounds)
    }

    /// When to kill an app.
    pub fn client_kills(&self) -> Vec<Duration> {
        random_times(self.chat.seed ^ CLIENT, self.chat.duration, self.kill_client_rounds)
    }

    /// Nanoseconds between two clients of one thread that vanish.
    pub fn vanish_interval_ns(&self, threads: usize) -> Option<u64> {
        #[expect(clippy::cast_possible_truncation, reason = "positive and far below 2^53")]
        let interval = |rate: f64| (threads as f64 * 1e9 / rate) as u64;
        (self.vanish_per_s > 0.0).then(|| interval(self.vanish_per_s))
    }

    /// Between two messages of one durable client.
    pub fn durable_interval(&self) -> Duration {
        let users = f64::from(self.client_processes * self.users_per_process);
        Duration::from_secs_f64(users / self.durable_rate_per_s.max(1) as f64)
    }
}

/// Old sockets are held for a while: more would need too many of them.
const VANISH_PER_S_MAX: f64 = 1_000.0;
const PROCESSES_MAX: u32 = 64;
const USERS_MAX: u32 = 256;
/// Keep the random times apart.
const GATEWAY: u64 = 1 << 40;
const CLIENT: u64 = 1 << 41;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> ChurnPlan {
        ChurnPlan {
            chat: ChatPlan {
                connections: 100,
                rate_per_s: 100,
                duration: Duration::from_secs(60),
                payload_bytes: 200,
                window: 1,
                kill_rounds: 0,
                seed: 1,
            },
            vanish_per_s: 10.0,
            absence_max: Duration::from_secs(2),
            grace: Duration::from_secs(30),
            kill_gateway_rounds: 20,
            kill_client_rounds: 30,
            client_processes: 4,
            users_per_process: 5,
            durable_rate_per_s: 100,
        }
    }

    #[test]
    fn kills_are_spread_and_not_the_same() {
        let plan = plan();
        assert!(plan.check().is_ok());
        assert_eq!((plan.gateway_kills().len(), plan.client_kills().len()), (20, 30));
        assert!(plan.gateway_kills().is_sorted());
        assert!(plan.gateway_kills().iter().all(|at| *at < plan.chat.duration));
        assert_eq!(plan.vanish_interval_ns(2), Some(200_000_000));
        assert_eq!(plan.durable_interval(), Duration::from_millis(200));
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert!(ChurnPlan { client_processes: 1, ..plan() }.check().is_err());
        assert!(ChurnPlan { client_processes: 0, ..plan() }.check().is_err());
        assert!(ChurnPlan { vanish_per_s: -1.0, ..plan() }.check().is_err());
        assert!(ChurnPlan { vanish_per_s: f64::NAN, ..plan() }.check().is_err());
    }
}
