//! Connections that come through a balancer: its header names the client.

use ringpost_ring::Ring;

use super::Shard;
use super::conn::ConnKey;
use super::inbound::Data;
use crate::metrics::RefusedConnection;
use crate::transport::proxy::ProxyFault;

impl<R: Ring> Shard<R> {
    /// Gathers the header. What comes behind it is the client's. The client's address has the
    /// limits, and stands in the logs.
    pub(super) fn handle_header(&mut self, key: ConnKey, data: Data<'_>) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        let reader = conn.header.as_mut().expect("checked by the caller");
        let read = reader.read(data.bytes(&self.ring));
        self.give_back(data);
        let header = match read {
            Ok(Some(header)) => header,
            Ok(None) => return,
            Err(fault) => return self.refuse_header(key, fault),
        };
        let conn = self.conns.get_mut(key).expect("checked above");
        let reader = conn.header.take().expect("checked above");
        conn.address = header.source.unwrap_or(conn.address);
        let address = conn.address;
        let Some(admission) = self.admit_address(address) else {
            return self.abort(key);
        };
        let conn = self.conns.get_mut(key).expect("checked above");
        (conn.is_exempt, conn.guard) = (admission.is_exempt, admission.guard);
        let rest = reader.behind(&header);
        if !rest.is_empty() {
            self.handle_data(key, Data::Copied(rest));
        }
    }

    /// It is no balancer that speaks, or not as it should: there is nobody to tell.
    pub(super) fn refuse_header(&mut self, key: ConnKey, fault: ProxyFault) {
        let conn = self.conns.get(key).expect("its data is being handled");
        tracing::debug!(address = %conn.address, %fault, "connection refused");
        self.metrics.connections_refused.add(RefusedConnection::ProxyHeader);
        self.abort(key);
    }
}
