//! `auth.jwks_url`: where the public keys are fetched from.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hyper::Uri;

/// A URL that a key set may come from: HTTPS, or plain HTTP from this host alone, because whoever
/// can change the keys on their way can be any user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetUrl {
    uri: Uri,
    is_encrypted: bool,
    /// More certificate authorities than those that this host trusts, PEM.
    ca_path: Option<PathBuf>,
}

impl KeySetUrl {
    /// `None`: not such a URL.
    pub fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let is_encrypted = match uri.scheme_str()? {
            "https" => true,
            "http" if is_loopback(bare_host(authority.host())) => false,
            _ => return None,
        };
        // A password would be logged with the URL.
        let is_plain = !authority.as_str().contains('@') && !authority.host().is_empty();
        is_plain.then_some(Self { uri, is_encrypted, ca_path: None })
    }

    /// The same, trusting what this host trusts and the authorities in `ca_path`.
    pub fn trusting(self, ca_path: Option<PathBuf>) -> Self {
        Self { ca_path, ..self }
    }

    pub fn ca_path(&self) -> Option<&Path> {
        self.ca_path.as_deref()
    }

    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Name or address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        bare_host(self.uri.host().unwrap_or_default())
    }

    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(if self.is_encrypted { 443 } else { 80 })
    }

    /// For the request line.
    pub fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("/", |path| path.as_str())
    }

    /// For the header `Host`.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }
}

impl fmt::Display for KeySetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_changed_on_the_way_is_taken() {
        let url = KeySetUrl::parse("https://id.example/keys?v=1").unwrap();
        assert_eq!((url.host(), url.port(), url.is_encrypted()), ("id.example", 443, true));
        assert_eq!((url.path_and_query(), url.authority()), ("/keys?v=1", "id.example"));
        let url = KeySetUrl::parse("http://[::1]:8080").unwrap();
        assert_eq!((url.host(), url.port(), url.is_encrypted()), ("::1", 8080, false));
        assert_eq!((url.path_and_query(), url.authority()), ("/", "[::1]:8080"));
        for good in ["http://127.0.0.9/k", "http://localhost:1/", "https://10.0.0.1:8443/k"] {
            assert!(KeySetUrl::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "/keys",
            "id.example/keys",
            "http://id.example/keys",
            "http://localhost.example/",
            "ftp://id.example/",
            "https://user:password@id.example/",
            "https:///keys",
            "https://id example/",
        ] {
            assert!(KeySetUrl::parse(bad).is_none(), "{bad}");
        }
    }
}
