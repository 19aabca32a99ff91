//! What of a shard can change while it runs: who may connect, and within which limits.
//!
//! The control thread sends a whole new set; connections that are open keep what they were told at
//! their beginning.

use std::sync::Arc;

use ringpost_ring::Ring;

use super::Shard;
use crate::control::auth::Verifier;
use crate::limits::LimitSet;
use crate::transport::Acceptor;
use crate::transport::quic::QuicConfig;

/// Everything that a reload replaces.
#[derive(Clone)]
pub struct ShardSettings {
    pub acceptor: Acceptor,
    /// `None`: no QUIC; it does not change while the gateway runs.
    pub quic: Option<QuicConfig>,
    pub verifier: Arc<Verifier>,
    pub limits: Arc<LimitSet>,
    /// Clients sent away for overload come back after a time from zero up to this.
    pub reconnect_jitter_ms: u64,
    /// Somebody keeps an audit log: tell what happens at logins.
    pub audits: bool,
}

impl<R: Ring> Shard<R> {
    /// Takes a whole new set. Nobody is disconnected: a lower bound holds for what comes.
    pub(super) fn apply(&mut self, settings: ShardSettings) {
        let ShardSettings { acceptor, quic, verifier, limits, reconnect_jitter_ms, audits } =
            settings;
        self.gate.set_limits(Arc::clone(&limits));
        if let (Some(edge), Some(quic)) = (&mut self.edge, &quic) {
            edge.endpoint.set_config(quic);
            edge.endpoint.set_gate(self.gate.clone());
        }
        self.audits = audits;
        (self.acceptor, self.verifier) = (acceptor, verifier);
        (self.limits, self.reconnect_jitter_ms) = (limits, reconnect_jitter_ms);
        let LimitSet { mailbox_records_max, mailbox_bytes_max, .. } = *self.limits;
        if let Some(home) = &mut self.home
            && let Some(open) = home.state.try_open_mut()
        {
            open.store.set_mailbox_bounds(mailbox_records_max, mailbox_bytes_max);
        }
        for key in self.conns.keys() {
            let Some(address) = self.conns.get(key).map(|conn| conn.address) else { continue };
            let is_exempt = self.gate.is_exempt(address);
            if let Some(conn) = self.conns.get_mut(key) {
                conn.is_exempt = is_exempt;
            }
            self.schedule(key);
        }
    }
}
