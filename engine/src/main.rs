//! The gateway's command line.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};
use ringpost_engine::audit::Pseudonyms;
use ringpost_engine::check::{Grade, Report};
use ringpost_engine::config::{
    Config, ConfigFault, ConfigFaults, DEFAULT_AUDIENCE, LogConfig, LogFormat,
};
use ringpost_engine::control::dev;
use ringpost_engine::control::reload::SetLogFilter;
use ringpost_engine::control::token::TokenKey;
use ringpost_engine::launch;
use ringpost_engine::start::{self, Reloading, Serving, StartError};
use ringpost_engine::store_tool::{StoreCommand, StoreToolFault};
use ringpost_protocol::id::{DeviceId, UserId};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connection gateway of a mobile messenger.
///
/// Without a command it is a development gateway: it makes a certificate authority, a certificate
/// and a token key in ./ringpost-data, listens on 127.0.0.1:7443 and says how to talk through it.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    development: Development,
}

#[derive(Args)]
struct Development {
    /// Where the development gateway keeps keys and messages
    #[arg(long, value_name = "DIR", default_value = dev::DEFAULT_DATA_DIR)]
    data: PathBuf,
    /// Where clients connect; port 0 takes a free one [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are served [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<SocketAddr>,
    #[command(flatten)]
    clock: Clock,
}

#[derive(Args)]
struct Clock {
    /// This host's date is right, so messages may expire by it at once
    ///
    /// Messages expire on a clock of their own, which goes on at most an hour at a start, however far
    /// the host's clock is ahead: a wrong date must not delete mail. After a longer stop it is
    /// behind, which a warning says at the start and ringpost_expiry_clock_lag_seconds while the
    /// gateway runs; messages are kept so much longer. One start with this flag ends that.
    #[arg(long)]
    confirm_clock: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway with a configuration file (engine/reference.toml has every key)
    Serve {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        clock: Clock,
    },
    /// Say what `serve` would refuse, and what will soon be wrong
    ///
    /// Reads the configuration, certificate, key and key set, looks at the data directory, the ports
    /// and the limits of this host, and changes nothing; a gateway may be running meanwhile.
    /// Exit codes: 0 it would start, 1 it would not.
    Check {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// One JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Print a token for one device, signed with the development gateway's key
    Token {
        #[arg(long)]
        user: String,
        #[arg(long)]
        device: String,
        /// The development gateway's directory
        #[arg(long, value_name = "DIR", default_value = dev::DEFAULT_DATA_DIR)]
        data: PathBuf,
        #[arg(long, default_value = DEFAULT_AUDIENCE)]
        audience: String,
        /// How long the token is valid
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        ttl_s: u64,
    },
    /// Print the name under which the audit log tells of a user
    AuditName {
        /// The data_dir of the configuration
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        #[arg(long, value_name = "ID")]
        user: String,
    },
    /// Inspect, verify or compact the stores of a gateway that is not running
    #[command(subcommand)]
    Store(StoreCommand),
}

/// What goes to standard error before a non-zero exit.
struct Failure {
    problems: Vec<Problem>,
    exit_code: u8,
}

struct Problem {
    text: String,
    fix: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => develop(&cli.development).map(|()| 0),
        Some(Command::Serve { config, clock }) => serve(&config, &clock).map(|()| 0),
        Some(Command::Check { config, json }) => Ok(check(&config, json)),
        Some(Command::AuditName { data, user }) => audit_name(&data, &user).map(|()| 0),
        Some(Command::Token { user, device, data, audience, ttl_s }) => {
            token(&user, &device, &data, &audience, ttl_s).map(|()| 0)
        }
        Some(Command::Store(command)) => store(&command),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            for Problem { text, fix } in failure.problems {
                eprintln!("error: {text}");
                eprintln!("fix: {fix}");
            }
            ExitCode::from(failure.exit_code)
        }
    }
}

fn develop(options: &Development) -> Result<(), Failure> {
    dev::prepare(&options.data).map_err(|fault| Failure::new(&fault, fault.fix(), 1))?;
    let mut config = Config::development(&options.data);
    config.listen = options.listen.unwrap_or(config.listen);
    config.admin_listen = options.admin_listen.unwrap_or(config.admin_listen);
    config.confirm_clock = options.clock.confirm_clock;
    let _ = start_logs(&config.log);
    let data = options.data.clone();
    run(config, None, move |serving| {
        announce(serving);
        say(&format!("\n{}", dev::guide(&data, serving.listen, serving.admin_listen)));
    })
}

fn serve(path: &Path, clock: &Clock) -> Result<(), Failure> {
    let mut config = Config::load(path)?;
    config.confirm_clock = clock.confirm_clock;
    let set_log_filter = start_logs(&config.log);
    run(config, Some(Reloading { path: path.to_owned(), set_log_filter }), announce)
}

fn check(path: &Path, json: bool) -> u8 {
    let report = Report::of(path);
    say(if json { report.json() } else { report.human() }.trim_end());
    u8::from(report.count(Grade::Problem) > 0)
}

fn run(
    config: Config,
    reloading: Option<Reloading>,
    on_serving: impl FnOnce(Serving),
) -> Result<(), Failure> {
    start::run(config, reloading, launch::start_shards, on_serving)?;
    Ok(())
}

fn token(user: &str, device: &str, data: &Path, audience: &str, ttl_s: u64) -> Result<(), Failure> {
    let ids_fix = "user: 1 to 128 bytes; device: 1 to 64 ASCII characters";
    let id_fault = |fault| Failure::new(&fault, ids_fix.to_owned(), 2);
    let user = UserId::new(user).map_err(id_fault)?;
    let device = DeviceId::new(device).map_err(id_fault)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let token = TokenKey::load(&dev::Files::of(data).token_key)
        .and_then(|key| key.mint(&user, &device, audience, now_unix_ms, ttl_s))
        .map_err(|fault| Failure::new(&fault, fault.fix(), 2))?;
    say(&token);
    Ok(())
}

fn audit_name(data: &Path, user: &str) -> Result<(), Failure> {
    let ids_fix = "user: 1 to 128 bytes";
    let user = UserId::new(user).map_err(|fault| Failure::new(&fault, ids_fix.to_owned(), 2))?;
    let pseudonyms = Pseudonyms::existing(data)
        .map_err(|fault| Failure::new(&fault, fault.fix().to_owned(), 2))?;
    say(&pseudonyms.name(&user));
    Ok(())
}

fn store(command: &StoreCommand) -> Result<u8, Failure> {
    let _ = start_logs(&LogConfig::default());
    Ok(command.run()?)
}

fn announce(serving: Serving) {
    say(&format!("listening on {}, admin on http://{}", serving.listen, serving.admin_listen));
}

/// A reader that went away is no reason to stop serving, as `println!` would.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Gives what changes the filter later.
fn start_logs(log: &LogConfig) -> SetLogFilter {
    let filter = EnvFilter::new(&log.filter); // checked by the configuration
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match log.format {
        LogFormat::Text => {
            let logs = logs.with_filter_reloading();
            let filter = logs.reload_handle();
            logs.init();
            Box::new(move |text| filter.reload(EnvFilter::new(text)).map_err(|e| e.to_string()))
        }
        LogFormat::Json => {
            let logs = logs.json().with_filter_reloading();
            let filter = logs.reload_handle();
            logs.init();
            Box::new(move |text| filter.reload(EnvFilter::new(text)).map_err(|e| e.to_string()))
        }
    }
}

impl Failure {
    fn new(error: &dyn std::error::Error, fix: String, exit_code: u8) -> Self {
        let problem = Problem { text: error.to_string(), fix };
        Self { problems: vec![problem], exit_code }
    }
}

impl From<ConfigFaults> for Failure {
    fn from(faults: ConfigFaults) -> Self {
        let problem = |fault: ConfigFault| Problem { text: fault.to_string(), fix: fault.fix() };
        Self { problems: faults.0.into_iter().map(problem).collect(), exit_code: 2 }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(&error, error.fix(), error.exit_code())
    }
}

impl From<StoreToolFault> for Failure {
    fn from(fault: StoreToolFault) -> Self {
        Self::new(&fault, fault.fix(), fault.exit_code())
    }
}

const EXAMPLES: &str = "\
Examples:
  ringpost                                     a gateway to try out, ready at once
  ringpost serve --config /etc/ringpost.toml   a gateway with your certificate and keys
  ringpost check --config /etc/ringpost.toml   what serve would refuse, without a start
  ringpost token --user alice --device phone   a token for the gateway to try out
  ringpost store inspect ringpost-data         what is stored, segment by segment
  curl http://127.0.0.1:7480/readyz            whether it serves

SIGTERM or Ctrl-C drains it: clients are told to come back, everything accepted is on disk.
Sockets that a parent hands over (LISTEN_FDS) stay open meanwhile: who comes waits for the next start.
SIGHUP makes `serve` read its file again, with certificate and keys; nobody is disconnected.
Exit codes: 0 drained, 1 the host or the storage failed, 2 wrong usage or configuration.";
