//! The file `CURRENT` of a data directory: which generation of the stores is valid. Pure
//! functions; the caller writes another name, syncs it, renames it, and syncs the directory.

use crate::limits::FORMAT_VERSION;

/// Content of `CURRENT`: magic, format version u16, storage_shards u16, generation u64,
/// store_id u64, CRC32C of all before; little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// The directory `gen-N` that holds the stores.
    pub generation: u64,
    /// Stores of that generation; slot % storage_shards names a user's. At least 1.
    pub storage_shards: u16,
    /// Random number given when the data directory was made.
    pub store_id: u64,
}

/// Why a `CURRENT` is refused. Never guess: a wrong one would hide accepted messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CurrentFault {
    #[error("CURRENT is damaged: {0}")]
    Damaged(&'static str),
    #[error("CURRENT has format version {found}; this program reads {supported}")]
    Version { found: u16, supported: u16 },
}

impl Current {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CURRENT_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.storage_shards.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.store_id.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(file: &[u8]) -> Result<Self, CurrentFault> {
        let rest = file.strip_prefix(&MAGIC).ok_or(CurrentFault::Damaged("wrong magic"))?;
        // The version comes before the length: a later format may be longer.
        let (version, rest) = rest.split_first_chunk().ok_or(CurrentFault::Damaged("too short"))?;
        let found = u16::from_le_bytes(*version);
        if found != FORMAT_VERSION {
            return Err(CurrentFault::Version { found, supported: FORMAT_VERSION });
        }
        if file.len() != CURRENT_BYTES {
            return Err(CurrentFault::Damaged("wrong length"));
        }
        let (shards, rest) = rest.split_first_chunk().expect("length was checked");
        let (generation, rest) = rest.split_first_chunk().expect("length was checked");
        let (store_id, crc) = rest.split_first_chunk().expect("length was checked");
        if crc != crc32c::crc32c(&file[..CURRENT_BYTES - 4]).to_le_bytes() {
            return Err(CurrentFault::Damaged("wrong checksum"));
        }
        let storage_shards = u16::from_le_bytes(*shards);
        if storage_shards == 0 {
            return Err(CurrentFault::Damaged("no storage shards"));
        }
        Ok(Self {
            generation: u64::from_le_bytes(*generation),
            storage_shards,
            store_id: u64::from_le_bytes(*store_id),
        })
    }
}

const MAGIC: [u8; 8] = *b"RPCURRNT";
const CURRENT_BYTES: usize = 8 + 2 + 2 + 8 + 8 + 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip_and_refuses_everything_else() {
        let current = Current { generation: 3, storage_shards: 2, store_id: 0x1234_5678_9abc };
        let file = current.encode();
        assert_eq!(Current::decode(&file), Ok(current));
        for byte in 0..file.len() {
            let mut flipped = file.clone();
            flipped[byte] ^= 1;
            assert!(Current::decode(&flipped).is_err(), "byte {byte}");
            assert!(Current::decode(&file[..byte]).is_err());
        }
        let mut newer = file;
        newer[8] = 9;
        assert!(matches!(Current::decode(&newer), Err(CurrentFault::Version { found: 9, .. })));
    }
}
