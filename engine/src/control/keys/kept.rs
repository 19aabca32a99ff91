//! The last good key set in the data directory: a start does not need the server of the keys.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::KeySetUrl;
use crate::data_dir::write_atomically;

/// The file; it counts only for the URL that it came from.
#[derive(Clone, Debug)]
pub(super) struct KeptFile(PathBuf);

#[derive(Serialize, Deserialize)]
struct Kept {
    url: String,
    /// When it was fetched.
    fetched_unix_ms: u64,
    set: serde_json::Value,
}

impl KeptFile {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self(data_dir.join("jwks-last-good.json"))
    }

    /// The text of the set, and when it was fetched. What is damaged counts as absent.
    pub(super) fn read(&self, url: &KeySetUrl) -> Option<(Vec<u8>, u64)> {
        let kept: Kept = serde_json::from_slice(&std::fs::read(&self.0).ok()?).ok()?;
        let set = serde_json::to_vec(&kept.set).ok()?;
        (kept.url == url.to_string()).then_some((set, kept.fetched_unix_ms))
    }

    pub(super) fn write(&self, url: &KeySetUrl, set: &[u8], unix_ms: u64) -> io::Result<()> {
        let set = serde_json::from_slice(set)?;
        let kept = Kept { url: url.to_string(), fetched_unix_ms: unix_ms, set };
        write_atomically(&self.0, &serde_json::to_vec(&kept)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_for_its_own_url_alone() {
        let place = tempfile::tempdir().unwrap();
        let file = KeptFile::of(place.path());
        let url = KeySetUrl::parse("https://id.example/keys").unwrap();
        let other = KeySetUrl::parse("https://id.example/other").unwrap();
        assert_eq!(file.read(&url), None);
        file.write(&url, b"{\"keys\": []}", 7).unwrap();
        assert_eq!(file.read(&url), Some((b"{\"keys\":[]}".to_vec(), 7)));
        assert_eq!(file.read(&other), None);
        file.write(&url, b"{\"keys\": [1]}", 8).unwrap();
        assert_eq!(file.read(&url).unwrap().1, 8);
        assert!(file.write(&url, b"not JSON", 9).is_err());
        assert_eq!(file.read(&url).unwrap().1, 8, "a fault keeps what is there");
        std::fs::write(&file.0, "{").unwrap();
        assert_eq!(file.read(&url), None);
    }
}
