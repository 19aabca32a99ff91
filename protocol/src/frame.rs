//! Length prefix: from a stream of bytes to frames and back. First stop of every byte received.

use bytes::{Buf, Bytes, BytesMut};

use crate::fault::FrameFault;

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
    let mut length = 0_u64;
    for (index, &byte) in bytes.iter().enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * index);
        // The bits that follow only add to it. This also ends the loop: of a prefix without end,
        // either a group counts, or `index` runs into the limit below.
        let length_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if length_bytes > frame_bytes_max {
            return Err(FrameFault::TooLong { bytes: length_bytes, bytes_max: frame_bytes_max });
        }
        let last = byte & 0x80 == 0;
        match (last, byte, index) {
            (true, 0, 0) => return Err(FrameFault::Empty),
            (true, 0, _) => return Err(FrameFault::LengthNotMinimal),
            (true, _, _) => return Ok(Some((length_bytes, index + 1))),
            // Whatever follows, zeros are in front of it, or the length is above every limit.
            (false, _, PREFIX_INDEX_MAX) => return Err(FrameFault::LengthNotMinimal),
            (false, _, _) => {}
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

/// Index of the last byte of a prefix that is looked at, to tell a length that is too long from one
/// in a longer form.
const PREFIX_INDEX_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{FRAME_BYTES_MAX, LENGTH_PREFIX_BYTES_MAX};

    fn framed(length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_length(&mut bytes, length);
        bytes.extend((0..length).map(|index| index.to_le_bytes()[0]));
        bytes
    }

    fn fault(bytes: &[u8]) -> FrameFault {
        split_frame(&mut BytesMut::from(bytes), FRAME_BYTES_MAX).unwrap_err()
    }

    #[test]
    fn lengths_survive_and_take_the_bytes_foretold() {
        for length in [1, 127, 128, 16_383, 16_384, FRAME_BYTES_MAX - 1, FRAME_BYTES_MAX] {
            let bytes = framed(length);
            assert_eq!(bytes.len(), length_prefix_bytes(length) + length);
            assert!(length_prefix_bytes(length) <= LENGTH_PREFIX_BYTES_MAX);
            let mut buf = BytesMut::from(&bytes[..]);
            let frame = split_frame(&mut buf, FRAME_BYTES_MAX).unwrap().unwrap();
            assert_eq!(frame, bytes[bytes.len() - length..]);
            assert!(buf.is_empty());
        }
    }

    #[test]
    fn every_split_of_a_stream_gives_the_same_frames() {
        let lengths = [1, 200, 3, 129];
        let stream: Vec<u8> = lengths.iter().flat_map(|&length| framed(length)).collect();
        for cut in 0..=stream.len() {
            let mut buf = BytesMut::new();
            let mut found = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                buf.extend_from_slice(part);
                while let Some(frame) = split_frame(&mut buf, FRAME_BYTES_MAX).unwrap() {
                    found.push(frame.len());
                }
            }
            assert_eq!(found, lengths, "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_shares_the_memory_of_the_buffer() {
        let mut buf = BytesMut::from(&framed(300)[..]);
        let start = buf.as_ptr() as usize;
        let frame = split_frame(&mut buf, FRAME_BYTES_MAX).unwrap().unwrap();
        assert_eq!(frame.as_ptr() as usize, start + 2);
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_its_bytes_come() {
        let mut prefix = Vec::new();
        put_length(&mut prefix, FRAME_BYTES_MAX + 1);
        let mut buf = BytesMut::from(&prefix[..]);
        let capacity = buf.capacity();
        let fault = split_frame(&mut buf, FRAME_BYTES_MAX).unwrap_err();
        assert_eq!(
            fault,
            FrameFault::TooLong { bytes: FRAME_BYTES_MAX + 1, bytes_max: FRAME_BYTES_MAX }
        );
        assert_eq!((buf.capacity(), buf.len()), (capacity, prefix.len()));
        // A lower limit of the operator holds as well.
        assert!(matches!(
            split_frame(&mut BytesMut::from(&framed(101)[..]), 100),
            Err(FrameFault::TooLong { bytes: 101, bytes_max: 100 })
        ));
    }

    #[test]
    fn lengths_that_never_end_or_are_not_minimal_are_refused() {
        assert_eq!(fault(&[0]), FrameFault::Empty);
        assert_eq!(fault(&[0x85, 0]), FrameFault::LengthNotMinimal);
        assert_eq!(fault(&[0x80, 0]), FrameFault::LengthNotMinimal);
        assert_eq!(fault(&[0x80, 0x80, 0x80, 0]), FrameFault::LengthNotMinimal);
        assert_eq!(fault(&[0x80; 9]), FrameFault::LengthNotMinimal);
        for bytes in 3..12 {
            assert!(matches!(fault(&vec![0xff; bytes]), FrameFault::TooLong { .. }));
        }
        for bytes in 0..9 {
            let mut buf = BytesMut::from(&vec![0x80; bytes][..]);
            assert_eq!(split_frame(&mut buf, FRAME_BYTES_MAX), Ok(None));
        }
    }
}
