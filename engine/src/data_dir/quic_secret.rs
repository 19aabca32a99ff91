//! The secret from which the keys of QUIC and of TLS tickets come. It outlives the process, so that
//! connection ids, address proofs, resets and tickets of before a restart still mean what they meant.

use std::io;
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::write_atomically;
use crate::transport::quic::SECRET_BYTES;

/// The secret cannot be read or made, or is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum QuicSecretFault {
    #[error("cannot {action} the secret of QUIC, {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("the secret of QUIC, {}, is damaged: it has {bytes} bytes, not {SECRET_BYTES}",
        path.display())]
    Damaged { path: PathBuf, bytes: usize },
    #[error("the secret of QUIC, {}, is open to others (mode {mode:03o})", path.display())]
    Open { path: PathBuf, mode: u32 },
}

/// Reads the secret in `data_dir`, which is made when it is not there.
pub fn quic_secret(data_dir: &Path) -> Result<[u8; SECRET_BYTES], QuicSecretFault> {
    if let Some(secret) = existing_quic_secret(data_dir)? {
        return Ok(secret);
    }
    let (path, secret) = (path_in(data_dir), rand::random::<[u8; SECRET_BYTES]>());
    write_atomically(&path, &secret, 0o600).map_err(|error| QuicSecretFault::Io {
        action: "write",
        path,
        error,
    })?;
    Ok(secret)
}

/// Reads the secret in `data_dir`; `None`: there was no start yet.
pub fn existing_quic_secret(
    data_dir: &Path,
) -> Result<Option<[u8; SECRET_BYTES]>, QuicSecretFault> {
    let path = path_in(data_dir);
    let read = std::fs::read(&path)
        .and_then(|content| Ok((content, std::fs::metadata(&path)?.permissions().mode() & 0o777)));
    let (content, mode) = match read {
        Ok(read) => read,
        // That data_dir is no directory is another fault, which is told by who opens it.
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(error) => return Err(QuicSecretFault::Io { action: "read", path, error }),
    };
    if mode & 0o077 != 0 {
        return Err(QuicSecretFault::Open { path, mode });
    }
    match content.as_slice().try_into() {
        Ok(secret) => Ok(Some(secret)),
        Err(_) => Err(QuicSecretFault::Damaged { path, bytes: content.len() }),
    }
}

fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join("quic-secret")
}

impl QuicSecretFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Io { .. } => "data_dir must belong to the user that runs the gateway".to_owned(),
            Self::Damaged { path, .. } => format!(
                "remove {}: the next start makes a new one; clients of before reconnect",
                path.display()
            ),
            Self::Open { path, .. } => format!(
                "who has it can end every QUIC connection, and pass for the gateway before clients that \
                 have a ticket: remove {} for a new one, or chmod 600 it if nobody has read it",
                path.display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_secret_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(existing_quic_secret(directory.path()).unwrap(), None);
        let first = quic_secret(directory.path()).unwrap();
        let path = directory.path().join("quic-secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(quic_secret(directory.path()).unwrap(), first);
        assert_ne!(first, [0; SECRET_BYTES]);
        fs::remove_file(&path).unwrap();
        assert_ne!(quic_secret(directory.path()).unwrap(), first);
    }

    #[test]
    fn a_damaged_or_open_secret_is_refused_with_the_fix() {
        let directory = tempfile::tempdir().unwrap();
        quic_secret(directory.path()).unwrap();
        let path = directory.path().join("quic-secret");
        let mut content = fs::read(&path).unwrap();
        content.pop();
        fs::write(&path, content).unwrap();
        let fault = quic_secret(directory.path()).unwrap_err();
        assert!(fault.to_string().contains("31 bytes, not 32"), "{fault}");
        assert!(fault.fix().contains(&format!("remove {}", path.display())), "{}", fault.fix());

        fs::write(&path, [7; SECRET_BYTES]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let fault = quic_secret(directory.path()).unwrap_err();
        assert!(fault.to_string().contains("mode 644"), "{fault}");
        assert!(fault.fix().contains("chmod 600"), "{}", fault.fix());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(quic_secret(directory.path()).unwrap(), [7; SECRET_BYTES]);
    }
}
