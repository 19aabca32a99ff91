use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::KeyPair as _;
use jsonwebtoken::{EncodingKey, Header as JwtHeader};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::*;
use crate::control::token::TokenKey;

const NOW_MS: u64 = 1_800_000_000_000;
const EXP: u64 = NOW_MS / 1000 + 60;

fn verifier(keys: &Value) -> Result<Verifier, KeySetFault> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, json!({ "keys": keys }).to_string()).unwrap();
    Verifier::load(&path, "ringpost")
}

/// An ES256 key under the kid "k", and a verifier that knows it.
fn es256() -> (KeyPair, Verifier) {
    let pair = KeyPair::generate().unwrap();
    let verifier = verifier(&json!([es256_jwk(&pair, "k")])).unwrap();
    (pair, verifier)
}

fn es256_jwk(pair: &KeyPair, kid: &str) -> Value {
    let point = pair.public_key_raw();
    json!({
        "kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256", "use": "sig",
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]),
    })
}

fn claims() -> Value {
    json!({ "sub": "alice", "device": "phone", "aud": "ringpost", "exp": EXP })
}

fn with(claim: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[claim] = value;
    claims
}

fn sign(algorithm: Algorithm, kid: &str, claims: &Value, key: &EncodingKey) -> String {
    let mut header = JwtHeader::new(algorithm);
    header.kid = Some(kid.to_owned());
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn sign_es256(pair: &KeyPair, claims: &Value) -> String {
    sign(Algorithm::ES256, "k", claims, &EncodingKey::from_ec_der(pair.serialized_der()))
}

/// A token with any header, "signed" by `signature`.
fn assemble(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let message =
        format!("{}.{}", part(header.to_string().as_bytes()), part(claims.to_string().as_bytes()));
    format!("{message}.{}", part(signature))
}

fn expected() -> Claims {
    Claims {
        key_id: "k".into(),
        user: UserId::new("alice").unwrap(),
        device: DeviceId::new("phone").unwrap(),
        expires_unix_ms: EXP * 1000,
    }
}

#[test]
fn all_three_algorithms_verify() {
    let ec = KeyPair::generate().unwrap();
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let rsa = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = rsa.public_key();
    let verifier = verifier(&json!([
        es256_jwk(&ec, "ec"),
        { "kty": "OKP", "crv": "Ed25519", "kid": "ed",
          "x": URL_SAFE_NO_PAD.encode(ed.public_key_raw()) },
        { "kty": "RSA", "kid": "rsa", "alg": "RS256",
          "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
          "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()) },
    ]))
    .unwrap();
    // jsonwebtoken wants the inner RSAPrivateKey; its PEM reader unwraps PKCS#8.
    let rsa_der = rsa.as_der().unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(rsa_der.as_ref());
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let label = "PRIVATE KEY";
    let rsa_pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    for (algorithm, kid, key) in [
        (Algorithm::ES256, "ec", EncodingKey::from_ec_der(ec.serialized_der())),
        (Algorithm::EdDSA, "ed", EncodingKey::from_ed_der(ed.serialized_der())),
        (Algorithm::RS256, "rsa", EncodingKey::from_rsa_pem(rsa_pem.as_bytes()).unwrap()),
    ] {
        let token = sign(algorithm, kid, &claims(), &key);
        let claims = Claims { key_id: kid.into(), ..expected() };
        assert_eq!(verifier.verify(&token, NOW_MS), Ok(claims), "{algorithm:?}");
        assert_eq!(claimed_key_id(&token).as_deref(), Some(kid));
    }
}

#[test]
fn minted_tokens_verify() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
        let pem = KeyPair::generate_for(algorithm).unwrap().serialize_pem();
        let key = TokenKey::from_pem(pem.as_bytes()).unwrap();
        let keys = serde_json::to_value(key.jwk_set().keys).unwrap();
        let verifier = verifier(&keys).unwrap();
        let Claims { user, device, .. } = expected();
        let token = key.mint(&user, &device, "ringpost", NOW_MS, 60).unwrap();
        let key_id = verifier.key_ids()[0].into();
        let claims = Claims { key_id, ..expected() };
        assert_eq!(verifier.verify(&token, NOW_MS), Ok(claims));
    }
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    assert!(TokenKey::from_pem(p384.as_bytes()).is_err());
    assert!(TokenKey::from_pem(b"nonsense").is_err());
}

#[test]
fn time_is_the_callers() {
    let (pair, verifier) = es256();
    let token = sign_es256(&pair, &claims());
    assert!(verifier.verify(&token, EXP * 1000 - 1).is_ok());
    assert_eq!(verifier.verify(&token, EXP * 1000), Err(AuthFault::Expired));
    let fraction = sign_es256(&pair, &with("exp", json!(1_000_000.5)));
    assert_eq!(verifier.verify(&fraction, 0).unwrap().expires_unix_ms, 1_000_000_500);
    let later = sign_es256(&pair, &with("nbf", json!(EXP - 1)));
    assert_eq!(verifier.verify(&later, NOW_MS), Err(AuthFault::NotYetValid));
}

/// A signature that was right once counts for that token and these keys alone.
#[test]
fn what_is_remembered_lets_nothing_else_in() {
    let (pair, verifier) = es256();
    let token = sign_es256(&pair, &claims());
    assert!(verifier.verify(&token, NOW_MS).is_ok() && verifier.verify(&token, NOW_MS).is_ok());
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    parts[1] = URL_SAFE_NO_PAD.encode(with("sub", json!("mallory")).to_string());
    assert_eq!(verifier.verify(&parts.join("."), NOW_MS), Err(AuthFault::SignatureWrong));
    let (_, of_another_key) = es256();
    assert_eq!(of_another_key.verify(&token, NOW_MS), Err(AuthFault::SignatureWrong));
    assert_ne!(of_another_key, verifier);
}

#[test]
fn another_key_is_refused() {
    let (pair, verifier) = es256();
    let other = KeyPair::generate().unwrap();
    assert_eq!(
        verifier.verify(&sign_es256(&other, &claims()), NOW_MS),
        Err(AuthFault::SignatureWrong)
    );
    let unknown = sign(
        Algorithm::ES256,
        "other",
        &claims(),
        &EncodingKey::from_ec_der(pair.serialized_der()),
    );
    assert_eq!(verifier.verify(&unknown, NOW_MS), Err(AuthFault::KeyUnknown));
    let unnamed = assemble(&json!({ "alg": "ES256" }), &claims(), &[0; 64]);
    assert_eq!(verifier.verify(&unnamed, NOW_MS), Err(AuthFault::KeyIdMissing));
}

#[test]
fn changed_claims_are_refused() {
    let (pair, verifier) = es256();
    let token = sign_es256(&pair, &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let forged = URL_SAFE_NO_PAD.encode(with("sub", json!("mallory")).to_string());
    let token = format!("{}.{forged}.{}", parts[0], parts[2]);
    assert_eq!(verifier.verify(&token, NOW_MS), Err(AuthFault::SignatureWrong));
}

#[test]
fn the_token_does_not_choose_the_algorithm() {
    let (pair, verifier) = es256();
    for alg in ["none", "None", "ES384", "EdDSA", "RS256", ""] {
        let token = assemble(&json!({ "alg": alg, "kid": "k" }), &claims(), b"");
        assert_eq!(verifier.verify(&token, NOW_MS), Err(AuthFault::AlgorithmMismatch), "{alg}");
    }
    // The public key as HMAC secret, in each form that an attacker could have.
    for secret in [
        pair.public_key_pem().into_bytes(),
        pair.public_key_raw().to_vec(),
        es256_jwk(&pair, "k")["x"].to_string().into_bytes(),
    ] {
        let key = EncodingKey::from_secret(&secret);
        let token = sign(Algorithm::HS256, "k", &claims(), &key);
        assert_eq!(verifier.verify(&token, NOW_MS), Err(AuthFault::AlgorithmMismatch));
        // And with the header that the key demands.
        let hmac = URL_SAFE_NO_PAD.decode(token.rsplit_once('.').unwrap().1).unwrap();
        let token = assemble(&json!({ "alg": "ES256", "kid": "k" }), &claims(), &hmac);
        assert_eq!(verifier.verify(&token, NOW_MS), Err(AuthFault::SignatureWrong));
    }
    let empty = assemble(&json!({ "alg": "ES256", "kid": "k" }), &claims(), b"");
    assert_eq!(verifier.verify(&empty, NOW_MS), Err(AuthFault::SignatureWrong));
}

#[test]
fn critical_extensions_are_refused() {
    let (_, verifier) = es256();
    let header = json!({ "alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false });
    let token = assemble(&header, &claims(), &[0; 64]);
    assert_eq!(verifier.verify(&token, NOW_MS), Err(AuthFault::ExtensionUnsupported));
}

#[test]
fn each_claim_is_required() {
    let (pair, verifier) = es256();
    let refused = |claims: &Value| verifier.verify(&sign_es256(&pair, claims), NOW_MS).unwrap_err();
    for claim in ["sub", "device", "exp", "aud"] {
        let mut without = claims();
        without.as_object_mut().unwrap().remove(claim);
        assert_eq!(refused(&without), AuthFault::ClaimMissing(claim));
        assert_eq!(refused(&with(claim, Value::Null)), AuthFault::ClaimMissing(claim));
        assert_eq!(refused(&with(claim, json!({}))), AuthFault::ClaimMissing(claim));
    }
    assert_eq!(refused(&with("exp", json!(-1))), AuthFault::ClaimMissing("exp"));
    assert_eq!(refused(&with("exp", json!(u64::MAX))), AuthFault::ClaimMissing("exp"));
    assert_eq!(refused(&with("sub", json!(""))), AuthFault::UserInvalid(IdFault::UserLength(0)));
    assert_eq!(
        refused(&with("device", json!("\u{e9}"))),
        AuthFault::DeviceInvalid(IdFault::DeviceNotAscii)
    );
    assert_eq!(refused(&with("aud", json!("other"))), AuthFault::AudienceWrong);
    assert_eq!(refused(&with("aud", json!(["a", "b"]))), AuthFault::AudienceWrong);
    let several = sign_es256(&pair, &with("aud", json!(["a", "ringpost"])));
    assert!(verifier.verify(&several, NOW_MS).is_ok());
}

#[test]
fn what_is_not_a_token_is_refused() {
    let (pair, verifier) = es256();
    let token = sign_es256(&pair, &claims());
    for text in ["", ".", "..", "a.b.c", "\u{e9}.\u{e9}.\u{e9}", &token[1..]] {
        assert_eq!(verifier.verify(text, NOW_MS), Err(AuthFault::Malformed), "{text:?}");
    }
    // A fourth part makes the second one longer, and no base64url.
    assert!(verifier.verify(&format!("{token}.x"), NOW_MS).is_err());
    let long = "a".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(verifier.verify(&long, NOW_MS), Err(AuthFault::TooLong));
}

#[test]
fn key_sets_are_checked() {
    let pair = KeyPair::generate().unwrap();
    let good = es256_jwk(&pair, "k");
    let without_kid = {
        let mut key = good.clone();
        key.as_object_mut().unwrap().remove("kid");
        key
    };
    let short = {
        let mut key = good.clone();
        key["x"] = json!("AAAA");
        key
    };
    let load = |keys: Value| verifier(&keys);
    assert!(matches!(load(json!([without_kid])), Err(KeySetFault::KeyIdMissing { index: 0, .. })));
    assert!(matches!(load(json!([good, good])), Err(KeySetFault::KeyIdTwice { .. })));
    assert!(matches!(load(json!([short])), Err(KeySetFault::KeyBroken { .. })));
    assert!(matches!(load(json!([])), Err(KeySetFault::NoKeys { .. })));
    // Keys for something else are no keys: symmetric, encryption, another algorithm.
    let symmetric = json!({ "kty": "oct", "kid": "s", "k": "AAAA" });
    let encryption = {
        let mut key = es256_jwk(&pair, "e");
        key["use"] = json!("enc");
        key
    };
    let other = json!({ "kty": "RSA", "kid": "r", "alg": "RS512", "n": "AAAA", "e": "AQAB" });
    assert!(matches!(load(json!([symmetric, encryption, other])), Err(KeySetFault::NoKeys { .. })));
    assert_eq!(load(json!([symmetric, encryption, good])).unwrap().key_count(), 1);
}

#[test]
fn shards_share_a_verifier() {
    fn shared<T: Send + Sync>() {}
    shared::<Verifier>();
}
