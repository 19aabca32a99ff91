//! Who may begin a connection, by address: what a socket and a QUIC handshake are asked alike.

use std::net::IpAddr;
use std::sync::Arc;

use super::{AddressGuard, AddressRefusal, AddressTable, Admitted, LimitSet};

/// The table that all shards share, and the limits that hold now.
#[derive(Clone)]
pub struct Gate {
    addresses: Arc<AddressTable>,
    limits: Arc<LimitSet>,
}

/// How an address was let in.
#[derive(Debug, Default)]
pub struct Admission {
    /// No rates hold for it.
    pub is_exempt: bool,
    /// Counts the connection among those of its address.
    pub guard: Option<AddressGuard>,
    /// It is not counted: there is no room for another address.
    pub is_uncounted: bool,
}

impl Gate {
    pub fn new(addresses: Arc<AddressTable>, limits: Arc<LimitSet>) -> Self {
        Self { addresses, limits }
    }

    /// The same table, with other limits.
    pub fn set_limits(&mut self, limits: Arc<LimitSet>) {
        self.limits = limits;
    }

    /// Addresses that are counted now.
    pub fn addresses(&self) -> usize {
        self.addresses.len()
    }

    /// Whether no limit holds for `address`.
    pub fn is_exempt(&self, address: IpAddr) -> bool {
        self.limits.address_exempt.iter().any(|range| range.contains(address))
    }

    /// A connection from `address` wants in; `now_ms` is monotonic.
    pub fn admit(&self, address: IpAddr, now_ms: u64) -> Result<Admission, AddressRefusal> {
        if self.is_exempt(address) {
            return Ok(Admission { is_exempt: true, ..Admission::default() });
        }
        let admitted = self.addresses.admit(address, now_ms, &self.limits)?;
        Ok(match admitted {
            Admitted::Counted(guard) => Admission { guard: Some(guard), ..Admission::default() },
            Admitted::Free => Admission::default(),
            Admitted::TableFull => Admission { is_uncounted: true, ..Admission::default() },
        })
    }

    /// Whether `address` would not be let in now. Nothing is counted: anybody may have said that it
    /// is his.
    pub fn would_refuse(&self, address: IpAddr, now_ms: u64) -> bool {
        !self.is_exempt(address) && self.addresses.would_refuse(address, now_ms, &self.limits)
    }
}
