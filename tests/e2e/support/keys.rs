//! Certificates and tokens as the development gateway makes them.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ringpost_client::{TokenFault, TokenSource};
use ringpost_engine::control::dev::{self, Files};
use ringpost_engine::control::token::TokenKey;
use ringpost_protocol::id::{DeviceId, UserId};

#[derive(Clone)]
pub struct Keys {
    pub files: Files,
    pub roots_pem: Vec<u8>,
    token_key: TokenKey,
}

impl Keys {
    /// Makes what is missing in `directory`.
    pub fn prepare(directory: &Path) -> Self {
        let files = dev::prepare(directory).unwrap();
        let roots_pem = std::fs::read(&files.authority).unwrap();
        let token_key = TokenKey::load(&files.token_key).unwrap();
        Self { files, roots_pem, token_key }
    }

    pub fn token(&self, user: &str, device: &str) -> String {
        self.token_for(user, device, "ringpost", now_unix_ms())
    }

    /// Valid for an hour from `from_unix_ms`.
    pub fn token_for(&self, user: &str, device: &str, audience: &str, from_unix_ms: u64) -> String {
        let (user, device) = (UserId::new(user).unwrap(), DeviceId::new(device).unwrap());
        self.token_key.mint(&user, &device, audience, from_unix_ms, 3600).unwrap()
    }

    pub fn token_source(&self, user: &str, device: &str) -> Arc<dyn TokenSource> {
        let (keys, user, device) = (self.clone(), user.to_owned(), device.to_owned());
        Arc::new(move || std::future::ready(Ok::<_, TokenFault>(keys.token(&user, &device))))
    }
}

pub fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// A user of that name whose home is shard `shard` of `shards`.
pub fn user_at(shard: u16, shards: u16, name: &str) -> String {
    (0..)
        .map(|number| format!("{name}-{number}"))
        .find(|id| UserId::new(id).unwrap().slot().shard(shards) == shard)
        .expect("the slots of names are spread")
}
