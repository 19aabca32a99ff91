//! Tokens for the users of a run, and the key material of a gateway that the load generator starts
//! itself: a certificate authority, a certificate for loopback, a token key and its JWKS.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use crate::tickets::Tickets;

/// Signs tokens with the gateway's development key.
pub struct TokenMint {
    header: Header,
    key: EncodingKey,
    lifetime: Duration,
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    sub: &'a str,
    device: &'a str,
    iat: u64,
    exp: u64,
}

impl TokenMint {
    /// Reads `token-key.pem` (PKCS #8) and the key id and algorithm of `jwks.json`.
    pub fn load(data: &Path, lifetime: Duration) -> Result<Self> {
        let jwks = read(&data.join("jwks.json"))?;
        let jwks: serde_json::Value =
            serde_json::from_slice(&jwks).context("jwks.json is not JSON")?;
        let jwk = jwks["keys"].get(0).context("jwks.json holds no key")?;
        let text = |name: &str| jwk[name].as_str().unwrap_or_default();
        let pem = read(&data.join("token-key.pem"))?;
        let (algorithm, key) = match (text("kty"), text("crv")) {
            ("EC", "P-256") => (Algorithm::ES256, EncodingKey::from_ec_pem(&pem)),
            ("OKP", "Ed25519") => (Algorithm::EdDSA, EncodingKey::from_ed_pem(&pem)),
            ("RSA", _) => (Algorithm::RS256, EncodingKey::from_rsa_pem(&pem)),
            (kty, crv) => bail!("jwks.json names a key of type {kty:?} {crv:?}; not supported"),
        };
        let key = key.context("token-key.pem is not a private key of the type in jwks.json")?;
        let mut header = Header::new(algorithm);
        header.kid = jwk["kid"].as_str().map(str::to_owned);
        Ok(Self { header, key, lifetime })
    }

    pub fn mint(&self, user: &str, device: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = Claims {
            aud: "ringpost",
            sub: user,
            device,
            iat: now.as_secs(),
            exp: (now + self.lifetime).as_secs(),
        };
        jsonwebtoken::encode(&self.header, &claims, &self.key).context("sign a token")
    }
}

/// How clients and server agree on keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyExchange {
    /// X25519 alone.
    Classic,
    /// X25519 with ML-KEM-768.
    PostQuantum,
}

/// TLS 1.3 only, trusting `ca.pem` alone, with the protocol's ALPN. Every connection makes a full
/// handshake: thousands of users have no ticket in common.
pub fn tls_config(data: &Path) -> Result<Arc<rustls::ClientConfig>> {
    tls_config_of(data, KeyExchange::PostQuantum, false)
}

/// `resume`: sessions of earlier connections go on, each once, whoever had them.
pub fn tls_config_of(
    data: &Path,
    exchange: KeyExchange,
    resume: bool,
) -> Result<Arc<rustls::ClientConfig>> {
    let path = data.join("ca.pem");
    let mut roots = rustls::RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(&path).with_context(|| format!("read {}", path.display()))?
    {
        roots.add(certificate.context("ca.pem is damaged")?).context("ca.pem is no authority")?;
    }
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![match exchange {
        KeyExchange::Classic => kx_group::X25519,
        KeyExchange::PostQuantum => kx_group::X25519MLKEM768,
    }];
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is always built in")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = match resume {
        true => Resumption::store(Arc::new(Tickets::default())),
        false => Resumption::disabled(),
    };
    Ok(Arc::new(config))
}

/// The same for one client, which resumes its own sessions only, as a phone does.
pub fn with_own_tickets(config: &rustls::ClientConfig) -> Arc<rustls::ClientConfig> {
    let mut own = config.clone();
    own.resumption = Resumption::store(Arc::new(Tickets::default()));
    Arc::new(own)
}

/// Writes what a gateway needs to start and its clients need to reach it: `ca.pem`, `cert.pem`,
/// `key.pem`, `token-key.pem`, `jwks.json`.
pub fn write_credentials(data: &Path) -> Result<()> {
    let authority_key = rcgen::KeyPair::generate().context("make a key")?;
    let mut authority = rcgen::CertificateParams::new(Vec::new()).context("a plain authority")?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "ringpost loadgen");
    let authority_pem = authority.self_signed(&authority_key).context("sign the authority")?.pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);

    let server_key = rcgen::KeyPair::generate().context("make a key")?;
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let server = rcgen::CertificateParams::new(names).context("loopback names")?;
    let server_pem = server.signed_by(&server_key, &issuer).context("sign a certificate")?.pem();

    let token_key =
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("make a token key")?;
    // An uncompressed point: 4, then x and y of 32 bytes each.
    let point = token_key.public_key_raw();
    let jwks = serde_json::json!({ "keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "loadgen",
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
        "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
    }] });

    let write = |name: &str, text: &str| {
        fs::write(data.join(name), text).with_context(|| format!("write {name}"))
    };
    write("ca.pem", &authority_pem)?;
    write("cert.pem", &server_pem)?;
    write("key.pem", &server_key.serialize_pem())?;
    write("token-key.pem", &token_key.serialize_pem())?;
    write("jwks.json", &jwks.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"ringpost/1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_tokens_verify_against_the_written_jwks() {
        let dir = tempfile::tempdir().unwrap();
        write_credentials(dir.path()).unwrap();
        let mint = TokenMint::load(dir.path(), Duration::from_secs(60)).unwrap();
        let token = mint.mint("ann", "phone").unwrap();
        let jwks: jsonwebtoken::jwk::JwkSet =
            serde_json::from_slice(&fs::read(dir.path().join("jwks.json")).unwrap()).unwrap();
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(jwks.find(&kid).unwrap()).unwrap();
        let mut validation = jsonwebtoken::Validation::new(Algorithm::ES256);
        validation.set_audience(&["ringpost"]);
        let claims =
            jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(
            (claims["sub"].as_str(), claims["device"].as_str()),
            (Some("ann"), Some("phone"))
        );
        assert!(tls_config(dir.path()).is_ok());
    }
}
