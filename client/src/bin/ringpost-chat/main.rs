//! Talks by hand, or from a script: lines in, lines out. Encrypted from end to end, unless `--plain`.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use ringpost_client::ledger::LedgerConfig;
use ringpost_client::messenger::{Messenger, MessengerConfig};
use ringpost_client::protocol::id::{DeviceId, UserId};
use ringpost_client::protocol::message::Mode;
use ringpost_client::reconnect::ReconnectConfig;
use ringpost_client::{
    Client, ClientConfig, PathConfig, Status, TokenFault, TokenSource, Transports,
};
use zeroize::Zeroizing;

use input::Input;
use names::Names;
use talk::Talk;

mod mint;
mod input;
mod names;
mod talk;
mod plain;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Talk to another user through a Ringpost gateway.
#[derive(Parser)]
#[command(version, after_help = talk::HELP)]
struct Options {
    /// Who you are.
    #[arg(long)]
    user: String,
    /// Which of your devices this is.
    #[arg(long, default_value = "terminal")]
    device: String,
    /// HOST:PORT of the gateway; several are tried in turn.
    #[arg(long, default_value = "127.0.0.1:7443")]
    server: Vec<String>,
    /// Name in the gateway's certificate; default: the host of the first --server.
    #[arg(long)]
    server_name: Option<String>,
    /// The gateway's data directory: its ca.pem, and the key that signs development tokens.
    #[arg(long, default_value = "./ringpost-data")]
    data: PathBuf,
    /// A token of your own instead of a development token; read again at each connect.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Where this client keeps what it must not forget; default: ./chat-data/USER.
    #[arg(long)]
    store: Option<PathBuf>,
    /// Send every line to this user.
    #[arg(long)]
    to: Option<String>,
    /// Take the lines from this file, and leave at its end; see below.
    #[arg(long, conflicts_with = "plain")]
    script: Option<PathBuf>,
    /// Send messages as they are, unencrypted: to look at a gateway with, not to talk with. Knows
    /// /to, /reconnect, /network, /how and /quit.
    #[arg(long)]
    plain: bool,
    /// How to reach the gateway: its UDP and its TCP port have the same number.
    #[arg(long, value_enum, default_value = "auto")]
    transport: TransportChoice,
}

#[derive(Clone, Copy, ValueEnum)]
enum TransportChoice {
    /// QUIC, and a moment later TLS over TCP beside it; the first to answer is used. Where that was
    /// TLS, QUIC is tried again later.
    Auto,
    /// QUIC alone: nothing works where UDP is blocked.
    Quic,
    /// TLS over TCP alone: no UDP packet is sent.
    Tls,
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run());
    // A read of the terminal may be under way; it cannot be cancelled and must not hold us up.
    runtime.shutdown_background();
    result
}

async fn run() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let options = Options::parse();
    let user = UserId::new(&options.user)?;
    let store = match &options.store {
        Some(directory) => directory.clone(),
        None => PathBuf::from("chat-data").join(file_name(user.as_str())?),
    };
    let to = options.to.as_deref().map(UserId::new).transpose()?;
    let config = configure(&options, &user, &store)?;
    if options.plain {
        let client = Client::open(config).await?;
        say("-- messages are not encrypted; /help tells what to type");
        let mut chat = plain::Chat::new(client.clone(), to);
        let result = chat.run().await;
        client.close().await;
        return result;
    }
    fs::create_dir_all(&store)?;
    let names = Names::load(store.join("names"))?;
    let store_key = store_key(&config.database_path.with_extension("key"))?;
    let input = Input::open(options.script.as_deref())?;
    let messenger =
        Messenger::open(MessengerConfig { client: config, user: user.clone(), store_key }).await?;
    say("-- /help tells what to type");
    let mut talk = Talk::new(messenger, user, names, to);
    let result = talk.run(input).await;
    talk.close().await;
    result
}

fn configure(options: &Options, user: &UserId, store: &Path) -> anyhow::Result<ClientConfig> {
    let device = DeviceId::new(&options.device)?;
    let roots = options.data.join("ca.pem");
    let roots_pem = fs::read(&roots).with_context(|| {
        format!("cannot read {}; is the gateway's data directory --data?", roots.display())
    })?;
    let server_name = match &options.server_name {
        Some(name) => name.clone(),
        None => host(&options.server[0])?.into(),
    };
    let token_source: Arc<dyn TokenSource> = match options.token_file.clone() {
        Some(path) => Arc::new(move || {
            let token = fs::read_to_string(&path)
                .map(|text| text.trim().to_owned())
                .map_err(|error| TokenFault::Unavailable(error.to_string()));
            std::future::ready(token)
        }),
        None => Arc::new(mint::DevelopmentTokens::load(&options.data, user, &device)?),
    };
    Ok(ClientConfig {
        addresses: options.server.clone(),
        server_name,
        roots_pem,
        database_path: store.join(format!("{}.redb", file_name(device.as_str())?)),
        token_source,
        device,
        mode: Mode::Foreground,
        path: PathConfig {
            transports: match options.transport {
                TransportChoice::Auto => Transports::Both,
                TransportChoice::Quic => Transports::QuicOnly,
                TransportChoice::Tls => Transports::TlsOnly,
            },
            ..PathConfig::default()
        },
        reconnect: ReconnectConfig::default(),
        ledger: LedgerConfig::default(),
    })
}

/// Made at the first start. A phone has a keychain for this; here the file system guards it.
fn store_key(path: &Path) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    if !path.exists() {
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        let mut options = fs::File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&*key)?;
        file.sync_all()?;
    }
    let bytes = Zeroizing::new(fs::read(path)?);
    let key = bytes.as_slice().try_into();
    Ok(Zeroizing::new(key.with_context(|| format!("{} is not a key", path.display()))?))
}

fn show_status(status: &Status) {
    match status {
        Status::Connected => say("-- connected"),
        Status::CaughtUp => say("-- caught up"),
        Status::Disconnected { retry_in_ms, reason } => {
            say(&format!("-- disconnected ({reason}); trying again in {retry_in_ms} ms"));
        }
        Status::Replaced => say("-- another terminal took over this device; /reconnect takes it"),
        Status::TokenRefused { reason } => {
            say(&format!("-- the token was refused ({reason}); /reconnect tries again"));
        }
        Status::StoreFailed { reason } => say(&format!("-- the database failed: {reason}")),
    }
}

/// One line, at once: a script reads it.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let over_prompt = if io::stdin().is_terminal() && out.is_terminal() { "\r" } else { "" };
    // Nothing can be done for a reader that has gone.
    let _ = writeln!(out, "{over_prompt}{line}").and_then(|()| out.flush());
}

/// What others wrote must not steer the terminal or pretend to be a line of its own.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// A user may be called `../x`.
fn file_name(id: &str) -> anyhow::Result<String> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-_@".contains(char);
    if id.chars().all(is_plain) {
        return Ok(id.into());
    }
    if id.len() > ID_BYTES_IN_HEX_MAX {
        bail!("this user id makes no file name; name a directory with --store");
    }
    // A point cannot begin a plain name, so the two kinds do not meet.
    let hex: String = id.bytes().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(".{hex}"))
}

fn host(address: &str) -> anyhow::Result<&str> {
    let (host, _) = address.rsplit_once(':').context("--server takes HOST:PORT")?;
    Ok(host.trim_start_matches('[').trim_end_matches(']'))
}

const ANSWERS_AFTER_INPUT: Duration = Duration::from_secs(10);
/// File names have 255 bytes.
const ID_BYTES_IN_HEX_MAX: usize = 120;
