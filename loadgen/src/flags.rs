//! The flags of the scenarios, and the plans that they make.

pub(crate) mod app;
pub(crate) mod group;
pub(crate) mod handover;
pub(crate) mod keys;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use ringpost_loadgen::cores::CoreList;
use ringpost_loadgen::plan::churn::ChurnPlan;
use ringpost_loadgen::plan::pressure::{Pressure, PressurePlan};
use ringpost_loadgen::plan::{ChatPlan, HandshakePlan, MAILBOX_RECORDS_MAX, OfflinePlan};
use ringpost_loadgen::report::page::Story;
use ringpost_loadgen::scenario::Options;
use ringpost_loadgen::scenario::chat::Pauses;
use serde::Serialize;

#[derive(Args)]
pub(crate) struct ChatFlags {
    /// Connected users; each has one partner.
    #[arg(long, value_name = "N")]
    pub(crate) connections: u32,
    /// Messages a second of all users together; 0: closed loop, see --window.
    #[arg(long, value_name = "R")]
    pub(crate) rate: u64,
    /// Seconds.
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(crate) duration: Duration,
    /// Bytes of one message.
    #[arg(long, value_name = "B")]
    pub(crate) payload: usize,
    /// Messages of one pair that are on their way at once, in the closed loop.
    #[arg(long, value_name = "W", default_value_t = 1)]
    pub(crate) window: u32,
    /// Seconds between the last login and the first message.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub(crate) settle: Duration,
    /// Seconds to wait for stragglers after the load.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(crate) grace: Duration,
    /// Kill our own gateway with SIGKILL this often during the load, and start it again.
    #[arg(long, value_name = "K", default_value_t = 0, conflicts_with = "target")]
    pub(crate) kill_rounds: u32,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

#[derive(Args)]
pub(crate) struct OfflineFlags {
    /// Absent devices, one per user.
    #[arg(long, value_name = "N")]
    pub(crate) devices: u32,
    /// Messages for all of them together.
    #[arg(long, value_name = "M")]
    pub(crate) messages: u64,
    /// Bytes of one message.
    #[arg(long, value_name = "B")]
    pub(crate) payload: usize,
    /// End our own gateway with SIGKILL instead of SIGTERM.
    #[arg(long, conflicts_with = "target")]
    pub(crate) kill: bool,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

#[derive(Args)]
pub(crate) struct HandshakeFlags {
    /// Clients that log in again and again, at most --connecting-max of a thread at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) connections: u32,
    /// Seconds of each kind of login.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

#[derive(Args)]
pub(crate) struct ChurnFlags {
    /// Connected users; each has one partner.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) connections: u32,
    /// Messages a second of all of them together.
    #[arg(long, value_name = "R", default_value_t = 2_000)]
    pub(crate) rate: u64,
    /// Minutes.
    #[arg(long, value_name = "M", default_value_t = 1.0)]
    pub(crate) minutes: f64,
    /// Bytes of one message.
    #[arg(long, value_name = "B", default_value_t = 200)]
    pub(crate) payload: usize,
    /// Clients a second that vanish without FIN and return on another connection.
    #[arg(long, value_name = "V", default_value_t = 20.0)]
    pub(crate) vanish: f64,
    /// Seconds for which they are away at most.
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    pub(crate) absence: Duration,
    /// Seconds to wait for stragglers after the load.
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub(crate) grace: Duration,
    /// Kill our own gateway with SIGKILL this often, and start it again.
    #[arg(long, value_name = "K", default_value_t = 0, conflicts_with = "target")]
    pub(crate) kill_gateway_rounds: u32,
    /// Kill a process with durable clients this often, and start it again.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) kill_client_rounds: u32,
    /// Processes with durable clients: the client library with its database.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) client_processes: u32,
    /// Durable clients of each process.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) users_per_process: u32,
    /// Messages a second of all durable clients together.
    #[arg(long, value_name = "R", default_value_t = 100)]
    pub(crate) durable_rate: u64,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

/// The well-behaved, and the mail of readers.
#[derive(Args)]
pub(crate) struct CrowdFlags {
    /// Messages a second of all well-behaved users together.
    #[arg(long, value_name = "R", default_value_t = 2_000)]
    pub(crate) rate: u64,
    /// Seconds of each phase: quiet, the return of readers, pressure.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(crate) duration: Duration,
    /// Bytes of one message of the well-behaved.
    #[arg(long, value_name = "B", default_value_t = 200)]
    pub(crate) payload: usize,
    /// Messages in the full mailbox of a reader; the gateway's bound is set to it.
    #[arg(long, value_name = "M", default_value_t = 300)]
    pub(crate) mailbox: u64,
    /// Bytes of each of them.
    #[arg(long, value_name = "B", default_value_t = 200)]
    pub(crate) mailbox_payload: usize,
    /// Milliseconds between two looks of a slow reader.
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    pub(crate) pause_ms: u64,
}

#[derive(Args)]
pub(crate) struct AbuseFlags {
    /// What the others do.
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Pressure,
    /// How many of them.
    #[arg(long, value_name = "N")]
    pub(crate) count: u32,
    /// Well-behaved users; each has one partner.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) connections: u32,
    #[command(flatten)]
    pub(crate) crowd: CrowdFlags,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

#[derive(Args)]
pub(crate) struct SlowFlags {
    /// Connected users, the bad readers among them.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub(crate) connections: u32,
    /// The part of them that reads badly, above 0 and below 1.
    #[arg(long, value_name = "F", default_value_t = 0.5)]
    pub(crate) share: f64,
    /// How these read.
    #[arg(long, value_name = "MODE", default_value = "stop")]
    pub(crate) mode: SlowMode,
    #[command(flatten)]
    pub(crate) crowd: CrowdFlags,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

/// How bad readers read.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum SlowMode {
    /// Not at all.
    Stop,
    /// A little, once in --pause-ms.
    Slow,
}

#[derive(Args)]
pub(crate) struct CommonFlags {
    /// Gateway to load, host:port. Without it, one is started on a temporary directory (TMPDIR).
    #[arg(long, value_name = "ADDR", requires = "data")]
    pub(crate) target: Option<String>,
    /// The target's development directory: ca.pem, token-key.pem, jwks.json.
    #[arg(long, value_name = "DIR", requires = "target")]
    pub(crate) data: Option<PathBuf>,
    /// The target's metrics, http://host:port/metrics, for its CPU time and memory.
    #[arg(long, value_name = "URL", requires = "target")]
    pub(crate) metrics: Option<String>,
    /// Name in the target's certificate, if it is not the host of --target.
    #[arg(long, value_name = "NAME", requires = "target")]
    pub(crate) server_name: Option<String>,
    /// Binary of the gateway to start.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    pub(crate) gateway: Option<PathBuf>,
    /// Shards of the gateway to start; one per core if not given.
    #[arg(long, value_name = "N", conflicts_with = "target")]
    pub(crate) shards: Option<u16>,
    /// Cores of the gateway to start, for example 0 or 0,2-3; it gets as many shards.
    #[arg(long, value_name = "LIST", conflicts_with = "target")]
    pub(crate) server_cores: Option<CoreList>,
    /// Cores of the load generator, which starts a thread on each.
    #[arg(long, value_name = "LIST")]
    pub(crate) client_cores: Option<CoreList>,
    /// Where to write the report as one HTML page.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Threads; half of the cores if not given, the gateway has the other half.
    #[arg(long, value_name = "T")]
    pub(crate) threads: Option<usize>,
    /// Decides when each user sends, and the content of payloads.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Logins of one thread at the same time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) connecting_max: u32,
    /// Microseconds between two looks for due messages.
    #[arg(long, value_name = "US", default_value_t = 200)]
    pub(crate) tick_us: u64,
}

impl ChatFlags {
    pub(crate) fn plan(&self) -> ChatPlan {
        ChatPlan {
            connections: self.connections,
            rate_per_s: self.rate,
            duration: self.duration,
            payload_bytes: self.payload,
            window: self.window,
            kill_rounds: self.kill_rounds,
            seed: self.common.seed,
        }
    }

    pub(crate) fn pauses(&self) -> Pauses {
        Pauses { settle: self.settle, grace: self.grace }
    }
}

impl OfflineFlags {
    pub(crate) fn plan(&self) -> OfflinePlan {
        OfflinePlan {
            devices: self.devices,
            messages: self.messages,
            payload_bytes: self.payload,
            mailbox_records_max: MAILBOX_RECORDS_MAX,
            seed: self.common.seed,
        }
    }
}

impl HandshakeFlags {
    pub(crate) fn plan(&self) -> HandshakePlan {
        HandshakePlan {
            connections: self.connections,
            duration: self.duration,
            seed: self.common.seed,
        }
    }
}

impl ChurnFlags {
    pub(crate) fn plan(&self) -> Result<ChurnPlan> {
        let duration = Duration::try_from_secs_f64(self.minutes * 60.0).context("--minutes")?;
        // Kills without anybody to kill make no sense: two processes are the least.
        let needed = if self.kill_client_rounds > 0 { 2 } else { 0 };
        Ok(ChurnPlan {
            chat: ChatPlan {
                connections: self.connections,
                rate_per_s: self.rate,
                duration,
                payload_bytes: self.payload,
                window: 1,
                kill_rounds: 0,
                seed: self.common.seed,
            },
            vanish_per_s: self.vanish,
            absence_max: self.absence,
            grace: self.grace,
            kill_gateway_rounds: self.kill_gateway_rounds,
            kill_client_rounds: self.kill_client_rounds,
            client_processes: self.client_processes.max(needed),
            users_per_process: self.users_per_process,
            durable_rate_per_s: self.durable_rate,
        })
    }
}

impl CrowdFlags {
    fn plan(&self, pressure: Pressure, connections: u32, count: u32, seed: u64) -> PressurePlan {
        PressurePlan {
            chat: ChatPlan {
                connections,
                rate_per_s: self.rate,
                duration: self.duration,
                payload_bytes: self.payload,
                window: 1,
                kill_rounds: 0,
                seed,
            },
            pressure,
            count,
            mailbox_messages: self.mailbox,
            mailbox_payload_bytes: self.mailbox_payload,
            pause_ns: self.pause_ms.saturating_mul(1_000_000),
        }
    }
}

impl AbuseFlags {
    pub(crate) fn plan(&self) -> PressurePlan {
        self.crowd.plan(self.kind, self.connections, self.count, self.common.seed)
    }
}

impl SlowFlags {
    /// The well-behaved are even in number: one more reads badly where that is needed.
    pub(crate) fn plan(&self) -> PressurePlan {
        #[expect(clippy::cast_possible_truncation, reason = "a share of a u32; saturates")]
        let well = (f64::from(self.connections) * (1.0 - self.share)) as u32 & !1;
        let pressure = match self.mode {
            SlowMode::Stop => Pressure::StopReadingFull,
            SlowMode::Slow => Pressure::ReadSlowly,
        };
        let count = self.connections.saturating_sub(well);
        self.crowd.plan(pressure, well, count, self.common.seed)
    }
}

impl CommonFlags {
    pub(crate) fn options(&self) -> Options {
        Options {
            target: self.target.clone(),
            data: self.data.clone(),
            metrics: self.metrics.clone(),
            server_name: self.server_name.clone(),
            gateway: self.gateway.clone(),
            shards: self.shards,
            server_cores: self.server_cores.clone(),
            client_cores: self.client_cores.clone(),
            threads: self.threads,
            seed: self.seed,
            connecting_max: self.connecting_max,
            tick: Duration::from_micros(self.tick_us),
        }
    }
}

impl CommonFlags {
    /// The table to the terminal, the rest where it is wanted.
    pub(crate) fn publish(&self, story: &Story, report: &impl Serialize) -> Result<()> {
        let write = |path: &Path, text: String| {
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        print!("{}", story.rows);
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(report).context("write the report as JSON")?;
            write(path, text + "\n")?;
        }
        if let Some(path) = &self.report {
            write(path, story.html())?;
        }
        Ok(())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
