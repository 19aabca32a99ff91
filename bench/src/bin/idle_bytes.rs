//! Memory of an idle connection, over TLS or QUIC: opens connections to the real gateway, leaves them idle, and
//! reads what the process and the kernel have gained.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ringpost_bench::idle::{Idle, Transport};
use ringpost_bench::slab::{Growth, Slab, plain_end_bytes, total};
use ringpost_loadgen::gateway::{Gateway, GatewayConfig, Stop, find_binary};
use ringpost_loadgen::host::Host;
use ringpost_loadgen::scrape::read_metrics;
use ringpost_ring::host::raise_open_files;

/// Bytes per idle connection: of the gateway's process (RSS), and of the kernel's slab caches.
#[derive(Parser)]
struct Cli {
    /// Idle connections to measure with
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// What carries them
    #[arg(long, value_enum, default_value_t = Transport::Tls)]
    transport: Transport,
    /// The gateway [default: built by cargo, or beside this program]
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// Also write the result here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit with 1 if the process holds more per connection
    #[arg(long, value_name = "BYTES")]
    user_bytes_max: Option<u64>,
}

struct Measured {
    rss_bytes_before: u64,
    rss_bytes_after: u64,
    user_bytes: u64,
    /// Both ends of a connection, as they are on this host; `None` without root, and for QUIC, where
    /// only the client's end has a socket.
    slab: Option<Vec<Growth>>,
    /// One end of a plain, idle TCP connection: what the client's end costs.
    slab_bytes_client: f64,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let cli = Cli::parse();
    println!("{}", ringpost_bench::host_facts("idle_bytes", None));
    raise_open_files()?;
    let binary = find_binary(cli.gateway.clone())?;
    let mut gateway = Gateway::start(binary, GatewayConfig::default())?;
    let measured = measure(&mut gateway, cli.transport, cli.connections)?;
    gateway.stop(Stop::Drain)?;
    print_table(&cli, &measured);
    if let Some(path) = &cli.json {
        fs::write(path, format!("{:#}\n", json(&cli, &measured)))?;
    }
    if cli.user_bytes_max.is_some_and(|bytes_max| measured.user_bytes > bytes_max) {
        eprintln!("above the budget of {} bytes", cli.user_bytes_max.unwrap_or_default());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(
    gateway: &mut Gateway,
    transport: Transport,
    connections: u32,
) -> Result<Measured, Box<dyn Error>> {
    // A new device is one more batch in the store's cache. Devices that the store knew at its start
    // cost what every device costs, connected or not, and that is no part of the figure.
    Idle::open(gateway, transport, "warm", WARM_UP_CONNECTIONS)?.leave()?;
    Idle::open(gateway, transport, "idle", connections)?.leave()?;
    gateway.stop(Stop::Drain)?;
    gateway.restart()?;

    // The first connections make the gateway touch what it has only once.
    let warm_up = Idle::open(gateway, transport, "warm", WARM_UP_CONNECTIONS)?;
    warm_up.rest(SETTLE_TIME)?;
    let slab_before = Slab::read().ok().filter(|_| transport == Transport::Tls);
    let rss_bytes_before = read_metrics(gateway.admin(), "/metrics")?.rss_bytes;

    let idle = Idle::open(gateway, transport, "idle", connections)?;
    idle.rest(SETTLE_TIME)?;
    let rss_bytes_after = read_metrics(gateway.admin(), "/metrics")?.rss_bytes;
    let slab_after = Slab::read().ok();

    let slab_bytes_client = match transport {
        Transport::Tls => plain_end_bytes(connections, SETTLE_TIME)?,
        Transport::Quic => 0.0,
    };
    drop((warm_up, idle));
    let gained = rss_bytes_after.saturating_sub(rss_bytes_before);
    Ok(Measured {
        rss_bytes_before,
        rss_bytes_after,
        user_bytes: gained / u64::from(connections),
        slab: slab_before.zip(slab_after).map(|(before, after)| after.growth(&before, connections)),
        slab_bytes_client,
    })
}

fn print_table(cli: &Cli, measured: &Measured) {
    println!("{:<44} {:>10}", "connections", cli.connections);
    println!("{:<44} {:>10}", "RSS before, bytes", measured.rss_bytes_before);
    println!("{:<44} {:>10}", "RSS after, bytes", measured.rss_bytes_after);
    println!("{:<44} {:>10}", "user bytes per idle connection", measured.user_bytes);
    let Some(slab) = &measured.slab else {
        println!("slab bytes: none for QUIC; for TLS unknown, /proc/slabinfo needs root");
        return;
    };
    let gateway = total(slab) - measured.slab_bytes_client;
    println!("{:<44} {gateway:>10.0}", "slab bytes per connection, gateway's end");
    println!("{:<44} {:>10.0}", "slab bytes per connection, both ends", total(slab));
    println!("  {:<24} {:>8} {:>9}", "cache, both ends", "objects", "bytes");
    for Growth { cache, objects, bytes } in slab {
        println!("  {cache:<24} {objects:>8.2} {bytes:>9.0}");
    }
}

fn json(cli: &Cli, measured: &Measured) -> serde_json::Value {
    let slab = measured.slab.as_ref();
    serde_json::json!({
        "connections": cli.connections,
        "transport": match cli.transport { Transport::Tls => "tls", Transport::Quic => "quic" },
        "rss_bytes_before": measured.rss_bytes_before,
        "rss_bytes_after": measured.rss_bytes_after,
        "user_bytes_per_connection": measured.user_bytes,
        "slab_bytes_per_connection": slab.map(|slab| total(slab) - measured.slab_bytes_client),
        "slab_bytes_per_connection_both_ends": slab.map(|slab| total(slab)),
        "host": Host::read(None),
    })
}

const WARM_UP_CONNECTIONS: u32 = 200;
/// Longer than the store's last batch and the gateway's lingering timers of a login.
const SETTLE_TIME: Duration = Duration::from_secs(3);
