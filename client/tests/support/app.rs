//! An app that keeps and confirms what it is told, at once.

use std::path::Path;
use std::time::Duration;

use ringpost_client::{Client, Event, News, PathConfig, SendId, SendOptions, Status, Transport};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::support::gateway::Gateway;
use crate::support::{text, user};

#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) messages: Vec<String>,
    pub(crate) sent: Vec<SendId>,
    pub(crate) statuses: Vec<Status>,
}

pub(crate) struct App {
    pub(crate) client: Client,
    seen: watch::Receiver<Seen>,
    pump: JoinHandle<()>,
}

impl App {
    pub(crate) async fn open(gateway: &Gateway, store: &Path, path: PathConfig) -> Self {
        Self::open_at(&gateway.address, gateway, store, path).await
    }

    /// By way of another address.
    pub(crate) async fn open_at(
        address: &str,
        gateway: &Gateway,
        store: &Path,
        path: PathConfig,
    ) -> Self {
        let mut config = gateway.client_config(store, path);
        config.addresses = vec![address.to_owned()];
        let client = Client::open(config).await.unwrap();
        let (seen_in, seen) = watch::channel(Seen::default());
        let events = client.clone();
        let pump = tokio::spawn(async move {
            while let Some(event) = events.next_event().await {
                let id = match &event {
                    Event::News { id, .. } => Some(*id),
                    Event::Status(_) | Event::Hint(_) => None,
                };
                seen_in.send_modify(|seen| seen.take(event));
                if let Some(id) = id {
                    let _ = events.confirm(id).await; // a closing client may not
                }
            }
        });
        Self { client, seen, pump }
    }

    pub(crate) async fn send(&self, body: &str) -> SendId {
        self.client.send(user("bob"), text(body), SendOptions::default()).await.unwrap()
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    pub(crate) async fn wait(&self, what: &str, enough: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        match timeout(PATIENCE, seen.wait_for(enough)).await {
            Ok(Ok(seen)) => seen.clone(),
            failed => {
                drop(failed);
                panic!("{what}: not in time; {:?}", self.seen())
            }
        }
    }

    /// Of that many connections the last one, too.
    pub(crate) async fn wait_caught_up(&self, count: usize) {
        let is_caught_up = |status: &&Status| **status == Status::CaughtUp;
        let enough = |seen: &Seen| seen.statuses.iter().filter(is_caught_up).count() >= count;
        self.wait("caught up", enough).await;
    }

    pub(crate) async fn wait_transport(&self, transport: Transport) {
        wait_until(&format!("over {transport}"), || self.client.transport() == Some(transport))
            .await;
    }

    pub(crate) fn disconnections(&self) -> usize {
        let is_end = |status: &&Status| matches!(status, Status::Disconnected { .. });
        self.seen().statuses.iter().filter(is_end).count()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.pump.abort(); // it holds the client open
    }
}

impl Seen {
    fn take(&mut self, event: Event) {
        match event {
            Event::Status(status) => self.statuses.push(status),
            Event::Hint(hint) => panic!("not expected: {hint:?}"),
            Event::News { news: News::Message(message), .. } => {
                self.messages.push(String::from_utf8(message.envelope.to_vec()).unwrap());
            }
            Event::News { news: News::Sent(sent), .. } => self.sent.push(sent.id),
            Event::News { news, .. } => panic!("not expected: {news:?}"),
        }
    }
}

pub(crate) async fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let ready = async {
        while !ready() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, ready).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
