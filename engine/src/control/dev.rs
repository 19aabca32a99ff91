//! The development gateway's keys: a certificate authority, a server certificate and a token key,
//! made once and reused. The authority's own key is dropped after it signed: nothing needs it again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::control::token::{TokenKey, TokenKeyFault};
use crate::data_dir::write_atomically;

/// The files of a development gateway, all in its data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate that clients trust.
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Private: mints tokens for any user.
    pub token_key: PathBuf,
    pub jwks: PathBuf,
}

/// Why the keys could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DevFault {
    #[error("cannot write {}: {error}", path.display())]
    Unwritable { path: PathBuf, error: std::io::Error },
    #[error("making a certificate failed: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("{}: {fault}", path.display())]
    TokenKey { path: PathBuf, fault: TokenKeyFault },
}

impl Files {
    pub fn of(data_dir: &Path) -> Self {
        Self {
            authority: data_dir.join("ca.pem"),
            certificate: data_dir.join("cert.pem"),
            key: data_dir.join("key.pem"),
            token_key: data_dir.join("token-key.pem"),
            jwks: data_dir.join("jwks.json"),
        }
    }
}

impl DevFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Unwritable { .. } => {
                "start in a directory that this user can write to, or name one with --data"
            }
            Self::Certificate(_) => "this is a bug; please report it",
            Self::TokenKey { .. } => "delete the file; the next start makes a new one",
        }
        .to_owned()
    }
}

/// Makes what is missing in `data_dir` and returns where everything is.
pub fn prepare(data_dir: &Path) -> Result<Files, DevFault> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(|error| DevFault::Unwritable { path: data_dir.to_owned(), error })?;
    let files = Files::of(data_dir);
    // An incomplete set is made anew as a whole: its parts fit only together.
    if ![&files.authority, &files.certificate, &files.key].iter().all(|path| path.exists()) {
        make_certificates(&files)?;
    }
    if !files.token_key.exists() {
        let pem = KeyPair::generate()?.serialize_pem();
        write_file(&files.token_key, pem.as_bytes(), Access::Private)?;
    }
    write_key_set(&files)?;
    Ok(files)
}

/// How to talk through the development gateway, for a person at a terminal.
pub fn guide(data_dir: &Path, listen: SocketAddr, admin_listen: SocketAddr) -> String {
    let mut options = String::new();
    if data_dir != Path::new(DEFAULT_DATA_DIR) {
        options.push_str(&format!(" --data {}", data_dir.display()));
    }
    if listen != crate::config::DEFAULT_LISTEN {
        options.push_str(&format!(" --server {listen}"));
    }
    let chat = "cargo run --release -p ringpost-client --bin ringpost-chat --";
    format!(
        "Talk through it from two other terminals:\n\
         \n  {chat} --user alice{options}\n  {chat} --user bob{options}\n\n\
         Keys and messages are in {}; watch http://{admin_listen}/metrics; stop with Ctrl-C.\n\
         For development only: whoever reads that directory can be any user.",
        data_dir.display()
    )
}

/// Where the development gateway keeps everything unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "ringpost-data";

fn make_certificates(files: &Files) -> Result<(), DevFault> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Ringpost development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(["localhost".to_owned()])?;
    params.subject_alt_names.extend([
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ]);
    params.distinguished_name.push(DnType::CommonName, "Ringpost development gateway");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &authority)?;

    write_file(&files.key, key.serialize_pem().as_bytes(), Access::Private)?;
    write_file(&files.certificate, certificate.pem().as_bytes(), Access::Public)?;
    write_file(&files.authority, authority.pem().as_bytes(), Access::Public)
}

fn write_key_set(files: &Files) -> Result<(), DevFault> {
    let broken = |fault| DevFault::TokenKey { path: files.token_key.clone(), fault };
    let key = TokenKey::load(&files.token_key).map_err(broken)?;
    let json = serde_json::to_vec_pretty(&key.jwk_set()).expect("a key set is plain data");
    if std::fs::read(&files.jwks).is_ok_and(|present| present == json) {
        return Ok(());
    }
    write_file(&files.jwks, &json, Access::Public)
}

#[derive(Clone, Copy)]
enum Access {
    /// Mode 0600.
    Private,
    /// Mode 0644.
    Public,
}

fn write_file(path: &Path, content: &[u8], access: Access) -> Result<(), DevFault> {
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    write_atomically(path, content, mode)
        .map_err(|error| DevFault::Unwritable { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::control::auth::Verifier;
    use crate::control::tls_files;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_made_once_and_fit_together() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        let files = prepare(&data_dir).unwrap();
        tls_files::load(&files.certificate, &files.key).unwrap();
        assert_eq!(Verifier::load(&files.jwks, "ringpost").unwrap().key_count(), 1);
        assert_eq!([&files.key, &files.token_key].map(|path| mode(path)), [0o600, 0o600]);
        assert_eq!(mode(&data_dir), 0o700);

        let before = std::fs::read(&files.certificate).unwrap();
        assert_eq!(prepare(&data_dir).unwrap(), files);
        assert_eq!(std::fs::read(&files.certificate).unwrap(), before);
        let left = std::fs::read_dir(&data_dir).unwrap().count();
        assert_eq!(left, 5, "no temporary file stays");
    }

    #[test]
    fn an_incomplete_set_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let files = prepare(directory.path()).unwrap();
        std::fs::remove_file(&files.key).unwrap();
        std::fs::remove_file(&files.jwks).unwrap();
        let token_key = std::fs::read(&files.token_key).unwrap();
        prepare(directory.path()).unwrap();
        tls_files::load(&files.certificate, &files.key).unwrap();
        assert_eq!(std::fs::read(&files.token_key).unwrap(), token_key);
        assert!(files.jwks.exists());
    }
}
