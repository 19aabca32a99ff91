//! Protobuf fields, by hand, for the frames on the hot path: read as slices of the frame, written
//! straight into the output. Everything else goes through the generated code.

/// The fields of one protobuf message, in the order in which they come. Groups, which proto3 does
/// not have, are refused.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// The value of a field, by its wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// Why a message cannot be read.
pub(crate) type Malformed = &'static str;

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field's number and value; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = u32::try_from(self.varint()?).map_err(|_| "field number too large")?;
        let number = key >> 3;
        if number == 0 {
            return Err("field number 0");
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Value::Fixed64(u64::from_le_bytes(bytes.try_into().expect("8 bytes were taken")))
            }
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| "field longer than frame")?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            _ => return Err("unknown wire type"),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("field longer than frame")?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for (index, &byte) in self.rest.iter().enumerate().take(VARINT_BYTES_MAX) {
            // The tenth byte carries the 64th bit and nothing above it.
            if index + 1 == VARINT_BYTES_MAX && byte > 1 {
                return Err("varint above 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err("varint without end")
    }
}

impl<'a> Value<'a> {
    pub(crate) fn varint(self) -> Result<u64, Malformed> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err("varint expected"),
        }
    }

    pub(crate) fn fixed64(self) -> Result<u64, Malformed> {
        match self {
            Self::Fixed64(value) => Ok(value),
            _ => Err("fixed64 expected"),
        }
    }

    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err("bytes expected"),
        }
    }

    pub(crate) fn text(self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.bytes()?).map_err(|_| "string is not UTF-8")
    }
}

/// Appends an unsigned LEB128 varint in its shortest form.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Bytes that [`put_varint`] appends: one for each seven bits begun.
pub(crate) const fn varint_bytes(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

// Fields with a proto3 default value are left out, as the generated code does: both encoders give
// the same bytes. All field numbers written here are below 16, so that a key is one byte.

/// Bytes of a varint field.
pub(crate) const fn varint_field_bytes(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_bytes(value) }
}

/// Appends a varint field.
pub(crate) fn put_varint_field(out: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        out.push(number << 3);
        put_varint(out, value);
    }
}

/// Bytes of a fixed64 field.
pub(crate) const fn fixed64_field_bytes(value: u64) -> usize {
    if value == 0 { 0 } else { 9 }
}

/// Appends a fixed64 field.
pub(crate) fn put_fixed64_field(out: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        out.push(number << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Bytes of a string or bytes field.
pub(crate) const fn bytes_field_bytes(length: usize) -> usize {
    if length == 0 { 0 } else { nested_field_bytes(length) }
}

/// Appends a string or bytes field.
pub(crate) fn put_bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_nested_head(out, number, bytes.len());
        out.extend_from_slice(bytes);
    }
}

/// Bytes of a field that is present even when it is empty: a message, or a member of a oneof.
pub(crate) const fn nested_field_bytes(length: usize) -> usize {
    1 + varint_bytes(length as u64) + length
}

/// Appends key and length of a field that is present even when it is empty; `length` bytes follow.
pub(crate) fn put_nested_head(out: &mut Vec<u8>, number: u8, length: usize) {
    out.push(number << 3 | 2);
    put_varint(out, length as u64);
}

const VARINT_BYTES_MAX: usize = 10;
