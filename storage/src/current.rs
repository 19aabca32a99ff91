//! The file `CURRENT` of a data directory: which generation of the stores is valid.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// The directory `gen-N` that holds the stores.
    pub generation: u64,
    /// Stores of that generation; slot % storage_shards names a user's.
    pub storage_shards: u16,
    /// Random number given when the data directory was made.
    pub store_id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CurrentFault {
    #[error("CURRENT is damaged: {0}")]
    Damaged(&'static str),
    #[error("CURRENT has format version {found}; this program reads {supported}")]
    Version { found: u16, supported: u16 },
}

impl Current {
    /// The file's bytes. Write them to another name, sync, rename, sync the directory.
    pub fn encode(&self) -> Vec<u8> {
        unimplemented!()
    }

    pub fn decode(_file: &[u8]) -> Result<Self, CurrentFault> {
        unimplemented!()
    }
}
