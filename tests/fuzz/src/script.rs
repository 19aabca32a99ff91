//! An input read as a program: each step takes what it needs off the front.

/// The part of the input that was not read yet. Behind its end everything is zero, so that every
/// input is a program, and a shorter one does less.
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// A number: small ones take two bytes, any other nine.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            0xff => self.u64(),
            // Both ends of the range, and the lengths at which encodings change.
            power @ 0xc0.. => (1 << (power & 0x3f)) - u64::from(self.byte() & 1),
            _ => u64::from(self.byte()),
        }
    }

    pub fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_le_bytes(bytes)
    }

    /// The next bytes, after a length of two; fewer at the end of the input.
    pub fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16()).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
