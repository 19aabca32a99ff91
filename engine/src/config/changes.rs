//! Which keys of a new configuration a running gateway cannot take over.

use super::{Config, LimitsConfig, LogConfig, QuicServing, StorageConfig};

impl Config {
    /// The keys that differ in `next` and hold only from the next start on.
    pub fn needs_restart(&self, next: &Self) -> Vec<&'static str> {
        // No `..`: a new key does not compile until it is decided here.
        let Self {
            listen,
            proxy_trusted,
            admin_listen,
            keys_listen,
            data_dir,
            shards,
            storage_shards,
            confirm_clock: _,
            tls: _,
            auth: _,
            quic,
            limits: LimitsConfig { send_buffer_bytes, receive_buffer_bytes, addresses_max, live: _ },
            storage: StorageConfig { segment_bytes, cache_bytes, reclaim_bytes_per_second },
            drain: _,
            log: LogConfig { filter: _, format },
            audit: _,
        } = self;
        let (limits, storage) = (&next.limits, &next.storage);
        let QuicServing {
            enabled,
            steering,
            retry_pending: _,
            send_buffer_bytes: quic_send_bytes,
            receive_buffer_bytes: quic_receive_bytes,
        } = quic;
        [
            ("listen", *listen != next.listen),
            ("proxy_protocol", proxy_trusted.is_some() != next.proxy_trusted.is_some()),
            ("proxy_trusted", *proxy_trusted != next.proxy_trusted),
            ("admin_listen", *admin_listen != next.admin_listen),
            ("keys.listen", *keys_listen != next.keys_listen),
            ("data_dir", *data_dir != next.data_dir),
            ("shards", *shards != next.shards),
            ("storage_shards", *storage_shards != next.storage_shards),
            ("quic.enabled", *enabled != next.quic.enabled),
            ("quic.steering", *steering != next.quic.steering),
            ("quic.send_buffer_bytes", *quic_send_bytes != next.quic.send_buffer_bytes),
            ("quic.receive_buffer_bytes", *quic_receive_bytes != next.quic.receive_buffer_bytes),
            ("limits.send_buffer_bytes", *send_buffer_bytes != limits.send_buffer_bytes),
            ("limits.receive_buffer_bytes", *receive_buffer_bytes != limits.receive_buffer_bytes),
            ("limits.addresses_max", *addresses_max != limits.addresses_max),
            ("storage.segment_bytes", *segment_bytes != storage.segment_bytes),
            ("storage.cache_bytes", *cache_bytes != storage.cache_bytes),
            (
                "storage.reclaim_bytes_per_second",
                *reclaim_bytes_per_second != storage.reclaim_bytes_per_second,
            ),
            ("log.format", *format != next.log.format),
        ]
        .into_iter()
        .filter(|&(_, differs)| differs)
        .map(|(key, _)| key)
        .collect()
    }
}
