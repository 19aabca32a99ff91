//! Bounds of the client. Configuration may lower those that [`crate::ledger::LedgerConfig`] names, and
//! choose others for those of [`crate::PathConfig`].

use ringpost_protocol::limits::{ENVELOPE_BYTES_MAX, TTL_MS_MAX};

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
/// Calls that wait for a connection or an answer.
pub const CALLS_MAX: usize = 64;
/// Time for the answer to a call, with the wait for a connection.
pub const CALL_MS_MAX: u64 = 30_000;
/// Hints that wait for the app; older ones are dropped.
pub const HINTS_MAX: usize = 64;
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
/// Time that a server which said GoAway is listened to before we leave.
pub const GO_AWAY_MS_MAX: u64 = 5_000;
/// Time for Bye to reach the socket at a close.
pub const CLOSE_MS_MAX: u64 = 1_000;

/// Age at which a signed prekey is replaced.
pub const SIGNED_PREKEY_MS: u64 = 7 * DAY_MS;
/// Time that a replaced signed prekey still opens first messages, which wait in mailboxes.
pub const PREKEY_GRACE_MS: u64 = 31 * DAY_MS;
/// Replaced signed prekeys that are kept. More only when one is replaced early.
pub const SIGNED_PREKEYS_RETIRED_MAX: usize = 8;
/// One-time prekeys at the server after a refill; what one KeysPublish may carry.
pub const ONE_TIME_PREKEYS_TARGET: u32 = 100;
/// Stock at the server below which it is refilled.
pub const ONE_TIME_PREKEYS_LOW: u32 = 50;
/// One-time secrets kept, with those that the server handed out and nobody has used.
pub const ONE_TIME_SECRETS_MAX: usize = 500;
/// First messages remembered for each signed prekey, 32 bytes each. At half of it the key is
/// replaced early; when it is full, first messages without a one-time key are refused.
pub const FIRST_MESSAGES_REMEMBERED_MAX: usize = 4096;
/// Sessions that one other device may begin under one signed prekey.
pub const FIRST_MESSAGES_PER_DEVICE_MAX: usize = 32;
/// Sessions kept with one other device.
pub const SESSIONS_PER_PAIR_MAX: usize = 4;
/// Time without a message after which a session that another has replaced is dropped.
pub const SESSION_IDLE_MS_MAX: u64 = 31 * DAY_MS;
/// Age at which a session that never had an answer is replaced.
pub const SESSION_UNCONFIRMED_MS_MAX: u64 = 30 * DAY_MS;
/// Messages sent without an answer, after which a new session is begun. The other side bridges
/// [`RATCHET_GAP_MAX`] lost messages, so it bridges the loss of all of these.
pub const SESSION_UNANSWERED_MESSAGES_MAX: u32 = 2_000;
/// Lost messages in one chain that the ratchet bridges; vodozemac's, not to be chosen.
pub const RATCHET_GAP_MAX: u32 = 2_000;
/// Keys of skipped messages kept in one chain; vodozemac's, not to be chosen.
pub const SKIPPED_KEYS_MAX: u32 = 40;
/// Bytes given to one encryption.
pub const PLAINTEXT_BYTES_MAX: usize = ENVELOPE_BYTES_MAX - 1024;
/// Members of a group.
pub const GROUP_MEMBERS_MAX: usize = 100;
/// Hashes of earlier rosters remembered, so that keys from just before a change are still taken.
pub const ROSTERS_REMEMBERED_MAX: usize = 32;
/// Messages under one group key.
pub const GROUP_KEY_MESSAGES_MAX: u32 = 1_000;
/// Age at which a group key is replaced.
pub const GROUP_KEY_MS_MAX: u64 = 7 * DAY_MS;
/// Group keys kept of one device, for messages from before a rotation.
pub const GROUP_KEYS_PER_SENDER_MAX: usize = 4;
/// Messages of one group key that may come late; the bits of the replay window.
pub const GROUP_WINDOW: u32 = 64;
/// Bytes of text in one payload.
pub const TEXT_BYTES_MAX: usize = 48 * 1024;
/// Messages that one payload names as seen or as read.
pub const MESSAGE_REFERENCES_MAX: usize = 32;
/// Messages remembered, so that it is noticed when an earlier one is missing.
pub const MESSAGES_REMEMBERED_MAX: usize = 128;
/// How far one message may move the logical clock.
pub const LOGICAL_CLOCK_STEP_MAX: u64 = 1 << 32;
/// Padded payloads are never shorter.
pub const PAYLOAD_BYTES_MIN: usize = 64;

/// Users whose device lists are kept.
pub const CONTACTS_MAX: usize = 4_096;
/// Groups of one user.
pub const GROUPS_MAX: usize = 512;
/// Of these, groups that others have put the user into.
pub const GROUPS_OF_OTHERS_MAX: usize = 384;
/// Groups that one other user has put the user into.
pub const GROUPS_PER_VOUCHER_MAX: usize = 64;
/// Ids of groups remembered that the user has left, and that may still be written to.
pub const LEFT_GROUPS_REMEMBERED_MAX: usize = 256;
/// Messages that wait for keys, or for room in the outbox.
pub const WAITING_ROWS_MAX: usize = 1_024;
/// Bytes of these.
pub const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Messages that came before what is needed to open them; beyond it the oldest is given up.
pub const HELD_ROWS_MAX: usize = 256;
/// Bytes of device lists in one message to an own other device.
pub const LISTS_BYTES_MAX: usize = 40 * 1024;
/// Time after which one of these is given up.
pub const HELD_MS_MAX: u64 = 7 * DAY_MS;
/// Times that a message is encrypted anew because the server knew newer members or devices.
pub const STALE_TRIES_MAX: u8 = 8;
/// Time that a message to a group waits for the roster that names those whom the server has added.
pub const ROSTER_WAIT_MS_MAX: u64 = 10_000;
/// Sent messages whose delivery is still awaited; beyond it the oldest has no more ticks.
pub const TRACKED_MAX: usize = 2_048;
/// Wait before a refused or empty answer of the directory is asked for again; doubles.
pub const DIRECTORY_RETRY_MS_MIN: u64 = 1_000;
/// Ceiling of that wait.
pub const DIRECTORY_RETRY_MS_MAX: u64 = 300_000;
/// Time between two sessions begun anew with one device because a message of its did not open.
pub const RENEW_MS_MIN: u64 = 600_000;
/// Comparisons of short strings under way; beyond it the oldest is dropped.
pub const VERIFICATIONS_MAX: usize = 16;
/// Time between two hints that this user types in one conversation.
pub const TYPING_MS_MIN: u64 = 4_000;
/// Time after the last sign of others in a conversation during which they are told that one types.
pub const HEARD_MS_MAX: u64 = 120_000;
/// Conversations of which it is remembered when others were last heard of.
pub const HEARD_MAX: usize = 256;
/// Age at which a hint that somebody types is not shown any more.
pub const TYPING_MS_MAX: u64 = 10_000;

const DAY_MS: u64 = 24 * 3600 * 1000;

const _: () = assert!(PREKEY_GRACE_MS > TTL_MS_MAX && SESSION_IDLE_MS_MAX > TTL_MS_MAX);
const _: () = assert!(PREKEY_GRACE_MS / SIGNED_PREKEY_MS < SIGNED_PREKEYS_RETIRED_MAX as u64);
const _: () = assert!(ONE_TIME_PREKEYS_TARGET as usize * 2 <= ONE_TIME_SECRETS_MAX);
const _: () = assert!(SESSION_UNANSWERED_MESSAGES_MAX <= RATCHET_GAP_MAX);
const _: () = assert!(QUIC_RETRY_CONNECT_MS_MAX <= QUIC_RETRY_MS_MIN);
