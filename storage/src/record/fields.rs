//! Little-endian fields.

use ringpost_protocol::limits::USER_ID_BYTES_MAX;

/// Reads little-endian fields off the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64s<const N: usize>(&mut self) -> Option<[u64; N]> {
        let mut values = [0; N];
        for value in &mut values {
            *value = u64::from_le_bytes(self.array()?);
        }
        Some(values)
    }

    pub(crate) fn texts<const N: usize>(&mut self) -> Option<[&'a str; N]> {
        let lengths: [u8; N] = self.array()?;
        if lengths.iter().any(|length| usize::from(*length) > USER_ID_BYTES_MAX) {
            return None;
        }
        let mut texts = [""; N];
        for (text, length) in texts.iter_mut().zip(lengths) {
            *text = std::str::from_utf8(self.take(usize::from(length))?).ok()?;
        }
        Some(texts)
    }
}
