//! What a client says about itself in the handshake, before quinn-proto hears it.

use crate::limits::QUIC_IDS_PER_CLIENT;

/// The transport parameters of a client (RFC 9000, section 18) with a lower bound of connection ids:
/// quinn-proto gives out as many as the client takes, and a table entry of ours stands behind each.
/// What is not well-formed stays as it is, for quinn-proto to refuse.
pub(in crate::transport) fn with_fewer_ids(encoded: &[u8]) -> Vec<u8> {
    rewritten(encoded).unwrap_or_else(|| encoded.to_vec())
}

fn rewritten(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while !rest.is_empty() {
        let before = rest;
        let id = take_number(&mut rest)?;
        let length = usize::try_from(take_number(&mut rest)?).ok()?;
        let (mut value, behind) = rest.split_at_checked(length)?;
        rest = behind;
        if id == ACTIVE_CONNECTION_ID_LIMIT && take_number(&mut value)? > QUIC_IDS_PER_CLIENT.into()
        {
            out.extend_from_slice(&[ACTIVE_CONNECTION_ID_LIMIT_BYTE, 1, QUIC_IDS_PER_CLIENT]);
        } else {
            out.extend_from_slice(&before[..before.len() - behind.len()]);
        }
    }
    Some(out)
}

/// Two bits of length, then the number (RFC 9000, section 16).
fn take_number(from: &mut &[u8]) -> Option<u64> {
    let first = *from.first()?;
    let (number, rest) = from.split_at_checked(1 << (first >> 6))?;
    *from = rest;
    let without_length = u64::from(first & 0x3f);
    Some(number[1..].iter().fold(without_length, |value, byte| value << 8 | u64::from(*byte)))
}

const ACTIVE_CONNECTION_ID_LIMIT: u64 = 0x0e;
const ACTIVE_CONNECTION_ID_LIMIT_BYTE: u8 = 0x0e;

// One byte holds it as it is.
const _: () = assert!(QUIC_IDS_PER_CLIENT < 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_high_limit_is_lowered_wherever_it_stands_and_however_it_is_written() {
        let (before, after) = ([0x01, 2, 0x40, 0x64], [0x40, 0x20, 2, 7, 8]);
        for limit in [&[0x0e, 1, 8][..], &[0x0e, 2, 0x40, 8], &[0x40, 0x0e, 4, 0x80, 0, 0, 9]] {
            let encoded = [&before[..], limit, &after].concat();
            let expected = [&before[..], &[0x0e, 1, QUIC_IDS_PER_CLIENT], &after].concat();
            assert_eq!(with_fewer_ids(&encoded), expected);
        }
    }

    #[test]
    fn everything_else_stays() {
        let low = [0x0e, 1, 2, 0x01, 1, 9];
        let cut = [0x0e, 1];
        let too_long = [0x0e, 1, 8, 0x01, 9, 9];
        let no_number = [0x0e, 0];
        for encoded in [&low[..], &cut, &too_long, &no_number, &[]] {
            assert_eq!(with_fewer_ids(encoded), encoded);
        }
    }
}
