//! Bounds of the client. Configuration may lower those that [`crate::ledger::LedgerConfig`] names, and
//! choose others for those of [`crate::PathConfig`].

use ringpost_protocol::limits::HEARTBEAT_BACKGROUND_MS_MAX;

/// Messages in the outbox.
pub const OUTBOX_ROWS_MAX: usize = 4096;
/// Bytes of envelopes in the outbox.
pub const OUTBOX_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Unconfirmed news in the inbox; beyond it what the server sends waits unacknowledged.
pub const INBOX_ROWS_MAX: usize = 4096;
/// Bytes of envelopes in the inbox.
pub const INBOX_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Words about the connection that wait for the app; older ones are dropped.
pub const STATUSES_MAX: usize = 32;
/// Deliveries of one connection that may wait for room in the inbox. The server stops at
/// `DELIVERS_UNACKED_MAX`; twice that is not a server we can talk to.
pub const BACKLOG_MAX: usize = 2 * ringpost_protocol::limits::DELIVERS_UNACKED_MAX;
/// Wait before the first retry of a refused message when the server names none; doubles.
pub const RETRY_MS_MIN: u64 = 500;
/// Doublings of [`RETRY_MS_MIN`].
pub const RETRY_DOUBLINGS_MAX: u32 = 6;
/// Memory redb may use for pages. The database is read only at the start.
pub const DATABASE_CACHE_BYTES: usize = 1024 * 1024;
/// Commands of the app that wait for the driver.
pub const COMMANDS_MAX: usize = 1024;
/// Events that wait for the app outside the ledger.
pub const EVENTS_MAX: usize = 64;
/// Operations gathered before the driver looks at the socket again.
pub const COMMANDS_PER_TURN_MAX: usize = 256;
/// Bytes queued for the socket above which no further Send is encoded.
pub const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Time for name lookup, token and handshake with one address of the list, over all transports.
pub const CONNECT_MS_MAX: u64 = 10_000;
/// Head start of the preferred transport, and of each resolved address of QUIC before the next.
pub const STAGGER_MS: u64 = 250;
/// Resolved addresses of one name that QUIC tries.
pub const QUIC_ADDRESSES_MAX: usize = 4;
/// Wait before QUIC is tried again on a network where TLS was faster; doubles.
pub const QUIC_RETRY_MS_MIN: u64 = 30_000;
/// Ceiling of that wait.
pub const QUIC_RETRY_MS_MAX: u64 = 3_600_000;
/// Time for token and QUIC handshake beside a connection that stands.
pub const QUIC_RETRY_CONNECT_MS_MAX: u64 = 5_000;
/// Time for the first answer on a path that may have changed.
pub const PROBE_MS_MAX: u64 = 3_000;
/// Silence after which QUIC itself gives a connection up. Never before the protocol does.
pub const QUIC_IDLE_MS_MAX: u64 = 3_750_000;
/// Bytes that the server may send ahead of what was read.
pub const QUIC_WINDOW_BYTES: u32 = 256 * 1024;
/// Time that a server which said GoAway is listened to before we leave.
pub const GO_AWAY_MS_MAX: u64 = 5_000;
/// Time for Bye to reach the socket at a close.
pub const CLOSE_MS_MAX: u64 = 1_000;

const _: () = assert!(QUIC_IDLE_MS_MAX >= HEARTBEAT_BACKGROUND_MS_MAX * 5 / 2);
const _: () = assert!(QUIC_RETRY_CONNECT_MS_MAX <= QUIC_RETRY_MS_MIN);
