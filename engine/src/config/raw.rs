//! The file as written: every key optional, every value with its place.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use tracing_subscriber::EnvFilter;

use super::limits::RawLimits;
use super::{
    AuthConfig, CACHE_BYTES, Config, ConfigFault, DEFAULT_ADMIN_LISTEN, DEFAULT_AUDIENCE,
    DEFAULT_LISTEN, DRAIN_MS, DrainConfig, JITTER_MS, LogConfig, LogFormat, Place,
    RECLAIM_BYTES_PER_SECOND, SEGMENT_BYTES, SHARDS, StorageConfig, TlsConfig, default_shards,
};

pub(super) fn parse(path: &Path, text: &str) -> Result<Config, ConfigFault> {
    let source = Source { path, text };
    let raw: RawConfig = toml::from_str(text).map_err(|error| source.syntax(&error))?;
    let shards = match &raw.shards {
        Some(shards) => source.number("shards", shards, &SHARDS)?,
        None => default_shards(),
    };
    let storage_shards = raw
        .storage_shards
        .as_ref()
        .map(|wanted| source.number("storage_shards", wanted, &(1..=u64::from(shards))))
        .transpose()?;
    Ok(Config {
        listen: raw.listen.unwrap_or(DEFAULT_LISTEN),
        admin_listen: raw.admin_listen.unwrap_or(DEFAULT_ADMIN_LISTEN),
        data_dir: source.path("data_dir", raw.data_dir, "the directory of the store")?,
        shards,
        storage_shards,
        confirm_clock: false,
        tls: source.tls(raw.tls)?,
        auth: source.auth(raw.auth)?,
        limits: source.limits(&raw.limits)?,
        storage: source.storage(&raw.storage)?,
        drain: source.drain(&raw.drain)?,
        log: source.log(raw.log)?,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) listen: Option<SocketAddr>,
    pub(super) admin_listen: Option<SocketAddr>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) shards: Option<Spanned<u64>>,
    pub(super) storage_shards: Option<Spanned<u64>>,
    #[serde(default)]
    pub(super) tls: RawTls,
    #[serde(default)]
    pub(super) auth: RawAuth,
    #[serde(default)]
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) storage: RawStorage,
    #[serde(default)]
    pub(super) drain: RawDrain,
    #[serde(default)]
    pub(super) log: RawLog,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) certificate_path: Option<PathBuf>,
    pub(super) key_path: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    pub(super) jwks_path: Option<PathBuf>,
    pub(super) audience: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStorage {
    pub(super) segment_bytes: Option<Spanned<u64>>,
    pub(super) cache_bytes: Option<Spanned<u64>>,
    pub(super) reclaim_bytes_per_second: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDrain {
    pub(super) drain_ms_max: Option<Spanned<u64>>,
    pub(super) reconnect_jitter_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) filter: Option<Spanned<String>>,
    pub(super) format: Option<LogFormat>,
}

/// The text under examination, for the places in faults.
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn tls(&self, raw: RawTls) -> Result<TlsConfig, ConfigFault> {
        let certificate = "the PEM file of the certificate chain, the server's own first";
        Ok(TlsConfig {
            certificate_path: self.path(
                "tls.certificate_path",
                raw.certificate_path,
                certificate,
            )?,
            key_path: self.path(
                "tls.key_path",
                raw.key_path,
                "the PEM file of the private key of the certificate",
            )?,
        })
    }

    fn auth(&self, raw: RawAuth) -> Result<AuthConfig, ConfigFault> {
        let meaning = "the JSON file of the public keys (JWK set) that sign tokens";
        let audience = match raw.audience {
            Some(audience) if audience.get_ref().is_empty() => {
                let allowed = "a word that the token's aud contains";
                return Err(self.out_of_range("auth.audience", &audience, "\"\"", allowed));
            }
            Some(audience) => audience.into_inner(),
            None => DEFAULT_AUDIENCE.to_owned(),
        };
        Ok(AuthConfig { jwks_path: self.path("auth.jwks_path", raw.jwks_path, meaning)?, audience })
    }

    fn storage(&self, raw: &RawStorage) -> Result<StorageConfig, ConfigFault> {
        let mut storage = StorageConfig::default();
        self.set(
            &mut storage.segment_bytes,
            "storage.segment_bytes",
            raw.segment_bytes.as_ref(),
            &SEGMENT_BYTES,
        )?;
        self.set(
            &mut storage.cache_bytes,
            "storage.cache_bytes",
            raw.cache_bytes.as_ref(),
            &CACHE_BYTES,
        )?;
        self.set(
            &mut storage.reclaim_bytes_per_second,
            "storage.reclaim_bytes_per_second",
            raw.reclaim_bytes_per_second.as_ref(),
            &RECLAIM_BYTES_PER_SECOND,
        )?;
        Ok(storage)
    }

    fn drain(&self, raw: &RawDrain) -> Result<DrainConfig, ConfigFault> {
        let mut drain = DrainConfig::default();
        self.set(
            &mut drain.drain_ms_max,
            "drain.drain_ms_max",
            raw.drain_ms_max.as_ref(),
            &DRAIN_MS,
        )?;
        self.set(
            &mut drain.reconnect_jitter_ms,
            "drain.reconnect_jitter_ms",
            raw.reconnect_jitter_ms.as_ref(),
            &JITTER_MS,
        )?;
        Ok(drain)
    }

    fn log(&self, raw: RawLog) -> Result<LogConfig, ConfigFault> {
        let mut log = LogConfig { format: raw.format.unwrap_or_default(), ..LogConfig::default() };
        if let Some(filter) = raw.filter {
            if EnvFilter::try_new(filter.get_ref()).is_err() {
                let value = format!("{:?}", filter.get_ref());
                let allowed = "a level (error, warn, info, debug, trace), or MODULE=LEVEL pairs \
                               separated by commas";
                return Err(self.out_of_range("log.filter", &filter, &value, allowed));
            }
            log.filter = filter.into_inner();
        }
        Ok(log)
    }

    pub(super) fn set<T: TryFrom<u64>>(
        &self,
        target: &mut T,
        key: &'static str,
        value: Option<&Spanned<u64>>,
        allowed: &RangeInclusive<u64>,
    ) -> Result<(), ConfigFault> {
        if let Some(value) = value {
            *target = self.number(key, value, allowed)?;
        }
        Ok(())
    }

    fn number<T: TryFrom<u64>>(
        &self,
        key: &'static str,
        value: &Spanned<u64>,
        allowed: &RangeInclusive<u64>,
    ) -> Result<T, ConfigFault> {
        let number = *value.get_ref();
        match T::try_from(number) {
            Ok(checked) if allowed.contains(&number) => Ok(checked),
            _ => {
                let range = format!("a number from {} to {}", allowed.start(), allowed.end());
                Err(self.out_of_range(key, value, &number.to_string(), &range))
            }
        }
    }

    fn path(
        &self,
        key: &'static str,
        value: Option<PathBuf>,
        meaning: &'static str,
    ) -> Result<PathBuf, ConfigFault> {
        let Some(value) = value else {
            return Err(ConfigFault::Missing { path: self.path.to_owned(), key, meaning });
        };
        // `join` keeps an absolute path as it is.
        Ok(self.path.parent().map_or_else(|| value.clone(), |directory| directory.join(&value)))
    }

    pub(super) fn out_of_range<T>(
        &self,
        key: &'static str,
        value: &Spanned<T>,
        shown: &str,
        allowed: &str,
    ) -> ConfigFault {
        ConfigFault::OutOfRange {
            place: self.place(value.span()),
            key,
            value: shown.to_owned(),
            allowed: allowed.to_owned(),
        }
    }

    /// The parser names an unknown key in its message, but not the key of a value of a wrong type:
    /// the line does.
    fn syntax(&self, error: &toml::de::Error) -> ConfigFault {
        let place = self.place(error.span().unwrap_or(0..0));
        let line = self.text.lines().nth(place.line - 1).unwrap_or_default();
        let message = error.message().replace('\n', ", ");
        let text = match line.split_once('=') {
            Some((key, _)) if !message.contains(key.trim()) => format!("{}: {message}", key.trim()),
            _ => message,
        };
        ConfigFault::Syntax { place, text }
    }

    fn place(&self, span: Range<usize>) -> Place {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Place { path: self.path.to_owned(), line }
    }
}
