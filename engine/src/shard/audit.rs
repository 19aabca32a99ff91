//! What the audit log is told about logins. Nothing is made of it while no log is kept.

use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::Hello;
use ringpost_ring::Ring;

use super::Shard;
use super::conn::ConnKey;
use super::message::{DeviceIndex, ShardEvent};
use crate::audit::{AuditEvent, Client};
use crate::control::auth::{Claims, claimed_key_id};

impl<R: Ring> Shard<R> {
    /// `claims`: of a token that is good, and did not help.
    pub(super) fn audit_refused(
        &mut self,
        key: ConnKey,
        hello: &Hello,
        claims: Option<&Claims>,
        fault: &PeerFault,
    ) {
        if self.audits {
            let key_id = match claims {
                Some(claims) => Some(claims.key_id.to_string()),
                None => claimed_key_id(&hello.token),
            };
            let user = claims.map(|claims| claims.user.clone());
            let Some(client) = self.client(key, user, hello.device.as_str(), key_id) else {
                return;
            };
            let reason = fault.to_string();
            self.audit(AuditEvent::LoginRefused { client, reason });
        }
    }

    pub(super) fn audit_renewal_refused(
        &mut self,
        key: ConnKey,
        device: DeviceIndex,
        token: &str,
        fault: &PeerFault,
    ) {
        if self.audits {
            let home = self.home.as_ref().expect("an open connection is at home");
            let address = home.device(device).address.clone();
            let key_id = claimed_key_id(token);
            let client = self.client(key, Some(address.user), address.device.as_str(), key_id);
            let Some(client) = client else { return };
            let reason = fault.to_string();
            self.audit(AuditEvent::RenewalRefused { client, reason });
        }
    }

    /// The login of `device`'s connection is good: `event` makes of it what is told.
    pub(super) fn audit_login(&mut self, device: DeviceIndex, event: fn(Client) -> AuditEvent) {
        if self.audits {
            let home = self.home.as_ref().expect("devices live at home");
            let Some(attached) = &home.device(device).attached else { return };
            let Claims { user, device, key_id, .. } = &attached.login.claims;
            let (user, key_id) = (Some(user.clone()), Some(key_id.to_string()));
            let client = self.client(attached.conn, user, device.as_str(), key_id);
            let Some(client) = client else { return };
            self.audit(event(client));
        }
    }

    fn client(
        &self,
        key: ConnKey,
        user: Option<UserId>,
        device: &str,
        key_id: Option<String>,
    ) -> Option<Client> {
        let address = self.conns.get(key)?.address;
        Some(Client { address, user, device: device.to_owned(), key_id })
    }

    fn audit(&mut self, event: AuditEvent) {
        (self.events)(ShardEvent::Audit(Box::new(event)));
    }
}
