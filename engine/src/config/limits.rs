//! The table `[limits]`: bounds that can be lowered, and rates that an operator chooses.

use std::ops::RangeInclusive;
use std::str::FromStr;

use ringpost_protocol::limits::{FRAME_BYTES_MAX, HELLO_MS_MAX, TOKEN_BYTES_MAX};

use super::source::Section;
use crate::limits::{
    CONNECTIONS_PER_SHARD_MAX, Cidr, HANDSHAKES_PENDING_MAX, LimitSet, MAILBOX_BYTES_MAX,
    MAILBOX_RECORDS_MAX, PerHour, RECEIVE_BYTES_PER_TURN, RECEIVE_FRAMES_PER_TURN, Rate,
    SEND_STALL_MS,
};

/// What the gateway allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Memory of the kernel for what one connection sends.
    pub send_buffer_bytes: u32,
    /// Memory of the kernel for what one connection receives.
    pub receive_buffer_bytes: u32,
    /// Addresses whose connections are counted at one time.
    pub addresses_max: u32,
    /// What may change while the gateway runs. Start-up lowers the number of connections further
    /// when the process may not open that many files.
    pub live: LimitSet,
}

pub(super) fn read(limits: &mut Section<'_>) -> LimitsConfig {
    let LimitsConfig { send_buffer_bytes, receive_buffer_bytes, addresses_max, live } =
        LimitsConfig::default();
    let buffer = SOCKET_BUFFER_BYTES;
    LimitsConfig {
        send_buffer_bytes: limits.number("send_buffer_bytes", buffer.clone(), send_buffer_bytes),
        receive_buffer_bytes: limits.number("receive_buffer_bytes", buffer, receive_buffer_bytes),
        addresses_max: limits.number("addresses_max", ADDRESSES, addresses_max),
        live: read_live(limits, live),
    }
}

/// Of `default` holds what the file says nothing about.
fn read_live(limits: &mut Section<'_>, default: LimitSet) -> LimitSet {
    let default = read_keys(limits, default);
    LimitSet {
        connections_max: limits.number(
            "connections_per_shard_max",
            CONNECTIONS,
            default.connections_max,
        ),
        frame_bytes_max: limits.number("frame_bytes_max", FRAME_BYTES, default.frame_bytes_max),
        mailbox_records_max: limits.number(
            "mailbox_records_max",
            MAILBOX_RECORDS,
            default.mailbox_records_max,
        ),
        mailbox_bytes_max: limits.number(
            "mailbox_bytes_max",
            MAILBOX_BYTES,
            default.mailbox_bytes_max,
        ),
        connection_frames: read_rate(
            limits,
            ["connection_frames_per_second", "connection_frames_burst"],
            default.connection_frames,
        ),
        connection_bytes: read_rate(
            limits,
            ["connection_bytes_per_second", "connection_bytes_burst"],
            default.connection_bytes,
        ),
        user_sends: read_rate(
            limits,
            ["user_sends_per_second", "user_sends_burst"],
            default.user_sends,
        ),
        address_accepts: read_rate(
            limits,
            ["address_accepts_per_second", "address_accepts_burst"],
            default.address_accepts,
        ),
        address_connections_max: limits.number(
            "address_connections_max",
            PER_SECOND,
            default.address_connections_max,
        ),
        address_exempt: limits
            .texts("address_exempt", RANGES_OF_ADDRESSES, Cidr::from_str)
            .unwrap_or(default.address_exempt),
        handshakes_pending_max: limits.number(
            "handshakes_pending_max",
            HANDSHAKES_PENDING,
            default.handshakes_pending_max,
        ),
        handshake_steps_per_turn: limits.number(
            "handshake_steps_per_turn",
            HANDSHAKE_STEPS,
            default.handshake_steps_per_turn,
        ),
        handshake_ms_max: limits.number("handshake_ms_max", HANDSHAKE_MS, default.handshake_ms_max),
        send_stall_ms_max: limits.number("send_stall_ms_max", STALL_MS, default.send_stall_ms_max),
        receive_bytes_per_turn: limits.number(
            "receive_bytes_per_turn",
            TURN_BYTES,
            default.receive_bytes_per_turn,
        ),
        receive_frames_per_turn: limits.number(
            "receive_frames_per_turn",
            TURN_FRAMES,
            default.receive_frames_per_turn,
        ),
        ..default
    }
}

fn read_keys(limits: &mut Section<'_>, default: LimitSet) -> LimitSet {
    let mut hourly = |key, PerHour(default)| PerHour(limits.number(key, PER_HOUR, default));
    LimitSet {
        user_key_reads: hourly("user_key_reads_per_hour", default.user_key_reads),
        device_one_time_keys: hourly("device_one_time_keys_per_hour", default.device_one_time_keys),
        ..default
    }
}

fn read_rate(limits: &mut Section<'_>, keys: [&'static str; 2], default: Rate) -> Rate {
    let [per_second, burst] = keys;
    Rate {
        per_second: limits.number(per_second, PER_SECOND, default.per_second),
        burst: limits.number(burst, BURST, default.burst),
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            send_buffer_bytes: 64 << 10,
            receive_buffer_bytes: 64 << 10,
            addresses_max: 1 << 20,
            live: LimitSet::default(),
        }
    }
}

/// The balancers that connections come through; `None`: there are none.
pub(super) fn read_proxy(file: &mut Section<'_>) -> Option<Vec<Cidr>> {
    let is_on = file.flag("proxy_protocol", false);
    let trusted = file.texts("proxy_trusted", RANGES_OF_ADDRESSES, Cidr::from_str);
    if !is_on {
        return None;
    }
    let trusted = trusted.unwrap_or_default();
    if trusted.is_empty() {
        // Whoever reaches the listener could name any address as his.
        let meaning = "the addresses of the balancers, because proxy_protocol is on";
        file.missing("proxy_trusted", meaning);
    }
    Some(trusted)
}

const RANGES_OF_ADDRESSES: &str = "ranges of addresses, as in \"10.0.0.0/8\"";

const CONNECTIONS: RangeInclusive<u64> = 1..=CONNECTIONS_PER_SHARD_MAX as u64;
// A Hello carries a token, so a frame that cannot hold one would refuse everybody.
const FRAME_BYTES: RangeInclusive<u64> = 2 * TOKEN_BYTES_MAX as u64..=FRAME_BYTES_MAX as u64;
const MAILBOX_RECORDS: RangeInclusive<u64> = 4..=MAILBOX_RECORDS_MAX as u64;
// One sender may hold a quarter, and its longest message must fit into that.
const MAILBOX_BYTES: RangeInclusive<u64> = 4 * FRAME_BYTES_MAX as u64..=MAILBOX_BYTES_MAX as u64;
// The kernel doubles it for its own bookkeeping, and has a lower end of its own.
const SOCKET_BUFFER_BYTES: RangeInclusive<u64> = 4 << 10..=16 << 20;
const PER_SECOND: RangeInclusive<u64> = 0..=u32::MAX as u64;
const PER_HOUR: RangeInclusive<u64> = 0..=u32::MAX as u64;
const BURST: RangeInclusive<u64> = 1..=u32::MAX as u64;
const ADDRESSES: RangeInclusive<u64> = 1..=1 << 24;
const HANDSHAKES_PENDING: RangeInclusive<u64> = 1..=HANDSHAKES_PENDING_MAX as u64;
const HANDSHAKE_STEPS: RangeInclusive<u64> = 1..=1024;
const HANDSHAKE_MS: RangeInclusive<u64> = 100..=HELLO_MS_MAX;
const STALL_MS: RangeInclusive<u64> = 100..=SEND_STALL_MS;
const TURN_BYTES: RangeInclusive<u64> = 1..=RECEIVE_BYTES_PER_TURN as u64;
const TURN_FRAMES: RangeInclusive<u64> = 1..=RECEIVE_FRAMES_PER_TURN as u64;
