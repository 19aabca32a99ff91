//! Length prefix: from a stream of bytes to frames and back. First stop of every byte received.

use bytes::{Buf, Bytes, BytesMut};

use crate::fault::FrameFault;
use crate::limits::LENGTH_PREFIX_BYTES_MAX;

/// Takes one whole frame off the front of `buf`, without its length; `None`: more bytes are needed.
///
/// The frame shares the memory of `buf`: nothing is copied. Nothing is allocated or reserved
/// either, so a length that is above `frame_bytes_max` costs nothing. On a fault `buf` is left as
/// it was, and the stream cannot be read any further.
pub fn split_frame(
    buf: &mut BytesMut,
    frame_bytes_max: usize,
) -> Result<Option<Bytes>, FrameFault> {
    let Some((length, prefix_bytes)) = read_length(buf, frame_bytes_max)? else {
        return Ok(None);
    };
    if buf.len() - prefix_bytes < length {
        return Ok(None);
    }
    buf.advance(prefix_bytes);
    Ok(Some(buf.split_to(length).freeze()))
}

/// The length at the front of `bytes` and the bytes it takes; `None`: its last byte is not here.
///
/// 1 <= length <= frame_bytes_max
fn read_length(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<(usize, usize)>, FrameFault> {
    let mut length = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        let last = byte & 0x80 == 0;
        // A longer prefix is a longer frame or a longer form; which of them does not matter.
        if length > frame_bytes_max || (!last && index + 1 == LENGTH_PREFIX_BYTES_MAX) {
            return Err(FrameFault::TooLong { bytes: length, bytes_max: frame_bytes_max });
        }
        if last {
            return match byte {
                0 if index == 0 => Err(FrameFault::Empty),
                0 => Err(FrameFault::LengthNotMinimal),
                _ => Ok(Some((length, index + 1))),
            };
        }
    }
    Ok(None)
}

/// Appends the length prefix of a frame of `length` bytes.
pub fn put_length(out: &mut Vec<u8>, length: usize) {
    crate::field::put_varint(out, length as u64);
}

/// Bytes of the length prefix of a frame of `length` bytes.
pub fn length_prefix_bytes(length: usize) -> usize {
    crate::field::varint_bytes(length as u64)
}
