//! An app: one device of a person who uses the messenger. What it is told is kept and confirmed at
//! once.

use std::path::Path;
use std::time::Duration;

use ringpost_client::Status;
use ringpost_client::messenger::{Event, MessageId, Messenger, MessengerConfig, News, Text};
use ringpost_protocol::id::UserId;
use tokio::time::timeout;

use super::PATIENCE;
use super::gateway::Gateway;
use super::peer::{Way, client_config};

pub struct App {
    pub messenger: Messenger,
    pub news: Vec<News>,
    user: UserId,
}

/// The messenger of a device, over TLS.
pub async fn open_messenger(
    gateway: &Gateway,
    user: &str,
    device: &str,
    database: &Path,
) -> Messenger {
    let client = client_config(Way::tls(gateway), gateway, user, device, database);
    let config = MessengerConfig { client, user: id(user), store_key: [7; 32].into() };
    Messenger::open(config).await.unwrap()
}

impl App {
    pub async fn open(gateway: &Gateway, user: &str, device: &str, database: &Path) -> Self {
        let messenger = open_messenger(gateway, user, device, database).await;
        Self { messenger, news: Vec::new(), user: id(user) }
    }

    /// Takes news until one is as wanted.
    pub async fn wait(&mut self, what: &str, mut is_it: impl FnMut(&News) -> bool) -> News {
        let found = async {
            loop {
                let event = self.messenger.next_event().await.expect("it is open");
                let Event::News { id, news } = event else { continue };
                self.messenger.confirm(id).await.unwrap();
                self.news.push(news.clone());
                if is_it(&news) {
                    return news;
                }
            }
        };
        match timeout(PATIENCE, found).await {
            Ok(news) => news,
            Err(_) => panic!("{what}: {:?}", self.news),
        }
    }

    /// The same, of all that it was ever told.
    pub async fn told(&mut self, what: &str, mut is_it: impl FnMut(&News) -> bool) -> News {
        match self.news.iter().find(|news| is_it(news)) {
            Some(news) => news.clone(),
            None => self.wait(what, is_it).await,
        }
    }

    /// Takes everything that waited for it at the server.
    pub async fn catch_up(&mut self) {
        let caught_up = async {
            loop {
                match self.messenger.next_event().await.expect("it is open") {
                    Event::Status(Status::CaughtUp) => return,
                    Event::Status(_) => {}
                    Event::News { id, news } => {
                        self.messenger.confirm(id).await.unwrap();
                        self.news.push(news);
                    }
                }
            }
        };
        timeout(PATIENCE, caught_up).await.expect("the server says when that was all");
    }

    pub async fn read(&mut self, text: &str) -> Text {
        let is_it = |news: &News| matches!(news, News::Text(it) if it.text == text);
        match self.told(text, is_it).await {
            News::Text(text) => text,
            news => unreachable!("{news:?} is no text"),
        }
    }

    pub async fn send(&self, to: &str, text: &str) -> MessageId {
        self.messenger.send(&id(to), text).await.unwrap()
    }

    pub async fn sent(&mut self) {
        self.wait("sent", |news| matches!(news, News::Sent { .. })).await;
    }

    /// Until the server has answered everything.
    pub async fn flushed(&self) {
        timeout(PATIENCE, self.messenger.flushed()).await.expect("the server answers").unwrap();
    }

    /// Until keys and device list are at the server.
    pub async fn published(&self) {
        let published = async {
            let client = self.messenger.client();
            loop {
                let list = client.device_list(self.user.clone()).await;
                let count = client.key_count().await;
                if list.is_ok_and(|list| list.version > 0) && count == Ok(100) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, published).await.expect("keys and list are published by themselves");
    }

    /// Takes in another device of this user, by the code that it shows.
    pub async fn link(&mut self, new: &mut Self) {
        let code = new.messenger.link_code().await.unwrap().expect("it is not linked");
        self.messenger.link_device(&code).await.unwrap();
        new.told("linked", |news| *news == News::Linked).await;
    }

    /// Until it believes that `user` has so many devices.
    pub async fn wait_devices(&self, user: &str, count: usize) {
        let known = async {
            loop {
                let devices = self.messenger.devices(&id(user)).await.unwrap();
                if devices.is_some_and(|devices| devices.len() == count) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, known).await.expect("lists of devices get about");
    }

    pub fn texts(&self) -> Vec<&str> {
        let texts = self.news.iter().filter_map(|news| match news {
            News::Text(text) => Some(text.text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// What people are told when something is wrong, in the order it was told.
    pub fn reasons(&self) -> Vec<&str> {
        let reasons = self.news.iter().filter_map(|news| match news {
            News::Undecryptable { reason, .. }
            | News::Refused { reason, .. }
            | News::IdentityChanged { reason, .. }
            | News::NotSent { reason, .. } => Some(reason.as_str()),
            _ => None,
        });
        reasons.collect()
    }

    pub async fn close(self) {
        self.messenger.close().await;
    }

    pub fn refusals(&self) -> usize {
        let is_refusal = |news: &&News| {
            matches!(news, News::Undecryptable { .. } | News::Refused { .. } | News::NotSent { .. })
        };
        self.news.iter().filter(is_refusal).count()
    }
}

pub fn id(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Opens it until its keys are at the server.
pub async fn register(gateway: &Gateway, user: &str, database: &Path) {
    let app = App::open(gateway, user, "phone", database).await;
    app.published().await;
    app.close().await;
}
