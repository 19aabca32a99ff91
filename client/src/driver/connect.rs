//! How the driver comes to a connection, and keeps it when the network changes.

use std::time::Duration;

use ringpost_protocol::message::Mode;
use ringpost_protocol::session::{ClientHello, ClientSession};
use tokio::time::timeout;

use super::{ConnectFault, Connecting, Dialled, Driver, End, Phase, TOKEN_REFUSALS_MAX};
use crate::event::Status;
use crate::limits::{CONNECT_MS_MAX, QUIC_RETRY_CONNECT_MS_MAX};
use crate::link::Link;
use crate::path::{Order, Transport};
use crate::token::TokenFault;

impl Driver {
    pub(super) fn connect(&mut self) {
        let address = self
            .other_address
            .clone()
            .unwrap_or_else(|| self.addresses[self.reconnect.address_index()].clone());
        self.phase = Phase::Connecting(self.dial(address, self.paths.order(), CONNECT_MS_MAX));
    }

    fn dial(&self, address: String, order: Order, ms_max: u64) -> Connecting {
        let (dialler, token_source) = (self.dialler.clone(), self.token_source.clone());
        let stagger_ms = self.paths.config().stagger_ms;
        let attempt = async move {
            // Asked for here and not earlier: it should be fresh when the server sees it.
            let token = token_source.token().await?;
            let stream = dialler.race(&address, order, stagger_ms).await?;
            Ok(Dialled { token, address, stream })
        };
        tokio::spawn(async move {
            let limit = Duration::from_millis(ms_max);
            timeout(limit, attempt).await.unwrap_or(Err(ConnectFault::TimedOut { ms_max }))
        })
    }

    /// The only place that makes a Hello: the newest one takes the device over.
    pub(super) fn open_session(&mut self, dialled: Dialled) {
        let Dialled { token, address, stream } = dialled;
        self.other_address = None;
        let identity = self.ledger.identity();
        let hello = ClientHello {
            token,
            device: self.device.clone(),
            install_id: identity.install_id,
            mailbox_id: identity.mailbox_id,
            acked_up_to: identity.acked_up_to,
            mode: self.mode,
            capabilities: 0,
        };
        let session = ClientSession::new(self.now_ms(), hello);
        let link = Box::new(Link::new(stream, session));
        self.phase = Phase::Online { link, address, is_welcome: false, leaving: None };
    }

    pub(super) fn handle_connect_fault(&mut self, fault: ConnectFault) {
        self.other_address = None;
        let end = match fault {
            ConnectFault::Token(TokenFault::Denied(reason)) => {
                self.token_refusal_count = TOKEN_REFUSALS_MAX;
                End::TokenRefused(reason)
            }
            fault => End::Fault(fault.to_string()),
        };
        self.end(end);
    }

    /// A QUIC connection moves along; anything else begins anew, at once.
    pub(super) fn handle_network_change(&mut self) {
        self.paths.handle_network_change();
        self.stop_retrying();
        let (now_ms, answer_ms_max) = (self.now_ms(), self.paths.config().probe_ms_max);
        match &mut self.phase {
            // The user has to ask for it.
            Phase::Stopped => return,
            Phase::Waiting { .. } => {}
            Phase::Connecting(task) => task.abort(),
            Phase::Online { link, leaving, .. } => match link.rebind(now_ms, answer_ms_max) {
                Ok(true) => return,
                Ok(false) => match *leaving {
                    Some((wait_ms, _)) => return self.end(End::GoAway { wait_ms }),
                    None => self.leave("the network has changed".into()),
                },
                Err(error) => self.leave(format!("no socket on the new network: {error}")),
            },
        }
        self.reconnect.reset();
        self.connect();
    }

    /// Gives the connection up without a wait before the next one.
    fn leave(&mut self, reason: String) {
        tracing::info!(reason, "disconnected");
        self.ledger.connection_ended();
        self.calls.connection_ended();
        self.transport.send_replace(None);
        self.ledger.report(Status::Disconnected { retry_in_ms: 0, reason });
    }

    /// When to try QUIC beside the present connection. Not in the background: it wakes the radio.
    pub(super) fn retry_at_ms(&self) -> Option<u64> {
        let Phase::Online { link, is_welcome: true, leaving: None, .. } = &self.phase else {
            return None;
        };
        let is_wanted = link.transport() == Transport::Tls
            && self.retrying.is_none()
            && self.mode == Mode::Foreground;
        self.paths.poll_retry().filter(|_| is_wanted)
    }

    pub(super) fn retry_quic(&mut self, now_ms: u64) {
        if let (Phase::Online { address, .. }, Some(at_ms)) = (&self.phase, self.retry_at_ms())
            && at_ms <= now_ms
        {
            let order = Order { first: Transport::Quic, second: None };
            self.retrying = Some(self.dial(address.clone(), order, QUIC_RETRY_CONNECT_MS_MAX));
        }
    }

    /// QUIC works again: the session goes on there. What the old connection still had to say is
    /// said again.
    pub(super) fn handle_retried(&mut self, result: Result<Dialled, ConnectFault>) {
        let dialled = match result {
            Ok(dialled) => dialled,
            Err(ConnectFault::Token(fault)) => {
                tracing::debug!(%fault, "no token to try QUIC with");
                return self.paths.handle_retry_put_off(self.now_ms());
            }
            Err(fault) => {
                tracing::debug!(%fault, "QUIC does not work here yet");
                return self.paths.handle_retry_failed(self.now_ms());
            }
        };
        if let Phase::Online { leaving: None, .. } = &self.phase {
            tracing::info!("from TLS over TCP to QUIC");
            self.ledger.connection_moves();
            self.calls.connection_ended();
            self.open_session(dialled);
        }
    }

    pub(super) fn stop_retrying(&mut self) {
        if let Some(task) = self.retrying.take() {
            task.abort();
        }
    }
}
