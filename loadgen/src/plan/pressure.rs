//! Well-behaved clients beside others that are not.

use anyhow::{Result, ensure};

use super::{ChatPlan, MAILBOX_RECORDS_MAX, OfflinePlan, check_payload};
use crate::attack::INITIALS_SOURCES;

/// What the others do to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pressure {
    /// Readers that stop, while mail for them comes in.
    StopReading,
    /// Readers that return to a full mailbox, and stop.
    StopReadingFull,
    /// Readers that return to a full mailbox, and take a little at a time.
    ReadSlowly,
    /// Connections that send nothing, half a ClientHello, or a whole one and no more.
    HalfOpen,
    /// Connections that send one byte a second, of a ClientHello or of a frame.
    Trickle,
    /// Logins with a token that nobody signed.
    WrongToken,
    /// First packets of QUIC connections, from many addresses, and nothing after them.
    Initials,
}

/// A quiet phase, then one under pressure, of `chat.duration` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressurePlan {
    /// The well-behaved ones, in an open loop.
    pub chat: ChatPlan,
    pub pressure: Pressure,
    /// How many of the others.
    pub count: u32,
    /// Messages of a reader's full mailbox.
    pub mailbox_messages: u64,
    /// Bytes of each.
    pub mailbox_payload_bytes: usize,
    /// Between two looks of a slow reader, in nanoseconds.
    pub pause_ns: u64,
}

impl Pressure {
    /// Whether the others are clients that read badly, and get all their mail in the end.
    pub fn is_reading(self) -> bool {
        matches!(self, Self::StopReading | Self::StopReadingFull | Self::ReadSlowly)
    }

    /// Sockets that `count` of the others need.
    pub fn sockets(self, count: u32) -> u32 {
        match self {
            Self::Initials => u32::from(INITIALS_SOURCES),
            _ => count,
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::StopReading => "stop-reading",
            Self::StopReadingFull => "stop-reading-full",
            Self::ReadSlowly => "read-slowly",
            Self::HalfOpen => "half-open",
            Self::Trickle => "trickle",
            Self::WrongToken => "wrong-token",
            Self::Initials => "initials",
        }
    }
}

impl PressurePlan {
    pub fn check(&self) -> Result<()> {
        self.chat.check()?;
        ensure!(self.chat.rate_per_s > 0, "--rate must be above zero: the loop is open");
        ensure!(self.count >= 1, "--count must be at least 1");
        let least = MAILBOX_MESSAGES_MIN;
        ensure!(
            (least..=MAILBOX_RECORDS_MAX).contains(&self.mailbox_messages),
            "--mailbox must be {least} to {MAILBOX_RECORDS_MAX} messages"
        );
        check_payload(self.mailbox_payload_bytes)?;
        if self.pressure.is_reading() { self.mail().check() } else { Ok(()) }
    }

    /// The readers' mail.
    pub fn mail(&self) -> OfflinePlan {
        OfflinePlan {
            devices: self.count,
            messages: self.mailbox_messages * u64::from(self.count),
            payload_bytes: self.mailbox_payload_bytes,
            mailbox_records_max: self.mailbox_messages,
            seed: self.chat.seed,
        }
    }
}

/// So that five senders stay below a quarter of the mailbox each.
const MAILBOX_MESSAGES_MIN: u64 = 20;
