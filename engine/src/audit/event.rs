//! What is worth a line.

use std::net::{IpAddr, SocketAddr};

use ringpost_protocol::id::UserId;
use serde_json::{Value, json};

use super::Pseudonyms;

/// One line of the log. `engine/AUDIT.md` has the same, for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    LoginAccepted(Client),
    LoginRefused {
        client: Client,
        reason: String,
    },
    /// A client that stays brought a token that was not good enough.
    RenewalRefused {
        client: Client,
        reason: String,
    },
    /// A newer connection of the device, from `client`, has ended an older one.
    Replaced(Client),
    /// So many refused logins of about the last second have no line of their own.
    LoginRefusedMore {
        count: u64,
    },
    /// What was refused in a while, by kind; only kinds that occurred.
    Refusals {
        seconds: u64,
        counts: Vec<(String, u64)>,
    },
    Started {
        version: &'static str,
        listen: SocketAddr,
        shards: u16,
        confirm_clock: bool,
    },
    Draining {
        signal: &'static str,
    },
    Stopped {
        reason: String,
    },
    Reloaded {
        restart_needed: Vec<&'static str>,
    },
    ReloadRefused {
        reason: String,
    },
    /// Other keys verify tokens from now on.
    KeysChanged {
        key_ids: Vec<String>,
    },
}

/// Who wants to come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// Of the token; `None` if the token proves nothing.
    pub user: Option<UserId>,
    /// As the client says, if the token proves nothing.
    pub device: String,
    /// The key that signed the token, or that it names.
    pub key_id: Option<String>,
}

impl AuditEvent {
    /// The line, without its end.
    pub(super) fn line(&self, unix_ms: u64, pseudonyms: &Pseudonyms) -> String {
        let mut line = json!({ "unix_ms": unix_ms, "event": self.name() });
        let fields = line.as_object_mut().expect("made above");
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        match self {
            Self::LoginAccepted(client) | Self::Replaced(client) => client.put(pseudonyms, put),
            Self::LoginRefused { client, reason } | Self::RenewalRefused { client, reason } => {
                put("reason", reason.as_str().into());
                client.put(pseudonyms, put);
            }
            Self::LoginRefusedMore { count } => {
                put("count", (*count).into());
            }
            Self::Refusals { seconds, counts } => {
                put("seconds", (*seconds).into());
                let counts = counts.iter().map(|(kind, count)| (kind.clone(), (*count).into()));
                put("counts", Value::Object(counts.collect()));
            }
            Self::Started { version, listen, shards, confirm_clock } => {
                put("version", (*version).into());
                put("listen", listen.to_string().into());
                put("shards", (*shards).into());
                put("confirm_clock", (*confirm_clock).into());
            }
            Self::Draining { signal } => {
                put("signal", (*signal).into());
            }
            Self::Stopped { reason } | Self::ReloadRefused { reason } => {
                put("reason", reason.as_str().into());
            }
            Self::Reloaded { restart_needed } => {
                put("restart_needed", restart_needed.clone().into());
            }
            Self::KeysChanged { key_ids } => {
                put("kids", key_ids.clone().into());
            }
        }
        line.to_string()
    }

    /// Whether it is one of those that a stranger can cause as often as they like.
    pub(super) fn is_refused_login(&self) -> bool {
        matches!(self, Self::LoginRefused { .. } | Self::RenewalRefused { .. })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::LoginAccepted(_) => "login_accepted",
            Self::LoginRefused { .. } => "login_refused",
            Self::RenewalRefused { .. } => "renewal_refused",
            Self::Replaced(_) => "replaced",
            Self::LoginRefusedMore { .. } => "login_refused_more",
            Self::Refusals { .. } => "refusals",
            Self::Started { .. } => "started",
            Self::Draining { .. } => "draining",
            Self::Stopped { .. } => "stopped",
            Self::Reloaded { .. } => "reloaded",
            Self::ReloadRefused { .. } => "reload_refused",
            Self::KeysChanged { .. } => "keys_changed",
        }
    }
}

impl Client {
    fn put(&self, pseudonyms: &Pseudonyms, mut put: impl FnMut(&str, Value) -> Option<Value>) {
        put("address", self.address.to_string().into());
        if let Some(user) = &self.user {
            put("user", pseudonyms.name(user).into());
        }
        put("device", cut(&self.device).into());
        if let Some(key_id) = &self.key_id {
            put("kid", cut(key_id).into());
        }
    }
}

/// What a stranger says is not made long by them.
fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

const TEXT_CHARS_MAX: usize = 128;
