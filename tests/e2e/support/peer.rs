//! One device with the real client library. What the app is told is kept and confirmed at once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use ringpost_client::ledger::LedgerConfig;
use ringpost_client::reconnect::ReconnectConfig;
use ringpost_client::{
    Client, ClientConfig, Event, Gap, Message, News, PathConfig, Receipt, Refused, SendError,
    SendId, SendOptions, Sent, Status, Transports,
};
use ringpost_protocol::id::{DeviceId, UserId};
use ringpost_protocol::message::{Mode, Recipient, SendBody};
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PATIENCE;
use super::gateway::Gateway;

/// What the app was told, in order.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub messages: Vec<Message>,
    pub sent: Vec<Sent>,
    pub refused: Vec<Refused>,
    pub receipts: Vec<Receipt>,
    pub gaps: Vec<Gap>,
    pub statuses: Vec<Status>,
}

pub struct Peer {
    pub user: String,
    pub client: Client,
    seen: watch::Receiver<Seen>,
    pump: JoinHandle<()>,
    /// One for each confirmation under way.
    confirming: Arc<Semaphore>,
}

/// How a client reaches the gateway.
pub struct Way {
    pub address: SocketAddr,
    pub path: PathConfig,
    /// See [`ReconnectConfig::stable_ms`].
    pub stable_ms: u64,
}

/// Where a device keeps its database between two [`Peer`]s.
pub struct Place {
    directory: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Way {
    pub fn tls(gateway: &Gateway) -> Self {
        Self {
            address: gateway.address(),
            path: PathConfig { transports: Transports::TlsOnly, ..PathConfig::default() },
            stable_ms: 1_000,
        }
    }
}

/// What a device of the tests opens its client with.
pub fn client_config(
    way: Way,
    gateway: &Gateway,
    user: &str,
    device: &str,
    database: &Path,
) -> ClientConfig {
    ClientConfig {
        addresses: vec![way.address.to_string()],
        server_name: "localhost".to_owned(),
        roots_pem: gateway.keys.roots_pem.clone(),
        database_path: database.to_owned(),
        token_source: gateway.keys.token_source(user, device),
        device: DeviceId::new(device).unwrap(),
        mode: Mode::Foreground,
        path: way.path,
        reconnect: ReconnectConfig { first_ms: 20, ceiling_ms: 200, stable_ms: way.stable_ms },
        ledger: LedgerConfig::default(),
    }
}

impl Peer {
    /// Over TLS.
    pub async fn open(gateway: &Gateway, user: &str, device: &str, database: &Path) -> Self {
        Self::open_by(Way::tls(gateway), gateway, user, device, database).await
    }

    pub async fn open_by(
        way: Way,
        gateway: &Gateway,
        user: &str,
        device: &str,
        database: &Path,
    ) -> Self {
        let config = client_config(way, gateway, user, device, database);
        let client = Client::open(config).await.unwrap();
        let (seen_in, seen) = watch::channel(Seen::default());
        let confirming = Arc::new(Semaphore::new(CONFIRMING_MAX as usize));
        let pump = tokio::spawn(pump(client.clone(), seen_in, Arc::clone(&confirming)));
        Self { user: user.to_owned(), client, seen, pump, confirming }
    }

    /// Opens it and waits for its Welcome.
    pub async fn connect(gateway: &Gateway, user: &str, device: &str, database: &Path) -> Self {
        let peer = Self::open(gateway, user, device, database).await;
        peer.wait("connected", |seen| seen.count(&Status::Connected) > 0).await;
        peer
    }

    pub async fn send(&self, to: &str, text: &str) -> SendId {
        self.try_send(to, text).await.unwrap()
    }

    pub async fn try_send(&self, to: &str, text: &str) -> Result<SendId, SendError> {
        let body = SendBody::Shared(Bytes::copy_from_slice(text.as_bytes()));
        let to = Recipient::User(UserId::new(to).unwrap());
        self.client.send(to, body, SendOptions::default()).await
    }

    pub async fn send_each(&self, to: &str, bodies: Vec<(&str, &str)>) -> SendId {
        let envelopes = bodies.into_iter().map(|(device, text)| {
            (DeviceId::new(device).unwrap(), Bytes::copy_from_slice(text.as_bytes()))
        });
        let body = SendBody::PerDevice(envelopes.collect());
        let to = Recipient::User(UserId::new(to).unwrap());
        self.client.send(to, body, SendOptions::default()).await.unwrap()
    }

    /// Waits until the app has been told enough.
    pub async fn wait(&self, what: &str, enough: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        let result = timeout(PATIENCE, seen.wait_for(enough)).await;
        match result {
            Ok(Ok(seen)) => seen.clone(),
            Ok(Err(_)) => panic!("{what}: the client has closed; {}", self.seen().summary()),
            Err(_) => {
                panic!("{what}: {} within {PATIENCE:?}: {}", self.user, self.seen().summary())
            }
        }
    }

    pub async fn wait_messages(&self, count: usize) -> Seen {
        self.wait(&format!("{count} messages"), |seen| seen.messages.len() >= count).await
    }

    pub async fn wait_sent(&self, count: usize) -> Seen {
        self.wait(&format!("{count} sent"), |seen| seen.sent.len() >= count).await
    }

    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// For waiting elsewhere.
    pub fn watcher(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Closes the connection and the database.
    pub async fn close(mut self) -> Seen {
        let confirmed = self.confirming.acquire_many(CONFIRMING_MAX);
        drop(timeout(PATIENCE, confirmed).await.expect("confirmations are answered").unwrap());
        timeout(PATIENCE, self.client.close()).await.expect("closing is bounded");
        timeout(PATIENCE, &mut self.pump).await.expect("the events end").unwrap();
        self.seen()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.pump.abort(); // it holds the client open
    }
}

impl Seen {
    pub fn texts(&self) -> Vec<String> {
        let text = |message: &Message| String::from_utf8(message.envelope.to_vec()).unwrap();
        self.messages.iter().map(text).collect()
    }

    pub fn texts_from(&self, user: &str) -> Vec<String> {
        let from = Self {
            messages: self
                .messages
                .iter()
                .filter(|message| message.from.user.as_str() == user)
                .cloned()
                .collect(),
            ..Self::default()
        };
        from.texts()
    }

    pub fn count_from(&self, user: &str) -> usize {
        self.messages.iter().filter(|message| message.from.user.as_str() == user).count()
    }

    pub fn count(&self, status: &Status) -> usize {
        self.statuses.iter().filter(|seen| *seen == status).count()
    }

    fn summary(&self) -> String {
        format!(
            "{} messages, {} sent, refused {:?}, receipts {:?}, gaps {:?}, {:?}",
            self.messages.len(),
            self.sent.len(),
            self.refused,
            self.receipts,
            self.gaps,
            self.statuses
        )
    }
}

async fn pump(client: Client, seen: watch::Sender<Seen>, confirming: Arc<Semaphore>) {
    while let Some(event) = client.next_event().await {
        match event {
            Event::Status(status) => seen.send_modify(|seen| seen.statuses.push(status)),
            Event::Hint(_) => {}
            Event::News { id, news } => {
                seen.send_modify(|seen| match news {
                    News::Message(message) => seen.messages.push(message),
                    News::Sent(sent) => seen.sent.push(sent),
                    News::Refused(refused) => seen.refused.push(refused),
                    News::Delivered(receipt) => seen.receipts.push(receipt),
                    News::Gap(gap) => seen.gaps.push(gap),
                    News::Sealed(_) => unreachable!("only a messenger makes them"),
                });
                // Many at a time share one commit.
                let permit = Arc::clone(&confirming).acquire_owned().await.unwrap();
                let client = client.clone();
                tokio::spawn(async move {
                    // What a closing client does not confirm is told again.
                    let _ = client.confirm(id).await;
                    drop(permit);
                });
            }
        }
    }
}

/// Tells background tasks of a test to end.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

const CONFIRMING_MAX: u32 = 256;
