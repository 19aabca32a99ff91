//! The length prefix, in chunks of any size, against a decoder that sees the whole stream.

use bytes::BytesMut;
use ringpost_protocol::fault::FrameFault;
use ringpost_protocol::frame::{length_prefix_bytes, put_length, split_frame};
use ringpost_protocol::limits::FRAME_BYTES_MAX;

use crate::script::Script;

/// The limit, the length of a chunk, and the stream.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let limits = [FRAME_BYTES_MAX, 1, 100, 127, 128, 16_383, 16_384, 300];
    let frame_bytes_max = limits[usize::from(script.byte() % 8)];
    let chunk_bytes = usize::from(script.byte()).max(1);
    let stream = script.rest();

    let mut buf = BytesMut::new();
    let mut expected = Reference { rest: stream, frame_bytes_max };
    let mut available = 0;
    for chunk in stream.chunks(chunk_bytes) {
        buf.extend_from_slice(chunk);
        available += chunk.len();
        loop {
            let read = stream.len() - expected.rest.len();
            let (capacity, place) = (buf.capacity(), buf.as_ptr() as usize);
            let found = split_frame(&mut buf, frame_bytes_max);
            let next = expected.next(available - read);
            assert_eq!(found.as_ref().map(Option::as_deref), next.as_ref().copied());
            if let Ok(Some(frame)) = &found {
                let prefix_bytes = length_prefix_bytes(frame.len());
                assert_eq!(frame.as_ptr() as usize, place + prefix_bytes, "a copy was made");
                let mut again = Vec::new();
                put_length(&mut again, frame.len());
                assert_eq!(again, stream[read..read + prefix_bytes], "not what was read");
                continue;
            }
            assert_eq!(buf, stream[read..available], "nothing was to be taken");
            assert_eq!(buf.capacity(), capacity, "nothing was to be reserved");
            if found.is_err() {
                return;
            }
            break;
        }
    }
    assert_eq!(buf, expected.rest, "what is left of the stream");
}

/// The rules as the schema states them, on the whole stream, with numbers that cannot overflow.
struct Reference<'a> {
    rest: &'a [u8],
    frame_bytes_max: usize,
}

impl<'a> Reference<'a> {
    /// The next frame, of the first `available` bytes.
    fn next(&mut self, available: usize) -> Result<Option<&'a [u8]>, FrameFault> {
        let bytes = &self.rest[..available];
        let mut length = 0_u128;
        for count in 1..=bytes.len().min(LENGTH_BYTES_MAX) {
            let byte = bytes[count - 1];
            length += u128::from(byte % 128) << (7 * (count - 1));
            if length > self.frame_bytes_max as u128 {
                let bytes = usize::try_from(length).expect("nine groups of seven bits");
                return Err(FrameFault::TooLong { bytes, bytes_max: self.frame_bytes_max });
            }
            if byte < 128 {
                let minimal = count == 1 || byte != 0;
                return match (length, minimal) {
                    (0, true) => Err(FrameFault::Empty),
                    (_, false) => Err(FrameFault::LengthNotMinimal),
                    (_, true) => Ok(self.take(available, count, length)),
                };
            }
        }
        if bytes.len() < LENGTH_BYTES_MAX { Ok(None) } else { Err(FrameFault::LengthNotMinimal) }
    }

    fn take(&mut self, available: usize, prefix_bytes: usize, length: u128) -> Option<&'a [u8]> {
        let length = usize::try_from(length).expect("at most frame_bytes_max");
        let end = prefix_bytes + length;
        (end <= available).then(|| {
            let (frame, rest) = self.rest.split_at(end);
            self.rest = rest;
            &frame[prefix_bytes..]
        })
    }
}

const LENGTH_BYTES_MAX: usize = 9;
