//! What the control thread counts, beside what the shards do.

use std::cell::Cell;

use super::validity::Validity;
use crate::metrics::{expose_counts, expose_gauge};

/// Reloads, and the certificate and keys in use.
#[derive(Debug)]
pub(super) struct ControlMetrics {
    reloads_ok: Cell<u64>,
    reloads_refused: Cell<u64>,
    /// The last reload, or the start, was taken.
    last_reload_ok: Cell<bool>,
    last_reload_unix_s: Cell<u64>,
    certificate: Cell<Validity>,
    fetches_ok: Cell<u64>,
    fetches_failed: Cell<u64>,
    /// When the keys in use were read or fetched.
    keys_unix_ms: Cell<u64>,
    /// By the key interface: connections of an address, requests of a user.
    addresses_refused: Cell<u64>,
    users_refused: Cell<u64>,
}

impl ControlMetrics {
    pub(super) fn new(now_unix_s: u64, certificate: Validity, keys_unix_ms: u64) -> Self {
        Self {
            reloads_ok: Cell::default(),
            reloads_refused: Cell::default(),
            last_reload_ok: Cell::new(true),
            last_reload_unix_s: Cell::new(now_unix_s),
            certificate: Cell::new(certificate),
            fetches_ok: Cell::default(),
            fetches_failed: Cell::default(),
            keys_unix_ms: Cell::new(keys_unix_ms),
            addresses_refused: Cell::default(),
            users_refused: Cell::default(),
        }
    }

    pub(super) fn address_refused(&self) {
        self.addresses_refused.set(self.addresses_refused.get() + 1);
    }

    pub(super) fn user_refused(&self) {
        self.users_refused.set(self.users_refused.get() + 1);
    }

    pub(super) fn reloaded(&self, now_unix_s: u64, certificate: Validity) {
        self.reloads_ok.set(self.reloads_ok.get() + 1);
        self.last_reload_ok.set(true);
        self.last_reload_unix_s.set(now_unix_s);
        self.certificate.set(certificate);
    }

    pub(super) fn reload_refused(&self) {
        self.reloads_refused.set(self.reloads_refused.get() + 1);
        self.last_reload_ok.set(false);
    }

    pub(super) fn keys_read(&self, unix_ms: u64) {
        self.keys_unix_ms.set(unix_ms);
    }

    pub(super) fn keys_fetched(&self, unix_ms: u64) {
        self.fetches_ok.set(self.fetches_ok.get() + 1);
        self.keys_unix_ms.set(unix_ms);
    }

    pub(super) fn fetch_failed(&self) {
        self.fetches_failed.set(self.fetches_failed.get() + 1);
    }

    fn expose_keys(&self, out: &mut String, now_unix_ms: u64) {
        let fetches = [("ok", self.fetches_ok.get()), ("failed", self.fetches_failed.get())];
        let help = "Key sets asked for again at auth.jwks_url while the gateway runs.";
        expose_counts(out, "ringpost_key_set_fetches_total", help, "result", &fetches);
        expose_gauge(
            out,
            "ringpost_key_set_age_seconds",
            "Time since the keys in use were read or fetched.",
            now_unix_ms.saturating_sub(self.keys_unix_ms.get()) / 1_000,
        );
    }

    pub(super) fn expose(&self, out: &mut String, now_unix_ms: u64) {
        self.expose_keys(out, now_unix_ms);
        let refusals =
            [("address", self.addresses_refused.get()), ("user", self.users_refused.get())];
        let help = "What the key interface refused: connections of an address, requests of a user.";
        expose_counts(out, "ringpost_key_interface_refusals_total", help, "limit", &refusals);
        let reloads = [("ok", self.reloads_ok.get()), ("refused", self.reloads_refused.get())];
        let help = "Configurations read again on SIGHUP; a refused one changed nothing.";
        expose_counts(out, "ringpost_reloads_total", help, "result", &reloads);
        expose_gauge(
            out,
            "ringpost_config_last_reload_successful",
            "1 if the configuration in use is the one of the last attempt to load it.",
            u64::from(self.last_reload_ok.get()),
        );
        expose_gauge(
            out,
            "ringpost_config_last_reload_success_timestamp_seconds",
            "When the configuration in use was loaded.",
            self.last_reload_unix_s.get(),
        );
        expose_gauge(
            out,
            "ringpost_certificate_not_after_timestamp_seconds",
            "When the certificate in use expires.",
            self.certificate.get().not_after_unix_s,
        );
    }
}
