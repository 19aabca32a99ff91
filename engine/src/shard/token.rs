//! The word that comes back with each completion: whose operation it was.

use super::conn::ConnKey;

/// Owner of an operation. Packed as kind (8 bits), generation (24 bits), index (32 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Accept,
    Recv(ConnKey),
    Send(ConnKey),
    Shutdown(ConnKey),
    /// Nobody waits: cancels, closes, wakes.
    Unowned,
    /// Position in the table of disk operations.
    Disk(u32),
    /// The receive of datagrams.
    Datagrams,
    /// One send of them.
    DatagramsSent,
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        let (kind, generation, index): (u8, u32, u32) = match self {
            Self::Unowned => (0, 0, 0),
            Self::Accept => (1, 0, 0),
            Self::Recv(key) => (2, key.generation, key.index),
            Self::Send(key) => (3, key.generation, key.index),
            Self::Shutdown(key) => (4, key.generation, key.index),
            Self::Disk(index) => (5, 0, index),
            Self::Datagrams => (6, 0, 0),
            Self::DatagramsSent => (7, 0, 0),
        };
        u64::from(kind) << 56 | u64::from(generation) << 32 | u64::from(index)
    }

    pub(super) fn unpack(word: u64) -> Self {
        let index = u32::try_from(word & u64::from(u32::MAX)).expect("masked");
        let generation = u32::try_from(word >> 32 & 0x00ff_ffff).expect("masked");
        let key = ConnKey { index, generation };
        match word >> 56 {
            0 => Self::Unowned,
            1 => Self::Accept,
            2 => Self::Recv(key),
            3 => Self::Send(key),
            4 => Self::Shutdown(key),
            5 => Self::Disk(index),
            6 => Self::Datagrams,
            7 => Self::DatagramsSent,
            kind => unreachable!("token of kind {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let key = ConnKey { index: u32::MAX, generation: 0x00ff_ffff };
        let tokens = [
            Token::Unowned,
            Token::Accept,
            Token::Recv(key),
            Token::Send(ConnKey { index: 7, generation: 1 }),
            Token::Shutdown(key),
            Token::Disk(u32::MAX),
            Token::Datagrams,
            Token::DatagramsSent,
        ];
        for token in tokens {
            assert_eq!(Token::unpack(token.pack()), token);
            assert_ne!(token.pack(), ringpost_ring::WOKEN_TOKEN);
        }
    }
}
