//! One device of `alice` with one session partner, driven over stdin and stdout, for tests against
//! other implementations. One JSON object a line in, one out; all bytes in hexadecimal.
//!
//! ```text
//! {"op": "peer", "identity": "..."}          who the partner is, the phone of bob
//! {"op": "bundle", "one_time": true}         {"ok": "..."}, public keys of this device
//! {"op": "begin", "bundle": "..."}           starts a session
//! {"op": "encrypt", "plaintext": "..."}      {"ok": "..."}, an envelope
//! {"op": "decrypt", "envelope": "..."}       {"ok": "..."}, or {"fault": "words"}
//! {"op": "rotate"}                           a new signed prekey
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{BufRead as _, Write as _};

use rand::rng;
use ringpost_client::e2ee::{Bundle, IdentityKey, OwnKeys, Pair, Party, PreKeys, PublicIdentity};
use ringpost_client::protocol::id::{DeviceAddress, DeviceId, UserId};
use serde_json::{Value, json};

type Answer = Result<Vec<u8>, Box<dyn Error>>;

struct Device {
    own: OwnKeys,
    pair: Option<Pair>,
    one_time_given: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut prekeys = PreKeys::new(0, &mut rng());
    prekeys.make_one_time(100, &mut rng());
    let own = OwnKeys { identity: IdentityKey::random(&mut rng()), prekeys };
    let mut device = Device { own, pair: None, one_time_given: 0 };
    for line in std::io::stdin().lock().lines() {
        let answer = match device.handle(&serde_json::from_str(&line?)?) {
            Ok(bytes) => json!({ "ok": hex(&bytes) }),
            Err(fault) => json!({ "fault": fault.to_string() }),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

impl Device {
    fn handle(&mut self, request: &Value) -> Answer {
        let bytes = |field: &str| unhex(request[field].as_str().ok_or("no such field")?);
        match request["op"].as_str() {
            Some("peer") => self.meet(&bytes("identity")?),
            Some("bundle") => self.bundle(request["one_time"] == true),
            Some("rotate") => {
                self.own.prekeys.rotate(0, &mut rng());
                Ok(Vec::new())
            }
            Some("begin") => {
                let bundle = Bundle::decode(&bytes("bundle")?)?;
                let pair = self.pair.as_mut().ok_or("no peer")?;
                pair.begin(&self.own.identity, &bundle, 0, &mut rng())?;
                Ok(Vec::new())
            }
            Some("encrypt") => {
                Ok(self.pair.as_mut().ok_or("no peer")?.encrypt(&bytes("plaintext")?)?)
            }
            Some("decrypt") => {
                let pair = self.pair.as_mut().ok_or("no peer")?;
                Ok(pair.decrypt(&mut self.own, &bytes("envelope")?, 0, &mut rng())?)
            }
            _ => Err("unknown op".into()),
        }
    }

    fn meet(&mut self, identity: &[u8]) -> Answer {
        let peer = PublicIdentity::try_from(<[u8; 32]>::try_from(identity)?)?;
        let own = party("alice", self.own.identity.public())?;
        self.pair = Some(Pair::new(own, party("bob", peer)?));
        Ok(Vec::new())
    }

    fn bundle(&mut self, with_one_time: bool) -> Answer {
        let signed = self.own.prekeys.signed(&self.own.identity);
        let one_time = self.own.prekeys.pending(&self.own.identity).one_time;
        let one_time = with_one_time.then(|| one_time[self.one_time_given]);
        self.one_time_given += usize::from(with_one_time);
        Ok(Bundle::new(self.own.identity.public(), signed, one_time)?.encode())
    }
}

fn party(user: &str, identity: PublicIdentity) -> Result<Party, Box<dyn Error>> {
    let address = DeviceAddress { user: UserId::new(user)?, device: DeviceId::new("phone")? };
    Ok(Party { address, identity })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Answer {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?)).collect()
}
