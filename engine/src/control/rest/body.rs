//! Bodies and paths of the key interface: JSON with keys in base64, within the limits of the protocol.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Call, KeysPublish, PublicKey};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::directory::TakenBundle;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    identity_key: Option<String>,
    signed_prekey: Option<SignedKey>,
    #[serde(default)]
    one_time_keys: Vec<OneTimeKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedKey {
    key_id: u32,
    key: String,
    signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneTimeKey {
    key_id: u32,
    key: String,
}

/// The keys of a body, checked as those of a frame are. `Err` says what is wrong.
pub(super) fn parse_keys(body: &[u8]) -> Result<KeysPublish, &'static str> {
    let published: Published =
        serde_json::from_slice(body).map_err(|_| "the body is not the JSON of a KeysPublish")?;
    let signed_prekey = match published.signed_prekey {
        Some(SignedKey { key_id, key, signature }) => {
            Some(PublicKey { key_id, key: decode(&key)?, signature: decode(&signature)? })
        }
        None => None,
    };
    let one_time = published.one_time_keys.into_iter().map(|OneTimeKey { key_id, key }| {
        Ok(PublicKey { key_id, key: decode(&key)?, signature: Bytes::new() })
    });
    let keys = KeysPublish {
        identity_key: published.identity_key.map(|key| decode(&key)).transpose()?,
        signed_prekey,
        one_time_keys: one_time.collect::<Result<_, _>>()?,
    };
    let call = Call::KeysPublish(keys);
    call.check().map_err(|_| {
        "keys have 1 to 64 bytes, a signature 64; at most 100 one-time keys, with rising key_id"
    })?;
    match call {
        Call::KeysPublish(keys) => Ok(keys),
        _ => unreachable!("made above"),
    }
}

fn decode(text: &str) -> Result<Bytes, &'static str> {
    STANDARD.decode(text).map(Bytes::from).map_err(|_| "a key is not base64")
}

/// The answer to a request for the keys of `user`.
pub(super) fn bundles(user: &UserId, taken: &[TakenBundle]) -> Value {
    let bundles = taken.iter().map(|TakenBundle { bundle, .. }| {
        let signed = &bundle.signed_prekey;
        let mut value = json!({
            "device": bundle.device.as_str(),
            "identity_key": STANDARD.encode(&bundle.identity_key),
            "signed_prekey": {
                "key_id": signed.key_id,
                "key": STANDARD.encode(&signed.key),
                "signature": STANDARD.encode(&signed.signature),
            },
        });
        if let Some(key) = &bundle.one_time_key {
            value["one_time_key"] =
                json!({ "key_id": key.key_id, "key": STANDARD.encode(&key.key) });
        }
        value
    });
    json!({ "user": user.as_str(), "bundles": bundles.collect::<Vec<_>>() })
}

/// A part of a path without its percent signs (RFC 3986, 2.1). `None`: it is malformed.
pub(super) fn decode_path(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        match first {
            b'/' => return None,
            b'%' => {
                let (digits, behind) = rest.split_first_chunk::<2>()?;
                // The parser would take a sign for a digit.
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                let digits = str::from_utf8(digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = behind;
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_checked_as_frames_are() {
        let key = STANDARD.encode([1; 32]);
        let signature = STANDARD.encode([2; 64]);
        let whole = json!({
            "identity_key": key,
            "signed_prekey": { "key_id": 1, "key": key, "signature": signature },
            "one_time_keys": [{ "key_id": 2, "key": key }, { "key_id": 3, "key": key }],
        });
        let keys = parse_keys(whole.to_string().as_bytes()).unwrap();
        assert_eq!((keys.one_time_keys.len(), keys.identity_key.unwrap().len()), (2, 32));
        for (path, wrong) in [
            ("/identity_key", json!("?")),
            ("/identity_key", json!(STANDARD.encode([0; 65]))),
            ("/signed_prekey/signature", json!(key)),
            ("/signed_prekey/key_id", json!(-1)),
            ("/one_time_keys/1/key_id", json!(2)),
            ("/one_time_keys", json!([{ "key_id": 1, "key": key, "signature": signature }])),
        ] {
            let mut body = whole.clone();
            *body.pointer_mut(path).unwrap() = wrong;
            assert!(parse_keys(body.to_string().as_bytes()).is_err(), "{body}");
        }
        assert_eq!(parse_keys(b"{}"), Ok(KeysPublish::default()));
        assert!(parse_keys(b"{\"more\": 1}").is_err() && parse_keys(b"").is_err());
    }

    #[test]
    fn paths_are_decoded() {
        assert_eq!(decode_path("bob").as_deref(), Some("bob"));
        assert_eq!(decode_path("b%C3%B6b%2F").as_deref(), Some("b\u{f6}b/"));
        for malformed in ["a/b", "%", "%2", "%zz", "%+f", "%ff"] {
            assert_eq!(decode_path(malformed), None, "{malformed}");
        }
    }
}
