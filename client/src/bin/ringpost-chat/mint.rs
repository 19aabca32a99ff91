//! Development tokens, signed with the key that the gateway leaves in its data directory.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ringpost_client::protocol::id::{DeviceId, UserId};
use ringpost_client::{TokenFault, TokenFuture, TokenSource};
use serde_json::{Value, json};

/// Makes a fresh token at each connect.
pub(crate) struct DevelopmentTokens {
    header: Header,
    key: EncodingKey,
    user: UserId,
    device: DeviceId,
}

impl DevelopmentTokens {
    /// Reads `token-key.pem` (PKCS8, Ed25519 or P-256) and `jwks.json`, which names it.
    pub(crate) fn load(data: &Path, user: &UserId, device: &DeviceId) -> anyhow::Result<Self> {
        let path = data.join("token-key.pem");
        let pem = fs::read(&path).with_context(|| {
            format!("cannot read {}; use --token-file with other gateways", path.display())
        })?;
        let (algorithm, key_type, key) = if let Ok(key) = EncodingKey::from_ed_pem(&pem) {
            (Algorithm::EdDSA, "OKP", key)
        } else if let Ok(key) = EncodingKey::from_ec_pem(&pem) {
            (Algorithm::ES256, "EC", key)
        } else {
            bail!("{} is neither an Ed25519 nor a P-256 key in PKCS8 PEM", path.display());
        };
        let mut header = Header::new(algorithm);
        header.kid = Some(key_id(data, key_type)?);
        Ok(Self { header, key, user: user.clone(), device: device.clone() })
    }

    fn mint(&self) -> Result<String, TokenFault> {
        let now_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|error| TokenFault::Unavailable(error.to_string()))?
            .as_secs();
        let claims = json!({
            "sub": self.user.as_str(),
            "device": self.device.as_str(),
            "aud": "ringpost",
            "iat": now_s,
            "exp": now_s + LIFETIME_S,
        });
        jsonwebtoken::encode(&self.header, &claims, &self.key)
            .map_err(|error| TokenFault::Denied(error.to_string()))
    }
}

impl TokenSource for DevelopmentTokens {
    fn token(&self) -> TokenFuture<'_> {
        Box::pin(std::future::ready(self.mint()))
    }
}

fn key_id(data: &Path, key_type: &str) -> anyhow::Result<String> {
    let path = data.join("jwks.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let jwks: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let keys = jwks["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = keys.iter().find(|key| key["kty"] == key_type).and_then(|key| key["kid"].as_str());
    let id = id.with_context(|| format!("{} names no {key_type} key", path.display()))?;
    Ok(id.into())
}

/// Longer than a terminal is left open; a connection that outlives it gets a new one.
const LIFETIME_S: u64 = 24 * 3600;

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};

    use super::*;

    #[test]
    fn both_kinds_of_key_make_a_token_that_names_its_key() {
        let check = |kind: &'static SignatureAlgorithm, key_type: &str, algorithm: Algorithm| {
            let data = tempfile::tempdir().unwrap();
            let key = KeyPair::generate_for(kind).unwrap();
            fs::write(data.path().join("token-key.pem"), key.serialize_pem()).unwrap();
            let jwks = json!({"keys": [{"kty": "RSA", "kid": "x"}, {"kty": key_type, "kid": "k"}]});
            fs::write(data.path().join("jwks.json"), jwks.to_string()).unwrap();
            let (user, device) = (UserId::new("alice").unwrap(), DeviceId::new("d").unwrap());
            let tokens = DevelopmentTokens::load(data.path(), &user, &device).unwrap();
            let header = jsonwebtoken::decode_header(tokens.mint().unwrap()).unwrap();
            assert_eq!((header.alg, header.kid.as_deref()), (algorithm, Some("k")));
        };
        check(&PKCS_ED25519, "OKP", Algorithm::EdDSA);
        check(&PKCS_ECDSA_P256_SHA256, "EC", Algorithm::ES256);
    }
}
