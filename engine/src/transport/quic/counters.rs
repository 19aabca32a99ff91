//! What an endpoint counts, since it was made.

/// All of them only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuicCounters {
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    /// Datagrams of another shard that landed here, and were given to
    /// [`poll_foreign`](super::QuicEndpoint::poll_foreign).
    pub foreign: u64,
    /// Of those, dropped: too many waited.
    pub foreign_dropped: u64,
    /// Datagrams that another shard forwarded to this one.
    pub forwarded: u64,
    /// Of those, dropped: they are not of this shard either.
    pub misrouted: u64,
    /// Handshakes done.
    pub handshakes: u64,
    /// Handshakes that failed.
    pub handshakes_failed: u64,
    /// Clients that took too long to open their stream.
    pub handshakes_late: u64,
    /// Proofs of an address demanded.
    pub retries: u64,
    /// Clients that were told that there is no room.
    pub refused: u64,
    /// Clients that have proven an address that opens connections too fast, or has too many. They are
    /// told that there is no room.
    pub refused_address_rate: u64,
    pub refused_address_connections: u64,
    /// Clients that were not answered.
    pub ignored: u64,
    /// Clients that were told that their connection is not known.
    pub resets: u64,
    /// Answers without a connection that were dropped: too many waited.
    pub responses_dropped: u64,
    /// Clients that sent from another address.
    pub path_changes: u64,
    /// Of those, proven.
    pub path_validations: u64,
    /// Of those, not proven: the old address was taken again.
    pub path_failures: u64,
    /// Connections closed because they used other streams than the one.
    pub stream_violations: u64,
    /// Panics that ended one connection, or lost one datagram.
    pub panics: u64,
}
