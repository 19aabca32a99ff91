//! The key that signs the clients' tokens.

use std::path::Path;
use std::sync::Arc;

use ringpost_engine::control::auth::Verifier;
use ringpost_engine::control::token::TokenKey;
use ringpost_protocol::id::DeviceAddress;

/// Keys for the tokens, made once outside of every world.
#[derive(Clone)]
pub struct Keys {
    key: Arc<TokenKey>,
    pub verifier: Arc<Verifier>,
}

impl Keys {
    /// Writes a key set into `directory`, because that is what the verifier reads.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let key = TokenKey::from_pem(TEST_KEY_PEM.as_bytes())?;
        let path = directory.join("jwks.json");
        std::fs::write(&path, serde_json::to_vec(&key.jwk_set())?)?;
        let verifier = Verifier::load(&path, AUDIENCE)?;
        Ok(Self { key: Arc::new(key), verifier: Arc::new(verifier) })
    }

    pub fn mint(&self, address: &DeviceAddress, unix_ms: u64, ttl_s: u64) -> String {
        let DeviceAddress { user, device } = address;
        self.key.mint(user, device, AUDIENCE, unix_ms, ttl_s).expect("the key signs")
    }
}

const AUDIENCE: &str = "ringpost";
/// Made of a text that anybody can read: it protects nothing.
const TEST_KEY_PEM: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIHJpbmdwb3N0IHNpbXVsYXRvciwgbm8gc2VjcmV0ISEh
-----END PRIVATE KEY-----
";
