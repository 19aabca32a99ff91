//! Users under names that mean nothing to a reader of the log, and stay the same for each user.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use ringpost_protocol::id::UserId;

use crate::data_dir::write_atomically;

/// HMAC-SHA256 of the user id under a random key of this data directory, the first 64 bits of it.
pub struct Pseudonyms {
    key: hmac::Key,
}

/// The key cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[error("the salt of the audit log, {}: {error}", path.display())]
pub struct SaltFault {
    path: PathBuf,
    error: io::Error,
}

impl Pseudonyms {
    /// Reads the key in `data_dir`, which is made when it is not there.
    pub fn of(data_dir: &Path) -> Result<Self, SaltFault> {
        match Self::existing(data_dir) {
            Err(fault) if fault.error.kind() == io::ErrorKind::NotFound => {
                let salt: [u8; SALT_BYTES] = rand::random();
                write_atomically(&fault.path, &salt, 0o600)
                    .map_err(|error| SaltFault { path: fault.path, error })?;
                Ok(Self::new(&salt))
            }
            found => found,
        }
    }

    /// Reads the key in `data_dir`.
    pub fn existing(data_dir: &Path) -> Result<Self, SaltFault> {
        let path = data_dir.join("audit-salt");
        let salt = match std::fs::read(&path) {
            Ok(salt) => salt,
            Err(error) => return Err(SaltFault { path, error }),
        };
        if salt.len() != SALT_BYTES {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it is not 32 bytes");
            return Err(SaltFault { path, error });
        }
        Ok(Self::new(&salt))
    }

    fn new(salt: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, salt) }
    }

    /// 16 hexadecimal digits.
    pub fn name(&self, user: &UserId) -> String {
        let tag = hmac::sign(&self.key, user.as_str().as_bytes());
        tag.as_ref()[..NAME_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl SaltFault {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        "data_dir must belong to the user that runs the gateway; without the file users get new names"
    }
}

const SALT_BYTES: usize = 32;
const NAME_BYTES: usize = 8;
