//! Tokens for development and tests: a private key file and [`TokenKey::mint`]. In production the
//! messenger's own account service mints tokens and the gateway holds public keys only.

use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm,
    OctetKeyPairParameters, OctetKeyPairType, PublicKeyUse, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ringpost_protocol::id::{DeviceId, UserId};
use serde::Serialize;

/// A private key that signs tokens; its `kid` is the key's thumbprint (RFC 7638).
#[derive(Clone, Debug)]
pub struct TokenKey {
    header: Header,
    key: EncodingKey,
    public: Jwk,
}

/// Why a token key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyFault {
    #[error("cannot read the token key {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("not a private Ed25519 or P-256 key in PEM (PKCS#8)")]
    NotAKey,
    #[error("signing a token failed")]
    SigningFailed,
}

#[derive(Serialize)]
struct MintedClaims<'a> {
    sub: &'a str,
    device: &'a str,
    aud: &'a str,
    exp: u64,
}

impl TokenKey {
    /// Reads a key that the development gateway made, or any other one of the two kinds.
    pub fn load(path: &Path) -> Result<Self, TokenKeyFault> {
        let pem = std::fs::read(path)
            .map_err(|error| TokenKeyFault::Unreadable { path: path.to_owned(), error })?;
        Self::from_pem(&pem)
    }

    pub fn from_pem(pem: &[u8]) -> Result<Self, TokenKeyFault> {
        let (key, algorithm) = match EncodingKey::from_ec_pem(pem) {
            Ok(key) => (key, Algorithm::ES256),
            Err(_) => {
                let key = EncodingKey::from_ed_pem(pem).map_err(|_| TokenKeyFault::NotAKey)?;
                (key, Algorithm::EdDSA)
            }
        };
        let mut public = public_half(&key, algorithm)?;
        let key_id =
            public.thumbprint(ThumbprintHash::SHA256).map_err(|_| TokenKeyFault::NotAKey)?;
        public.common.key_id = Some(key_id.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        let mut header = Header::new(algorithm);
        header.kid = Some(key_id);
        Ok(Self { header, key, public })
    }

    /// The JWK set that holds the public half.
    pub fn jwk_set(&self) -> JwkSet {
        JwkSet { keys: vec![self.public.clone()] }
    }

    /// A token for one device, valid for `ttl_s` seconds from `now_unix_ms`.
    pub fn mint(
        &self,
        user: &UserId,
        device: &DeviceId,
        audience: &str,
        now_unix_ms: u64,
        ttl_s: u64,
    ) -> Result<String, TokenKeyFault> {
        let claims = MintedClaims {
            sub: user.as_str(),
            device: device.as_str(),
            aud: audience,
            exp: (now_unix_ms / 1000).saturating_add(ttl_s),
        };
        jsonwebtoken::encode(&self.header, &claims, &self.key)
            .map_err(|_| TokenKeyFault::SigningFailed)
    }
}

fn public_half(key: &EncodingKey, algorithm: Algorithm) -> Result<Jwk, TokenKeyFault> {
    if algorithm != Algorithm::EdDSA {
        return Jwk::from_encoding_key(key, algorithm).map_err(|_| TokenKeyFault::NotAKey);
    }
    // The library reads only the old form of PKCS#8, which leaves the public half out.
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.as_bytes())
        .map_err(|_| TokenKeyFault::NotAKey)?;
    Ok(Jwk {
        common: CommonParameters {
            key_algorithm: Some(KeyAlgorithm::EdDSA),
            ..CommonParameters::default()
        },
        algorithm: AlgorithmParameters::OctetKeyPair(OctetKeyPairParameters {
            key_type: OctetKeyPairType::OctetKeyPair,
            curve: EllipticCurve::Ed25519,
            x: URL_SAFE_NO_PAD.encode(pair.public_key()),
        }),
    })
}

impl TokenKeyFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        "start the development gateway once (`ringpost`): it makes the key; name its directory \
         with --data"
            .to_owned()
    }
}
