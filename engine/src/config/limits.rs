//! The table `[limits]`: bounds that can be lowered, and rates that an operator chooses.

use std::ops::RangeInclusive;
use std::str::FromStr;

use ringpost_protocol::limits::{FRAME_BYTES_MAX, TOKEN_BYTES_MAX};
use serde::Deserialize;
use toml::Spanned;

use super::ConfigFault;
use super::raw::Source;
use crate::limits::{
    CONNECTIONS_PER_SHARD_MAX, Cidr, HANDSHAKES_PENDING_MAX, LimitSet, MAILBOX_BYTES_MAX,
    MAILBOX_RECORDS_MAX, RECEIVE_BYTES_PER_TURN, RECEIVE_FRAMES_PER_TURN, Rate, SEND_STALL_MS,
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) connections_per_shard_max: Number,
    pub(super) frame_bytes_max: Number,
    pub(super) mailbox_records_max: Number,
    pub(super) mailbox_bytes_max: Number,
    pub(super) send_buffer_bytes: Number,
    pub(super) receive_buffer_bytes: Number,
    pub(super) connection_frames_per_second: Number,
    pub(super) connection_frames_burst: Number,
    pub(super) connection_bytes_per_second: Number,
    pub(super) connection_bytes_burst: Number,
    pub(super) user_sends_per_second: Number,
    pub(super) user_sends_burst: Number,
    pub(super) address_accepts_per_second: Number,
    pub(super) address_accepts_burst: Number,
    pub(super) address_connections_max: Number,
    pub(super) addresses_max: Number,
    pub(super) address_exempt: Option<Vec<Spanned<String>>>,
    pub(super) handshakes_pending_max: Number,
    pub(super) handshake_steps_per_turn: Number,
    pub(super) handshake_ms_max: Number,
    pub(super) send_stall_ms_max: Number,
    pub(super) receive_bytes_per_turn: Number,
    pub(super) receive_frames_per_turn: Number,
}

type Number = Option<Spanned<u64>>;

impl Source<'_> {
    pub(super) fn limits(&self, raw: &RawLimits) -> Result<LimitsConfig, ConfigFault> {
        let mut limits = LimitsConfig::default();
        let LimitsConfig { send_buffer_bytes, receive_buffer_bytes, addresses_max, live } =
            &mut limits;
        let send = raw.send_buffer_bytes.as_ref();
        self.set(send_buffer_bytes, "limits.send_buffer_bytes", send, &SOCKET_BUFFER_BYTES)?;
        let receive = raw.receive_buffer_bytes.as_ref();
        self.set(
            receive_buffer_bytes,
            "limits.receive_buffer_bytes",
            receive,
            &SOCKET_BUFFER_BYTES,
        )?;
        let addresses = raw.addresses_max.as_ref();
        self.set(addresses_max, "limits.addresses_max", addresses, &ADDRESSES)?;
        self.mailboxes(live, raw)?;
        self.rates(live, raw)?;
        self.bounds(live, raw)?;
        if let Some(exempt) = &raw.address_exempt {
            live.address_exempt = self.cidrs("limits.address_exempt", exempt)?;
        }
        Ok(limits)
    }

    fn mailboxes(&self, live: &mut LimitSet, raw: &RawLimits) -> Result<(), ConfigFault> {
        let frame = raw.frame_bytes_max.as_ref();
        self.set(&mut live.frame_bytes_max, "limits.frame_bytes_max", frame, &FRAME_BYTES)?;
        let records = raw.mailbox_records_max.as_ref();
        let key = "limits.mailbox_records_max";
        self.set(&mut live.mailbox_records_max, key, records, &MAILBOX_RECORDS)?;
        let bytes = raw.mailbox_bytes_max.as_ref();
        self.set(&mut live.mailbox_bytes_max, "limits.mailbox_bytes_max", bytes, &MAILBOX_BYTES)
    }

    fn rates(&self, live: &mut LimitSet, raw: &RawLimits) -> Result<(), ConfigFault> {
        self.rate(
            &mut live.connection_frames,
            ["limits.connection_frames_per_second", "limits.connection_frames_burst"],
            [&raw.connection_frames_per_second, &raw.connection_frames_burst],
        )?;
        self.rate(
            &mut live.connection_bytes,
            ["limits.connection_bytes_per_second", "limits.connection_bytes_burst"],
            [&raw.connection_bytes_per_second, &raw.connection_bytes_burst],
        )?;
        self.rate(
            &mut live.user_sends,
            ["limits.user_sends_per_second", "limits.user_sends_burst"],
            [&raw.user_sends_per_second, &raw.user_sends_burst],
        )?;
        self.rate(
            &mut live.address_accepts,
            ["limits.address_accepts_per_second", "limits.address_accepts_burst"],
            [&raw.address_accepts_per_second, &raw.address_accepts_burst],
        )
    }

    fn rate(
        &self,
        rate: &mut Rate,
        [per_second_key, burst_key]: [&'static str; 2],
        [per_second, burst]: [&Number; 2],
    ) -> Result<(), ConfigFault> {
        self.set(&mut rate.per_second, per_second_key, per_second.as_ref(), &PER_SECOND)?;
        self.set(&mut rate.burst, burst_key, burst.as_ref(), &BURST)
    }

    fn bounds(&self, live: &mut LimitSet, raw: &RawLimits) -> Result<(), ConfigFault> {
        self.set(
            &mut live.connections_max,
            "limits.connections_per_shard_max",
            raw.connections_per_shard_max.as_ref(),
            &CONNECTIONS,
        )?;
        self.set(
            &mut live.address_connections_max,
            "limits.address_connections_max",
            raw.address_connections_max.as_ref(),
            &PER_SECOND,
        )?;
        self.set(
            &mut live.handshakes_pending_max,
            "limits.handshakes_pending_max",
            raw.handshakes_pending_max.as_ref(),
            &HANDSHAKES_PENDING,
        )?;
        self.set(
            &mut live.handshake_steps_per_turn,
            "limits.handshake_steps_per_turn",
            raw.handshake_steps_per_turn.as_ref(),
            &HANDSHAKE_STEPS,
        )?;
        let handshake = raw.handshake_ms_max.as_ref();
        self.set(&mut live.handshake_ms_max, "limits.handshake_ms_max", handshake, &HANDSHAKE_MS)?;
        let stall = raw.send_stall_ms_max.as_ref();
        self.set(&mut live.send_stall_ms_max, "limits.send_stall_ms_max", stall, &STALL_MS)?;
        self.set(
            &mut live.receive_bytes_per_turn,
            "limits.receive_bytes_per_turn",
            raw.receive_bytes_per_turn.as_ref(),
            &TURN_BYTES,
        )?;
        self.set(
            &mut live.receive_frames_per_turn,
            "limits.receive_frames_per_turn",
            raw.receive_frames_per_turn.as_ref(),
            &TURN_FRAMES,
        )
    }

    pub(super) fn cidrs(
        &self,
        key: &'static str,
        texts: &[Spanned<String>],
    ) -> Result<Vec<Cidr>, ConfigFault> {
        let parse = |text: &Spanned<String>| {
            Cidr::from_str(text.get_ref()).map_err(|fault| {
                let allowed = format!("ranges of addresses, as in \"10.0.0.0/8\" ({fault})");
                self.out_of_range(key, text, &format!("{:?}", text.get_ref()), &allowed)
            })
        };
        texts.iter().map(parse).collect()
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

const CONNECTIONS: RangeInclusive<u64> = 1..=CONNECTIONS_PER_SHARD_MAX as u64;
// A Hello carries a token, so a frame that cannot hold one would refuse everybody.
const FRAME_BYTES: RangeInclusive<u64> = 2 * TOKEN_BYTES_MAX as u64..=FRAME_BYTES_MAX as u64;
const MAILBOX_RECORDS: RangeInclusive<u64> = 4..=MAILBOX_RECORDS_MAX as u64;
// One sender may hold a quarter, and its longest message must fit into that.
const MAILBOX_BYTES: RangeInclusive<u64> = 4 * FRAME_BYTES_MAX as u64..=MAILBOX_BYTES_MAX as u64;
// The kernel doubles it for its own bookkeeping, and has a lower end of its own.
const SOCKET_BUFFER_BYTES: RangeInclusive<u64> = 4 << 10..=16 << 20;
const PER_SECOND: RangeInclusive<u64> = 0..=u32::MAX as u64;
const BURST: RangeInclusive<u64> = 1..=u32::MAX as u64;
const ADDRESSES: RangeInclusive<u64> = 1..=1 << 24;
const HANDSHAKES_PENDING: RangeInclusive<u64> = 1..=HANDSHAKES_PENDING_MAX as u64;
const HANDSHAKE_STEPS: RangeInclusive<u64> = 1..=1024;
const HANDSHAKE_MS: RangeInclusive<u64> = 100..=60_000;
const STALL_MS: RangeInclusive<u64> = 100..=SEND_STALL_MS;
const TURN_BYTES: RangeInclusive<u64> = 1..=RECEIVE_BYTES_PER_TURN as u64;
const TURN_FRAMES: RangeInclusive<u64> = 1..=RECEIVE_FRAMES_PER_TURN as u64;
