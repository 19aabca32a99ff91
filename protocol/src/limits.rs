//! Every bound of the wire protocol. Configuration may lower them, nothing raises them.

/// Bytes of one frame after its length prefix.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the longest legal length prefix: 65,536 takes three groups of seven bits.
pub const LENGTH_PREFIX_BYTES_MAX: usize = 3;
/// Bytes of one envelope; leaves room for the routing data around it.
pub const ENVELOPE_BYTES_MAX: usize = 60 * 1024;
/// Bytes of a user or group id.
pub const USER_ID_BYTES_MAX: usize = 128;
/// Bytes of a device id.
pub const DEVICE_ID_BYTES_MAX: usize = 64;
/// Bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Devices of one user, and so envelopes of one Send to a user.
pub const DEVICES_PER_USER_MAX: usize = 16;
/// Members of a group.
pub const GROUP_MEMBERS_MAX: usize = 100;
/// Bytes of one public key.
pub const KEY_BYTES_MAX: usize = 64;
/// Bytes of a signature of a prekey.
pub const SIGNATURE_BYTES: usize = 64;
/// One-time keys in one KeysPublish.
pub const ONE_TIME_KEYS_PER_PUBLISH_MAX: usize = 100;
/// Bytes of a signed device list.
pub const SIGNED_LIST_BYTES_MAX: usize = 8 * 1024;
/// Devices that one Accepted names as skipped: so many, with the longest ids, fit into a frame.
pub const SKIPPED_DEVICES_MAX: usize = 256;
/// Sends of one device that may be unanswered.
pub const SENDS_UNANSWERED_MAX: usize = 256;
/// Outcomes of Sends that the home shard remembers for one device.
pub const SEND_OUTCOMES_MAX: usize = 256;
/// Recipients of one connection that may be blocked after a retryable refusal. Beyond it the oldest
/// block ends. By then its refusal has been sent at least 256 Sends ago, so that a client with at
/// most 256 unanswered knows of it and sets `after_reject` without being made to.
pub const RECIPIENTS_BLOCKED_MAX: usize = 2 * SENDS_UNANSWERED_MAX;
/// Delivers and Gaps of one connection that may be unacknowledged.
pub const DELIVERS_UNACKED_MAX: usize = 256;
/// Parts of the user space.
pub const SLOT_COUNT: u16 = 4096;
/// Lifetime of a message when the Send states none, and the longest one.
pub const TTL_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// Heartbeat of a foreground device.
pub const HEARTBEAT_FOREGROUND_MS: u64 = 30_000;
/// Bounds of a background device's heartbeat.
pub const HEARTBEAT_BACKGROUND_MS_MIN: u64 = 240_000;
pub const HEARTBEAT_BACKGROUND_MS_MAX: u64 = 1_500_000;
/// Silence after which QUIC gives a connection up. Both ends announce it in the handshake, and the
/// lower counts: above the longest heartbeat interval, so that sessions decide.
pub const QUIC_IDLE_MS: u64 = 3_750_000;
/// Bytes that a server may send ahead of what its client has read from its QUIC stream.
pub const QUIC_CLIENT_WINDOW_BYTES: u32 = 256 * 1024;
/// Received bytes of a QUIC stream that a server has not taken yet; its client sends no more.
pub const QUIC_SERVER_WINDOW_BYTES: u32 = 64 * 1024;
/// Time from accept to a valid Hello.
pub const HELLO_MS_MAX: u64 = 10_000;
/// Time that a client waits for the Welcome.
pub const WELCOME_MS_MAX: u64 = 20_000;

/// Room of a frame for what surrounds its envelope.
pub const ENVELOPE_ROUTING_BYTES_MAX: usize = FRAME_BYTES_MAX - ENVELOPE_BYTES_MAX;

// A session that is heard from as rarely as allowed is not given up under it.
const _: () = assert!(QUIC_IDLE_MS >= HEARTBEAT_BACKGROUND_MS_MAX * 5 / 2);
const _: () = assert!(ENVELOPE_ROUTING_BYTES_MAX >= 4 * USER_ID_BYTES_MAX + 1024);
const _: () = assert!(
    SKIPPED_DEVICES_MAX * (USER_ID_BYTES_MAX + DEVICE_ID_BYTES_MAX + 16) + 64 <= FRAME_BYTES_MAX
);
const _: () = assert!(FRAME_BYTES_MAX < 1 << (7 * LENGTH_PREFIX_BYTES_MAX));
const _: () = assert!(SENDS_UNANSWERED_MAX <= SEND_OUTCOMES_MAX);
const _: () = assert!(HEARTBEAT_BACKGROUND_MS_MIN <= HEARTBEAT_BACKGROUND_MS_MAX);
const _: () = assert!((SLOT_COUNT as u32) <= u16::MAX as u32);
