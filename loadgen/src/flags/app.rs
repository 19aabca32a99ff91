//! What `churn` tells the processes that it starts; the other side is
//! [`ringpost_loadgen::durable::processes`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ringpost_loadgen::durable::DurablePlan;

/// For processes that `churn` starts.
#[derive(Args)]
pub(crate) struct DurableAppFlags {
    #[arg(long)]
    pub(crate) process: u32,
    #[arg(long)]
    processes: u32,
    #[arg(long)]
    users: u32,
    #[arg(long)]
    interval_us: u64,
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    run: u32,
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    server_name: String,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    data: PathBuf,
}

impl DurableAppFlags {
    pub(crate) fn plan(&self) -> DurablePlan {
        DurablePlan {
            processes: self.processes,
            users_per_process: self.users,
            interval: Duration::from_micros(self.interval_us),
            payload_bytes: self.payload,
            run: self.run,
            directory: self.directory.clone(),
            data: self.data.clone(),
            target: self.target,
            server_name: self.server_name.clone(),
        }
    }
}
