//! The tables of the file, but for `[limits]`.

use std::path::{Path, PathBuf};

use ringpost_ring::steering::CidNaming;
use tracing_subscriber::EnvFilter;

use super::source::{Section, Source};
use super::{
    AuditConfig, AuthConfig, CACHE_BYTES, Config, ConfigFaults, DATAGRAM_BUFFER_BYTES,
    DEFAULT_ADMIN_LISTEN, DEFAULT_AUDIENCE, DEFAULT_LISTEN, DRAIN_MS, DrainConfig, JITTER_MS,
    KeySetUrl, KeySource, LogConfig, LogFormat, QuicServing, RECLAIM_BYTES_PER_SECOND,
    RETRY_PENDING, SEGMENT_BYTES, SHARDS, StorageConfig, TlsConfig, default_shards, limits,
};

pub(super) fn parse(path: &Path, text: &str) -> Result<Config, ConfigFaults> {
    Source::new(path, text).read(config).map_err(ConfigFaults)
}

pub(super) fn config(file: &mut Section<'_>) -> Config {
    let shards = file.optional_number("shards", SHARDS).unwrap_or_else(default_shards);
    Config {
        listen: file.address("listen", DEFAULT_LISTEN),
        proxy_trusted: limits::read_proxy(file),
        admin_listen: file.address("admin_listen", DEFAULT_ADMIN_LISTEN),
        keys_listen: file.table("keys", |keys| keys.optional_address("listen")),
        data_dir: file.path("data_dir", "the directory of the store"),
        shards,
        storage_shards: file.optional_number("storage_shards", 1..=u64::from(shards)),
        confirm_clock: false,
        tls: file.table("tls", tls),
        auth: file.table("auth", auth),
        quic: file.table("quic", quic),
        limits: file.table("limits", limits::read),
        storage: file.table("storage", storage),
        drain: file.table("drain", drain),
        log: file.table("log", log),
        audit: file.table("audit", |audit| AuditConfig { path: audit.optional_path("path") }),
    }
}

fn tls(tls: &mut Section<'_>) -> TlsConfig {
    let certificate = "the PEM file of the certificate chain, the server's own first";
    let key = "the PEM file of the private key of the certificate";
    TlsConfig {
        certificate_path: tls.path("certificate_path", certificate),
        key_path: tls.path("key_path", key),
    }
}

fn auth(auth: &mut Section<'_>) -> AuthConfig {
    let audience = "a word that the token's aud contains";
    let not_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    AuthConfig {
        keys: key_source(auth),
        audience: auth
            .text("audience", audience, not_empty)
            .unwrap_or_else(|| DEFAULT_AUDIENCE.to_owned()),
    }
}

fn key_source(auth: &mut Section<'_>) -> KeySource {
    let allowed =
        "an https URL, or an http URL of this host, as in \"https://id.example/jwks.json\"";
    let has_path = auth.has("jwks_path");
    let path = auth.optional_path("jwks_path");
    let ca_path = auth.optional_path("jwks_ca_path");
    let given = auth.take("jwks_url");
    let Some(given) = given else {
        if !has_path {
            let meaning = "the JSON file of the public keys (JWK set) that sign tokens, or set \
                           auth.jwks_url to where they are fetched from";
            auth.missing("jwks_path", meaning);
        }
        return KeySource::File(path.unwrap_or_default());
    };
    if has_path {
        auth.refuse(&given, "nothing beside jwks_path: one of the two");
    }
    let url = given.text().and_then(KeySetUrl::parse);
    match url {
        Some(url) => KeySource::Url(url.trusting(ca_path)),
        None => {
            auth.refuse(&given, allowed);
            KeySource::File(PathBuf::new())
        }
    }
}

fn quic(quic: &mut Section<'_>) -> QuicServing {
    let QuicServing { enabled, steering, retry_pending, send_buffer_bytes, receive_buffer_bytes } =
        QuicServing::default();
    let ways = [("keyed", Some(CidNaming::Keyed)), ("plain", Some(CidNaming::Plain))];
    let buffer = DATAGRAM_BUFFER_BYTES;
    QuicServing {
        enabled: quic.flag("enabled", enabled),
        steering: quic.word("steering", &ways, steering),
        retry_pending: quic.number("retry_handshakes_pending", RETRY_PENDING, retry_pending),
        send_buffer_bytes: quic.number("send_buffer_bytes", buffer.clone(), send_buffer_bytes),
        receive_buffer_bytes: quic.number("receive_buffer_bytes", buffer, receive_buffer_bytes),
    }
}

fn storage(storage: &mut Section<'_>) -> StorageConfig {
    let StorageConfig { segment_bytes, cache_bytes, reclaim_bytes_per_second } =
        StorageConfig::default();
    StorageConfig {
        segment_bytes: storage.number("segment_bytes", SEGMENT_BYTES, segment_bytes),
        cache_bytes: storage.number("cache_bytes", CACHE_BYTES, cache_bytes),
        reclaim_bytes_per_second: storage.number(
            "reclaim_bytes_per_second",
            RECLAIM_BYTES_PER_SECOND,
            reclaim_bytes_per_second,
        ),
    }
}

fn drain(drain: &mut Section<'_>) -> DrainConfig {
    let DrainConfig { drain_ms_max, reconnect_jitter_ms } = DrainConfig::default();
    DrainConfig {
        drain_ms_max: drain.number("drain_ms_max", DRAIN_MS, drain_ms_max),
        reconnect_jitter_ms: drain.number("reconnect_jitter_ms", JITTER_MS, reconnect_jitter_ms),
    }
}

fn log(log: &mut Section<'_>) -> LogConfig {
    let allowed = "a level (error, warn, info, debug, trace), or MODULE=LEVEL pairs separated by \
                   commas";
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let checked = |text: &str| EnvFilter::try_new(text).is_ok().then(|| text.to_owned());
    let filter = log.text("filter", allowed, checked);
    LogConfig {
        filter: filter.unwrap_or_else(|| LogConfig::default().filter),
        format: log.word("format", &formats, LogFormat::default()),
    }
}
