//! Memory of an idle TLS connection: opens connections to the real gateway, leaves them idle, and
//! reads what the process and the kernel have gained.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use ringpost_bench::idle::{IdleConnection, Scratch};
use ringpost_bench::slab::{Growth, Slab, plain_end_bytes, total};
use ringpost_loadgen::client::Identity;
use ringpost_loadgen::gateway::{Gateway, GatewayConfig, Stop, find_binary};
use ringpost_loadgen::host::Host;
use ringpost_loadgen::scrape::read_metrics;
use ringpost_loadgen::tokens::{TokenMint, tls_config};
use ringpost_protocol::id::{DeviceId, InstallId, UserId};
use ringpost_ring::host::raise_open_files;

/// Bytes per idle TLS connection: of the gateway's process (RSS), and of the kernel's slab caches.
#[derive(Parser)]
struct Cli {
    /// Idle connections to measure with
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
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
    /// Both ends of a connection, as they are on this host; `None` without root.
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
    let measured = measure(&mut gateway, cli.connections)?;
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

fn measure(gateway: &mut Gateway, connections: u32) -> Result<Measured, Box<dyn Error>> {
    // A new device is one more batch in the store's cache. Devices that the store knew at its start
    // cost what every device costs, connected or not, and that is no part of the figure.
    connect(gateway, "warm", WARM_UP_CONNECTIONS)?;
    connect(gateway, "idle", connections)?;
    gateway.stop(Stop::Drain)?;
    gateway.restart()?;

    // The first connections make the gateway touch what it has only once.
    let warm_up = connect(gateway, "warm", WARM_UP_CONNECTIONS)?;
    sleep(SETTLE_TIME);
    let slab_before = Slab::read().ok();
    let rss_bytes_before = read_metrics(gateway.admin(), "/metrics")?.rss_bytes;

    let idle = connect(gateway, "idle", connections)?;
    sleep(SETTLE_TIME);
    let rss_bytes_after = read_metrics(gateway.admin(), "/metrics")?.rss_bytes;
    let slab_after = Slab::read().ok();

    let slab_bytes_client = plain_end_bytes(connections, SETTLE_TIME)?;
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

fn connect(
    gateway: &Gateway,
    name: &str,
    count: u32,
) -> Result<Vec<IdleConnection>, Box<dyn Error>> {
    let mint = TokenMint::load(gateway.data(), TOKEN_LIFETIME)?;
    let config = tls_config(gateway.data())?;
    let mut scratch = Scratch::default();
    let mut open = |index| {
        let user = format!("{name}-{index:06}");
        let identity = Identity {
            token: mint.mint(&user, DEVICE)?,
            user: UserId::new(&user)?,
            device: DeviceId::new(DEVICE)?,
            install_id: InstallId(u64::from(index) + 1),
        };
        IdleConnection::open(gateway.target(), &config, identity, &mut scratch)
    };
    (0..count).map(&mut open).collect()
}

fn print_table(cli: &Cli, measured: &Measured) {
    println!("{:<44} {:>10}", "connections", cli.connections);
    println!("{:<44} {:>10}", "RSS before, bytes", measured.rss_bytes_before);
    println!("{:<44} {:>10}", "RSS after, bytes", measured.rss_bytes_after);
    println!("{:<44} {:>10}", "user bytes per idle connection", measured.user_bytes);
    let Some(slab) = &measured.slab else {
        println!("slab bytes: unknown, /proc/slabinfo needs root");
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
        "rss_bytes_before": measured.rss_bytes_before,
        "rss_bytes_after": measured.rss_bytes_after,
        "user_bytes_per_connection": measured.user_bytes,
        "slab_bytes_per_connection": slab.map(|slab| total(slab) - measured.slab_bytes_client),
        "slab_bytes_per_connection_both_ends": slab.map(|slab| total(slab)),
        "host": Host::read(None),
    })
}

const DEVICE: &str = "phone";
const WARM_UP_CONNECTIONS: u32 = 200;
/// Longer than the store's last batch and the gateway's lingering timers of a login.
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// Longer than the run.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
