//! Certificate and private key from PEM files, checked against each other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tracing::{error, warn};

use super::validity::{Standing, Validity};

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesFault {
    #[error("cannot read the certificate {}: {error}", path.display())]
    CertificateUnreadable { path: PathBuf, error: std::io::Error },
    #[error("{}: no usable certificate: {text}", path.display())]
    CertificateInvalid { path: PathBuf, text: String },
    #[error("cannot read the private key {}: {error}", path.display())]
    KeyUnreadable { path: PathBuf, error: std::io::Error },
    #[error("{}: no usable private key: {text}", path.display())]
    KeyInvalid { path: PathBuf, text: String },
    #[error(
        "the private key {} does not belong to the certificate {}",
        key.display(),
        certificate.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("the certificate {} has expired {days_ago} days ago", path.display())]
    Expired { path: PathBuf, days_ago: u64 },
    #[error("the certificate {} is not valid yet", path.display())]
    NotYetValid { path: PathBuf },
}

/// A chain, the server's own certificate first, and its private key.
#[derive(Debug)]
pub struct TlsFiles {
    pub certificates: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// Of the server's own certificate. Not checked: see [`Validity::now`].
    pub validity: Validity,
}

/// Reads certificates and key and checks that they belong together.
pub fn load(certificate_path: &Path, key_path: &Path) -> Result<TlsFiles, TlsFilesFault> {
    let certificates = load_certificates(certificate_path)?;
    let key = load_key(key_path)?;
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| {
        TlsFilesFault::KeyInvalid { path: key_path.to_owned(), text: error.to_string() }
    })?;
    check_match(&certificates, signer).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsFilesFault::Mismatch {
            certificate: certificate_path.to_owned(),
            key: key_path.to_owned(),
        },
        other => TlsFilesFault::CertificateInvalid {
            path: certificate_path.to_owned(),
            text: other.to_string(),
        },
    })?;
    let validity = Validity::of(&certificates[0]).ok_or_else(|| {
        let text = "its time of validity cannot be read".to_owned();
        TlsFilesFault::CertificateInvalid { path: certificate_path.to_owned(), text }
    })?;
    Ok(TlsFiles { certificates, key, validity })
}

/// Warns of a certificate that will not do for long.
pub fn tell_validity(path: &Path, validity: &Validity) {
    let path = path.display();
    match validity.now() {
        Standing::Valid { days } if days < EXPIRY_WARNING_DAYS => {
            warn!(%path, days, "the certificate expires soon; renew it and send SIGHUP");
        }
        Standing::Valid { .. } => {}
        Standing::NotYet => warn!(%path, "the certificate is not valid yet; clients refuse it"),
        Standing::Expired { days_ago } => {
            error!(%path, days_ago, "the certificate has expired; clients refuse it");
        }
    }
}

fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFilesFault> {
    let pem = std::fs::read(path)
        .map_err(|error| TlsFilesFault::CertificateUnreadable { path: path.to_owned(), error })?;
    let invalid = |text: String| TlsFilesFault::CertificateInvalid { path: path.to_owned(), text };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(describe(&error)))?;
    if certificates.is_empty() {
        return Err(invalid(describe(&pem::Error::NoItemsFound)));
    }
    Ok(certificates)
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFilesFault> {
    let pem = std::fs::read(path)
        .map_err(|error| TlsFilesFault::KeyUnreadable { path: path.to_owned(), error })?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsFilesFault::KeyInvalid {
        path: path.to_owned(),
        text: describe(&error),
    })
}

fn check_match(
    certificates: &[CertificateDer<'static>],
    signer: Arc<dyn rustls::sign::SigningKey>,
) -> Result<(), rustls::Error> {
    CertifiedKey::new(certificates.to_vec(), signer).keys_match()
}

fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "the file holds no such PEM block".to_owned(),
        other => format!("the PEM is damaged ({other:?})"),
    }
}

impl TlsFilesFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::CertificateUnreadable { .. } => {
                "point tls.certificate_path at a file that this user can read"
            }
            Self::CertificateInvalid { .. } => {
                "the file must hold X.509 certificates as BEGIN CERTIFICATE blocks, the server's \
                 own first"
            }
            Self::KeyUnreadable { .. } => "point tls.key_path at a file that this user can read",
            Self::KeyInvalid { .. } => {
                "the file must hold one unencrypted RSA, ECDSA or Ed25519 key as a BEGIN PRIVATE \
                 KEY block (PKCS#8)"
            }
            Self::Expired { .. } => {
                "renew it: no client accepts it; or set this host's clock right"
            }
            Self::NotYetValid { .. } => {
                "set this host's clock right, or use a certificate that is valid"
            }
            Self::Mismatch { .. } => {
                "use the key that the certificate was issued for, and put the server's own \
                 certificate first in the chain"
            }
        }
        .to_owned()
    }
}

/// Before that a certificate should have been renewed: authorities do so 30 days ahead.
pub const EXPIRY_WARNING_DAYS: u64 = 14;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    struct Files {
        _directory: tempfile::TempDir,
        certificate: PathBuf,
        key: PathBuf,
        other_key: PathBuf,
    }

    fn files() -> Files {
        let directory = tempfile::tempdir().unwrap();
        let pair = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&pair).unwrap();
        let write = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Files {
            certificate: write("cert.pem", certificate.pem()),
            key: write("key.pem", pair.serialize_pem()),
            other_key: write("other.pem", KeyPair::generate().unwrap().serialize_pem()),
            _directory: directory,
        }
    }

    #[test]
    fn a_pair_is_loaded() {
        let files = files();
        let loaded = load(&files.certificate, &files.key).unwrap();
        assert_eq!(loaded.certificates.len(), 1);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let files = files();
        let fault = load(&files.certificate, &files.other_key).unwrap_err();
        assert!(matches!(fault, TlsFilesFault::Mismatch { .. }), "{fault}");
        assert!(fault.to_string().contains("other.pem"), "{fault}");
    }

    #[test]
    fn missing_and_swapped_files_are_named() {
        let files = files();
        let fault = load(Path::new("/nowhere/cert.pem"), &files.key).unwrap_err();
        assert!(matches!(fault, TlsFilesFault::CertificateUnreadable { .. }), "{fault}");
        let fault = load(&files.certificate, Path::new("/nowhere/key.pem")).unwrap_err();
        assert!(matches!(fault, TlsFilesFault::KeyUnreadable { .. }), "{fault}");
        let fault = load(&files.key, &files.key).unwrap_err();
        assert!(matches!(fault, TlsFilesFault::CertificateInvalid { .. }), "{fault}");
        let fault = load(&files.certificate, &files.certificate).unwrap_err();
        assert!(matches!(fault, TlsFilesFault::KeyInvalid { .. }), "{fault}");
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let files = files();
        let pem = std::fs::read_to_string(&files.certificate).unwrap();
        std::fs::write(&files.certificate, &pem[..pem.len() / 2]).unwrap();
        let fault = load(&files.certificate, &files.key).unwrap_err();
        assert!(matches!(fault, TlsFilesFault::CertificateInvalid { .. }), "{fault}");
    }
}
