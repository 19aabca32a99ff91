//! One process: a few users on the client library, each with its journals. It may die at any moment
//! and goes on where it was.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use ringpost_client::ledger::LedgerConfig;
use ringpost_client::reconnect::ReconnectConfig;
use ringpost_client::{
    Client, ClientConfig, Event, News, PathConfig, SendError, SendOptions, Status, TokenFault,
    Transports,
};
use ringpost_protocol::id::{DeviceId, UserId};
use ringpost_protocol::message::{Mode, Recipient, SendBody};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::DurablePlan;
use super::journal::{Entry, Journal};
use super::verify::{RECEIVED, SENT};
use crate::client::DEVICE;
use crate::tokens::TokenMint;

/// Runs the users of the process with this number until the finish file is there.
pub fn run(plan: &DurablePlan, process: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let mut users = JoinSet::new();
        let first = process * plan.users_per_process;
        for user in first..first + plan.users_per_process {
            users.spawn(run_user(plan.clone(), user));
        }
        while let Some(ended) = users.join_next().await {
            ended.context("a user's task ended")??;
        }
        Ok(())
    })
}

async fn run_user(plan: DurablePlan, user: u32) -> Result<()> {
    let directory = plan.user_directory(user);
    std::fs::create_dir_all(&directory).context("make a user's directory")?;
    let client = open(&plan, user, &directory).await?;
    let sending = tokio::spawn(send(plan.clone(), user, client.clone()));
    let receiving = tokio::spawn(receive(plan.clone(), user, client.clone()));
    while !plan.finish_file().exists() {
        if sending.is_finished() && !plan.stop_file().exists() || receiving.is_finished() {
            break;
        }
        sleep(LOOK).await;
    }
    client.close().await;
    sending.await.context("the sender ended")??;
    receiving.await.context("the receiver ended")?
}

async fn open(plan: &DurablePlan, user: u32, directory: &Path) -> Result<Client> {
    let mint = Arc::new(TokenMint::load(&plan.data, TOKEN_LIFETIME)?);
    let name = plan.user_name(user);
    let token_source = move || {
        let minted = mint.mint(&name, DEVICE);
        std::future::ready(minted.map_err(|error| TokenFault::Unavailable(error.to_string())))
    };
    let config = ClientConfig {
        addresses: vec![plan.target.to_string()],
        server_name: plan.server_name.clone(),
        roots_pem: std::fs::read(plan.data.join("ca.pem")).context("read ca.pem")?,
        database_path: directory.join("client.redb"),
        token_source: Arc::new(token_source),
        device: DeviceId::new(DEVICE).context("a name of a device")?,
        mode: Mode::Foreground,
        path: PathConfig { transports: Transports::TlsOnly, ..PathConfig::default() },
        // A gateway that is killed is back within a second or two.
        reconnect: ReconnectConfig { first_ms: 100, ceiling_ms: 1_000, stable_ms: 5_000 },
        ledger: LedgerConfig::default(),
    };
    Client::open(config).await.context("open the client")
}

/// Numbers go on behind the last one that was ever tried.
async fn send(plan: DurablePlan, user: u32, client: Client) -> Result<()> {
    while !plan.start_file().exists() && !plan.stop_file().exists() {
        sleep(LOOK).await;
    }
    let (mut journal, entries) = Journal::open(&plan.user_directory(user).join(SENT))?;
    let tried = entries.iter().filter_map(|entry| match entry {
        Entry::Sending(number) => Some(*number),
        _ => None,
    });
    let mut number = tried.max().unwrap_or(0);
    let peer = plan.user_name(plan.peer(user));
    let to = Recipient::User(UserId::new(&peer).context("a name of a user")?);
    let mut due = Instant::now();
    while !plan.stop_file().exists() {
        due += plan.interval;
        sleep_until(due).await;
        number += 1;
        journal.append(Entry::Sending(number))?;
        let body = SendBody::Shared(payload(number, plan.payload_bytes));
        match client.send(to.clone(), body, SendOptions::default()).await {
            Ok(id) => journal.append(Entry::Taken { number, send_id: id.0 })?,
            // The outbox is full: nothing was taken. The number is not used again.
            Err(SendError::Fault(_)) => sleep(OUTBOX_PAUSE).await,
            Err(SendError::Closed(_)) => break,
        }
    }
    Ok(())
}

/// Writes down what the app is told, and only then confirms it. News that come again after a death
/// are known by their ids.
async fn receive(plan: DurablePlan, user: u32, client: Client) -> Result<()> {
    let (mut journal, entries) = Journal::open(&plan.user_directory(user).join(RECEIVED))?;
    let known = entries.iter().filter_map(|entry| match entry {
        Entry::News { event_id, .. } | Entry::Gap { event_id } => Some(*event_id),
        _ => None,
    });
    let mut last = known.max().unwrap_or(0);
    while let Some(event) = client.next_event().await {
        let (id, news) = match event {
            Event::News { id, news } => (id, news),
            Event::Status(Status::StoreFailed { reason }) => {
                anyhow::bail!("the client's database failed: {reason}")
            }
            Event::Status(Status::Replaced | Status::TokenRefused { .. }) => {
                if client.reconnect().await.is_err() {
                    break;
                }
                continue;
            }
            Event::Status(Status::Connected) => {
                std::fs::write(plan.known_file(user), "").context("tell that a user is known")?;
                continue;
            }
            Event::Status(_) | Event::Hint(_) => continue,
        };
        if id.0 > last {
            last = id.0;
            if let News::Refused(refused) = &news {
                journal.append(Entry::Refused { send_id: refused.id.0 })?;
            }
            journal.append(match &news {
                News::Message(message) => {
                    let number = number_of(&message.envelope);
                    Entry::News { event_id: id.0, number: Some(number) }
                }
                News::Gap(_) => Entry::Gap { event_id: id.0 },
                _ => Entry::News { event_id: id.0, number: None },
            })?;
        }
        if client.confirm(id).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn payload(number: u64, payload_bytes: usize) -> Bytes {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(payload_bytes.max(payload.len()), number.to_le_bytes()[0]);
    payload.into()
}

/// A damaged payload has no number: as nobody sends 0, it counts as invented.
fn number_of(envelope: &[u8]) -> u64 {
    let Some((head, filling)) = envelope.split_first_chunk() else { return 0 };
    let number = u64::from_le_bytes(*head);
    if filling.iter().all(|byte| *byte == head[0]) { number } else { 0 }
}

const LOOK: Duration = Duration::from_millis(50);
const OUTBOX_PAUSE: Duration = Duration::from_millis(200);
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
