//! What a run does, decided before it starts: who talks to whom, when each message is meant to
//! leave. Pure and seeded: one plan and one seed give the same messages on any number of threads.

pub mod churn;
pub mod group;
pub mod handover;
pub mod keys;
pub mod pressure;

use std::time::Duration;

use anyhow::{Result, ensure};
use ringpost_protocol::limits::{ENVELOPE_BYTES_MAX, SENDS_UNANSWERED_MAX};

use crate::measure::PAYLOAD_BYTES_MIN;

/// Pairs of users that talk to each other, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPlan {
    /// Even: each connection is one user, and its partner is another.
    pub connections: u32,
    /// Messages a second of all connections together; 0 is the closed loop.
    pub rate_per_s: u64,
    pub duration: Duration,
    pub payload_bytes: usize,
    /// Messages of a pair that are on their way at once in the closed loop.
    pub window: u32,
    /// How often our own gateway is killed and started again during the load.
    pub kill_rounds: u32,
    pub seed: u64,
}

/// Messages for devices that are away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflinePlan {
    pub devices: u32,
    pub messages: u64,
    pub payload_bytes: usize,
    /// Most messages that one mailbox holds.
    pub mailbox_records_max: u64,
    pub seed: u64,
}

/// Logins without messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakePlan {
    /// Clients that log in again and again.
    pub connections: u32,
    /// Of each kind of login.
    pub duration: Duration,
    pub seed: u64,
}

impl HandshakePlan {
    pub fn check(&self) -> Result<()> {
        ensure!(self.connections >= 1, "--connections must be at least 1");
        ensure!(!self.duration.is_zero(), "--duration must be above zero");
        Ok(())
    }
}

impl ChatPlan {
    pub fn check(&self) -> Result<()> {
        ensure!(self.connections >= 2, "--connections must be at least 2");
        ensure!(
            self.connections.is_multiple_of(2),
            "--connections must be even: users talk in pairs"
        );
        ensure!(self.rate_per_s <= RATE_PER_S_MAX, "--rate is at most {RATE_PER_S_MAX}");
        ensure!(!self.duration.is_zero(), "--duration must be above zero");
        let window_max = u32::try_from(SENDS_UNANSWERED_MAX).expect("a small constant");
        ensure!(
            (1..=window_max).contains(&self.window),
            "--window must be 1 to {window_max}: a device may have no more Sends unanswered"
        );
        check_payload(self.payload_bytes)
    }

    /// When to kill the gateway: a random moment in each of equal parts of the duration.
    pub fn kill_times(&self) -> Vec<Duration> {
        random_times(self.seed, self.duration, self.kill_rounds)
    }

    /// The time between two messages of one connection, when the loop is open.
    pub fn interval_ns(&self) -> u64 {
        assert!(self.rate_per_s > 0, "the closed loop has no interval");
        let interval = u128::from(self.connections) * NS_PER_S / u128::from(self.rate_per_s);
        u64::try_from(interval).expect("u32 connections x 1e9 fits u64").max(1)
    }
}

impl OfflinePlan {
    pub fn check(&self) -> Result<()> {
        ensure!(self.devices >= 1, "--devices must be at least 1");
        ensure!(self.messages >= 1, "--messages must be at least 1");
        let per_device = self.messages.div_ceil(u64::from(self.devices));
        ensure!(
            per_device <= self.mailbox_records_max,
            "{per_device} messages a device do not fit: a mailbox holds {}",
            self.mailbox_records_max
        );
        let bytes = per_device * self.payload_bytes as u64;
        ensure!(
            bytes <= MAILBOX_BYTES_MAX / 2,
            "{bytes} bytes a device are too many for a mailbox of {MAILBOX_BYTES_MAX}"
        );
        check_payload(self.payload_bytes)
    }

    /// Messages for the device with this number: an even spread, the remainder to the first ones.
    pub fn messages_for(&self, device: u32) -> u64 {
        let devices = u64::from(self.devices);
        self.messages / devices + u64::from(u64::from(device) < self.messages % devices)
    }

    /// Senders that share one device's messages: one sender may hold a quarter of a mailbox, so
    /// there are enough of them to stay below that.
    pub fn senders_per_device(&self) -> u32 {
        let per_device = self.messages.div_ceil(u64::from(self.devices));
        let by_records = per_device.div_ceil((self.mailbox_records_max / 5).max(1));
        let by_bytes = (per_device * self.payload_bytes as u64).div_ceil(MAILBOX_BYTES_MAX / 8);
        u32::try_from(by_records.max(by_bytes)).expect("a mailbox bound divided by a fifth of it")
    }
}

fn check_payload(payload_bytes: usize) -> Result<()> {
    ensure!(
        (PAYLOAD_BYTES_MIN..=ENVELOPE_BYTES_MAX).contains(&payload_bytes),
        "--payload must be {PAYLOAD_BYTES_MIN} to {ENVELOPE_BYTES_MAX} bytes: it carries the \
         stream, the sequence and the intended send time"
    );
    Ok(())
}

/// When the messages of one thread's connections are meant to leave. All connections send at the
/// same interval, each with its own seeded phase, so that the arrivals look random but the next one
/// is found without a heap.
#[derive(Debug)]
pub struct Schedule {
    /// (phase, connection), by phase.
    order: Vec<(u64, u32)>,
    interval_ns: u64,
    duration_ns: u64,
    position: usize,
    round: u64,
}

/// A message that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Index of the connection within its thread.
    pub client: u32,
    /// Nanoseconds after the start of the load.
    pub intended_ns: u64,
}

impl Schedule {
    /// `connections`: the number in the whole plan of each of this thread's connections.
    pub fn new(plan: &ChatPlan, connections: &[u32]) -> Self {
        let interval_ns = plan.interval_ns();
        let mut order: Vec<(u64, u32)> = (0u32..)
            .zip(connections)
            .map(|(client, &connection)| {
                (mix(plan.seed ^ mix(u64::from(connection))) % interval_ns, client)
            })
            .collect();
        order.sort_unstable();
        let duration_ns = u64::try_from(plan.duration.as_nanos()).unwrap_or(u64::MAX);
        Self { order, interval_ns, duration_ns, position: 0, round: 0 }
    }

    /// The intended time of the next message; `None` when all have been taken.
    pub fn next_ns(&self) -> Option<u64> {
        let (phase_ns, _) = self.order.get(self.position)?;
        let intended_ns = self.round * self.interval_ns + phase_ns;
        (intended_ns < self.duration_ns).then_some(intended_ns)
    }

    /// Takes the next message if its time has come.
    pub fn poll_due(&mut self, now_ns: u64) -> Option<Due> {
        let intended_ns = self.next_ns().filter(|&at| at <= now_ns)?;
        let (_, client) = self.order[self.position];
        self.position += 1;
        if self.position == self.order.len() {
            self.position = 0;
            self.round += 1;
        }
        Some(Due { client, intended_ns })
    }

    /// Messages of the whole schedule.
    pub fn planned(&self) -> u64 {
        self.order
            .iter()
            .map(|&(phase_ns, _)| {
                self.duration_ns.saturating_sub(phase_ns).div_ceil(self.interval_ns)
            })
            .sum()
    }
}

/// The numbers of the connections that one thread holds. Pairs are dealt round, and both sides of a
/// pair are on one thread, which can then verify what passes between them.
pub fn connections_of(thread: usize, threads: usize, connections: u32) -> Vec<u32> {
    (0..connections).filter(|connection| (*connection / 2) as usize % threads == thread).collect()
}

/// A random moment in each of equal parts of the duration.
fn random_times(seed: u64, duration: Duration, rounds: u32) -> Vec<Duration> {
    (0..rounds)
        .map(|round| {
            let random = mix(seed ^ mix(KILLS ^ u64::from(round))) % 1_000;
            let part = f64::from(round) + random as f64 / 1e3;
            duration.mul_f64(part / f64::from(rounds))
        })
        .collect()
}

/// splitmix64: spreads a counter over 64 bits.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Keeps the random numbers of the kills apart from those of the phases.
const KILLS: u64 = 1 << 63;
const NS_PER_S: u128 = 1_000_000_000;
/// Above this a connection's interval would no longer be exact.
const RATE_PER_S_MAX: u64 = 100_000_000;
/// The gateway's default bounds of one mailbox.
pub const MAILBOX_RECORDS_MAX: u64 = 1_000;
const MAILBOX_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(connections: u32, rate_per_s: u64, seconds: u64) -> ChatPlan {
        ChatPlan {
            connections,
            rate_per_s,
            duration: Duration::from_secs(seconds),
            payload_bytes: 200,
            window: 1,
            kill_rounds: 0,
            seed: 7,
        }
    }

    fn drain(schedule: &mut Schedule) -> Vec<Due> {
        std::iter::from_fn(|| schedule.poll_due(u64::MAX)).collect()
    }

    #[test]
    fn the_schedule_offers_exactly_the_rate() {
        let plan = chat(1_000, 20_000, 3);
        let mut schedule = Schedule::new(&plan, &connections_of(0, 1, 1_000));
        let dues = drain(&mut schedule);
        assert_eq!(dues.len(), 60_000);
        assert_eq!(Schedule::new(&plan, &connections_of(0, 1, 1_000)).planned(), 60_000);
        assert!(dues.is_sorted_by_key(|due| due.intended_ns));
        assert!(dues.iter().all(|due| due.intended_ns < 3_000_000_000));
    }

    #[test]
    fn each_connection_sends_evenly_and_not_before_its_time() {
        let plan = chat(10, 100, 1);
        let mut schedule = Schedule::new(&plan, &connections_of(0, 1, 10));
        assert_eq!(schedule.poll_due(0).map(|due| due.client), None);
        let dues = drain(&mut schedule);
        for client in 0..10 {
            let times: Vec<u64> =
                dues.iter().filter(|due| due.client == client).map(|due| due.intended_ns).collect();
            assert_eq!(times.len(), 10);
            assert!(times.windows(2).all(|pair| pair[1] - pair[0] == plan.interval_ns()));
        }
    }

    #[test]
    fn more_threads_offer_the_same_messages() {
        let plan = chat(20, 1_000, 1);
        let of = |threads: usize| {
            let mut all: Vec<(u64, u32)> = (0..threads)
                .flat_map(|thread| {
                    let connections = connections_of(thread, threads, 20);
                    drain(&mut Schedule::new(&plan, &connections))
                        .into_iter()
                        .map(move |due| (due.intended_ns, connections[due.client as usize]))
                })
                .collect();
            all.sort_unstable();
            all
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn both_sides_of_a_pair_are_on_one_thread() {
        let threads: Vec<Vec<u32>> = (0..3).map(|thread| connections_of(thread, 3, 14)).collect();
        assert_eq!(threads.iter().map(Vec::len).sum::<usize>(), 14);
        for connections in threads {
            assert!(connections.chunks(2).all(|pair| pair[0] + 1 == pair[1] && pair[0] % 2 == 0));
        }
    }

    #[test]
    fn kills_are_spread_over_the_duration() {
        let times = ChatPlan { kill_rounds: 20, ..chat(2, 1, 60) }.kill_times();
        assert_eq!(times.len(), 20);
        assert!(times.is_sorted() && times[19] < Duration::from_secs(60));
        assert!((0..20).all(|round| times[round as usize] >= Duration::from_secs(3) * round));
    }

    #[test]
    fn offline_messages_are_spread_without_loss() {
        let plan = OfflinePlan {
            devices: 7,
            messages: 100,
            payload_bytes: 200,
            mailbox_records_max: 1_000,
            seed: 1,
        };
        assert!(plan.check().is_ok());
        assert_eq!((0..7).map(|device| plan.messages_for(device)).sum::<u64>(), 100);
        assert_eq!(plan.senders_per_device(), 1);
        let full = OfflinePlan {
            devices: 1,
            messages: 1_000,
            payload_bytes: 200,
            mailbox_records_max: 1_000,
            seed: 1,
        };
        assert_eq!(full.senders_per_device(), 5);
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert!(chat(3, 1, 1).check().is_err());
        assert!(chat(0, 1, 1).check().is_err());
        assert!(chat(2, 1, 0).check().is_err());
        assert!(ChatPlan { window: 257, ..chat(2, 1, 1) }.check().is_err());
        assert!(ChatPlan { payload_bytes: 8, ..chat(2, 1, 1) }.check().is_err());
        let crowded = OfflinePlan {
            devices: 1,
            messages: 1_001,
            payload_bytes: 200,
            mailbox_records_max: 1_000,
            seed: 1,
        };
        assert!(crowded.check().is_err());
    }
}
