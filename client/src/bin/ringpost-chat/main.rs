//! Talks by hand, or from a script: lines in, lines out.
//!
//! Messages are sent as plain UTF-8: this is a tool to look at a gateway with, not a messenger.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use ringpost_client::ledger::LedgerConfig;
use ringpost_client::protocol::id::{DeviceId, SendSeq, UserId};
use ringpost_client::protocol::message::{GapReason, Mode, Recipient, SendBody};
use ringpost_client::reconnect::ReconnectConfig;
use ringpost_client::{
    Client, ClientConfig, Event, News, PathConfig, Receipt, SendError, SendId, SendOptions, Status,
    TokenFault, TokenSource, Transports,
};
use tokio::io::{AsyncBufReadExt, BufReader};

mod mint;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Talk to another user through a Ringpost gateway.
#[derive(Parser)]
#[command(version, after_help = HELP)]
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

/// What the loop knows.
struct Chat {
    client: Client,
    to: Option<UserId>,
    /// Sent in this run and not answered.
    unanswered_count: usize,
    /// Accepted in this run and not yet reported as delivered.
    undelivered: BTreeMap<SendSeq, (SendId, UserId)>,
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
    let to = options.to.as_deref().map(UserId::new).transpose()?;
    let client = open(&options).await?;
    say("-- messages are not encrypted end to end by this tool; /help tells what to type");
    let mut chat = Chat { client, to, unanswered_count: 0, undelivered: BTreeMap::new() };
    let result = chat.run().await;
    chat.client.close().await;
    result
}

async fn open(options: &Options) -> anyhow::Result<Client> {
    let user = UserId::new(&options.user)?;
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
        None => Arc::new(mint::DevelopmentTokens::load(&options.data, &user, &device)?),
    };
    let store = match &options.store {
        Some(directory) => directory.clone(),
        None => PathBuf::from("chat-data").join(file_name(user.as_str())?),
    };
    let config = ClientConfig {
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
    };
    Ok(Client::open(config).await?)
}

impl Chat {
    async fn run(&mut self) -> anyhow::Result<()> {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut is_input_open = true;
        let give_up = tokio::time::sleep(Duration::MAX);
        tokio::pin!(give_up);
        self.prompt();
        while is_input_open || self.unanswered_count > 0 {
            tokio::select! {
                line = lines.next_line(), if is_input_open => match line? {
                    Some(line) if line.trim() == "/quit" => return Ok(()),
                    Some(line) => self.handle_line(line.trim_end()).await?,
                    None => {
                        is_input_open = false;
                        give_up.set(tokio::time::sleep(ANSWERS_AFTER_INPUT));
                    }
                },
                event = self.client.next_event() => match event {
                    Some(event) => self.handle_event(event).await?,
                    None => bail!("the client has closed"),
                },
                () = &mut give_up, if !is_input_open => {
                    say("-- not everything was accepted; it is kept and sent next time");
                    return Ok(());
                }
            }
            self.prompt();
        }
        Ok(())
    }

    async fn handle_line(&mut self, line: &str) -> anyhow::Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(command) = line.strip_prefix('/') {
            match command.split_once(' ').unwrap_or((command, "")) {
                ("help", _) => say(HELP),
                ("to", "") => self.to = None,
                ("to", name) => match UserId::new(name.trim()) {
                    Ok(user) => self.to = Some(user),
                    Err(fault) => say(&format!("-- {fault}")),
                },
                ("reconnect", _) => self.client.reconnect().await?,
                ("network", _) => self.client.network_changed().await?,
                ("how", _) => say(&match self.client.transport() {
                    Some(transport) => format!("-- over {transport}"),
                    None => "-- not connected".into(),
                }),
                _ => say("-- unknown command; /help"),
            }
            return Ok(());
        }
        let (user, text) = match (&self.to, line.split_once(':')) {
            (Some(user), _) => (user.clone(), line),
            (None, Some((name, text))) => match UserId::new(name.trim()) {
                Ok(user) => (user, text.trim_start()),
                Err(fault) => {
                    say(&format!("-- {fault}"));
                    return Ok(());
                }
            },
            (None, None) => {
                say("-- to whom? type `bob: hello`, or first `/to bob`");
                return Ok(());
            }
        };
        let body = SendBody::Shared(Bytes::copy_from_slice(text.as_bytes()));
        match self.client.send(Recipient::User(user), body, SendOptions::default()).await {
            Ok(_) => self.unanswered_count += 1,
            Err(SendError::Fault(fault)) => say(&format!("-- not sent: {fault}")),
            Err(SendError::Closed(closed)) => return Err(closed.into()),
        }
        Ok(())
    }

    async fn handle_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::News { id, news } => {
                self.show_news(news);
                // Shown first: a crash in between shows it twice rather than never.
                self.client.confirm(id).await?;
            }
            Event::Status(status) => show_status(&status),
            Event::Hint(_) => {}
        }
        Ok(())
    }

    fn show_news(&mut self, news: News) {
        match news {
            News::Message(message) => {
                let text = printable(&String::from_utf8_lossy(&message.envelope));
                say(&format!("{}: {text}", printable(message.from.user.as_str())));
            }
            News::Sent(sent) => {
                self.unanswered_count = self.unanswered_count.saturating_sub(1);
                say(&format!("-- sent #{}", sent.id.0));
                for (user, device, reason) in &sent.skipped {
                    let (user, device) = (printable(user.as_str()), printable(device.as_str()));
                    say(&format!("-- #{} not for {user}/{device}: {reason:?}", sent.id.0));
                }
                if let Recipient::User(user) = sent.to {
                    self.undelivered.insert(sent.send_seq, (sent.id, user));
                }
            }
            News::Refused(refused) => {
                self.unanswered_count = self.unanswered_count.saturating_sub(1);
                say(&format!("-- refused #{}: {:?}", refused.id.0, refused.code));
            }
            News::Delivered(receipt) => self.show_receipt(&receipt),
            News::Gap(gap) => {
                say(&format!("-- messages to you are missing: {}", cause(gap.reason)))
            }
            News::Sealed(_) => {}
        }
    }

    fn show_receipt(&mut self, receipt: &Receipt) {
        let peer = printable(receipt.peer.user.as_str());
        let covered: Vec<SendSeq> = self
            .undelivered
            .range(..=receipt.up_to_send_seq)
            .filter(|(_, (_, user))| *user == receipt.peer.user)
            .map(|(send_seq, _)| *send_seq)
            .collect();
        for send_seq in &covered {
            if let Some((id, _)) = self.undelivered.remove(send_seq) {
                say(&format!("-- delivered #{} to {peer}", id.0));
            }
        }
        if covered.is_empty() {
            say(&format!("-- {peer} has what you sent earlier"));
        }
    }

    fn prompt(&self) {
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            let to = self.to.as_ref().map_or("", UserId::as_str);
            print!("{to}> ");
            // Nothing can be done for a terminal that has gone.
            let _ = io::stdout().flush();
        }
    }
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

/// Why the server does not deliver something.
fn cause(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Full => "your mailbox was full",
        GapReason::Expired => "they waited too long",
        GapReason::Damaged => "the server's disk has lost them",
        GapReason::Unspecified => "the server does not say why",
    }
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
const HELP: &str = "\
  bob: hello     send \"hello\" to bob
  /to bob        send every following line to bob; /to alone ends that
  /reconnect     connect now
  /network       the network has changed: QUIC moves along, TLS connects again
  /how           which transport the connection uses
  /quit          leave at once; what is not sent yet is kept and sent next time
At the end of piped input the tool waits for the answers, 10 s at most, then leaves.";
