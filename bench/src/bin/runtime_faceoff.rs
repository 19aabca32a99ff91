//! What a message costs before anybody has looked at it: the same echo of 64 bytes on our ring and on
//! other runtimes. Server CPU per message, and memory of an idle connection.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ringpost_bench::echo::client::EchoClient;
use ringpost_bench::echo::server::{Server, serve};
use ringpost_bench::echo::{MESSAGE_BYTES, Runtime};
use ringpost_bench::slab::{Slab, plain_end_bytes, total};
use ringpost_bench::{load_average, median};
use ringpost_loadgen::host::Host;
use ringpost_ring::host::{pin_to_core, raise_open_files, usable_cores};
use serde::Serialize;

/// Server CPU per message and bytes per idle connection of the same echo on several runtimes.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Role {
    /// Echo until standard input ends: what this program starts itself for
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        runtime: Runtime,
        #[arg(long)]
        core: usize,
    },
}

#[derive(Args)]
struct Settings {
    /// Connections, one message under way on each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Connections that are counted for their memory: many, as an allocator takes whole megabytes
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u32).range(1..))]
    idle_connections: u32,
    /// Times that each runtime has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each turn, after a quarter of it to warm up
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Core of the server [default: the first of two]
    #[arg(long)]
    server_core: Option<usize>,
    /// Core of the client [default: the last]
    #[arg(long)]
    client_core: Option<usize>,
    /// Also write the result here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One turn of one runtime.
#[derive(Clone, Copy, Serialize)]
struct Turn {
    messages_per_second: f64,
    cpu_ns_per_message: f64,
    /// To the ring in the same round.
    ratio: f64,
}

/// Memory of an idle connection that has echoed once.
#[derive(Serialize)]
struct Idle {
    user_bytes: f64,
    /// The server's end; null without root.
    kernel_bytes: Option<f64>,
}

#[derive(Serialize)]
struct Figures {
    runtime: &'static str,
    cpu_ns_per_message: f64,
    ratio: f64,
    messages_per_second: f64,
    idle: Idle,
    turns: Vec<Turn>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    if let Some(Role::Serve { runtime, core }) = cli.role {
        return Ok(serve(runtime, core)?);
    }
    let settings = cli.settings;
    let usable = usable_cores()?;
    let server_core = settings.server_core.unwrap_or(usable[0]);
    let client_core = settings.client_core.unwrap_or(usable[usable.len() - 1]);
    let load = load_average();
    println!("{}", ringpost_bench::host_facts("runtime_faceoff", None));
    println!("# load average when it began: {load}");
    println!(
        "# {} connections, {MESSAGE_BYTES} bytes, one message under way on each; {} rounds of {} s; \
         {} idle ones; server on core {server_core}, client on core {client_core}",
        settings.connections, settings.rounds, settings.seconds, settings.idle_connections
    );
    let files = u64::from(settings.idle_connections.max(settings.connections)) + FILES_BESIDE;
    let files_max = raise_open_files()?;
    if files_max < files {
        let fix = "raise RLIMIT_NOFILE (ulimit -Hn)";
        return Err(
            format!("{files} open files are needed, the limit is {files_max}: {fix}").into()
        );
    }
    pin_to_core(client_core)?;
    let mut turns: Vec<Vec<Turn>> = Runtime::ALL.iter().map(|_| Vec::new()).collect();
    for number in 0..settings.rounds as usize {
        for (index, turn) in round(&settings, server_core, number)?.into_iter().enumerate() {
            turns[index].push(turn);
        }
    }
    let client_end = plain_end_bytes(settings.idle_connections / 2, SETTLE_TIME)?;
    let mut figures = Vec::new();
    for (runtime, turns) in Runtime::ALL.into_iter().zip(turns) {
        let idle = idle(runtime, server_core, settings.idle_connections, client_end)?;
        figures.push(Figures::of(runtime, turns, idle));
    }
    print_table(&figures);
    if let Some(path) = &settings.json {
        let result = serde_json::json!({
            "host": Host::read(None), "load_average": load, "connections": settings.connections,
            "idle_connections": settings.idle_connections,
            "message_bytes": MESSAGE_BYTES, "rounds": settings.rounds,
            "seconds": settings.seconds, "server_core": server_core, "client_core": client_core,
            "runtimes": figures,
        });
        fs::write(path, format!("{result:#}\n"))?;
    }
    Ok(())
}

/// Every runtime once, in another order than in the round before. Turns in the order of
/// [`Runtime::ALL`].
fn round(
    settings: &Settings,
    server_core: usize,
    number: usize,
) -> Result<Vec<Turn>, Box<dyn Error>> {
    let count = Runtime::ALL.len();
    let mut turns = vec![None; count];
    for step in 0..count {
        let index = (number + step) % count;
        turns[index] = Some(turn(Runtime::ALL[index], settings, server_core)?);
    }
    let mut turns: Vec<Turn> = turns.into_iter().flatten().collect();
    let of_ring = turns[0].cpu_ns_per_message;
    turns.iter_mut().for_each(|turn| turn.ratio = turn.cpu_ns_per_message / of_ring);
    Ok(turns)
}

fn turn(runtime: Runtime, settings: &Settings, core: usize) -> Result<Turn, Box<dyn Error>> {
    let server = Server::start(runtime, core)?;
    let mut client = EchoClient::connect(server.address(), settings.connections)?;
    client.run(Duration::try_from_secs_f64(settings.seconds / 4.0)?)?;
    let before_ns = server.cpu_ns()?;
    let (messages, time) = client.run(Duration::try_from_secs_f64(settings.seconds)?)?;
    let cpu_ns = server.cpu_ns()? - before_ns;
    client.leave()?;
    if messages == 0 {
        return Err(format!("{} answered nothing", runtime.name()).into());
    }
    let messages = figure(messages);
    Ok(Turn {
        messages_per_second: messages / time.as_secs_f64(),
        cpu_ns_per_message: figure(cpu_ns) / messages,
        ratio: 1.0,
    })
}

fn idle(
    runtime: Runtime,
    core: usize,
    connections: u32,
    client_end: f64,
) -> Result<Idle, Box<dyn Error>> {
    let server = Server::start(runtime, core)?;
    // The first connections make the server touch what it has only once.
    let warm_up = connect_and_echo(server.address(), WARM_UP_CONNECTIONS)?;
    sleep(SETTLE_TIME);
    let (rss_before, slab_before) = (server.rss_bytes()?, Slab::read().ok());
    let idle = connect_and_echo(server.address(), connections)?;
    sleep(SETTLE_TIME);
    let (rss_after, slab_after) = (server.rss_bytes()?, Slab::read().ok());
    drop((warm_up, idle));
    let both_ends = slab_before
        .zip(slab_after)
        .map(|(before, after)| total(&after.growth(&before, connections)));
    Ok(Idle {
        user_bytes: figure(rss_after.saturating_sub(rss_before)) / f64::from(connections),
        kernel_bytes: both_ends.map(|bytes| bytes - client_end),
    })
}

fn connect_and_echo(server: SocketAddr, count: u32) -> std::io::Result<Vec<TcpStream>> {
    let one = |_| {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        let mut message = [7; MESSAGE_BYTES];
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

impl Figures {
    fn of(runtime: Runtime, turns: Vec<Turn>, idle: Idle) -> Self {
        let of = |get: fn(&Turn) -> f64| median(turns.iter().map(get).collect());
        Self {
            runtime: runtime.name(),
            cpu_ns_per_message: of(|turn| turn.cpu_ns_per_message),
            ratio: of(|turn| turn.ratio),
            messages_per_second: of(|turn| turn.messages_per_second),
            idle,
            turns,
        }
    }
}

fn print_table(figures: &[Figures]) {
    println!(
        "\n{:<10} {:>14} {:>7} {:>12} {:>12} {:>14}",
        "runtime", "CPU ns/message", "ratio", "messages/s", "user B/idle", "kernel B/idle"
    );
    for Figures { runtime, cpu_ns_per_message, ratio, messages_per_second, idle, .. } in figures {
        let kernel = idle.kernel_bytes.map_or_else(|| "needs root".into(), |it| format!("{it:.0}"));
        println!(
            "{runtime:<10} {cpu_ns_per_message:>14.0} {ratio:>7.2} {messages_per_second:>12.0} \
             {:>12.0} {kernel:>14}",
            idle.user_bytes
        );
    }
    println!("medians of the rounds; ratio: to the ring in the same round");
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn figure(count: u64) -> f64 {
    count as f64
}

const WARM_UP_CONNECTIONS: u32 = 100;
/// Open files beside the connections that are counted.
const FILES_BESIDE: u64 = 500;
/// Until the kernel has freed what the connecting needed.
const SETTLE_TIME: Duration = Duration::from_millis(1500);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
