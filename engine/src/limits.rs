//! Every bound of the engine, and the inequalities that hold between them. Configuration may lower
//! a bound, nothing raises one. Rates are in the [`LimitSet`], and are the operator's choice.

mod address;
mod bucket;
mod cidr;
mod gate;
mod live;

pub use address::{AddressGuard, AddressRefusal, AddressTable, Admitted};
pub use bucket::{Bucket, PerHour, Rate};
pub use cidr::{Cidr, CidrFault};
pub use gate::{Admission, Gate};
pub use live::LimitSet;

use ringpost_protocol::limits::{DELIVERS_UNACKED_MAX, FRAME_BYTES_MAX, SENDS_UNANSWERED_MAX};

/// Shards of one process.
pub const SHARDS_MAX: u16 = 256;
/// Connections of one shard.
pub const CONNECTIONS_PER_SHARD_MAX: usize = 1 << 20;
/// Devices of one shard: mailboxes it is the home of.
pub const DEVICES_PER_SHARD_MAX: usize = 1 << 24;

/// Requests that one shard may have unanswered at another one. Reaching it stops the socket reads
/// of the connections that need that shard, and nothing else.
pub const MESH_CREDITS: u32 = 1024;
/// Messages drained from the mesh in one turn.
pub const MESH_BATCH_MAX: usize = 1024;

/// Records that one mailbox holds.
pub const MAILBOX_RECORDS_MAX: u32 = 1000;
/// Bytes that one mailbox holds.
pub const MAILBOX_BYTES_MAX: u32 = 4 << 20;

/// Plaintext that may wait to be sealed on one connection before its mailbox stops being read.
pub const OUTBOUND_BYTES_MAX: usize = 32 * 1024;
/// Buffers for unsealed plaintext that a shard keeps for whoever needs one next.
pub const SPARE_BUFFERS_MAX: usize = 64;
/// Larger ones are given back.
pub const SPARE_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Plaintext that may be received ahead on a connection whose requests wait for room.
pub const INBOUND_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Records that may be appended and not yet durable before new Sends wait.
pub const UNSYNCED_RECORDS_MAX: u64 = 64 * 1024;
/// The same in bytes.
pub const UNSYNCED_BYTES_MAX: u64 = 16 << 20;
/// Receipts that the walk over one acknowledgement gathers before it sends them.
pub const RECEIPTS_PER_WALK_MAX: usize = 64;

/// Bytes that one connection may receive in one turn before it gets its data in single pieces.
pub const RECEIVE_BYTES_PER_TURN: u32 = 64 * 1024;
/// Frames of one connection that one turn handles.
pub const RECEIVE_FRAMES_PER_TURN: u32 = 256;
/// Connections of one shard that are not verified yet.
pub const HANDSHAKES_PENDING_MAX: usize = 1 << 16;
/// Tokens of all shards whose signature is not verified again, of 32 bytes each.
pub const TOKENS_REMEMBERED_MAX: usize = 1 << 18;

/// Time for the peer to take what is being sent before the connection counts as stalled.
pub const SEND_STALL_MS: u64 = 30_000;
/// Time that a closing connection still reads, so that its last frame is not lost to a reset.
pub const LINGER_MS: u64 = 1_000;
/// Time after the last Send at which a device's send memory is freed.
pub const SEND_MEMORY_MS: u64 = 60_000;
/// Devices that one turn looks at when it frees send memory.
pub const SWEEP_DEVICES_PER_TURN: usize = 64;
/// Advice for a Send refused because the mailbox is full.
pub const MAILBOX_FULL_RETRY_MS: u64 = 5_000;
/// Advice for a Send refused because the store's queue is full.
pub const OVERLOAD_RETRY_MS: u64 = 1_000;
/// Advice for a Send refused because the disk is full.
pub const STORAGE_FULL_RETRY_MS: u64 = 5_000;
/// Advice for a Send refused because the store failed and is not open again yet.
pub const STORAGE_FAILED_RETRY_MS: u64 = 2_000;

/// How long Sends and connections wait for a store that is being opened.
pub const STORE_WAIT_MS_MAX: u64 = 5_000;
/// How many of them wait at one shard.
pub const STORE_WAITING_REQUESTS_MAX: usize = 4096;
/// Bytes of the envelopes that wait.
pub const STORE_WAITING_BYTES_MAX: usize = 8 << 20;
/// Receipts that may be under way to one shard: they wait as long as its store is not open, and must
/// leave credits to the Sends.
pub const RECEIPTS_UNANSWERED_MAX: u32 = MESH_CREDITS / 2;
/// Failures in a row after which a store is given up and the process ends.
pub const REOPEN_ATTEMPTS_MAX: u32 = 6;
/// Pause before the first attempt to open a failed store again; each failure doubles it.
pub const REOPEN_PAUSE_MS: u64 = 50;
/// The longest pause.
pub const REOPEN_PAUSE_MS_MAX: u64 = 2_000;
/// A store that was open for so long has got over its last failure.
pub const REOPEN_CALM_MS: u64 = 10_000;

/// Requests to groups that one shard may have unanswered at another one, or at itself. They wait for
/// the credits of the parts of Sends, and must leave them some.
pub const GROUP_REQUESTS_MAX: u32 = MESH_CREDITS / 8;
/// From so many on, those that are no Sends are refused.
pub const GROUP_CALLS_MAX: u32 = GROUP_REQUESTS_MAX / 4;
/// Members of all groups that one shard has in memory; each group counts as one more.
pub const ROSTER_MEMBERS_CACHED_MAX: usize = 1 << 20;

/// Bytes of one chunk that a QUIC stream gives its connection; one per connection is on the mesh.
pub const STREAM_CHUNK_BYTES_MAX: usize = 16 << 10;
/// Sends of datagrams that one shard has in flight. The rest waits in the QUIC connections.
pub const DATAGRAM_SENDS_MAX: usize = 256;
/// Datagrams that came to the wrong shard and may be under way to the right one; more are dropped.
pub const FOREIGN_UNANSWERED_MAX: u32 = MESH_CREDITS / 4;
/// So many proofs of an address demanded by one shard within a second are a flood of handshakes.
pub const FLOOD_RETRIES_PER_SECOND: u64 = 256;
/// A flood of handshakes is over when there were fewer for so long.
pub const FLOOD_CALM_MS: u64 = 10_000;

/// A fetched key set is used so long before it is fetched again, whatever its server says: shorter
/// would be a load on that server, longer would keep a key that was withdrawn.
pub const KEY_SET_AGE_S: std::ops::RangeInclusive<u64> = 60..=3_600;
/// The same when its server says nothing.
pub const KEY_SET_AGE_S_DEFAULT: u64 = 300;
/// Longest time of one fetch.
pub const KEY_SET_FETCH_MS_MAX: u64 = 10_000;
/// Longest key set that is fetched.
pub const KEY_SET_BYTES_MAX: usize = 256 << 10;
/// Pause after a fetch that failed; each failure in a row doubles it.
pub const KEY_SET_RETRY_MS: u64 = 1_000;
/// The longest pause.
pub const KEY_SET_RETRY_MS_MAX: u64 = 300_000;
/// Tokens with an unknown kid make a fetch come early at most so often.
pub const KEY_SET_DEMAND_MS: u64 = 10_000;

/// Events that may wait to be written to the audit log.
pub const AUDIT_QUEUE_MAX: usize = 8_192;
/// Refused logins of one second that get a line of the audit log each.
pub const AUDIT_REFUSED_PER_SECOND_MAX: u64 = 100;
/// The audit log tells what was refused in so long a time.
pub const AUDIT_REFUSALS_MS: u64 = 60_000;

/// Requests of one shard that the directory has not answered; more are refused.
pub const DIRECTORY_REQUESTS_MAX: usize = 1_024;
/// The same of the control thread, for the REST interface.
pub const DIRECTORY_CONTROL_REQUESTS_MAX: usize = 256;
/// Requests that one durable commit of the directory carries out.
pub const DIRECTORY_BATCH_MAX: usize = 1_024;
/// Requests of one connection that the directory has not answered; more are refused.
pub const CONNECTION_REQUESTS_MAX: u8 = 32;
/// Memory of the directory for what it has read and for what a commit writes.
pub const DIRECTORY_CACHE_BYTES: usize = 64 << 20;
/// One-time keys in stock of one device.
pub const ONE_TIME_KEYS_MAX: usize = 1_000;
/// Devices of a user that were taken off the list, and of which the directory knows which one-time keys
/// they have published, in case they come back; one of the others goes for the next.
pub const REMOVED_DEVICES_MAX: usize = 16;
/// A device with fewer one-time keys is told.
pub const ONE_TIME_KEYS_LOW: u32 = 20;
/// Memory of one shard for the device lists of its users; others are read when they are wanted.
pub const DEVICE_LISTS_BYTES_MAX: usize = 8 << 20;
/// Sends of one shard that wait for the device lists of their recipients to be read.
pub const LIST_WAITING_REQUESTS_MAX: usize = 64;
/// Connections of the REST interface at a time; more wait to be accepted.
pub const REST_CONNECTIONS_MAX: usize = 64;
/// Bytes of the body of one of its requests.
pub const REST_BODY_BYTES_MAX: usize = 64 << 10;
/// Time from the head of one of its requests to the answer.
pub const REST_REQUEST_MS_MAX: u64 = 10_000;
/// What it has to tell owners of keys and the shards have not taken yet; more is not told.
pub const KEYS_NEWS_MAX: usize = 32;
/// Devices whose one-time keys handed out of late are counted.
pub const HANDOUTS_TRACKED_MAX: usize = 1 << 16;
/// While so many are counted, those that may be forgotten are looked for at most so often.
pub const HANDOUTS_SWEEP_MS: u64 = 1_000;

/// Bytes of a QUIC stream that were written and not acknowledged by the client; no more is taken.
pub const QUIC_SEND_WINDOW_BYTES: u64 = 128 * 1024;
/// Connection ids that one client has at a time: the one in use, and two for its next moves. Each is
/// two table entries.
pub const QUIC_IDS_PER_CLIENT: u8 = 3;
/// Datagrams of one connection that go out with one call.
pub const QUIC_SEGMENTS_MAX: usize = 10;
/// QUIC handshakes of one shard under way beyond which a client must prove its address first.
pub const QUIC_RETRY_PENDING: usize = 64;
/// New handshakes of one turn beyond which the same holds: each costs as much as a hundred messages.
pub const QUIC_ACCEPTS_PER_TURN: u32 = 8;
/// QUIC handshakes of one shard under way beyond which new ones are turned away.
pub const QUIC_HANDSHAKES_PENDING_MAX: usize = 4_096;
/// Address proofs that one shard demands; a flood beyond that goes unanswered.
pub const QUIC_RETRIES: Rate = Rate { per_second: 5_000, burst: 500 };
/// First packets of new connections that wait while another one is being accepted; none does, as
/// each is decided at once.
pub const QUIC_INCOMING_MAX: usize = 16;
/// Bytes that wait behind such packets.
pub const QUIC_INCOMING_BYTES_MAX: u64 = 64 * 1024;
/// Answers without a connection (Retry, refusals, resets) that wait to be sent.
pub const QUIC_RESPONSES_MAX: usize = 1_024;
/// Datagrams that wait to be forwarded to their shards.
pub const QUIC_FOREIGN_MAX: usize = 1_024;
/// Connections whose timers are handled in one turn; the rest is due in the next.
pub const QUIC_TIMEOUTS_PER_TURN: usize = 1_024;
/// Time for a client to take what was written before its connection closes.
pub const QUIC_CLOSE_LINGER_MS: u64 = 5_000;

/// Granularity of the timer wheel.
pub const WHEEL_TICK_MS: u64 = 64;
/// Ticks of one turn of the timer wheel; later deadlines wait more than one turn.
pub const WHEEL_SLOTS: usize = 2048;

const _: () = assert!(WHEEL_SLOTS.is_power_of_two());
// A frame must fit into what may be received ahead, else a waiting connection could never go on.
const _: () = assert!(INBOUND_BYTES_MAX >= FRAME_BYTES_MAX + 4096);
// One connection alone cannot use up the credits of its shard.
const _: () = assert!(MESH_CREDITS as usize > 2 * SENDS_UNANSWERED_MAX);
// What has waited fits into the log at once.
const _: () = assert!(STORE_WAITING_BYTES_MAX as u64 <= UNSYNCED_BYTES_MAX / 2);
const _: () = assert!(STORE_WAITING_REQUESTS_MAX as u64 <= UNSYNCED_RECORDS_MAX / 2);
const _: () = assert!(STORE_WAITING_BYTES_MAX > FRAME_BYTES_MAX);
const _: () = assert!(RECEIPTS_PER_WALK_MAX <= DELIVERS_UNACKED_MAX);
// Whatever waits at another shard for longer than a disk takes leaves credits to what does not.
const _: () =
    assert!(RECEIPTS_UNANSWERED_MAX + FOREIGN_UNANSWERED_MAX + GROUP_REQUESTS_MAX < MESH_CREDITS);
const _: () = assert!(LIST_WAITING_REQUESTS_MAX < MESH_CREDITS as usize / 8);
const _: () =
    assert!(LIST_WAITING_REQUESTS_MAX as u64 * FRAME_BYTES_MAX as u64 <= UNSYNCED_BYTES_MAX / 2);
// An address is asked for before anybody is turned away.
const _: () = assert!(SHARDS_MAX <= ringpost_ring::steering::SHARDS_MAX);
const _: () = assert!(QUIC_RETRY_PENDING < QUIC_HANDSHAKES_PENDING_MAX);
