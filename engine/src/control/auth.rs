//! Who may connect: JSON Web Tokens (RFC 7519) against a JWK set.
//!
//! The accepting shard verifies, so a [`Verifier`] is immutable and shared by all shards. The
//! algorithm comes from the key that `kid` names, never from the token: a token whose header states
//! another one is refused before any cryptography. Time is a parameter. No fault carries bytes of
//! the token.

mod remembered;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse,
    ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use ringpost_protocol::id::{DeviceId, IdFault, UserId};
use ringpost_protocol::limits::TOKEN_BYTES_MAX;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::remembered::Remembered;

/// Checks tokens against the public keys of a JWK set.
#[derive(Clone, Debug)]
pub struct Verifier {
    audience: String,
    keys: HashMap<String, VerifyingKey>,
    /// By these keys.
    remembered: Arc<Remembered>,
}

/// What a valid token states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub user: UserId,
    pub device: DeviceId,
    /// The token is valid while `now_unix_ms < expires_unix_ms`.
    pub expires_unix_ms: u64,
    /// The key that signed it.
    pub key_id: Arc<str>,
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFault {
    #[error("the token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("the token is not three base64url parts of a signed JWT")]
    Malformed,
    #[error("the token names no key (kid)")]
    KeyIdMissing,
    #[error("the token names a key (kid) that is not in the key set")]
    KeyUnknown,
    #[error("the token's algorithm is not the one of its key")]
    AlgorithmMismatch,
    #[error("the token's header has extensions (crit) that are not supported")]
    ExtensionUnsupported,
    #[error("the token's signature is wrong")]
    SignatureWrong,
    #[error("the token's claim {0} is missing or of the wrong type")]
    ClaimMissing(&'static str),
    #[error("the token's user (sub): {0}")]
    UserInvalid(IdFault),
    #[error("the token's device: {0}")]
    DeviceInvalid(IdFault),
    #[error("the token is for another audience (aud)")]
    AudienceWrong,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet (nbf)")]
    NotYetValid,
}

/// Why a key set was refused. `origin`: the file or the URL.
#[derive(Debug, thiserror::Error)]
pub enum KeySetFault {
    #[error("cannot read the key set {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{origin}: not a JWK set: {error}")]
    NotJwkSet { origin: String, error: serde_json::Error },
    #[error("{origin}: key {index} has no kid")]
    KeyIdMissing { origin: String, index: usize },
    #[error("{origin}: two keys have the kid {key_id:?}")]
    KeyIdTwice { origin: String, key_id: String },
    #[error("{origin}: the key {key_id:?} is broken")]
    KeyBroken { origin: String, key_id: String },
    #[error("{origin}: no key can verify tokens")]
    NoKeys { origin: String },
}

#[derive(Clone, Debug)]
struct VerifyingKey {
    algorithm: Algorithm,
    key: DecodingKey,
    key_id: Arc<str>,
    /// RFC 7638: what tells two keys apart.
    thumbprint: String,
}

impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && self.thumbprint == other.thumbprint
    }
}

impl Eq for VerifyingKey {}

/// The same keys for the same audience.
impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        self.audience == other.audience && self.keys == other.keys
    }
}

impl Eq for Verifier {}

impl Verifier {
    /// Reads a JWK set from a file.
    pub fn load(path: &Path, audience: &str) -> Result<Self, KeySetFault> {
        let text = std::fs::read(path)
            .map_err(|error| KeySetFault::Unreadable { path: path.to_owned(), error })?;
        Self::parse(&text, &path.display().to_string(), audience)
    }

    /// Takes a JWK set that came from `origin`. Keys for other purposes (encryption, other
    /// algorithms) are passed over.
    pub fn parse(text: &[u8], origin: &str, audience: &str) -> Result<Self, KeySetFault> {
        let origin = || origin.to_owned();
        let set: JwkSet = serde_json::from_slice(text)
            .map_err(|error| KeySetFault::NotJwkSet { origin: origin(), error })?;
        let mut keys = HashMap::new();
        for (index, jwk) in set.keys.iter().enumerate() {
            let Some(algorithm) = verifying_algorithm(jwk) else {
                continue;
            };
            let Some(key_id) = jwk.common.key_id.clone() else {
                return Err(KeySetFault::KeyIdMissing { origin: origin(), index });
            };
            let broken = || KeySetFault::KeyBroken { origin: origin(), key_id: key_id.clone() };
            let key = DecodingKey::from_jwk(jwk).map_err(|_| broken())?;
            if !has_right_size(jwk) {
                return Err(broken());
            }
            let thumbprint = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| broken())?;
            let id = Arc::from(key_id.as_str());
            let key = VerifyingKey { algorithm, key, key_id: id, thumbprint };
            if keys.insert(key_id.clone(), key).is_some() {
                return Err(KeySetFault::KeyIdTwice { origin: origin(), key_id });
            }
        }
        if keys.is_empty() {
            return Err(KeySetFault::NoKeys { origin: origin() });
        }
        Ok(Self { audience: audience.to_owned(), keys, remembered: Arc::default() })
    }

    /// The claims of `token`, if it is valid at `now_unix_ms`.
    pub fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Claims, AuthFault> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthFault::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(AuthFault::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(AuthFault::Malformed)?;
        let header: Header = decode_part(header)?;
        if header.crit.is_some() {
            return Err(AuthFault::ExtensionUnsupported);
        }
        let key_id = header.kid.ok_or(AuthFault::KeyIdMissing)?;
        let key = self.keys.get(&key_id).ok_or(AuthFault::KeyUnknown)?;
        if header.alg != name(key.algorithm) {
            return Err(AuthFault::AlgorithmMismatch);
        }
        let is_right = self.remembered.or_verify(token, || {
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, key.algorithm)
                .unwrap_or(false)
        });
        if !is_right {
            return Err(AuthFault::SignatureWrong);
        }
        self.check_claims(decode_part(payload)?, &key.key_id, now_unix_ms)
    }

    /// The ids of the keys, sorted.
    pub fn key_ids(&self) -> Vec<&str> {
        let mut key_ids: Vec<_> = self.keys.keys().map(String::as_str).collect();
        key_ids.sort_unstable();
        key_ids
    }

    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    fn check_claims(
        &self,
        claims: RawClaims,
        key_id: &Arc<str>,
        now_unix_ms: u64,
    ) -> Result<Claims, AuthFault> {
        let named = claims.aud.and_then(|aud| names_audience(&aud, &self.audience));
        if !named.ok_or(AuthFault::ClaimMissing("aud"))? {
            return Err(AuthFault::AudienceWrong);
        }
        let exp = claims.exp.ok_or(AuthFault::ClaimMissing("exp"))?;
        let expires_unix_ms = unix_ms(&exp).ok_or(AuthFault::ClaimMissing("exp"))?;
        if now_unix_ms >= expires_unix_ms {
            return Err(AuthFault::Expired);
        }
        if let Some(nbf) = claims.nbf {
            let from_unix_ms = unix_ms(&nbf).ok_or(AuthFault::ClaimMissing("nbf"))?;
            if now_unix_ms < from_unix_ms {
                return Err(AuthFault::NotYetValid);
            }
        }
        let user = text(claims.sub).ok_or(AuthFault::ClaimMissing("sub"))?;
        let device = text(claims.device).ok_or(AuthFault::ClaimMissing("device"))?;
        Ok(Claims {
            user: UserId::new(&user).map_err(AuthFault::UserInvalid)?,
            device: DeviceId::new(&device).map_err(AuthFault::DeviceInvalid)?,
            expires_unix_ms,
            key_id: Arc::clone(key_id),
        })
    }
}

/// The key that a token names, if it can be read: for the audit log, proves nothing.
pub fn claimed_key_id(token: &str) -> Option<String> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (header, _) = token.split_once('.')?;
    decode_part::<Header>(header).ok()?.kid
}

impl KeySetFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Unreadable { .. } => "point auth.jwks_path at a readable file".to_owned(),
            Self::NotJwkSet { .. } => {
                r#"it must look like {"keys": [{"kty": ..., "kid": ...}]} (RFC 7517)"#.to_owned()
            }
            Self::KeyIdMissing { .. } => "give every key a kid; tokens name it".to_owned(),
            Self::KeyIdTwice { .. } => "give every key a kid of its own".to_owned(),
            Self::KeyBroken { .. } => "export the public key again".to_owned(),
            Self::NoKeys { .. } => {
                "add an Ed25519 (EdDSA), P-256 (ES256) or RSA (RS256, 2048 bits or more) public key"
                    .to_owned()
            }
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

/// Values, so that a claim of a wrong type is named and not just "malformed".
#[derive(Deserialize)]
struct RawClaims {
    sub: Option<serde_json::Value>,
    device: Option<serde_json::Value>,
    exp: Option<serde_json::Value>,
    nbf: Option<serde_json::Value>,
    aud: Option<serde_json::Value>,
}

/// `aud` is one text or a list of them; `None`: it is something else.
fn names_audience(aud: &serde_json::Value, wanted: &str) -> Option<bool> {
    match aud {
        serde_json::Value::String(audience) => Some(audience == wanted),
        serde_json::Value::Array(audiences) => Some(audiences.iter().any(|one| one == wanted)),
        _ => None,
    }
}

fn decode_part<T: DeserializeOwned>(part: &str) -> Result<T, AuthFault> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| AuthFault::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| AuthFault::Malformed)
}

fn text(value: Option<serde_json::Value>) -> Option<String> {
    match value {
        Some(serde_json::Value::String(text)) => Some(text),
        _ => None,
    }
}

/// A NumericDate: seconds, perhaps with a fraction (RFC 7519, section 2).
fn unix_ms(seconds: &serde_json::Value) -> Option<u64> {
    match seconds.as_u64() {
        Some(seconds) => seconds.checked_mul(1000),
        None => {
            let since_epoch = Duration::try_from_secs_f64(seconds.as_f64()?).ok()?;
            u64::try_from(since_epoch.as_millis()).ok()
        }
    }
}

/// The algorithm of a key that may sign tokens; `None`: a key for something else.
fn verifying_algorithm(jwk: &Jwk) -> Option<Algorithm> {
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let operations = jwk.common.key_operations.as_ref();
    if operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return None;
    }
    let (by_type, stated) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        _ => return None,
    };
    jwk.common.key_algorithm.is_none_or(|algorithm| algorithm == stated).then_some(by_type)
}

/// A key of a wrong size would only show as tokens that never verify.
fn has_right_size(jwk: &Jwk) -> bool {
    let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_or(0, |bytes| bytes.len());
    match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) => bytes(&key.x) == 32,
        AlgorithmParameters::EllipticCurve(key) => bytes(&key.x) == 32 && bytes(&key.y) == 32,
        AlgorithmParameters::RSA(key) => (256..=1024).contains(&bytes(&key.n)),
        _ => false,
    }
}

fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::EdDSA => "EdDSA",
        Algorithm::ES256 => "ES256",
        Algorithm::RS256 => "RS256",
        _ => unreachable!("verifying_algorithm gives only these"),
    }
}

#[cfg(test)]
mod tests;
