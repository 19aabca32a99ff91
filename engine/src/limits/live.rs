//! The limits that an operator sets, and may set anew while the gateway runs.

use ringpost_protocol::limits::HELLO_MS_MAX;
use ringpost_protocol::message::Limits;

use super::bucket::{PerHour, Rate};
use super::cidr::Cidr;
use super::{
    MAILBOX_BYTES_MAX, MAILBOX_RECORDS_MAX, RECEIVE_BYTES_PER_TURN, RECEIVE_FRAMES_PER_TURN,
    SEND_STALL_MS,
};

/// What a shard allows. It is replaced as a whole, and read where it is used: but for the bound of
/// its frames nothing of it is copied into a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSet {
    /// Connections of one shard.
    pub connections_max: usize,
    /// Bytes of one frame, told in Welcome: a connection keeps the bound that it was accepted with.
    pub frame_bytes_max: u32,
    /// Messages of one mailbox.
    pub mailbox_records_max: u32,
    /// Bytes of the messages of one mailbox.
    pub mailbox_bytes_max: u32,
    /// Frames that one connection sends; beyond it its socket is not read.
    pub connection_frames: Rate,
    /// Bytes that one connection sends, encrypted; beyond it its socket is not read.
    pub connection_bytes: Rate,
    /// Sends of one user, and changes of its keys, device list and groups, from all devices; beyond it
    /// they are refused.
    pub user_sends: Rate,
    /// Users whose keys or device lists one user reads, from all devices; beyond it that is refused.
    /// Requests over HTTPS count apart, publications among them.
    pub user_key_reads: PerHour,
    /// One-time keys of one device that are handed out, to whomever; beyond it bundles come without.
    pub device_one_time_keys: PerHour,
    /// Connections that one address opens; beyond it they are closed at once. An address is an IPv4
    /// address, or the 64 bits of an IPv6 network.
    pub address_accepts: Rate,
    /// Connections that one address has; 0: no limit.
    pub address_connections_max: u32,
    /// No rate limit holds for connections from here.
    pub address_exempt: Vec<Cidr>,
    /// Connections of one shard that are not verified yet.
    pub handshakes_pending_max: usize,
    /// Steps of such connections that one turn of a shard takes; the rest waits for the next turns.
    pub handshake_steps_per_turn: usize,
    /// Time from accept to Welcome.
    pub handshake_ms_max: u64,
    /// Time for the peer to take what is being sent before the connection counts as stalled.
    pub send_stall_ms_max: u64,
    /// Bytes of one connection in one turn after which it gets its data in single pieces.
    pub receive_bytes_per_turn: u32,
    /// Frames of one connection that one turn handles; the rest waits for the next turns.
    pub receive_frames_per_turn: u32,
}

impl LimitSet {
    /// These limits on a host that has files for so many connections per shard.
    pub fn within(&self, connections_room: usize) -> Self {
        Self { connections_max: self.connections_max.min(connections_room), ..self.clone() }
    }
}

impl Default for LimitSet {
    fn default() -> Self {
        Self {
            connections_max: 1_000_000,
            frame_bytes_max: Limits::of_protocol().frame_bytes_max,
            mailbox_records_max: MAILBOX_RECORDS_MAX,
            mailbox_bytes_max: MAILBOX_BYTES_MAX,
            connection_frames: Rate { per_second: 500, burst: 5_000 },
            connection_bytes: Rate { per_second: 1 << 20, burst: 32 << 20 },
            user_sends: Rate { per_second: 100, burst: 2_000 },
            user_key_reads: PerHour(1_000),
            device_one_time_keys: PerHour(120),
            address_accepts: Rate { per_second: 500, burst: 5_000 },
            address_connections_max: 20_000,
            address_exempt: Cidr::LOOPBACK.to_vec(),
            handshakes_pending_max: 4_096,
            handshake_steps_per_turn: 2,
            handshake_ms_max: HELLO_MS_MAX,
            send_stall_ms_max: SEND_STALL_MS,
            receive_bytes_per_turn: RECEIVE_BYTES_PER_TURN,
            receive_frames_per_turn: RECEIVE_FRAMES_PER_TURN,
        }
    }
}
